//! Embeddings and rerankers' scores, whatever the dialect: one request inside, made ready, run and settled.
//!
//! A dialect parses bytes into an [`EmbedRequest`] or a [`RankRequest`], which becomes a [`VectorJob`]; [`respond`] runs
//! it and hands the vectors to the dialect's words. Not here: how an answer is written, and how tokens become vectors.
//! Invariants: all inputs of a request stand under one hold and are settled by one posting; what is billed is the tokens
//! of the sequences that were computed, marks and prompts included; an answer that broke costs nothing.

mod embed;
mod job;
mod rank;
mod run;

use std::sync::Arc;

use axum::http::HeaderMap;
use axum::response::Response;
use mintage_model::{TokenId, TooLong, VectorTask};

use crate::app::App;
use crate::error::ApiError;
use crate::fields::shortened;
use crate::job::{Incoming, no_model};
use crate::rate_limit;
use crate::respond::json_response;
use crate::served::{ModelSet, VectorTarget};
use crate::till::Settled;

pub(crate) use embed::{EmbedRequest, Input, Room, Shortening, Texts, vector_json};
pub(crate) use job::VectorJob;
pub(crate) use rank::{QUERY_ADVICE, RankRequest, Ranked, take_documents, take_query};

/// Inputs of one request, as OpenAI has it.
pub(crate) const MAX_INPUTS: usize = 2048;
/// Tokens of all sequences of one request, as OpenAI has it.
pub(crate) const MAX_REQUEST_TOKENS: usize = 300_000;
/// Numbers of all vectors of one answer.
pub(crate) const MAX_ELEMENTS: usize = 1 << 22;
/// Bytes of an instruction, which stands before every query.
const MAX_INSTRUCTION_BYTES: usize = 4096;
/// Answers of more numbers than this are written away from the threads that serve sockets.
const INLINE_ELEMENTS: usize = 4096;

/// Whether a dialect's route, as records have it, is one of these.
pub(crate) fn is_protocol(protocol: &str) -> bool {
    let route = protocol.split_once('.').map(|(_, route)| route);
    matches!(route, Some("embed" | "embeddings" | "rerank"))
}

/// What a sequence came to: an embedding, or one number.
pub(crate) type Vector = Arc<[f32]>;

/// Who makes vectors under this name: the first of them, and those that stand in for it.
fn find(
    models: &ModelSet,
    name: &str,
    id: &str,
) -> Result<(VectorTarget, Vec<VectorTarget>), ApiError> {
    let mut targets = models.vector_targets(name, id);
    if !targets.is_empty() {
        let first = targets.remove(0);
        return Ok((first, targets));
    }
    if !models.knows(name) {
        return Err(no_model(name));
    }
    let name = shortened(name);
    let others = others(models);
    let message = format!("The model `{name}` answers chats and makes no vectors; {others}.");
    Err(ApiError::field("model", "unsupported_model", message))
}

/// Which models could be asked instead.
fn others(models: &ModelSet) -> String {
    let names: Vec<String> =
        models.vector_names().take(8).map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        return "none that does is served here".to_owned();
    }
    format!("these do: {}", names.join(", "))
}

/// An instruction is a sentence.
pub(crate) fn check_instruction(field: &str, instruction: Option<&str>) -> Result<(), ApiError> {
    let bytes = instruction.map_or(0, str::len);
    if bytes > MAX_INSTRUCTION_BYTES {
        let message = format!("`{field}` has at most {MAX_INSTRUCTION_BYTES} bytes, not {bytes}.");
        return Err(ApiError::field(field, "invalid_value", message));
    }
    Ok(())
}

/// Sequences of one request, within their bounds.
struct Sequences {
    all: Vec<Arc<[TokenId]>>,
    tokens: usize,
    field: &'static str,
}

impl Sequences {
    fn new(field: &'static str) -> Self {
        Self { all: Vec::new(), tokens: 0, field }
    }

    fn push(&mut self, ids: Vec<TokenId>) -> Result<(), ApiError> {
        self.tokens += ids.len();
        if self.tokens > MAX_REQUEST_TOKENS {
            let field = self.field;
            let message = format!(
                "A request has at most {MAX_REQUEST_TOKENS} tokens; those of `{field}` up to number {} are {}. \
                 Send fewer at once.",
                self.all.len(),
                self.tokens
            );
            return Err(ApiError::field(field, "too_many_tokens", message));
        }
        self.all.push(ids.into());
        Ok(())
    }
}

fn too_long(field: &str, found: TooLong, advice: &str) -> ApiError {
    let TooLong { tokens, limit } = found;
    let message = format!(
        "`{field}` has {tokens} tokens with its marks; the model takes at most {limit}. {advice}"
    );
    ApiError::field(field, "context_length_exceeded", message)
}

/// Runs a job, or the same for another target where one cannot, and answers. `make` turns vectors into what the answer says
/// of them, and may take its time; `write` adds who answered and what it cost.
pub(crate) async fn respond<T: Send + 'static>(
    app: &App,
    incoming: Incoming,
    job: VectorJob,
    make: impl FnOnce(VectorTask, Vec<Vector>) -> Result<T, ApiError> + Send + 'static,
    write: impl FnOnce(T, &Settled, &str) -> Result<Vec<u8>, ApiError>,
) -> Result<Response, ApiError> {
    let (job, mut running) = run::begin(app, &incoming, job).await?;
    let mut headers = HeaderMap::new();
    rate_limit::add_to(&mut headers, &running.standings);
    let made = match running.read(app.limits.request_timeout.as_secs()).await {
        Ok(vectors) => {
            let elements: usize = vectors.iter().map(|vector| vector.len()).sum();
            // As if it were so many bytes of text: beyond that, on a thread of its own.
            let size = if elements > INLINE_ELEMENTS { usize::MAX } else { 0 };
            let (task, shortening) = (job.task(), job.shortening());
            let make = move || make(task, vectors.iter().map(|v| shortening.apply(v)).collect());
            app.on_text_thread(size, make).await
        }
        Err(error) => Err(error),
    };
    let made = made.inspect_err(|_| running.meter.forgive())?;
    let mut bytes = Vec::new();
    let settling = running.meter.settle(|settled| {
        bytes = write(made, settled, job.model_name())?;
        incoming.keeping.as_ref().map_or(Ok(None), |keeping| keeping.whole(&bytes))
    })?;
    settling.await?;
    let mut response = json_response(bytes);
    response.headers_mut().extend(headers);
    Ok(response)
}

/// The cosine of two vectors; 0 where one has no length.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}
