//! The one place where a request's usage is taken: from `Event::Finished`, however the request ends; of a service behind
//! a model's name, from what [`Relayed`] says.
//!
//! What is billed: the prompt once it was computed, and every token sampled, but none behind the one that we ended the
//! answer with (a stop string, the only call wanted): how far the engine runs on before it sees that is chance. Nothing where a fault of ours came before
//! the first token or broke an answer that is sent as a whole; of a stream that it broke, what was sent.
//!
//! Invariants: each admitted request is settled exactly once, before its client sees the end of it. A reader that goes
//! away cancels, and a task of our own reads on to `Finished`, because only that knows how many tokens were sampled.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::Stream;
use futures_util::StreamExt;
use mintage_ledger::{KeptAnswer, Pending, Principal, Receipt, TokenUsage};
use mintage_model::{
    Engine, EngineFault, Event, EventStream, Finish, FinishReason, GenerateRequest, SubmitError,
    Thinking, Timings, TokenId, Usage,
};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::error::ApiError;
use crate::metrics::{ModelMetrics, Outcome};
use crate::till::{self, Admitted, Settled, unix_ms};

/// An engine answers a cancel within a step; one that does not answer in this time is broken.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What is known of a request before any engine sees it.
#[derive(Clone, Debug)]
pub(crate) struct RequestFacts {
    pub(crate) request_id: String,
    pub(crate) response_id: String,
    pub(crate) principal: Arc<Principal>,
    pub(crate) model: String,
    pub(crate) arrival: Instant,
    pub(crate) streamed: bool,
    /// Nobody waits for it, so how long it took says nothing.
    pub(crate) batch: bool,
    /// Choices of each prompt: they share it, and it is counted once.
    pub(crate) n: u32,
}

/// Meters the choices of one HTTP request, and settles them together: by [`Meter::settle`] where an answer is complete,
/// else when the last of them has ended.
#[derive(Clone)]
pub(crate) struct Meter {
    record: Arc<Record>,
    metrics: Arc<ModelMetrics>,
    settling: TaskTracker,
    span: tracing::Span,
}

impl Meter {
    pub(crate) fn new(
        facts: RequestFacts,
        admitted: Admitted,
        metrics: Arc<ModelMetrics>,
        settling: TaskTracker,
    ) -> Self {
        let totals = Totals { admitted: Some(admitted), ..Totals::default() };
        let record = Arc::new(Record { facts, arrival_ms: unix_ms(), totals: Mutex::new(totals) });
        Self { record, metrics, settling, span: tracing::Span::current() }
    }

    /// Submits one choice; `thinking` tells tokens of thinking apart, where the model thinks.
    pub(crate) fn submit(
        &self,
        engine: &dyn Engine,
        index: u32,
        request: GenerateRequest,
        thinking: Option<Thinking>,
    ) -> Result<MeteredStream, SubmitError> {
        let max_new_tokens = request.max_new_tokens;
        let prompt_tokens = request.prompt.len() as u64;
        let events = engine.submit(request)?;
        self.metrics.submitted(max_new_tokens);
        // A prompt that several choices share is counted with the first of them.
        let prompt_tokens =
            if index.is_multiple_of(self.record.facts.n) { prompt_tokens } else { 0 };
        let account = Account {
            meter: self.clone(),
            prompt_tokens,
            prefilled: None,
            polled: 0,
            thought: 0,
            thinking,
            stopped_at: None,
            last_token: None,
        };
        Ok(MeteredStream { events: Some(events), account: Some(account) })
    }

    /// A service is asked for at most so many tokens a choice.
    pub(crate) fn relaying(&self, max_output_tokens: u32) {
        self.metrics.submitted(max_output_tokens);
    }

    /// A part of a service's answer was taken: at least so many tokens, of at most `most` in all. `prompt_tokens` are those
    /// counted here.
    pub(crate) fn relayed_part(&self, prompt_tokens: u64, tokens: u64, most: u64) {
        if tokens == 0 {
            return;
        }
        let facts = &self.record.facts;
        let mut totals = self.record.totals();
        // As with tokens of our own: the journal never runs ahead of the client.
        let sent = totals.usage;
        if let Some(admitted) = totals.admitted.as_mut().filter(|_| facts.streamed) {
            admitted.progress(sent);
        }
        if totals.usage.output == 0 {
            totals.usage.input = prompt_tokens;
            if !facts.batch {
                self.metrics.first_token(facts.arrival.elapsed());
            }
        }
        totals.usage.output = totals.usage.output.saturating_add(tokens).min(most);
    }

