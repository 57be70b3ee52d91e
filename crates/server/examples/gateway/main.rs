//! The server around `ScriptedEngine`, with keys, limits and a durable ledger: how much the gateway itself can do.
//!
//! `cargo run --release -p mintage-server --example gateway -- bench MODEL.gguf [SECONDS] [CONNECTIONS] [RATE…]` loads it
//! over loopback from a process of its own and prints requests a second, latencies and processor time, without a ledger
//! and with it; each as fast as it can be, then at each RATE (requests due a second, whatever the server does). The
//! engine answers at once, so all of a latency is what the server adds; the last lines take the mean commit off it.
//! `… -- relay MODEL.gguf [SECONDS] [CONNECTIONS]` loads a second server in front of it, which keeps connections or not.
//! `… -- serve MODEL.gguf FOLDER` serves with the ledger in FOLDER and prices, until it is killed: prints the address
//! and a key. The text side of MODEL.gguf is real: template and tokens.

use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use mintage_ledger::directory::DirectoryStore;
use mintage_ledger::limits::{Calendar, Policy, RateRule};
use mintage_ledger::{Amount, Ask, Currency, Ledger, NewKey, Quote, Rating, TokenUsage, UNLIMITED};
use mintage_model::{
    EngineInfo, GenerationDefaults, GrammarCompiler, GrammarLimits, ModelFile, Script,
    ScriptedEngine, TextModel,
};
use mintage_server::{Access, Billing, ServedModel, Server, ServerConfig, StorageConfig};

mod load;
mod relay;

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Tokens of each answer.
const ANSWER_TOKENS: usize = 8;

/// One price for each class of tokens.
struct Flat;

fn price(usage: &TokenUsage) -> Option<Quote> {
    let pico = i128::from(usage.prompt()) * 800_000 + i128::from(usage.completion()) * 2_000_000;
    Some(Quote { amount: Amount::from_pico(pico), free_tokens: 0 })
}

impl Rating for Flat {
    fn version(&self) -> Arc<str> {
        "flat".into()
    }

    fn currency(&self) -> Currency {
        Currency::CNY
    }

    fn quote(&self, ask: &Ask, _free_left: u64) -> Option<Quote> {
        let output = ask.max_output_tokens.saturating_mul(ask.n.into());
        price(&TokenUsage { input: ask.prompt_tokens, output, ..TokenUsage::default() })
    }

    fn rate(&self, ask: &Ask, usage: &TokenUsage, _free: u64) -> Option<Quote> {
        let whole = price(usage)?;
        // Half of it in batches.
        let pico = whole.amount.pico() / if ask.batch { 2 } else { 1 };
        Some(Quote { amount: Amount::from_pico(pico), ..whole })
    }
}

/// A server, and how to reach it.
pub(crate) struct House {
    pub(crate) server: Server,
    pub(crate) key: String,
    ledger: Option<Arc<Ledger>>,
}

pub(crate) fn house(
    model: &str,
    folder: &Path,
    with_ledger: bool,
    token_delay: Duration,
) -> Outcome<House> {
    let file = ModelFile::open(Path::new(model))?;
    let text = Arc::new(TextModel::from_model_file(&file)?);
    let vocab_size = u32::try_from(text.tokenizer().vocab_size())?;
    let info = EngineInfo { model: "scripted".to_owned(), context_length: 4096, vocab_size };
    let engine = ScriptedEngine::new(info, 4096, move |request| {
        // The words of the prompt again, without its control tokens.
        let ends = |id: &u32| request.stop_token_ids.contains(id);
        let words = request.prompt.iter().copied().filter(|id| !ends(id));
        let tokens = if token_delay.is_zero() { ANSWER_TOKENS } else { 400 };
        let tokens: Vec<u32> = words.collect::<Vec<_>>().into_iter().cycle().take(tokens).collect();
        Ok(Script { tokens, token_delay, ..Script::default() })
    });
    let keys = DirectoryStore::open(&folder.join("keys"))?;
    let project = keys.ensure_tenant("default", 0)?;
    // Rules that count and never refuse.
    let rule = RateRule {
        requests_per_minute: Some(1 << 40),
        tokens_per_minute: Some(1 << 40),
        requests_in_flight: Some(1 << 20),
        ..RateRule::default()
    };
    let policy = Policy { rates: vec![rule], ..Policy::default() };
    let key = keys.create_key(NewKey { policy, ..NewKey::of_project("bench", &project.id) }, 0)?;
    let billing = if with_ledger { Some(billing(folder, &project.organisation)?) } else { None };
    let ledger = billing.as_ref().map(|billing| Arc::clone(&billing.ledger));
    let served = ServedModel {
        name: "scripted".to_owned(),
        aliases: Vec::new(),
        engine: Arc::new(engine),
        grammars: GrammarCompiler::new(Arc::clone(&text), GrammarLimits::default()),
        text,
        created_unix: 0,
        digest: "".into(),
        defaults: GenerationDefaults::default(),
    };
    let config = ServerConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        storage: Some(StorageConfig::in_folder(folder.join("files"))),
        ..ServerConfig::default()
    };
    let server = Server::bind(config, vec![served], Access::Keys(Arc::new(keys)), billing)?;
    Ok(House { server, key: key.secret.expose().to_owned(), ledger })
}

