//! The CPU engine: forward, scheduler, paged KV, prefix tree, sampler. It knows tokens, never text, money or HTTP.

pub mod forward;

pub use forward::{Batch, BatchSequence, Forward, ForwardError, LogitsBuffer, LogitsFor};
