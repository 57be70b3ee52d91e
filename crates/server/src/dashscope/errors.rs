//! Errors as DashScope writes them, in one table, and the layer that writes them on its routes.
//!
//! `{"code","message","request_id"}`; successes never have a `code`.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use serde_json::json;

use crate::error::{ApiError, Fault, rewritten};
use crate::request_id::RequestId;

/// The code of an error.
pub(super) fn code(error: &ApiError) -> &'static str {
    match (error.fault, error.code, error.param.as_deref()) {
        (Fault::Invalid, Some("missing_required_parameter"), Some("model")) => {
            "BadRequest.EmptyModel"
        }
        (Fault::Invalid, Some("missing_required_parameter"), Some("input")) => {
            "BadRequest.EmptyInput"
        }
        (Fault::Unauthenticated, ..) => "InvalidApiKey",
        (Fault::Forbidden, ..) => "AccessDenied",
        (Fault::Invalid, Some("task_not_pending"), _) => "UnsupportedOperation",
        (Fault::NotFound, Some("model_not_found"), _) => "Model.NotExist",
        (Fault::NotFound, Some("not_found"), _) => "InvalidParameter",
        (Fault::NotFound | Fault::MethodNotAllowed, ..) => "InvalidURL",
        (Fault::BodyTimeout, ..) => "RequestTimeOut",
        (Fault::TooLarge, ..) => "RequestTooLarge",
        (Fault::Payment, ..) => "Arrearage",
        (Fault::RateLimited, Some("concurrency_limit_exceeded"), _) => "Throttling",
        (Fault::RateLimited, ..) if counts(error) == Some("tokens") => "Throttling.AllocationQuota",
        (Fault::RateLimited, ..) => "Throttling.RateQuota",
        (Fault::Overloaded | Fault::ShuttingDown, ..) => "ServiceUnavailable",
        (Fault::Deadline, ..) => "GatewayTimeout",
        (Fault::Internal | Fault::BadGateway, ..) => "InternalError",
        (
            Fault::Invalid | Fault::UnsupportedMediaType | Fault::Conflict | Fault::Unprocessable,
            ..,
        ) => "InvalidParameter",
    }
}

fn counts(error: &ApiError) -> Option<&'static str> {
    error.limit.as_ref().map(|limit| limit.counts)
}

/// An overdue account is a bad request there: 402 is a status that no client of it knows. So is a file that is not there.
pub(super) fn status(error: &ApiError) -> StatusCode {
    match (error.fault, error.code) {
        (Fault::Payment, _) | (Fault::NotFound, Some("not_found")) => StatusCode::BAD_REQUEST,
        _ => error.status(),
    }
}

/// The body of an error, or the data of the event that ends a broken stream.
pub(super) fn body(error: &ApiError, request_id: &str) -> String {
    json!({"code": code(error), "message": error.message, "request_id": request_id}).to_string()
}

/// Outermost on this dialect's routes: rewrites errors, whoever made them.
pub(crate) async fn layer(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().map(|id| id.0.clone());
    let id = id.unwrap_or_default();
    rewritten(next.run(request).await, |error| (status(error), body(error, &id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_its_code() {
        let check = |error: ApiError, status_code: u16, expected: &str| {
            assert_eq!((status(&error).as_u16(), code(&error)), (status_code, expected));
        };
        let new = |fault, code| ApiError::new(fault, code, "Why.");
        let missing = |name: &str| crate::fields::missing(name);
        check(missing("model"), 400, "BadRequest.EmptyModel");
        check(missing("input"), 400, "BadRequest.EmptyInput");
        check(missing("input.messages[0].role"), 400, "InvalidParameter");
        check(new(Fault::Unauthenticated, "invalid_api_key"), 401, "InvalidApiKey");
        check(new(Fault::Forbidden, "insufficient_scope"), 403, "AccessDenied");
        check(new(Fault::NotFound, "model_not_found"), 404, "Model.NotExist");
        check(new(Fault::NotFound, "not_found"), 400, "InvalidParameter");
        check(new(Fault::Invalid, "task_not_pending"), 400, "UnsupportedOperation");
        check(new(Fault::TooLarge, "request_too_large"), 413, "RequestTooLarge");
        check(ApiError::no_money("Nothing left."), 400, "Arrearage");
        check(new(Fault::RateLimited, "concurrency_limit_exceeded"), 429, "Throttling");
        check(new(Fault::RateLimited, "rate_limit_exceeded"), 429, "Throttling.RateQuota");
        check(new(Fault::Overloaded, "overloaded"), 503, "ServiceUnavailable");
        check(new(Fault::Deadline, "request_timeout"), 504, "GatewayTimeout");
        check(new(Fault::Internal, "internal_error"), 500, "InternalError");
        check(new(Fault::BadGateway, "upstream_failed"), 502, "InternalError");
    }
}
