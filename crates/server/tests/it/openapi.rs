//! Answers, events and the table of numeric fields against OpenAI's own document, where it is at hand: its path in
//! `MINTAGE_OPENAI_OPENAPI`, or `shared/data/openai/openapi.json` beside the project.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{says, start};
use crate::numbers::FIELDS;

pub(crate) fn document() -> Option<Value> {
    let beside =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/openai/openapi.json");
    let path = std::env::var_os("MINTAGE_OPENAI_OPENAPI").map_or(beside, PathBuf::from);
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: OpenAI's document is not at {}", path.display());
        return None;
    };
    Some(serde_json::from_str(&text).unwrap())
}

/// A validator for one of the document's schemas. OpenAPI 3.0 writes `nullable` where JSON Schema writes a union, and
/// `format: unixtime` means nothing to it.
pub(crate) fn validator(document: &Value, name: &str) -> jsonschema::Validator {
    let mut schema = document["components"]["schemas"].clone();
    nullable_to_union(&mut schema);
    let root =
        json!({"$ref": format!("#/components/schemas/{name}"), "components": {"schemas": schema}});
    jsonschema::draft202012::new(&root).unwrap()
}

fn nullable_to_union(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(nullable_to_union);
            if map.remove("nullable") == Some(Value::Bool(true)) {
                let inner = Value::Object(std::mem::take(map));
                map.insert("anyOf".into(), json!([inner, {"type": "null"}]));
            }
        }
        Value::Array(values) => values.iter_mut().for_each(nullable_to_union),
        _ => {}
    }
}

pub(crate) fn check(validator: &jsonschema::Validator, value: &Value) {
    let errors: Vec<String> =
        validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}\n{value:#}");
}

#[tokio::test]
async fn answers_and_events_are_what_the_document_says() {
    let Some(document) = document() else { return };
    let house = start(says("Hi 世")).await;
    let full = json!({"logprobs": true, "top_logprobs": 2, "n": 2, "max_tokens": 5});
    let whole = validator(&document, "CreateChatCompletionResponse");
    check(&whole, &house.chat(json!({})).await.json());
    check(&whole, &house.chat(full.clone()).await.json());

    let chunk = validator(&document, "CreateChatCompletionStreamResponse");
    let mut streamed = full;
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let events = house.chat(streamed).await.events();
    for event in events.iter().filter(|e| *e != "[DONE]") {
        check(&chunk, &serde_json::from_str(event).unwrap());
    }

    let text = validator(&document, "CreateCompletionResponse");
    check(&text, &house.complete(json!({"prompt": "a", "logprobs": 2})).await.json());
    check(&validator(&document, "ListModelsResponse"), &house.get("/v1/models").await.json());
    check(&validator(&document, "Model"), &house.get("/v1/models/scripted").await.json());
    let errors = validator(&document, "ErrorResponse");
    check(&errors, &house.chat(json!({"n": 0})).await.json());
    check(&errors, &house.get("/nowhere").await.json());
    // The validator can fail.
    assert!(!whole.is_valid(&json!({"id": 5})));
}

/// The document's numeric fields, those of the parts a request consists of included.
fn numeric_fields(document: &Value, name: &str) -> Vec<String> {
    let schema = &document["components"]["schemas"][name];
    let mut found = Vec::new();
    let mut parts = vec![schema];
    while let Some(part) = parts.pop() {
        if let Some(reference) = part["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap();
            found.extend(numeric_fields(document, name));
        }
        parts.extend(part["allOf"].as_array().into_iter().flatten());
        for (field, schema) in part["properties"].as_object().into_iter().flatten() {
            let mut kinds = vec![&schema["type"]];
            kinds.extend(schema["anyOf"].as_array().into_iter().flatten().map(|s| &s["type"]));
            if kinds.iter().any(|k| *k == "number" || *k == "integer") {
                found.push(field.clone());
            }
        }
    }
    found
}

#[test]
fn every_numeric_field_of_the_document_is_tested() {
    let Some(document) = document() else { return };
    for (kind, schema) in
        [("chat", "CreateChatCompletionRequest"), ("completions", "CreateCompletionRequest")]
    {
        let fields = numeric_fields(&document, schema);
        assert!(fields.len() > 5, "{fields:?}");
        for field in fields {
            assert!(FIELDS.iter().any(|f| (f.0, f.1) == (kind, field.as_str())), "{kind} {field}");
        }
    }
}
