//! `GET /v1/generation?id=`: what a past request used and cost, as OpenRouter has it.
//!
//! Invariant: a project sees its own requests only; those of others do not exist for it.

use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::response::Response;
use mintage_ledger::{UsageFilter, UsageRecord};
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, Fault, json};
use crate::fields::shortened;
use crate::openai::usage::Cost;

#[derive(Deserialize)]
struct Asked {
    id: String,
}

#[derive(Serialize)]
struct Found {
    data: Generation,
}

#[derive(Serialize)]
struct Generation {
    id: String,
    model: String,
    /// Seconds since 1970.
    created_at: u64,
    tokens_prompt: u64,
    tokens_completion: u64,
    native_tokens_prompt: u64,
    native_tokens_completion: u64,
    native_tokens_cached: u64,
    native_tokens_reasoning: u64,
    total_cost: Cost,
    currency: String,
    price_version: String,
    finish_reason: String,
    cancelled: bool,
    /// From arrival to the first token, ms.
    latency: Option<u64>,
    /// From the first token to the end, ms.
    generation_time: Option<u64>,
    api_type: String,
}

fn describe(record: UsageRecord) -> Generation {
    let (usage, facts, outcome) = (record.usage, record.facts, record.outcome);
    let first = Some(outcome.first_token_ms).filter(|ms| *ms > 0);
    Generation {
        id: facts.id.to_string(),
        model: facts.model.to_string(),
        created_at: facts.arrival_ms / 1000,
        tokens_prompt: usage.prompt(),
        tokens_completion: usage.completion(),
        native_tokens_prompt: usage.prompt(),
        native_tokens_completion: usage.completion(),
        native_tokens_cached: usage.cached_input.saturating_add(usage.explicit_cached),
        native_tokens_reasoning: usage.thinking,
        total_cost: Cost(record.amount),
        currency: record.currency.to_string(),
        price_version: record.price_version.to_string(),
        cancelled: &*outcome.finish == "abort",
        finish_reason: outcome.finish.to_string(),
        latency: first.map(|ms| ms.saturating_sub(facts.arrival_ms)),
        generation_time: first.map(|ms| outcome.end_ms.saturating_sub(ms)),
        api_type: facts.protocol.to_string(),
    }
}

pub(crate) async fn generation(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = Query::<Asked>::try_from_uri(request.uri()).map_err(|_| {
        ApiError::field("id", "missing_required_parameter", "Missing required parameter: `id`.")
    })?;
    let id = asked.0.id;
    let unknown = || {
        let message = format!("There is no generation with the id `{}`.", shortened(&id));
        ApiError::new(Fault::NotFound, "generation_not_found", message)
    };
    let caller = request.extensions().get::<Caller>();
    let project = caller.and_then(|caller| caller.principal.project.clone());
    let (Some(ledger), Some(project)) = (app.till.ledger().cloned(), project) else {
        return Err(unknown());
    };
    let filter = UsageFilter {
        id: Some(id.as_str().into()),
        project: Some(Arc::clone(&project)),
        limit: 1,
        ..UsageFilter::default()
    };
    let found = tokio::task::spawn_blocking(move || ledger.usage(&filter)).await;
    let found = found.map_err(|e| ApiError::internal(format!("reading the ledger failed: {e}")))?;
    let found = found.map_err(|e| ApiError::internal(e.to_string()))?;
    let record = found.into_iter().map(|(_, record)| record);
    let mut own = record.filter(|record| record.facts.payer.project == project);
    let record = own.next().ok_or_else(unknown)?;
    Ok(json(Found { data: describe(record) }))
}
