//! `config.json` to [`DecoderConfig`], in both spellings: `rope_theta` with `rope_scaling` as Qwen and Llama publish,
//! and `rope_parameters` as `transformers` has written since its version 5.

use serde_json::{Map, Value};

use crate::checks::{
    MAX_CONTEXT, MAX_HEAD_DIM, MAX_HIDDEN, MAX_INTERMEDIATE, MAX_LAYERS, MAX_VOCAB, check_config,
    count,
};
use crate::decoder::{DecoderConfig, Family, RopeConfig, RopeLayout, RopeScaling};
use crate::error::{ModelError, shortened};
use crate::rope;
use crate::weights::OutputHead;

/// The width of a head that Qwen3 has unless it says otherwise.
const QWEN3_HEAD_DIM: usize = 128;
/// Epsilon of all three families unless they say otherwise.
const DEFAULT_RMS_NORM_EPS: f32 = 1e-6;

/// An object of a JSON file, read by type. `null` counts as absent, as it does in Python.
#[derive(Clone, Copy)]
pub(crate) struct JsonKeys<'a> {
    map: &'a Map<String, Value>,
    /// Comes before a key in messages.
    prefix: &'static str,
}

impl<'a> JsonKeys<'a> {
    pub(crate) fn new(value: &'a Value) -> Result<Self, ModelError> {
        let map = value.as_object().ok_or_else(|| ModelError::WrongType {
            key: "the whole file".to_owned(),
            expected: "a JSON object".to_owned(),
            given: shown(value),
        })?;
        Ok(Self { map, prefix: "" })
    }

    pub(crate) fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| ModelError::WrongType {
            key: self.key(key),
            expected: expected.to_owned(),
            given: shown(value),
        })
    }

    pub(crate) fn unsigned(&self, key: &str) -> Result<Option<u64>, ModelError> {
        self.typed(key, "a whole number that is not negative", |value| {
            // Python's JSON may write a whole number with a point.
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "whole, within 0..2^53"
            )]
            let whole = |x: f64| {
                let exact = x.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&x);
                exact.then_some(x as u64)
            };
            value.as_u64().or_else(|| value.as_f64().and_then(whole))
        })
    }

    pub(crate) fn optional(&self, key: &str, limit: u64) -> Result<Option<usize>, ModelError> {
        self.unsigned(key)?.map(|n| count(&self.key(key), n, limit)).transpose()
    }

    pub(crate) fn required(&self, key: &str, limit: u64) -> Result<usize, ModelError> {
        self.optional(key, limit)?.ok_or_else(|| ModelError::MissingKey { key: self.key(key) })
    }

    #[allow(clippy::cast_possible_truncation, reason = "the model computes in f32")]
    pub(crate) fn ranged(&self, key: &str, from: f32, to: f32) -> Result<Option<f32>, ModelError> {
        let x = self.typed(key, "a number", Value::as_f64)?;
        x.map(|x| rope::in_range(&self.key(key), x as f32, from, to)).transpose()
    }

    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(key, "a string", Value::as_str)
    }

    fn object(&self, key: &str, prefix: &'static str) -> Result<Option<Self>, ModelError> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Self { map, prefix }))
    }

    pub(crate) fn refuse<T>(&self, key: &str, supported: &str) -> Result<T, ModelError> {
        let given = self.map.get(key).map_or_else(|| "absent".to_owned(), shown);
        Err(ModelError::unsupported(format!("`{}`", self.key(key)), given, supported))
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(map) => format!("an object with {} keys", map.len()),
        scalar => shortened(&scalar.to_string()),
    }
}

