//! The one kind of failure, and its HTTP answer in OpenAI's shape, which is the house's own; other dialects write it
//! again by tables of theirs ([`rewritten`]).
//!
//! What the client sees is `message`, which names the limit and the value given; what only the log may say is `log`.
//! Invariant: `log` never reaches a response.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mintage_ledger::Refusal;
use mintage_ledger::limits::{LimitKind, LimitRefusal, Missing, Standings};
use mintage_model::{EngineFault, GrammarFault, SubmitError};
use serde::Serialize;

use crate::rate_limit;

/// How soon a refused client may try again.
const RETRY_AFTER_S: u32 = 1;

/// Whose fault it is, which decides the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The request is wrong.
    Invalid,
    /// No key, or not a valid one.
    Unauthenticated,
    /// The Host or Origin of a request to a server without keys.
    Forbidden,
    /// No such route or model.
    NotFound,
    /// The route exists, not with this method.
    MethodNotAllowed,
    /// The body did not come in time.
    BodyTimeout,
    /// The body is too large.
    TooLarge,
    /// The body is not JSON by its own word.
    UnsupportedMediaType,
    /// The same `Idempotency-Key` is being answered.
    Conflict,
    /// An `Idempotency-Key` that was used for another body.
    Unprocessable,
    /// No money, or no more of it to be spent.
    Payment,
    /// A limit of the tenant's own.
    RateLimited,
    /// Our capacity, for now.
    Overloaded,
    /// We are going down.
    ShuttingDown,
    /// The request took longer than the server allows.
    Deadline,
    /// The service behind a model's name failed, or refuses us.
    BadGateway,
    /// Our fault.
    Internal,
}

/// A failure on its way to the client and to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) fault: Fault,
    pub(crate) message: String,
    /// The field that is wrong.
    pub(crate) param: Option<String>,
    /// For programs.
    pub(crate) code: Option<&'static str>,
    /// Of refusals for limits or money.
    pub(crate) limit: Option<Box<LimitFacts>>,
    /// For the log only.
    pub(crate) log: Option<String>,
    /// What money is missing, where that is why: a larger slice of a shared balance may help.
    pub(crate) short: Option<Box<Refusal>>,
    /// What is missing of a shared limit, where that is why: a larger share may help.
    pub(crate) missing: Option<Box<Missing>>,
}

/// What a tenant is told of a limit that stands in its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LimitFacts {
    /// When to try again, ms; `None`: waiting does not help.
    pub(crate) retry_after_ms: Option<u64>,
    /// What it counts, as OpenAI's `type` has it.
    pub(crate) counts: &'static str,
    /// How the tenant's limits stand, for headers.
    pub(crate) standings: Standings,
}

/// What is attached to a response so that the access log can tell why.
#[derive(Clone, Debug)]
pub(crate) struct ErrorForLog(pub(crate) String);

#[derive(Serialize)]
struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

