//! `/v1/batches`: a file of requests in, a file of answers out, within a day or longer.
//!
//! As Model Studio has it, `completion_window` may be up to 336 hours (or 14 days). Not here: running them (`batch`).

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::auth::{Caller, now_unix};
use crate::batch::ENDPOINTS;
use crate::body::read_json;
use crate::error::{ApiError, Fault, json};
use crate::fields::{Fields, Null, shortened, wrong_type};
use crate::openai::files::checked_lifetime;
use crate::paging::{List, Query};
use crate::project_store::ProjectStore;
use crate::storage::{BatchDocument, BatchPage, BatchRecord, BatchStatus, Counts, Storage};

/// Hours of a completion window.
const WINDOW_H: std::ops::RangeInclusive<u64> = 24..=336;
const MAX_METADATA: usize = 16;
const MAX_METADATA_KEY_CHARS: usize = 64;
const MAX_METADATA_VALUE_CHARS: usize = 512;
const DEFAULT_PAGE: u32 = 20;
const MAX_PAGE: u32 = 100;

fn describe(batch: BatchRecord) -> Value {
    let BatchRecord { id, document, .. } = batch;
    let errors = document.errors;
    let mut shown = json!({
        "id": id,
        "object": "batch",
        "endpoint": document.endpoint,
        "input_file_id": document.input_file_id,
        "completion_window": document.completion_window,
        "status": document.status,
        "created_at": document.created_at,
        "expires_at": document.expires_at,
        "request_counts": document.request_counts,
        "metadata": document.metadata,
    });
    if !errors.is_empty() {
        shown["errors"] = json!({"object": "list", "data": errors});
    }
    let strings = [
        ("model", document.model),
        ("output_file_id", document.output_file_id),
        ("error_file_id", document.error_file_id),
    ];
    for (name, value) in strings {
        if let Some(value) = value {
            shown[name] = value.into();
        }
    }
    let times = [
        ("in_progress_at", document.in_progress_at),
        ("finalizing_at", document.finalizing_at),
        ("completed_at", document.completed_at),
        ("failed_at", document.failed_at),
        ("expired_at", document.expired_at),
        ("cancelling_at", document.cancelling_at),
        ("cancelled_at", document.cancelled_at),
    ];
    for (name, value) in times {
        if let Some(value) = value {
            shown[name] = value.into();
        }
    }
    if let Some(usage) = document.usage {
        shown["usage"] = usage;
    }
    shown
}

/// What is asked for, before it is known whether the file exists.
fn parse(body: &[u8], key: &str) -> Result<BatchDocument, ApiError> {
    let mut fields = Fields::parse(body)?;
    let endpoint = required_text(&mut fields, "endpoint")?;
    if !ENDPOINTS.contains(&endpoint.as_str()) {
        let message = format!(
            "`endpoint` must be one of {}, not `{}`.",
            ENDPOINTS.join(", "),
            shortened(&endpoint)
        );
        return Err(ApiError::field("endpoint", "invalid_value", message));
    }
    let input_file_id = required_text(&mut fields, "input_file_id")?;
    let completion_window = required_text(&mut fields, "completion_window")?;
    let hours = window_hours(&completion_window)?;
    let metadata = metadata(&mut fields)?;
    let output_lifetime_s = output_lifetime(&mut fields)?;
    fields.finish()?;
    let created_at = now_unix();
    Ok(BatchDocument {
        endpoint,
        input_file_id,
        completion_window,
        status: BatchStatus::Validating,
        key: key.to_owned(),
        model: None,
        errors: Vec::new(),
        output_file_id: None,
        error_file_id: None,
        output_lifetime_s,
        created_at,
        expires_at: created_at.saturating_add(hours * 3600),
        in_progress_at: None,
        finalizing_at: None,
        completed_at: None,
        failed_at: None,
        expired_at: None,
        cancelling_at: None,
        cancelled_at: None,
        request_counts: Counts::default(),
        usage: None,
        metadata,
    })
}

fn required_text(fields: &mut Fields, name: &str) -> Result<String, ApiError> {
    match fields.required(name)? {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(name, "a string", &other)),
    }
}

/// `24h`, `14d`.
fn window_hours(text: &str) -> Result<u64, ApiError> {
    let hours = match text.strip_suffix('d') {
        Some(days) => days.parse::<u64>().ok().and_then(|days| days.checked_mul(24)),
        None => text.strip_suffix('h').and_then(|hours| hours.parse().ok()),
    };
    hours.filter(|hours| WINDOW_H.contains(hours)).ok_or_else(|| {
        let message = format!(
            "`completion_window` must be from {}h to {}h, or in days such as 1d, not `{}`.",
            WINDOW_H.start(),
            WINDOW_H.end(),
            shortened(text)
        );
        ApiError::field("completion_window", "invalid_value", message)
    })
}

/// OpenAI's limits: 16 pairs of short texts.
pub(super) fn metadata(fields: &mut Fields) -> Result<Option<Map<String, Value>>, ApiError> {
    let Some(value) = fields.take("metadata", Null::Absent) else { return Ok(None) };
    let Value::Object(map) = value else {
        return Err(wrong_type("metadata", "an object", &value));
    };
    let fits = |(key, value): (&String, &Value)| {
        let value = value.as_str().map(|text| text.chars().count());
        key.chars().count() <= MAX_METADATA_KEY_CHARS
            && value.is_some_and(|chars| chars <= MAX_METADATA_VALUE_CHARS)
    };
    if map.len() > MAX_METADATA || !map.iter().all(fits) {
        let message = format!(
            "`metadata` has at most {MAX_METADATA} pairs of strings, of {MAX_METADATA_KEY_CHARS} and \
             {MAX_METADATA_VALUE_CHARS} characters at most."
        );
        return Err(ApiError::field("metadata", "invalid_value", message));
    }
    Ok(Some(map))
}

