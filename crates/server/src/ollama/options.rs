//! What chats and plain prompts share: `options`, `format`, `think`, `stream`.

use serde_json::Value;

use crate::chat::{Format, Reasoning};
use crate::error::ApiError;
use crate::fields::{Fields, Null, integer, shown, unsupported, wrong_type};
use crate::options::Options;

/// The tag that a name has where it has none.
const LATEST: &str = ":latest";

/// How the answer is made.
#[derive(Clone, Debug, Default)]
pub(super) struct Generation {
    pub(super) stream: bool,
    pub(super) max_tokens: Option<u32>,
    pub(super) options: Options,
    pub(super) format: Format,
    pub(super) reasoning: Reasoning,
}

impl Generation {
    pub(super) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        if fields.bool("logprobs", Null::Absent)? == Some(true) {
            let what = "log-probabilities are told by `/v1/chat/completions`";
            return Err(unsupported("logprobs", what));
        }
        let stream = fields.bool("stream", Null::Absent)?.unwrap_or(true);
        let (max_tokens, options) = match fields.take("options", Null::Absent) {
            None => (None, Options::default()),
            Some(value) => take_options(Fields::object(value, "options")?)?,
        };
        Ok(Self {
            stream,
            max_tokens,
            options,
            format: take_format(fields)?,
            reasoning: take_think(fields)?,
        })
    }
}

/// The model's name, without the tag that stands for none.
pub(super) fn take_model(fields: &mut Fields) -> Result<String, ApiError> {
    let value = match fields.take("model", Null::Refused) {
        Some(value) => value,
        // What it was called once.
        None => fields.take("name", Null::Refused).unwrap_or(Value::Null),
    };
    match value {
        Value::String(name) => Ok(name.strip_suffix(LATEST).unwrap_or(&name).to_owned()),
        Value::Null => Err(crate::fields::missing("model")),
        other => Err(wrong_type("model", "a string", &other)),
    }
}

fn take_options(mut fields: Fields) -> Result<(Option<u32>, Options), ApiError> {
    let max_tokens = match fields.take("num_predict", Null::Absent) {
        None => None,
        // As many as fit, and as many as the context has.
        Some(value) if value == -1 || value == -2 => None,
        Some(value) => {
            let count = integer("options.num_predict", &value, 1..=i64::from(u32::MAX))?;
            u32::try_from(count).ok()
        }
    };
    if fields.integer("mirostat", 0..=2)?.is_some_and(|version| version > 0) {
        return Err(unsupported("options.mirostat", "sampling by mirostat is not available"));
    }
    let penalised = fields.integer("repeat_last_n", -1..=i64::from(u32::MAX))? != Some(0);
    let repetition_penalty = fields.number("repeat_penalty", 0.0625..=16.0)?;
    let options = Options {
        stops: fields.stop_texts("stop")?,
        temperature: fields.number("temperature", 0.0..=2.0)?,
        top_p: fields.number("top_p", 0.0..=1.0)?,
        top_k: fields.count("top_k", 0)?,
        min_p: fields.number("min_p", 0.0..=1.0)?,
        typical_p: fields.number("typical_p", 0.0..=1.0)?,
        repetition_penalty: if penalised { repetition_penalty } else { Some(1.0) },
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
        seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
        ..Options::default()
    };
    fields.ignore_rest();
    Ok((max_tokens, options))
}

/// `"json"`, or a schema.
fn take_format(fields: &mut Fields) -> Result<Format, ApiError> {
    match fields.take("format", Null::Absent) {
        None => Ok(Format::Text),
        Some(Value::String(name)) if name.is_empty() => Ok(Format::Text),
        Some(Value::String(name)) if name == "json" => Ok(Format::JsonObject),
        Some(schema @ Value::Object(_)) => Ok(Format::JsonSchema(schema)),
        Some(other) => {
            let message = format!("`format` must be `json` or a schema, not {}.", shown(&other));
            Err(ApiError::field("format", "invalid_value", message))
        }
    }
}

/// Whether to think; models here know no levels of it.
fn take_think(fields: &mut Fields) -> Result<Reasoning, ApiError> {
    let enabled = match fields.take("think", Null::Absent) {
        None => None,
        Some(Value::Bool(think)) => Some(think),
        Some(Value::String(level)) if matches!(level.as_str(), "low" | "medium" | "high") => {
            Some(true)
        }
        Some(other) => {
            let message = format!(
                "`think` must be a boolean, `low`, `medium` or `high`, not {}.",
                shown(&other)
            );
            return Err(ApiError::field("think", "invalid_value", message));
        }
    };
    Ok(Reasoning { enabled, budget_tokens: None })
}
