//! What a request used, and the record kept of it.
//!
//! Not here: what it costs (prices) and who may (limits). Invariants: the classes of tokens are disjoint, so sums over
//! them count nothing twice; a record is written once, in the transaction that posts its amount, and never changes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::money::{Amount, Currency};

/// Tokens of one request by class. Classes are disjoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenUsage {
    /// Prompt tokens that were neither read from a cache nor written to an explicit one.
    pub input: u64,
    /// Prompt tokens found in the shared prefix cache without being asked for.
    pub cached_input: u64,
    /// Prompt tokens read from a cache that the client created.
    pub explicit_cached: u64,
    /// Prompt tokens written to a cache at the client's wish.
    pub cache_created: u64,
    /// Sampled tokens outside of thinking.
    pub output: u64,
    /// Sampled tokens of thinking.
    pub thinking: u64,
}

impl TokenUsage {
    /// All tokens of the prompt, over its classes.
    pub fn prompt(&self) -> u64 {
        self.input
            .saturating_add(self.cached_input)
            .saturating_add(self.explicit_cached)
            .saturating_add(self.cache_created)
    }

    /// All sampled tokens.
    pub fn completion(&self) -> u64 {
        self.output.saturating_add(self.thinking)
    }

    /// Prompt and sampled tokens.
    pub fn total(&self) -> u64 {
        self.prompt().saturating_add(self.completion())
    }

    /// Class by class.
    pub fn saturating_add(&self, other: &Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            cached_input: self.cached_input.saturating_add(other.cached_input),
            explicit_cached: self.explicit_cached.saturating_add(other.explicit_cached),
            cache_created: self.cache_created.saturating_add(other.cache_created),
            output: self.output.saturating_add(other.output),
            thinking: self.thinking.saturating_add(other.thinking),
        }
    }
}

/// What kind of quantity a record counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Tokens of an answered request: [`TokenUsage`].
    #[default]
    Tokens,
    /// Tokens of a training run × epochs: [`UsageRecord::units`].
    TrainingTokens,
    /// Milliseconds that a deployment stood ready: [`UsageRecord::units`].
    DeploymentMs,
}

/// Whose usage it is. Names are ids, not display names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Payer {
    /// The organisation, which holds the balance.
    pub org: Arc<str>,
    /// The project of it.
    pub project: Arc<str>,
    /// The API key's id.
    pub key: Arc<str>,
}

/// What is known of a request when it is admitted; becomes part of its record as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFacts {
    /// The id that the client sees (`chatcmpl-…`): at most one record has it.
    pub id: Arc<str>,
    /// Who pays.
    pub payer: Payer,
    /// The served model's name.
    pub model: Arc<str>,
    /// Digest of the model's file; of another service `upstream:HOST/MODEL`.
    pub model_digest: Arc<str>,
    /// Who counted the tokens of another service's answer: `upstream` where it reported them, `own` where they were
    /// counted here. Empty of models of ours, whose tokens are always counted here.
    #[serde(default)]
    pub metered_by: Arc<str>,
    /// The adapter on top of it, or empty.
    pub adapter: Arc<str>,
    /// Dialect and route, like `openai.chat`.
    pub protocol: Arc<str>,
    /// The client program as it names itself, cut to a bounded length, or empty.
    pub client: Arc<str>,
    /// Whether it came in a batch.
    pub batch: bool,
    /// When it arrived, ms since 1970.
    pub arrival_ms: u64,
}

/// Before `metered_by` was a field, this and its value stood behind the model's digest.
const METER_BEHIND_DIGEST: &str = " metered_by=";

impl RequestFacts {
    /// With both as fields, however the record was written.
    pub(crate) fn with_meter_apart(mut self) -> Self {
        if self.metered_by.is_empty()
            && let Some((digest, by)) = self.model_digest.rsplit_once(METER_BEHIND_DIGEST)
        {
            (self.model_digest, self.metered_by) = (digest.into(), by.into());
        }
        self
    }

    /// As they were written before.
    pub(crate) fn with_meter_behind_digest(mut self) -> Self {
        let (digest, by) = (&self.model_digest, std::mem::take(&mut self.metered_by));
        self.model_digest = format!("{digest}{METER_BEHIND_DIGEST}{by}").into();
        self
    }
}

/// What is known of a request when it has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// First token, ms since 1970; 0 where none came.
    pub first_token_ms: u64,
    /// End, ms since 1970.
    pub end_ms: u64,
    /// Why it ended: `stop`, `length`, `abort`, `error`, `crash`.
    pub finish: Arc<str>,
    /// Id of the label that the content carries, or empty.
    pub label: Arc<str>,
}

/// One line of usage, kept as long as the law and the operator want.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    /// What was known at admission.
    #[serde(flatten)]
    pub facts: RequestFacts,
    /// What was known at the end.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What `usage` and `units` count.
    pub quantity: Quantity,
    /// Tokens by class; all zero unless `quantity` is tokens.
    pub usage: TokenUsage,
    /// Units of the other quantities.
    pub units: u64,
    /// The version of the price list in force at admission.
    pub price_version: Arc<str>,
    /// What was posted for it.
    pub amount: Amount,
    /// In which currency.
    pub currency: Currency,
    /// Tokens taken from free quota instead of money.
    pub free_tokens: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_disjoint_and_sum_up() {
        let usage = TokenUsage {
            input: 1,
            cached_input: 2,
            explicit_cached: 4,
            cache_created: 8,
            output: 16,
            thinking: 32,
        };
        assert_eq!((usage.prompt(), usage.completion(), usage.total()), (15, 48, 63));
        assert_eq!(usage.saturating_add(&usage).total(), 126);
        let most = TokenUsage { input: u64::MAX, ..usage };
        assert_eq!(most.prompt(), u64::MAX);
    }

    #[test]
    fn a_record_is_flat_json() {
        let record = UsageRecord::default();
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(json["arrival_ms"], 0);
        assert_eq!(json["amount"], "0");
        assert_eq!(serde_json::from_value::<UsageRecord>(json).unwrap(), record);
    }
}
