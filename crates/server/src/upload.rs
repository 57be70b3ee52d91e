//! Forms with files, as dialects' uploads send them.
//!
//! Not here: what the fields of a form are called and mean. Invariants: what comes in goes to the disk piece by piece, at
//! no time is a file in memory; forms are bounded in number, in fields, and in time.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request};
use tokio::sync::OwnedSemaphorePermit;

use crate::app::App;
use crate::error::{ApiError, Fault};
use crate::fields::shortened;
use crate::project_store::on_disk;
use crate::storage::{Storage, StorageError, Upload};

/// What a file may be for; the server itself makes others.
const PURPOSES: &[&str] =
    &["assistants", "batch", "evals", "fine-tune", "user_data", "vision", "file-extract"];
const MAX_FILENAME_CHARS: usize = 255;
/// Of a field that is text.
const MAX_TEXT_BYTES: usize = 4096;
const MAX_FIELDS: usize = 16;

/// A form that is coming in.
pub(crate) struct Form<'a> {
    app: &'a App,
    multipart: Multipart,
    /// That may still come.
    fields: usize,
    _place: OwnedSemaphorePermit,
}

impl<'a> Form<'a> {
    pub(crate) async fn open(app: &'a App, request: Request) -> Result<Self, ApiError> {
        let place = Arc::clone(&app.uploads).try_acquire_owned().map_err(|_| {
            let message = "The server takes no more uploads at once. Please try again.";
            ApiError::new(Fault::Overloaded, "overloaded", message)
        })?;
        let multipart = Multipart::from_request(request, &()).await.map_err(|rejection| {
            let message = format!("The request's body must be multipart/form-data: {rejection}.");
            ApiError::new(Fault::UnsupportedMediaType, "unsupported_media_type", message)
        })?;
        Ok(Self { app, multipart, fields: MAX_FIELDS, _place: place })
    }

    /// The next field; `None` behind the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Part<'_>>, ApiError> {
        let Some(left) = self.fields.checked_sub(1) else {
            let message = format!("A form has at most {MAX_FIELDS} fields.");
            return Err(ApiError::new(Fault::Invalid, "invalid_value", message));
        };
        self.fields = left;
        let app = self.app;
        let field = tokio::time::timeout(app.limits.body_timeout, self.multipart.next_field());
        let field = field.await.map_err(|_| stalled(app))?.map_err(|error| broken(&error))?;
        Ok(field.map(|field| {
            let name = field.name().unwrap_or_default().to_owned();
            Part { app, name, field }
        }))
    }
}

/// Reads a form within the time of a request: one that comes too slowly would keep others out.
pub(crate) async fn in_time<T>(
    app: &App,
    read: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let limit = app.limits.request_timeout;
    tokio::time::timeout(limit, read).await.map_err(|_| {
        let message = format!("The file did not arrive within {} s.", limit.as_secs());
        ApiError::new(Fault::BodyTimeout, "body_timeout", message)
    })?
}

/// A field of a form.
pub(crate) struct Part<'a> {
    app: &'a App,
    pub(crate) name: String,
    field: Field<'a>,
}

impl Part<'_> {
    async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        let chunk = tokio::time::timeout(self.app.limits.body_timeout, self.field.chunk());
        chunk.await.map_err(|_| stalled(self.app))?.map_err(|error| broken(&error))
    }

    pub(crate) async fn text(mut self) -> Result<String, ApiError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_TEXT_BYTES {
                let name = self.name;
                let message = format!("`{name}` has at most {MAX_TEXT_BYTES} bytes.");
                return Err(ApiError::field(name, "invalid_value", message));
            }
        }
        let name = self.name;
        String::from_utf8(bytes).map_err(|_| {
            let message = format!("`{name}` is not UTF-8.");
            ApiError::field(name, "invalid_value", message)
        })
    }

    /// Bytes to the disk as they come: the file, and its name.
    pub(crate) async fn file(
        mut self,
        storage: &Arc<Storage>,
    ) -> Result<(String, Upload), ApiError> {
        let filename = self.filename()?;
        let begin = Arc::clone(storage);
        let max_bytes = storage.config.max_file_bytes;
        let name = self.name.clone();
        let refuse = |error: StorageError| match error {
            StorageError::Full(_) => {
                let message = format!("`{name}`: a file has at most {max_bytes} bytes.");
                ApiError::new(Fault::TooLarge, "request_too_large", message)
            }
            error => ApiError::internal(error.to_string()),
        };
        let mut upload = on_disk(move || begin.begin()).await?.map_err(refuse)?;
        while let Some(chunk) = self.chunk().await? {
            let written = on_disk(move || upload.write(&chunk).map(|()| upload)).await?;
            upload = written.map_err(refuse)?;
        }
        if upload.bytes() == 0 {
            let message = format!("`{name}` is empty.");
            return Err(ApiError::field(name.clone(), "invalid_value", message));
        }
        Ok((filename, upload))
    }

    fn filename(&self) -> Result<String, ApiError> {
        let name = self.field.file_name().unwrap_or("file");
        let fits = (1..=MAX_FILENAME_CHARS).contains(&name.chars().count());
        if fits && !name.chars().any(char::is_control) {
            return Ok(name.to_owned());
        }
        let message = format!(
            "The name of a file has 1 to {MAX_FILENAME_CHARS} characters that can be seen."
        );
        Err(ApiError::field(self.name.clone(), "invalid_value", message))
    }
}

pub(crate) fn unknown_part(name: &str) -> ApiError {
    let name = shortened(name);
    let message = format!("Unknown or repeated parameter: `{name}`.");
    ApiError::field(name, "unknown_parameter", message)
}

pub(crate) fn checked_purpose(purpose: String) -> Result<String, ApiError> {
    if PURPOSES.contains(&purpose.as_str()) {
        return Ok(purpose);
    }
    let message =
        format!("`purpose` must be one of {}, not `{}`.", PURPOSES.join(", "), shortened(&purpose));
    Err(ApiError::field("purpose", "invalid_value", message))
}

fn broken(error: &MultipartError) -> ApiError {
    ApiError {
        log: Some(format!("an upload broke: {}", error.body_text())),
        ..ApiError::new(Fault::Invalid, "incomplete_body", "The request's body is incomplete.")
    }
}

fn stalled(app: &App) -> ApiError {
    let limit_s = app.limits.body_timeout.as_secs_f32();
    let message = format!("Nothing of the request's body came for {limit_s} s.");
    ApiError::new(Fault::BodyTimeout, "body_timeout", message)
}
