//! Every answer that a test here gets is held to the OpenAPI document, and the document to the table of routes.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::harness::{Reply, says, start};

static DOCUMENT: LazyLock<Value> = LazyLock::new(mintage_server::openapi_document);

/// The operation that a request is about, and whether its path is written out in the document.
fn operation(method: &str, path: &str) -> Option<&'static Value> {
    let path = path.split('?').next().unwrap();
    let fits = |pattern: &str| {
        let parts: Vec<&str> = pattern.split('/').collect();
        // Names of models may hold slashes.
        let count = if pattern.ends_with("{model}") { parts.len() } else { usize::MAX };
        let given: Vec<&str> = path.splitn(count, '/').collect();
        let same = |(part, given): (&&str, &&str)| part.starts_with('{') || part == given;
        parts.len() == given.len() && parts.iter().zip(&given).all(same)
    };
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let exact = paths.get(path).or_else(|| {
        paths.iter().find(|(pattern, _)| fits(pattern)).map(|(_, operations)| operations)
    });
    exact?.get(method.to_ascii_lowercase())
}

/// A schema of the document as one that stands by itself.
fn validator(schema: &Value) -> jsonschema::Validator {
    let mut whole = schema.clone();
    whole["components"] = DOCUMENT["components"].clone();
    jsonschema::draft202012::new(&whole).unwrap()
}

fn schema_of<'a>(described: &'a Value, reply: &Reply) -> Option<&'a Value> {
    let class = format!("{}XX", reply.status / 100);
    let responses = &described["responses"];
    let response = responses.get(reply.status.to_string()).or_else(|| responses.get(&class))?;
    let media = reply.header("content-type")?.split(';').next()?.trim();
    response["content"].get(media)?.get("schema")
}

