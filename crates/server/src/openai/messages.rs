//! The messages of a chat: OpenAI's shapes become the plain ones that chat templates know.
//!
//! A template sees `role`, `content` (one string), `name`, `tool_calls` (arguments as an object where they are valid
//! JSON, as templates expect) and `tool_call_id`. `developer` becomes `system`. Whether text could pass for control
//! tokens is not decided here: the tokeniser takes all of it as text.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::{Fields, Null, shown, unsupported, wrong_type};

/// More messages than this are refused.
const MAX_MESSAGES: usize = 4096;
/// OpenAI's own limit.
const MAX_TOOLS: usize = 128;
const MAX_TOOL_CALLS: usize = 128;

/// The messages as the template wants them; at least one.
pub(super) fn take_messages(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let value = fields.required("messages")?;
    let Value::Array(values) = value else {
        return Err(wrong_type("messages", "an array", &value));
    };
    if values.is_empty() || values.len() > MAX_MESSAGES {
        let message =
            format!("`messages` must hold 1 to {MAX_MESSAGES} messages, not {}.", values.len());
        return Err(ApiError::field("messages", "invalid_value", message));
    }
    values.into_iter().enumerate().map(|(i, value)| message(i, value)).collect()
}

fn message(index: usize, value: Value) -> Result<Value, ApiError> {
    let path = format!("messages[{index}]");
    let mut fields = Fields::object(value, &path)?;
    let role_value = fields.required("role")?;
    let role = match role_value.as_str() {
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        Some(_) => {
            let message = format!(
                "`{path}.role` must be `system`, `developer`, `user`, `assistant` or `tool`, not {}.",
                shown(&role_value)
            );
            return Err(ApiError::field(format!("{path}.role"), "invalid_value", message));
        }
        None => return Err(wrong_type(&format!("{path}.role"), "a string", &role_value)),
    };
    let mut out = Map::new();
    out.insert("role".into(), role.into());
    let calls = if role == "assistant" { take_tool_calls(&mut fields, &path)? } else { None };
    let content = take_content(&mut fields, &path, role, calls.is_some())?;
    out.insert("content".into(), content.into());
    if let Some(name) = fields.string("name", Null::Absent)? {
        out.insert("name".into(), name.into());
    }
    if let Some(calls) = calls {
        out.insert("tool_calls".into(), calls);
    }
    if role == "tool" {
        let id = fields.string("tool_call_id", Null::Refused)?;
        let id = id.ok_or_else(|| missing(&format!("{path}.tool_call_id")))?;
        out.insert("tool_call_id".into(), id.into());
    }
    if role == "assistant" {
        take_echoed(&mut fields, &mut out)?;
    }
    fields.finish()?;
    Ok(Value::Object(out))
}

/// What our own answers carry and clients send back with the history.
fn take_echoed(fields: &mut Fields, out: &mut Map<String, Value>) -> Result<(), ApiError> {
    fields.string("refusal", Null::Absent)?;
    fields.array("annotations", Null::Absent)?;
    for field in ["audio", "function_call"] {
        if fields.take(field, Null::Absent).is_some() {
            let name = fields.name(field);
            return Err(unsupported(&name, "not supported; use `content` and `tool_calls`"));
        }
    }
    if let Some(reasoning) = fields.string("reasoning_content", Null::Absent)? {
        out.insert("reasoning_content".into(), reasoning.into());
    }
    Ok(())
}

/// A string, or parts of type text, which are joined.
fn take_content(
    fields: &mut Fields,
    path: &str,
    role: &str,
    has_calls: bool,
) -> Result<String, ApiError> {
    let name = format!("{path}.content");
    let null = if role == "assistant" { Null::Absent } else { Null::Refused };
    match fields.take("content", null) {
        // OpenAI wants one of the two; a history may hold neither (an answer that was cut at once).
        None if role == "assistant" || has_calls => Ok(String::new()),
        None => Err(missing(&name)),
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for (i, part) in parts.into_iter().enumerate() {
                text.push_str(&text_part(part, &format!("{name}[{i}]"))?);
            }
            Ok(text)
        }
        Some(other) => Err(wrong_type(&name, "a string or an array of content parts", &other)),
    }
}

fn text_part(part: Value, path: &str) -> Result<String, ApiError> {
    let mut part = Fields::object(part, path)?;
    let kind = part.string("type", Null::Refused)?;
    match kind.as_deref() {
        Some(kind @ ("text" | "refusal")) => {
            let text = part.string(kind, Null::Refused)?;
            let text = text.ok_or_else(|| missing(&format!("{path}.{kind}")))?;
            // Markers of prompt caching, which is automatic here.
            part.take("cache_control", Null::Absent);
            part.finish()?;
            Ok(text)
        }
        Some(kind) => {
            let what = format!(
                "this model reads text only; parts of type `{}` are not supported",
                crate::fields::shortened(kind)
            );
            Err(unsupported(&format!("{path}.type"), &what))
        }
        None => Err(missing(&format!("{path}.type"))),
    }
}

