//! The messages and tools of a chat.

use serde_json::Value;

use crate::chat::{Message, Role, Tool, ToolCall};
use crate::error::ApiError;
use crate::fields::{Fields, Null, missing, shown, unsupported, wrong_type};

/// More messages than this are refused.
const MAX_MESSAGES: usize = 4096;
const MAX_TOOLS: usize = 128;
const MAX_TOOL_CALLS: usize = 128;

/// The messages; none where the model is only to be loaded.
pub(super) fn take_messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let values = fields.array("messages", Null::Absent)?.unwrap_or_default();
    if values.len() > MAX_MESSAGES {
        let message =
            format!("`messages` holds at most {MAX_MESSAGES} messages, not {}.", values.len());
        return Err(ApiError::field("messages", "invalid_value", message));
    }
    let message = |(i, value)| message(value, &format!("messages[{i}]"));
    values.into_iter().enumerate().map(message).collect()
}

fn message(value: Value, path: &str) -> Result<Message, ApiError> {
    let mut fields = Fields::object(value, path)?;
    let role_value = fields.required("role")?;
    let role = match role_value.as_str() {
        Some("system") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        _ => {
            let name = format!("{path}.role");
            let message = format!(
                "`{name}` must be `system`, `user`, `assistant` or `tool`, not {}.",
                shown(&role_value)
            );
            return Err(ApiError::field(name, "invalid_value", message));
        }
    };
    refuse_images(&mut fields, path)?;
    let text = fields.string("content", Null::Absent)?.unwrap_or_default();
    let mut message = Message::new(role, text);
    message.reasoning = fields.string("thinking", Null::Absent)?;
    message.name = fields.string("tool_name", Null::Absent)?;
    message.call_id = fields.string("tool_call_id", Null::Absent)?;
    if role == Role::Assistant {
        message.calls = take_calls(&mut fields, path)?;
    }
    fields.ignore_rest();
    Ok(message)
}

/// No model here sees.
pub(super) fn refuse_images(fields: &mut Fields, path: &str) -> Result<(), ApiError> {
    let images = fields.array("images", Null::Absent)?.unwrap_or_default();
    if images.is_empty() {
        return Ok(());
    }
    let name = if path.is_empty() { "images".to_owned() } else { format!("{path}.images") };
    Err(unsupported(&name, "this model reads text only"))
}

fn take_calls(fields: &mut Fields, path: &str) -> Result<Vec<ToolCall>, ApiError> {
    let values = fields.array("tool_calls", Null::Absent)?.unwrap_or_default();
    let name = format!("{path}.tool_calls");
    if values.len() > MAX_TOOL_CALLS {
        let message =
            format!("`{name}` holds at most {MAX_TOOL_CALLS} calls, not {}.", values.len());
        return Err(ApiError::field(name, "invalid_value", message));
    }
    let call = |(i, value)| -> Result<ToolCall, ApiError> {
        let path = format!("{name}[{i}]");
        let mut call = Fields::object(value, &path)?;
        let id = call.string("id", Null::Absent)?.unwrap_or_default();
        let path = format!("{path}.function");
        let mut function = Fields::object(call.required("function")?, &path)?;
        let name = function.string("name", Null::Refused)?;
        let name = name.ok_or_else(|| missing(&format!("{path}.name")))?;
        let arguments = match function.take("arguments", Null::Absent) {
            None => "{}".to_owned(),
            Some(object @ Value::Object(_)) => object.to_string(),
            Some(other) => {
                return Err(wrong_type(&format!("{path}.arguments"), "an object", &other));
            }
        };
        Ok(ToolCall { id, name, arguments })
    };
    values.into_iter().enumerate().map(call).collect()
}

/// The tools that the model may call.
pub(super) fn take_tools(fields: &mut Fields) -> Result<Vec<Tool>, ApiError> {
    let values = fields.array("tools", Null::Absent)?.unwrap_or_default();
    if values.len() > MAX_TOOLS {
        let message = format!("`tools` holds at most {MAX_TOOLS} tools, not {}.", values.len());
        return Err(ApiError::field("tools", "invalid_value", message));
    }
    let tool = |(i, value): (usize, Value)| -> Result<Tool, ApiError> {
        let json = value.clone();
        let mut tool = Fields::object(value, &format!("tools[{i}]"))?;
        let path = format!("tools[{i}].function");
        let mut function = Fields::object(tool.required("function")?, &path)?;
        let name = function.string("name", Null::Refused)?;
        let name = name.ok_or_else(|| missing(&format!("{path}.name")))?;
        Ok(Tool { name, json, strict: None })
    };
    values.into_iter().enumerate().map(tool).collect()
}
