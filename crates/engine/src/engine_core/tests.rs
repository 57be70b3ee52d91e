//! The core over a deterministic model: equivalences, sharing, fairness, and a seeded simulator of all at once.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::testing::{END_TOKEN, FakeForward, FakeGrammar, NAN_TOKEN, VOCAB};
use mintage_model::{CacheDomain, Grammar, Priority, SamplingParams};
use proptest::prelude::*;

/// A core with a virtual clock, and everything it said.
struct Bench {
    core: EngineCore,
    clock: Arc<AtomicU64>,
    computed: Arc<AtomicU64>,
    events: BTreeMap<SequenceId, Vec<Event>>,
}

fn config(pages: u32) -> SchedulerConfig {
    SchedulerConfig { pages, page_tokens: 4, ..SchedulerConfig::default() }
}

impl Bench {
    fn new(config: SchedulerConfig) -> Self {
        let forward = FakeForward::new(config.pages as usize, config.page_tokens);
        let context = (config.pages - 1) * config.page_tokens as u32;
        Self {
            clock: Arc::clone(&forward.clock),
            computed: Arc::clone(&forward.computed),
            core: EngineCore::new(Box::new(forward), config, context),
            events: BTreeMap::new(),
        }
    }

    /// A cheaper model on `pages` pages guesses.
    fn with_draft(mut self, pages: u32, salt: u64, fails_after: Option<(u64, bool)>) -> Self {
        let page_tokens = self.core.config.page_tokens;
        let mut forward = FakeForward::new(pages as usize, page_tokens);
        forward.clock = Arc::clone(&self.clock);
        forward.cost_us = (1_000, 300);
        forward.salt = salt;
        forward.fails_after = fails_after;
        let draft = DraftModel::new(Box::new(forward), pages, page_tokens);
        self.core = self.core.with_draft_model(Some(draft));
        self
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.clock.load(Ordering::Relaxed))
    }

    fn submit(&mut self, request: GenerateRequest) -> SequenceId {
        let grammar = request.grammar.as_ref().map(|grammar| grammar.start().unwrap());
        self.core.submit(request, grammar, None, self.now()).unwrap()
    }

    fn step(&mut self) -> StepOutcome {
        let clock = Arc::clone(&self.clock);
        let events = &mut self.events;
        let outcome = self
            .core
            .step(&|| Duration::from_micros(clock.load(Ordering::Relaxed)), &mut |id, event| {
                events.entry(id).or_default().push(event);
            })
            .unwrap();
        self.core.check().unwrap();
        outcome
    }

    fn end(&mut self, id: SequenceId, reason: FinishReason) {
        let (now, events) = (self.now(), &mut self.events);
        self.core.end(id, reason, now, &mut |id, event| events.entry(id).or_default().push(event));
        self.core.check().unwrap();
    }

    fn run(&mut self) {
        for _ in 0..100_000 {
            if self.step() == StepOutcome::Idle {
                assert_eq!(self.core.ids().count(), 0, "idle with requests left");
                return;
            }
        }
        panic!("the requests do not end");
    }

    fn finish(&self, id: SequenceId) -> &Finish {
        match self.events[&id].last() {
            Some(Event::Finished(finish)) => finish,
            other => panic!("{id:?} did not end: {other:?}"),
        }
    }

    fn computed(&self) -> u64 {
        self.computed.load(Ordering::Relaxed)
    }
}

fn request(prompt: &[TokenId], max_new_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.into(),
        max_new_tokens,
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        ..GenerateRequest::default()
    }
}

fn prompt(seed: u32, length: u32) -> Vec<TokenId> {
    (0..length).map(|i| (seed * 31 + i * (seed + 7) + i * i) % 90).collect()
}

