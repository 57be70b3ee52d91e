//! Embeddings and scores of another service: the body of one request, and the vectors of its one answer.
//!
//! Pure. Invariants: what a service does not take is refused by the name of the parameter, never left out; an answer has
//! one vector for each input, all as long as each other, all numbers finite, or it is none; whether they are as long as was
//! asked for, and few enough, is the request's business and no fault of the service.

use std::sync::Arc;

use axum::body::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mintage_model::{SpecialTokens, VectorTask};
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::Failure;
use super::config::{Flavour, UpstreamConfig, UpstreamTask};
use super::failure::FailureKind;
use crate::error::ApiError;
use crate::fields::unsupported;
use crate::respond::json_bytes;
use crate::vectors::{EmbedRequest, Input, MAX_ELEMENTS, QUERY_ADVICE, RankRequest, Texts, Vector};

/// The most that a model's marks add to a text.
const MARK_TOKENS: u64 = 16;
/// ... and what a reranker's prompt adds to a query and a document.
const PAIR_TOKENS: u64 = 512;
const NOT_TAKEN: &str = "the service behind this model does not take it";

/// What a service is asked for vectors.
#[derive(Clone, Debug)]
pub(crate) struct VectorAsk {
    /// JSON.
    pub(super) body: Bytes,
    pub(super) expected: Expected,
    /// Numbers of each vector; `None`: as many as the service makes.
    width: Option<usize>,
    fields: FieldNames,
    most_tokens: u64,
    own_tokens: Option<u64>,
}

/// What the dialect calls things, for refusals.
#[derive(Clone, Copy, Debug)]
struct FieldNames {
    inputs: &'static str,
    width: &'static str,
}

/// What an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// Also which of the service's routes.
    pub(super) task: VectorTask,
    count: usize,
}

/// What a service says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeardVectors {
    /// In the order of the inputs; of a reranker one number each.
    pub(super) vectors: Vec<Vector>,
    /// Tokens as it counts them, where it tells.
    pub(super) tokens: Option<u64>,
}

impl VectorAsk {
    pub(crate) fn embed(config: &UpstreamConfig, request: &EmbedRequest) -> Result<Self, ApiError> {
        if matches!(request.texts, Texts::Queries { .. }) {
            let what = "another service answers for this model, and takes texts as they stand";
            return Err(unsupported(request.texts_field, what));
        }
        let mut more = Map::new();
        if let Some(dimensions) = request.dimensions {
            more.insert("dimensions".to_owned(), dimensions.into());
        }
        add_cut(&mut more, config.flavour, request)?;
        let fields = FieldNames { inputs: request.inputs_field, width: request.dimensions_field };
        let width = request.dimensions.map(|width| width as usize);
        let ask = embeddings(config, &request.inputs, fields, more)?;
        Ok(Self { width, ..ask })
    }

    pub(crate) fn rank(config: &UpstreamConfig, request: &RankRequest) -> Result<Self, ApiError> {
        let is_mintage = config.flavour == Flavour::Mintage;
        let is_reranker = config.task == UpstreamTask::Rerank;
        let takes_instruction = is_mintage || config.flavour == Flavour::Dashscope;
        if request.instruction.is_some() && !(is_reranker && takes_instruction) {
            return Err(unsupported(request.instruction_field, NOT_TAKEN));
        }
        if request.max_document_tokens.is_some() && !(is_reranker && is_mintage) {
            return Err(unsupported("max_tokens_per_doc", NOT_TAKEN));
        }
        let query = query_tokens(config, request)?;
        let fields = FieldNames { inputs: request.documents_field, width: "" };
        if !is_reranker {
            let texts = std::iter::once(&request.query).chain(&request.documents);
            let inputs: Vec<Input> = texts.cloned().map(Input::Text).collect();
            return embeddings(config, &inputs, fields, Map::new());
        }
        let mut body = Map::new();
        body.insert("model".to_owned(), config.model.as_str().into());
        body.insert("query".to_owned(), request.query.as_str().into());
        body.insert("documents".to_owned(), request.documents.clone().into());
        // All of them: which are the best is found here.
        body.insert("top_n".to_owned(), request.documents.len().into());
        body.insert("return_documents".to_owned(), false.into());
        if let Some(instruction) = &request.instruction {
            body.insert("instruct".to_owned(), instruction.as_str().into());
        }
        if let Some(tokens) = request.max_document_tokens {
            body.insert("max_tokens_per_doc".to_owned(), tokens.into());
        }
        let instruction = request.instruction.as_ref().map_or(0, String::len);
        let frame = (request.query.len() + instruction) as u64 + PAIR_TOKENS;
        let own = |document: &String| Some(query? + count(config, document)?);
        let most = |document: &String| document.len() as u64 + frame;
        let context = u64::from(config.context_length);
        Ok(Self {
            body: Bytes::from(json_bytes(&body)?),
            expected: Expected { task: VectorTask::Rerank, count: request.documents.len() },
            width: Some(1),
            fields,
            most_tokens: request.documents.iter().map(|one| most(one).min(context)).sum(),
            own_tokens: request.documents.iter().map(own).sum(),
        })
    }

