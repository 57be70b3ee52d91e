//! `GET /v1/models` and `GET /v1/models/{id}`, for who sends `anthropic-version`.

use axum::extract::{Query, Request};
use axum::http::HeaderMap;
use axum::response::Response;
use mintage_ledger::price::utc_text;
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::error::{ApiError, json};
use crate::fields::shortened;
use crate::job::no_model;
use crate::served::Listed;

const VERSION: &str = "anthropic-version";
/// Anthropic's own default and limit.
const PAGE: usize = 20;
const MAX_PAGE: usize = 1000;

#[derive(Serialize)]
struct Model {
    r#type: &'static str,
    id: String,
    display_name: String,
    created_at: String,
    lifecycle: &'static str,
    max_input_tokens: u32,
}

#[derive(Serialize)]
struct Page {
    data: Vec<Model>,
    has_more: bool,
    first_id: Option<String>,
    last_id: Option<String>,
}

#[derive(Deserialize)]
struct Asked {
    limit: Option<usize>,
    after_id: Option<String>,
    before_id: Option<String>,
}

/// Whether the client speaks this dialect.
pub(crate) fn is_asked(headers: &HeaderMap) -> bool {
    headers.contains_key(VERSION)
}

/// `id`: as it was asked for, which may be an alias.
fn describe(model: &Listed, id: &str) -> Model {
    Model {
        r#type: "model",
        id: id.to_owned(),
        display_name: model.name.clone(),
        created_at: utc_text(model.created_unix.saturating_mul(1000)),
        lifecycle: "active",
        max_input_tokens: model.context_length,
    }
}

/// A page of the models.
pub(crate) fn list_models(app: &App, request: &Request) -> Result<Response, ApiError> {
    let asked = Query::<Asked>::try_from_uri(request.uri()).map_err(|_| {
        let message = format!("`limit` must be an integer from 1 to {MAX_PAGE}.");
        ApiError::field("limit", "invalid_value", message)
    })?;
    let limit = asked.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        let message = format!("`limit` must be an integer from 1 to {MAX_PAGE}, not {limit}.");
        return Err(ApiError::field("limit", "invalid_value", message));
    }
    let all = app.models.listed();
    let place = |field: &'static str, id: &Option<String>| match id {
        None => Ok(None),
        Some(id) => match all.iter().position(|model| model.name == *id) {
            Some(place) => Ok(Some(place)),
            None => {
                let message = format!("`{field}`: there is no model `{}`.", shortened(id));
                Err(ApiError::field(field, "invalid_value", message))
            }
        },
    };
    let (after, before) =
        (place("after_id", &asked.after_id)?, place("before_id", &asked.before_id)?);
    let (from, to) = match (after, before) {
        (Some(after), _) => (after + 1, (after + 1 + limit).min(all.len())),
        (None, Some(before)) => (before.saturating_sub(limit), before),
        (None, None) => (0, limit.min(all.len())),
    };
    let page: &[Listed] = all.get(from..to).unwrap_or(&[]);
    let has_more = if after.is_none() && before.is_some() { from > 0 } else { to < all.len() };
    Ok(json(Page {
        data: page.iter().map(|model| describe(model, &model.name)).collect(),
        has_more,
        first_id: page.first().map(|model| model.name.clone()),
        last_id: page.last().map(|model| model.name.clone()),
    }))
}

/// One model.
pub(crate) fn get_model(app: &App, id: &str) -> Result<Response, ApiError> {
    let model = app.models.listing(id).ok_or_else(|| no_model(id))?;
    Ok(json(describe(&model, id)))
}
