//! Errors as Anthropic writes them, in one table, and the layer that writes them on its routes.
//!
//! `{"type":"error","error":{"type","message","details":{"error_code"}},"request_id"}`; the id stands in `request-id` too.

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use serde_json::json;

use crate::error::{ApiError, Fault, rewritten};
use crate::request_id::RequestId;

/// The type of an error.
fn kind(error: &ApiError) -> &'static str {
    match (error.fault, error.code) {
        (Fault::Payment, _) | (_, Some("insufficient_quota")) => "billing_error",
        (Fault::Unauthenticated, _) => "authentication_error",
        (Fault::Forbidden, _) => "permission_error",
        (Fault::NotFound, _) => "not_found_error",
        (Fault::TooLarge, _) => "request_too_large",
        (Fault::RateLimited, _) => "rate_limit_error",
        (Fault::Overloaded | Fault::ShuttingDown, _) => "overloaded_error",
        (Fault::Deadline | Fault::BodyTimeout, _) => "timeout_error",
        (Fault::Internal | Fault::BadGateway, _) => "api_error",
        (
            Fault::Invalid
            | Fault::MethodNotAllowed
            | Fault::UnsupportedMediaType
            | Fault::Conflict
            | Fault::Unprocessable,
            _,
        ) => "invalid_request_error",
    }
}

/// The body of an error, or the data of the event that ends a broken stream.
pub(super) fn body(error: &ApiError, request_id: Option<&str>) -> String {
    let details = error.code.map(|code| json!({"error_code": code}));
    let mut inner = json!({"type": kind(error), "message": error.message});
    if let (Some(inner), Some(details)) = (inner.as_object_mut(), details) {
        inner.insert("details".to_owned(), details);
    }
    json!({"type": "error", "error": inner, "request_id": request_id}).to_string()
}

/// Outermost on this dialect's routes: rewrites errors, whoever made them, and names the request.
pub(crate) async fn layer(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().map(|id| id.0.clone());
    let write = |error: &ApiError| (error.status(), body(error, id.as_deref()));
    let mut response = rewritten(next.run(request).await, write);
    if let Some(value) = id.and_then(|id| HeaderValue::from_str(&id).ok()) {
        response.headers_mut().insert("request-id", value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_its_type() {
        let check = |fault: Fault, code: &'static str, expected: &str| {
            let error = ApiError::new(fault, code, "Why.");
            let body: serde_json::Value =
                serde_json::from_str(&body(&error, Some("req_1"))).unwrap();
            let expected = json!({"type": "error", "request_id": "req_1", "error":
                {"type": expected, "message": "Why.", "details": {"error_code": code}}});
            assert_eq!(body, expected);
        };
        check(Fault::Invalid, "invalid_value", "invalid_request_error");
        check(Fault::Unauthenticated, "invalid_api_key", "authentication_error");
        check(Fault::Forbidden, "insufficient_scope", "permission_error");
        check(Fault::NotFound, "model_not_found", "not_found_error");
        check(Fault::TooLarge, "request_too_large", "request_too_large");
        check(Fault::RateLimited, "rate_limit_exceeded", "rate_limit_error");
        check(Fault::RateLimited, "insufficient_quota", "billing_error");
        check(Fault::Payment, "insufficient_balance", "billing_error");
        check(Fault::Overloaded, "overloaded", "overloaded_error");
        check(Fault::Deadline, "request_timeout", "timeout_error");
        check(Fault::Internal, "internal_error", "api_error");
        check(Fault::BadGateway, "upstream_failed", "api_error");
    }
}
