//! `/v1/files`: contents that a project leaves here, for batches and for itself.
//!
//! Invariant: what comes in goes to the disk piece by piece; at no time is a file in memory.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Path, Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use tokio_util::io::ReaderStream;

use crate::app::App;
use crate::error::{ApiError, Fault, json};
use crate::fields::shortened;
use crate::paging::{HasId, List, Query};
use crate::project_store::{ProjectStore, on_disk};
use crate::storage::{FilePage, FileRecord, Storage, StorageError, Upload};

/// What a file may be for; the server itself makes others.
const PURPOSES: &[&str] =
    &["assistants", "batch", "evals", "fine-tune", "user_data", "vision", "file-extract"];
const MAX_FILENAME_CHARS: usize = 255;
/// Of a field that is text.
const MAX_TEXT_BYTES: usize = 4096;
const MAX_FIELDS: usize = 16;
/// OpenAI's limits of a file's lifetime, seconds.
const LIFETIME_S: std::ops::RangeInclusive<u64> = 3_600..=2_592_000;
const MAX_PAGE: u32 = 10_000;

#[derive(Serialize)]
struct FileObject {
    id: String,
    object: &'static str,
    bytes: u64,
    created_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    filename: String,
    purpose: String,
    status: &'static str,
}

impl HasId for FileObject {
    fn id(&self) -> &str {
        &self.id
    }
}

fn describe(file: FileRecord) -> FileObject {
    FileObject {
        id: file.id,
        object: "file",
        bytes: file.bytes,
        created_at: file.created,
        expires_at: file.expires,
        filename: file.filename,
        purpose: file.purpose,
        status: "processed",
    }
}

/// What comes with a file.
#[derive(Default)]
struct Form {
    upload: Option<Upload>,
    filename: String,
    purpose: Option<String>,
    anchor: Option<String>,
    lifetime: Option<String>,
}

pub(crate) async fn create_file(
    State(app): State<Arc<App>>,
    store: ProjectStore,
    request: Request,
) -> Result<Response, ApiError> {
    let _place = Arc::clone(&app.uploads).try_acquire_owned().map_err(|_| {
        let message = "The server takes no more uploads at once. Please try again.";
        ApiError::new(Fault::Overloaded, "overloaded", message)
    })?;
    let multipart = Multipart::from_request(request, &()).await.map_err(|rejection| {
        let message = format!("The request's body must be multipart/form-data: {rejection}.");
        ApiError::new(Fault::UnsupportedMediaType, "unsupported_media_type", message)
    })?;
    // One that comes too slowly would keep others out.
    let form = tokio::time::timeout(
        app.limits.request_timeout,
        read_form(&app, &store.storage, multipart),
    );
    let form = form.await.map_err(|_| {
        let limit_s = app.limits.request_timeout.as_secs();
        let message = format!("The file did not arrive within {limit_s} s.");
        ApiError::new(Fault::BodyTimeout, "body_timeout", message)
    })??;
    let (purpose, lifetime_s) =
        (checked_purpose(form.purpose)?, lifetime(form.anchor, form.lifetime)?);
    let Some(upload) = form.upload else { return Err(missing("file")) };
    if upload.bytes() == 0 {
        return Err(ApiError::field("file", "invalid_value", "`file` is empty."));
    }
    let filename = form.filename;
    let keep = move |storage: &Storage, project: &str, _: &str| {
        storage.keep(project, upload, &purpose, &filename, lifetime_s)
    };
    Ok(json(describe(store.ask("file", "", keep).await?)))
}

fn missing(name: &str) -> ApiError {
    ApiError::field(name, "missing_required_parameter", format!("`{name}` is missing."))
}

fn broken(error: &MultipartError) -> ApiError {
    ApiError {
        log: Some(format!("an upload broke: {}", error.body_text())),
        ..ApiError::new(Fault::Invalid, "incomplete_body", "The request's body is incomplete.")
    }
}

async fn read_form(
    app: &App,
    storage: &Arc<Storage>,
    mut multipart: Multipart,
) -> Result<Form, ApiError> {
    let mut form = Form::default();
    for _ in 0..MAX_FIELDS {
        let field = tokio::time::timeout(app.limits.body_timeout, multipart.next_field());
        let field = field.await.map_err(|_| stalled(app))?;
        let Some(field) = field.map_err(|error| broken(&error))? else { return Ok(form) };
        match field.name().unwrap_or_default() {
            "file" if form.upload.is_none() => {
                form.filename = filename(field.file_name())?;
                form.upload = Some(store(app, storage, field).await?);
            }
            "purpose" => form.purpose = Some(text(app, field, "purpose").await?),
            "expires_after[anchor]" => {
                form.anchor = Some(text(app, field, "expires_after[anchor]").await?);
            }
            "expires_after[seconds]" => {
                form.lifetime = Some(text(app, field, "expires_after[seconds]").await?);
            }
            name => {
                let name = shortened(name);
                let message = format!("Unknown or repeated parameter: `{name}`.");
                return Err(ApiError::field(name, "unknown_parameter", message));
            }
        }
    }
    Err(ApiError::new(
        Fault::Invalid,
        "invalid_value",
        format!("A form has at most {MAX_FIELDS} fields."),
    ))
}

