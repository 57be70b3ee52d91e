//! Calls as Qwen3-Coder writes them: a tag for the function and one for each parameter.
//!
//! Values are text; what they are as JSON is the schema's to say. Strings go out as they come, other values as a whole.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::{CallEvent, CallTool, Machine, Verdict, begun_bytes};

const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
/// Before it, one line's end is not part of the value.
const LINE_AND_END: &str = "\n</parameter>";
const CALL_END: &str = "</tool_call>";
/// Longer names are none.
const MAX_NAME_BYTES: usize = 1024;

#[derive(Debug)]
enum Place {
    /// `<function=`
    Tag,
    /// A name up to `>`.
    Name,
    /// A parameter, or the function's end.
    Body,
    ParameterName,
    Value(Value),
    /// Behind a call.
    Behind,
}

/// A value under way.
#[derive(Debug)]
struct Value {
    /// It is not empty any more, so that a line's end belongs to it.
    has_begun: bool,
    types: Types,
    /// All of it, where it is not a string.
    text: String,
}

/// Reads the calls of one frame.
#[derive(Debug)]
pub(super) struct Coder {
    place: Place,
    /// The function under way.
    name: String,
    /// Of its parameters, those that came.
    given: BTreeSet<String>,
}

impl Coder {
    pub(super) fn new(opener: &str) -> Self {
        let place = if opener == FUNCTION { Place::Name } else { Place::Tag };
        Self { place, name: String::new(), given: BTreeSet::new() }
    }

    /// One step: bytes taken, and a verdict where there is one. Nothing taken and no verdict: more text is needed.
    fn step(
        &mut self,
        text: &str,
        tools: &[CallTool],
        out: &mut Vec<CallEvent>,
    ) -> (usize, Option<Verdict>) {
        if let Place::Value(value) = &mut self.place {
            let (taken, is_over) = value.read(text, out);
            if is_over {
                self.place = Place::Body;
            }
            return (taken, None);
        }
        if matches!(self.place, Place::Name | Place::ParameterName) {
            return self.name(text, tools, out);
        }
        let rest = text.trim_start();
        let skipped = text.len() - rest.len();
        let tags: &[&str] = match self.place {
            Place::Tag => &[FUNCTION],
            Place::Body => &[PARAMETER, FUNCTION_END],
            _ => &[CALL_END, FUNCTION],
        };
        let Some(tag) = tags.iter().find(|tag| rest.starts_with(**tag)) else {
            let may_come = tags.iter().any(|tag| tag.starts_with(rest));
            let other =
                if matches!(self.place, Place::Behind) { Verdict::Over } else { Verdict::Broken };
            return (0, (!may_come).then_some(other));
        };
        let taken = skipped + tag.len();
        match *tag {
            FUNCTION => self.place = Place::Name,
            PARAMETER => self.place = Place::ParameterName,
            FUNCTION_END => {
                let end = if self.given.is_empty() { "{}" } else { "}" };
                out.push(CallEvent::Arguments(end.to_owned()));
                self.place = Place::Behind;
                return (taken, Some(Verdict::Call));
            }
            _ => return (taken, Some(Verdict::Over)),
        }
        (taken, None)
    }

    /// The name of a function or a parameter.
    fn name(
        &mut self,
        text: &str,
        tools: &[CallTool],
        out: &mut Vec<CallEvent>,
    ) -> (usize, Option<Verdict>) {
        let Some((name, _)) = text.split_once('>') else {
            return (0, (text.len() > MAX_NAME_BYTES).then_some(Verdict::Broken));
        };
        let taken = name.len() + 1;
        let name = name.trim();
        if name.len() > MAX_NAME_BYTES {
            return (0, Some(Verdict::Broken));
        }
        if matches!(self.place, Place::Name) {
            if !tools.iter().any(|tool| tool.name == name) {
                return (0, Some(Verdict::Broken));
            }
            name.clone_into(&mut self.name);
            self.given.clear();
            self.place = Place::Body;
            out.push(CallEvent::Begin(name.to_owned()));
            return (taken, None);
        }
        let before = if self.given.is_empty() { "{" } else { ", " };
        if !self.given.insert(name.to_owned()) {
            return (0, Some(Verdict::Broken));
        }
        let schema = tools.iter().find(|tool| tool.name == self.name).map(|tool| &tool.parameters);
        let types = Types::of_property(schema.unwrap_or(&Json::Null), name);
        let quote = if types.is_string() { "\"" } else { "" };
        let key = Json::String(name.to_owned());
        out.push(CallEvent::Arguments(format!("{before}{key}: {quote}")));
        self.place = Place::Value(Value { has_begun: false, types, text: String::new() });
        (taken, None)
    }
}

