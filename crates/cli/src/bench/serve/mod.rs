//! `mintage bench serve URL`: how any OpenAI-compatible server behaves under load.

mod client;
mod html;
mod load;
mod plot;
mod ramp;
mod report;
mod statistics;
mod trace;
mod workload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::output;
use client::{Asking, Client};
use ramp::Ramp;
use report::{Load, Report, Run};
use statistics::{Sample, Target};
use trace::Scale;
use workload::Kind;

/// Requests of a run that has no number of its own.
const DEFAULT_REQUESTS: usize = 40;
/// Most requests of one run, users at once, and words of a situation.
const MAX_REQUESTS: usize = 100_000;
const MAX_USERS: usize = 4096;
/// Largest trace file; both published ones are smaller by far.
const MAX_TRACE_BYTES: u64 = 1 << 30;

/// Load an OpenAI-compatible server and measure what its users would see
///
/// Without a choice of load: 1, 2, 4, 8 and 16 users in a closed loop.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mintage bench serve http://127.0.0.1:8080 --key $KEY
  mintage bench serve http://127.0.0.1:8080 --key $KEY --rate 1,2,4 --requests 100 --html report.html
  mintage bench serve http://127.0.0.1:8080 --key $KEY --ramp --ttft-ms 1000 --itl-ms 100
  mintage bench serve http://127.0.0.1:8080 --key $KEY --mix 6*64/64,3*100+1000/32,1*1500/16 --users 8
  mintage bench serve http://127.0.0.1:8080 --key $KEY --trace AzureLLMInferenceTrace_code.csv --length-scale 0.1
  mintage bench serve http://127.0.0.1:8080 --key $KEY --situation stall,shared-prompt,code-edit")]
pub(crate) struct Options {
    /// The server, with or without `/v1`.
    url: String,
    /// Its API key.
    #[arg(long, env = "MINTAGE_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// The model to ask for; the server's first one by default.
    #[arg(long)]
    model: Option<String>,
    /// Closed loop: so many users at once, each asking again when answered; a list makes a run of each.
    #[arg(long, value_delimiter = ',')]
    users: Vec<usize>,
    /// Poisson arrivals at this many requests a second; a list makes a run of each.
    #[arg(long, value_delimiter = ',')]
    rate: Vec<f64>,
    /// Find the limit: double the rate, from 0.25 requests a second, until fewer than 90 % of the requests keep both
    /// targets, then halve the interval.
    #[arg(long)]
    ramp: bool,
    /// Replay a trace: Azure LLM inference CSV or Mooncake JSONL.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Multiply the trace's time between arrivals.
    #[arg(long, default_value_t = 1.0)]
    time_scale: f64,
    /// Multiply the trace's prompt and output lengths.
    #[arg(long, default_value_t = 1.0)]
    length_scale: f64,
    /// Situations that hurt.
    #[arg(long, value_enum, value_delimiter = ',')]
    situation: Vec<Situation>,
    /// Requests of each run; by default 4 per user, or 40.
    #[arg(long)]
    requests: Option<usize>,
    /// A mixture of requests instead of the three options below: `[WEIGHT*]PROMPT[+SHARED]/OUTPUT`, in tokens.
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    mix: Vec<Kind>,
    /// Words of each prompt, about as many tokens.
    #[arg(long, default_value_t = 128)]
    prompt_tokens: usize,
    /// Of those, words that all prompts begin with.
    #[arg(long, default_value_t = 0)]
    shared_prefix_tokens: usize,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 64)]
    output_tokens: u32,
    /// Goodput counts requests whose first token came within this.
    #[arg(long, default_value_t = 2000)]
    ttft_ms: u64,
    /// Goodput counts requests whose further tokens took this long at most, on average.
    #[arg(long, default_value_t = 150)]
    itl_ms: u64,
    /// Same seed, same prompts and arrivals. A server with a prefix cache wants a new one each time.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Let answers end where the model ends them. Without it `ignore_eos` asks for exactly the planned length.
    #[arg(long)]
    respect_eos: bool,
    /// A request that is not answered within this has failed.
    #[arg(long, default_value_t = 600)]
    timeout_s: u64,
    /// Write the results as JSON, each request among them.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the results as one self-contained HTML page.
    #[arg(long)]
    html: Option<PathBuf>,
}

