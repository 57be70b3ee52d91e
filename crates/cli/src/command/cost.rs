//! `mintage cost`: what a million tokens cost on this machine, beside what they are sold for.
//!
//! Speeds are measurements, so this is the one place of money with floating point; list prices stay exact.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use mintage_ledger::price::{PriceVersion, TokenClass};
use serde::{Deserialize, Serialize};

use crate::command::price;
use crate::config::Settings;
use crate::output;

/// Users who decode at once, and the prompt, when this command measures itself.
const USERS: &str = "1,4,16";
const PREFILL: &str = "512";
/// Bytes of a measurement or a server's answer that are read.
const MAX_BYTES: u64 = 16 << 20;
/// How long a server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pico of one unit, as a float.
const UNIT_PICO: f64 = 1e12;

/// Show what a million tokens cost on this machine, beside their list price
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mintage cost --per-hour 0.5 --model qwen2.5-coder:0.5b     measures first, some minutes
  mintage bench engine --json speed.json && mintage cost --per-hour 0.5 --bench speed.json
  mintage cost --per-hour 0.5 --server http://127.0.0.1:8080 --seconds 60")]
pub(crate) struct CostArgs {
    /// What the machine costs an hour, in the price list's currency
    #[arg(long, value_name = "PRICE")]
    per_hour: f64,
    /// Take the speeds from what `mintage bench engine --json` wrote; may be given several times
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "server"])]
    bench: Vec<PathBuf>,
    /// Measure this model now; may be given several times
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "server")]
    model: Vec<String>,
    /// Take the tokens that a running server computes
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// For so long
    #[arg(long, default_value_t = 60, requires = "server", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Share of the time in which the machine is at work, in percent; the rest is paid for, too
    #[arg(long, default_value_t = 100, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    utilisation: u8,
    /// The price list to compare with; without it the one in force, or else the shipped one
    #[arg(long)]
    list: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What `mintage bench engine --json` writes, as far as it matters here.
#[derive(Deserialize)]
struct BenchReport {
    model: String,
    measured: Vec<BenchMeasured>,
}

#[derive(Deserialize)]
struct BenchMeasured {
    name: String,
    tokens_per_s: f64,
}

/// How fast a model is, tokens a second over all users.
struct Speeds {
    model: String,
    input: f64,
    output: f64,
}

/// One model: costs and prices in units for a million tokens.
#[derive(Debug, PartialEq, Serialize)]
struct Costs {
    model: String,
    input_tokens_per_s: f64,
    output_tokens_per_s: f64,
    input_cost: f64,
    output_cost: f64,
    input_price: Option<f64>,
    output_price: Option<f64>,
    input_margin: Option<f64>,
    output_margin: Option<f64>,
}

pub(crate) fn run(settings: &Settings, args: &CostArgs) -> Result<()> {
    ensure!(
        args.per_hour.is_finite() && args.per_hour >= 0.0,
        "`--per-hour` is {}; a machine costs 0 or more",
        args.per_hour
    );
    let list = match &args.list {
        Some(list) => price::find_here(settings, list)?,
        None => price::current_or_shipped(settings)?,
    };
    let speeds = match (&args.server, args.bench.is_empty(), args.model.is_empty()) {
        (Some(url), ..) => return live(url, args, &list),
        (None, false, _) => args.bench.iter().map(|file| read(file)).collect::<Result<Vec<_>>>()?,
        (None, true, false) => {
            args.model.iter().map(|model| measure(settings, model)).collect::<Result<Vec<_>>>()?
        }
        (None, true, true) => bail!(
            "say where the speeds come from: `--bench FILE`, `--model NAME` (measures now) or `--server URL`"
        ),
    };
    let per_second = args.per_hour / 3600.0 * 100.0 / f64::from(args.utilisation);
    let costs: Vec<Costs> = speeds.iter().map(|speeds| costs(speeds, per_second, &list)).collect();
    let text = if args.json {
        serde_json::to_string_pretty(&costs)? + "\n"
    } else {
        table(&costs, args, &list)
    };
    output::print(&text)?;
    Ok(())
}

/// Speeds from a measurement's file.
fn read(file: &Path) -> Result<Speeds> {
    let context = || format!("the measurement {} cannot be read", file.display());
    let size = std::fs::metadata(file).with_context(context)?.len();
    ensure!(size <= MAX_BYTES, "{} has {size} bytes; at most {MAX_BYTES} are read", file.display());
    let text = std::fs::read_to_string(file).with_context(context)?;
    let report: BenchReport = serde_json::from_str(&text).with_context(|| {
        format!("{} is not what `mintage bench engine --json` writes", file.display())
    })?;
    best(report).with_context(|| format!("{} has no speeds", file.display()))
}

/// The best of each kind: an operator runs the machine as it runs best.
fn best(report: BenchReport) -> Result<Speeds> {
    let fastest = |kind: &str| {
        let of_kind = report.measured.iter().filter(|measured| measured.name.starts_with(kind));
        let speed = of_kind.map(|measured| measured.tokens_per_s).fold(0.0, f64::max);
        ensure!(speed.is_finite() && speed > 0.0, "nothing called `{kind}…` was measured");
        Ok(speed)
    };
    Ok(Speeds { input: fastest("prefill")?, output: fastest("decode")?, model: report.model })
}

