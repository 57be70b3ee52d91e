//! Calls as Llama 3 writes them: an object that is the answer, or stands behind `<|python_tag|>`.

use super::object::ObjectReader;
use super::{CallEvent, CallTool, Machine, Verdict};

/// Reads one call.
#[derive(Debug, Default)]
pub(super) struct Llama {
    object: ObjectReader,
    is_between: bool,
}

impl Machine for Llama {
    fn read(
        &mut self,
        text: &str,
        tools: &[CallTool],
        out: &mut Vec<CallEvent>,
    ) -> (usize, Verdict) {
        if self.is_between {
            return (0, Verdict::Over);
        }
        let (taken, verdict) = self.object.read(text, tools, out);
        self.is_between = verdict == Verdict::Call;
        (taken, verdict)
    }

    fn is_inside(&self) -> bool {
        !self.is_between && self.object.has_begun()
    }

    fn is_between(&self) -> bool {
        self.is_between
    }
}
