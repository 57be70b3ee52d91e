//! The id under which a request is found in the log: the client's own where it is harmless, else a new one.
//!
//! Outermost layer of the router: every answer carries `x-request-id`, every log line of the request its span.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use crate::error::ErrorForLog;

const HEADER: &str = "x-request-id";
/// Longer ones are replaced.
const MAX_CHARS: usize = 128;

/// Extension of every request.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

/// 24 hexadecimal digits nobody can guess; falls back to the clock where the system gives no random numbers.
pub(crate) fn random_hex() -> String {
    let mut bytes = [0_u8; 12];
    if getrandom::fill(&mut bytes).is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        bytes.copy_from_slice(&now.unwrap_or_default().as_nanos().to_le_bytes()[..12]);
    }
    let digit = |b: u8| char::from_digit(u32::from(b), 16).unwrap_or('0');
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 15));
    }
    text
}

fn accepted(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let harmless = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    let fits = (1..=MAX_CHARS).contains(&text.len()) && text.bytes().all(harmless);
    fits.then(|| text.to_owned())
}

/// Gives the request its id and its span, the answer its header, the log its line.
pub(crate) async fn layer(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(HEADER).and_then(accepted);
    let id = id.unwrap_or_else(|| format!("req_{}", random_hex()));
    request.extensions_mut().insert(RequestId(id.clone()));
    let span = tracing::info_span!("request", request_id = %id);
    let method = request.method().clone();
    // The pattern, not the path: what a client puts into a path does not belong into the log.
    let route = request.extensions().get::<MatchedPath>().map(|p| p.as_str().to_owned());
    let start = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HEADER, value);
    }
    let _entered = span.enter();
    let status = response.status().as_u16();
    let route = route.as_deref().unwrap_or("-");
    let elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    match response.extensions_mut().remove::<ErrorForLog>() {
        Some(ErrorForLog(error)) if status >= 500 => {
            tracing::warn!(%method, route, status, elapsed_ms, %error, "answered");
        }
        Some(ErrorForLog(error)) => {
            tracing::info!(%method, route, status, elapsed_ms, %error, "answered");
        }
        None => tracing::debug!(%method, route, status, elapsed_ms, "answered"),
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_ids_are_taken_over() {
        let check = |text: &str, taken: bool| {
            let value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
            assert_eq!(accepted(&value).is_some(), taken, "{text:?}");
        };
        check("abc-123_x.y:z", true);
        check(&"a".repeat(MAX_CHARS), true);
        check(&"a".repeat(MAX_CHARS + 1), false);
        check("", false);
        check("a b", false);
        check("a\"b", false);
        check("\u{1f600}", false);
        assert_ne!(random_hex(), random_hex());
    }
}
