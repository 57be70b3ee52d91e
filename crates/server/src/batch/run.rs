//! The one task that runs all batches: takes them up, keeps lines in flight, writes results down, ends batches.
//!
//! What it knows can be made again from the index and the input files: dropping it at any moment loses nothing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::input::{Input, InputLimits};
use super::line::{Attempt, BatchLine, SERVER_ERROR, attempt, unanswered};
use super::pace::Pace;
use super::usage::UsageSum;
use crate::app::{App, Phase, line_router};
use crate::auth::{Access, Caller, now_unix};
use crate::idempotency::kept_line;
use crate::storage::{
    BatchDocument, BatchError, BatchRecord, BatchStatus, LineResult, Storage, StorageError,
};

/// How often batches are looked at without a reason.
const TICK: Duration = Duration::from_millis(250);
/// How often expired files are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// A line that could not be answered for now waits so long at first, and twice as long each time.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(60);
/// Attempts at a line that the server breaks on; those for want of capacity go on until the batch expires.
const MAX_FAULTS: u32 = 3;
/// The ledger keeps answers of lines for so long beyond the batch, s: after a crash they are found there.
const KEEP_BEYOND_S: u64 = 86_400;
/// Batches that are being run at once: their inputs are open, and the places of their lines in memory.
const MAX_ACTIVE: usize = 256;
const MAX_ACTIVE_OF_PROJECT: usize = 4;
/// After the disk failed.
const DISK_PAUSE: Duration = Duration::from_secs(1);

/// A batch that is being run.
struct Active {
    record: BatchRecord,
    input: Arc<Input>,
    file: Arc<Mutex<File>>,
    /// Lines without a result, in no attempt.
    waiting: VecDeque<Waiting>,
    in_flight: usize,
    /// Results that are not written yet.
    results: Vec<LineResult>,
    stop: watch::Sender<bool>,
    deadline: Instant,
}

#[derive(Clone, Copy)]
struct Waiting {
    line: u32,
    faults: u32,
    retries: u32,
    not_before: Option<Instant>,
}

/// The task's state.
struct Runner {
    app: Arc<App>,
    storage: Arc<Storage>,
    routes: TowerToHyperService<axum::Router>,
    active: HashMap<String, Active>,
    /// Whose turn it is, first come first.
    turns: VecDeque<String>,
    in_flight: JoinSet<(String, Waiting, Attempt)>,
    pace: Pace,
    was_alone: bool,
    swept: Instant,
}

/// Runs batches until the server drains, and never resolves.
pub(crate) async fn run(app: Arc<App>) {
    let Some(storage) = app.storage.clone() else { return std::future::pending().await };
    let mut runner = Runner {
        routes: TowerToHyperService::new(line_router(&app)),
        pace: Pace::new(storage.config.max_lines_in_flight),
        storage,
        active: HashMap::new(),
        turns: VecDeque::new(),
        in_flight: JoinSet::new(),
        was_alone: true,
        swept: Instant::now(),
        app: Arc::clone(&app),
    };
    let mut phase = app.phase.subscribe();
    let mut look = Instant::now();
    while app.phase() == Phase::Serving {
        if Instant::now() >= look {
            if let Err(error) = runner.look().await {
                tracing::warn!(%error, "batches cannot be looked at");
            }
            look = Instant::now() + TICK;
        }
        if let Err(error) = runner.turn().await {
            tracing::warn!(%error, "batches do not get on: results are not written");
            tokio::time::sleep(DISK_PAUSE).await;
        }
        tokio::select! {
            Some(done) = runner.in_flight.join_next() => runner.take(done),
            () = app.batches_changed.notified() => look = Instant::now(),
            _ = phase.changed() => {}
            () = tokio::time::sleep_until(look.into()) => {}
        }
        while let Some(done) = runner.in_flight.try_join_next() {
            runner.take(done);
        }
    }
    runner.stop().await;
    std::future::pending().await
}

/// Blocking work on the store.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| StorageError::Damaged(format!("work on the disk failed: {error}")))?
}

impl Runner {
    /// The server drains: lines stop, and what is done is written.
    async fn stop(&mut self) {
        for active in self.active.values() {
            active.stop.send_replace(true);
        }
        while let Some(done) = self.in_flight.join_next().await {
            self.take(done);
        }
        if let Err(error) = self.write().await {
            tracing::warn!(%error, "results of batches are not written; they are kept in the ledger");
        }
    }

