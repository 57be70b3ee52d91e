//! Speed of the forward pass alone, without scheduler and sampler: prefill, decode, and several users at once. Prints
//! one line a measurement; figures mean something only beside a peer's in the same run.
//!
//! `engine_bench MODEL [THREADS] [REPEATS]`

use std::time::Instant;

use anyhow::{Context, Result};
use mintage_engine::{
    Batch, BatchSequence, Decoder, DecoderOptions, Forward, KvSize, LogitsBuffer, LogitsFor,
    WeightStorage,
};
use mintage_kernels::{KvFormat, PAGE_TOKENS, available_threads};
use mintage_model::{ModelFile, TokenId};

/// Tokens of each user's context before the measured decoding starts.
const USER_CONTEXT: usize = 32;
/// Tokens each user decodes.
const DECODE_TOKENS: usize = 64;
/// Pages: 16 users of 96 tokens, or one prompt of 2048.
const PAGES: usize = 128;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().context("usage: engine_bench MODEL [THREADS] [REPEATS]")?;
    let threads = args.next().map_or(Ok(available_threads()), |text| text.parse())?;
    let repeats: usize = args.next().map_or(Ok(3), |text| text.parse())?;
    let start = Instant::now();
    let file = ModelFile::open(path.as_ref())?;
    let options = DecoderOptions {
        threads,
        kv_format: KvFormat::F16,
        kv_size: KvSize::Pages(PAGES),
        weights: WeightStorage::AsStored,
    };
    let mut decoder = Decoder::load(&file, &options, &mut |_| {})?;
    let weight_mib = decoder.weight_bytes() >> 20;
    println!(
        "load: {:.2} s, weights {weight_mib} MiB, {threads} threads",
        start.elapsed().as_secs_f64()
    );
    for tokens in [64, 512, 2048] {
        report(&format!("prefill {tokens}"), repeats, || prefill(&mut decoder, tokens))?;
    }
    for users in [1, 2, 4, 8, 16] {
        report(&format!("decode, {users} users"), repeats, || decode(&mut decoder, users))?;
    }
    Ok(())
}

/// Runs once to warm up, then prints mean and best of `repeats`.
fn report(name: &str, repeats: usize, mut run: impl FnMut() -> Result<f64>) -> Result<()> {
    run()?;
    let rates = (0..repeats).map(|_| run()).collect::<Result<Vec<_>>>()?;
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    let best = rates.iter().copied().fold(0.0, f64::max);
    println!("{name:18} {mean:8.1} tok/s   best {best:8.1}");
    Ok(())
}

fn prefill(decoder: &mut Decoder, count: usize) -> Result<f64> {
    let vocab_size = decoder.config().vocab_size;
    // Any tokens will do, as long as they differ.
    let tokens: Vec<TokenId> = (0..count).map(|i| ((i * 7919 + 13) % vocab_size) as u32).collect();
    let block_table: Vec<u32> = (0..PAGES as u32).collect();
    let mut logits = LogitsBuffer::new();
    let start = Instant::now();
    for (index, chunk) in tokens.chunks(512).enumerate() {
        let sequence = BatchSequence {
            tokens: chunk,
            first_position: index * 512,
            block_table: &block_table,
            logits_for: LogitsFor::Last,
        };
        decoder.step(&Batch { sequences: &[sequence] }, &mut logits)?;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn decode(decoder: &mut Decoder, users: usize) -> Result<f64> {
    let pages_a_user = (USER_CONTEXT + DECODE_TOKENS).div_ceil(PAGE_TOKENS);
    let tables: Vec<Vec<u32>> = (0..users)
        .map(|user| (user * pages_a_user..(user + 1) * pages_a_user).map(|p| p as u32).collect())
        .collect();
    let mut tokens: Vec<Vec<TokenId>> = (0..users)
        .map(|user| (0..USER_CONTEXT).map(|i| (100 + user * 37 + i) as u32).collect())
        .collect();
    let mut logits = LogitsBuffer::new();
    let mut position = 0;
    let mut start = Instant::now();
    for step in 0..=DECODE_TOKENS {
        let sequences: Vec<BatchSequence<'_>> = tokens
            .iter()
            .zip(&tables)
            .map(|(tokens, block_table)| BatchSequence {
                tokens,
                first_position: position,
                block_table,
                logits_for: LogitsFor::Last,
            })
            .collect();
        decoder.step(&Batch { sequences: &sequences }, &mut logits)?;
        position += tokens[0].len();
        for (user, tokens) in tokens.iter_mut().enumerate() {
            *tokens = vec![mintage_kernels::argmax(logits.row(user)) as TokenId];
        }
        if step == 0 {
            start = Instant::now();
        }
    }
    Ok((users * DECODE_TOKENS) as f64 / start.elapsed().as_secs_f64())
}
