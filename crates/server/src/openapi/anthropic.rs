//! Anthropic's dialect.

use serde_json::{Value, json};

use super::{
    EVENTS, JSON, Operation, closed, content, count, flag, list, no_query, nullable, number,
    object, reference, text,
};

const fn post(
    path: &'static str,
    about: &'static str,
    body: fn() -> Value,
    answers: &'static [super::Content],
) -> Operation {
    Operation {
        method: "POST",
        path,
        also_under: &["/apps/anthropic"],
        about,
        needs_key: true,
        query: no_query,
        body: Some(body),
        answers,
        error: Some("AnthropicError"),
    }
}

pub(super) const OPERATIONS: &[Operation] = &[
    post(
        "/v1/messages",
        "Answers with a message, as Anthropic's API does.",
        || request(&["model", "messages", "max_tokens"]),
        &[
            content(JSON, || reference("AnthropicMessage")),
            content(EVENTS, || object(&["type"], json!({"type": text()}))),
        ],
    ),
    post(
        "/v1/messages/count_tokens",
        "Tells how long the prompt of a message would be.",
        || request(&["model", "messages"]),
        &[content(JSON, || object(&["input_tokens"], json!({"input_tokens": count()})))],
    ),
];

fn request(required: &[&str]) -> Value {
    let block = || object(&["type"], json!({"type": text()}));
    let blocks = || json!({"anyOf": [text(), list(block())]});
    let ignored = || json!({"type": ["string", "null"]});
    let message = closed(
        &["role", "content"],
        json!({"role": {"enum": ["user", "assistant", "system"]}, "content": blocks()}),
    );
    let tool = object(
        &["name"],
        json!({"name": text(), "description": text(), "input_schema": {"type": "object"}}),
    );
    closed(
        required,
        json!({
            "model": text(),
            "messages": {"type": "array", "minItems": 1, "items": message},
            "system": nullable(blocks()),
            "max_tokens": {"type": ["integer", "null"], "minimum": 1},
            "stream": flag(),
            "temperature": number(0.0, 1.0),
            "top_p": number(0.0, 1.0),
            "top_k": {"type": ["integer", "null"], "minimum": 0},
            "stop_sequences": {"anyOf": [text(), list(text()), {"type": "null"}]},
            "tools": {"type": ["array", "null"], "items": tool},
            "tool_choice": {"type": ["object", "null"]},
            "thinking": {"type": ["object", "null"]},
            "output_config": {"type": ["object", "null"]},
            "metadata": {"type": ["object", "null"]},
            "cache_control": {"type": ["object", "null"]},
            "service_tier": ignored(),
            "inference_geo": ignored(),
        }),
    )
}

pub(super) fn schemas() -> Vec<(&'static str, Value)> {
    let usage = object(
        &["input_tokens", "output_tokens"],
        json!({
            "input_tokens": count(),
            "cache_creation_input_tokens": count(),
            "cache_read_input_tokens": count(),
            "output_tokens": count(),
        }),
    );
    let message = object(
        &["id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"],
        json!({
            "id": text(),
            "type": {"const": "message"},
            "role": {"const": "assistant"},
            "model": text(),
            "content": list(object(&["type"], json!({"type": {"enum": ["text", "thinking", "tool_use"]}}))),
            "stop_reason": nullable(text()),
            "stop_sequence": nullable(text()),
            "usage": usage,
        }),
    );
    let error = object(
        &["type", "error"],
        json!({
            "type": {"const": "error"},
            "error": object(&["type", "message"], json!({"type": text(), "message": text()})),
            "request_id": nullable(text()),
        }),
    );
    let model = object(
        &["type", "id", "display_name", "created_at"],
        json!({
            "type": {"const": "model"},
            "id": text(),
            "display_name": text(),
            "created_at": text(),
        }),
    );
    let models = object(
        &["data", "has_more", "first_id", "last_id"],
        json!({
            "data": list(reference("AnthropicModel")),
            "has_more": {"type": "boolean"},
            "first_id": nullable(text()),
            "last_id": nullable(text()),
        }),
    );
    vec![
        ("AnthropicMessage", message),
        ("AnthropicError", error),
        ("AnthropicModel", model),
        ("AnthropicModels", models),
    ]
}
