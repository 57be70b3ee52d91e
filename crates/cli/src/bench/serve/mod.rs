//! `mintage bench serve URL`: how any OpenAI-compatible server behaves under load.

mod client;
mod load;
mod report;
mod statistics;
mod workload;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use client::Client;
use report::Report;
use statistics::{Summary, Target};
use workload::{Lengths, Scale};

/// Steps of a ramp; each doubles the rate.
const MAX_RAMP_STEPS: usize = 16;

/// A ramp ends when fewer than this share of the requests keep the targets.
const RAMP_GOOD_SHARE: f64 = 0.9;

/// Load an OpenAI-compatible server and measure what its users would see
///
/// Without a choice of load: 1, 2, 4, 8 and 16 users in a closed loop.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mintage bench serve http://127.0.0.1:8080 --key $KEY
  mintage bench serve http://127.0.0.1:8080 --key $KEY --rate 2 --requests 100 --html report.html
  mintage bench serve http://127.0.0.1:8080 --key $KEY --trace AzureLLMInferenceTrace_code.csv --length-scale 0.1
  mintage bench serve http://127.0.0.1:8080 --key $KEY --situation stall --situation shared-prompt")]
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
    /// Double the rate, from 0.25 requests a second, until fewer than 90 % of the requests keep both targets.
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
    /// A situation that hurts: can be given several times.
    #[arg(long, value_enum)]
    situation: Vec<Situation>,
    /// Requests of each run; by default 4 per user, or 40.
    #[arg(long)]
    requests: Option<usize>,
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
    /// Write the results as JSON.
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
}

/// Runs what was asked for and prints the table.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let client = Client::connect(&options.url, options.key.clone(), options.model.clone()).await?;
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
    };
    options.situations(&client, &mut report).await?;
    options.runs(&client, &mut report).await?;
    print!("{}", report.table());
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)
            .with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &options.html {
        std::fs::write(path, report.html()).with_context(|| path.display().to_string())?;
    }
    let failed: usize = report.runs.iter().map(|run| run.failed).sum();
    let requests: usize = report.runs.iter().map(|run| run.requests).sum();
    if failed > 0 && failed == requests {
        bail!("every request failed; look at the server's log, the key and the model's name");
    }
    Ok(())
}

impl Options {
    fn workload(&self) -> String {
        match &self.trace {
            Some(path) => format!(
                "trace {} × {} in time, × {} in length",
                path.display(),
                self.time_scale,
                self.length_scale
            ),
            None => format!(
                "prompts of {} words ({} shared), answers of {} tokens",
                self.prompt_tokens, self.shared_prefix_tokens, self.output_tokens
            ),
        }
    }

    fn lengths(&self) -> Lengths {
        Lengths {
            prompt: self.prompt_tokens,
            shared_prefix: self.shared_prefix_tokens,
            output: self.output_tokens,
        }
    }

    async fn situations(&self, client: &Client, report: &mut Report) -> Result<()> {
        for situation in &self.situation {
            match situation {
                Situation::Stall => {
                    report.stalls.push(load::stall(client, self.seed, 3, 1500).await?)
                }
                Situation::SharedPrompt => {
                    let samples = load::shared_prompt(client, self.seed, 8, 1000).await;
                    report.runs.push(Summary::of(
                        "8 users, 1 prefix".to_owned(),
                        &samples,
                        &report.target,
                    ));
                }
            }
        }
        Ok(())
    }

    async fn runs(&self, client: &Client, report: &mut Report) -> Result<()> {
        let target = report.target;
        if let Some(path) = &self.trace {
            let content =
                std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let scale = Scale {
                time: self.time_scale,
                length: self.length_scale,
                requests: self.requests.unwrap_or(40),
            };
            let samples = load::open_loop(client, workload::trace(&content, scale)?).await;
            report.runs.push(Summary::of("trace".to_owned(), &samples, &target));
        }
        for &rate in &self.rate {
            report.runs.push(self.poisson(client, rate, &target).await?);
        }
        if self.ramp {
            self.climb(client, report).await?;
        }
        let nothing_else =
            self.trace.is_none() && self.rate.is_empty() && !self.ramp && self.situation.is_empty();
        let users = if self.users.is_empty() && nothing_else {
            vec![1, 2, 4, 8, 16]
        } else {
            self.users.clone()
        };
        for users in users {
            let count = self.requests.unwrap_or(4 * users);
            let planned = workload::synthetic(
                self.seed.wrapping_add(users as u64),
                count,
                self.lengths(),
                None,
            );
            let samples = load::closed_loop(client, planned, users).await;
            report.runs.push(Summary::of(format!("{users} users"), &samples, &target));
        }
        Ok(())
    }

    async fn poisson(&self, client: &Client, rate: f64, target: &Target) -> Result<Summary> {
        if rate.is_nan() || rate <= 0.0 {
            bail!("`--rate` takes requests a second above 0, not {rate}");
        }
        let seed = self.seed.wrapping_add(rate.to_bits());
        let planned =
            workload::synthetic(seed, self.requests.unwrap_or(40), self.lengths(), Some(rate));
        let samples = load::open_loop(client, planned).await;
        Ok(Summary::of(format!("{rate:.2} requests/s"), &samples, target))
    }

    async fn climb(&self, client: &Client, report: &mut Report) -> Result<()> {
        let mut rate = 0.25;
        for _ in 0..MAX_RAMP_STEPS {
            let run = self.poisson(client, rate, &report.target).await?;
            let good_share = run.goodput_per_s / run.requests_per_s.max(1e-9);
            report.runs.push(run);
            if good_share < RAMP_GOOD_SHARE {
                break;
            }
            rate *= 2.0;
        }
        Ok(())
    }
}
