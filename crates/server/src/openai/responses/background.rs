//! Responses that run whoever waits for them, and who follows them.
//!
//! One task a response reads it to its end and has it kept; followers are told its steps from any event on. What it
//! computes costs what it would in a request that somebody waits for, and nothing where it fails: the answer is kept in the ledger with its
//! posting, so that after a crash a response is there and paid for, or failed and not.
//!
//! Invariant: a response that is not over is in [`Background`] or was cut by the end of a server; the next start ends
//! those.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use axum::response::Response;
use mintage_model::TextModel;
use tokio::sync::watch;
use tracing::Instrument;

use crate::app::{Admission, App};
use crate::error::{ApiError, json};
use crate::idempotency::{Form, Keeping, KeptPlace, Taken};
use crate::job::{Choices, Incoming, Job};
use crate::metered::Settling;
use crate::openai::responses::compose::{Composer, Step, Steps};
use crate::openai::responses::wire::{ErrorBody, ResponseBody, Status};
use crate::openai::responses::writer::{Shelf, broken, ended, teller, told};
use crate::project_store::on_disk;
use crate::rate_limit;
use crate::respond::{Frames, json_bytes, submit};
use crate::sse::{self, EventSource, Framing};
use crate::storage::{AnswerKind, AnswerRecord, Storage, StorageError};

/// Who keeps answers of responses in the ledger. No route is called so.
const KEEPER: &str = "response";
const SECONDS_A_DAY: u64 = 86_400;
const RESTARTED: &str = "The server stopped while this response was being computed. Nothing was billed; please create it again.";

/// The responses that run, by id.
#[derive(Default)]
pub(crate) struct Background(Mutex<HashMap<String, Arc<Running>>>);

impl Background {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Running>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: &str) -> Option<Arc<Running>> {
        self.all().get(id).cloned()
    }
}

/// A response that runs, or did.
pub(super) struct Running {
    /// As it was before anything happened.
    begun: ResponseBody,
    /// Its events may be asked for.
    pub(super) is_streamed: bool,
    log: Mutex<Log>,
    /// Rings when the log has grown.
    changed: watch::Sender<()>,
    cancelled: watch::Sender<bool>,
}

#[derive(Default)]
struct Log {
    steps: Vec<Step>,
    /// How it ended.
    end: Option<ResponseBody>,
}

impl Running {
    fn new(begun: ResponseBody, is_streamed: bool, log: Log) -> Self {
        let (changed, cancelled) = (watch::Sender::new(()), watch::Sender::new(false));
        Self { begun, is_streamed, log: Mutex::new(log), changed, cancelled }
    }

    /// One that is over, as it is kept.
    pub(super) fn over(body: ResponseBody, steps: Vec<Step>) -> Self {
        let begun = body.begun(Status::Queued);
        Self::new(begun, true, Log { steps, end: Some(body) })
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, step: Step) {
        self.log().steps.push(step);
        self.changed.send_replace(());
    }

    fn end(&self, body: ResponseBody) {
        self.log().end = Some(body);
        self.changed.send_replace(());
    }

    /// As far as it has come.
    pub(super) fn so_far(&self) -> Result<ResponseBody, ApiError> {
        let steps = {
            let log = self.log();
            if let Some(end) = &log.end {
                return Ok(end.clone());
            }
            log.steps.clone()
        };
        composed(&self.begun, &steps).map(|composer| composer.body)
    }

    /// Stops it; resolves when it is over.
    pub(super) async fn cancel(&self) {
        self.cancelled.send_replace(true);
        let mut changed = self.changed.subscribe();
        while self.log().end.is_none() {
            // The sender lives in `self`.
            let _ = changed.changed().await;
        }
    }
}

fn composed(begun: &ResponseBody, steps: &[Step]) -> Result<Composer, ApiError> {
    let mut composer = Composer::new(begun.clone(), false);
    for step in steps {
        composer.step(step, None)?;
    }
    Ok(composer)
}

