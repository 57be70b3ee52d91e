//! A model as data and as a contract.
//!
//! Data: containers (GGUF, safetensors), the description of a decoder or an encoder, tokenizers, chat template.
//! Contract: [`GenerateRequest`] in, [`Event`]s out, trait [`Engine`].
//! No arithmetic, no runtime: nothing here multiplies a matrix or spawns a task. (One exception: [`ScriptedEngine`],
//! which tests stand on, keeps its delays on threads.)

mod decoder;
mod encoder;
mod engine;
mod generate;
mod grammar;
mod scripted;

mod calls;
mod chat;
mod checks;
mod config_gguf;
mod config_json;
mod container;
mod error;
mod footprint;
mod generation;
mod gguf;
mod mmap;
mod model_file;
mod rope;
mod safetensors;
mod text_model;
mod thinking;
mod tokenizer;
mod vector_text;
mod weights;

pub use calls::{CallEvent, CallFormat, CallReader, CallTool, Reading};
pub use chat::{ChatOptions, ChatTemplate, RenderedPrompt, TemplateError};
pub use decoder::{
    DType, DecoderConfig, DecoderWeights, Family, LayerWeights, RopeConfig, RopeLayout,
    RopeScaling, TensorView,
};
pub use encoder::{
    EncoderConfig, EncoderFile, EncoderLayerWeights, EncoderWeights, LayerNormView, LinearView,
    Pooling, WordPiece,
};
pub use engine::{
    CancelHandle, Engine, EngineInfo, EngineLoad, EventSender, EventStream, MAX_LOGIT_BIAS,
    MAX_STOP_TOKEN_IDS, MAX_TOP_LOGPROBS, SubmitError, event_channel, validate,
};
pub use error::ModelError;
pub use footprint::{DTypeFootprint, Footprint};
pub use generate::{
    CacheDomain, EngineFault, Event, Finish, FinishReason, GenerateRequest, Priority, SampledToken,
    SamplingParams, Timings, TokenId, TokenLogprob, Usage,
};
pub use generation::GenerationDefaults;
pub use gguf::{GgufArray, GgufMetadata, GgufType, GgufValue};
pub use grammar::{
    CallInText, FreeAnswer, Grammar, GrammarCompiler, GrammarError, GrammarFault, GrammarLimits,
    GrammarPiece, GrammarSpec, GrammarState, TokenMask,
};
pub use model_file::{ModelFile, TensorInfo, TextFile};
pub use scripted::{Script, ScriptEnd, ScriptedEngine};
pub use text_model::{ChatError, TextModel, TextModelError};
pub use thinking::{Thinking, ThinkingTokens};
pub use tokenizer::{
    DecodeStream, GgufVocabulary, PendingBytes, PreTokenizer, SpecialTokens, TokenKind, Tokenizer,
    TokenizerError,
};
pub use vector_text::{EncodedText, Purpose, TooLong, VectorTask, VectorText};
