//! Embeddings and rerankers' scores, whatever the dialect: one request inside, made ready, run and settled.
//!
//! A dialect parses bytes into an [`EmbedRequest`] or a [`RankRequest`], which becomes a [`VectorJob`]; [`respond`] runs
//! it and hands the vectors to the dialect's words. Not here: how an answer is written, and how tokens become vectors.
//! Invariants: all inputs of a request stand under one hold and are settled by one posting; what is billed is the tokens
//! of the sequences that were computed, marks and prompts included; an answer that broke costs nothing.

mod embed;
mod rank;

use std::sync::Arc;

use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::StreamExt;
use mintage_model::{Event, FinishReason, GenerateRequest, SubmitError, TokenId, TooLong};

use crate::app::App;
use crate::error::ApiError;
use crate::fields::shortened;
use crate::job::{Ending, Incoming, admit, base_request, covered, no_model};
use crate::metered::{Meter, MeteredStream, RequestFacts};
use crate::rate_limit;
use crate::respond::json_response;
use crate::served::{ModelSet, VectorModel};
use crate::till::{Arrival, Settled};

pub(crate) use embed::{EmbedRequest, Input, Texts};
pub(crate) use rank::{RankRequest, Ranked, take_documents, take_query};

/// Inputs of one request, as OpenAI has it.
pub(crate) const MAX_INPUTS: usize = 2048;
/// Tokens of all sequences of one request, as OpenAI has it.
pub(crate) const MAX_REQUEST_TOKENS: usize = 300_000;
/// Numbers of all vectors of one answer.
const MAX_ELEMENTS: usize = 1 << 22;
/// Bytes of an instruction, which stands before every query.
const MAX_INSTRUCTION_BYTES: usize = 4096;
/// Answers of more numbers than this are written away from the threads that serve sockets.
const INLINE_ELEMENTS: usize = 4096;

/// What is to be computed.
pub(crate) struct VectorJob {
    /// Of the answer, and of its record.
    pub(crate) id: String,
    pub(crate) model: Arc<VectorModel>,
    /// As the client named it.
    pub(crate) asked: String,
    /// One sequence a vector.
    pub(crate) sequences: Vec<Arc<[TokenId]>>,
    /// Dialect and route, for the record.
    pub(crate) protocol: &'static str,
}

/// Whether a dialect's route, as records have it, is one of these.
pub(crate) fn is_protocol(protocol: &str) -> bool {
    let route = protocol.split_once('.').map(|(_, route)| route);
    matches!(route, Some("embed" | "embeddings" | "rerank"))
}

/// What a sequence came to: an embedding, or one number.
pub(crate) type Vector = Arc<[f32]>;

/// The model of this name, if it makes vectors.
pub(crate) fn find(models: &ModelSet, name: &str) -> Result<Arc<VectorModel>, ApiError> {
    match models.vectors(name) {
        Some(model) => Ok(Arc::clone(model)),
        None if models.knows(name) => {
            let name = shortened(name);
            let others = others(models);
            let message =
                format!("The model `{name}` answers chats and makes no vectors; {others}.");
            Err(ApiError::field("model", "unsupported_model", message))
        }
        None => Err(no_model(name)),
    }
}

/// Which models could be asked instead.
fn others(models: &ModelSet) -> String {
    let able = models.all_vectors().iter().take(8);
    let names: Vec<String> = able.map(|model| format!("`{}`", model.name)).collect();
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

/// Runs a job and answers. `make` turns vectors into what the answer says of them, and may take its time; `write` adds
/// what they cost.
pub(crate) async fn respond<T: Send + 'static>(
    app: &App,
    incoming: Incoming,
    job: VectorJob,
    make: impl FnOnce(Vec<Vector>) -> Result<T, ApiError> + Send + 'static,
    write: impl FnOnce(T, &Settled) -> Result<Vec<u8>, ApiError>,
) -> Result<Response, ApiError> {
    let tokens = job.sequences.iter().map(|sequence| sequence.len() as u64).sum();
    let submit = || submit(app, &incoming, &job, tokens);
    let mut running = covered(app, &incoming, &job.model.name, tokens, submit).await?;
    let mut headers = HeaderMap::new();
    rate_limit::add_to(&mut headers, &running.standings);
    let made = match running.read(app.limits.request_timeout.as_secs()).await {
        Ok(vectors) => {
            let elements: usize = vectors.iter().map(|vector| vector.len()).sum();
            // As if it were so many bytes of text: beyond that, on a thread of its own.
            let size = if elements > INLINE_ELEMENTS { usize::MAX } else { 0 };
            app.on_text_thread(size, move || make(vectors)).await
        }
        Err(error) => Err(error),
    };
    let made = made.inspect_err(|_| running.meter.forgive())?;
    let mut bytes = Vec::new();
    let settling = running.meter.settle(|settled| {
        bytes = write(made, settled)?;
        incoming.keeping.as_ref().map_or(Ok(None), |keeping| keeping.whole(&bytes))
    })?;
    settling.await?;
    let mut response = json_response(bytes);
    response.headers_mut().extend(headers);
    Ok(response)
}

