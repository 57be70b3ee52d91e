//! Embeddings and scores of another service: the same vectors and the same usage through every dialect, stand-ins, and
//! services that misbehave.

use std::time::{Duration, Instant};

use mintage_ledger::{TokenUsage, UsageRecord};
use mintage_model::{GenerateRequest, Script, SubmitError};
use mintage_server::{ApiKey, OnDisconnect, RouteConfig, RouteTarget, ServerConfig};
use mintage_server::{UpstreamConfig, UpstreamTask};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::harness::{House, says, start_with as start_house};
use crate::hostile::{Does, fails, head, hostile_as, stopped_before_it_answers};
use crate::upstreams::{FAR, answered, upstream_at};
use crate::vectors::{
    BERT, DASHSCOPE, DASHSCOPE_RERANK, DOCUMENTS, EMBEDDINGS, JUDGE, QWEN, TWO, Vectors, embeds,
    numbers, start, start_with, unpacked,
};

const FAR_JUDGE: &str = "far-judge";
const FAR_QWEN: &str = "far-qwen";

/// An upstream at a house with models that make vectors.
fn vectors_at(back: &House, name: &str, model: &str, task: UpstreamTask) -> UpstreamConfig {
    let mut upstream = upstream_at(back.address);
    upstream.name = name.to_owned();
    upstream.model = model.to_owned();
    upstream.task = task;
    upstream.api_key = Some(ApiKey::new(&back.key).unwrap());
    upstream.max_retries = 0;
    upstream
}

/// A server that has these models of `back` behind names of its own.
async fn before(back: &House, change: impl FnOnce(&mut ServerConfig)) -> House {
    let upstreams = [
        vectors_at(back, FAR, BERT, UpstreamTask::Embed),
        vectors_at(back, FAR_QWEN, QWEN, UpstreamTask::Embed),
        vectors_at(back, FAR_JUDGE, JUDGE, UpstreamTask::Rerank),
    ];
    let with = |config: &mut ServerConfig| {
        config.upstreams.extend(upstreams);
        change(config);
    };
    start_house(with, |_| Ok(says("not this one"))).await
}

/// The same answer, but for what names the model and the request.
fn same(reply: &Value, direct: &Value) {
    let stripped = |value: &Value| {
        let mut value = value.clone();
        for name in ["id", "model", "request_id", "total_duration"] {
            value.as_object_mut().unwrap().remove(name);
        }
        value
    };
    assert_eq!(stripped(reply), stripped(direct));
}

