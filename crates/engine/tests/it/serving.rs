//! Whole requests on real files: what a request says does not depend on its neighbours, on chunks, on cache hits or on
//! losing its pages, bit for bit; and whoever hangs up leaves nothing behind.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;
use mintage_engine::{
    CpuEngine, CpuEngineConfig, Decoder, DecoderOptions, Forward, KvSize, MAX_DRAFTS,
    SchedulerConfig, WeightStorage,
};
use mintage_kernels::KvFormat;
use mintage_model::{
    CacheDomain, Engine, Event, EventStream, Finish, FinishReason, GenerateRequest, ModelFile,
    Priority, SamplingParams, TokenId,
};

pub(crate) const SMALL: &str = "smollm2-135m-instruct-q4_1.gguf";
const QWEN: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";

fn decoder(file: &str, pages: usize, threads: usize) -> Option<Decoder> {
    let Some(folder) = std::env::var_os("MINTAGE_TEST_MODELS") else {
        eprintln!("skipped: MINTAGE_TEST_MODELS names no folder with models");
        return None;
    };
    let path = std::path::Path::new(&folder).join(file);
    let options = DecoderOptions {
        threads,
        kv_format: KvFormat::F16,
        kv_size: KvSize::Pages(pages),
        weights: WeightStorage::AsStored,
    };
    Some(Decoder::load(&ModelFile::open(&path).unwrap(), &options, &mut |_| {}).unwrap())
}

/// An engine; with `draft`, a file and a number of pages, that model guesses for the other.
fn engine_with(
    file: &str,
    draft: Option<(&str, usize)>,
    pages: usize,
    threads: usize,
    scheduler: SchedulerConfig,
) -> Option<CpuEngine> {
    let forward = Box::new(decoder(file, pages, threads)?);
    let mut draft_forward: Option<Box<dyn Forward>> = None;
    if let Some((file, pages)) = draft {
        draft_forward = Some(Box::new(decoder(file, pages, threads)?));
    }
    let config = CpuEngineConfig { scheduler, ..CpuEngineConfig::default() };
    let name = file.to_owned();
    Some(CpuEngine::start_with_draft(name, forward, draft_forward, config).unwrap())
}

pub(crate) fn engine(
    file: &str,
    pages: usize,
    threads: usize,
    scheduler: SchedulerConfig,
) -> Option<CpuEngine> {
    engine_with(file, None, pages, threads, scheduler)
}

/// Requests of all kinds; every other one begins with the same 70 tokens.
fn request(index: u32) -> GenerateRequest {
    let shared =
        (0..if index.is_multiple_of(2) { 70 } else { 0 }).map(|i: u32| (i * 7919 + 11) % 40_000);
    let own = (0..20 + index * 9 % 50).map(|i| (i * 104_729 + index * 977 + 5) % 40_000);
    let sampling = match index % 3 {
        0 => SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        1 => SamplingParams { seed: index.into(), top_p: 0.95, ..SamplingParams::default() },
        _ => SamplingParams {
            seed: index.into(),
            temperature: 0.7,
            top_k: 40,
            repetition_penalty: 1.1,
            ..SamplingParams::default()
        },
    };
    GenerateRequest {
        request_id: format!("r{index}"),
        prompt: shared.chain(own).collect(),
        max_new_tokens: [100, 60, 28][index as usize % 3],
        sampling,
        logprobs: index.is_multiple_of(4).then_some(3),
        prompt_logprobs: (index % 5 == 4).then_some(1),
        tenant: (index % 3).into(),
        priority: if index % 7 == 6 { Priority::Batch } else { Priority::Online },
        ..GenerateRequest::default()
    }
}

