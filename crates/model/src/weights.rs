//! Stored tensors to [`DecoderWeights`]: the two naming schemes, and every shape checked against the configuration.
//!
//! Invariant: every tensor of the file is either handed out, or known to be without effect; a variant of a family that
//! has more tensors (an extra bias, an expert) is refused and never computed wrongly.

use std::collections::HashSet;

use crate::decoder::{DecoderConfig, DecoderWeights, Family, LayerWeights, TensorView};
use crate::error::ModelError;
use crate::model_file::TensorInfo;

/// How a container names the tensors of a decoder.
pub(crate) struct TensorNames {
    pub(crate) token_embedding: &'static str,
    pub(crate) output_norm: &'static str,
    pub(crate) output: &'static str,
    /// Comes before the layer's number.
    layer: &'static str,
    attention_norm: &'static str,
    q: &'static str,
    k: &'static str,
    v: &'static str,
    q_norm: &'static str,
    k_norm: &'static str,
    attention_output: &'static str,
    ffn_norm: &'static str,
    gate: &'static str,
    up: &'static str,
    down: &'static str,
}

/// llama.cpp's names.
pub(crate) const GGUF_NAMES: TensorNames = TensorNames {
    token_embedding: "token_embd.weight",
    output_norm: "output_norm.weight",
    output: "output.weight",
    layer: "blk",
    attention_norm: "attn_norm",
    q: "attn_q",
    k: "attn_k",
    v: "attn_v",
    q_norm: "attn_q_norm",
    k_norm: "attn_k_norm",
    attention_output: "attn_output",
    ffn_norm: "ffn_norm",
    gate: "ffn_gate",
    up: "ffn_up",
    down: "ffn_down",
};

/// The names that `transformers` saves.
pub(crate) const SAFETENSORS_NAMES: TensorNames = TensorNames {
    token_embedding: "model.embed_tokens.weight",
    output_norm: "model.norm.weight",
    output: "lm_head.weight",
    layer: "model.layers",
    attention_norm: "input_layernorm",
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    attention_output: "self_attn.o_proj",
    ffn_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
};

/// The same without a head around them: how models that make vectors are published.
pub(crate) const HEADLESS_NAMES: TensorNames = TensorNames {
    token_embedding: "embed_tokens.weight",
    output_norm: "norm.weight",
    layer: "layers",
    ..SAFETENSORS_NAMES
};

/// Ends of the names of tensors that only repeat the configuration.
const INERT_SUFFIXES: [&str; 3] =
    ["rotary_emb.inv_freq", "attn_rot_embd.weight", "rope_freqs.weight"];

/// Where the logits come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputHead {
    /// The embedding, even where a copy is stored under the head's name.
    Tied,
    /// A tensor of its own, which must be there.
    Own,
    /// A tensor of its own where there is one, else the embedding.
    AsStored,
}

/// Finds tensors by name and remembers which ones were asked for.
struct Lookup<'a, F> {
    find: F,
    used: HashSet<&'a str>,
}

impl<'a, F: Fn(&str) -> Option<TensorInfo<'a>>> Lookup<'a, F> {
    fn optional(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Option<TensorView<'a>>, ModelError> {
        let Some(tensor) = (self.find)(name) else { return Ok(None) };
        let fits = match tensor.shape {
            [n] => rows == 1 && *n == cols,
            [n, m] => *n == rows && *m == cols,
            _ => false,
        };
        if !fits {
            return Err(ModelError::WrongShape {
                tensor: name.to_owned(),
                expected: if rows == 1 { format!("[{cols}]") } else { format!("[{rows}, {cols}]") },
                given: format!("{:?}", tensor.shape),
            });
        }
        self.used.insert(tensor.name);
        Ok(Some(TensorView { dtype: tensor.dtype, rows, cols, data: tensor.data }))
    }

    fn required(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<TensorView<'a>, ModelError> {
        self.optional(name, rows, cols)?
            .ok_or_else(|| ModelError::MissingTensor { tensor: name.to_owned() })
    }
}