    /// What vectors are.
    pub(crate) fn task(&self) -> VectorTask {
        self.expected.task
    }

    /// Refuses more vectors than an answer may have, where they are as wide as the service made them last.
    pub(super) fn check_count(&self, made_width: usize) -> Result<(), ApiError> {
        let (count, most) = (self.expected.count, MAX_ELEMENTS / made_width.max(1));
        if self.width.is_some() || count <= most {
            return Ok(());
        }
        let field = self.fields.inputs;
        let message = format!(
            "`{field}`: {count} vectors of {made_width} numbers are too many for one answer, which has at most {most} \
             of them. Send fewer at once."
        );
        Err(ApiError::field(field, "invalid_value", message))
    }

    /// Refuses a request whose answer is none that it can have. The service is well.
    pub(super) fn check_answer(&self, heard: &HeardVectors) -> Result<(), ApiError> {
        let found = heard.width();
        let Some(asked) = self.width.filter(|asked| *asked != found) else {
            return self.check_count(found);
        };
        let field = self.fields.width;
        let message = format!(
            "`{field}`: the service behind this model makes vectors of {found} numbers, not of {asked}."
        );
        Err(ApiError::field(field, "invalid_value", message))
    }

    /// Numbers of a vector as the service makes them by itself, where the request does not say how many.
    pub(super) fn own_width(&self, heard: &HeardVectors) -> Option<usize> {
        self.width.is_none().then(|| heard.width())
    }

    /// An answer is longer than may be read: because of how much was asked for, where that was more than one vector.
    pub(super) fn too_long(&self, limit: usize) -> Failure {
        let Expected { task, count } = self.expected;
        let log = format!("an answer of more than {limit} bytes");
        if task == VectorTask::Rerank || count == 1 {
            return Failure::nonsense(log);
        }
        let field = self.fields.inputs;
        let message = format!(
            "the answer with {count} vectors has more than {limit} bytes. Send fewer of `{field}` at once."
        );
        Failure { message, ..Failure::new(FailureKind::Invalid, log) }
    }

    /// The most that it can be billed for.
    pub(crate) fn most_tokens(&self) -> u64 {
        self.most_tokens
    }

    /// As counted here, where a tokenizer is.
    pub(super) fn own_tokens(&self) -> Option<u64> {
        self.own_tokens
    }
}

/// A request for embeddings, `more` added to its body.
fn embeddings(
    config: &UpstreamConfig,
    inputs: &[Input],
    fields: FieldNames,
    more: Map<String, Value>,
) -> Result<VectorAsk, ApiError> {
    let mut body = Map::new();
    body.insert("model".to_owned(), config.model.as_str().into());
    body.insert("input".to_owned(), input(config.flavour, inputs, fields.inputs)?);
    // Half as many bytes, and exact. Whoever answers in numbers all the same is understood, too.
    let format = if config.flavour == Flavour::Dashscope { "float" } else { "base64" };
    body.insert("encoding_format".to_owned(), format.into());
    body.extend(more);
    let most = |input: &Input| match input {
        Input::Text(text) => text.len() as u64 + MARK_TOKENS,
        Input::Tokens(ids) => ids.len() as u64 + MARK_TOKENS,
    };
    let own = |input: &Input| match input {
        Input::Text(text) => count(config, text),
        Input::Tokens(ids) => Some(ids.len() as u64),
    };
    let context = u64::from(config.context_length);
    Ok(VectorAsk {
        body: Bytes::from(json_bytes(&body)?),
        expected: Expected { task: VectorTask::Embed, count: inputs.len() },
        width: None,
        fields,
        most_tokens: inputs.iter().map(|input| most(input).min(context)).sum(),
        own_tokens: inputs.iter().map(own).sum(),
    })
}

