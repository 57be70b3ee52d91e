//! Logits of tiny random decoders against those of `transformers` (see `goldens/README.md`): every family, head and
//! rope scaling, from both containers, and the same chunked, bit for bit.

use std::path::{Path, PathBuf};

use mintage_engine::{
    Batch, BatchSequence, Decoder, DecoderOptions, Forward, KvSize, LogitsBuffer, LogitsFor,
    WeightStorage,
};
use mintage_kernels::KvFormat;
use mintage_model::{ModelFile, TokenId};

/// The tolerance that the goldens were made for.
const MAX_ABS_DIFFERENCE: f32 = 1e-4;

struct Golden {
    tokens: Vec<TokenId>,
    positions: Vec<usize>,
    vocab_size: usize,
    /// (positions, vocab)
    logits: Vec<f32>,
}

fn read_golden(folder: &Path) -> Golden {
    let text = std::fs::read_to_string(folder.join("sequence.json")).unwrap();
    let sequence: serde_json::Value = serde_json::from_str(&text).unwrap();
    let bytes = std::fs::read(folder.join("logits.f32")).unwrap();
    let golden = Golden {
        tokens: serde_json::from_value(sequence["tokens"].clone()).unwrap(),
        positions: serde_json::from_value(sequence["positions"].clone()).unwrap(),
        vocab_size: serde_json::from_value(sequence["vocab_size"].clone()).unwrap(),
        logits: bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
    };
    assert_eq!(golden.logits.len(), golden.positions.len() * golden.vocab_size);
    golden
}

/// Logits of every token, (tokens, vocab), in steps of `chunk` tokens.
fn logits(model: &Path, tokens: &[TokenId], chunk: usize) -> Vec<f32> {
    let options = DecoderOptions {
        threads: 2,
        kv_format: KvFormat::F32,
        kv_size: KvSize::Pages(8),
        weights: WeightStorage::AsStored,
    };
    let file = ModelFile::open(model).unwrap();
    let mut decoder = Decoder::load(&file, &options, &mut |_| {}).unwrap();
    let mut buffer = LogitsBuffer::new();
    let mut all = Vec::new();
    for (index, tokens) in tokens.chunks(chunk).enumerate() {
        let sequence = BatchSequence {
            tokens,
            first_position: index * chunk,
            block_table: &[5, 0, 3, 7],
            logits_for: LogitsFor::All,
        };
        decoder.step(&Batch { sequences: &[sequence] }, &mut buffer).unwrap();
        (0..buffer.rows()).for_each(|row| all.extend_from_slice(buffer.row(row)));
    }
    all
}

#[track_caller]
fn check(name: &str, gguf: &str) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
    let golden = read_golden(&folder);
    for model in [folder.clone(), folder.join(gguf)] {
        let whole = logits(&model, &golden.tokens, golden.tokens.len());
        let mut worst = 0f32;
        for (position, expected) in
            golden.positions.iter().zip(golden.logits.chunks_exact(golden.vocab_size))
        {
            let found = &whole[position * golden.vocab_size..][..golden.vocab_size];
            let differences = expected.iter().zip(found).map(|(a, b)| (a - b).abs());
            // `max` would pass over a NaN.
            worst = differences.fold(worst, |worst, d| if d <= worst { worst } else { d });
        }
        eprintln!("{}: max abs difference {worst:e}", model.display());
        assert!(worst <= MAX_ABS_DIFFERENCE, "{}: {worst}", model.display());
        for chunk in [1, 7, 50] {
            let found = logits(&model, &golden.tokens, chunk);
            assert!(whole == found, "{}: chunks of {chunk} differ", model.display());
        }
    }
}

#[test]
fn qwen2_with_biases_and_a_tied_head() {
    check("qwen2-tied", "qwen2-tied.gguf");
}

#[test]
fn qwen2_with_yarn() {
    check("qwen2-yarn", "qwen2-yarn.gguf");
}

#[test]
fn qwen3_with_head_norms() {
    check("qwen3", "qwen3.gguf");
}

#[test]
fn llama3_with_its_rope_scaling() {
    check("llama3", "llama3-00001-of-00002.gguf");
}

#[test]
fn llama_with_linear_rope_scaling() {
    check("llama-linear", "llama-linear.gguf");
}