/// Reads the configuration and where the logits come from.
///
/// # Errors
/// A family or feature that does not load, a missing key, a wrong type or an impossible value.
pub(crate) fn decoder_config(config: &Value) -> Result<(DecoderConfig, OutputHead), ModelError> {
    let keys = JsonKeys::new(config)?;
    if keys.get("auto_map").is_some() {
        return Err(ModelError::RemoteCode { key: "auto_map".to_owned() });
    }
    let family = family(&keys)?;
    refuse_variants(&keys)?;
    let hidden_size = keys.required("hidden_size", MAX_HIDDEN)?;
    let num_layers = keys.required("num_hidden_layers", MAX_LAYERS)?;
    let num_heads = keys.required("num_attention_heads", MAX_HIDDEN)?;
    let num_kv_heads = match keys.optional("num_key_value_heads", MAX_HIDDEN)? {
        Some(heads) => heads,
        None if family == Family::Llama => num_heads,
        None => return Err(ModelError::MissingKey { key: "num_key_value_heads".to_owned() }),
    };
    let stated = keys.required("max_position_embeddings", MAX_CONTEXT)?;
    let (theta, scaling) = rope_parameters(&keys, stated)?;
    let mut context_length = rope::extended_context(stated, &scaling);
    if let Some(window) = sliding_window(&keys, num_layers)? {
        // Within the window, attention over everything is the same.
        context_length = context_length.min(window);
    }
    let config = DecoderConfig {
        family,
        vocab_size: keys.required("vocab_size", MAX_VOCAB)?,
        hidden_size,
        intermediate_size: keys.required("intermediate_size", MAX_INTERMEDIATE)?,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim: head_dim(&keys, family, hidden_size, num_heads)?,
        rms_norm_eps: keys.ranged("rms_norm_eps", 0.0, 1.0)?.unwrap_or(DEFAULT_RMS_NORM_EPS),
        rope: RopeConfig { theta, layout: RopeLayout::Halves, scaling },
        context_length,
    };
    check_config(&config)?;
    let head = match keys.boolean("tie_word_embeddings")? {
        Some(true) => OutputHead::Tied,
        Some(false) => OutputHead::Own,
        None => OutputHead::AsStored,
    };
    Ok((config, head))
}

fn family(keys: &JsonKeys<'_>) -> Result<Family, ModelError> {
    let name = keys
        .string("model_type")?
        .ok_or_else(|| ModelError::MissingKey { key: "model_type".to_owned() })?;
    let Some(family) = Family::from_name(name) else {
        return keys.refuse("model_type", "qwen2, qwen3, llama");
    };
    // The second is how a model without a head is saved: one that makes vectors.
    let (expected, headless) = match family {
        Family::Qwen2 => ("Qwen2ForCausalLM", "Qwen2Model"),
        Family::Qwen3 => ("Qwen3ForCausalLM", "Qwen3Model"),
        Family::Llama => ("LlamaForCausalLM", "LlamaModel"),
    };
    let classes = keys.typed("architectures", "a list", Value::as_array)?;
    if let Some(other) =
        classes.and_then(|list| list.iter().find(|&name| name != expected && name != headless))
    {
        return Err(ModelError::unsupported("`architectures`", shown(other), expected));
    }
    Ok(family)
}

/// Refuses what would change the arithmetic in ways this decoder does not have.
fn refuse_variants(keys: &JsonKeys<'_>) -> Result<(), ModelError> {
    if keys.get("quantization_config").is_some() {
        return keys.refuse(
            "quantization_config",
            "safetensors in F32, F16 or BF16, and quantised models as GGUF",
        );
    }
    if !matches!(keys.string("hidden_act")?, None | Some("silu")) {
        return keys.refuse("hidden_act", "silu");
    }
    for key in ["mlp_bias"] {
        if keys.boolean(key)? == Some(true) {
            return keys.refuse(key, "false");
        }
    }
    let rotary = keys.ranged("partial_rotary_factor", 0.0, f32::MAX)?;
    if rotary.is_some_and(|x| x.to_bits() != 1.0_f32.to_bits()) {
        return keys.refuse("partial_rotary_factor", "1");
    }
    Ok(())
}

fn head_dim(
    keys: &JsonKeys<'_>,
    family: Family,
    hidden: usize,
    heads: usize,
) -> Result<usize, ModelError> {
    let head_dim = match keys.optional("head_dim", MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if family == Family::Qwen3 => QWEN3_HEAD_DIM,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(ModelError::OutOfRange {
                key: "hidden_size".to_owned(),
                expected: format!("a multiple of the {heads} heads, or `head_dim` be given"),
                given: hidden.to_string(),
            });
        }
    };
    count("the width of a head", head_dim as u64, MAX_HEAD_DIM)
}

/// The window that some layers attend within, if any do.
fn sliding_window(keys: &JsonKeys<'_>, layers: usize) -> Result<Option<usize>, ModelError> {
    let window = keys.optional("sliding_window", MAX_CONTEXT)?;
    if let Some(types) = keys.typed("layer_types", "a list", Value::as_array)? {
        let mut slides = false;
        for kind in types {
            match kind.as_str() {
                Some("full_attention") => {}
                Some("sliding_attention") => slides = true,
                _ => {
                    let supported = "full_attention, sliding_attention";
                    return Err(ModelError::unsupported("`layer_types`", shown(kind), supported));
                }
            }
        }
        return Ok(window.filter(|_| slides));
    }
    let slides = keys.boolean("use_sliding_window")?.unwrap_or(false);
    let full_layers = keys.unsigned("max_window_layers")?.unwrap_or(0);
    Ok(window.filter(|_| slides && full_layers < layers as u64))
}

