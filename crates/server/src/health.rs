//! `/healthz`, `/readyz`, `/metrics`: open to probes and scrapers, free of tenants, outside the concurrency limit.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::app::{App, Phase};
use crate::metrics::CONTENT_TYPE;

/// The process lives.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// New requests are welcome: the models are loaded (they are before we listen), we are not draining, and the ledger
/// takes requests. Why it does not is for the operator's log; who probes hears only that.
pub(crate) async fn readyz(State(app): State<Arc<App>>) -> Response {
    match app.phase() {
        Phase::Serving if app.till.ledger().is_some_and(|ledger| ledger.trouble().is_some()) => {
            (StatusCode::SERVICE_UNAVAILABLE, "ledger\n").into_response()
        }
        Phase::Serving => (StatusCode::OK, "ready\n").into_response(),
        Phase::Draining | Phase::Ending => {
            (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response()
        }
    }
}

/// Prometheus' text format.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.metrics.render(&app.models);
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}