fn take_tool_calls(fields: &mut Fields, path: &str) -> Result<Option<Value>, ApiError> {
    let Some(values) = fields.array("tool_calls", Null::Absent)? else { return Ok(None) };
    let name = format!("{path}.tool_calls");
    if values.len() > MAX_TOOL_CALLS {
        let message =
            format!("`{name}` holds at most {MAX_TOOL_CALLS} calls, not {}.", values.len());
        return Err(ApiError::field(name, "invalid_value", message));
    }
    let mut calls = Vec::with_capacity(values.len());
    for (i, value) in values.into_iter().enumerate() {
        calls.push(tool_call(value, &format!("{name}[{i}]"))?);
    }
    Ok((!calls.is_empty()).then_some(Value::Array(calls)))
}

fn tool_call(value: Value, path: &str) -> Result<Value, ApiError> {
    let mut call = Fields::object(value, path)?;
    let id = call.string("id", Null::Refused)?;
    let id = id.ok_or_else(|| missing(&format!("{path}.id")))?;
    match call.string("type", Null::Refused)?.as_deref() {
        Some("function") => {}
        Some(_) => {
            return Err(unsupported(&format!("{path}.type"), "only `function` is supported"));
        }
        None => return Err(missing(&format!("{path}.type"))),
    }
    let function_path = format!("{path}.function");
    let mut function = Fields::object(call.required("function")?, &function_path)?;
    let name = function.string("name", Null::Refused)?;
    let name = name.ok_or_else(|| missing(&format!("{function_path}.name")))?;
    let arguments = function.string("arguments", Null::Refused)?;
    let arguments = arguments.ok_or_else(|| missing(&format!("{function_path}.arguments")))?;
    // An index is what streamed calls carry and clients send back.
    call.take("index", Null::Absent);
    function.finish()?;
    call.finish()?;
    let arguments = match serde_json::from_str::<Value>(&arguments) {
        Ok(object @ Value::Object(_)) => object,
        _ => Value::String(arguments),
    };
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

/// The tools as the template wants them; empty where the request has none or forbids them.
pub(super) fn take_tools(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let values = fields.array("tools", Null::Refused)?.unwrap_or_default();
    if values.len() > MAX_TOOLS {
        let message = format!("`tools` holds at most {MAX_TOOLS} tools, not {}.", values.len());
        return Err(ApiError::field("tools", "invalid_value", message));
    }
    let mut tools = Vec::with_capacity(values.len());
    for (i, value) in values.into_iter().enumerate() {
        tools.push(tool(value, &format!("tools[{i}]"))?);
    }
    fields.bool("parallel_tool_calls", Null::Refused)?;
    for field in ["functions", "function_call"] {
        if fields.take(field, Null::Refused).is_some() {
            return Err(unsupported(field, "deprecated by OpenAI and not supported; use `tools`"));
        }
    }
    match fields.take("tool_choice", Null::Refused) {
        None => Ok(tools),
        Some(Value::String(choice)) if choice == "auto" => Ok(tools),
        Some(Value::String(choice)) if choice == "none" => Ok(Vec::new()),
        Some(Value::String(_) | Value::Object(_)) => {
            Err(unsupported("tool_choice", "only `auto` and `none` are supported"))
        }
        Some(other) => Err(wrong_type("tool_choice", "a string or an object", &other)),
    }
}

fn tool(value: Value, path: &str) -> Result<Value, ApiError> {
    let whole = value.clone();
    let mut tool = Fields::object(value, path)?;
    match tool.string("type", Null::Refused)?.as_deref() {
        Some("function") => {}
        Some(_) => {
            return Err(unsupported(&format!("{path}.type"), "only `function` is supported"));
        }
        None => return Err(missing(&format!("{path}.type"))),
    }
    let function_path = format!("{path}.function");
    let mut function = Fields::object(tool.required("function")?, &function_path)?;
    if function.string("name", Null::Refused)?.is_none() {
        return Err(missing(&format!("{function_path}.name")));
    }
    function.string("description", Null::Absent)?;
    if let Some(parameters) = function.take("parameters", Null::Absent) {
        Fields::object(parameters, &format!("{function_path}.parameters"))?.ignore_rest();
    }
    if function.bool("strict", Null::Absent)? == Some(true) {
        let name = format!("{function_path}.strict");
        return Err(unsupported(&name, "strict schemas are not supported yet"));
    }
    function.finish()?;
    tool.finish()?;
    Ok(whole)
}

fn missing(name: &str) -> ApiError {
    ApiError::field(name, "missing_required_parameter", format!("`{name}` is missing."))
}
