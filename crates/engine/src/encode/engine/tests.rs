//! The engine's queue and its ends, on an encoder that notes what it was given.

use std::sync::mpsc;
use std::task::{Context, Poll, Waker};

use futures_core::Stream;

use super::*;
use crate::encode::EncodeShape;
use crate::forward::ForwardError;

/// Fails on this token.
const BAD: TokenId = 66;
/// Panics on this one.
const FATAL: TokenId = 99;

/// The vector of a sequence is its first token and its length.
struct Noted {
    /// First tokens of the sequences of each step.
    steps: Arc<Mutex<Vec<Vec<TokenId>>>>,
    /// A step waits for a word before it computes.
    gate: Option<mpsc::Receiver<()>>,
}

impl Encode for Noted {
    fn shape(&self) -> EncodeShape {
        EncodeShape { vocab_size: 100, max_tokens: 50, width: 2 }
    }

    fn encode(
        &mut self,
        sequences: &[&[TokenId]],
        vectors: &mut Vec<f32>,
    ) -> Result<(), ForwardError> {
        self.steps.lock().unwrap().push(sequences.iter().map(|tokens| tokens[0]).collect());
        if let Some(gate) = &self.gate {
            gate.recv().unwrap();
        }
        if sequences.iter().any(|tokens| tokens[0] == BAD) {
            return Err(ForwardError::Batch { sequence: 0, message: "bad".to_owned() });
        }
        assert!(sequences.iter().all(|tokens| tokens[0] != FATAL));
        vectors.clear();
        vectors.extend(sequences.iter().flat_map(|t| [t[0] as f32, t.len() as f32]));
        Ok(())
    }
}

struct House {
    engine: EncoderEngine,
    steps: Arc<Mutex<Vec<Vec<TokenId>>>>,
    gate: mpsc::Sender<()>,
}

fn house(gated: bool, config: &EncoderEngineConfig) -> House {
    let (gate, receiver) = mpsc::channel();
    let steps = Arc::default();
    let noted = Noted { steps: Arc::clone(&steps), gate: gated.then_some(receiver) };
    let engine = EncoderEngine::start("noted".to_owned(), Box::new(noted), config).unwrap();
    House { engine, steps, gate }
}

fn request(token: TokenId, len: usize) -> GenerateRequest {
    GenerateRequest {
        prompt: vec![token; len].into(),
        max_new_tokens: 0,
        ..GenerateRequest::default()
    }
}

fn of(tenant: u64, token: TokenId) -> GenerateRequest {
    GenerateRequest { tenant, ..request(token, 10) }
}

/// All events, polling until the end; the engine's thread needs no waking.
fn read(mut stream: EventStream) -> Vec<Event> {
    let (mut events, started) = (Vec::new(), Instant::now());
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        match std::pin::Pin::new(&mut stream).poll_next(&mut cx) {
            Poll::Ready(Some(event)) => events.push(event),
            Poll::Ready(None) => return events,
            Poll::Pending => std::thread::sleep(Duration::from_millis(1)),
        }
        assert!(started.elapsed() < Duration::from_secs(20), "the stream does not end");
    }
}

fn finish(events: &[Event]) -> &Finish {
    match events.last() {
        Some(Event::Finished(finish)) => finish,
        other => panic!("{other:?}"),
    }
}