#[tokio::test]
async fn every_dialect_gets_the_services_vectors_and_pays_the_same_on_both_sides() {
    let Vectors { house: back, .. } = start().await;
    let front = before(&back, |_| {}).await;
    let tokens = json!([[77, 78], [2, 3]]);
    let rerank = json!({"query": "q", "documents": DOCUMENTS, "top_n": 2});
    let native = json!({"input": {"query": "q", "documents": DOCUMENTS}});
    let all = [
        (EMBEDDINGS, FAR, BERT, json!({"input": TWO})),
        (EMBEDDINGS, FAR, BERT, json!({"input": TWO, "encoding_format": "base64"})),
        (EMBEDDINGS, FAR, BERT, json!({"input": tokens})),
        (EMBEDDINGS, FAR, BERT, json!({"input": "the ".repeat(99), "truncate_prompt_tokens": 9})),
        (EMBEDDINGS, FAR_QWEN, QWEN, json!({"input": "ab", "dimensions": 2})),
        ("/compatible-mode/v1/embeddings", FAR, BERT, json!({"input": TWO})),
        (
            DASHSCOPE,
            FAR_QWEN,
            QWEN,
            json!({"input": {"texts": ["ab"]}, "parameters": {"dimension": 2}}),
        ),
        ("/api/embed", FAR, BERT, json!({"input": TWO})),
        ("/api/embed", FAR, BERT, json!({"input": "the ".repeat(99)})),
        ("/api/embed", FAR_QWEN, QWEN, json!({"input": "ab", "dimensions": 2})),
        ("/api/embeddings", FAR, BERT, json!({"prompt": TWO[0]})),
        ("/v1/rerank", FAR_JUDGE, JUDGE, rerank.clone()),
        (
            "/v1/rerank",
            FAR_JUDGE,
            JUDGE,
            json!({"query": "q", "documents": ["a"], "instruct": "i"}),
        ),
        ("/v1/rerank", FAR, BERT, rerank.clone()),
        ("/v2/rerank", FAR_JUDGE, JUDGE, rerank),
        (DASHSCOPE_RERANK, FAR_JUDGE, JUDGE, native),
    ];
    for &(path, far, own, ref body) in &all {
        let ask = async |house: &House, model: &str| {
            let mut body = body.clone();
            body["model"] = model.into();
            let reply = house.post(path, body).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.body);
            reply.json()
        };
        let (reply, direct) = (ask(&front, far).await, ask(&back, own).await);
        // A query stands alone at a service that embeds: it has no prompt of the model's for it here.
        if (path, far) != ("/v1/rerank", FAR) {
            same(&reply, &direct);
        }
        if let Some(model) = reply.get("model") {
            assert_eq!(model, far, "{path}");
        }
    }
    let told = front.settled(all.len()).await;
    let back_told = back.settled(2 * all.len()).await;
    for record in told.values() {
        let (digest, by) = answered(record);
        assert!(digest.starts_with("upstream:127.0.0.1/") && by == "upstream", "{digest} {by}");
        assert_eq!((record.usage.output, &*record.outcome.finish), (0, "stop"));
        assert!(back_told.values().any(|other| other.usage == record.usage), "{record:?}");
    }
    let sum = |records: &std::collections::BTreeMap<String, UsageRecord>| {
        records.values().map(|record| record.usage.prompt()).sum::<u64>()
    };
    assert_eq!(2 * sum(&told), sum(&back_told));
    assert!(front.engine.requests().is_empty());
    front.metric("vllm:request_success_total{model_name=\"far-judge\",engine=\"0\",finished_reason=\"stop\"} 4").await;
}

#[tokio::test]
async fn what_a_service_cannot_do_is_refused_by_name() {
    let Vectors { house: back, .. } = start().await;
    let front = before(&back, |config| {
        let openai = UpstreamConfig {
            name: "openai".to_owned(),
            flavour: mintage_server::Flavour::Openai,
            ..config.upstreams[0].clone()
        };
        config.upstreams.push(openai);
    })
    .await;
    let native = |parameters: Value| json!({"input": {"texts": TWO}, "parameters": parameters});
    let query = json!({"text_type": "query"});
    let long = "the ".repeat(99);
    for (path, model, body, needle) in [
        (DASHSCOPE, FAR, native(query), "parameters.text_type"),
        (EMBEDDINGS, "openai", json!({"input": "a", "truncate_prompt_tokens": 5}), "`truncate_"),
        (EMBEDDINGS, "openai", json!({"input": ["a", [5]]}), "not both at once"),
        (EMBEDDINGS, FAR_JUDGE, json!({"input": "a"}), "scores documents"),
        (EMBEDDINGS, FAR, json!({"input": vec!["a"; 2049]}), "at most 2048 inputs"),
        (EMBEDDINGS, FAR, json!({"input": long}), "at most 64"),
        ("/api/embed", "openai", json!({"input": "a", "truncate": true}), "truncate"),
        ("/v1/rerank", FAR, json!({"query": "q", "documents": ["a"], "instruct": "i"}), "instruct"),
        (
            "/v1/chat/completions",
            FAR,
            json!({"messages": [{"role": "user", "content": "a"}]}),
            "makes embeddings",
        ),
        ("/api/show", FAR, json!({}), "another service"),
    ] {
        let mut body = body;
        body["model"] = model.into();
        let reply = front.post(path, body).await;
        assert_eq!(reply.status, 400, "{path} {model}: {}", reply.body);
        assert!(reply.body.contains(needle), "{path} {model}: {}", reply.body);
    }
    front.settled(0).await;
    let listed = front.get("/v1/models").await.json();
    let listed = listed["data"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap());
    assert!(listed.into_iter().any(|id| id == FAR_JUDGE));
}

