//! The OpenAPI 3.1 document of every route: of administration from the table that its router is made from, of the others
//! from the tables here, one a dialect.
//!
//! Not here: what routes do. Invariants, held by tests: every route of the router is described, and nothing else; every
//! answer that a test sees is one that the document allows.

mod anthropic;
mod chats;
mod dashscope;
mod files;
mod ollama;
mod openai;
mod responses;
mod service;

use serde_json::{Map, Value, json};

use crate::admin;

/// One method of one path.
pub(crate) struct Operation {
    pub(crate) method: &'static str,
    /// With `{names}` for what varies.
    pub(crate) path: &'static str,
    /// Where the same stands once more: prefixes before the path.
    pub(crate) also_under: &'static [&'static str],
    pub(crate) about: &'static str,
    pub(crate) needs_key: bool,
    /// Names, whether they must be there, their schemas.
    pub(crate) query: fn() -> Vec<(&'static str, bool, Value)>,
    pub(crate) body: Option<fn() -> Value>,
    pub(crate) answers: &'static [Content],
    /// The component that refusals have; `None`: there are none of its own.
    pub(crate) error: Option<&'static str>,
}

/// What an answer may be.
pub(crate) struct Content {
    pub(crate) media_type: &'static str,
    /// `None`: text.
    pub(crate) schema: Option<fn() -> Value>,
}

const fn content(media_type: &'static str, schema: fn() -> Value) -> Content {
    Content { media_type, schema: Some(schema) }
}

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

fn no_query() -> Vec<(&'static str, bool, Value)> {
    Vec::new()
}

/// The OpenAPI document of everything this server answers, made from the tables of routes.
#[must_use]
pub fn document() -> Value {
    let mut paths = Map::new();
    for operation in operations() {
        let described = described(operation);
        add(&mut paths, operation.method, operation.path, described.clone());
        for prefix in operation.also_under {
            let path = format!("{prefix}{}", operation.path);
            add(&mut paths, operation.method, &path, described.clone());
        }
    }
    for (method, path, described) in admin::described() {
        add(&mut paths, method, path, described);
    }
    let mut schemas = Map::new();
    for (name, schema) in [
        service::schemas(),
        openai::schemas(),
        responses::schemas(),
        chats::schemas(),
        files::schemas(),
        anthropic::schemas(),
        dashscope::schemas(),
        ollama::schemas(),
    ]
    .into_iter()
    .flatten()
    {
        schemas.insert(name.to_owned(), schema);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Mintage",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Amounts of money are exact decimal texts. Times are seconds since 1970 unless their \
                            names end in `_ms`. Errors have the shape of the dialect whose route it is; elsewhere \
                            OpenAI's.",
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
            "schemas": schemas,
        },
        "paths": paths,
    })
}

fn operations() -> impl Iterator<Item = &'static Operation> {
    [
        openai::OPERATIONS,
        responses::OPERATIONS,
        chats::OPERATIONS,
        files::OPERATIONS,
        anthropic::OPERATIONS,
        dashscope::OPERATIONS,
        ollama::OPERATIONS,
        service::OPERATIONS,
    ]
    .into_iter()
    .flatten()
}

fn described(operation: &Operation) -> Value {
    let mut answers = Map::new();
    for Content { media_type, schema } in operation.answers {
        let schema = schema.map_or_else(|| json!({"type": "string"}), |schema| schema());
        answers.insert((*media_type).to_owned(), json!({"schema": schema}));
    }
    let mut described = json!({
        "summary": operation.about,
        "responses": {"200": {"description": "As asked.", "content": answers}},
    });
    if let Some(error) = operation.error {
        for status in ["4XX", "5XX"] {
            described["responses"][status] = refusal(error);
        }
    }
    if operation.needs_key {
        described["security"] = json!([{"key": []}]);
    }
    let query = (operation.query)().into_iter().map(|(name, is_required, schema)| {
        json!({"name": name, "in": "query", "required": is_required, "schema": schema})
    });
    let query: Vec<Value> = query.collect();
    if !query.is_empty() {
        described["parameters"] = query.into();
    }
    if let Some(body) = operation.body {
        let content = json!({JSON: {"schema": body()}});
        described["requestBody"] = json!({"required": true, "content": content});
    }
    described
}

/// What is said where a request fails.
pub(crate) fn refusal(component: &str) -> Value {
    let media_type = if component == service::WORD { "text/plain" } else { JSON };
    json!({
        "description": "What is wrong, and what to do.",
        "content": {media_type: {"schema": reference(component)}},
    })
}

/// Puts an operation at its place, with the names of its path as parameters.
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
    operation["operationId"] = operation_id(method, path).into();
    let entry = paths.entry(path).or_insert_with(|| json!({}));
    entry[method.to_ascii_lowercase()] = operation;
}

/// `get_admin_v1_keys_key`: unique, since method and path are.
fn operation_id(method: &str, path: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let path: String = path.chars().filter(|c| !matches!(c, '{' | '}')).map(word).collect();
    format!("{}{path}", method.to_ascii_lowercase())
}

fn reference(component: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{component}")})
}

/// An object with these properties, of which some must be there; others may be.
fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

/// An object with these properties and no others.
fn closed(required: &[&str], properties: Value) -> Value {
    json!({
        "type": "object",
        "required": required,
        "additionalProperties": false,
        "properties": properties,
    })
}

fn nullable(schema: Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

fn text() -> Value {
    json!({"type": "string"})
}

fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn number(least: f64, most: f64) -> Value {
    json!({"type": ["number", "null"], "minimum": least, "maximum": most})
}

fn flag() -> Value {
    json!({"type": ["boolean", "null"]})
}

/// All properties of both.
fn joined(mut one: Value, other: Value) -> Value {
    if let (Value::Object(one), Value::Object(other)) = (&mut one, other) {
        one.extend(other);
    }
    one
}