/// Begins a response: it is kept, then computed by a task of its own.
pub(super) async fn begin(
    app: &Arc<App>,
    mut incoming: Incoming,
    mut job: Job,
    body: ResponseBody,
    shelf: Shelf,
    stream: Option<bool>,
) -> Result<Response, ApiError> {
    let mut begun = body.begun(Status::Queued);
    let keeping = match (incoming.keeping.take(), app.till.ledger()) {
        (Some(keeping), _) => Some(keeping),
        (None, Some(ledger)) => {
            let kept_s = shelf.storage.config.answers.keep_days.saturating_mul(SECONDS_A_DAY);
            let place = KeptPlace::own(&shelf.project, KEEPER, &begun.id, &incoming.body);
            match place.take(ledger, kept_s, false).await? {
                Taken::Free(keeping) => Some(keeping),
                Taken::Answered(_) => {
                    return Err(ApiError::internal("an answer of this id is kept already"));
                }
            }
        }
        (None, None) => None,
    };
    let mut record = shelf.record(&begun);
    record.kept_at =
        keeping.as_ref().and_then(|keeping| serde_json::to_string(&keeping.place()).ok());
    let (storage, first) = (Arc::clone(&shelf.storage), record.clone());
    let added = on_disk(move || storage.add_answer(AnswerKind::Response, &first)).await?;
    added.map_err(|error| ApiError::internal(error.to_string()))?;
    let told = |job: &Job| job.model_name().clone_into(&mut begun.model);
    let choices = match submit(app, &incoming, &mut job, told).await {
        Ok(choices) => choices,
        Err(error) => {
            let (storage, project) = (Arc::clone(&shelf.storage), Arc::clone(&shelf.project));
            let remove = move || storage.remove_answer(&project, AnswerKind::Response, &begun.id);
            if let Err(error) = on_disk(remove).await? {
                tracing::warn!(%error, "a response that was refused is still kept");
            }
            return Err(error);
        }
    };
    let mut headers = axum::http::HeaderMap::new();
    rate_limit::add_to(&mut headers, &choices.standings);
    let running = Arc::new(Running::new(begun.clone(), stream.is_some(), Log::default()));
    app.background.all().insert(begun.id.clone(), Arc::clone(&running));
    let run = Run {
        app: Arc::clone(app),
        running: Arc::clone(&running),
        text: teller(&job),
        storage: shelf.storage,
        record,
        keeping,
        _admission: incoming.admission,
    };
    app.settling.spawn(run.run(choices).instrument(tracing::Span::current()));
    let mut response = match stream {
        Some(obfuscates) => follow(app, running, None, obfuscates)?,
        None => json(&begun),
    };
    response.headers_mut().extend(headers);
    Ok(response)
}

/// The task of one response.
struct Run {
    app: Arc<App>,
    running: Arc<Running>,
    /// Of tokens that are told of.
    text: Option<Arc<TextModel>>,
    storage: Arc<Storage>,
    record: AnswerRecord,
    keeping: Option<Keeping>,
    _admission: Admission,
}

impl Run {
    /// Reads the response, has its end kept, and tells who waits.
    async fn run(mut self, mut choices: Choices) {
        let read = self.read(&mut choices).await;
        let settled = match read {
            Ok(true) => self.settle(&choices).map(|(body, settling)| (body, Some(settling))),
            // What was computed until now is billed when the choices are dropped.
            Ok(false) => self.cancelled().map(|body| (body, None)),
            Err(error) => {
                choices.forgive();
                Err(error)
            }
        };
        drop(choices);
        let body = match settled {
            Ok((body, Some(settling))) => settling.await.map(|()| body),
            Ok((body, None)) => Ok(body),
            Err(error) => Err(error),
        };
        // Who repeats the request finds its answer from here on.
        self.keeping = None;
        let body = body.unwrap_or_else(|error| {
            if let Some(log) = &error.log {
                tracing::warn!(error = %log, "a response broke");
            }
            broken(&self.running.begun, &error)
        });
        self.keep(&body).await;
        self.app.background.all().remove(&body.id);
        self.running.end(body);
    }

    /// Whether it came to its end; else it was cancelled.
    async fn read(&self, choices: &mut Choices) -> Result<bool, ApiError> {
        let mut cancelled = self.running.cancelled.subscribe();
        let mut steps = Steps::default();
        loop {
            let part = tokio::select! {
                biased;
                // The sender lives in `running`.
                _ = cancelled.wait_for(|is| *is) => return Ok(false),
                part = choices.next() => part,
            };
            let Some(part) = part else { return Ok(true) };
            let (_, part) = part?;
            let text = self.text.as_deref();
            if let Some(step) = steps.step(&part, |entries| told(text, entries)) {
                self.running.add(step);
            }
        }
    }

    /// Posts what it used, and keeps the answer with that.
    fn settle(&self, choices: &Choices) -> Result<(ResponseBody, Settling), ApiError> {
        let steps = self.running.log().steps.clone();
        let mut body = composed(&self.running.begun, &steps)?.body;
        let settling = choices.settle(|settled| {
            body = ended(&body, &settled.usage);
            let Some(keeping) = &self.keeping else { return Ok(None) };
            if !self.running.is_streamed {
                return Ok(keeping.answer(Form::Json, &json_bytes(&body)?));
            }
            let over = Arc::new(Running::over(body.clone(), steps));
            let mut follower = Follower::new(over, None, false)?;
            follower.advance()?;
            let mut sent = Vec::new();
            while let Some(frame) = follower.ready.pop() {
                sent.extend_from_slice(&frame);
            }
            Ok(keeping.answer(Form::Events, &sent))
        })?;
        Ok((body, settling))
    }

