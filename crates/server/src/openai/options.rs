//! The parameters that chat and plain completions share, by OpenAI's names and ranges.

use mintage_ledger::TokenUsage;
use mintage_model::{MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS, TokenId};
use serde_json::Value;

use crate::chat::Reasoning;
use crate::config::Limits;
use crate::error::ApiError;
use crate::fields::{Fields, Null, integer, number, wrong_type, wrong_value};
use crate::options::Options;
use crate::till::Settled;

/// OpenAI's scale of how much to think.
const EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// How an answer is sent, and what is told with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) stream: bool,
    /// Of streams; a whole answer always tells its usage.
    pub(super) include_usage: bool,
    /// Of streams: each event tells the usage so far, as vLLM has it.
    pub(super) continuous_usage: bool,
    /// Tell what it cost.
    pub(super) include_cost: bool,
    /// Of streams: events are padded, so that their sizes tell nothing.
    pub(super) obfuscates: bool,
    /// Tell that there is one tier of service.
    pub(super) tells_tier: bool,
}

impl Shape {
    /// The usage so far as an event tells it, where events do. What it costs is said at the end.
    pub(super) fn running(self, so_far: &TokenUsage) -> Option<Settled> {
        self.continuous_usage.then_some(Settled { usage: *so_far, cost: None })
    }
}

/// How much to think, by OpenAI's scale.
pub(super) fn take_effort(
    fields: &mut Fields,
    field: &str,
) -> Result<Option<&'static str>, ApiError> {
    let name = fields.name(field);
    let Some(given) = fields.string(field, Null::Absent)? else { return Ok(None) };
    let known = EFFORTS.iter().copied().find(|effort| *effort == given);
    known.map(Some).ok_or_else(|| {
        let expected = format!("one of {}", EFFORTS.join(", "));
        wrong_value(&name, &expected, &Value::String(given))
    })
}

/// What that means to a model that thinks: whether it does, and for how many tokens at most. From `high` on as long as it
/// likes.
pub(super) fn reasoning_of(effort: &str) -> Reasoning {
    let budget_tokens = match effort {
        "none" => return Reasoning { enabled: Some(false), budget_tokens: None },
        "minimal" => Some(512),
        "low" => Some(1024),
        "medium" => Some(8192),
        _ => None,
    };
    Reasoning { enabled: Some(true), budget_tokens }
}

/// What both endpoints take.
pub(super) fn take_options(
    fields: &mut Fields,
    limits: &Limits,
) -> Result<(Options, Shape), ApiError> {
    let tells_tier = take_ignored(fields)?;
    let max_choices = i64::try_from(limits.max_choices).unwrap_or(i64::MAX);
    let n = fields.integer("n", 1..=max_choices)?.unwrap_or(1);
    let stream = fields.bool("stream", Null::Absent)?.unwrap_or(false);
    let include_cost = take_usage(fields)?;
    let (include_usage, continuous_usage, obfuscates) = take_stream_options(fields, stream)?;
    let include_usage = include_usage || (stream && include_cost);
    let options = Options {
        n: u32::try_from(n).unwrap_or(1),
        stops: fields.stop_texts("stop")?,
        stop_token_ids: take_stop_token_ids(fields)?,
        ignore_eos: fields.bool("ignore_eos", Null::Absent)?.unwrap_or(false),
        return_token_ids: fields.bool("return_token_ids", Null::Absent)?.unwrap_or(false),
        temperature: fields.number("temperature", 0.0..=2.0)?,
        top_p: fields.number("top_p", 0.0..=1.0)?,
        top_k: fields.count("top_k", 0)?,
        min_p: fields.number("min_p", 0.0..=1.0)?,
        typical_p: fields.number("typical_p", 0.0..=1.0)?,
        repetition_penalty: fields.number("repetition_penalty", 0.0625..=16.0)?,
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
        logit_bias: take_logit_bias(fields)?,
        seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
        ..Options::default()
    };
    let shape =
        Shape { stream, include_usage, continuous_usage, include_cost, obfuscates, tells_tier };
    Ok((options, shape))
}

/// Fields of OpenAI's that change nothing here; their types are checked all the same. Whether a tier of service is asked for.
fn take_ignored(fields: &mut Fields) -> Result<bool, ApiError> {
    fields.string("user", Null::Refused)?;
    for field in ["safety_identifier", "prompt_cache_key", "prompt_cache_retention"] {
        fields.string(field, Null::Absent)?;
    }
    let asks_tier = fields.string("service_tier", Null::Absent)?.is_some();
    fields.bool("store", Null::Absent)?;
    if let Some(metadata) = fields.take("metadata", Null::Absent) {
        Fields::object(metadata, "metadata")?.ignore_rest();
    }
    Ok(asks_tier)
}

