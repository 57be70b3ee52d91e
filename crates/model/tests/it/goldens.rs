//! The tiny models that `transformers` and the `gguf` package wrote: both containers describe the same decoder.

use std::path::{Path, PathBuf};

use mintage_model::{
    DType, DecoderConfig, Family, LayerWeights, ModelFile, RopeLayout, RopeScaling, TensorView,
};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/goldens").join(name)
}

/// The elements of an unquantised matrix.
fn values(view: &TensorView<'_>) -> Vec<f32> {
    let halves = |read: fn(u16) -> f32| {
        view.data.as_chunks::<2>().0.iter().map(|bytes| read(u16::from_le_bytes(*bytes))).collect()
    };
    match view.dtype {
        DType::F32 => {
            view.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        }
        DType::BF16 => halves(|bits| f32::from_bits(u32::from(bits) << 16)),
        DType::F16 => halves(|bits| {
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
            match exponent {
                0 => sign * fraction * 2_f32.powi(-24),
                _ => sign * (1.0 + fraction / 1024.0) * 2_f32.powi(exponent - 15),
            }
        }),
        other => panic!("a golden is stored as {other}"),
    }
}

/// Rows 2 i and 2 i + 1 of each head back to i and i + head_dim / 2.
fn unpermuted(values: &[f32], config: &DecoderConfig, cols: usize) -> Vec<f32> {
    let head_dim = config.head_dim;
    let row = |r: usize| {
        let (head, at) = (r / head_dim, r % head_dim);
        let from = head * head_dim + 2 * (at % (head_dim / 2)) + at / (head_dim / 2);
        &values[from * cols..][..cols]
    };
    (0..values.len() / cols).flat_map(row).copied().collect()
}

fn check_layer(gguf: &LayerWeights<'_>, other: &LayerWeights<'_>, config: &DecoderConfig) {
    for (a, b) in [(&gguf.q, &other.q), (&gguf.k, &other.k)] {
        match config.rope.layout {
            RopeLayout::Halves => assert_eq!(values(a), values(b)),
            RopeLayout::Pairs => {
                assert_ne!(values(a), values(b));
                assert_eq!(unpermuted(&values(a), config, a.cols), values(b));
            }
        }
    }
    let rest = |layer: &LayerWeights<'_>| {
        [layer.attention_norm, layer.v, layer.attention_output, layer.ffn_norm, layer.gate]
            .iter()
            .chain([layer.up, layer.down].iter())
            .chain(
                [layer.q_bias, layer.k_bias, layer.v_bias, layer.q_norm, layer.k_norm]
                    .iter()
                    .flatten(),
            )
            .map(values)
            .collect::<Vec<_>>()
    };
    assert_eq!(rest(gguf), rest(other));
}

struct Expected {
    family: Family,
    heads: [usize; 3],
    tied: bool,
    context_length: usize,
    gguf_layout: RopeLayout,
    /// In `config.json`.
    scaling: RopeScaling,
    /// In GGUF, where it differs.
    gguf_scaling: Option<RopeScaling>,
    stored: DType,
    gguf_stored: DType,
    files: [usize; 2],
}

