//! Who may spend what: tenants with their keys, limits, money; accounts, prices, holds and postings build on them.
//! Never hears of HTTP or of text.
//!
//! Invariant: a key's secret exists in clear text only in the hands of its owner. Here lies its keyed hash.

pub mod directory;
pub mod limits;
mod money;
pub mod price;
mod usage;

pub use directory::{DirectoryError, DirectoryStore, KeyRefusal, NewKey, Principal, Secret};
pub use money::{Amount, AmountError, Currency, CurrencyError, PICO_PER_UNIT};
pub use usage::{Outcome, Payer, Quantity, RequestFacts, TokenUsage, UsageRecord};
