//! Who may spend what: so far, API keys; accounts, prices, holds and postings build on them. Never hears of HTTP or of
//! text.
//!
//! Invariant: a key's secret exists in clear text only in the hands of its owner. Here lies its keyed hash.

mod keys;
mod money;
mod usage;

pub use keys::{
    CreatedKey, Imported, KeyError, KeyInfo, KeyRefusal, KeyStore, MAX_KEYS, MAX_NAME_CHARS,
    Secret, VerifiedKey,
};
pub use money::{Amount, AmountError, Currency, CurrencyError, PICO_PER_UNIT};
pub use usage::{Outcome, Payer, Quantity, RequestFacts, TokenUsage, UsageRecord};