/// Texts, or lists of token ids, where the service takes these.
fn input(flavour: Flavour, inputs: &[Input], field: &str) -> Result<Value, ApiError> {
    let are_tokens = |input: &Input| matches!(input, Input::Tokens(_));
    let some_tokens = inputs.iter().any(are_tokens);
    if some_tokens && flavour == Flavour::Dashscope {
        return Err(unsupported(field, "the service behind this model takes no token ids"));
    }
    if some_tokens && !inputs.iter().all(are_tokens) && flavour != Flavour::Mintage {
        let what = "the service behind this model takes texts or token ids, not both at once";
        return Err(unsupported(field, what));
    }
    let one = |input: &Input| match input {
        Input::Text(text) => Value::from(text.as_str()),
        Input::Tokens(ids) => Value::from(ids.as_slice()),
    };
    Ok(inputs.iter().map(one).collect())
}

/// What is too long is cut there, where the service knows how; where nobody asked for it in so many words, it may refuse.
fn add_cut(
    body: &mut Map<String, Value>,
    flavour: Flavour,
    request: &EmbedRequest,
) -> Result<(), ApiError> {
    let Some(limit) = request.cut_to else { return Ok(()) };
    match flavour {
        Flavour::Vllm | Flavour::Mintage => {
            // The model's own limit.
            let limit = if limit == u32::MAX { -1 } else { i64::from(limit) };
            body.insert("truncate_prompt_tokens".to_owned(), limit.into());
            Ok(())
        }
        Flavour::Openai | Flavour::Dashscope if request.cut_field.is_empty() => Ok(()),
        Flavour::Openai | Flavour::Dashscope => Err(unsupported(request.cut_field, NOT_TAKEN)),
    }
}

/// Tokens of a query, where a tokenizer is: once, however many documents stand beside it.
fn query_tokens(config: &UpstreamConfig, request: &RankRequest) -> Result<Option<u64>, ApiError> {
    let (tokens, most) = (count(config, &request.query), u64::from(config.context_length));
    match tokens {
        Some(tokens) if tokens > most => {
            let field = request.query_field;
            let message = format!(
                "`{field}` has {tokens} tokens; the model takes at most {most}. {QUERY_ADVICE}"
            );
            Err(ApiError::field(field, "context_length_exceeded", message))
        }
        tokens => Ok(tokens),
    }
}

fn count(config: &UpstreamConfig, text: &str) -> Option<u64> {
    let tokenizer = config.tokenizer.as_ref()?.tokenizer();
    Some(tokenizer.encode(text, SpecialTokens::AsText).len() as u64)
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default, alias = "results")]
    data: Vec<Entry>,
    #[serde(default)]
    usage: Value,
}

#[derive(Deserialize)]
struct Entry {
    index: Option<usize>,
    #[serde(alias = "relevance_score")]
    embedding: Numbers,
}

/// A vector: numbers, or a string of little-endian 32-bit floats in base64; or one number.
struct Numbers(Vec<f32>);

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumbersVisitor)
    }
}

struct NumbersVisitor;

