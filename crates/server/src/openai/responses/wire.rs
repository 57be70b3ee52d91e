//! The JSON of responses and of their events, as OpenAI's document has it. The same structs are what is kept.

use mintage_ledger::TokenUsage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{ApiError, Fault};

/// Where a response stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Queued,
    InProgress,
    Completed,
    /// It was cut at a limit.
    Incomplete,
    Failed,
    Cancelled,
}

/// A response. Fields that a request says and nothing changes are told as they were given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ResponseBody {
    pub(super) id: String,
    /// `response`.
    pub(super) object: String,
    pub(super) created_at: u64,
    pub(super) status: Status,
    pub(super) completed_at: Option<u64>,
    pub(super) background: bool,
    pub(super) error: Option<ErrorBody>,
    pub(super) incomplete_details: Option<IncompleteDetails>,
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<u32>,
    pub(super) max_tool_calls: Option<u32>,
    pub(super) metadata: Map<String, Value>,
    pub(super) model: String,
    pub(super) output: Vec<OutputItem>,
    pub(super) parallel_tool_calls: bool,
    pub(super) previous_response_id: Option<String>,
    pub(super) prompt_cache_key: Option<String>,
    pub(super) reasoning: ReasoningBody,
    pub(super) safety_identifier: Option<String>,
    /// `default`: there is one.
    pub(super) service_tier: String,
    pub(super) store: bool,
    pub(super) temperature: f32,
    pub(super) text: Value,
    pub(super) tool_choice: Value,
    pub(super) tools: Vec<Value>,
    pub(super) top_logprobs: u8,
    pub(super) top_p: f32,
    pub(super) truncation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<UsageBody>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
}

impl ResponseBody {
    /// The same before anything was computed.
    pub(super) fn begun(&self, status: Status) -> Self {
        Self {
            status,
            completed_at: None,
            error: None,
            incomplete_details: None,
            output: Vec::new(),
            usage: None,
            ..self.clone()
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ErrorBody {
    pub(super) code: String,
    pub(super) message: String,
}

impl From<&ApiError> for ErrorBody {
    /// OpenAI's document knows few codes.
    fn from(error: &ApiError) -> Self {
        let code = match error.fault {
            Fault::Invalid => "invalid_prompt",
            Fault::RateLimited => "rate_limit_exceeded",
            _ => "server_error",
        };
        Self { code: code.to_owned(), message: error.message.clone() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IncompleteDetails {
    pub(super) reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReasoningBody {
    pub(super) effort: Option<String>,
    pub(super) summary: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum OutputItem {
    Message {
        id: String,
        status: ItemStatus,
        role: String,
        content: Vec<Content>,
    },
    FunctionCall {
        id: String,
        status: ItemStatus,
        call_id: String,
        name: String,
        arguments: String,
    },
    Reasoning {
        id: String,
        status: ItemStatus,
        summary: Vec<Value>,
        content: Vec<Content>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ItemStatus {
    InProgress,
    Completed,
    Incomplete,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Content {
    OutputText { annotations: Vec<Value>, logprobs: Vec<Value>, text: String },
    ReasoningText { text: String },
}

impl Content {
    pub(super) fn text(text: String, logprobs: Vec<Value>) -> Self {
        Self::OutputText { annotations: Vec::new(), logprobs, text }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UsageBody {
    pub(super) input_tokens: u64,
    pub(super) input_tokens_details: InputDetails,
    pub(super) output_tokens: u64,
    pub(super) output_tokens_details: OutputDetails,
    pub(super) total_tokens: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InputDetails {
    pub(super) cached_tokens: u64,
    pub(super) cache_write_tokens: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OutputDetails {
    pub(super) reasoning_tokens: u64,
}

impl From<&TokenUsage> for UsageBody {
    fn from(usage: &TokenUsage) -> Self {
        Self {
            input_tokens: usage.prompt(),
            input_tokens_details: InputDetails {
                cached_tokens: usage.cached_input.saturating_add(usage.explicit_cached),
                cache_write_tokens: usage.cache_created,
            },
            output_tokens: usage.completion(),
            output_tokens_details: OutputDetails { reasoning_tokens: usage.thinking },
            total_tokens: usage.total(),
        }
    }
}

/// An event without its number.
#[derive(Serialize)]
#[serde(tag = "type")]
pub(super) enum Event<'a> {
    #[serde(rename = "response.created")]
    Created { response: &'a ResponseBody },
    #[serde(rename = "response.queued")]
    Queued { response: &'a ResponseBody },
    #[serde(rename = "response.in_progress")]
    InProgress { response: &'a ResponseBody },
    #[serde(rename = "response.completed")]
    Completed { response: &'a ResponseBody },
    #[serde(rename = "response.incomplete")]
    Incomplete { response: &'a ResponseBody },
    #[serde(rename = "response.failed")]
    Failed { response: &'a ResponseBody },
    #[serde(rename = "response.output_item.added")]
    ItemAdded { output_index: usize, item: &'a OutputItem },
    #[serde(rename = "response.output_item.done")]
    ItemDone { output_index: usize, item: &'a OutputItem },
    #[serde(rename = "response.content_part.added")]
    PartAdded { item_id: &'a str, output_index: usize, content_index: usize, part: &'a Content },
    #[serde(rename = "response.content_part.done")]
    PartDone { item_id: &'a str, output_index: usize, content_index: usize, part: &'a Content },
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        delta: &'a str,
        logprobs: &'a [Value],
        #[serde(skip_serializing_if = "Option::is_none")]
        obfuscation: Option<String>,
    },
    #[serde(rename = "response.output_text.done")]
    TextDone {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        text: &'a str,
        logprobs: &'a [Value],
    },
    #[serde(rename = "response.reasoning_text.delta")]
    ReasoningDelta {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        delta: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        obfuscation: Option<String>,
    },
    #[serde(rename = "response.reasoning_text.done")]
    ReasoningDone { item_id: &'a str, output_index: usize, content_index: usize, text: &'a str },
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta {
        item_id: &'a str,
        output_index: usize,
        delta: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        obfuscation: Option<String>,
    },
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone { item_id: &'a str, output_index: usize, name: &'a str, arguments: &'a str },
}

impl Event<'_> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "response.created",
            Self::Queued { .. } => "response.queued",
            Self::InProgress { .. } => "response.in_progress",
            Self::Completed { .. } => "response.completed",
            Self::Incomplete { .. } => "response.incomplete",
            Self::Failed { .. } => "response.failed",
            Self::ItemAdded { .. } => "response.output_item.added",
            Self::ItemDone { .. } => "response.output_item.done",
            Self::PartAdded { .. } => "response.content_part.added",
            Self::PartDone { .. } => "response.content_part.done",
            Self::TextDelta { .. } => "response.output_text.delta",
            Self::TextDone { .. } => "response.output_text.done",
            Self::ReasoningDelta { .. } => "response.reasoning_text.delta",
            Self::ReasoningDone { .. } => "response.reasoning_text.done",
            Self::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Self::ArgumentsDone { .. } => "response.function_call_arguments.done",
        }
    }
}

/// An event with its number.
#[derive(Serialize)]
pub(super) struct Numbered<'a> {
    #[serde(flatten)]
    pub(super) event: &'a Event<'a>,
    pub(super) sequence_number: u64,
}
