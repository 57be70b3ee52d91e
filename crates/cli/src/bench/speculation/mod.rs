//! `mintage bench speculation`: what guessing tokens ahead gains, and that it changes nothing. Two engines of the same
//! model, one that guesses and one that does not, answer the same requests by turns, through scheduler and sampler.
//!
//! Measured is decoding alone: from a request's first token to its last.

mod prompts;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use futures_util::StreamExt as _;
use mintage_engine::CpuEngine;
use mintage_hub::ModelRef;
use mintage_model::{
    CacheDomain, ChatOptions, Engine, Event, FinishReason, GenerateRequest, SamplingParams,
    TextModel, TokenId,
};
use serde::Serialize;
use serde_json::json;

use crate::command::up::EngineArgs;
use crate::config::{EngineSettings, Settings};
use crate::load;
use crate::models::{self, DEFAULT_MODEL};
use prompts::Workload;

/// Measure what guessing tokens ahead gains on this machine, and verify that it changes no answer
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mintage bench speculation --model qwen2.5-coder-0.5b-instruct-q4_k_m
  mintage bench speculation --model 1.5b.gguf --draft 0.5b.gguf --workloads code --json out.json")]
pub(crate) struct Options {
    /// A name, a file or a folder
    #[arg(long, default_value = DEFAULT_MODEL, value_name = "NAME|FILE")]
    model: ModelRef,
    /// A smaller model of the same vocabulary that guesses for it
    #[arg(long, value_name = "NAME|FILE")]
    draft: Option<ModelRef>,
    /// Kinds of requests
    #[arg(long, value_enum, value_delimiter = ',', default_value = "edit,code,prose")]
    workloads: Vec<Workload>,
    /// Requests at once: each kind's requests, repeated up to this number
    #[arg(long, default_value_t = 1)]
    users: usize,
    /// 0 takes the likeliest token; above, tokens are drawn with fixed seeds
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Tokens of the longest answer [default: 256, of edits 1800]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// Pairs of runs of each kind
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Write the results as JSON; `-` for standard output
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// All measurements of a run.
#[derive(Serialize)]
struct Report {
    model: String,
    draft: Option<String>,
    threads: usize,
    users: usize,
    temperature: f32,
    measured: Vec<Measured>,
}

/// One kind of requests.
#[derive(Serialize)]
struct Measured {
    /// `code edit`, `code`, `prose`.
    name: &'static str,
    /// Tokens of a user's stream per second: the median of the runs, without and with guessing.
    plain_tokens_per_s: f64,
    guessing_tokens_per_s: f64,
    /// Median of the pairs' ratios.
    ratio: f64,
    plain_runs: Vec<f64>,
    guessing_runs: Vec<f64>,
    /// Whether every answer was the same with and without.
    identical: bool,
    output_tokens: usize,
    /// Guesses verified, and how many were right, in all runs.
    draft_tokens: u64,
    accepted_draft_tokens: u64,
    /// Tokens of a stream per step of its engine, while guessing.
    tokens_per_step: f64,
}

/// An engine and what its runs gave.
struct Side {
    engine: Arc<CpuEngine>,
    runs: Vec<f64>,
    answers: Option<Vec<Vec<TokenId>>>,
    /// All runs said the same.
    steady: bool,
}

/// Measures what `options` asks for.
pub(crate) fn run(mut settings: Settings, options: &Options) -> Result<()> {
    options.engine.apply(&mut settings);
    let model = models::resolve(&settings, &options.model)?;
    let draft =
        options.draft.as_ref().map(|draft| models::resolve(&settings, draft)).transpose()?;
    let plain = EngineSettings { speculation: false, ..settings.engine.clone() };
    let guessing = EngineSettings { speculation: true, ..settings.engine.clone() };
    let name = model.name.as_str();
    let plain = load::engine(&plain, &model, None, name)?;
    let guessing = load::engine(&guessing, &model, draft.as_ref(), name)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = Report {
        model: name.to_owned(),
        draft: draft.map(|draft| draft.name.to_string()),
        threads: load::threads(&settings.engine),
        users: options.users,
        temperature: options.temperature,
        measured: Vec::new(),
    };
    let side = |engine: &Arc<CpuEngine>| Side {
        engine: Arc::clone(engine),
        runs: Vec::new(),
        answers: None,
        steady: true,
    };
    for &workload in &options.workloads {
        let requests = requests(options, workload, &plain.text)?;
        let mut sides = [side(&plain.engine), side(&guessing.engine)];
        report.measured.push(measure(options, workload, &requests, &mut sides, &runtime)?);
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report)?;
        if path.as_os_str() == "-" {
            println!("{text}");
        } else {
            std::fs::write(path, text).with_context(|| path.display().to_string())?;
        }
    }
    if let Some(other) = report.measured.iter().find(|measured| !measured.identical) {
        bail!("{}: the answers differ with and without guessing; this is a defect", other.name);
    }
    Ok(())
}