#[tokio::test]
async fn batches_embed_through_it() {
    let Vectors { house: back, .. } = start().await;
    let front = before(&back, |_| {}).await;
    let line = |n: usize| {
        let body = json!({"model": FAR, "input": TWO[n % 2]});
        let id = format!("c{n}");
        json!({"custom_id": id, "method": "POST", "url": EMBEDDINGS, "body": body}).to_string()
            + "\n"
    };
    let batch = front.batch_to(EMBEDDINGS, &(0..4).map(line).collect::<String>()).await;
    let over = front.batch_over(&batch).await;
    assert_eq!(over["request_counts"]["completed"], 4, "{over}");
    assert_eq!(over["usage"]["input_tokens"], 14);
    let records = front.settled(4).await;
    assert!(records.values().all(|record| record.facts.batch && answered(record).1 == "upstream"));
}

fn route(targets: &[(&str, u32)]) -> RouteConfig {
    let target = |&(model, weight): &(&str, u32)| RouteTarget { model: model.to_owned(), weight };
    RouteConfig { name: "both".to_owned(), targets: targets.iter().map(target).collect() }
}

#[tokio::test]
async fn a_service_that_is_gone_is_stood_in_for() {
    let Vectors { house: mut back, .. } = start().await;
    let upstream = vectors_at(&back, FAR, BERT, UpstreamTask::Embed);
    let with = |config: &mut ServerConfig| {
        config.upstreams.push(upstream);
        config.routes.push(route(&[(FAR, 1), (BERT, 0)]));
    };
    let Vectors { house, bert, .. } = start_with(with, embeds).await;
    let ask = async || {
        let reply = house.post(EMBEDDINGS, json!({"model": "both", "input": TWO})).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let told = reply.json();
        (told["model"].as_str().unwrap().to_owned(), numbers(&told["data"][0]["embedding"]))
    };
    let (model, vector) = ask().await;
    assert_eq!(model, FAR);
    back.stop();
    back.gone().await;
    assert_eq!(ask().await, (BERT.to_owned(), vector));
    assert_eq!(bert.requests().len(), TWO.len());
    let records = house.settled(2).await;
    let of = |model: &str| records.values().filter(|r| &*r.facts.model == model).count();
    assert_eq!((of(FAR), of(BERT)), (1, 1));
    let listed = house.get("/v1/models/both").await.json();
    assert_eq!(listed["max_model_len"], 64, "what all its targets take");
}

#[tokio::test]
async fn a_full_engine_is_stood_in_for() {
    let Vectors { house: back, .. } = start().await;
    let upstream = vectors_at(&back, FAR, BERT, UpstreamTask::Embed);
    let with = |config: &mut ServerConfig| {
        config.upstreams.push(upstream);
        config.routes.push(route(&[(BERT, 1), (FAR, 0)]));
    };
    let full = |_: &GenerateRequest| Err(SubmitError::QueueFull { waiting: 1, limit: 1 });
    let Vectors { house, .. } = start_with(with, full).await;
    for (path, body) in [
        (EMBEDDINGS, json!({"input": TWO})),
        (DASHSCOPE, json!({"input": {"texts": TWO}})),
        ("/api/embed", json!({"input": TWO})),
    ] {
        let mut body = body;
        body["model"] = "both".into();
        let reply = house.post(path, body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
    }
    let records = house.settled(3).await;
    assert!(records.values().all(|record| &*record.facts.model == FAR));
}

#[tokio::test]
async fn routes_lead_to_one_kind_only() {
    let Vectors { house: back, .. } = start().await;
    for (targets, says) in [
        ([(FAR, 1), (FAR_JUDGE, 1)], "`far-judge` does something else"),
        ([(FAR, 1), ("chat", 1)], "`chat` does something else"),
        ([("chat", 1), (FAR, 1)], "`far` does something else"),
        ([(FAR, 1), ("gone", 1)], "leads to `gone`"),
    ] {
        let config = ServerConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            upstreams: vec![
                vectors_at(&back, FAR, BERT, UpstreamTask::Embed),
                vectors_at(&back, FAR_JUDGE, JUDGE, UpstreamTask::Rerank),
                vectors_at(&back, "chat", "x", UpstreamTask::Generate),
            ],
            routes: vec![route(&targets)],
            ..ServerConfig::default()
        };
        let access = mintage_server::Access::Open;
        let error = mintage_server::Server::bind(config, Vec::new(), access, None).err().unwrap();
        assert!(error.to_string().contains(says), "{error}");
    }
}

