//! How much may be asked for: rates, requests in flight and budgets of organisations, projects and keys.
//!
//! Pure: time is passed in, nothing is read or written, and no number is a float. [`Limiter::check`] decides over all
//! rules at once and changes nothing; [`Limiter::take`] then counts what was decided. Whoever holds the one lock around
//! both (and around the hold of money between them) makes admission one atomic step.
//!
//! Invariant: each [`Pass`] taken is given back exactly once, by [`Limiter::settle`] or [`Limiter::cancel`]; afterwards
//! the counters say what was used, not what was reserved.

mod bucket;
mod calendar;
mod limiter;
mod policy;
mod refusal;
mod shares;
mod spend;

#[cfg(test)]
mod tests;

pub use calendar::{Calendar, Period};
pub use limiter::{Ask, BudgetReached, Limiter, Now, Pass, Standing, Standings, Used};
pub use policy::{
    Budget, BudgetEffect, BudgetLimit, MAX_RULES, ModelChoice, Policy, PolicyError, RateRule,
};
pub use refusal::{LimitKind, LimitRefusal};
pub use shares::{Missing, ShareId, ShareLimit, Watch};

use std::sync::Arc;

/// Whose rule it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// The whole organisation's.
    Organisation,
    /// One project's.
    Project,
    /// One key's (and its rotations').
    Key,
}

impl Level {
    /// For messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Organisation => "organisation",
            Self::Project => "project",
            Self::Key => "key",
        }
    }
}

/// One party that a request counts towards, with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// Which kind.
    pub level: Level,
    /// Under which id its counters lie.
    pub id: Arc<str>,
    /// Its rules.
    pub policy: Policy,
}
