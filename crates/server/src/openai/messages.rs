//! The messages and tools of a chat: OpenAI's shapes become the plain ones.
//!
//! `developer` becomes `system`; parts of text are joined. Whether text could pass for control tokens is not decided
//! here: the tokeniser takes all of it as text.

use serde_json::Value;

use crate::chat::{ChatRequest, Message, Role, Tool, ToolCall, ToolChoice};
use crate::error::ApiError;
use crate::fields::{Fields, Null, shown, unsupported, wrong_type, wrong_value};

/// More messages than this are refused.
const MAX_MESSAGES: usize = 4096;
/// OpenAI's own limit.
const MAX_TOOLS: usize = 128;
const MAX_TOOL_CALLS: usize = 128;

/// At least one message.
pub(super) fn take_messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
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

fn message(index: usize, value: Value) -> Result<Message, ApiError> {
    let path = format!("messages[{index}]");
    let mut fields = Fields::object(value, &path)?;
    let role = take_role(&mut fields, &path)?;
    let of_assistant = role == Role::Assistant;
    let calls = if of_assistant { take_tool_calls(&mut fields, &path)? } else { Vec::new() };
    let text = take_content(&mut fields, &path, of_assistant)?;
    let mut message = Message { calls, ..Message::new(role, text) };
    message.name = fields.string("name", Null::Absent)?;
    if role == Role::Tool {
        let id = fields.string("tool_call_id", Null::Refused)?;
        message.call_id = Some(id.ok_or_else(|| missing(&format!("{path}.tool_call_id")))?);
    }
    if of_assistant {
        message.reasoning = take_echoed(&mut fields)?;
    }
    fields.finish()?;
    Ok(message)
}

fn take_role(fields: &mut Fields, path: &str) -> Result<Role, ApiError> {
    let value = fields.required("role")?;
    match value.as_str() {
        Some("system" | "developer") => Ok(Role::System),
        Some("user") => Ok(Role::User),
        Some("assistant") => Ok(Role::Assistant),
        Some("tool") => Ok(Role::Tool),
        Some(_) => {
            let message = format!(
                "`{path}.role` must be `system`, `developer`, `user`, `assistant` or `tool`, not {}.",
                shown(&value)
            );
            Err(ApiError::field(format!("{path}.role"), "invalid_value", message))
        }
        None => Err(wrong_type(&format!("{path}.role"), "a string", &value)),
    }
}

/// What our own answers carry and clients send back with the history; of it, the reasoning.
fn take_echoed(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    fields.string("refusal", Null::Absent)?;
    fields.array("annotations", Null::Absent)?;
    for field in ["audio", "function_call"] {
        if fields.take(field, Null::Absent).is_some() {
            let name = fields.name(field);
            return Err(unsupported(&name, "not supported; use `content` and `tool_calls`"));
        }
    }
    fields.string("reasoning_content", Null::Absent)
}

/// A string, or parts of type text, which are joined.
fn take_content(fields: &mut Fields, path: &str, of_assistant: bool) -> Result<String, ApiError> {
    let name = format!("{path}.content");
    let null = if of_assistant { Null::Absent } else { Null::Refused };
    match fields.take("content", null) {
        // OpenAI wants one of the two; a history may hold neither (an answer that was cut at once).
        None if of_assistant => Ok(String::new()),
        None => Err(missing(&name)),
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => parts_text(parts, &name),
        Some(other) => Err(wrong_type(&name, "a string or an array of content parts", &other)),
    }
}

/// Parts of type text, joined.
pub(super) fn parts_text(parts: Vec<Value>, path: &str) -> Result<String, ApiError> {
    let parts = parts.into_iter().enumerate();
    parts.map(|(i, part)| text_part(part, &format!("{path}[{i}]"))).collect()
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

fn take_tool_calls(fields: &mut Fields, path: &str) -> Result<Vec<ToolCall>, ApiError> {
    let values = fields.array("tool_calls", Null::Absent)?.unwrap_or_default();
    let name = format!("{path}.tool_calls");
    if values.len() > MAX_TOOL_CALLS {
        let message =
            format!("`{name}` holds at most {MAX_TOOL_CALLS} calls, not {}.", values.len());
        return Err(ApiError::field(name, "invalid_value", message));
    }
    let calls = values.into_iter().enumerate();
    calls.map(|(i, value)| tool_call(value, &format!("{name}[{i}]"))).collect()
}

fn tool_call(value: Value, path: &str) -> Result<ToolCall, ApiError> {
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
    Ok(ToolCall { id, name, arguments })
}

/// The tools, and how they may be called.
pub(super) fn take_tools(fields: &mut Fields, request: &mut ChatRequest) -> Result<(), ApiError> {
    let values = fields.array("tools", Null::Refused)?.unwrap_or_default();
    if values.len() > MAX_TOOLS {
        let message = format!("`tools` holds at most {MAX_TOOLS} tools, not {}.", values.len());
        return Err(ApiError::field("tools", "invalid_value", message));
    }
    let tools = values.into_iter().enumerate();
    request.tools = tools
        .map(|(i, value)| tool(value, &format!("tools[{i}]")))
        .collect::<Result<_, ApiError>>()?;
    let parallel = fields.bool("parallel_tool_calls", Null::Refused)?;
    request.parallel_tool_calls = parallel.unwrap_or(true);
    for field in ["functions", "function_call"] {
        if fields.take(field, Null::Refused).is_some() {
            return Err(unsupported(field, "deprecated by OpenAI and not supported; use `tools`"));
        }
    }
    if let Some(value) = fields.take("tool_choice", Null::Refused) {
        request.tool_choice = tool_choice(value)?;
    }
    Ok(())
}

fn tool_choice(value: Value) -> Result<ToolChoice, ApiError> {
    let object = match value {
        Value::String(choice) => match choice.as_str() {
            "auto" => return Ok(ToolChoice::Auto),
            "none" => return Ok(ToolChoice::None),
            "required" => return Ok(ToolChoice::Required),
            _ => {
                let given = Value::String(choice);
                let expected = "`auto`, `none`, `required` or an object";
                return Err(wrong_value("tool_choice", expected, &given));
            }
        },
        object @ Value::Object(_) => object,
        other => return Err(wrong_type("tool_choice", "a string or an object", &other)),
    };
    let mut choice = Fields::object(object, "tool_choice")?;
    match choice.string("type", Null::Refused)?.as_deref() {
        Some("function") => {}
        Some(_) => return Err(unsupported("tool_choice.type", "only `function` is supported")),
        None => return Err(missing("tool_choice.type")),
    }
    let mut function = Fields::object(choice.required("function")?, "tool_choice.function")?;
    let name = function.string("name", Null::Refused)?;
    let name = name.ok_or_else(|| missing("tool_choice.function.name"))?;
    function.finish()?;
    choice.finish()?;
    Ok(ToolChoice::Named(name))
}

fn tool(value: Value, path: &str) -> Result<Tool, ApiError> {
    let json = value.clone();
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
    let name = function.string("name", Null::Refused)?;
    let name = name.ok_or_else(|| missing(&format!("{function_path}.name")))?;
    function.string("description", Null::Absent)?;
    if let Some(parameters) = function.take("parameters", Null::Absent) {
        Fields::object(parameters, &format!("{function_path}.parameters"))?.ignore_rest();
    }
    let strict = function.bool("strict", Null::Absent)?;
    function.finish()?;
    tool.finish()?;
    Ok(Tool { name, json, strict })
}

fn missing(name: &str) -> ApiError {
    ApiError::field(name, "missing_required_parameter", format!("`{name}` is missing."))
}
