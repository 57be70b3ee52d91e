//! Any value of any known key gives a model or a typed error, and so do damaged bytes; what opens is consistent.

use mintage_model::{ModelError, ModelFile};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use crate::gguf_bytes::{Gguf, Value, config_json, decoder_safetensors};

/// Every key of GGUF metadata that is read; `*` stands for the architecture.
const GGUF_KEYS: [&str; 48] = [
    "general.alignment",
    "general.architecture",
    "general.name",
    "general.type",
    "general.sampling.temp",
    "general.sampling.top_k",
    "general.sampling.top_p",
    "general.sampling.min_p",
    "general.sampling.penalty_repeat",
    "split.no",
    "split.count",
    "split.tensors.count",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
    "*.context_length",
    "*.embedding_length",
    "*.block_count",
    "*.feed_forward_length",
    "*.attention.head_count",
    "*.attention.head_count_kv",
    "*.attention.key_length",
    "*.attention.value_length",
    "*.attention.sliding_window",
    "*.attention.layer_norm_rms_epsilon",
    "*.attention.causal",
    "*.attention.scale",
    "*.attention.clamp_kqv",
    "*.attention.max_alibi_bias",
    "*.attn_logit_softcapping",
    "*.final_logit_softcapping",
    "*.embedding_scale",
    "*.residual_scale",
    "*.expert_count",
    "*.logit_scale",
    "*.rope.dimension_count",
    "*.rope.freq_base",
    "*.rope.scale_linear",
    "*.rope.scaling.type",
    "*.rope.scaling.factor",
    "*.rope.scaling.original_context_length",
    "*.rope.scaling.attn_factor",
    "*.rope.scaling.yarn_ext_factor",
    "*.rope.scaling.yarn_beta_fast",
    "*.rope.scaling.yarn_beta_slow",
];

/// Every key of `config.json` and `generation_config.json` that is read.
const JSON_KEYS: [&str; 38] = [
    "architectures",
    "attention_factor",
    "auto_map",
    "beta_fast",
    "beta_slow",
    "bos_token_id",
    "eos_token_id",
    "factor",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "high_freq_factor",
    "intermediate_size",
    "layer_types",
    "low_freq_factor",
    "max_position_embeddings",
    "max_window_layers",
    "min_p",
    "mlp_bias",
    "model_type",
    "mscale",
    "mscale_all_dim",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "quantization_config",
    "repetition_penalty",
    "rms_norm_eps",
    "rope_theta",
    "rope_type",
    "sliding_window",
    "temperature",
    "tie_word_embeddings",
    "top_k",
    "truncate",
    "use_sliding_window",
];

/// Numbers where mistakes live: small ones, powers of two and their neighbours.
fn whole() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..16_u64,
        (0..64_u32, -1..=1_i64).prop_map(|(bit, step)| (1_u64 << bit).wrapping_add_signed(step)),
        any::<u64>(),
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("yarn".to_owned()),
        Just("linear".to_owned()),
        Just("llama3".to_owned()),
        Just("qwen3".to_owned()),
        Just("</s>".to_owned()),
        vec(any::<char>(), 0..12).prop_map(|chars| chars.into_iter().collect()),
    ]
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        whole().prop_map(Value::U64),
        whole().prop_map(|n| Value::U32(n as u32)),
        whole().prop_map(|n| Value::U16(n as u16)),
        whole().prop_map(|n| Value::U8(n as u8)),
        whole().prop_map(|n| Value::I64(n as i64)),
        whole().prop_map(|n| Value::I32(n as i32)),
        whole().prop_map(|n| Value::I16(n as i16)),
        whole().prop_map(|n| Value::I8(n as i8)),
        any::<u32>().prop_map(|bits| Value::F32(f32::from_bits(bits))),
        any::<u64>().prop_map(|bits| Value::F64(f64::from_bits(bits))),
        (0..16_u8).prop_map(|n| Value::F32(f32::from(n))),
        any::<bool>().prop_map(Value::Bool),
        text().prop_map(Value::Str),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let numbers = vec(whole(), 0..6);
    prop_oneof![
        6 => scalar(),
        1 => numbers.prop_map(|list| {
            Value::Array(5, list.into_iter().map(|n| Value::I32(n as i32)).collect())
        }),
        1 => vec(text(), 0..6)
            .prop_map(|list| Value::Array(8, list.into_iter().map(Value::Str).collect())),
        1 => (0..14_u32, vec(any::<u8>(), 0..24)).prop_map(|(kind, raw)| Value::Raw(kind, raw)),
    ]
}

