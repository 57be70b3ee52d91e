//! The trait every place that turns tokens into tokens implements: the CPU engine, a remote engine, a router, the
//! metering wrapper, the scripted engine of the tests.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;

use tokio::sync::mpsc;

use crate::generate::{
    EngineFault, Event, Finish, FinishReason, GenerateRequest, SamplingParams, Timings, TokenId,
    Usage,
};

/// Tokens in, events out.
pub trait Engine: Send + Sync {
    /// What does not change while the engine lives.
    fn info(&self) -> &EngineInfo;

    /// Queues a request; never blocks. Refusals come at once and have computed nothing.
    ///
    /// # Errors
    /// [`SubmitError`] says whose fault it is and whether to retry.
    fn submit(&self, request: GenerateRequest) -> Result<EventStream, SubmitError>;

    /// A snapshot of how busy the engine is.
    fn load(&self) -> EngineLoad;
}

/// What an engine serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// The model's name as clients write it.
    pub model: String,
    /// Tokens of prompt and answer together.
    pub context_length: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
}

/// How busy an engine is; counters are totals since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineLoad {
    /// Requests being computed.
    pub running: u32,
    /// Requests queued.
    pub waiting: u32,
    /// Pages of the KV cache that no running request needs.
    pub kv_pages_free: u32,
    /// Pages of the KV cache.
    pub kv_pages_total: u32,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_cache_queries: u64,
    /// Prompt tokens found there.
    pub prefix_cache_hits: u64,
    /// Requests that lost their pages to others and were resumed.
    pub preemptions: u64,
    /// Draft tokens proposed.
    pub draft_tokens: u64,
    /// Draft tokens accepted.
    pub accepted_draft_tokens: u64,
    /// Tokens that a grammar forced, which took no sampling and no step of their own.
    pub forced_tokens: u64,
    /// Steps computed.
    pub steps: u64,
    /// Time of all steps.
    pub step_time: Duration,
    /// Of that, time in the forward pass; the rest is scheduling, sampling and sending.
    pub forward_time: Duration,
    /// Times the idle engine verified its invariants.
    pub integrity_checks: u64,
    /// Of those, times one was broken. Anything but 0 is a defect.
    pub integrity_failures: u64,
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The client's fault: a field is out of range.
    #[error("`{field}` {message}")]
    Invalid {
        /// The field of [`GenerateRequest`] by its path, such as `sampling.top_p`.
        field: String,
        /// The limit and the value given.
        message: String,
    },
    /// The client's fault: prompt and answer do not fit the context.
    #[error(
        "the prompt has {prompt_tokens} tokens, but the model's context holds {context_length}"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Tokens of the context.
        context_length: u32,
    },
    /// Our capacity: retry later.
    #[error("the queue is full: {waiting} requests wait, the limit is {limit}")]
    QueueFull {
        /// Requests that wait.
        waiting: u32,
        /// The setting.
        limit: u32,
    },
    /// The engine is shutting down: retry elsewhere.
    #[error("the engine is shutting down")]
    ShuttingDown,
}

/// Stops a request from anywhere.
#[derive(Clone, Debug, Default)]
pub struct CancelHandle(Arc<AtomicBool>);

impl CancelHandle {
    /// Asks the engine to stop within one step. The stream still ends with `Finished`.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The events of one request. Bounded: an engine pauses a request whose reader is slow. Dropping it cancels.
///
/// To learn the exact usage of an abandoned request, call [`EventStream::cancel`] and read on to `Finished`.
pub struct EventStream {
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
    cancel: CancelHandle,
}

impl EventStream {
    /// Joins a source of events with the handle its engine watches.
    pub fn new(events: impl Stream<Item = Event> + Send + 'static, cancel: CancelHandle) -> Self {
        Self { events: Box::pin(events), cancel }
    }

    /// Asks the engine to stop within one step; the stream can be read to its `Finished`.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// A handle that outlives the borrow of the stream.
    #[must_use]
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }
}

impl Stream for EventStream {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.as_mut().poll_next(cx)
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A bounded channel for the events of one request: `capacity` events (at least 2) may wait for the reader, besides the
/// last one, which always has room.
#[must_use]
pub fn event_channel(capacity: usize) -> (EventSender, EventStream) {
    let (sender, receiver) = mpsc::channel(capacity.max(2) + 1);
    let cancel = CancelHandle::default();
    let last = sender.clone().try_reserve_owned().ok();
    let stream = EventStream::new(Receiver(receiver), cancel.clone());
    (EventSender { sender, last, cancel }, stream)
}

struct Receiver(mpsc::Receiver<Event>);

impl Stream for Receiver {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.poll_recv(cx)
    }
}

/// The engine's end of an [`EventStream`].
///
/// A stream never hangs and never ends without `Finished`: one place is reserved for it from the start, and a sender
/// that is dropped early (a panic) fills it with a fault.
#[derive(Debug)]
pub struct EventSender {
    sender: mpsc::Sender<Event>,
    /// The place reserved for `Finished`; taken when that is sent.
    last: Option<mpsc::OwnedPermit<Event>>,
    cancel: CancelHandle,
}

impl EventSender {
    /// Events that can be sent now. An engine pauses a request whose next step could produce more.
    #[must_use]
    pub fn room(&self) -> usize {
        self.sender.capacity()
    }

