//! The limiter against cases worked out by hand, and against a naive model.

use std::collections::BTreeMap;

use super::*;
use crate::money::Amount;

fn pico(pico: i128) -> Amount {
    Amount::from_pico(pico)
}

fn at(ms: u64) -> Now {
    Now { monotonic_ms: ms, unix_ms: 1_700_000_000_000 + ms }
}

fn ask(tokens: u64) -> Ask<'static> {
    Ask { model: "m", tokens, amount: pico(tokens as i128 * 10), batch: false }
}

fn party(level: Level, id: &str, policy: Policy) -> Party {
    Party { level, id: id.into(), policy }
}

fn rates(rule: RateRule) -> Vec<Party> {
    vec![party(Level::Key, "k", Policy { rates: vec![rule], ..Policy::default() })]
}

fn budget(budget: Budget) -> Vec<Party> {
    vec![party(Level::Project, "p", Policy { budgets: vec![budget], ..Policy::default() })]
}

/// Admits if it may, as one step.
fn admit(
    limiter: &mut Limiter,
    now: Now,
    parties: &[Party],
    ask: Ask<'_>,
) -> Result<Pass, Box<LimitRefusal>> {
    limiter.check(now, parties, ask)?;
    Ok(limiter.take(now, parties, ask))
}

/// Requests of 10 tokens at these times: how many get in, and why and how long the first other must wait.
fn check_rate(
    rule: RateRule,
    times: &[u64],
    admitted: usize,
    then: Option<(LimitKind, Option<u64>)>,
) {
    let parties = rates(rule);
    let mut limiter = Limiter::default();
    let mut passes = Vec::new();
    let mut refused = None;
    for ms in times {
        match admit(&mut limiter, at(*ms), &parties, ask(10)) {
            Ok(pass) => passes.push(pass),
            Err(why) => refused = refused.or(Some((why.kind, why.retry_after_ms))),
        }
    }
    assert_eq!((passes.len(), refused), (admitted, then));
}

#[test]
fn rates_let_in_what_they_say() {
    let requests = |n| RateRule { requests_per_minute: Some(n), ..RateRule::default() };
    let tokens = |n| RateRule { tokens_per_minute: Some(n), ..RateRule::default() };
    let smooth = |rule| RateRule { smooth: true, ..rule };
    let in_flight = RateRule { requests_in_flight: Some(2), ..RateRule::default() };
    check_rate(requests(3), &[0, 0, 0, 0], 3, Some((LimitKind::Requests, Some(20_000))));
    check_rate(requests(3), &[0, 0, 0, 19_999], 3, Some((LimitKind::Requests, Some(1))));
    check_rate(requests(3), &[0, 0, 0, 20_000], 4, None);
    check_rate(requests(0), &[0], 0, Some((LimitKind::Requests, None)));
    check_rate(tokens(30), &[0, 0, 0, 0], 3, Some((LimitKind::Tokens, Some(20_000))));
    // A request larger than all there can ever be waits for all there can be.
    check_rate(tokens(5), &[0, 0, 59_999, 60_000], 2, Some((LimitKind::Tokens, Some(60_000))));
    check_rate(smooth(requests(60)), &[0, 0], 1, Some((LimitKind::RequestBurst, Some(1000))));
    check_rate(smooth(requests(60)), &[0, 1000, 2000], 3, None);
    check_rate(smooth(tokens(600)), &[0, 500], 1, Some((LimitKind::TokenBurst, Some(500))));
    check_rate(in_flight, &[0, 0, 0], 2, Some((LimitKind::InFlight, Some(1000))));
}

#[test]
fn rates_are_not_for_batches_and_budgets_are() {
    let parties = rates(RateRule { requests_per_minute: Some(1), ..RateRule::default() });
    let mut limiter = Limiter::default();
    let batch = Ask { batch: true, ..ask(10) };
    for _ in 0..3 {
        limiter.check(at(0), &parties, batch).unwrap();
        let pass = limiter.take(at(0), &parties, batch);
        limiter.settle(at(0), &parties, "m", pass, Used { tokens: 10, amount: pico(0) });
    }
    // Nor do they use up what is there for who waits.
    let _ = admit(&mut limiter, at(0), &parties, ask(1)).unwrap();
    admit(&mut limiter, at(0), &parties, ask(1)).unwrap_err();
    let parties = budget(Budget {
        models: ModelChoice::Together,
        period: Period::Day,
        limit: BudgetLimit::Tokens(25),
        effect: BudgetEffect::Hard,
    });
    let mut limiter = Limiter::default();
    for may in [true, true, false] {
        let checked = limiter.check(at(0), &parties, batch);
        assert_eq!(checked.is_ok(), may, "{checked:?}");
        if may {
            let _ = limiter.take(at(0), &parties, batch);
        }
    }
}

