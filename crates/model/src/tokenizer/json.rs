//! A tokenizer from a `tokenizer.json`, as published beside safetensors files.
//!
//! Only what the supported vocabularies use is read; every other value of a field that would change the ids is refused.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::bpe::Merges;
use super::vocab::{ByteAlphabet, MAX_TOKENS, TokenKind, Vocab};
use super::{Parts, PreTokenizer, Tokenizer, TokenizerError};
use crate::TokenId;

/// Larger than any published file by an order of magnitude.
const MAX_JSON_BYTES: usize = 256 << 20;

/// Qwen2 and its successors.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Llama 3.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const SUPPORTED_PRE: &str = "the patterns of Qwen2, Llama 3, GPT-2 and SmolLM with `ByteLevel`";

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Option<Vec<AddedToken>>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    id: TokenId,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, TokenId>,
    merges: Vec<Merge>,
}

/// Old files join the two tokens with a space, new ones write a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair(String, String),
}

impl Tokenizer {
    /// Builds the tokenizer of a `tokenizer.json`. `config` is the text of `tokenizer_config.json` where there is one:
    /// it names the tokens that begin and end a text.
    ///
    /// # Errors
    /// [`TokenizerError`] names what does not parse, is not supported, missing or out of range.
    pub fn from_json(tokenizer: &str, config: Option<&str>) -> Result<Self, TokenizerError> {
        for text in [Some(tokenizer), config].into_iter().flatten() {
            if text.len() > MAX_JSON_BYTES {
                let (count, limit) = (text.len(), MAX_JSON_BYTES);
                return Err(TokenizerError::TooLarge { what: "bytes of JSON", count, limit });
            }
        }
        let json_error = |error: serde_json::Error| TokenizerError::Json(error.to_string());
        let file: File = serde_json::from_str(tokenizer).map_err(json_error)?;
        let config: Value =
            config.map_or(Ok(Value::Null), serde_json::from_str).map_err(json_error)?;
        let normalize_nfc = normalizer(&file.normalizer)?;
        let pre = pre_tokenizer(&file.pre_tokenizer)?;
        check_model(&file.model)?;
        let added = file.added_tokens.unwrap_or_default();
        check_added(&added, normalize_nfc)?;
        let alphabet = ByteAlphabet::new();
        let vocab = vocabulary(&alphabet, &file.model.vocab, &added)?;
        let pairs = file.model.merges.iter().enumerate().map(|(rank, m)| merge(&alphabet, rank, m));
        let merges = Merges::new(&vocab, pairs)?;
        let id_of = |token: Option<&str>| {
            let token = token?;
            let added = added.iter().find(|t| t.content == token).map(|t| t.id);
            added.or_else(|| file.model.vocab.get(token).copied())
        };
        let (template_bos, template_tail) = post_processor(&file.post_processor)?;
        let bos = id_of(template_bos.as_deref().or(named(&config, "bos_token")));
        let asks_for_bos = config.get("add_bos_token").and_then(Value::as_bool).unwrap_or(false);
        Self::from_parts(Parts {
            normalize_nfc,
            ignore_merges: file.model.ignore_merges,
            pre,
            bos,
            eos: id_of(named(&config, "eos_token")),
            add_bos: template_bos.is_some() || asks_for_bos,
            tail: id_of(template_tail.as_deref()),
            added: added.iter().map(|token| (token.id, token.content.clone())).collect(),
            vocab,
            merges,
        })
    }
}

/// A token in `tokenizer_config.json` is a string or an object with `content`.
fn named<'c>(config: &'c Value, key: &str) -> Option<&'c str> {
    let value = config.get(key)?;
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn unsupported(what: &'static str, found: &Value, supported: &'static str) -> TokenizerError {
    let found = found.to_string();
    let short: String = found.chars().take(400).collect();
    TokenizerError::Unsupported { what, found: format!("`{short}`"), supported }
}

/// Whether text is brought to NFC.
fn normalizer(value: &Value) -> Result<bool, TokenizerError> {
    match (value, value.get("type").and_then(Value::as_str)) {
        (Value::Null, _) => Ok(false),
        (_, Some("NFC")) => Ok(true),
        _ => Err(unsupported("normalizer", value, "none, `NFC`")),
    }
}

fn pre_tokenizer(value: &Value) -> Result<PreTokenizer, TokenizerError> {
    let refuse = || unsupported("pre-tokenizer", value, SUPPORTED_PRE);
    let steps = match value.get("pretokenizers").and_then(Value::as_array) {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(value),
    };
    let kind = |step: &Value| step.get("type").and_then(Value::as_str).unwrap_or("").to_owned();
    let flag = |step: &Value, key: &str, default| {
        step.get(key).and_then(Value::as_bool).unwrap_or(default)
    };
    let byte_level = |step: &Value, use_regex| {
        kind(step) == "ByteLevel"
            && !flag(step, "add_prefix_space", true)
            && flag(step, "use_regex", true) == use_regex
    };
    match steps {
        [only] if byte_level(only, true) => Ok(PreTokenizer::Gpt2),
        [first, last] if kind(first) == "Digits" && byte_level(last, true) => {
            if flag(first, "individual_digits", false) {
                Ok(PreTokenizer::SmolLm)
            } else {
                Err(refuse())
            }
        }
        [first, last] if kind(first) == "Split" && byte_level(last, false) => {
            let isolated = first.get("behavior").and_then(Value::as_str) == Some("Isolated");
            let pattern = first.get("pattern").and_then(|p| p.get("Regex")).and_then(Value::as_str);
            match pattern.filter(|_| isolated && !flag(first, "invert", false)) {
                Some(QWEN2) => Ok(PreTokenizer::Qwen2),
                Some(LLAMA3) => Ok(PreTokenizer::Llama3),
                _ => Err(refuse()),
            }
        }
        _ => Err(refuse()),
    }
}

