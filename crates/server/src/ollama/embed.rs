//! `POST /api/embed`, and `/api/embeddings` as it was before.
//!
//! Texts that are too long are cut at their end unless `truncate` is false, as Ollama does.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::app::App;
use crate::error::ApiError;
use crate::fields::{Fields, Null, wrong_type};
use crate::job::Incoming;
use crate::ollama::options::take_model;
use crate::respond::{json_bytes, json_response};
use crate::vectors::{self, EmbedRequest, Input, vector_json};

#[derive(Serialize)]
struct Embedded<'a> {
    model: &'a str,
    embeddings: Vec<Box<RawValue>>,
    /// Nanoseconds, as everywhere in this dialect.
    #[serde(skip_serializing_if = "Option::is_none")]
    total_duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_eval_count: Option<u64>,
}

/// As it was before: one text, one vector, and nothing of its tokens.
#[derive(Serialize)]
struct Older {
    embedding: Option<Box<RawValue>>,
}

/// Embeds texts.
pub(crate) async fn embed(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(app, request, "input").await
}

/// Embeds one text.
pub(crate) async fn embeddings(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(app, request, "prompt").await
}

async fn answer(
    app: Arc<App>,
    request: Request,
    field: &'static str,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body, arrival) = (Arc::clone(&app), incoming.body.clone(), incoming.arrival);
    let is_older = field == "prompt";
    let prepare = move || {
        let request = parse(&body, field)?;
        let is_empty = request.inputs.is_empty();
        let protocol = if is_older { "ollama.embeddings" } else { "ollama.embed" };
        Ok((request.prepare(&shared, protocol, "ollama-")?, is_empty))
    };
    let (job, is_empty) = app.on_text_thread(incoming.body.len(), prepare).await?;
    if is_empty {
        // A request to load the model, which is loaded already.
        return Ok(json_response(if is_older {
            json_bytes(&Older { embedding: None })?
        } else {
            json_bytes(&Embedded {
                model: job.model_name(),
                embeddings: Vec::new(),
                total_duration: None,
                load_duration: None,
                prompt_eval_count: None,
            })?
        }));
    }
    let make = move |_, vectors: Vec<vectors::Vector>| {
        let one = |vector| vector_json(vector, false);
        vectors.iter().map(one).collect::<Result<Vec<Box<RawValue>>, ApiError>>()
    };
    vectors::respond(&app, incoming, job, make, move |mut embeddings, settled, model| {
        if is_older {
            return json_bytes(&Older { embedding: embeddings.pop() });
        }
        let total = u64::try_from(arrival.elapsed().as_nanos()).unwrap_or(u64::MAX);
        json_bytes(&Embedded {
            model,
            embeddings,
            total_duration: Some(total),
            load_duration: Some(0),
            prompt_eval_count: Some(settled.usage.prompt()),
        })
    })
    .await
}

fn parse(body: &[u8], field: &'static str) -> Result<EmbedRequest, ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = take_model(&mut fields)?;
    let values = match fields.take(field, Null::Absent) {
        None => Vec::new(),
        Some(Value::String(text)) if text.is_empty() => Vec::new(),
        Some(text @ Value::String(_)) => vec![text],
        Some(Value::Array(values)) if field == "input" => values,
        Some(other) => {
            let what =
                if field == "input" { "a string or an array of strings" } else { "a string" };
            return Err(wrong_type(field, what, &other));
        }
    };
    let text = |(index, value)| match value {
        Value::String(text) => Ok(Input::Text(text)),
        other => Err(wrong_type(&format!("{field}[{index}]"), "a string", &other)),
    };
    let inputs = values.into_iter().enumerate().map(text).collect::<Result<_, _>>()?;
    let truncate = fields.bool("truncate", Null::Absent)?;
    let dimensions = fields.count("dimensions", 0)?.filter(|asked| *asked > 0);
    fields.ignore_rest();
    Ok(EmbedRequest {
        model,
        inputs,
        inputs_field: field,
        dimensions,
        dimensions_field: "dimensions",
        cut_to: truncate.unwrap_or(true).then_some(u32::MAX),
        cut_field: if truncate.is_some() { "truncate" } else { "" },
        advice: "Shorten it, or leave out `truncate: false` to have its end cut off.",
        ..EmbedRequest::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fields::check_mutations;

    #[test]
    fn odd_requests_are_refused_in_words() {
        let good = json!({
            "model": "m:latest", "input": ["a", "b"], "truncate": false, "dimensions": 3, "options": {},
        });
        check_mutations(&good, |body| parse(body, "input"));
        check_mutations(&json!({"model": "m", "prompt": "a"}), |body| parse(body, "prompt"));
    }
}