impl ApiError {
    pub(crate) fn new(fault: Fault, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            fault,
            message: message.into(),
            param: None,
            code: Some(code),
            limit: None,
            log: None,
            short: None,
            missing: None,
        }
    }

    /// A field of the request is wrong.
    pub(crate) fn field(
        param: impl Into<String>,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { param: Some(param.into()), ..Self::new(Fault::Invalid, code, message) }
    }

    /// Our fault: the client learns only that.
    pub(crate) fn internal(log: impl Into<String>) -> Self {
        let message = "The server had an error while processing the request. Please try again.";
        Self { log: Some(log.into()), ..Self::new(Fault::Internal, "internal_error", message) }
    }

    /// The server is draining or was stopped.
    pub(crate) fn shutting_down() -> Self {
        Self::new(
            Fault::ShuttingDown,
            "shutting_down",
            "The server is shutting down. Please try again elsewhere or later.",
        )
    }

    /// A deadline of the request passed.
    pub(crate) fn deadline(limit_s: u64) -> Self {
        Self::new(
            Fault::Deadline,
            "request_timeout",
            format!(
                "The request ran longer than the server's limit of {limit_s} s and was stopped."
            ),
        )
    }

    /// The engine did not take the request. `param_of` names the engine's field as the dialect does.
    pub(crate) fn refused(error: SubmitError) -> Self {
        match error {
            SubmitError::Invalid { ref field, ref message } => {
                let param = field.strip_prefix("sampling.").unwrap_or(field).to_owned();
                Self::field(param.clone(), "invalid_value", format!("`{param}` {message}."))
            }
            SubmitError::PromptTooLong { prompt_tokens, context_length } => {
                Self::context(None, prompt_tokens, None, context_length)
            }
            SubmitError::QueueFull { .. } => Self {
                log: Some(error.to_string()),
                ..Self::new(
                    Fault::Overloaded,
                    "overloaded",
                    format!("The model is overloaded: {error}. Please try again."),
                )
            },
            SubmitError::ShuttingDown => Self::shutting_down(),
        }
    }

    /// Prompt and answer do not fit the model.
    pub(crate) fn context(
        param: Option<&str>,
        prompt_tokens: u32,
        max_tokens: Option<u32>,
        context_length: u32,
    ) -> Self {
        let asked = match max_tokens {
            Some(max) => format!(
                "you requested {} tokens ({prompt_tokens} in the prompt, {max} in the completion)",
                u64::from(prompt_tokens) + u64::from(max)
            ),
            None => {
                format!("the prompt has {prompt_tokens} tokens, which leaves no room for an answer")
            }
        };
        let message = format!(
            "This model's maximum context length is {context_length} tokens. However, {asked}. \
             Please shorten the prompt or the completion."
        );
        let param = param.map(str::to_owned);
        Self { param, ..Self::new(Fault::Invalid, "context_length_exceeded", message) }
    }

    /// A limit or a budget of the tenant stands in the way.
    pub(crate) fn limited(refusal: &LimitRefusal) -> Self {
        let (fault, code, counts) = match refusal.kind {
            LimitKind::Requests | LimitKind::RequestBurst => {
                (Fault::RateLimited, "rate_limit_exceeded", "requests")
            }
            LimitKind::Tokens | LimitKind::TokenBurst => {
                (Fault::RateLimited, "rate_limit_exceeded", "tokens")
            }
            LimitKind::InFlight => (Fault::RateLimited, "concurrency_limit_exceeded", "requests"),
            LimitKind::TokenBudget(_) => (Fault::RateLimited, "insufficient_quota", "tokens"),
            LimitKind::MoneyBudget(_) => {
                (Fault::Payment, "insufficient_quota", "insufficient_quota")
            }
        };
        Self {
            limit: Some(Box::new(LimitFacts {
                retry_after_ms: refusal.retry_after_ms,
                counts,
                standings: refusal.standings,
            })),
            log: Some(format!("{} of {}: {}", refusal.kind.code(), refusal.party, refusal)),
            missing: refusal.missing.clone().map(Box::new),
            ..Self::new(fault, code, refusal.to_string())
        }
    }

    /// The organisation's balance does not cover what the request may cost.
    pub(crate) fn no_money(message: impl Into<String>) -> Self {
        Self {
            limit: Some(Box::new(LimitFacts {
                retry_after_ms: None,
                counts: "insufficient_quota",
                standings: Standings::default(),
            })),
            ..Self::new(Fault::Payment, "insufficient_balance", message)
        }
    }

    /// The engine failed while the request ran.
    pub(crate) fn engine(fault: &EngineFault) -> Self {
        match fault {
            EngineFault::ShutDown => Self::shutting_down(),
            EngineFault::Grammar(GrammarFault::Internal(_)) | EngineFault::Internal(_) => {
                Self::internal(fault.to_string())
            }
            EngineFault::Grammar(_) => Self::field(
                "response_format",
                "grammar_failed",
                format!("The answer could not follow its grammar to an end: {fault}."),
            ),
        }
    }

    /// Whether another model or service may answer the same request.
    pub(crate) fn may_do_elsewhere(&self) -> bool {
        matches!(
            self.code,
            Some(
                "overloaded"
                    | "upstream_unavailable"
                    | "upstream_failed"
                    | "upstream_timeout"
                    | "upstream_rate_limited"
                    | "upstream_refused"
            )
        )
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self.fault {
            Fault::Invalid => StatusCode::BAD_REQUEST,
            Fault::Unauthenticated => StatusCode::UNAUTHORIZED,
            Fault::Forbidden => StatusCode::FORBIDDEN,
            Fault::NotFound => StatusCode::NOT_FOUND,
            Fault::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Fault::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Fault::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Fault::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Fault::Conflict => StatusCode::CONFLICT,
            Fault::Unprocessable => StatusCode::UNPROCESSABLE_ENTITY,
            Fault::Payment => StatusCode::PAYMENT_REQUIRED,
            Fault::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Fault::Overloaded | Fault::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Fault::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Fault::BadGateway => StatusCode::BAD_GATEWAY,
            Fault::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn kind(&self) -> &'static str {
        if let Some(limit) = &self.limit {
            return limit.counts;
        }
        match self.fault {
            Fault::Unauthenticated => "authentication_error",
            Fault::Forbidden => "permission_error",
            Fault::Overloaded
            | Fault::ShuttingDown
            | Fault::Deadline
            | Fault::BadGateway
            | Fault::Internal => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `{"error":{…}}`, as a body or as the event that ends a broken stream.
    pub(crate) fn to_json(&self) -> String {
        let body = Body {
            error: Inner {
                message: &self.message,
                r#type: self.kind(),
                param: self.param.as_deref(),
                code: self.code,
            },
        };
        // Strings only: this cannot fail; if it ever did, the client still gets valid JSON.
        serde_json::to_string(&body).unwrap_or_else(|_| r#"{"error":{}}"#.to_owned())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (
            status,
            [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))],
            self.to_json(),
        )
            .into_response();
        let headers = response.headers_mut();
        match self.fault {
            Fault::Overloaded | Fault::ShuttingDown | Fault::Conflict => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
            }
            // Running it again would take as long again; money does not come by itself.
            Fault::Deadline | Fault::Payment => {
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
            }
            Fault::Unauthenticated => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        let retry_after_ms = self.limit.as_ref().and_then(|limit| limit.retry_after_ms);
        if let (Fault::RateLimited, Some(ms)) = (self.fault, retry_after_ms) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
            headers.insert("retry-after-ms", HeaderValue::from(ms.max(1)));
        }
        if let Some(limit) = &self.limit {
            rate_limit::add_to(response.headers_mut(), &limit.standings);
        }
        let headers = response.headers_mut();
        // The rest of the body was not read, or the process goes: this connection is of no more use.
        if matches!(self.fault, Fault::TooLarge | Fault::BodyTimeout | Fault::ShuttingDown) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let detail = self.log.clone().unwrap_or_else(|| self.message.clone());
        let extensions = response.extensions_mut();
        extensions.insert(ErrorForLog(detail));
        // For dialects that write errors in a way of their own.
        extensions.insert(self);
        response
    }
}

/// Writes the error that a response tells of as a dialect does: its status and its body (JSON). Other responses, and the
/// headers, stay as they are. Dialects put it outermost on their routes, so that refusals of the layers inside
/// (authentication, idempotency) speak their language too.
pub(crate) fn rewritten(
    mut response: Response,
    write: impl FnOnce(&ApiError) -> (StatusCode, String),
) -> Response {
    let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
    let (status, body) = write(&error);
    *response.status_mut() = status;
    *response.body_mut() = body.into();
    response
}

/// JSON that we made ourselves.
pub(crate) fn json<T: Serialize>(value: T) -> Response {
    Json(value).into_response()
}
