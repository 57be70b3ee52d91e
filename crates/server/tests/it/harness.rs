//! A running server with a scripted engine, and a client that sees every byte.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mintage_ledger::limits::Calendar;
use mintage_ledger::price::KeptPrices;
use mintage_ledger::{
    Amount, Ask, Currency, DirectoryStore, Ledger, NewKey, Quote, Rating, TokenUsage, UNLIMITED,
    UsageFilter, UsageRecord,
};
use mintage_model::{
    Engine, EngineInfo, GenerateRequest, GenerationDefaults, GgufVocabulary, GrammarCompiler,
    GrammarLimits, Script, ScriptedEngine, SubmitError, TextModel, Tokenizer,
};
use mintage_server::{
    Access, Billing, Models, ServedModel, Server, ServerConfig, StorageConfig, VectorModel,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// Longer than any test should take.
const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const MODEL: &str = "scripted";
pub(crate) const END: u32 = 257;
pub(crate) const CONTEXT: u32 = 512;
pub(crate) const VOCAB: u32 = 259;

/// A server, its engine and its key.
pub(crate) struct House {
    pub(crate) address: SocketAddr,
    pub(crate) key: String,
    pub(crate) engine: Arc<ScriptedEngine>,
    pub(crate) keys: Arc<DirectoryStore>,
    pub(crate) ledger: Arc<Ledger>,
    /// Of `key`.
    pub(crate) organisation: String,
    pub(crate) project: String,
    shutdown: Option<oneshot::Sender<()>>,
    running: tokio::task::JoinHandle<()>,
    folder: tempfile::TempDir,
}

/// An answer, taken apart.
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Name (lower case) and value, in order.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// Whether a chunked body was complete.
    pub(crate) complete: bool,
}

/// A script that says `text`, then ends the turn.
pub(crate) fn says(text: &str) -> Script {
    Script { tokens: text.bytes().map(u32::from).chain([END]).collect(), ..Script::default() }
}

pub(crate) async fn start(script: Script) -> House {
    start_with(|_| {}, move |_| Ok(script.clone())).await
}

pub(crate) async fn start_with(
    change: impl FnOnce(&mut ServerConfig),
    respond: impl Fn(&GenerateRequest) -> Result<Script, SubmitError> + Send + Sync + 'static,
) -> House {
    start_on(|folder| Ledger::open(folder).unwrap(), change, respond).await
}

/// The same on a ledger that `open` opens in a folder.
pub(crate) async fn start_on(
    open: impl FnOnce(&Path) -> Ledger,
    change: impl FnOnce(&mut ServerConfig),
    respond: impl Fn(&GenerateRequest) -> Result<Script, SubmitError> + Send + Sync + 'static,
) -> House {
    start_at(tempfile::tempdir().unwrap(), text_model(), open, change, respond, Vec::new()).await
}

/// Of a model with another text side.
pub(crate) async fn start_speaking(
    text: TextModel,
    respond: impl Fn(&GenerateRequest) -> Result<Script, SubmitError> + Send + Sync + 'static,
) -> House {
    let folder = tempfile::tempdir().unwrap();
    start_at(folder, text, |folder| Ledger::open(folder).unwrap(), |_| {}, respond, Vec::new())
        .await
}

/// The same beside models that make vectors.
pub(crate) async fn start_beside(
    vectors: Vec<VectorModel>,
    change: impl FnOnce(&mut ServerConfig),
) -> House {
    let folder = tempfile::tempdir().unwrap();
    let open = |folder: &Path| Ledger::open(folder).unwrap();
    start_at(folder, text_model(), open, change, |_| Ok(says("Hi")), vectors).await
}

/// With what an earlier server left in the folder, under a new key.
pub(crate) async fn start_in(
    folder: tempfile::TempDir,
    change: impl FnOnce(&mut ServerConfig),
    respond: impl Fn(&GenerateRequest) -> Result<Script, SubmitError> + Send + Sync + 'static,
) -> House {
    let open = |folder: &Path| Ledger::open(folder).unwrap();
    start_at(folder, text_model(), open, change, respond, Vec::new()).await
}