fn billing(folder: &Path, organisation: &str) -> Outcome<Billing> {
    let ledger = Arc::new(Ledger::open(&folder.join("ledger"))?);
    ledger.credit_line("example", organisation, Currency::CNY, UNLIMITED)?.wait()?;
    let rating: Arc<dyn Rating> = Arc::new(Flat);
    let prices = Arc::new(move |_: &str, _: u64| Some(Arc::clone(&rating)));
    Ok(Billing { ledger, prices, lists: None, calendar: Calendar::default(), retention_days: None })
}

pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

fn serve(model: &str, folder: &str) -> Outcome<()> {
    let runtime = runtime()?;
    let _entered = runtime.enter();
    let house = house(model, Path::new(folder), true, Duration::from_millis(1))?;
    let address = house.server.local_addr();
    println!("BASE_URL=http://{address}/v1\nAPI_KEY={}\nMODEL=scripted", house.key);
    std::io::stdout().flush()?;
    runtime.block_on(house.server.run(std::future::pending()));
    Ok(())
}

/// Processor time of this process so far.
pub(crate) fn processor_time() -> Outcome<Duration> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    // After the name, which may hold anything: user and system time are the 12th and 13th, in hundredths of a second.
    let fields = text.rsplit_once(')').ok_or("no /proc/self/stat")?.1.split_whitespace();
    let ticks: Vec<u64> = fields.skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
}

