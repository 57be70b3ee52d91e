//! Services that misbehave: raw sockets that answer whatever they like.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mintage_ledger::TokenUsage;
use mintage_server::{ApiKey, UpstreamConfig, UpstreamTask};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{House, Reply, says, start_with, text_model};
use crate::upstreams::{FAR, upstream_at};

const KEY: &str = "sk-very-secret";

/// What a service does on a connection, one after the other.
#[derive(Clone)]
pub(crate) enum Does {
    Says(String),
    Waits(Duration),
    /// The same again and again, until nobody listens.
    Repeats(String, Duration),
}

/// A service; each connection gets the next answer, the last one again and again.
pub(crate) struct Hostile {
    pub(crate) house: House,
    requests: Arc<Mutex<Vec<String>>>,
}

pub(crate) fn head(status: &str, more: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\n{more}\r\n")
}

fn stream_head() -> String {
    head("200 OK", "content-type: text/event-stream\r\n")
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

pub(crate) fn says_text(text: &str) -> String {
    event(&json!({"choices": [{"index": 0, "delta": {"content": text}}]}))
}

pub(crate) fn stops() -> String {
    event(&json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
}

fn reports(prompt: u64, cached: u64, completion: u64) -> String {
    event(
        &json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached}}}),
    )
}

/// A whole good answer: "ab", five tokens of prompt, three of answer.
pub(crate) fn good_text() -> String {
    let text = says_text("a") + &says_text("b") + &stops() + &reports(5, 2, 3);
    stream_head() + &text + "data: [DONE]\n\n"
}

fn good() -> Vec<Does> {
    vec![Does::Says(good_text())]
}

pub(crate) fn fails(status: &str, more: &str, body: &str) -> Vec<Does> {
    vec![Does::Says(head(status, &format!("content-length: {}\r\n{more}", body.len())) + body)]
}

pub(crate) async fn read_request(socket: &mut (impl AsyncRead + Unpin)) -> String {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.to_ascii_lowercase();
            let length = length.split("content-length: ").nth(1).unwrap();
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            if body.len() >= length {
                return text;
            }
        }
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return text,
            Ok(read) => seen.extend_from_slice(&buffer[..read]),
        }
    }
}

