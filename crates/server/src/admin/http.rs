//! Administration over HTTP: authentication, a bounded body, a bounded number of blocking threads.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use tokio::sync::Semaphore;

use super::Answer;
use super::call::{self, Reply};
use super::who::Who;
use crate::app::App;
use crate::auth;
use crate::body::read_json;
use crate::error::{ApiError, Fault};
use crate::openapi;

/// Calls that run at once; more wait.
const THREADS: usize = 4;
/// Calls that run or wait; more are refused.
const MAX_WAITING: usize = 64;

struct Desk {
    app: Arc<App>,
    places: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

/// Everything under `/admin/v1` and `/v1/organization`, and the OpenAPI document.
pub(crate) fn router(app: &Arc<App>) -> Router<Arc<App>> {
    let desk = Arc::new(Desk {
        app: Arc::clone(app),
        places: Arc::new(Semaphore::new(MAX_WAITING)),
        running: Arc::new(Semaphore::new(THREADS)),
    });
    Router::new()
        .route("/openapi.json", get(describe))
        .route("/admin/v1/{*rest}", any(serve))
        .route("/v1/organization/{*rest}", any(serve))
        .with_state(desk)
}

async fn describe() -> Response {
    let body = openapi::document().to_string();
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

async fn serve(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    match handle(&desk, request).await {
        Ok(reply) => {
            let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::OK);
            let kind = HeaderValue::from_static(reply.content_type);
            let headers = [
                (header::CONTENT_TYPE, kind),
                // Answers hold secrets and what others may not see.
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            ];
            (status, headers, reply.body).into_response()
        }
        Err(error) => error.into_response(),
    }
}

async fn handle(desk: &Arc<Desk>, request: Request) -> Result<Reply, ApiError> {
    let Some(office) = desk.app.office.clone() else {
        let message = "This server runs without API keys, so it has no tenants to administer.";
        return Err(ApiError::new(Fault::Forbidden, "no_keys", message));
    };
    let caller = auth::with_key(&office.directory, request.headers())?;
    let who = Who::of(caller.principal)?;
    let place = Arc::clone(&desk.places).try_acquire_owned().map_err(|_| {
        let message = format!("{MAX_WAITING} calls of administration are waiting already.");
        ApiError::new(Fault::Overloaded, "overloaded", message)
    })?;
    let (head, body) = request.into_parts();
    let limits = &desk.app.limits;
    let body = if has_body(&head.headers) {
        read_json(&head.headers, body, limits.max_body_bytes, limits.body_timeout).await?
    } else {
        axum::body::Bytes::new()
    };
    let running = Arc::clone(&desk.running).acquire_owned().await;
    let running = running.map_err(|e| ApiError::internal(format!("admin threads closed: {e}")))?;
    let span = tracing::Span::current();
    let done = tokio::task::spawn_blocking(move || {
        let (_place, _running) = (place, running);
        let organisation = head.headers.get("openai-organization").and_then(|v| v.to_str().ok());
        let request = call::Request {
            method: head.method.as_str(),
            path: head.uri.path(),
            query: head.uri.query().unwrap_or_default(),
            body: &body,
            organisation,
        };
        span.in_scope(|| call::respond(&office, &who, &request))
    });
    done.await.map_err(|e| ApiError::internal(format!("administration failed: {e}")))?
}

/// A body that announces itself.
fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok());
    headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

/// For callers that are not HTTP.
pub(crate) fn answer(result: Result<Reply, ApiError>) -> Answer {
    match result {
        Ok(Reply { status, content_type, body }) => Answer { status, content_type, body },
        Err(error) => Answer {
            status: error.status().as_u16(),
            content_type: "application/json",
            body: error.to_json(),
        },
    }
}