/// Situations that hurt.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Situation {
    /// Three users are being answered when a stranger's prompt of 1,500 words arrives.
    Stall,
    /// Eight users arrive together with one new system prompt of 1,000 words.
    SharedPrompt,
    /// One user asks for a file of 150 lines with one name changed.
    CodeEdit,
}

/// Runs what was asked for and prints the table.
pub(crate) async fn run(options: &Options) -> Result<()> {
    options.check()?;
    let asking = Asking {
        ignore_eos: !options.respect_eos,
        timeout: Duration::from_secs(options.timeout_s.max(1)),
    };
    let client =
        Client::connect(&options.url, options.key.clone(), options.model.clone(), asking).await?;
    let target = Target {
        first_token: Duration::from_millis(options.ttft_ms),
        per_token: Duration::from_millis(options.itl_ms),
    };
    let mut report = Report {
        server: options.url.clone(),
        model: client.model().to_owned(),
        workload: options.workload(),
        target,
        runs: Vec::new(),
        stalls: Vec::new(),
        limit_requests_per_s: None,
    };
    let bench = Bench { options, client, kinds: options.kinds(), target };
    bench.situations(&mut report).await?;
    bench.runs(&mut report).await?;
    output::print(&report.table())?;
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)
            .with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &options.html {
        std::fs::write(path, html::page(&report)).with_context(|| path.display().to_string())?;
    }
    let failed: usize = report.runs.iter().map(|run| run.summary.failed).sum();
    let requests: usize = report.runs.iter().map(|run| run.summary.requests).sum();
    if failed > 0 && failed == requests {
        bail!("every request failed; look at the server's log, the key and the model's name");
    }
    Ok(())
}

impl Options {
    fn check(&self) -> Result<()> {
        if let Some(rate) = self.rate.iter().find(|rate| !(1e-3..=1e5).contains(*rate)) {
            bail!("`--rate` takes 0.001 to 100000 requests a second, not {rate}");
        }
        if let Some(users) = self.users.iter().find(|users| !(1..=MAX_USERS).contains(*users)) {
            bail!("`--users` takes 1 to {MAX_USERS}, not {users}");
        }
        if let Some(requests) = self.requests.filter(|n| !(1..=MAX_REQUESTS).contains(n)) {
            bail!("`--requests` takes 1 to {MAX_REQUESTS}, not {requests}");
        }
        // The same limits as for a kind that is written out.
        let given = self.shared_prefix_tokens.max(self.prompt_tokens);
        if let Err(error) = format!("{given}/{}", self.output_tokens).parse::<Kind>() {
            bail!("`--prompt-tokens`, `--shared-prefix-tokens`, `--output-tokens`: {error}");
        }
        Ok(())
    }

    fn kinds(&self) -> Vec<Kind> {
        if !self.mix.is_empty() {
            return self.mix.clone();
        }
        vec![Kind {
            weight: 1,
            prompt: self.prompt_tokens.saturating_sub(self.shared_prefix_tokens),
            shared_prefix: self.shared_prefix_tokens,
            output: self.output_tokens,
        }]
    }

    fn workload(&self) -> String {
        if let Some(path) = &self.trace {
            let name = path.file_name().unwrap_or(path.as_os_str()).display();
            return format!(
                "trace {name} × {} in time, × {} in length",
                self.time_scale, self.length_scale
            );
        }
        let kinds: Vec<String> =
            self.kinds().iter().map(|kind| format!("{}× {kind}", kind.weight)).collect();
        format!("tokens {}", kinds.join(", ").trim_start_matches("1× "))
    }
}

/// A server, and what it is asked.
struct Bench<'a> {
    options: &'a Options,
    client: Client,
    kinds: Vec<Kind>,
    target: Target,
}