    /// The end of a service's answer; once a request.
    pub(crate) fn relayed(&self, relayed: Relayed) {
        let mut totals = self.record.totals();
        if let Some(admitted) = &mut totals.admitted {
            admitted.metered_by(relayed.metered_by);
        }
        if let Some(usage) = relayed.usage {
            totals.usage = usage;
        }
        let count = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
        let usage = Usage {
            prompt_tokens: count(totals.usage.prompt()),
            cached_tokens: count(totals.usage.cached_input),
            output_tokens: count(totals.usage.completion()),
        };
        let timings =
            Timings { queued: Duration::ZERO, first_token: relayed.first, total: relayed.total };
        let since_arrival = self.record.facts.arrival.elapsed();
        self.metrics.finished(relayed.outcome, usage, timings, since_arrival);
        totals.choices = relayed.choices;
        totals.first_token = relayed.first;
        totals.outcome = Some(relayed.outcome);
        totals.fault = relayed.fault;
    }

    /// Runs what outlives the client.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.settling.spawn(task.instrument(self.span.clone()));
    }

    /// What is counted so far.
    pub(crate) fn so_far(&self) -> TokenUsage {
        self.record.totals().usage
    }

    /// Nobody gets an answer for this request: it costs nothing.
    pub(crate) fn forgive(&self) {
        self.record.totals().forgiven = true;
    }

    /// Posts what the choices used, all of which have ended. `answer` makes what is kept for repetitions of the request.
    pub(crate) fn settle(
        &self,
        answer: impl FnOnce(&Settled) -> Result<Option<KeptAnswer>, ApiError>,
    ) -> Result<Settling, ApiError> {
        let mut totals = self.record.totals();
        let usage = totals.usage;
        let Some(admitted) = totals.admitted.take() else {
            return Err(ApiError::internal("a request was settled twice"));
        };
        let kept = answer(&admitted.preview(usage))?;
        let pending = admitted.settle(usage, self.record.outcome(&totals), kept);
        Ok(Settling(pending))
    }
}

/// What a service's answer came to.
#[derive(Debug)]
pub(crate) struct Relayed {
    /// `None`: what was taken of it.
    pub(crate) usage: Option<TokenUsage>,
    /// Who counted, for the record.
    pub(crate) metered_by: &'static str,
    pub(crate) outcome: Outcome,
    /// Choices that came to their end.
    pub(crate) choices: u32,
    /// What was wrong with it, for the log.
    pub(crate) fault: Option<String>,
    /// From the first attempt to the first token.
    pub(crate) first: Option<Duration>,
    /// From the first attempt to the end.
    pub(crate) total: Duration,
}

/// Resolves when what was posted is durable. Dropping it undoes nothing.
pub(crate) struct Settling(Option<Pending<Receipt>>);

impl Future for Settling {
    type Output = Result<(), ApiError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(pending) = &mut self.0 else { return Poll::Ready(Ok(())) };
        let durable = std::task::ready!(Pin::new(pending).poll(cx));
        Poll::Ready(durable.map(|_| ()).map_err(|trouble| till::unavailable(&trouble)))
    }
}

/// What a request's choices add up to.
struct Record {
    facts: RequestFacts,
    /// Milliseconds since 1970.
    arrival_ms: u64,
    totals: Mutex<Totals>,
}

#[derive(Default)]
struct Totals {
    /// `None` once settled.
    admitted: Option<Admitted>,
    /// It costs nothing, whatever was computed.
    forgiven: bool,
    choices: u32,
    /// What is billed. While choices run: what the client has been sent.
    usage: TokenUsage,
    queued: Duration,
    first_token: Option<Duration>,
    outcome: Option<Outcome>,
    fault: Option<String>,
}

