//! What must hold of any text as an answer with calls: however it is cut, the same text and calls come of it; the arguments
//! of a call are an object; where there is no call, nothing is lost. The fuzz target runs it, and a test of the model crate
//! over texts that it makes up.

use std::sync::Arc;

use mintage_model::{CallEvent, CallFormat, CallReader, CallTool};
use serde_json::{Value, json};

/// All formats.
pub(super) const FORMATS: [CallFormat; 5] = [
    CallFormat::Hermes,
    CallFormat::QwenCoder,
    CallFormat::Llama,
    CallFormat::Mistral,
    CallFormat::MistralNamed,
];

/// What a client makes of an answer: its text, and its calls as names and arguments.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) text: String,
    pub(super) calls: Vec<(String, String)>,
}

/// The functions that can be called.
pub(super) fn tools() -> Arc<[CallTool]> {
    let tool = |name: &str, properties: Value| CallTool {
        name: name.to_owned(),
        parameters: json!({"type": "object", "properties": properties}),
    };
    [
        tool(
            "f",
            json!({"a": {"type": "string"}, "n": {"type": "integer"}, "l": {"type": ["array", "null"]},
                "b": {"type": "boolean"}, "u": {"anyOf": [{"type": "string"}, {"type": "number"}]}}),
        ),
        tool("g", json!({})),
    ]
    .into()
}

/// Reads a text in pieces cut behind these bytes. Panics where a call's arguments are no object.
pub(super) fn read(format: CallFormat, text: &str, cuts: &[usize]) -> Outcome {
    let mut reader = CallReader::new(format, tools());
    let (mut events, mut from) = (Vec::new(), 0);
    for &cut in cuts.iter().chain([&text.len()]) {
        reader.push(&text[from..cut], &mut events);
        from = cut;
    }
    reader.finish(&mut events);
    let mut outcome = Outcome::default();
    let mut call: Option<(String, String)> = None;
    for event in events {
        match event {
            CallEvent::Text(text) => {
                assert!(call.is_none(), "text inside of a call: {text:?}");
                outcome.text += &text;
            }
            CallEvent::Begin(name) => {
                assert!(call.replace((name, String::new())).is_none(), "a call inside of a call");
            }
            CallEvent::Arguments(more) => call.as_mut().expect("a call began").1 += &more,
            CallEvent::End(Some(raw)) => {
                call = None;
                outcome.text += &raw;
            }
            CallEvent::End(None) => {
                let (name, arguments) = call.take().expect("a call began");
                let value: Value = serde_json::from_str(&arguments).expect("arguments are JSON");
                assert!(value.is_object(), "{arguments}");
                outcome.calls.push((name, arguments));
            }
        }
    }
    assert!(call.is_none(), "a call without an end");
    outcome
}

/// The first byte chooses the format, the second and third where to cut.
pub(super) fn check(data: &[u8]) {
    let [format, first, second, rest @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let format = FORMATS[usize::from(*format) % FORMATS.len()];
    let boundary =
        |byte: usize| (0..=byte.min(text.len())).rev().find(|&b| text.is_char_boundary(b));
    let whole = read(format, text, &[]);
    if whole.calls.is_empty() {
        assert_eq!(whole.text, text, "something is lost");
    }
    let mut cuts: Vec<usize> =
        [first, second].into_iter().filter_map(|&b| boundary(b.into())).collect();
    cuts.sort_unstable();
    assert_eq!(read(format, text, &cuts), whole, "{text:?} cut at {cuts:?}");
    let each: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    assert_eq!(read(format, text, &each), whole, "{text:?} cut everywhere");
}