async fn start_at(
    folder: tempfile::TempDir,
    text: TextModel,
    open: impl FnOnce(&Path) -> Ledger,
    change: impl FnOnce(&mut ServerConfig),
    respond: impl Fn(&GenerateRequest) -> Result<Script, SubmitError> + Send + Sync + 'static,
    vectors: Vec<VectorModel>,
) -> House {
    let mut config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ServerConfig::default() };
    config.storage = Some(StorageConfig::in_folder(folder.path().join("files")));
    change(&mut config);
    let keys = Arc::new(DirectoryStore::open(folder.path()).unwrap());
    let project = keys.ensure_tenant("acme", 0).unwrap();
    let key = keys.create_key(NewKey::of_project("test", &project.id), 0).unwrap();
    let vocab_size = text.tokenizer().vocab_size() as u32;
    let info = EngineInfo { model: MODEL.to_owned(), context_length: CONTEXT, vocab_size };
    let engine = Arc::new(ScriptedEngine::new(info, 64, respond));
    let text = Arc::new(text);
    let model = ServedModel {
        name: MODEL.to_owned(),
        aliases: vec!["org/alias".to_owned()],
        engine: Arc::clone(&engine) as Arc<dyn Engine>,
        grammars: GrammarCompiler::new(Arc::clone(&text), GrammarLimits::default()),
        text,
        created_unix: 1_700_000_000,
        digest: "sha256:7e57".into(),
        defaults: GenerationDefaults { eos: vec![END], ..GenerationDefaults::default() },
    };
    let ledger = Arc::new(open(&folder.path().join("ledger")));
    ledger
        .credit_line("test", &project.organisation, Currency::CNY, UNLIMITED)
        .unwrap()
        .await
        .unwrap();
    let rating: Arc<dyn Rating> = Arc::new(Flat);
    let billing = Billing {
        ledger: Arc::clone(&ledger),
        prices: Arc::new(move |_: &str, _: u64| Some(Arc::clone(&rating))),
        lists: Some(Arc::new(KeptPrices::open(&ledger).unwrap())),
        calendar: Calendar::default(),
        retention_days: None,
    };
    let access = Access::Keys(Arc::clone(&keys));
    let server =
        Server::bind(config, Models { text: vec![model], vectors }, access, Some(billing)).unwrap();
    let address = server.local_addr();
    let (shutdown, signal) = oneshot::channel();
    let running = tokio::spawn(server.run(async {
        let _ = signal.await;
    }));
    House {
        address,
        key: key.secret.expose().to_owned(),
        engine,
        keys,
        ledger,
        organisation: project.organisation,
        project: project.id,
        shutdown: Some(shutdown),
        running,
        folder,
    }
}

/// A price list with one price a class of tokens.
pub(crate) struct Flat;

pub(crate) const INPUT_PICO: i128 = 100;
pub(crate) const CACHED_PICO: i128 = 10;
pub(crate) const OUTPUT_PICO: i128 = 1000;

/// What this usage costs by [`Flat`].
pub(crate) fn price(usage: &TokenUsage) -> Amount {
    Amount::from_pico(
        i128::from(usage.input) * INPUT_PICO
            + i128::from(usage.cached_input) * CACHED_PICO
            + i128::from(usage.completion()) * OUTPUT_PICO,
    )
}

/// The same, and half of it in batches.
fn price_of(batch: bool, usage: &TokenUsage) -> Amount {
    let whole = price(usage).pico();
    Amount::from_pico(if batch { whole / 2 } else { whole })
}

impl Rating for Flat {
    fn version(&self) -> Arc<str> {
        "flat-1".into()
    }

    fn currency(&self) -> Currency {
        Currency::CNY
    }

    fn quote(&self, ask: &Ask, _free_left: u64) -> Option<Quote> {
        let output = ask.max_output_tokens * u64::from(ask.n);
        let most = TokenUsage { input: ask.prompt_tokens, output, ..TokenUsage::default() };
        Some(Quote { amount: price(&most), free_tokens: 0 })
    }

    fn rate(&self, ask: &Ask, usage: &TokenUsage, _free: u64) -> Option<Quote> {
        Some(Quote { amount: price_of(ask.batch, usage), free_tokens: 0 })
    }
}

/// What chats look like here: a smaller cousin of Qwen's, whose calls are read as Hermes writes them.
pub(crate) const TEMPLATE: &str = "{# <tool_call> #}{% if tools %}<|im_start|>tools{% for tool in tools %} {{ tool | tojson }}{% endfor %}<|im_end|>{% endif %}\
    {% for m in messages %}<|im_start|>{{ m.role }}{% if m.name %}({{ m.name }}){% endif %} {{ m.content }}\
    {% for call in m.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}\
    <|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}\
    {% if enable_thinking is false %}(no thinking){% endif %}";

/// A vocabulary of single bytes: the ids of a text are its bytes.
pub(crate) fn text_model() -> TextModel {
    text_model_with(TEMPLATE, &[])
}

/// The same with this template, and with more tokens behind those: text, and whether it is a control token.
pub(crate) fn text_model_with(template: &str, more: &[(&str, bool)]) -> TextModel {
    let more: Vec<_> =
        more.iter().map(|&(text, is_control)| (text, if is_control { 3 } else { 4 })).collect();
    byte_model(template, &more, &[])
}

