//! `GET /api/v1/models`: a page of the models, or the one that is asked for.

use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::error::{ApiError, json};
use crate::request_id::RequestId;
use crate::served::Listed;

/// DashScope's own default.
const PAGE: usize = 10;
const MAX_PAGE: usize = 100;

#[derive(Deserialize)]
struct Asked {
    model: Option<String>,
    page_no: Option<usize>,
    page_size: Option<usize>,
}

#[derive(Serialize)]
struct Found {
    request_id: String,
    output: Page,
}

#[derive(Serialize)]
struct Page {
    total: usize,
    page_no: usize,
    page_size: usize,
    models: Vec<Model>,
}

#[derive(Serialize)]
struct Model {
    model: String,
    name: String,
    provider: &'static str,
    source: &'static str,
    context_window: u32,
}

fn describe(model: &Listed) -> Model {
    Model {
        model: model.name.clone(),
        name: model.name.clone(),
        provider: "mintage",
        source: "mintage",
        context_window: model.context_length,
    }
}

/// The models in pages, by name where one is given.
pub(crate) async fn list_models(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let refuse = || {
        let message = format!(
            "`page_no` must be an integer from 1 on, `page_size` one from 1 to {MAX_PAGE}."
        );
        ApiError::field("page_size", "invalid_value", message)
    };
    let asked = Query::<Asked>::try_from_uri(request.uri()).map_err(|_| refuse())?.0;
    let (page_no, page_size) = (asked.page_no.unwrap_or(1), asked.page_size.unwrap_or(PAGE));
    if page_no == 0 || !(1..=MAX_PAGE).contains(&page_size) {
        return Err(refuse());
    }
    let found: Vec<Listed> = match &asked.model {
        Some(name) => app.models.listing(name).into_iter().collect(),
        None => app.models.listed(),
    };
    let from = (page_no - 1).saturating_mul(page_size);
    let page = found.iter().skip(from).take(page_size).map(describe);
    let request_id = request.extensions().get::<RequestId>().map(|id| id.0.clone());
    Ok(json(Found {
        request_id: request_id.unwrap_or_default(),
        output: Page { total: found.len(), page_no, page_size, models: page.collect() },
    }))
}
