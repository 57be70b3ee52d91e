//! `mintage bench robustness`: what a step costs besides arithmetic, and what is left of the speed when another process
//! takes one of the cores. Through scheduler and sampler, without HTTP.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use mintage_engine::CpuEngine;
use mintage_hub::ModelRef;
use mintage_model::{Engine, GenerateRequest, SamplingParams, TokenId};
use serde::Serialize;

use super::speculation::read;
use crate::command::up::EngineArgs;
use crate::config::Settings;
use crate::load;
use crate::models::{self, DEFAULT_MODEL};

/// Tokens of each prompt.
const PROMPT_TOKENS: u32 = 32;

/// Measure the engine's own share of its steps, and its speed beside a process that takes one core
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mintage bench robustness --model qwen2.5-coder-0.5b-instruct-q4_k_m --users 1,16 --json out.json")]
pub(crate) struct Options {
    /// A name, a file or a folder
    #[arg(long, default_value = DEFAULT_MODEL, value_name = "NAME|FILE")]
    model: ModelRef,
    /// Users who are answered at once
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
    users: Vec<u32>,
    /// Tokens of each answer
    #[arg(long, default_value_t = 64)]
    decode: u32,
    /// Pairs of runs: machine quiet, one core taken
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Write the results as JSON; `-` for standard output
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Serialize)]
struct Report {
    model: String,
    threads: usize,
    measured: Vec<Measured>,
}

/// So many users at once.
#[derive(Serialize)]
struct Measured {
    users: u32,
    /// Tokens a second of all users: medians.
    quiet_tokens_per_s: f64,
    core_taken_tokens_per_s: f64,
    /// Median of the pairs' ratios: what is left with one core taken.
    left: f64,
    /// Of the time of the quiet runs' steps, the share not spent in the forward pass: scheduling, sampling, sending.
    own_share: f64,
    quiet_runs: Vec<f64>,
    core_taken_runs: Vec<f64>,
}

/// Measures what `options` asks for.
pub(crate) fn run(mut settings: Settings, options: &Options) -> Result<()> {
    options.engine.apply(&mut settings);
    settings.engine.speculation = false;
    let model = models::resolve(&settings, &options.model)?;
    let loaded = load::engine(&settings.engine, &model, None, model.name.as_str())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = Report {
        model: model.name.to_string(),
        threads: load::threads(&settings.engine),
        measured: Vec::new(),
    };
    for &users in &options.users {
        report.measured.push(measure(options, users, &loaded.engine, &runtime)?);
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

fn measure(
    options: &Options,
    users: u32,
    engine: &CpuEngine,
    runtime: &tokio::runtime::Runtime,
) -> Result<Measured> {
    let run = || runtime.block_on(all_at_once(engine, users, options.decode));
    run()?;
    let (mut quiet_runs, mut core_taken_runs) = (Vec::new(), Vec::new());
    let (mut steps_s, mut forward_s) = (0.0, 0.0);
    for _ in 0..options.repeats.max(1) {
        let before = engine.load();
        quiet_runs.push(run()?);
        let after = engine.load();
        steps_s += (after.step_time - before.step_time).as_secs_f64();
        forward_s += (after.forward_time - before.forward_time).as_secs_f64();
        let _taken = BusyCore::take()?;
        core_taken_runs.push(run()?);
    }
    let left: Vec<f64> = core_taken_runs.iter().zip(&quiet_runs).map(|(b, q)| b / q).collect();
    let measured = Measured {
        users,
        quiet_tokens_per_s: median(&quiet_runs),
        core_taken_tokens_per_s: median(&core_taken_runs),
        left: median(&left),
        own_share: 1.0 - forward_s / steps_s,
        quiet_runs,
        core_taken_runs,
    };
    println!(
        "{users:2} users: {:7.1} tok/s, own share of a step {:.2} %; with one core taken {:7.1} tok/s, {:.0} % of it",
        measured.quiet_tokens_per_s,
        100.0 * measured.own_share,
        measured.core_taken_tokens_per_s,
        100.0 * measured.left
    );
    Ok(measured)
}

/// Tokens a second, over all users.
async fn all_at_once(engine: &CpuEngine, users: u32, decode: u32) -> Result<f64> {
    let start = Instant::now();
    let streams = (0..users).map(|user| {
        let prompt = (0..PROMPT_TOKENS).map(|i| (i * 7919 + user * 104_729 + 17) % 40_000);
        let request = GenerateRequest {
            prompt: prompt.collect::<Vec<TokenId>>().into(),
            max_new_tokens: decode,
            sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            tenant: user.into(),
            ..GenerateRequest::default()
        };
        read(engine, request)
    });
    let answers = try_join_all(streams).await?;
    let tokens: usize = answers.iter().map(|(tokens, _)| tokens.len()).sum();
    Ok(tokens as f64 / start.elapsed().as_secs_f64())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A process that computes nothing on the first core, for as long as this lives.
struct BusyCore(Child);

impl BusyCore {
    fn take() -> Result<Self> {
        let child = Command::new("taskset")
            .args(["-c", "0", "sh", "-c", "while :; do :; done"])
            .stdin(Stdio::null())
            .spawn()
            .context("`taskset` (util-linux) is needed to take a core")?;
        Ok(Self(child))
    }
}

impl Drop for BusyCore {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing to be done about it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
