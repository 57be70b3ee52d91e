//! Limits, free quota, idempotency keys and messages of several gateways on one ledger.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mintage_ledger::limits::{
    Ask, Budget, BudgetEffect, BudgetLimit, Calendar, Level, Limiter, ModelChoice, Now, Party,
    Pass, Period, Policy, RateRule, Used,
};
use mintage_ledger::{
    AdmitError, Amount, Begin, Changes, Currency, Delivery, GrantTerms, Hold, Ledger, LedgerError,
    Message, ShareAnswer, SharedLimits, Together,
};

use crate::cluster::Cluster;
use crate::proxy::Proxy;
use crate::rig::{admission, ended, usage};
use crate::shared::{TAKEN_OVER, block_on, gateway, one};

/// 2026-11-24, noon.
const NOW: Now = Now { monotonic_ms: 0, unix_ms: 1_795_521_600_000 };

struct House {
    ledger: Ledger,
    limiter: Arc<Mutex<Limiter>>,
}

fn house(url: &str, name: &str) -> House {
    let ledger = gateway(url, name);
    let limiter = Arc::new(Mutex::new(Limiter::new(Calendar::default())));
    ledger.share_limits(SharedLimits {
        limiter: Arc::clone(&limiter),
        calendar: Calendar::default(),
        keys_of: Box::new(|key| vec![key.to_owned()]),
        lineage_of: Box::new(Arc::clone),
        notice: Box::new(|reached, organisation| Message {
            topic: "budget.reached".into(),
            body: format!("{organisation} {} {}", reached.level.as_str(), reached.party).into(),
            due_ms: 0,
        }),
    });
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

fn budget(period: Period, tokens: u64, effect: BudgetEffect) -> Policy {
    let (models, limit) = (ModelChoice::Together, BudgetLimit::Tokens(tokens));
    Policy { budgets: vec![Budget { models, period, limit, effect }], ..Policy::default() }
}

/// Reserves money for so many tokens; asks again for as long as a larger slice comes in.
fn hold(house: &House, id: &str, tokens: u64) -> Hold {
    let mut request = admission(id, "acme", tokens, 0);
    request.facts.arrival_ms = NOW.unix_ms;
    loop {
        match house.ledger.admit(request.clone(), |_| Ok::<(), ()>(())) {
            Ok(hold) => return hold,
            Err(AdmitError::Refused(refusal)) => {
                assert!(block_on(house.ledger.cover("acme", &refusal)), "{refusal}");
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// A request as a whole: whether it was let in.
fn serve(house: &House, parties: &[Party], id: &str, tokens: u64) -> bool {
    let Some(pass) = enter(house, parties, tokens, 0) else { return false };
    let hold = hold(house, id, tokens);
    leave(house, parties, pass, Used { tokens, amount: Amount::ZERO });
    house.ledger.settle(hold, usage(tokens, 0), ended(), Together::default()).wait().unwrap();
    true
}

fn fund(house: &House) {
    let line = Amount::from_units(9);
    house.ledger.credit_line("l", "acme", Currency::CNY, line).unwrap().wait().unwrap();
}

/// Until it is so.
fn wait_for(what: &str, patience: Duration, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < patience, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_budget_counts_what_was_used_before_it_was_shared() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("before");
    let [a, b] = ["a", "b"].map(|name| house(&url, name));
    fund(&a);
    let request = hold(&a, "r1", 30);
    a.ledger.settle(request, usage(30, 0), ended(), Together::default()).wait().unwrap();
    let parties = party(budget(Period::Day, 100, BudgetEffect::Hard));
    assert!(enter(&b, &parties, 71, 0).is_none(), "30 of 100 were used");
    let pass = enter(&b, &parties, 70, 0).expect("70 are left");
    leave(&b, &parties, pass, Used { tokens: 60, amount: Amount::ZERO });
    assert!(enter(&a, &parties, 11, 0).is_none());
    assert!(enter(&a, &parties, 10, 0).is_some(), "what was not used moves");
}

/// Requests over three gateways use a budget up that warns and then one that refuses: each is told once, by whichever
/// gateway, and not before.
#[test]
fn a_budget_that_is_used_up_is_told_once() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("told");
    let mut houses = ["a", "b", "c"].map(|name| Some(house(&url, name)));
    fund(houses[0].as_ref().unwrap());
    let mut parties = party(budget(Period::Day, 100, BudgetEffect::Warn));
    let policy = budget(Period::Month, 150, BudgetEffect::Hard);
    parties.push(Party { level: Level::Organisation, id: "acme".into(), policy });
    let mut served = 0;
    let mut serve_one = |houses: &[Option<House>; 3]| {
        served += 1;
        let house = houses[served % 3].as_ref().unwrap();
        serve(house, &parties, &format!("r{served}"), 10)
    };
    let told = || one(&url, "SELECT count(*) FROM mintage.outbox");
    let level = |level: i64| {
        let sql = "SELECT coalesce(max(level), 0)::int8 FROM mintage.allowance
                   WHERE name LIKE 'tokens_a_month%'";
        wait_for("the budget is not counted", TAKEN_OVER, || one(&url, sql) == level);
    };
    assert!((0..9).all(|_| serve_one(&houses)));
    level(90);
    assert_eq!(told(), 0, "90 of 100");
    assert!(serve_one(&houses));
    wait_for("the project's budget is not told", TAKEN_OVER, || told() == 1);
    // A gateway that begins anew neither forgets nor tells again.
    houses[1] = None;
    houses[1] = Some(house(&url, "b"));
    assert!((0..5).all(|_| serve_one(&houses)));
    wait_for("the organisation's budget is not told", TAKEN_OVER, || told() == 2);
    assert!(!serve_one(&houses) && !serve_one(&houses) && !serve_one(&houses), "150 of 150");
    level(150);
    assert_eq!(told(), 2);
    let due = houses[0].as_ref().unwrap().ledger.due_messages(u64::MAX >> 1, 9).unwrap();
    let bodies: Vec<_> = due.iter().map(|due| String::from_utf8_lossy(&due.message.body)).collect();
    assert_eq!(bodies, ["acme project p", "acme organisation acme"]);
}

/// What a gateway that is gone had of a budget, and did not use, is for others as soon as its lease has expired.
#[test]
fn a_budget_comes_back_from_a_gateway_that_is_gone() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("gone");
    let proxy = Proxy::start(cluster.socket());
    let near = house(&url, "near");
    let far = house(&proxy.url("gone"), "far");
    fund(&near);
    let parties = party(budget(Period::Month, 1000, BudgetEffect::Hard));
    assert!(serve(&far, &parties, "used", 100));
    let _running = (enter(&far, &parties, 300, 0).unwrap(), hold(&far, "lost", 300));
    proxy.cut();
    assert!(enter(&near, &parties, 900, 0).is_none(), "the other one may be using it");
    let mut pass = None;
    wait_for("its budget did not come back", TAKEN_OVER, || {
        pass = enter(&near, &parties, 900, 0);
        pass.is_some()
    });
    assert!(enter(&near, &parties, 1, 0).is_none(), "100 were used");
    // ... and the same for the next process of that name.
    drop(far);
    leave(&near, &parties, pass.unwrap(), Used { tokens: 0, amount: Amount::ZERO });
    let far = house(&url, "far");
    assert!(enter(&far, &parties, 901, 0).is_none());
    wait_for("what was not used does not move", TAKEN_OVER, || {
        enter(&far, &parties, 900, 0).is_some()
    });
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