/// Waits until the first step has begun, so that what follows queues up behind it.
fn begun(house: &House) {
    while house.steps.lock().unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_vector_comes_with_its_usage() {
    let house = house(false, &EncoderEngineConfig::default());
    let events = read(house.engine.submit(request(7, 5)).unwrap());
    assert_eq!(events[0], Event::Prefilled { cached_tokens: 0, prompt_logprobs: None });
    assert_eq!(events[1], Event::Vector(Arc::from([7.0, 5.0])));
    let finish = finish(&events);
    assert_eq!((finish.reason.clone(), finish.usage.prompt_tokens), (FinishReason::Length, 5));
    assert_eq!(finish.usage.output_tokens, 0);
    assert_eq!((house.engine.load().steps, house.engine.load().waiting), (1, 0));
}

#[test]
fn what_cannot_be_is_refused_at_once() {
    let config = EncoderEngineConfig { max_tokens: Some(9), ..EncoderEngineConfig::default() };
    let house = house(false, &config);
    let refused = |request| house.engine.submit(request).map(drop).unwrap_err().to_string();
    assert!(refused(request(1, 10)).contains("the model's context holds 9"));
    assert!(refused(request(1, 0)).contains("at least 1 token"));
    assert!(refused(request(100, 1)).contains("below 100"));
    let generating = GenerateRequest { max_new_tokens: 1, ..request(1, 1) };
    assert!(refused(generating).contains("must be 0"));
    let logprobs = GenerateRequest { prompt_logprobs: Some(1), ..request(1, 1) };
    assert!(refused(logprobs).contains("prompt_logprobs"));
}

#[test]
fn steps_are_filled_fairly_and_batches_come_last() {
    let config = EncoderEngineConfig { step_tokens: 40, ..EncoderEngineConfig::default() };
    let house = house(true, &config);
    let mut streams = vec![house.engine.submit(of(1, 1)).unwrap()];
    begun(&house);
    let batch = GenerateRequest { priority: Priority::Batch, ..of(3, 30) };
    for next in [batch, of(1, 11), of(1, 12), of(1, 13), of(2, 21), of(2, 22)] {
        streams.push(house.engine.submit(next).unwrap());
    }
    (0..3).for_each(|_| house.gate.send(()).unwrap());
    streams.into_iter().for_each(|stream| drop(read(stream)));
    let steps = house.steps.lock().unwrap().clone();
    assert_eq!(steps[0], [1]);
    let mut second = steps[1].clone();
    second.sort_unstable();
    assert_eq!(second, [11, 12, 21, 22], "four of ten tokens, two for each tenant");
    assert_eq!(steps[2], [13, 30], "what nobody waits for is last");
}

#[test]
fn a_full_queue_refuses_and_the_unwanted_leave_it() {
    let config = EncoderEngineConfig { max_waiting: 2, ..EncoderEngineConfig::default() };
    let house = house(true, &config);
    let running = house.engine.submit(request(1, 1)).unwrap();
    begun(&house);
    let cancelled = house.engine.submit(request(2, 1)).unwrap();
    let late = GenerateRequest { deadline: Some(Instant::now()), ..request(3, 1) };
    let late = house.engine.submit(late).unwrap();
    let full = house.engine.submit(request(4, 1)).map(drop).unwrap_err();
    assert_eq!(full, SubmitError::QueueFull { waiting: 2, limit: 2 });
    cancelled.cancel();
    house.gate.send(()).unwrap();
    assert_eq!(read(running).len(), 3);
    let (cancelled, late) = (read(cancelled), read(late));
    assert_eq!(finish(&cancelled).reason, FinishReason::Cancelled);
    assert_eq!(finish(&late).reason, FinishReason::Deadline);
    assert_eq!(finish(&late).usage, Usage::default());
    assert_eq!(house.steps.lock().unwrap().len(), 1);
}

#[test]
fn a_failed_step_ends_its_requests_and_three_end_the_engine() {
    let house = house(false, &EncoderEngineConfig::default());
    let ask = |token| read(house.engine.submit(request(token, 1)).unwrap());
    for token in [BAD, FATAL, 5, BAD, FATAL] {
        let events = ask(token);
        let failed =
            matches!(finish(&events).reason, FinishReason::Fault(EngineFault::Internal(_)));
        assert_eq!(failed, token != 5, "{events:?}");
        assert_eq!(finish(&events).usage.prompt_tokens, u32::from(token == 5));
    }
    ask(BAD);
    house.engine.shutdown(Duration::from_secs(5));
    assert_eq!(
        house.engine.submit(request(5, 1)).map(drop).unwrap_err(),
        SubmitError::ShuttingDown
    );
}

#[test]
fn a_shutdown_ends_what_waits() {
    let house = house(true, &EncoderEngineConfig::default());
    let running = house.engine.submit(request(1, 1)).unwrap();
    begun(&house);
    let waiting = house.engine.submit(request(2, 1)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| house.engine.shutdown(Duration::ZERO));
        while house.engine.submit(request(3, 1)).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        house.gate.send(()).unwrap();
    });
    assert_eq!(read(running).len(), 3);
    let events = read(waiting);
    assert_eq!(finish(&events).reason, FinishReason::Fault(EngineFault::ShutDown));
}
