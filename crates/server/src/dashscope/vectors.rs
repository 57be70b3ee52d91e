//! `POST /api/v1/services/embeddings/text-embedding/text-embedding` and `…/rerank/text-rerank/text-rerank`.
//!
//! Texts that are too long are refused by the first, and cut at their end by the second, as there.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::request::{Asked, take_model};
use super::tasks::{self, Checked};
use crate::app::App;
use crate::error::ApiError;
use crate::fields::{Fields, Null, missing, unsupported, wrong_type, wrong_value};
use crate::idempotency::{Keeping, MAX_KEPT_BYTES};
use crate::job::Incoming;
use crate::respond::json_bytes;
use crate::vectors::{
    self, EmbedRequest, Input, RankRequest, Room, Texts, VectorJob, check_instruction, vector_json,
};

pub(super) const EMBEDDING: &str = "/api/v1/services/embeddings/text-embedding/text-embedding";
pub(super) const RERANK: &str = "/api/v1/services/rerank/text-rerank/text-rerank";
const INSTRUCT: &str = "parameters.instruct";

#[derive(Serialize)]
struct Entry {
    text_index: usize,
    embedding: Box<RawValue>,
}

#[derive(Serialize)]
struct Embedded<'a> {
    output: Embeddings,
    usage: Usage,
    request_id: &'a str,
}

#[derive(Serialize)]
struct Embeddings {
    embeddings: Vec<Entry>,
}

#[derive(Serialize)]
struct Usage {
    input_tokens: u64,
    total_tokens: u64,
}

/// Embeds texts.
pub(crate) async fn text_embedding(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = Asked::read(request.headers())?;
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let max_bytes = if asked.task {
        Some(MAX_KEPT_BYTES)
    } else {
        incoming.keeping.as_ref().and_then(Keeping::max_bytes)
    };
    let prepare = move || {
        let request = parse_embedding(&body)?;
        let room = max_bytes.map(|bytes| Room { bytes, as_base64: false });
        EmbedRequest { room, ..request }.prepare(&shared, "dashscope.embeddings", "ds-")
    };
    if asked.task {
        return tasks::submit(&app, incoming, EMBEDDING, move || Ok(checked(prepare()?))).await;
    }
    let job = app.on_text_thread(incoming.body.len(), prepare).await?;
    let id = job.id.clone();
    let make = move |_, vectors: Vec<vectors::Vector>| {
        let entry = |(text_index, vector): (usize, &vectors::Vector)| {
            Ok(Entry { text_index, embedding: vector_json(vector, false)? })
        };
        vectors.iter().enumerate().map(entry).collect::<Result<Vec<Entry>, ApiError>>()
    };
    vectors::respond(&app, incoming, job, make, move |embeddings, settled, _| {
        let usage =
            Usage { input_tokens: settled.usage.prompt(), total_tokens: settled.usage.total() };
        json_bytes(&Embedded { output: Embeddings { embeddings }, usage, request_id: &id })
    })
    .await
}

/// Scores documents.
pub(crate) async fn text_rerank(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = Asked::read(request.headers())?;
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let prepare = move || parse_rerank(&body)?.prepare(&shared, "dashscope.rerank", "ds-");
    if asked.task {
        return tasks::submit(&app, incoming, RERANK, move || Ok(checked(prepare()?.0))).await;
    }
    let (job, ranking) = app.on_text_thread(incoming.body.len(), prepare).await?;
    let id = job.id.clone();
    let make = move |task, vectors: Vec<vectors::Vector>| Ok(ranking.rank(task, &vectors));
    vectors::respond(&app, incoming, job, make, move |ranked, settled, _| {
        let results: Vec<Value> = ranked
            .into_iter()
            .map(|one| {
                let mut entry = json!({"index": one.index, "relevance_score": one.score});
                if let Some(text) = one.text {
                    entry["document"] = json!({"text": text});
                }
                entry
            })
            .collect();
        let usage = &settled.usage;
        json_bytes(&json!({
            "output": {"results": results},
            "usage": {"input_tokens": usage.prompt(), "total_tokens": usage.total()},
            "request_id": id,
        }))
    })
    .await
}

fn checked(job: VectorJob) -> Checked {
    Checked { name: job.model_name().to_owned(), asked: job.asked().to_owned() }
}

/// The three parts of a body.
fn take_parts(body: &[u8]) -> Result<(String, Fields, Fields), ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = take_model(&mut fields)?;
    let input = Fields::object(fields.required("input")?, "input")?;
    let parameters = fields.take("parameters", Null::Absent);
    let parameters = parameters.unwrap_or_else(|| Value::Object(Map::new()));
    let parameters = Fields::object(parameters, "parameters")?;
    fields.ignored_object("resources")?;
    fields.finish()?;
    Ok((model, input, parameters))
}

