//! Streams of frames (server-sent events, lines of JSON): framing, keep-alive, the answer's headers. Not here: what the
//! frames say.
//!
//! Invariant: nothing is buffered here; a frame is made when the connection can take it.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

/// How a dialect's frames are told apart, and what fills silences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Framing {
    /// Of the answer.
    pub(crate) content_type: &'static str,
    /// What is sent where nothing is to be said for long; `None` where the format has no such thing.
    pub(crate) keep_alive: Option<&'static str>,
}

impl Framing {
    /// Server-sent events, kept alive by comments.
    pub(crate) const EVENTS: Self = Self {
        content_type: "text/event-stream; charset=utf-8",
        keep_alive: Some(": keep-alive\n\n"),
    };
}

/// Where frames come from.
pub(crate) trait EventSource: Send + 'static {
    /// The next frame; `None` after the last. Dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// `data: …` and an empty line. `data` has no line breaks.
pub(crate) fn frame(data: &str) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

/// The answer that streams `source`; silences longer than `keep_alive` are filled.
pub(crate) fn response(
    source: impl EventSource,
    framing: &Framing,
    keep_alive: Duration,
) -> Response {
    let filler = framing.keep_alive;
    let frames = stream::unfold(source, move |mut source| async move {
        let bytes = match filler {
            None => source.next().await?,
            Some(filler) => match tokio::time::timeout(keep_alive, source.next()).await {
                Ok(frame) => frame?,
                Err(_) => Bytes::from_static(filler.as_bytes()),
            },
        };
        Some((Ok::<_, Infallible>(bytes), source))
    });
    (headers(framing.content_type), Body::from_stream(frames)).into_response()
}

/// Of every answer that streams.
pub(crate) fn headers(content_type: &'static str) -> [(header::HeaderName, HeaderValue); 3] {
    [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // nginx would hold events back otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ]
}
