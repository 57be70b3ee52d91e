//! What is billed: exactly what was sampled, however a request ends, and nothing twice.

use std::time::Duration;

use mintage_ledger::{Currency, TokenUsage};
use mintage_model::{EngineFault, Script, ScriptEnd};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{
    House, INPUT_PICO, MODEL, OUTPUT_PICO, Reply, price, says, start, start_with,
};

fn tokens(usage: &Value) -> (u64, u64, u64) {
    let count = |value: &Value| value.as_u64().unwrap();
    (
        count(&usage["prompt_tokens"]),
        count(&usage["prompt_tokens_details"]["cached_tokens"]),
        count(&usage["completion_tokens"]),
    )
}

fn recorded(usage: &TokenUsage) -> (u64, u64, u64) {
    (usage.prompt(), usage.cached_input, usage.completion())
}

/// The usage of the last event but `[DONE]`.
fn streamed_usage(reply: &Reply) -> (String, Value) {
    let events = reply.events();
    let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    (last["id"].as_str().unwrap().to_owned(), last["usage"].clone())
}

#[tokio::test]
async fn what_the_client_sees_is_what_is_recorded_and_posted() {
    let script = Script { cached_tokens: 7, ..says("hello") };
    let house = start(script).await;
    let whole = house.chat(json!({"n": 3, "usage": {"include": true}})).await;
    let answer = whole.json();
    let streamed = house
        .complete(
            json!({"prompt": ["ab", "abcdefghijk"], "stream": true, "usage": {"include": true}}),
        )
        .await;
    let (id, usage) = streamed_usage(&streamed);
    let records = house.settled(2).await;
    for (id, usage) in [(answer["id"].as_str().unwrap(), &answer["usage"]), (&id, &usage)] {
        let record = &records[id];
        assert_eq!(tokens(usage), recorded(&record.usage), "{id}");
        assert_eq!(
            usage["cost"].to_string(),
            format!("{:?}", {
                let cost: f64 = record.amount.to_string().parse().unwrap();
                cost
            })
        );
        assert_eq!((&*record.price_version, &*record.outcome.finish), ("flat-1", "stop"));
        assert_eq!(&*record.facts.payer.project, house.project);
        assert_eq!(
            (&*record.facts.model_digest, &*record.facts.client),
            ("sha256:7e57", "harness/1")
        );
        let reply = house.get(&format!("/v1/generation?id={id}")).await;
        let data = &reply.json()["data"];
        assert_eq!(data["total_cost"], usage["cost"]);
        assert_eq!(data["native_tokens_completion"], usage["completion_tokens"]);
        assert_eq!(data["native_tokens_cached"], usage["prompt_tokens_details"]["cached_tokens"]);
    }
    // A prompt that three choices share was counted once, and each of two prompts by itself.
    assert_eq!(answer["usage"]["completion_tokens"], 18);
    assert_eq!(tokens(&usage), (13, 2 + 7, 12));
    // Nobody asked for the cost here.
    assert_eq!(house.chat(json!({})).await.json()["usage"].get("cost"), None);
}

/// Reads chunks until `count` of them have come, then goes away.
async fn leave_after(house: &House, count: usize, stream: bool) {
    let body =
        json!({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "x"}]});
    let request = house.request("POST", "/v1/chat/completions", &body.to_string());
    let mut socket = house.connect().await;
    socket.write_all(request.as_bytes()).await.unwrap();
    while house.engine.requests().len() <= house.engine.finished().len() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut seen = String::new();
    let mut buf = [0; 512];
    while seen.matches("data: ").count() < count {
        let read = tokio::time::timeout(Duration::from_secs(10), socket.read(&mut buf)).await;
        let read = read.expect("the server goes on").unwrap();
        if read == 0 {
            break;
        }
        seen += &String::from_utf8_lossy(&buf[..read]);
    }
}

