//! What the ledger asks of a price list, and no more.
//!
//! Not here: prices. Invariant that an implementor keeps: what [`Rating::rate`] answers never exceeds, in money and in
//! free tokens, what [`Rating::quote`] answered for the same request, as long as the usage stays within the asked.

use std::sync::Arc;

use crate::money::{Amount, Currency};
use crate::usage::TokenUsage;

/// What a request may use at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Tokens of the prompt, after the template.
    pub prompt_tokens: u64,
    /// Sampled tokens of each choice, at most.
    pub max_output_tokens: u64,
    /// Choices.
    pub n: u32,
    /// Whether it comes in a batch.
    pub batch: bool,
    /// When it is admitted, ms since 1970: tells the price in force.
    pub admitted_ms: u64,
}

/// Money and free quota together pay for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quote {
    /// In the list's currency.
    pub amount: Amount,
    /// Tokens taken from free quota.
    pub free_tokens: u64,
}

/// One version of a price list, for one model. Pure: called under the ledger's lock.
pub trait Rating: Send + Sync {
    /// The version's name, as records keep it.
    fn version(&self) -> Arc<str>;
    /// The list's currency.
    fn currency(&self) -> Currency;
    /// What a request can cost at most when `free_left` tokens of free quota are left; `None` where the list has no
    /// price for it or the sum overflows.
    fn quote(&self, ask: &Ask, free_left: u64) -> Option<Quote>;
    /// What `usage` costs when `free_reserved` tokens of free quota were reserved for it.
    fn rate(&self, ask: &Ask, usage: &TokenUsage, free_reserved: u64) -> Option<Quote>;
}

/// Everything for nothing: an installation without prices counts all the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unpriced;

impl Rating for Unpriced {
    fn version(&self) -> Arc<str> {
        Arc::from("")
    }

    fn currency(&self) -> Currency {
        Currency::default()
    }

    fn quote(&self, _ask: &Ask, _free_left: u64) -> Option<Quote> {
        Some(Quote::default())
    }

    fn rate(&self, _ask: &Ask, _usage: &TokenUsage, _free_reserved: u64) -> Option<Quote> {
        Some(Quote::default())
    }
}
