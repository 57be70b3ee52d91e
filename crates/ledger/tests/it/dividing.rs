//! Limits, free quota, idempotency keys and messages of several gateways on one ledger.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mintage_ledger::limits::{
    Ask, Budget, BudgetEffect, BudgetLimit, Calendar, Level, Limiter, ModelChoice, Now, Party,
    Pass, Period, Policy, RateRule, Used,
};
use mintage_ledger::{
    Amount, Begin, Changes, Delivery, GrantTerms, Ledger, LedgerError, Message, ShareAnswer,
    SharedLimits, Together,
};

use crate::cluster::Cluster;
use crate::rig::{admission, ended, usage};
use crate::shared::{block_on, gateway};

/// 2026-11-24, noon.
const NOW: Now = Now { monotonic_ms: 0, unix_ms: 1_795_521_600_000 };

struct House {
    ledger: Ledger,
    limiter: Arc<Mutex<Limiter>>,
}

fn house(url: &str, name: &str) -> House {
    let ledger = gateway(url, name);
    let limiter = Arc::new(Mutex::new(Limiter::new(Calendar::default())));
    let keys_of = Box::new(|key: &str| vec![key.to_owned()]);
    ledger.share_limits(SharedLimits { limiter: Arc::clone(&limiter), keys_of });
    House { ledger, limiter }
}

fn party(policy: Policy) -> Vec<Party> {
    vec![Party { level: Level::Project, id: "p".into(), policy }]
}

fn rates(rule: RateRule) -> Vec<Party> {
    party(Policy { rates: vec![rule], ..Policy::default() })
}

/// As a server does it: asks again for as long as more comes in.
fn enter(house: &House, parties: &[Party], tokens: u64, pico: i128) -> Option<Pass> {
    loop {
        let ask = Ask { model: "m", tokens, amount: Amount::from_pico(pico), batch: false };
        let refusal = {
            let mut limiter = house.limiter.lock().unwrap();
            match limiter.check(NOW, parties, ask) {
                Ok(()) => return Some(limiter.take(NOW, parties, ask)),
                Err(refusal) => refusal,
            }
        };
        let missing = refusal.missing.as_ref().expect("what is missing can be asked for");
        match block_on(house.ledger.cover_share(missing)) {
            ShareAnswer::Again => {}
            ShareAnswer::Later(_) => return None,
        }
    }
}

fn leave(house: &House, parties: &[Party], pass: Pass, used: Used) {
    house.limiter.lock().unwrap().settle(NOW, parties, "m", pass, used);
}

/// So many requests from threads over all houses; how many were let in, each having used what it asked for.
fn crowd(houses: &[House], parties: &[Party], count: usize, tokens: u64, pico: i128) -> u64 {
    let entered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for i in 0..count {
            let (entered, house) = (&entered, &houses[i % houses.len()]);
            let request = move || {
                let Some(pass) = enter(house, parties, tokens, pico) else { return };
                entered.fetch_add(1, Ordering::Relaxed);
                leave(house, parties, pass, Used { tokens, amount: Amount::from_pico(pico) });
            };
            std::thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, request).unwrap();
        }
    });
    entered.into_inner()
}

#[test]
fn limits_hold_over_three_gateways() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("limits");
    let houses = ["a", "b", "c"].map(|name| house(&url, name));

    // 30 a minute: those that are there, and what flows in meanwhile.
    let start = Instant::now();
    let rated = rates(RateRule { requests_per_minute: Some(30), ..RateRule::default() });
    let entered = crowd(&houses, &rated, 300, 1, 0);
    let most = 31 + start.elapsed().as_secs() / 2;
    assert!((20..=most).contains(&entered), "{entered} of 30");
    // What a gateway had left over comes back, and no more than that.
    let mut all = entered;
    for _ in 0..20 {
        all += crowd(&houses, &rated, 3, 1, 0);
        std::thread::sleep(Duration::from_millis(100));
    }
    let most = 31 + start.elapsed().as_secs() / 2;
    assert!((30..=most).contains(&all), "{all} of 30 in {:?}", start.elapsed());

    // A budget for 20 requests, in money and in tokens.
    for (limit, tokens, pico) in
        [(BudgetLimit::Money(Amount::from_pico(200)), 1, 10), (BudgetLimit::Tokens(200), 10, 1)]
    {
        let (models, period) = (ModelChoice::Together, Period::Month);
        let budget = Budget { models, period, limit, effect: BudgetEffect::Hard };
        let parties = party(Policy { budgets: vec![budget], ..Policy::default() });
        let mut entered = crowd(&houses, &parties, 300, tokens, pico);
        for _ in 0..3 {
            entered += crowd(&houses, &parties, 3, tokens, pico);
        }
        assert_eq!(entered, 20, "{limit:?}");
    }

    // Five places, wherever they are taken; one that is given back is somebody else's.
    let rule = RateRule { requests_in_flight: Some(5), ..RateRule::default() };
    let parties = rates(rule);
    let mut passes: Vec<(usize, Pass)> = Vec::new();
    for i in 0..12 {
        passes.extend(enter(&houses[i % 3], &parties, 1, 0).map(|pass| (i % 3, pass)));
    }
    assert_eq!(passes.len(), 5);
    let (from, pass) = passes.pop().unwrap();
    leave(&houses[from], &parties, pass, Used::default());
    let other = (from + 1) % 3;
    let start = Instant::now();
    let pass = loop {
        match enter(&houses[other], &parties, 1, 0) {
            Some(pass) => break pass,
            None => assert!(start.elapsed() < Duration::from_secs(10), "the place is free"),
        }
    };
    assert!(enter(&houses[from], &parties, 1, 0).is_none());
    passes.push((other, pass));
    for (at, pass) in passes {
        leave(&houses[at], &parties, pass, Used::default());
    }
    for house in houses {
        house.ledger.verify().unwrap();
    }
}

