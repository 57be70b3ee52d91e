//! A tokenizer's vocabulary as llguidance wants it: a trie of the tokens' bytes, and the exact tokenisation of a text
//! that is forced.
//!
//! Control and added tokens stand behind a byte that no text has, so that no text of an answer is ever one of them.

use std::sync::Arc;

use toktrie::{TokRxInfo, TokTrie, TokenizerEnv};

use crate::TokenId;
use crate::text_model::TextModel;
use crate::tokenizer::{SpecialTokens, TokenKind, Tokenizer};

/// What llguidance knows of a model.
pub(super) struct Vocabulary {
    text: Arc<TextModel>,
    trie: TokTrie,
}

impl Vocabulary {
    /// `None` where no token ends an answer, or nothing but such tokens is left.
    pub(super) fn new(text: Arc<TextModel>) -> Option<Self> {
        let tokenizer = text.tokenizer();
        let ends = end_tokens(&text);
        let first = *ends.first()?;
        let words: Vec<Vec<u8>> =
            (0..tokenizer.vocab_size()).map(|id| bytes(tokenizer, id as TokenId)).collect();
        let size = u32::try_from(words.len()).ok()?;
        let trie = TokTrie::from(&TokRxInfo::new(size, first), &words).with_eos_tokens(&ends);
        Some(Self { trie, text })
    }
}

/// The tokens that end an answer, the one that the model itself would take first.
pub(super) fn end_tokens(text: &TextModel) -> Vec<TokenId> {
    let first = text.tokenizer().eos();
    let others = text.end_of_turn_ids().iter().copied().filter(|&id| Some(id) != first);
    first.into_iter().chain(others).collect()
}

fn bytes(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or(&[]);
    match tokenizer.token_kind(id) {
        Some(TokenKind::Normal) => bytes.to_vec(),
        Some(TokenKind::Control | TokenKind::Added) => {
            [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
        }
        Some(TokenKind::Unused) | None => Vec::new(),
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let encode = |text: &str| self.text.tokenizer().encode(text, SpecialTokens::AsText);
        self.trie.tokenize_with_greedy_fallback(bytes, encode)
    }
}
