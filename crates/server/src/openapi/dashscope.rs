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
    content(JSON, || or_task("DashScopeAnswer")),
    content(EVENTS, || reference("DashScopeAnswer")),
];

/// The answer itself, or the task that will have it, for who sends `X-DashScope-Async: enable`.
fn or_task(answer: &str) -> Value {
    json!({"anyOf": [reference(answer), reference("DashScopeTask")]})
}

/// Without a body.
const fn plain(
    method: &'static str,
    path: &'static str,
    about: &'static str,
    answers: &'static [super::Content],
) -> Operation {
    Operation {
        method,
        path,
        also_under: &[],
        about,
        needs_key: true,
        query: no_query,
        body: None,
        answers,
        error: Some("DashScopeError"),
    }
}

pub(super) const OPERATIONS: &[Operation] = &[
    post(
        "/api/v1/services/aigc/text-generation/generation",
        "Answers a chat, as DashScope does; in events for who sends `X-DashScope-SSE: enable`, as a task for who sends \
         `X-DashScope-Async: enable`.",
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
        &[content(JSON, || or_task("DashScopeEmbeddings"))],
    ),
    post(
        "/api/v1/services/rerank/text-rerank/text-rerank",
        "Scores documents for a query, best first, as DashScope does.",
        text_rerank,
        &[content(JSON, || or_task("DashScopeRanked"))],
    ),
    post(
        "/api/v1/tokenizer",
        "Tells the tokens of a prompt or of a chat.",
        generation,
        &[content(JSON, || reference("DashScopeTokens"))],
    ),
    Operation {
        query: || page_query([("model", false, text())]),
        ..plain(
            "GET",
            "/api/v1/models",
            "Lists the models that are served, by pages.",
            &[content(JSON, || reference("DashScopeModels"))],
        )
    },
    list_of_tasks("/api/v1/tasks"),
    list_of_tasks("/api/v1/tasks/"),
    plain(
        "GET",
        "/api/v1/tasks/{task}",
        "Shows a task, with its answer once it has one; `UNKNOWN` where there is no such task.",
        &[content(JSON, || reference("DashScopeTask"))],
    ),
    plain(
        "POST",
        "/api/v1/tasks/{task}/cancel",
        "Stops a task that waits.",
        &[content(JSON, || object(&["request_id"], json!({"request_id": text()})))],
    ),
    plain(
        "POST",
        "/api/v1/files",
        "Takes in files: multipart/form-data with `files`, and `descriptions` in the same order.",
        &[content(JSON, || reference("DashScopeUploads"))],
    ),
    Operation {
        query: || page_query([]),
        ..plain(
            "GET",
            "/api/v1/files",
            "Lists the project's files, by pages.",
            &[content(JSON, || reference("DashScopeFiles"))],
        )
    },
    plain("GET", "/api/v1/files/{file}", "Shows a file.", &[content(JSON, || data(file()))]),
    plain(
        "DELETE",
        "/api/v1/files/{file}",
        "Removes a file.",
        &[content(JSON, || {
            data(object(
                &["file_id", "deleted"],
                json!({"file_id": text(), "deleted": {"const": true}}),
            ))
        })],
    ),
];

const fn list_of_tasks(path: &'static str) -> Operation {
    Operation {
        query: || {
            page_query([
                ("task_id", false, text()),
                ("status", false, json!({"enum": STATUSES})),
                ("model_name", false, text()),
                ("api_key_id", false, text()),
                ("region", false, text()),
                ("start_time", false, json!({"type": "string", "pattern": "^[0-9]{14}$"})),
                ("end_time", false, json!({"type": "string", "pattern": "^[0-9]{14}$"})),
            ])
        },
        ..plain("GET", path, "Lists the project's tasks, newest first, by pages.", TASKS)
    }
}

const TASKS: &[super::Content] = &[content(JSON, || reference("DashScopeTasks"))];

const STATUSES: &[&str] = &["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELED", "UNKNOWN"];

fn page_query<const N: usize>(
    own: [(&'static str, bool, Value); N],
) -> Vec<(&'static str, bool, Value)> {
    let pages = [
        ("page_no", false, json!({"type": "integer", "minimum": 1})),
        ("page_size", false, json!({"type": "integer", "minimum": 1, "maximum": 100})),
    ];
    own.into_iter().chain(pages).collect()
}

/// What files answer with.
fn data(data: Value) -> Value {
    object(&["request_id", "data"], json!({"request_id": text(), "data": data}))
}

fn file() -> Value {
    object(
        &["file_id", "name", "description", "purpose", "size", "gmt_create"],
        json!({
            "file_id": text(),
            "name": text(),
            "description": text(),
            "purpose": text(),
            "size": count(),
            "gmt_create": text(),
            "upload_time": text(),
        }),
    )
}

/// A list by pages.
fn numbered(name: &str, items: Value) -> Value {
    object(
        &["total", "page_no", "page_size", name],
        json!({"total": count(), "page_no": count(), "page_size": count(), name: list(items)}),
    )
}

/// Of tasks and files.
fn kept() -> [(&'static str, Value); 4] {
    let output = object(
        &["task_id", "task_status"],
        json!({
            "task_id": text(),
            "task_status": {"enum": STATUSES},
            "submit_time": text(),
            "scheduled_time": text(),
            "end_time": text(),
            "record_id": text(),
            "code": text(),
            "message": text(),
        }),
    );
    let task = object(
        &["request_id", "output"],
        json!({"request_id": text(), "output": output.clone(), "usage": {"type": "object"}}),
    );
    let listed = object(
        &["task_id", "status", "model_name", "api_key_id", "request_id", "gmt_create"],
        json!({
            "task_id": text(),
            "status": {"enum": STATUSES},
            "model_name": text(),
            "api_key_id": text(),
            "request_id": text(),
            "user_api_unique_key": text(),
            "gmt_create": count(),
            "start_time": count(),
            "end_time": count(),
        }),
    );
    let mut tasks = numbered("data", listed);
    tasks["properties"]["request_id"] = text();
    tasks["properties"]["tasks"] = list(output);
    tasks["properties"]["total_page"] = count();
    let failed = object(
        &["name", "code", "message"],
        json!({"name": text(), "code": text(), "message": text()}),
    );
    let uploads = object(
        &["uploaded_files", "failed_uploads"],
        json!({
            "uploaded_files": list(object(&["name", "file_id"], json!({"name": text(), "file_id": text()}))),
            "failed_uploads": list(failed),
        }),
    );
    [
        ("DashScopeTask", task),
        ("DashScopeTasks", tasks),
        ("DashScopeUploads", data(uploads)),
        ("DashScopeFiles", data(numbered("files", file()))),
    ]
}

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
    let model = object(&["model", "name"], json!({"model": text(), "name": text()}));
    let page = numbered("models", model);
    let models = object(&["request_id", "output"], json!({"request_id": text(), "output": page}));
    let error = object(
        &["code", "message", "request_id"],
        json!({"code": text(), "message": text(), "request_id": {"type": ["string", "null"]}}),
    );
    let [embeddings, ranked] = vectors();
    let [task, tasks, uploads, files] = kept();
    vec![
        embeddings,
        ranked,
        task,
        tasks,
        uploads,
        files,
        ("DashScopeAnswer", answer),
        ("DashScopeTokens", tokens),
        ("DashScopeModels", models),
        ("DashScopeError", error),
    ]
}