fn answer(body: &Value) -> Vec<Does> {
    let body = body.to_string();
    let more = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    vec![Does::Says(head("200 OK", &more) + &body)]
}

fn two_vectors(usage: &Value) -> Value {
    json!({"data": [{"index": 1, "embedding": [0.5]}, {"index": 0, "embedding": [1]}], "usage": usage})
}

/// What a request gets of a service with these answers, and what it is billed.
async fn check(what: &str, answers: Vec<Vec<Does>>, expected: (u16, &str), billed: Option<u64>) {
    let service = hostile_as(UpstreamTask::Embed, answers, |upstream, _| {
        upstream.first_event_timeout = Duration::from_millis(400);
        upstream.idle_timeout = Duration::from_millis(300);
    })
    .await;
    let begun = Instant::now();
    let body = json!({"model": FAR, "input": ["ab", "c"], "encoding_format": "base64"});
    let reply = service.house.post(EMBEDDINGS, body).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{what}");
    let code = if reply.status == 200 {
        assert_eq!(unpacked(&reply.json()["data"][1]["embedding"]), [0.5], "{what}");
        assert_eq!(reply.json()["usage"]["prompt_tokens"].as_u64(), billed, "{what}");
        String::new()
    } else {
        reply.json()["error"]["code"].as_str().unwrap().to_owned()
    };
    assert_eq!((reply.status, &*code), expected, "{what}: {}", reply.body);
    let records = service.house.settled(usize::from(billed.is_some())).await;
    let found = records.values().next().map(|record| record.usage);
    let expected = billed.map(|input| TokenUsage { input, ..TokenUsage::default() });
    assert_eq!(found, expected, "{what}");
}

