//! Server-sent events: framing, keep-alive comments, the end of a stream. Not here: what the events say.
//!
//! Invariant: nothing is buffered here; a frame is made when the connection can take it.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use crate::error::ApiError;

/// The last event of a stream that ended well.
pub(crate) const DONE: &str = "[DONE]";
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// Where the data of events come from.
pub(crate) trait EventSource: Send + 'static {
    /// The data of the next event, without line breaks; `None` after the last. Dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = Option<String>> + Send;
}

/// `data: …` and an empty line.
pub(crate) fn frame(data: &str) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

/// An event that ends a broken stream.
pub(crate) fn error_data(error: &ApiError) -> String {
    if let Some(log) = &error.log {
        tracing::warn!(error = %log, "a stream broke");
    }
    error.to_json()
}

/// The answer that streams `source`; a comment fills silences longer than `keep_alive`.
pub(crate) fn response(source: impl EventSource, keep_alive: Duration) -> Response {
    let frames = stream::unfold(source, move |mut source| async move {
        let bytes = match tokio::time::timeout(keep_alive, source.next()).await {
            Ok(data) => frame(&data?),
            Err(_) => Bytes::from_static(KEEP_ALIVE),
        };
        Some((Ok::<_, Infallible>(bytes), source))
    });
    (headers(), Body::from_stream(frames)).into_response()
}

/// Of every answer that streams.
pub(crate) fn headers() -> [(header::HeaderName, HeaderValue); 3] {
    [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // nginx would hold events back otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ]
}
