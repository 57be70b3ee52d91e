//! The layer on this dialect's routes, and errors as Ollama writes them: `{"error": "…"}`. The status is the one that every dialect has.

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::json;

use crate::error::{ApiError, rewritten};

const JSON: &str = "application/json";

/// The body of an error, or the line that ends a broken stream.
pub(super) fn body(error: &ApiError) -> String {
    json!({"error": error.message}).to_string()
}

/// Outermost on this dialect's routes: rewrites errors, whoever made them. Bodies are JSON whatever their type says, as
/// there: its own documentation sends them with curl's type for forms.
pub(crate) async fn layer(mut request: Request, next: Next) -> Response {
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    rewritten(next.run(request).await, |error| (error.status(), body(error)))
}
