//! The one task of the server's that begins all tasks of projects, and what becomes of each.
//!
//! What it knows can be made again from the store and the ledger.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, header};
use axum::response::Response;
use mintage_ledger::Ledger;
use tracing::Instrument;

use super::queue::Waiting;
use crate::app::{App, Phase};
use crate::auth::{Access, Caller, now_unix};
use crate::dashscope::errors;
use crate::dashscope::handlers::{MULTIMODAL, TEXT, generation, multimodal_generation};
use crate::dashscope::vectors::{EMBEDDING, RERANK, text_embedding, text_rerank};
use crate::error::{ApiError, Fault};
use crate::idempotency::{KeptPlace, Taken};
use crate::project_store::on_disk;
use crate::request_id::RequestId;
use crate::storage::{Storage, StorageError, TaskRecord, TaskStatus};
use crate::till::unix_ms;

/// One that found no room for so long is given up.
const MAX_WAIT_MS: u64 = 86_400_000;
/// The ledger keeps answers for so long: longer than anybody can ask for the task.
const KEPT_S: u64 = 3 * 86_400;
/// Where there is no ledger; where there is one, it keeps less.
const MAX_ANSWER_BYTES: usize = 8 << 20;
const RESTARTED: &str =
    "The server stopped while this task ran. Nothing was billed; please submit it again.";

/// Runs tasks until the server drains, and never resolves.
pub(crate) async fn run(app: Arc<App>) {
    let Some(storage) = app.storage.clone() else { return std::future::pending().await };
    let most = storage.config.answers.max_running_tasks.max(1);
    let mut phase = app.phase.subscribe();
    while app.phase() == Phase::Serving {
        while let Some(waiting) = app.tasks.begin(most, Instant::now()) {
            let place = Place { app: Arc::clone(&app), waiting };
            app.settling.spawn(run_one(Arc::clone(&storage), place));
        }
        tokio::select! {
            () = app.tasks.changed(most) => {}
            _ = phase.changed() => {}
        }
    }
    std::future::pending().await
}

/// A place among the tasks that run; leaving it makes room.
struct Place {
    app: Arc<App>,
    waiting: Waiting,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.app.tasks.leave(&self.waiting.project);
    }
}

impl Place {
    fn wait_again(&self, at_least_ms: u64) {
        let at_least = Duration::from_millis(at_least_ms);
        self.app.tasks.wait_again(self.waiting.clone(), Instant::now(), at_least);
    }
}

async fn run_one(storage: Arc<Storage>, place: Place) {
    let id = Arc::clone(&place.waiting.id);
    if let Err(error) = advance(&storage, &place).await {
        // Where it stands is as it was written down last.
        tracing::warn!(task = %id, %error, "a task does not get on");
    }
}

