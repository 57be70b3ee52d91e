//! One answer's place in a grammar, over llguidance's matcher.
//!
//! Tokens that are forced are found several at a time and then handed out one by one, through [`GrammarState::forced`]
//! and as masks of one token alike: so it makes no difference to the answer whether its engine asks for them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use llguidance::Matcher;
use llguidance::api::StopReason;

use super::{Grammar, GrammarFault, GrammarState, TokenMask};
use crate::TokenId;

/// A grammar, ready to be followed.
pub(super) struct Compiled {
    /// As it was compiled: each answer gets a copy with caches of its own, for what one answer has seen must not decide
    /// whether another exceeds a limit.
    fresh: Mutex<Matcher>,
    /// Tokens that end an answer; the first is taken where nothing else may follow.
    ends: Vec<TokenId>,
    /// Tokens that llguidance knows are below this; a model may have more.
    vocab_size: usize,
}

impl Compiled {
    pub(super) fn new(fresh: Matcher, ends: Vec<TokenId>, vocab_size: usize) -> Self {
        Self { fresh: Mutex::new(fresh), ends, vocab_size }
    }
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled").finish_non_exhaustive()
    }
}

impl Grammar for Compiled {
    fn start(&self) -> Result<Box<dyn GrammarState>, GrammarFault> {
        let matcher = self.fresh.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        Ok(Box::new(Following {
            matcher,
            ends: self.ends.clone(),
            vocab_size: self.vocab_size,
            forced: VecDeque::new(),
            forced_known: false,
            mask: TokenMask::default(),
            mask_known: false,
            ended: false,
        }))
    }
}

/// The state of one answer.
struct Following {
    matcher: Matcher,
    ends: Vec<TokenId>,
    vocab_size: usize,
    /// Tokens that must follow, one after the other.
    forced: VecDeque<TokenId>,
    /// `forced` holds for the place where the answer stands.
    forced_known: bool,
    mask: TokenMask,
    /// So does `mask`.
    mask_known: bool,
    ended: bool,
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Following").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Following {
    /// What the matcher's failure means.
    fn fault(&self, error: &dyn std::fmt::Display) -> GrammarFault {
        let text = first_line(&error.to_string());
        if text.starts_with("panic") {
            return GrammarFault::Internal(text);
        }
        match self.matcher.stop_reason() {
            StopReason::NoExtensionBias | StopReason::NoExtension => GrammarFault::DeadEnd,
            StopReason::LexerTooComplex | StopReason::ParserTooComplex => {
                GrammarFault::TooComplex(text)
            }
            _ if text.contains("NoExtension") => GrammarFault::DeadEnd,
            _ if is_limit(&text) => GrammarFault::TooComplex(text),
            _ => GrammarFault::Internal(text),
        }
    }

    /// Nothing but an end may follow.
    fn only_end_follows(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }

    fn find_forced(&mut self) -> Result<(), GrammarFault> {
        if self.forced_known || !self.forced.is_empty() {
            return Ok(());
        }
        if self.only_end_follows() {
            self.forced.extend(self.ends.first());
        } else {
            self.forced.extend(self.matcher.compute_ff_tokens());
            if let Some(error) = self.matcher.get_error() {
                return Err(self.fault(&error));
            }
        }
        self.forced_known = true;
        Ok(())
    }
}

impl GrammarState for Following {
    fn forced(&mut self) -> Result<Option<TokenId>, GrammarFault> {
        self.find_forced()?;
        Ok(self.forced.front().copied())
    }

    fn mask(&mut self) -> Result<&TokenMask, GrammarFault> {
        if self.mask_known {
            return Ok(&self.mask);
        }
        if let Some(token) = self.forced()? {
            self.mask.set_to(&[token]);
        } else {
            match self.matcher.compute_mask() {
                Ok(bits) => self.mask.set_to_words(bits.as_slice()),
                Err(error) => return Err(self.fault(&error)),
            }
        }
        self.mask_known = true;
        Ok(&self.mask)
    }

    fn valid_prefix(&mut self, tokens: &[TokenId]) -> usize {
        if self.find_forced().is_err() {
            return 0;
        }
        if !self.forced.is_empty() {
            return tokens.iter().zip(&self.forced).take_while(|(a, b)| a == b).count();
        }
        // An unknown token would break the matcher.
        let unknown = tokens.iter().position(|&token| token as usize >= self.vocab_size);
        let known = tokens.get(..unknown.unwrap_or(tokens.len())).unwrap_or(tokens);
        self.matcher.validate_tokens(known).unwrap_or(0)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), GrammarFault> {
        let is_end = self.ends.contains(&token);
        let allowed = match self.forced.front() {
            Some(&forced) => forced == token,
            None if self.mask_known => self.mask.allows(token),
            None => is_end || self.valid_prefix(&[token]) == 1,
        };
        if self.ended || !allowed {
            return Err(GrammarFault::NotAllowed(token));
        }
        self.forced.pop_front();
        self.mask_known = false;
        self.forced_known = false;
        if is_end {
            self.ended = self.only_end_follows()
                || self.matcher.is_accepting().map_err(|error| self.fault(&error))?;
            return if self.ended { Ok(()) } else { Err(GrammarFault::NotAllowed(token)) };
        }
        match self.matcher.consume_token(token) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fault(&error)),
        }
    }

    fn has_ended(&self) -> bool {
        self.ended
    }
}

/// Errors carry state behind their first line.
pub(super) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// Whether an error of llguidance's says that one of its limits was reached.
pub(super) fn is_limit(text: &str) -> bool {
    ["too complex", "too many", "fuel", "too large", "limit", "exceeded"]
        .iter()
        .any(|word| text.to_lowercase().contains(word))
}
