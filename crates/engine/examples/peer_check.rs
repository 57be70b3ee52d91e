//! Our half of the comparisons with another engine (`xtask/peers`): token ids in, figures or ids out, all as JSON, so
//! that no tokenizer stands between the two.
//!
//! - `peer_check MODEL perplexity TOKENS.json CONTEXT`: `[id…]` → perplexity of the text
//! - `peer_check MODEL kl TOKENS.json CONTEXT`: the same text → divergence from the unquantised computation
//! - `peer_check MODEL greedy PROMPTS.json COUNT`: `[[id…]…]` → greedy continuations, `[[id…]…]`
//! - `peer_check MODEL top SEQUENCES.json COUNT`: `[[id…]…]` → the 5 likeliest tokens before each of the last COUNT

use anyhow::{Context, Result, bail};
use mintage_engine::{
    Batch, BatchSequence, Decoder, DecoderOptions, Forward, KvSize, LogitsBuffer, LogitsFor,
    PerplexityOptions, PerplexityProgress, WeightStorage, kl_divergence, perplexity,
};
use mintage_kernels::{KvFormat, PAGE_TOKENS, argmax, available_threads, top_k};
use mintage_model::{ModelFile, TokenId};
use serde_json::json;

/// Pages of the cache: one sequence of 4096 tokens.
const PAGES: usize = 4096 / PAGE_TOKENS;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, command, input, number] = &args[..] else {
        bail!("usage: peer_check MODEL perplexity|kl|greedy|top INPUT.json NUMBER");
    };
    let number: usize = number.parse().context("NUMBER")?;
    let input = std::fs::read_to_string(input).with_context(|| format!("cannot read {input}"))?;
    let options = PerplexityOptions { context: number, bos: None };
    let mut decoder = load(model, KvFormat::F16, WeightStorage::AsStored)?;
    let output = match command.as_str() {
        "perplexity" => {
            let tokens: Vec<TokenId> = serde_json::from_str(&input)?;
            let report = perplexity(&mut decoder, &tokens, &options, &mut show)?;
            json!({"perplexity": report.perplexity, "standard_error": report.standard_error,
                   "scored_tokens": report.scored_tokens, "windows": report.windows})
        }
        "kl" => {
            let tokens: Vec<TokenId> = serde_json::from_str(&input)?;
            let mut reference = load(model, KvFormat::F32, WeightStorage::Float)?;
            let report = kl_divergence(&mut reference, &mut decoder, &tokens, &options, &mut show)?;
            json!({"mean_nats": report.mean_nats, "max_nats": report.max_nats,
                   "same_top": report.same_top, "scored_tokens": report.scored_tokens})
        }
        "greedy" => {
            let prompts: Vec<Vec<TokenId>> = serde_json::from_str(&input)?;
            json!(
                prompts
                    .iter()
                    .map(|p| greedy(&mut decoder, p, number))
                    .collect::<Result<Vec<_>>>()?
            )
        }
        "top" => {
            let sequences: Vec<Vec<TokenId>> = serde_json::from_str(&input)?;
            json!(
                sequences
                    .iter()
                    .map(|s| top(&mut decoder, s, number))
                    .collect::<Result<Vec<_>>>()?
            )
        }
        other => bail!("`{other}` is no command"),
    };
    println!("{output}");
    Ok(())
}

fn load(path: &str, kv_format: KvFormat, weights: WeightStorage) -> Result<Decoder> {
    let file = ModelFile::open(path.as_ref())?;
    let threads = available_threads();
    let options = DecoderOptions { threads, kv_format, kv_size: KvSize::Pages(PAGES), weights };
    Ok(Decoder::load(&file, &options, &mut |_| {})?)
}

fn show(progress: PerplexityProgress) {
    let PerplexityProgress { done_windows, total_windows, so_far } = progress;
    eprintln!("[{done_windows}/{total_windows}] {so_far:.4}");
}

/// Computes `tokens` from `first_position` on, for one sequence that owns all pages.
fn step(
    decoder: &mut Decoder,
    tokens: &[TokenId],
    first_position: usize,
    logits_for: LogitsFor,
    logits: &mut LogitsBuffer,
) -> Result<()> {
    let block_table: Vec<u32> = (0..PAGES as u32).collect();
    let sequence = BatchSequence { tokens, first_position, block_table: &block_table, logits_for };
    Ok(decoder.step(&Batch { sequences: &[sequence] }, logits)?)
}

fn greedy(decoder: &mut Decoder, prompt: &[TokenId], count: usize) -> Result<Vec<TokenId>> {
    let mut logits = LogitsBuffer::new();
    let mut tokens = prompt.to_vec();
    let mut computed = 0;
    for _ in 0..count {
        step(decoder, &tokens[computed..], computed, LogitsFor::Last, &mut logits)?;
        computed = tokens.len();
        tokens.push(argmax(logits.row(0)) as TokenId);
    }
    Ok(tokens.split_off(prompt.len()))
}

fn top(decoder: &mut Decoder, sequence: &[TokenId], count: usize) -> Result<Vec<Vec<u32>>> {
    let mut logits = LogitsBuffer::new();
    let (_, before_last) = sequence.split_last().context("an empty sequence")?;
    step(decoder, before_last, 0, LogitsFor::Tail(count), &mut logits)?;
    let ids = |row| top_k(logits.row(row), 5).iter().map(|(id, _)| *id).collect();
    Ok((0..logits.rows()).map(ids).collect())
}
