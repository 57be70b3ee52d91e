//! Tasks: a request with `X-DashScope-Async: enable` is kept and told the id of, computed later, and asked for until then.
//!
//! A task runs as the request that it is: through the same handlers, on behalf of the key that sent it, at the same price.
//! It waits for a place among the tasks that run, and for the capacity and the limits that another request would be refused
//! for; that costs and holds nothing. Its answer is kept in the ledger's transaction that bills it: after a crash, one that
//! ran is over and paid for, or failed and not; one that waited still waits.
//!
//! Not here: what services answer. Invariants: a task is billed at most once, whenever the process dies; a task that
//! waits is in [`Tasks`], and stands in the store as it was sent.

mod handlers;
mod queue;
mod run;
mod wire;

use std::sync::Arc;

use axum::response::Response;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::error::{ApiError, Fault, json};
use crate::idempotency::KeptPlace;
use crate::job::{Incoming, check_model_scope};
use crate::project_store::{failed, keeping, on_disk};
use crate::request_id::random_hex;
use crate::storage::{StorageError, TaskDocument, TaskRecord, TaskStatus};
use crate::till::unix_ms;

pub(crate) use handlers::{cancel_task, get_task, list_tasks};
pub(crate) use queue::Tasks;
pub(crate) use run::{recover, run};

/// Who keeps answers of tasks in the ledger. No route is called so.
const KEEPER: &str = "task";

/// The model of a request that can be computed: as it was asked for, and the name that answers.
pub(super) struct Checked {
    pub(super) asked: String,
    pub(super) name: String,
}

/// Takes in a request to `path` as a task. `check` refuses what could not be computed anyway.
pub(super) async fn submit(
    app: &Arc<App>,
    incoming: Incoming,
    path: &str,
    check: impl FnOnce() -> Result<Checked, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let storage = keeping(app).ok_or_else(|| {
        let message = "`X-DashScope-Async`: this server keeps no answers, as its settings have it.";
        ApiError::field("X-DashScope-Async", "unsupported_parameter", message)
    })?;
    let Checked { asked, name } = app.on_text_thread(incoming.body.len(), check).await?;
    check_model_scope(&incoming.caller, &asked, &name)?;
    let task = task(&incoming, path, asked)?;
    let (shared, new) = (Arc::clone(app), task.clone());
    // In one piece: a client that goes away ends this handler, and what is in the store must wait for its turn.
    let add = move || {
        let known = storage.add_task(&new)?;
        if known.is_none() {
            shared.tasks.add(&new.project, &new.id);
        }
        Ok(known)
    };
    let status = match on_disk(add).await?.map_err(refused)? {
        None => task.document.status,
        Some(known) if known.kept_at == task.kept_at => known.document.status,
        Some(_) => {
            return Err(ApiError::new(
                Fault::Unprocessable,
                "idempotency_key_reused",
                "This Idempotency-Key was used for a request with another body. Use a new key.",
            ));
        }
    };
    Ok(json(json!({
        "request_id": incoming.request_id,
        "output": {"task_id": task.id, "task_status": status},
    })))
}

fn task(incoming: &Incoming, path: &str, model: String) -> Result<TaskRecord, ApiError> {
    let project = incoming.caller.project().to_owned();
    // A request that is sent again under the same key is the same task.
    let digest = match &incoming.keeping {
        Some(keeping) => keeping.place().digest(),
        None => Sha256::digest(random_hex() + &random_hex()).into(),
    };
    let id = uuid(digest);
    let input = String::from_utf8(incoming.body.to_vec())
        .map_err(|error| ApiError::internal(format!("a request that is no text: {error}")))?;
    // The ledger keeps the answer for longer than the task is there. Then the id may come again, for another body.
    let place = format!("{id} {}", hex(&Sha256::digest(&input)));
    let kept_at = KeptPlace::own(&project, KEEPER, &place, input.as_bytes());
    Ok(TaskRecord {
        id,
        project,
        model,
        document: TaskDocument {
            status: TaskStatus::Pending,
            path: path.to_owned(),
            key: incoming.caller.principal.key.to_string(),
            client: incoming.client.to_string(),
            request_id: incoming.request_id.clone(),
            submitted_ms: unix_ms(),
            scheduled_ms: None,
            ended_ms: None,
            code: None,
            message: None,
        },
        input,
        answer: None,
        // A struct of texts: this cannot fail.
        kept_at: serde_json::to_string(&kept_at).unwrap_or_default(),
    })
}

/// As DashScope's ids of tasks look.
fn uuid(digest: [u8; 32]) -> String {
    let hex = hex(&digest);
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    parts.map(|range| hex.get(range).unwrap_or_default()).join("-")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Too many that are not over are a limit like others of the tenant's.
fn refused(error: StorageError) -> ApiError {
    match error {
        StorageError::Full(_) => ApiError {
            fault: Fault::RateLimited,
            code: Some("concurrency_limit_exceeded"),
            ..failed(error, "task", "")
        },
        error => failed(error, "task", ""),
    }
}
