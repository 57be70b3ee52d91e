//! `mintage bench engine`: prefill and decode of a model on this machine, without HTTP, scheduler or sampler: what
//! `llama-bench` measures, plus several users at once.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use mintage_engine::{
    Batch, BatchSequence, Decoder, DecoderOptions, Forward, KvSize, LogitsBuffer, LogitsFor,
    WeightStorage,
};
use mintage_hub::ModelRef;
use mintage_kernels::{KvFormat, PAGE_TOKENS, argmax, available_threads};
use mintage_model::{ModelFile, TokenId};
use serde::Serialize;

use crate::models::DEFAULT_MODEL;

/// Prompt tokens of one step: what the scheduler takes when nobody decodes.
const CHUNK_TOKENS: usize = 512;

/// Measure prefill and decode of a model on this machine, as llama-bench does
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mintage bench engine --model qwen2.5-coder-0.5b-instruct-q4_k_m
  mintage bench engine --model model.gguf --prefill 512,8192 --decode 64 --depth 0,8192 --users 1,4,16 --json out.json")]
pub(crate) struct Options {
    /// A name, a file or a folder
    #[arg(long, default_value = DEFAULT_MODEL, value_name = "NAME|FILE")]
    pub(crate) model: ModelRef,
    /// Lengths of the prompts to compute, tokens.
    #[arg(long, value_delimiter = ',', default_value = "512")]
    prefill: Vec<usize>,
    /// Tokens each user decodes.
    #[arg(long, default_value_t = 64)]
    decode: usize,
    /// Contexts at which one user decodes, tokens.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Users who decode at once, each with a context of 32 tokens.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16")]
    users: Vec<usize>,
    /// Threads; all that the machine grants by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Runs of each measurement, after one that is not counted.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Write the results as JSON; `-` for standard output.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One measurement.
#[derive(Serialize)]
struct Measured {
    /// `prefill 512`, `decode at 8192`, `decode, 4 users`.
    name: String,
    /// Tokens a second: the median of the runs, and all of them.
    tokens_per_s: f64,
    runs: Vec<f64>,
}

#[derive(Serialize)]
struct Report {
    model: String,
    threads: usize,
    load_s: f64,
    weight_bytes: usize,
    /// Of those, what each step reads.
    step_weight_bytes: usize,
    measured: Vec<Measured>,
}

/// Context of each of several users before the decoding that is measured.
const USER_CONTEXT: usize = 32;

/// Measures what was asked for, on the opened `file`.
pub(crate) fn run(options: &Options, name: &str, file: &ModelFile) -> Result<()> {
    let mut bench = Bench::load(options, file)?;
    let mut report = Report {
        model: name.to_owned(),
        threads: bench.decoder.threads(),
        load_s: bench.load_s,
        weight_bytes: bench.decoder.weight_bytes(),
        step_weight_bytes: bench.decoder.step_weight_bytes(),
        measured: Vec::new(),
    };
    println!(
        "{name}: loaded in {:.2} s, weights {} MiB, {} threads",
        report.load_s,
        report.weight_bytes >> 20,
        report.threads
    );
    for &tokens in &options.prefill {
        let measured =
            measure(format!("prefill {tokens}"), options.repeats, || bench.prefill(tokens))?;
        report.measured.push(measured);
    }
    for &depth in &options.depth {
        bench.fill(depth)?;
        let name = format!("decode at {depth}");
        report
            .measured
            .push(measure(name, options.repeats, || bench.decode_at(depth, options.decode))?);
    }
    for &users in &options.users {
        let name = format!("decode, {users} users");
        report
            .measured
            .push(measure(name, options.repeats, || bench.decode_users(users, options.decode))?);
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report)?;
        if path.as_os_str() == "-" {
            println!("{text}");
        } else {
            std::fs::write(path, text).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// One run to warm up, then `repeats`; prints a line.
fn measure(name: String, repeats: usize, mut run: impl FnMut() -> Result<f64>) -> Result<Measured> {
    run()?;
    let mut runs = (0..repeats.max(1)).map(|_| run()).collect::<Result<Vec<f64>>>()?;
    runs.sort_by(f64::total_cmp);
    let median = runs[runs.len() / 2];
    println!("{name:22} {median:9.1} tok/s   ({:.1} … {:.1})", runs[0], runs[runs.len() - 1]);
    Ok(Measured { name, tokens_per_s: median, runs })
}

struct Bench {
    decoder: Decoder,
    load_s: f64,
    logits: LogitsBuffer,
    /// All pages, in order.
    pages: Vec<u32>,
}

impl Bench {
    fn load(options: &Options, file: &ModelFile) -> Result<Self> {
        let one = options
            .prefill
            .iter()
            .copied()
            .chain(options.depth.iter().map(|depth| depth + options.decode + 1));
        let many = options
            .users
            .iter()
            .map(|users| users * pages_for(USER_CONTEXT + options.decode + 1) * PAGE_TOKENS);
        let tokens = one.chain(many).max().unwrap_or(PAGE_TOKENS);
        let context = file.config().context_length;
        if let Some(longest) =
            options.prefill.iter().chain(&options.depth).find(|&&tokens| tokens > context)
        {
            bail!("the model's context holds {context} tokens, {longest} asked for");
        }
        let pages = pages_for(tokens).max(1);
        let start = Instant::now();
        let decoder_options = DecoderOptions {
            threads: options.threads.unwrap_or_else(available_threads),
            kv_format: KvFormat::F16,
            kv_size: KvSize::Pages(pages),
            weights: WeightStorage::AsStored,
        };
        let decoder = Decoder::load(file, &decoder_options, &mut |_| {})?;
        let load_s = start.elapsed().as_secs_f64();
        let pages = (0..u32::try_from(pages)?).collect();
        Ok(Self { decoder, load_s, logits: LogitsBuffer::new(), pages })
    }

    /// Token ids that differ; which ones does not matter for speed.
    fn token(&self, index: usize) -> TokenId {
        ((index * 7919 + 13) % self.decoder.config().vocab_size) as TokenId
    }

    /// Computes `count` tokens from position 0 on.
    fn fill(&mut self, count: usize) -> Result<()> {
        let tokens: Vec<TokenId> = (0..count).map(|index| self.token(index)).collect();
        for (index, chunk) in tokens.chunks(CHUNK_TOKENS).enumerate() {
            let sequence = BatchSequence {
                tokens: chunk,
                first_position: index * CHUNK_TOKENS,
                block_table: &self.pages,
                logits_for: LogitsFor::Last,
            };
            self.decoder.step(&Batch { sequences: &[sequence] }, &mut self.logits)?;
        }
        Ok(())
    }

    fn prefill(&mut self, count: usize) -> Result<f64> {
        let start = Instant::now();
        self.fill(count)?;
        Ok(count as f64 / start.elapsed().as_secs_f64())
    }

    /// `count` steps of one user whose first `depth` tokens are computed.
    fn decode_at(&mut self, depth: usize, count: usize) -> Result<f64> {
        let mut token = self.token(depth);
        let start = Instant::now();
        for step in 0..count {
            let sequence = BatchSequence {
                tokens: &[token],
                first_position: depth + step,
                block_table: &self.pages,
                logits_for: LogitsFor::Last,
            };
            self.decoder.step(&Batch { sequences: &[sequence] }, &mut self.logits)?;
            token = argmax(self.logits.row(0)) as TokenId;
        }
        Ok(count as f64 / start.elapsed().as_secs_f64())
    }

    /// `count` steps of `users` users, after one step that computes their contexts.
    fn decode_users(&mut self, users: usize, count: usize) -> Result<f64> {
        let pages_a_user = pages_for(USER_CONTEXT + count + 1);
        let tables: Vec<Vec<u32>> =
            self.pages.chunks(pages_a_user).take(users).map(<[u32]>::to_vec).collect();
        let context =
            |user: usize| (0..USER_CONTEXT).map(|index| self.token(user * 37 + index)).collect();
        let mut tokens: Vec<Vec<TokenId>> = (0..users).map(context).collect();
        let (mut position, mut start) = (0, Instant::now());
        for step in 0..=count {
            let sequence = |(tokens, block_table)| BatchSequence {
                tokens,
                first_position: position,
                block_table,
                logits_for: LogitsFor::Last,
            };
            let pairs = tokens.iter().map(Vec::as_slice).zip(tables.iter().map(Vec::as_slice));
            let sequences: Vec<BatchSequence<'_>> = pairs.map(sequence).collect();
            self.decoder.step(&Batch { sequences: &sequences }, &mut self.logits)?;
            position += tokens[0].len();
            for (user, tokens) in tokens.iter_mut().enumerate() {
                *tokens = vec![argmax(self.logits.row(user)) as TokenId];
            }
            if step == 0 {
                start = Instant::now();
            }
        }
        Ok((users * count) as f64 / start.elapsed().as_secs_f64())
    }
}

fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}
