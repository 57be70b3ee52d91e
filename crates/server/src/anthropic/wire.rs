//! The JSON of answers and stream events, as Anthropic's API has it.

use mintage_ledger::TokenUsage;
use serde::Serialize;
use serde_json::Value;

use crate::answer::EndReason;

/// A message: whole, or as it begins.
#[derive(Serialize)]
pub(super) struct MessageBody<'a> {
    pub(super) id: &'a str,
    pub(super) r#type: &'static str,
    pub(super) role: &'static str,
    pub(super) model: &'a str,
    pub(super) content: Vec<Block>,
    pub(super) stop_reason: Option<&'static str>,
    pub(super) stop_sequence: Option<String>,
    pub(super) usage: UsageBody,
}

/// A block of an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block {
    Text { text: String },
    Thinking { thinking: String, signature: &'static str },
    ToolUse { id: String, name: String, input: Value },
}

/// The tokens that a message used, each counted in one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct UsageBody {
    input_tokens: u64,
    cache_creation_input_tokens: u64,
    cache_read_input_tokens: u64,
    output_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct OutputDetails {
    thinking_tokens: u64,
}

impl From<&TokenUsage> for UsageBody {
    fn from(usage: &TokenUsage) -> Self {
        let details = OutputDetails { thinking_tokens: usage.thinking };
        Self {
            input_tokens: usage.input,
            cache_creation_input_tokens: usage.cache_created,
            cache_read_input_tokens: usage.cached_input.saturating_add(usage.explicit_cached),
            output_tokens: usage.completion(),
            output_tokens_details: (usage.thinking > 0).then_some(details),
        }
    }
}

/// What an event of a stream says; `type` is its name, too.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum StreamEvent<'a> {
    MessageStart { message: MessageBody<'a> },
    ContentBlockStart { index: u32, content_block: Block },
    ContentBlockDelta { index: u32, delta: BlockDelta },
    ContentBlockStop { index: u32 },
    MessageDelta { delta: MessageEnd, usage: UsageBody },
    MessageStop,
}

impl StreamEvent<'_> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
        }
    }
}

/// More of a block.
#[derive(Serialize)]
#[serde(tag = "type")]
pub(super) enum BlockDelta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: String },
    #[serde(rename = "signature_delta")]
    Signature { signature: &'static str },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
}

/// Why a message ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct MessageEnd {
    pub(super) stop_reason: Option<&'static str>,
    pub(super) stop_sequence: Option<String>,
}

impl From<EndReason> for MessageEnd {
    fn from(reason: EndReason) -> Self {
        let (stop_reason, stop_sequence) = match reason {
            EndReason::Stop => ("end_turn", None),
            EndReason::StopString(text) => ("stop_sequence", Some(text)),
            EndReason::Length => ("max_tokens", None),
            EndReason::ToolCalls => ("tool_use", None),
        };
        Self { stop_reason: Some(stop_reason), stop_sequence }
    }
}
