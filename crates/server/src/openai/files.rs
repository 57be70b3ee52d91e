//! `/v1/files`: contents that a project leaves here, for batches and for itself.
//!
//! Not here: how a form is read (`upload`).

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use tokio_util::io::ReaderStream;

use crate::app::App;
use crate::error::{ApiError, json};
use crate::fields::missing;
use crate::paging::{HasId, List, Query};
use crate::project_store::ProjectStore;
use crate::storage::{FilePage, FileRecord, NewFile, Storage, Upload};
use crate::upload::{Form, checked_purpose, in_time, unknown_part};

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
struct Given {
    file: Option<(String, Upload)>,
    purpose: Option<String>,
    anchor: Option<String>,
    lifetime: Option<String>,
}

pub(crate) async fn create_file(
    State(app): State<Arc<App>>,
    store: ProjectStore,
    request: Request,
) -> Result<Response, ApiError> {
    let form = Form::open(&app, request).await?;
    let given = in_time(&app, read_form(&store, form)).await?;
    let purpose = checked_purpose(given.purpose.ok_or_else(|| missing("purpose"))?)?;
    let lifetime_s = lifetime(given.anchor, given.lifetime)?;
    let Some((filename, upload)) = given.file else { return Err(missing("file")) };
    let file = NewFile { purpose, filename, lifetime_s, description: None };
    let keep = move |storage: &Storage, project: &str, _: &str| storage.keep(project, upload, file);
    Ok(json(describe(store.ask("file", "", keep).await?)))
}

async fn read_form(store: &ProjectStore, mut form: Form<'_>) -> Result<Given, ApiError> {
    let mut given = Given::default();
    while let Some(part) = form.next().await? {
        match part.name.as_str() {
            "file" if given.file.is_none() => given.file = Some(part.file(&store.storage).await?),
            "purpose" => given.purpose = Some(part.text().await?),
            "expires_after[anchor]" => given.anchor = Some(part.text().await?),
            "expires_after[seconds]" => given.lifetime = Some(part.text().await?),
            name => return Err(unknown_part(name)),
        }
    }
    Ok(given)
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
