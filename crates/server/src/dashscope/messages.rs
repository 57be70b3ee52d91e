//! The input of a request: messages, or a prompt with its history, become plain messages.

use serde_json::Value;

use crate::chat::{Message, Role, ToolCall};
use crate::error::ApiError;
use crate::fields::{Fields, Null, missing, shown, unsupported, wrong_type};

/// More messages than this are refused.
const MAX_MESSAGES: usize = 4096;
const MAX_TOOL_CALLS: usize = 128;

/// What is to be answered.
#[derive(Clone, Debug)]
pub(super) struct Input {
    /// At least one.
    pub(super) messages: Vec<Message>,
    /// The last one is the assistant's and is to be continued (`partial`).
    pub(super) continues_last: bool,
}

/// Takes `messages`, or `prompt` with `history`.
pub(super) fn take_input(mut input: Fields) -> Result<Input, ApiError> {
    let mut messages = Vec::new();
    let mut continues_last = false;
    if let Some(value) = input.take("messages", Null::Absent) {
        let Value::Array(values) = value else {
            return Err(wrong_type("input.messages", "an array", &value));
        };
        if values.len() > MAX_MESSAGES {
            let message = format!(
                "`input.messages` holds at most {MAX_MESSAGES} messages, not {}.",
                values.len()
            );
            return Err(ApiError::field("input.messages", "invalid_value", message));
        }
        let last = values.len().saturating_sub(1);
        for (i, value) in values.into_iter().enumerate() {
            let (message, partial) = message(value, &format!("input.messages[{i}]"))?;
            if partial && (i != last || message.role != Role::Assistant) {
                let name = format!("input.messages[{i}].partial");
                let message =
                    format!("`{name}`: only a last message of the assistant is continued.");
                return Err(ApiError::field(name, "invalid_value", message));
            }
            continues_last = partial;
            messages.push(message);
        }
    }
    if let Some(history) = input.array("history", Null::Absent)? {
        for (i, value) in history.into_iter().enumerate() {
            take_turn(value, &format!("input.history[{i}]"), &mut messages)?;
        }
    }
    if let Some(prompt) = input.string("prompt", Null::Absent)? {
        messages.push(Message::new(Role::User, prompt));
        continues_last = false;
    }
    input.finish()?;
    if messages.is_empty() {
        let message = "`input` must hold `messages` or a `prompt`.";
        return Err(ApiError::field("input", "missing_required_parameter", message));
    }
    Ok(Input { messages, continues_last })
}

/// `{"user": …, "bot": …}`: how histories were written before there were messages.
fn take_turn(value: Value, path: &str, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    let mut turn = Fields::object(value, path)?;
    for (field, role) in [("user", Role::User), ("bot", Role::Assistant)] {
        let text = turn.string(field, Null::Refused)?;
        let text = text.ok_or_else(|| missing(&format!("{path}.{field}")))?;
        messages.push(Message::new(role, text));
    }
    turn.finish()
}

/// A message, and whether it is to be continued.
fn message(value: Value, path: &str) -> Result<(Message, bool), ApiError> {
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
    let mut message = Message::new(role, "");
    let null = if role == Role::Assistant { Null::Absent } else { Null::Refused };
    match fields.take("content", null) {
        Some(content) => message.text = take_content(content, &format!("{path}.content"))?,
        None if role == Role::Assistant => {}
        None => return Err(missing(&format!("{path}.content"))),
    }
    message.name = fields.string("name", Null::Absent)?;
    // Qwen-Agent hands back what it notes for itself,
    fields.take("extra", Null::Absent);
    let mut partial = false;
    match role {
        Role::Assistant => {
            message.reasoning = fields.string("reasoning_content", Null::Absent)?;
            fields.string("reasoning_signature", Null::Absent)?;
            message.calls = take_calls(&mut fields, path)?;
            partial = fields.bool("partial", Null::Absent)?.unwrap_or(false);
        }
        Role::Tool => {
            // and names a result's call `id`.
            let id = fields.string("id", Null::Absent)?;
            message.call_id = fields.string("tool_call_id", Null::Absent)?.or(id);
        }
        Role::System | Role::User => {}
    }
    fields.finish()?;
    Ok((message, partial))
}

/// A string, or parts of text (`{"text": …}`, with or without a type), joined.
fn take_content(content: Value, path: &str) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(path, "a string or an array of content parts", &other)),
    };
    let mut all = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        let mut part = Fields::object(part, &path)?;
        for medium in ["image", "video", "audio", "file"] {
            if part.take(medium, Null::Absent).is_some() {
                return Err(unsupported(&format!("{path}.{medium}"), "this model reads text only"));
            }
        }
        if part.string("type", Null::Absent)?.is_some_and(|kind| kind != "text") {
            return Err(unsupported(&format!("{path}.type"), "this model reads text only"));
        }
        let text = part.string("text", Null::Refused)?;
        all.push_str(&text.ok_or_else(|| missing(&format!("{path}.text")))?);
        // A marker of prompt caching, which is automatic here.
        part.ignored_object("cache_control")?;
        part.finish()?;
    }
    Ok(all)
}

fn take_calls(fields: &mut Fields, path: &str) -> Result<Vec<ToolCall>, ApiError> {
    let values = fields.array("tool_calls", Null::Absent)?.unwrap_or_default();
    let name = format!("{path}.tool_calls");
    if values.len() > MAX_TOOL_CALLS {
        let message =
            format!("`{name}` holds at most {MAX_TOOL_CALLS} calls, not {}.", values.len());
        return Err(ApiError::field(name, "invalid_value", message));
    }
    let call = |(i, value)| tool_call(value, &format!("{name}[{i}]"));
    values.into_iter().enumerate().map(call).collect()
}

fn tool_call(value: Value, path: &str) -> Result<ToolCall, ApiError> {
    let mut call = Fields::object(value, path)?;
    let id = call.string("id", Null::Absent)?.unwrap_or_default();
    if call.string("type", Null::Absent)?.is_some_and(|kind| kind != "function") {
        return Err(unsupported(&format!("{path}.type"), "only `function` is supported"));
    }
    let path = format!("{path}.function");
    let mut function = Fields::object(call.required("function")?, &path)?;
    let name = function.string("name", Null::Refused)?;
    let name = name.ok_or_else(|| missing(&format!("{path}.name")))?;
    let arguments = function.string("arguments", Null::Absent)?.unwrap_or_default();
    function.string("output", Null::Absent)?;
    function.finish()?;
    // What streamed calls carry and clients send back.
    call.take("index", Null::Absent);
    call.finish()?;
    Ok(ToolCall { id, name, arguments })
}