/// What a request says, without what depends on its neighbours: how much was cached, and when.
fn said(events: &[Event]) -> Vec<Event> {
    let strip = |event: &Event| match event.clone() {
        Event::Prefilled { prompt_logprobs, .. } => {
            Some(Event::Prefilled { cached_tokens: 0, prompt_logprobs })
        }
        said @ (Event::Token(_) | Event::Vector(_)) => Some(said),
        Event::Finished(_) => None,
    };
    events.iter().filter_map(strip).collect()
}

/// The same request on an engine of its own with plenty of pages.
fn alone(request: &GenerateRequest) -> Vec<Event> {
    let mut bench = Bench::new(config(400));
    let id = bench.submit(request.clone());
    bench.run();
    bench.events.remove(&id).unwrap()
}

#[test]
fn eight_users_of_one_new_prefix_compute_it_once() {
    let mut bench = Bench::new(config(2000));
    let shared = prompt(1, 400);
    let ids: Vec<_> = (0..8)
        .map(|user| bench.submit(request(&[shared.clone(), prompt(user + 50, 6)].concat(), 1)))
        .collect();
    bench.run();
    // A page boundary is where sharing ends: each user may compute the rest of a page besides its own words.
    assert!(bench.computed() <= 400 + 8 * (6 + 4), "{} tokens computed", bench.computed());
    let cached: u32 = ids.iter().map(|&id| bench.finish(id).usage.cached_tokens).sum();
    assert!(cached >= 7 * 396, "{cached} tokens cached");
    assert_eq!(bench.core.load().prefix_cache_hits, u64::from(cached));
    assert_eq!(bench.core.load().prefix_cache_queries, 8 * 406);
}

#[test]
fn the_next_turn_computes_only_what_is_new() {
    let mut bench = Bench::new(config(200));
    let first = prompt(3, 37);
    let id = bench.submit(request(&first, 10));
    bench.run();
    let answer = bench.events[&id].iter().filter_map(|event| match event {
        Event::Token(token) => Some(token.id),
        _ => None,
    });
    let turn: Vec<_> = first.iter().copied().chain(answer).chain(prompt(9, 5)).collect();
    let before = bench.computed();
    let second = request(&turn, 1);
    let id = bench.submit(second.clone());
    bench.run();
    // The last token of an answer is never computed within it: six tokens are new.
    assert_eq!(bench.computed() - before, 6);
    assert_eq!(bench.finish(id).usage.cached_tokens, 46);
    assert_eq!(said(&bench.events[&id]), said(&alone(&second)));
    let stranger = GenerateRequest { cache_domain: CacheDomain([9; 16]), ..second };
    let id = bench.submit(stranger);
    bench.run();
    assert_eq!(bench.finish(id).usage.cached_tokens, 0);
}

#[test]
fn a_long_prompt_does_not_stall_who_is_being_answered() {
    let mut bench = Bench::new(config(3000));
    let users: Vec<_> = (0..3).map(|user| bench.submit(request(&prompt(user, 20), 400))).collect();
    for _ in 0..20 {
        bench.step();
    }
    let long = bench.submit(request(&prompt(7, 2000), 1));
    let mut slowest = Duration::ZERO;
    while !matches!(bench.events.get(&long).and_then(|e| e.last()), Some(Event::Finished(_))) {
        let (start, before) = (bench.now(), bench.events[&users[0]].len());
        bench.step();
        slowest = slowest.max(bench.now() - start);
        assert_eq!(bench.events[&users[0]].len(), before + 1, "each step samples for everybody");
    }
    assert!(slowest <= Duration::from_millis(120), "{slowest:?}");
    // And the prompt gets most of the time: 4 s of computing it within 6.
    let total = bench.finish(long).timings.total;
    assert!(total <= Duration::from_millis(6000), "{total:?}");
}

