//! Prices: lists as immutable documents, their versions in time, and what usage costs under them.
//!
//! Not here: balances, free quota used so far, invoices. Pure: no clock, no file, no randomness. Invariant: integers
//! all the way, from the digits in the document to the amount that is posted.

mod book;
mod document;
mod exact;
mod rate;
mod read;
pub(crate) mod time;
mod tree;

pub use book::{ImportError, InForce, PriceBook, PriceImport, PriceVersion};
pub use document::{
    Batch, Deployment, FreeQuota, ModelPrices, PerClass, PriceDocument, Promotion, Stackable,
    ThinkingRule, Tier, TokenClass, Window,
};
pub use exact::Ratio;
pub use rate::{
    Bounds, Ceiling, Charge, FreeGrant, LineClass, PriceError, Rated, RatedLine, training_tokens,
};
pub use tree::Problem;

#[cfg(test)]
mod tests;
