//! Grammars over a vocabulary of single bytes: what they allow, force and refuse; hostile ones; small random schemas held
//! to another implementation.

use super::*;
use crate::text_model::TextModel;
use crate::tokenizer::{GgufVocabulary, SpecialTokens, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// `<|end|>`, after the 256 bytes, four merges and `<|other|>`.
const END: TokenId = 261;
const VOCAB: TokenId = 262;

/// Single bytes, and some merges, so that a forced text has tokens of more than one byte.
fn text_model() -> Arc<TextModel> {
    let visible = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            let before =
                (0..byte).filter(|b| !matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)).count();
            char::from_u32(0x100 + before as u32).unwrap()
        }
    };
    let mut tokens: Vec<String> = (0..=255).map(|byte| visible(byte).to_string()).collect();
    tokens.extend(["na", "me", "name", "\"name", "<|other|>", "<|end|>"].map(str::to_owned));
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let token_types: Vec<i32> = (0..VOCAB).map(|id| if id < 260 { 1 } else { 3 }).collect();
    let vocabulary = GgufVocabulary {
        model: "gpt2",
        pre: "qwen2",
        tokens: &tokens,
        token_types: &token_types,
        merges: &["n a", "m e", "na me", "\" name"],
        bos_token_id: None,
        eos_token_id: Some(END),
        add_bos_token: Some(false),
        add_eos_token: None,
    };
    let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
    Arc::new(TextModel::new(tokenizer, None, &[END]).unwrap())
}

fn compiler() -> GrammarCompiler {
    GrammarCompiler::new(text_model(), GrammarLimits::default())
}

fn bytes(text: &str) -> Vec<TokenId> {
    text.bytes().map(TokenId::from).collect()
}

/// Whether an answer may be `text` and end there, by the masks, byte for byte where no token is forced.
fn accepts(grammar: &dyn Grammar, text: &str) -> bool {
    let mut state = grammar.start().unwrap();
    let tokenizer = text_model();
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let token = match state.forced().unwrap() {
            Some(token) => token,
            None => TokenId::from(rest[0]),
        };
        let said = tokenizer.tokenizer().token_bytes(token).unwrap();
        if !state.mask().unwrap().allows(token) || !rest.starts_with(said) {
            return false;
        }
        rest = &rest[said.len()..];
        state.accept(token).unwrap();
    }
    let ends = state.mask().unwrap().allows(END);
    if ends {
        state.accept(END).unwrap();
        assert!(state.has_ended() && state.accept(END).is_err());
    }
    ends
}

#[track_caller]
fn check(spec: &GrammarSpec, good: &[&str], bad: &[&str]) {
    let grammar = compiler().compile(spec).unwrap();
    for text in good {
        assert!(accepts(&*grammar, text), "{spec:?} refuses {text:?}");
    }
    for text in bad {
        assert!(!accepts(&*grammar, text), "{spec:?} allows {text:?}");
    }
}

#[test]
fn each_kind_allows_what_it_says_and_nothing_else() {
    let schema = json!({
        "type": "object",
        "properties": { "name": { "type": "string", "maxLength": 3 }, "n": { "enum": [1, 2] } },
        "required": ["name"],
        "additionalProperties": false
    });
    check(
        &GrammarSpec::JsonSchema(schema),
        &["{\"name\": \"ab\"}", "{\"name\":\"\",\"n\":2}", "{\n  \"name\": \"ab\"\n}"],
        &["{}", "{\"name\":\"abcd\"}", "{\"name\":\"\",\"n\":3}", "{\"name\":\"\"", "[]", ""],
    );
    check(
        &GrammarSpec::JsonObject,
        &["{}", "{\"a\": [1, null, {\"b\": -2.5e3}]}"],
        &["[]", "1", "{\"a\"}", "{a: 1}"],
    );
    let regex = |text: &str| GrammarSpec::Regex(text.to_owned());
    check(&regex("[a-c]{2}/d?"), &["ab/", "cc/d"], &["a/", "abc/", "ab/dd"]);
    check(&regex("^ab*$"), &["a", "abbb"], &["b", "^a$", "aa"]);
    let choice = ["yes", "yes, sir", "no \"q\"\\\u{7f}"].map(str::to_owned).to_vec();
    check(
        &GrammarSpec::Choice(choice),
        &["yes", "yes, sir", "no \"q\"\\\u{7f}"],
        &["yes,", "n", ""],
    );
    let lark = "start: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]+/\n";
    check(&GrammarSpec::from_grammar_text(lark.to_owned()), &["1", "12+3+4"], &["+", "1+", ""]);
    let gbnf = "root ::= \"(\" root? \")\" | word\nword ::= [a-c]+ [^a-y()\\n]?";
    check(
        &GrammarSpec::from_grammar_text(gbnf.to_owned()),
        &["()", "((ab))", "(bz)"],
        &["(", "(()", "d", "a\n"],
    );
}

