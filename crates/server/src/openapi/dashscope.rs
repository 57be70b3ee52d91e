//! Model Studio's native dialect.

use serde_json::{Value, json};

use super::{
    EVENTS, JSON, Operation, closed, content, count, list, no_query, object, reference, text,
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
        also_under: &[],
        about,
        needs_key: true,
        query: no_query,
        body: Some(body),
        answers,
        error: Some("DashScopeError"),
    }
}

const ANSWERS: &[super::Content] = &[
    content(JSON, || reference("DashScopeAnswer")),
    content(EVENTS, || reference("DashScopeAnswer")),
];

pub(super) const OPERATIONS: &[Operation] = &[
    post(
        "/api/v1/services/aigc/text-generation/generation",
        "Answers a chat, as DashScope does; in events for who sends `X-DashScope-SSE: enable`.",
        generation,
        ANSWERS,
    ),
    post(
        "/api/v1/services/aigc/multimodal-generation/generation",
        "The same with contents as lists of parts, of which text is understood.",
        generation,
        ANSWERS,
    ),
    post(
        "/api/v1/services/embeddings/text-embedding/text-embedding",
        "Makes vectors of texts, as DashScope does.",
        text_embedding,
        &[content(JSON, || reference("DashScopeEmbeddings"))],
    ),
    post(
        "/api/v1/services/rerank/text-rerank/text-rerank",
        "Scores documents for a query, best first, as DashScope does.",
        text_rerank,
        &[content(JSON, || reference("DashScopeRanked"))],
    ),
    post(
        "/api/v1/tokenizer",
        "Tells the tokens of a prompt or of a chat.",
        generation,
        &[content(JSON, || reference("DashScopeTokens"))],
    ),
    Operation {
        method: "GET",
        body: None,
        query: || {
            vec![
                ("model", false, text()),
                ("page_no", false, json!({"type": "integer", "minimum": 1})),
                ("page_size", false, json!({"type": "integer", "minimum": 1, "maximum": 100})),
            ]
        },
        ..post(
            "/api/v1/models",
            "Lists the models that are served, by pages.",
            generation,
            &[content(JSON, || reference("DashScopeModels"))],
        )
    },
];

fn generation() -> Value {
    let message = object(&["role"], json!({"role": text(), "content": {}}));
    let input = object(
        &[],
        json!({
            "prompt": text(),
            "messages": {"type": "array", "minItems": 1, "items": message},
        }),
    );
    closed(
        &["model", "input"],
        json!({
            "model": text(),
            "input": input,
            "parameters": {"type": ["object", "null"]},
            "resources": {"type": ["object", "null"]},
        }),
    )
}

/// A body with this input and these parameters.
fn body(input: Value, parameters: Value) -> Value {
    let mut parameters = closed(&[], parameters);
    parameters["type"] = json!(["object", "null"]);
    closed(
        &["model", "input"],
        json!({
            "model": text(),
            "input": input,
            "parameters": parameters,
            "resources": {"type": ["object", "null"]},
        }),
    )
}

fn text_embedding() -> Value {
    let words = || json!({"type": "string", "minLength": 1});
    let texts = json!({"type": "array", "items": words(), "minItems": 1, "maxItems": 2048});
    body(
        closed(&["texts"], json!({"texts": {"anyOf": [words(), texts]}})),
        json!({
            "text_type": {"enum": ["query", "document", null]},
            "dimension": {"type": ["integer", "null"], "minimum": 1},
            "output_type": {"enum": ["dense", null]},
            "instruct": {"type": ["string", "null"], "maxLength": 4096},
        }),
    )
}

fn text_rerank() -> Value {
    let words = || json!({"type": "string", "minLength": 1});
    let either =
        |words: Value| json!({"anyOf": [words.clone(), object(&["text"], json!({"text": words}))]});
    let documents =
        json!({"type": "array", "items": either(text()), "minItems": 1, "maxItems": 2048});
    body(
        closed(&["query", "documents"], json!({"query": either(words()), "documents": documents})),
        json!({
            "top_n": {"type": ["integer", "null"], "minimum": 1},
            "return_documents": {"type": ["boolean", "null"]},
            "instruct": {"type": ["string", "null"], "maxLength": 4096},
        }),
    )
}

/// Answers that are vectors, or scores.
fn vectors() -> [(&'static str, Value); 2] {
    let answer = |output: Value| {
        let usage =
            object(&["total_tokens"], json!({"input_tokens": count(), "total_tokens": count()}));
        object(
            &["output", "usage", "request_id"],
            json!({"output": output, "usage": usage, "request_id": text()}),
        )
    };
    let embedding = object(
        &["text_index", "embedding"],
        json!({"text_index": count(), "embedding": list(json!({"type": "number"}))}),
    );
    let score = object(
        &["index", "relevance_score"],
        json!({
            "index": count(),
            "relevance_score": {"type": "number"},
            "document": object(&["text"], json!({"text": text()})),
        }),
    );
    let embeddings = object(&["embeddings"], json!({"embeddings": list(embedding)}));
    let results = object(&["results"], json!({"results": list(score)}));
    [("DashScopeEmbeddings", answer(embeddings)), ("DashScopeRanked", answer(results))]
}

pub(super) fn schemas() -> Vec<(&'static str, Value)> {
    let choice = object(
        &["index", "finish_reason", "message"],
        json!({
            "index": count(),
            "finish_reason": text(),
            "message": object(&["role", "content"], json!({"role": text(), "content": {"type": ["string", "array"]}})),
        }),
    );
    let output = json!({"anyOf": [
        object(&["text", "finish_reason"], json!({"text": text(), "finish_reason": text()})),
        object(&["choices"], json!({"choices": list(choice)})),
    ]});
    let usage = object(
        &["input_tokens", "output_tokens", "total_tokens"],
        json!({"input_tokens": count(), "output_tokens": count(), "total_tokens": count()}),
    );
    let answer = object(
        &["output", "usage", "request_id"],
        json!({"output": output, "usage": usage, "request_id": text()}),
    );
    let tokens = object(
        &["output", "usage", "request_id"],
        json!({
            "output": object(&["token_ids", "tokens"], json!({"token_ids": list(count()), "tokens": list(text())})),
            "usage": object(&["input_tokens"], json!({"input_tokens": count()})),
            "request_id": text(),
        }),
    );
    let page = object(
        &["total", "page_no", "page_size", "models"],
        json!({
            "total": count(),
            "page_no": count(),
            "page_size": count(),
            "models": list(object(&["model", "name"], json!({"model": text(), "name": text()}))),
        }),
    );
    let models = object(&["request_id", "output"], json!({"request_id": text(), "output": page}));
    let error = object(
        &["code", "message", "request_id"],
        json!({"code": text(), "message": text(), "request_id": {"type": ["string", "null"]}}),
    );
    let [embeddings, ranked] = vectors();
    vec![
        embeddings,
        ranked,
        ("DashScopeAnswer", answer),
        ("DashScopeTokens", tokens),
        ("DashScopeModels", models),
        ("DashScopeError", error),
    ]
}
