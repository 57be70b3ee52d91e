//! Embeds the texts of a JSON file, once for each line that comes in, and says how many seconds that took: what
//! `xtask/peers/embeddings.py` drives beside `sentence-transformers`.
//!
//! ```text
//! embed MODEL_FOLDER TEXTS.json THREADS [VECTORS.f32]
//! ```
//!
//! Tokenising counts. With a fourth argument the vectors of the last run are written there, little endian.

use std::io::BufRead as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use mintage_engine::{Encode as _, Encoder};
use mintage_model::{EncoderFile, Purpose, TokenId, VectorText};

/// Tokens of a step, as the engine has them.
const STEP_TOKENS: usize = 1024;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, texts, threads, ..] = arguments.as_slice() else {
        bail!("usage: embed MODEL_FOLDER TEXTS.json THREADS [VECTORS.f32]");
    };
    let file = EncoderFile::open(Path::new(model))?;
    let text = VectorText::of_encoder(&file)?;
    let mut encoder = Encoder::load(&file, threads.parse()?)?;
    let texts: Vec<String> = serde_json::from_str(&std::fs::read_to_string(texts)?)?;
    let longest = file.config().max_tokens;
    let mut all = Vec::new();
    for line in std::io::stdin().lock().lines() {
        line?;
        let started = Instant::now();
        all = embed(&texts, &text, longest, &mut encoder)?;
        println!("{}", started.elapsed().as_secs_f64());
    }
    if let Some(path) = arguments.get(3) {
        let bytes: Vec<u8> = all.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(path, bytes).with_context(|| format!("`{path}` cannot be written"))?;
    }
    Ok(())
}

fn embed(
    texts: &[String],
    text: &VectorText,
    longest: usize,
    encoder: &mut Encoder,
) -> Result<Vec<f32>> {
    let sequences: Vec<Vec<TokenId>> = texts
        .iter()
        .map(|one| Ok(text.encode(one, Purpose::Plain).cut(longest)?.0))
        .collect::<Result<_>>()?;
    let (mut all, mut vectors) = (Vec::new(), Vec::new());
    let (mut step, mut tokens): (Vec<&[TokenId]>, usize) = (Vec::new(), 0);
    for sequence in &sequences {
        if !step.is_empty() && tokens + sequence.len() > STEP_TOKENS {
            encoder.encode(&step, &mut vectors)?;
            all.extend_from_slice(&vectors);
            step.clear();
            tokens = 0;
        }
        tokens += sequence.len();
        step.push(sequence);
    }
    encoder.encode(&step, &mut vectors)?;
    all.extend_from_slice(&vectors);
    Ok(all)
}