    /// Takes up new batches, notices those that were cancelled, removes old files.
    async fn look(&mut self) -> Result<(), StorageError> {
        let loads = self.app.models.engines().map(|engine| engine.load());
        self.pace.observe(loads, self.was_alone);
        self.was_alone = true;
        if self.swept.elapsed() >= SWEEP_INTERVAL {
            self.swept = Instant::now();
            let storage = Arc::clone(&self.storage);
            on_disk(move || storage.sweep()).await?;
        }
        let storage = Arc::clone(&self.storage);
        for record in on_disk(move || storage.batches_to_do()).await? {
            if let Some(active) = self.active.get_mut(&record.id) {
                active.record.document.status = record.document.status;
            } else if must_end(&record) || self.has_room_for(&record.project) {
                let id = record.id.clone();
                // What is wrong with one is no reason to keep the others waiting.
                if let Err(error) = self.open(record).await {
                    tracing::warn!(batch = %id, %error, "a batch cannot be begun");
                }
            }
        }
        Ok(())
    }

    /// Of each project a few at once: the others wait for these, and no other project for them.
    fn has_room_for(&self, project: &str) -> bool {
        let of_project = self.active.values().filter(|active| active.record.project == project);
        self.active.len() < MAX_ACTIVE && of_project.count() < MAX_ACTIVE_OF_PROJECT
    }

    /// Checks a batch's input and makes it active, or fails it.
    async fn open(&mut self, record: BatchRecord) -> Result<(), StorageError> {
        let storage = Arc::clone(&self.storage);
        let limits = InputLimits {
            lines: self.storage.config.max_batch_lines,
            line_bytes: self.app.limits.max_body_bytes,
        };
        let (of, endpoint) = (record.clone(), record.document.endpoint.clone());
        let opened = on_disk(move || {
            let file = storage.open_input(&of.document.input_file_id)?;
            let reading = file.try_clone().map_err(read_error)?;
            let checked = Input::check(reading, &endpoint, limits).map_err(read_error)?;
            Ok((file, checked, storage.finished_lines(&of.id)?))
        });
        let (file, checked, finished) = match opened.await {
            Err(StorageError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return self.input_lost(record).await;
            }
            opened => opened?,
        };
        let checked = checked.and_then(|input| match self.app.serves(&input.model) {
            true => Ok(input),
            false => Err(vec![BatchError {
                code: "model_not_found".to_owned(),
                message: format!("The model `{}` does not exist.", input.model),
                param: Some("body.model".to_owned()),
                line: None,
            }]),
        });
        let input = match checked {
            Ok(input) => input,
            Err(errors) => {
                return self.change(&record, |document| fail(document, errors)).await.map(|_| ());
            }
        };
        let record = if record.document.status == BatchStatus::Validating {
            let (total, model) = (input.len(), input.model.clone());
            let begin = move |document: &mut BatchDocument| {
                document.request_counts.total = total;
                document.model = Some(model);
                document.in_progress_at = Some(now_unix());
                // It may have been cancelled meanwhile.
                if document.status == BatchStatus::Validating {
                    document.status = BatchStatus::InProgress;
                }
            };
            self.change(&record, begin).await?
        } else {
            record
        };
        let finished: HashSet<u32> = finished.into_iter().collect();
        let lines = (0..input.len()).filter(|line| !finished.contains(line));
        let waiting =
            lines.map(|line| Waiting { line, faults: 0, retries: 0, not_before: None }).collect();
        let left_s = record.document.expires_at.saturating_sub(now_unix());
        self.turns.push_back(record.id.clone());
        let active = Active {
            deadline: Instant::now() + Duration::from_secs(left_s),
            record: record.clone(),
            input: Arc::new(input),
            file: Arc::new(Mutex::new(file)),
            waiting,
            in_flight: 0,
            results: Vec::new(),
            stop: watch::Sender::new(false),
        };
        self.active.insert(record.id, active);
        Ok(())
    }

    /// Fails a batch that cannot go on; what was answered, and billed, is handed out.
    async fn input_lost(&self, record: BatchRecord) -> Result<(), StorageError> {
        let error = BatchError {
            code: "input_file_lost".to_owned(),
            message: "The content of the input file is gone.".to_owned(),
            param: Some("input_file_id".to_owned()),
            line: None,
        };
        let storage = Arc::clone(&self.storage);
        let end = move || {
            let results = storage.write_results(&record.id, |_| {})?;
            storage.end_batch(&record, results, |document| fail(document, vec![error]))
        };
        on_disk(end).await.map(|_| ())
    }

    async fn change(
        &self,
        record: &BatchRecord,
        change: impl FnOnce(&mut BatchDocument) + Send + 'static,
    ) -> Result<BatchRecord, StorageError> {
        let (storage, of) = (Arc::clone(&self.storage), record.clone());
        on_disk(move || storage.change_batch(&of.project, &of.id, change)).await
    }

