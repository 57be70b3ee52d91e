//! An [`Encode`] on a thread of its own, behind the contract of every engine: a prompt in, [`Event::Vector`] out.
//!
//! No token is sampled: `max_new_tokens` must be 0. A step takes whole sequences up to a number of tokens, from the least
//! served tenant first, those that nobody waits for last. Invariant: every stream ends with `Finished`, and what it counts
//! is what was computed.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mintage_model::{
    Engine, EngineFault, EngineInfo, EngineLoad, Event, EventSender, EventStream, Finish,
    FinishReason, GenerateRequest, Priority, SubmitError, Timings, TokenId, Usage, event_channel,
    validate,
};

use super::Encode;
use crate::cpu_engine::{StartError, finish_untouched, panic_text};
use crate::scheduler::fair_share::FairShare;

/// Steps that fail one after the other before the engine gives up.
const MAX_CONSECUTIVE_FAULTS: u32 = 3;
/// Events of one request besides the last.
const EVENTS: usize = 2;

/// Settings of an [`EncoderEngine`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncoderEngineConfig {
    /// Tokens of one step; a longer sequence has a step of its own.
    pub step_tokens: usize,
    /// Sequences that may wait; one more is refused.
    pub max_waiting: usize,
    /// Tokens of the longest sequence; the model's own limit caps it.
    pub max_tokens: Option<u32>,
}

impl Default for EncoderEngineConfig {
    fn default() -> Self {
        Self { step_tokens: 1024, max_waiting: 16_384, max_tokens: None }
    }
}

/// An engine that makes vectors. Dropping it ends all requests and the thread.
pub struct EncoderEngine {
    info: EngineInfo,
    max_waiting: usize,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
}

#[derive(Default)]
struct Inbox {
    /// By tenant; no queue is empty. First what somebody waits for, then the rest.
    queues: [BTreeMap<u64, VecDeque<Waiting>>; 2],
    shares: FairShare,
    /// Sequences in `queues`.
    waiting: usize,
    state: State,
    load: EngineLoad,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// Takes nothing new, and ends what is left at this time.
    Draining(Instant),
    /// The thread has ended or is about to.
    Stopped,
}

/// A sequence in the queue.
struct Waiting {
    prompt: Arc<[TokenId]>,
    deadline: Option<Instant>,
    submitted: Instant,
    sender: EventSender,
}

