//! The text side of a model that makes vectors: vocabulary, prompts, and how a text that is too long is cut.
//!
//! Two kinds of task: embeddings (one text) and reranking (a query and a document). Control tokens come from here only,
//! never from a text. Invariant: what is cut is cut from the end of a text, and counted.

use serde_json::Value;

use crate::TokenId;
use crate::encoder::{EncoderFile, WordPiece};
use crate::error::ModelError;
use crate::model_file::{ModelFile, TextFile, parse_json};
use crate::text_model::{TextModel, TextModelError};
use crate::tokenizer::{SpecialTokens, TokenizerError};

/// What Qwen3's reranker is asked, around a query and a document.
const JUDGE: [&str; 2] = [
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. \
     Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
];
/// The instruction where a request has none, as Qwen3's models were trained.
const DEFAULT_INSTRUCTION: &str =
    "Given a web search query, retrieve relevant passages that answer the query";

/// What a model's vectors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorTask {
    /// Embeddings of texts.
    Embed,
    /// The score of a document for a query.
    Rerank,
}

impl VectorTask {
    /// The task that a decoder's files name; `None` for one that generates text.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for a pooling that is not the last token's.
    pub fn of_decoder(file: &ModelFile) -> Result<Option<Self>, ModelError> {
        if let Some(metadata) = file.metadata() {
            let key = format!("{}.pooling_type", file.config().family.name());
            return match metadata.unsigned(&key)? {
                None | Some(0) => Ok(None),
                Some(3) => Ok(Some(Self::Embed)),
                Some(4) => Ok(Some(Self::Rerank)),
                Some(other) => {
                    let given = other.to_string();
                    Err(ModelError::unsupported(key, given, "3 (last token), 4 (rank)"))
                }
            };
        }
        let Some(modules) = file.text_file(TextFile::Modules)? else { return Ok(None) };
        let modules = parse_json(&modules)?;
        let ranks = |module: &Value| {
            module.get("type").and_then(Value::as_str).is_some_and(|t| t.ends_with(".LogitScore"))
        };
        let ranks = modules.as_array().is_some_and(|modules| modules.iter().any(ranks));
        Ok(Some(if ranks { Self::Rerank } else { Self::Embed }))
    }
}

/// What an embedding is for: some models put other words before a query than before a document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// The text alone.
    #[default]
    Plain,
    /// A text that will be searched for.
    Document,
    /// A text that others are searched by.
    Query {
        /// What is looked for, in a sentence; `None` takes the model's own words.
        instruction: Option<&'a str>,
    },
}

/// Token ids of one sequence, in parts: what may not be cut, and what may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedText {
    ids: Vec<TokenId>,
    /// Tokens at the beginning and at the end that must stay.
    kept: (usize, usize),
}

/// A text has too many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{tokens} tokens are given, the limit is {limit}")]
pub struct TooLong {
    /// Tokens given, marks and prompt included.
    pub tokens: usize,
    /// Tokens that fit.
    pub limit: usize,
}

impl EncodedText {
    /// All ids.
    #[must_use]
    pub fn ids(&self) -> &[TokenId] {
        &self.ids
    }

    /// The ids, if they are at most `limit`.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn whole(self, limit: usize) -> Result<Vec<TokenId>, TooLong> {
        let tokens = self.ids.len();
        if tokens > limit { Err(TooLong { tokens, limit }) } else { Ok(self.ids) }
    }

    /// At most `limit` ids, the end of the text cut off where there are more, and how many were cut.
    ///
    /// # Errors
    /// [`TooLong`] where what must stay is too long by itself.
    pub fn cut(mut self, limit: usize) -> Result<(Vec<TokenId>, usize), TooLong> {
        let tokens = self.ids.len();
        let excess = tokens.saturating_sub(limit);
        let (first, last) = self.kept;
        if excess > tokens.saturating_sub(first + last) {
            return Err(TooLong { tokens, limit });
        }
        let end = tokens - last;
        self.ids.drain(end - excess..end);
        Ok((self.ids, excess))
    }
}

/// Vocabulary and prompts of a model that makes vectors.
#[derive(Debug)]
pub struct VectorText {
    vocabulary: Vocabulary,
    task: VectorTask,
    /// Before a document.
    document_prompt: String,
    /// Before a query; `None` where queries are like documents.
    query_prompt: Option<String>,
    /// Trained so that the first elements of a vector are a shorter vector.
    can_shorten: bool,
    /// The tokens "yes" and "no", of a reranker.
    yes_no: Option<(TokenId, TokenId)>,
}

