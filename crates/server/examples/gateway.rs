//! The server around `ScriptedEngine`, with keys, limits and a durable ledger: how much the gateway itself can do.
//!
//! `cargo run --release -p mintage-server --example gateway -- bench MODEL.gguf [SECONDS] [CONNECTIONS]` loads it over
//! loopback from threads of the same process and prints requests a second and latencies, without a ledger and with it.
//! `… -- serve MODEL.gguf FOLDER` serves with the ledger in FOLDER and prices, until it is killed: prints the address
//! and a key. The text side of MODEL.gguf is real: template and tokens.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mintage_ledger::directory::DirectoryStore;
use mintage_ledger::limits::{Calendar, Policy, RateRule};
use mintage_ledger::{Amount, Ask, Currency, Ledger, NewKey, Quote, Rating, TokenUsage, UNLIMITED};
use mintage_model::{
    EngineInfo, GenerationDefaults, GrammarCompiler, GrammarLimits, ModelFile, Script,
    ScriptedEngine, TextModel,
};
use mintage_server::{Access, Billing, ServedModel, Server, ServerConfig};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

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

    fn rate(&self, _ask: &Ask, usage: &TokenUsage, _free: u64) -> Option<Quote> {
        price(usage)
    }
}

/// A server, and how to reach it.
struct House {
    server: Server,
    key: String,
}

fn house(model: &str, folder: &Path, with_ledger: bool, token_delay: Duration) -> Outcome<House> {
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
    let served = ServedModel {
        name: "scripted".to_owned(),
        aliases: Vec::new(),
        engine: Arc::new(engine),
        grammars: GrammarCompiler::new(Arc::clone(&text), GrammarLimits::default()),
        text,
        created_unix: 0,
        defaults: GenerationDefaults::default(),
    };
    let config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ServerConfig::default() };
    let server = Server::bind(config, vec![served], Access::Keys(Arc::new(keys)), billing)?;
    Ok(House { server, key: key.secret.expose().to_owned() })
}

fn billing(folder: &Path, organisation: &str) -> Outcome<Billing> {
    let ledger = Arc::new(Ledger::open(&folder.join("ledger"))?);
    ledger.credit_line("example", organisation, Currency::CNY, UNLIMITED)?.wait()?;
    let rating: Arc<dyn Rating> = Arc::new(Flat);
    let prices = Arc::new(move |_: &str, _: u64| Some(Arc::clone(&rating)));
    Ok(Billing { ledger, prices, lists: None, calendar: Calendar::default() })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
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

/// One connection, one request after the other until `end`: latencies.
fn client(address: SocketAddr, request: &[u8], end: Instant) -> Outcome<Vec<Duration>> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut latencies = Vec::new();
    let (mut line, mut body) = (String::new(), Vec::new());
    while Instant::now() < end {
        let start = Instant::now();
        socket.write_all(request)?;
        let mut length = 0;
        for first in std::iter::once(true).chain(std::iter::repeat(false)) {
            line.clear();
            reader.read_line(&mut line)?;
            if first && !line.starts_with("HTTP/1.1 200") {
                return Err(format!("the server answers {line}").into());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
        latencies.push(start.elapsed());
    }
    Ok(latencies)
}

fn measure(model: &str, with_ledger: bool, seconds: u64, connections: usize) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let runtime = runtime()?;
    let entered = runtime.enter();
    let house = house(model, folder.path(), with_ledger, Duration::ZERO)?;
    let address = house.server.local_addr();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = runtime.spawn(house.server.run(async {
        let _ = stopped.await;
    }));
    drop(entered);
    let body = r#"{"model":"scripted","max_tokens":8,"messages":[{"role":"user","content":"Reverse a string in Python, please."}]}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        house.key,
        body.len()
    );
    let end = Instant::now() + Duration::from_secs(seconds);
    let clients: Vec<_> = (0..connections)
        .map(|_| {
            let request = request.clone();
            std::thread::spawn(move || client(address, request.as_bytes(), end))
        })
        .collect();
    let mut all = Vec::new();
    for client in clients {
        all.extend(client.join().map_err(|_| "a client panicked")??);
    }
    all.sort_unstable();
    let at = |part: f64| {
        let index = ((all.len() as f64 * part) as usize).min(all.len().saturating_sub(1));
        all.get(index).map_or(0.0, |d| d.as_secs_f64() * 1000.0)
    };
    println!(
        "ledger {:3}: {:6.0} requests/s, p50 {:.2} ms, p99 {:.2} ms, {} requests on {connections} connections",
        if with_ledger { "on" } else { "off" },
        all.len() as f64 / seconds as f64,
        at(0.5),
        at(0.99),
        all.len()
    );
    let _ = stop.send(());
    runtime.block_on(running)?;
    Ok(())
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["serve", model, folder] => serve(model, folder),
        ["bench", model, rest @ ..] => {
            let seconds = rest.first().map_or(Ok(5), |text| text.parse())?;
            let connections = rest.get(1).map_or(Ok(64), |text| text.parse())?;
            measure(model, false, seconds, connections)?;
            measure(model, true, seconds, connections)
        }
        _ => Err("usage: gateway bench MODEL.gguf [SECONDS] [CONNECTIONS] | gateway serve MODEL.gguf FOLDER".into()),
    }
}