/// Fails where the document allows no such answer.
pub(crate) fn check(request: &str, reply: &Reply) {
    let mut words = request.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
    // What is cut, empty or never was a request for a route says nothing of the document.
    let Some(described) = operation(method, path) else { return };
    if !reply.complete || reply.body.is_empty() || reply.status == 405 {
        return;
    }
    let media = reply.header("content-type").unwrap_or_default();
    let Some(schema) = schema_of(described, reply) else {
        // Administration tells of successes in other forms, too.
        assert!(
            path.starts_with("/admin") || path.starts_with("/v1/organization") || reply.status == 0,
            "{method} {path}: the document knows no {} in `{media}`",
            reply.status
        );
        return;
    };
    let validator = validator(schema);
    for value in values(media, &reply.body) {
        let errors: Vec<String> = validator
            .iter_errors(&value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{method} {path} {}: {errors:#?}\n{value}", reply.status);
    }
}

/// The objects of a body: one, those of its events, or those of its lines. Broken streams end with errors.
fn values(media: &str, body: &str) -> Vec<Value> {
    let media = media.split(';').next().unwrap_or_default().trim();
    let texts: Vec<&str> = match media {
        "application/json" => vec![body],
        "application/x-ndjson" => body.lines().collect(),
        "text/event-stream" => {
            let data = body.lines().filter_map(|line| line.strip_prefix("data:"));
            data.map(str::trim).filter(|data| *data != "[DONE]").collect()
        }
        _ => return Vec::new(),
    };
    let parsed = texts.into_iter().filter_map(|text| serde_json::from_str::<Value>(text).ok());
    parsed.filter(|value| media == "application/json" || !is_error(value)).collect()
}

fn is_error(value: &Value) -> bool {
    value.get("error").is_some() || value.get("code").is_some()
}

/// Methods and paths of the router, as its source has them; what varies in a path is written `{}`.
fn routed() -> BTreeSet<(String, String)> {
    let source: String = include_str!("../../src/app.rs").split_whitespace().collect();
    let mut found = BTreeSet::new();
    for part in source.split(".route(\"").skip(1) {
        let (path, handlers) = part.split_once('"').unwrap();
        for method in ["get", "post", "put", "patch", "delete"] {
            let call = format!("{method}(");
            if handlers.contains(&format!(",{call}")) || handlers.contains(&format!(").{call}")) {
                found.insert((method.to_owned(), unnamed(path)));
            }
        }
    }
    found
}

/// A path without the names of what varies.
fn unnamed(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

#[test]
fn every_route_is_described_and_nothing_else() {
    let routed = routed();
    assert!(routed.len() > 15, "{routed:?}");
    let prefixes = ["/compatible-mode", "/apps/anthropic"];
    let mut described = BTreeSet::new();
    for (path, operations) in DOCUMENT["paths"].as_object().unwrap() {
        let administers = path.starts_with("/admin/") || path.starts_with("/v1/organization");
        if administers || path == "/openapi.json" || prefixes.iter().any(|p| path.starts_with(p)) {
            continue;
        }
        let methods = operations.as_object().unwrap().keys();
        described.extend(methods.map(|method| (method.clone(), unnamed(path))));
    }
    assert_eq!(described, routed);
}

/// What a server takes, the document allows; and it refuses what the document does not.
#[tokio::test]
async fn requests_are_what_the_document_says() {
    let house = start(says("x")).await;
    let message = json!([{"role": "user", "content": "Hi"}]);
    let with = |mut body: Value, more: Value| {
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let chat = || json!({"model": "scripted", "messages": message});
    for (path, body, is_allowed) in [
        ("/v1/chat/completions", chat(), true),
        ("/v1/chat/completions", with(chat(), json!({"temperature": 2, "n": 2, "seed": 1})), true),
        ("/v1/chat/completions", with(chat(), json!({"stop": ["a"], "logprobs": true})), true),
        ("/v1/chat/completions", with(chat(), json!({"temperature": 3})), false),
        ("/v1/chat/completions", with(chat(), json!({"temprature": 1})), false),
        ("/v1/chat/completions", with(chat(), json!({"messages": []})), false),
        (
            "/v1/chat/completions",
            with(chat(), json!({"top_logprobs": 21, "logprobs": true})),
            false,
        ),
        ("/v1/chat/completions", json!({"messages": message}), false),
        ("/v1/completions", json!({"model": "scripted", "prompt": [72, 105]}), true),
        ("/v1/completions", json!({"model": "scripted", "prompt": ["a", [1]]}), true),
        ("/v1/completions", json!({"model": "scripted", "prompt": "a", "logprobs": 6}), false),
        ("/v1/responses", json!({"model": "scripted", "input": "a"}), true),
        (
            "/v1/responses",
            json!({"model": "scripted", "input": [{"role": "user", "content": "a"}], "truncation": "auto"}),
            true,
        ),
        ("/v1/responses", json!({"model": "scripted", "input": []}), false),
        ("/v1/responses", json!({"model": "scripted", "input": "a", "top_logprobs": 21}), false),
        (
            "/v1/responses",
            json!({"model": "scripted", "input": "a", "reasoning": {"effort": "x"}}),
            false,
        ),
        ("/tokenize", json!({"prompt": "a"}), true),
        ("/tokenize", json!({"messages": message, "add_generation_prompt": true}), true),
        ("/tokenize", json!({"prompt": "a", "n": 1}), false),
        ("/detokenize", json!({"tokens": [1]}), true),
        ("/detokenize", json!({"tokens": [1.5]}), false),
        ("/v1/messages", with(chat(), json!({"max_tokens": 3})), true),
        ("/v1/messages", with(chat(), json!({"max_tokens": 3, "temperature": 1.5})), false),
        ("/v1/messages", chat(), false),
        ("/v1/messages/count_tokens", chat(), true),
        ("/api/chat", chat(), true),
        ("/api/generate", json!({"model": "scripted", "prompt": "a", "stream": false}), true),
        ("/api/generate", json!({"model": "scripted", "prompt": "a", "think": "much"}), false),
        (
            "/api/v1/services/aigc/text-generation/generation",
            json!({"model": "scripted", "input": {"prompt": "a"}}),
            true,
        ),
        (
            "/api/v1/services/aigc/text-generation/generation",
            json!({"model": "scripted", "input": {"messages": []}}),
            false,
        ),
    ] {
        let described = operation("POST", path).unwrap();
        let schema = &described["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(validator(schema).is_valid(&body), is_allowed, "{path} {body}");
        let reply = house.post(path, body.clone()).await;
        assert_eq!(reply.status == 200, is_allowed, "{path} {body}: {}", reply.body);
    }
}

#[test]
#[should_panic(expected = "chat.completion")]
fn an_answer_that_is_not_described_is_noticed() {
    let body = json!({"id": "x", "object": "chat", "created": 1, "model": "m",
        "system_fingerprint": "f", "choices": []});
    let reply = Reply {
        status: 200,
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        body: body.to_string(),
        complete: true,
    };
    check("POST /v1/chat/completions HTTP/1.1", &reply);
}
