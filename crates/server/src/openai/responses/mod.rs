//! `/v1/responses`: an answer to items, which is kept, can be continued, and may run in the background.
//!
//! Decided here, beyond what the dialect decides for all of its endpoints:
//! - Responses are kept unless `store` is false, where this server keeps any, in the folder of files; another project's
//!   do not exist. Where none are kept, only `store: true` is refused.
//! - Calls are told once they are whole: `response.function_call_arguments.delta` events follow each other at once.
//! - Thoughts are told as they are (`reasoning_text`), not as summaries, and nothing is encrypted.

mod background;
mod compose;
mod context;
mod items;
mod request;
mod wire;
mod writer;

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::Uri;
use axum::response::Response;
use serde_json::{Value, json};

use crate::app::App;
use crate::chat::{self, ChatRequest, Route};
use crate::error::{ApiError, Fault, json};
use crate::job::{Incoming, Job};
use crate::paging::{List, Query};
use crate::project_store::{ProjectStore, failed, keeping};
use crate::respond::respond;
use crate::storage::{AnswerKind, Storage, StorageError};

use background::Running;
pub(crate) use background::{Background, recover};
use compose::Step;
use context::Kept;
use items::{ID_PREFIX, Item, item_id};
use request::ResponseRequest;
use wire::ResponseBody;
use writer::{ResponseWriter, Shelf, shown};

const ROUTE: Route = Route { protocol: "openai.responses", id_prefix: ID_PREFIX };
const WHAT: &str = "response";
const DEFAULT_PAGE: u32 = 20;
const MAX_PAGE: u32 = 100;

/// A response that can be computed.
struct Ready {
    job: Job,
    body: ResponseBody,
    /// What was given with this request.
    items: Vec<Item>,
}

/// Understands a request and what it continues: `prepare` gets the whole conversation, and what was given with this
/// request.
async fn understood<T: Send + 'static>(
    app: &Arc<App>,
    incoming: &Incoming,
    mut request: ResponseRequest,
    prepare: impl FnOnce(&App, ChatRequest, Vec<Item>) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let project: Arc<str> = incoming.caller.project().into();
    let (previous, given) = (request.previous.clone(), std::mem::take(&mut request.given));
    let storage = app.storage.clone();
    let (before, items) = if previous.is_none() && !context::has_references(&given) {
        (Vec::new(), context::resolve(None, &project, given)?)
    } else {
        let load = move || {
            let items = context::resolve(storage.as_deref(), &project, given)?;
            let storage = storage.as_deref();
            Ok((context::before(storage, &project, previous.as_deref())?, items))
        };
        off_thread(load).await?
    };
    let shared = Arc::clone(app);
    let bytes = incoming.body.len().saturating_add(before.len().saturating_mul(256));
    let work = move || {
        let mut all = context::read(before)?;
        all.extend(items.iter().cloned());
        prepare(&shared, request.with(&shared.models, &all)?, items)
    };
    app.on_text_thread(bytes, work).await
}

/// Work that may read the disk.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let span = tracing::Span::current();
    let done = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    done.map_err(|e| ApiError::internal(format!("reading kept responses failed: {e}")))?
}

/// Whether the answer is kept; where none are, only who insists is refused.
fn keeps(app: &App, incoming: &Incoming, request: &ResponseRequest) -> Result<bool, ApiError> {
    if keeping(app).is_some() {
        // A batch has a file for its answers.
        return Ok(request.store.unwrap_or(incoming.line.is_none()));
    }
    let insists = if request.background { "background" } else { "store" };
    if request.background || request.store == Some(true) {
        let message =
            format!("`{insists}`: this server keeps no responses, as its settings have it.");
        return Err(ApiError::field(insists, "unsupported_parameter", message));
    }
    Ok(false)
}

async fn parsed(app: &Arc<App>, incoming: &Incoming) -> Result<ResponseRequest, ApiError> {
    let body = incoming.body.clone();
    app.on_text_thread(body.len(), move || ResponseRequest::parse(&body)).await
}

/// Answers items.
pub(crate) async fn create_response(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let request = parsed(&app, &incoming).await?;
    let store = keeps(&app, &incoming, &request)?;
    let (background, stream, obfuscates) = (request.background, request.stream, request.obfuscates);
    if background && incoming.line.is_some() {
        let message = "`background`: lines of a batch have nobody waiting for them anyway.";
        return Err(ApiError::field("background", "unsupported_parameter", message));
    }
    let body = request.shown.clone();
    let prepare = move |app: &App, chat: ChatRequest, items: Vec<Item>| -> Result<_, ApiError> {
        let job = chat::prepare(app, chat, ROUTE)?;
        Ok(Ready { body: shown(body, &job, store), job, items })
    };
    let Ready { job, body, items } = understood(&app, &incoming, request, prepare).await?;
    let shelf = app.storage.clone().filter(|_| store).map(|storage| Shelf {
        storage,
        project: incoming.caller.project().into(),
        input: listed(&items, &body.id),
    });
    match shelf {
        Some(shelf) if background => {
            let stream = stream.then_some(obfuscates);
            background::begin(&app, incoming, job, body, shelf, stream).await
        }
        shelf => {
            let writer = ResponseWriter::new(body, &job, obfuscates, shelf);
            respond(&app, incoming, job, writer).await
        }
    }
}