/// The same with more tokens of some types, and the merges that make them.
pub(crate) fn byte_model(template: &str, more: &[(&str, i32)], merges: &[&str]) -> TextModel {
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_char(byte).to_string()).collect();
    tokens.extend(["<|im_start|>", "<|im_end|>", "<|endoftext|>"].map(str::to_owned));
    tokens.extend(more.iter().map(|(text, _)| (*text).to_owned()));
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let mut token_types: Vec<i32> = (0..VOCAB).map(|id| if id < 256 { 1 } else { 3 }).collect();
    token_types.extend(more.iter().map(|&(_, kind)| kind));
    let vocabulary = GgufVocabulary {
        model: "gpt2",
        pre: "qwen2",
        tokens: &tokens,
        token_types: &token_types,
        merges,
        bos_token_id: None,
        eos_token_id: Some(END),
        add_bos_token: Some(false),
        add_eos_token: None,
    };
    let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
    TextModel::new(tokenizer, Some(template), &[END]).unwrap()
}

/// GPT-2's way to write bytes as visible characters: those that are not visible follow from U+0100 on.
fn byte_char(byte: u8) -> char {
    let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if visible(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|b| !visible(*b)).count() as u32;
    char::from_u32(256 + rank).unwrap()
}

impl House {
    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(&self.request("GET", path, "")).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        self.post_text(path, &body.to_string()).await
    }

    pub(crate) async fn post_text(&self, path: &str, body: &str) -> Reply {
        self.send(&self.request("POST", path, body)).await
    }

    pub(crate) async fn chat(&self, body: Value) -> Reply {
        self.post("/v1/chat/completions", with_model(body)).await
    }

    pub(crate) async fn complete(&self, body: Value) -> Reply {
        self.post("/v1/completions", with_model(body)).await
    }

    /// A request in another dialect, with more headers and nothing added to its body.
    pub(crate) async fn speak(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        let method = if body.is_null() { "GET" } else { "POST" };
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut extra = String::from("\r\n");
        for (name, value) in headers {
            extra += &format!("{name}: {value}\r\n");
        }
        self.send(&self.request(method, path, &body).replacen("\r\n", &extra, 1)).await
    }

    /// A whole request that closes the connection.
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> String {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nuser-agent: harness/1\r\nauthorization: Bearer {}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.key,
            body.len()
        )
    }

    /// Sends bytes and reads to the end.
    pub(crate) async fn send(&self, request: &str) -> Reply {
        let bytes = self.exchange(request.as_bytes()).await;
        let reply = Reply::parse(&bytes);
        crate::described::check(request, &reply);
        reply
    }

    pub(crate) async fn exchange(&self, request: &[u8]) -> Vec<u8> {
        let mut socket = self.connect().await;
        // A server that refuses early may close before all is written.
        let _ = socket.write_all(request).await;
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut bytes)).await;
        // A reset after the answer is an end, too.
        let _ = read.expect("the server answers and closes");
        bytes
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// All usage records, by id.
    pub(crate) async fn records(&self) -> std::collections::BTreeMap<String, UsageRecord> {
        let ledger = Arc::clone(&self.ledger);
        let read = move || ledger.usage(&UsageFilter::default()).unwrap();
        let records = tokio::task::spawn_blocking(read).await.unwrap();
        records.into_iter().map(|(_, record)| (record.facts.id.to_string(), record)).collect()
    }

    /// Waits until no hold is open and `count` records are durable, and holds sums to each other.
    pub(crate) async fn settled(
        &self,
        count: usize,
    ) -> std::collections::BTreeMap<String, UsageRecord> {
        let start = std::time::Instant::now();
        loop {
            let records = self.records().await;
            if records.len() >= count && self.ledger.open_holds() == 0 {
                assert_eq!(records.len(), count, "{records:?}");
                let posted: Amount = records.values().map(|record| record.amount).sum();
                let balance = self.ledger.balance(&self.organisation, Currency::CNY);
                assert_eq!(balance.held, Amount::ZERO);
                assert_eq!(balance.balance.pico(), -posted.pico(), "one organisation spends");
                for record in records.values() {
                    assert_eq!(record.amount, price_of(record.facts.batch, &record.usage));
                }
                return records;
            }
            assert!(start.elapsed() < PATIENCE, "{} records of {count}", records.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A key of another organisation that may spend without limit: its text.
    pub(crate) async fn stranger(&self) -> String {
        let project = self.keys.ensure_tenant("stranger", 0).unwrap();
        let (id, org) = ("stranger", project.organisation.as_str());
        self.ledger.credit_line(id, org, Currency::CNY, UNLIMITED).unwrap().await.unwrap();
        let key = self.keys.create_key(NewKey::of_project("test", &project.id), 0).unwrap();
        key.secret.expose().to_owned()
    }

    /// The same server, asked with another key.
    pub(crate) async fn post_with(
        &self,
        key: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Reply {
        let request = self.request("POST", path, &with_model(body.clone()).to_string());
        let mut extra = String::new();
        for (name, value) in headers {
            extra += &format!("{name}: {value}\r\n");
        }
        let request = request.replace(&self.key, key).replacen("\r\n", &format!("\r\n{extra}"), 1);
        self.send(&request).await
    }

    pub(crate) async fn get_with(&self, key: &str, path: &str) -> Reply {
        self.send(&self.request("GET", path, "").replace(&self.key, key)).await
    }

    /// What the server keeps.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Begins the drain.
    pub(crate) fn stop(&mut self) {
        self.shutdown.take().unwrap().send(()).unwrap();
    }

    /// Waits for the server to be gone: what it left.
    pub(crate) async fn gone(self) -> tempfile::TempDir {
        tokio::time::timeout(PATIENCE, self.running).await.expect("the server ends").unwrap();
        self.folder
    }

    /// Waits until `count` requests to the engine have ended.
    pub(crate) async fn finished(&self, count: usize) -> Vec<mintage_model::Finish> {
        let wait = async {
            while self.engine.finished().len() < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the engine ends its requests");
        self.engine.finished().into_iter().map(|(_, finish)| finish).collect()
    }

    /// Waits until a page of metrics holds this line.
    pub(crate) async fn metric(&self, line: &str) {
        let wait = async {
            while !self.get("/metrics").await.body.lines().any(|l| l == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), wait).await.is_err() {
            panic!("no line `{line}` in\n{}", self.get("/metrics").await.body);
        }
    }
}

/// Adds the model's name and, for chats, a message, unless they are there.
fn with_model(mut body: Value) -> Value {
    let map = body.as_object_mut().unwrap();
    map.entry("model").or_insert_with(|| MODEL.into());
    if !map.contains_key("prompt") && !map.contains_key("input") {
        map.entry("messages")
            .or_insert_with(|| serde_json::json!([{"role": "user", "content": "Hi"}]));
    }
    body
}

impl Reply {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let mut lines = head.lines();
        let status = lines.next().and_then(|l| l.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
        let headers: Vec<(String, String)> = lines
            .filter_map(|l| l.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let chunked = headers.iter().any(|(n, v)| n == "transfer-encoding" && v == "chunked");
        let (body, complete) = if chunked { unchunk(body) } else { (body.to_owned(), true) };
        Self { status, headers, body, complete }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The data of the events, checking their form to the byte.
    pub(crate) fn events(&self) -> Vec<String> {
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"));
        assert!(self.complete && self.body.ends_with("\n\n"), "cut: {:?}", self.body);
        let frames = self.body.split_terminator("\n\n").filter(|f| !f.starts_with(':'));
        frames
            .map(|frame| {
                assert!(!frame.contains('\n'), "{frame:?}");
                frame.strip_prefix("data: ").unwrap_or_else(|| panic!("{frame:?}")).to_owned()
            })
            .collect()
    }

    /// Status, telling headers and body, without what differs from run to run.
    pub(crate) fn transcript(&self) -> String {
        let mut out = format!("HTTP {}\n", self.status);
        for (name, value) in &self.headers {
            if !matches!(name.as_str(), "date" | "content-length" | "x-request-id" | "request-id") {
                out += &format!("{name}: {value}\n");
            }
        }
        out + "\n" + &steady(&self.body)
    }
}

/// Replaces ids and times.
fn steady(body: &str) -> String {
    let mut out = body.to_owned();
    for begin in [
        "\"id\":\"chatcmpl-",
        "\"id\":\"cmpl-",
        "\"id\":\"embd-",
        "\"id\":\"rerank-",
        "\"id\":\"msg_",
        "\"request_id\":\"ds-",
        "\"request_id\":\"req_",
        "\"created_at\":\"",
        "\"created\":",
        "_duration\":",
    ] {
        let is_text = !begin.ends_with(':');
        let mut rest = out.as_str();
        let mut changed = String::new();
        while let Some((before, after)) = rest.split_once(begin) {
            let end = after.find(if is_text { &['"'][..] } else { &[',', '}'] }).unwrap();
            changed += before;
            changed += begin;
            changed += if is_text { "ID" } else { "0" };
            rest = &after[end..];
        }
        out = changed + rest;
    }
    out
}

/// The body and whether its last chunk was there.
fn unchunk(mut body: &str) -> (String, bool) {
    let mut out = Vec::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else { break };
        if size == 0 {
            return (String::from_utf8_lossy(&out).into_owned(), true);
        }
        let Some(chunk) = rest.as_bytes().get(..size) else { break };
        out.extend_from_slice(chunk);
        body = rest.get(size + 2..).unwrap_or("");
    }
    (String::from_utf8_lossy(&out).into_owned(), false)
}
