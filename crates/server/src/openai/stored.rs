//! Chats that their requests have the server keep (`store`): listed, shown, changed and removed, under
//! `/v1/chat/completions`.
//!
//! Not here: how a chat is answered. Invariant: what is shown is what was answered, and its metadata.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::body::read_json;
use crate::error::{ApiError, json};
use crate::fields::Fields;
use crate::openai::batches::metadata;
use crate::paging::{List, Query};
use crate::project_store::{ProjectStore, failed, on_disk};
use crate::respond::Keep;
use crate::storage::{AnswerKind, AnswerPage, AnswerRecord, Storage, StorageError};

const WHAT: &str = "chat completion";
const DEFAULT_PAGE: u32 = 20;
const MAX_PAGE: u32 = 100;

/// What a request has the server keep of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Kept {
    /// As they came.
    pub(super) messages: Vec<Value>,
    pub(super) metadata: Map<String, Value>,
}

/// Where a chat is kept.
pub(super) struct Shelf {
    pub(super) storage: Arc<Storage>,
    pub(super) project: Arc<str>,
    pub(super) kept: Kept,
}

impl Shelf {
    /// What is kept of an answer in the form in which it is sent as a whole.
    pub(super) fn record(self, answer: &[u8]) -> (Arc<Storage>, AnswerRecord) {
        // JSON that we made ourselves: this cannot fail.
        let mut document: Value = serde_json::from_slice(answer).unwrap_or_default();
        document["metadata"] = self.kept.metadata.into();
        let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        let (id, model) = (text("id"), text("model"));
        let messages = self.kept.messages.into_iter().enumerate();
        let messages: Value =
            messages.map(|(place, message)| listed(&id, place, message)).collect();
        let record = AnswerRecord {
            id,
            project: self.project.to_string(),
            model,
            document: document.to_string(),
            input: messages.to_string(),
            steps: None,
            kept_at: None,
            is_over: true,
        };
        (self.storage, record)
    }
}

/// A message as it is listed: parts stand apart from text.
fn listed(chat: &str, place: usize, message: Value) -> Value {
    let mut listed = json!({"id": format!("{chat}-{place}")});
    if let (Value::Object(listed), Value::Object(message)) = (&mut listed, message) {
        listed.extend(message);
        if let Some(parts) = listed.get("content").filter(|content| content.is_array()).cloned() {
            listed.insert("content_parts".to_owned(), parts);
            listed.insert("content".to_owned(), Value::Null);
        }
        for field in ["content", "refusal"] {
            listed.entry(field).or_insert(Value::Null);
        }
    }
    listed
}

/// Keeps an answer that was computed and billed: who asked gets it either way.
pub(super) fn keep(storage: Arc<Storage>, kind: AnswerKind, record: AnswerRecord) -> Keep {
    Box::pin(async move {
        let id = record.id.clone();
        match on_disk(move || storage.add_answer(kind, &record)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%id, %error, "an answer is not kept"),
            Err(error) => tracing::warn!(%id, error = ?error.log, "an answer is not kept"),
        }
    })
}

async fn find(store: &ProjectStore, id: &str) -> Result<(AnswerRecord, Value), ApiError> {
    let find =
        |storage: &Storage, project: &str, id: &str| storage.answer(project, AnswerKind::Chat, id);
    let record = store.ask(WHAT, id, find).await?;
    let document = parsed(&record.document)?;
    Ok((record, document))
}

fn parsed(text: &str) -> Result<Value, ApiError> {
    serde_json::from_str(text).map_err(|e| ApiError::internal(format!("a kept chat: {e}")))
}

pub(crate) async fn list_chats(
    store: ProjectStore,
    request: Request,
) -> Result<Response, ApiError> {
    let mut query = Query::read(request.uri())?;
    let page = AnswerPage {
        model: query.text("model"),
        metadata: query.pairs("metadata"),
        after: query.text("after"),
        limit: query.limit(DEFAULT_PAGE, MAX_PAGE)?,
        ascending: query.choice("order", &["asc", "desc"])?.as_deref() != Some("desc"),
    };
    query.finish()?;
    let after = page.after.clone().unwrap_or_default();
    let list = move |storage: &Storage, project: &str, _: &str| {
        storage.answers(project, AnswerKind::Chat, &page)
    };
    let (records, has_more) = store.ask(WHAT, &after, list).await?;
    let data = records.iter().map(|record| parsed(&record.document));
    Ok(json(List::new(data.collect::<Result<_, _>>()?, has_more)))
}

pub(crate) async fn get_chat(
    store: ProjectStore,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    Ok(json(find(&store, &id).await?.1))
}

/// Gives a chat other metadata.
pub(crate) async fn change_chat(
    State(app): State<Arc<App>>,
    store: ProjectStore,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let limits = &app.limits;
    let body = read_json(&head.headers, body, limits.max_body_bytes, limits.body_timeout).await?;
    let mut fields = Fields::parse(&body)?;
    if !fields.has("metadata") {
        fields.required("metadata")?;
    }
    let metadata = metadata(&mut fields)?.unwrap_or_default();
    fields.finish()?;
    let (mut record, mut document) = find(&store, &id).await?;
    document["metadata"] = metadata.into();
    record.document = document.to_string();
    let change =
        move |storage: &Storage, _: &str, _: &str| storage.change_answer(AnswerKind::Chat, &record);
    store.ask(WHAT, &id, change).await?;
    Ok(json(document))
}

pub(crate) async fn delete_chat(
    store: ProjectStore,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let remove = |storage: &Storage, project: &str, id: &str| {
        storage.remove_answer(project, AnswerKind::Chat, id)
    };
    store.ask(WHAT, &id, remove).await?;
    Ok(json(json!({"object": "chat.completion.deleted", "id": id, "deleted": true})))
}

/// Lists the messages that a chat answered.
pub(crate) async fn list_chat_messages(
    store: ProjectStore,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut query = Query::read(request.uri())?;
    let limit = query.limit(DEFAULT_PAGE, MAX_PAGE)? as usize;
    let descending = query.choice("order", &["asc", "desc"])?.as_deref() == Some("desc");
    let after = query.text("after");
    query.finish()?;
    let (record, _) = find(&store, &id).await?;
    let Value::Array(mut all) = parsed(&record.input)? else {
        return Err(ApiError::internal("a kept chat holds no messages"));
    };
    if descending {
        all.reverse();
    }
    let page = List::page(all, after.as_deref(), limit);
    let unknown =
        || failed(StorageError::NotFound, "message", after.as_deref().unwrap_or_default());
    Ok(json(page.ok_or_else(unknown)?))
}