    /// Writes what is done, ends what is complete, begins what there is room for.
    async fn turn(&mut self) -> Result<(), StorageError> {
        self.write().await?;
        let mut over = Vec::new();
        for (id, active) in &self.active {
            let is_stopped = active.record.document.status == BatchStatus::Cancelling
                || Instant::now() >= active.deadline;
            if is_stopped {
                active.stop.send_replace(true);
            }
            if active.in_flight == 0 && (is_stopped || active.waiting.is_empty()) {
                over.push(id.clone());
            }
        }
        for id in over {
            self.end(&id).await?;
        }
        self.begin_lines();
        Ok(())
    }

    async fn write(&mut self) -> Result<(), StorageError> {
        for active in self.active.values_mut().filter(|active| !active.results.is_empty()) {
            let (storage, record) = (Arc::clone(&self.storage), active.record.clone());
            let results = active.results.clone();
            let written = on_disk(move || storage.add_results(&record, &results)).await?;
            active.results.clear();
            active.record = written;
        }
        Ok(())
    }

    /// Begins lines, batch by batch in turn.
    fn begin_lines(&mut self) {
        let online = self.app.requests_in_flight();
        self.was_alone &= online == 0;
        let window = self.pace.window(online);
        let mut idle = 0;
        while self.in_flight.len() < window && idle < self.turns.len() {
            let Some(id) = self.turns.pop_front() else { return };
            let begun = match self.active.get_mut(&id) {
                None => continue,
                Some(active) => begin_line(&self.app, &self.routes, &mut self.in_flight, active),
            };
            self.turns.push_back(id);
            idle = if begun { 0 } else { idle + 1 };
        }
    }

    /// An attempt has ended.
    fn take(&mut self, done: Result<(String, Waiting, Attempt), tokio::task::JoinError>) {
        let (id, mut line, attempt) = match done {
            Ok(done) => done,
            Err(error) => {
                // The line is looked at again after the next start; its batch cannot end before.
                tracing::error!(%error, "a line of a batch was lost");
                return;
            }
        };
        let Some(active) = self.active.get_mut(&id) else { return };
        active.in_flight -= 1;
        match attempt {
            Attempt::Done(result) => active.results.push(result),
            Attempt::Stopped => active.waiting.push_back(line),
            Attempt::Failed(result) if line.faults + 1 >= MAX_FAULTS => active.results.push(result),
            Attempt::Failed(_) | Attempt::Later => {
                line.faults += u32::from(!matches!(attempt, Attempt::Later));
                let wait = FIRST_RETRY.saturating_mul(1 << line.retries.min(16)).min(MAX_RETRY);
                line.retries += 1;
                line.not_before = Some(Instant::now() + wait);
                active.waiting.push_back(line);
            }
        }
    }

    /// Gives every line a result, makes files of them, and the batch is over.
    async fn end(&mut self, id: &str) -> Result<(), StorageError> {
        let Some(active) = self.active.get(id) else { return Ok(()) };
        let is_cancelled = active.record.document.status == BatchStatus::Cancelling;
        let (code, message) = if is_cancelled {
            ("batch_cancelled", "The batch was cancelled before this request was answered.")
        } else {
            ("batch_expired", "This request could not be answered before the batch expired.")
        };
        let lines: Vec<u32> = active.waiting.iter().map(|waiting| waiting.line).collect();
        let was_left = !lines.is_empty();
        let (storage, record) = (Arc::clone(&self.storage), active.record.clone());
        let (input, file) = (Arc::clone(&active.input), Arc::clone(&active.file));
        let ledger = self.app.till.ledger().cloned();
        on_disk(move || {
            for lines in lines.chunks(RESULTS_PER_WRITE) {
                let mut results = Vec::with_capacity(lines.len());
                for &number in lines {
                    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                    let line = input.line(&mut file, number).map_err(read_error)?;
                    let (project, body) = (&record.project, line.body.get());
                    let kept = ledger
                        .as_ref()
                        .map(|ledger| kept_line(ledger, project, &record.id, number, body))
                        .transpose()?
                        .flatten();
                    results.push(match kept {
                        // It was answered and billed before a crash.
                        Some(answer) => super::line::answered(number, &line.custom_id, answer),
                        None => unanswered(number, &line.custom_id, code, message),
                    });
                }
                storage.add_results(&record, &results)?;
            }
            let finalizing = |document: &mut BatchDocument| {
                document.finalizing_at = Some(now_unix());
                if document.status == BatchStatus::InProgress {
                    document.status = BatchStatus::Finalizing;
                }
            };
            let record = storage.change_batch(&record.project, &record.id, finalizing)?;
            let mut usage = UsageSum::default();
            let results = storage.write_results(&record.id, |result| usage.add(result))?;
            storage.end_batch(&record, results, |document| {
                document.usage = Some(usage.to_json());
                over(document, is_cancelled, was_left);
            })?;
            storage.sweep()
        })
        .await?;
        self.active.remove(id);
        self.turns.retain(|known| known != id);
        Ok(())
    }
}

