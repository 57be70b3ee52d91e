//! The rules as they are written down. Not here: counting.

use serde::{Deserialize, Serialize};

use super::Period;
use crate::money::Amount;

/// Rules of one kind that one party may have.
pub const MAX_RULES: usize = 64;

/// The rules of one organisation, project or key. Empty: nothing is limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// All that match a request apply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rates: Vec<RateRule>,
    /// All that match a request apply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<Budget>,
}

/// To which models a rule applies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelChoice {
    /// All of them together.
    #[default]
    Together,
    /// Each of them by itself.
    Each,
    /// The one of this name.
    One(String),
}

impl ModelChoice {
    /// Under which model's name the rule counts a request for `model`: `None` where it does not apply, `Some(None)`
    /// where it counts all models together.
    pub(super) fn counted_under<'a>(&self, model: &'a str) -> Option<Option<&'a str>> {
        match self {
            Self::Together => Some(None),
            Self::Each => Some(Some(model)),
            Self::One(name) => (name == model).then_some(Some(model)),
        }
    }
}

/// How fast.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateRule {
    /// For which models.
    #[serde(default)]
    pub models: ModelChoice,
    /// Requests a minute; 0 refuses all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    /// Tokens a minute, of prompts and answers; 0 refuses all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Requests admitted and not yet answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_in_flight: Option<u32>,
    /// A minute's allowance may not be used in one second: each second brings a sixtieth.
    #[serde(default)]
    pub smooth: bool,
}

/// How much in a day or a month.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// For which models.
    #[serde(default)]
    pub models: ModelChoice,
    /// In how long.
    pub period: Period,
    /// How much.
    pub limit: BudgetLimit,
    /// What happens then.
    #[serde(default)]
    pub effect: BudgetEffect,
}

/// How much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetLimit {
    /// Of money, in the ledger's currency.
    Money(Amount),
    /// Of tokens, of prompts and answers.
    Tokens(u64),
}

impl BudgetLimit {
    /// How many tokens, or 10⁻¹² of the currency's unit.
    #[must_use]
    pub fn count(self) -> i128 {
        match self {
            Self::Money(amount) => amount.pico(),
            Self::Tokens(tokens) => i128::from(tokens),
        }
    }
}

/// What happens when a budget is used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetEffect {
    /// Requests that could exceed it are refused.
    #[default]
    Hard,
    /// It is reported, once a period.
    Warn,
}

/// Why rules cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Each of them would be looked at for each request.
    #[error("there are {given} rules of one kind, the limit is {MAX_RULES}")]
    TooMany {
        /// How many.
        given: usize,
    },
    /// Two rules would share their counters.
    #[error("two rate rules are for the same models ({0:?}); join them")]
    Twice(ModelChoice),
    /// Money is counted upwards from nothing.
    #[error("a budget is not negative, this one is {0}")]
    Negative(Amount),
}

impl Policy {
    /// Whether the rules can be used.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(&self) -> Result<(), PolicyError> {
        let given = self.rates.len().max(self.budgets.len());
        if given > MAX_RULES {
            return Err(PolicyError::TooMany { given });
        }
        for (i, rule) in self.rates.iter().enumerate() {
            if self.rates.iter().take(i).any(|other| other.models == rule.models) {
                return Err(PolicyError::Twice(rule.models.clone()));
            }
        }
        for budget in &self.budgets {
            if let BudgetLimit::Money(amount) = budget.limit
                && amount.is_negative()
            {
                return Err(PolicyError::Negative(amount));
            }
        }
        Ok(())
    }
}
