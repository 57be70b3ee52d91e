//! Other services behind a model's name: any that speaks OpenAI's API (Model Studio's compatible mode does).
//!
//! A chat or a completion inside is rendered once (`request`), its stream is parsed once (`chunks`) into the same parts
//! that an engine's tokens become, so that every dialect works through every upstream. A service that takes text only is
//! no `Engine`: nobody here samples, and tokens are counted by what the service reports. Embeddings and scores come the
//! same way round, as a whole (`vectors`).
//!
//! Not here: who is chosen (`routes`), limits, prices and holds (`till`), where connections may go (`egress`).
//! Invariants: the service's key leaves only in its own header; nothing is tried again once a client may have heard of
//! it; each request is metered once, by one attempt, whoever hangs up; everything that comes back is bounded.

mod breaker;
mod chunks;
mod config;
mod failure;
mod http;
mod lines;
mod relay;
mod remote;
mod request;
mod retry;
mod vector_relay;
mod vectors;

use axum::body::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use mintage_ledger::TokenUsage;

pub use config::{ApiKey, Flavour, OnDisconnect, UpstreamConfig, UpstreamError, UpstreamTask};
pub(crate) use failure::Failure;
pub(crate) use relay::{Bounds, Relay};
pub(crate) use remote::{RemoteModel, render};
pub(crate) use request::{chat, text};
pub(crate) use vector_relay::{VectorRelay, VectorsComing};
pub(crate) use vectors::{HeardVectors, VectorAsk};

use crate::answer::Part;

/// Who counted the tokens of an answer, as records have it: the service reported them, or they were counted here.
pub(crate) const BY_UPSTREAM: &str = "upstream";
pub(crate) const BY_OURSELVES: &str = "own";

/// A service. One attempt at a time; when to try again is not its business.
pub(crate) trait Upstream: Send + Sync {
    /// Sends the request and resolves once the first event of the answer came.
    fn open<'a>(&'a self, ask: &'a Ask) -> BoxFuture<'a, Result<Hearing, Failure>>;
    /// Sends a request for vectors and resolves once all of them came.
    fn vectors<'a>(&'a self, ask: &'a VectorAsk) -> BoxFuture<'a, Result<HeardVectors, Failure>>;
    /// Connections that were made, and requests that found one open.
    fn connections(&self) -> [u64; 2];
}

/// An answer as it comes. After a failure nothing follows; without one it is complete.
pub(crate) type Hearing = BoxStream<'static, Result<Heard, Failure>>;

/// What a service is asked.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) kind: Kind,
    /// JSON; asks for a stream that tells its usage.
    pub(crate) body: Bytes,
    /// Choices that are expected, over all prompts.
    pub(crate) choices: u32,
    /// To tell which of them ended a choice.
    pub(crate) stops: Vec<String>,
}

/// Which of the service's routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Text,
}

/// What a service says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    /// Of the choice with this index.
    Part(u32, Part),
    /// All that it has counted so far, over all choices.
    Usage(TokenUsage),
}
