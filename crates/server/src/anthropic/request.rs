//! Parse, don't validate: the bytes of `POST /v1/messages` become a chat or a refusal.

use serde_json::Value;

use crate::anthropic::content::take_messages;
use crate::anthropic::tools::{take_choice, take_tools};
use crate::chat::{ChatRequest, Format, Reasoning, Role};
use crate::error::ApiError;
use crate::fields::{Fields, Null, missing, shortened, unsupported, wrong_type};
use crate::options::Options;

/// A request for a message, understood.
#[derive(Clone, Debug)]
pub(super) struct MessagesRequest {
    pub(super) chat: ChatRequest,
    /// Tools whose arguments are wanted as they come.
    pub(super) eager_tools: Vec<String>,
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Answer,
    /// The length of its prompt; what concerns the answer is optional.
    Count,
}

impl MessagesRequest {
    pub(super) fn parse(body: &[u8], purpose: Purpose) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = match fields.required("model")? {
            Value::String(name) => name,
            other => return Err(wrong_type("model", "a string", &other)),
        };
        let messages = take_messages(&mut fields)?;
        let max_tokens = fields.count("max_tokens", 1)?;
        if max_tokens.is_none() && purpose == Purpose::Answer {
            return Err(missing("max_tokens"));
        }
        let (tools, eager_tools) = take_tools(&mut fields)?;
        let (tool_choice, parallel_tool_calls) = take_choice(&mut fields, &tools)?;
        let continues_last =
            messages.last().is_some_and(|m| m.role == Role::Assistant && m.calls.is_empty());
        let chat = ChatRequest {
            tools,
            tool_choice,
            parallel_tool_calls,
            continues_last,
            reasoning: take_thinking(&mut fields, max_tokens)?,
            format: take_output_config(&mut fields)?,
            format_field: "output_config.format.schema".to_owned(),
            max_tokens,
            options: take_options(&mut fields)?,
            stream: fields.bool("stream", Null::Absent)?.unwrap_or(false),
            ..ChatRequest::new(model, messages)
        };
        take_ignored(&mut fields)?;
        fields.finish()?;
        Ok(Self { chat, eager_tools })
    }
}

fn take_options(fields: &mut Fields) -> Result<Options, ApiError> {
    Ok(Options {
        stops: fields.stop_texts("stop_sequences")?,
        temperature: fields.number("temperature", 0.0..=1.0)?,
        top_p: fields.number("top_p", 0.0..=1.0)?,
        top_k: fields.count("top_k", 0)?,
        ..Options::default()
    })
}

/// Whether and how long the model thinks. It does not unless asked to, as Anthropic has it.
fn take_thinking(fields: &mut Fields, max_tokens: Option<u32>) -> Result<Reasoning, ApiError> {
    let off = Reasoning { enabled: Some(false), budget_tokens: None };
    let Some(value) = fields.take("thinking", Null::Absent) else { return Ok(off) };
    let mut thinking = Fields::object(value, "thinking")?;
    let kind = thinking.string("type", Null::Refused)?;
    thinking.string("display", Null::Absent)?;
    let reasoning = match kind.as_deref() {
        None => return Err(missing("thinking.type")),
        Some("disabled") => off,
        // The model decides: what its template does when it is not told.
        Some("adaptive" | "between_tools") => Reasoning::default(),
        Some("enabled") => {
            let budget = thinking.count("budget_tokens", 1)?;
            let budget = budget.ok_or_else(|| missing("thinking.budget_tokens"))?;
            if let Some(most) = max_tokens.filter(|most| budget >= *most) {
                let message = format!(
                    "`thinking.budget_tokens` must be less than `max_tokens` ({most}), not {budget}."
                );
                return Err(ApiError::field("thinking.budget_tokens", "invalid_value", message));
            }
            Reasoning { enabled: Some(true), budget_tokens: Some(budget) }
        }
        Some(other) => {
            let message = format!(
                "`thinking.type` must be `enabled`, `disabled` or `adaptive`, not `{}`.",
                shortened(other)
            );
            return Err(ApiError::field("thinking.type", "invalid_value", message));
        }
    };
    thinking.finish()?;
    Ok(reasoning)
}

/// What the answer must look like.
fn take_output_config(fields: &mut Fields) -> Result<Format, ApiError> {
    let Some(value) = fields.take("output_config", Null::Absent) else { return Ok(Format::Text) };
    let mut config = Fields::object(value, "output_config")?;
    // How much to think and say: these models know no such scale.
    config.string("effort", Null::Absent)?;
    let format = match config.take("format", Null::Absent) {
        None => Format::Text,
        Some(value) => {
            let mut format = Fields::object(value, "output_config.format")?;
            let kind = format.string("type", Null::Refused)?;
            if kind.as_deref() != Some("json_schema") {
                return Err(unsupported("output_config.format.type", "it must be `json_schema`"));
            }
            let schema = format.required("schema")?;
            if !schema.is_object() {
                return Err(wrong_type("output_config.format.schema", "an object", &schema));
            }
            format.finish()?;
            Format::JsonSchema(schema)
        }
    };
    config.finish()?;
    Ok(format)
}

/// Fields that change nothing here; their types are checked all the same.
fn take_ignored(fields: &mut Fields) -> Result<(), ApiError> {
    fields.ignored_object("metadata")?;
    fields.ignored_object("cache_control")?;
    for field in ["service_tier", "inference_geo"] {
        fields.string(field, Null::Absent)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fields::check_mutations;

    #[test]
    fn odd_requests_are_refused_in_words() {
        let good = json!({
            "model": "m", "max_tokens": 50, "stream": true, "top_k": 3, "temperature": 0.5,
            "system": [{"type": "text", "text": "s"}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "h", "signature": ""},
                    {"type": "tool_use", "id": "t", "name": "f", "input": {"x": [1]}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "42"}]}],
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}, "strict": false}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": true},
            "thinking": {"type": "enabled", "budget_tokens": 20},
            "stop_sequences": ["x"], "metadata": {"user_id": "u"},
            "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
        });
        check_mutations(&good, |body| MessagesRequest::parse(body, Purpose::Answer));
    }
}