fn next(stream: &mut EventStream) -> Option<Event> {
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..120_000 {
        match Pin::new(&mut *stream).poll_next(&mut context) {
            Poll::Ready(event) => return event,
            Poll::Pending => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    panic!("the stream hangs")
}

/// Everything a request says but how much came from the cache; and how it ended.
pub(crate) fn read(mut stream: EventStream) -> (Vec<Event>, Finish) {
    let mut events = Vec::new();
    while let Some(event) = next(&mut stream) {
        match event {
            Event::Finished(finish) => return (events, finish),
            Event::Prefilled { prompt_logprobs, .. } => {
                events.push(Event::Prefilled { cached_tokens: 0, prompt_logprobs });
            }
            said @ (Event::Token(_) | Event::Vector(_)) => events.push(said),
        }
    }
    panic!("the stream ended without `Finished`")
}

pub(crate) fn assert_nothing_left(engine: &CpuEngine) {
    for _ in 0..5000 {
        let load = engine.load();
        if load.running + load.waiting == 0 {
            assert_eq!(load.kv_pages_free, load.kv_pages_total, "pages leaked");
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the engine does not come to rest: {:?}", engine.load());
}

/// Each request alone, whole, without cache hits and without guesses; then all together on few pages in small chunks
/// with other threads, guessing.
fn check(file: &str, requests: u32) {
    let whole =
        SchedulerConfig { prompt_step_ms: 1e9, max_drafts: 0, ..SchedulerConfig::default() };
    let Some(quiet) = engine(file, 64, 1, whole) else { return };
    let alone: Vec<_> = (0..requests)
        .map(|index| {
            let cache_domain = CacheDomain([index as u8; 16]);
            let stream = quiet.submit(GenerateRequest { cache_domain, ..request(index) });
            let (events, finish) = read(stream.unwrap());
            assert_eq!(finish.usage.cached_tokens, 0);
            events
        })
        .collect();
    drop(quiet);
    let crowded = SchedulerConfig {
        max_running: 8,
        max_step_tokens: 48,
        target_gap_ms: 5.0,
        max_drafts: MAX_DRAFTS,
        ..SchedulerConfig::default()
    };
    let Some(engine) = engine(file, 10, 2, crowded) else { return };
    let streams: Vec<_> = (0..requests).map(|i| engine.submit(request(i)).unwrap()).collect();
    for (index, (stream, alone)) in streams.into_iter().zip(&alone).enumerate() {
        let (events, finish) = read(stream);
        assert_eq!(finish.reason, FinishReason::Length, "request {index}");
        assert_eq!(&events, alone, "request {index}");
    }
    let load = engine.load();
    assert!(load.prefix_cache_hits > 0 && load.preemptions > 0, "too easy: {load:?}");
    assert_nothing_left(&engine);
}

#[test]
fn company_changes_nothing_on_smollm2() {
    check(SMALL, 14);
}

#[test]
fn company_changes_nothing_on_qwen() {
    check(QWEN, 5);
}

/// A prompt that is copied, greedy and sampled: plain, with guesses from its own words, and with those of a draft model
/// that is `draft`. Tokens, their log-probabilities and the usage are the same.
fn check_guesses(file: &str, draft: &str) {
    let copied: Vec<TokenId> = (0..40).map(|i| (i * 104_729 + 7) % 40_000).collect();
    let requests: Vec<GenerateRequest> = [0.0, 0.8]
        .map(|temperature| GenerateRequest {
            prompt: [&copied[..], &copied[..], &copied[..8]].concat().into(),
            max_new_tokens: 48,
            sampling: SamplingParams { temperature, seed: 5, ..SamplingParams::default() },
            logprobs: Some(2),
            ..GenerateRequest::default()
        })
        .to_vec();
    let run = |draft, max_drafts| {
        let scheduler = SchedulerConfig { max_drafts, ..SchedulerConfig::default() };
        let engine = engine_with(file, draft, 32, 2, scheduler)?;
        let answers: Vec<_> = requests
            .iter()
            .map(|request| {
                let (events, finish) = read(engine.submit(request.clone()).unwrap());
                assert_eq!(finish.usage.output_tokens, 48);
                events
            })
            .collect();
        assert_nothing_left(&engine);
        Some((answers, engine.load()))
    };
    let Some((plain, _)) = run(None, 0) else { return };
    for draft in [None, Some((draft, 32))] {
        let Some((guessed, load)) = run(draft, MAX_DRAFTS) else { return };
        assert_eq!(guessed, plain, "draft model: {draft:?}");
        assert!(load.accepted_draft_tokens > 10, "draft model: {draft:?}, {load:?}");
        assert!(load.draft_tokens > load.accepted_draft_tokens || load.steps < 96, "{load:?}");
    }
}

#[test]
fn guesses_change_nothing_on_smollm2() {
    check_guesses(SMALL, SMALL);
}

#[test]
fn guesses_change_nothing_on_qwen() {
    check_guesses(QWEN, QWEN);
}

#[test]
fn who_hangs_up_leaves_nothing_behind() {
    let Some(engine) = engine(SMALL, 40, 2, SchedulerConfig::default()) else { return };
    let answers: Vec<Vec<Event>> =
        (0..6).map(|index| read(engine.submit(request(index)).unwrap()).0).collect();
    let tokens = |events: &[Event]| -> Vec<TokenId> {
        let id = |event: &Event| match event {
            Event::Token(token) => Some(token.id),
            _ => None,
        };
        events.iter().filter_map(id).collect()
    };
    std::thread::scope(|scope| {
        for user in 0..8u32 {
            let (engine, answers) = (&engine, &answers);
            scope.spawn(move || {
                for round in 0..6 {
                    let index = (user + round) % 6;
                    let mut stream = engine.submit(request(index)).unwrap();
                    // Two of three hang up: one after some events, one at once; the third cancels or reads on.
                    match (user * 7 + round * 5) % 6 {
                        0 | 1 => drop(stream),
                        2 | 3 => {
                            for _ in 0..=(user + round) % 9 {
                                let _ = next(&mut stream);
                            }
                        }
                        4 => {
                            stream.cancel();
                            let (events, finish) = read(stream);
                            let said = tokens(&events);
                            assert_eq!(said.len() as u32, finish.usage.output_tokens);
                            assert!(tokens(&answers[index as usize]).starts_with(&said));
                        }
                        _ => assert_eq!(read(stream).0, answers[index as usize]),
                    }
                }
            });
        }
    });
    assert_nothing_left(&engine);
}