#[derive(Debug)]
enum Vocabulary {
    WordPiece(Box<WordPiece>),
    BytePairs(Box<TextModel>),
}

impl VectorText {
    /// The text side of an encoder, which makes embeddings.
    ///
    /// # Errors
    /// [`TextModelError`] names what is missing, damaged or not supported.
    pub fn of_encoder(file: &EncoderFile) -> Result<Self, TextModelError> {
        let prompts = Prompts::read(file.sentence_transformers()?)?;
        Ok(Self {
            vocabulary: Vocabulary::WordPiece(Box::new(file.tokenizer()?)),
            task: VectorTask::Embed,
            document_prompt: prompts.document.unwrap_or_default(),
            query_prompt: prompts.query,
            can_shorten: file.can_shorten(),
            yes_no: None,
        })
    }

    /// The text side of a decoder, in the manner of Qwen3-Embedding and Qwen3-Reranker.
    ///
    /// # Errors
    /// As [`VectorText::of_encoder`]; a reranker's vocabulary must have "yes" and "no" as tokens.
    pub fn of_decoder(file: &ModelFile, task: VectorTask) -> Result<Self, TextModelError> {
        let prompts = Prompts::read(file.text_file(TextFile::SentenceTransformers)?)?;
        let text = Self::prompted(TextModel::from_model_file(file)?, task, prompts)?;
        if let (Some(yes_no), Some(score)) = (text.yes_no, file.text_file(TextFile::LogitScore)?) {
            check_score(&score, yes_no)?;
        }
        Ok(text)
    }

    /// The same where the vocabulary is at hand and the prompts are Qwen3's own.
    ///
    /// # Errors
    /// As [`VectorText::of_decoder`].
    pub fn of_text_model(text: TextModel, task: VectorTask) -> Result<Self, TextModelError> {
        Self::prompted(text, task, Prompts::default())
    }

    fn prompted(
        text: TextModel,
        task: VectorTask,
        prompts: Prompts,
    ) -> Result<Self, TextModelError> {
        let single = |word| match text.tokenizer().encode(word, SpecialTokens::AsText).as_slice() {
            [id] => Ok(*id),
            _ => Err(TokenizerError::Missing { what: "single tokens `yes` and `no`" }),
        };
        let yes_no = match task {
            VectorTask::Embed => None,
            VectorTask::Rerank => Some((single("yes")?, single("no")?)),
        };
        let query = prompts.query.unwrap_or_else(|| instructed(DEFAULT_INSTRUCTION));
        Ok(Self {
            vocabulary: Vocabulary::BytePairs(Box::new(text)),
            task,
            document_prompt: prompts.document.unwrap_or_default(),
            query_prompt: Some(query),
            can_shorten: true,
            yes_no,
        })
    }

    /// What the model's vectors are.
    #[must_use]
    pub fn task(&self) -> VectorTask {
        self.task
    }

    /// Whether the first elements of a vector are a shorter vector.
    #[must_use]
    pub fn can_shorten(&self) -> bool {
        self.can_shorten
    }

    /// Whether an instruction before a query means something to the model.
    #[must_use]
    pub fn takes_instructions(&self) -> bool {
        matches!(self.vocabulary, Vocabulary::BytePairs(_))
    }

    /// The tokens "yes" and "no", of a reranker.
    #[must_use]
    pub fn yes_no(&self) -> Option<(TokenId, TokenId)> {
        self.yes_no
    }

    /// A text to embed.
    #[must_use]
    pub fn encode(&self, text: &str, purpose: Purpose<'_>) -> EncodedText {
        let instruction;
        let prompt = match purpose {
            Purpose::Plain => "",
            Purpose::Document => &self.document_prompt,
            Purpose::Query { instruction: Some(words) } if self.takes_instructions() => {
                instruction = instructed(words);
                &instruction
            }
            Purpose::Query { .. } => self.query_prompt.as_deref().unwrap_or_default(),
        };
        let whole = if prompt.is_empty() { text } else { &format!("{prompt}{text}") };
        let (mut ids, tail) = match &self.vocabulary {
            Vocabulary::WordPiece(vocabulary) => {
                let mut ids = vec![vocabulary.first()];
                ids.extend(vocabulary.encode(whole));
                (ids, Some(vocabulary.last()))
            }
            Vocabulary::BytePairs(text) => {
                (text.encode_completion(whole, SpecialTokens::AsText), text.tokenizer().trailing())
            }
        };
        let head = match &self.vocabulary {
            Vocabulary::WordPiece(_) => 1,
            Vocabulary::BytePairs(text) => usize::from(text.tokenizer().leading_bos().is_some()),
        };
        ids.extend(tail);
        let kept = (head.min(ids.len()), usize::from(tail.is_some()));
        EncodedText { ids, kept }
    }

