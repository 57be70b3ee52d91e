//! Anthropic's dialect: `POST /v1/messages`, `/v1/messages/count_tokens`, and its view of the models.
//!
//! Decided once for all of it:
//! - Unknown fields are refused, as Anthropic does; so is what this server cannot do (images, documents, server tools).
//! - What changes nothing here (`metadata`, `service_tier`, `cache_control`: caching is automatic) is checked and ignored.
//! - A last message of the assistant is continued (prefill). Without `thinking` a model that can choose does not think.
//! - `input_tokens` are the prompt's tokens that no cache had; those it had are `cache_read_input_tokens`.
//! - Blocks of thinking carry an empty signature: nothing here needs one to read them again.
//! - Arguments of calls are sent once they are known to be JSON, unless the tool or the header asks for them as they
//!   come (`eager_input_streaming`, beta `fine-grained-tool-streaming`).
//!
//! Not here: the other dialects, and how a chat runs.

mod content;
mod errors;
mod handlers;
mod models;
mod request;
mod tools;
mod wire;
mod writer;

pub(crate) use errors::layer as errors_layer;
pub(crate) use handlers::{count_tokens, messages};
pub(crate) use models::{get_model, is_asked, list_models};
