//! A grammar as it is asked for, before it is compiled: data.

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

/// A piece of a composed answer.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarPiece {
    /// Exactly this text; the text of a control or added token, such as `<tool_call>`, is that token.
    Text(String),
    /// A JSON value that this schema accepts.
    Schema(Json),
    /// Any text up to this, which ends it, without control or added tokens.
    TextUntil(String),
    /// One of these texts.
    OneOf(Vec<String>),
    /// All of these or none.
    Optional(Vec<GrammarPiece>),
}

/// What an answer may be instead of calls.
#[derive(Clone, Debug, PartialEq)]
pub enum FreeAnswer {
    /// Any text without control or added tokens, in which nothing begins a call; calls may follow it.
    Text,
    /// A JSON value that this schema accepts.
    Schema(Json),
}

/// A call that a model writes into text, without what opens calls: an object whose last value is the arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct CallInText {
    /// Its text up to the arguments, a regular expression: where text ends with a match, a call has begun.
    pub begin: String,
    /// Of the arguments, behind which the object ends.
    pub schema: Json,
}

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSpec {
    /// Calls of tools, in the form of a model's own template: `opener`, `before`, then `options`, one after the other with
    /// `between` between two of them, then `after`.
    Calls {
        /// What an answer may be instead.
        free: Option<FreeAnswer>,
        /// Calls that may stand in free text: where one of these begins it is kept to its form.
        in_text: Vec<CallInText>,
        /// Tells a call from text; where it is empty, `{` at the beginning does.
        opener: String,
        /// Comes first.
        before: String,
        /// Sequences of pieces, of which each place takes one.
        options: Vec<Vec<GrammarPiece>>,
        /// Between two options.
        between: String,
        /// How many of them there may be, at least 1; `None`: any number.
        most: Option<u32>,
        /// Comes last.
        after: String,
    },
    /// A JSON value that this schema accepts.
    JsonSchema(Json),
    /// Any JSON object.
    JsonObject,
    /// A text that matches this regular expression (Rust's syntax) as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// llguidance's dialect of Lark.
    Lark(String),
    /// GBNF, the grammars of llama.cpp.
    Gbnf(String),
}

impl GrammarPiece {
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) | Self::TextUntil(text) => text.len(),
            Self::Schema(schema) => schema.to_string().len(),
            Self::OneOf(texts) => texts.iter().map(String::len).sum(),
            Self::Optional(pieces) => pieces.iter().map(Self::bytes).sum(),
        }
    }
}

impl GrammarSpec {
    /// A grammar given as text, in whichever of the two notations it is: GBNF writes its rules with `::=`.
    #[must_use]
    pub fn from_grammar_text(text: String) -> Self {
        if text.contains("::=") { Self::Gbnf(text) } else { Self::Lark(text) }
    }

    /// What it is called in errors.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Calls { .. } => "grammar of tool calls",
            Self::JsonSchema(_) => "JSON schema",
            Self::JsonObject => "JSON object",
            Self::Regex(_) => "regular expression",
            Self::Choice(_) => "choice",
            Self::Lark(_) => "Lark grammar",
            Self::Gbnf(_) => "GBNF grammar",
        }
    }

    /// Equal for equal grammars only. The order of a schema's properties is part of it: answers follow that order.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        part(self.kind());
        match self {
            Self::JsonSchema(schema) => part(&schema.to_string()),
            Self::JsonObject => {}
            Self::Regex(text) | Self::Lark(text) | Self::Gbnf(text) => part(text),
            Self::Choice(texts) => texts.iter().for_each(|text| part(text)),
            // Everything in it has a derived, unambiguous notation.
            Self::Calls { .. } => part(&format!("{self:?}")),
        }
        hash.finalize().into()
    }

    /// Bytes of all its texts, roughly: what is bounded before anything is done with it.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::JsonObject => 0,
            Self::Regex(text) | Self::Lark(text) | Self::Gbnf(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
            Self::Calls { free, in_text, opener, before, options, between, after, .. } => {
                let written = in_text.iter().map(|c| c.begin.len() + c.schema.to_string().len());
                let free = match free {
                    Some(FreeAnswer::Schema(schema)) => schema.to_string().len(),
                    _ => 0,
                };
                let texts = opener.len() + before.len() + between.len() + after.len();
                let written: usize = written.sum();
                free + written
                    + texts
                    + options.iter().flatten().map(GrammarPiece::bytes).sum::<usize>()
            }
        }
    }
}