/// Runs this program's own benchmark in a process of its own: its memory is gone afterwards.
fn measure(settings: &Settings, model: &str) -> Result<Speeds> {
    eprintln!("measuring {model}; this takes a while …");
    let program = std::env::current_exe().context("this program's own file is not known")?;
    let file = std::env::temp_dir().join(format!("mintage-cost-{}.json", std::process::id()));
    let ran = Command::new(program)
        .arg("--data-dir")
        .arg(&settings.data_dir)
        .args([
            "bench",
            "engine",
            "--model",
            model,
            "--prefill",
            PREFILL,
            "--users",
            USERS,
            "--json",
        ])
        .arg(&file)
        .stdout(std::process::Stdio::null())
        .status();
    let speeds = match ran {
        Ok(status) if status.success() => read(&file),
        Ok(_) => bail!("`{model}` could not be measured"),
        Err(error) => Err(error).context("the benchmark did not start"),
    };
    // It lies in the folder for temporary files; what stays there is harmless.
    let _ = std::fs::remove_file(&file);
    speeds
}

fn costs(speeds: &Speeds, per_second: f64, list: &PriceVersion) -> Costs {
    let per_million = |tokens_per_s: f64| per_second / tokens_per_s * 1e6;
    let (input_cost, output_cost) = (per_million(speeds.input), per_million(speeds.output));
    let input_price = list_price(list, &speeds.model, TokenClass::Input);
    let output_price = list_price(list, &speeds.model, TokenClass::Output);
    let margin = |price: Option<f64>, cost: f64| {
        price.filter(|price| *price > 0.0).map(|price| (price - cost) / price)
    };
    Costs {
        model: speeds.model.clone(),
        input_tokens_per_s: speeds.input,
        output_tokens_per_s: speeds.output,
        input_cost,
        output_cost,
        input_price,
        output_price,
        input_margin: margin(input_price, input_cost),
        output_margin: margin(output_price, output_cost),
    }
}

/// Of the first tier, for a million tokens.
fn list_price(list: &PriceVersion, model: &str, class: TokenClass) -> Option<f64> {
    let tier = list.document().model(model)?.tiers.first()?;
    Some(tier.pico_per_token.of(class) as f64 * 1e6 / UNIT_PICO)
}

fn table(costs: &[Costs], args: &CostArgs, list: &PriceVersion) -> String {
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"));
    let share = |value: Option<f64>| {
        value.map_or_else(|| "-".to_owned(), |v| format!("{:+.1} %", v * 100.0))
    };
    let mut rows = Vec::new();
    for cost in costs {
        let kinds = [
            (
                "input",
                cost.input_tokens_per_s,
                cost.input_cost,
                cost.input_price,
                cost.input_margin,
            ),
            (
                "output",
                cost.output_tokens_per_s,
                cost.output_cost,
                cost.output_price,
                cost.output_margin,
            ),
        ];
        for (kind, speed, paid, price, margin) in kinds {
            rows.push(vec![
                cost.model.clone(),
                kind.to_owned(),
                format!("{speed:.1}"),
                number(Some(paid)),
                number(price),
                share(margin),
            ]);
        }
    }
    let document = list.document();
    let mut text = format!(
        "{} {} an hour, at work {} % of it; prices of the list `{}`; {} for a million tokens\n\n",
        args.per_hour, document.currency, args.utilisation, document.name, document.currency
    );
    text += &output::table(&["MODEL", "TOKENS", "TOKENS/S", "COST", "LIST PRICE", "MARGIN"], &rows);
    text
}

/// Counters of one model in a server's metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counters {
    prompt: f64,
    cached: f64,
    generated: f64,
}

