//! Finding control and added tokens in text, where the caller allows them.
//!
//! Invariant: of several tokens that start at one place the longest is found, and the search goes left to right, as in
//! the reference.

use aho_corasick::{AhoCorasick, Input, MatchKind};

use super::TokenizerError;
use crate::TokenId;

/// More than any published vocabulary adds.
const MAX_ADDED_TOKENS: usize = 65_536;
/// Their literals together; the automaton takes some tens of bytes for each.
const MAX_LITERAL_BYTES: usize = 1 << 20;

/// The literals that may stand for a token as a whole.
pub(super) struct AddedTokens {
    /// Sorted by id.
    ids: Vec<TokenId>,
    literals: Vec<String>,
    automaton: Option<AhoCorasick>,
}

/// An added token in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) id: TokenId,
}

impl AddedTokens {
    pub(super) fn new(tokens: Vec<(TokenId, String)>) -> Result<Self, TokenizerError> {
        if tokens.len() > MAX_ADDED_TOKENS {
            let (count, limit) = (tokens.len(), MAX_ADDED_TOKENS);
            return Err(TokenizerError::TooLarge { what: "added tokens", count, limit });
        }
        let bytes: usize = tokens.iter().map(|(_, text)| text.len()).sum();
        if bytes > MAX_LITERAL_BYTES {
            let limit = MAX_LITERAL_BYTES;
            return Err(TokenizerError::TooLarge {
                what: "bytes of added tokens",
                count: bytes,
                limit,
            });
        }
        let (ids, literals): (Vec<_>, Vec<_>) =
            tokens.into_iter().filter(|(_, text)| !text.is_empty()).unzip();
        let automaton = if literals.is_empty() {
            None
        } else {
            let built =
                AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&literals);
            Some(built.map_err(|error| TokenizerError::AddedTokens(error.to_string()))?)
        };
        Ok(Self { ids, literals, automaton })
    }

    /// The first token at or after `from` that `allow` admits; one that is not admitted is text, and the search goes
    /// on one character after its start.
    pub(super) fn find(
        &self,
        text: &str,
        mut from: usize,
        allow: impl Fn(Found) -> bool,
    ) -> Option<Found> {
        let automaton = self.automaton.as_ref()?;
        while from <= text.len() {
            let found = automaton.find(Input::new(text).span(from..text.len()))?;
            let id = *self.ids.get(found.pattern().as_usize())?;
            let found = Found { start: found.start(), end: found.end(), id };
            if allow(found) {
                return Some(found);
            }
            from = found.start + text.get(found.start..)?.chars().next()?.len_utf8();
        }
        None
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (TokenId, &str)> {
        self.ids.iter().copied().zip(self.literals.iter().map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_is_found_unless_refused() {
        let tokens = vec![(7, "<a>".to_owned()), (8, "<a><b>".to_owned()), (9, "<b>".to_owned())];
        let added = AddedTokens::new(tokens).unwrap();
        assert_eq!(added.find("é<a><b>", 0, |_| true), Some(Found { start: 2, end: 8, id: 8 }));
        assert_eq!(
            added.find("é<a><b>", 0, |f| f.id != 8),
            Some(Found { start: 5, end: 8, id: 9 })
        );
        assert_eq!(added.find("é<a><b>", 3, |f| f.id != 9), None);
    }
}