fn request(key: &str) -> Vec<u8> {
    let body = r#"{"model":"scripted","max_tokens":8,"messages":[{"role":"user","content":"Reverse a string in Python, please."}]}"#;
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// In a process of its own, so that its processor time is its own too.
fn load(address: &str, key: &str, seconds: &str, connections: &str, rate: &str) -> Outcome<()> {
    let address: SocketAddr = address.parse()?;
    let loaded =
        load::run(address, &request(key), seconds.parse()?, connections.parse()?, rate.parse()?)?;
    println!(
        "{:.0} requests/s, p50 {:.2} ms, p99 {:.2} ms, {} requests, load itself {:.0} us a request",
        loaded.rate(),
        loaded.at_ms(0.5),
        loaded.at_ms(0.99),
        loaded.latencies.len(),
        processor_time()?.as_secs_f64() * 1e6 / loaded.latencies.len().max(1) as f64
    );
    Ok(())
}

/// The number that stands behind `name` in what a load said.
fn said_number(said: &str, name: &str) -> Outcome<f64> {
    let rest = said.split_once(name).ok_or("the load says something else")?.1;
    Ok(rest.split(' ').next().unwrap_or_default().parse()?)
}

/// One load.
struct Measured {
    p50_ms: f64,
    p99_ms: f64,
    /// The mean; 0 without a ledger.
    commit_ms: f64,
}

fn measure(
    model: &str,
    with_ledger: bool,
    seconds: &str,
    connections: &str,
    rates: &[&str],
) -> Outcome<Vec<Measured>> {
    let folder = tempfile::tempdir()?;
    let runtime = runtime()?;
    let entered = runtime.enter();
    let house = house(model, folder.path(), with_ledger, Duration::ZERO)?;
    let address = house.server.local_addr().to_string();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = runtime.spawn(house.server.run(async {
        let _ = stopped.await;
    }));
    drop(entered);
    let mut all = Vec::new();
    for (connections, rate) in
        std::iter::once((connections, "0")).chain(rates.iter().map(|rate| (connections, *rate)))
    {
        let before = (processor_time()?, house.ledger.as_ref().map(|l| l.writer_counts()));
        let arguments = ["load", &address, &house.key, seconds, connections, rate];
        let child = Command::new(std::env::current_exe()?).args(arguments).output()?;
        if !child.status.success() {
            return Err(String::from_utf8_lossy(&child.stderr).into_owned().into());
        }
        let said = String::from_utf8(child.stdout)?;
        let count = said.split(", ").nth(3).and_then(|part| part.split(' ').next());
        let count: f64 = count.ok_or("the load says nothing")?.parse()?;
        let spent = (processor_time()? - before.0).as_secs_f64() * 1e6 / count;
        let mut commit_ms = 0.0;
        let commits = house.ledger.as_ref().zip(before.1).map(|(ledger, before)| {
            let now = ledger.writer_counts();
            let (commits, works) = (now.commits - before.commits, now.works - before.works);
            let mean = (now.commit_time - before.commit_time).as_secs_f64() / commits.max(1) as f64;
            commit_ms = mean * 1000.0;
            format!(
                ", a commit {commit_ms:.2} ms for {} requests, the longest so far {:.1} ms",
                works / commits.max(1),
                now.longest_commit.as_secs_f64() * 1000.0
            )
        });
        println!(
            "ledger {:3}, {connections} connections, {}: {}, server {spent:.0} us{}",
            if with_ledger { "on" } else { "off" },
            if rate == "0" {
                "as fast as can be".to_owned()
            } else {
                format!("{rate} due a second")
            },
            said.trim(),
            commits.unwrap_or_default()
        );
        let (p50_ms, p99_ms) = (said_number(&said, "p50 ")?, said_number(&said, "p99 ")?);
        all.push(Measured { p50_ms, p99_ms, commit_ms });
    }
    let _ = stop.send(());
    runtime.block_on(running)?;
    Ok(all)
}

fn bench(model: &str, seconds: &str, connections: &str, rates: &[&str]) -> Outcome<()> {
    let off = measure(model, false, seconds, connections, rates)?;
    let on = measure(model, true, seconds, connections, rates)?;
    // The first of each is as fast as can be: there, latencies tell how many connections wait for each other.
    for (rate, (off, on)) in rates.iter().zip(off.iter().zip(&on).skip(1)) {
        println!(
            "{rate} due a second: keys, limits and ledger add p50 {:.2} ms beyond the commit ({:.2} - {:.2}) and p99 \
             {:.2} ms with it; the ledger's part of p50 is {:.2} ms",
            on.p50_ms - on.commit_ms,
            on.p50_ms,
            on.commit_ms,
            on.p99_ms,
            on.p50_ms - off.p50_ms
        );
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["serve", model, folder] => serve(model, folder),
        ["load", address, key, seconds, connections, rate] => {
            load(address, key, seconds, connections, rate)
        }
        ["bench", model, rest @ ..] => {
            let seconds = rest.first().copied().unwrap_or("5");
            let connections = rest.get(1).copied().unwrap_or("64");
            let rates = rest.get(2..).unwrap_or_default();
            bench(model, seconds, connections, rates)
        }
        ["relay", model, rest @ ..] => {
            let seconds = rest.first().copied().unwrap_or("5");
            relay::bench(model, seconds, rest.get(1).copied().unwrap_or("64"))
        }
        _ => Err("usage: gateway relay MODEL.gguf [SECONDS] [CONNECTIONS] | gateway bench MODEL.gguf [SECONDS] [CONNECTIONS] [RATE…] | gateway serve MODEL.gguf FOLDER | gateway load ADDRESS KEY SECONDS CONNECTIONS RATE".into()),
    }
}