/// Results that are written together when a batch ends early.
const RESULTS_PER_WRITE: usize = 256;

fn read_error(source: std::io::Error) -> StorageError {
    StorageError::Io { path: "the input of a batch".to_owned(), source }
}

fn fail(document: &mut BatchDocument, errors: Vec<BatchError>) {
    document.status = BatchStatus::Failed;
    document.failed_at = Some(now_unix());
    document.errors = errors;
}

fn over(document: &mut BatchDocument, is_cancelled: bool, was_left: bool) {
    let now = Some(now_unix());
    if is_cancelled {
        document.status = BatchStatus::Cancelled;
        document.cancelled_at = now;
    } else if was_left {
        document.status = BatchStatus::Expired;
        document.expired_at = now;
    } else {
        document.status = BatchStatus::Completed;
        document.completed_at = now;
    }
}

/// It takes no room: it is over in the turn that follows.
fn must_end(record: &BatchRecord) -> bool {
    let document = &record.document;
    document.status == BatchStatus::Cancelling || document.expires_at <= now_unix()
}

/// The key that made the batch, if it still may.
fn caller(app: &App, record: &BatchRecord) -> Result<Caller, (&'static str, &'static str)> {
    let principal = match &app.access {
        Access::Open => Ok(Arc::clone(&app.local)),
        Access::Keys(keys) => keys.principal(&record.document.key, now_unix()),
    };
    let principal =
        principal.ok().filter(|p| p.project.as_deref() == Some(record.project.as_str()));
    let Some(principal) = principal else {
        return Err(("invalid_api_key", "The key that made this batch is no longer valid."));
    };
    if !principal.scopes.allows_endpoint(&record.document.endpoint) {
        return Err((
            "insufficient_scope",
            "The key that made this batch is not made for its endpoint.",
        ));
    }
    Ok(Caller { principal })
}

/// Begins the next line of a batch that may begin.
fn begin_line(
    app: &Arc<App>,
    routes: &TowerToHyperService<axum::Router>,
    in_flight: &mut JoinSet<(String, Waiting, Attempt)>,
    active: &mut Active,
) -> bool {
    if *active.stop.borrow() {
        return false;
    }
    let now = Instant::now();
    let may = |waiting: &Waiting| waiting.not_before.is_none_or(|at| now >= at);
    let Some(place) = active.waiting.iter().position(may) else { return false };
    let Some(waiting) = active.waiting.remove(place) else { return false };
    active.in_flight += 1;
    let record = &active.record;
    let line = BatchLine {
        batch: record.id.as_str().into(),
        number: waiting.line,
        deadline: active.deadline,
        keep_until_ms: record
            .document
            .expires_at
            .saturating_add(KEEP_BEYOND_S)
            .saturating_mul(1000),
        stop: active.stop.subscribe(),
    };
    let (id, endpoint) = (record.id.clone(), record.document.endpoint.clone());
    let caller = caller(app, record);
    let (input, file, routes) =
        (Arc::clone(&active.input), Arc::clone(&active.file), routes.clone());
    in_flight.spawn(async move {
        let number = waiting.line;
        let read = on_disk(move || {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            input.line(&mut file, number).map_err(read_error)
        });
        let attempted = match (read.await, caller) {
            (Err(error), _) => {
                tracing::warn!(batch = %id, line = number, %error, "a line of a batch cannot be read");
                Attempt::Later
            }
            (Ok(read), Err((code, message))) => {
                Attempt::Done(unanswered(number, &read.custom_id, code, message))
            }
            (Ok(read), Ok(caller)) => {
                let custom_id = read.custom_id.clone();
                // In a task of its own: what breaks there is a fault of this line, and the batch goes on.
                let run = async move { attempt(&routes, caller, &endpoint, read, line).await };
                tokio::spawn(run).await.unwrap_or_else(|error| {
                    tracing::error!(batch = %id, line = number, %error, "a line of a batch broke");
                    Attempt::Failed(unanswered(number, &custom_id, "server_error", SERVER_ERROR))
                })
            }
        };
        (id, waiting, attempted)
    });
    true
}