#[test]
fn whoever_waits_as_told_is_served_and_a_ms_earlier_is_not() {
    for (limit, size) in [(7, 1), (7, 5), (60_001, 59_000), (1, 1), (999_983, 77_777)] {
        let parties = rates(RateRule { tokens_per_minute: Some(limit), ..RateRule::default() });
        let mut limiter = Limiter::default();
        let mut now = 0;
        for _ in 0..50 {
            match admit(&mut limiter, at(now), &parties, ask(size)) {
                Ok(pass) => {
                    let used = Used { tokens: size, amount: pico(0) };
                    limiter.settle(at(now), &parties, "m", pass, used);
                }
                Err(why) => {
                    let wait = why.retry_after_ms.unwrap();
                    let early = limiter.check(at(now + wait - 1), &parties, ask(size));
                    assert_eq!(early.map_err(|e| e.retry_after_ms), Err(Some(1)));
                    now += wait;
                    limiter.check(at(now), &parties, ask(size)).unwrap();
                }
            }
        }
    }
}

#[test]
fn what_was_not_used_comes_back_and_what_was_used_beyond_is_owed() {
    let parties = rates(RateRule { tokens_per_minute: Some(100), ..RateRule::default() });
    let mut limiter = Limiter::default();
    let remaining =
        |limiter: &Limiter, ms| limiter.standings(at(ms), &parties, "m").tokens.unwrap().remaining;
    let pass = admit(&mut limiter, at(0), &parties, ask(80)).unwrap();
    assert_eq!(remaining(&limiter, 0), 20);
    limiter.settle(at(0), &parties, "m", pass, Used { tokens: 30, amount: pico(0) });
    assert_eq!(remaining(&limiter, 0), 70);
    let pass = admit(&mut limiter, at(0), &parties, ask(50)).unwrap();
    limiter.cancel(at(0), pass);
    assert_eq!(remaining(&limiter, 0), 70);
    // Asked for more than a minute brings: reserved is what there was, owed what it took. 30 ms bring 0.05.
    let pass = admit(&mut limiter, at(60_000), &parties, ask(500)).unwrap();
    limiter.settle(at(60_000), &parties, "m", pass, Used { tokens: 250, amount: pico(0) });
    assert_eq!(remaining(&limiter, 60_000), 0);
    let why = limiter.check(at(60_000), &parties, ask(1)).unwrap_err();
    // 150 owed and 1 wanted, at 100 a minute.
    assert_eq!(why.retry_after_ms, Some(151 * 600));
}

#[test]
fn budgets_hold_what_runs_and_count_what_was_used() {
    let money = |limit, effect| {
        budget(Budget {
            models: ModelChoice::Together,
            period: Period::Day,
            limit: BudgetLimit::Money(pico(limit)),
            effect,
        })
    };
    let parties = money(1000, BudgetEffect::Hard);
    let mut limiter = Limiter::default();
    let first = admit(&mut limiter, at(0), &parties, ask(60)).unwrap();
    // 600 held: 400 are left, to the unit.
    let why = limiter.check(at(0), &parties, ask(41)).unwrap_err();
    assert_eq!(why.kind, LimitKind::MoneyBudget(Period::Day));
    assert_eq!(
        why.retry_after_ms,
        Some(Calendar::default().ends_in_ms(Period::Day, at(0).unix_ms))
    );
    let second = admit(&mut limiter, at(0), &parties, ask(40)).unwrap();
    let reached =
        limiter.settle(at(0), &parties, "m", first, Used { tokens: 10, amount: pico(100) });
    assert_eq!(reached, vec![]);
    limiter.cancel(at(0), second);
    assert!(limiter.is_idle(at(0).unix_ms));
    let third = admit(&mut limiter, at(0), &parties, ask(90)).unwrap();
    let reached =
        limiter.settle(at(0), &parties, "m", third, Used { tokens: 90, amount: pico(900) });
    assert_eq!(reached.len(), 1);
    assert!(limiter.check(at(0), &parties, ask(1)).is_err());
    // The next day begins anew; a clock that jumps forth and back finds the old day used up.
    let day_ms = 86_400_000;
    assert!(limiter.check(at(day_ms), &parties, ask(100)).is_ok());
    let pass = admit(&mut limiter, at(day_ms), &parties, ask(50)).unwrap();
    assert!(limiter.check(at(0), &parties, ask(1)).is_err());
    // It was admitted on the other day and counts there, whenever it ends.
    limiter.settle(at(0), &parties, "m", pass, Used { tokens: 50, amount: pico(500) });
    assert_eq!(
        limiter.spent(Level::Project, "p", None, Period::Day, at(0).unix_ms),
        (100, pico(1000))
    );
    assert_eq!(
        limiter.spent(Level::Project, "p", Some("m"), Period::Day, at(day_ms).unix_ms),
        (50, pico(500))
    );

    let warned = money(10, BudgetEffect::Warn);
    let mut limiter = Limiter::default();
    let settle = |limiter: &mut Limiter| {
        let pass = admit(limiter, at(0), &warned, ask(6)).unwrap();
        limiter.settle(at(0), &warned, "m", pass, Used { tokens: 6, amount: pico(6) }).len()
    };
    assert_eq!([settle(&mut limiter), settle(&mut limiter), settle(&mut limiter)], [0, 1, 0]);
    // What another run of the program counted goes on.
    let mut limiter = Limiter::default();
    limiter.remember(
        at(0).unix_ms,
        &[(Level::Project, "p".into())],
        "m",
        Used { tokens: 1, amount: pico(9) },
    );
    assert_eq!(settle(&mut limiter), 1);
}