/// Runs a task, and writes down what became of it.
async fn advance(storage: &Arc<Storage>, place: &Place) -> Result<(), StorageError> {
    let (project, id) = (place.waiting.project.to_string(), place.waiting.id.to_string());
    let found = blocking(storage, move |storage| storage.task(&project, &id)).await;
    let mut task = match found {
        Ok(task) => task,
        // Nobody can ask for it any more.
        Err(StorageError::NotFound) => return Ok(()),
        Err(error) => {
            place.wait_again(0);
            return Err(error);
        }
    };
    task.document.status = TaskStatus::Running;
    task.document.scheduled_ms = Some(unix_ms());
    let running = task.clone();
    if let Err(error) = blocking(storage, move |storage| storage.change_task(&running)).await {
        place.wait_again(0);
        return Err(error);
    }
    let outcome = answered(&place.app, &task).await;
    match outcome {
        Err(error) if may_wait(&error, &task) => {
            if let Some(log) = &error.log {
                tracing::warn!(task = %task.id, error = %log, "a task waits again");
            }
            task.document.status = TaskStatus::Pending;
            task.document.scheduled_ms = None;
            let written = blocking(storage, move |storage| storage.change_task(&task)).await;
            let retry_after_ms = error.limit.and_then(|limit| limit.retry_after_ms);
            place.wait_again(retry_after_ms.unwrap_or(0));
            written
        }
        outcome => {
            end(&mut task, outcome);
            let written = blocking(storage, move |storage| storage.change_task(&task)).await;
            match written {
                Err(StorageError::NotFound) => Ok(()),
                // What was billed is in the ledger, and is found there.
                Err(error) => {
                    place.wait_again(0);
                    Err(error)
                }
                Ok(()) => Ok(()),
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    storage: &Arc<Storage>,
    work: impl FnOnce(&Storage) -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    let storage = Arc::clone(storage);
    let done = on_disk(move || work(&storage)).await;
    done.map_err(|error| StorageError::Damaged(error.log.unwrap_or(error.message)))?
}

/// It found no room, and cost nothing: there may be some later. Money and budgets do not come by themselves.
fn may_wait(error: &ApiError, task: &TaskRecord) -> bool {
    let is_of_capacity = match error.fault {
        Fault::Overloaded | Fault::ShuttingDown => true,
        Fault::RateLimited => error.code != Some("insufficient_quota"),
        _ => false,
    };
    is_of_capacity && unix_ms().saturating_sub(task.document.submitted_ms) < MAX_WAIT_MS
}

fn end(task: &mut TaskRecord, outcome: Result<String, ApiError>) {
    let document = &mut task.document;
    document.ended_ms = Some(unix_ms());
    match outcome {
        Ok(answer) => {
            document.status = TaskStatus::Succeeded;
            task.answer = Some(answer);
        }
        Err(error) => {
            if let Some(log) = &error.log {
                tracing::warn!(task = %task.id, error = %log, "a task broke");
            }
            document.status = TaskStatus::Failed;
            document.code = Some(errors::code(&error).to_owned());
            document.message = Some(error.message);
        }
    }
}

/// The answer to a task's request, billed and kept; or why there is none, and nothing was billed.
async fn answered(app: &Arc<App>, task: &TaskRecord) -> Result<String, ApiError> {
    let caller = caller(app, task)?;
    let keeping = match app.till.ledger() {
        Some(ledger) => {
            let place = place(task).map_err(|error| ApiError::internal(error.to_string()))?;
            match place.take(ledger, KEPT_S, true).await? {
                Taken::Free(keeping) => Some(keeping),
                // It was answered, and the server stopped before that was written down.
                Taken::Answered(answer) => return text(answer),
            }
        }
        None => None,
    };
    let document = &task.document;
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(document.path.as_str())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, document.client.as_str())
        .extension(caller)
        .extension(RequestId(document.request_id.clone()));
    if let Some(keeping) = &keeping {
        request = request.extension(keeping.clone());
    }
    let request = request
        .body(Body::from(task.input.clone()))
        .map_err(|error| ApiError::internal(format!("a task is no request: {error}")))?;
    // In a task of its own: what breaks there is a fault of this one, and its end is written down.
    let span = tracing::info_span!("task", task = %task.id, request_id = %document.request_id);
    let run = call(Arc::clone(app), document.path.clone(), request).instrument(span);
    let run = tokio::spawn(run).await;
    let response = run.map_err(|error| ApiError::internal(format!("a task broke: {error}")))??;
    let answer = to_bytes(response.into_body(), MAX_ANSWER_BYTES).await;
    text(answer.map_err(|error| ApiError::internal(format!("a task's answer: {error}")))?.into())
}

fn text(answer: Vec<u8>) -> Result<String, ApiError> {
    String::from_utf8(answer)
        .map_err(|error| ApiError::internal(format!("an answer that is no text: {error}")))
}

async fn call(app: Arc<App>, path: String, request: Request) -> Result<Response, ApiError> {
    match path.as_str() {
        TEXT => generation(State(app), request).await,
        MULTIMODAL => multimodal_generation(State(app), request).await,
        EMBEDDING => text_embedding(State(app), request).await,
        RERANK => text_rerank(State(app), request).await,
        _ => Err(ApiError::internal(format!("a task for `{path}`"))),
    }
}

/// The key that sent it, if it still may.
fn caller(app: &App, task: &TaskRecord) -> Result<Caller, ApiError> {
    let principal = match &app.access {
        Access::Open => Ok(Arc::clone(&app.local)),
        Access::Keys(keys) => keys.principal(&task.document.key, now_unix()),
    };
    let principal = principal.ok().filter(|p| p.project.as_deref() == Some(task.project.as_str()));
    let principal = principal.ok_or_else(|| {
        let message = "The key that sent this task is no longer valid.";
        ApiError::new(Fault::Unauthenticated, "invalid_api_key", message)
    })?;
    if !principal.scopes.allows_endpoint(&task.document.path) {
        let message = "The key that sent this task is not made for its service any more.";
        return Err(ApiError::new(Fault::Forbidden, "insufficient_scope", message));
    }
    Ok(Caller { principal })
}

/// Ends the tasks that ran when the last server ended: those that were billed have their answer. Those that waited wait
/// again. Blocks.
///
/// # Errors
/// Store or ledger do not answer.
pub(crate) fn recover(app: &App) -> Result<(), StorageError> {
    let Some(storage) = &app.storage else { return Ok(()) };
    for (project, id) in storage.open_tasks()? {
        let mut task = match storage.task(&project, &id) {
            Err(StorageError::NotFound) => continue,
            found => found?,
        };
        if task.document.status == TaskStatus::Pending {
            app.tasks.add(&project, &id);
            continue;
        }
        let kept = app.till.ledger().map(|ledger| kept(&task, ledger)).transpose()?.flatten();
        let answer = kept.and_then(|kept| String::from_utf8(kept).ok());
        let restarted = || ApiError::new(Fault::Internal, "server_restarted", RESTARTED);
        end(&mut task, answer.ok_or_else(restarted));
        tracing::info!(task = %id, status = task.document.status.as_str(), "a task was cut by a restart");
        match storage.change_task(&task) {
            Ok(()) | Err(StorageError::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn kept(task: &TaskRecord, ledger: &Ledger) -> Result<Option<Vec<u8>>, StorageError> {
    Ok(place(task)?.find(ledger)?)
}

/// Where its answer is kept.
fn place(task: &TaskRecord) -> Result<KeptPlace, StorageError> {
    let place = serde_json::from_str(&task.kept_at);
    place.map_err(|error| StorageError::Damaged(format!("a task: {error}")))
}