#[test]
fn tenants_share_fairly_and_the_shortest_goes_first() {
    let mut bench = Bench::new(config(4000));
    let tenant =
        |tenant, seed, length| GenerateRequest { tenant, ..request(&prompt(seed, length), 1) };
    let greedy: Vec<_> = (0..10).map(|i| bench.submit(tenant(1, i, 500))).collect();
    for _ in 0..3 {
        bench.step();
    }
    let modest = bench.submit(tenant(2, 77, 300));
    let short = bench.submit(tenant(1, 78, 40));
    bench.run();
    let end = |id| bench.finish(id).timings.total;
    // Two steps of up to 400 ms each: one for its share, one that was under way.
    assert!(end(modest) <= Duration::from_millis(1300), "{:?}", end(modest));
    let overtaken = greedy.iter().filter(|&&id| end(id) > end(short)).count();
    assert!(overtaken >= 7, "the short prompt overtook {overtaken} only");
}

/// One request of a tenant beside another tenant's 200, in steps and in the virtual time of steps.
#[test]
fn two_hundred_requests_do_not_slow_anothers_by_more_than_twice() {
    let modest = |length, answer| GenerateRequest {
        tenant: 2,
        cache_domain: CacheDomain([2; 16]),
        ..request(&prompt(77, length), answer)
    };
    let until_done = |bench: &mut Bench, id| {
        let (start, mut steps) = (bench.now(), 0);
        while !matches!(bench.events.get(&id).and_then(|e| e.last()), Some(Event::Finished(_))) {
            bench.step();
            steps += 1;
        }
        ((bench.now() - start).as_secs_f64(), steps)
    };
    for (length, answer) in [(40, 60), (300, 1), (8, 30)] {
        let mut bench = Bench::new(config(8000));
        // The cost of steps is known.
        for seed in 0..30 {
            bench.submit(request(&prompt(seed, 30 + seed), 20));
        }
        bench.run();
        let id = bench.submit(modest(length, answer));
        let (alone_s, alone_steps) = until_done(&mut bench, id);
        for seed in 0..200 {
            bench.submit(GenerateRequest { tenant: 1, ..request(&prompt(seed, 60), 100) });
        }
        for warm_up in [5, 40, 100] {
            for _ in 0..warm_up {
                bench.step();
            }
            let other = GenerateRequest {
                cache_domain: CacheDomain([warm_up; 16]),
                ..modest(length, answer)
            };
            let id = bench.submit(other);
            let (beside_s, beside_steps) = until_done(&mut bench, id);
            let case =
                format!("{length} + {answer} after {warm_up}: {beside_s} s, alone {alone_s} s");
            assert!(beside_s <= 2.0 * alone_s, "{case}");
            // Prompts take more steps beside others, shorter ones; an answer takes a step a token.
            let room = if answer > 1 { 1 } else { 20 };
            assert!(beside_steps <= 2 * alone_steps + room, "{case}, {beside_steps} steps");
        }
        assert!(bench.core.load().waiting > 50, "the others are still many");
        bench.run();
    }
}

/// Jain's index of what tenants got for their weight while all of them wanted more.
#[test]
fn shares_follow_weights_whoever_asks_for_more() {
    let check = |weights: &[u32]| {
        let mut bench = Bench::new(config(8000));
        let mut owners = BTreeMap::new();
        for (tenant, &weight) in weights.iter().enumerate() {
            // The first of them abuses.
            let count = if tenant == 0 { 200 } else { 18 };
            for i in 0..count {
                let seed = tenant as u32 * 1000 + i;
                let request = GenerateRequest {
                    tenant: tenant as u64,
                    weight,
                    cache_domain: CacheDomain([tenant as u8; 16]),
                    ..request(&prompt(seed, 40), 120)
                };
                owners.insert(bench.submit(request), tenant);
            }
        }
        let ended = |bench: &Bench, id| {
            matches!(bench.events.get(id).and_then(|e| e.last()), Some(Event::Finished(_)))
        };
        let left = |bench: &Bench, tenant| {
            owners.iter().filter(|(id, t)| **t == tenant && !ended(bench, id)).count()
        };
        // While each has more waiting than it can run.
        while (0..weights.len()).all(|tenant| left(&bench, tenant) > 4) {
            bench.step();
        }
        let mut got = vec![0.0; weights.len()];
        for (id, tenant) in &owners {
            let tokens = bench.events.get(id).map_or(0, Vec::len);
            got[*tenant] += tokens as f64 / f64::from(weights[*tenant]);
        }
        let (sum, squares) =
            got.iter().fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
        let jain = sum * sum / (got.len() as f64 * squares);
        assert!(jain >= 0.95, "{weights:?}: {jain} of {got:?}");
        bench.run();
    };
    check(&[1, 1, 1, 1]);
    check(&[1, 1, 2, 3]);
}