fn parse_embedding(body: &[u8]) -> Result<EmbedRequest, ApiError> {
    let (model, mut input, mut parameters) = take_parts(body)?;
    if input.take("url", Null::Absent).is_some() {
        let what = "files of texts are not read from elsewhere; send `texts`, or a batch";
        return Err(unsupported("input.url", what));
    }
    let texts = take_texts(&mut input)?;
    input.finish()?;
    let kind = parameters.string("text_type", Null::Absent)?;
    let instruction = parameters.string("instruct", Null::Absent)?;
    check_instruction(INSTRUCT, instruction.as_deref())?;
    let purpose = match kind.as_deref() {
        // An instruction says what is looked for, so the text is what is looked by.
        None | Some("document") if instruction.is_none() => Texts::Documents,
        None | Some("query") => Texts::Queries { instruction },
        Some("document") => {
            let what = "goes with `text_type` `query`, not with `document`";
            return Err(unsupported(INSTRUCT, what));
        }
        Some(other) => {
            let given = Value::String(other.to_owned());
            return Err(wrong_value("parameters.text_type", "`query` or `document`", &given));
        }
    };
    let dimensions = parameters.count("dimension", 1)?;
    if let Some(kind) = parameters.string("output_type", Null::Absent)?
        && kind != "dense"
    {
        let what = "sparse vectors are not available here; leave it out or send `dense`";
        return Err(unsupported("parameters.output_type", what));
    }
    parameters.finish()?;
    Ok(EmbedRequest {
        model,
        inputs: texts.into_iter().map(Input::Text).collect(),
        inputs_field: "input.texts",
        texts: purpose,
        texts_field: "parameters.text_type",
        dimensions,
        dimensions_field: "parameters.dimension",
        advice: "Shorten it.",
        ..EmbedRequest::default()
    })
}

/// One text or several, none of them empty.
fn take_texts(input: &mut Fields) -> Result<Vec<String>, ApiError> {
    let values = match input.take("texts", Null::Absent) {
        Some(text @ Value::String(_)) => vec![text],
        Some(Value::Array(values)) => values,
        Some(other) => return Err(wrong_type("input.texts", "an array of strings", &other)),
        None => return Err(missing("input.texts")),
    };
    if values.is_empty() {
        let message = "`input.texts` must hold at least one text, not 0.";
        return Err(ApiError::field("input.texts", "invalid_value", message));
    }
    let text = |(index, value)| {
        let name = format!("input.texts[{index}]");
        match value {
            Value::String(text) if text.is_empty() => {
                let message = format!("`{name}` must have at least one character, not 0.");
                Err(ApiError::field(name, "invalid_value", message))
            }
            Value::String(text) => Ok(text),
            other => Err(wrong_type(&name, "a string", &other)),
        }
    };
    values.into_iter().enumerate().map(text).collect()
}

fn parse_rerank(body: &[u8]) -> Result<RankRequest, ApiError> {
    let (model, mut input, mut parameters) = take_parts(body)?;
    let query = vectors::take_query(&mut input, "query")?;
    let documents = vectors::take_documents(&mut input, "documents")?;
    input.finish()?;
    let request = RankRequest {
        model,
        query,
        documents,
        query_field: "input.query",
        documents_field: "input.documents",
        instruction: parameters.string("instruct", Null::Absent)?,
        instruction_field: INSTRUCT,
        max_document_tokens: None,
        top_n: parameters.count("top_n", 1)?,
        return_documents: parameters.bool("return_documents", Null::Absent)?.unwrap_or(false),
    };
    parameters.finish()?;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::check_mutations;

    #[test]
    fn odd_requests_are_refused_in_words() {
        let good = json!({
            "model": "m", "input": {"texts": ["a", "b"]}, "resources": {},
            "parameters": {"text_type": "query", "dimension": 3, "output_type": "dense", "instruct": "i"},
        });
        check_mutations(&good, parse_embedding);
        let good = json!({
            "model": "m", "input": {"query": "q", "documents": ["a", {"text": "b"}]},
            "parameters": {"top_n": 1, "return_documents": true, "instruct": "i"},
        });
        check_mutations(&good, parse_rerank);
    }

    #[test]
    fn texts_are_for_what_is_said() {
        let check = |parameters: Value, expected: Result<Texts, &str>| {
            let body = json!({"model": "m", "input": {"texts": "a"}, "parameters": parameters});
            let found = parse_embedding(body.to_string().as_bytes()).map(|request| request.texts);
            let expected = expected.map_err(str::to_owned);
            assert_eq!(found.map_err(|error| error.param.unwrap_or_default()), expected);
        };
        let query = |text: Option<&str>| Texts::Queries { instruction: text.map(str::to_owned) };
        check(json!({}), Ok(Texts::Documents));
        check(json!({"text_type": "document"}), Ok(Texts::Documents));
        check(json!({"text_type": "query"}), Ok(query(None)));
        check(json!({"text_type": "query", "instruct": "i"}), Ok(query(Some("i"))));
        check(json!({"instruct": "i"}), Ok(query(Some("i"))));
        check(json!({"text_type": "document", "instruct": "i"}), Err("parameters.instruct"));
        check(json!({"text_type": "x"}), Err("parameters.text_type"));
        check(json!({"output_type": "sparse"}), Err("parameters.output_type"));
        check(json!({"instruct": "x".repeat(5000)}), Err("parameters.instruct"));
    }
}
