//! The JSON of answers and stream events, as DashScope's native API has it.

use mintage_ledger::TokenUsage;
use serde::Serialize;

use crate::answer::EndReason;
use crate::chat::ToolCall;

/// What an event says of an end that has not come: a string, not a null.
pub(super) const NOT_FINISHED: &str = "null";

/// An answer or an event. It has no `code`: clients take any for an error.
#[derive(Serialize)]
pub(super) struct Body<'a> {
    pub(super) output: Output,
    pub(super) usage: UsageBody,
    pub(super) request_id: &'a str,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Output {
    Text { text: String, finish_reason: &'static str },
    Message { choices: Vec<ChoiceBody> },
}

#[derive(Serialize)]
pub(super) struct ChoiceBody {
    pub(super) index: u32,
    pub(super) finish_reason: &'static str,
    pub(super) message: MessageBody,
}

#[derive(Serialize)]
pub(super) struct MessageBody {
    pub(super) role: &'static str,
    pub(super) content: Content,
    /// Always there: clients of thinking models read it without looking.
    pub(super) reasoning_content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<CallBody>,
}

/// A string on the path of text, a list of parts on that of several media.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Content {
    Text(String),
    Parts([Part; 1]),
}

#[derive(Serialize)]
pub(super) struct Part {
    text: String,
}

impl Content {
    pub(super) fn new(text: String, as_parts: bool) -> Self {
        if as_parts { Self::Parts([Part { text }]) } else { Self::Text(text) }
    }
}

/// A call, or more of one.
#[derive(Serialize)]
pub(super) struct CallBody {
    pub(super) index: u32,
    pub(super) id: String,
    pub(super) r#type: &'static str,
    pub(super) function: FunctionBody,
}

#[derive(Serialize)]
pub(super) struct FunctionBody {
    pub(super) name: String,
    pub(super) arguments: String,
}

impl CallBody {
    pub(super) fn new(index: u32, call: ToolCall) -> Self {
        let ToolCall { id, name, arguments } = call;
        Self { index, id, r#type: "function", function: FunctionBody { name, arguments } }
    }
}

/// Tokens so far, or of all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct UsageBody {
    input_tokens: u64,
    output_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct OutputDetails {
    reasoning_tokens: u64,
}

impl From<&TokenUsage> for UsageBody {
    fn from(usage: &TokenUsage) -> Self {
        let cached_tokens = usage.cached_input.saturating_add(usage.explicit_cached);
        let details = OutputDetails { reasoning_tokens: usage.thinking };
        Self {
            input_tokens: usage.prompt(),
            output_tokens: usage.completion(),
            total_tokens: usage.total(),
            prompt_tokens_details: PromptDetails { cached_tokens },
            output_tokens_details: (usage.thinking > 0).then_some(details),
        }
    }
}

/// Why a choice ended.
pub(super) fn finish_reason(end: &EndReason) -> &'static str {
    match end {
        EndReason::Stop | EndReason::StopString(_) => "stop",
        EndReason::Length => "length",
        EndReason::ToolCalls => "tool_calls",
    }
}