fn stalled(app: &App) -> ApiError {
    let limit_s = app.limits.body_timeout.as_secs_f32();
    let message = format!("Nothing of the request's body came for {limit_s} s.");
    ApiError::new(Fault::BodyTimeout, "body_timeout", message)
}

fn filename(given: Option<&str>) -> Result<String, ApiError> {
    let name = given.unwrap_or("file");
    let fits = (1..=MAX_FILENAME_CHARS).contains(&name.chars().count());
    if fits && !name.chars().any(char::is_control) {
        return Ok(name.to_owned());
    }
    let message =
        format!("The name of a file has 1 to {MAX_FILENAME_CHARS} characters that can be seen.");
    Err(ApiError::field("file", "invalid_value", message))
}

async fn chunk(app: &App, field: &mut Field<'_>) -> Result<Option<axum::body::Bytes>, ApiError> {
    let chunk = tokio::time::timeout(app.limits.body_timeout, field.chunk());
    chunk.await.map_err(|_| stalled(app))?.map_err(|error| broken(&error))
}

async fn text(app: &App, mut field: Field<'_>, name: &str) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = chunk(app, &mut field).await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_TEXT_BYTES {
            let message = format!("`{name}` has at most {MAX_TEXT_BYTES} bytes.");
            return Err(ApiError::field(name, "invalid_value", message));
        }
    }
    String::from_utf8(bytes)
        .map_err(|_| ApiError::field(name, "invalid_value", format!("`{name}` is not UTF-8.")))
}

/// Bytes to the disk as they come.
async fn store(
    app: &App,
    storage: &Arc<Storage>,
    mut field: Field<'_>,
) -> Result<Upload, ApiError> {
    let begin = Arc::clone(storage);
    let max_bytes = storage.config.max_file_bytes;
    let refuse = |error: StorageError| match error {
        StorageError::Full(_) => {
            let message = format!("`file`: a file has at most {max_bytes} bytes.");
            ApiError::new(Fault::TooLarge, "request_too_large", message)
        }
        error => ApiError::internal(error.to_string()),
    };
    let mut upload = on_disk(move || begin.begin()).await?.map_err(refuse)?;
    while let Some(chunk) = chunk(app, &mut field).await? {
        let written = on_disk(move || upload.write(&chunk).map(|()| upload)).await?;
        upload = written.map_err(refuse)?;
    }
    Ok(upload)
}

fn checked_purpose(given: Option<String>) -> Result<String, ApiError> {
    let purpose = given.ok_or_else(|| missing("purpose"))?;
    if PURPOSES.contains(&purpose.as_str()) {
        return Ok(purpose);
    }
    let message =
        format!("`purpose` must be one of {}, not `{}`.", PURPOSES.join(", "), shortened(&purpose));
    Err(ApiError::field("purpose", "invalid_value", message))
}

fn lifetime(anchor: Option<String>, seconds: Option<String>) -> Result<Option<u64>, ApiError> {
    let refuse = |message: String| ApiError::field("expires_after", "invalid_value", message);
    match (anchor.as_deref(), seconds) {
        (None, None) => Ok(None),
        (Some("created_at"), Some(seconds)) => {
            checked_lifetime(seconds.parse().ok(), "expires_after").map(Some)
        }
        _ => Err(refuse(
            "`expires_after` has an `anchor`, which is `created_at`, and `seconds`.".to_owned(),
        )),
    }
}

pub(super) fn checked_lifetime(seconds: Option<u64>, name: &str) -> Result<u64, ApiError> {
    seconds.filter(|s| LIFETIME_S.contains(s)).ok_or_else(|| {
        let message = format!(
            "`{name}.seconds` must be from {} to {}.",
            LIFETIME_S.start(),
            LIFETIME_S.end()
        );
        ApiError::field(format!("{name}.seconds"), "invalid_value", message)
    })
}

pub(crate) async fn list_files(
    store: ProjectStore,
    request: Request,
) -> Result<Response, ApiError> {
    let mut query = Query::read(request.uri())?;
    let page = FilePage {
        purpose: query.text("purpose"),
        after: query.text("after"),
        limit: query.limit(MAX_PAGE, MAX_PAGE)?,
        ascending: query.choice("order", &["asc", "desc"])?.as_deref() == Some("asc"),
    };
    query.finish()?;
    let after = page.after.clone().unwrap_or_default();
    let list = move |storage: &Storage, project: &str, _: &str| storage.files(project, &page);
    let (files, has_more) = store.ask("file", &after, list).await?;
    let data: Vec<FileObject> = files.into_iter().map(describe).collect();
    Ok(json(List::new(data, has_more)))
}

pub(crate) async fn get_file(
    store: ProjectStore,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    Ok(json(describe(store.ask("file", &id, Storage::file).await?)))
}

pub(crate) async fn file_content(
    store: ProjectStore,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let (file, content) = store.ask("file", &id, Storage::open_file).await?;
    let body = Body::from_stream(ReaderStream::new(tokio::fs::File::from_std(content)));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, HeaderValue::from(file.bytes)),
        // Never shown as a page of ours, whatever is in it.
        (header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, body).into_response())
}

pub(crate) async fn delete_file(
    store: ProjectStore,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    store.ask("file", &id, Storage::remove_file).await?;
    Ok(json(json!({"id": id, "object": "file", "deleted": true})))
}