#[tokio::test]
async fn a_disconnect_at_any_chunk_bills_what_was_sampled() {
    let script = Script { token_delay: Duration::from_millis(4), ..says("0123456789") };
    let house = start(script).await;
    // Role, ten characters, finish reason, [DONE]: at each of them, and before the first.
    for count in 0..=13 {
        leave_after(&house, count, true).await;
        house.finished(count + 1).await;
    }
    let finished = house.engine.finished();
    let computed = finished.iter().filter(|(_, f)| f.usage.output_tokens > 0).count();
    assert!(computed >= 12 && finished.iter().any(|(_, f)| f.usage.output_tokens < 11));
    // One that left before its prompt was computed costs nothing.
    let start = std::time::Instant::now();
    let records = loop {
        let records = house.records().await;
        if records.len() >= computed && house.ledger.open_holds() == 0 {
            break records;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{} of {computed}", records.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    for (id, finish) in &finished {
        let sampled = finish.usage.output_tokens;
        match records.get(id.trim_end_matches("-0")) {
            Some(record) => {
                assert_eq!(record.usage.completion(), u64::from(sampled), "{id}");
                assert_eq!(record.amount, price(&record.usage));
            }
            None => assert_eq!(sampled, 0, "{id}"),
        }
    }
    house.settled(records.len()).await;
}

#[tokio::test]
async fn a_whole_answer_that_nobody_waits_for_bills_what_was_sampled() {
    let script =
        Script { end: ScriptEnd::Silence, tokens: b"abc".map(u32::from).to_vec(), ..says("") };
    let house = start(script).await;
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}]});
    let request = house.request("POST", "/v1/chat/completions", &body.to_string());
    let mut socket = house.connect().await;
    socket.write_all(request.as_bytes()).await.unwrap();
    while house.engine.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(socket);
    let records = house.settled(1).await;
    let record = records.values().next().unwrap();
    assert_eq!((record.usage.completion(), &*record.outcome.finish), (3, "abort"));
}

#[tokio::test]
async fn our_own_faults_cost_nothing_before_the_first_token_nor_where_nothing_is_sent() {
    let fault = |tokens: &[u8]| Script {
        tokens: tokens.iter().copied().map(u32::from).collect(),
        end: ScriptEnd::Fault(EngineFault::Internal("broken".to_owned())),
        ..Script::default()
    };
    for (script, stream, billed) in [
        (fault(b""), false, None),
        (fault(b""), true, None),
        (fault(b"abcd"), false, None),
        // What a broken stream had brought already.
        (fault(b"abcd"), true, Some(4)),
        (Script { end: ScriptEnd::Drop, ..fault(b"") }, true, None),
    ] {
        let house = start(script).await;
        let reply = house.chat(json!({"stream": stream})).await;
        assert!(reply.body.contains("internal_error"), "{}", reply.body);
        house.finished(usize::from(billed.is_some())).await;
        let records = house.settled(usize::from(billed.is_some())).await;
        let sampled = records.values().next().map(|record| record.usage.completion());
        assert_eq!(sampled, billed);
    }
}

