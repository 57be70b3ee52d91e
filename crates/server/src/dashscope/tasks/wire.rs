//! A task as DashScope tells of it, by itself and in a list.

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::app::App;
use crate::dashscope::time;
use crate::error::ApiError;
use crate::respond::json_bytes;
use crate::storage::{ListedTask, TaskDocument, TaskRecord};

/// Of the routes that take in tasks.
const SERVICES: &str = "/api/v1/services/";

/// An answer as it was given.
#[derive(Default, Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    output: BTreeMap<String, &'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    /// Of its record in the ledger.
    request_id: Option<String>,
}

#[derive(Serialize)]
struct Shown<'a> {
    request_id: &'a str,
    output: Output<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<&'a RawValue>,
}

/// Of the task itself, then of its answer: numbers stand as they were written.
struct Output<'a> {
    own: Vec<(&'static str, String)>,
    answered: BTreeMap<String, &'a RawValue>,
}

impl Serialize for Output<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in &self.own {
            map.serialize_entry(name, value)?;
        }
        for (name, value) in &self.answered {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// A task, with its answer once it has one. May take milliseconds.
pub(super) fn shown(app: &App, task: &TaskRecord, request_id: &str) -> Result<Vec<u8>, ApiError> {
    let mut own = of_task(app, &task.id, &task.document);
    let answer = task.answer.as_deref().map(serde_json::from_str::<Answer<'_>>).transpose();
    let answer = answer.map_err(|error| ApiError::internal(format!("a kept answer: {error}")))?;
    let Answer { output, usage, request_id: record_id } = answer.unwrap_or_default();
    own.extend(record_id.map(|id| ("record_id", id)));
    json_bytes(&Shown { request_id, output: Output { own, answered: output }, usage })
}

/// What is said of a task besides its answer.
fn of_task(app: &App, id: &str, document: &TaskDocument) -> Vec<(&'static str, String)> {
    let mut own = vec![
        ("task_id", id.to_owned()),
        ("task_status", document.status.as_str().to_owned()),
        ("submit_time", time::text(app, document.submitted_ms)),
    ];
    let times = [("scheduled_time", document.scheduled_ms), ("end_time", document.ended_ms)];
    let times = times.into_iter().filter_map(|(name, ms)| Some((name, time::text(app, ms?))));
    own.extend(times);
    let why = [("code", &document.code), ("message", &document.message)];
    own.extend(why.into_iter().filter_map(|(name, text)| Some((name, text.clone()?))));
    own
}

/// A task in a list, in the words of [`shown`]: what Alibaba's newer client reads.
pub(super) fn brief(app: &App, task: &ListedTask) -> Value {
    let own = of_task(app, &task.id, &task.document);
    own.into_iter().map(|(name, text)| (name.to_owned(), Value::from(text))).collect()
}

/// One that is not there, is somebody else's, or was too long ago.
pub(super) fn unknown(id: &str, request_id: &str) -> Value {
    json!({"request_id": request_id, "output": {"task_id": id, "task_status": "UNKNOWN"}})
}

pub(super) fn listed(task: ListedTask) -> Value {
    let ListedTask { id, model, document } = task;
    let service = document.path.strip_prefix(SERVICES).unwrap_or_default().replace('/', ":");
    let mut listed = json!({
        "task_id": id,
        "status": document.status,
        "model_name": model,
        "api_key_id": document.key,
        "request_id": document.request_id,
        "gmt_create": document.submitted_ms,
        "user_api_unique_key": format!("apikey:v1:{service}:{model}"),
    });
    for (name, ms) in [("start_time", document.scheduled_ms), ("end_time", document.ended_ms)] {
        if let Some(ms) = ms {
            listed[name] = ms.into();
        }
    }
    listed
}
