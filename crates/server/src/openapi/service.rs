//! Routes that belong to no dialect: health, counters, this document; and the shape of errors that all but three
//! dialects have.

use serde_json::{Value, json};

use super::{Content, JSON, Operation, content, no_query, nullable, object, text};

/// The component of refusals that are a word of plain text.
pub(super) const WORD: &str = "Word";
const TEXT: &[Content] = &[Content { media_type: "text/plain", schema: None }];

fn any_object() -> Value {
    json!({"type": "object"})
}

const fn open(path: &'static str, about: &'static str, answers: &'static [Content]) -> Operation {
    Operation {
        method: "GET",
        path,
        also_under: &[],
        about,
        needs_key: false,
        query: no_query,
        body: None,
        answers,
        error: None,
    }
}

pub(super) const OPERATIONS: &[Operation] = &[
    open("/healthz", "Whether the process lives.", TEXT),
    Operation {
        error: Some(WORD),
        ..open("/readyz", "Whether requests are welcome; 503 with a word why not.", TEXT)
    },
    Operation {
        error: Some(WORD),
        ..open("/health", "The same by the name that vLLM and llama.cpp have for it.", TEXT)
    },
    open("/metrics", "Counters in Prometheus' text format.", TEXT),
    open("/openapi.json", "This document.", &[content(JSON, any_object)]),
];

pub(super) fn schemas() -> Vec<(&'static str, Value)> {
    let error = object(
        &["message", "type", "param", "code"],
        json!({
            "message": text(),
            "type": text(),
            "param": nullable(text()),
            "code": nullable(text()),
        }),
    );
    vec![("Error", object(&["error"], json!({"error": error}))), (WORD, text())]
}
