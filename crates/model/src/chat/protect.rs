//! Telling the characters of messages from those of the template after both are one text.
//!
//! See [`super::RenderedPrompt`] for how the pieces play together.
//!
//! Invariant: at [`Level::Everywhere`], every character of a caller's string that could begin a control token carries
//! the sentinel, so that neither joining two strings nor cutting something out of one makes a control token of them.

use std::collections::HashSet;

use serde_json::Value as Json;

use crate::tokenizer::{TokenKind, Tokenizer};

/// Where sentinels come from: plane 16, all private use.
const SENTINELS: std::ops::RangeInclusive<char> = '\u{100000}'..='\u{10fffd}';

/// How much of the callers' strings carries sentinels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Everything; only the assistant's own messages keep the added tokens that the model itself writes (`<think>`).
    Everywhere,
    /// No message loses its added tokens that are not control tokens.
    KeepAdded,
    /// Only control tokens' texts, whole, or cut off at the end of a string.
    ControlOnly,
}

impl Level {
    /// In the order to try.
    pub(super) const ALL: [Self; 3] = [Self::Everywhere, Self::KeepAdded, Self::ControlOnly];

    /// Whether added tokens that are no control tokens stay recognisable.
    pub(super) fn keeps_added(self, of_assistant: bool) -> bool {
        of_assistant || self != Self::Everywhere
    }
}

/// A character that occurs nowhere in the input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sentinel(char);

impl Sentinel {
    /// The first candidate in none of the strings that `strings` shows to its argument.
    pub(super) fn absent_from(strings: impl FnOnce(&mut dyn FnMut(&str))) -> Option<Self> {
        let mut present = HashSet::new();
        strings(&mut |text| present.extend(text.chars().filter(|c| SENTINELS.contains(c))));
        SENTINELS.into_iter().find(|c| !present.contains(c)).map(Self)
    }

    pub(super) fn character(self) -> char {
        self.0
    }

    /// The text without the sentinels, and the offsets in it at which they stood.
    pub(super) fn take_out(self, marked: &str) -> (String, Vec<usize>) {
        let mut text = String::with_capacity(marked.len());
        let mut offsets = Vec::new();
        for part in marked.split(self.0) {
            offsets.push(text.len() + part.len());
            text.push_str(part);
        }
        offsets.pop(); // the end of the last part
        offsets.dedup();
        (text, offsets)
    }
}

/// The texts of control and added tokens.
pub(super) struct ControlTexts {
    control: Vec<String>,
    /// Longest first.
    added: Vec<String>,
    /// The characters that any of them begins with.
    first: Vec<char>,
}

impl ControlTexts {
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        let of_kind = |kind| {
            let tokens = tokenizer
                .added_tokens()
                .filter(move |(id, _)| tokenizer.token_kind(*id) == Some(kind));
            tokens.map(|(_, text)| text.to_owned()).collect::<Vec<_>>()
        };
        let (control, mut added) = (of_kind(TokenKind::Control), of_kind(TokenKind::Added));
        added.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let mut first: Vec<char> =
            control.iter().chain(&added).filter_map(|text| text.chars().next()).collect();
        first.sort_unstable();
        first.dedup();
        Self { control, added, first }
    }

    /// Whether a string holds anything to protect.
    pub(super) fn may_begin_in(&self, text: &str) -> bool {
        text.contains(self.first.as_slice())
    }

    /// The same value with sentinels in its strings. The nesting has been checked.
    pub(super) fn mark(
        &self,
        json: &Json,
        keep_added: bool,
        level: Level,
        sentinel: Sentinel,
    ) -> Json {
        let string = |text: &str| self.mark_text(text, keep_added, level, sentinel);
        match json {
            Json::String(text) => Json::String(string(text)),
            Json::Array(items) => {
                items.iter().map(|item| self.mark(item, keep_added, level, sentinel)).collect()
            }
            Json::Object(map) => {
                let entry = |(key, value): (&String, &Json)| {
                    (string(key), self.mark(value, keep_added, level, sentinel))
                };
                Json::Object(map.iter().map(entry).collect())
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => json.clone(),
        }
    }

    fn mark_text(&self, text: &str, keep_added: bool, level: Level, sentinel: Sentinel) -> String {
        let mut marked = String::with_capacity(text.len() + 8);
        let mut rest = text;
        while let Some(at) = rest.find(self.first.as_slice()) {
            let (before, from) = rest.split_at(at);
            marked.push_str(before);
            let added =
                self.added.iter().find(|added| keep_added && from.starts_with(added.as_str()));
            let first = from.chars().next().map_or(0, char::len_utf8);
            let (kept, tail) = from.split_at(added.map_or(first, String::len));
            marked.push_str(kept);
            let protect = match level {
                Level::Everywhere | Level::KeepAdded => added.is_none(),
                Level::ControlOnly => {
                    added.is_none()
                        && self
                            .control
                            .iter()
                            .any(|c| from.starts_with(c.as_str()) || c.starts_with(from))
                }
            };
            if protect {
                marked.push(sentinel.character());
            }
            rest = tail;
        }
        marked.push_str(rest);
        marked
    }
}

/// Whether `test` holds for any string or key inside of a value.
pub(super) fn any_string(json: &Json, test: &mut impl FnMut(&str) -> bool) -> bool {
    match json {
        Json::String(text) => test(text),
        Json::Array(items) => items.iter().any(|item| any_string(item, test)),
        Json::Object(map) => map.iter().any(|(key, value)| test(key) || any_string(value, test)),
        Json::Null | Json::Bool(_) | Json::Number(_) => false,
    }
}
