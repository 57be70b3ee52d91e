//! Ollama's dialect. It ignores fields that it does not know, as Ollama does.

use serde_json::{Value, json};

use super::{
    JSON, Operation, content, count, flag, joined, list, no_query, object, reference, text,
};

const LINES: &str = "application/x-ndjson";

const fn get(
    path: &'static str,
    about: &'static str,
    answers: &'static [super::Content],
) -> Operation {
    Operation {
        method: "GET",
        path,
        also_under: &[],
        about,
        needs_key: true,
        query: no_query,
        body: None,
        answers,
        error: Some("OllamaError"),
    }
}

const fn post(
    path: &'static str,
    about: &'static str,
    body: fn() -> Value,
    answers: &'static [super::Content],
) -> Operation {
    Operation { method: "POST", body: Some(body), ..get(path, about, answers) }
}

const ANSWERS: &[super::Content] =
    &[content(JSON, || reference("OllamaLine")), content(LINES, || reference("OllamaLine"))];
const MODELS: &[super::Content] = &[content(JSON, models)];

pub(super) const OPERATIONS: &[Operation] = &[
    post("/api/chat", "Answers a chat, as Ollama does.", chat, ANSWERS),
    post(
        "/api/generate",
        "Answers a prompt, or fills in before a suffix, as Ollama does.",
        generate,
        ANSWERS,
    ),
    post(
        "/api/embed",
        "Makes vectors of texts, as Ollama does.",
        embed,
        &[content(JSON, || {
            let vectors = list(list(json!({"type": "number"})));
            object(
                &["model", "embeddings"],
                json!({"model": text(), "embeddings": vectors, "prompt_eval_count": count()}),
            )
        })],
    ),
    post(
        "/api/embeddings",
        "Makes a vector of one text, as Ollama did before.",
        || object(&["model"], json!({"model": text(), "prompt": {"type": ["string", "null"]}})),
        &[content(JSON, || {
            let vector = json!({"type": ["array", "null"], "items": {"type": "number"}});
            object(&["embedding"], json!({"embedding": vector}))
        })],
    ),
    get("/api/tags", "Lists the models that are served.", MODELS),
    get("/api/ps", "Lists the models that are loaded: all that are served.", MODELS),
    post(
        "/api/show",
        "Shows a model.",
        || object(&["model"], json!({"model": text()})),
        &[content(JSON, shown)],
    ),
    get(
        "/api/version",
        "Tells the server's version.",
        &[content(JSON, || object(&["version"], json!({"version": text()})))],
    ),
];

fn shared() -> Value {
    json!({
        "model": text(),
        "stream": flag(),
        "format": {"anyOf": [{"enum": ["", "json"]}, {"type": "object"}, {"type": "null"}]},
        "think": {"enum": [true, false, "low", "medium", "high", null]},
        "options": {"type": ["object", "null"]},
    })
}

fn chat() -> Value {
    let message =
        object(&["role"], json!({"role": text(), "content": {"type": ["string", "null"]}}));
    let own = json!({"messages": {"type": ["array", "null"], "items": message}});
    object(&["model"], joined(shared(), own))
}

fn embed() -> Value {
    let input = json!({"anyOf": [text(), list(text()), {"type": "null"}]});
    let dimensions = json!({"type": ["integer", "null"], "minimum": 0});
    object(
        &["model"],
        json!({"model": text(), "input": input, "truncate": flag(), "dimensions": dimensions}),
    )
}

fn generate() -> Value {
    let maybe = || json!({"type": ["string", "null"]});
    let own = json!({"prompt": maybe(), "suffix": maybe(), "system": maybe(), "raw": flag()});
    object(&["model"], joined(shared(), own))
}

fn models() -> Value {
    let model = object(
        &["name", "model", "modified_at", "details"],
        json!({
            "name": text(),
            "model": text(),
            "modified_at": text(),
            "details": {"type": "object"},
            "context_length": count(),
        }),
    );
    object(&["models"], json!({"models": list(model)}))
}

fn shown() -> Value {
    object(
        &["template", "details", "model_info", "capabilities"],
        json!({
            "modelfile": text(),
            "parameters": text(),
            "template": text(),
            "details": {"type": "object"},
            "model_info": {"type": "object"},
            "capabilities": list(text()),
            "modified_at": text(),
        }),
    )
}

pub(super) fn schemas() -> Vec<(&'static str, Value)> {
    let line = object(
        &["model", "created_at", "done"],
        json!({
            "model": text(),
            "created_at": text(),
            "message": object(&["role", "content"], json!({"role": text(), "content": text()})),
            "response": text(),
            "thinking": text(),
            "done": {"type": "boolean"},
            "done_reason": text(),
            "total_duration": count(),
            "prompt_eval_count": count(),
            "eval_count": count(),
        }),
    );
    let error = object(&["error"], json!({"error": text()}));
    vec![("OllamaLine", line), ("OllamaError", error)]
}