fn output_lifetime(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let name = "output_expires_after";
    let Some(value) = fields.take(name, Null::Absent) else { return Ok(None) };
    let mut given = Fields::object(value, name)?;
    let anchor = given.string("anchor", Null::Refused)?;
    let seconds = given.integer("seconds", 0..=i64::MAX)?;
    given.finish()?;
    if anchor.as_deref() != Some("created_at") {
        let message = format!("`{name}.anchor` must be `created_at`.");
        return Err(ApiError::field(format!("{name}.anchor"), "invalid_value", message));
    }
    checked_lifetime(seconds.and_then(|s| u64::try_from(s).ok()), name).map(Some)
}

pub(crate) async fn create_batch(
    State(app): State<Arc<App>>,
    store: ProjectStore,
    request: Request,
) -> Result<Response, ApiError> {
    let caller = request.extensions().get::<Caller>().cloned();
    if app.phase() != crate::app::Phase::Serving {
        return Err(ApiError::shutting_down());
    }
    let (head, body) = request.into_parts();
    let limits = &app.limits;
    let body = read_json(&head.headers, body, limits.max_body_bytes, limits.body_timeout).await?;
    let key = caller.as_ref().map_or("", |caller| &*caller.principal.key);
    let document = parse(&body, key)?;
    let allowed = |caller: Caller| caller.principal.scopes.allows_endpoint(&document.endpoint);
    if !caller.is_some_and(allowed) {
        let message = format!("This key is not made for `{}`.", document.endpoint);
        return Err(ApiError::new(Fault::Forbidden, "insufficient_scope", message));
    }
    let file = document.input_file_id.clone();
    let add = move |storage: &Storage, project: &str, _: &str| storage.add_batch(project, document);
    let batch = store.ask("file", &file, add).await?;
    app.batches_changed.notify_one();
    Ok(json(describe(batch)))
}

pub(crate) async fn list_batches(
    store: ProjectStore,
    request: Request,
) -> Result<Response, ApiError> {
    let mut query = Query::read(request.uri())?;
    let page =
        BatchPage { after: query.text("after"), limit: query.limit(DEFAULT_PAGE, MAX_PAGE)? };
    query.finish()?;
    let after = page.after.clone().unwrap_or_default();
    let list = move |storage: &Storage, project: &str, _: &str| storage.batches(project, &page);
    let (batches, has_more) = store.ask("batch", &after, list).await?;
    let data: Vec<Value> = batches.into_iter().map(describe).collect();
    Ok(json(List::new(data, has_more)))
}

pub(crate) async fn get_batch(
    store: ProjectStore,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    Ok(json(describe(store.ask("batch", &id, Storage::batch).await?)))
}

pub(crate) async fn cancel_batch(
    State(app): State<Arc<App>>,
    store: ProjectStore,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let cancel = |document: &mut BatchDocument| {
        if matches!(document.status, BatchStatus::Validating | BatchStatus::InProgress) {
            document.status = BatchStatus::Cancelling;
            document.cancelling_at = Some(now_unix());
        }
    };
    let change =
        move |storage: &Storage, project: &str, id: &str| storage.change_batch(project, id, cancel);
    let batch = store.ask("batch", &id, change).await?;
    // One that was cancelled before is over too, and says so.
    if batch.document.status != BatchStatus::Cancelling {
        let status = json!(batch.document.status);
        let status = status.as_str().unwrap_or_default();
        let message = format!("The batch is {status} and can no longer be cancelled.");
        return Err(ApiError::new(Fault::Conflict, "batch_not_cancellable", message));
    }
    app.batches_changed.notify_one();
    Ok(json(describe(batch)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_asked_for_in_openai_s_words() {
        let check = |change: Value, expected: &str| {
            let mut body = json!({"endpoint": "/v1/completions", "input_file_id": "file-1", "completion_window": "24h"});
            for (name, value) in change.as_object().unwrap() {
                body[name] = value.clone();
            }
            let told = parse(body.to_string().as_bytes(), "k").map_err(|e| e.message);
            assert_eq!(told.err().unwrap_or_default(), expected, "{change}");
        };
        check(json!({}), "");
        check(json!({"metadata": {"a": "b"}}), "");
        check(json!({"output_expires_after": {"anchor": "created_at", "seconds": 3600}}), "");
        let window = "`completion_window` must be from 24h to 336h, or in days such as 1d, not ";
        for (text, ok) in [
            ("24h", true),
            ("14d", true),
            ("336h", true),
            ("23h", false),
            ("15d", false),
            ("x", false),
        ] {
            let expected = if ok { String::new() } else { format!("{window}`{text}`.") };
            check(json!({"completion_window": text}), &expected);
        }
        check(
            json!({"endpoint": "/v1/models"}),
            "`endpoint` must be one of /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, not `/v1/models`.",
        );
        check(json!({"input_file_id": 3}), "`input_file_id` must be a string, not an integer.");
        check(json!({"extra": 3}), "Unknown parameter: `extra`.");
        check(
            json!({"output_expires_after": {"anchor": "created_at", "seconds": 10}}),
            "`output_expires_after.seconds` must be from 3600 to 2592000.",
        );
    }
}
