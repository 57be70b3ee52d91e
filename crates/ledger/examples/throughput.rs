//! Requests a second through the ledger with durable commits: `throughput FOLDER [CALLERS [SECONDS]]`.
//!
//! Each caller admits, settles and waits for the disk, one request after the other. A line a second, then latencies and
//! the processor time of a request, callers included.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mintage_ledger::{
    Admission, Amount, Ask, Currency, Ledger, Outcome, Payer, Quote, Rating, RequestFacts,
    Together, TokenUsage,
};

struct FlatPrice;

impl Rating for FlatPrice {
    fn version(&self) -> Arc<str> {
        "2026-11".into()
    }

    fn currency(&self) -> Currency {
        Currency::CNY
    }

    fn quote(&self, ask: &Ask, _: u64) -> Option<Quote> {
        let tokens = ask.prompt_tokens + ask.max_output_tokens;
        Some(Quote { amount: Amount::from_pico(i128::from(tokens) * 1_000), free_tokens: 0 })
    }

    fn rate(&self, _: &Ask, usage: &TokenUsage, _: u64) -> Option<Quote> {
        let amount = Amount::from_pico(i128::from(usage.total()) * 1_000);
        Some(Quote { amount, free_tokens: 0 })
    }
}

fn admission(id: String, org: u64) -> Admission {
    let payer = Payer {
        org: format!("org-{org}").into(),
        project: format!("proj-{org}").into(),
        key: "Ab3dEf9hIjKl".into(),
    };
    let facts = RequestFacts {
        id: id.into(),
        payer,
        model: "qwen2.5-coder:0.5b".into(),
        model_digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
            .into(),
        protocol: "openai.chat".into(),
        client: "openai-python/2.8".into(),
        arrival_ms: 1_795_000_000_000,
        ..RequestFacts::default()
    };
    let ask = Ask { prompt_tokens: 100, max_output_tokens: 100, n: 1, ..Ask::default() };
    Admission { facts, ask, rating: Arc::new(FlatPrice) }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("throughput FOLDER [CALLERS [SECONDS]]")?);
    let callers: u64 = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let ledger = Ledger::open(&folder)?;
    for org in 0..16 {
        let (name, id) = (format!("org-{org}"), format!("t-{org}"));
        ledger.topup(&id, &name, Currency::CNY, Amount::from_units(1_000_000))?.wait()?;
    }
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let run = std::process::id();
    let latencies = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..callers)
            .map(|caller| {
                let (ledger, stop, served) = (&ledger, &stop, &served);
                scope.spawn(move || {
                    let mut latencies = Vec::new();
                    let mut number = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        number += 1;
                        let id = format!("chatcmpl-{number:012}-{run}-{caller}");
                        let started = Instant::now();
                        let request = admission(id, caller % 16);
                        let Ok(hold) = ledger.admit(request, |_| Ok::<(), ()>(())) else { break };
                        let usage = TokenUsage { input: 100, output: 50, ..TokenUsage::default() };
                        let outcome = Outcome { finish: "stop".into(), ..Outcome::default() };
                        let settled = ledger.settle(hold, usage, outcome, Together::default());
                        if settled.wait().is_err() {
                            break;
                        }
                        latencies.push(started.elapsed());
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    latencies
                })
            })
            .collect();
        for _ in 0..seconds {
            let before = served.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_secs(1));
            println!("{} requests/s", served.load(Ordering::Relaxed) - before);
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    report(latencies, &ledger);
    Ok(())
}

fn report(mut latencies: Vec<Duration>, ledger: &Ledger) {
    latencies.sort();
    let at = |part: f64| {
        let index = (latencies.len() as f64 * part) as usize;
        latencies.get(index.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    let counts = ledger.writer_counts();
    println!(
        "{} requests, latency p50 {:.2?} p99 {:.2?} max {:.2?}; {} commits of {:.1}, {:.2?} each, longest {:.2?}",
        latencies.len(),
        at(0.5),
        at(0.99),
        at(1.0),
        counts.commits,
        counts.works as f64 / counts.commits.max(1) as f64,
        counts.commit_time.checked_div(counts.commits as u32).unwrap_or_default(),
        counts.longest_commit
    );
    if let Some(seconds) = processor_seconds() {
        println!("{:.1} µs of processor a request", seconds * 1e6 / latencies.len().max(1) as f64);
    }
}

/// User and system time of this process, where the system tells (ticks are 10 ms on Linux).
fn processor_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().filter_map(|i| fields.get(*i)?.parse::<f64>().ok()).sum();
    Some(ticks / 100.0)
}
