//! Answers that call tools to Lark: fixed texts with their control tokens, JSON schemas, free text.

use std::fmt::Write;

use super::gbnf::lark_string;
use super::schema::{self, Notes};
use super::{CallInText, FreeAnswer, GrammarError, GrammarPiece, GrammarSpec};
use crate::tokenizer::Tokenizer;

/// What it is called in errors.
const KIND: &str = "grammar of tool calls";
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

    /// The whole grammar; see [`GrammarSpec::Calls`].
    pub(super) fn compose(mut self, spec: &GrammarSpec) -> Result<(String, Notes), GrammarError> {
        let GrammarSpec::Calls { free, in_text, opener, before, options, between, most, after } =
            spec
        else {
            return Err(GrammarError::Internal("not a grammar of calls".to_owned()));
        };
        let options: Vec<String> =
            options.iter().map(|option| self.sequence(option)).collect::<Result<_, _>>()?;
        if options.is_empty() || options.iter().any(String::is_empty) {
            let reason = "it holds no tool, or an empty one".to_owned();
            return Err(GrammarError::Malformed { kind: KIND, reason });
        }
        let (before, between, after) = (self.text(before), self.text(between), self.text(after));
        let more = match most {
            Some(most) if *most <= 1 => String::new(),
            Some(most) => format!("({between} option){{0,{}}}", most - 1),
            None => format!("({between} option)*"),
        };
        let start = self.start(free.as_ref(), opener, in_text, *most == Some(1))?;
        let mut lark = format!("start: {start}\ncalls: {before} option {more} {after}\noption: ");
        let _ = writeln!(lark, "{}", options.join("\n | "));
        lark.push_str(&self.rules);
        Ok((lark, self.notes))
    }

    /// Calls, or what may stand instead and before them.
    fn start(
        &mut self,
        free: Option<&FreeAnswer>,
        opener: &str,
        in_text: &[CallInText],
        only_one: bool,
    ) -> Result<String, GrammarError> {
        let opens = self.text(opener);
        match free {
            None => return Ok(format!("{opens} calls")),
            Some(FreeAnswer::Schema(schema)) => {
                let json = self.schema(schema)?;
                return Ok(format!("{json} | {opens} calls"));
            }
            Some(FreeAnswer::Text) => {}
        }
        let not = match opener {
            "" => r"\s*\{(?s:.*)".to_owned(),
            opener => {
                let opener = regex_syntax::escape(opener).replace('/', "\\/");
                let begins = in_text.iter().map(|call| format!("|{}", call.begin));
                format!("(?s:.*)({opener}{})(?s:.*)", begins.collect::<String>())
            }
        };
        let _ = writeln!(self.rules, "FREE: /(?s:.*)/ & ~/{not}/");
        let mut said = match (opener, opens.starts_with("<[")) {
            ("", _) => "FREE | calls".to_owned(),
            (_, true) => format!("FREE | FREE {opens} calls"),
            // What opens calls is text like any other: it ends the text as soon as it is there.
            (_, false) => {
                let _ = writeln!(self.rules, "opened[lazy]: ANY {opens}\nANY: /(?s:.*)/");
                "FREE | opened calls".to_owned()
            }
        };
        if !in_text.is_empty() {
            let written = self.written(in_text)?;
            let rest = if only_one { "FREE" } else { "said" };
            let _ = writeln!(self.rules, "said: {said} | written {rest}\nwritten: {written}");
            "said".clone_into(&mut said);
        }
        Ok(said)
    }

    /// Text up to a call in it, and that call.
    fn written(&mut self, in_text: &[CallInText]) -> Result<String, GrammarError> {
        let mut options = Vec::new();
        for (index, call) in in_text.iter().enumerate() {
            let schema = self.schema(&call.schema)?;
            let _ = writeln!(self.rules, "begun{index}[lazy]: /(?s:.*){}/", call.begin);
            options.push(format!("begun{index} SPACE {schema} CLOSE"));
        }
        // Bounded, so that nobody is kept to blanks for ever.
        self.rules.push_str("SPACE: /\\s{0,8}/\nCLOSE: /\\s{0,64}\\}/\n");
        Ok(options.join(" | "))
    }

    fn sequence(&mut self, pieces: &[GrammarPiece]) -> Result<String, GrammarError> {
        let mut out = String::new();
        for piece in pieces {
            self.pieces += 1;
            if self.pieces > MAX_PIECES {
                return Err(GrammarError::TooLarge {
                    kind: KIND,
                    given: self.pieces,
                    limit: MAX_PIECES,
                    unit: "pieces",
                });
            }
            let piece = match piece {
                GrammarPiece::Text(text) => self.text(text),
                GrammarPiece::Schema(schema) => self.schema(schema)?,
                GrammarPiece::TextUntil(end) => {
                    let name = format!("until{}", self.schemas);
                    self.schemas += 1;
                    let end = lark_string(end);
                    let _ = writeln!(self.rules, "{name}[lazy]: /(?s:.*)/ {end}");
                    name
                }
                GrammarPiece::OneOf(texts) => {
                    let texts: Vec<String> = texts.iter().map(|text| lark_string(text)).collect();
                    format!("({})", texts.join(" | "))
                }
                GrammarPiece::Optional(pieces) => format!("({})?", self.sequence(pieces)?),
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