#[test]
fn a_budget_counts_what_was_used_before_it_was_shared() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("before");
    let [a, b] = ["a", "b"].map(|name| house(&url, name));
    a.ledger
        .credit_line("l", "acme", mintage_ledger::Currency::CNY, Amount::from_units(9))
        .unwrap()
        .wait()
        .unwrap();
    let mut request = admission("r1", "acme", 30, 0);
    request.facts.arrival_ms = NOW.unix_ms;
    let party_id = request.facts.payer.project.clone();
    let refusal = match a.ledger.admit(request.clone(), |_| Ok::<(), ()>(())) {
        Err(mintage_ledger::AdmitError::Refused(refusal)) => refusal,
        other => panic!("nothing is leased yet: {other:?}"),
    };
    assert!(block_on(a.ledger.cover("acme", &refusal)));
    let hold = a.ledger.admit(request, |_| Ok::<(), ()>(())).unwrap();
    a.ledger.settle(hold, usage(30, 0), ended(), Together::default()).wait().unwrap();
    let budget = Budget {
        models: ModelChoice::Together,
        period: Period::Day,
        limit: BudgetLimit::Tokens(100),
        effect: BudgetEffect::Hard,
    };
    let policy = Policy { budgets: vec![budget], ..Policy::default() };
    let parties = vec![Party { level: Level::Project, id: party_id, policy }];
    assert!(enter(&b, &parties, 71, 0).is_none(), "30 of 100 were used");
    let pass = enter(&b, &parties, 70, 0).expect("70 are left");
    leave(&b, &parties, pass, Used { tokens: 60, amount: Amount::ZERO });
    assert!(enter(&a, &parties, 11, 0).is_none());
    assert!(enter(&a, &parties, 10, 0).is_some(), "what was not used moves");
}

#[test]
fn an_idempotency_key_is_taken_at_all_gateways() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("keys");
    let [a, b] = ["a", "b"].map(|name| gateway(&url, name));
    let (scope, key): (Arc<str>, Arc<str>) = ("p".into(), "k".into());
    let begin = |ledger: &Ledger, digest: u8| ledger.begin(&scope, &key, [digest; 32], 1).unwrap();
    let Begin::First(answering) = begin(&a, 1) else { panic!("not the first") };
    assert!(matches!(begin(&b, 1), Begin::InFlight));
    assert!(matches!(begin(&b, 2), Begin::OtherBody));
    assert!(matches!(begin(&a, 1), Begin::InFlight));
    drop(answering);
    let start = Instant::now();
    let taken = loop {
        match begin(&b, 2) {
            Begin::First(answering) => break answering,
            _ => assert!(start.elapsed() < Duration::from_secs(10), "the key is not given back"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(matches!(begin(&a, 1), Begin::OtherBody));
    // A gateway that ends takes its keys along, in good order or not.
    std::mem::forget(taken);
    drop(b);
    assert!(matches!(begin(&a, 1), Begin::First(_)));
}

#[test]
fn a_message_is_sent_by_one_gateway() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("outbox");
    let [a, b] = ["a", "b"].map(|name| gateway(&url, name));
    let message = Message { topic: "t".into(), body: b"{}".to_vec(), due_ms: 5 };
    let changes = Changes { messages: vec![message.clone(), message], ..Changes::default() };
    a.write(changes).unwrap().wait().unwrap();
    let due = a.due_messages(10, 100).unwrap();
    assert_eq!(due.len(), 2);
    assert!(b.due_messages(10, 100).unwrap().is_empty(), "the other one sends them");
    assert_eq!(a.due_messages(10, 100).unwrap(), due, "and may look again");
    let deliver = |ledger: &Ledger, number: u64, delivery: Delivery| {
        let deliveries = vec![(number, delivery)];
        ledger.write(Changes { deliveries, ..Changes::default() }).map(|_| ())
    };
    deliver(&a, due[0].number, Delivery::Done).unwrap();
    let twice = deliver(&b, due[0].number, Delivery::Done);
    assert!(matches!(twice, Err(LedgerError::Conflict { .. })), "{twice:?}");
    // Sent again later: by whoever comes first then.
    deliver(&a, due[1].number, Delivery::RetryAt(20)).unwrap();
    assert_eq!(b.due_messages(30, 100).unwrap().len(), 1);
}

#[test]
fn free_quota_comes_to_the_gateway_that_is_asked() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("quota");
    let [a, b] = ["a", "b"].map(|name| gateway(&url, name));
    let terms =
        GrantTerms { org: "acme".into(), models: vec![], tokens: 100, expires_ms: u64::MAX >> 1 };
    a.grant("g", "g", terms).unwrap().wait().unwrap();
    let start = Instant::now();
    let left = |ledger: &Ledger, tokens| {
        block_on(ledger.cover_free("acme", "m", tokens, 1));
        ledger.free_left("acme", "m", 1)
    };
    // The other gateway hears of the grant in its own time.
    while left(&b, 60) < 60 {
        assert!(start.elapsed() < Duration::from_secs(10), "no quota came");
        std::thread::sleep(Duration::from_millis(50));
    }
    while left(&a, 100) < 40 {
        assert!(start.elapsed() < Duration::from_secs(20), "the rest did not come");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(a.free_left("acme", "m", 1) + b.free_left("acme", "m", 1) <= 100);
}