impl Waiting {
    /// Ends it without having computed anything.
    fn end(self, reason: FinishReason) {
        let total = self.submitted.elapsed();
        let timings = Timings { queued: total, first_token: None, total };
        self.sender.finish(Finish { reason, usage: Usage::default(), timings });
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // Nothing panics while it holds the lock, and the data is valid at each step anyway.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox {
    fn push(&mut self, request: GenerateRequest, sender: EventSender) {
        let GenerateRequest { prompt, tenant, weight, priority, deadline, .. } = request;
        self.shares.enter(tenant, weight);
        self.waiting += 1;
        let waiting = Waiting { prompt, deadline, submitted: Instant::now(), sender };
        let queue = &mut self.queues[usize::from(priority == Priority::Batch)];
        queue.entry(tenant).or_default().push_back(waiting);
    }

    /// Takes out what nobody wants any more, with why.
    fn unwanted(&mut self, now: Instant) -> Vec<(Waiting, FinishReason)> {
        let mut out = Vec::new();
        for queue in &mut self.queues {
            for (tenant, waiting) in queue.iter_mut() {
                let mut kept = VecDeque::with_capacity(waiting.len());
                for one in waiting.drain(..) {
                    let reason = if one.sender.is_cancelled() {
                        FinishReason::Cancelled
                    } else if one.deadline.is_some_and(|deadline| deadline <= now) {
                        FinishReason::Deadline
                    } else {
                        kept.push_back(one);
                        continue;
                    };
                    self.shares.leave(*tenant);
                    self.waiting -= 1;
                    out.push((one, reason));
                }
                *waiting = kept;
            }
            queue.retain(|_, waiting| !waiting.is_empty());
        }
        out
    }

    /// The sequences of the next step: at least one where any waits, at most `step_tokens` tokens beyond it.
    fn take_step(&mut self, step_tokens: usize) -> Vec<Waiting> {
        let (mut step, mut tokens) = (Vec::new(), 0);
        for queue in &mut self.queues {
            while let Some(tenant) = queue.keys().copied().min_by_key(|t| self.shares.served(*t)) {
                let Some(waiting) = queue.get_mut(&tenant) else { break };
                let next = waiting.front().map_or(0, |next| next.prompt.len());
                if !step.is_empty() && tokens + next > step_tokens {
                    return step;
                }
                step.extend(waiting.pop_front());
                if waiting.is_empty() {
                    queue.remove(&tenant);
                }
                tokens += next;
                self.waiting -= 1;
                self.shares.charge(tenant, next as u64);
                self.shares.leave(tenant);
            }
        }
        step
    }
}

impl EncoderEngine {
    /// Starts an engine that serves `encode` under the name `model`.
    ///
    /// # Errors
    /// [`StartError::Thread`] where the system gives no thread.
    pub fn start(
        model: String,
        encode: Box<dyn Encode>,
        config: &EncoderEngineConfig,
    ) -> Result<Self, StartError> {
        let shape = encode.shape();
        let asked = config.max_tokens.map_or(usize::MAX, |tokens| tokens as usize);
        let info = EngineInfo {
            model,
            context_length: u32::try_from(shape.max_tokens.min(asked)).unwrap_or(u32::MAX),
            vocab_size: u32::try_from(shape.vocab_size).unwrap_or(u32::MAX),
        };
        let shared = Arc::new(Shared::default());
        let worker = Worker {
            encode,
            width: shape.width.max(1),
            step_tokens: config.step_tokens,
            shared: Arc::clone(&shared),
            faults: 0,
            vectors: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("mintage-encoder".to_owned())
            .spawn(move || worker.run())?;
        let max_waiting = config.max_waiting;
        Ok(Self { info, max_waiting, shared, thread: Mutex::new(Some(thread)) })
    }

    /// Takes no new requests, lets the present ones finish for at most `drain`, ends the rest with
    /// [`EngineFault::ShutDown`], and returns when the thread has ended. Blocks; called again, it waits too.
    pub fn shutdown(&self, drain: Duration) {
        {
            let mut inbox = self.shared.inbox();
            if inbox.state != State::Stopped {
                let now = Instant::now();
                inbox.state = State::Draining(now.checked_add(drain).unwrap_or(now));
            }
        }
        self.shared.wake.notify_all();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the encoder's thread panicked");
        }
    }
}

impl Engine for EncoderEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn submit(&self, request: GenerateRequest) -> Result<EventStream, SubmitError> {
        validate(&self.info, &request)?;
        let invalid = |field: &str, message: String| {
            Err(SubmitError::Invalid { field: field.to_owned(), message })
        };
        if request.max_new_tokens > 0 {
            let given = request.max_new_tokens;
            return invalid(
                "max_new_tokens",
                format!("must be 0 for a model that makes vectors, not {given}"),
            );
        }
        if request.prompt_logprobs.is_some() {
            let message = "is not there for a model that makes vectors".to_owned();
            return invalid("prompt_logprobs", message);
        }
        let (sender, stream) = event_channel(EVENTS);
        {
            let mut inbox = self.shared.inbox();
            if inbox.state != State::Open {
                return Err(SubmitError::ShuttingDown);
            }
            if inbox.waiting >= self.max_waiting {
                return Err(SubmitError::QueueFull {
                    waiting: u32::try_from(inbox.waiting).unwrap_or(u32::MAX),
                    limit: u32::try_from(self.max_waiting).unwrap_or(u32::MAX),
                });
            }
            inbox.push(request, sender);
        }
        self.shared.wake.notify_all();
        Ok(stream)
    }

    fn load(&self) -> EngineLoad {
        let inbox = self.shared.inbox();
        EngineLoad { waiting: u32::try_from(inbox.waiting).unwrap_or(u32::MAX), ..inbox.load }
    }
}

impl Drop for EncoderEngine {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}