async fn does(mut socket: TcpStream, steps: Vec<Does>, requests: Arc<Mutex<Vec<String>>>) {
    let request = read_request(&mut socket).await;
    requests.lock().unwrap().push(request);
    for step in steps {
        match step {
            Does::Says(text) => {
                if socket.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
            Does::Waits(pause) => tokio::time::sleep(pause).await,
            Does::Repeats(text, pause) => loop {
                if socket.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
                tokio::time::sleep(pause).await;
            },
        }
    }
    let _ = socket.shutdown().await;
}

async fn hostile(
    answers: Vec<Vec<Does>>,
    change: impl FnOnce(&mut UpstreamConfig, &mut mintage_server::ServerConfig),
) -> Hostile {
    hostile_as(UpstreamTask::Generate, answers, change).await
}

pub(crate) async fn hostile_as(
    task: UpstreamTask,
    answers: Vec<Vec<Does>>,
    change: impl FnOnce(&mut UpstreamConfig, &mut mintage_server::ServerConfig),
) -> Hostile {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    tokio::spawn(async move {
        let mut next = 0;
        while let Ok((socket, _)) = listener.accept().await {
            let steps = answers[next.min(answers.len() - 1)].clone();
            next += 1;
            tokio::spawn(does(socket, steps, Arc::clone(&seen)));
        }
    });
    let mut upstream = upstream_at(address);
    upstream.api_key = Some(ApiKey::new(KEY).unwrap());
    upstream.max_retries = 0;
    upstream.task = task;
    let with = |config: &mut mintage_server::ServerConfig| {
        change(&mut upstream, config);
        config.upstreams.push(upstream);
    };
    let house = start_with(with, |_| Ok(says("own"))).await;
    Hostile { house, requests }
}

impl Hostile {
    async fn ask(&self, stream: bool) -> Reply {
        let mut body = json!({"model": FAR, "stream": stream, "max_tokens": 100});
        if stream {
            body["stream_options"] = json!({"include_usage": true});
        }
        let reply = self.house.chat(body).await;
        assert!(!reply.body.contains(KEY), "{}", reply.body);
        reply
    }

    pub(crate) fn connections(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// Waits until it has a request.
    pub(crate) async fn asked(&self) {
        let start = Instant::now();
        while self.connections() == 0 {
            assert!(start.elapsed() < Duration::from_secs(10), "it is asked");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn code(reply: &Reply) -> String {
    let mut events = reply.body.lines().filter_map(|line| line.strip_prefix("data: "));
    let last = events.rfind(|data| *data != "[DONE]").unwrap_or(&reply.body);
    let json: Value = serde_json::from_str(last).unwrap_or_default();
    json["error"]["code"].as_str().unwrap_or("").to_owned()
}

fn usage(input: u64, cached_input: u64, output: u64) -> TokenUsage {
    TokenUsage { input, cached_input, output, ..TokenUsage::default() }
}

#[tokio::test]
async fn every_request_asks_for_usage_with_the_services_key() {
    let service = hostile(vec![good()], |_, _| {}).await;
    for stream in [false, true] {
        let reply = service.ask(stream).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    for request in service.requests.lock().unwrap().iter() {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("authorization: Bearer sk-very-secret\r\n"), "{head}");
        assert!(!head.contains(&service.house.key), "a client's key goes nowhere");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["stream_options"], json!({"include_usage": true}));
        assert_eq!((&body["stream"], &body["max_tokens"]), (&json!(true), &json!(100)));
    }
    for record in service.house.settled(2).await.values() {
        assert_eq!(record.usage, usage(3, 2, 3));
    }
}

/// What a whole answer and a stream get, and what both cost.
async fn check(
    what: &str,
    answers: Vec<Vec<Does>>,
    whole: (u16, &str, Option<TokenUsage>),
    streamed: (u16, &str, Option<TokenUsage>),
) {
    for (stream, (status, expected, billed)) in [(false, whole), (true, streamed)] {
        let change = |upstream: &mut UpstreamConfig, _: &mut mintage_server::ServerConfig| {
            upstream.first_event_timeout = Duration::from_millis(400);
            upstream.idle_timeout = Duration::from_millis(300);
        };
        let service = hostile(answers.clone(), change).await;
        let begun = Instant::now();
        let reply = service.ask(stream).await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{what}");
        assert_eq!((reply.status, &*code(&reply)), (status, expected), "{what}: {}", reply.body);
        let records = service.house.settled(usize::from(billed.is_some())).await;
        let found = records.values().next().map(|record| record.usage);
        assert_eq!(found, billed, "{what}, streamed: {stream}");
    }
}

#[tokio::test]
async fn what_is_broken_is_told_and_never_billed_beyond_what_was_sent() {
    let half = |rest: &str| vec![vec![Does::Says(stream_head() + &says_text("a") + rest)]];
    let failed = (502, "upstream_failed", None);
    let cut = (200, "upstream_failed", Some(usage(0, 0, 1)));
    check("closed in the middle", half(""), failed, cut).await;
    check("half an event", half("data: {\"choi"), failed, cut).await;
    check("no JSON", half("data: oops\n\n"), failed, cut).await;
    check("done without an end", half("data: [DONE]\n\n"), failed, cut).await;
    check(
        "an error in the stream",
        half("data: {\"error\": {\"message\": \"x\"}}\n\n"),
        failed,
        cut,
    )
    .await;
    let long = format!("data: {}", "x".repeat(2 << 20));
    check("a line without end", half(&long), failed, cut).await;
    let nobody = vec![vec![Does::Says(stream_head())]];
    check("an empty stream", nobody, failed, (502, "upstream_failed", None)).await;
    let silent = vec![vec![
        Does::Says(stream_head() + &says_text("a")),
        Does::Waits(Duration::from_secs(9)),
    ]];
    check(
        "silence in the middle",
        silent,
        (504, "upstream_timeout", None),
        (200, "upstream_timeout", Some(usage(0, 0, 1))),
    )
    .await;
    let late = (504, "upstream_timeout", None);
    check("silence at once", vec![vec![Does::Waits(Duration::from_secs(9))]], late, late).await;
    let drip = vec![vec![
        Does::Says(stream_head()),
        Does::Repeats(": \n".to_owned(), Duration::from_millis(20)),
    ]];
    check("comments and nothing else", drip, late, late).await;
    let page = "<html>Welcome</html>";
    let page =
        head("200 OK", &format!("content-type: text/html\r\ncontent-length: {}\r\n", page.len()))
            + page;
    check("a web page", vec![vec![Does::Says(page)]], failed, failed).await;
    check("no HTTP", vec![vec![Does::Says("hello\r\n\r\n".to_owned())]], failed, failed).await;
    let heads = head("200 OK", &"x-more: 1\r\n".repeat(500));
    check("a head without end", vec![vec![Does::Says(heads)]], failed, failed).await;
}

#[tokio::test]
async fn a_status_decides_whose_fault_it_is() {
    // The key that it repeats is not passed on: `ask` looks for it.
    let message = format!(r#"{{"error":{{"message":"`foo` is odd, {KEY}","type":"x"}}}}"#);
    for (status, more, expected) in [
        ("400 Bad Request", "", (400, "upstream_invalid_request")),
        ("401 Unauthorized", "", (502, "upstream_refused")),
        ("402 Payment Required", "", (502, "upstream_refused")),
        ("403 Forbidden", "", (502, "upstream_refused")),
        ("302 Found", "location: http://127.0.0.1:1/\r\n", (502, "upstream_failed")),
        ("429 Too Many Requests", "retry-after: 33\r\n", (429, "upstream_rate_limited")),
        ("500 Internal Server Error", "", (502, "upstream_failed")),
        ("503 Service Unavailable", "", (503, "upstream_unavailable")),
        ("504 Gateway Timeout", "", (504, "upstream_timeout")),
    ] {
        let service = hostile(vec![fails(status, more, &message)], |_, _| {}).await;
        for stream in [false, true] {
            let reply = service.ask(stream).await;
            assert_eq!((reply.status, &*code(&reply)), expected, "{}", reply.body);
            assert_eq!(reply.body.contains("is odd"), expected.0 == 400, "{}", reply.body);
            let wait = reply.header("retry-after").map(str::to_owned);
            match expected.0 {
                429 => assert_eq!(wait.as_deref(), Some("33")),
                503 => assert_eq!(wait.as_deref(), Some("1")),
                _ => assert_eq!(wait, None, "{status}"),
            }
        }
        assert_eq!(service.connections(), 2, "asked once each");
        service.house.settled(0).await;
    }
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_billed_once() {
    let soon = "retry-after-ms: 150\r\n";
    for (first, least) in [
        (fails("500 Oops", "", "{}"), 100),
        (fails("429 Too Many Requests", soon, "{}"), 150),
        (vec![Does::Waits(Duration::ZERO)], 100),
        // Its stream breaks before it says anything.
        (
            vec![Does::Says(
                stream_head() + "data: {\"error\": {\"message\": \"busy\", \"code\": 503}}\n\n",
            )],
            100,
        ),
    ] {
        let service = hostile(vec![first, good()], |upstream, _| upstream.max_retries = 2).await;
        let begun = Instant::now();
        let reply = service.ask(false).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(begun.elapsed() >= Duration::from_millis(least), "{:?}", begun.elapsed());
        assert_eq!(service.connections(), 2);
        let records = service.house.settled(1).await;
        assert_eq!(records.values().next().unwrap().usage, usage(3, 2, 3));
        service.house.metric("mintage_upstream_retries_total{upstream=\"far\"} 1").await;
    }
    // Never after something was heard of it, never longer than is useful, never more often than allowed.
    let begun = vec![Does::Says(stream_head() + &says_text("a"))];
    for (answer, connections) in [
        (begun, 1),
        (fails("429 Too Many Requests", "retry-after: 60\r\n", "{}"), 1),
        (fails("400 Bad Request", "", "{}"), 1),
        (fails("500 Oops", "", "{}"), 3),
    ] {
        let service = hostile(vec![answer], |upstream, _| upstream.max_retries = 2).await;
        service.ask(false).await;
        assert_eq!(service.connections(), connections);
        service.house.settled(0).await;
    }
}

#[tokio::test]
async fn nothing_is_tried_again_for_nobody() {
    let busy = fails("503 Service Unavailable", "retry-after-ms: 400\r\n", "{}");
    let service = hostile(vec![busy], |upstream, _| upstream.max_retries = 2).await;
    let body = json!({"model": FAR, "messages": [{"role": "user", "content": "x"}]});
    let mut socket = service.house.connect().await;
    let request = service.house.request("POST", "/v1/chat/completions", &body.to_string());
    socket.write_all(request.as_bytes()).await.unwrap();
    while service.connections() == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(socket);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(service.connections(), 1);
    service.house.settled(0).await;
}

#[tokio::test]
async fn what_is_reported_is_held_to_what_can_be() {
    // The bound of the prompt is of bytes; the answer's is what was asked for.
    for (report, expected) in [
        (reports(0, 0, 0), Some(usage(0, 0, 0))),
        (reports(5, 50, 3), Some(usage(0, 5, 3))),
        (reports(5, 0, 1_000_000), Some(usage(5, 0, 100))),
        (reports(9, 0, 1) + &reports(5, 1, 3), Some(usage(4, 1, 3))),
        (event(&json!({"usage": {"prompt_tokens": "many"}})), Some(usage(0, 0, 2))),
        (
            event(&json!({"usage": {"prompt_tokens": -5, "completion_tokens": 3}})),
            Some(usage(0, 0, 3)),
        ),
        (String::new(), Some(usage(0, 0, 2))),
    ] {
        let text = says_text("a") + &says_text("b") + &stops() + &report + "data: [DONE]\n\n";
        let answers = vec![vec![Does::Says(stream_head() + &text)]];
        for stream in [false, true] {
            let service = hostile(answers.clone(), |_, _| {}).await;
            let reply = service.ask(stream).await;
            assert_eq!(reply.status, 200, "{}", reply.body);
            let records = service.house.settled(1).await;
            let found = records.values().next().map(|record| record.usage);
            assert_eq!(found, expected, "{report}");
            // The client sees the very numbers of the record.
            let told = reply.body.split("\"completion_tokens\":").nth(1).unwrap();
            let told = told.split(',').next().unwrap().parse::<u64>().unwrap();
            assert_eq!(Some(told), expected.map(|usage| usage.output), "{}", reply.body);
        }
    }
    let text = says_text("a") + &stops() + &reports(1 << 40, 0, 1) + "data: [DONE]\n\n";
    let service = hostile(vec![vec![Does::Says(stream_head() + &text)]], |_, _| {}).await;
    service.ask(false).await;
    let records = service.house.settled(1).await;
    let billed = records.values().next().unwrap().usage.input;
    assert!((1..=512).contains(&billed), "{billed}: at most the context");
    service.house.metric("mintage_upstream_contradictions_total{upstream=\"far\"} 1").await;
}

#[tokio::test]
async fn a_tokenizer_counts_where_the_service_does_not() {
    let thought = event(&json!({"choices": [{"index": 0, "delta": {"reasoning_content": "hmm"}}]}));
    let text = thought + &says_text("a whole") + &says_text(" line") + &stops();
    let answers = vec![vec![Does::Says(stream_head() + &text)]];
    let with = |upstream: &mut UpstreamConfig, _: &mut mintage_server::ServerConfig| {
        upstream.tokenizer = Some(Arc::new(text_model()));
    };
    let service = hostile(answers, with).await;
    let reply = service.ask(true).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let records = service.house.settled(1).await;
    let used = records.values().next().unwrap().usage;
    // Its tokens are bytes. The prompt is what the own engine would have made of it.
    assert_eq!((used.output, used.thinking), (12, 3));
    service.house.chat(json!({})).await;
    let own = service.house.engine.requests()[0].prompt.len() as u64;
    assert_eq!(used.input, own);
}

#[tokio::test]
async fn an_endless_answer_ends_with_the_requests_time() {
    let endless = vec![vec![
        Does::Says(stream_head()),
        Does::Repeats(says_text("x"), Duration::from_millis(1)),
    ]];
    for stream in [false, true] {
        let service = hostile(endless.clone(), |_, config| {
            config.limits.request_timeout = Duration::from_millis(600);
        })
        .await;
        let begun = Instant::now();
        let reply = service.ask(stream).await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let status = if stream { 200 } else { 504 };
        assert_eq!((reply.status, &*code(&reply)), (status, "request_timeout"));
        let records = service.house.settled(usize::from(stream)).await;
        if let Some(record) = records.values().next() {
            let sent = reply.body.matches("\"content\":\"x\"").count() as u64;
            // What was sent, and never more than can have been asked for.
            assert_eq!(record.usage.output, sent.min(100), "{sent}");
        }
    }
}

#[tokio::test]
async fn a_service_that_fails_again_and_again_is_left_alone_and_tried() {
    let broken = || fails("500 Oops", "", "{}");
    let answers = vec![broken(), broken(), broken(), good()];
    let service = hostile(answers, |upstream, _| {
        upstream.breaker_failures = 2;
        upstream.breaker_pause = Duration::from_millis(300);
    })
    .await;
    let state = async |state: u32| {
        let line = format!("mintage_upstream_breaker_state{{upstream=\"far\"}} {state}");
        service.house.metric(&line).await;
    };
    let ask = async |status: u16, connections: usize| {
        let reply = service.ask(false).await;
        assert_eq!((reply.status, service.connections()), (status, connections), "{}", reply.body);
    };
    state(0).await;
    ask(502, 1).await;
    ask(502, 2).await;
    state(2).await;
    // Nobody is asked while it is open.
    ask(503, 2).await;
    tokio::time::sleep(Duration::from_millis(310)).await;
    state(1).await;
    // One is let through, fails, and the pause is twice as long.
    ask(502, 3).await;
    tokio::time::sleep(Duration::from_millis(310)).await;
    ask(503, 3).await;
    tokio::time::sleep(Duration::from_millis(310)).await;
    ask(200, 4).await;
    state(0).await;
    ask(200, 5).await;
    service.house.settled(2).await;
}

#[tokio::test]
async fn more_requests_than_a_service_may_have_are_refused() {
    let slow = vec![vec![Does::Waits(Duration::from_millis(500)), good().remove(0)]];
    let service = hostile(slow, |upstream, _| upstream.max_in_flight = 1).await;
    let (one, other) = tokio::join!(service.ask(false), async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        service.ask(false).await
    });
    assert_eq!((one.status, other.status, &*code(&other)), (200, 503, "upstream_unavailable"));
    assert_eq!(service.ask(false).await.status, 200, "its place is free again");
    service.house.settled(2).await;
}

/// Sends a request and stops the server: it ends the request, and only then the service answers. Nobody pays.
pub(crate) async fn stopped_before_it_answers(mut service: Hostile, path: &str, body: &Value) {
    let ledger = Arc::clone(&service.house.ledger);
    let organisation = service.house.organisation.clone();
    let mut socket = service.house.connect().await;
    let request = service.house.request("POST", path, &body.to_string());
    socket.write_all(request.as_bytes()).await.unwrap();
    service.asked().await;
    service.house.stop();
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).await.unwrap();
    let reply = Reply::parse(&bytes);
    assert_eq!((reply.status, &*code(&reply)), (503, "shutting_down"), "{path}: {}", reply.body);
    // It reads the service's answer to its end before it goes.
    let _folder = service.house.gone().await;
    let balance = ledger.balance(&organisation, mintage_ledger::Currency::CNY);
    assert_eq!((balance.held.pico(), balance.balance.pico()), (0, 0), "{path}: {body}");
}

#[tokio::test]
async fn what_the_server_stops_before_an_answer_begins_costs_nothing() {
    let late = vec![vec![Does::Waits(Duration::from_millis(600)), good().remove(0)]];
    for stream in [true, false] {
        let service = hostile(late.clone(), |_, config| {
            config.drain_timeout = Duration::from_millis(100);
        })
        .await;
        let messages = json!([{"role": "user", "content": "x"}]);
        let body = json!({"model": FAR, "stream": stream, "messages": messages});
        stopped_before_it_answers(service, "/v1/chat/completions", &body).await;
    }
}