#[test]
fn batch_work_runs_only_when_nobody_waits() {
    let mut bench = Bench::new(config(60));
    let batch =
        |seed| GenerateRequest { priority: Priority::Batch, ..request(&prompt(seed, 80), 30) };
    let idle: Vec<_> = (0..3).map(|seed| bench.submit(batch(seed))).collect();
    for _ in 0..20 {
        bench.step();
    }
    let online = bench.submit(request(&prompt(9, 120), 20));
    let mut counts = Vec::new();
    while !matches!(bench.events.get(&online).and_then(|e| e.last()), Some(Event::Finished(_))) {
        counts.push(idle.iter().map(|id| bench.events.get(id).map_or(0, Vec::len)).sum::<usize>());
        bench.step();
    }
    assert!(counts.windows(2).all(|w| w[0] == w[1]), "batch work ran beside an online request");
    bench.run();
    assert!(bench.core.load().preemptions > 0, "the pages sufficed: the test is too easy");
    for (seed, &id) in (0..).zip(&idle) {
        assert_eq!(said(&bench.events[&id]), said(&alone(&batch(seed))));
    }
}

#[test]
fn broken_logits_end_one_request_only() {
    let mut bench = Bench::new(config(100));
    let good = request(&prompt(1, 10), 5);
    let (a, b) = (bench.submit(good.clone()), bench.submit(request(&[NAN_TOKEN, 1], 5)));
    bench.run();
    assert_eq!(said(&bench.events[&a]), said(&alone(&good)));
    let fault = EngineFault::Internal("the model computed NaN logits".to_owned());
    assert_eq!(bench.finish(b).reason, FinishReason::Fault(fault));
}

#[test]
fn requests_end_where_they_say() {
    let check = |request: GenerateRequest, tokens: u32, reason: fn(&FinishReason) -> bool| {
        let mut bench = Bench::new(config(20));
        let id = bench.submit(request);
        bench.run();
        let finish = bench.finish(id);
        assert!(reason(&finish.reason), "{finish:?}");
        assert_eq!(finish.usage.output_tokens, tokens);
        assert_eq!(said(&bench.events[&id]).len() as u32, 1 + tokens);
    };
    let length = |reason: &FinishReason| *reason == FinishReason::Length;
    check(request(&prompt(1, 9), 0), 0, length);
    check(request(&prompt(1, 9), 7), 7, length);
    // The context holds 76 tokens.
    check(request(&prompt(1, 70), 100), 6, length);
    let Some(Event::Token(third)) = alone(&request(&prompt(1, 9), 3)).get(3).cloned() else {
        panic!("no third token")
    };
    let stop = GenerateRequest { stop_token_ids: [third.id].into(), ..request(&prompt(1, 9), 9) };
    check(stop, 3, |reason| matches!(reason, FinishReason::Stop(_)));
}

#[test]
fn prompt_logprobs_do_not_depend_on_chunks_or_cache() {
    let asked = GenerateRequest {
        prompt_logprobs: Some(2),
        logprobs: Some(3),
        ..request(&prompt(5, 50), 4)
    };
    let mut bench = Bench::new(config(100));
    bench.submit(request(&prompt(5, 50), 1));
    bench.run();
    let id = bench.submit(asked.clone());
    bench.run();
    let Event::Prefilled { cached_tokens: 0, prompt_logprobs: Some(entries) } =
        &bench.events[&id][0]
    else {
        panic!("{:?}", bench.events[&id][0])
    };
    assert_eq!(entries.iter().map(|e| e.id).collect::<Vec<_>>(), prompt(5, 50));
    assert_eq!((entries[0].logprob, entries[0].top.len()), (None, 0));
    assert!(entries[1..].iter().all(|e| e.logprob.is_some_and(|p| p < 0.0) && e.top.len() == 2));
    assert_eq!(said(&bench.events[&id]), said(&alone(&asked)));
}

