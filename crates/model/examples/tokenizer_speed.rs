//! How fast a text is encoded: `tokenizer_speed MODEL TEXT-FILE`, on one core.
//!
//! Its peer, with the package `tokenizers` on the same text: `tests/goldens/tokenizer_speed.py`, which runs both.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Instant;

use mintage_model::{ModelFile, SpecialTokens, TextModel, Tokenizer};

const ROUNDS: usize = 7;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, text] = arguments.as_slice() else {
        panic!("usage: tokenizer_speed MODEL TEXT-FILE")
    };
    let path = Path::new(model);
    let loading = Instant::now();
    let tokenizer = if path.is_dir() {
        Tokenizer::from_json(&std::fs::read_to_string(path.join("tokenizer.json")).unwrap(), None)
            .unwrap()
    } else {
        TextModel::from_model_file(&ModelFile::open(path).unwrap()).unwrap().into_tokenizer()
    };
    let load_ms = loading.elapsed().as_millis();
    let text = std::fs::read_to_string(text).unwrap();
    let mut seconds: Vec<f64> = Vec::new();
    let mut tokens = 0;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        tokens = tokenizer.encode(&text, SpecialTokens::Allow).len();
        seconds.push(start.elapsed().as_secs_f64());
    }
    let first = seconds[0];
    seconds.sort_by(f64::total_cmp);
    let mb = text.len() as f64 / 1e6;
    println!(
        "{{\"load_ms\":{load_ms},\"tokens\":{tokens},\"first_mb_per_s\":{:.2},\"median_mb_per_s\":{:.2}}}",
        mb / first,
        mb / seconds[ROUNDS / 2]
    );
}
