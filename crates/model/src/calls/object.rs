//! A call as a JSON object, whatever stands around it: `{"name": "f", "arguments": {…}}` in any order, `parameters` for
//! `arguments`, wrapped in `{"type": "function", "function": …}` or not.
//!
//! Arguments go out as they come, once the name is known.

use super::{CallEvent, CallTool, Verdict};

/// Longer names, keys and ids are none.
const MAX_STRING_BYTES: usize = 1024;
/// Open objects and arrays in arguments, as `serde_json` bounds them.
const MAX_DEPTH: usize = 127;

/// Finds the end of a JSON object or array in text that comes in pieces.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonScan {
    closers: Vec<char>,
    in_string: bool,
    escaped: bool,
}

impl JsonScan {
    /// Takes the next character: [`Verdict::Call`] when it closes what the first one opened.
    pub(super) fn next(&mut self, c: char) -> Verdict {
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' if self.in_string => self.escaped = true,
            '"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            '{' => self.closers.push('}'),
            '[' => self.closers.push(']'),
            '}' | ']' if self.closers.pop() != Some(c) => return Verdict::Broken,
            _ => {}
        }
        match self.closers.len() {
            0 => Verdict::Call,
            open if open > MAX_DEPTH => Verdict::Broken,
            _ => Verdict::More,
        }
    }
}

/// Arguments under way: a JSON object, sent as it comes, held to be one at its end.
#[derive(Clone, Debug, Default)]
pub(super) struct Arguments {
    scan: JsonScan,
    text: String,
}

impl Arguments {
    /// Reads from the front of `text`, the first time from its `{`: how many bytes, and whether the object is over.
    pub(super) fn read(&mut self, text: &str) -> (usize, Verdict) {
        for (at, c) in text.char_indices() {
            let verdict = self.scan.next(c);
            if verdict != Verdict::More {
                let end = at + c.len_utf8();
                self.text.push_str(text.get(..end).unwrap_or(""));
                let valid = serde_json::from_str::<serde::de::IgnoredAny>(&self.text).is_ok();
                return (end, if valid { verdict } else { Verdict::Broken });
            }
        }
        self.text.push_str(text);
        (text.len(), Verdict::More)
    }
}

/// What is read next.
#[derive(Clone, Debug, Default)]
enum Place {
    #[default]
    Open,
    /// `"` of a key, or, behind the opening brace, its end.
    Key,
    InKey(Text),
    Colon(String),
    Value(String),
    /// A string: the name, or one that does not matter.
    InString(Text, bool),
    InArguments,
    /// `,` or the end.
    Comma,
}

/// A JSON string under way, without its quotes.
#[derive(Clone, Debug, Default)]
struct Text {
    raw: String,
    escaped: bool,
}

impl Text {
    /// `None` while it goes on; then the string, or nothing where it is none.
    fn next(&mut self, c: char) -> Option<Option<String>> {
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' => self.escaped = true,
            '"' => return Some(serde_json::from_str(&format!("\"{}\"", self.raw)).ok()),
            _ => {}
        }
        self.raw.push(c);
        (self.raw.len() > MAX_STRING_BYTES).then_some(None)
    }
}

/// Reads one call.
#[derive(Clone, Debug, Default)]
pub(super) struct ObjectReader {
    place: Place,
    name: Option<String>,
    arguments: Arguments,
    /// The arguments are there as a whole.
    is_complete: bool,
    /// `Begin` went out.
    has_begun: bool,
    /// Inside of `"function": {`.
    is_wrapped: bool,
    /// Only `{"name": "f", "arguments": {…}`, in this order and without escapes, is a call.
    ordered: bool,
}

