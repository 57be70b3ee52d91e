//! `GET /v1/models` and `GET /v1/models/{id}`: one path, two dialects; the header `anthropic-version` tells which.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::app::App;
use crate::error::ApiError;
use crate::{anthropic, openai};

/// The models.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    if anthropic::is_asked(request.headers()) {
        return anthropic::list_models(&app, &request);
    }
    Ok(openai::list_models(State(app)).await)
}

/// One model.
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    if anthropic::is_asked(request.headers()) {
        return anthropic::get_model(&app, &id);
    }
    openai::get_model(State(app), Path(id)).await
}

/// Errors in the words of who asks.
pub(crate) async fn errors_layer(request: Request, next: Next) -> Response {
    if anthropic::is_asked(request.headers()) {
        return anthropic::errors_layer(request, next).await;
    }
    next.run(request).await
}