    /// Whether the reader cancelled or went away.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled() || self.sender.is_closed()
    }

    /// Sends an event that is not the last, without waiting.
    ///
    /// # Errors
    /// Gives the event back where there is no room or no reader.
    pub fn try_send(&self, event: Event) -> Result<(), Event> {
        self.sender.try_send(event).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(event) | mpsc::error::TrySendError::Closed(event) => {
                event
            }
        })
    }

    /// Sends an event that is not the last once there is room.
    ///
    /// # Errors
    /// Gives the event back where the reader went away.
    pub async fn send(&self, event: Event) -> Result<(), Event> {
        self.sender.send(event).await.map_err(|refused| refused.0)
    }

    /// Ends the stream.
    pub fn finish(mut self, finish: Finish) {
        if let Some(last) = self.last.take() {
            last.send(Event::Finished(finish));
        }
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        if let Some(last) = self.last.take() {
            let fault = EngineFault::Internal("the engine dropped the request".to_owned());
            last.send(Event::Finished(Finish {
                reason: FinishReason::Fault(fault),
                usage: Usage::default(),
                timings: Timings::default(),
            }));
        }
    }
}

/// Alternatives that `logprobs` and `prompt_logprobs` may ask for.
pub const MAX_TOP_LOGPROBS: u8 = 20;
/// Entries of `stop_token_ids`.
pub const MAX_STOP_TOKEN_IDS: usize = 64;
/// Entries of `logit_bias`.
pub const MAX_LOGIT_BIAS: usize = 1024;

/// Checks every bound of a request that does not depend on how busy an engine is.
///
/// # Errors
/// [`SubmitError::Invalid`] or [`SubmitError::PromptTooLong`], with the limit and the value given.
pub fn validate(info: &EngineInfo, request: &GenerateRequest) -> Result<(), SubmitError> {
    let invalid = |field: String, limit: String, value: String| {
        Err(SubmitError::Invalid { field, message: format!("must {limit}, not {value}") })
    };
    let vocab_size = info.vocab_size;
    if request.prompt.is_empty() {
        return invalid("prompt".into(), "hold at least 1 token".into(), "0".into());
    }
    let prompt_tokens = u32::try_from(request.prompt.len()).unwrap_or(u32::MAX);
    // A prompt that fills the context leaves no place for an answer.
    let longest_prompt =
        info.context_length - u32::from(request.max_new_tokens > 0).min(info.context_length);
    if prompt_tokens > longest_prompt {
        return Err(SubmitError::PromptTooLong {
            prompt_tokens,
            context_length: info.context_length,
        });
    }
    let bias = request.sampling.logit_bias.iter().map(|&(id, _)| id);
    let lists: [(&str, &mut dyn Iterator<Item = TokenId>); 4] = [
        ("prompt", &mut request.prompt.iter().copied()),
        ("prediction", &mut request.prediction.iter().copied()),
        ("stop_token_ids", &mut request.stop_token_ids.iter().copied()),
        ("sampling.logit_bias", &mut { bias }),
    ];
    for (field, ids) in lists {
        if let Some((index, id)) = ids.enumerate().find(|&(_, id)| id >= vocab_size) {
            return invalid(
                format!("{field}[{index}]"),
                format!("be below {vocab_size}"),
                id.to_string(),
            );
        }
    }
    let counts = [
        ("logprobs", usize::from(request.logprobs.unwrap_or(0)), usize::from(MAX_TOP_LOGPROBS)),
        (
            "prompt_logprobs",
            usize::from(request.prompt_logprobs.unwrap_or(0)),
            usize::from(MAX_TOP_LOGPROBS),
        ),
        ("prediction", request.prediction.len(), info.context_length as usize),
        ("stop_token_ids", request.stop_token_ids.len(), MAX_STOP_TOKEN_IDS),
        ("sampling.logit_bias", request.sampling.logit_bias.len(), MAX_LOGIT_BIAS),
    ];
    for (field, count, limit) in counts {
        if count > limit {
            return invalid(field.into(), format!("ask for at most {limit}"), count.to_string());
        }
    }
    validate_sampling(&request.sampling)
}

/// Checks that every parameter is finite and in its range.
fn validate_sampling(sampling: &SamplingParams) -> Result<(), SubmitError> {
    let ranges = [
        ("temperature", sampling.temperature, 0.0, f32::MAX),
        ("top_p", sampling.top_p, 0.0, 1.0),
        ("min_p", sampling.min_p, 0.0, 1.0),
        ("typical_p", sampling.typical_p, 0.0, 1.0),
        ("repetition_penalty", sampling.repetition_penalty, f32::MIN_POSITIVE, f32::MAX),
        ("frequency_penalty", sampling.frequency_penalty, f32::MIN, f32::MAX),
        ("presence_penalty", sampling.presence_penalty, f32::MIN, f32::MAX),
    ];
    let biases =
        sampling.logit_bias.iter().map(|&(_, bias)| ("logit_bias", bias, f32::MIN, f32::MAX));
    for (field, value, least, most) in ranges.into_iter().chain(biases) {
        if !(least..=most).contains(&value) {
            let message = match (least == f32::MIN, most == f32::MAX) {
                (true, _) => format!("must be finite, not {value}"),
                (_, true) => format!("must be finite and at least {least}, not {value}"),
                _ => format!("must lie in {least}..={most}, not {value}"),
            };
            return Err(SubmitError::Invalid { field: format!("sampling.{field}"), message });
        }
    }
    Ok(())
}