/// A small generator for the simulator: what happens is a function of the seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn random_request(dice: &mut Dice, context: u32) -> GenerateRequest {
    let mut tokens = prompt(dice.below(3) as u32, dice.below(u64::from(context) / 3) as u32);
    tokens.extend(prompt(20 + dice.below(6) as u32, 1 + dice.below(12) as u32));
    let sampling = match dice.below(3) {
        0 => SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        1 => SamplingParams { seed: dice.below(5), top_p: 0.9, ..SamplingParams::default() },
        _ => SamplingParams {
            seed: dice.below(5),
            repetition_penalty: 1.2,
            frequency_penalty: 0.1,
            top_k: 20,
            ..SamplingParams::default()
        },
    };
    GenerateRequest {
        // An engine alone has a longer context.
        max_new_tokens: (dice.below(30) as u32).min(context - tokens.len() as u32),
        prompt: tokens.into(),
        sampling,
        stop_token_ids: if dice.once_in(2) {
            [dice.below(VOCAB as u64) as u32].into()
        } else {
            [].into()
        },
        grammar: dice.once_in(2).then(|| {
            let grammar = FakeGrammar { seed: dice.below(4), dead_after: None };
            Arc::new(grammar) as Arc<dyn Grammar>
        }),
        prediction: if dice.once_in(3) {
            prompt(dice.below(3) as u32, dice.below(40) as u32).into()
        } else {
            [].into()
        },
        logprobs: dice.once_in(5).then_some(2),
        prompt_logprobs: dice.once_in(8).then_some(1),
        cache_domain: CacheDomain([dice.below(2) as u8; 16]),
        tenant: dice.below(3),
        priority: if dice.once_in(4) { Priority::Batch } else { Priority::Online },
        ..GenerateRequest::default()
    }
}

/// Random arrivals, cancels, deadlines and slow readers on few pages, with and without guesses. Returns the load at the
/// end.
fn simulate(seed: u64) -> EngineLoad {
    let mut dice = Dice(seed);
    let pages = 12 + dice.below(60) as u32;
    let mut bench = Bench::new(SchedulerConfig {
        max_running: 1 + dice.below(8) as usize,
        max_waiting: 1000,
        max_step_tokens: 8 + dice.below(100) as usize,
        target_gap_ms: 20.0 + dice.below(200) as f64,
        max_drafts: dice.below(3) as usize * 4,
        ..config(pages)
    });
    if dice.once_in(2) {
        let (salt, fails_after) = (1 + dice.below(2), dice.below(60));
        let fails = dice.once_in(4).then_some((fails_after, seed.is_multiple_of(2)));
        bench = bench.with_draft(2 + dice.below(60) as u32, salt, fails);
    }
    let context = (pages - 1) * 4;
    let mut requests = BTreeMap::new();
    let mut paused = BTreeMap::new();
    let mut left = 25;
    for step in 0.. {
        assert!(step < 50_000, "seed {seed}: the requests do not end");
        while left > 0 && dice.once_in(3) {
            left -= 1;
            let request = random_request(&mut dice, context);
            let deadline =
                dice.once_in(10).then(|| bench.now() + Duration::from_millis(dice.below(3000)));
            let grammar = request.grammar.as_ref().map(|grammar| grammar.start().unwrap());
            let id = bench.core.submit(request.clone(), grammar, deadline, bench.now()).unwrap();
            requests.insert(id, request);
        }
        let ids: Vec<_> = bench.core.ids().collect();
        for id in ids {
            if dice.once_in(300) {
                bench.end(id, FinishReason::Cancelled);
            } else if dice.once_in(10) {
                let slow = paused.entry(id).or_insert(false);
                *slow = !*slow;
                bench.core.set_paused(id, *slow);
            }
        }
        let (now, events) = (bench.now(), &mut bench.events);
        bench.core.end_overdue(now, &mut |id, event| events.entry(id).or_default().push(event));
        if bench.step() == StepOutcome::Idle {
            let runnable = bench.core.ids().any(|id| !paused.get(&id).copied().unwrap_or(false));
            assert!(!runnable, "seed {seed}: idle, but somebody could go on");
            if left == 0 && bench.core.ids().count() == 0 {
                break;
            }
        }
    }
    for (id, request) in &requests {
        let events = &bench.events[id];
        let (said, expected) = (said(events), said(&alone(request)));
        let finish = bench.finish(*id);
        let tokens = said.iter().filter(|event| matches!(event, Event::Token(_))).count();
        assert_eq!(finish.usage.output_tokens as usize, tokens, "seed {seed}");
        match finish.reason {
            FinishReason::Cancelled | FinishReason::Deadline => {
                assert_eq!(said[..], expected[..said.len()], "seed {seed}, {request:?}");
            }
            _ => assert_eq!(said, expected, "seed {seed}, {request:?}"),
        }
    }
    let (free, total) = bench.core.scheduler.pages_free_and_total();
    assert_eq!(free, total, "seed {seed}: pages leaked");
    bench.core.load()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_each_answer_is_the_one_given_alone(seed in any::<u64>()) {
        simulate(seed);
    }
}

