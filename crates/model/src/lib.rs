//! A model as data and as a contract.
//!
//! Data: containers (GGUF, safetensors), the description of a decoder, tokenizer, chat template.
//! Contract: [`GenerateRequest`] in, [`Event`]s out, trait [`Engine`].
//! No arithmetic, no runtime: nothing here multiplies a matrix or spawns a task.

mod decoder;
mod engine;
mod generate;

pub use decoder::{
    DType, DecoderConfig, DecoderWeights, Family, LayerWeights, RopeConfig, RopeLayout,
    RopeScaling, TensorView,
};
pub use engine::{CancelHandle, Engine, EngineInfo, EngineLoad, EventStream, SubmitError};
pub use generate::{
    CacheDomain, EngineFault, Event, Finish, FinishReason, GenerateRequest, Priority, SampledToken,
    SamplingParams, Timings, TokenId, TokenLogprob, Usage,
};
