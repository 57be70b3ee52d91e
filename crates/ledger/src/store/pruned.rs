//! Which usage records have gone away because they were kept long enough.
//!
//! The log keeps their postings, with the records' digests, so chain and sums stay whole; a document in the log says up
//! to which line records may be missing, so that one that is missing without a word is still found. Not here: when.

use serde::{Deserialize, Serialize};

use super::StoreError;

/// The newest version counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pruned {
    /// Numbers of lines, at most one of each log: no record up to it is kept.
    pub(crate) upto: Vec<u64>,
    /// They were posted before, ms since 1970.
    pub(crate) before_ms: u64,
}

impl Pruned {
    /// The document's kind.
    pub(crate) const KIND: &str = "retention";
    /// The document's id.
    pub(crate) const ID: &str = "usage";

    pub(crate) fn parse(body: &[u8]) -> Result<Self, StoreError> {
        serde_json::from_slice(body)
            .map_err(|error| StoreError::damaged(format!("what was pruned is not told: {error}")))
    }

    /// With more gone: of each log (told by `log_of`) the later number.
    pub(crate) fn and(mut self, upto: &[u64], before_ms: u64, log_of: fn(u64) -> u64) -> Self {
        for number in upto {
            match self.upto.iter_mut().find(|known| log_of(**known) == log_of(*number)) {
                Some(known) => *known = (*known).max(*number),
                None => self.upto.push(*number),
            }
        }
        self.before_ms = self.before_ms.max(before_ms);
        self
    }
}
