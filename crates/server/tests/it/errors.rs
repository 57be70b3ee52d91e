//! Refusals and failures: OpenAI's shape, the limit and the value, and nothing of ours.

use std::time::Duration;

use mintage_model::{EngineFault, Script, ScriptEnd, SubmitError};
use serde_json::{Value, json};

use crate::harness::{CONTEXT, House, Reply, says, start, start_with};

/// Status, `param`, `code` and message in one line.
fn line(reply: &Reply) -> String {
    let error = &reply.json()["error"];
    let object = error.as_object().unwrap_or_else(|| panic!("no error: {}", reply.body));
    assert_eq!(object.len(), 4, "{error}");
    assert!(reply.header("x-request-id").is_some());
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let field = |name: &str| error[name].as_str().unwrap_or("-").to_owned();
    format!(
        "{} {} {} {}: {}",
        reply.status,
        field("type"),
        field("param"),
        field("code"),
        field("message")
    )
}

#[tokio::test]
async fn refused_chats() {
    let house = start(says("x")).await;
    let cases = [
        json!({"model": "gpt-5"}),
        json!({"model": 5}),
        json!({"model": null}),
        json!({"messages": []}),
        json!({"messages": "Hi"}),
        json!({"messages": ["Hi"]}),
        json!({"messages": [{"content": "Hi"}]}),
        json!({"messages": [{"role": "robot", "content": "Hi"}]}),
        json!({"messages": [{"role": "user"}]}),
        json!({"messages": [{"role": "user", "content": null}]}),
        json!({"messages": [{"role": "user", "content": 5}]}),
        json!({"messages": [{"role": "user", "content": "x", "contents": "x"}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        json!({"messages": [{"role": "tool", "content": "x"}]}),
        json!({"temperature": "warm"}),
        json!({"temperature": 2.5}),
        json!({"n": 17}),
        json!({"n": 1.5}),
        json!({"stop": 5}),
        json!({"stop": ["", "x"]}),
        json!({"top_logprobs": 3}),
        json!({"logprobs": true, "top_logprobs": 21}),
        json!({"stream_options": {"include_usage": true}}),
        json!({"stream": true, "stream_options": {"usage": true}}),
        json!({"stream": "yes"}),
        json!({"logit_bias": {"a": 1}}),
        json!({"logit_bias": {"1": 101}}),
        json!({"logit_bias": {"259": 1}}),
        json!({"stop_token_ids": [259]}),
        json!({"max_tokens": 0}),
        json!({"max_tokens": 600}),
        json!({"messages": [{"role": "user", "content": "x".repeat(600)}]}),
        json!({"temprature": 1}),
        json!({"chat_template": "{{ 1 }}"}),
        json!({"chat_template_kwargs": {"messages": []}}),
        json!({"response_format": {"type": "xml"}}),
        json!({"response_format": {"type": "json_schema"}}),
        json!({"tools": null}),
        json!({"tools": [{"type": "function"}]}),
        json!({"tools": [], "tool_choice": "required"}),
        json!({"functions": []}),
        json!({"modalities": ["audio"]}),
        json!({"audio": {"voice": "alloy", "format": "wav"}}),
    ];
    let mut out = String::new();
    for case in cases {
        let mut shown = case.to_string();
        shown.truncate(100);
        let reply = house.chat(case).await;
        out += &format!("{shown}\n  {}\n", line(&reply));
    }
    insta::assert_snapshot!(out);
    assert!(house.engine.requests().is_empty(), "refused before any compute");
}

#[tokio::test]
async fn refused_completions() {
    let house = start(says("x")).await;
    let mut out = String::new();
    for case in [
        json!({"prompt": null}),
        json!({"prompt": []}),
        json!({"prompt": ""}),
        json!({"prompt": [1, "x"]}),
        json!({"prompt": [259]}),
        json!({"prompt": [-1]}),
        json!({"prompt": ["a", 5]}),
        json!({"prompt": vec!["a"; 17]}),
        json!({"prompt": vec!["a"; 9], "n": 2}),
        json!({"prompt": "a", "best_of": 2}),
        json!({"prompt": "a", "suffix": "b"}),
        json!({"prompt": "a", "logprobs": 6}),
        json!({"prompt": "a", "logprobs": true}),
        json!({"prompt": "a", "messages": []}),
        json!({"prompt": "a".repeat(CONTEXT as usize)}),
    ] {
        let mut shown = case.to_string();
        shown.truncate(80);
        let reply = house.complete(case).await;
        out += &format!("{shown}\n  {}\n", line(&reply));
    }
    insta::assert_snapshot!(out);
}

#[tokio::test]
async fn refused_bodies() {
    let house = start_with(|c| c.limits.max_body_bytes = 2000, |_| Ok(says("x"))).await;
    let deep = format!("{{\"model\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    let mut out = String::new();
    for body in [
        "",
        "{",
        "[]",
        "nope",
        "{\"a\":1}{",
        "{\"n\":1e999}",
        "{\"n\":NaN}",
        &deep,
        &"x".repeat(2001),
    ] {
        let mut shown = body.to_owned();
        shown.truncate(40);
        let reply = house.post_text("/v1/chat/completions", body).await;
        out += &format!("{shown}\n  {}\n", line(&reply));
    }
    let plain =
        house.request("POST", "/v1/completions", "{}").replace("application/json", "text/plain");
    out += &format!("text/plain\n  {}\n", line(&house.send(&plain).await));
    let head = house.request("POST", "/v1/completions", "");
    let chunked = head.replace("content-length: 0", "transfer-encoding: chunked")
        + "9c4\r\n"
        + &" ".repeat(2500)
        + "\r\n0\r\n\r\n";
    out += &format!("chunked\n  {}\n", line(&house.send(&chunked).await));
    insta::assert_snapshot!(out);
}

async fn without_key(house: &House, method: &str, path: &str, header: &str) -> Reply {
    house
        .send(&format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n"))
        .await
}

#[tokio::test]
async fn keys_are_asked_for_on_every_route_but_the_public_ones() {
    let house = start(says("x")).await;
    let routes = [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/scripted"),
    ];
    let wrong = [
        String::new(),
        "authorization: Bearer\r\n".into(),
        "authorization: Bearer wrong\r\n".into(),
        format!("authorization: Basic {}\r\n", house.key),
        format!("authorization: Bearer {}x\r\n", house.key),
        format!("authorization: Bearer {}\r\n", house.key.to_lowercase()),
        format!("authorization: Bearer {0}\r\nauthorization: Bearer {0}\r\n", house.key),
        "authorization: Bearer ' OR '1'='1\r\n".into(),
    ];
    for (method, path) in routes {
        for header in &wrong {
            let reply = without_key(&house, method, path, header).await;
            assert_eq!(reply.status, 401, "{method} {path} {header}");
            assert_eq!(reply.json()["error"]["code"], "invalid_api_key");
            assert!(!reply.body.contains("checksum") && !reply.body.contains("malformed"));
        }
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(without_key(&house, "GET", path, "").await.status, 200, "{path}");
    }
    // The key is looked at before the body: one that never comes is not waited for.
    let reply = house
        .send("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 999\r\n\r\n")
        .await;
    assert_eq!(reply.status, 401);
    // Revoked: at once in this process.
    let id = house.keys.snapshot().keys().next().unwrap().id.clone();
    house.keys.revoke_key(&id, 1).unwrap();
    assert_eq!(house.get("/v1/models").await.status, 401);
}

#[tokio::test]
async fn wrong_paths_and_methods() {
    let house = start(says("x")).await;
    let mut out = String::new();
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v1/"),
        ("GET", "//v1/models"),
        ("GET", "/v1//models"),
        ("GET", "/v1/%6dodels"),
        ("GET", "/v1/completions"),
        ("DELETE", "/v1/models"),
        ("POST", "/healthz"),
        ("GET", "/v1/models/none"),
        ("GET", "/v1/models/%2e%2e/%2e%2e/healthz"),
    ] {
        let reply = house.send(&house.request(method, path, "")).await;
        out += &format!(
            "{method} {path}\n  {} allow={}\n",
            line(&reply),
            reply.header("allow").unwrap_or("-")
        );
    }
    insta::assert_snapshot!(out);
}

#[tokio::test]
async fn models() {
    let house = start(says("x")).await;
    insta::assert_snapshot!(house.get("/v1/models").await.transcript());
    assert_eq!(house.get("/v1/models/scripted").await.json()["id"], "scripted");
    assert_eq!(house.get("/v1/models/org/alias").await.json()["id"], "org/alias");
    assert_eq!(house.get("/v1/models/org%2Falias").await.json()["id"], "org/alias");
    let reply = house.chat(json!({"model": "org/alias"})).await.json();
    assert_eq!(reply["model"], "scripted");
}

#[tokio::test]
async fn request_ids_are_echoed_or_made() {
    let house = start(says("x")).await;
    let with = |id: &str| {
        house
            .request("GET", "/v1/models", "")
            .replace("host: x", &format!("host: x\r\nx-request-id: {id}"))
    };
    assert_eq!(house.send(&with("abc-1.2:3_")).await.header("x-request-id"), Some("abc-1.2:3_"));
    for bad in ["a b", "<script>", &"a".repeat(129), "\"", "ä"] {
        let reply = house.send(&with(bad)).await;
        let id = reply.header("x-request-id").unwrap();
        assert!(id.starts_with("req_") && id.len() == 28, "{bad:?} {id}");
    }
}

fn fails(tokens: &str, end: ScriptEnd) -> Script {
    Script { end, tokens: tokens.bytes().map(u32::from).collect(), ..Script::default() }
}

#[tokio::test]
async fn failures_of_ours_tell_nothing() {
    let secret = "page table corrupt at 0x7f";
    for (end, status, code) in [
        (ScriptEnd::Fault(EngineFault::Internal(secret.into())), 500, "internal_error"),
        (ScriptEnd::Fault(EngineFault::ShutDown), 503, "shutting_down"),
        (ScriptEnd::Drop, 500, "internal_error"),
    ] {
        let house = start(fails("ab", end)).await;
        let reply = house.chat(json!({})).await;
        assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (status, Some(code)));
        assert!(
            !reply.body.contains("corrupt") && !reply.body.contains("dropped"),
            "{}",
            reply.body
        );
        // In a stream: what was said, then an error, and no `[DONE]`.
        for path in ["chat", "text"] {
            let reply = match path {
                "chat" => house.chat(json!({"stream": true})).await,
                _ => house.complete(json!({"stream": true, "prompt": "a"})).await,
            };
            assert_eq!(reply.status, 200);
            let events = reply.events();
            let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
            assert_eq!(last["error"]["code"], code, "{events:?}");
            assert!(events.len() >= 3 && !reply.body.contains("corrupt"), "{events:?}");
        }
        house.metric("vllm:request_success_total{model_name=\"scripted\",engine=\"0\",finished_reason=\"error\"} 3").await;
    }
}

#[tokio::test]
async fn full_queues_and_deadlines() {
    let full = |_: &_| Err(SubmitError::QueueFull { waiting: 9, limit: 9 });
    let house = start_with(|_| {}, full).await;
    let reply = house.chat(json!({})).await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    insta::assert_snapshot!(line(&reply));
    house.metric("mintage_requests_refused_total{reason=\"queue_full\"} 1").await;

    let silent = fails("a", ScriptEnd::Silence);
    let house = start_with(
        |c| c.limits.request_timeout = Duration::from_millis(200),
        move |_| Ok(silent.clone()),
    )
    .await;
    let reply = house.chat(json!({})).await;
    assert_eq!((reply.status, reply.header("x-should-retry")), (504, Some("false")));
    let events = house.chat(json!({"stream": true})).await.events();
    assert!(events.last().unwrap().contains("request_timeout"), "{events:?}");
}

/// If the third of four choices is refused, the first two are stopped and settled.
#[tokio::test]
async fn a_half_taken_request_is_given_back() {
    let taken = std::sync::atomic::AtomicU32::new(0);
    let house = start_with(
        |_| {},
        move |_| match taken.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 | 1 => Ok(fails("", ScriptEnd::Silence)),
            _ => Err(SubmitError::QueueFull { waiting: 2, limit: 2 }),
        },
    )
    .await;
    assert_eq!(house.chat(json!({"n": 4})).await.status, 503);
    assert_eq!(house.finished(2).await.len(), 2);
    house.metric("vllm:request_success_total{model_name=\"scripted\",engine=\"0\",finished_reason=\"abort\"} 2").await;
}
