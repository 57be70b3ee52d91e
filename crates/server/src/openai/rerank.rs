//! `POST /v1/rerank` as Jina and vLLM have it (and Model Studio, under `/compatible-api/v1/reranks`), `POST /v2/rerank` as
//! Cohere does. What scores are, `vectors::rank` says.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::fields::{Fields, Null};
use crate::job::Incoming;
use crate::openai::chat_request::take_model;
use crate::respond::json_bytes;
use crate::till::Settled;
use crate::vectors::{self, RankRequest, Ranked, take_documents, take_query};

/// Whose words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Jina,
    Cohere,
}

#[derive(Serialize)]
struct Entry {
    index: usize,
    relevance_score: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document>,
}

#[derive(Serialize)]
struct Document {
    text: String,
}

/// Scores documents, in Jina's words.
pub(crate) async fn rerank(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(app, request, Dialect::Jina).await
}

/// Scores documents, in Cohere's words.
pub(crate) async fn rerank_v2(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(app, request, Dialect::Cohere).await
}

async fn answer(app: Arc<App>, request: Request, dialect: Dialect) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let protocol = match dialect {
        Dialect::Jina => "openai.rerank",
        Dialect::Cohere => "cohere.rerank",
    };
    let prepare = move || parse(&body, dialect)?.prepare(&shared, protocol, "rerank-");
    let (job, ranking) = app.on_text_thread(incoming.body.len(), prepare).await?;
    let id = job.id.clone();
    let make = move |task, vectors: Vec<vectors::Vector>| Ok(ranking.rank(task, &vectors));
    vectors::respond(&app, incoming, job, make, move |ranked, settled, model| {
        json_bytes(&written(dialect, &id, model, ranked, settled))
    })
    .await
}

fn written(
    dialect: Dialect,
    id: &str,
    model: &str,
    ranked: Vec<Ranked>,
    settled: &Settled,
) -> Value {
    let entry = |one: Ranked| Entry {
        index: one.index,
        relevance_score: one.score,
        document: one.text.map(|text| Document { text }),
    };
    let results: Vec<Entry> = ranked.into_iter().map(entry).collect();
    let usage = &settled.usage;
    match dialect {
        Dialect::Jina => json!({
            "id": id,
            "object": "list",
            "model": model,
            "results": results,
            "usage": {"prompt_tokens": usage.prompt(), "total_tokens": usage.total()},
        }),
        Dialect::Cohere => json!({
            "id": id,
            "results": results,
            "meta": {
                "api_version": {"version": "2"},
                "billed_units": {"input_tokens": usage.prompt()},
                "tokens": {"input_tokens": usage.prompt()},
            },
        }),
    }
}

fn parse(body: &[u8], dialect: Dialect) -> Result<RankRequest, ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = take_model(&mut fields)?;
    let query = take_query(&mut fields, "query")?;
    let documents = take_documents(&mut fields, "documents")?;
    let top_n = fields.count("top_n", 1)?;
    let request = RankRequest {
        model,
        query,
        documents,
        query_field: "query",
        documents_field: "documents",
        instruction_field: "instruct",
        top_n,
        ..RankRequest::default()
    };
    let request = match dialect {
        Dialect::Jina => {
            let return_documents = fields.bool("return_documents", Null::Absent)?;
            // vLLM's and Jina's words for cutting, which is done anyway.
            fields.bool("truncation", Null::Absent)?;
            fields.string("user", Null::Absent)?;
            RankRequest {
                return_documents: return_documents.unwrap_or(true),
                instruction: fields.string("instruct", Null::Absent)?,
                max_document_tokens: fields.count("max_tokens_per_doc", 1)?,
                ..request
            }
        }
        Dialect::Cohere => {
            // Of requests that are more urgent than others: all are alike here.
            fields.integer("priority", 0..=999)?;
            RankRequest {
                return_documents: fields.bool("return_documents", Null::Absent)?.unwrap_or(false),
                max_document_tokens: fields.count("max_tokens_per_doc", 1)?,
                ..request
            }
        }
    };
    fields.finish()?;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::check_mutations;

    #[test]
    fn odd_requests_are_refused_in_words() {
        let good = json!({
            "model": "m", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1,
            "return_documents": false, "max_tokens_per_doc": 9,
        });
        check_mutations(&good, |body| parse(body, Dialect::Jina));
        check_mutations(&good, |body| parse(body, Dialect::Cohere));
    }
}
