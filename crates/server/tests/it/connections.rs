//! Connections to other services: kept for the next request where the last answer was read to its end, and only there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mintage_server::{OnDisconnect, ServerConfig, UpstreamConfig, UpstreamTask};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{House, Reply, says, start, start_with};
use crate::hostile::{read_request, says_text, stops};
use crate::upstreams::{FAR, before, begun, upstream_at};

/// A service that keeps connections open.
struct Service {
    house: House,
    opened: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

/// What it does with a connection once it has answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Keep,
    /// A little later, without having said so.
    Close,
}

async fn serve(mut socket: TcpStream, answer: Arc<str>, after: After, open: Arc<AtomicUsize>) {
    open.fetch_add(1, Ordering::SeqCst);
    while !read_request(&mut socket).await.is_empty() {
        // So slow that requests at once find each other under way.
        tokio::time::sleep(Duration::from_millis(20)).await;
        if socket.write_all(answer.as_bytes()).await.is_err() {
            break;
        }
        if after == After::Close {
            tokio::time::sleep(Duration::from_millis(20)).await;
            break;
        }
    }
    drop(socket);
    open.fetch_sub(1, Ordering::SeqCst);
}

async fn service(
    task: UpstreamTask,
    answer: String,
    after: After,
    change: impl FnOnce(&mut UpstreamConfig),
) -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut upstream = upstream_at(listener.local_addr().unwrap());
    let (opened, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, is_open, answer): (_, _, Arc<str>) =
        (Arc::clone(&opened), Arc::clone(&open), answer.into());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(socket, Arc::clone(&answer), after, Arc::clone(&is_open)));
        }
    });
    upstream.max_retries = 0;
    upstream.task = task;
    change(&mut upstream);
    let with = |config: &mut ServerConfig| config.upstreams.push(upstream);
    Service { house: start_with(with, |_| Ok(says("own"))).await, opened, open }
}

impl Service {
    async fn embed(&self) -> Reply {
        self.house.post("/v1/embeddings", json!({"model": FAR, "input": "a"})).await
    }

    async fn has(&self, opened: usize, reused: usize) {
        assert_eq!(self.opened.load(Ordering::SeqCst), opened, "opened");
        self.counts("opened", opened).await;
        self.counts("reused", reused).await;
    }

    async fn counts(&self, how: &str, count: usize) {
        let name = "mintage_upstream_connections_total";
        let line = format!("{name}{{upstream=\"{FAR}\",how=\"{how}\"}} {count}");
        self.house.metric(&line).await;
    }
}

/// With a length, and so with an end that shows at once.
fn vectors() -> String {
    let body: Value = json!({"data": [{"embedding": [1]}], "usage": {"prompt_tokens": 1}});
    let body = body.to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// In chunks; `more` behind the end mark of the events.
fn stream(more: &str) -> String {
    let events = says_text("a") + &stops() + "data: [DONE]\n\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let more = if more.is_empty() { String::new() } else { chunk(more) };
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    format!("{head}{}{more}0\r\n\r\n", chunk(&events))
}

#[tokio::test]
async fn requests_one_after_the_other_share_a_connection() {
    let service = service(UpstreamTask::Embed, vectors(), After::Keep, |_| {}).await;
    for _ in 0..5 {
        let reply = service.embed().await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    service.has(1, 4).await;
    service.house.settled(5).await;
}

#[tokio::test]
async fn requests_at_once_have_one_each_and_no_more_are_kept_than_allowed() {
    let only = |upstream: &mut UpstreamConfig| upstream.max_idle_connections = 1;
    let service = service(UpstreamTask::Embed, vectors(), After::Keep, only).await;
    let (a, b, c) = tokio::join!(service.embed(), service.embed(), service.embed());
    assert_eq!([a.status, b.status, c.status], [200; 3]);
    service.has(3, 0).await;
    let start = std::time::Instant::now();
    while service.open.load(Ordering::SeqCst) > 1 {
        assert!(start.elapsed() < Duration::from_secs(10), "they stay open");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    service.embed().await;
    service.has(3, 1).await;
}

#[tokio::test]
async fn none_is_kept_where_none_may() {
    let none = |upstream: &mut UpstreamConfig| upstream.max_idle_connections = 0;
    let service = service(UpstreamTask::Embed, vectors(), After::Keep, none).await;
    for _ in 0..3 {
        assert_eq!(service.embed().await.status, 200);
    }
    service.has(3, 0).await;
}

/// It was open when it was kept: the next request must not suffer from that, nor count as another attempt.
#[tokio::test]
async fn one_that_the_service_closed_is_not_used_and_no_attempt() {
    let service = service(UpstreamTask::Embed, vectors(), After::Close, |_| {}).await;
    for _ in 0..20 {
        let reply = service.embed().await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        while service.open.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    service.has(20, 0).await;
    for outcome in ["answered\"} 20", "failed\"} 0"] {
        let name = "mintage_upstream_attempts_total";
        service.house.metric(&format!("{name}{{upstream=\"{FAR}\",outcome=\"{outcome}")).await;
    }
    service.house.metric(&format!("mintage_upstream_retries_total{{upstream=\"{FAR}\"}} 0")).await;
}

async fn chat(service: &Service) {
    let reply = service.house.chat(json!({"model": FAR, "max_tokens": 5})).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    // What is left of the answer is read aside.
    tokio::time::sleep(Duration::from_millis(50)).await;
}

#[tokio::test]
async fn a_stream_is_read_to_its_end_so_that_its_connection_is_kept() {
    let service = service(UpstreamTask::Generate, stream(""), After::Keep, |_| {}).await;
    // However slow this machine is at the moment.
    for _ in 0..100 {
        chat(&service).await;
        if service.opened.load(Ordering::SeqCst) < service.house.records().await.len() {
            return;
        }
    }
    panic!("each made a connection of its own");
}

#[tokio::test]
async fn what_says_too_much_behind_its_end_is_closed() {
    let more = ": and so on\n".repeat(1000);
    let service = service(UpstreamTask::Generate, stream(&more), After::Keep, |_| {}).await;
    for _ in 0..3 {
        chat(&service).await;
    }
    service.has(3, 0).await;
}

#[tokio::test]
async fn an_answer_that_is_cancelled_takes_its_connection_with_it() {
    let slow = mintage_model::Script {
        token_delay: Duration::from_millis(20),
        ..says("abcdefghijklmnopqrstuvwxyz")
    };
    let back = start(slow).await;
    let front = before(&back, |upstream| upstream.on_disconnect = OnDisconnect::Cancel).await;
    drop(begun(&front, "\"c\"").await);
    front.settled(1).await;
    let reply = front.chat(json!({"model": FAR, "max_tokens": 5})).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    for (how, count) in [("opened", 2), ("reused", 0)] {
        let name = "mintage_upstream_connections_total";
        front.metric(&format!("{name}{{upstream=\"{FAR}\",how=\"{how}\"}} {count}")).await;
    }
}
