//! A name that leads to several models and services: shares by weight, and who stands in for whom.

use mintage_ledger::NewKey;
use mintage_model::SubmitError;
use mintage_server::{ApiKey, RouteConfig, RouteTarget, ServerConfig};
use serde_json::json;

use crate::harness::{CONTEXT, House, MODEL, says, start, start_with};
use crate::upstreams::{FAR, upstream_at};

fn route(targets: &[(&str, u32)]) -> RouteConfig {
    let target = |&(model, weight): &(&str, u32)| RouteTarget { model: model.to_owned(), weight };
    RouteConfig { name: "both".to_owned(), targets: targets.iter().map(target).collect() }
}

/// A server with an engine of its own, `back` behind [`FAR`], and a route over both.
async fn over(
    back: &House,
    targets: &[(&str, u32)],
    respond: impl Fn() -> Result<mintage_model::Script, SubmitError> + Send + Sync + 'static,
) -> House {
    let mut upstream = upstream_at(back.address);
    upstream.api_key = Some(ApiKey::new(&back.key).unwrap());
    upstream.max_retries = 0;
    let route = route(targets);
    let change = |config: &mut ServerConfig| {
        config.upstreams.push(upstream);
        config.routes.push(route);
    };
    start_with(change, move |_| respond()).await
}

#[tokio::test]
async fn requests_are_shared_by_weight_and_told_by_whom() {
    let back = start(says("far")).await;
    let front = over(&back, &[(MODEL, 1), (FAR, 3)], || Ok(says("own"))).await;
    let mut far = 0;
    for _ in 0..100 {
        let reply = front.chat(json!({"model": "both", "max_tokens": 20})).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let answer = reply.json();
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(answer["model"], if text == "far" { FAR } else { MODEL });
        far += u32::from(text == "far");
    }
    // 75 of 100, within five standard deviations.
    assert!((54..=96).contains(&far), "{far}");
    let records = front.settled(100).await;
    let of_far = records.values().filter(|record| &*record.facts.model == FAR).count();
    assert_eq!(of_far, far as usize);
    back.settled(far as usize).await;
}

#[tokio::test]
async fn a_full_engine_is_stood_in_for() {
    let back = start(says("far")).await;
    let full = || Err(SubmitError::QueueFull { waiting: 1, limit: 1 });
    let front = over(&back, &[(MODEL, 1), (FAR, 0)], full).await;
    for (path, body, text) in [
        (
            "/v1/chat/completions",
            json!({"model": "both", "messages": [{"role": "user", "content": "x"}]}),
            "\"content\":\"far\"",
        ),
        ("/v1/completions", json!({"model": "both", "prompt": "x"}), "\"text\":\"far\""),
        (
            "/v1/messages",
            json!({"model": "both", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}),
            "\"text\":\"far\"",
        ),
        (
            "/api/chat",
            json!({"model": "both", "stream": false, "messages": [{"role": "user", "content": "x"}]}),
            "\"content\":\"far\"",
        ),
    ] {
        let reply = front.post(path, body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        assert!(reply.body.contains(text), "{path}: {}", reply.body);
        assert!(reply.body.contains("\"model\":\"far\""), "{path}: {}", reply.body);
    }
    let records = front.settled(4).await;
    assert!(records.values().all(|record| &*record.facts.model == FAR));
    // Asked by its own name, nobody stands in for it.
    assert_eq!(front.chat(json!({"model": MODEL})).await.status, 503);
}

#[tokio::test]
async fn a_service_that_is_gone_is_stood_in_for() {
    let mut back = start(says("far")).await;
    let front = over(&back, &[(FAR, 1), (MODEL, 0)], || Ok(says("own"))).await;
    let ask = async |stream: bool| {
        let reply = front.chat(json!({"model": "both", "stream": stream})).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.body
    };
    assert!(ask(false).await.contains("\"model\":\"far\""));
    back.stop();
    back.gone().await;
    for stream in [false, true] {
        let body = ask(stream).await;
        assert!(body.contains("\"model\":\"scripted\"") && !body.contains("\"far\""), "{body}");
    }
    let reply = front.chat(json!({"model": FAR})).await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (503, &json!("upstream_unavailable"))
    );
    let records = front.settled(3).await;
    let of = |model: &str| records.values().filter(|r| &*r.facts.model == model).count();
    assert_eq!((of(FAR), of(MODEL)), (1, 2));
}

#[tokio::test]
async fn routes_are_listed_and_allowed_by_their_name() {
    let back = start(says("far")).await;
    let front = over(&back, &[(MODEL, 0), (FAR, 1)], || Ok(says("own"))).await;
    let listed = front.get("/v1/models").await.json();
    let ids: Vec<&str> =
        listed["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [MODEL, FAR, "both"]);
    let one = front.get("/v1/models/both").await.json();
    assert_eq!((&one["id"], &one["max_model_len"]), (&json!("both"), &json!(CONTEXT)));
    let key = |models: &[&str]| {
        let mut key = NewKey::of_project("scoped", &front.project);
        key.scopes.models = models.iter().map(|&model| model.to_owned()).collect();
        front.keys.create_key(key, 0).unwrap().secret.expose().to_owned()
    };
    for (models, asked, status) in [
        (["both"], "both", 200),
        (["both"], FAR, 403),
        ([FAR], "both", 200),
        ([FAR], FAR, 200),
        ([MODEL], "both", 403),
    ] {
        let body = json!({"model": asked});
        let reply = front.post_with(&key(&models), "/v1/chat/completions", &[], &body).await;
        assert_eq!(reply.status, status, "{models:?} {asked}: {}", reply.body);
    }
}

#[tokio::test]
async fn a_set_that_cannot_be_is_refused_at_the_start() {
    let check = |change: &dyn Fn(&mut ServerConfig), says: &str| {
        let mut config =
            ServerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ServerConfig::default() };
        config.upstreams.push(upstream_at(([127, 0, 0, 1], 1).into()));
        change(&mut config);
        let access = mintage_server::Access::Open;
        let error = mintage_server::Server::bind(config, Vec::new(), access, None).err().unwrap();
        assert!(error.to_string().contains(says), "{error}");
    };
    check(&|c| c.routes.push(route(&[])), "`both` has no targets");
    check(&|c| c.routes.push(route(&[("gone", 1)])), "leads to `gone`");
    check(&|c| c.routes.extend([route(&[(FAR, 1)]), route(&[(FAR, 1)])]), "name `both`");
    check(&|c| c.upstreams.push(c.upstreams[0].clone()), "name `far`");
    check(&|c| c.upstreams[0].base_url = "ftp://x".to_owned(), "`base_url`");
    check(&|c| c.upstreams[0].context_length = 0, "`context_length`");
    check(&|c| c.upstreams.clear(), "no model to serve");
}
