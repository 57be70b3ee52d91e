//! Raw bytes: heads without end, lengths that lie, hosts that lie. A protected route never answers without its key.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{MODEL, Reply, says, start, start_with};

#[tokio::test]
async fn heads_are_bounded_in_size_number_and_time() {
    let house = start_with(
        |c| {
            c.limits.max_head_bytes = 8192;
            c.limits.header_timeout = Duration::from_millis(300);
        },
        |_| Ok(says("x")),
    )
    .await;
    let long = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(20_000));
    assert_eq!(Reply::parse(&house.exchange(long.as_bytes()).await).status, 431);
    let many: String = (0..100).map(|i| format!("h{i}: x\r\n")).collect();
    let many = format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{many}\r\n");
    assert_eq!(Reply::parse(&house.exchange(many.as_bytes()).await).status, 431);
    // A head that never ends, and a connection that never begins.
    for begin in ["GET /healthz HTTP/1.1\r\nhost: x\r\n", ""] {
        let start = Instant::now();
        house.exchange(begin.as_bytes()).await;
        assert!(start.elapsed() < Duration::from_secs(5), "{begin:?}");
    }
}

#[tokio::test]
async fn bodies_are_bounded_in_time() {
    let house =
        start_with(|c| c.limits.body_timeout = Duration::from_millis(200), |_| Ok(says("x"))).await;
    let request = house
        .request("POST", "/v1/completions", "")
        .replace("content-length: 0", "content-length: 10");
    let start = Instant::now();
    let reply = house.send(&(request + "{")).await;
    assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (408, Some("body_timeout")));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_body_that_is_cut_is_refused() {
    let house = start(says("x")).await;
    let request = house
        .request("POST", "/v1/completions", "")
        .replace("content-length: 0", "content-length: 10");
    let mut socket = house.connect().await;
    socket.write_all((request + "{").as_bytes()).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes).await;
    assert!(bytes.is_empty() || Reply::parse(&bytes).status == 400);
    assert!(house.engine.requests().is_empty());
}

/// Requests made to be read differently by a proxy before us: none gets a second answer out of its body, and none
/// reaches a protected route without a key.
#[tokio::test]
async fn smuggling_and_confusion() {
    let house = start(says("x")).await;
    let hidden = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let bodies = [
        // Two lengths, differing.
        format!("content-length: 0\r\ncontent-length: {}\r\n\r\n{hidden}", hidden.len()),
        // A length and chunks, either order.
        format!(
            "content-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
            hidden.len() + 5
        ),
        format!("transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n{hidden}"),
        // Encodings that are none.
        format!("transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        format!("transfer-encoding : chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("content-length: +5\r\n\r\n{hidden}"),
        format!("content-length: 0x5\r\n\r\n{hidden}"),
        // Chunk sizes that are none.
        format!("transfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n\r\n{hidden}"),
        format!("transfer-encoding: chunked\r\n\r\n-1\r\n\r\n{hidden}"),
    ];
    for body in bodies {
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer wrong\r\nconnection: close\r\n{body}"
        );
        let bytes = house.exchange(request.as_bytes()).await;
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("HTTP/1.1 200") && !text.contains("ok\n"), "{body:?}\n{text}");
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{body:?}\n{text}");
    }
    // Whatever Host and target say, the matched route decides, and it wants a key.
    for (target, host) in [
        ("/v1/models", "evil.example/healthz?"),
        ("/v1/models", "x/../healthz"),
        ("/v1/models?/healthz", "x"),
        ("/v1/models#/healthz", "x"),
        ("/healthz/../v1/models", "x"),
        ("/healthz//v1/models", "x"),
        ("//x/v1/models", "x"),
        ("/%76%31/models", "x"),
        ("/v1/models/", "x"),
        ("/v1/models%2fscripted", "x"),
        ("/v1/models/%2e%2e/healthz", "x"),
        ("http://healthz/v1/models", "x"),
        ("http://x/healthz/../v1/models", "x"),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let bytes = house.exchange(request.as_bytes()).await;
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("HTTP/1.1 40"), "{target} {host}\n{text}");
        assert!(!text.contains("scripted"), "{target} {host}\n{text}");
    }
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let house = start(says("x")).await;
    let mut socket = house.connect().await;
    let body = json!({"model": MODEL, "prompt": "a", "stream": true}).to_string();
    let request =
        house.request("POST", "/v1/completions", &body).replace("connection: close\r\n", "");
    for _ in 0..3 {
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let mut buf = [0; 4096];
        while !bytes.ends_with(b"0\r\n\r\n") {
            let read = socket.read(&mut buf).await.unwrap();
            assert!(read > 0);
            bytes.extend_from_slice(&buf[..read]);
        }
        assert_eq!(Reply::parse(&bytes).events().last().unwrap(), "[DONE]");
    }
}
