//! Calls in answers, format by format: each text whole and cut at every two places; then texts put together at random, by
//! the body of the fuzz target `calls`. `MINTAGE_FUZZ_CASES` runs more of those.

#[path = "../../../../fuzz/fuzz_targets/calls_body.rs"]
mod body;

use mintage_model::CallFormat::{self, Hermes, Llama, Mistral, MistralNamed, QwenCoder};

use self::body::{FORMATS, Outcome, read};

const USUAL_CASES: usize = 3_000;

/// A text in this format is `said`, and calls these functions with these arguments, however it is cut.
#[track_caller]
fn check(format: CallFormat, text: &str, said: &str, calls: &[(&str, &str)]) {
    let calls = calls.iter().map(|(n, a)| ((*n).to_owned(), (*a).to_owned())).collect();
    let expected = Outcome { text: said.to_owned(), calls };
    assert_eq!(read(format, text, &[]), expected, "{format:?} {text:?}");
    for a in (0..=text.len()).filter(|&a| text.is_char_boundary(a)) {
        for b in (a..=text.len()).filter(|&b| text.is_char_boundary(b)) {
            let cut = read(format, text, &[a, b]);
            assert_eq!(cut, expected, "{format:?} {text:?} cut at {a} and {b}");
        }
    }
}

const F: (&str, &str) = ("f", "{\"a\": \"}ü\"}");

#[test]
fn hermes() {
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}ü\"}}\n</tool_call>";
    let object = "{\"name\": \"f\", \"arguments\": {\"a\": \"}ü\"}}";
    let check = |text: &str, said: &str, calls: &[(&str, &str)]| check(Hermes, text, said, calls);
    check("plain <tool text", "plain <tool text", &[]);
    check(" ", " ", &[]);
    check(call, "", &[F]);
    check(&format!("\n\n{call}"), "", &[F]);
    check(&format!("Hi\n{call}\n{call}\n"), "Hi\n", &[F, F]);
    check(&format!("{call}\nBye"), "\nBye", &[F]);
    // A brace too few or too many, a closing tag that is missing, two calls in one frame.
    check(&call.replace("}}\n", "}\n"), "", &[F]);
    check(&call.replace("}}\n", "}}}\n"), "", &[F]);
    check(&call.replace("\n</tool_call>", ""), "", &[F]);
    check(&format!("<tool_call>{object}\n{object}</tool_call>"), "", &[F, F]);
    // Other frames, or none.
    check(&format!("<tools>{object}</tools>"), "", &[F]);
    check(&format!("So:\n```json\n{object}\n```\nDone."), "So:\n\nDone.", &[F]);
    check(&format!("{object}\n{object}"), "", &[F, F]);
    check(&format!("Not {object}"), &format!("Not {object}"), &[]);
    // Other orders and wrappings.
    check("{\"arguments\": {\"a\": 1}, \"name\": \"f\"}", "", &[("f", "{\"a\": 1}")]);
    check("{\"name\": \"g\"}", "", &[("g", "{}")]);
    check(
        "{\"type\": \"function\", \"function\": {\"name\": \"g\", \"parameters\": {}}}",
        "",
        &[("g", "{}")],
    );
    // What is none.
    for text in [
        "<tool_call>no</tool_call>",
        " <tool_call> <tool_call>",
        &call.replace("\"f\"", "\"h\""),
        &call.replace("\"}ü\"", "True"),
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": [}",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1",
        "{\"name\": \"f\", \"age\": 4}",
        "```json\n[1]\n```",
    ] {
        check(text, text, &[]);
    }
}

#[test]
fn qwen_coder() {
    let check =
        |text: &str, said: &str, calls: &[(&str, &str)]| check(QwenCoder, text, said, calls);
    let call = |body: &str| format!("<tool_call>\n<function=f>\n{body}</function>\n</tool_call>");
    let value = |name: &str, value: &str| format!("<parameter={name}>\n{value}\n</parameter>\n");
    check(&call(""), "", &[("f", "{}")]);
    check(&call(&value("a", "}ü \"q\"\n")), "", &[("f", "{\"a\": \"}ü \\\"q\\\"\\n\"}")]);
    check(
        &call(&(value("a", "") + &value("n", "3") + &value("b", "True"))),
        "",
        &[("f", "{\"a\": \"\", \"n\": 3, \"b\": true}")],
    );
    // Numbers of strings stay strings, what has another type does not; what fits none is a string.
    check(&call(&value("a", "3")), "", &[("f", "{\"a\": \"3\"}")]);
    check(&call(&value("n", "three")), "", &[("f", "{\"n\": \"three\"}")]);
    check(&call(&value("l", "[1, {\"x\": null}]")), "", &[("f", "{\"l\": [1,{\"x\":null}]}")]);
    check(&call(&value("u", "true")), "", &[("f", "{\"u\": \"true\"}")]);
    check(&call(&value("u", "1.5")), "", &[("f", "{\"u\": 1.5}")]);
    check(&call(&value("unknown", "1")), "", &[("f", "{\"unknown\": \"1\"}")]);
    check("Hi <function=g></function> and", "Hi  and", &[("g", "{}")]);
    let two = format!("{}\n{}", call(&value("n", "1")), call(&value("n", "2")));
    check(&two, "", &[("f", "{\"n\": 1}"), ("f", "{\"n\": 2}")]);
    for text in [
        "<tool_call>\n<function=h>\n</function>",
        "<tool_call>{\"name\": \"f\"}",
        &call(&(value("a", "1") + &value("a", "2"))),
        &call("what?"),
        "<tool_call>\n<function=f>\n<parameter=a>\nx",
    ] {
        check(text, text, &[]);
    }
}

