//! The [`Engine`] of this machine: one thread that turns the core's crank, a bounded queue into it, a bounded channel
//! out of it for each request. All thinking is in [`EngineCore`]; here are the clock, the thread and the channels.
//!
//! Invariants: `submit` never blocks; a slow reader pauses its own request and nobody else's; whatever happens, a panic
//! included, every stream ends with `Finished`.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mintage_model::{
    Engine, EngineFault, EngineInfo, EngineLoad, Event, EventSender, EventStream, Finish,
    FinishReason, GenerateRequest, GrammarState, SubmitError, Timings, Usage, event_channel,
    validate,
};

use crate::engine_core::{EngineCore, StepOutcome};
use crate::forward::Forward;
use crate::scheduler::{SchedulerConfig, SequenceId};
use crate::speculation::DraftModel;

/// How long the thread sleeps when all requests wait for their readers, ms.
const PAUSED_POLL_MS: u64 = 2;
/// Failures of consecutive steps after which the engine gives up.
const MAX_CONSECUTIVE_FAULTS: u32 = 3;
/// Events one step may produce besides tokens: `Prefilled`.
const EVENTS_BESIDES_TOKENS: usize = 1;

/// Settings of a [`CpuEngine`].
#[derive(Clone, Debug, PartialEq)]
pub struct CpuEngineConfig {
    /// Limits and targets of the scheduler; `pages` is taken from the model's cache where 0.
    pub scheduler: SchedulerConfig,
    /// Tokens of prompt and answer; the model's own limit and the size of the cache cap it.
    pub context_length: Option<u32>,
    /// Events that may wait for a reader before its request is paused.
    pub event_capacity: usize,
}

impl Default for CpuEngineConfig {
    fn default() -> Self {
        Self { scheduler: SchedulerConfig::default(), context_length: None, event_capacity: 128 }
    }
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The caller's fault: the cache cannot hold one page and one token more.
    #[error("the KV cache has {pages} pages, an engine needs at least 2")]
    TooFewPages {
        /// Pages of the cache.
        pages: u32,
    },
    /// The system gave no thread.
    #[error("no thread for the engine: {0}")]
    Thread(#[from] std::io::Error),
}

/// An engine on a thread of its own. Dropping it ends all requests and the thread.
pub struct CpuEngine {
    info: EngineInfo,
    max_waiting: u32,
    event_capacity: usize,
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
    pending: VecDeque<Submission>,
    state: State,
    /// The core's load after its last step; `pending` is not in it.
    load: EngineLoad,
}

struct Submission {
    request: GenerateRequest,
    /// The state before its first token, where it has a grammar.
    grammar: Option<Box<dyn GrammarState>>,
    submitted: Instant,
    sender: EventSender,
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

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // Nothing panics while it holds the lock, and the data is valid at each step anyway.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CpuEngine {
    /// Starts an engine that serves `forward` under the name `model`.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(
        model: String,
        forward: Box<dyn Forward>,
        config: CpuEngineConfig,
    ) -> Result<Self, StartError> {
        Self::start_with_draft(model, forward, None, config)
    }

    /// The same with a smaller model of the same vocabulary, `draft`, that guesses for the other. Its own pages bound
    /// how much it guesses, nothing else.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_with_draft(
        model: String,
        forward: Box<dyn Forward>,
        draft: Option<Box<dyn Forward>>,
        config: CpuEngineConfig,
    ) -> Result<Self, StartError> {
        let mut scheduler = config.scheduler;
        let pages = u32::try_from(forward.pages()).unwrap_or(u32::MAX);
        scheduler.pages = if scheduler.pages == 0 { pages } else { scheduler.pages.min(pages) };
        if scheduler.pages < 2 {
            return Err(StartError::TooFewPages { pages: scheduler.pages });
        }
        let decoder = forward.config();
        // One page is kept in hand: a sequence may briefly need a page beside its cached prefix.
        let cache_tokens = (scheduler.pages as usize - 1) * scheduler.page_tokens;
        let asked = config.context_length.map_or(usize::MAX, |tokens| tokens as usize);
        let context_length = decoder.context_length.min(cache_tokens).min(asked);
        let info = EngineInfo {
            model,
            context_length: u32::try_from(context_length).unwrap_or(u32::MAX),
            vocab_size: u32::try_from(decoder.vocab_size).unwrap_or(u32::MAX),
        };
        let max_waiting = u32::try_from(scheduler.max_waiting).unwrap_or(u32::MAX);
        let page_tokens = scheduler.page_tokens;
        let draft = draft.map(|draft| {
            let pages = u32::try_from(draft.pages()).unwrap_or(u32::MAX);
            DraftModel::new(draft, pages, page_tokens)
        });
        let core = EngineCore::new(forward, scheduler, info.context_length).with_draft_model(draft);
        let event_capacity =
            config.event_capacity.max(EVENTS_BESIDES_TOKENS + core.max_tokens_a_step());
        let shared = Arc::new(Shared::default());
        shared.inbox().load = core.load();
        let worker = Worker {
            core,
            senders: HashMap::new(),
            shared: Arc::clone(&shared),
            start: Instant::now(),
            consecutive_faults: 0,
        };
        let thread = std::thread::Builder::new()
            .name("mintage-engine".to_owned())
            .spawn(move || worker.guarded_run())?;
        Ok(Self { info, max_waiting, event_capacity, shared, thread: Mutex::new(Some(thread)) })
    }

    /// Takes no new requests, lets the present ones finish for at most `drain`, ends the rest with
    /// [`EngineFault::ShutDown`], and returns when the thread has ended. Blocks; called again, it waits too.
    pub fn shutdown(&self, drain: Duration) {
        let until = Instant::now().checked_add(drain);
        {
            let mut inbox = self.shared.inbox();
            if inbox.state != State::Stopped {
                let far = || Instant::now() + Duration::from_secs(24 * 3600);
                inbox.state = State::Draining(until.unwrap_or_else(far));
            }
        }
        self.shared.wake.notify_all();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread panicked");
        }
    }
}

