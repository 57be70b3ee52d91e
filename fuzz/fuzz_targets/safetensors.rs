//! Any bytes as a safetensors file and, before a zero byte, as its `config.json`: a model or a typed error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mintage_model::ModelFile;

/// Belongs to the seeds that bring no configuration of their own.
const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "vocab_size": 4,
    "tie_word_embeddings": true}"#;

fuzz_target!(|bytes: &[u8]| {
    let (config, weights) = match bytes.iter().position(|&byte| byte == 0) {
        Some(at) if bytes.first() == Some(&b'{') => match std::str::from_utf8(&bytes[..at]) {
            Ok(config) => (config, &bytes[at + 1..]),
            Err(_) => return,
        },
        _ => (CONFIG, bytes),
    };
    // The configuration is its own generation configuration: both are objects of known keys.
    let opened = ModelFile::from_safetensors_bytes(config, Some(config), vec![weights.to_vec()]);
    let Ok(model) = opened else { return };
    let weights = model.weights().expect("opened, so its weights are there");
    assert_eq!(weights.layers.len(), model.config().num_layers);
    assert!(model.generation().eos.iter().all(|&id| (id as usize) < model.config().vocab_size));
});
