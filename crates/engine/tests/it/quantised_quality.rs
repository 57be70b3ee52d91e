//! What quantised activations cost in quality: next to nothing, on a real file and a real text. All models and the whole
//! text: `mintage perplexity --kl`, or `xtask/peers/compare.py kl`.

use mintage_engine::{
    Decoder, DecoderOptions, KvSize, PerplexityOptions, WeightStorage, kl_divergence,
};
use mintage_kernels::KvFormat;
use mintage_model::{ModelFile, SpecialTokens, TextModel};

const TEXT: &str = include_str!("../texts/mixed.txt");
/// Tokens of a window, and how many of them: a small part of the text.
const WINDOW: usize = 128;
const WINDOWS: usize = 4;
/// What the project promises, nats.
const MAX_MEAN_KL: f64 = 0.005;

#[test]
fn quantised_activations_diverge_by_next_to_nothing() {
    let Some(folder) = std::env::var_os("MINTAGE_TEST_MODELS") else {
        eprintln!("skipped: MINTAGE_TEST_MODELS names no folder with models");
        return;
    };
    let path = std::path::Path::new(&folder).join("smollm2-135m-instruct-q4_1.gguf");
    let file = ModelFile::open(&path).unwrap();
    let load = |kv_format, weights| {
        let kv_size = KvSize::Pages(WINDOW / mintage_kernels::PAGE_TOKENS);
        let options = DecoderOptions { threads: 2, kv_format, kv_size, weights };
        Decoder::load(&file, &options, &mut |_| {}).unwrap()
    };
    let mut reference = load(KvFormat::F32, WeightStorage::Float);
    let mut quantised = load(KvFormat::F16, WeightStorage::AsStored);
    let text = TextModel::from_model_file(&file).unwrap();
    let mut tokens = text.tokenizer().encode(TEXT, SpecialTokens::AsText);
    tokens.truncate(WINDOW * WINDOWS);
    let options = PerplexityOptions { context: WINDOW, bos: None };
    let report =
        kl_divergence(&mut reference, &mut quantised, &tokens, &options, &mut |_| {}).unwrap();
    eprintln!("{report:?}");
    assert!(report.mean_nats <= MAX_MEAN_KL, "{report:?}");
    assert!(report.mean_nats > 0.0 && report.same_top > 0.95, "{report:?}");
}
