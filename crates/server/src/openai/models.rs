//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;

use crate::app::App;
use crate::error::{ApiError, json};
use crate::job::no_model;
use crate::served::Listed;

#[derive(Serialize)]
struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// As vLLM reports the context's length.
    max_model_len: u32,
}

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Model>,
}

fn describe(model: Listed) -> Model {
    Model {
        id: model.name,
        object: "model",
        created: model.created_unix,
        owned_by: "mintage",
        max_model_len: model.context_length,
    }
}

pub(crate) async fn list_models(State(app): State<Arc<App>>) -> Response {
    let data = app.models.listed().into_iter().map(describe).collect();
    json(List { object: "list", data })
}

pub(crate) async fn get_model(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let model = app.models.listing(&id).ok_or_else(|| no_model(&id))?;
    Ok(json(describe(model)))
}
