//! `/api/v1/files`: the files of `/v1/files`, as DashScope takes them in and tells of them, under `data`.
//!
//! What is sent without a purpose is for fine-tuning, as there. A file that is not there is a bad request, as there.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::paging::Page;
use super::{errors, request_id, time};
use crate::app::App;
use crate::error::{ApiError, json};
use crate::fields::missing;
use crate::paging::Query;
use crate::project_store::ProjectStore;
use crate::storage::{Coming, FileRecord, NewFile, Storage, Upload};
use crate::upload::{Form, checked_purpose, in_time, unknown_part};

const PURPOSE: &str = "fine-tune";

fn describe(app: &App, file: FileRecord) -> Value {
    let created = time::seconds_text(app, file.created.saturating_mul(1000));
    json!({
        "file_id": file.id,
        "name": file.filename,
        "description": file.description.unwrap_or_default(),
        "purpose": file.purpose,
        "size": file.bytes,
        "gmt_create": created,
        // What the newer client looks for.
        "upload_time": created,
    })
}

/// What comes in one form.
#[derive(Default)]
struct Given {
    /// By name; or why one is not kept.
    files: Vec<(String, Result<Upload, ApiError>)>,
    /// Of those that are.
    coming: Coming,
    /// In the order of the files.
    descriptions: Vec<String>,
    purpose: Option<String>,
}

/// Takes files in; those that find no room, or cannot be kept, are told of beside those that are.
pub(crate) async fn create_files(
    State(app): State<Arc<App>>,
    store: ProjectStore,
    request: Request,
) -> Result<Response, ApiError> {
    let request_id = request_id(&request);
    let form = Form::open(&app, request).await?;
    let given = in_time(&app, read_form(&store, form)).await?;
    let purpose = match given.purpose {
        Some(purpose) => checked_purpose(purpose.replace('_', "-"))?,
        None => PURPOSE.to_owned(),
    };
    if given.files.is_empty() {
        return Err(missing("files"));
    }
    let (mut uploaded, mut failed) = (Vec::new(), Vec::new());
    let mut descriptions = given.descriptions.into_iter();
    for (filename, upload) in given.files {
        let (name, description) = (filename.clone(), descriptions.next());
        let file = NewFile { purpose: purpose.clone(), filename, description, lifetime_s: None };
        let kept = match upload {
            Ok(upload) => {
                let keep = move |storage: &Storage, project: &str, _: &str| {
                    storage.keep(project, upload, file)
                };
                store.ask("file", "", keep).await
            }
            Err(error) => Err(error),
        };
        match kept {
            Ok(file) => uploaded.push(json!({"name": name, "file_id": file.id})),
            Err(error) => {
                if let Some(log) = &error.log {
                    tracing::warn!(error = %log, "a file of several was not kept");
                }
                let (code, message) = (errors::code(&error), error.message);
                failed.push(json!({"name": name, "code": code, "message": message}));
            }
        }
    }
    Ok(json(json!({
        "request_id": request_id,
        "data": {"uploaded_files": uploaded, "failed_uploads": failed},
    })))
}

async fn read_form(store: &ProjectStore, mut form: Form<'_>) -> Result<Given, ApiError> {
    let mut given = Given::default();
    while let Some(part) = form.next().await? {
        match part.name.as_str() {
            "files" => {
                let (name, upload) = part.file(&store.storage).await?;
                let upload = with_room(store, given.coming, upload).await;
                if let Ok(upload) = &upload {
                    given.coming.files += 1;
                    given.coming.bytes += upload.bytes();
                }
                given.files.push((name, upload));
            }
            "descriptions" => given.descriptions.push(part.text().await?),
            "purpose" if given.purpose.is_none() => given.purpose = Some(part.text().await?),
            name => return Err(unknown_part(name)),
        }
    }
    Ok(given)
}

/// An upload, if its project has room for it. If not it goes from the disk at once, not when the whole form is there.
async fn with_room(
    store: &ProjectStore,
    coming: Coming,
    upload: Upload,
) -> Result<Upload, ApiError> {
    let check = move |storage: &Storage, project: &str, _: &str| {
        storage.check_room_beside(project, coming, &upload).map(|()| upload)
    };
    store.ask("file", "", check).await
}

/// Lists files in pages, newest first.
pub(crate) async fn list_files(
    State(app): State<Arc<App>>,
    store: ProjectStore,
    request: Request,
) -> Result<Response, ApiError> {
    let mut query = Query::read(request.uri())?;
    let page = Page::take(&mut query)?;
    query.finish()?;
    let list = move |storage: &Storage, project: &str, _: &str| {
        storage.numbered_files(project, page.place())
    };
    let (files, total) = store.ask("file", "", list).await?;
    let files: Vec<Value> = files.into_iter().map(|file| describe(&app, file)).collect();
    Ok(json(json!({
        "request_id": request_id(&request),
        "data": {"total": total, "page_no": page.no, "page_size": page.size, "files": files},
    })))
}

pub(crate) async fn get_file(
    State(app): State<Arc<App>>,
    store: ProjectStore,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let file = store.ask("file", &id, Storage::file).await?;
    Ok(json(json!({"request_id": request_id(&request), "data": describe(&app, file)})))
}

pub(crate) async fn delete_file(
    store: ProjectStore,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    store.ask("file", &id, Storage::remove_file).await?;
    let data = json!({"file_id": id, "deleted": true});
    Ok(json(json!({"request_id": request_id(&request), "data": data})))
}