/// The requests of a kind: one after the other alone, or for several users at once.
fn requests(
    options: &Options,
    workload: Workload,
    text: &TextModel,
) -> Result<Vec<GenerateRequest>> {
    let messages = workload.messages();
    let count = messages.len().max(options.users);
    let request = |(index, message): (usize, &String)| {
        let message = json!({"role": "user", "content": message});
        let prompt = text.encode_chat(&[message], None, &ChatOptions::default())?;
        Ok(GenerateRequest {
            request_id: format!("{} {index}", workload.name()),
            prompt: prompt.into(),
            max_new_tokens: options.max_tokens.unwrap_or(workload.max_tokens()),
            sampling: SamplingParams {
                temperature: options.temperature,
                seed: index as u64,
                ..SamplingParams::default()
            },
            stop_token_ids: Arc::clone(text.end_of_turn_ids()),
            cache_domain: CacheDomain::default(),
            tenant: index as u64,
            ..GenerateRequest::default()
        })
    };
    messages.iter().cycle().take(count).enumerate().map(request).collect()
}

/// One pair to warm up (it also fills the prefix caches), then pairs by turns; prints a line.
fn measure(
    options: &Options,
    workload: Workload,
    requests: &[GenerateRequest],
    sides: &mut [Side; 2],
    runtime: &tokio::runtime::Runtime,
) -> Result<Measured> {
    let mut before = sides[1].engine.load();
    for repeat in 0..=options.repeats.max(1) {
        for side in &mut *sides {
            let (rate, answers) = runtime.block_on(answer(side, requests, options.users))?;
            if repeat > 0 {
                side.runs.push(rate);
            }
            side.steady &= side.answers.as_ref().is_none_or(|earlier| *earlier == answers);
            side.answers = Some(answers);
        }
        if repeat == 0 {
            before = sides[1].engine.load();
        }
    }
    let after = sides[1].engine.load();
    let [plain, guessing] = sides;
    let answers = guessing.answers.take().unwrap_or_default();
    let output_tokens: usize = answers.iter().map(Vec::len).sum();
    let tokens = (output_tokens * guessing.runs.len()) as f64;
    let ratios: Vec<f64> = guessing.runs.iter().zip(&plain.runs).map(|(g, p)| g / p).collect();
    let measured = Measured {
        name: workload.name(),
        plain_tokens_per_s: median(&plain.runs),
        guessing_tokens_per_s: median(&guessing.runs),
        ratio: median(&ratios),
        identical: plain.steady && guessing.steady && plain.answers.take() == Some(answers),
        plain_runs: plain.runs.clone(),
        guessing_runs: guessing.runs.clone(),
        output_tokens,
        draft_tokens: after.draft_tokens - before.draft_tokens,
        accepted_draft_tokens: after.accepted_draft_tokens - before.accepted_draft_tokens,
        tokens_per_step: tokens / (after.steps - before.steps).max(1) as f64,
    };
    println!(
        "{:10} {:7.1} tok/s plain, {:7.1} guessing: {:.2}×   {} of {} guesses right, {:.2} tokens a step, {} \
         tokens, {}",
        measured.name,
        measured.plain_tokens_per_s,
        measured.guessing_tokens_per_s,
        measured.ratio,
        measured.accepted_draft_tokens,
        measured.draft_tokens,
        measured.tokens_per_step,
        measured.output_tokens,
        if measured.identical { "identical" } else { "DIFFERENT" }
    );
    Ok(measured)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// All answers, and tokens of a stream per second of decoding.
async fn answer(
    side: &Side,
    requests: &[GenerateRequest],
    users: usize,
) -> Result<(f64, Vec<Vec<TokenId>>)> {
    let (mut seconds, mut tokens) = (0.0, 0);
    let mut answers = Vec::new();
    for group in requests.chunks(users.max(1)) {
        let streams = group.iter().map(|request| read(&side.engine, request.clone()));
        for outcome in futures_util::future::join_all(streams).await {
            let (answer, decoding_s) = outcome?;
            seconds += decoding_s;
            tokens += answer.len().saturating_sub(1);
            answers.push(answer);
        }
    }
    Ok((tokens as f64 / f64::max(seconds, 1e-9), answers))
}

/// One answer, and the seconds from its first token to its last.
pub(super) async fn read(
    engine: &CpuEngine,
    request: GenerateRequest,
) -> Result<(Vec<TokenId>, f64)> {
    let mut events = engine.submit(request)?;
    let mut tokens = Vec::new();
    let mut first = None;
    while let Some(event) = events.next().await {
        match event {
            Event::Prefilled { .. } | Event::Vector(_) => {}
            Event::Token(token) => {
                first.get_or_insert_with(Instant::now);
                tokens.push(token.id);
            }
            Event::Finished(finish) => {
                if let FinishReason::Fault(fault) = finish.reason {
                    bail!("the engine failed: {fault}");
                }
                if finish.usage.output_tokens as usize != tokens.len() {
                    bail!("the usage counts other tokens than the stream had; this is a defect");
                }
                return Ok((tokens, first.map_or(0.0, |first| first.elapsed().as_secs_f64())));
            }
        }
    }
    bail!("the engine ended without a word")
}
