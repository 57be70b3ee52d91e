//! OpenAI's dialect: its requests become valid ones, its answers and streams are written.
//!
//! Decided once for all endpoints:
//! - A field that OpenAI's document does not know, and that is none of our documented extensions, is refused
//!   (`unknown_parameter`), as OpenAI does: a misspelt limit must not be ignored.
//! - `null` means absent where the document says nullable; elsewhere it is a wrong type.
//! - Wrong types and values out of range are refused, each with the field, the limit and the value.
//! - What we cannot do yet (images, sounds, tools that are no functions …) is refused by name,
//!   never silently ignored. What changes nothing here (`user`, `service_tier` …) is checked and ignored.
//! - Extensions, named as vLLM names them: `top_k`, `min_p`, `typical_p`, `repetition_penalty`, `stop_token_ids`,
//!   `ignore_eos`, `return_token_ids`, `prompt_logprobs`, `usage: {"include": true}` (OpenRouter's name for telling the cost), and `enable_thinking` (also inside `chat_template_kwargs`).

mod batches;
mod chat;
mod chat_request;
mod completion_request;
mod completions;
mod embeddings;
mod files;
mod generation;
mod messages;
mod models;
mod options;
mod qwen;
mod rerank;
mod responses;
mod stored;
mod tokens;
mod usage;
mod wire;

use crate::request_id;

/// The last event of a stream that ended well.
const DONE: &str = "[DONE]";

pub(crate) use batches::{cancel_batch, create_batch, get_batch, list_batches};
pub(crate) use chat::chat;
pub(crate) use completions::completions;
pub(crate) use embeddings::embeddings;
pub(crate) use files::{create_file, delete_file, file_content, get_file, list_files};
pub(crate) use generation::generation;
pub(crate) use models::{get_model, list_models};
pub(crate) use rerank::{rerank, rerank_v2};
pub(crate) use responses::{
    Background, cancel_response, count_input, create_response, delete_response, get_response,
    list_input_items, recover,
};
pub(crate) use stored::{change_chat, delete_chat, get_chat, list_chat_messages, list_chats};
pub(crate) use tokens::{detokenize, tokenize, tokenizer_info};

/// Sizes of padded events are multiples of this.
const PADDED_CHARS: usize = 32;

/// Random letters that make the sizes of events tell little of the text in them.
fn obfuscation(text: &str) -> String {
    let short = PADDED_CHARS - text.len() % PADDED_CHARS;
    let mut random = request_id::random_hex();
    random.push_str(&request_id::random_hex());
    random.truncate(short);
    random
}