impl Engine for CpuEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn submit(&self, request: GenerateRequest) -> Result<EventStream, SubmitError> {
        validate(&self.info, &request)?;
        let grammar = request.grammar.as_ref().map(|grammar| grammar.start()).transpose();
        let grammar = grammar.map_err(|fault| SubmitError::Invalid {
            field: "grammar".to_owned(),
            message: fault.to_string(),
        })?;
        let (sender, stream) = event_channel(self.event_capacity);
        {
            let mut inbox = self.shared.inbox();
            if inbox.state != State::Open {
                return Err(SubmitError::ShuttingDown);
            }
            let waiting = inbox.load.waiting + inbox.pending.len() as u32;
            if waiting >= self.max_waiting {
                return Err(SubmitError::QueueFull { waiting, limit: self.max_waiting });
            }
            let submitted = Instant::now();
            inbox.pending.push_back(Submission { request, grammar, submitted, sender });
        }
        self.shared.wake.notify_all();
        Ok(stream)
    }

    fn load(&self) -> EngineLoad {
        let inbox = self.shared.inbox();
        EngineLoad { waiting: inbox.load.waiting + inbox.pending.len() as u32, ..inbox.load }
    }
}

impl Drop for CpuEngine {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}

/// What the thread owns.
struct Worker {
    core: EngineCore,
    senders: HashMap<SequenceId, EventSender>,
    shared: Arc<Shared>,
    start: Instant,
    consecutive_faults: u32,
}