impl<'de> Visitor<'de> for NumbersVisitor {
    type Value = Numbers;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("numbers, or base64 of them")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Numbers, A::Error> {
        let mut numbers = Vec::new();
        while let Some(number) = seq.next_element()? {
            numbers.push(number);
        }
        Ok(Numbers(numbers))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Numbers, E> {
        let bytes = BASE64.decode(text).map_err(E::custom)?;
        let (numbers, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(E::custom("no whole number of 32-bit floats"));
        }
        Ok(Numbers(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Numbers, E> {
        Ok(Numbers(vec![number as f32]))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Numbers, E> {
        Ok(Numbers(vec![number as f32]))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Numbers, E> {
        Ok(Numbers(vec![number as f32]))
    }
}

impl HeardVectors {
    /// Numbers of each vector.
    fn width(&self) -> usize {
        self.vectors.first().map_or(0, |vector| vector.len())
    }
}

impl Expected {
    /// The answer as a whole.
    pub(super) fn read(self, body: &[u8]) -> Result<HeardVectors, Failure> {
        let answer: Answer = serde_json::from_slice(body)
            .map_err(|error| Failure::nonsense(format!("no answer with vectors: {error}")))?;
        let entries = answer.data;
        if entries.len() != self.count {
            let found = entries.len();
            return Err(Failure::nonsense(format!("{found} vectors for {} inputs", self.count)));
        }
        let width = match self.task {
            VectorTask::Embed => entries.first().map_or(1, |entry| entry.embedding.0.len()),
            VectorTask::Rerank => 1,
        };
        if !(1..=MAX_ELEMENTS).contains(&width) {
            return Err(Failure::nonsense(format!("vectors of {width} numbers")));
        }
        let mut vectors: Vec<Option<Vector>> = vec![None; self.count];
        for (place, Entry { index, embedding: Numbers(numbers) }) in entries.into_iter().enumerate()
        {
            let index = index.unwrap_or(place);
            if numbers.len() != width {
                let found = numbers.len();
                return Err(Failure::nonsense(format!("a vector of {found} instead of {width}")));
            }
            if !numbers.iter().all(|number| number.is_finite()) {
                return Err(Failure::nonsense("a vector with what is no number".to_owned()));
            }
            match vectors.get_mut(index) {
                Some(free @ None) => *free = Some(Arc::from(numbers)),
                _ => return Err(Failure::nonsense(format!("no one input has the index {index}"))),
            }
        }
        // Each has one: there are as many as inputs, and none came twice.
        let vectors = vectors.into_iter().flatten().collect();
        Ok(HeardVectors { vectors, tokens: tokens(&answer.usage) })
    }
}

/// What is reported, if it is a number that can be one of tokens.
fn tokens(usage: &Value) -> Option<u64> {
    ["prompt_tokens", "input_tokens", "total_tokens"]
        .iter()
        .find_map(|name| usage.get(name)?.as_u64())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(flavour: Flavour, task: UpstreamTask) -> UpstreamConfig {
        UpstreamConfig {
            flavour,
            task,
            ..UpstreamConfig::new("m", "https://example.com/v1", "theirs", 100)
        }
    }

    fn texts(texts: &[&str]) -> EmbedRequest {
        EmbedRequest {
            model: "m".to_owned(),
            inputs: texts.iter().map(|&text| Input::Text(text.to_owned())).collect(),
            inputs_field: "input",
            texts_field: "parameters.text_type",
            ..EmbedRequest::default()
        }
    }

    fn body(ask: Result<VectorAsk, ApiError>) -> Result<Value, String> {
        let ask = ask.map_err(|error| error.param.unwrap_or_default())?;
        Ok(serde_json::from_slice(&ask.body).unwrap())
    }

    #[test]
    fn what_is_asked_is_openais_and_the_rest_refused_by_name() {
        use Flavour::{Dashscope, Mintage, Openai, Vllm};
        let check = |flavour, request: &EmbedRequest, expected: Result<Value, &str>| {
            let found = body(VectorAsk::embed(&config(flavour, UpstreamTask::Embed), request));
            assert_eq!(found, expected.map_err(str::to_owned), "{flavour:?} {request:?}");
        };
        let plain = json!({"model": "theirs", "input": ["a", "bc"], "encoding_format": "base64"});
        let with = |more: Value| {
            let mut body = plain.clone();
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        check(Openai, &texts(&["a", "bc"]), Ok(plain.clone()));
        let float = json!({"encoding_format": "float"});
        check(Dashscope, &texts(&["a", "bc"]), Ok(with(float)));
        let documents = EmbedRequest { texts: Texts::Documents, ..texts(&["a", "bc"]) };
        check(Openai, &documents, Ok(plain.clone()));
        let queries = Texts::Queries { instruction: None };
        let queries = EmbedRequest { texts: queries, ..texts(&["a"]) };
        check(Mintage, &queries, Err("parameters.text_type"));
        let short = EmbedRequest { dimensions: Some(3), ..texts(&["a", "bc"]) };
        check(Openai, &short, Ok(with(json!({"dimensions": 3}))));
        // Cut as a dialect's habit, at the client's wish, to a length.
        let habit = EmbedRequest { cut_to: Some(u32::MAX), ..texts(&["a", "bc"]) };
        check(Openai, &habit, Ok(plain.clone()));
        check(Vllm, &habit, Ok(with(json!({"truncate_prompt_tokens": -1}))));
        let wish = EmbedRequest { cut_field: "truncate", ..habit };
        check(Openai, &wish, Err("truncate"));
        let length = EmbedRequest { cut_to: Some(5), ..wish };
        check(Mintage, &length, Ok(with(json!({"truncate_prompt_tokens": 5}))));
        let mut tokens = texts(&[]);
        tokens.inputs = vec![Input::Tokens(vec![1, 2]), Input::Tokens(vec![3])];
        check(Openai, &tokens, Ok(with(json!({"input": [[1, 2], [3]]}))));
        check(Dashscope, &tokens, Err("input"));
        tokens.inputs.push(Input::Text("a".to_owned()));
        check(Vllm, &tokens, Err("input"));
        check(Mintage, &tokens, Ok(with(json!({"input": [[1, 2], [3], "a"]}))));
    }

    #[test]
    fn documents_are_sent_to_who_scores_and_to_who_embeds() {
        let request = |instruction: Option<&str>, max_document_tokens| RankRequest {
            query: "q".to_owned(),
            documents: vec!["a".to_owned(), "b".to_owned()],
            documents_field: "documents",
            instruction: instruction.map(str::to_owned),
            instruction_field: "instruct",
            max_document_tokens,
            top_n: Some(1),
            ..RankRequest::default()
        };
        let check = |flavour, task, request: &RankRequest, expected: Result<Value, &str>| {
            let found = body(VectorAsk::rank(&config(flavour, task), request));
            assert_eq!(found, expected.map_err(str::to_owned), "{flavour:?} {task:?}");
        };
        let (plain, told) = (request(None, None), request(Some("i"), None));
        let mut asked = json!({"model": "theirs", "query": "q", "documents": ["a", "b"], "top_n": 2,
            "return_documents": false});
        check(Flavour::Openai, UpstreamTask::Rerank, &plain, Ok(asked.clone()));
        check(Flavour::Openai, UpstreamTask::Rerank, &told, Err("instruct"));
        asked["instruct"] = "i".into();
        check(Flavour::Dashscope, UpstreamTask::Rerank, &told, Ok(asked.clone()));
        let long = request(Some("i"), Some(9));
        check(Flavour::Dashscope, UpstreamTask::Rerank, &long, Err("max_tokens_per_doc"));
        asked["max_tokens_per_doc"] = 9.into();
        check(Flavour::Mintage, UpstreamTask::Rerank, &long, Ok(asked));
        let embedded =
            json!({"model": "theirs", "input": ["q", "a", "b"], "encoding_format": "base64"});
        check(Flavour::Openai, UpstreamTask::Embed, &plain, Ok(embedded));
        check(Flavour::Mintage, UpstreamTask::Embed, &told, Err("instruct"));
    }

    #[test]
    fn holds_cover_whatever_a_tokenizer_makes_of_it() {
        let config = config(Flavour::Openai, UpstreamTask::Embed);
        let long = "x".repeat(500);
        let ask = VectorAsk::embed(&config, &texts(&["ab", &long])).unwrap();
        assert_eq!((ask.most_tokens(), ask.own_tokens()), (2 + MARK_TOKENS + 100, None));
    }

    #[test]
    fn what_does_not_fit_an_answer_is_refused_by_the_field_that_asks_for_it() {
        let config = config(Flavour::Openai, UpstreamTask::Embed);
        let heard =
            |width: usize| HeardVectors { vectors: vec![vec![0.0; width].into()], tokens: None };
        let check = |ask: &VectorAsk, width, expected: Result<(), (&str, &str)>| {
            let found = ask.check_answer(&heard(width));
            let (found, message) = match found {
                Ok(()) => (Ok(()), String::new()),
                Err(error) => (Err(error.param.unwrap()), error.message),
            };
            assert_eq!(found, expected.map_err(|(field, _)| field.to_owned()), "{width}");
            assert!(message.contains(expected.err().map_or("", |(_, says)| says)), "{message}");
        };
        let many = EmbedRequest { dimensions_field: "dimensions", ..texts(&["a"; 1400]) };
        let ask = VectorAsk::embed(&config, &many).unwrap();
        check(&ask, 2995, Ok(()));
        check(&ask, 2996, Err(("input", "1400 vectors of 2996 numbers")));
        check(&ask, 3072, Err(("input", "at most 1365")));
        assert!(ask.check_count(3072).is_err(), "before it is sent, too");
        let short = EmbedRequest { dimensions: Some(5), ..many };
        let ask = VectorAsk::embed(&config, &short).unwrap();
        check(&ask, 5, Ok(()));
        check(&ask, 3072, Err(("dimensions", "vectors of 3072 numbers, not of 5")));
        // What it makes by itself says nothing of what it makes when asked.
        assert_eq!((ask.check_count(3072), ask.own_width(&heard(9))), (Ok(()), None));
        let documents = RankRequest {
            documents: vec!["a".to_owned(); 1400],
            documents_field: "documents",
            ..RankRequest::default()
        };
        let ask = VectorAsk::rank(&config, &documents).unwrap();
        check(&ask, 3072, Err(("documents", "1401 vectors")));
    }

    #[test]
    fn an_answer_is_whole_or_none() {
        let expected = |count| Expected { task: VectorTask::Embed, count };
        let check =
            |expected: Expected, answer: Value, found: Result<(&[&[f32]], Option<u64>), &str>| {
                let heard = expected.read(answer.to_string().as_bytes());
                match (heard, found) {
                    (Ok(heard), Ok((vectors, tokens))) => {
                        let all: Vec<&[f32]> = heard.vectors.iter().map(AsRef::as_ref).collect();
                        assert_eq!((all.as_slice(), heard.tokens), (vectors, tokens), "{answer}");
                    }
                    (Err(failure), Err(says)) => {
                        assert!(failure.log.contains(says), "{answer}: {}", failure.log);
                    }
                    (heard, _) => panic!("{answer}: {heard:?}"),
                }
            };
        let two = json!({"data": [{"index": 1, "embedding": [3, 4.5]}, {"index": 0, "embedding": "AACAPwAAAEA="}],
            "usage": {"prompt_tokens": 7, "total_tokens": 8}});
        check(expected(2), two.clone(), Ok((&[&[1.0, 2.0], &[3.0, 4.5]], Some(7))));
        check(expected(3), two.clone(), Err("2 vectors for 3 inputs"));
        let rerank = |count| Expected { task: VectorTask::Rerank, count };
        check(rerank(2), two, Err("a vector of 2 instead of 1"));
        let scores = json!({"results": [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": -1}],
            "usage": {"total_tokens": 9}});
        check(rerank(2), scores, Ok((&[&[-1.0], &[0.5]], Some(9))));
        let data = |entries: Value| json!({"data": entries, "usage": {"prompt_tokens": -1}});
        let one = |embedding: Value| data(json!([{"embedding": embedding}]));
        check(expected(1), one(json!([1])), Ok((&[&[1.0]], None)));
        check(expected(1), one(json!([])), Err("vectors of 0 numbers"));
        let uneven = data(json!([{"embedding": [1]}, {"embedding": [1, 2]}]));
        check(expected(2), uneven, Err("a vector of 2 instead of 1"));
        check(expected(1), one(json!("AACA")), Err("32-bit floats"));
        check(expected(1), one(json!("AADAfw==")), Err("no number"));
        check(expected(1), one(json!("§")), Err("no answer with vectors"));
        check(expected(1), one(json!([1, null])), Err("no answer with vectors"));
        let twice = data(json!([{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [2]}]));
        check(expected(2), twice, Err("index 0"));
        let beyond = data(json!([{"index": 1, "embedding": [1]}]));
        check(expected(1), beyond, Err("index 1"));
        check(expected(1), json!([]), Err("1 inputs"));
        check(expected(1), json!("x"), Err("no answer with vectors"));
    }
}
