//! An engine that says what a script says, when the script says it: for tests of everything that stands on an
//! [`Engine`]. It computes nothing; it honours the contract: limits, stop tokens, deadline, cancel, slow readers.
//!
//! Invariant: every stream ends with exactly one `Finished`, whose usage equals the tokens that were sent.
//! Delays need a clock, and this crate has no runtime, so each running request has a thread of its own.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::{Engine, EngineInfo, EngineLoad, EventSender, EventStream, SubmitError};
use crate::engine::{event_channel, validate};
use crate::generate::{
    EngineFault, Event, Finish, FinishReason, GenerateRequest, SampledToken, Timings, TokenId,
    TokenLogprob, Usage,
};

/// How long a waiting request sleeps before it looks again for a cancel, a deadline or a reader.
const POLL_MS: u64 = 1;

/// Events that may wait for a reader.
const EVENTS: usize = 16;

/// What one request gets.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Wait before `Prefilled`.
    pub prefill_delay: Duration,
    /// Tokens of the prompt reported as cached; at most the prompt's length counts.
    pub cached_tokens: u32,
    /// The prompt's vector, of an engine that makes vectors.
    pub vector: Option<Arc<[f32]>>,
    /// The tokens to sample, until a limit or a stop token of the request ends them.
    pub tokens: Vec<TokenId>,
    /// Wait before each token.
    pub token_delay: Duration,
    /// What happens when `tokens` run out.
    pub end: ScriptEnd,
}

/// What happens when the tokens of a script run out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ScriptEnd {
    /// `FinishReason::Length`.
    #[default]
    Length,
    /// A fault.
    Fault(EngineFault),
    /// Nothing more comes until the request is cancelled, its deadline passes or the engine is dropped.
    Silence,
    /// The sender is dropped without a word, as a panic in an engine would.
    Drop,
}

type Respond = dyn Fn(&GenerateRequest) -> Result<Script, SubmitError> + Send + Sync;

/// An [`Engine`] that plays scripts. A request's grammar it keeps and does not follow.
pub struct ScriptedEngine {
    info: EngineInfo,
    respond: Box<Respond>,
    /// Requests that may run at once; one more is refused as `QueueFull`.
    limit: u32,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    running: AtomicU32,
    closed: std::sync::atomic::AtomicBool,
    requests: Mutex<Vec<GenerateRequest>>,
    finished: Mutex<Vec<(String, Finish)>>,
}

impl ScriptedEngine {
    /// Answers each valid request with the script (or the refusal) that `respond` gives; runs at most `limit` at once.
    pub fn new(
        info: EngineInfo,
        limit: u32,
        respond: impl Fn(&GenerateRequest) -> Result<Script, SubmitError> + Send + Sync + 'static,
    ) -> Self {
        Self { info, respond: Box::new(respond), limit, shared: Arc::default() }
    }

    /// Repeats each prompt's tokens, without delay.
    #[must_use]
    pub fn echo(info: EngineInfo) -> Self {
        Self::new(info, 64, |request| {
            Ok(Script { tokens: request.prompt.to_vec(), ..Script::default() })
        })
    }

    /// The requests taken so far, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<GenerateRequest> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How each request ended, by `request_id`, in order: also of those whose reader went away.
    #[must_use]
    pub fn finished(&self) -> Vec<(String, Finish)> {
        self.shared.finished.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Engine for ScriptedEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn submit(&self, request: GenerateRequest) -> Result<EventStream, SubmitError> {
        validate(&self.info, &request)?;
        let script = (self.respond)(&request)?;
        let admitted =
            self.shared.running.fetch_update(Ordering::AcqRel, Ordering::Acquire, |running| {
                (running < self.limit).then_some(running + 1)
            });
        if let Err(waiting) = admitted {
            return Err(SubmitError::QueueFull { waiting, limit: self.limit });
        }
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
        let (sender, stream) = event_channel(EVENTS);
        let player = Player {
            shared: Arc::clone(&self.shared),
            context_length: self.info.context_length,
            vocab_size: self.info.vocab_size,
            start: Instant::now(),
            request,
            sender,
            usage: Usage::default(),
            timings: Timings::default(),
        };
        // What needs no clock and fits the channel needs no thread: quick enough to measure what stands around it.
        let is_quick = script.prefill_delay.is_zero()
            && script.token_delay.is_zero()
            && script.end == ScriptEnd::Length
            && script.tokens.len() + usize::from(script.vector.is_some()) < EVENTS;
        if is_quick {
            player.play(&script);
            return Ok(stream);
        }
        let spawned = std::thread::Builder::new()
            .name("scripted-engine".to_owned())
            .spawn(move || player.play(&script));
        match spawned {
            Ok(_) => Ok(stream),
            Err(_) => {
                self.shared.running.fetch_sub(1, Ordering::AcqRel);
                Err(SubmitError::ShuttingDown)
            }
        }
    }

    fn load(&self) -> EngineLoad {
        EngineLoad { running: self.shared.running.load(Ordering::Acquire), ..EngineLoad::default() }
    }
}

impl Drop for ScriptedEngine {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
    }
}

