//! `POST /v1/embeddings`: texts or tokens to vectors, as OpenAI's document says.
//!
//! A text that is too long is refused, as OpenAI does, unless `truncate_prompt_tokens` (vLLM's word) says to cut its end
//! off: −1 to the model's limit, or to so many tokens with the marks. Token ids are taken as they stand, without marks.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::usage::Cost;
use crate::app::App;
use crate::chat::Prompt;
use crate::error::ApiError;
use crate::fields::{Fields, Null, wrong_value};
use crate::idempotency::Keeping;
use crate::job::Incoming;
use crate::openai::chat_request::take_model;
use crate::openai::completion_request::take_prompts;
use crate::openai::options::take_usage;
use crate::respond::json_bytes;
use crate::vectors::{self, EmbedRequest, Input, Room, vector_json};

const ADVICE: &str = "Shorten it, or send `truncate_prompt_tokens: -1` to have its end cut off.";

/// How the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    as_base64: bool,
    include_cost: bool,
}

#[derive(Serialize)]
struct Reply<'a> {
    object: &'static str,
    data: Vec<Entry>,
    model: &'a str,
    usage: Usage,
    /// Of its record: ours.
    id: &'a str,
}

#[derive(Serialize)]
struct Entry {
    object: &'static str,
    index: usize,
    embedding: Box<RawValue>,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<Cost>,
}

/// Embeds.
pub(crate) async fn embeddings(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let max_bytes = incoming.keeping.as_ref().and_then(Keeping::max_bytes);
    let prepare = move || {
        let (request, shape) = parse(&body)?;
        let room = max_bytes.map(|bytes| Room { bytes, as_base64: shape.as_base64 });
        let request = EmbedRequest { room, ..request };
        Ok((request.prepare(&shared, "openai.embeddings", "embd-")?, shape))
    };
    let (job, shape) = app.on_text_thread(incoming.body.len(), prepare).await?;
    let id = job.id.clone();
    let make = move |_, vectors: Vec<vectors::Vector>| {
        let entry = |(index, vector): (usize, &vectors::Vector)| {
            let embedding = vector_json(vector, shape.as_base64)?;
            Ok(Entry { object: "embedding", index, embedding })
        };
        vectors.iter().enumerate().map(entry).collect::<Result<Vec<Entry>, ApiError>>()
    };
    vectors::respond(&app, incoming, job, make, move |data, settled, model| {
        let usage = Usage {
            prompt_tokens: settled.usage.prompt(),
            total_tokens: settled.usage.total(),
            cost: settled.cost.filter(|_| shape.include_cost).map(|(amount, _)| Cost(amount)),
        };
        json_bytes(&Reply { object: "list", data, model, usage, id: &id })
    })
    .await
}

fn parse(body: &[u8]) -> Result<(EmbedRequest, Shape), ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = take_model(&mut fields)?;
    let inputs = take_prompts(&mut fields, "input")?.into_iter().enumerate();
    let inputs = inputs.map(|(index, prompt)| match prompt {
        Prompt::Text(text) if text.is_empty() => Err(empty(index, "character")),
        Prompt::Tokens(ids) if ids.is_empty() => Err(empty(index, "token")),
        Prompt::Text(text) => Ok(Input::Text(text)),
        Prompt::Tokens(ids) => Ok(Input::Tokens(ids)),
    });
    let inputs = inputs.collect::<Result<Vec<Input>, _>>()?;
    let as_base64 = match fields.string("encoding_format", Null::Absent)?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let given = Value::String(other.to_owned());
            return Err(wrong_value("encoding_format", "`float` or `base64`", &given));
        }
    };
    let dimensions = fields.count("dimensions", 1)?;
    let cut_to = fields.integer("truncate_prompt_tokens", -1..=i64::from(u32::MAX))?;
    if cut_to == Some(0) {
        let what = "-1 for the model's limit, or at least 1";
        return Err(wrong_value("truncate_prompt_tokens", what, &Value::from(0)));
    }
    for field in ["user", "safety_identifier"] {
        fields.string(field, Null::Absent)?;
    }
    let include_cost = take_usage(&mut fields)?;
    fields.finish()?;
    let request = EmbedRequest {
        model,
        inputs,
        inputs_field: "input",
        dimensions,
        dimensions_field: "dimensions",
        cut_to: cut_to.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX)),
        cut_field: "truncate_prompt_tokens",
        advice: ADVICE,
        ..EmbedRequest::default()
    };
    Ok((request, Shape { as_base64, include_cost }))
}

fn empty(index: usize, of_what: &str) -> ApiError {
    let field = format!("input[{index}]");
    let message = format!("`{field}` is empty: it must have at least one {of_what}.");
    ApiError::field(field, "invalid_value", message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fields::check_mutations;

    #[test]
    fn odd_requests_are_refused_in_words() {
        let good = json!({
            "model": "m", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 3, "user": "u",
            "truncate_prompt_tokens": -1, "usage": {"include": true},
        });
        check_mutations(&good, parse);
        check_mutations(&json!({"model": "m", "input": [[1, 2], [3]]}), parse);
        check_mutations(&json!({"model": "m", "input": [1, 2]}), parse);
    }
}