#[tokio::test]
async fn what_a_service_says_is_held_to_what_can_be() {
    let ok = (200, "");
    let good = |usage: Value| vec![answer(&two_vectors(&usage))];
    check("usage", good(json!({"prompt_tokens": 3, "total_tokens": 3})), ok, Some(3)).await;
    check("a total only", good(json!({"total_tokens": 4})), ok, Some(4)).await;
    // A byte a token, and what a model's marks come to.
    check("too much", good(json!({"prompt_tokens": 1_u64 << 40})), ok, Some(3 + 2 * 16)).await;
    check("none", good(Value::Null), ok, Some(0)).await;
    check("nonsense", good(json!({"prompt_tokens": -3})), ok, Some(0)).await;
    let failed = (502, "upstream_failed");
    let one = json!({"data": [{"index": 0, "embedding": [1]}], "usage": {"prompt_tokens": 3}});
    check("too few", vec![answer(&one)], failed, None).await;
    let uneven = json!({"data": [{"embedding": [1]}, {"embedding": [1, 2]}]});
    check("of two lengths", vec![answer(&uneven)], failed, None).await;
    check("no vectors", vec![answer(&json!({"error": "x"}))], failed, None).await;
    let page = vec![Does::Says(head("200 OK", "content-type: text/html\r\n") + "<html>")];
    check("a web page", vec![page], failed, None).await;
    let cut = head("200 OK", "content-type: application/json\r\ncontent-length: 500\r\n");
    check("cut off", vec![vec![Does::Says(cut.clone() + "{\"data\"")]], failed, None).await;
    let late = (504, "upstream_timeout");
    let stalls = vec![Does::Says(cut + "{\"data\""), Does::Waits(Duration::from_secs(9))];
    check("silence in the middle", vec![stalls], late, None).await;
    check("silence", vec![vec![Does::Waits(Duration::from_secs(9))]], late, None).await;
    let wrong = r#"{"error":{"message":"`input` is odd"}}"#;
    let refused = (400, "upstream_invalid_request");
    check("a wrong request", vec![fails("400 Bad Request", "", wrong)], refused, None).await;
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_billed_once() {
    let cut = head("200 OK", "content-type: application/json\r\ncontent-length: 500\r\n");
    for first in [fails("503 Busy", "", "{}"), vec![Does::Says(cut + "{")]] {
        let good = answer(&two_vectors(&json!({"prompt_tokens": 3})));
        let service = hostile_as(UpstreamTask::Embed, vec![first, good], |upstream, _| {
            upstream.max_retries = 1;
        })
        .await;
        let body = json!({"model": FAR, "input": ["ab", "c"]});
        let reply = service.house.post(EMBEDDINGS, body).await;
        assert_eq!((reply.status, service.connections()), (200, 2), "{}", reply.body);
        let records = service.house.settled(1).await;
        assert_eq!(records.values().next().unwrap().usage.input, 3);
        service.house.metric("mintage_upstream_retries_total{upstream=\"far\"} 1").await;
    }
}

#[tokio::test]
async fn a_tokenizer_counts_where_the_service_does_not() {
    let answers = vec![answer(&two_vectors(&Value::Null))];
    let service = hostile_as(UpstreamTask::Embed, answers, |upstream, _| {
        upstream.tokenizer = Some(std::sync::Arc::new(crate::harness::text_model()));
    })
    .await;
    let reply = service.house.post(EMBEDDINGS, json!({"model": FAR, "input": ["ab", "c"]})).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let records = service.house.settled(1).await;
    let record = records.values().next().unwrap();
    assert_eq!((record.usage.input, answered(record).1), (3, "own"), "its tokens are bytes");
    service.house.metric("mintage_upstream_counted_here_total{upstream=\"far\"} 1").await;
}

#[tokio::test]
async fn who_leaves_pays_what_the_service_reports_or_nothing_where_it_is_cancelled() {
    for (on_disconnect, billed) in
        [(OnDisconnect::Drain(Duration::from_secs(30)), 1), (OnDisconnect::Cancel, 0)]
    {
        let slow = |request: &GenerateRequest| {
            Ok(Script { prefill_delay: Duration::from_millis(300), ..embeds(request)? })
        };
        let Vectors { house: back, bert, .. } = start_with(|_| {}, slow).await;
        let front = before(&back, |config| {
            config.upstreams[0].on_disconnect = on_disconnect;
        })
        .await;
        let mut socket = front.connect().await;
        let body = json!({"model": FAR, "input": TWO}).to_string();
        socket.write_all(front.request("POST", EMBEDDINGS, &body).as_bytes()).await.unwrap();
        while bert.requests().len() < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(socket);
        back.settled(billed).await;
        let records = front.settled(billed).await;
        for record in records.values() {
            assert_eq!((record.usage.input, &*record.outcome.finish), (7, "abort"));
        }
        front.metric("mintage_upstream_in_flight{upstream=\"far\"} 0").await;
    }
}

/// A good answer, long after the request.
fn late() -> Vec<Vec<Does>> {
    let mut steps = vec![Does::Waits(Duration::from_millis(600))];
    steps.extend(answer(&two_vectors(&json!({"prompt_tokens": 3}))));
    vec![steps]
}

#[tokio::test]
async fn what_the_server_stops_costs_nothing_though_the_service_answers() {
    let service = hostile_as(UpstreamTask::Embed, late(), |_, config| {
        config.drain_timeout = Duration::from_millis(100);
    })
    .await;
    let body = json!({"model": FAR, "input": ["ab", "c"]});
    stopped_before_it_answers(service, EMBEDDINGS, &body).await;
}

#[tokio::test]
async fn lines_of_a_cancelled_batch_cost_nothing_though_the_service_answers() {
    let service = hostile_as(UpstreamTask::Embed, late(), |_, _| {}).await;
    let body = json!({"model": FAR, "input": ["ab", "c"]});
    let line = json!({"custom_id": "c", "method": "POST", "url": EMBEDDINGS, "body": body});
    let batch = service.house.batch_to(EMBEDDINGS, &format!("{line}\n")).await;
    service.asked().await;
    service.house.post(&format!("/v1/batches/{batch}/cancel"), json!({})).await;
    let over = service.house.batch_over(&batch).await;
    assert_eq!((&over["status"], service.connections()), (&json!("cancelled"), 1), "{over}");
    service.house.settled(0).await;
}

#[tokio::test]
async fn what_a_request_asks_too_much_of_is_refused_and_no_illness() {
    let vectors = |all: &[Value]| {
        let all: Vec<Value> = all.iter().map(|vector| json!({"embedding": vector})).collect();
        answer(&json!({"data": all, "usage": {"prompt_tokens": 3}}))
    };
    // So wide that one fits and two do not.
    let wide = Value::from("AAAA".repeat((2_usize << 20).div_ceil(3) * 4));
    let much = " ".repeat(1 << 20);
    let endless = head("200 OK", "content-type: application/json\r\n");
    let endless = vec![Does::Says(endless), Does::Repeats(much, Duration::ZERO)];
    let (one, two) = (json!([1, 2]), [json!([1, 2]), json!([3, 4])]);
    let answers = vec![
        vectors(&two),
        vectors(&two),
        vectors(&[wide.clone(), wide]),
        vectors(&[one]),
        endless.clone(),
        vectors(&two),
    ];
    let service = hostile_as(UpstreamTask::Embed, answers, |upstream, _| {
        upstream.max_retries = 2;
        upstream.breaker_failures = 1;
    })
    .await;
    let ask = async |body: Value, expected: (u16, &str), says: &str, connections: usize| {
        let mut body = body;
        body["model"] = FAR.into();
        let reply = service.house.post(EMBEDDINGS, body).await;
        let param = reply.json()["error"]["param"].as_str().unwrap_or("").to_owned();
        assert_eq!((reply.status, &*param), expected, "{}", reply.body);
        assert!(reply.body.contains(says), "{}", reply.body);
        assert_eq!(service.connections(), connections, "{says}");
    };
    let short = json!({"input": ["a", "b"], "dimensions": 5});
    ask(short.clone(), (400, "dimensions"), "makes vectors of 2 numbers, not of 5", 1).await;
    ask(short, (400, "dimensions"), "makes vectors of 2 numbers, not of 5", 2).await;
    let both = json!({"input": ["a", "b"]});
    ask(both.clone(), (400, "input"), "2 vectors of 2097153 numbers", 3).await;
    // Nobody has to be asked for that again, until its vectors are others.
    ask(both.clone(), (400, "input"), "at most 1", 3).await;
    ask(json!({"input": "a"}), (200, ""), "", 4).await;
    ask(both.clone(), (400, ""), "fewer of `input`", 5).await;
    ask(both, (200, ""), "", 6).await;
    let line = "mintage_upstream_breaker_state{upstream=\"far\"} 0";
    service.house.metric(line).await;
    service.house.settled(2).await;
    // Of one input there is never so much to say.
    let service = hostile_as(UpstreamTask::Embed, vec![endless], |_, _| {}).await;
    let reply = service.house.post(EMBEDDINGS, json!({"model": FAR, "input": "a"})).await;
    assert_eq!((reply.status, service.connections()), (502, 1), "{}", reply.body);
    service.house.settled(0).await;
}

#[tokio::test]
async fn a_query_that_cannot_fit_is_refused_before_it_is_sent() {
    let scores = json!({"results": [{"index": 0, "relevance_score": 0.5}, {"index": 1, "relevance_score": 0}]});
    for task in [UpstreamTask::Rerank, UpstreamTask::Embed] {
        let service = hostile_as(task, vec![answer(&scores)], |upstream, _| {
            upstream.tokenizer = Some(std::sync::Arc::new(crate::harness::text_model()));
        })
        .await;
        let ask = async |query: &str| {
            let body = json!({"model": FAR, "query": query, "documents": ["ab", "c"]});
            service.house.post("/v1/rerank", body).await
        };
        // Its tokens are bytes.
        let reply = ask(&"x".repeat(513)).await;
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["param"]), (400, &json!("query")), "{}", reply.body);
        assert_eq!(error["code"], "context_length_exceeded", "{}", reply.body);
        assert!(reply.body.contains("513 tokens"), "{}", reply.body);
        assert_eq!(service.connections(), 0);
        if task == UpstreamTask::Rerank {
            assert_eq!(ask("xyz").await.status, 200);
            let records = service.house.settled(1).await;
            let used = records.values().next().unwrap().usage.input;
            assert_eq!(used, 2 * 3 + 3, "the query counts with each document");
        }
    }
}
