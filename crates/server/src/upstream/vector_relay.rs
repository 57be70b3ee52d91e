//! One request for vectors to a service, from its first attempt to its settlement: a task of its own, which outlives a
//! client that hangs up.
//!
//! What is billed: the tokens that the service reports, held to what its request can have cost; where it reports none,
//! those counted here, or nothing without a tokenizer. An answer that is not whole is none, and costs nothing.
//! Invariant: nothing is told to the client before the answer is whole, so that it may be asked for again until then.

use std::sync::Arc;
use std::time::Instant;

use mintage_ledger::TokenUsage;
use tokio::sync::mpsc;

use super::vectors::{HeardVectors, VectorAsk};
use super::{BY_OURSELVES, BY_UPSTREAM, OnDisconnect, RemoteModel};
use crate::error::ApiError;
use crate::metered::{Meter, Relayed};
use crate::metrics::Outcome;
use crate::vectors::Vector;

/// What a job asks of a service.
#[derive(Clone)]
pub(crate) struct VectorRelay {
    pub(crate) remote: Arc<RemoteModel>,
    pub(crate) ask: VectorAsk,
}

type Heard = Result<Vec<Vector>, ApiError>;

/// An answer on its way.
pub(crate) struct VectorsComing(mpsc::Receiver<Heard>);

impl VectorsComing {
    /// All vectors, or why there are none. Dropping the future loses nothing.
    pub(crate) async fn heard(&mut self) -> Heard {
        // A task that is gone without a word went with the server.
        self.0.recv().await.unwrap_or_else(|| Err(ApiError::shutting_down()))
    }
}

impl VectorRelay {
    /// Refuses what is known to make too long an answer.
    pub(crate) fn new(remote: Arc<RemoteModel>, ask: VectorAsk) -> Result<Self, ApiError> {
        if let Some(width) = remote.width() {
            ask.check_count(width)?;
        }
        Ok(Self { remote, ask })
    }

    /// Starts the task.
    pub(crate) fn start(
        self,
        meter: &Meter,
        deadline: Instant,
        request_timeout_s: u64,
    ) -> VectorsComing {
        let (sender, coming) = mpsc::channel(1);
        meter.relaying(0);
        let task = Task {
            relay: self,
            meter: meter.clone(),
            begun: Instant::now(),
            deadline,
            request_timeout_s,
        };
        meter.spawn(task.run(sender));
        VectorsComing(coming)
    }
}

struct Task {
    relay: VectorRelay,
    meter: Meter,
    begun: Instant,
    deadline: Instant,
    request_timeout_s: u64,
}

impl Task {
    async fn run(self, sender: mpsc::Sender<Heard>) {
        let heard = tokio::select! {
            heard = self.heard(&sender) => heard,
            () = tokio::time::sleep_until(self.deadline.into()) => {
                Err(ApiError::deadline(self.request_timeout_s))
            }
            () = self.left_alone(&sender) => return,
        };
        let heard = heard.map(|heard| self.end(heard, sender.is_closed()));
        // The hold of a request that got no answer is given back before anybody hears, so that it can be let in again.
        drop(self);
        let _ = sender.send(heard).await;
    }

    async fn heard(&self, sender: &mpsc::Sender<Heard>) -> Result<HeardVectors, ApiError> {
        let remote = &self.relay.remote;
        let name = &remote.config.name;
        let _place = remote.place().map_err(|failure| failure.into_error(name))?;
        let ask = &self.relay.ask;
        let heard = remote.vectors(ask, || !sender.is_closed()).await.map_err(|failure| {
            tracing::warn!(upstream = %name, why = %failure.log, "no answer");
            failure.into_error(name)
        })?;
        if let Some(width) = ask.own_width(&heard) {
            remote.made(width);
        }
        ask.check_answer(&heard)?;
        Ok(heard)
    }

    /// The client left, and the answer is to be cancelled, or was waited for long enough.
    async fn left_alone(&self, sender: &mpsc::Sender<Heard>) {
        sender.closed().await;
        if let OnDisconnect::Drain(limit) = self.relay.remote.config.on_disconnect {
            tokio::time::sleep(limit).await;
        }
    }

    /// Applies what it used.
    fn end(&self, heard: HeardVectors, is_left: bool) -> Vec<Vector> {
        let remote = &self.relay.remote;
        let metered_by = match heard.tokens {
            Some(_) => BY_UPSTREAM,
            None => {
                remote.counted_here();
                BY_OURSELVES
            }
        };
        let own = || self.relay.ask.own_tokens().unwrap_or(0);
        let input = self.bounded(heard.tokens.unwrap_or_else(own));
        self.meter.relayed(Relayed {
            usage: Some(TokenUsage { input, ..TokenUsage::default() }),
            metered_by,
            outcome: if is_left { Outcome::Abort } else { Outcome::Stop },
            choices: 1,
            fault: None,
            first: None,
            total: self.begun.elapsed(),
        });
        heard.vectors
    }

    /// What a service reports cannot be more than was held.
    fn bounded(&self, reported: u64) -> u64 {
        let most = self.relay.ask.most_tokens();
        if reported > most {
            self.relay.remote.contradicted();
            tracing::warn!(
                upstream = %self.relay.remote.config.name, reported, most,
                "a service reported more tokens than its request can have: billed at the bound"
            );
        }
        reported.min(most)
    }
}
