//! Responses, in OpenAI's dialect.

use serde_json::{Value, json};

use super::{
    Content, EVENTS, JSON, Operation, closed, content, count, flag, joined, list, no_query,
    nullable, number, object, reference, text,
};

const COMPATIBLE: &[&str] = &["/compatible-mode"];

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

const RESPONSE: &[Content] = &[content(JSON, || reference("Response"))];
const EITHER: &[Content] =
    &[content(JSON, || reference("Response")), content(EVENTS, || reference("ResponseEvent"))];

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        method: "POST",
        body: Some(|| reference("ResponseRequest")),
        ..get("/v1/responses", "Answers items, as OpenAI's document says.", EITHER)
    },
    Operation {
        method: "POST",
        body: Some(|| reference("ResponseRequest")),
        ..get(
            "/v1/responses/input_tokens",
            "Tells how many tokens the prompt of a response would have.",
            &[content(JSON, counted)],
        )
    },
    Operation {
        query: || {
            vec![
                ("stream", false, json!({"enum": ["true", "false"]})),
                ("starting_after", false, count()),
                ("include_obfuscation", false, json!({"enum": ["true", "false"]})),
                ("include", false, list(text())),
            ]
        },
        ..get(
            "/v1/responses/{response}",
            "Shows a response that is kept, or streams one of the background again.",
            EITHER,
        )
    },
    Operation {
        method: "DELETE",
        ..get(
            "/v1/responses/{response}",
            "Removes a response; one that runs is cancelled.",
            &[content(JSON, removed)],
        )
    },
    Operation {
        method: "POST",
        ..get("/v1/responses/{response}/cancel", "Stops a response of the background.", RESPONSE)
    },
    Operation {
        query: || {
            vec![
                ("after", false, text()),
                ("limit", false, json!({"type": "integer", "minimum": 1, "maximum": 100})),
                ("order", false, json!({"enum": ["asc", "desc"]})),
                ("include", false, list(text())),
            ]
        },
        ..get(
            "/v1/responses/{response}/input_items",
            "Lists what a response answered, newest first: all that went before it in its conversation, too.",
            &[content(JSON, items)],
        )
    },
];

fn counted() -> Value {
    object(
        &["object", "input_tokens"],
        json!({"object": {"const": "response.input_tokens"}, "input_tokens": count()}),
    )
}

fn removed() -> Value {
    object(
        &["id", "object", "deleted"],
        json!({
            "id": text(),
            "object": {"const": "response"},
            "deleted": {"const": true},
        }),
    )
}

fn items() -> Value {
    object(
        &["object", "data", "first_id", "last_id", "has_more"],
        json!({
            "object": {"const": "list"},
            "data": list(reference("ResponseItem")),
            "first_id": text(),
            "last_id": text(),
            "has_more": {"type": "boolean"},
        }),
    )
}

pub(super) fn schemas() -> Vec<(&'static str, Value)> {
    vec![
        ("ResponseRequest", request()),
        ("ResponseInput", input()),
        ("ResponseTool", tool()),
        ("Response", response()),
        ("ResponseItem", item()),
        ("ResponseEvent", event()),
    ]
}

fn maybe_text() -> Value {
    json!({"type": ["string", "null"]})
}

fn request() -> Value {
    let own = json!({
        "model": text(),
        "input": {"anyOf": [
            text(),
            {"type": "array", "minItems": 1, "maxItems": 4096, "items": reference("ResponseInput")},
        ]},
        "instructions": maybe_text(),
        "tools": {"type": ["array", "null"], "maxItems": 128, "items": reference("ResponseTool")},
        "tool_choice": {},
        "parallel_tool_calls": flag(),
        "text": nullable(closed(&[], json!({
            "format": nullable(format()),
            "verbosity": {"enum": ["low", "medium", "high", null]},
        }))),
        "reasoning": nullable(closed(&[], json!({
            "effort": super::openai::effort(),
            "summary": maybe_text(),
            "generate_summary": maybe_text(),
            "context": maybe_text(),
            "mode": maybe_text(),
        }))),
        "include": {"type": ["array", "null"], "items": text()},
        "top_logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 20},
        "max_output_tokens": {"type": ["integer", "null"], "minimum": 1},
        "max_tool_calls": {"type": ["integer", "null"], "minimum": 1},
        "store": flag(),
        "previous_response_id": maybe_text(),
        "background": flag(),
        "truncation": {"enum": ["auto", "disabled", null]},
        "stream": flag(),
        "stream_options": nullable(closed(&[], json!({"include_obfuscation": flag()}))),
        "metadata": super::chats::metadata(),
    });
    closed(&["model", "input"], joined(joined(own, sampling()), ignored()))
}

