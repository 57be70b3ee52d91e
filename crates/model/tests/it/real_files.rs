//! The configurations of published files, exactly.

use std::path::PathBuf;

use mintage_model::{
    DType, DecoderConfig, Family, ModelFile, RopeConfig, RopeLayout, RopeScaling, SpecialTokens,
    TextModel,
};

/// Opens a published file of the folder named by `MINTAGE_TEST_MODELS`, or says why the test is skipped.
fn open(name: &str) -> Option<ModelFile> {
    let Some(folder) = std::env::var_os("MINTAGE_TEST_MODELS") else {
        eprintln!("skipped: MINTAGE_TEST_MODELS names no folder with {name}");
        return None;
    };
    Some(ModelFile::open(&PathBuf::from(folder).join(name)).expect("a published file opens"))
}

struct Expected {
    config: DecoderConfig,
    name: &'static str,
    eos: &'static [u32],
    bos: u32,
    tied: bool,
    layer_0: [DType; 3],
    parameters: u64,
    weight_bytes: u64,
    kv_bytes_per_token: u64,
}

fn check(file: &str, expected: &Expected) {
    let Some(model) = open(file) else { return };
    assert_eq!(*model.config(), expected.config);
    assert_eq!(model.name(), Some(expected.name));
    assert_eq!(model.generation().eos, expected.eos);
    assert_eq!(model.generation().bos, Some(expected.bos));
    let weights = model.weights().unwrap();
    assert_eq!(weights.output.is_none(), expected.tied);
    let layer = &weights.layers[0];
    assert_eq!([layer.q.dtype, layer.v.dtype, layer.down.dtype], expected.layer_0);
    let footprint = model.footprint();
    assert_eq!(footprint.parameters, expected.parameters);
    assert_eq!(footprint.weight_bytes, expected.weight_bytes);
    assert_eq!(model.config().kv_bytes_per_token(2), expected.kv_bytes_per_token);

    // What is released can be read again, the same.
    let before = weights.output_norm.data.to_vec();
    model.release();
    assert_eq!(model.weights().unwrap().output_norm.data, before);
}

#[test]
fn qwen2_5_coder_0_5b() {
    check(
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        &Expected {
            config: DecoderConfig {
                family: Family::Qwen2,
                vocab_size: 151_936,
                hidden_size: 896,
                intermediate_size: 4864,
                num_layers: 24,
                num_heads: 14,
                num_kv_heads: 2,
                head_dim: 64,
                rms_norm_eps: 1e-6,
                rope: RopeConfig {
                    theta: 1e6,
                    layout: RopeLayout::Halves,
                    scaling: RopeScaling::None,
                },
                context_length: 32_768,
            },
            name: "Qwen2.5 Coder 0.5B Instruct AWQ",
            eos: &[151_643, 151_645],
            bos: 151_643,
            tied: false,
            layer_0: [DType::Q5_0, DType::Q8_0, DType::Q6_K],
            parameters: 630_167_424,
            weight_bytes: 485_452_288,
            kv_bytes_per_token: 2 * 24 * 2 * 64 * 2,
        },
    );
}

#[test]
fn qwen2_5_coder_1_5b() {
    check(
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        &Expected {
            config: DecoderConfig {
                family: Family::Qwen2,
                vocab_size: 151_936,
                hidden_size: 1536,
                intermediate_size: 8960,
                num_layers: 28,
                num_heads: 12,
                num_kv_heads: 2,
                head_dim: 128,
                rms_norm_eps: 1e-6,
                rope: RopeConfig {
                    theta: 1e6,
                    layout: RopeLayout::Halves,
                    scaling: RopeScaling::None,
                },
                context_length: 32_768,
            },
            name: "Qwen2.5 Coder 1.5B Instruct GGUF",
            eos: &[151_643, 151_645],
            bos: 151_643,
            tied: false,
            layer_0: [DType::Q4_K, DType::Q6_K, DType::Q6_K],
            parameters: 1_777_088_000,
            weight_bytes: 1_111_370_240,
            kv_bytes_per_token: 2 * 28 * 2 * 128 * 2,
        },
    );
}

#[test]
fn smollm2_135m() {
    check(
        "smollm2-135m-instruct-q4_1.gguf",
        &Expected {
            config: DecoderConfig {
                family: Family::Llama,
                vocab_size: 49_152,
                hidden_size: 576,
                intermediate_size: 1536,
                num_layers: 30,
                num_heads: 9,
                num_kv_heads: 3,
                head_dim: 64,
                rms_norm_eps: 1e-5,
                rope: RopeConfig {
                    theta: 1e5,
                    layout: RopeLayout::Pairs,
                    scaling: RopeScaling::None,
                },
                context_length: 8192,
            },
            name: "Smollm2 135M 8k Lc100K Mix1 Ep2",
            eos: &[0, 2],
            bos: 1,
            tied: true,
            layer_0: [DType::Q4_1, DType::Q4_1, DType::Q4_1],
            parameters: 134_515_008,
            weight_bytes: 96_576_768,
            kv_bytes_per_token: 2 * 30 * 3 * 64 * 2,
        },
    );
}

/// Qwen Coder's own form of a prompt with a hole: what its documentation shows as text.
#[test]
fn a_middle_is_asked_for_as_the_model_learned_it() {
    let Some(model) = open("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf") else { return };
    let text = TextModel::from_model_file(&model).unwrap();
    let encode = |text_: &str| text.encode_completion(text_, SpecialTokens::Allow);
    let asked =
        text.encode_infill(&encode("def add(a, b):\n    return "), "\n\nadd(1, 2)").unwrap();
    let shown =
        "<|fim_prefix|>def add(a, b):\n    return <|fim_suffix|>\n\nadd(1, 2)<|fim_middle|>";
    assert_eq!(asked, encode(shown));
    assert!(text.infill_end_ids().len() >= 3, "{:?}", text.infill_end_ids());
    let Some(model) = open("smollm2-135m-instruct-q4_1.gguf") else { return };
    let text = TextModel::from_model_file(&model).unwrap();
    assert_eq!(text.encode_infill(&[1], "b"), None, "it was not made for that");
}
