//! The one place where a request's usage is taken: from `Event::Finished`, however the request ends.
//!
//! The ledger's hold will stand at [`Meter::submit`], its posting at [`Account::settle`].
//!
//! Invariants: each submitted request is settled exactly once. A reader that goes away cancels, and a task of our own
//! reads on to `Finished`, because only that knows how many tokens were sampled.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::Stream;
use futures_util::StreamExt;
use mintage_ledger::Principal;
use mintage_model::{
    Engine, EngineFault, Event, EventStream, Finish, FinishReason, GenerateRequest, SubmitError,
    Timings, Usage,
};
use tokio_util::task::TaskTracker;

use crate::metrics::{ModelMetrics, Outcome};

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
}

/// Meters the choices of one HTTP request; its log line is written when the last of them is settled.
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
        metrics: Arc<ModelMetrics>,
        settling: TaskTracker,
    ) -> Self {
        let record = Arc::new(Record { facts, totals: Mutex::default() });
        Self { record, metrics, settling, span: tracing::Span::current() }
    }

    /// Submits one choice.
    pub(crate) fn submit(
        &self,
        engine: &dyn Engine,
        request: GenerateRequest,
    ) -> Result<MeteredStream, SubmitError> {
        let max_new_tokens = request.max_new_tokens;
        let events = engine.submit(request)?;
        self.metrics.submitted(max_new_tokens);
        let account = Account { meter: self.clone(), stopped_by_us: false, last_token: None };
        Ok(MeteredStream { events: Some(events), account: Some(account) })
    }
}

/// What a request's choices add up to.
struct Record {
    facts: RequestFacts,
    totals: Mutex<Totals>,
}

#[derive(Default)]
struct Totals {
    choices: u32,
    prompt_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    queued: Duration,
    first_token: Option<Duration>,
    outcome: Option<Outcome>,
    fault: Option<String>,
}

impl Drop for Record {
    /// The one structured line of a request that reached an engine.
    fn drop(&mut self) {
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
            choices = totals.choices,
            outcome = outcome.as_str(),
            prompt_tokens = totals.prompt_tokens,
            cached_tokens = totals.cached_tokens,
            output_tokens = totals.output_tokens,
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
    /// A stop string was found: the cancel that follows is a stop, not an abort.
    stopped_by_us: bool,
    last_token: Option<Instant>,
}

impl Account {
    fn token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            Some(last) => self.meter.metrics.next_token(now.saturating_duration_since(last)),
            None => {
                let arrival = self.meter.record.facts.arrival;
                self.meter.metrics.first_token(now.saturating_duration_since(arrival));
            }
        }
    }

    fn settle(self, finish: &Finish) {
        let outcome = match &finish.reason {
            FinishReason::Stop(_) => Outcome::Stop,
            FinishReason::Length => Outcome::Length,
            // A stop string may be found in the very token that a deadline or a shutdown would have ended with.
            _ if self.stopped_by_us => Outcome::Stop,
            FinishReason::Cancelled => Outcome::Abort,
            FinishReason::Deadline | FinishReason::Fault(_) => Outcome::Error,
        };
        let record = &self.meter.record;
        let since_arrival = record.facts.arrival.elapsed();
        self.meter.metrics.finished(outcome, finish.usage, finish.timings, since_arrival);
        let mut totals = record.totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.choices += 1;
        totals.prompt_tokens += u64::from(finish.usage.prompt_tokens);
        totals.cached_tokens += u64::from(finish.usage.cached_tokens);
        totals.output_tokens += u64::from(finish.usage.output_tokens);
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
            account.stopped_by_us = true;
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
            Event::Token(_) => {
                if let Some(account) = &mut self.account {
                    account.token();
                }
            }
            Event::Finished(finish) => self.settle(finish),
            Event::Prefilled { .. } => {}
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
        let (Some(mut events), Some(account)) = (self.events.take(), self.account.take()) else {
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
                        Some(_) => {}
                        None => break lost(),
                    }
                }
            };
            let finish = tokio::time::timeout(SETTLE_TIMEOUT, end).await;
            let finish = finish.unwrap_or_else(|_| lost());
            span.in_scope(|| account.settle(&finish));
        };
        settling.spawn_on(task, &runtime);
    }
}
