//! Prices: lists as immutable documents, their versions in time, and what usage costs under them.
//!
//! Not here: balances, free quota used so far, invoices. Pure: no clock, no file, no randomness. Invariant: integers
//! all the way, from the digits in the document to the amount that is posted.

mod book;
mod diff;
mod document;
mod exact;
mod kept;
mod rate;
mod read;
pub(crate) mod time;
mod tree;
mod whatif;

pub use book::{ImportError, InForce, PriceBook, PriceImport, PriceVersion};
pub use diff::{PriceChange, diff};
pub use document::{
    Batch, Deployment, FreeQuota, ModelPrices, PerClass, PriceDocument, Promotion, Stackable,
    ThinkingRule, Tier, TokenClass, Window,
};
pub use exact::Ratio;
pub use kept::{KeptError, KeptPrices, RequestKind};
pub use rate::{
    Bounds, Ceiling, Charge, FreeGrant, LineClass, PriceError, Rated, RatedLine, training_tokens,
};
pub use time::{utc_ms, utc_text};
pub use tree::Problem;
pub use whatif::{OTHERS, Revenue, WhatIf};

#[cfg(test)]
mod tests;