/// Collects the weights of a decoder.
///
/// # Errors
/// A missing tensor, a wrong shape, or a tensor this decoder has no place for.
pub(crate) fn decoder_weights<'a>(
    config: &DecoderConfig,
    names: &TensorNames,
    head: OutputHead,
    tensors: impl Iterator<Item = TensorInfo<'a>>,
    find: impl Fn(&str) -> Option<TensorInfo<'a>>,
) -> Result<DecoderWeights<'a>, ModelError> {
    let mut lookup = Lookup { find, used: HashSet::new() };
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let output = match head {
        OutputHead::Own => Some(lookup.required(names.output, vocab, hidden)?),
        OutputHead::AsStored => lookup.optional(names.output, vocab, hidden)?,
        OutputHead::Tied => None,
    };
    let weights = DecoderWeights {
        token_embedding: lookup.required(names.token_embedding, vocab, hidden)?,
        layers: (0..config.num_layers)
            .map(|layer| layer_weights(config, names, layer, &mut lookup))
            .collect::<Result<_, _>>()?,
        output_norm: lookup.required(names.output_norm, 1, hidden)?,
        output,
    };
    for tensor in tensors {
        let inert = INERT_SUFFIXES.iter().any(|suffix| tensor.name.ends_with(suffix))
            || (head == OutputHead::Tied && tensor.name == names.output);
        if !inert && !lookup.used.contains(tensor.name) {
            return Err(ModelError::UnknownTensor {
                tensor: tensor.name.to_owned(),
                family: config.family.name(),
            });
        }
    }
    Ok(weights)
}

fn layer_weights<'a, F: Fn(&str) -> Option<TensorInfo<'a>>>(
    config: &DecoderConfig,
    names: &TensorNames,
    layer: usize,
    lookup: &mut Lookup<'a, F>,
) -> Result<LayerWeights<'a>, ModelError> {
    let name = |part: &str, end: &str| format!("{}.{layer}.{part}.{end}", names.layer);
    let weight = |part: &str| name(part, "weight");
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    // Bounded by `MAX_HIDDEN` in `check_config`.
    let q_rows = config.num_heads * config.head_dim;
    let kv_rows = config.num_kv_heads * config.head_dim;

    let mut bias = |part: &str, rows: usize| {
        let name = name(part, "bias");
        match config.family {
            Family::Qwen2 => lookup.required(&name, 1, rows).map(Some),
            Family::Qwen3 | Family::Llama => lookup.optional(&name, 1, rows),
        }
    };
    let (q_bias, k_bias, v_bias) =
        (bias(names.q, q_rows)?, bias(names.k, kv_rows)?, bias(names.v, kv_rows)?);
    let mut head_norm = |part: &str| match config.family {
        Family::Qwen3 => lookup.required(&weight(part), 1, config.head_dim).map(Some),
        // Left where it is, so that it is reported as having no place.
        Family::Qwen2 | Family::Llama => Ok(None),
    };
    let (q_norm, k_norm) = (head_norm(names.q_norm)?, head_norm(names.k_norm)?);
    Ok(LayerWeights {
        attention_norm: lookup.required(&weight(names.attention_norm), 1, hidden)?,
        q: lookup.required(&weight(names.q), q_rows, hidden)?,
        k: lookup.required(&weight(names.k), kv_rows, hidden)?,
        v: lookup.required(&weight(names.v), kv_rows, hidden)?,
        q_bias,
        k_bias,
        v_bias,
        q_norm,
        k_norm,
        attention_output: lookup.required(&weight(names.attention_output), hidden, q_rows)?,
        ffn_norm: lookup.required(&weight(names.ffn_norm), 1, hidden)?,
        gate: lookup.required(&weight(names.gate), intermediate, hidden)?,
        up: lookup.required(&weight(names.up), intermediate, hidden)?,
        down: lookup.required(&weight(names.down), hidden, intermediate)?,
    })
}
