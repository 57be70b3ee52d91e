//! Calls as Hermes, Qwen2.5 and Qwen3 write them: an object in `<tool_call>`.
//!
//! Small models write the object well and what stands around it not: a fence, the tag of the list of tools, or nothing.
//! An object that names a tool that was offered, with arguments, is taken for the call that it is.

use super::object::ObjectReader;
use super::{CallEvent, CallTool, Machine, Verdict};

/// What calls are written in, and how that ends.
const FRAMES: &[(&str, &str)] = &[
    ("<tool_call>", "</tool_call>"),
    ("<tools>", "</tools>"),
    ("<tool>", "</tool>"),
    ("<function_call>", "</function_call>"),
    ("```json", "```"),
];
/// The first halves of [`FRAMES`].
pub(super) const OPENERS: &[&str] =
    &["<tool_call>", "<tools>", "<tool>", "<function_call>", "```json"];

/// Reads the calls of one frame.
#[derive(Debug)]
pub(super) struct Hermes {
    /// How the frame ends; empty where the object stands for itself.
    close: &'static str,
    object: ObjectReader,
    /// Objects name their tool, then its arguments.
    ordered: bool,
    /// A call is whole; its frame may end, or hold another.
    is_between: bool,
}

impl Hermes {
    pub(super) fn new(opener: &str, ordered: bool) -> Self {
        let frame = FRAMES.iter().find(|(open, _)| *open == opener);
        Self {
            close: frame.map_or("", |(_, close)| close),
            object: ObjectReader::new(ordered),
            ordered,
            is_between: false,
        }
    }
}

impl Machine for Hermes {
    fn read(
        &mut self,
        text: &str,
        tools: &[CallTool],
        out: &mut Vec<CallEvent>,
    ) -> (usize, Verdict) {
        if !self.is_between {
            let (taken, verdict) = self.object.read(text, tools, out);
            self.is_between = verdict == Verdict::Call;
            return (taken, verdict);
        }
        if self.close.is_empty() {
            let braces = text.len() - text.trim_start_matches('}').len();
            let is_rest_blank = text.get(braces..).is_none_or(|rest| rest.trim().is_empty());
            return (braces, if is_rest_blank { Verdict::More } else { Verdict::Over });
        }
        // A brace too many is forgiven.
        let rest = text.trim_start_matches(|c: char| c.is_whitespace() || c == '}' || c == ',');
        let skipped = text.len() - rest.len();
        if rest.starts_with(self.close) {
            return (skipped + self.close.len(), Verdict::Over);
        }
        if rest.starts_with('{') {
            self.object = ObjectReader::new(self.ordered);
            let (taken, verdict) = self.object.read(rest, tools, out);
            self.is_between = verdict == Verdict::Call;
            return (skipped + taken, verdict);
        }
        (0, if self.close.starts_with(rest) { Verdict::More } else { Verdict::Over })
    }

    fn is_inside(&self) -> bool {
        !self.is_between && self.object.has_begun()
    }

    fn is_between(&self) -> bool {
        self.is_between
    }
}
