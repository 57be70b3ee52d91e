//! Text to token ids for encoders: BERT's normaliser and pre-tokeniser, and WordPiece (Schuster and Nakajima 2012).
//!
//! Not a general tokenizer: another normaliser, pre-tokeniser or template is refused with an error that names it.
//! Invariants: ids equal those of the reference package `tokenizers`, except that the names of control tokens are plain
//! text here; the time for a text is linear in its length.

use hashbrown::HashMap;
use regex_syntax::hir::{Class, HirKind};
use serde::Deserialize;
use serde_json::Value;
use unicode_normalization::UnicodeNormalization;

use crate::TokenId;
use crate::tokenizer::TokenizerError;

/// Larger than any published file by two orders of magnitude.
const MAX_JSON_BYTES: usize = 128 << 20;
/// More tokens than any published vocabulary of this kind has.
const MAX_TOKENS: usize = 4_000_000;
/// Characters of the longest word that is cut into tokens; files say 100.
const MAX_WORD_CHARS: usize = 1000;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    unk_token: String,
    continuing_subword_prefix: String,
    max_input_chars_per_word: usize,
    vocab: std::collections::HashMap<String, TokenId>,
}

/// What the normaliser does to characters.
#[derive(Clone, Copy, Debug)]
struct Normalizer {
    clean_text: bool,
    handle_chinese_chars: bool,
    strip_accents: bool,
    lowercase: bool,
}

/// A WordPiece vocabulary.
pub struct WordPiece {
    normalizer: Normalizer,
    classes: Classes,
    /// Tokens that begin a word.
    starts: HashMap<Box<str>, TokenId>,
    /// Tokens that go on with one, without their prefix.
    continuations: HashMap<Box<str>, TokenId>,
    /// Bytes of the longest token.
    longest: usize,
    max_word_chars: usize,
    unknown: TokenId,
    first: TokenId,
    last: TokenId,
    vocab_size: usize,
}

impl WordPiece {
    /// Builds the tokenizer of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError`] names what does not parse, is not supported, missing or out of range.
    pub fn from_json(text: &str) -> Result<Self, TokenizerError> {
        if text.len() > MAX_JSON_BYTES {
            let (count, limit) = (text.len(), MAX_JSON_BYTES);
            return Err(TokenizerError::TooLarge { what: "bytes of JSON", count, limit });
        }
        let file: File =
            serde_json::from_str(text).map_err(|error| TokenizerError::Json(error.to_string()))?;
        let model = file.model;
        if model.kind.as_deref().is_some_and(|kind| kind != "WordPiece") {
            let kind = Value::String(model.kind.unwrap_or_default());
            return Err(unsupported("model", &kind, "`WordPiece`"));
        }
        let pre = file.pre_tokenizer.get("type").and_then(Value::as_str);
        if pre != Some("BertPreTokenizer") {
            return Err(unsupported("pre-tokenizer", &file.pre_tokenizer, "`BertPreTokenizer`"));
        }
        let vocab_size = model.vocab.values().max().map_or(0, |id| *id as usize + 1);
        if vocab_size > MAX_TOKENS {
            let (count, limit) = (vocab_size, MAX_TOKENS);
            return Err(TokenizerError::TooLarge { what: "tokens", count, limit });
        }
        let (first, last) = ends(&file.post_processor)?;
        let id = |text: &str, what| {
            model.vocab.get(text).copied().ok_or(TokenizerError::Missing { what })
        };
        let (unknown, first, last) = (
            id(&model.unk_token, "token for unknown words")?,
            id(&first, "token that begins a text")?,
            id(&last, "token that ends a text")?,
        );
        let (mut starts, mut continuations) = (HashMap::new(), HashMap::new());
        for (text, id) in &model.vocab {
            starts.insert(text.as_str().into(), *id);
            if let Some(rest) = text.strip_prefix(&model.continuing_subword_prefix) {
                continuations.insert(rest.into(), *id);
            }
        }
        Ok(Self {
            normalizer: normalizer(&file.normalizer)?,
            classes: Classes::new().ok_or(TokenizerError::NoUnicodeTables)?,
            longest: model.vocab.keys().map(String::len).max().unwrap_or(0),
            starts,
            continuations,
            max_word_chars: model.max_input_chars_per_word.min(MAX_WORD_CHARS),
            unknown,
            first,
            last,
            vocab_size,
        })
    }

    /// The ids of a text, without the marks at its ends.
    #[must_use]
    pub fn encode(&self, text: &str) -> Vec<TokenId> {
        let text = self.normalise(text);
        let mut ids = Vec::with_capacity(text.len() / 4 + 2);
        let is_mark = |c: char| self.classes.is_punctuation(c);
        for word in text.split(char::is_whitespace) {
            let mut from = 0;
            for (at, mark) in word.match_indices(is_mark) {
                self.push_word(word.get(from..at).unwrap_or_default(), &mut ids);
                self.push_word(mark, &mut ids);
                from = at + mark.len();
            }
            self.push_word(word.get(from..).unwrap_or_default(), &mut ids);
        }
        ids
    }

    /// The longest token at each place, or the unknown word.
    fn push_word(&self, word: &str, ids: &mut Vec<TokenId>) {
        if word.is_empty() {
            return;
        }
        let before = ids.len();
        let too_long =
            word.len() > self.max_word_chars && word.chars().count() > self.max_word_chars;
        let mut rest = if too_long { None } else { Some(word) };
        let mut table = &self.starts;
        while let Some(text) = rest.filter(|text| !text.is_empty()) {
            rest = self.longest_token(table, text).map(|(id, len)| {
                ids.push(id);
                text.get(len..).unwrap_or_default()
            });
            table = &self.continuations;
        }
        if rest.is_none() {
            ids.truncate(before);
            ids.push(self.unknown);
        }
    }