/// Texts of tokens.
type Ends = (Option<String>, Option<String>);

/// The tokens that the post-processor puts before and behind every text, if any.
fn post_processor(value: &Value) -> Result<Ends, TokenizerError> {
    let refuse = || {
        unsupported(
            "post-processor",
            value,
            "none, `ByteLevel`, a template with at most one token at each end of the text",
        )
    };
    let (mut bos, mut tail) = (None, None);
    let steps = match value.get("processors").and_then(Value::as_array) {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(value),
    };
    for step in steps {
        match (step, step.get("type").and_then(Value::as_str)) {
            (Value::Null, _) | (_, Some("ByteLevel")) => {}
            (_, Some("TemplateProcessing")) => {
                let single = step.get("single").and_then(Value::as_array).ok_or_else(refuse)?;
                let special =
                    |item: &Value| Some(item.get("SpecialToken")?.get("id")?.as_str()?.to_owned());
                let is_text = |item: &Value| item.get("Sequence").is_some();
                let (first, last) = match single.as_slice() {
                    [text] if is_text(text) => (None, None),
                    [first, text] if is_text(text) => (Some(first), None),
                    [text, last] if is_text(text) => (None, Some(last)),
                    [first, text, last] if is_text(text) => (Some(first), Some(last)),
                    _ => return Err(refuse()),
                };
                let token = |item: Option<&Value>| {
                    item.map(|item| special(item).ok_or_else(refuse)).transpose()
                };
                (bos, tail) = (token(first)?, token(last)?);
            }
            _ => return Err(refuse()),
        }
    }
    Ok((bos, tail))
}

fn check_model(model: &Model) -> Result<(), TokenizerError> {
    let refuse = |what, found: &str| {
        let found = Value::String(found.to_owned());
        Err(unsupported(what, &found, "byte-level BPE without dropout, affixes or byte fallback"))
    };
    if let Some(kind) = model.kind.as_deref().filter(|kind| *kind != "BPE") {
        return refuse("model", kind);
    }
    if model.dropout.is_some_and(|p| p != 0.0) {
        return refuse("model's dropout", "set");
    }
    for affix in [&model.continuing_subword_prefix, &model.end_of_word_suffix].into_iter().flatten()
    {
        if !affix.is_empty() {
            return refuse("model's affix", affix);
        }
    }
    if model.byte_fallback {
        return refuse("model's byte_fallback", "true");
    }
    Ok(())
}

fn check_added(added: &[AddedToken], normalize_nfc: bool) -> Result<(), TokenizerError> {
    for token in added {
        if token.single_word || token.lstrip || token.rstrip || (token.normalized && normalize_nfc)
        {
            return Err(TokenizerError::Unsupported {
                what: "added token",
                found: format!(
                    "`{}` with single_word, lstrip, rstrip or normalized",
                    token.content
                ),
                supported: "added tokens that match exactly",
            });
        }
    }
    Ok(())
}

fn vocabulary(
    alphabet: &ByteAlphabet,
    tokens: &HashMap<String, TokenId>,
    added: &[AddedToken],
) -> Result<Vocab, TokenizerError> {
    let max_id = tokens.values().chain(added.iter().map(|token| &token.id)).max();
    let len = max_id.map_or(0, |id| *id as usize + 1);
    if len > MAX_TOKENS {
        return Err(TokenizerError::TooLarge { what: "tokens", count: len, limit: MAX_TOKENS });
    }
    let mut by_id: Vec<Option<(&str, TokenKind)>> = vec![None; len];
    let ordinary = tokens.iter().map(|(text, id)| (*id, text.as_str(), TokenKind::Normal));
    let kind = |special| if special { TokenKind::Control } else { TokenKind::Added };
    let added = added.iter().map(|token| (token.id, token.content.as_str(), kind(token.special)));
    for (id, text, kind) in ordinary.chain(added) {
        if let Some(slot) = by_id.get_mut(id as usize) {
            *slot = Some((text, kind));
        }
    }
    let mut vocab = Vocab::new(len)?;
    for token in by_id {
        match token {
            Some((text, TokenKind::Normal)) => {
                let bytes = alphabet.decode(text);
                vocab.push(
                    bytes.as_deref().unwrap_or(text.as_bytes()),
                    TokenKind::Normal,
                    bytes.is_some(),
                )?;
            }
            Some((text, kind)) => vocab.push(text.as_bytes(), kind, false)?,
            None => vocab.push(&[], TokenKind::Unused, false)?,
        }
    }
    Ok(vocab)
}

fn merge(
    alphabet: &ByteAlphabet,
    rank: usize,
    merge: &Merge,
) -> Result<(Vec<u8>, Vec<u8>), TokenizerError> {
    match merge {
        Merge::Joined(joined) => super::gguf::merge(alphabet, rank, joined),
        Merge::Pair(left, right) => {
            alphabet.decode(left).zip(alphabet.decode(right)).ok_or_else(|| {
                TokenizerError::MalformedMerge {
                    rank,
                    merge: format!("{left} {right}").chars().take(64).collect(),
                }
            })
        }
    }
}