    fn cancelled(&self) -> Result<ResponseBody, ApiError> {
        let mut composer = composed(&self.running.begun, &self.running.log().steps)?;
        composer.cut()?;
        Ok(ResponseBody { status: Status::Cancelled, ..composer.body })
    }

    async fn keep(&self, body: &ResponseBody) {
        let mut record = self.record.clone();
        let steps = self.running.is_streamed.then(|| self.running.log().steps.clone());
        let (storage, body) = (Arc::clone(&self.storage), body.clone());
        let keep = move || {
            record.document = serde_json::to_string(&body).unwrap_or_default();
            record.steps = steps.and_then(|steps| serde_json::to_string(&steps).ok());
            record.is_over = true;
            storage.change_answer(AnswerKind::Response, &record)
        };
        match on_disk(keep).await {
            // Its project removed it while it ran.
            Ok(Ok(()) | Err(StorageError::NotFound)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a response is not kept as it ended"),
            Err(error) => tracing::warn!(error = ?error.log, "a response is not kept as it ended"),
        }
    }
}

/// Streams a response from behind an event on.
pub(super) fn follow(
    app: &App,
    running: Arc<Running>,
    after: Option<u64>,
    obfuscates: bool,
) -> Result<Response, ApiError> {
    let follower = Follower::new(running, after, obfuscates)?;
    Ok(sse::response(follower, &Framing::EVENTS, app.limits.keep_alive_interval))
}

/// Tells the events of a response as they come.
struct Follower {
    running: Arc<Running>,
    changed: watch::Receiver<()>,
    composer: Composer,
    /// Steps that were told.
    told: usize,
    ready: Frames,
    is_over: bool,
}

impl Follower {
    fn new(running: Arc<Running>, after: Option<u64>, obfuscates: bool) -> Result<Self, ApiError> {
        let mut composer = Composer::new(running.begun.clone(), obfuscates).after(after);
        let mut ready = Frames::default();
        composer.queued(Some(&mut ready))?;
        let mut changed = running.changed.subscribe();
        changed.mark_changed();
        Ok(Self { running, changed, composer, told: 0, ready, is_over: false })
    }

    /// Takes what is new.
    fn advance(&mut self) -> Result<(), ApiError> {
        let (steps, end) = {
            let log = self.running.log();
            (log.steps.get(self.told..).unwrap_or_default().to_vec(), log.end.clone())
        };
        for step in &steps {
            self.composer.step(step, Some(&mut self.ready))?;
        }
        self.told += steps.len();
        if let Some(end) = end {
            self.is_over = true;
            self.composer.last(end, Some(&mut self.ready))?;
        }
        Ok(())
    }
}

impl EventSource for Follower {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.ready.pop() {
                return Some(frame);
            }
            if self.is_over {
                return None;
            }
            // The sender lives in `running`.
            let _ = self.changed.changed().await;
            if let Err(error) = self.advance() {
                tracing::warn!(error = ?error.log, "a response cannot be followed");
                self.is_over = true;
            }
        }
    }
}

/// Ends the responses that ran when the last server ended: those that were billed have their answer. Blocks.
///
/// # Errors
/// Store or ledger do not answer.
pub(crate) fn recover(app: &App) -> Result<(), StorageError> {
    let Some(storage) = &app.storage else { return Ok(()) };
    for mut record in storage.answers_to_end(AnswerKind::Response)? {
        let kept = match (&record.kept_at, app.till.ledger()) {
            (Some(place), Some(ledger)) => serde_json::from_str::<KeptPlace>(place)
                .ok()
                .map(|place| place.find(ledger))
                .transpose()?
                .flatten(),
            _ => None,
        };
        let body = match kept.as_deref().and_then(sent) {
            Some(body) => body,
            None => {
                let begun = serde_json::from_str::<ResponseBody>(&record.document);
                let begun = begun.map_err(|e| StorageError::Damaged(format!("a response: {e}")))?;
                let error =
                    ErrorBody { code: "server_error".to_owned(), message: RESTARTED.to_owned() };
                ResponseBody { error: Some(error), ..begun.begun(Status::Failed) }
            }
        };
        tracing::info!(response = %record.id, status = ?body.status, "a response was cut by a restart");
        record.document = serde_json::to_string(&body).unwrap_or_default();
        record.is_over = true;
        match storage.change_answer(AnswerKind::Response, &record) {
            Ok(()) | Err(StorageError::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The response in an answer as it was sent: the whole of it, or its last event.
fn sent(answer: &[u8]) -> Option<ResponseBody> {
    #[derive(serde::Deserialize)]
    struct Last {
        response: ResponseBody,
    }
    if let Ok(body) = serde_json::from_slice(answer) {
        return Some(body);
    }
    let text = std::str::from_utf8(answer).ok()?;
    let data = text.lines().rev().find_map(|line| line.strip_prefix("data: "))?;
    serde_json::from_str::<Last>(data).ok().map(|last| last.response)
}
