//! The CPU engine: forward, scheduler, paged KV, prefix tree, sampler. It knows tokens, never text, money or HTTP.

pub mod forward;
pub mod perplexity;

pub mod cpu_engine;
pub mod encode;
pub mod engine_core;
pub mod scheduler;

pub mod block_pool;
pub mod cost_model;
pub mod paged_kv;
pub mod prefix_tree;
pub mod sampler;
mod speculation;

pub use cpu_engine::{CpuEngine, CpuEngineConfig, StartError};
pub use encode::{
    DecoderVectors, Encode, EncodeShape, Encoder, EncoderEngine, EncoderEngineConfig, VectorHead,
};
pub use forward::{
    Batch, BatchSequence, Decoder, DecoderOptions, Forward, ForwardError, KvSize, LoadProgress,
    LogitsBuffer, LogitsFor, MAX_STEP_TOKENS, WeightStorage,
};
pub use perplexity::{
    DivergenceReport, PerplexityError, PerplexityOptions, PerplexityProgress, PerplexityReport,
    kl_divergence, perplexity,
};
pub use scheduler::SchedulerConfig;
pub use speculation::{DraftModel, MAX_DRAFTS};

#[cfg(test)]
mod testing;