#[test]
fn the_simulator_takes_pages_away_and_guesses() {
    let loads: Vec<_> = (0..100).map(simulate).collect();
    let sum = |of: fn(&EngineLoad) -> u64| loads.iter().map(of).sum::<u64>();
    let (preemptions, guesses) = (sum(|load| load.preemptions), sum(|load| load.draft_tokens));
    let right = sum(|load| load.accepted_draft_tokens);
    assert!(preemptions > 100, "{preemptions} preemptions");
    assert!(right > 100 && guesses > right, "{right} of {guesses} guesses were right");
}

fn with_grammar(seed: u64, dead_after: Option<u32>, most: u32) -> GenerateRequest {
    let grammar: Arc<dyn Grammar> = Arc::new(FakeGrammar { seed, dead_after });
    let sampling = SamplingParams { seed, ..SamplingParams::default() };
    GenerateRequest { grammar: Some(grammar), sampling, ..request(&prompt(3, 20), most) }
}

fn ids(events: &[Event]) -> Vec<TokenId> {
    let id = |event: &Event| match event {
        Event::Token(token) => Some(token.id),
        _ => None,
    };
    events.iter().filter_map(id).collect()
}

#[test]
fn answers_follow_their_grammar_to_its_end() {
    let mut ended = 0;
    for seed in 0..40 {
        let mut bench = Bench::new(config(400));
        let wanted = with_grammar(seed, None, 60);
        let mut state = wanted.grammar.as_ref().unwrap().start().unwrap();
        let id = bench.submit(wanted);
        bench.run();
        let tokens = ids(&bench.events[&id]);
        assert!(tokens.iter().all(|&token| state.accept(token).is_ok()), "seed {seed}: {tokens:?}");
        match bench.finish(id).reason {
            FinishReason::Stop(END_TOKEN) => ended += 1,
            ref reason => assert_eq!((reason, tokens.len()), (&FinishReason::Length, 60)),
        }
        assert_eq!(tokens.contains(&END_TOKEN), tokens.last() == Some(&END_TOKEN));
    }
    assert!(ended > 10, "{ended} of 40 ended");
}

