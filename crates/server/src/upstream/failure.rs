//! Why a service did not answer: whose fault it is, whether to try again, and what a client hears of it.
//!
//! Invariant: of what a service said, a client hears only why its own request is wrong.

use std::time::Duration;

use axum::http::StatusCode;
use mintage_ledger::limits::Standings;
use serde_json::Value;

use super::config::ApiKey;
use crate::error::{ApiError, Fault, LimitFacts};

/// Kept of what a service says of an error.
const MAX_MESSAGE_CHARS: usize = 500;

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(super) kind: FailureKind,
    /// What the service says is wrong with the request; empty of other kinds.
    pub(super) message: String,
    /// For the operator.
    pub(super) log: String,
    /// When the service wants to be asked again.
    pub(super) retry_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The request is wrong, and is so wherever it is sent.
    Invalid,
    /// Our key, our account or our settings are: the operator's to mend.
    Refused,
    /// The service limits us.
    Limited,
    /// It has no room, or we leave it alone for a while.
    Overloaded,
    /// Nobody answers there.
    Unreachable,
    /// It failed, or answered nonsense.
    Failed,
    /// It took too long.
    Timeout,
}

impl Failure {
    pub(super) fn new(kind: FailureKind, log: impl Into<String>) -> Self {
        Self { kind, message: String::new(), log: log.into(), retry_after: None }
    }

    /// What came is no answer.
    pub(super) fn nonsense(log: String) -> Self {
        Self::new(FailureKind::Failed, log)
    }

    pub(super) fn timeout(what: &str, limit: Duration) -> Self {
        Self::new(FailureKind::Timeout, format!("{what} within {} ms", limit.as_millis()))
    }

    /// What a status other than 200 means. `body` is the begin of what came with it.
    pub(super) fn of_status(
        status: StatusCode,
        retry_after: Option<Duration>,
        body: &[u8],
    ) -> Self {
        let said = message(body);
        let kind = match status.as_u16() {
            400 | 413 | 415 | 422 => FailureKind::Invalid,
            401..=404 => FailureKind::Refused,
            408 | 504 => FailureKind::Timeout,
            429 => FailureKind::Limited,
            503 | 529 => FailureKind::Overloaded,
            _ => FailureKind::Failed,
        };
        let log = format!("status {}: {said}", status.as_u16());
        let message = if kind == FailureKind::Invalid { said } else { String::new() };
        Self { kind, message, log, retry_after }
    }

    /// An event that tells of an error instead of a part of the answer. Its own code is the only hint at whose fault.
    pub(super) fn of_event(error: &Value) -> Self {
        let inner = error.get("error").unwrap_or(error);
        let status = ["status", "code"].iter().find_map(|name| inner.get(name)?.as_u64());
        let status = status.and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
        let text = error.to_string();
        Self::of_status(status.unwrap_or(StatusCode::BAD_GATEWAY), None, text.as_bytes())
    }

    /// Without the service's key, should the service have repeated it.
    pub(super) fn without(mut self, key: Option<&ApiKey>) -> Self {
        if let Some(key) = key {
            key.hide_in(&mut self.message);
            key.hide_in(&mut self.log);
        }
        self
    }

    /// Whether the same service may do better in a moment.
    pub(super) fn is_retryable(&self) -> bool {
        use FailureKind::{Failed, Limited, Overloaded, Unreachable};
        matches!(self.kind, Limited | Overloaded | Unreachable | Failed)
    }

    /// Whether it says that the service is ill, not the request or a limit.
    pub(super) fn is_illness(&self) -> bool {
        use FailureKind::{Failed, Overloaded, Timeout, Unreachable};
        matches!(self.kind, Overloaded | Unreachable | Failed | Timeout)
    }

    /// What the client hears. `model` is the name it may know.
    pub(crate) fn into_error(self, model: &str) -> ApiError {
        let again = "Please try again.";
        let log = Some(format!("upstream of `{model}`: {}", self.log));
        let error = match self.kind {
            FailureKind::Invalid => ApiError::new(
                Fault::Invalid,
                "upstream_invalid_request",
                format!(
                    "The service behind `{model}` does not take this request: {}",
                    self.message
                ),
            ),
            FailureKind::Refused => ApiError::new(
                Fault::BadGateway,
                "upstream_refused",
                format!(
                    "The service behind `{model}` refused this server. The operator can mend it."
                ),
            ),
            FailureKind::Limited => ApiError {
                limit: Some(Box::new(LimitFacts {
                    retry_after_ms: self
                        .retry_after
                        .map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
                    counts: "requests",
                    standings: Standings::default(),
                })),
                ..ApiError::new(
                    Fault::RateLimited,
                    "upstream_rate_limited",
                    format!("The service behind `{model}` takes no more requests for now. {again}"),
                )
            },
            FailureKind::Overloaded | FailureKind::Unreachable => ApiError::new(
                Fault::Overloaded,
                "upstream_unavailable",
                format!("The service behind `{model}` is not available for now. {again}"),
            ),
            FailureKind::Failed => ApiError::new(
                Fault::BadGateway,
                "upstream_failed",
                format!("The service behind `{model}` failed. {again}"),
            ),
            FailureKind::Timeout => ApiError::new(
                Fault::Deadline,
                "upstream_timeout",
                format!("The service behind `{model}` did not answer in time."),
            ),
        };
        ApiError { log, ..error }
    }
}

/// What a service says of an error, in whichever of the usual shapes, cut and harmless.
fn message(body: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let said = json.as_ref().and_then(|json| {
        let inner = json.get("error").unwrap_or(json);
        inner.get("message").or(Some(inner)).and_then(Value::as_str).map(str::to_owned)
    });
    let said = said.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let harmless = said.chars().map(|c| if c.is_control() { ' ' } else { c });
    harmless.take(MAX_MESSAGE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_decides_what_a_client_hears() {
        let check = |status: u16, body: &str, expected: (u16, &str), says: &str, retry: bool| {
            let status = StatusCode::from_u16(status).unwrap();
            let failure = Failure::of_status(status, Some(Duration::from_secs(3)), body.as_bytes());
            assert_eq!(failure.is_retryable(), retry, "{status}");
            let error = failure.into_error("m");
            let heard = (error.status().as_u16(), error.code.unwrap());
            assert_eq!(heard, expected, "{status}");
            assert!(error.message.contains(says), "{}", error.message);
            let told = error.message.contains("sk-1");
            assert!(!told || expected.0 == 400, "{}", error.message);
            assert!(error.log.unwrap().contains("sk-1"), "the operator hears all of it");
        };
        let wrong = r#"{"error":{"message":"bad field sk-1"}}"#;
        check(400, wrong, (400, "upstream_invalid_request"), "bad field", false);
        check(422, r#"{"message":"no\nsk-1"}"#, (400, "upstream_invalid_request"), "no sk", false);
        check(401, wrong, (502, "upstream_refused"), "operator", false);
        check(402, wrong, (502, "upstream_refused"), "operator", false);
        check(404, "sk-1", (502, "upstream_refused"), "operator", false);
        check(429, wrong, (429, "upstream_rate_limited"), "no more", true);
        check(500, wrong, (502, "upstream_failed"), "failed", true);
        check(302, "sk-1", (502, "upstream_failed"), "failed", true);
        check(503, wrong, (503, "upstream_unavailable"), "not available", true);
        check(504, wrong, (504, "upstream_timeout"), "in time", false);
    }
}