/// One request being played.
struct Player {
    shared: Arc<Shared>,
    context_length: u32,
    vocab_size: u32,
    start: Instant,
    request: GenerateRequest,
    sender: EventSender,
    usage: Usage,
    timings: Timings,
}

impl Player {
    fn play(mut self, script: &Script) {
        self.usage.prompt_tokens = u32::try_from(self.request.prompt.len()).unwrap_or(u32::MAX);
        let ending = self.events(script);
        self.shared.running.fetch_sub(1, Ordering::AcqRel);
        let Some(reason) = ending else { return };
        self.timings.total = self.start.elapsed();
        let finish = Finish { reason, usage: self.usage, timings: self.timings };
        self.shared
            .finished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((self.request.request_id.clone(), finish.clone()));
        self.sender.finish(finish);
    }

    /// Sends everything before `Finished`; `None` where the script drops the stream.
    fn events(&mut self, script: &Script) -> Option<FinishReason> {
        if let Err(reason) = self.wait(script.prefill_delay) {
            return Some(reason);
        }
        self.usage.cached_tokens = script.cached_tokens.min(self.usage.prompt_tokens);
        let prompt_logprobs = self.request.prompt_logprobs.map(|top| {
            let prompt = Arc::clone(&self.request.prompt);
            let mut entries: Vec<_> =
                prompt.iter().map(|&id| self.sampled(id, Some(top))).collect();
            if let Some(first) = entries.first_mut() {
                *first = SampledToken { id: first.id, logprob: None, top: Vec::new() };
            }
            entries
        });
        let cached_tokens = self.usage.cached_tokens;
        if let Err(reason) = self.send(Event::Prefilled { cached_tokens, prompt_logprobs }) {
            return Some(reason);
        }
        if let Some(vector) = &script.vector
            && let Err(reason) = self.send(Event::Vector(Arc::clone(vector)))
        {
            return Some(reason);
        }
        for &id in &script.tokens {
            if self.is_full() {
                return Some(FinishReason::Length);
            }
            if let Err(reason) = self.wait(script.token_delay) {
                return Some(reason);
            }
            let token = self.sampled(id, self.request.logprobs);
            if let Err(reason) = self.send(Event::Token(token)) {
                return Some(reason);
            }
            self.usage.output_tokens += 1;
            self.timings.first_token.get_or_insert(self.start.elapsed());
            if self.request.stop_token_ids.contains(&id) {
                return Some(FinishReason::Stop(id));
            }
        }
        match &script.end {
            // A request for a vector asks for no tokens: it is full from the beginning.
            _ if script.vector.is_none() && self.is_full() => Some(FinishReason::Length),
            ScriptEnd::Length => Some(FinishReason::Length),
            ScriptEnd::Fault(fault) => Some(FinishReason::Fault(fault.clone())),
            ScriptEnd::Silence => self.wait(Duration::MAX).err(),
            ScriptEnd::Drop => None,
        }
    }

    fn is_full(&self) -> bool {
        self.usage.output_tokens >= self.request.max_new_tokens
            || self.usage.prompt_tokens + self.usage.output_tokens >= self.context_length
    }

    /// The i-th alternative is the i-th id after `id`, each half as likely as the one before.
    fn sampled(&self, id: TokenId, top: Option<u8>) -> SampledToken {
        let logprob = |rank: u32| -std::f32::consts::LN_2 * (rank + 1) as f32;
        let top_ids = (0..u32::from(top.unwrap_or(0)))
            .map(|rank| TokenLogprob { id: (id + rank) % self.vocab_size, logprob: logprob(rank) });
        SampledToken { id, logprob: top.map(|_| logprob(0)), top: top_ids.collect() }
    }

    /// Sends `event` once the reader has room.
    fn send(&mut self, event: Event) -> Result<(), FinishReason> {
        let mut event = event;
        loop {
            match self.sender.try_send(event) {
                Ok(()) => return Ok(()),
                Err(refused) => event = refused,
            }
            self.wait(Duration::from_millis(POLL_MS))?;
        }
    }

