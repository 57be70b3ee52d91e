//! A grammar for answers that think first: anything, for as long as the budget lasts, then what the grammar of the answer
//! says, or anything.
//!
//! At the budget the marker that ends thinking is forced, as a grammar forces any token.

use std::sync::Arc;

use super::{Grammar, GrammarFault, GrammarState, TokenMask, WORD_TOKENS};
use crate::TokenId;
use crate::thinking::Thinking;

/// Thinking, then an answer.
#[derive(Debug)]
pub(super) struct AfterThinking {
    /// At the beginning of an answer.
    pub(super) thinking: Thinking,
    /// Tokens of thinking at most, its markers included.
    pub(super) budget: Option<u32>,
    /// Of the answer; `None` for any.
    pub(super) then: Option<Arc<dyn Grammar>>,
    /// Tokens that end an answer.
    pub(super) ends: Vec<TokenId>,
    /// Tokens are below this.
    pub(super) vocab_size: usize,
}

impl Grammar for AfterThinking {
    fn start(&self) -> Result<Box<dyn GrammarState>, GrammarFault> {
        let then = self.then.as_ref().map(|grammar| grammar.start()).transpose()?;
        let all = TokenMask { words: vec![u32::MAX; self.vocab_size.div_ceil(WORD_TOKENS)] };
        let mut thoughts = all.clone();
        // An answer must follow where it has to look like something.
        if then.is_some() {
            self.ends.iter().for_each(|&end| thoughts.remove(end));
        }
        Ok(Box::new(Following {
            thinking: self.thinking,
            budget: self.budget.unwrap_or(u32::MAX),
            then,
            all,
            thoughts,
            mask: TokenMask::default(),
            ends: self.ends.clone(),
            ended: false,
        }))
    }
}

#[derive(Debug)]
struct Following {
    thinking: Thinking,
    budget: u32,
    then: Option<Box<dyn GrammarState>>,
    all: TokenMask,
    /// What may be thought.
    thoughts: TokenMask,
    /// What was made of `then`'s.
    mask: TokenMask,
    ends: Vec<TokenId>,
    ended: bool,
}

impl Following {
    /// The next token must end thinking.
    fn is_spent(&self, thinking: &Thinking) -> bool {
        thinking.is_inside() && thinking.count().saturating_add(1) >= self.budget
    }
}

impl GrammarState for Following {
    fn forced(&mut self) -> Result<Option<TokenId>, GrammarFault> {
        if self.is_spent(&self.thinking) {
            return Ok(Some(self.thinking.tokens().end));
        }
        match &mut self.then {
            Some(then) if !self.thinking.is_inside() && !self.thinking.may_begin() => then.forced(),
            _ => Ok(None),
        }
    }

    fn mask(&mut self) -> Result<&TokenMask, GrammarFault> {
        if let Some(forced) = self.forced()? {
            self.mask.set_to(&[forced]);
            return Ok(&self.mask);
        }
        if self.thinking.is_inside() {
            return Ok(&self.thoughts);
        }
        match &mut self.then {
            None => Ok(&self.all),
            Some(then) if self.thinking.may_begin() => {
                self.mask.clone_from(then.mask()?);
                self.mask.insert(self.thinking.tokens().begin);
                Ok(&self.mask)
            }
            Some(then) => then.mask(),
        }
    }

    fn valid_prefix(&mut self, tokens: &[TokenId]) -> usize {
        let mut thinking = self.thinking;
        let mut valid = 0;
        for &token in tokens {
            let begins = thinking.may_begin() && token == thinking.tokens().begin;
            if !thinking.is_inside() && !begins {
                break;
            }
            let allowed = match self.is_spent(&thinking) {
                true => token == thinking.tokens().end,
                false => self.thoughts.allows(token),
            };
            if !allowed {
                return valid;
            }
            thinking.push(token);
            valid += 1;
        }
        let rest = tokens.get(valid..).unwrap_or(&[]);
        valid
            + match &mut self.then {
                Some(then) => then.valid_prefix(rest),
                None => rest.iter().take_while(|&&token| self.all.allows(token)).count(),
            }
    }

    fn accept(&mut self, token: TokenId) -> Result<(), GrammarFault> {
        let thinks = self.thinking.is_inside()
            || (self.thinking.may_begin() && token == self.thinking.tokens().begin);
        if self.ended || (thinks && self.valid_prefix(&[token]) == 0) {
            return Err(GrammarFault::NotAllowed(token));
        }
        match &mut self.then {
            Some(then) if !thinks => {
                then.accept(token)?;
                self.ended = then.has_ended();
            }
            _ => self.ended = self.ends.contains(&token),
        }
        self.thinking.push(token);
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.ended
    }
}
