//! The part of the OpenAPI document that is administration, made from the table of routes.
//!
//! Invariant: it says what the router does, because the router reads the same table.

use serde_json::{Map, Value, json};

use super::table::{Audience, Field, Kind, ROUTES, Route};
use crate::openapi::refusal;

/// Method, path and description of each route.
pub(crate) fn described() -> impl Iterator<Item = (&'static str, &'static str, Value)> {
    let routes = ROUTES.iter().copied().flatten();
    routes.map(|route| (route.method, route.path, operation(route)))
}

fn operation(route: &Route) -> Value {
    let who = match route.audience {
        Audience::Operator => "The operator.".to_owned(),
        Audience::Role(action) => {
            let roles = mintage_ledger::directory::Role::ALL;
            let roles = roles.into_iter().filter(|role| role.may(action));
            let names: Vec<&str> = roles.map(super::who::role_name).collect();
            format!("The operator; roles: {}.", names.join(", "))
        }
    };
    let mut operation = json!({
        "summary": route.about,
        "description": who,
        "security": [{"admin_key": []}],
        "responses": {"2XX": {"description": "As asked."}, "4XX": refusal("Error"), "5XX": refusal("Error")},
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
