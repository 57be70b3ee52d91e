//! The messages of a request: Anthropic's blocks become plain messages.
//!
//! A result of a tool is a block of a user's message there and a message of its own here. Blocks of text are joined as
//! they stand; blocks of a system prompt, which are instructions of their own, by an empty line.

use std::collections::HashSet;

use serde_json::Value;

use crate::chat::{Message, Role, ToolCall};
use crate::error::ApiError;
use crate::fields::{Fields, Null, missing, shortened, shown, unsupported, wrong_type};

/// More messages than this are refused.
const MAX_MESSAGES: usize = 4096;
/// Blocks of one message.
const MAX_BLOCKS: usize = 4096;

/// The system prompt, if any, and the messages, at least one of these.
pub(super) fn take_messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let mut messages = Vec::new();
    if let Some(system) = fields.take("system", Null::Absent) {
        let text = texts(system, "system", "\n\n")?;
        if !text.is_empty() {
            messages.push(Message::new(Role::System, text));
        }
    }
    let value = fields.required("messages")?;
    let Value::Array(values) = value else {
        return Err(wrong_type("messages", "an array", &value));
    };
    if values.is_empty() || values.len() > MAX_MESSAGES {
        let message =
            format!("`messages` must hold 1 to {MAX_MESSAGES} messages, not {}.", values.len());
        return Err(ApiError::field("messages", "invalid_value", message));
    }
    let mut called = HashSet::new();
    for (i, value) in values.into_iter().enumerate() {
        let path = format!("messages[{i}]");
        let mut message = Fields::object(value, &path)?;
        let role = message.required("role")?;
        let content = message.required("content")?;
        match role.as_str() {
            Some("user") => user(content, &path, &called, &mut messages)?,
            Some("assistant") => {
                let message = assistant(content, &path)?;
                called.extend(message.calls.iter().map(|call| call.id.clone()));
                messages.push(message);
            }
            Some("system") => {
                let text = texts(content, &format!("{path}.content"), "")?;
                messages.push(Message::new(Role::System, text));
            }
            _ => {
                let name = format!("{path}.role");
                let message = format!(
                    "`{name}` must be `user`, `assistant` or `system`, not {}.",
                    shown(&role)
                );
                return Err(ApiError::field(name, "invalid_value", message));
            }
        }
        message.finish()?;
    }
    Ok(messages)
}

/// Text and results of tools, in their order.
fn user(
    content: Value,
    path: &str,
    called: &HashSet<String>,
    messages: &mut Vec<Message>,
) -> Result<(), ApiError> {
    let path = format!("{path}.content");
    let mut text: Option<String> = None;
    for (kind, mut block, path) in blocks(content, &path)? {
        match kind.as_str() {
            "text" => text.get_or_insert_default().push_str(&take_text(&mut block, &path)?),
            "tool_result" => {
                let id = block.string("tool_use_id", Null::Refused)?;
                let id = id.ok_or_else(|| missing(&format!("{path}.tool_use_id")))?;
                if !called.contains(&id) {
                    let name = format!("{path}.tool_use_id");
                    let message = format!(
                        "`{name}`: no `tool_use` block before it has the id `{}`.",
                        shortened(&id)
                    );
                    return Err(ApiError::field(name, "invalid_value", message));
                }
                block.bool("is_error", Null::Absent)?;
                let result = block.take("content", Null::Absent);
                let result = result.map_or(Ok(String::new()), |content| {
                    texts(content, &format!("{path}.content"), "")
                })?;
                let before = text.take().map(|text| Message::new(Role::User, text));
                messages.extend(before);
                messages.push(Message { call_id: Some(id), ..Message::new(Role::Tool, result) });
            }
            kind => return Err(other_block(kind, &path)),
        }
        end_of_block(block)?;
    }
    messages.extend(text.map(|text| Message::new(Role::User, text)));
    Ok(())
}

/// Text, thoughts and calls of one turn.
fn assistant(content: Value, path: &str) -> Result<Message, ApiError> {
    let path = format!("{path}.content");
    let mut message = Message::new(Role::Assistant, "");
    for (kind, mut block, path) in blocks(content, &path)? {
        match kind.as_str() {
            "text" => message.text.push_str(&take_text(&mut block, &path)?),
            "thinking" => {
                let thought = block.string("thinking", Null::Refused)?;
                let thought = thought.ok_or_else(|| missing(&format!("{path}.thinking")))?;
                block.string("signature", Null::Absent)?;
                message.reasoning.get_or_insert_default().push_str(&thought);
            }
            "tool_use" => {
                let mut take = |field: &str| {
                    let text = block.string(field, Null::Refused)?;
                    text.ok_or_else(|| missing(&format!("{path}.{field}")))
                };
                let (id, name) = (take("id")?, take("name")?);
                let input = block.required("input")?;
                if !input.is_object() {
                    return Err(wrong_type(&format!("{path}.input"), "an object", &input));
                }
                block.ignored_object("caller")?;
                message.calls.push(ToolCall { id, name, arguments: input.to_string() });
            }
            kind => return Err(other_block(kind, &path)),
        }
        end_of_block(block)?;
    }
    Ok(message)
}

/// A string, or blocks of text, joined.
fn texts(content: Value, path: &str, between: &str) -> Result<String, ApiError> {
    let mut all = Vec::new();
    for (kind, mut block, path) in blocks(content, path)? {
        if kind != "text" {
            return Err(other_block(&kind, &path));
        }
        all.push(take_text(&mut block, &path)?);
        end_of_block(block)?;
    }
    Ok(all.join(between))
}

/// The blocks of a content with their types and paths; a string is one of text.
fn blocks(content: Value, path: &str) -> Result<Vec<(String, Fields, String)>, ApiError> {
    let values = match content {
        Value::String(text) => {
            let block = serde_json::json!({"text": text});
            return Ok(vec![("text".to_owned(), Fields::object(block, path)?, path.to_owned())]);
        }
        Value::Array(values) => values,
        other => return Err(wrong_type(path, "a string or an array of content blocks", &other)),
    };
    if values.len() > MAX_BLOCKS {
        let message = format!("`{path}` holds at most {MAX_BLOCKS} blocks, not {}.", values.len());
        return Err(ApiError::field(path, "invalid_value", message));
    }
    let block = |(i, value)| {
        let path = format!("{path}[{i}]");
        let mut block = Fields::object(value, &path)?;
        let kind = block.string("type", Null::Refused)?;
        let kind = kind.ok_or_else(|| missing(&format!("{path}.type")))?;
        Ok((kind, block, path))
    };
    values.into_iter().enumerate().map(block).collect()
}

fn take_text(block: &mut Fields, path: &str) -> Result<String, ApiError> {
    let text = block.string("text", Null::Refused)?;
    let text = text.ok_or_else(|| missing(&format!("{path}.text")))?;
    block.array("citations", Null::Absent)?;
    Ok(text)
}

fn end_of_block(mut block: Fields) -> Result<(), ApiError> {
    // A marker of prompt caching, which is automatic here.
    block.ignored_object("cache_control")?;
    block.finish()
}

fn other_block(kind: &str, path: &str) -> ApiError {
    let what = format!("blocks of type `{}` are not supported here", shortened(kind));
    unsupported(&format!("{path}.type"), &what)
}