    /// The longest token of the table that `text` begins with, and its bytes.
    fn longest_token(
        &self,
        table: &HashMap<Box<str>, TokenId>,
        text: &str,
    ) -> Option<(TokenId, usize)> {
        let mut end = text.len().min(self.longest);
        while end > 0 {
            if let Some(id) = text.get(..end).and_then(|part| table.get(part)) {
                return Some((*id, end));
            }
            end -= 1;
        }
        None
    }

    fn normalise(&self, text: &str) -> String {
        let Normalizer { clean_text, handle_chinese_chars, strip_accents, lowercase } =
            self.normalizer;
        let mut clean = String::with_capacity(text.len() + text.len() / 8);
        for c in text.chars() {
            match c {
                c if clean_text && self.classes.is_removed(c) => {}
                c if clean_text && c.is_whitespace() => clean.push(' '),
                c if handle_chinese_chars && is_chinese(c) => clean.extend([' ', c, ' ']),
                c => clean.push(c),
            }
        }
        if strip_accents && !clean.is_ascii() {
            clean = clean.nfd().filter(|c| !self.classes.is_accent(*c)).collect();
        }
        // Character by character, as the reference does: no final sigma.
        if lowercase { clean.chars().flat_map(char::to_lowercase).collect() } else { clean }
    }

    /// The token before every text.
    #[must_use]
    pub fn first(&self) -> TokenId {
        self.first
    }

    /// The token behind every text.
    #[must_use]
    pub fn last(&self) -> TokenId {
        self.last
    }

    /// Ids are below this.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

impl std::fmt::Debug for WordPiece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WordPiece").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

fn unsupported(what: &'static str, found: &Value, supported: &'static str) -> TokenizerError {
    let short: String = found.to_string().chars().take(400).collect();
    TokenizerError::Unsupported { what, found: format!("`{short}`"), supported }
}

fn normalizer(value: &Value) -> Result<Normalizer, TokenizerError> {
    if value.get("type").and_then(Value::as_str) != Some("BertNormalizer") {
        return Err(unsupported("normalizer", value, "`BertNormalizer`"));
    }
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let lowercase = flag("lowercase").unwrap_or(true);
    Ok(Normalizer {
        clean_text: flag("clean_text").unwrap_or(true),
        handle_chinese_chars: flag("handle_chinese_chars").unwrap_or(true),
        strip_accents: flag("strip_accents").unwrap_or(lowercase),
        lowercase,
    })
}

/// The tokens that the post-processor puts before and behind one text.
fn ends(value: &Value) -> Result<(String, String), TokenizerError> {
    let refuse =
        || unsupported("post-processor", value, "a template with one token at each end of a text");
    let owned = |text: Option<&str>| text.map(str::to_owned).ok_or_else(refuse);
    match value.get("type").and_then(Value::as_str) {
        Some("TemplateProcessing") => {
            let single = value.get("single").and_then(Value::as_array).ok_or_else(refuse)?;
            let special = |item: &Value| {
                owned(item.get("SpecialToken").and_then(|s| s.get("id")).and_then(Value::as_str))
            };
            match single.as_slice() {
                [first, text, last] if text.get("Sequence").is_some() => {
                    Ok((special(first)?, special(last)?))
                }
                _ => Err(refuse()),
            }
        }
        Some("BertProcessing") => {
            let token = |key: &str| owned(value.get(key).and_then(|pair| pair.get(0)?.as_str()));
            Ok((token("cls")?, token("sep")?))
        }
        _ => Err(refuse()),
    }
}

/// Ideographs that the reference sets apart as words.
fn is_chinese(c: char) -> bool {
    matches!(
        c as u32,
        0x4E00..=0x9FFF
            | 0x3400..=0x4DBF
            | 0x2_0000..=0x2_A6DF
            | 0x2_A700..=0x2_B73F
            | 0x2_B740..=0x2_B81F
            | 0x2_B920..=0x2_CEAF
            | 0xF900..=0xFAFF
            | 0x2_F800..=0x2_FA1F
    )
}

/// General categories, as sorted ranges.
struct Classes {
    punctuation: Vec<(char, char)>,
    accents: Vec<(char, char)>,
    /// Control characters, formats, private use.
    other: Vec<(char, char)>,
}

impl Classes {
    /// `None` only if `regex-syntax` was built without its category tables.
    fn new() -> Option<Self> {
        Some(Self {
            punctuation: ranges(r"\p{P}")?,
            accents: ranges(r"\p{Mn}")?,
            other: ranges(r"[\p{Cc}\p{Cf}\p{Co}]")?,
        })
    }

    fn is_punctuation(&self, c: char) -> bool {
        c.is_ascii_punctuation() || (!c.is_ascii() && holds(&self.punctuation, c))
    }

    fn is_accent(&self, c: char) -> bool {
        !c.is_ascii() && holds(&self.accents, c)
    }

    fn is_removed(&self, c: char) -> bool {
        match c {
            '\t' | '\n' | '\r' | ' '..='~' => false,
            '\0' | '\u{fffd}' => true,
            c => holds(&self.other, c),
        }
    }
}

fn ranges(pattern: &str) -> Option<Vec<(char, char)>> {
    let hir = regex_syntax::parse(pattern).ok()?;
    let HirKind::Class(Class::Unicode(class)) = hir.kind() else { return None };
    Some(class.ranges().iter().map(|range| (range.start(), range.end())).collect())
}

fn holds(ranges: &[(char, char)], c: char) -> bool {
    ranges
        .binary_search_by(|&(first, last)| {
            if last < c {
                std::cmp::Ordering::Less
            } else if first > c {
                std::cmp::Ordering::Greater
            } else {
                std::cmp::Ordering::Equal
            }
        })
        .is_ok()
}
