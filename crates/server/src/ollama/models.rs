//! `GET /api/tags`, `/api/ps`, `/api/version`, `POST /api/show`: what is served, in Ollama's words.
//!
//! Only what is known is told: a served model has a name, an age, a context and a template, and says nothing of its file.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use mintage_ledger::price::utc_text;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{self, ApiError};
use crate::fields::Fields;
use crate::job::{Incoming, find_model, not_here};
use crate::ollama::options::take_model;
use crate::served::{Ability, Listed, ServedModel, VectorModel};

fn describe(model: &Listed) -> Value {
    json!({
        "name": model.name,
        "model": model.name,
        "modified_at": utc_text(model.created_unix.saturating_mul(1000)),
        "details": {},
        "context_length": model.context_length,
    })
}

/// The models that can be asked.
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Response {
    let models: Vec<Value> = app.models.listed().iter().map(describe).collect();
    error::json(json!({"models": models}))
}

/// The models that are loaded: all of them.
pub(crate) async fn ps(State(app): State<Arc<App>>) -> Response {
    tags(State(app)).await
}

/// The version of this server.
pub(crate) async fn version() -> Response {
    error::json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// One model: its template, its own settings, what it can do.
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let mut fields = Fields::parse(&incoming.body)?;
    let name = take_model(&mut fields)?;
    fields.ignore_rest();
    if let Some(model) = app.models.vectors(&name) {
        return Ok(error::json(show_vectors(model)));
    }
    if app.models.vector_task(&name).is_some() {
        return Err(not_here(&name));
    }
    let model = find_model(&app.models, &name)?;
    let template = model.text.template().map_or("", |template| template.source());
    let mut capabilities = vec!["completion"];
    if template.contains("tools") {
        capabilities.push("tools");
    }
    if template.contains("enable_thinking") || template.contains("<think>") {
        capabilities.push("thinking");
    }
    let info = model.engine.info();
    Ok(error::json(json!({
        "modelfile": format!("FROM {}\n", model.name),
        "parameters": parameters(&model),
        "template": template,
        "details": {},
        "model_info": {
            "general.name": model.name,
            "general.context_length": info.context_length,
            "general.vocab_size": info.vocab_size,
        },
        "capabilities": capabilities,
        "modified_at": utc_text(model.created_unix.saturating_mul(1000)),
    })))
}

/// A model that makes vectors: it has no template and nothing to set.
fn show_vectors(model: &VectorModel) -> Value {
    let info = model.engine.info();
    let ability = match model.ability() {
        Ability::Text | Ability::Embed => "embedding",
        // Ollama has no such models, and no word for it.
        Ability::Rerank => "rerank",
    };
    json!({
        "modelfile": format!("FROM {}\n", model.name),
        "parameters": "",
        "template": "",
        "details": {},
        "model_info": {
            "general.name": model.name,
            "general.context_length": info.context_length,
            "general.vocab_size": info.vocab_size,
        },
        "capabilities": [ability],
        "modified_at": utc_text(model.created_unix.saturating_mul(1000)),
    })
}

/// The publisher's recommendations, one a line.
fn parameters(model: &ServedModel) -> String {
    let defaults = &model.defaults;
    let mut lines = String::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            lines += &format!("{name} {value}\n");
        }
    };
    line("temperature", defaults.temperature.map(|value| value.to_string()));
    line("top_k", defaults.top_k.map(|value| value.to_string()));
    line("top_p", defaults.top_p.map(|value| value.to_string()));
    line("min_p", defaults.min_p.map(|value| value.to_string()));
    line("repeat_penalty", defaults.repetition_penalty.map(|value| value.to_string()));
    lines
}