#[test]
fn rules_count_the_models_they_name() {
    let rule = |models| RateRule { models, requests_per_minute: Some(1), ..RateRule::default() };
    let check = |rules: Vec<RateRule>, models: &[&str], admitted: &[bool]| {
        let parties = vec![party(Level::Key, "k", Policy { rates: rules, budgets: Vec::new() })];
        let mut limiter = Limiter::default();
        let mut outcome = Vec::new();
        for model in models {
            let ask = Ask { model, tokens: 1, amount: pico(0), batch: false };
            outcome.push(admit(&mut limiter, at(0), &parties, ask).is_ok());
        }
        assert_eq!(outcome, admitted, "{models:?}");
    };
    check(vec![rule(ModelChoice::Together)], &["a", "b"], &[true, false]);
    check(vec![rule(ModelChoice::Each)], &["a", "b", "a"], &[true, true, false]);
    check(
        vec![rule(ModelChoice::One("a".into()))],
        &["a", "b", "b", "a"],
        &[true, true, true, false],
    );
}

/// The message of each kind of refusal tells it from all others, and each names what is allowed.
#[test]
fn messages_are_distinct() {
    let every = RateRule {
        requests_per_minute: Some(60),
        tokens_per_minute: Some(6000),
        requests_in_flight: Some(1),
        smooth: true,
        ..RateRule::default()
    };
    let only = |rule: RateRule, ms: &[u64], tokens: u64| {
        let parties = rates(rule);
        let mut limiter = Limiter::default();
        ms.iter()
            .find_map(|ms| admit(&mut limiter, at(*ms), &parties, ask(tokens)).err())
            .unwrap()
            .to_string()
    };
    let period = |limit| {
        let parties = budget(Budget {
            models: ModelChoice::One("m".to_owned()),
            period: Period::Month,
            limit,
            effect: BudgetEffect::Hard,
        });
        Limiter::default().check(at(0), &parties, ask(20)).unwrap_err().to_string()
    };
    let messages = [
        only(RateRule { requests_per_minute: Some(1), ..RateRule::default() }, &[0, 0], 1),
        only(RateRule { requests_in_flight: None, ..every.clone() }, &[0, 0], 1),
        only(RateRule { tokens_per_minute: Some(9), ..RateRule::default() }, &[0, 0], 9),
        only(
            RateRule { tokens_per_minute: Some(60), smooth: true, ..RateRule::default() },
            &[0, 0],
            1,
        ),
        only(RateRule { requests_in_flight: Some(1), ..RateRule::default() }, &[0, 0], 1),
        period(BudgetLimit::Tokens(5)),
        period(BudgetLimit::Money(pico(5))),
        only(RateRule { requests_per_minute: Some(0), ..RateRule::default() }, &[0], 1),
    ];
    insta::assert_snapshot!(messages.join("\n"), @r"
    The key's limit of 1 requests per minute is reached. Try again in 60 s.
    Requests come too fast: the key's minute allowance is spread evenly, 1 at once. Try again in 1 s.
    The key's limit of 9 tokens per minute is reached. Try again in 60 s.
    Tokens are asked for too fast: the key's minute allowance is spread evenly, 1 at once. Try again in 1 s.
    The key's limit of 1 requests in flight is reached. Try again when one of them has ended.
    The project's budget of 5 tokens per month for the model `m` does not cover this request. Try again in 1388800 s.
    The project's budget of money per month for the model `m` does not cover this request. Try again in 1388800 s.
    The key's limit of 0 requests per minute is reached. It allows no request at all.
    ");
}

/// Numbers below a bound, the same for a seed.
fn dice(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    move |bound| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    }
}

