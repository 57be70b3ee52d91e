//! GGUF metadata to [`DecoderConfig`]: the keys as llama.cpp writes and reads them.

use crate::checks::{
    MAX_CONTEXT, MAX_HEAD_DIM, MAX_HIDDEN, MAX_INTERMEDIATE, MAX_LAYERS, MAX_VOCAB, check_config,
    count,
};
use crate::decoder::{DecoderConfig, Family, RopeConfig, RopeLayout, RopeScaling};
use crate::error::ModelError;
use crate::gguf::{GgufMetadata, GgufValue};
use crate::rope;

/// Keys (after `{arch}.`) that change the arithmetic in ways this decoder does not have, with the value that is inert.
const INERT_KEYS: [(&str, f32); 10] = [
    ("expert_count", 0.0),
    ("attention.scale", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("embedding_scale", 1.0),
    ("residual_scale", 1.0),
    ("rope.scaling.yarn_ext_factor", 1.0),
];

/// The keys of one architecture.
struct Keys<'a> {
    metadata: GgufMetadata<'a>,
    family: Family,
}

impl Keys<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.family.name())
    }

    /// A whole number, or a list with one per layer that are all the same.
    fn optional(&self, suffix: &str, limit: u64) -> Result<Option<usize>, ModelError> {
        let key = self.key(suffix);
        let n = match self.metadata.get(&key) {
            Some(GgufValue::Array(list)) => {
                let mut numbers = list.iter().map(|value| value.as_unsigned());
                let first = numbers.next().flatten();
                if first.is_none() || numbers.any(|n| n != first) {
                    return Err(ModelError::unsupported(
                        format!("`{key}`"),
                        GgufValue::Array(list).to_string(),
                        "one whole number for all layers",
                    ));
                }
                first
            }
            _ => self.metadata.unsigned(&key)?,
        };
        n.map(|n| count(&key, n, limit)).transpose()
    }

    fn required(&self, suffix: &str, limit: u64) -> Result<usize, ModelError> {
        self.optional(suffix, limit)?
            .ok_or_else(|| ModelError::MissingKey { key: self.key(suffix) })
    }

    fn float(&self, suffix: &str) -> Result<Option<f32>, ModelError> {
        self.metadata.float(&self.key(suffix))
    }

    fn ranged(&self, suffix: &str, from: f32, to: f32) -> Result<Option<f32>, ModelError> {
        let x = self.float(suffix)?;
        x.map(|x| rope::in_range(&self.key(suffix), x, from, to)).transpose()
    }
}

/// Reads the configuration. `vocab_size` is the embedding's number of rows; `rope_factors` the file's
/// `rope_freqs.weight`.
///
/// # Errors
/// An architecture or feature that does not load, a missing key, a wrong type or an impossible value.
pub(crate) fn decoder_config(
    metadata: GgufMetadata<'_>,
    vocab_size: usize,
    rope_factors: Option<Vec<f32>>,
) -> Result<DecoderConfig, ModelError> {
    let family = family(&metadata)?;
    let keys = Keys { metadata, family };
    refuse_variants(&keys)?;
    let hidden_size = keys.required("embedding_length", MAX_HIDDEN)?;
    let num_heads = keys.required("attention.head_count", MAX_HIDDEN)?;
    let head_dim = head_dim(&keys, hidden_size, num_heads)?;
    let scaling = match rope_factors {
        Some(factors) => rope_factors_scaling(&keys, factors, head_dim)?,
        None => rope_scaling(&keys)?,
    };
    let stated = keys.required("context_length", MAX_CONTEXT)?;
    let mut context_length = rope::extended_context(stated, &scaling);
    let window = keys.key("attention.sliding_window");
    // 0 is how some conversions write that there is none.
    if let Some(tokens) = metadata.unsigned(&window)?.filter(|&tokens| tokens != 0) {
        // Within the window, attention over everything is the same.
        context_length = context_length.min(count(&window, tokens, u64::MAX)?);
    }
    let eps = keys.ranged("attention.layer_norm_rms_epsilon", 0.0, 1.0)?.ok_or_else(|| {
        ModelError::MissingKey { key: keys.key("attention.layer_norm_rms_epsilon") }
    })?;
    let config = DecoderConfig {
        family,
        vocab_size: count("the rows of `token_embd.weight`", vocab_size as u64, MAX_VOCAB)?,
        hidden_size,
        intermediate_size: keys.required("feed_forward_length", MAX_INTERMEDIATE)?,
        num_layers: keys.required("block_count", MAX_LAYERS)?,
        num_heads,
        num_kv_heads: keys.optional("attention.head_count_kv", MAX_HIDDEN)?.unwrap_or(num_heads),
        head_dim,
        rms_norm_eps: eps,
        rope: RopeConfig {
            theta: keys.ranged("rope.freq_base", 1.0, f32::MAX)?.unwrap_or(rope::DEFAULT_THETA),
            layout: match family {
                Family::Llama => RopeLayout::Pairs,
                Family::Qwen2 | Family::Qwen3 => RopeLayout::Halves,
            },
            scaling,
        },
        context_length,
    };
    check_config(&config)?;
    Ok(config)
}