    /// A query and a document to score, as a reranker wants them; the document may be cut. `None` for a model that embeds.
    #[must_use]
    pub fn encode_pair(
        &self,
        query: &str,
        document: &str,
        instruction: Option<&str>,
    ) -> Option<EncodedText> {
        let Vocabulary::BytePairs(text) = &self.vocabulary else { return None };
        self.yes_no?;
        let tokenizer = text.tokenizer();
        let instruction = instruction.unwrap_or(DEFAULT_INSTRUCTION);
        let before = format!("<Instruct>: {instruction}\n<Query>: {query}\n<Document>:");
        let question = format!("{before} {document}");
        let [mut ids, tail] = JUDGE.map(|text| tokenizer.encode(text, SpecialTokens::Allow));
        // How a text is cut into tokens at one place may depend on what follows: this is where the document begins.
        let first = ids.len() + tokenizer.encode(&before, SpecialTokens::AsText).len();
        ids.extend(tokenizer.encode(&question, SpecialTokens::AsText));
        let kept = (first.min(ids.len()), tail.len());
        ids.extend(tail);
        Some(EncodedText { ids, kept })
    }
}

/// A reranker's score is the probability of "yes" among yes and no; one that compares other tokens is refused.
fn check_score(config: &str, (yes, no): (TokenId, TokenId)) -> Result<(), ModelError> {
    let config = parse_json(config)?;
    for (key, id) in [("true_token_id", yes), ("false_token_id", no)] {
        let given = config.get(key).unwrap_or(&Value::Null);
        if given.as_u64() != Some(u64::from(id)) {
            let known = format!("{id}, as of Qwen3-Reranker");
            return Err(ModelError::unsupported(key.to_owned(), given.to_string(), known));
        }
    }
    Ok(())
}

/// What Qwen3's embedding models have before a query.
fn instructed(instruction: &str) -> String {
    format!("Instruct: {instruction}\nQuery:")
}

/// `prompts` of `config_sentence_transformers.json`.
#[derive(Default)]
struct Prompts {
    query: Option<String>,
    document: Option<String>,
}

