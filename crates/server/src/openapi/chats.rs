//! Chats that are kept, in OpenAI's dialect.

use serde_json::{Value, json};

use super::{
    Content, JSON, Operation, closed, content, list, no_query, nullable, object, reference, text,
};

const COMPATIBLE: &[&str] = &["/compatible-mode"];
const ONE: &str = "/v1/chat/completions/{completion}";

const fn get(path: &'static str, about: &'static str, answers: &'static [Content]) -> Operation {
    Operation {
        method: "GET",
        path,
        also_under: COMPATIBLE,
        about,
        needs_key: true,
        query: no_query,
        body: None,
        answers,
        error: Some("Error"),
    }
}

const CHAT: &[Content] = &[content(JSON, || reference("KeptChat"))];

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        query: || {
            let own =
                vec![("model", false, text()), ("metadata", false, json!({"type": "object"}))];
            own.into_iter().chain(page_query()).collect()
        },
        ..get(
            "/v1/chat/completions",
            "Lists the chats that were to be kept (`store`), oldest first.",
            &[content(JSON, || page(reference("KeptChat")))],
        )
    },
    get(ONE, "Shows a chat that is kept.", CHAT),
    Operation {
        method: "POST",
        body: Some(|| closed(&["metadata"], json!({"metadata": metadata()}))),
        ..get(ONE, "Gives a chat that is kept other metadata.", CHAT)
    },
    Operation { method: "DELETE", ..get(ONE, "Removes a chat.", &[content(JSON, removed)]) },
    Operation {
        query: page_query,
        ..get(
            "/v1/chat/completions/{completion}/messages",
            "Lists the messages that a chat answered.",
            &[content(JSON, || page(reference("KeptMessage")))],
        )
    },
];

fn page_query() -> Vec<(&'static str, bool, Value)> {
    vec![
        ("after", false, text()),
        ("limit", false, json!({"type": "integer", "minimum": 1, "maximum": 100})),
        ("order", false, json!({"enum": ["asc", "desc"]})),
    ]
}

/// At most 16 pairs of short texts.
pub(super) fn metadata() -> Value {
    json!({
        "type": ["object", "null"],
        "maxProperties": 16,
        "propertyNames": {"maxLength": 64},
        "additionalProperties": {"type": "string", "maxLength": 512},
    })
}

fn page(of: Value) -> Value {
    object(
        &["object", "data", "first_id", "last_id", "has_more"],
        json!({
            "object": {"const": "list"},
            "data": list(of),
            "first_id": text(),
            "last_id": text(),
            "has_more": {"type": "boolean"},
        }),
    )
}

fn removed() -> Value {
    object(
        &["object", "id", "deleted"],
        json!({
            "object": {"const": "chat.completion.deleted"},
            "id": text(),
            "deleted": {"const": true},
        }),
    )
}

pub(super) fn schemas() -> Vec<(&'static str, Value)> {
    let kept = json!({"allOf": [
        reference("ChatAnswer"),
        object(&["metadata"], json!({"metadata": {"type": "object"}})),
    ]});
    let message = object(
        &["id", "role", "content", "refusal"],
        json!({
            "id": text(),
            "role": text(),
            "content": nullable(text()),
            "content_parts": list(json!({"type": "object"})),
            "refusal": nullable(text()),
        }),
    );
    vec![("KeptChat", kept), ("KeptMessage", message)]
}
