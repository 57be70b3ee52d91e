//! DashScope's dialect (Alibaba Model Studio): native text generation, embeddings, rerank, tokenizer, models, tasks and files
//! under `/api/v1`.
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
//! - Whatever computes can be asked for as a task.
//!
//! Not here: media, and how a chat runs.

mod errors;
mod files;
mod handlers;
mod messages;
mod models;
mod paging;
mod parameters;
mod request;
mod tasks;
mod time;
mod vectors;
mod wire;
mod writer;

use axum::extract::Request;

use crate::request_id::RequestId;

pub(crate) use errors::layer as errors_layer;
pub(crate) use files::{create_files, delete_file, get_file, list_files};
pub(crate) use handlers::{generation, multimodal_generation, tokenizer};
pub(crate) use models::list_models;
pub(crate) use tasks::{Tasks, cancel_task, get_task, list_tasks, recover, run as run_tasks};
pub(crate) use vectors::{text_embedding, text_rerank};

/// Of a request that is not in the ledger.
fn request_id(request: &Request) -> String {
    request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default()
}
