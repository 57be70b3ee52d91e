//! Any bytes as a GGUF file: a model or a typed error. What opens is read to the last value and tensor.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mintage_model::{GgufValue, ModelFile};

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = ModelFile::from_gguf_bytes(vec![bytes.to_vec()]) else { return };
    for (key, value) in model.metadata().expect("a GGUF model has metadata").iter() {
        assert!(!value.to_string().is_empty(), "{key}");
        if let GgufValue::Array(array) = value {
            assert_eq!(array.iter().count(), array.len(), "{key}");
        }
    }
    let weights = model.weights().expect("opened, so its weights are there");
    assert_eq!(weights.layers.len(), model.config().num_layers);
    let bytes: usize = model.tensors().map(|tensor| tensor.data.len()).sum();
    assert_eq!(bytes as u64, model.footprint().weight_bytes);
});
