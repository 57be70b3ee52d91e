//! DashScope's dialect (Alibaba Model Studio): native text generation, embeddings, rerank, tokenizer and models under
//! `/api/v1`.
//!
//! Its OpenAI-compatible prefixes are the OpenAI dialect under another path, and are not here.
//!
//! Decided once for all of it:
//! - A stream is asked for by the header `X-DashScope-SSE: enable` (or by `Accept: text/event-stream`), never in the body.
//! - Events hold all of the answer so far unless `incremental_output` is true; each tells the usage so far.
//! - `result_format` is `text` unless given, or unless there are tools or thoughts to tell of, which need `message`; on the
//!   path of several media it is `message`.
//! - Any chat model answers on the path of text and on that of several media; the path decides the shape of `content`.
//! - Unknown parameters are refused: a misspelt limit must not be ignored. What is known and changes nothing is ignored.
//! - `request_id` of an answer is the id of its record in the ledger.
//!
//! Not here: media, asynchronous tasks, and how a chat runs.

mod errors;
mod handlers;
mod messages;
mod models;
mod parameters;
mod request;
mod vectors;
mod wire;
mod writer;

pub(crate) use errors::layer as errors_layer;
pub(crate) use handlers::{generation, multimodal_generation, tokenizer};
pub(crate) use models::list_models;
pub(crate) use vectors::{text_embedding, text_rerank};
