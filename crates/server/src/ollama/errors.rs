//! Errors as Ollama writes them: `{"error": "…"}`. The status is the one that every dialect has.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use serde_json::json;

use crate::error::{ApiError, rewritten};

/// The body of an error, or the line that ends a broken stream.
pub(super) fn body(error: &ApiError) -> String {
    json!({"error": error.message}).to_string()
}

/// Outermost on this dialect's routes: rewrites errors, whoever made them.
pub(crate) async fn layer(request: Request, next: Next) -> Response {
    rewritten(next.run(request).await, |error| (error.status(), body(error)))
}
