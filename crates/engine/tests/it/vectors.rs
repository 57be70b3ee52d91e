//! Vectors and scores against `transformers` and `sentence-transformers` (see `goldens/make_vectors.py`), and against
//! themselves: alone, in a batch, on other numbers of threads.

use std::path::{Path, PathBuf};

use mintage_engine::{
    Decoder, DecoderOptions, DecoderVectors, Encode, Encoder, KvSize, VectorHead, WeightStorage,
};
use mintage_kernels::KvFormat;
use mintage_model::{EncoderFile, ModelFile, TokenId};

/// Of an element of a vector of length 1.
const MAX_ABS_DIFFERENCE: f32 = 2e-5;
/// Of a real model: 1 less the cosine.
const MAX_COSINE_DISTANCE: f64 = 1e-6;

fn goldens(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

fn floats(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn encode(model: &mut dyn Encode, sequences: &[Vec<TokenId>]) -> Vec<f32> {
    let sequences: Vec<&[TokenId]> = sequences.iter().map(Vec::as_slice).collect();
    let mut vectors = Vec::new();
    model.encode(&sequences, &mut vectors).unwrap();
    vectors
}

/// Compares with the golden, and each sequence alone with the batch, bit for bit.
#[track_caller]
fn check(model: &mut dyn Encode, sequences: &[Vec<TokenId>], golden: &Path) {
    let (found, expected) = (encode(model, sequences), floats(golden));
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    eprintln!("{}: max abs difference {worst:e}", golden.display());
    assert!(worst <= MAX_ABS_DIFFERENCE, "{}: {worst}", golden.display());
    assert!(found.iter().all(|v| v.is_finite()));
    let width = model.shape().width;
    for (sequence, vector) in sequences.iter().zip(found.chunks_exact(width)) {
        let alone = encode(model, std::slice::from_ref(sequence));
        assert!(alone == vector, "{} tokens alone differ", sequence.len());
    }
    let reversed: Vec<Vec<TokenId>> = sequences.iter().rev().cloned().collect();
    let vectors = encode(model, &reversed);
    let backwards: Vec<f32> = vectors.rchunks_exact(width).flatten().copied().collect();
    assert!(backwards == found, "another order differs");
}

fn bert(folder: &Path, threads: usize) -> Encoder {
    Encoder::load(&EncoderFile::open(folder).unwrap(), threads).unwrap()
}

#[test]
fn bert_with_mean_pooling() {
    let folder = goldens("bert");
    let sequences: Vec<Vec<TokenId>> = json(&folder.join("sequences.json"));
    let mut encoder = bert(&folder, 2);
    check(&mut encoder, &sequences, &folder.join("mean.f32"));
    let two = encode(&mut encoder, &sequences);
    for threads in [1, 3] {
        assert!(encode(&mut bert(&folder, threads), &sequences) == two, "{threads} threads differ");
    }
}

#[test]
fn bert_with_the_first_tokens_vector() {
    let (golden, folder) = (goldens("bert"), tempfile::tempdir().unwrap());
    for name in ["config.json", "model.safetensors", "modules.json"] {
        std::fs::copy(golden.join(name), folder.path().join(name)).unwrap();
    }
    let pooling = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    std::fs::write(folder.path().join("1_Pooling/config.json"), pooling).unwrap();
    let sequences: Vec<Vec<TokenId>> = json(&golden.join("sequences.json"));
    check(&mut bert(folder.path(), 2), &sequences, &golden.join("first.f32"));
}

#[test]
fn sequences_that_do_not_fit_are_refused() {
    let mut encoder = bert(&goldens("bert"), 1);
    let mut check = |tokens: &[TokenId], needle: &str| {
        let mut vectors = vec![7.0];
        let error = encoder.encode(&[&[5], tokens], &mut vectors).unwrap_err().to_string();
        assert!(error.contains(needle) && error.contains("sequence 1"), "{error}");
        assert_eq!(vectors, [7.0]);
    };
    check(&[], "no tokens");
    check(&[3; 65], "takes 64 tokens, 65 given");
    check(&[4, 139], "token 139 is not below");
}

fn qwen3(model: &Path, head: VectorHead, pages: usize) -> DecoderVectors {
    let options = DecoderOptions {
        threads: 2,
        kv_format: KvFormat::F32,
        kv_size: KvSize::Pages(pages),
        weights: WeightStorage::AsStored,
    };
    let file = ModelFile::open(model).unwrap();
    let decoder = Decoder::load(&file, &options, &mut |_| {}).unwrap();
    DecoderVectors::new(decoder, head, usize::MAX).unwrap()
}

#[derive(serde::Deserialize)]
struct Qwen3 {
    sequences: Vec<Vec<TokenId>>,
    yes: TokenId,
    no: TokenId,
}

#[test]
fn qwen3_with_the_last_tokens_state() {
    let folder = goldens("qwen3");
    let golden: Qwen3 = json(&folder.join("vectors.json"));
    for model in [folder.clone(), folder.join("qwen3.gguf"), goldens("qwen3-embedding")] {
        // 4 pages hold the longest; then nothing fits beside it.
        for pages in [4, 16] {
            let mut decoder = qwen3(&model, VectorHead::Hidden, pages);
            check(&mut decoder, &golden.sequences, &folder.join("vectors.f32"));
        }
    }
}

#[test]
fn qwen3_with_yes_or_no() {
    let folder = goldens("qwen3");
    let golden: Qwen3 = json(&folder.join("vectors.json"));
    let head = VectorHead::YesNo { yes: golden.yes, no: golden.no };
    let mut decoder = qwen3(&folder, head, 16);
    check(&mut decoder, &golden.sequences, &folder.join("scores.f32"));
}

#[test]
fn minilm_equals_sentence_transformers() {
    let models = std::env::var("MINTAGE_TEST_MODELS").unwrap_or_default();
    let folder = Path::new(&models).join("all-minilm-l6-v2");
    if !folder.is_dir() {
        eprintln!("skipped: MINTAGE_TEST_MODELS has no all-minilm-l6-v2");
        return;
    }
    let file = EncoderFile::open(&folder).unwrap();
    let (tokenizer, mut encoder) = (file.tokenizer().unwrap(), Encoder::load(&file, 2).unwrap());
    let golden = goldens("minilm");
    let texts: Vec<String> = json(&golden.join("texts.json"));
    let sequences: Vec<Vec<TokenId>> = texts
        .iter()
        .map(|text| {
            let mut ids = vec![tokenizer.first()];
            ids.extend(tokenizer.encode(text));
            ids.push(tokenizer.last());
            ids
        })
        .collect();
    let found = encode(&mut encoder, &sequences);
    let expected = floats(&golden.join("vectors.f32"));
    assert_eq!((file.config().max_tokens, found.len()), (256, expected.len()));
    for ((found, expected), text) in found.chunks(384).zip(expected.chunks(384)).zip(&texts) {
        let pairs = found.iter().zip(expected);
        let cosine: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        eprintln!("1 - cosine {:.1e}: {text:.40}", 1.0 - cosine);
        assert!((1.0 - cosine).abs() <= MAX_COSINE_DISTANCE, "{text}: {cosine}");
    }
}