#[test]
fn one_of_several_is_followed_where_they_exclude_one_another() {
    let shape = |kind: &str, side: &str| {
        json!({ "type": "object", "additionalProperties": false, "required": ["kind", side],
            "properties": { "kind": { "enum": [kind] }, side: { "$ref": "#/$defs/size" } } })
    };
    let schema = json!({
        "oneOf": [{ "$ref": "#/$defs/circle" }, { "$ref": "#/$defs/square" }],
        "$defs": {
            "size": { "oneOf": [{ "enum": [1, 2] }, { "type": "null" }] },
            "circle": shape("circle", "radius"),
            "square": shape("square", "side")
        }
    });
    check(
        &GrammarSpec::JsonSchema(schema),
        &[r#"{"kind":"circle","radius":1}"#, r#"{"kind":"square","side":null}"#],
        &[r#"{"kind":"circle","side":1}"#, r#"{"kind":"square","side":3}"#, "{}"],
    );
    let either = json!({
        "type": "object", "additionalProperties": false,
        "properties": { "a": { "const": 1 }, "b": { "const": 2 } },
        "oneOf": [{ "required": ["a"] }, { "required": ["b"] }]
    });
    check(
        &GrammarSpec::JsonSchema(either),
        &[r#"{"a":1}"#, r#"{"b":2}"#],
        &["{}", r#"{"a":1,"b":2}"#],
    );
    // Options that lead back to themselves.
    let list = json!({ "oneOf": [{ "$ref": "#/$defs/node" }, { "$ref": "#/$defs/end" }],
        "$defs": { "end": { "type": "null" }, "node": { "type": "array", "minItems": 1, "maxItems": 1,
            "items": { "oneOf": [{ "$ref": "#/$defs/node" }, { "$ref": "#/$defs/end" }] } } } });
    check(&GrammarSpec::JsonSchema(list), &["null", "[null]", "[[null]]"], &["[]", "[1]"]);
}

#[test]
fn dependencies_are_followed() {
    let kind = json!({"type": "integer", "maximum": 9, "minimum": 0});
    let schema = json!({
        "type": "object", "additionalProperties": false,
        "properties": { "a": kind, "b": kind, "c": kind },
        "dependentRequired": { "a": ["b"] },
        "dependentSchemas": { "c": { "properties": { "b": { "const": 1 } } } }
    });
    check(
        &GrammarSpec::JsonSchema(schema),
        &["{}", r#"{"b":2}"#, r#"{"a":1,"b":2}"#, r#"{"a":1,"b":1,"c":1}"#, r#"{"c":1}"#],
        &[r#"{"a":1}"#, r#"{"b":2,"c":1}"#, r#"{"a":1,"c":1}"#],
    );
}

fn call(name: &str, arguments: Json) -> Vec<GrammarPiece> {
    let schema = json!({ "type": "object", "additionalProperties": false, "required": ["n", "a"],
        "properties": { "n": { "const": name }, "a": arguments } });
    let text = |text: &str| GrammarPiece::Text(text.to_owned());
    vec![text("\n"), GrammarPiece::Schema(schema), text("\n<|end-of-call|>")]
}

#[test]
fn calls_of_tools_are_composed_of_tokens_texts_and_schemas() {
    let spec = |free, opener: &str, most| GrammarSpec::Calls {
        free,
        in_text: Vec::new(),
        opener: opener.to_owned(),
        before: String::new(),
        options: vec![call("f", json!({"type": "boolean"})), call("g", json!({"enum": [1, 2]}))],
        between: format!("\n{opener}"),
        most,
        after: String::new(),
    };
    let follow_as = |free, opener: &str, most, text: &str| {
        let grammar = compiler().compile(&spec(free, opener, most)).unwrap();
        let mut state = grammar.start().unwrap();
        let tokens = text_model().tokenizer().encode(text, SpecialTokens::Allow);
        let all = tokens.iter().chain([&END]);
        let mut whole = true;
        for &token in all {
            whole &= state.mask().unwrap().allows(token);
            if !whole {
                break;
            }
            state.accept(token).unwrap();
        }
        whole && state.has_ended()
    };
    let token = "<|other|>";
    let follow = |most, text: &str| follow_as(None, token, most, text);
    let free = |text: &str| follow_as(Some(FreeAnswer::Text), token, None, text);
    let (f, g) = (
        "<|other|>\n{\"n\":\"f\",\"a\":true}\n<|end-of-call|>",
        "<|other|>\n{\"n\":\"g\",\"a\":2}\n<|end-of-call|>",
    );
    assert!(follow(Some(1), f) && follow(None, g) && !follow(Some(1), &format!("Well. {f}")));
    assert!(follow(None, &format!("{f}\n{g}\n{f}")) && !follow(Some(1), &format!("{f}\n{g}")));
    assert!(!follow(None, "Well.") && !follow(None, &f.replace("true", "2")));
    assert!(free("Well.") && free("") && free(f) && free(&format!("Well. {f}\n{g}")));
    assert!(!free(&format!("Well. {f}.")) && !free(&f.replace("true", "2")));
    // Where what opens a call is text like any other, or nothing.
    let text = |text: &str| text.replace(token, "<call>");
    let spelled = |said: &str| follow_as(Some(FreeAnswer::Text), "<call>", None, said);
    assert!(spelled("Well < you.") && spelled(&text(f)) && spelled(&text(&format!("Oh {f}\n{g}"))));
    assert!(!spelled("Well <call> me.") && !spelled(&text(&format!("Oh {f}.\n{g}"))));
    let bare = |said: &str| follow_as(Some(FreeAnswer::Text), "", None, &said.replace(token, ""));
    assert!(bare("Well {you}.") && bare(f) && bare(&format!("{f}\n{g}")));
    assert!(!bare(" {\"n\"}") && !bare(&format!("{f}.")));
    // Or JSON of another form.
    let schema = Some(FreeAnswer::Schema(json!({"type": "integer"})));
    let or = |said: &str| follow_as(schema.clone(), token, None, said);
    assert!(or("12") && or(f) && !or("Well.") && !or(&format!("12{f}")));
    let unsupported = vec![call("f", json!({"type": "array", "uniqueItems": true}))];
    let spec = GrammarSpec::Calls {
        free: None,
        in_text: Vec::new(),
        opener: String::new(),
        before: String::new(),
        options: unsupported,
        between: String::new(),
        most: None,
        after: String::new(),
    };
    refused(
        &spec,
        "the schema's `uniqueItems` at `#/properties/a` cannot be honoured: it is not supported",
    );
}

#[test]
fn control_tokens_are_no_text() {
    let grammar = compiler().compile(&GrammarSpec::Regex("(?s:.*)".to_owned())).unwrap();
    let mut state = grammar.start().unwrap();
    let mask = state.mask().unwrap();
    assert!(!mask.allows(260) && mask.allows(END) && mask.allows(b'<'.into()));
    assert!(!mask.allows(VOCAB) && !mask.allows(u32::MAX));
}

#[test]
fn what_must_follow_is_forced_in_the_tokenizers_own_tokens() {
    let schema = json!({ "properties": { "name": { "const": "name" } }, "required": ["name"],
        "type": "object", "additionalProperties": false });
    let grammar = compiler().compile(&GrammarSpec::JsonSchema(schema)).unwrap();
    let mut state = grammar.start().unwrap();
    assert_eq!(state.forced().unwrap(), Some(b'{'.into()));
    let mut said = Vec::new();
    while !state.has_ended() {
        // White space is free; where nothing is forced the answer goes on with what it must.
        let token = state.forced().unwrap().unwrap_or_else(|| {
            let mask = state.mask().unwrap();
            *[34, 58, 125].iter().find(|&&t| mask.allows(t)).unwrap()
        });
        let mask = state.mask().unwrap();
        assert!(mask.allows(token));
        state.accept(token).unwrap();
        said.push(token);
    }
    let text = text_model();
    said.pop();
    assert_eq!(text.tokenizer().decode(&said, true), "{\"name\":\"name\"}");
    assert_eq!(said, text.tokenizer().encode("{\"name\":\"name\"}", SpecialTokens::AsText));
}

#[track_caller]
fn refused(spec: &GrammarSpec, wanted: &str) {
    let error = compiler().compile(spec).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), wanted);
}

#[test]
fn a_refusal_names_the_keyword_and_the_place() {
    let schema = |inner: Json| {
        GrammarSpec::JsonSchema(json!({ "type": "object", "properties": { "a/b": inner } }))
    };
    let cannot = |keyword: &str, reason: &str| {
        format!("the schema's `{keyword}` at `#/properties/a~1b` cannot be honoured: {reason}")
    };
    let unsupported = "it is not supported";
    for keyword in ["uniqueItems", "contains", "not", "unevaluatedItems", "propertyNames"] {
        let value = if keyword == "uniqueItems" { json!(true) } else { json!({"type": "null"}) };
        refused(&schema(json!({ keyword: value })), &cannot(keyword, unsupported));
    }
    let one_of = json!({ "oneOf": [{"type": "number"}, {"type": "integer"}] });
    let error = compiler().compile(&schema(one_of)).map(|_| ()).unwrap_err();
    assert!(
        matches!(error, GrammarError::Keyword { ref keyword, .. } if keyword == "oneOf"),
        "{error}"
    );
    let malformed = |spec: GrammarSpec, wanted: &str| {
        let error = compiler().compile(&spec).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    };
    malformed(GrammarSpec::JsonSchema(json!(false)), "no value satisfies it");
    malformed(GrammarSpec::JsonSchema(json!([])), "a schema is an object or a boolean");
    malformed(GrammarSpec::Regex("a(b".to_owned()), "unclosed group at byte 1");
    malformed(GrammarSpec::Choice(Vec::new()), "it holds no text");
    malformed(GrammarSpec::Gbnf("root ::= x".to_owned()), "the rule `x` is not defined");
    malformed(GrammarSpec::Lark("start: nothing".to_owned()), "nothing");
    malformed(GrammarSpec::Lark("start: \"a".to_owned()), "1(10)");
}

#[test]
fn a_schema_does_not_switch_checks_off() {
    let lenient =
        json!({ "x-guidance": { "lenient": true }, "type": "array", "uniqueItems": true });
    assert!(compiler().compile(&GrammarSpec::JsonSchema(lenient)).is_err());
    let nested = json!({ "items": { "x-guidance": { "lenient": true }, "not": {} } });
    assert!(compiler().compile(&GrammarSpec::JsonSchema(nested)).is_err());
}

/// Hostile grammars: refused, or compiled and followed, within bounds; and never a panic or a hang.
#[test]
fn hostile_grammars_are_bounded() {
    let deep = (0..100).fold(json!({}), |inner, _| json!({ "items": inner, "type": "array" }));
    let wide: Vec<String> = (0..20_000).map(|i| format!("value {i}")).collect();
    let many: serde_json::Map<String, Json> =
        (0..3000).map(|i| (format!("p{i}"), json!({"type": "integer", "minimum": i}))).collect();
    let doubling = (0..60).fold(
        json!({"type": "null"}),
        |inner, i| json!({ "anyOf": [{"$ref": format!("#/$defs/d{i}")}, inner] }),
    );
    let lists: serde_json::Map<String, Json> = (0..60)
        .map(|i| {
            let next = json!({"$ref": format!("#/$defs/d{}", (i + 1) % 60)});
            (format!("d{i}"), json!({ "allOf": [next.clone(), {"properties": {"a": next}}] }))
        })
        .collect();
    let schemas = [
        deep,
        json!({ "enum": wide }),
        json!({ "properties": many, "minProperties": 1500 }),
        json!({ "$defs": lists, "anyOf": [doubling] }),
        json!({ "$ref": "#" }),
        json!({ "$ref": "http://example.invalid/schema" }),
        json!({ "allOf": [{"$ref": "#"}] }),
        json!({ "type": "string", "minLength": 4_000_000_000u64 }),
        json!({ "type": "array", "minItems": 4_000_000_000u64 }),
        json!({ "type": "array", "maxItems": 4_000_000_000u64, "items": {"type": "array", "maxItems": 1_000_000} }),
        json!({ "type": "string", "pattern": "(a?){1000}a{1000}" }),
        json!({ "type": "string", "pattern": "((((a{1,100}){1,100}){1,100}){1,100}){1,100}" }),
        json!({ "type": "string", "pattern": "(a|b|ab)*c.{0,500}[ab]{900}", "maxLength": 100_000 }),
        json!({ "type": "number", "multipleOf": 1e-300, "minimum": -1e308, "maximum": 1e308 }),
        json!({ "type": "integer", "multipleOf": 999_983, "minimum": 3 }),
        json!({ "type": "é".repeat(120) }),
        json!({ "enum": "é".repeat(120) }),
        json!({ "required": [1], "type": "object" }),
    ];
    let specs = schemas.into_iter().map(GrammarSpec::JsonSchema).chain([
        GrammarSpec::Regex("(x+x+)+y".to_owned()),
        GrammarSpec::Regex("(a{0,1000}){0,1000}".to_owned()),
        GrammarSpec::Regex("(.*a){30}".to_owned()),
        GrammarSpec::Lark("start: start start | \"a\" | start start start".to_owned()),
        GrammarSpec::Lark("start: \"\" start".to_owned()),
        GrammarSpec::Gbnf(format!("root ::= {}\"a\"{}", "(".repeat(60), "){0,9}".repeat(60))),
    ]);
    let compiler = compiler();
    for spec in specs {
        let start = Instant::now();
        if let Ok(grammar) = compiler.compile(&spec) {
            let mut state = grammar.start().unwrap();
            for _ in 0..40 {
                let Ok(mask) = state.mask() else { break };
                let next = [b'a', b'"', b'[', b'{', b'1', b'x', b' '].map(TokenId::from);
                let next = next.into_iter().chain(0..VOCAB).find(|&token| mask.allows(token));
                if state.accept(next.unwrap()).is_err() || state.has_ended() {
                    break;
                }
            }
        }
        // A generous bound, for a busy machine: what is unbounded takes minutes.
        let shown: String = format!("{spec:?}").chars().take(200).collect();
        assert!(start.elapsed() < Duration::from_secs(20), "{:?} for {shown}", start.elapsed());
    }
}

#[test]
fn grammars_are_kept_and_forgotten() {
    let limits = GrammarLimits { cache_entries: 2, ..GrammarLimits::default() };
    let compiler = GrammarCompiler::new(text_model(), limits);
    let compile = |text: &str| compiler.compile(&GrammarSpec::Regex(text.to_owned())).unwrap();
    let (first, _) = (compile("a"), compile("b"));
    assert!(Arc::ptr_eq(&first, &compile("a")));
    compile("c");
    assert!(Arc::ptr_eq(&first, &compile("a")), "used after `b`");
    compile("b");
    compile("c");
    assert!(!Arc::ptr_eq(&first, &compile("a")));
    let compile_timeout = Duration::from_millis(20);
    let limits = GrammarLimits { max_bytes: 10, max_compiling: 0, compile_timeout, ..limits };
    let compiler = GrammarCompiler::new(text_model(), limits);
    let refused = |text: &str| {
        compiler.compile(&GrammarSpec::Regex(text.to_owned())).map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(refused("aaaaaaaaaaa"), "the regular expression has 11 bytes, the limit is 10");
    assert_eq!(refused("a"), "too many grammars are being compiled: retry");
}

/// A small schema.
fn schemas() -> impl Strategy<Value = Json> {
    let words = || prop::sample::subsequence(vec!["a", "b", "name", "c d", "é"], 1..4);
    let leaf = prop_oneof![
        Just(json!({"type": "null"})),
        Just(json!({"type": "boolean"})),
        (-20i64..20, 0i64..30)
            .prop_map(|(a, n)| json!({"type": "integer", "minimum": a, "maximum": a + n})),
        (0u8..3, 0u8..4)
            .prop_map(|(a, n)| json!({"type": "string", "minLength": a, "maxLength": a + n})),
        words().prop_map(|words| json!({ "enum": words })),
        Just(json!({"type": "string", "pattern": "^[a-f]{1,3}$"})),
        Just(json!({"type": ["number", "null"], "exclusiveMinimum": 0, "exclusiveMaximum": 1})),
        Just(json!({"type": "string", "format": "date"})),
    ];
    leaf.prop_recursive(3, 12, 3, move |inner| {
        prop_oneof![
            (inner.clone(), 0u8..2, 0u8..3)
                .prop_map(|(items, a, n)| json!({"type": "array", "items": items, "minItems": a, "maxItems": a + n})),
            prop::collection::vec(inner.clone(), 1..3).prop_map(|any| json!({ "anyOf": any })),
            (words(), inner.clone(), inner, any::<bool>()).prop_map(|(names, one, other, all)| {
                let pick = |i: usize| if i.is_multiple_of(2) { &one } else { &other };
                let properties: serde_json::Map<String, Json> =
                    names.iter().enumerate().map(|(i, name)| ((*name).to_owned(), pick(i).clone())).collect();
                let required = if all { names.clone() } else { vec![names[0]] };
                json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whoever follows the masks writes what the schema accepts; what is forced is what the mask would leave; and a
    /// token that the mask refuses is refused.
    #[test]
    fn whoever_follows_the_masks_writes_what_the_schema_accepts(schema in schemas(), seed in any::<u64>()) {
        let grammar = compiler().compile(&GrammarSpec::JsonSchema(schema.clone())).unwrap();
        let (mut state, mut twin) = (grammar.start().unwrap(), grammar.start().unwrap());
        let mut dice = seed;
        let mut said = Vec::new();
        while !state.has_ended() {
            prop_assert!(said.len() < 2000);
            let forced = state.forced().unwrap();
            // The twin is never asked what is forced.
            let mask = twin.mask().unwrap().clone();
            prop_assert_eq!(state.mask().unwrap(), &mask);
            let allowed: Vec<TokenId> = (0..VOCAB).filter(|&token| mask.allows(token)).collect();
            prop_assert!(forced.is_none_or(|token| allowed == [token]));
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // White space may go on for long.
            let tight: Vec<_> = allowed.iter().copied().filter(|t| ![b' ', b'\n'].map(TokenId::from).contains(t)).collect();
            let among = if tight.is_empty() { &allowed } else { &tight };
            let token = among[(dice >> 33) as usize % among.len()];
            let wrong = (0..VOCAB).find(|&token| !mask.allows(token)).unwrap();
            prop_assert_eq!(state.valid_prefix(&[wrong]), 0);
            if token != END {
                prop_assert_eq!(state.valid_prefix(&[token]), 1);
            }
            state.accept(token).unwrap();
            twin.accept(token).unwrap();
            said.push(token);
        }
        said.pop();
        let text = text_model().tokenizer().decode(&said, true);
        let value: Json = serde_json::from_str(&text).unwrap();
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        prop_assert!(validator.is_valid(&value), "{} by {}", text, schema);
    }
}

/// Schemas of arguments that every format can follow.
fn arguments() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(json!({"type": "string"})),
        Just(json!({"type": "string", "enum": ["x", "y z"]})),
        Just(json!({"type": "integer", "minimum": -3, "maximum": 12})),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": ["integer", "null"], "maximum": 9, "minimum": 0})),
        Just(json!({"type": "array", "items": {"type": "boolean"}, "maxItems": 2})),
        Just(json!({"anyOf": [{"type": "null"}, {"const": 4}]})),
        Just(
            json!({"type": "object", "properties": {"k": {"enum": ["v"]}}, "required": ["k"], "additionalProperties": false})
        ),
    ];
    prop::collection::vec((leaf, any::<bool>()), 0..4).prop_map(|all| {
        let name = |i: usize| ["a", "b", "c d", "é"][i].to_owned();
        let required: Vec<String> =
            (0..all.len()).filter(|&i| all[i].1).map(name).collect();
        let properties: serde_json::Map<String, Json> =
            all.iter().enumerate().map(|(i, (schema, _))| (name(i), schema.clone())).collect();
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    })
}

/// An answer that follows the grammar, by chance, and hurries once it is long.
fn scribbled(grammar: &dyn Grammar, mut dice: u64) -> String {
    let mut state = grammar.start().unwrap();
    let mut said: Vec<TokenId> = Vec::new();
    let closing = bytes("</parameter>");
    let mut closed = 0;
    while !state.has_ended() {
        assert!(said.len() < 3000, "{}", text_model().tokenizer().decode(&said, false));
        let mask = state.mask().unwrap().clone();
        let allowed: Vec<TokenId> = (0..VOCAB)
            .filter(|&t| {
                mask.allows(t) && ![b' ', b'\n', b'\t', b'\r'].map(TokenId::from).contains(&t)
            })
            .collect();
        let all: Vec<TokenId> = (0..VOCAB).filter(|&t| mask.allows(t)).collect();
        let among = if allowed.is_empty() { &all } else { &allowed };
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut token = among[(dice >> 33) as usize % among.len()];
        if closed > 0 || (among.len() > 100 && (dice >> 60) > 12) {
            // Free text ends with a quotation mark or, byte for byte, with a tag.
            let wanted = closing[closed];
            let quote = TokenId::from(b'"');
            if closed == 0 && mask.allows(quote) && said.len().is_multiple_of(2) {
                token = quote;
            } else if mask.allows(wanted) {
                token = wanted;
                closed = (closed + 1) % closing.len();
            } else {
                closed = 0;
            }
        }
        state.accept(token).unwrap();
        said.push(token);
    }
    said.pop();
    text_model().tokenizer().decode(&said, false)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whoever has to call a tool calls it, in every format, with arguments that its schema accepts.
    #[test]
    fn calls_that_are_forced_are_read_and_valid(schema in arguments(), seed in any::<u64>()) {
        use crate::calls::{CallEvent, CallFormat, CallReader, CallTool, Reading};
        let tools: Arc<[CallTool]> = [
            CallTool { name: "f".to_owned(), parameters: schema.clone() },
            CallTool { name: "none".to_owned(), parameters: Json::Null },
        ].into();
        let validator = jsonschema::validator_for(&schema).unwrap();
        for format in [CallFormat::Hermes, CallFormat::QwenCoder, CallFormat::Llama, CallFormat::Mistral, CallFormat::MistralNamed] {
            let grammar = compiler().compile(&format.grammar(&tools, None, Some(2)).unwrap()).unwrap();
            let text = scribbled(grammar.as_ref(), seed);
            let mut reader = CallReader::new(format, Arc::clone(&tools)).reading(Reading::Template);
            let mut events = Vec::new();
            reader.push(&text, &mut events);
            reader.finish(&mut events);
            let (mut name, mut json, mut calls) = (String::new(), String::new(), 0);
            for event in events {
                match event {
                    CallEvent::Begin(begun) => (name, json) = (begun, String::new()),
                    CallEvent::Arguments(more) => json += &more,
                    CallEvent::End(None) => {
                        let value: Json = serde_json::from_str(&json).unwrap();
                        let fits = if name == "f" { validator.is_valid(&value) } else { value == json!({}) };
                        prop_assert!(fits, "{format:?}: {text} by {schema}");
                        calls += 1;
                    }
                    CallEvent::Text(_) | CallEvent::End(Some(_)) => prop_assert!(false, "{format:?}: {text}"),
                }
            }
            prop_assert!(calls == 1 || calls == 2, "{format:?}: {text}");
        }
    }
}

/// Tools with integer arguments `a`, in the way that Hermes models call.
fn adders(names: &[&str]) -> Arc<[crate::calls::CallTool]> {
    let parameters = json!({"type": "object", "additionalProperties": false, "required": ["a"],
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}}});
    let tool = |name: &&str| crate::calls::CallTool {
        name: (*name).to_owned(),
        parameters: parameters.clone(),
    };
    names.iter().map(tool).collect()
}

#[test]
fn calls_in_free_text_are_kept_to_their_form() {
    use crate::calls::{CallEvent, CallFormat, CallReader, Reading};
    let tools = adders(&["f", "get/it"]);
    let free = Some(FreeAnswer::Text);
    let check = |most, said: &str, fits: bool, calls: &[(&str, &str)]| {
        let spec = CallFormat::Hermes.grammar(&tools, free.clone(), most).unwrap();
        let grammar = compiler().compile(&spec).unwrap();
        let mut state = grammar.start().unwrap();
        let tokens = text_model().tokenizer().encode(said, SpecialTokens::AsText);
        let found = tokens
            .iter()
            .chain([&END])
            .all(|&token| state.mask().unwrap().allows(token) && state.accept(token).is_ok());
        assert_eq!(found, fits, "{said}");
        // What is read as a call is what the grammar held.
        let mut reader =
            CallReader::new(CallFormat::Hermes, Arc::clone(&tools)).reading(Reading::Ordered);
        let mut events = Vec::new();
        reader.push(said, &mut events);
        reader.finish(&mut events);
        let (mut read, mut name, mut json) = (Vec::new(), String::new(), String::new());
        for event in events {
            match event {
                CallEvent::Begin(begun) => (name, json) = (begun, String::new()),
                CallEvent::Arguments(more) => json += &more,
                CallEvent::End(None) => read.push((name.clone(), json.clone())),
                CallEvent::Text(_) | CallEvent::End(Some(_)) => {}
            }
        }
        let read: Vec<(&str, &str)> = read.iter().map(|(n, j)| (&**n, &**j)).collect();
        assert_eq!(read, if fits { calls } else { &read }, "{said}");
    };
    let fenced = |object: &str| format!("```json\n{object}\n```");
    let f = "{\n  \"name\": \"f\",\n  \"arguments\": {\n    \"a\": 1\n  }\n}";
    let arguments = "{\n    \"a\": 1\n  }";
    check(None, &fenced(f), true, &[("f", arguments)]);
    check(None, f, true, &[("f", arguments)]);
    check(None, &format!("Well:\n{}\nThere.", fenced(f)), true, &[("f", arguments)]);
    check(Some(1), &fenced(f), true, &[("f", arguments)]);
    // Another tool, another value, and a call in another form, which is none.
    let with = |from: &str, to: &str| fenced(&f.replace(from, to));
    check(None, &with("\"f\"", "\"get/it\""), true, &[("get/it", arguments)]);
    check(None, &with("1", "\"x\""), false, &[]);
    check(None, &with("1", "10"), false, &[]);
    check(None, &with("\"a\"", "\"b\""), false, &[]);
    check(None, &with("\"f\"", "\"g\""), true, &[]);
    check(None, &with("name", "n\\u0061me"), true, &[]);
    check(None, &with("\"f\"", "\"\\u0066\""), true, &[]);
    check(None, "```json\n{\"arguments\": {\"b\": 2}, \"name\": \"f\"}\n```", true, &[]);
    check(None, "```json\n{\"name\": \"f\", \"parameters\": {\"b\": 2}}\n```", true, &[]);
    check(None, "```json\n{\"name\": \"f\"}\n```", true, &[]);
    check(None, "{\"name\": \"John\", \"age\": [1]}", true, &[]);
    // One after the other, and after what the template shows.
    let two = format!("{}\n{}", fenced(f), with("\"f\"", "\"get/it\""));
    check(None, &two, true, &[("f", arguments), ("get/it", arguments)]);
    check(Some(1), &two, false, &[]);
    check(None, &format!("{}{}", fenced(f), with("1", "\"x\"")), false, &[]);
    let shown = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":2}}\n</tool_call>";
    check(None, shown, true, &[("f", "{\"a\":2}")]);
    check(None, &shown.replace('2', "10"), false, &[]);
    check(None, &format!("{}\n{shown}", fenced(f)), true, &[("f", arguments), ("f", "{\"a\":2}")]);
}

#[test]
fn many_tools_in_free_text_compile_in_time() {
    use crate::calls::CallFormat;
    let names: Vec<String> = (0..16).map(|n| format!("tool_number_{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let tools = adders(&names);
    let spec = CallFormat::Hermes.grammar(&tools, Some(FreeAnswer::Text), None).unwrap();
    let grammar = compiler().compile(&spec).unwrap();
    let mut state = grammar.start().unwrap();
    for token in bytes("Text, and ```json\n{\"name\": \"tool_number_15\", \"arguments\": {\"a\"") {
        assert!(state.mask().unwrap().allows(token));
        state.accept(token).unwrap();
    }
    assert!(!state.mask().unwrap().allows(b'x'.into()));
}

#[test]
fn schemas_that_a_format_cannot_follow_are_refused() {
    use crate::calls::{CallFormat, CallTool};
    for (format, parameters, says) in [
        (
            CallFormat::QwenCoder,
            json!({"properties": {"a": {"type": "string", "minLength": 1}}}),
            "`minLength` at `#/properties/a`",
        ),
        (CallFormat::QwenCoder, json!({"minProperties": 1}), "`minProperties` at `#`"),
        (CallFormat::QwenCoder, json!({"required": ["a"]}), "`a` is not among"),
        (CallFormat::Hermes, json!({"type": "array"}), "arguments are an object"),
        (CallFormat::Llama, json!({"type": ["object", "null"]}), "arguments are an object"),
    ] {
        let tool = CallTool { name: "f".to_owned(), parameters };
        let error = format.grammar(&[tool], None, None).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn bytes_that_do_not_fit_are_refused() {
    let grammar = compiler().compile(&GrammarSpec::Regex("[ab]{2}".to_owned())).unwrap();
    let mut state = grammar.start().unwrap();
    assert_eq!(state.valid_prefix(&[b'a'.into(), VOCAB + 5]), 1);
    assert_eq!(state.valid_prefix(&bytes("abc")), 2);
    assert!(matches!(state.accept(b'x'.into()), Err(GrammarFault::NotAllowed(_))));
}
