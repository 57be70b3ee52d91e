//! Reranking: a query and documents in, a score for each out, best first.
//!
//! A reranker reads query and document together and says how likely it is that they fit: 0 to 1. A model that makes
//! embeddings reads each alone, and the score is the cosine of the two vectors: −1 to 1. Documents that are too long are
//! cut at their end, as rerankers everywhere do; a query is never cut.

use std::sync::Arc;

use mintage_model::{Purpose, TokenId, VectorTask};
use serde_json::Value;

use super::job::{Asked, Work};
use super::{
    MAX_INPUTS, Sequences, Shortening, Vector, VectorJob, check_instruction, cosine, too_long,
};
use crate::app::App;
use crate::error::ApiError;
use crate::fields::{Fields, missing, wrong_type};
use crate::served::{VectorModel, VectorTarget};
use crate::upstream::{VectorAsk, VectorRelay};

/// What to do about a query that leaves no room.
pub(crate) const QUERY_ADVICE: &str = "A query is never cut: shorten it.";

/// A request for scores, whatever its dialect.
#[derive(Clone, Debug, Default)]
pub(crate) struct RankRequest {
    pub(crate) model: String,
    pub(crate) query: String,
    pub(crate) documents: Vec<String>,
    /// The dialect's names, for refusals.
    pub(crate) query_field: &'static str,
    pub(crate) documents_field: &'static str,
    /// What is looked for, in a sentence; `None`: the model's own words.
    pub(crate) instruction: Option<String>,
    pub(crate) instruction_field: &'static str,
    /// Tokens of a document, or of a document with its query where both are read together; `None`: what the model takes.
    pub(crate) max_document_tokens: Option<u32>,
    /// How many of the best are told; `None`: all.
    pub(crate) top_n: Option<u32>,
    /// Whether the documents' texts are told again.
    pub(crate) return_documents: bool,
}

/// The documents that are told, best first.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ranked {
    pub(crate) index: usize,
    pub(crate) score: f64,
    /// Where asked for.
    pub(crate) text: Option<String>,
}

/// What becomes of the vectors.
pub(crate) struct Ranking(Arc<RankRequest>);

impl RankRequest {
    /// On a text thread: finds who answers and makes it ready.
    pub(crate) fn prepare(
        self,
        app: &App,
        protocol: &'static str,
        id_prefix: &str,
    ) -> Result<(VectorJob, Ranking), ApiError> {
        let request = Arc::new(self);
        let job = VectorJob::new(app, Arc::clone(&request) as Arc<dyn Asked>, protocol, id_prefix)?;
        Ok((job, Ranking(request)))
    }

    /// Tokens of the longest sequence with a document in it.
    fn limit(&self, model: &VectorModel) -> usize {
        let longest = model.engine.info().context_length;
        self.max_document_tokens.map_or(longest, |asked| asked.min(longest)) as usize
    }

    /// The query, then the documents.
    fn alone(&self, model: &VectorModel) -> Result<Vec<Arc<[TokenId]>>, ApiError> {
        let mut sequences = Sequences::new(self.documents_field);
        let purpose = Purpose::Query { instruction: self.instruction.as_deref() };
        let longest = model.engine.info().context_length as usize;
        let query = model.text.encode(&self.query, purpose).whole(longest);
        sequences.push(query.map_err(|found| too_long(self.query_field, found, QUERY_ADVICE))?)?;
        for (index, document) in self.documents.iter().enumerate() {
            let field = format!("{}[{index}]", self.documents_field);
            let cut = model.text.encode(document, Purpose::Document).cut(self.limit(model));
            let (ids, _) = cut.map_err(|found| too_long(&field, found, QUERY_ADVICE))?;
            sequences.push(ids)?;
        }
        Ok(sequences.all)
    }

    /// The query with each document.
    fn pairs(&self, model: &VectorModel) -> Result<Vec<Arc<[TokenId]>>, ApiError> {
        let mut sequences = Sequences::new(self.documents_field);
        for document in &self.documents {
            let pair = model.text.encode_pair(&self.query, document, self.instruction.as_deref());
            let pair = pair.ok_or_else(|| ApiError::internal("a reranker without a prompt"))?;
            // Only the document is cut, so what does not fit then is the query.
            let (ids, _) = pair
                .cut(self.limit(model))
                .map_err(|found| too_long(self.query_field, found, QUERY_ADVICE))?;
            sequences.push(ids)?;
        }
        Ok(sequences.all)
    }
}

impl Asked for RankRequest {
    fn model(&self) -> &str {
        &self.model
    }

