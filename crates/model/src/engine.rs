//! The trait every place that turns tokens into tokens implements: the CPU engine, a remote engine, a router, the
//! metering wrapper, the scripted engine of the tests.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::generate::{Event, GenerateRequest};

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
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The client's fault: a field is out of range.
    #[error("`{field}` {message}")]
    Invalid {
        /// The field of [`GenerateRequest`].
        field: &'static str,
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
