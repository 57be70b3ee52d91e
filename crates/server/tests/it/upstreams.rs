//! Another Mintage behind a model's name: every dialect, tools, hung-up clients, and the same tokens on both sides.

use std::time::{Duration, Instant};

use mintage_ledger::{TokenUsage, UsageRecord};
use mintage_model::{FinishReason, Script, ScriptEnd};
use mintage_server::{ApiKey, Flavour, OnDisconnect, ServerConfig, UpstreamConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::dialects::{ANSWER, requests, told};
use crate::harness::{CONTEXT, House, MODEL, Reply, says, start, start_with};

/// What the front server calls the back server's model.
pub(crate) const FAR: &str = "far";

/// An upstream at an address of this machine.
pub(crate) fn upstream_at(address: std::net::SocketAddr) -> UpstreamConfig {
    UpstreamConfig {
        flavour: Flavour::Mintage,
        allow_private_address: true,
        ..UpstreamConfig::new(FAR, &format!("http://{address}/v1"), MODEL, CONTEXT)
    }
}

/// A server that has `back` behind the name [`FAR`], and an engine of its own that says something else.
pub(crate) async fn before(back: &House, change: impl FnOnce(&mut UpstreamConfig)) -> House {
    let mut upstream = upstream_at(back.address);
    upstream.api_key = Some(ApiKey::new(&back.key).unwrap());
    change(&mut upstream);
    let with = |config: &mut ServerConfig| config.upstreams.push(upstream);
    start_with(with, |_| Ok(says("not this one"))).await
}

fn only(records: std::collections::BTreeMap<String, UsageRecord>) -> UsageRecord {
    assert_eq!(records.len(), 1);
    records.into_values().next().unwrap()
}

/// Who answered, and who counted.
pub(crate) fn answered(record: &UsageRecord) -> (&str, &str) {
    (&record.facts.model_digest, &record.facts.metered_by)
}

/// The last event of a stream that OpenAI's dialect writes is no JSON.
fn without_done(reply: Reply) -> Reply {
    let body = reply.body.replace("data: [DONE]\n\n", "");
    Reply { body, ..reply }
}

#[tokio::test]
async fn every_dialect_speaks_through_it_and_costs_the_same_on_both_sides() {
    let back = start(Script { cached_tokens: 9, ..says(ANSWER) }).await;
    let front = before(&back, |_| {}).await;
    let mut count = 0;
    for stream in [false, true] {
        for (name, path, headers, mut body) in requests(stream, false) {
            if stream && path.ends_with("/chat/completions") {
                body["stream_options"] = json!({"include_usage": true});
            }
            // The prompt must be the one that the back server makes of the request itself.
            let direct = back.speak(path, &headers, &body).await;
            assert_eq!(direct.status, 200, "{name}: {}", direct.body);
            let direct_prompt = back.engine.requests().pop().unwrap();
            body["model"] = FAR.into();
            let reply = front.speak(path, &headers, &body).await;
            assert_eq!(reply.status, 200, "{name}: {}", reply.body);
            count += 1;
            let asked = back.engine.requests().pop().unwrap();
            if name != "anthropic" {
                assert_eq!(asked.prompt, direct_prompt.prompt, "{name}");
            }
            assert_eq!(asked.max_new_tokens, direct_prompt.max_new_tokens, "{name}");
            let (reply, direct) = (without_done(reply), without_done(direct));
            let prompt = asked.prompt.len() as u64;
            let (cached, all, output, _) = told(name, &reply, stream);
            let sampled = ANSWER.len() as u64 + 1;
            assert_eq!((cached.unwrap_or(9), all, output), (9, prompt, sampled), "{name}");
            assert_eq!(told(name, &direct, stream).2, sampled, "{name}");
            if matches!(name, "openai" | "anthropic" | "ollama") {
                assert!(reply.body.contains("\"model\":\"far\""), "{name}: {}", reply.body);
            }
        }
    }
    let (front_records, back_records) = (front.settled(count).await, back.settled(2 * count).await);
    let usage = |record: &UsageRecord| record.usage;
    for record in front_records.values() {
        assert_eq!((&*record.facts.model, &*record.outcome.finish), (FAR, "stop"));
        assert_eq!(answered(record), ("upstream:127.0.0.1/scripted", "upstream"));
        assert!(back_records.values().all(|record| record.facts.metered_by.is_empty()));
        assert!(back_records.values().any(|other| usage(other) == record.usage), "{record:?}");
    }
    assert!(front.engine.requests().is_empty(), "the own engine was not asked");
}

#[tokio::test]
async fn calls_come_through_in_every_dialect() {
    let call = "Well.<tool_call>\n{\"name\": \"sum\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let back = start(says(call)).await;
    let front = before(&back, |_| {}).await;
    for stream in [false, true] {
        for (name, path, headers, mut body) in requests(stream, false) {
            // Long enough for a whole call.
            for limit in ["/max_tokens", "/parameters/max_tokens", "/options/num_predict"] {
                if let Some(limit) = body.pointer_mut(limit) {
                    *limit = 200.into();
                }
            }
            let direct = back.speak(path, &headers, &body).await;
            body["model"] = FAR.into();
            let reply = front.speak(path, &headers, &body).await;
            assert_eq!(reply.status, 200, "{name}: {}", reply.body);
            // Events hold a letter each.
            let says = reply.body.contains("Well.") || stream;
            assert!(reply.body.contains("sum") && says, "{name}: {}", reply.body);
            let finish = |reply: &Reply| {
                ["tool_calls\"", "\"tool_use\"", "\"done_reason\":\"stop\""]
                    .map(|word| reply.body.contains(word))
            };
            assert_eq!(finish(&reply), finish(&direct), "{name}: {}", reply.body);
            if name == "openai" && !stream {
                let message = &reply.json()["choices"][0];
                assert_eq!(message["finish_reason"], "tool_calls");
                let call = &message["message"]["tool_calls"][0];
                let arguments = call["function"]["arguments"].as_str().unwrap();
                assert_eq!(serde_json::from_str::<Value>(arguments).unwrap(), json!({"a": 1}));
                // The id is the service's own, so that its results find it.
                assert!(call["id"].as_str().unwrap().starts_with("call_"));
            }
        }
    }
    front.settled(12).await;
}

#[tokio::test]
async fn completions_come_through_with_all_their_choices() {
    let back = start_with(
        |_| {},
        |request| {
            let last = request.prompt.last().copied().unwrap_or(0);
            Ok(Script { tokens: vec![last, u32::from(b'!'), 257], ..Script::default() })
        },
    )
    .await;
    let front = before(&back, |_| {}).await;
    let check = async |body: Value| {
        let mut direct = body.clone();
        direct["model"] = MODEL.into();
        let mut through = body.clone();
        through["model"] = FAR.into();
        let (direct, through) = (back.complete(direct).await, front.complete(through).await);
        assert_eq!((direct.status, through.status), (200, 200), "{}", through.body);
        let texts = |reply: &Reply| {
            let mut texts = std::collections::BTreeMap::<u64, String>::new();
            for event in if reply.body.starts_with("data") {
                reply.events()
            } else {
                vec![reply.body.clone()]
            } {
                let Ok(event) = serde_json::from_str::<Value>(&event) else { continue };
                for choice in event["choices"].as_array().unwrap() {
                    *texts.entry(choice["index"].as_u64().unwrap()).or_default() +=
                        choice["text"].as_str().unwrap();
                }
            }
            texts
        };
        assert_eq!(texts(&through), texts(&direct), "{body}");
        assert!(!texts(&through).is_empty());
    };
    check(json!({"prompt": "ab"})).await;
    check(json!({"prompt": ["ab", "cd"], "n": 2, "echo": true})).await;
    check(json!({"prompt": ["ab", "cd"], "n": 2, "stream": true})).await;
    check(json!({"prompt": [97, 98], "max_tokens": 1})).await;
    let (front, back) = (front.settled(4).await, back.settled(8).await);
    let sum = |all: std::collections::BTreeMap<String, UsageRecord>| {
        all.values().fold(TokenUsage::default(), |sum, record| sum.saturating_add(&record.usage))
    };
    let (front, back) = (sum(front), sum(back));
    assert_eq!((back.input, back.output), (2 * front.input, 2 * front.output));
}

/// Asks for a stream and reads until `text` was seen.
pub(crate) async fn begun(front: &House, text: &str) -> tokio::net::TcpStream {
    let body =
        json!({"model": FAR, "stream": true, "messages": [{"role": "user", "content": "x"}]});
    let mut socket = front.connect().await;
    let request = front.request("POST", "/v1/chat/completions", &body.to_string());
    socket.write_all(request.as_bytes()).await.unwrap();
    let (mut seen, mut buffer) = (String::new(), [0; 4096]);
    while !seen.contains(text) {
        let read = tokio::time::timeout(Duration::from_secs(10), socket.read(&mut buffer)).await;
        let read = read.expect("the answer goes on").unwrap();
        assert!(read > 0, "{seen}");
        seen += &String::from_utf8_lossy(&buffer[..read]);
    }
    socket
}

#[tokio::test]
async fn a_client_that_leaves_pays_what_the_service_reports_at_its_end() {
    let slow = Script { token_delay: Duration::from_millis(20), ..says("abcdefghijklmnop") };
    let back = start(slow).await;
    let front = before(&back, |_| {}).await;
    drop(begun(&front, "\"c\"").await);
    front.metric("vllm:generation_tokens_total{model_name=\"far\",engine=\"0\"} 17").await;
    front.metric("vllm:time_to_first_token_seconds_count{model_name=\"far\",engine=\"0\"} 1").await;
    let (front, back) = (only(front.settled(1).await), only(back.settled(1).await));
    assert_eq!((front.usage, front.usage.output), (back.usage, 17), "read to its end");
    assert_eq!((&*front.outcome.finish, &*back.outcome.finish), ("abort", "stop"));
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_begins_pays_too() {
    let slow = Script { prefill_delay: Duration::from_millis(300), ..says("abc") };
    let back = start(slow).await;
    let front = before(&back, |_| {}).await;
    let body = json!({"model": FAR, "messages": [{"role": "user", "content": "x"}]});
    let mut socket = front.connect().await;
    let request = front.request("POST", "/v1/chat/completions", &body.to_string());
    socket.write_all(request.as_bytes()).await.unwrap();
    while back.engine.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(socket);
    let (front, back) = (only(front.settled(1).await), only(back.settled(1).await));
    assert_eq!((front.usage, front.usage.output), (back.usage, 4));
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_is_read_for_a_bounded_time_or_cancelled() {
    let silent = || Script {
        tokens: b"abc".iter().map(|&byte| byte.into()).collect(),
        end: ScriptEnd::Silence,
        ..Script::default()
    };
    for (on_disconnect, least) in [
        (OnDisconnect::Drain(Duration::from_millis(300)), Duration::from_millis(300)),
        (OnDisconnect::Cancel, Duration::ZERO),
    ] {
        let back = start(silent()).await;
        let front = before(&back, |upstream| upstream.on_disconnect = on_disconnect).await;
        let socket = begun(&front, "\"c\"").await;
        let left = Instant::now();
        drop(socket);
        let finish = back.finished(1).await.remove(0);
        assert_eq!(finish.reason, FinishReason::Cancelled);
        let took = left.elapsed();
        assert!(took >= least && took < least + Duration::from_secs(2), "{took:?}");
        // No usage came: a token for each piece, none for the prompt, which nobody here can count.
        let record = only(front.settled(1).await);
        assert_eq!((record.usage.input, record.usage.output), (0, 3));
        assert_eq!(answered(&record), ("upstream:127.0.0.1/scripted", "own"));
        front.metric("mintage_upstream_counted_here_total{upstream=\"far\"} 1").await;
    }
}

#[tokio::test]
async fn what_the_service_refuses_is_told_and_costs_nothing() {
    let back = start(says("x")).await;
    let front = before(&back, |_| {}).await;
    let long = "x".repeat(CONTEXT as usize);
    let messages = json!([{"role": "user", "content": long}]);
    let reply = front.chat(json!({"model": FAR, "messages": messages})).await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (400, &json!("upstream_invalid_request"))
    );
    assert!(reply.body.contains("maximum context length"), "{}", reply.body);
    let reply = front.chat(json!({"model": FAR, "logprobs": true})).await;
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("logprobs")));
    let reply = front.chat(json!({"model": FAR, "max_tokens": CONTEXT + 1})).await;
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("max_tokens")));
    let reply = front.post("/tokenize", json!({"model": FAR, "prompt": "x"})).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("unsupported_model")));
    // A wrong key is the operator's to mend, and shown to nobody.
    let wrong = ApiKey::new("sk-mintage-not-this-one").unwrap();
    let other = before(&back, |upstream| upstream.api_key = Some(wrong)).await;
    let reply = other.chat(json!({"model": FAR})).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (502, &json!("upstream_refused")));
    assert!(!reply.body.contains("not-this-one"), "{}", reply.body);
    front.settled(0).await;
    other.settled(0).await;
    back.settled(0).await;
}

#[tokio::test]
async fn a_service_inside_is_refused_unless_the_operator_allows_it() {
    let back = start(says("x")).await;
    let mut upstream = upstream_at(back.address);
    upstream.allow_private_address = false;
    let config = ServerConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        upstreams: vec![upstream],
        ..ServerConfig::default()
    };
    let bound =
        mintage_server::Server::bind(config, Vec::new(), mintage_server::Access::Open, None);
    let error = bound.err().unwrap().to_string();
    assert!(error.contains("`far`") && error.contains("https://"), "{error}");
}