#[test]
fn llama() {
    let check = |text: &str, said: &str, calls: &[(&str, &str)]| check(Llama, text, said, calls);
    let object = "{\"name\": \"f\", \"parameters\": {\"a\": \"}ü\"}}";
    check(object, "", &[F]);
    check(&format!("<|python_tag|>{object}"), "", &[F]);
    check(&format!("{object}; {object}"), "", &[F, F]);
    check("{\"type\": \"function\", \"function\": \"g\", \"parameters\": {}}", "", &[("g", "{}")]);
    for text in [
        "{\"name\": \"h\", \"parameters\": {}}",
        "<|python_tag|>print(1)",
        "{\"temperature\": 3}",
        &format!("I'd call {object}"),
    ] {
        check(text, text, &[]);
    }
}

#[test]
fn mistral() {
    let list = "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": \"}ü\"}, \"id\": \"123456789\"}, \
                {\"name\": \"g\", \"arguments\": {}}]";
    let named = "[TOOL_CALLS]f[ARGS]{\"a\": \"}ü\"}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}";
    for format in [Mistral, MistralNamed] {
        check(format, list, "", &[F, ("g", "{}")]);
        check(format, named, "", &[F, ("g", "{}")]);
        check(format, "[TOOL_CALLS] f {}\nBye", "\nBye", &[("f", "{}")]);
        for text in [
            "[TOOL_CALLS][]",
            "[TOOL_CALLS][{\"name\": \"h\", \"arguments\": {}}]",
            "[TOOL_CALLS]h[ARGS]{}",
            "[TOOL_CALLS]f[ARGS]{\"a\": }",
            "[TOOL_CALLS]f[CALL_ID]12{}",
            "[TOOL_CALLS",
        ] {
            check(format, text, text, &[]);
        }
        // What came before a broken one stays a call.
        let broken = "[TOOL_CALLS][{\"name\": \"g\", \"arguments\": {}}, {\"name\": \"h\"}]";
        check(format, broken, ", {\"name\": \"h\"}]", &[("g", "{}")]);
    }
}

#[test]
fn formats_are_chosen_by_the_template() {
    for (source, expected) in [
        ("{{ m.content }}", None),
        ("<tool_call>\\n{\"name\": ", Some(Hermes)),
        ("<tool_call>name\\n<arg_key>", None),
        ("<tool_call>\\n<function=' + name + '><parameter=", Some(QwenCoder)),
        ("<|start_header_id|> {\"name\": function name, \"parameters\": dictionary", Some(Llama)),
        ("\"[TOOL_CALLS] [\"", Some(Mistral)),
        ("'[TOOL_CALLS]' + name + '[ARGS]'", Some(MistralNamed)),
    ] {
        assert_eq!(CallFormat::of_template(source), expected, "{source}");
    }
}

/// Pieces that answers are put together of.
const PIECES: &[&str] = &[
    "<tool_call>",
    "</tool_call>",
    "```json",
    "```",
    "<function=f>",
    "<function=g>",
    "</function>",
    "<parameter=a>",
    "<parameter=n>",
    "</parameter>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "{\"name\": \"f\", \"arguments\": ",
    "{\"name\": \"g\", \"parameters\": ",
    "{\"arguments\": {}, \"name\": \"f\"}",
    "\"function\": {",
    "{}",
    "{\"a\": \"\\\"ü\"}",
    "f",
    "g",
    "{",
    "}",
    "[",
    "]",
    ",",
    ";",
    ":",
    "\"",
    "\\",
    "\n",
    " ",
    "你好",
    "3",
];

#[test]
fn calls_do_not_depend_on_how_the_text_is_cut() {
    let given = std::env::var("MINTAGE_FUZZ_CASES").ok().and_then(|count| count.parse().ok());
    // xorshift64* (Vigna 2016): the same cases everywhere.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |bound: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    };
    let mut called = 0;
    for case in 0..given.unwrap_or(USUAL_CASES) {
        let format = case % FORMATS.len();
        let mut text = String::new();
        for _ in 0..=below(12) {
            text += PIECES[below(PIECES.len())];
        }
        let cuts = [below(text.len() + 1).min(255), below(text.len() + 1).min(255)];
        let data = [&[format as u8, cuts[0] as u8, cuts[1] as u8], text.as_bytes()].concat();
        body::check(&data);
        called += usize::from(!read(FORMATS[format], &text, &[]).calls.is_empty());
    }
    assert!(called > 10, "only {called} of the texts call anything");
}
