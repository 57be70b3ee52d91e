//! `mintage perplexity`: how well a model predicts a text, by the method of llama.cpp's tool, so that figures compare.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mintage_engine::{Decoder, KvSize, PerplexityOptions, kl_divergence, perplexity};
use mintage_hub::ModelRef;
use mintage_kernels::PAGE_TOKENS;
use mintage_model::{SpecialTokens, TokenId};

use crate::command::up::EngineArgs;
use crate::config::Settings;
use crate::load;
use crate::models::{self, DEFAULT_MODEL};
use crate::output;

/// Bytes of the longest text.
const TEXT_BYTES_MAX: u64 = 256 << 20;

/// Measure how well a model predicts a text
///
/// Windows of `--window` tokens that do not overlap; the second half of each is scored, given all tokens before it.
#[derive(Debug, Args)]
pub(crate) struct PerplexityArgs {
    /// A UTF-8 text
    #[arg(value_name = "FILE.txt")]
    file: PathBuf,
    /// A name, a file or a folder
    #[arg(long, default_value = DEFAULT_MODEL, value_name = "NAME|FILE")]
    model: ModelRef,
    /// Tokens of a window
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    window: usize,
    /// Only the first so many windows
    #[arg(long, value_name = "N")]
    windows: Option<usize>,
    /// Compare with the same model computed without quantising activations, in f32, instead: the mean divergence
    /// (Kullback-Leibler, nats) of what it then predicts. Needs memory for the weights as f32
    #[arg(long)]
    kl: bool,
    /// For programs: one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(crate) fn run(mut settings: Settings, args: &PerplexityArgs) -> Result<()> {
    args.engine.apply(&mut settings);
    let text = read(&args.file)?;
    let model = models::resolve(&settings, &args.model)?;
    let pages = KvSize::Pages(args.window.div_ceil(PAGE_TOKENS).max(1));
    let (mut decoder, text_model) = load::decoder(&settings.engine, &model, pages)?;
    let tokenizer = text_model.tokenizer();
    let mut tokens = tokenizer.encode(&text, SpecialTokens::AsText);
    if let Some(windows) = args.windows {
        tokens.truncate(windows.saturating_mul(args.window));
    }
    let options = PerplexityOptions { context: args.window, bos: tokenizer.leading_bos() };
    if args.kl {
        let mut reference = load::reference_decoder(&settings.engine, &model, pages)?;
        return divergence(
            args,
            model.name.as_str(),
            &mut reference,
            &mut decoder,
            &tokens,
            &options,
        );
    }
    let bar = progress_bar();
    let started = Instant::now();
    let report = perplexity(&mut decoder, &tokens, &options, &mut |progress| {
        bar.set_length(progress.total_windows as u64);
        bar.set_position(progress.done_windows as u64);
        bar.set_message(format!("perplexity {:.4}", progress.so_far));
    });
    bar.finish_and_clear();
    let report = report?;
    let seconds = started.elapsed().as_secs_f64();
    let computed = report.windows * args.window;
    if args.json {
        let line = serde_json::json!({
            "model": model.name, "perplexity": report.perplexity, "standard_error": report.standard_error,
            "windows": report.windows, "window_tokens": args.window, "scored_tokens": report.scored_tokens,
            "seconds": seconds,
        });
        return Ok(output::print(&format!("{line}\n"))?);
    }
    Ok(output::print(&format!(
        "perplexity {:.4} ± {:.4}  ({} tokens scored in {} windows of {}; {:.1} s, {:.0} tokens/s)\n",
        report.perplexity,
        report.standard_error,
        report.scored_tokens,
        report.windows,
        args.window,
        seconds,
        computed as f64 / seconds
    ))?)
}

/// Prints how far `decoder` is from `reference`.
fn divergence(
    args: &PerplexityArgs,
    name: &str,
    reference: &mut Decoder,
    decoder: &mut Decoder,
    tokens: &[TokenId],
    options: &PerplexityOptions,
) -> Result<()> {
    let bar = progress_bar();
    let report = kl_divergence(reference, decoder, tokens, options, &mut |progress| {
        bar.set_length(progress.total_windows as u64);
        bar.set_position(progress.done_windows as u64);
        bar.set_message(format!("divergence {:.6}", progress.so_far));
    });
    bar.finish_and_clear();
    let report = report?;
    if args.json {
        let line = serde_json::json!({
            "model": name, "mean_kl_nats": report.mean_nats, "max_kl_nats": report.max_nats,
            "same_top": report.same_top, "window_tokens": args.window, "scored_tokens": report.scored_tokens,
        });
        return Ok(output::print(&format!("{line}\n"))?);
    }
    Ok(output::print(&format!(
        "divergence {:.6} nats on average, {:.4} at most; the likeliest token is the same {:.2} % of {} times\n",
        report.mean_nats,
        report.max_nats,
        100.0 * report.same_top,
        report.scored_tokens
    ))?)
}

fn read(path: &std::path::Path) -> Result<String> {
    let shown = path.display();
    let bytes = std::fs::metadata(path).with_context(|| format!("{shown} cannot be read"))?.len();
    if bytes > TEXT_BYTES_MAX {
        bail!("{shown} has {bytes} bytes; the limit is {TEXT_BYTES_MAX}");
    }
    std::fs::read_to_string(path).with_context(|| format!("{shown} is not a readable UTF-8 text"))
}

fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{pos} / {len} windows  {bar:28}  {msg}  {eta}")
    {
        bar.set_style(style.progress_chars("━━─"));
    }
    bar
}
