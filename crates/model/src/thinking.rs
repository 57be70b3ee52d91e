//! What a model thinks before it answers, told apart by the tokens around it.
//!
//! Not here: text, money, and what keeps thinking short (`grammar`). Invariant: each token of an answer is thinking's or
//! the answer's, by the tokens before it alone; the markers are thinking's.

use crate::TokenId;
use crate::tokenizer::Tokenizer;

/// The texts around what is thought, as Qwen and DeepSeek, and Magistral write them.
const MARKERS: [(&str, &str); 2] = [("<think>", "</think>"), ("[THINK]", "[/THINK]")];
/// A prompt that ends with thinking begun has its marker among this many last tokens: a line's end may follow it.
const PROMPT_TAIL: usize = 4;

/// The tokens around what a model thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinkingTokens {
    /// Begins it, as the first token of an answer, or in the prompt.
    pub begin: TokenId,
    /// Ends it.
    pub end: TokenId,
}

impl ThinkingTokens {
    /// Those of a vocabulary; `None` where it has none.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let id = |text| tokenizer.added_token(text);
        MARKERS.iter().find_map(|(begin, end)| Some(Self { begin: id(begin)?, end: id(end)? }))
    }

    /// Where an answer to `prompt` begins.
    #[must_use]
    pub fn behind(self, prompt: &[TokenId]) -> Thinking {
        let tail = prompt.iter().rev().take(PROMPT_TAIL);
        let last = tail.copied().find(|&id| id == self.begin || id == self.end);
        let place = if last == Some(self.begin) { Place::Inside } else { Place::Before };
        Thinking { tokens: self, place, count: 0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At the first token of the answer.
    Before,
    Inside,
    Behind,
}

/// Where an answer stands.
#[derive(Clone, Copy, Debug)]
pub struct Thinking {
    tokens: ThinkingTokens,
    place: Place,
    count: u32,
}

impl Thinking {
    /// Takes the next token: whether it is thinking's.
    pub fn push(&mut self, token: TokenId) -> bool {
        let (thinks, place) = match self.place {
            Place::Before if token == self.tokens.begin => (true, Place::Inside),
            Place::Inside if token == self.tokens.end => (true, Place::Behind),
            Place::Inside => (true, Place::Inside),
            Place::Before | Place::Behind => (false, Place::Behind),
        };
        self.place = place;
        self.count = self.count.saturating_add(u32::from(thinks));
        thinks
    }

    /// Whether the model thinks, so that the next token is thinking's.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        self.place == Place::Inside
    }

    /// Whether the next token may begin thinking.
    #[must_use]
    pub fn may_begin(&self) -> bool {
        self.place == Place::Before
    }

    /// The tokens around it.
    #[must_use]
    pub fn tokens(&self) -> ThinkingTokens {
        self.tokens
    }

    /// Tokens of thinking so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_is_thinkings_or_the_answers() {
        let tokens = ThinkingTokens { begin: 1, end: 2 };
        for (prompt, answer, thinks) in [
            (&[9][..], &[1, 5, 1, 2, 6, 1, 2][..], "tttt..."),
            (&[9], &[5, 1, 5, 2], "...."),
            (&[9], &[1, 5], "tt"),
            // Begun in the prompt; begun and ended there; begun long ago.
            (&[9, 1, 7], &[5, 2, 6], "tt."),
            (&[9, 1, 7, 2, 7], &[5, 2, 6], "..."),
            (&[1, 9, 9, 9, 9], &[5, 2, 6], "..."),
        ] {
            let mut thinking = tokens.behind(prompt);
            let told: String =
                answer.iter().map(|&t| if thinking.push(t) { 't' } else { '.' }).collect();
            assert_eq!(told, thinks, "{prompt:?} {answer:?}");
            assert_eq!(thinking.count() as usize, thinks.matches('t').count());
        }
    }
}