impl Record {
    fn totals(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outcome(&self, totals: &Totals) -> mintage_ledger::Outcome {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        mintage_ledger::Outcome {
            first_token_ms: totals.first_token.map_or(0, |d| self.arrival_ms + ms(d)),
            end_ms: unix_ms(),
            finish: totals.outcome.map_or("", Outcome::as_str).into(),
            label: "".into(),
        }
    }

    /// Settles what nobody settled: the reader went away, or the answer broke.
    fn close(&mut self) {
        let facts_streamed = self.facts.streamed;
        let mut totals =
            std::mem::take(self.totals.get_mut().unwrap_or_else(PoisonError::into_inner));
        if let Some(admitted) = totals.admitted.take() {
            // A whole answer that a fault of ours broke was never sent.
            let broken = totals.outcome == Some(Outcome::Error) && !facts_streamed;
            if totals.forgiven || broken || totals.usage == TokenUsage::default() {
                totals.usage = TokenUsage::default();
                admitted.void();
            } else {
                // It stands from here on, and the ledger sees to it that it is written.
                let outcome = self.outcome(&totals);
                drop(admitted.settle(totals.usage, outcome, None));
            }
        }
        self.totals = Mutex::new(totals);
    }
}

impl Drop for Record {
    /// The last choice has ended: settles, and writes the one structured line of a request that reached an engine.
    fn drop(&mut self) {
        self.close();
        let totals = self.totals.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(outcome) = totals.outcome else { return };
        let facts = &self.facts;
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            request_id = %facts.request_id,
            response_id = %facts.response_id,
            organisation = %facts.principal.organisation,
            project = facts.principal.project.as_deref(),
            key_id = %facts.principal.key,
            model = %facts.model,
            streamed = facts.streamed,
            batch = facts.batch,
            choices = totals.choices,
            outcome = outcome.as_str(),
            prompt_tokens = totals.usage.prompt(),
            cached_tokens = totals.usage.cached_input,
            output_tokens = totals.usage.completion(),
            thinking_tokens = totals.usage.thinking,
            queued_ms = ms(totals.queued),
            first_token_ms = totals.first_token.map(ms),
            total_ms = ms(facts.arrival.elapsed()),
            fault = totals.fault.as_deref(),
            "metered"
        );
    }
}

/// One choice's account, closed exactly once by [`Account::settle`].
struct Account {
    meter: Meter,
    /// Tokens of the prompt, where they count with this choice.
    prompt_tokens: u64,
    /// Tokens of the prompt found in the cache, once it is computed: from here on it costs.
    prefilled: Option<u64>,
    /// Tokens counted one by one.
    polled: u64,
    /// Of those, tokens of thinking.
    thought: u64,
    /// Where the choice stands, where the model thinks. It sees all tokens, also those that nobody reads any more.
    thinking: Option<Thinking>,
    /// Tokens counted when we ended the answer: the cancel that follows is a stop, not an abort.
    stopped_at: Option<u64>,
    last_token: Option<Instant>,
}

impl Account {
    fn prefilled(&mut self, cached_tokens: u32) {
        let cached = u64::from(cached_tokens).min(self.prompt_tokens);
        if self.prefilled.replace(cached).is_none() {
            let usage = &mut self.meter.record.totals().usage;
            usage.input += self.prompt_tokens - cached;
            usage.cached_input += cached;
        }
    }

    /// Whether the token is thinking's. Called once for each.
    fn thinks(&mut self, token: TokenId) -> bool {
        self.thinking.as_mut().is_some_and(|thinking| thinking.push(token))
    }

    fn token(&mut self, token: TokenId) {
        if self.stopped_at.is_some() {
            return;
        }
        let thinks = self.thinks(token);
        let record = &self.meter.record;
        {
            let mut totals = record.totals();
            // What came before this token has been taken from us; the journal never runs ahead of the client. A whole
            // answer is sent at its end or never, so a crash before that bills nothing.
            let sent = totals.usage;
            if let Some(admitted) = totals.admitted.as_mut().filter(|_| record.facts.streamed) {
                admitted.progress(sent);
            }
            let class = if thinks { &mut totals.usage.thinking } else { &mut totals.usage.output };
            *class += 1;
        }
        self.polled += 1;
        self.thought += u64::from(thinks);
        if record.facts.batch {
            return;
        }
        let now = Instant::now();
        match self.last_token.replace(now) {
            Some(last) => self.meter.metrics.next_token(now.saturating_duration_since(last)),
            None => {
                self.meter.metrics.first_token(now.saturating_duration_since(record.facts.arrival));
            }
        }
    }