fn rope_parameters(keys: &JsonKeys<'_>, stated: usize) -> Result<(f32, RopeScaling), ModelError> {
    let theta_of = |keys: &JsonKeys<'_>| keys.ranged("rope_theta", 1.0, f32::MAX);
    let outer_theta = theta_of(keys)?;
    let (new, old) = (
        keys.object("rope_parameters", "rope_parameters.")?,
        keys.object("rope_scaling", "rope_scaling.")?,
    );
    let Some(parameters) = new.or(old) else {
        return Ok((outer_theta.unwrap_or(rope::DEFAULT_THETA), RopeScaling::None));
    };
    let theta = theta_of(&parameters)?.or(outer_theta).unwrap_or(rope::DEFAULT_THETA);
    let rotary = parameters.ranged("partial_rotary_factor", 0.0, f32::MAX)?;
    if rotary.is_some_and(|x| x.to_bits() != 1.0_f32.to_bits()) {
        return parameters.refuse("partial_rotary_factor", "1");
    }
    let type_key = if parameters.get("rope_type").is_some() { "rope_type" } else { "type" };
    let scaling = match parameters.string(type_key)? {
        Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: scaling_factor(&parameters)? },
        Some("yarn") => yarn(&parameters, stated)?,
        Some("llama3") => llama3(&parameters)?,
        // Only an empty object, or one that gives the base alone, may leave the type out.
        None if parameters.map.keys().all(|key| key == "rope_theta") => RopeScaling::None,
        _ => return parameters.refuse(type_key, "default, linear, yarn, llama3"),
    };
    Ok((theta, scaling))
}

fn scaling_factor(keys: &JsonKeys<'_>) -> Result<f32, ModelError> {
    let factor = keys
        .ranged("factor", f32::MIN, f32::MAX)?
        .ok_or_else(|| ModelError::MissingKey { key: keys.key("factor") })?;
    rope::factor(&keys.key("factor"), factor)
}

fn original_context(keys: &JsonKeys<'_>) -> Result<Option<u32>, ModelError> {
    let original = keys.optional("original_max_position_embeddings", MAX_CONTEXT)?;
    Ok(original.map(|n| u32::try_from(n).unwrap_or(u32::MAX)))
}

fn yarn(keys: &JsonKeys<'_>, stated: usize) -> Result<RopeScaling, ModelError> {
    if keys.boolean("truncate")? == Some(false) {
        return keys.refuse("truncate", "true");
    }
    let factor = scaling_factor(keys)?;
    let mscale = keys.ranged("mscale", 0.0, 1e3)?.filter(|&x| x != 0.0);
    let mscale_all = keys.ranged("mscale_all_dim", 0.0, 1e3)?.filter(|&x| x != 0.0);
    let attention_factor = match keys.ranged("attention_factor", 1e-3, 1e3)? {
        None => mscale.zip(mscale_all).map(|(own, all)| {
            rope::yarn_attention_factor(factor, own) / rope::yarn_attention_factor(factor, all)
        }),
        given => given,
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_context: match original_context(keys)? {
            Some(original) => original,
            None => u32::try_from(stated).unwrap_or(u32::MAX),
        },
        attention_factor,
        beta_fast: keys.ranged("beta_fast", 1e-3, 1e4)?.unwrap_or(rope::DEFAULT_BETA_FAST),
        beta_slow: keys.ranged("beta_slow", 1e-3, 1e4)?.unwrap_or(rope::DEFAULT_BETA_SLOW),
    })
}

fn llama3(keys: &JsonKeys<'_>) -> Result<RopeScaling, ModelError> {
    let missing = |key: &str| ModelError::MissingKey { key: keys.key(key) };
    let (low, high) = ("low_freq_factor", "high_freq_factor");
    let low_freq_factor = keys.ranged(low, 1e-3, 1e4)?.ok_or_else(|| missing(low))?;
    let high_freq_factor = keys.ranged(high, 1e-3, 1e4)?.ok_or_else(|| missing(high))?;
    if high_freq_factor <= low_freq_factor {
        return Err(ModelError::OutOfRange {
            key: keys.key(high),
            expected: format!("above `{low}`, {low_freq_factor}"),
            given: high_freq_factor.to_string(),
        });
    }
    Ok(RopeScaling::Llama3 {
        factor: scaling_factor(keys)?,
        low_freq_factor,
        high_freq_factor,
        original_context: original_context(keys)?
            .ok_or_else(|| missing("original_max_position_embeddings"))?,
    })
}
