//! Parse, don't validate: the bytes of `POST /v1/completions` become a [`CompletionRequest`] or a refusal.

use mintage_model::TokenId;
use serde_json::Value;

use crate::chat::Prompt;
use crate::config::Limits;
use crate::error::ApiError;
use crate::fields::{Fields, Null, unsupported, wrong_type};
use crate::openai::chat_request::{refuse_streamed_prompt, take_model, take_prompt_logprobs};
use crate::openai::options::{Shape, take_options, token_id};
use crate::options::Options;
use crate::structured::Structured;

/// OpenAI's own default.
const DEFAULT_MAX_TOKENS: u32 = 16;
/// OpenAI's own limit.
const MAX_LOGPROBS: i64 = 5;

/// Prompts that can be tokenised and continued.
#[derive(Clone, Debug)]
pub(super) struct CompletionRequest {
    pub(super) model: String,
    /// At least one; times `n` at most the limit of choices.
    pub(super) prompts: Vec<Prompt>,
    pub(super) echo: bool,
    /// 0 is allowed: then only the prompt is computed.
    pub(super) max_tokens: u32,
    pub(super) logprobs: Option<u8>,
    /// vLLM's: the same for the tokens of the prompt.
    pub(super) prompt_logprobs: Option<u8>,
    /// What comes behind the answer, for models that fill in what is missing in the middle. Not empty.
    pub(super) suffix: Option<String>,
    pub(super) structured: Option<Structured>,
    pub(super) options: Options,
    pub(super) shape: Shape,
}

impl CompletionRequest {
    pub(super) fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = take_model(&mut fields)?;
        let prompts = take_prompts(&mut fields, "prompt")?;
        let (options, shape) = take_options(&mut fields, limits)?;
        let choices = prompts.len().saturating_mul(options.n as usize);
        if choices > limits.max_choices {
            let message = format!(
                "`prompt` holds {} prompts and `n` is {}: a request has at most {} choices, not {choices}.",
                prompts.len(),
                options.n,
                limits.max_choices
            );
            return Err(ApiError::field("prompt", "invalid_value", message));
        }
        let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS)?;
        let request = Self {
            model,
            prompts,
            echo: fields.bool("echo", Null::Absent)?.unwrap_or(false),
            max_tokens: fields.count("max_tokens", 0)?.unwrap_or(DEFAULT_MAX_TOKENS),
            structured: Structured::take(&mut fields)?,
            logprobs: logprobs.and_then(|n| u8::try_from(n).ok()),
            prompt_logprobs: take_prompt_logprobs(&mut fields)?,
            suffix: fields.string("suffix", Null::Absent)?.filter(|suffix| !suffix.is_empty()),
            options,
            shape,
        };
        refuse_unsupported(&mut fields, &request)?;
        refuse_streamed_prompt(request.prompt_logprobs, shape)?;
        fields.finish()?;
        Ok(request)
    }
}

fn refuse_unsupported(fields: &mut Fields, request: &CompletionRequest) -> Result<(), ApiError> {
    let best_of = fields.integer("best_of", 0..=20)?;
    if best_of.is_some_and(|best| best != i64::from(request.options.n)) {
        return Err(unsupported("best_of", "not supported; leave it out or set it to `n`"));
    }
    if request.suffix.is_some() && request.echo {
        return Err(unsupported("suffix", "not together with `echo`"));
    }
    Ok(())
}

/// A text, several, tokens, or several lists of tokens.
pub(super) fn take_prompts(fields: &mut Fields, field: &str) -> Result<Vec<Prompt>, ApiError> {
    let values = match fields.required(field)? {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(values) if values.is_empty() => {
            let message = format!("`{field}` must hold at least one prompt or token, not 0.");
            return Err(ApiError::field(field, "invalid_value", message));
        }
        Value::Array(values) => values,
        other => return Err(wrong_type(field, "a string or an array", &other)),
    };
    if values.first().is_some_and(Value::is_number) {
        return Ok(vec![Prompt::Tokens(tokens(field, &values)?)]);
    }
    let one = |(index, value)| prompt(&format!("{field}[{index}]"), value);
    values.into_iter().enumerate().map(one).collect()
}

fn prompt(name: &str, value: Value) -> Result<Prompt, ApiError> {
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) => Ok(Prompt::Tokens(tokens(name, &ids)?)),
        other => Err(wrong_type(name, "a string or an array of token ids", &other)),
    }
}

fn tokens(name: &str, values: &[Value]) -> Result<Vec<TokenId>, ApiError> {
    values.iter().enumerate().map(|(i, value)| token_id(&format!("{name}[{i}]"), value)).collect()
}