pub(crate) fn family(metadata: &GgufMetadata<'_>) -> Result<Family, ModelError> {
    let key = "general.architecture";
    if let Some(kind) = metadata.string("general.type")?
        && kind != "model"
    {
        return Err(ModelError::unsupported("`general.type`", format!("`{kind}`"), "`model`"));
    }
    let name =
        metadata.string(key)?.ok_or_else(|| ModelError::MissingKey { key: key.to_owned() })?;
    Family::from_name(name).ok_or_else(|| {
        ModelError::unsupported("the architecture", format!("`{name}`"), "qwen2, qwen3, llama")
    })
}

fn refuse_variants(keys: &Keys<'_>) -> Result<(), ModelError> {
    for (suffix, inert) in INERT_KEYS {
        let key = keys.key(suffix);
        let Some(value) = keys.metadata.get(&key) else { continue };
        #[allow(clippy::cast_precision_loss, reason = "compared with 0 and 1 only")]
        let x = value.as_f32().or(value.as_unsigned().map(|n| n as f32));
        if x != Some(inert) {
            let supported = format!("{inert}, or leaving it out");
            return Err(ModelError::unsupported(format!("`{key}`"), value.to_string(), supported));
        }
    }
    let key = keys.key("attention.causal");
    if keys.metadata.boolean(&key)? == Some(false) {
        return Err(ModelError::unsupported(format!("`{key}`"), "false", "true"));
    }
    Ok(())
}

fn head_dim(keys: &Keys<'_>, hidden: usize, heads: usize) -> Result<usize, ModelError> {
    let head_dim = match keys.optional("attention.key_length", MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(ModelError::MissingKey { key: keys.key("attention.key_length") });
        }
    };
    count("the width of a head", head_dim as u64, MAX_HEAD_DIM)?;
    for suffix in ["attention.value_length", "rope.dimension_count"] {
        let same = keys.optional(suffix, MAX_HEAD_DIM)?;
        if let Some(n) = same.filter(|&n| n != head_dim) {
            let what = format!("`{}`", keys.key(suffix));
            let supported = format!("{head_dim}, the width of a head");
            return Err(ModelError::unsupported(what, n.to_string(), supported));
        }
    }
    Ok(head_dim)
}

fn rope_scaling(keys: &Keys<'_>) -> Result<RopeScaling, ModelError> {
    let type_key = keys.key("rope.scaling.type");
    let factor_key = keys.key("rope.scaling.factor");
    let factor = match keys.float("rope.scaling.factor")? {
        // Conversions of 2023 wrote the factor of linear scaling under this name, and 0 for none.
        None => keys.float("rope.scale_linear")?.filter(|&x| x != 0.0),
        given => given.filter(|&x| x != 0.0),
    };
    let factor = factor.map(|x| rope::factor(&factor_key, x)).transpose()?.unwrap_or(1.0);
    match keys.metadata.string(&type_key)? {
        Some("yarn") => yarn(keys, factor),
        Some("none") => Ok(RopeScaling::None),
        Some("linear") | None if factor > 1.0 => Ok(RopeScaling::Linear { factor }),
        Some("linear") | None => Ok(RopeScaling::None),
        Some(other) => Err(ModelError::unsupported(
            format!("`{type_key}`"),
            format!("`{other}`"),
            "none, linear, yarn, and the tensor `rope_freqs.weight`",
        )),
    }
}

fn yarn(keys: &Keys<'_>, factor: f32) -> Result<RopeScaling, ModelError> {
    let original = match keys.optional("rope.scaling.original_context_length", MAX_CONTEXT)? {
        Some(original) => original,
        None => keys.required("context_length", MAX_CONTEXT)?,
    };
    // llama.cpp multiplies YaRN's own attention factor by this one; here it is stored as one number.
    let attention = match keys.ranged("rope.scaling.attn_factor", 1e-3, 1e3)? {
        None => keys.ranged("rope.scaling.yarn_attn_factor", 1e-3, 1e3)?,
        given => given,
    };
    let own = rope::yarn_attention_factor(factor, 1.0);
    Ok(RopeScaling::Yarn {
        factor,
        original_context: u32::try_from(original).unwrap_or(u32::MAX),
        attention_factor: attention.filter(|&x| x.to_bits() != 1.0_f32.to_bits()).map(|x| x * own),
        beta_fast: keys
            .ranged("rope.scaling.yarn_beta_fast", 1e-3, 1e4)?
            .unwrap_or(rope::DEFAULT_BETA_FAST),
        beta_slow: keys
            .ranged("rope.scaling.yarn_beta_slow", 1e-3, 1e4)?
            .unwrap_or(rope::DEFAULT_BETA_SLOW),
    })
}

fn rope_factors_scaling(
    keys: &Keys<'_>,
    factors: Vec<f32>,
    head_dim: usize,
) -> Result<RopeScaling, ModelError> {
    let tensor = "rope_freqs.weight";
    if factors.len() != head_dim / 2 {
        return Err(ModelError::WrongShape {
            tensor: tensor.to_owned(),
            expected: format!("[{}]", head_dim / 2),
            given: format!("[{}]", factors.len()),
        });
    }
    if let Some(x) = factors.iter().find(|x| !x.is_finite() || **x <= 0.0) {
        return Err(ModelError::OutOfRange {
            key: format!("each element of `{tensor}`"),
            expected: "a positive number".to_owned(),
            given: x.to_string(),
        });
    }
    if rope_scaling(keys)? != RopeScaling::None {
        return Err(ModelError::unsupported(
            format!("`{}` beside the tensor `{tensor}`", keys.key("rope.scaling.type")),
            "set",
            "one of the two",
        ));
    }
    Ok(RopeScaling::Factors(factors))
}
