//! Reading a request's body within bounds: declared type, size, time.
//!
//! Not here: what the JSON means. The depth of JSON is bounded by `serde_json` (128 levels), which `openai` relies on.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::error::{ApiError, Fault};

/// Reads a JSON body.
pub(crate) async fn read_json(
    headers: &HeaderMap,
    body: Body,
    max_bytes: usize,
    timeout: Duration,
) -> Result<Bytes, ApiError> {
    check_type(headers)?;
    let too_large = |given: &str| {
        ApiError::new(
            Fault::TooLarge,
            "request_too_large",
            format!("The request's body is limited to {max_bytes} bytes; this one has {given}."),
        )
    };
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    if let Some(bytes) = declared.filter(|bytes: &u64| *bytes > max_bytes as u64) {
        return Err(too_large(&bytes.to_string()));
    }
    let collected = tokio::time::timeout(timeout, Limited::new(body, max_bytes).collect());
    match collected.await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large("more")),
        Ok(Err(error)) => Err(ApiError {
            log: Some(format!("reading the body failed: {error}")),
            ..ApiError::new(Fault::Invalid, "incomplete_body", "The request's body is incomplete.")
        }),
        Err(_) => Err(ApiError::new(
            Fault::BodyTimeout,
            "body_timeout",
            format!("The request's body did not arrive within {} s.", timeout.as_secs_f32()),
        )),
    }
}

/// JSON by its own word, or no word at all.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::new(
        Fault::UnsupportedMediaType,
        "unsupported_media_type",
        "The request's body must be JSON: send the header `content-type: application/json`.",
    ))
}
