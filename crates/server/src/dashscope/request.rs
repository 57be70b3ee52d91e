//! Parse, don't validate: the bytes of a native request become a chat or a refusal.

use axum::http::{HeaderMap, header};
use serde_json::{Map, Value};

use crate::chat::ChatRequest;
use crate::dashscope::messages::{Input, take_input};
use crate::dashscope::parameters::{Parameters, ResultFormat};
use crate::error::ApiError;
use crate::fields::{Fields, Null, unsupported, wrong_type};

const SSE: &str = "x-dashscope-sse";
const ASYNC: &str = "x-dashscope-async";
const ENABLE: &str = "enable";

/// What the headers ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) stream: bool,
    /// Only the id of a task is waited for.
    pub(super) task: bool,
}

impl Asked {
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let enabled = |name| value(name).is_some_and(|v| v.trim().eq_ignore_ascii_case(ENABLE));
        let accepts_events = value(header::ACCEPT.as_str())
            .is_some_and(|accepted| accepted.trim_start().starts_with("text/event-stream"));
        let (stream, task) = (enabled(SSE) || accepts_events, enabled(ASYNC));
        if stream && task {
            let what = "the answer of a task is not streamed; send the request without events";
            return Err(unsupported("X-DashScope-Async", what));
        }
        Ok(Self { stream, task })
    }
}

/// A request for an answer, understood.
#[derive(Clone, Debug)]
pub(super) struct GenerationRequest {
    pub(super) chat: ChatRequest,
    pub(super) result_format: ResultFormat,
    pub(super) incremental_output: bool,
}

impl GenerationRequest {
    pub(super) fn parse(
        body: &[u8],
        asked: Asked,
        usual: ResultFormat,
        max_choices: usize,
    ) -> Result<Self, ApiError> {
        let (model, input, parameters) = take_body(body)?;
        let parameters = Parameters::take(parameters, usual, max_choices)?;
        let chat = ChatRequest {
            tools: parameters.tools,
            tool_choice: parameters.tool_choice,
            parallel_tool_calls: parameters.parallel_tool_calls,
            format: parameters.format,
            format_field: "parameters.response_format".to_owned(),
            reasoning: parameters.reasoning,
            continues_last: input.continues_last,
            max_tokens: parameters.max_tokens,
            max_tokens_field: "parameters.max_tokens",
            options: parameters.options,
            stream: asked.stream,
            ..ChatRequest::new(model, input.messages)
        };
        Ok(Self {
            chat,
            result_format: parameters.result_format,
            incremental_output: parameters.incremental_output,
        })
    }
}

/// A request for tokens: the model, and a prompt as it stands or a chat.
#[derive(Clone, Debug)]
pub(super) enum TokenizerRequest {
    Prompt { model: String, prompt: String },
    Chat(Box<ChatRequest>),
}

impl TokenizerRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = take_model(&mut fields)?;
        let mut input = Fields::object(fields.required("input")?, "input")?;
        let prompt = match input.take("prompt", Null::Absent) {
            Some(Value::String(prompt)) if input.is_empty() => Some(prompt),
            Some(other) => {
                input.put_back("prompt", other);
                None
            }
            None => None,
        };
        if let Some(prompt) = prompt {
            return Ok(Self::Prompt { model, prompt });
        }
        let input = take_input(input)?;
        Ok(Self::Chat(Box::new(ChatRequest {
            continues_last: input.continues_last,
            ..ChatRequest::new(model, input.messages)
        })))
    }
}

/// The three parts of a body.
fn take_body(body: &[u8]) -> Result<(String, Input, Fields), ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = take_model(&mut fields)?;
    let input = take_input(Fields::object(fields.required("input")?, "input")?)?;
    let parameters = fields.take("parameters", Null::Absent);
    let parameters = parameters.unwrap_or_else(|| Value::Object(Map::new()));
    let parameters = Fields::object(parameters, "parameters")?;
    fields.ignored_object("resources")?;
    fields.finish()?;
    Ok((model, input, parameters))
}

pub(super) fn take_model(fields: &mut Fields) -> Result<String, ApiError> {
    match fields.required("model")? {
        Value::String(name) => Ok(name),
        other => Err(wrong_type("model", "a string", &other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fields::check_mutations;

    #[test]
    fn odd_requests_are_refused_in_words() {
        let good = json!({
            "model": "m",
            "input": {"messages": [
                {"role": "user", "content": [{"text": "a", "cache_control": {"type": "ephemeral"}}]},
                {"role": "assistant", "content": "", "reasoning_content": "h", "tool_calls": [
                    {"id": "c", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                {"role": "tool", "content": "42", "tool_call_id": "c"},
                {"role": "assistant", "content": "So", "partial": true}]},
            "parameters": {
                "result_format": "message", "incremental_output": true, "max_tokens": 5, "n": 2,
                "stop": ["x", 3, [4]], "temperature": 0.5, "top_p": 0.5, "top_k": 3, "seed": 1,
                "enable_thinking": true, "thinking_budget": 9, "parallel_tool_calls": true,
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
                "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}},
        });
        let asked = Asked { stream: true, task: false };
        check_mutations(&good, |body| {
            GenerationRequest::parse(body, asked, ResultFormat::Text, 16)
        });
        let turns =
            json!({"model": "m", "input": {"prompt": "p", "history": [{"user": "a", "bot": "b"}]}});
        check_mutations(&turns, TokenizerRequest::parse);
    }
}
