//! `GET /api/v1/models`: a page of the models, or the one that is asked for.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;

use super::paging::Page;
use super::request_id;
use crate::app::App;
use crate::error::{ApiError, json};
use crate::paging::Query;
use crate::served::Listed;

#[derive(Serialize)]
struct Found {
    request_id: String,
    output: Models,
}

#[derive(Serialize)]
struct Models {
    total: usize,
    page_no: u32,
    page_size: u32,
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
    let mut query = Query::read(request.uri())?;
    let (page, name) = (Page::take(&mut query)?, query.text("model"));
    let found: Vec<Listed> = match &name {
        Some(name) => app.models.listing(name).into_iter().collect(),
        None => app.models.listed(),
    };
    let from = usize::try_from(page.place().offset).unwrap_or(usize::MAX);
    let models = found.iter().skip(from).take(page.size as usize).map(describe).collect();
    let (page_no, page_size) = (page.no, page.size);
    Ok(json(Found {
        request_id: request_id(&request),
        output: Models { total: found.len(), page_no, page_size, models },
    }))
}