fn check(name: &str, gguf_file: &str, expected: &Expected) {
    let folder = folder(name);
    let other = ModelFile::open(&folder).unwrap();
    let gguf = ModelFile::open(&folder.join(gguf_file)).unwrap();
    assert_eq!([other.paths().count(), gguf.paths().count()], expected.files);

    let config = other.config();
    assert_eq!(config.family, expected.family);
    assert_eq!([config.num_heads, config.num_kv_heads, config.head_dim], expected.heads);
    assert_eq!([config.vocab_size, config.hidden_size, config.intermediate_size], [256, 32, 64]);
    assert_eq!(config.context_length, expected.context_length);
    assert_eq!(config.rope.scaling, expected.scaling);
    assert_eq!(config.rope.layout, RopeLayout::Halves);
    assert_eq!(other.generation().eos, [2, 3]);
    assert_eq!(other.generation().bos, Some(1));
    assert_eq!(gguf.generation().eos, [2]);

    let mut same = config.clone();
    same.rope.layout = expected.gguf_layout;
    same.rope.scaling = expected.gguf_scaling.clone().unwrap_or(same.rope.scaling);
    assert_eq!(*gguf.config(), same);

    let (a, b) = (gguf.weights().unwrap(), other.weights().unwrap());
    assert_eq!([b.layers[0].q.dtype, a.layers[0].q.dtype], [expected.stored, expected.gguf_stored]);
    assert_eq!([a.output.is_none(), b.output.is_none()], [expected.tied; 2]);
    assert_eq!(values(&a.token_embedding), values(&b.token_embedding));
    assert_eq!(values(&a.output_norm), values(&b.output_norm));
    assert_eq!(a.output.as_ref().map(values), b.output.as_ref().map(values));
    assert_eq!(a.layers.len(), 3);
    for (a, b) in a.layers.iter().zip(&b.layers) {
        check_layer(a, b, gguf.config());
    }
}

#[test]
fn qwen2_tied() {
    check(
        "qwen2-tied",
        "qwen2-tied.gguf",
        &Expected {
            family: Family::Qwen2,
            heads: [4, 2, 8],
            tied: true,
            context_length: 256,
            gguf_layout: RopeLayout::Halves,
            scaling: RopeScaling::None,
            gguf_scaling: None,
            stored: DType::F32,
            gguf_stored: DType::F16,
            files: [1, 1],
        },
    );
}

#[test]
fn qwen2_yarn() {
    check(
        "qwen2-yarn",
        "qwen2-yarn.gguf",
        &Expected {
            family: Family::Qwen2,
            heads: [2, 1, 16],
            tied: false,
            context_length: 128,
            gguf_layout: RopeLayout::Halves,
            scaling: RopeScaling::Yarn {
                factor: 4.0,
                original_context: 32,
                attention_factor: None,
                beta_fast: 32.0,
                beta_slow: 1.0,
            },
            gguf_scaling: None,
            stored: DType::F32,
            gguf_stored: DType::F16,
            files: [1, 1],
        },
    );
}

#[test]
fn qwen3() {
    check(
        "qwen3",
        "qwen3.gguf",
        &Expected {
            family: Family::Qwen3,
            heads: [4, 2, 16],
            tied: true,
            context_length: 256,
            gguf_layout: RopeLayout::Halves,
            scaling: RopeScaling::None,
            gguf_scaling: None,
            stored: DType::BF16,
            gguf_stored: DType::BF16,
            files: [1, 1],
        },
    );
}

#[test]
fn llama3_split() {
    // By the rule of Llama 3.1: kept, blended, and divided by the factor.
    let mut factors = vec![1.0, 0.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0];
    let model = ModelFile::open(&folder("llama3").join("llama3-00002-of-00002.gguf")).unwrap();
    let RopeScaling::Factors(read) = &model.config().rope.scaling else { panic!("no factors") };
    assert!(read[1] > 1.0 && read[1] < 8.0, "{read:?}");
    factors[1] = read[1];
    check(
        "llama3",
        "llama3-00001-of-00002.gguf",
        &Expected {
            family: Family::Llama,
            heads: [2, 1, 16],
            tied: false,
            context_length: 512,
            gguf_layout: RopeLayout::Pairs,
            scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context: 64,
            },
            gguf_scaling: Some(RopeScaling::Factors(factors)),
            stored: DType::F32,
            gguf_stored: DType::F32,
            files: [1, 2],
        },
    );
}

#[test]
fn llama_linear_sharded() {
    check(
        "llama-linear",
        "llama-linear.gguf",
        &Expected {
            family: Family::Llama,
            heads: [4, 4, 8],
            tied: false,
            context_length: 128,
            gguf_layout: RopeLayout::Pairs,
            scaling: RopeScaling::Linear { factor: 4.0 },
            gguf_scaling: None,
            stored: DType::F16,
            gguf_stored: DType::F16,
            files: [3, 1],
        },
    );
}
