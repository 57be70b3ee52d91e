//! The parameters that chat and plain completions share.

use mintage_model::{
    GenerationDefaults, MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS, SamplingParams, TokenId,
};
use serde_json::Value;

use crate::config::Limits;
use crate::error::ApiError;
use crate::fields::{Fields, Null, integer, number, unsupported, wrong_type, wrong_value};

/// OpenAI allows 4; more do no harm.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 512;

/// What both endpoints take.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) n: u32,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// Tell what it cost.
    pub(super) include_cost: bool,
    pub(super) stops: Vec<String>,
    pub(super) stop_token_ids: Vec<TokenId>,
    pub(super) ignore_eos: bool,
    pub(super) return_token_ids: bool,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    repetition_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    logit_bias: Vec<(TokenId, f32)>,
    seed: Option<i64>,
}

impl Options {
    pub(super) fn take(fields: &mut Fields, limits: &Limits) -> Result<Self, ApiError> {
        take_ignored(fields)?;
        let max_choices = i64::try_from(limits.max_choices).unwrap_or(i64::MAX);
        let n = fields.integer("n", 1..=max_choices)?.unwrap_or(1);
        let stream = fields.bool("stream", Null::Absent)?.unwrap_or(false);
        let include_cost = take_usage(fields)?;
        Ok(Self {
            n: u32::try_from(n).unwrap_or(1),
            stream,
            include_usage: take_stream_options(fields, stream)? || (stream && include_cost),
            include_cost,
            stops: take_stops(fields)?,
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
        })
    }

    /// The request's word, else the model's, else OpenAI's. `random` is the seed of a request without one.
    pub(super) fn sampling(&self, defaults: &GenerationDefaults, random: u64) -> SamplingParams {
        let neutral = SamplingParams::default();
        let or = |given: Option<f32>, default: Option<f32>, neutral: f32| {
            given.or(default).unwrap_or(neutral)
        };
        SamplingParams {
            temperature: or(self.temperature, defaults.temperature, neutral.temperature),
            top_k: self.top_k.or(defaults.top_k).unwrap_or(neutral.top_k),
            top_p: or(self.top_p, defaults.top_p, neutral.top_p),
            min_p: or(self.min_p, defaults.min_p, neutral.min_p),
            typical_p: or(self.typical_p, None, neutral.typical_p),
            repetition_penalty: or(
                self.repetition_penalty,
                defaults.repetition_penalty,
                neutral.repetition_penalty,
            ),
            frequency_penalty: or(self.frequency_penalty, None, neutral.frequency_penalty),
            presence_penalty: or(self.presence_penalty, None, neutral.presence_penalty),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.map_or(random, i64::cast_unsigned),
        }
    }
}

/// The seed of the choice with this index; the first keeps the request's, so that `n: 1` is its first choice.
pub(super) fn choice_seed(seed: u64, index: u32) -> u64 {
    if index == 0 {
        return seed;
    }
    // splitmix64: neighbouring inputs give unrelated outputs.
    let mut z = seed.wrapping_add(u64::from(index).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Fields of OpenAI's that change nothing here; their types are checked all the same.
fn take_ignored(fields: &mut Fields) -> Result<(), ApiError> {
    fields.string("user", Null::Refused)?;
    for field in ["safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier"]
    {
        fields.string(field, Null::Absent)?;
    }
    fields.bool("store", Null::Absent)?;
    if let Some(metadata) = fields.take("metadata", Null::Absent) {
        Fields::object(metadata, "metadata")?.ignore_rest();
    }
    Ok(())
}

/// Whether the usage is to be streamed.
fn take_stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(value) = fields.take("stream_options", Null::Absent) else { return Ok(false) };
    let mut options = Fields::object(value, "stream_options")?;
    if !stream {
        return Err(ApiError::field(
            "stream_options",
            "invalid_value",
            "`stream_options` is only allowed with `stream: true`.",
        ));
    }
    let include_usage = options.bool("include_usage", Null::Refused)?.unwrap_or(false);
    if options.bool("include_obfuscation", Null::Refused)? == Some(true) {
        return Err(unsupported(
            "stream_options.include_obfuscation",
            "padding of stream events is not supported yet",
        ));
    }
    options.finish()?;
    Ok(include_usage)
}

/// `usage: {"include": true}`, as OpenRouter has it: usage with its cost, in streams too.
fn take_usage(fields: &mut Fields) -> Result<bool, ApiError> {
    let Some(value) = fields.take("usage", Null::Absent) else { return Ok(false) };
    let mut options = Fields::object(value, "usage")?;
    let include = options.bool("include", Null::Refused)?.unwrap_or(false);
    options.finish()?;
    Ok(include)
}

fn take_stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let values = match fields.take("stop", Null::Absent) {
        None => return Ok(Vec::new()),
        Some(text @ Value::String(_)) => vec![text],
        Some(Value::Array(values)) => values,
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", &other)),
    };
    if values.len() > MAX_STOPS {
        let message = format!("`stop` holds at most {MAX_STOPS} strings, not {}.", values.len());
        return Err(ApiError::field("stop", "invalid_value", message));
    }
    let mut stops = Vec::with_capacity(values.len());
    for (i, value) in values.into_iter().enumerate() {
        let name = format!("stop[{i}]");
        match value {
            Value::String(text) if (1..=MAX_STOP_BYTES).contains(&text.len()) => stops.push(text),
            Value::String(text) => {
                let message =
                    format!("`{name}` must have 1 to {MAX_STOP_BYTES} bytes, not {}.", text.len());
                return Err(ApiError::field(name, "invalid_value", message));
            }
            other => return Err(wrong_type(&name, "a string", &other)),
        }
    }
    Ok(stops)
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
    use super::*;

    #[test]
    fn choices_differ_and_the_first_keeps_the_seed() {
        let seeds: std::collections::HashSet<u64> = (0..100).map(|i| choice_seed(7, i)).collect();
        assert_eq!(seeds.len(), 100);
        assert_eq!(choice_seed(7, 0), 7);
    }

    #[test]
    fn the_requests_word_goes_before_the_models() {
        let body = br#"{"temperature":0,"seed":-1}"#;
        let mut fields = Fields::parse(body).unwrap();
        let options = Options::take(&mut fields, &Limits::default()).unwrap();
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
