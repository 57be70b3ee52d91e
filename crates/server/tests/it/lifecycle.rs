//! Disconnects, slow readers, concurrency, keep-alive comments, draining.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mintage_ledger::{
    Batch, Ledger, Reader, Restored, SqliteStore, Store, StoreError, StoreErrorKind, Synchronous,
};
use mintage_model::{FinishReason, Script, ScriptEnd};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{House, MODEL, Reply, says, start, start_on, start_with};

/// Says `text` slowly, then nothing more.
fn silent_after(text: &str) -> Script {
    Script { end: ScriptEnd::Silence, tokens: text.bytes().map(u32::from).collect(), ..says("") }
}

fn chat_request(house: &House, stream: bool) -> String {
    let body =
        json!({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "x"}]});
    house.request("POST", "/v1/chat/completions", &body.to_string())
}

/// Reads until `text` was seen.
async fn read_until(socket: &mut TcpStream, text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buf = [0; 4096];
    while !String::from_utf8_lossy(&bytes).contains(text) {
        let read = tokio::time::timeout(Duration::from_secs(10), socket.read(&mut buf)).await;
        let read = read.expect("the server goes on").unwrap();
        assert!(read > 0, "ended before `{text}`: {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&buf[..read]);
    }
    bytes
}

async fn rest(mut socket: TcpStream, mut bytes: Vec<u8>) -> Reply {
    let read = socket.read_to_end(&mut bytes);
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("the server ends").unwrap();
    Reply::parse(&bytes)
}

async fn running(house: &House, count: usize) {
    let start = Instant::now();
    while house.engine.requests().len() < count {
        assert!(start.elapsed() < Duration::from_secs(10), "the requests reach the engine");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_engine_and_is_metered() {
    for stream in [true, false] {
        let house = start(silent_after("abc")).await;
        let mut socket = house.connect().await;
        socket.write_all(chat_request(&house, stream).as_bytes()).await.unwrap();
        if stream {
            read_until(&mut socket, "\"c\"").await;
        } else {
            running(&house, 1).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(house.engine.finished().is_empty(), "it runs while somebody waits");
        let left = Instant::now();
        drop(socket);
        let finish = house.finished(1).await.remove(0);
        assert!(left.elapsed() < Duration::from_millis(500), "{:?}", left.elapsed());
        assert_eq!(finish.reason, FinishReason::Cancelled);
        assert_eq!(finish.usage.output_tokens, 3);
        house.metric("vllm:generation_tokens_total{model_name=\"scripted\",engine=\"0\"} 3").await;
        house.metric("vllm:request_success_total{model_name=\"scripted\",engine=\"0\",finished_reason=\"abort\"} 1").await;
    }
}

#[tokio::test]
async fn many_clients_that_leave_at_random_leave_nothing_behind() {
    let script = Script { token_delay: Duration::from_millis(1), ..says(&"x".repeat(60)) };
    let house = start_with(|_| {}, move |_| Ok(script.clone())).await;
    for round in 0..6 {
        let clients = (0..8).map(|i| {
            let request = chat_request(&house, i % 2 == 0);
            let address = house.address;
            async move {
                let mut socket = TcpStream::connect(address).await.unwrap();
                socket.write_all(request.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis((i * 17 + round * 7) % 90)).await;
            }
        });
        futures_util::future::join_all(clients).await;
        let taken = house.engine.requests().len();
        house.finished(taken).await;
    }
    let settled: u32 = house.engine.finished().iter().map(|(_, f)| f.usage.output_tokens).sum();
    house
        .metric(&format!(
            "vllm:generation_tokens_total{{model_name=\"scripted\",engine=\"0\"}} {settled}"
        ))
        .await;
    house.metric("vllm:num_requests_running{model_name=\"scripted\",engine=\"0\"} 0").await;
}

#[tokio::test]
async fn a_reader_that_stalls_is_cut_off() {
    // More than all buffers between engine and client hold: 400 tokens with many alternatives each.
    let script = Script { tokens: vec![120; 400], end: ScriptEnd::Silence, ..says("") };
    let house = start_with(
        |c| {
            c.limits.stalled_reader_timeout = Duration::from_millis(300);
            c.limits.max_head_bytes = 8192;
        },
        move |_| Ok(script.clone()),
    )
    .await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut socket = socket.connect(house.address).await.unwrap();
    let body = json!({"model": MODEL, "stream": true, "logprobs": true, "top_logprobs": 20, "n": 4,
        "messages": [{"role": "user", "content": "x"}]});
    let request = house.request("POST", "/v1/chat/completions", &body.to_string());
    socket.write_all(request.as_bytes()).await.unwrap();
    let finishes = house.finished(4).await;
    for finish in finishes {
        assert_eq!(finish.reason, FinishReason::Cancelled);
        assert!(finish.usage.output_tokens < 400, "the engine waited for its reader: {finish:?}");
    }
    drop(socket);
}

#[tokio::test]
async fn a_slow_reader_gets_everything() {
    let script = Script { tokens: vec![120; 200], ..says("") };
    let house = start_with(
        |c| c.limits.stalled_reader_timeout = Duration::from_millis(500),
        move |_| Ok(script.clone()),
    )
    .await;
    let mut socket = house.connect().await;
    let body = json!({"model": MODEL, "stream": true, "logprobs": true, "top_logprobs": 20,
        "messages": [{"role": "user", "content": "x"}]});
    let request = house.request("POST", "/v1/chat/completions", &body.to_string());
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let mut buf = [0; 20_000];
    loop {
        tokio::time::sleep(Duration::from_millis(5)).await;
        match socket.read(&mut buf).await.unwrap() {
            0 => break,
            read => bytes.extend_from_slice(&buf[..read]),
        }
    }
    let events = Reply::parse(&bytes).events();
    assert_eq!(events.iter().filter(|e| e.contains("\"content\":\"x\"")).count(), 200);
    assert_eq!(events.last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn silence_is_filled_with_comments() {
    let script = Script { prefill_delay: Duration::from_millis(350), ..says("x") };
    let house = start_with(
        |c| c.limits.keep_alive_interval = Duration::from_millis(100),
        move |_| Ok(script.clone()),
    )
    .await;
    let reply = house.chat(json!({"stream": true})).await;
    let comments = reply.body.matches(": keep-alive\n\n").count();
    assert!((2..=4).contains(&comments), "{}", reply.body);
    assert_eq!(reply.events().last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn one_request_too_many_is_told_to_come_back() {
    let house =
        start_with(|c| c.limits.max_concurrent_requests = 1, |_| Ok(silent_after("a"))).await;
    let mut first = house.connect().await;
    first.write_all(chat_request(&house, true).as_bytes()).await.unwrap();
    read_until(&mut first, "\"a\"").await;
    let start = Instant::now();
    let reply = house.chat(json!({})).await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    assert_eq!(reply.json()["error"]["code"], "overloaded");
    assert!(start.elapsed() < Duration::from_millis(500));
    // Health is asked for on other doors.
    assert_eq!(house.get("/readyz").await.status, 200);
    assert_eq!(house.get("/v1/models").await.status, 200);
    drop(first);
    house.finished(1).await;
    // The place is free again, also after refusals.
    let mut next = house.connect().await;
    next.write_all(chat_request(&house, true).as_bytes()).await.unwrap();
    read_until(&mut next, "\"a\"").await;
}

#[tokio::test]
async fn a_drain_finishes_what_runs() {
    let script = Script { token_delay: Duration::from_millis(20), ..says("0123456789") };
    let mut house = start(script).await;
    let mut running = house.connect().await;
    running.write_all(chat_request(&house, true).as_bytes()).await.unwrap();
    let seen = read_until(&mut running, "\"1\"").await;
    house.stop();
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(house.get("/readyz").await.status, 503);
    assert_eq!(house.get("/healthz").await.status, 200);
    let refused = house.chat(json!({})).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.json()["error"]["code"], "shutting_down");
    let reply = rest(running, seen).await;
    assert_eq!(reply.events().last().unwrap(), "[DONE]");
    assert!(reply.body.contains("\"9\""));
    house.gone().await;
}

#[tokio::test]
async fn a_drain_ends_what_does_not_finish() {
    let mut house =
        start_with(|c| c.drain_timeout = Duration::from_millis(200), |_| Ok(silent_after("a")))
            .await;
    let mut streamed = house.connect().await;
    streamed.write_all(chat_request(&house, true).as_bytes()).await.unwrap();
    let seen = read_until(&mut streamed, "\"a\"").await;
    let mut whole = house.connect().await;
    whole.write_all(chat_request(&house, false).as_bytes()).await.unwrap();
    running(&house, 2).await;
    let mut idle = house.connect().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let idle_seen = read_until(&mut idle, "ok\n").await;
    house.stop();
    let reply = rest(streamed, seen).await;
    let events = reply.events();
    assert!(events.last().unwrap().contains("shutting_down"), "{events:?}");
    assert_eq!(rest(whole, Vec::new()).await.status, 503);
    rest(idle, idle_seen).await;
    for finish in house.finished(2).await {
        assert_eq!(finish.reason, FinishReason::Cancelled);
    }
    house.gone().await;
}

/// A ledger on a disk that can be full.
struct Fillable {
    store: SqliteStore,
    is_full: Arc<AtomicBool>,
}

impl Store for Fillable {
    fn load(&mut self) -> Result<Restored, StoreError> {
        self.store.load()
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.is_full.load(Ordering::Relaxed) {
            let message = "the disk is full".to_owned();
            return Err(StoreError { kind: StoreErrorKind::Full, message });
        }
        self.store.commit(batch)
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        self.store.reader()
    }
}

#[tokio::test]
async fn readiness_tells_when_the_ledger_takes_nothing() {
    let is_full = Arc::new(AtomicBool::new(false));
    let full = Arc::clone(&is_full);
    let open = move |folder: &Path| {
        std::fs::create_dir_all(folder).unwrap();
        let store = SqliteStore::open(folder, Synchronous::Full).unwrap();
        Ledger::start(Box::new(Fillable { store, is_full: full }), None).unwrap()
    };
    let house = start_on(open, |_| {}, |_| Ok(says("x"))).await;
    let ready = async || {
        let reply = house.get("/readyz").await;
        (reply.status, reply.body)
    };
    assert_eq!(ready().await, (200, "ready\n".to_owned()));
    is_full.store(true, Ordering::Relaxed);
    // Its settlement finds no room.
    assert_eq!(house.chat(json!({})).await.status, 503);
    assert_eq!(ready().await, (503, "ledger\n".to_owned()));
    assert_eq!(house.chat(json!({})).await.status, 503);
    is_full.store(false, Ordering::Relaxed);
    let start = std::time::Instant::now();
    while ready().await.0 != 200 {
        assert!(start.elapsed() < std::time::Duration::from_secs(10), "it recovers by itself");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(house.chat(json!({})).await.status, 200);
}
