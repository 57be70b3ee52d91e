//! What Model Studio's OpenAI-compatible API has beyond OpenAI's, on every path of this dialect: `partial`,
//! `thinking_budget`, and fields that change nothing here. (`enable_thinking`, `top_k` and `repetition_penalty` are read
//! with the other parameters.)

use serde_json::Value;

use crate::chat::ChatRequest;
use crate::error::ApiError;
use crate::fields::{Fields, Null, unsupported, wrong_type};

/// Takes `partial` out of the messages: whether the last one, the assistant's, is to be continued.
pub(super) fn take_partial(fields: &mut Fields) -> Result<bool, ApiError> {
    let mut continues = false;
    let mut value = fields.take("messages", Null::Refused);
    let messages = value.as_mut().and_then(Value::as_array_mut);
    let last = messages.as_ref().map_or(0, |messages| messages.len().saturating_sub(1));
    for (i, message) in messages.into_iter().flatten().enumerate() {
        let of_assistant = message.get("role").is_some_and(|role| role == "assistant");
        let Some(partial) = message.as_object_mut().and_then(|m| m.shift_remove("partial")) else {
            continue;
        };
        let name = format!("messages[{i}].partial");
        match partial {
            Value::Bool(false) | Value::Null => {}
            Value::Bool(true) if of_assistant && i == last => continues = true,
            Value::Bool(true) => {
                let message =
                    format!("`{name}`: only a last message of the assistant is continued.");
                return Err(ApiError::field(name, "invalid_value", message));
            }
            other => return Err(wrong_type(&name, "a boolean", &other)),
        }
    }
    if let Some(value) = value {
        fields.put_back("messages", value);
    }
    Ok(continues)
}

/// Takes the rest.
pub(super) fn take_extras(fields: &mut Fields, request: &mut ChatRequest) -> Result<(), ApiError> {
    if let Some(budget) = fields.count("thinking_budget", 1)? {
        request.reasoning.budget_tokens = Some(budget);
    }
    // Events of this dialect hold what is new, always.
    fields.bool("incremental_output", Null::Absent)?;
    if fields.bool("enable_search", Null::Absent)? == Some(true) {
        return Err(unsupported("enable_search", "searches are not available here"));
    }
    fields.ignored_object("search_options")?;
    fields.bool("vl_high_resolution_images", Null::Absent)?;
    Ok(())
}
