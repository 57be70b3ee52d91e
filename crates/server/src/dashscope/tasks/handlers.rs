//! `GET /api/v1/tasks`, `GET /api/v1/tasks/{task}`, `POST /api/v1/tasks/{task}/cancel`.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::wire::{brief, listed, shown, unknown};
use crate::app::App;
use crate::dashscope::paging::Page;
use crate::dashscope::{request_id, time};
use crate::error::{ApiError, Fault, json};
use crate::paging::Query;
use crate::project_store::ProjectStore;
use crate::respond::json_response;
use crate::storage::{Storage, StorageError, TaskFilter, TaskStatus};
use crate::till::unix_ms;

const WHAT: &str = "task";
const STATUSES: &[&str] = &["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELED", "UNKNOWN"];

/// A task as it stands; one that does not exist has a status that says so.
pub(crate) async fn get_task(
    State(app): State<Arc<App>>,
    store: ProjectStore,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = request_id(&request);
    let find = |storage: &Storage, project: &str, id: &str| match storage.task(project, id) {
        Err(StorageError::NotFound) => Ok(None),
        found => found.map(Some),
    };
    let Some(task) = store.ask(WHAT, &id, find).await? else {
        return Ok(json(unknown(&id, &asked)));
    };
    let shared = Arc::clone(&app);
    let bytes = task.answer.as_ref().map_or(0, String::len);
    let shown = app.on_text_thread(bytes, move || shown(&shared, &task, &asked)).await?;
    Ok(json_response(shown))
}

/// Tasks in pages, newest first.
pub(crate) async fn list_tasks(
    State(app): State<Arc<App>>,
    store: ProjectStore,
    request: Request,
) -> Result<Response, ApiError> {
    // There is but one region.
    let mut query = Query::read_without(request.uri(), &["region"])?;
    let page = Page::take(&mut query)?;
    let mut time_of = |name: &str| -> Result<Option<u64>, ApiError> {
        query.text(name).map(|text| time::parse(&app, name, &text)).transpose()
    };
    let (from_ms, to_ms) = (time_of("start_time")?, time_of("end_time")?);
    let filter = TaskFilter {
        id: query.text("task_id"),
        model: query.text("model_name"),
        status: query.choice("status", STATUSES)?,
        key: query.text("api_key_id"),
        from_ms,
        // All of the last second.
        to_ms: to_ms.map(|ms| ms.saturating_add(999)),
    };
    query.finish()?;
    let list = move |storage: &Storage, project: &str, _: &str| {
        storage.tasks(project, &filter, page.place())
    };
    let (tasks, total) = store.ask(WHAT, "", list).await?;
    let brief: Vec<Value> = tasks.iter().map(|task| brief(&app, task)).collect();
    let data: Vec<Value> = tasks.into_iter().map(listed).collect();
    Ok(json(json!({
        "request_id": request_id(&request),
        "total": total,
        "total_page": total.div_ceil(page.size.into()),
        "page_no": page.no,
        "page_size": page.size,
        // The older client shows what is documented, the newer one looks for another name.
        "tasks": brief,
        "data": data,
    })))
}

/// Stops a task that waits: one that runs, is over, or does not exist cannot be.
pub(crate) async fn cancel_task(
    State(app): State<Arc<App>>,
    store: ProjectStore,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    // In one piece: a client that goes away ends this handler, and what is not cancelled must wait on.
    let cancel = move |storage: &Storage, project: &str, id: &str| {
        let Some(waiting) = app.tasks.withdraw(project, id) else { return Ok(false) };
        let cancelled = cancelled(storage, project, id);
        if !matches!(cancelled, Ok(true)) {
            app.tasks.wait(waiting);
        }
        cancelled
    };
    if store.ask(WHAT, &id, cancel).await? {
        return Ok(json(json!({"request_id": request_id(&request)})));
    }
    Err(not_pending())
}

/// Writes down that one that waits is cancelled; whether it did wait.
fn cancelled(storage: &Storage, project: &str, id: &str) -> Result<bool, StorageError> {
    let mut task = storage.task(project, id)?;
    if task.document.status != TaskStatus::Pending {
        return Ok(false);
    }
    task.document.status = TaskStatus::Canceled;
    task.document.ended_ms = Some(unix_ms());
    storage.change_task(&task)?;
    Ok(true)
}

fn not_pending() -> ApiError {
    let message = "Failed to cancel the task, please confirm if the task is in PENDING status.";
    ApiError::new(Fault::Invalid, "task_not_pending", message)
}