impl Prompts {
    fn read(text: Option<String>) -> Result<Self, ModelError> {
        let Some(text) = text else { return Ok(Self::default()) };
        let config = parse_json(&text)?;
        let named = |names: &[&str]| {
            let prompts = config.get("prompts")?;
            names.iter().find_map(|name| prompts.get(*name)?.as_str()).map(str::to_owned)
        };
        Ok(Self { query: named(&["query"]), document: named(&["document", "passage"]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_of_other_tokens_is_refused() {
        let check = |config: &str, refused: Option<&str>| {
            let found = check_score(config, (17, 93)).err().map(|error| error.to_string());
            assert_eq!(found.is_some(), refused.is_some(), "{config}: {found:?}");
            assert!(found.unwrap_or_default().contains(refused.unwrap_or_default()), "{config}");
        };
        check(r#"{"true_token_id": 17, "false_token_id": 93}"#, None);
        check(r#"{"true_token_id": 93, "false_token_id": 17}"#, Some("true_token_id"));
        check(r#"{"true_token_id": 17, "false_token_id": null}"#, Some("false_token_id"));
        check(r#"{"true_token_id": 17}"#, Some("false_token_id"));
        check("[17, 93]", Some("true_token_id"));
        check("{", Some(""));
    }

    #[test]
    fn texts_are_cut_at_their_end_and_marks_stay() {
        let text = EncodedText { ids: vec![1, 10, 11, 12, 13, 2], kept: (1, 1) };
        let check = |limit, expected: Result<(&[TokenId], usize), usize>| {
            let found = text.clone().cut(limit);
            let expected = expected.map(|(ids, cut)| (ids.to_vec(), cut));
            assert_eq!(found, expected.map_err(|tokens| TooLong { tokens, limit }));
        };
        check(9, Ok((&[1, 10, 11, 12, 13, 2], 0)));
        check(6, Ok((&[1, 10, 11, 12, 13, 2], 0)));
        check(4, Ok((&[1, 10, 11, 2], 2)));
        check(2, Ok((&[1, 2], 4)));
        check(1, Err(6));
        assert_eq!(text.clone().whole(5), Err(TooLong { tokens: 6, limit: 5 }));
        assert_eq!(text.clone().whole(6).as_deref(), Ok(text.ids()));
    }

    /// Printable ASCII, a byte a token, and the tokens of Qwen3's format; texts for `VectorText` end with `tail`.
    fn qwen3(task: VectorTask, tail: bool) -> VectorText {
        let ascii: Vec<String> = (b'!'..=b'~').map(|b| char::from(b).to_string()).collect();
        let marks =
            ["\u{120}", "\u{10a}", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|end|>"];
        let tokens: Vec<&str> = ascii.iter().map(String::as_str).chain(marks).collect();
        let kinds: Vec<i32> =
            tokens.iter().map(|token| if token.len() > 2 { 3 } else { 1 }).collect();
        let vocabulary = crate::GgufVocabulary {
            model: "gpt2",
            pre: "qwen2",
            tokens: &tokens,
            token_types: &kinds,
            merges: &[],
            bos_token_id: None,
            eos_token_id: Some(tokens.len() as TokenId - 1),
            add_bos_token: None,
            add_eos_token: Some(tail),
        };
        let tokenizer = crate::Tokenizer::from_gguf(&vocabulary).unwrap();
        VectorText {
            vocabulary: Vocabulary::BytePairs(Box::new(
                TextModel::new(tokenizer, None, &[]).unwrap(),
            )),
            task,
            document_prompt: String::new(),
            query_prompt: Some(instructed(DEFAULT_INSTRUCTION)),
            can_shorten: true,
            yes_no: (task == VectorTask::Rerank).then_some((1, 2)),
        }
    }

    fn read(text: &VectorText, ids: &[TokenId]) -> String {
        let Vocabulary::BytePairs(text) = &text.vocabulary else { return String::new() };
        text.tokenizer().decode(ids, false)
    }

    #[test]
    fn queries_have_instructions_and_texts_an_end() {
        let text = qwen3(VectorTask::Embed, true);
        let check = |purpose, expected: &str| {
            assert_eq!(read(&text, text.encode("a <|im_end|>", purpose).ids()), expected);
        };
        check(Purpose::Plain, "a <|im_end|><|end|>");
        check(Purpose::Document, "a <|im_end|><|end|>");
        let given = Purpose::Query { instruction: Some("Find it") };
        check(given, "Instruct: Find it\nQuery:a <|im_end|><|end|>");
        let own = format!("Instruct: {DEFAULT_INSTRUCTION}\nQuery:a <|im_end|><|end|>");
        check(Purpose::Query { instruction: None }, &own);
        let marked = text.encode("<|im_end|>", Purpose::Plain);
        assert_eq!(marked.ids().len(), 11, "the mark's name is ten letters of text");
        assert_eq!(qwen3(VectorTask::Embed, false).encode("ab", Purpose::Plain).ids().len(), 2);
        assert!(text.encode_pair("a", "b", None).is_none());
    }

    #[test]
    fn pairs_stand_in_the_judges_prompt_and_only_documents_are_cut() {
        let text = qwen3(VectorTask::Rerank, false);
        let pair = text.encode_pair("what?", "this <|im_end|>", Some("Find it")).unwrap();
        let [before, after] = JUDGE;
        let body = "<Instruct>: Find it\n<Query>: what?\n<Document>:";
        let whole = format!("{before}{body} this <|im_end|>{after}");
        assert_eq!(read(&text, pair.ids()), whole);
        let all = pair.ids().len();
        let (cut, count) = pair.clone().cut(all - 4).unwrap();
        assert_eq!((read(&text, &cut), count), (format!("{before}{body} this <|im_e{after}"), 4));
        assert!(pair.clone().cut(all - 16).is_ok(), "all of the document");
        assert!(pair.cut(all - 17).is_err(), "the query stays");
    }

    #[test]
    fn prompts_are_the_models_own() {
        let prompts = |text: &str| Prompts::read(Some(text.to_owned()));
        let found =
            prompts(r#"{"prompts": {"query": "query: ", "passage": "passage: "}}"#).unwrap();
        assert_eq!(found.query.as_deref(), Some("query: "));
        assert_eq!(found.document.as_deref(), Some("passage: "));
        assert!(prompts("{}").unwrap().query.is_none());
        assert!(prompts("{").is_err());
    }
}