/// Whether the usage is to be streamed: at the end, and in each event. And whether events are padded.
fn take_stream_options(fields: &mut Fields, stream: bool) -> Result<(bool, bool, bool), ApiError> {
    let Some(value) = fields.take("stream_options", Null::Absent) else {
        return Ok((false, false, false));
    };
    let mut options = Fields::object(value, "stream_options")?;
    if !stream {
        return Err(ApiError::field(
            "stream_options",
            "invalid_value",
            "`stream_options` is only allowed with `stream: true`.",
        ));
    }
    let include_usage = options.bool("include_usage", Null::Refused)?.unwrap_or(false);
    let continuous = options.bool("continuous_usage_stats", Null::Absent)?.unwrap_or(false);
    let obfuscates = options.bool("include_obfuscation", Null::Refused)?.unwrap_or(false);
    options.finish()?;
    Ok((include_usage, include_usage && continuous, obfuscates))
}

/// `usage: {"include": true}`, as OpenRouter has it: usage with its cost, in streams too.
pub(super) fn take_usage(fields: &mut Fields) -> Result<bool, ApiError> {
    let Some(value) = fields.take("usage", Null::Absent) else { return Ok(false) };
    let mut options = Fields::object(value, "usage")?;
    let include = options.bool("include", Null::Refused)?.unwrap_or(false);
    options.finish()?;
    Ok(include)
}

fn take_stop_token_ids(fields: &mut Fields) -> Result<Vec<TokenId>, ApiError> {
    let values = fields.array("stop_token_ids", Null::Absent)?.unwrap_or_default();
    if values.len() > MAX_STOP_TOKEN_IDS {
        let message = format!(
            "`stop_token_ids` holds at most {MAX_STOP_TOKEN_IDS} tokens, not {}.",
            values.len()
        );
        return Err(ApiError::field("stop_token_ids", "invalid_value", message));
    }
    values.iter().enumerate().map(|(i, v)| token_id(&format!("stop_token_ids[{i}]"), v)).collect()
}

/// An id; whether the vocabulary has it, the engine says.
pub(super) fn token_id(name: &str, value: &Value) -> Result<TokenId, ApiError> {
    let id = integer(name, value, 0..=i64::from(u32::MAX))?;
    Ok(u32::try_from(id).unwrap_or(u32::MAX))
}

fn take_logit_bias(fields: &mut Fields) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let map = match fields.take("logit_bias", Null::Absent) {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong_type("logit_bias", "an object", &other)),
    };
    if map.len() > MAX_LOGIT_BIAS {
        let message =
            format!("`logit_bias` holds at most {MAX_LOGIT_BIAS} tokens, not {}.", map.len());
        return Err(ApiError::field("logit_bias", "invalid_value", message));
    }
    let mut bias = Vec::with_capacity(map.len());
    for (key, value) in &map {
        let id = key.parse::<TokenId>().map_err(|_| {
            wrong_value("logit_bias", "keyed by token ids", &Value::String(key.clone()))
        })?;
        bias.push((id, number(&format!("logit_bias.{key}"), value, -100.0..=100.0)?));
    }
    // JSON keeps the last of equal keys, but "1" and "01" are one token.
    bias.sort_by_key(|&(id, _)| id);
    bias.dedup_by_key(|&mut (id, _)| id);
    Ok(bias)
}

#[cfg(test)]
mod tests {
    use mintage_model::GenerationDefaults;

    use super::*;

    #[test]
    fn the_requests_word_goes_before_the_models() {
        let body = br#"{"temperature":0,"seed":-1}"#;
        let mut fields = Fields::parse(body).unwrap();
        let (options, _) = take_options(&mut fields, &Limits::default()).unwrap();
        fields.finish().unwrap();
        let defaults = GenerationDefaults {
            temperature: Some(0.7),
            top_p: Some(0.8),
            ..GenerationDefaults::default()
        };
        let sampling = options.sampling(&defaults, 5);
        assert_eq!((sampling.temperature, sampling.top_p, sampling.min_p), (0.0, 0.8, 0.0));
        assert_eq!(sampling.seed, u64::MAX);
    }
}
