//! What an answer must look like: a compiled grammar, its state after the tokens of one answer, and the tokens it allows
//! next.
//!
//! Here is the contract that an engine needs ([`Grammar`], [`GrammarState`]: tokens only) and, in `compiler`, the one
//! implementation, over llguidance: the exception by which something beside the text side knows the vocabulary's bytes.
//! Not the wire's fields; not the sampler.
//!
//! Invariants: what a state allows is a function of its grammar and of the tokens accepted, so that it does not matter
//! who shares the batch, whether tokens were guessed, or whether the forced ones were sampled. It fails closed: what
//! cannot be honoured is refused before anything is computed, and what goes wrong later ends that one answer.

mod cache;
mod compiler;
mod composed;
mod error;
mod gbnf;
mod rewrite;
mod schema;
mod spec;
mod state;
mod thinking;
mod vocabulary;

use std::fmt::Debug;

use crate::TokenId;

pub use compiler::{GrammarCompiler, GrammarLimits};
pub use error::GrammarError;
pub use spec::{CallInText, FreeAnswer, GrammarPiece, GrammarSpec};

/// Tokens of a mask's word.
const WORD_TOKENS: usize = u32::BITS as usize;

/// A compiled grammar. Shared by the answers that follow it; it does not change.
pub trait Grammar: Debug + Send + Sync {
    /// The state before the first token of an answer.
    ///
    /// # Errors
    /// [`GrammarFault`] where the grammar broke while it was compiled for another.
    fn start(&self) -> Result<Box<dyn GrammarState>, GrammarFault>;
}

/// Where one answer stands in its grammar. After an error it is broken and says so for ever.
pub trait GrammarState: Debug + Send {
    /// The token that must come next, where there is only one: it needs no logits. It is what the mask would leave.
    ///
    /// # Errors
    /// [`GrammarFault`]: the answer cannot go on.
    fn forced(&mut self) -> Result<Option<TokenId>, GrammarFault>;

    /// The tokens that may come next; at least one.
    ///
    /// # Errors
    /// [`GrammarFault`]: the answer cannot go on.
    fn mask(&mut self) -> Result<&TokenMask, GrammarFault>;

    /// How many of `tokens` may follow one after the other. Accepts none of them. A hint, for guesses: what counts is
    /// the mask.
    fn valid_prefix(&mut self, tokens: &[TokenId]) -> usize;

    /// The answer goes on with `token`.
    ///
    /// # Errors
    /// [`GrammarFault`] where the mask did not allow it, or the answer cannot go on.
    fn accept(&mut self, token: TokenId) -> Result<(), GrammarFault>;

    /// Whether the token accepted last ended the answer.
    fn has_ended(&self) -> bool;
}

/// Why an answer cannot follow its grammar any further. It ends that answer alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarFault {
    /// The client's fault: a step of its grammar takes more than a step may.
    #[error("a step of the grammar takes more work than is allowed: {0}")]
    TooComplex(String),
    /// No token leads on, and the answer may not end here either.
    #[error("no token of the vocabulary continues the answer")]
    DeadEnd,
    /// A token that the mask did not allow.
    #[error("token {0} does not follow in the grammar")]
    NotAllowed(TokenId),
    /// A defect. The text is for the log, not for the client.
    #[error("the grammar failed: {0}")]
    Internal(String),
}

/// A set of tokens, a bit each: token `i` is bit `i % 32` of word `i / 32`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
}

impl TokenMask {
    /// The set of `tokens`.
    #[must_use]
    pub fn of(tokens: &[TokenId]) -> Self {
        let mut mask = Self::default();
        mask.set_to(tokens);
        mask
    }

    /// Whether `token` is in the set.
    #[must_use]
    pub fn allows(&self, token: TokenId) -> bool {
        let word = self.words.get(token as usize / WORD_TOKENS).copied().unwrap_or(0);
        word >> (token as usize % WORD_TOKENS) & 1 == 1
    }

    /// The bits; tokens past the end are not in the set.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Becomes the set of `tokens`.
    pub fn set_to(&mut self, tokens: &[TokenId]) {
        self.words.clear();
        tokens.iter().for_each(|&token| self.insert(token));
    }

    /// One token more.
    fn insert(&mut self, token: TokenId) {
        let word = token as usize / WORD_TOKENS;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        if let Some(bits) = self.words.get_mut(word) {
            *bits |= 1 << (token as usize % WORD_TOKENS);
        }
    }

    /// One token less.
    fn remove(&mut self, token: TokenId) {
        if let Some(bits) = self.words.get_mut(token as usize / WORD_TOKENS) {
            *bits &= !(1 << (token as usize % WORD_TOKENS));
        }
    }

    /// Becomes the set with these bits.
    pub fn set_to_words(&mut self, words: &[u32]) {
        self.words.clear();
        self.words.extend_from_slice(words);
    }
}

#[cfg(test)]
mod tests;