fn sampling() -> Value {
    json!({
        "temperature": number(0.0, 2.0),
        "top_p": number(0.0, 1.0),
        "top_k": {"type": ["integer", "null"], "minimum": 0},
        "min_p": number(0.0, 1.0),
        "repetition_penalty": number(0.0625, 16.0),
        "frequency_penalty": number(-2.0, 2.0),
        "presence_penalty": number(-2.0, 2.0),
        "seed": {"type": ["integer", "null"]},
        "enable_thinking": flag(),
        "chat_template_kwargs": nullable(closed(&[], json!({"enable_thinking": flag()}))),
        "thinking_budget": {"type": ["integer", "null"], "minimum": 1},
    })
}

/// OpenAI's fields that change nothing here, and those that must not be used.
fn ignored() -> Value {
    let unused = || json!({"type": "null"});
    json!({
        "user": maybe_text(),
        "safety_identifier": maybe_text(),
        "prompt_cache_key": maybe_text(),
        "prompt_cache_retention": maybe_text(),
        "service_tier": maybe_text(),
        "conversation": unused(),
        "prompt": unused(),
        "context_management": unused(),
        "moderation": unused(),
        "prompt_cache_options": unused(),
    })
}

fn format() -> Value {
    json!({"anyOf": [
        closed(&["type"], json!({"type": {"enum": ["text", "json_object"]}})),
        closed(&["type", "name", "schema"], json!({
            "type": {"const": "json_schema"},
            "name": text(),
            "description": maybe_text(),
            "strict": flag(),
            "schema": {},
        })),
    ]})
}

fn tool() -> Value {
    closed(
        &["type", "name"],
        json!({
            "type": {"const": "function"},
            "name": text(),
            "description": maybe_text(),
            "parameters": {"type": ["object", "null"]},
            "strict": flag(),
            "output_schema": {"type": ["object", "null"]},
            "allowed_callers": {"type": ["array", "null"]},
            "defer_loading": {"enum": [false, null]},
        }),
    )
}

/// Parts of text, of one of these types.
fn parts(kinds: &[&str]) -> Value {
    let part = closed(
        &["type"],
        json!({
            "type": {"enum": kinds},
            "text": text(),
            "refusal": text(),
            "annotations": {"type": ["array", "null"]},
            "logprobs": {"type": ["array", "null"]},
            "prompt_cache_breakpoint": {"type": ["object", "null"]},
        }),
    );
    list(part)
}

fn input() -> Value {
    let own = |kind: Value, more: Value| {
        let both = json!({"type": kind, "id": maybe_text(), "status": maybe_text(),
            "phase": maybe_text(), "created_by": maybe_text()});
        joined(both, more)
    };
    let words = |kinds: &[&str]| json!({"anyOf": [text(), parts(kinds)]});
    json!({"anyOf": [
        closed(&["role", "content"], own(json!({"enum": ["message", null]}), json!({
            "role": {"enum": ["system", "developer", "user", "assistant"]},
            "content": words(&["input_text", "output_text", "refusal"]),
        }))),
        closed(&["type", "call_id", "name", "arguments"], own(json!({"const": "function_call"}), json!({
            "call_id": text(),
            "name": text(),
            "arguments": text(),
        }))),
        closed(&["type", "call_id", "output"], own(json!({"const": "function_call_output"}), json!({
            "call_id": text(),
            "output": words(&["input_text"]),
        }))),
        closed(&["type"], own(json!({"const": "reasoning"}), json!({
            "summary": nullable(parts(&["summary_text"])),
            "content": nullable(parts(&["reasoning_text"])),
            "encrypted_content": maybe_text(),
        }))),
        closed(&["id"], json!({"type": {"enum": ["item_reference", null]}, "id": text()})),
    ]})
}

