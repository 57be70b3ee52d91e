//! One line of a batch as a request, and what its answer becomes.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use http_body_util::{BodyExt, Limited};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::input::Line;
use crate::auth::Caller;
use crate::error::{ApiError, Fault};
use crate::request_id::{RequestId, random_hex};
use crate::storage::LineResult;

/// Longer answers are refused where they are made.
const MAX_ANSWER_BYTES: usize = 8 << 20;

pub(crate) const SERVER_ERROR: &str = "The server had an error while processing the request.";

/// Marks a request as a line of a batch: an extension that no client can set.
#[derive(Clone, Debug)]
pub(crate) struct BatchLine {
    pub(crate) batch: Arc<str>,
    /// From 0 on.
    pub(crate) number: u32,
    /// When the batch expires.
    pub(crate) deadline: Instant,
    /// How long the ledger keeps its answer, ms since 1970.
    pub(crate) keep_until_ms: u64,
    /// Turns true when the batch must not go on for now.
    pub(crate) stop: watch::Receiver<bool>,
}

impl BatchLine {
    /// Resolves when the line must end, with the reason that nobody is told.
    pub(crate) async fn stopped(mut self) -> ApiError {
        // Without a sender the runner is gone.
        let _ = self.stop.wait_for(|stop| *stop).await;
        ApiError::new(Fault::ShuttingDown, "batch_stopped", "The batch was stopped.")
    }
}

/// What became of an attempt at a line.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// It has its result.
    Done(LineResult),
    /// It was stopped, and cost nothing.
    Stopped,
    /// There was no room for it.
    Later,
    /// The server broke on it, and it cost nothing: what its result is if that remains so.
    Failed(LineResult),
}

/// A line of an output file.
#[derive(Serialize)]
struct Written<'a> {
    id: String,
    custom_id: &'a str,
    response: Option<WrittenResponse<'a>>,
    error: Option<WrittenError<'a>>,
}

#[derive(Serialize)]
struct WrittenResponse<'a> {
    status_code: u16,
    request_id: &'a str,
    body: &'a RawValue,
}

#[derive(Serialize)]
struct WrittenError<'a> {
    code: &'a str,
    message: &'a str,
}

fn written(line: &Written<'_>) -> Vec<u8> {
    // Strings and JSON that was parsed: this cannot fail.
    serde_json::to_vec(line).unwrap_or_default()
}

/// The result of a line that was never answered.
pub(crate) fn unanswered(number: u32, custom_id: &str, code: &str, message: &str) -> LineResult {
    let error = Some(WrittenError { code, message });
    let id = format!("batch_req_{}", random_hex());
    let text = written(&Written { id, custom_id, response: None, error });
    LineResult { line: number, is_error: true, text }
}

/// The result of a line whose answer was kept.
pub(crate) fn answered(number: u32, custom_id: &str, answer: Vec<u8>) -> LineResult {
    match raw(answer) {
        Some(body) => result(number, custom_id, StatusCode::OK, "", &body),
        None => unanswered(number, custom_id, "server_error", "The answer was lost."),
    }
}

fn result(
    number: u32,
    custom_id: &str,
    status: StatusCode,
    request_id: &str,
    body: &RawValue,
) -> LineResult {
    let response = WrittenResponse { status_code: status.as_u16(), request_id, body };
    let id = format!("batch_req_{}", random_hex());
    let text = written(&Written { id, custom_id, response: Some(response), error: None });
    LineResult { line: number, is_error: status != StatusCode::OK, text }
}

/// Runs a line through the handlers.
pub(crate) async fn attempt(
    routes: &TowerToHyperService<axum::Router>,
    caller: Caller,
    endpoint: &str,
    given: Line,
    line: BatchLine,
) -> Attempt {
    let (number, custom_id) = (line.number, given.custom_id.as_str());
    let request_id = format!("req_{}", random_hex());
    let request = Request::builder()
        .method(Method::POST)
        .uri(endpoint)
        .header(header::CONTENT_TYPE, "application/json")
        .extension(caller)
        .extension(RequestId(request_id.clone()))
        .extension(line.clone())
        .body(Body::from(given.body.get().to_owned()));
    let Ok(request) = request else {
        let message = "The line is no request.";
        return Attempt::Done(unanswered(number, custom_id, "invalid_request", message));
    };
    let Ok(response) = routes.call(request).await;
    let is_stopped = *line.stop.borrow() || Instant::now() >= line.deadline;
    let status = response.status();
    let is_ours = status.is_server_error();
    let Some(body) = read(response).await else {
        return if is_stopped {
            Attempt::Stopped
        } else {
            Attempt::Failed(unanswered(number, custom_id, "server_error", SERVER_ERROR))
        };
    };
    let result = result(number, custom_id, status, &request_id, &body);
    match status {
        _ if is_ours && is_stopped => Attempt::Stopped,
        // Capacity; a budget that begins anew one day; or the same line still settles from before.
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS | StatusCode::CONFLICT => {
            Attempt::Later
        }
        _ if is_ours => Attempt::Failed(result),
        _ => Attempt::Done(result),
    }
}

/// The body, which is JSON.
async fn read(response: Response) -> Option<Box<RawValue>> {
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.ok()?;
    raw(body.to_bytes().into())
}

/// JSON on one line.
fn raw(text: Vec<u8>) -> Option<Box<RawValue>> {
    if text.contains(&b'\n') {
        let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
        return RawValue::from_string(value.to_string()).ok();
    }
    RawValue::from_string(String::from_utf8(text).ok()?).ok()
}
