//! The thread and its channels over a deterministic model: readers that sleep, leave or cancel, panics, shutdown.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::testing::{FakeForward, PANIC_TOKEN};
use futures_core::Stream;
use mintage_model::{Priority, SamplingParams};

fn start(sleep_ms: u64, config: CpuEngineConfig) -> CpuEngine {
    let mut forward = FakeForward::new(200, 4);
    forward.sleep_ms = sleep_ms;
    let scheduler = SchedulerConfig { page_tokens: 4, ..config.scheduler.clone() };
    let config = CpuEngineConfig { scheduler, ..config };
    CpuEngine::start("fake".to_owned(), Box::new(forward), config).unwrap()
}

fn request(seed: u32, max_new_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        request_id: format!("r{seed}"),
        prompt: (0..20).map(|i| (seed * 13 + i * i) % 90).collect(),
        max_new_tokens,
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        ..GenerateRequest::default()
    }
}

/// The next event, without a runtime; `None` at the end. A stream that is silent for 10 s hangs.
fn next(stream: &mut EventStream) -> Option<Event> {
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..10_000 {
        match Pin::new(&mut *stream).poll_next(&mut context) {
            Poll::Ready(event) => return event,
            Poll::Pending => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    panic!("the stream hangs")
}

fn read(mut stream: EventStream) -> (Vec<u32>, Finish) {
    let mut tokens = Vec::new();
    while let Some(event) = next(&mut stream) {
        match event {
            Event::Token(token) => tokens.push(token.id),
            Event::Prefilled { .. } | Event::Vector(_) => {}
            Event::Finished(finish) => return (tokens, finish),
        }
    }
    panic!("the stream ended without `Finished`")
}

/// Waits until nothing runs; all pages must be free then.
fn assert_idle(engine: &CpuEngine) {
    for _ in 0..5000 {
        let load = engine.load();
        if load.running + load.waiting == 0 {
            assert_eq!(load.kv_pages_free, load.kv_pages_total);
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the engine does not come to rest: {:?}", engine.load());
}

#[test]
fn many_readers_get_what_each_gets_alone() {
    let engine = start(0, CpuEngineConfig::default());
    let alone: Vec<_> =
        (0..12).map(|seed| read(engine.submit(request(seed, 40)).unwrap()).0).collect();
    let streams: Vec<_> = (0..12).map(|seed| engine.submit(request(seed, 40)).unwrap()).collect();
    for (stream, alone) in streams.into_iter().zip(&alone) {
        let (tokens, finish) = read(stream);
        assert_eq!(&tokens, alone);
        assert_eq!((finish.usage.prompt_tokens, finish.usage.output_tokens), (20, 40));
        assert!(finish.timings.first_token.is_some_and(|at| at <= finish.timings.total));
    }
    assert_idle(&engine);
}

#[test]
fn a_slow_reader_pauses_itself_and_loses_nothing() {
    let engine = start(0, CpuEngineConfig { event_capacity: 4, ..CpuEngineConfig::default() });
    let alone = read(engine.submit(request(1, 100)).unwrap()).0;
    let mut slow = engine.submit(request(1, 100)).unwrap();
    assert!(matches!(next(&mut slow), Some(Event::Prefilled { .. })));
    let quick = read(engine.submit(request(2, 300)).unwrap());
    assert_eq!(quick.0.len(), 300);
    assert_eq!(engine.load().running, 1, "the slow one waits for its reader");
    assert_eq!(read(slow).0, alone);
    assert_idle(&engine);
}

#[test]
fn dropped_and_cancelled_streams_stop_within_a_step() {
    let engine = start(5, CpuEngineConfig::default());
    let mut dropped = engine.submit(request(1, 700)).unwrap();
    while !matches!(next(&mut dropped), Some(Event::Token(_))) {}
    drop(dropped);
    let cancelled = engine.submit(request(2, 700)).unwrap();
    cancelled.cancel();
    let (tokens, finish) = read(cancelled);
    assert_eq!(finish.reason, FinishReason::Cancelled);
    assert_eq!(tokens.len() as u32, finish.usage.output_tokens);
    let deadline = Some(Instant::now() + Duration::from_millis(60));
    let (_, late) = read(engine.submit(GenerateRequest { deadline, ..request(3, 700) }).unwrap());
    assert_eq!(late.reason, FinishReason::Deadline);
    assert!(late.timings.total < Duration::from_millis(500), "{:?}", late.timings);
    assert_idle(&engine);
}

#[test]
fn a_full_queue_refuses_and_says_so() {
    let scheduler =
        SchedulerConfig { max_running: 1, max_waiting: 2, ..SchedulerConfig::default() };
    let engine = start(2, CpuEngineConfig { scheduler, ..CpuEngineConfig::default() });
    let mut first = engine.submit(request(0, 700)).unwrap();
    while !matches!(next(&mut first), Some(Event::Token(_))) {}
    let _second = engine.submit(request(1, 700)).unwrap();
    let _third = engine.submit(request(2, 700)).unwrap();
    let refused = engine.submit(request(3, 1)).map(|_| ()).unwrap_err();
    assert_eq!(refused, SubmitError::QueueFull { waiting: 2, limit: 2 });
}

#[test]
fn a_panic_ends_streams_with_a_fault_and_the_engine_goes_on() {
    let engine = start(2, CpuEngineConfig::default());
    let expected = read(engine.submit(request(1, 30)).unwrap()).0;
    let mut bystander = engine.submit(request(2, 700)).unwrap();
    while !matches!(next(&mut bystander), Some(Event::Token(_))) {}
    let fatal = GenerateRequest { prompt: [PANIC_TOKEN].into(), ..request(3, 9) };
    for stream in [engine.submit(fatal.clone()).unwrap(), bystander] {
        let (tokens, finish) = read(stream);
        assert!(matches!(finish.reason, FinishReason::Fault(EngineFault::Internal(_))));
        assert!(finish.usage.output_tokens >= tokens.len() as u32);
    }
    assert_eq!(read(engine.submit(request(1, 30)).unwrap()).0, expected);
    // Nothing but failures: the engine gives up, and still no stream hangs.
    while let Ok(stream) = engine.submit(fatal.clone()) {
        let (_, finish) = read(stream);
        assert!(matches!(finish.reason, FinishReason::Fault(_)));
    }
    assert_eq!(engine.submit(fatal).map(|_| ()).unwrap_err(), SubmitError::ShuttingDown);
}

#[test]
fn shutdown_drains_and_then_ends_what_is_left() {
    let engine = start(2, CpuEngineConfig::default());
    let short = engine.submit(request(1, 10)).unwrap();
    let mut long = engine.submit(request(2, 700)).unwrap();
    assert!(matches!(next(&mut long), Some(Event::Prefilled { .. })));
    std::thread::scope(|scope| {
        scope.spawn(|| engine.shutdown(Duration::from_millis(200)));
        // The long one's reader must keep up, or it is paused rather than running.
        let (_, finish) = read(long);
        assert_eq!(finish.reason, FinishReason::Fault(EngineFault::ShutDown));
        assert!(finish.usage.output_tokens > 10);
    });
    let (tokens, finish) = read(short);
    assert_eq!((tokens.len(), finish.reason), (10, FinishReason::Length));
    assert_eq!(engine.submit(request(3, 1)).map(|_| ()).unwrap_err(), SubmitError::ShuttingDown);
    engine.shutdown(Duration::ZERO);
    assert_idle(&engine);
}

#[test]
fn invalid_requests_are_refused_before_anything_is_computed() {
    let engine = start(0, CpuEngineConfig::default());
    assert_eq!(engine.info().context_length, 199 * 4);
    let refusal = |request| engine.submit(request).map(|_| ()).unwrap_err().to_string();
    let long = GenerateRequest { prompt: vec![1; 796].into(), ..request(1, 1) };
    assert_eq!(refusal(long), "the prompt has 796 tokens, but the model's context holds 796");
    let hot = SamplingParams { top_p: 1.5, ..SamplingParams::default() };
    let hot = GenerateRequest { sampling: hot, priority: Priority::Batch, ..request(1, 1) };
    assert_eq!(refusal(hot), "`sampling.top_p` must lie in 0..=1, not 1.5");
    assert_eq!(engine.load().steps, 0);
}
