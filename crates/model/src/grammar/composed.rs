//! Composed answers to Lark: fixed texts with their control tokens, JSON schemas, free text.

use std::fmt::Write;

use super::gbnf::lark_string;
use super::schema::{self, Notes};
use super::{GrammarError, GrammarPiece};
use crate::tokenizer::Tokenizer;

/// Pieces of a composed grammar, all together.
const MAX_PIECES: usize = 4_096;

/// Lark text under way, and what was noted of its schemas.
pub(super) struct Composer<'t> {
    tokenizer: &'t Tokenizer,
    rules: String,
    schemas: usize,
    pieces: usize,
    notes: Notes,
}

impl<'t> Composer<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, rules: String::new(), schemas: 0, pieces: 0, notes: Notes::default() }
    }

    /// The whole grammar; see [`GrammarSpec::Composed`](super::GrammarSpec::Composed).
    pub(super) fn compose(
        mut self,
        before: &[GrammarPiece],
        options: &[Vec<GrammarPiece>],
        between: &str,
        (optional, most): (bool, Option<u32>),
        after: &[GrammarPiece],
    ) -> Result<(String, Notes), GrammarError> {
        let options: Vec<String> =
            options.iter().map(|option| self.sequence(option)).collect::<Result<_, _>>()?;
        if options.is_empty() || options.iter().any(String::is_empty) {
            let reason = "it holds no tool, or an empty one".to_owned();
            return Err(GrammarError::Malformed { kind: "grammar of tool calls", reason });
        }
        let (before, after) = (self.sequence(before)?, self.sequence(after)?);
        let between = self.text(between);
        let more = match most {
            Some(most) if most <= 1 => String::new(),
            Some(most) => format!("({between} option){{0,{}}}", most - 1),
            None => format!("({between} option)*"),
        };
        let mark = if optional { "?" } else { "" };
        let mut lark =
            format!("start: {before} calls{mark} {after}\ncalls: option {more}\noption: ");
        let _ = writeln!(lark, "{}", options.join("\n | "));
        lark.push_str(&self.rules);
        Ok((lark, self.notes))
    }

    fn sequence(&mut self, pieces: &[GrammarPiece]) -> Result<String, GrammarError> {
        let mut out = String::new();
        for piece in pieces {
            self.pieces += 1;
            if self.pieces > MAX_PIECES {
                return Err(GrammarError::TooLarge {
                    kind: "grammar of tool calls",
                    given: self.pieces,
                    limit: MAX_PIECES,
                    unit: "pieces",
                });
            }
            let piece = match piece {
                GrammarPiece::Text(text) => self.text(text),
                GrammarPiece::AnyText => "/(?s:.*)/".to_owned(),
                GrammarPiece::Schema(schema) => self.schema(schema)?,
            };
            out.push_str(&piece);
            out.push(' ');
        }
        Ok(out)
    }

    fn schema(&mut self, schema: &serde_json::Value) -> Result<String, GrammarError> {
        let (prepared, notes) = schema::prepare(schema)?;
        self.notes.join(notes);
        let name = format!("json{}", self.schemas);
        self.schemas += 1;
        let _ = writeln!(self.rules, "{name}: %json {prepared}");
        Ok(name)
    }

    /// Texts as literals, and tokens that are no text by their ids.
    fn text(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while !rest.is_empty() {
            let found = self
                .tokenizer
                .added_tokens()
                .filter(|(_, literal)| !literal.is_empty())
                .filter_map(|(id, literal)| rest.find(literal).map(|at| (at, literal.len(), id)))
                // The first, of those the longest.
                .min_by_key(|&(at, length, _)| (at, usize::MAX - length));
            let (plain, token) = match found {
                Some((at, length, id)) => (rest.get(..at), Some((id, at + length))),
                None => (Some(rest), None),
            };
            if let Some(plain) = plain.filter(|plain| !plain.is_empty()) {
                let _ = write!(out, "{} ", lark_string(plain));
            }
            let Some((id, end)) = token else { break };
            let _ = write!(out, "<[{id}]> ");
            rest = rest.get(end..).unwrap_or("");
        }
        out
    }
}