#[tokio::test]
async fn a_refusal_of_the_engine_costs_nothing() {
    let full = || mintage_model::SubmitError::QueueFull { waiting: 1, limit: 1 };
    let second = std::sync::atomic::AtomicU32::new(0);
    let house = start_with(
        |_| {},
        move |_| {
            // The first choice of two is taken, the second is refused.
            match second.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Ok(says("hello")),
                _ => Err(full()),
            }
        },
    )
    .await;
    let reply = house.chat(json!({"n": 2})).await;
    assert_eq!(reply.status, 503);
    house.finished(1).await;
    house.settled(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_parallel_requests_on_a_balance_for_ten() {
    // Every request uses exactly what it reserves.
    let house = start_with(
        |c| {
            c.limits.max_concurrent_requests = 2000;
            c.limits.max_connections = 2000;
        },
        |_| Ok(Script { token_delay: Duration::from_millis(1), ..says("abcd") }),
    )
    .await;
    let body = json!({"prompt": "abcdefgh", "max_tokens": 4});
    let cost = 8 * INPUT_PICO + 4 * OUTPUT_PICO;
    let poor = house.keys.ensure_tenant("poor", 0).unwrap();
    let key = mintage_ledger::NewKey::of_project("test", &poor.id);
    let key = house.keys.create_key(key, 0).unwrap().secret.expose().to_owned();
    let balance = mintage_ledger::Amount::from_pico(10 * cost + cost - 1);
    house.ledger.topup("t", &poor.organisation, Currency::CNY, balance).unwrap().await.unwrap();
    let ask = || house.post_with(&key, "/v1/completions", &[], &body);
    // As many at once as the machine's open files allow.
    let mut served = 0;
    for _ in 0..4 {
        let replies = futures_util::future::join_all((0..250).map(|_| ask())).await;
        for reply in replies {
            match reply.status {
                200 => served += 1,
                402 => assert_eq!(reply.json()["error"]["code"], "insufficient_balance"),
                other => panic!("{other}: {}", reply.body),
            }
        }
        let now = house.ledger.balance(&poor.organisation, Currency::CNY);
        assert!(!now.available().is_negative());
    }
    assert_eq!(served, 10);
    let after = house.ledger.balance(&poor.organisation, Currency::CNY);
    assert_eq!((after.balance.pico(), after.held.pico()), (cost - 1, 0));
    assert_eq!(house.ledger.open_holds(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_retries_with_one_key_is_computed_and_billed_once() {
    for stream in [false, true] {
        let script = Script { token_delay: Duration::from_millis(3), ..says("hello") };
        let house = start(script).await;
        let key = house.key.clone();
        let header = [("idempotency-key", "storm-1")];
        let body = json!({"stream": stream, "stream_options": {"include_usage": true}});
        let body = if stream { body } else { json!({}) };
        let ask = |body: Value| {
            let (house, key) = (&house, key.as_str());
            async move { house.post_with(key, "/v1/chat/completions", &header, &body).await }
        };
        let retry = || async {
            loop {
                let reply = ask(body.clone()).await;
                if reply.status != 409 {
                    return reply;
                }
                assert_eq!(reply.header("retry-after"), Some("1"));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let replies = futures_util::future::join_all((0..30).map(|_| retry())).await;
        assert!(replies.iter().all(|r| r.status == 200 && r.body == replies[0].body));
        let replayed = replies.iter().filter(|r| r.header("idempotent-replayed").is_some());
        assert_eq!(replayed.count(), 29);
        assert_eq!(house.engine.requests().len(), 1);
        let records = house.settled(1).await;
        let record = records.values().next().unwrap();
        let usage =
            if stream { streamed_usage(&replies[7]).1 } else { replies[7].json()["usage"].clone() };
        assert_eq!(tokens(&usage), recorded(&record.usage));
        let other = ask(json!({"max_tokens": 3})).await;
        assert_eq!(
            (other.status, &other.json()["error"]["code"]),
            (422, &json!("idempotency_key_reused"))
        );
        // The key belongs to a project: another tenant's is another one.
        let stranger = house.stranger().await;
        let reply = house.post_with(&stranger, "/v1/chat/completions", &header, &body).await;
        assert_eq!((reply.status, reply.header("idempotent-replayed")), (200, None));
    }
}

#[tokio::test]
async fn a_keyed_request_runs_on_without_its_client_and_is_answered_later() {
    let script = Script { token_delay: Duration::from_millis(20), ..says("hello") };
    let house = start(script).await;
    let header = [("idempotency-key", "later")];
    let key = house.key.clone();
    let body = json!({"stream": true});
    let ask = || house.post_with(&key, "/v1/chat/completions", &header, &body);
    // Gone after a moment.
    assert!(tokio::time::timeout(Duration::from_millis(60), ask()).await.is_err());
    let reply = loop {
        let reply = ask().await;
        if reply.status != 409 {
            break reply;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(reply.header("idempotent-replayed"), Some("true"));
    assert!(reply.body.contains("\"o\"") && reply.events().last().unwrap() == "[DONE]");
    assert_eq!(house.engine.requests().len(), 1);
    house.settled(1).await;
}

#[tokio::test]
async fn failures_free_their_idempotency_key() {
    let broken =
        Script { end: ScriptEnd::Fault(EngineFault::Internal(String::new())), ..Script::default() };
    let house = start(broken).await;
    let key = house.key.clone();
    let header = [("idempotency-key", "again")];
    for count in 1..=2 {
        let reply = house.post_with(&key, "/v1/chat/completions", &header, &json!({})).await;
        assert_eq!(reply.status, 500);
        assert_eq!(house.engine.requests().len(), count);
    }
    let long = "k".repeat(256);
    let header = [("idempotency-key", long.as_str())];
    let reply = house.post_with(&key, "/v1/chat/completions", &header, &json!({})).await;
    assert_eq!(reply.json()["error"]["code"], "invalid_idempotency_key");
}

/// Every route that takes an id of something that belongs to a project.
const ROUTES_WITH_IDS: [&str; 1] = ["/v1/generation?id={id}"];

#[tokio::test]
async fn what_has_an_id_is_invisible_to_other_projects() {
    let house = start(says("hello")).await;
    let id = house.chat(json!({})).await.json()["id"].as_str().unwrap().to_owned();
    let stranger = house.stranger().await;
    // Another project of the same organisation is a stranger, too.
    let sibling = house.keys.create_project(&house.organisation, "sibling", 0).unwrap();
    let sibling = mintage_ledger::NewKey::of_project("test", &sibling.id);
    let sibling = house.keys.create_key(sibling, 0).unwrap().secret.expose().to_owned();
    for route in ROUTES_WITH_IDS {
        let own = house.get(&route.replace("{id}", &id)).await;
        assert_eq!(own.status, 200, "{route}: {}", own.body);
        for key in [&stranger, &sibling] {
            let others = house.get_with(key, &route.replace("{id}", &id)).await;
            let nobodys = house.get_with(key, &route.replace("{id}", "chatcmpl-0")).await;
            assert_eq!((others.status, nobodys.status), (404, 404), "{route}");
            let anonymous =
                |reply: &Reply| reply.body.replace(&id, "ID").replace("chatcmpl-0", "ID");
            assert_eq!(anonymous(&others), anonymous(&nobodys), "one cannot tell them apart");
        }
    }
}
