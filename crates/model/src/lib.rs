//! A model as data and as a contract.
//!
//! Data: containers (GGUF, safetensors), the description of a decoder, tokenizer, chat template.
//! Contract: [`GenerateRequest`] in, [`Event`]s out, trait [`Engine`].
//! No arithmetic, no runtime: nothing here multiplies a matrix or spawns a task. (One exception: [`ScriptedEngine`],
//! which tests stand on, keeps its delays on threads.)

mod decoder;
mod engine;
mod generate;
mod scripted;

pub use decoder::{
    DType, DecoderConfig, DecoderWeights, Family, LayerWeights, RopeConfig, RopeLayout,
    RopeScaling, TensorView,
};
pub use engine::{
    CancelHandle, Engine, EngineInfo, EngineLoad, EventSender, EventStream, MAX_LOGIT_BIAS,
    MAX_STOP_TOKEN_IDS, MAX_TOP_LOGPROBS, SubmitError, event_channel, validate,
};
pub use generate::{
    CacheDomain, EngineFault, Event, Finish, FinishReason, GenerateRequest, Priority, SampledToken,
    SamplingParams, Timings, TokenId, TokenLogprob, Usage,
};
pub use scripted::{Script, ScriptEnd, ScriptedEngine};