/// The sequences of one request while they are computed. Dropping it stops them.
struct Running {
    streams: Vec<MeteredStream>,
    meter: Meter,
    standings: mintage_ledger::limits::Standings,
    ending: Ending,
}

/// Submits all sequences; if one is refused, those already taken are cancelled (and settled) by being dropped.
fn submit(
    app: &App,
    incoming: &Incoming,
    job: &VectorJob,
    prompt_tokens: u64,
) -> Result<Running, ApiError> {
    let model = &job.model;
    let arrival = Arrival {
        response_id: job.id.as_str().into(),
        model: model.name.as_str().into(),
        model_digest: Arc::clone(&model.digest),
        metered_by: "",
        protocol: job.protocol,
        client: Arc::clone(&incoming.client),
        prompt_tokens,
        max_output_tokens: 0,
        choices: 1,
        batch: incoming.line.is_some(),
    };
    let admitted = admit(app, incoming, &job.asked, &arrival)?;
    let metrics = app.metrics.of(&model.name);
    let metrics = metrics.ok_or_else(|| ApiError::internal("a model without metrics"))?;
    let facts = RequestFacts {
        request_id: incoming.request_id.clone(),
        response_id: job.id.clone(),
        principal: Arc::clone(&incoming.caller.principal),
        model: model.name.clone(),
        arrival: incoming.arrival,
        streamed: false,
        batch: incoming.line.is_some(),
        // Every sequence has a prompt of its own.
        n: 1,
    };
    let standings = admitted.standings;
    let meter = Meter::new(facts, admitted, metrics, app.settling.clone());
    let base = base_request(app, incoming);
    let mut streams = Vec::with_capacity(job.sequences.len());
    for (index, sequence) in (0..).zip(&job.sequences) {
        let request = GenerateRequest {
            request_id: format!("{}-{index}", job.id),
            prompt: Arc::clone(sequence),
            max_new_tokens: 0,
            ..base.clone()
        };
        let stream =
            meter.submit(model.engine.as_ref(), index, request, None).map_err(|error| {
                meter.forgive();
                if matches!(error, SubmitError::QueueFull { .. }) {
                    app.metrics.refused("queue_full");
                }
                ApiError::refused(error)
            })?;
        streams.push(stream);
    }
    Ok(Running { streams, meter, standings, ending: Ending::new(app, incoming) })
}

impl Running {
    /// All vectors, in order. They are computed side by side whatever the order in which they are read.
    async fn read(&mut self, request_timeout_s: u64) -> Result<Vec<Vector>, ApiError> {
        let ending = self.ending.clone().reached();
        tokio::pin!(ending);
        let mut vectors = Vec::with_capacity(self.streams.len());
        for stream in &mut self.streams {
            tokio::select! {
                biased;
                vector = read_one(stream, request_timeout_s) => vectors.push(vector?),
                error = &mut ending => return Err(error),
            }
        }
        Ok(vectors)
    }
}

async fn read_one(stream: &mut MeteredStream, request_timeout_s: u64) -> Result<Vector, ApiError> {
    let mut vector = None;
    while let Some(event) = stream.next().await {
        match event {
            Event::Vector(given) => vector = Some(given),
            Event::Finished(finish) => {
                return match finish.reason {
                    FinishReason::Length | FinishReason::Stop(_) => {
                        vector.ok_or_else(|| ApiError::internal("an engine gave no vector"))
                    }
                    FinishReason::Deadline => Err(ApiError::deadline(request_timeout_s)),
                    // We cancel only what nobody reads any more: then the engine is going down.
                    FinishReason::Cancelled => Err(ApiError::shutting_down()),
                    FinishReason::Fault(fault) => Err(ApiError::engine(&fault)),
                };
            }
            Event::Prefilled { .. } | Event::Token(_) => {}
        }
    }
    Err(ApiError::internal("an engine's stream ended without an end"))
}

/// The cosine of two vectors; 0 where one has no length.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}
