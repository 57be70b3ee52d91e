//! The store as a caller sees it: an extractor for handlers.
//!
//! Not here: what is stored (`storage`). Invariant: whatever is asked of the store is asked for the caller's project, on a
//! thread that may block.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, Fault};
use crate::fields::shortened;
use crate::storage::{Storage, StorageError};

/// What is stored, and the project that asks.
#[derive(Clone)]
pub(crate) struct ProjectStore {
    pub(crate) storage: Arc<Storage>,
    pub(crate) project: Arc<str>,
}

impl FromRequestParts<Arc<App>> for ProjectStore {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let storage = app.storage.clone().ok_or_else(|| {
            let message = "This server stores no files: it was started without a folder for them.";
            ApiError::new(Fault::NotFound, "files_disabled", message)
        })?;
        let caller = parts.extensions.get::<Caller>();
        let project = caller.and_then(|caller| caller.principal.project.clone());
        let project = project
            .ok_or_else(|| ApiError::internal("a protected handler ran without a project"))?;
        Ok(Self { storage, project })
    }
}

impl ProjectStore {
    /// Works on the store, which gets the project and `id`; `what` names in refusals what has this id.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        what: &str,
        id: &str,
        work: impl FnOnce(&Storage, &str, &str) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (own, wanted) = (self.clone(), id.to_owned());
        let done = on_disk(move || work(&own.storage, &own.project, &wanted)).await?;
        done.map_err(|error| failed(error, what, id))
    }
}

/// The store, if it keeps answers.
pub(crate) fn keeping(app: &App) -> Option<Arc<Storage>> {
    app.storage.clone().filter(|storage| storage.config.answers.keep_days > 0)
}

/// In the words of the API; `what` names what was looked for.
pub(crate) fn failed(error: StorageError, what: &str, id: &str) -> ApiError {
    match error {
        StorageError::NotFound => {
            let message = format!("No such {what}: `{}`.", shortened(id));
            let error = ApiError::new(Fault::NotFound, "not_found", message);
            ApiError { param: Some("id".to_owned()), ..error }
        }
        StorageError::Full(text) => {
            let mut chars = text.chars();
            let first = chars.next().map(|c| c.to_ascii_uppercase());
            let text: String = first.into_iter().chain(chars).collect();
            ApiError::new(Fault::Invalid, "quota_exceeded", format!("{text}."))
        }
        error => ApiError::internal(error.to_string()),
    }
}

/// Runs work on the store on a thread that may block.
pub(crate) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<Result<T, StorageError>, ApiError> {
    let span = tracing::Span::current();
    let done = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    done.map_err(|e| ApiError::internal(format!("work on stored files failed: {e}")))
}