fn item() -> Value {
    let content = object(
        &["type", "text"],
        json!({
            "type": {"enum": ["input_text", "output_text", "reasoning_text"]},
            "text": text(),
            "annotations": list(json!({})),
            "logprobs": list(json!({"type": "object"})),
        }),
    );
    object(
        &["id", "type", "status"],
        json!({
            "id": text(),
            "type": {"enum": ["message", "function_call", "function_call_output", "reasoning"]},
            "status": {"enum": ["in_progress", "completed", "incomplete"]},
            "role": {"enum": ["system", "developer", "user", "assistant"]},
            "content": list(content),
            "call_id": text(),
            "name": text(),
            "arguments": text(),
            "output": text(),
            "summary": list(json!({})),
        }),
    )
}

fn usage() -> Value {
    object(
        &[
            "input_tokens",
            "input_tokens_details",
            "output_tokens",
            "output_tokens_details",
            "total_tokens",
        ],
        json!({
            "input_tokens": count(),
            "input_tokens_details": object(
                &["cached_tokens", "cache_write_tokens"],
                json!({"cached_tokens": count(), "cache_write_tokens": count()}),
            ),
            "output_tokens": count(),
            "output_tokens_details":
                object(&["reasoning_tokens"], json!({"reasoning_tokens": count()})),
            "total_tokens": count(),
        }),
    )
}

fn response() -> Value {
    let state = json!({
        "id": text(),
        "object": {"const": "response"},
        "created_at": count(),
        "status": {"enum": ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]},
        "completed_at": nullable(count()),
        "background": {"type": "boolean"},
        "error": nullable(object(&["code", "message"], json!({"code": text(), "message": text()}))),
        "incomplete_details": nullable(object(&["reason"], json!({"reason": text()}))),
        "output": list(reference("ResponseItem")),
        "usage": usage(),
    });
    let told = json!({
        "model": text(),
        "instructions": maybe_text(),
        "max_output_tokens": nullable(count()),
        "max_tool_calls": nullable(count()),
        "metadata": {"type": "object"},
        "parallel_tool_calls": {"type": "boolean"},
        "previous_response_id": maybe_text(),
        "prompt_cache_key": maybe_text(),
        "reasoning": {"type": "object"},
        "safety_identifier": maybe_text(),
        "service_tier": text(),
        "store": {"type": "boolean"},
        "temperature": {"type": "number"},
        "text": {"type": "object"},
        "tool_choice": {},
        "tools": list(json!({"type": "object"})),
        "top_logprobs": count(),
        "top_p": {"type": "number"},
        "truncation": {"enum": ["auto", "disabled"]},
        "user": text(),
    });
    let always = [
        "id",
        "object",
        "created_at",
        "status",
        "error",
        "incomplete_details",
        "output",
        "model",
        "tools",
        "tool_choice",
        "temperature",
        "top_p",
        "store",
        "background",
    ];
    object(&always, joined(state, told))
}

fn event() -> Value {
    object(
        &["type", "sequence_number"],
        json!({
            "type": {"enum": [
                "response.created", "response.queued", "response.in_progress",
                "response.completed", "response.incomplete", "response.failed",
                "response.output_item.added", "response.output_item.done",
                "response.content_part.added", "response.content_part.done",
                "response.output_text.delta", "response.output_text.done",
                "response.reasoning_text.delta", "response.reasoning_text.done",
                "response.function_call_arguments.delta", "response.function_call_arguments.done",
            ]},
            "sequence_number": count(),
            "response": reference("Response"),
            "item": reference("ResponseItem"),
            "item_id": text(),
            "output_index": count(),
            "content_index": count(),
            "part": {"type": "object"},
            "delta": text(),
            "text": text(),
            "name": text(),
            "arguments": text(),
            "logprobs": list(json!({"type": "object"})),
            "obfuscation": text(),
        }),
    )
}