impl Value {
    /// How many bytes were taken, and whether the value is over.
    fn read(&mut self, text: &str, out: &mut Vec<CallEvent>) -> (usize, bool) {
        let mut taken = 0;
        if !self.has_begun && !text.is_empty() {
            self.has_begun = true;
            taken = usize::from(text.starts_with('\n'));
        }
        let rest = text.get(taken..).unwrap_or("");
        let Some(end) = rest.find(PARAMETER_END) else {
            let held = begun_bytes(rest, PARAMETER_END).max(begun_bytes(rest, LINE_AND_END));
            let (more, _) = rest.split_at(rest.len() - held);
            self.more(more, out);
            return (taken + more.len(), false);
        };
        let (value, _) = rest.split_at(end);
        self.more(value.strip_suffix('\n').unwrap_or(value), out);
        let last = match self.types.is_string() {
            true => "\"".to_owned(),
            false => self.types.convert(&self.text),
        };
        out.push(CallEvent::Arguments(last));
        (taken + end + PARAMETER_END.len(), true)
    }

    fn more(&mut self, text: &str, out: &mut Vec<CallEvent>) {
        if !self.types.is_string() {
            self.text.push_str(text);
        } else if !text.is_empty() {
            let quoted = Json::String(text.to_owned()).to_string();
            let inner = quoted.get(1..quoted.len() - 1).unwrap_or("");
            out.push(CallEvent::Arguments(inner.to_owned()));
        }
    }
}

impl Machine for Coder {
    fn read(
        &mut self,
        text: &str,
        tools: &[CallTool],
        out: &mut Vec<CallEvent>,
    ) -> (usize, Verdict) {
        let mut at = 0;
        loop {
            let (taken, verdict) = self.step(text.get(at..).unwrap_or(""), tools, out);
            at += taken;
            match verdict {
                Some(verdict) => return (at, verdict),
                None if taken == 0 => return (at, Verdict::More),
                None => {}
            }
        }
    }

    fn is_inside(&self) -> bool {
        matches!(self.place, Place::Body | Place::ParameterName | Place::Value(_))
    }

    fn is_between(&self) -> bool {
        matches!(self.place, Place::Behind)
    }
}

/// The types that a schema gives a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Types(BTreeSet<String>);

impl Types {
    /// Those of a property of an object's schema.
    pub(super) fn of_property(schema: &Json, name: &str) -> Self {
        let property = schema.get("properties").and_then(|properties| properties.get(name));
        let mut types = Self::default();
        if let Some(property) = property {
            types.add(property, 0);
        }
        types
    }

    fn add(&mut self, schema: &Json, depth: u32) {
        match schema.get("type") {
            Some(Json::String(name)) => drop(self.0.insert(name.clone())),
            Some(Json::Array(names)) => {
                self.0.extend(names.iter().filter_map(Json::as_str).map(str::to_owned));
            }
            _ => {
                let values = schema.get("enum").and_then(Json::as_array).into_iter().flatten();
                self.0.extend(values.chain(schema.get("const")).map(|v| type_of(v).to_owned()));
                if schema.get("$ref").is_some() {
                    self.0.insert("any".to_owned());
                }
            }
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            for option in schema.get(key).and_then(Json::as_array).into_iter().flatten() {
                if depth < 8 {
                    self.add(option, depth + 1);
                }
            }
        }
    }

    /// It is a string, or nothing is known of it.
    pub(super) fn is_string(&self) -> bool {
        self.0.iter().all(|name| name == "string")
    }

    /// The value that this text is, as JSON.
    fn convert(&self, text: &str) -> String {
        // Templates print values of histories as Python does.
        let trimmed = match text.trim() {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        };
        let as_string = || Json::String(text.to_owned()).to_string();
        let Ok(value) = serde_json::from_str::<Json>(trimmed) else { return as_string() };
        let is_whole = value.as_f64().is_some_and(|n| n.fract() == 0.0);
        let fits = self.0.contains(type_of(&value))
            || self.0.contains("any")
            || (self.0.contains("integer") && is_whole);
        if !fits && self.0.contains("string") { as_string() } else { value.to_string() }
    }
}

fn type_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(_) => "number",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    }
}
