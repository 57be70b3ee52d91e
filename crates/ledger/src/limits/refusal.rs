//! Why a request must wait, in words for its sender and in numbers for programs.

use std::fmt;
use std::sync::Arc;

use super::{Level, Missing, Period, Standings};

/// Which kind of limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitKind {
    /// Requests a minute.
    Requests,
    /// Requests a second, where a minute's are smoothed.
    RequestBurst,
    /// Tokens a minute.
    Tokens,
    /// Tokens a second, where a minute's are smoothed.
    TokenBurst,
    /// Requests at once.
    InFlight,
    /// Tokens of a day or a month.
    TokenBudget(Period),
    /// Money of a day or a month.
    MoneyBudget(Period),
}

impl LimitKind {
    /// For programs.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Requests => "requests_per_minute_exceeded",
            Self::RequestBurst => "requests_per_second_exceeded",
            Self::Tokens => "tokens_per_minute_exceeded",
            Self::TokenBurst => "tokens_per_second_exceeded",
            Self::InFlight => "requests_in_flight_exceeded",
            Self::TokenBudget(_) => "token_budget_exceeded",
            Self::MoneyBudget(_) => "money_budget_exceeded",
        }
    }
}

/// A limit that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitRefusal {
    /// Whose.
    pub level: Level,
    /// The party's id.
    pub party: Arc<str>,
    /// For one model, or all of them together.
    pub model: Option<String>,
    /// Which.
    pub kind: LimitKind,
    /// What is allowed: a count, or 10⁻¹² of the currency's unit.
    pub allowed: i128,
    /// When to try again; `None`: not before somebody changes the rule.
    pub retry_after_ms: Option<u64>,
    /// What is left, for headers.
    pub standings: Standings,
    /// What this gateway lacks of a limit that it shares with others; asking for it may help.
    pub missing: Option<Missing>,
}

impl fmt::Display for LimitRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whose, allowed) = (self.level.as_str(), self.allowed);
        match self.kind {
            LimitKind::Requests => {
                write!(f, "The {whose}'s limit of {allowed} requests per minute")
            }
            LimitKind::RequestBurst => write!(
                f,
                "Requests come too fast: the {whose}'s minute allowance is spread evenly, {allowed} at once"
            ),
            LimitKind::Tokens => write!(f, "The {whose}'s limit of {allowed} tokens per minute"),
            LimitKind::TokenBurst => write!(
                f,
                "Tokens are asked for too fast: the {whose}'s minute allowance is spread evenly, {allowed} at once"
            ),
            LimitKind::InFlight => {
                write!(f, "The {whose}'s limit of {allowed} requests in flight")
            }
            LimitKind::TokenBudget(period) => {
                write!(f, "The {whose}'s budget of {allowed} tokens per {}", period.as_str())
            }
            LimitKind::MoneyBudget(period) => {
                write!(f, "The {whose}'s budget of money per {}", period.as_str())
            }
        }?;
        if let Some(model) = &self.model {
            write!(f, " for the model `{model}`")?;
        }
        match (self.kind, self.retry_after_ms) {
            (LimitKind::RequestBurst | LimitKind::TokenBurst, _) => write!(f, ".")?,
            (LimitKind::TokenBudget(_) | LimitKind::MoneyBudget(_), _) => {
                write!(f, " does not cover this request.")?;
            }
            _ => write!(f, " is reached.")?,
        }
        match self.retry_after_ms {
            Some(ms) if matches!(self.kind, LimitKind::InFlight) => {
                let _ = ms;
                write!(f, " Try again when one of them has ended.")
            }
            Some(ms) => write!(f, " Try again in {} s.", ms.div_ceil(1000).max(1)),
            None => write!(f, " It allows no request at all."),
        }
    }
}

impl std::error::Error for LimitRefusal {}