/// What the thread owns.
struct Worker {
    encode: Box<dyn Encode>,
    width: usize,
    step_tokens: usize,
    shared: Arc<Shared>,
    /// Steps that failed since the last that did not.
    faults: u32,
    vectors: Vec<f32>,
}

impl Worker {
    fn run(mut self) {
        while let Some((step, unwanted)) = self.wait() {
            for (waiting, reason) in unwanted {
                waiting.end(reason);
            }
            if !step.is_empty() {
                self.step(step);
            }
            if self.faults >= MAX_CONSECUTIVE_FAULTS {
                tracing::error!(
                    steps = MAX_CONSECUTIVE_FAULTS,
                    "the encoder keeps failing and stops"
                );
                break;
            }
        }
        let left: Vec<Waiting> = {
            let mut inbox = self.shared.inbox();
            inbox.state = State::Stopped;
            inbox.waiting = 0;
            inbox.shares = FairShare::default();
            let queues = std::mem::take(&mut inbox.queues);
            queues.into_iter().flat_map(BTreeMap::into_values).flatten().collect()
        };
        for waiting in left {
            waiting.end(FinishReason::Fault(EngineFault::ShutDown));
        }
    }

    /// Sleeps until there is something to do; `None`: the engine stops.
    #[allow(clippy::type_complexity, reason = "what to compute, and what to end with why")]
    fn wait(&mut self) -> Option<(Vec<Waiting>, Vec<(Waiting, FinishReason)>)> {
        let mut inbox = self.shared.inbox();
        loop {
            let now = Instant::now();
            match inbox.state {
                State::Stopped => return None,
                State::Draining(until) if inbox.waiting == 0 || now >= until => return None,
                _ => {}
            }
            if inbox.waiting > 0 {
                let unwanted = inbox.unwanted(now);
                let step = inbox.take_step(self.step_tokens);
                inbox.load.running = u32::try_from(step.len()).unwrap_or(u32::MAX);
                return Some((step, unwanted));
            }
            inbox = self.shared.wake.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn step(&mut self, step: Vec<Waiting>) {
        let started = Instant::now();
        let prompts: Vec<&[TokenId]> = step.iter().map(|waiting| &*waiting.prompt).collect();
        let (encode, vectors) = (&mut self.encode, &mut self.vectors);
        let computed = catch_unwind(AssertUnwindSafe(|| encode.encode(&prompts, vectors)));
        let fault = match computed {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(format!("a step panicked: {}", panic_text(panic.as_ref()))),
        };
        let forward = started.elapsed();
        self.faults = fault.as_ref().map_or(0, |_| self.faults + 1);
        {
            // Before the answers, so that whoever has one finds it counted.
            let load = &mut self.shared.inbox().load;
            load.running = 0;
            load.steps += 1;
            load.forward_time += forward;
            load.step_time += forward;
        }
        if let Some(text) = fault {
            tracing::error!(error = %text, sequences = step.len(), "the encoder failed");
            for waiting in step {
                finish_untouched(waiting.sender, EngineFault::Internal(text.clone()));
            }
            return;
        }
        for (waiting, vector) in step.into_iter().zip(self.vectors.chunks_exact(self.width)) {
            deliver(waiting, vector, started);
        }
    }
}

/// Sends a vector and ends the stream. There is room for all of it, or nobody who reads.
fn deliver(waiting: Waiting, vector: &[f32], started: Instant) {
    let prefilled = Event::Prefilled { cached_tokens: 0, prompt_logprobs: None };
    for event in [prefilled, Event::Vector(vector.into())] {
        // A reader that went away wants no more events; the end still counts what was computed.
        let _ = waiting.sender.try_send(event);
    }
    let usage = Usage {
        prompt_tokens: u32::try_from(waiting.prompt.len()).unwrap_or(u32::MAX),
        ..Usage::default()
    };
    let timings = Timings {
        queued: started.saturating_duration_since(waiting.submitted),
        first_token: None,
        total: waiting.submitted.elapsed(),
    };
    waiting.sender.finish(Finish { reason: FinishReason::Length, usage, timings });
}

#[cfg(test)]
mod tests;
