//! Parse, don't validate: the bytes of `POST /v1/chat/completions` become a [`ChatRequest`] or a refusal.

use serde_json::Value;

use crate::chat::ChatRequest;
use crate::config::Limits;
use crate::error::ApiError;
use crate::fields::{Fields, Null, kind, unsupported, wrong_type, wrong_value};
use crate::openai::batches::metadata;
use crate::openai::messages::{parts_text, take_messages, take_tools};
use crate::openai::options::{Shape, reasoning_of, take_effort, take_options};
use crate::openai::qwen::{take_extras, take_partial};
use crate::openai::stored::Kept;
use crate::structured::Structured;

/// OpenAI's own limit.
const MAX_TOP_LOGPROBS: i64 = 20;

/// A chat that can be prepared.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) request: ChatRequest,
    /// How its answer is sent.
    pub(super) shape: Shape,
    /// What is to be kept of it.
    pub(super) kept: Option<Kept>,
}

pub(super) fn parse(body: &[u8], limits: &Limits) -> Result<Parsed, ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = take_model(&mut fields)?;
    let continues_last = take_partial(&mut fields)?;
    let kept = take_kept(&mut fields)?;
    let messages = take_messages(&mut fields)?;
    let mut request = ChatRequest { continues_last, ..ChatRequest::new(model, messages) };
    take_tools(&mut fields, &mut request)?;
    let newer = fields.count("max_completion_tokens", 1)?;
    let older = fields.count("max_tokens", 1)?;
    request.max_tokens = newer.or(older);
    if newer.is_some() {
        request.max_tokens_field = "max_completion_tokens";
    }
    if let Some(effort) = take_effort(&mut fields, "reasoning_effort")? {
        request.reasoning = reasoning_of(effort);
    }
    if let Some(enabled) = take_thinking(&mut fields)? {
        request.reasoning.enabled = Some(enabled);
    }
    request.logprobs = take_logprobs(&mut fields)?;
    request.prompt_logprobs = take_prompt_logprobs(&mut fields)?;
    let (options, shape) = take_options(&mut fields, limits)?;
    request.options = options;
    request.stream = shape.stream;
    refuse_streamed_prompt(request.prompt_logprobs, shape)?;
    take_extras(&mut fields, &mut request)?;
    if let Some(structured) = Structured::take(&mut fields)? {
        (request.format, request.format_field) = (structured.format, structured.field);
    }
    refuse_unsupported(&mut fields)?;
    take_prediction(&mut fields, &mut request)?;
    fields.finish()?;
    Ok(Parsed { request, shape, kept })
}

/// What `store` is to keep, as it came.
fn take_kept(fields: &mut Fields) -> Result<Option<Kept>, ApiError> {
    let metadata = metadata(fields)?.unwrap_or_default();
    if fields.bool("store", Null::Absent)? != Some(true) {
        return Ok(None);
    }
    let given = fields.take("messages", Null::Refused);
    let messages = given.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
    if let Some(given) = given {
        fields.put_back("messages", given);
    }
    Ok(Some(Kept { messages, metadata }))
}

/// Text that the answer probably repeats.
fn take_prediction(fields: &mut Fields, request: &mut ChatRequest) -> Result<(), ApiError> {
    let Some(value) = fields.take("prediction", Null::Absent) else { return Ok(()) };
    let mut prediction = Fields::object(value, "prediction")?;
    let kind = prediction.required("type")?;
    if kind != "content" {
        return Err(wrong_value("prediction.type", "`content`", &kind));
    }
    request.prediction = match prediction.required("content")? {
        Value::String(text) => Some(text),
        Value::Array(parts) if !parts.is_empty() => Some(parts_text(parts, "prediction.content")?),
        other => {
            let expected = "a string or a non-empty array of text parts";
            return Err(wrong_type("prediction.content", expected, &other));
        }
    };
    prediction.finish()
}

/// The name of the model.
pub(super) fn take_model(fields: &mut Fields) -> Result<String, ApiError> {
    match fields.required("model")? {
        Value::String(name) => Ok(name),
        other => Err(wrong_type("model", "a string", &other)),
    }
}

fn take_logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.bool("logprobs", Null::Absent)?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    match (wanted, top) {
        (true, top) => Ok(Some(u8::try_from(top.unwrap_or(0)).unwrap_or(0))),
        (false, Some(1..)) => Err(ApiError::field(
            "top_logprobs",
            "invalid_value",
            "`top_logprobs` is only allowed with `logprobs: true`.",
        )),
        (false, _) => Ok(None),
    }
}

/// vLLM's: how many alternatives to report with each token of the prompt.
pub(super) fn take_prompt_logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let top = fields.integer("prompt_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    Ok(top.and_then(|top| u8::try_from(top).ok()))
}

/// They are told in whole answers only, as vLLM does.
pub(super) fn refuse_streamed_prompt(wanted: Option<u8>, shape: Shape) -> Result<(), ApiError> {
    if wanted.is_some() && shape.stream {
        return Err(unsupported("prompt_logprobs", "only available without `stream`"));
    }
    Ok(())
}

/// `enable_thinking`, at the top or in `chat_template_kwargs`. Nothing else reaches a template from outside.
pub(super) fn take_thinking(fields: &mut Fields) -> Result<Option<bool>, ApiError> {
    let direct = fields.bool("enable_thinking", Null::Absent)?;
    let Some(value) = fields.take("chat_template_kwargs", Null::Absent) else { return Ok(direct) };
    let mut kwargs = Fields::object(value, "chat_template_kwargs")?;
    let nested = kwargs.bool("enable_thinking", Null::Absent)?;
    kwargs.finish()?;
    Ok(nested.or(direct))
}

/// What OpenAI's API can and we cannot yet: refused by name unless it asks for what we do anyway.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    if let Some(value) = fields.take("modalities", Null::Absent)
        && value != serde_json::json!(["text"])
    {
        return Err(unsupported("modalities", "only `[\"text\"]` is supported"));
    }
    fields.string("verbosity", Null::Absent)?;
    for field in ["audio", "moderation", "web_search_options", "prompt_cache_options"] {
        if let Some(value) = fields.take(field, Null::Absent) {
            let what = format!("not supported (given: {})", kind(&value));
            return Err(unsupported(field, &what));
        }
    }
    Ok(())
}