impl Bench<'_> {
    fn run(&self, name: String, load: Load, samples: Vec<Sample>) -> Run {
        let kinds: Vec<String> = match load {
            Load::Other => Vec::new(),
            _ => self.kinds.iter().map(Kind::to_string).collect(),
        };
        let run = Run::new(name, load, samples, &kinds, &self.target);
        // A word while the rest is measured; the table comes at the end.
        eprintln!(
            "{}: {:.1} tokens/s, {:.0} % of {} kept the targets",
            run.summary.load,
            run.summary.output_tokens_per_s,
            100.0 * run.summary.good_share,
            run.summary.requests
        );
        run
    }

    async fn situations(&self, report: &mut Report) -> Result<()> {
        let (client, seed) = (&self.client, self.options.seed);
        for situation in &self.options.situation {
            let (name, samples) = match situation {
                Situation::Stall => {
                    report.stalls.push(load::stall(client, seed, 3, 1500).await?);
                    continue;
                }
                Situation::SharedPrompt => {
                    ("8 users, 1 prefix", load::shared_prompt(client, seed, 8, 1000).await)
                }
                Situation::CodeEdit => ("code edit", load::code_edit(client, seed, 150).await),
            };
            report.runs.push(self.run(name.to_owned(), Load::Other, samples));
        }
        Ok(())
    }

    async fn runs(&self, report: &mut Report) -> Result<()> {
        let options = self.options;
        if let Some(path) = &options.trace {
            let scale = Scale {
                time: options.time_scale,
                length: options.length_scale,
                requests: options.requests.unwrap_or(DEFAULT_REQUESTS),
            };
            let planned = trace::read(&read_bounded(path)?, scale)
                .with_context(|| path.display().to_string())?;
            let samples = load::open_loop(&self.client, planned).await;
            report.runs.push(self.run("trace".to_owned(), Load::Other, samples));
        }
        for &rate in &options.rate {
            let requests = options.requests.unwrap_or(DEFAULT_REQUESTS);
            report.runs.push(self.poisson(rate, requests).await);
        }
        if options.ramp {
            self.climb(report).await;
        }
        let nothing_else = options.trace.is_none()
            && options.rate.is_empty()
            && !options.ramp
            && options.situation.is_empty();
        let users = if options.users.is_empty() && nothing_else {
            vec![1, 2, 4, 8, 16]
        } else {
            options.users.clone()
        };
        for users in users {
            let requests = options.requests.unwrap_or(4 * users);
            let seed = options.seed.wrapping_add(users as u64);
            let planned = workload::synthetic(seed, requests, &self.kinds, None);
            let samples = load::closed_loop(&self.client, planned, users).await;
            report.runs.push(self.run(format!("{users} users"), Load::Users(users), samples));
        }
        Ok(())
    }

    async fn poisson(&self, rate: f64, requests: usize) -> Run {
        let seed = self.options.seed.wrapping_add(rate.to_bits());
        let planned = workload::synthetic(seed, requests, &self.kinds, Some(rate));
        let samples = load::open_loop(&self.client, planned).await;
        self.run(format!("{rate:.2} requests/s"), Load::Rate(rate), samples)
    }

    async fn climb(&self, report: &mut Report) {
        let mut ramp = Ramp::new();
        loop {
            let requests = self.options.requests.unwrap_or_else(|| ramp.requests());
            let run = self.poisson(ramp.rate(), requests).await;
            let good_share = run.summary.good_share;
            report.runs.push(run);
            if !ramp.advance(good_share) {
                break;
            }
        }
        report.limit_requests_per_s = ramp.limit();
    }
}

fn read_bounded(path: &Path) -> Result<String> {
    let named = || path.display().to_string();
    let bytes = std::fs::metadata(path).with_context(named)?.len();
    if bytes > MAX_TRACE_BYTES {
        bail!("{} has {bytes} bytes; the limit is {MAX_TRACE_BYTES}", named());
    }
    std::fs::read_to_string(path).with_context(named)
}