/// Items that were given, as they are listed.
fn listed(items: &[Item], response: &str) -> Vec<Value> {
    let listed = |(place, item): (usize, &Item)| {
        item.resource(|kind| item_id(kind, response, &format!("i{place}")))
    };
    items.iter().enumerate().map(listed).collect()
}

/// Tells how long the prompt of a response would be.
pub(crate) async fn count_input(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let request = parsed(&app, &incoming).await?;
    let count = |app: &App, chat: ChatRequest, _: Vec<Item>| -> Result<_, ApiError> {
        Ok(chat::count(app, &chat)?.1.len())
    };
    let tokens = understood(&app, &incoming, request, count).await?;
    Ok(json(json!({"object": "response.input_tokens", "input_tokens": tokens})))
}

/// A response of the project that asks, as it is kept.
async fn find(store: &ProjectStore, id: &str) -> Result<Kept, ApiError> {
    store.ask(WHAT, id, Kept::find).await
}

struct Wanted {
    stream: bool,
    after: Option<u64>,
    obfuscates: bool,
}

impl Wanted {
    fn read(uri: &Uri) -> Result<Self, ApiError> {
        // What can be included is told anyway.
        let mut query = Query::read_without(uri, &["include", "include[]"])?;
        let mut flag = |name| -> Result<bool, ApiError> {
            Ok(query.choice(name, &["true", "false"])?.as_deref() == Some("true"))
        };
        let (stream, obfuscates) = (flag("stream")?, flag("include_obfuscation")?);
        let after = query.text("starting_after").map(|text| {
            text.parse::<u64>().map_err(|_| {
                let message = "`starting_after` must be the number of an event, from 0 on.";
                ApiError::field("starting_after", "invalid_value", message)
            })
        });
        let after = after.transpose()?;
        query.finish()?;
        if after.is_some() && !stream {
            let message = "`starting_after` is only allowed with `stream=true`.";
            return Err(ApiError::field("starting_after", "invalid_value", message));
        }
        Ok(Self { stream, after, obfuscates })
    }
}

pub(crate) async fn get_response(
    State(app): State<Arc<App>>,
    store: ProjectStore,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let Wanted { stream, after, obfuscates } = Wanted::read(request.uri())?;
    // Looked for before the store is: what ends meanwhile is found there.
    let running = app.background.get(&id);
    let kept = find(&store, &id).await?;
    let running = running.filter(|_| !kept.record.is_over);
    if !stream {
        return Ok(match running {
            Some(running) => json(running.so_far()?),
            None => json(kept.body),
        });
    }
    let running = match (running, kept.record.steps) {
        (Some(running), _) if running.is_streamed => running,
        (None, Some(steps)) => {
            let steps: Vec<Step> = serde_json::from_str(&steps)
                .map_err(|error| ApiError::internal(format!("kept steps: {error}")))?;
            Arc::new(Running::over(kept.body, steps))
        }
        _ => {
            let message = "Only responses that were created with `background` and `stream` are streamed again.";
            return Err(ApiError::field("stream", "invalid_value", message));
        }
    };
    background::follow(&app, running, after, obfuscates)
}

pub(crate) async fn cancel_response(
    State(app): State<Arc<App>>,
    store: ProjectStore,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let running = app.background.get(&id);
    let kept = find(&store, &id).await?;
    if !kept.body.background {
        let message =
            "Only responses that run in the background can be cancelled; hang up instead.";
        return Err(ApiError::new(Fault::Invalid, "response_not_cancellable", message));
    }
    // Once more, or too late: then it is what it is.
    match running.filter(|_| !kept.record.is_over) {
        Some(running) => {
            running.cancel().await;
            Ok(json(running.so_far()?))
        }
        None => Ok(json(kept.body)),
    }
}

pub(crate) async fn delete_response(
    State(app): State<Arc<App>>,
    store: ProjectStore,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let running = app.background.get(&id);
    let kept = find(&store, &id).await?;
    if let Some(running) = running.filter(|_| !kept.record.is_over) {
        running.cancel().await;
    }
    let remove = |storage: &Storage, project: &str, id: &str| {
        storage.remove_answer(project, AnswerKind::Response, id)
    };
    store.ask(WHAT, &id, remove).await?;
    Ok(json(json!({"id": id, "object": "response", "deleted": true})))
}

/// Lists what a response answered: all that went before it, and what was given with it.
pub(crate) async fn list_input_items(
    store: ProjectStore,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut query = Query::read_without(request.uri(), &["include", "include[]"])?;
    let limit = query.limit(DEFAULT_PAGE, MAX_PAGE)? as usize;
    let ascending = query.choice("order", &["asc", "desc"])?.as_deref() == Some("asc");
    let after = query.text("after");
    query.finish()?;
    let kept = find(&store, &id).await?;
    let load = move || {
        let previous = kept.body.previous_response_id.as_deref();
        let mut all = context::before(Some(&*store.storage), &store.project, previous)?;
        all.extend(kept.input().map_err(|error| failed(error, WHAT, &kept.record.id))?);
        Ok(all)
    };
    let mut all = off_thread(load).await?;
    if !ascending {
        all.reverse();
    }
    let page = List::page(all, after.as_deref(), limit);
    let unknown = || failed(StorageError::NotFound, "item", after.as_deref().unwrap_or_default());
    Ok(json(page.ok_or_else(unknown)?))
}
