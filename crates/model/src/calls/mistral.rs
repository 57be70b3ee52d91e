//! Calls as Mistral writes them behind `[TOOL_CALLS]`: a list of objects, or, since its eleventh tokenizer, the name, perhaps
//! an id (`[CALL_ID]…`), `[ARGS]` and the arguments.

use super::object::{Arguments, ObjectReader};
use super::{CallEvent, CallTool, Machine, Verdict};

/// Longer names and ids are none.
const MAX_NAME_BYTES: usize = 1024;

#[derive(Debug, Default)]
enum Place {
    #[default]
    Open,
    Object(ObjectReader),
    /// Between two objects of the list.
    Between,
    Name(String),
    /// A marker behind the name, or the id, up to the arguments.
    Marker {
        name: String,
        marker: String,
    },
    Arguments(Arguments),
    /// Behind the arguments of a call with its name in front.
    Behind,
}

/// Reads the calls behind one marker.
#[derive(Debug, Default)]
pub(super) struct Mistral {
    place: Place,
}

/// Whether `marker` may stand, or go on, between name and arguments.
fn may_follow_name(marker: &str) -> bool {
    if marker.len() > MAX_NAME_BYTES {
        return false;
    }
    let marker = match marker.strip_prefix("[CALL_ID]") {
        Some(rest) => rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric()),
        None => marker,
    };
    "[ARGS]".starts_with(marker) || "[CALL_ID]".starts_with(marker)
}

impl Mistral {
    /// Takes a character outside of objects and arguments. `Call`: arguments begin with `c`.
    fn next(&mut self, c: char, tools: &[CallTool], out: &mut Vec<CallEvent>) -> Verdict {
        match &mut self.place {
            Place::Open if c.is_whitespace() => {}
            Place::Open if c == '[' => self.place = Place::Object(ObjectReader::default()),
            Place::Open => {
                self.place = Place::Name(String::new());
                return self.next(c, tools, out);
            }
            Place::Name(name) if c.is_alphanumeric() || matches!(c, '_' | '-' | '.') => {
                name.push(c);
                if name.len() > MAX_NAME_BYTES {
                    return Verdict::Broken;
                }
            }
            Place::Name(name) => {
                let name = std::mem::take(name);
                self.place = Place::Marker { name, marker: String::new() };
                return self.next(c, tools, out);
            }
            Place::Marker { .. } if c.is_whitespace() => {}
            Place::Marker { name, marker } if c == '{' => {
                let is_whole = marker.is_empty() || marker.ends_with("[ARGS]");
                if !is_whole || !tools.iter().any(|tool| tool.name == *name) {
                    return Verdict::Broken;
                }
                out.push(CallEvent::Begin(std::mem::take(name)));
                self.place = Place::Arguments(Arguments::default());
                return Verdict::Call;
            }
            Place::Marker { marker, .. } => {
                marker.push(c);
                if !may_follow_name(marker) {
                    return Verdict::Broken;
                }
            }
            Place::Between if c.is_whitespace() || c == '}' => {}
            Place::Between if c == ',' => self.place = Place::Object(ObjectReader::default()),
            Place::Between | Place::Behind | Place::Object(_) | Place::Arguments(_) => {
                return Verdict::Over;
            }
        }
        Verdict::More
    }
}

impl Machine for Mistral {
    fn read(
        &mut self,
        text: &str,
        tools: &[CallTool],
        out: &mut Vec<CallEvent>,
    ) -> (usize, Verdict) {
        let mut at = 0;
        while let Some(c) = text.get(at..).and_then(|rest| rest.chars().next()) {
            let rest = text.get(at..).unwrap_or("");
            let (taken, verdict) = match &mut self.place {
                Place::Object(object) => object.read(rest, tools, out),
                Place::Arguments(arguments) => {
                    let (taken, verdict) = arguments.read(rest);
                    if verdict != Verdict::Broken {
                        let more = rest.get(..taken).unwrap_or("").to_owned();
                        out.push(CallEvent::Arguments(more));
                    }
                    (taken, verdict)
                }
                // The list is over.
                Place::Between if c == ']' => return (at + 1, Verdict::Over),
                _ => match self.next(c, tools, out) {
                    Verdict::More => (c.len_utf8(), Verdict::More),
                    Verdict::Call => continue,
                    verdict => return (at, verdict),
                },
            };
            at += taken;
            if verdict == Verdict::Call {
                let in_list = matches!(self.place, Place::Object(_));
                self.place = if in_list { Place::Between } else { Place::Behind };
            }
            if verdict != Verdict::More {
                return (at, verdict);
            }
        }
        (at, Verdict::More)
    }

    fn is_inside(&self) -> bool {
        match &self.place {
            Place::Object(object) => object.has_begun(),
            Place::Arguments(_) => true,
            _ => false,
        }
    }

    fn is_between(&self) -> bool {
        matches!(self.place, Place::Between | Place::Behind)
    }
}
