//! A tokenizer from the metadata of a GGUF file.
//!
//! Not the reader of GGUF: the values are handed in, by the names of their keys.

use super::bpe::Merges;
use super::vocab::{ByteAlphabet, TokenKind, Vocab};
use super::{Parts, PreTokenizer, Tokenizer, TokenizerError};
use crate::TokenId;

/// The `tokenizer.ggml.*` values of a GGUF file, in the file's own encoding.
#[derive(Clone, Copy, Debug)]
pub struct GgufVocabulary<'a> {
    /// `tokenizer.ggml.model`: `gpt2` is byte-level BPE.
    pub model: &'a str,
    /// `tokenizer.ggml.pre`: names the pre-tokeniser.
    pub pre: &'a str,
    /// `tokenizer.ggml.tokens`, in GPT-2's byte alphabet.
    pub tokens: &'a [&'a str],
    /// `tokenizer.ggml.token_type`, one for each token; empty means that all are ordinary.
    pub token_types: &'a [i32],
    /// `tokenizer.ggml.merges`: two tokens with a space between.
    pub merges: &'a [&'a str],
    /// `tokenizer.ggml.bos_token_id`
    pub bos_token_id: Option<TokenId>,
    /// `tokenizer.ggml.eos_token_id`
    pub eos_token_id: Option<TokenId>,
    /// `tokenizer.ggml.add_bos_token`
    pub add_bos_token: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`
    pub add_eos_token: Option<bool>,
}

impl Tokenizer {
    /// Builds the tokenizer that the metadata of a GGUF file describes.
    ///
    /// # Errors
    /// [`TokenizerError`] names what is not supported, missing or out of range.
    pub fn from_gguf(source: &GgufVocabulary<'_>) -> Result<Self, TokenizerError> {
        let unsupported = |what, found: &str, supported| {
            Err(TokenizerError::Unsupported { what, found: format!("`{found}`"), supported })
        };
        if source.model != "gpt2" {
            return unsupported("model", source.model, "`gpt2` (byte-level BPE)");
        }
        let Some(pre) = PreTokenizer::from_gguf_name(source.pre) else {
            return unsupported(
                "pre-tokenizer",
                source.pre,
                "`qwen2`, `llama-bpe`, `smollm`, `gpt-2`",
            );
        };
        if source.tokens.is_empty() {
            return Err(TokenizerError::Missing { what: "`tokenizer.ggml.tokens`" });
        }
        let alphabet = ByteAlphabet::new();
        let mut vocab = Vocab::new(source.tokens.len())?;
        let mut added = Vec::new();
        for (id, token) in (0..).zip(source.tokens) {
            let kind = kind(source.token_types.get(id as usize).copied());
            match kind {
                TokenKind::Normal => {
                    // A token outside of the alphabet cannot come from text; it decodes to itself.
                    let bytes = alphabet.decode(token);
                    vocab.push(
                        bytes.as_deref().unwrap_or(token.as_bytes()),
                        kind,
                        bytes.is_some(),
                    )?;
                }
                TokenKind::Control | TokenKind::Added => {
                    vocab.push(token.as_bytes(), kind, false)?;
                    added.push((id, (*token).to_owned()));
                }
                TokenKind::Unused => vocab.push(token.as_bytes(), kind, false)?,
            }
        }
        let merges = Merges::new(
            &vocab,
            source.merges.iter().enumerate().map(|(rank, m)| merge(&alphabet, rank, m)),
        )?;
        // llama.cpp's defaults for files of Llama 3 that do not say.
        let llama3 = pre == PreTokenizer::Llama3;
        Self::from_parts(Parts {
            vocab,
            merges,
            added,
            pre,
            normalize_nfc: pre == PreTokenizer::Qwen2,
            ignore_merges: llama3,
            bos: source.bos_token_id,
            eos: source.eos_token_id,
            add_bos: source.add_bos_token.unwrap_or(llama3),
            tail: source.eos_token_id.filter(|_| source.add_eos_token == Some(true)),
        })
    }
}

/// GGML's `llama_token_type`: 3 is control, 4 user-defined, 5 unused; unknown (2) is a control token in BPE files.
fn kind(token_type: Option<i32>) -> TokenKind {
    match token_type {
        Some(2 | 3) => TokenKind::Control,
        Some(4) => TokenKind::Added,
        Some(5) => TokenKind::Unused,
        _ => TokenKind::Normal,
    }
}

/// Splits `left right`. A token of the byte alphabet holds no space.
pub(super) fn merge(
    alphabet: &ByteAlphabet,
    rank: usize,
    merge: &str,
) -> Result<(Vec<u8>, Vec<u8>), TokenizerError> {
    let parts = merge.split_once(' ').and_then(|(a, b)| alphabet.decode(a).zip(alphabet.decode(b)));
    parts.ok_or_else(|| TokenizerError::MalformedMerge {
        rank,
        merge: merge.chars().take(64).collect(),
    })
}