#[test]
fn forcing_saves_steps_and_changes_nothing() {
    for (seed, max_drafts) in (0..20).flat_map(|seed| [(seed, 0), (seed, 8)]) {
        let run = |logprobs| {
            let mut bench = Bench::new(SchedulerConfig { max_drafts, ..config(400) });
            // Log-probabilities need each token's logits, so nothing is forced.
            let id = bench.submit(GenerateRequest { logprobs, ..with_grammar(seed, None, 40) });
            bench.run();
            (ids(&bench.events[&id]), bench.finish(id).reason.clone(), bench.core.load())
        };
        let (sampled, reason, without) = run(Some(0));
        let (forced, same_reason, with) = run(None);
        assert_eq!((&forced, same_reason), (&sampled, reason), "seed {seed}");
        assert_eq!(without.forced_tokens, 0);
        assert!(with.forced_tokens > 0 || forced.len() < 8, "seed {seed}");
        if max_drafts == 0 {
            assert_eq!(with.steps + with.forced_tokens, without.steps, "seed {seed}");
        }
    }
}

#[test]
fn a_dead_end_ends_one_request_only() {
    let mut bench = Bench::new(config(100));
    let good = with_grammar(1, None, 20);
    let (a, b) = (bench.submit(good.clone()), bench.submit(with_grammar(2, Some(5), 20)));
    bench.run();
    assert_eq!(said(&bench.events[&a]), said(&alone(&good)));
    let fault = FinishReason::Fault(EngineFault::Grammar(GrammarFault::DeadEnd));
    assert_eq!((&bench.finish(b).reason, bench.finish(b).usage.output_tokens), (&fault, 5));
}

#[test]
fn guesses_save_steps_and_change_nothing() {
    let wanted = request(&prompt(4, 30), 200);
    let run = |max_drafts| {
        let mut bench = Bench::new(SchedulerConfig { max_drafts, ..config(400) });
        let id = bench.submit(wanted.clone());
        bench.run();
        (said(&bench.events[&id]), bench.core.load().steps)
    };
    let (plain, plain_steps) = run(0);
    let (guessed, guessed_steps) = run(8);
    assert_eq!(plain, guessed);
    assert!(guessed_steps < plain_steps, "{guessed_steps} steps instead of {plain_steps}");
}

/// A request that says nothing twice, with a draft model; returns what was said, the load, and how long it took.
fn drafted(salt: u64, fails_after: Option<(u64, bool)>) -> (Vec<Event>, EngineLoad, Duration) {
    let sampling = SamplingParams { seed: 3, ..SamplingParams::default() };
    let wanted = GenerateRequest { sampling, ..request(&prompt(4, 30), 200) };
    let max_drafts = MAX_DRAFTS;
    let bench = Bench::new(SchedulerConfig { max_drafts, ..config(400) });
    let mut bench = if salt == 0 { bench } else { bench.with_draft(400, salt, fails_after) };
    let id = bench.submit(wanted);
    bench.run();
    assert_eq!(bench.finish(id).usage.output_tokens, 200);
    (said(&bench.events[&id]), bench.core.load(), bench.now())
}

#[test]
fn a_draft_model_saves_time_and_changes_nothing() {
    let (plain, _, plain_time) = drafted(0, None);
    // Of one mind, and of two.
    for (salt, least_right, least_gain) in [(1, 0.9, 1.4), (2, 0.4, 1.05)] {
        let (said, load, time) = drafted(salt, None);
        assert_eq!(said, plain);
        let right = load.accepted_draft_tokens as f64 / load.draft_tokens as f64;
        let gain = plain_time.as_secs_f64() / time.as_secs_f64();
        assert!(right > least_right && gain > least_gain, "{right:.2} right, {gain:.2} times");
    }
}

#[test]
fn a_draft_model_that_fails_is_done_without() {
    let (plain, ..) = drafted(0, None);
    for fails_after in [(0, false), (5, false), (7, true)] {
        let (said, load, _) = drafted(1, Some(fails_after));
        assert_eq!(said, plain);
        assert!(load.draft_tokens < 150, "{} guesses", load.draft_tokens);
    }
}