    /// Tokens were counted one by one for the journal; the engine's own count is the one that holds.
    fn settle(self, finish: &Finish) {
        let outcome = match &finish.reason {
            FinishReason::Stop(_) => Outcome::Stop,
            FinishReason::Length => Outcome::Length,
            // A stop string may be found in the very token that a deadline or a shutdown would have ended with.
            _ if self.stopped_at.is_some() => Outcome::Stop,
            FinishReason::Cancelled => Outcome::Abort,
            FinishReason::Deadline | FinishReason::Fault(_) => Outcome::Error,
        };
        let record = &self.meter.record;
        let since_arrival = record.facts.arrival.elapsed();
        self.meter.metrics.finished(outcome, finish.usage, finish.timings, since_arrival);
        let mut totals = record.totals();
        totals.choices += 1;
        let is_fault = matches!(finish.reason, FinishReason::Fault(_)) && self.stopped_at.is_none();
        if let Some(cached) = self.prefilled {
            let usage = &mut totals.usage;
            // Counted anew below.
            usage.input -= self.prompt_tokens - cached;
            usage.cached_input -= cached;
            if !is_fault {
                let cached = u64::from(finish.usage.cached_tokens).min(self.prompt_tokens);
                usage.input += self.prompt_tokens - cached;
                usage.cached_input += cached;
                usage.output -= self.polled - self.thought;
                usage.thinking -= self.thought;
                let sampled = u64::from(finish.usage.output_tokens);
                let sampled = self.stopped_at.map_or(sampled, |most| sampled.min(most));
                let thought = match &self.thinking {
                    Some(thinking) if thinking.is_inside() => sampled,
                    Some(thinking) => u64::from(thinking.count()).min(sampled),
                    None => 0,
                };
                usage.thinking += thought;
                usage.output += sampled - thought;
            } else if self.polled > 0 {
                // A fault of ours: nothing beyond what was sent, and nothing at all before the first token.
                usage.input += self.prompt_tokens - cached;
                usage.cached_input += cached;
            }
        }
        totals.queued = totals.queued.max(finish.timings.queued);
        totals.first_token = match (totals.first_token, finish.timings.first_token) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if totals.outcome.is_none_or(|known| (known as u8) < outcome as u8) {
            totals.outcome = Some(outcome);
        }
        if let FinishReason::Fault(fault) = &finish.reason {
            totals.fault = Some(fault.to_string());
        }
    }
}

/// The events of one choice; ends with `Finished`, always.
pub(crate) struct MeteredStream {
    /// `None` once finished.
    events: Option<EventStream>,
    account: Option<Account>,
}

impl MeteredStream {
    /// The answer is complete: the engine may stop, and this counts as a stop.
    pub(crate) fn stop(&mut self) {
        if let Some(account) = &mut self.account {
            account.stopped_at.get_or_insert(account.polled);
        }
        self.cancel();
    }

    fn cancel(&self) {
        if let Some(events) = &self.events {
            events.cancel();
        }
    }

    fn settle(&mut self, finish: &Finish) {
        self.events = None;
        if let Some(account) = self.account.take() {
            account.settle(finish);
        }
    }
}

impl Stream for MeteredStream {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let Some(events) = &mut self.events else { return Poll::Ready(None) };
        let event = match std::task::ready!(events.poll_next_unpin(cx)) {
            Some(event) => event,
            None => Event::Finished(lost()),
        };
        match &event {
            Event::Token(token) => {
                if let Some(account) = &mut self.account {
                    account.token(token.id);
                }
            }
            Event::Finished(finish) => self.settle(finish),
            Event::Vector(_) => {}
            Event::Prefilled { cached_tokens, .. } => {
                if let Some(account) = &mut self.account {
                    account.prefilled(*cached_tokens);
                }
            }
        }
        Poll::Ready(Some(event))
    }
}

/// What is settled where an engine broke its promise to end with `Finished`: nothing, to the client's favour.
fn lost() -> Finish {
    Finish {
        reason: FinishReason::Fault(EngineFault::Internal(
            "the engine's stream ended without `Finished`".to_owned(),
        )),
        usage: Usage::default(),
        timings: Timings::default(),
    }
}

impl Drop for MeteredStream {
    /// Nobody reads any more: stop the engine and learn what it did.
    fn drop(&mut self) {
        let (Some(mut events), Some(mut account)) = (self.events.take(), self.account.take())
        else {
            return;
        };
        events.cancel();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            // The runtime is gone, so is the process.
            account.settle(&lost());
            return;
        };
        let settling = account.meter.settling.clone();
        let span = account.meter.span.clone();
        let task = async move {
            let end = async {
                loop {
                    match events.next().await {
                        Some(Event::Finished(finish)) => break finish,
                        Some(Event::Prefilled { cached_tokens, .. }) => {
                            account.prefilled(cached_tokens);
                        }
                        Some(Event::Token(_)) if account.stopped_at.is_some() => {}
                        Some(Event::Token(token)) => drop(account.thinks(token.id)),
                        Some(Event::Vector(_)) => {}
                        None => break lost(),
                    }
                }
            };
            let finish = tokio::time::timeout(SETTLE_TIMEOUT, end).await;
            let finish = finish.unwrap_or_else(|_| lost());
            span.in_scope(move || account.settle(&finish));
        };
        settling.spawn_on(task, &runtime);
    }
}