impl ObjectReader {
    pub(super) fn new(ordered: bool) -> Self {
        Self { ordered, ..Self::default() }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// See [`super::Machine::read`]; [`Verdict::Call`] at the end of the object. A brace too few is forgiven.
    pub(super) fn read(
        &mut self,
        text: &str,
        tools: &[CallTool],
        out: &mut Vec<CallEvent>,
    ) -> (usize, Verdict) {
        let mut at = 0;
        while let Some(c) = text.get(at..).and_then(|rest| rest.chars().next()) {
            if matches!(self.place, Place::InArguments) {
                let (taken, verdict) = self.read_arguments(text.get(at..).unwrap_or(""), out);
                at += taken;
                match verdict {
                    Verdict::Call => continue,
                    verdict => return (at, verdict),
                }
            }
            match self.next(c, tools, out) {
                Some(Verdict::More) => at += c.len_utf8(),
                // The first character of a value that is read elsewhere.
                None => {}
                Some(Verdict::Over) => return (at, Verdict::Call),
                Some(Verdict::Call) => return (at + c.len_utf8(), Verdict::Call),
                Some(Verdict::Broken) => return (at, Verdict::Broken),
            }
        }
        (at, Verdict::More)
    }

    fn read_arguments(&mut self, text: &str, out: &mut Vec<CallEvent>) -> (usize, Verdict) {
        let (taken, verdict) = self.arguments.read(text);
        if verdict != Verdict::Broken && self.has_begun {
            out.push(CallEvent::Arguments(text.get(..taken).unwrap_or("").to_owned()));
        }
        if verdict == Verdict::Call {
            self.is_complete = true;
            self.place = Place::Comma;
        }
        (taken, verdict)
    }

    /// Takes a character outside of arguments. `Over`: the call is whole and `c` stands behind it.
    fn next(&mut self, c: char, tools: &[CallTool], out: &mut Vec<CallEvent>) -> Option<Verdict> {
        let more = Some(Verdict::More);
        match &mut self.place {
            Place::InKey(Text { escaped: true, .. })
            | Place::InString(Text { escaped: true, .. }, true)
                if self.ordered =>
            {
                return Some(Verdict::Broken);
            }
            Place::InKey(key) => match key.next(c) {
                None => return more,
                Some(None) => return Some(Verdict::Broken),
                Some(Some(key)) => self.place = Place::Colon(key),
            },
            Place::InString(text, is_name) => match (text.next(c), *is_name) {
                (None, _) => return more,
                (Some(None), _) => return Some(Verdict::Broken),
                (Some(Some(name)), true) => return self.named(name, tools, out),
                (Some(Some(_)), false) => self.place = Place::Comma,
            },
            _ if c.is_whitespace() => return more,
            Place::Open if c == '{' => self.place = Place::Key,
            Place::Key if c == '"' => self.place = Place::InKey(Text::default()),
            Place::Colon(key) if c == ':' => self.place = Place::Value(std::mem::take(key)),
            Place::Value(key) => {
                let key = std::mem::take(key);
                return self.value(&key, c, out);
            }
            Place::Comma if c == ',' => self.place = Place::Key,
            Place::Comma if c == '}' && self.is_wrapped => self.is_wrapped = false,
            Place::Comma if c == '}' => return Some(self.closed(out)),
            Place::Comma if self.has_begun && self.is_complete => return Some(Verdict::Over),
            _ => return Some(Verdict::Broken),
        }
        more
    }

    /// What a value of `key` that begins with `c` is.
    fn value(&mut self, key: &str, c: char, out: &mut Vec<CallEvent>) -> Option<Verdict> {
        let expected = if self.name.is_none() { "name" } else { "arguments" };
        if self.ordered && !self.is_complete && key != expected {
            return Some(Verdict::Broken);
        }
        let is_name = matches!(key, "name" | "function") && self.name.is_none();
        match (key, c) {
            ("arguments" | "parameters", '{') if !self.is_complete => {
                self.place = Place::InArguments;
                if let Some(name) = &self.name {
                    self.has_begun = true;
                    out.push(CallEvent::Begin(name.clone()));
                }
                return None;
            }
            ("function", '{') if !self.is_wrapped && self.name.is_none() => {
                self.is_wrapped = true;
                self.place = Place::Key;
            }
            ("name" | "function" | "id" | "type", '"') => {
                self.place = Place::InString(Text::default(), is_name);
            }
            _ => return Some(Verdict::Broken),
        }
        Some(Verdict::More)
    }

    /// The name is known: what came of the arguments can go out.
    fn named(
        &mut self,
        name: String,
        tools: &[CallTool],
        out: &mut Vec<CallEvent>,
    ) -> Option<Verdict> {
        if !tools.iter().any(|tool| tool.name == name) {
            return Some(Verdict::Broken);
        }
        self.place = Place::Comma;
        self.name = Some(name.clone());
        // They came before the name.
        if self.is_complete {
            self.has_begun = true;
            out.extend([CallEvent::Begin(name), CallEvent::Arguments(self.arguments.text.clone())]);
        }
        Some(Verdict::More)
    }

    /// The object is over. Without arguments they are none.
    fn closed(&mut self, out: &mut Vec<CallEvent>) -> Verdict {
        if self.ordered && !self.is_complete {
            return Verdict::Broken;
        }
        match (&self.name, self.has_begun) {
            (Some(_), true) => Verdict::Call,
            (Some(name), false) => {
                self.has_begun = true;
                out.extend([CallEvent::Begin(name.clone()), CallEvent::Arguments("{}".to_owned())]);
                Verdict::Call
            }
            (None, _) => Verdict::Broken,
        }
    }
}
