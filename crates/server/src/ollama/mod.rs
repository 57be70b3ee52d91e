//! Ollama's dialect: `/api/chat`, `/api/generate`, `/api/embed`, and what its clients ask of models.
//!
//! Decided once for all of it:
//! - Answers are streams unless `stream` is false: lines of JSON, the last with `done`, counts and durations (ns).
//! - Unknown fields and options are ignored, as Ollama does, and so are those that only say how to compute
//!   (`num_ctx`, `num_gpu`, `keep_alive` …). What would change the answer and cannot be had (images, a template of the
//!   request's own, mirostat) is refused by name.
//! - Prompts that do not fit are refused, never cut: `truncate` and `shift` have nothing to do. Texts to embed are cut
//!   at their end unless `truncate` is false.
//! - A request without messages or prompt is one to load the model, which is loaded already.
//! - `prompt_eval_count` counts the whole prompt, cached or not.
//! - A name may end in `:latest`.
//!
//! Not here: pulling, creating and deleting models (the command line does), and how a chat runs.

mod chat;
mod embed;
mod errors;
mod generate;
mod messages;
mod models;
mod options;
mod writer;

pub(crate) use chat::chat;
pub(crate) use embed::{embed, embeddings};
pub(crate) use errors::layer as errors_layer;
pub(crate) use generate::generate;
pub(crate) use models::{ps, show, tags, version};