    /// Sleeps for `delay` unless something ends the request first.
    fn wait(&self, delay: Duration) -> Result<(), FinishReason> {
        let start = Instant::now();
        loop {
            if self.sender.is_cancelled() {
                return Err(FinishReason::Cancelled);
            }
            if self.request.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(FinishReason::Deadline);
            }
            if self.shared.closed.load(Ordering::Acquire) {
                return Err(FinishReason::Fault(EngineFault::ShutDown));
            }
            let left = delay.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(POLL_MS)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::CancelHandle;
    use futures_core::Stream;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    fn info() -> EngineInfo {
        EngineInfo { model: "scripted".to_owned(), context_length: 64, vocab_size: 100 }
    }

    fn request(prompt: &[TokenId], max_new_tokens: u32) -> GenerateRequest {
        GenerateRequest {
            request_id: "r".to_owned(),
            prompt: prompt.into(),
            max_new_tokens,
            ..GenerateRequest::default()
        }
    }

    /// Reads to the end without a runtime.
    fn read(mut stream: EventStream) -> Vec<Event> {
        let mut events = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match Pin::new(&mut stream).poll_next(&mut context) {
                Poll::Ready(Some(event)) => events.push(event),
                Poll::Ready(None) => return events,
                Poll::Pending => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn check(script: Script, request: GenerateRequest, tokens: &[TokenId], reason: &FinishReason) {
        let engine = ScriptedEngine::new(info(), 8, move |_| Ok(script.clone()));
        let events = read(engine.submit(request).unwrap());
        let sampled: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                Event::Token(token) => Some(token.id),
                _ => None,
            })
            .collect();
        assert_eq!(sampled, tokens);
        let Some(Event::Finished(finish)) = events.last() else { panic!("no end: {events:?}") };
        assert_eq!(&finish.reason, reason);
        if !matches!(reason, FinishReason::Fault(_)) {
            assert_eq!(finish.usage.output_tokens as usize, tokens.len());
        }
        assert_eq!(events.iter().filter(|e| matches!(e, Event::Finished(_))).count(), 1);
    }

    #[test]
    fn a_script_ends_where_the_request_says() {
        let tokens = |tokens: &[TokenId]| Script { tokens: tokens.to_vec(), ..Script::default() };
        check(tokens(&[5, 6, 7]), request(&[1], 2), &[5, 6], &FinishReason::Length);
        check(tokens(&[5, 6]), request(&[1], 9), &[5, 6], &FinishReason::Length);
        let stop = GenerateRequest { stop_token_ids: [6].into(), ..request(&[1], 9) };
        check(tokens(&[5, 6, 7]), stop, &[5, 6], &FinishReason::Stop(6));
        let soon = Instant::now() + Duration::from_millis(20);
        let late = GenerateRequest { deadline: Some(soon), ..request(&[1], 9) };
        let silent = Script { end: ScriptEnd::Silence, ..tokens(&[5]) };
        check(silent, late, &[5], &FinishReason::Deadline);
        let fault = EngineFault::Internal("broken".to_owned());
        let broken = Script { end: ScriptEnd::Fault(fault.clone()), ..tokens(&[5]) };
        check(broken, request(&[1], 9), &[5], &FinishReason::Fault(fault));
        let dropped = Script { end: ScriptEnd::Drop, ..tokens(&[5]) };
        let fault = EngineFault::Internal("the engine dropped the request".to_owned());
        check(dropped, request(&[1], 9), &[5], &FinishReason::Fault(fault));
    }

    #[test]
    fn a_vector_stands_in_place_of_tokens() {
        let vector: Arc<[f32]> = [0.5, -1.0].into();
        let script = Script { vector: Some(Arc::clone(&vector)), ..Script::default() };
        let engine = ScriptedEngine::new(info(), 8, move |_| Ok(script.clone()));
        let events = read(engine.submit(request(&[1, 2, 3], 0)).unwrap());
        let [Event::Prefilled { .. }, Event::Vector(given), Event::Finished(finish)] = &events[..]
        else {
            panic!("{events:?}")
        };
        assert_eq!((given, finish.usage.prompt_tokens), (&vector, 3));
    }

    #[test]
    fn a_cancelled_stream_still_tells_its_usage() {
        let script = Script { tokens: vec![3], end: ScriptEnd::Silence, ..Script::default() };
        let engine = ScriptedEngine::new(info(), 8, move |_| Ok(script.clone()));
        let stream = engine.submit(request(&[1, 2], 9)).unwrap();
        let handle: CancelHandle = stream.cancel_handle();
        std::thread::sleep(Duration::from_millis(20));
        handle.cancel();
        let Some(Event::Finished(finish)) = read(stream).pop() else { panic!("no end") };
        assert_eq!(finish.reason, FinishReason::Cancelled);
        assert_eq!((finish.usage.prompt_tokens, finish.usage.output_tokens), (2, 1));
    }

    #[test]
    fn refusals_name_the_limit() {
        let engine = ScriptedEngine::echo(info());
        let refusal = |request| engine.submit(request).map(|_| ()).unwrap_err().to_string();
        assert_eq!(refusal(request(&[], 1)), "`prompt` must hold at least 1 token, not 0");
        assert_eq!(refusal(request(&[100], 1)), "`prompt[0]` must be below 100, not 100");
        let long = vec![0; 65];
        assert_eq!(
            refusal(request(&long, 1)),
            "the prompt has 65 tokens, but the model's context holds 64"
        );
    }
}
