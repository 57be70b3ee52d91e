//! Limits, budgets and scopes as clients meet them.

use std::time::Duration;

use mintage_ledger::Amount;
use mintage_ledger::directory::KeyScopes;
use mintage_ledger::limits::{
    Budget, BudgetEffect, BudgetLimit, ModelChoice, Period, Policy, RateRule,
};
use mintage_model::Script;
use serde_json::json;

use crate::harness::{House, says, start};

/// Gives the house's key these rules.
fn limit(house: &House, policy: Policy) {
    let id = house.keys.snapshot().keys().next().unwrap().id.clone();
    house.keys.change(|d| d.change_key(&id, |key| key.policy = policy)).unwrap();
}

fn rates(rule: RateRule) -> Policy {
    Policy { rates: vec![rule], ..Policy::default() }
}

fn budget(limit: BudgetLimit) -> Policy {
    let effect = BudgetEffect::Hard;
    let budget = Budget { models: ModelChoice::Together, period: Period::Day, limit, effect };
    Policy { budgets: vec![budget], ..Policy::default() }
}

/// The second of two requests is refused like this.
async fn check(policy: Policy, status: u16, kind: &str, code: &str, message: &str, retry: bool) {
    let house = start(says("hello")).await;
    limit(&house, policy);
    let body = json!({"prompt": "abcd", "max_tokens": 6});
    let first = house.complete(body.clone()).await;
    assert_eq!(first.status, 200, "{}", first.body);
    let second = house.complete(body).await;
    assert_eq!(second.status, status, "{}", second.body);
    let error = &second.json()["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!(kind), &json!(code)));
    assert!(error["message"].as_str().unwrap().starts_with(message), "{error}");
    let seconds: Option<u64> = second.header("retry-after").map(|s| s.parse().unwrap());
    assert_eq!(seconds.is_some_and(|s| s >= 1), retry, "{seconds:?}");
    assert_eq!(second.header("retry-after-ms").is_some(), retry);
    house.settled(1).await;
}

#[tokio::test]
async fn each_limit_says_which_it_is() {
    let rule = RateRule::default;
    let rpm = rates(RateRule { requests_per_minute: Some(1), ..rule() });
    let tpm = rates(RateRule { tokens_per_minute: Some(12), ..rule() });
    let burst = rates(RateRule { requests_per_minute: Some(60), smooth: true, ..rule() });
    let limited = "rate_limit_exceeded";
    check(rpm, 429, "requests", limited, "The key's limit of 1 requests per minute", true).await;
    check(tpm, 429, "tokens", limited, "The key's limit of 12 tokens per minute", true).await;
    check(burst, 429, "requests", limited, "Requests come too fast", true).await;
    let quota = "insufficient_quota";
    let tokens = budget(BudgetLimit::Tokens(19));
    check(tokens, 429, "tokens", quota, "The key's budget of 19 tokens per day", true).await;
    let money = budget(BudgetLimit::Money(Amount::from_pico(7000)));
    check(money, 402, quota, quota, "The key's budget of money per day", false).await;
}

#[tokio::test]
async fn requests_in_flight_are_limited_and_come_back() {
    let house = start(Script { prefill_delay: Duration::from_millis(150), ..says("hi") }).await;
    limit(&house, rates(RateRule { requests_in_flight: Some(1), ..RateRule::default() }));
    let (first, second) = tokio::join!(house.chat(json!({})), async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        house.chat(json!({})).await
    });
    assert_eq!((first.status, second.status), (200, 429));
    assert_eq!(second.json()["error"]["code"], "concurrency_limit_exceeded");
    assert_eq!(house.chat(json!({})).await.status, 200);
    house.settled(2).await;
}

#[tokio::test]
async fn headers_tell_what_is_left() {
    let house = start(says("hello")).await;
    let rule = RateRule {
        requests_per_minute: Some(100),
        tokens_per_minute: Some(1000),
        ..RateRule::default()
    };
    assert_eq!(house.chat(json!({})).await.header("x-ratelimit-limit-requests"), None);
    limit(&house, rates(rule));
    for stream in [false, true] {
        let body = json!({"prompt": "abcd", "max_tokens": 6, "stream": stream});
        let reply = house.complete(body).await;
        let number = |name: &str| reply.header(name).unwrap().parse::<u64>().unwrap();
        assert_eq!(number("x-ratelimit-limit-requests"), 100);
        assert_eq!(number("x-ratelimit-limit-tokens"), 1000);
        let left = [99 - u64::from(stream), 990 - 10 * u64::from(stream)];
        assert_eq!(number("x-ratelimit-remaining-requests"), left[0]);
        // A few more have flowed in meanwhile.
        assert!((left[1]..left[1] + 10).contains(&number("x-ratelimit-remaining-tokens")));
        assert!(reply.header("x-ratelimit-reset-tokens").unwrap().ends_with('s'));
    }
}

#[tokio::test]
async fn keys_open_what_they_are_made_for() {
    let house = start(says("hello")).await;
    let id = house.keys.snapshot().keys().next().unwrap().id.clone();
    let scope = |models: &[&str], endpoints: &[&str]| {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let scopes = KeyScopes { models: list(models), endpoints: list(endpoints) };
        house.keys.change(|d| d.change_key(&id, |key| key.scopes = scopes)).unwrap();
    };
    scope(&["other*"], &[]);
    // By its own name and by another it answers to.
    for model in ["scripted", "org/alias"] {
        let reply = house.chat(json!({"model": model})).await;
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (403, &json!("model")));
    }
    scope(&["script*"], &["/v1/chat/*"]);
    assert_eq!(house.chat(json!({})).await.status, 200);
    assert_eq!(house.complete(json!({"prompt": "a"})).await.status, 403);
    assert_eq!(house.get("/v1/models").await.json()["error"]["code"], "insufficient_scope");
    house.keys.set_key_enabled(&id, false, 0).unwrap();
    assert_eq!(house.chat(json!({})).await.status, 401);
    house.settled(1).await;
}

#[tokio::test]
async fn two_keys_of_a_project_share_its_limits() {
    let house = start(says("hello")).await;
    let project = house.project.clone();
    let rule = RateRule { requests_per_minute: Some(1), ..RateRule::default() };
    house
        .keys
        .change(|d| {
            let known = d.project(&project)?.clone();
            d.put_project(mintage_ledger::directory::Project { policy: rates(rule), ..known })
        })
        .unwrap();
    let second = mintage_ledger::NewKey::of_project("second", &project);
    let second = house.keys.create_key(second, 0).unwrap().secret.expose().to_owned();
    assert_eq!(house.chat(json!({})).await.status, 200);
    let reply = house.post_with(&second, "/v1/chat/completions", &[], &json!({})).await;
    assert_eq!(reply.status, 429);
    assert!(reply.body.contains("The project's limit of 1 requests per minute"), "{}", reply.body);
}