impl Worker {
    /// Runs, and closes the engine whatever ends it: a panic between steps drops the worker, and with it the senders,
    /// which end their streams; what still lies in the inbox is ended here.
    fn guarded_run(self) {
        let shared = Arc::clone(&self.shared);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run())) {
            tracing::error!(error = panic_text(panic.as_ref()), "the engine's thread panicked");
            close(&shared);
        }
    }

    fn run(mut self) {
        loop {
            let submissions: Vec<_> = self.shared.inbox().pending.drain(..).collect();
            for submission in submissions {
                self.take(submission);
            }
            self.end_unwanted();
            if self.must_stop() {
                break;
            }
            let outcome = if self.senders.is_empty() { StepOutcome::Idle } else { self.step() };
            self.publish_load();
            if outcome == StepOutcome::Idle {
                self.wait();
            }
        }
        self.stop();
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn take(&mut self, submission: Submission) {
        let Submission { request, grammar, submitted, sender } = submission;
        let since_start = |at: Instant| at.saturating_duration_since(self.start);
        let deadline = request.deadline.map(since_start);
        match self.core.submit(request, grammar, deadline, since_start(submitted)) {
            Some(id) => {
                self.senders.insert(id, sender);
            }
            None => finish_untouched(sender, EngineFault::Internal("the queue is full".to_owned())),
        }
    }

    /// Ends what was cancelled or is overdue, and notes whose reader is slow.
    fn end_unwanted(&mut self) {
        let now = self.now();
        let cancelled = self.senders.iter().filter(|(_, sender)| sender.is_cancelled());
        for id in cancelled.map(|(&id, _)| id).collect::<Vec<_>>() {
            let emit = &mut |id, event| deliver(&mut self.senders, id, event);
            self.core.end(id, FinishReason::Cancelled, now, emit);
        }
        self.core.end_overdue(now, &mut |id, event| deliver(&mut self.senders, id, event));
        let needed = EVENTS_BESIDES_TOKENS + self.core.max_tokens_a_step();
        for (&id, sender) in &self.senders {
            self.core.set_paused(id, sender.room() < needed);
        }
    }

    /// One step; a panic or a refusal in it ends all requests and leaves an empty engine.
    fn step(&mut self) -> StepOutcome {
        let start = self.start;
        let senders = &mut self.senders;
        let core = &mut self.core;
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            core.step(&|| start.elapsed(), &mut |id, event| deliver(senders, id, event))
        }));
        let text = match stepped {
            Ok(Ok(outcome)) => {
                self.consecutive_faults = 0;
                return outcome;
            }
            Ok(Err(error)) => error.to_string(),
            Err(panic) => format!("a step panicked: {}", panic_text(panic.as_ref())),
        };
        tracing::error!(error = %text, requests = self.senders.len(), "the engine failed and starts over");
        self.consecutive_faults += 1;
        self.start_over(&EngineFault::Internal(text));
        StepOutcome::Idle
    }

    fn start_over(&mut self, fault: &EngineFault) {
        let now = self.now();
        let senders = &mut self.senders;
        let core = &mut self.core;
        let reset = catch_unwind(AssertUnwindSafe(|| {
            core.reset(fault, now, &mut |id, event| deliver(senders, id, event));
        }));
        if reset.is_err() {
            self.consecutive_faults = MAX_CONSECUTIVE_FAULTS;
        }
        for (_, sender) in self.senders.drain() {
            finish_untouched(sender, fault.clone());
        }
    }

    fn publish_load(&self) {
        let load = self.core.load();
        self.shared.inbox().load = load;
    }

    /// Whether the thread has to end now.
    fn must_stop(&self) -> bool {
        if self.consecutive_faults >= MAX_CONSECUTIVE_FAULTS {
            tracing::error!(steps = MAX_CONSECUTIVE_FAULTS, "the engine keeps failing and stops");
            return true;
        }
        let inbox = self.shared.inbox();
        match inbox.state {
            State::Open => false,
            State::Stopped => true,
            State::Draining(until) => {
                let done = self.senders.is_empty() && inbox.pending.is_empty();
                done || Instant::now() >= until
            }
        }
    }

    /// Sleeps until there may be something to do; before it sleeps for long, verifies the core.
    fn wait(&mut self) {
        if self.senders.is_empty() {
            if let Err(breach) = self.core.verify() {
                tracing::error!(%breach, "an invariant of the idle engine is broken, it starts over");
                self.start_over(&EngineFault::Internal(breach));
            }
            self.publish_load();
        }
        let inbox = self.shared.inbox();
        if !inbox.pending.is_empty() {
            return;
        }
        if !self.senders.is_empty() {
            // Readers do not wake the thread: it looks.
            let timeout = Duration::from_millis(PAUSED_POLL_MS);
            drop(self.shared.wake.wait_timeout(inbox, timeout));
        } else if inbox.state == State::Open {
            drop(self.shared.wake.wait(inbox));
        }
    }

    /// Refuses what comes, ends what is left.
    fn stop(&mut self) {
        close(&self.shared);
        self.start_over(&EngineFault::ShutDown);
        self.publish_load();
    }
}

/// Refuses what comes and ends what nobody has looked at yet.
fn close(shared: &Shared) {
    let pending: Vec<_> = {
        let mut inbox = shared.inbox();
        inbox.state = State::Stopped;
        inbox.pending.drain(..).collect()
    };
    for submission in pending {
        finish_untouched(submission.sender, EngineFault::ShutDown);
    }
}

/// Sends an event to its reader. There is room: a request without room is paused before the step.
fn deliver(senders: &mut HashMap<SequenceId, EventSender>, id: SequenceId, event: Event) {
    match event {
        Event::Finished(finish) => {
            if let Some(sender) = senders.remove(&id) {
                sender.finish(finish);
            }
        }
        event => {
            let Some(sender) = senders.get(&id) else { return };
            if sender.try_send(event).is_err() && !sender.is_cancelled() {
                tracing::error!(?id, "an event found no room and is lost");
            }
        }
    }
}

/// Ends the stream of a request that the core does not know (any more).
pub(crate) fn finish_untouched(sender: EventSender, fault: EngineFault) {
    sender.finish(Finish {
        reason: FinishReason::Fault(fault),
        usage: Usage::default(),
        timings: Timings::default(),
    });
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "without a text",
    }
}

#[cfg(test)]
mod tests;
