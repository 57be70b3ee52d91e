//! The OpenAPI document, made from the tables of routes.
//!
//! Invariant: it says what the router does, because the router reads the same table.

use serde_json::{Map, Value, json};

use super::table::{Audience, Field, Kind, ROUTES, Route};

/// Routes that are not administration: (method, path, whether a key is needed, what it does).
const OTHERS: &[(&str, &str, bool, &str)] = &[
    ("POST", "/v1/chat/completions", true, "Answers a conversation, as OpenAI's document says."),
    ("POST", "/v1/completions", true, "Continues a text, as OpenAI's document says."),
    ("GET", "/v1/models", true, "Lists the models that are served."),
    ("GET", "/v1/models/{model}", true, "Shows a model."),
    ("GET", "/v1/generation", true, "Shows what a request of the key's project used and cost."),
    ("GET", "/v1/files", true, "Lists the project's files."),
    ("POST", "/v1/files", true, "Takes in a file: multipart/form-data with `purpose` and `file`."),
    ("GET", "/v1/files/{file}", true, "Shows a file."),
    ("DELETE", "/v1/files/{file}", true, "Removes a file."),
    ("GET", "/v1/files/{file}/content", true, "The content of a file."),
    ("GET", "/v1/batches", true, "Lists the project's batches, newest first."),
    ("POST", "/v1/batches", true, "Runs the requests of a file, at the price of a batch."),
    ("GET", "/v1/batches/{batch}", true, "Shows a batch."),
    ("POST", "/v1/batches/{batch}/cancel", true, "Stops a batch; what was answered stays."),
    ("GET", "/healthz", false, "Whether the process lives."),
    ("GET", "/readyz", false, "Whether requests are welcome."),
    ("GET", "/metrics", false, "Counters in Prometheus' text format."),
    ("GET", "/openapi.json", false, "This document."),
];

pub(super) fn document() -> Value {
    let mut paths = Map::new();
    for (method, path, needs_key, about) in OTHERS {
        let mut operation = json!({
            "summary": about,
            "operationId": operation_id(method, path),
            "responses": {"200": {"description": "As asked."}},
        });
        if *needs_key {
            operation["security"] = json!([{"key": []}]);
        }
        add(&mut paths, method, path, operation);
    }
    for route in ROUTES.iter().copied().flatten() {
        add(&mut paths, route.method, route.path, described(route));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Mintage",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Amounts of money are exact decimal texts. Times are seconds since 1970 unless their \
                            names end in `_ms`. Errors have OpenAI's shape.",
        },
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A key of a project."},
                "admin_key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of a member or of the operator.",
                },
            },
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {"error": {
                        "type": "object",
                        "required": ["message", "type"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "null"]},
                        },
                    }},
                },
            },
        },
        "paths": paths,
    })
}

fn add(paths: &mut Map<String, Value>, method: &str, path: &str, mut operation: Value) {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = names
        .map(|name| {
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})
        })
        .collect();
    if let Some(Value::Array(more)) = operation.get_mut("parameters").map(Value::take) {
        parameters.extend(more);
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    let entry = paths.entry(path).or_insert_with(|| json!({}));
    entry[method.to_ascii_lowercase()] = operation;
}

fn described(route: &Route) -> Value {
    let who = match route.audience {
        Audience::Operator => "The operator.".to_owned(),
        Audience::Role(action) => {
            let roles = mintage_ledger::directory::Role::ALL;
            let roles = roles.into_iter().filter(|role| role.may(action));
            let names: Vec<&str> = roles.map(super::who::role_name).collect();
            format!("The operator; roles: {}.", names.join(", "))
        }
    };
    let error = json!({
        "description": "What is wrong, and what to do.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    });
    let mut operation = json!({
        "summary": route.about,
        "description": who,
        "operationId": operation_id(route.method, route.path),
        "security": [{"admin_key": []}],
        "responses": {"2XX": {"description": "As asked."}, "4XX": error},
    });
    let query: Vec<Value> = route.query.iter().map(parameter).collect();
    if !query.is_empty() {
        operation["parameters"] = query.into();
    }
    if !route.body.is_empty() {
        let required: Vec<&str> =
            route.body.iter().filter(|f| f.is_required).map(|f| f.name).collect();
        let properties: Map<String, Value> =
            route.body.iter().map(|f| (f.name.to_owned(), schema(f))).collect();
        operation["requestBody"] = json!({
            "required": !required.is_empty(),
            "content": {"application/json": {"schema": {
                "type": "object",
                "required": required,
                "additionalProperties": false,
                "properties": properties,
            }}},
        });
    }
    operation
}

fn parameter(field: &Field) -> Value {
    let mut schema = schema(field);
    let description = schema.as_object_mut().and_then(|s| s.shift_remove("description"));
    json!({
        "name": field.name,
        "in": "query",
        "required": field.is_required,
        "description": description,
        "schema": schema,
    })
}

fn schema(field: &Field) -> Value {
    let mut schema = match field.kind {
        Kind::Text => json!({"type": "string"}),
        Kind::Integer => json!({"type": "integer", "minimum": 0}),
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Texts => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Amount => json!({"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$"}),
        Kind::Object => json!({"type": "object"}),
        Kind::Rules => json!({"type": "array", "items": {"type": "object"}}),
        Kind::Choice(known) => json!({"type": "string", "enum": known}),
        Kind::Choices(known) => {
            json!({"type": "array", "items": {"type": "string", "enum": known}})
        }
    };
    schema["description"] = field.about.into();
    schema
}

/// `get_admin_v1_keys_key`: unique, since method and path are.
fn operation_id(method: &str, path: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let path: String = path.chars().filter(|c| !matches!(c, '{' | '}')).map(word).collect();
    format!("{}{path}", method.to_ascii_lowercase())
}