/// A seeded run of admissions, settlements and cancellations against counters that remember everything.
#[test]
fn the_limiter_agrees_with_one_that_remembers_everything() {
    let rule = RateRule {
        tokens_per_minute: Some(5000),
        requests_per_minute: Some(100),
        requests_in_flight: Some(7),
        ..RateRule::default()
    };
    let budgets = vec![Budget {
        models: ModelChoice::Together,
        period: Period::Day,
        limit: BudgetLimit::Tokens(40_000),
        effect: BudgetEffect::Hard,
    }];
    let parties = vec![party(Level::Organisation, "o", Policy { rates: vec![rule], budgets })];
    for seed in 1..=20_u64 {
        let mut next = dice(seed);
        let mut limiter = Limiter::default();
        let mut running: BTreeMap<u64, (Pass, u64)> = BTreeMap::new();
        let (mut now, mut spent, mut held) = (0, 0_u64, 0_u64);
        // Levels in 1/60,000 of a request or a token.
        let (mut requests, mut tokens) = (100_i128 * 60_000, 5000_i128 * 60_000);
        for step in 0..2000 {
            let pause = next(400);
            now += pause;
            requests = (requests + 100 * i128::from(pause)).min(100 * 60_000);
            tokens = (tokens + 5000 * i128::from(pause)).min(5000 * 60_000);
            if next(2) == 0 || running.is_empty() {
                let want = 1 + next(300);
                let may = requests >= 60_000
                    && tokens >= i128::from(want) * 60_000
                    && running.len() < 7
                    && spent + held + want <= 40_000;
                let outcome = admit(&mut limiter, at(now), &parties, ask(want));
                assert_eq!(outcome.is_ok(), may, "seed {seed}, step {step}: {outcome:?}");
                if let Ok(pass) = outcome {
                    requests -= 60_000;
                    tokens -= i128::from(want) * 60_000;
                    held += want;
                    running.insert(step, (pass, want));
                }
                continue;
            }
            let (_, (pass, want)) = running.pop_first().unwrap();
            held -= want;
            if next(5) == 0 {
                limiter.cancel(at(now), pass);
                requests = (requests + 60_000).min(100 * 60_000);
                tokens += i128::from(want) * 60_000;
            } else {
                let used = next(want + 1);
                let all = Used { tokens: used, amount: pico(0) };
                limiter.settle(at(now), &parties, "m", pass, all);
                tokens += i128::from(want - used) * 60_000;
                spent += used;
            }
            tokens = tokens.min(5000 * 60_000);
        }
        for (pass, _) in running.into_values() {
            limiter.cancel(at(now), pass);
        }
        assert!(limiter.is_idle(at(now).unix_ms), "seed {seed}");
    }
}

#[test]
fn a_clock_that_stands_or_goes_back_fills_nothing() {
    let parties = rates(RateRule { requests_per_minute: Some(1), ..RateRule::default() });
    let mut limiter = Limiter::default();
    let _first = admit(&mut limiter, at(100_000), &parties, ask(1)).unwrap();
    assert!(limiter.check(at(50_000), &parties, ask(1)).is_err());
    assert!(limiter.check(at(159_999), &parties, ask(1)).is_err());
    assert!(limiter.check(at(160_000), &parties, ask(1)).is_ok());
}

#[test]
fn policies_are_checked() {
    let twice = Policy { rates: vec![RateRule::default(); 2], ..Policy::default() };
    assert_eq!(twice.check(), Err(PolicyError::Twice(ModelChoice::Together)));
    let one =
        |i: usize| RateRule { models: ModelChoice::One(i.to_string()), ..RateRule::default() };
    let many = Policy { rates: (0..=MAX_RULES).map(one).collect(), ..Policy::default() };
    assert_eq!(many.check(), Err(PolicyError::TooMany { given: MAX_RULES + 1 }));
    let text = r#"{"rates":[{"models":{"one":"m"},"requests_per_minute":5}],
        "budgets":[{"period":"month","limit":{"tokens":7}}]}"#;
    let policy: Policy = serde_json::from_str(text).unwrap();
    assert_eq!(policy.budgets[0].effect, BudgetEffect::Hard);
    assert_eq!(policy.rates[0].models, ModelChoice::One("m".to_owned()));
    policy.check().unwrap();
    let again: Policy = serde_json::from_str(&serde_json::to_string(&policy).unwrap()).unwrap();
    assert_eq!(again, policy);
}
