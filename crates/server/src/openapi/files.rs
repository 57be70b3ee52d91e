//! Files and batches, in OpenAI's dialect.

use serde_json::{Value, json};

use super::{Content, JSON, Operation, content, count, list, no_query, object, reference, text};

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

const FILE: &[Content] = &[content(JSON, || reference("File"))];
const BATCH: &[Content] = &[content(JSON, || reference("Batch"))];

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        query: || {
            vec![
                ("purpose", false, text()),
                ("after", false, text()),
                ("limit", false, json!({"type": "integer", "minimum": 1, "maximum": 10_000})),
                ("order", false, json!({"enum": ["asc", "desc"]})),
            ]
        },
        ..get("/v1/files", "Lists the project's files.", &[content(JSON, || page("File"))])
    },
    Operation {
        method: "POST",
        ..get("/v1/files", "Takes in a file: multipart/form-data with `purpose` and `file`.", FILE)
    },
    get("/v1/files/{file}", "Shows a file.", FILE),
    Operation {
        method: "DELETE",
        ..get("/v1/files/{file}", "Removes a file.", &[content(JSON, removed)])
    },
    get(
        "/v1/files/{file}/content",
        "The content of a file.",
        &[Content { media_type: "application/octet-stream", schema: None }],
    ),
    Operation {
        query: || {
            vec![
                ("after", false, text()),
                ("limit", false, json!({"type": "integer", "minimum": 1, "maximum": 100})),
            ]
        },
        ..get(
            "/v1/batches",
            "Lists the project's batches, newest first.",
            &[content(JSON, || page("Batch"))],
        )
    },
    Operation {
        method: "POST",
        body: Some(batch_request),
        ..get("/v1/batches", "Runs the requests of a file, at the price of a batch.", BATCH)
    },
    get("/v1/batches/{batch}", "Shows a batch.", BATCH),
    Operation {
        method: "POST",
        ..get("/v1/batches/{batch}/cancel", "Stops a batch; what was answered stays.", BATCH)
    },
];

fn page(of: &str) -> Value {
    object(
        &["object", "data", "first_id", "last_id", "has_more"],
        json!({
            "object": {"const": "list"},
            "data": list(reference(of)),
            "first_id": text(),
            "last_id": text(),
            "has_more": {"type": "boolean"},
        }),
    )
}

fn removed() -> Value {
    object(&["id", "deleted"], json!({"id": text(), "deleted": {"const": true}}))
}

fn batch_request() -> Value {
    object(
        &["input_file_id", "endpoint", "completion_window"],
        json!({
            "input_file_id": text(),
            "endpoint": text(),
            "completion_window": text(),
            "metadata": {"type": ["object", "null"]},
        }),
    )
}

pub(super) fn schemas() -> Vec<(&'static str, Value)> {
    let file = object(
        &["id", "object", "bytes", "created_at", "filename", "purpose", "status"],
        json!({
            "id": text(),
            "object": {"const": "file"},
            "bytes": count(),
            "created_at": count(),
            "expires_at": count(),
            "filename": text(),
            "purpose": text(),
            "status": text(),
        }),
    );
    let batch = object(
        &["id", "object", "endpoint", "input_file_id", "completion_window", "status", "created_at"],
        json!({
            "id": text(),
            "object": {"const": "batch"},
            "endpoint": text(),
            "input_file_id": text(),
            "completion_window": text(),
            "status": text(),
            "created_at": count(),
            "request_counts": {"type": ["object", "null"]},
        }),
    );
    vec![("File", file), ("Batch", batch)]
}
