//! The CPU engine: forward, scheduler, paged KV, prefix tree, sampler. It knows tokens, never text, money or HTTP.

pub mod forward;
pub mod perplexity;

pub use forward::{
    Batch, BatchSequence, Decoder, DecoderOptions, Forward, ForwardError, KvSize, LoadProgress,
    LogitsBuffer, LogitsFor, MAX_STEP_TOKENS, WeightStorage,
};
pub use perplexity::{
    DivergenceReport, PerplexityError, PerplexityOptions, PerplexityProgress, PerplexityReport,
    kl_divergence, perplexity,
};