    fn work(&self, target: &VectorTarget) -> Result<Work, ApiError> {
        let (field, count) = (self.documents_field, self.documents.len());
        if !(1..=MAX_INPUTS).contains(&count) {
            let message = format!("`{field}` holds 1 to {MAX_INPUTS} documents, not {count}.");
            return Err(ApiError::field(field, "invalid_value", message));
        }
        check_instruction(self.instruction_field, self.instruction.as_deref())?;
        let model = match target {
            VectorTarget::Own(model) => model,
            VectorTarget::Remote(remote) => {
                let ask = VectorAsk::rank(&remote.config, self)?;
                return Ok(Work::Remote(VectorRelay::new(Arc::clone(remote), ask)?));
            }
        };
        let sequences = match model.text.task() {
            VectorTask::Embed => self.alone(model)?,
            VectorTask::Rerank => self.pairs(model)?,
        };
        Ok(Work::Own { model: Arc::clone(model), sequences, shortening: Shortening::NONE })
    }
}

/// What documents are compared with: a text that is not empty, or `{"text": …}`.
pub(crate) fn take_query(fields: &mut Fields, field: &str) -> Result<String, ApiError> {
    let name = fields.name(field);
    let query = text(&name, fields.required(field)?)?;
    if query.is_empty() {
        let message = format!("`{name}` must have at least one character, not 0.");
        return Err(ApiError::field(name, "invalid_value", message));
    }
    Ok(query)
}

/// Documents, each a text or `{"text": …}`.
pub(crate) fn take_documents(fields: &mut Fields, field: &str) -> Result<Vec<String>, ApiError> {
    let name = fields.name(field);
    let values = match fields.required(field)? {
        Value::Array(values) => values,
        other => return Err(wrong_type(&name, "an array of strings", &other)),
    };
    let one = |(index, value)| text(&format!("{name}[{index}]"), value);
    values.into_iter().enumerate().map(one).collect()
}

fn text(name: &str, value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        // Documents may have more than their text; none of it is read.
        Value::Object(mut map) => match map.shift_remove("text") {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(wrong_type(&format!("{name}.text"), "a string", &other)),
            None => Err(missing(&format!("{name}.text"))),
        },
        other => Err(wrong_type(name, "a string or an object with a `text`", &other)),
    }
}

impl Ranking {
    /// The scores, best first; equal ones in the order of the documents.
    pub(crate) fn rank(&self, task: VectorTask, vectors: &[Vector]) -> Vec<Ranked> {
        let Self(request) = self;
        let scores: Vec<f64> = match (task, vectors.split_first()) {
            (VectorTask::Embed, Some((query, documents))) => {
                documents.iter().map(|document| cosine(query, document)).collect()
            }
            _ => vectors.iter().map(|v| v.first().map_or(0.0, |score| f64::from(*score))).collect(),
        };
        let scored = scores.into_iter().take(request.documents.len()).enumerate();
        let mut ranked: Vec<Ranked> =
            scored.map(|(index, score)| Ranked { index, score, text: None }).collect();
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        ranked.truncate(request.top_n.map_or(usize::MAX, |n| n as usize));
        for one in ranked.iter_mut().filter(|_| request.return_documents) {
            one.text = request.documents.get(one.index).cloned();
        }
        ranked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(task: VectorTask, top_n: u32, vectors: &[&[f32]]) -> Vec<(usize, f64)> {
        let vectors: Vec<Vector> = vectors.iter().map(|v| Vector::from(*v)).collect();
        let documents = vec!["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let (top_n, return_documents) = (Some(top_n), true);
        let request = RankRequest { documents, top_n, return_documents, ..RankRequest::default() };
        let ranked = Ranking(Arc::new(request)).rank(task, &vectors);
        let texts = ["a", "b", "c"];
        assert!(ranked.iter().all(|one| one.text.as_deref() == Some(texts[one.index])));
        ranked.into_iter().map(|one| (one.index, one.score)).collect()
    }

    #[test]
    fn the_best_come_first_and_equals_as_they_stand() {
        let scores: [&[f32]; 3] = [&[0.25], &[0.75], &[0.25]];
        let check = |top_n, expected: &[(usize, f64)]| {
            assert_eq!(ranked(VectorTask::Rerank, top_n, &scores), expected);
        };
        check(9, &[(1, 0.75), (0, 0.25), (2, 0.25)]);
        check(2, &[(1, 0.75), (0, 0.25)]);
    }

    #[test]
    fn embeddings_are_compared_by_their_cosine() {
        let vectors: [&[f32]; 4] = [&[2.0, 0.0], &[0.0, 3.0], &[5.0, 0.0], &[-1.0, 0.0]];
        let found = ranked(VectorTask::Embed, 9, &vectors);
        assert_eq!(found, [(1, 1.0), (0, 0.0), (2, -1.0)]);
    }
}
