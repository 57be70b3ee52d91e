//! A request for vectors made ready for who answers: tokens for an engine here, or the body of another service's request.
//!
//! Not here: how it runs. Invariant: what a target cannot do is refused before anything is sent or submitted.

use std::sync::Arc;

use mintage_model::{TokenId, VectorTask};

use super::{Shortening, find};
use crate::app::App;
use crate::error::ApiError;
use crate::job::response_id;
use crate::served::{VectorModel, VectorTarget};
use crate::upstream::VectorRelay;

/// What is asked, whoever answers.
pub(super) trait Asked: Send + Sync + 'static {
    /// As the client named the model.
    fn model(&self) -> &str;
    /// Checks it and makes it ready for one target. It may take milliseconds.
    fn work(&self, target: &VectorTarget) -> Result<Work, ApiError>;
}

/// What is to be done for it.
pub(super) enum Work {
    /// One sequence a vector.
    Own { model: Arc<VectorModel>, sequences: Vec<Arc<[TokenId]>>, shortening: Shortening },
    /// The service makes all of them at once, as long as they were asked for.
    Remote(VectorRelay),
}

/// A request that is ready.
pub(crate) struct VectorJob {
    /// Of the answer, and of its record.
    pub(crate) id: String,
    /// Dialect and route, for the record.
    pub(crate) protocol: &'static str,
    pub(super) work: Work,
    asked: Arc<dyn Asked>,
    /// Who stands in for the target, in turn.
    others: Vec<VectorTarget>,
}

impl VectorJob {
    /// On a text thread: finds who answers and tokenises.
    pub(super) fn new(
        app: &App,
        asked: Arc<dyn Asked>,
        protocol: &'static str,
        id_prefix: &str,
    ) -> Result<Self, ApiError> {
        let id = response_id(id_prefix);
        let (target, others) = find(&app.models, asked.model(), &id)?;
        let work = asked.work(&target)?;
        Ok(Self { id, protocol, work, asked, others })
    }

    /// As the client named the model.
    pub(crate) fn asked(&self) -> &str {
        self.asked.model()
    }

    /// The name that answers, prices and records know.
    pub(crate) fn model_name(&self) -> &str {
        match &self.work {
            Work::Own { model, .. } => &model.name,
            Work::Remote(relay) => &relay.remote.config.name,
        }
    }

    /// What vectors are.
    pub(super) fn task(&self) -> VectorTask {
        match &self.work {
            Work::Own { model, .. } => model.text.task(),
            Work::Remote(relay) => relay.ask.task(),
        }
    }

    pub(super) fn shortening(&self) -> Shortening {
        match &self.work {
            Work::Own { shortening, .. } => *shortening,
            Work::Remote(_) => Shortening::NONE,
        }
    }

    /// The most tokens that it can use.
    pub(super) fn most_tokens(&self) -> u64 {
        match &self.work {
            Work::Own { sequences, .. } => sequences.iter().map(|s| s.len() as u64).sum(),
            Work::Remote(relay) => relay.ask.most_tokens(),
        }
    }

    /// The same for the next target, where this one's failure is no reason to give up.
    pub(super) fn next(&mut self, error: &ApiError) -> Option<Result<Self, ApiError>> {
        if !error.may_do_elsewhere() || self.others.is_empty() {
            return None;
        }
        let mut others = std::mem::take(&mut self.others);
        let next = others.remove(0);
        tracing::info!(
            from = self.model_name(),
            to = next.name(),
            why = error.code,
            "answered elsewhere"
        );
        let asked = Arc::clone(&self.asked);
        let (id, protocol) = (self.id.clone(), self.protocol);
        Some(asked.work(&next).map(|work| Self { id, protocol, work, asked, others }))
    }
}
