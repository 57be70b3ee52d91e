//! Writes a response, whole or as events, and has it kept.

use std::sync::Arc;

use mintage_ledger::TokenUsage;
use mintage_model::{GenerationDefaults, TextModel};
use serde_json::Value;

use crate::answer::{Part, TokenEntry};
use crate::auth::now_unix;
use crate::error::ApiError;
use crate::job::Job;
use crate::openai::responses::compose::{Composer, Steps};
use crate::openai::responses::wire::{ErrorBody, ResponseBody, Status, UsageBody};
use crate::openai::stored::keep;
use crate::openai::wire::chat_logprobs;
use crate::respond::{Answer, Frames, Keep, Writer, json_bytes};
use crate::served::Target;
use crate::storage::{AnswerKind, AnswerRecord, Storage};
use crate::till::Settled;

/// Where a response is kept, and what was given for it.
#[derive(Clone)]
pub(super) struct Shelf {
    pub(super) storage: Arc<Storage>,
    pub(super) project: Arc<str>,
    /// Items as they are listed.
    pub(super) input: Vec<Value>,
}

impl Shelf {
    /// What is kept of a response.
    pub(super) fn record(&self, body: &ResponseBody) -> AnswerRecord {
        AnswerRecord {
            id: body.id.clone(),
            project: self.project.to_string(),
            model: body.model.clone(),
            // Structs that we made ourselves: this cannot fail.
            document: serde_json::to_string(body).unwrap_or_default(),
            input: serde_json::to_string(&self.input).unwrap_or_default(),
            steps: None,
            kept_at: None,
            is_over: !matches!(body.status, Status::Queued | Status::InProgress),
        }
    }
}

/// What the answer tells of the request, once it is known who answers.
pub(super) fn shown(mut body: ResponseBody, job: &Job, store: bool) -> ResponseBody {
    let sampling = match &job.target {
        Target::Own(model) => job.options.sampling(&model.defaults, 0),
        Target::Remote(_) => job.options.sampling(&GenerationDefaults::default(), 0),
    };
    body.id.clone_from(&job.id);
    job.model_name().clone_into(&mut body.model);
    (body.temperature, body.top_p) = (sampling.temperature, sampling.top_p);
    body.store = store;
    body
}

/// What tells tokens, where they are to be told of; other services tell of none.
pub(super) fn teller(job: &Job) -> Option<Arc<TextModel>> {
    job.target.text().filter(|_| job.logprobs.is_some()).cloned()
}

/// What is told of tokens.
pub(super) fn told(text: Option<&TextModel>, entries: &[TokenEntry]) -> Vec<Value> {
    let Some(text) = text else { return Vec::new() };
    let all = chat_logprobs(text, entries).content;
    all.iter().filter_map(|entry| serde_json::to_value(entry).ok()).collect()
}

/// The end of a response that was computed.
pub(super) fn ended(body: &ResponseBody, usage: &TokenUsage) -> ResponseBody {
    let is_cut = body.incomplete_details.is_some();
    ResponseBody {
        status: if is_cut { Status::Incomplete } else { Status::Completed },
        completed_at: (!is_cut).then(now_unix),
        usage: Some(UsageBody::from(usage)),
        ..body.clone()
    }
}

/// The end of a response that broke.
pub(super) fn broken(body: &ResponseBody, error: &ApiError) -> ResponseBody {
    ResponseBody { error: Some(ErrorBody::from(error)), ..body.begun(Status::Failed) }
}

pub(super) struct ResponseWriter {
    composer: Composer,
    steps: Steps,
    /// Of tokens that are told of.
    text: Option<Arc<TextModel>>,
    shelf: Option<Shelf>,
}

impl ResponseWriter {
    pub(super) fn new(
        body: ResponseBody,
        job: &Job,
        obfuscates: bool,
        shelf: Option<Shelf>,
    ) -> Self {
        Self {
            composer: Composer::new(body, obfuscates),
            steps: Steps::default(),
            text: teller(job),
            shelf,
        }
    }

    fn take(&mut self, part: &Part, frames: Option<&mut Frames>) -> Result<(), ApiError> {
        let text = self.text.as_deref();
        let step = self.steps.step(part, |entries| told(text, entries));
        step.map_or(Ok(()), |step| self.composer.step(&step, frames))
    }
}

impl Writer for ResponseWriter {
    fn answered_by(&mut self, job: &Job) {
        job.model_name().clone_into(&mut self.composer.body.model);
        self.text = teller(job);
    }

    fn part(
        &mut self,
        _index: u32,
        part: Part,
        _so_far: &TokenUsage,
        frames: &mut Frames,
    ) -> Result<(), ApiError> {
        self.take(&part, Some(frames))
    }

    fn last(&mut self, settled: &Settled, frames: &mut Frames) -> Result<(), ApiError> {
        let ended = ended(&self.composer.body, &settled.usage);
        self.composer.last(ended, Some(frames))
    }

    fn broken(&mut self, error: &ApiError, frames: &mut Frames) {
        let broken = broken(&self.composer.body, error);
        // JSON that we made ourselves; should it fail, the stream ends without a last word.
        let _ = self.composer.last(broken, Some(frames));
    }

    fn seen(&mut self, _index: u32, part: &Part) {
        // Nothing is written, so nothing can fail.
        let _ = self.take(part, None);
    }

    fn whole(&mut self, _answers: Vec<Answer>, settled: &Settled) -> Result<Vec<u8>, ApiError> {
        let ended = ended(&self.composer.body, &settled.usage);
        self.composer.last(ended, None)?;
        json_bytes(&self.composer.body)
    }

    fn keep(&mut self) -> Option<Keep> {
        let shelf = self.shelf.take()?;
        let record = shelf.record(&self.composer.body);
        Some(keep(shelf.storage, AnswerKind::Response, record))
    }
}