/// What a server did in some time, and what that cost and brought at list prices. One machine price cannot be told
/// apart by model or by input and output, so this is the whole machine.
fn live(url: &str, args: &CostArgs, list: &PriceVersion) -> Result<()> {
    eprintln!("watching {url} for {} s …", args.seconds);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (before, after) = runtime.block_on(async {
        let before = scrape(url).await?;
        tokio::time::sleep(Duration::from_secs(args.seconds)).await;
        anyhow::Ok((before, scrape(url).await?))
    })?;
    let paid = args.per_hour / 3600.0 * args.seconds as f64;
    let (mut rows, mut tokens, mut revenue) = (Vec::new(), 0.0, 0.0);
    for (model, now) in after {
        let was = before.iter().find(|(name, _)| *name == model).map(|(_, was)| *was);
        let was = was.unwrap_or_default();
        // A server that was restarted counts from 0 again.
        let grown = |now: f64, was: f64| if now >= was { now - was } else { now };
        let prompt = grown(now.prompt, was.prompt);
        let cached = grown(now.cached, was.cached).min(prompt);
        let generated = grown(now.generated, was.generated);
        let price = |class| list_price(list, &model, class).unwrap_or(0.0) / 1e6;
        let brought = (prompt - cached) * price(TokenClass::Input)
            + cached * price(TokenClass::CachedInput)
            + generated * price(TokenClass::Output);
        tokens += prompt + generated;
        revenue += brought;
        rows.push(vec![
            model,
            format!("{prompt:.0}"),
            format!("{cached:.0}"),
            format!("{generated:.0}"),
            format!("{brought:.6}"),
        ]);
    }
    ensure!(tokens > 0.0, "the server computed no tokens in this time; ask it something meanwhile");
    let currency = list.document().currency;
    let mut text = output::table(&["MODEL", "PROMPT", "OF IT CACHED", "OUTPUT", "REVENUE"], &rows);
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "\n{} s of the machine cost {paid:.6} {currency}; {tokens:.0} tokens, so {:.4} {currency} a million\n\
         at list prices they bring {revenue:.6} {currency}: margin {:+.1} %\n",
        args.seconds,
        paid / tokens * 1e6,
        if revenue > 0.0 { (revenue - paid) / revenue * 100.0 } else { f64::NEG_INFINITY },
    );
    output::print(&text)?;
    Ok(())
}

async fn scrape(url: &str) -> Result<Vec<(String, Counters)>> {
    let url = format!("{}/metrics", url.trim_end_matches('/'));
    let context = || format!("{url} cannot be read; is the server running?");
    let client = reqwest::Client::builder().timeout(TIMEOUT).build()?;
    let answer = client.get(&url).send().await.with_context(context)?;
    let mut answer = answer.error_for_status().with_context(context)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.with_context(context)? {
        bytes.extend_from_slice(&chunk);
        ensure!(bytes.len() as u64 <= MAX_BYTES, "{url} answers with more than {MAX_BYTES} bytes");
    }
    Ok(counters(&String::from_utf8_lossy(&bytes)))
}

/// Reads vLLM's names for tokens, by model.
fn counters(metrics: &str) -> Vec<(String, Counters)> {
    let mut found: Vec<(String, Counters)> = Vec::new();
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let Some((labels, value)) = rest.rsplit_once('}') else { continue };
        let model = labels.split("model_name=\"").nth(1).and_then(|rest| rest.split('"').next());
        let (Some(model), Ok(value)) = (model, value.trim().parse::<f64>()) else { continue };
        let index = found.iter().position(|(known, _)| known == model).unwrap_or_else(|| {
            found.push((model.to_owned(), Counters::default()));
            found.len() - 1
        });
        let counters = &mut found[index].1;
        match name.trim_start_matches("vllm:").trim_end_matches("_total") {
            "prompt_tokens" => counters.prompt = value,
            "prompt_tokens_cached" => counters.cached = value,
            "generation_tokens" => counters.generated = value,
            _ => {}
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

#[cfg(test)]
mod tests {
    use mintage_ledger::price::PriceDocument;

    use super::*;

    #[test]
    fn a_machines_hour_is_spread_over_its_tokens() {
        let report = r#"{"model": "default", "threads": 2, "measured": [
            {"name": "prefill 512", "tokens_per_s": 500.0, "runs": []},
            {"name": "prefill 2048", "tokens_per_s": 400.0, "runs": []},
            {"name": "decode at 0", "tokens_per_s": 40.0, "runs": []},
            {"name": "decode, 16 users", "tokens_per_s": 100.0, "runs": []}]}"#;
        let speeds = best(serde_json::from_str(report).unwrap()).unwrap();
        let list = PriceVersion::new(PriceDocument::from_toml(price::SHIPPED).unwrap());
        // 0.36 an hour is 0.0001 a second: 0.2 for a million at 500 a second, 1.0 at 100.
        let costs = costs(&speeds, 0.36 / 3600.0, &list);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        close(costs.input_cost, 0.2);
        close(costs.output_cost, 1.0);
        close(costs.input_margin.unwrap(), (0.3 - 0.2) / 0.3);
        close(costs.output_margin.unwrap(), (0.6 - 1.0) / 0.6);
        let nothing = BenchReport { model: "m".to_owned(), measured: Vec::new() };
        assert!(best(nothing).is_err());
    }

    #[test]
    fn counters_are_read_by_model() {
        let metrics = "# HELP vllm:prompt_tokens_total x\n\
            vllm:prompt_tokens_total{model_name=\"a\",engine=\"0\"} 120\n\
            vllm:generation_tokens_total{model_name=\"a\",engine=\"0\"} 30\n\
            vllm:prompt_tokens_cached_total{model_name=\"a\",engine=\"0\"} 20\n\
            vllm:generation_tokens_total{model_name=\"b\",engine=\"0\"} 5\n\
            broken{\nother 5\n";
        let a = Counters { prompt: 120.0, cached: 20.0, generated: 30.0 };
        let b = Counters { generated: 5.0, ..Counters::default() };
        assert_eq!(counters(metrics), [("a".to_owned(), a), ("b".to_owned(), b)]);
    }
}