fn json_value() -> impl Strategy<Value = serde_json::Value> {
    let scalar = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|b| json!(b)),
        whole().prop_map(|n| json!(n)),
        whole().prop_map(|n| json!(n as i64)),
        any::<u64>().prop_map(|bits| json!(f64::from_bits(bits))),
        (0..64_u8).prop_map(|n| json!(f64::from(n) / 4.0)),
        text().prop_map(|s| json!(s)),
    ];
    prop_oneof![
        6 => scalar.clone(),
        1 => vec(scalar.clone(), 0..4).prop_map(serde_json::Value::Array),
        1 => vec((0..JSON_KEYS.len(), scalar), 0..6).prop_map(|pairs| {
            pairs.into_iter().map(|(at, value)| (JSON_KEYS[at].to_owned(), value)).collect()
        }),
    ]
}

/// What opened must hold together: an engine computes with these numbers unchecked.
fn check(opened: Result<ModelFile, ModelError>) -> Result<(), TestCaseError> {
    let model = match opened {
        Ok(model) => model,
        Err(error) => {
            let message = error.to_string();
            prop_assert!(!message.is_empty() && message.len() < 2000, "{message}");
            return Ok(());
        }
    };
    let config = model.config();
    prop_assert_eq!(config.num_heads % config.num_kv_heads, 0);
    prop_assert!(config.head_dim.is_multiple_of(2) && config.head_dim > 0);
    prop_assert!(config.context_length > 0 && config.vocab_size > 0);
    prop_assert!(config.rms_norm_eps.is_finite() && config.rope.theta.is_finite());
    let weights = model.weights().map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(weights.layers.len(), config.num_layers);
    prop_assert_eq!(weights.layers[0].q.rows, config.num_heads * config.head_dim);
    for layer in &weights.layers {
        for view in [layer.q, layer.k, layer.v, layer.attention_output, layer.gate, layer.down] {
            let row_bytes = view.dtype.row_bytes(view.cols);
            prop_assert_eq!(row_bytes.map(|bytes| bytes * view.rows), Some(view.data.len()));
        }
    }
    prop_assert!(model.generation().eos.iter().all(|&id| (id as usize) < config.vocab_size));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_value_of_any_gguf_key(
        arch in prop_oneof![Just("llama"), Just("qwen2"), Just("qwen3")],
        changes in vec((0..GGUF_KEYS.len(), value()), 1..4),
    ) {
        let gguf = changes.into_iter().fold(Gguf::decoder(arch), |gguf, (at, value)| {
            gguf.set(&GGUF_KEYS[at].replace('*', arch), value)
        });
        check(ModelFile::from_gguf_bytes(vec![gguf.build()]))?;
    }

    #[test]
    fn any_value_of_any_json_key(
        family in prop_oneof![Just("llama"), Just("qwen2"), Just("qwen3")],
        changes in vec((0..JSON_KEYS.len(), json_value()), 0..3),
        rope in proptest::option::of((
            prop_oneof![Just("rope_parameters"), Just("rope_scaling")],
            prop_oneof![Just("yarn"), Just("linear"), Just("llama3"), Just("default")],
            vec((0..JSON_KEYS.len(), json_value()), 0..4),
        )),
        generation in json_value(),
    ) {
        let mut config = config_json();
        config["model_type"] = json!(family);
        for (at, value) in changes {
            config[JSON_KEYS[at]] = value;
        }
        if let Some((key, kind, inner)) = rope {
            let mut scaling = json!({ "rope_type": kind, "factor": 4.0 });
            for (at, value) in inner {
                scaling[JSON_KEYS[at]] = value;
            }
            config[key] = scaling;
        }
        let (config, generation) = (config.to_string(), generation.to_string());
        let shards = vec![decoder_safetensors()];
        check(ModelFile::from_safetensors_bytes(&config, Some(&generation), shards))?;
    }

    #[test]
    fn damaged_bytes(damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut gguf = Gguf::decoder("qwen2").build();
        let mut safetensors = decoder_safetensors();
        for (at, byte) in damage {
            // Mostly the headers: the weights are any bytes at all.
            let (gguf_header, safetensors_header) = (1200.min(gguf.len()), 900.min(safetensors.len()));
            gguf[at.index(gguf_header)] = byte;
            safetensors[at.index(safetensors_header)] = byte;
        }
        check(ModelFile::from_gguf_bytes(vec![gguf]))?;
        let config = config_json().to_string();
        check(ModelFile::from_safetensors_bytes(&config, None, vec![safetensors]))?;
    }
}
