//! The JSON of answers and stream events, as OpenAI's document has it; extensions are named as vLLM names them.

use std::collections::BTreeMap;

use mintage_model::{SampledToken, TextModel, TokenId};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::answer::{EndReason, TokenEntry};
use crate::openai::usage::Cost;

/// The one tier of service.
pub(super) const TIER: &str = "default";

/// Names the program that answered.
pub(super) const FINGERPRINT: &str = concat!("mintage-", env!("CARGO_PKG_VERSION"));

/// What every answer and every event begins with.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) system_fingerprint: &'static str,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct UsageBody {
    pub(super) prompt_tokens: u32,
    pub(super) completion_tokens: u32,
    pub(super) total_tokens: u32,
    pub(super) prompt_tokens_details: PromptDetails,
    /// Of answers that were thought about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) completion_tokens_details: Option<CompletionDetails>,
    /// As OpenRouter has it, where asked for: in the price list's currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cost: Option<Cost>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub(super) struct PromptDetails {
    pub(super) cached_tokens: u32,
}

#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub(super) struct CompletionDetails {
    pub(super) reasoning_tokens: u32,
}

/// An answer or an event: head, choices, usage.
#[derive(Serialize)]
pub(super) struct Reply<'a, C: Serialize> {
    #[serde(flatten)]
    pub(super) head: &'a Head,
    pub(super) choices: &'a [C],
    /// Present as `null` in the events before the last where usage is streamed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<UsageBody>>,
    /// Where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service_tier: Option<&'static str>,
    /// Of an event, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) obfuscation: Option<String>,
    /// Of a chat, where token ids are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<&'a [TokenId]>,
    /// Of a chat, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_logprobs: Option<PromptLogprobs>,
}

/// By token of the prompt, as vLLM has it: ids of the token itself and of alternatives, with what is told of each; `null`
/// for the first.
pub(super) type PromptLogprobs = Vec<Option<BTreeMap<TokenId, PromptLogprob>>>;

#[derive(Serialize)]
pub(super) struct PromptLogprob {
    pub(super) logprob: f32,
    /// From 1 on; of the token itself unknown where it is not among the alternatives.
    pub(super) rank: Option<usize>,
    pub(super) decoded_token: String,
}

#[derive(Serialize)]
pub(super) struct ChatChoice {
    pub(super) index: u32,
    pub(super) message: ChatMessage,
    pub(super) logprobs: Option<ChatLogprobs>,
    pub(super) finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_ids: Option<Vec<TokenId>>,
}

#[derive(Serialize)]
pub(super) struct ChatMessage {
    pub(super) role: &'static str,
    pub(super) content: Option<String>,
    pub(super) refusal: Option<String>,
    /// As DashScope and vLLM have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tool_calls: Option<Vec<ToolCallBody>>,
}

#[derive(Serialize)]
pub(super) struct ToolCallBody {
    pub(super) id: String,
    pub(super) r#type: &'static str,
    pub(super) function: FunctionBody,
}

#[derive(Serialize)]
pub(super) struct FunctionBody {
    pub(super) name: String,
    pub(super) arguments: String,
}

#[derive(Default, Serialize)]
pub(super) struct ChatChunkChoice {
    pub(super) index: u32,
    pub(super) delta: Delta,
    pub(super) logprobs: Option<ChatLogprobs>,
    pub(super) finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_ids: Option<Vec<TokenId>>,
}

#[derive(Default, Serialize)]
pub(super) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tool_calls: Option<Vec<ToolCallDelta>>,
}

/// The beginning of a call, or more of its arguments.
#[derive(Serialize)]
pub(super) struct ToolCallDelta {
    pub(super) index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) r#type: Option<&'static str>,
    pub(super) function: FunctionDelta,
}

#[derive(Serialize)]
pub(super) struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    pub(super) arguments: String,
}

#[derive(Default, Serialize)]
pub(super) struct ChatLogprobs {
    pub(super) content: Vec<ChatLogprob>,
    pub(super) refusal: Option<Vec<ChatLogprob>>,
}

#[derive(Serialize)]
pub(super) struct ChatLogprob {
    #[serde(flatten)]
    pub(super) token: TokenText,
    pub(super) top_logprobs: Vec<TokenText>,
}

#[derive(Serialize)]
pub(super) struct TokenText {
    pub(super) token: String,
    pub(super) logprob: f32,
    pub(super) bytes: Vec<u8>,
}

/// A choice of a plain completion, in an answer or in an event.
#[derive(Serialize)]
pub(super) struct TextChoice {
    pub(super) index: u32,
    pub(super) text: String,
    pub(super) logprobs: Option<TextLogprobs>,
    pub(super) finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_ids: Option<Vec<TokenId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<Vec<TokenId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_logprobs: Option<PromptLogprobs>,
}

/// The log-probabilities of a plain completion: parallel lists.
#[derive(Default, Serialize)]
pub(super) struct TextLogprobs {
    pub(super) tokens: Vec<String>,
    pub(super) token_logprobs: Vec<Option<f32>>,
    pub(super) top_logprobs: Vec<Option<Map<String, Value>>>,
    /// In characters.
    pub(super) text_offset: Vec<usize>,
}

pub(super) fn finish_reason(end: &EndReason) -> &'static str {
    match end {
        EndReason::Stop | EndReason::StopString(_) => "stop",
        EndReason::Length => "length",
        EndReason::ToolCalls => "tool_calls",
    }
}

/// JSON knows no infinities: a token the model holds impossible gets OpenAI's stand-in.
pub(super) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

pub(super) fn token_text(text: &TextModel, id: TokenId, logprob: f32) -> TokenText {
    let bytes = text.tokenizer().token_bytes(id).unwrap_or(&[]).to_vec();
    let token = String::from_utf8_lossy(&bytes).into_owned();
    TokenText { token, logprob: finite(logprob), bytes }
}

/// The entries of visible tokens: their bytes, joined, are the text.
pub(super) fn chat_logprobs(text: &TextModel, entries: &[TokenEntry]) -> ChatLogprobs {
    let visible = entries.iter().filter(|entry| !entry.is_silent);
    let content = visible.map(|entry| ChatLogprob {
        token: token_text(text, entry.token.id, entry.token.logprob.unwrap_or(f32::NEG_INFINITY)),
        top_logprobs: entry.token.top.iter().map(|t| token_text(text, t.id, t.logprob)).collect(),
    });
    ChatLogprobs { content: content.collect(), refusal: None }
}

impl TextLogprobs {
    pub(super) fn push(&mut self, text: &TextModel, token: &SampledToken, offset: usize) {
        let name = |id| {
            String::from_utf8_lossy(text.tokenizer().token_bytes(id).unwrap_or(&[])).into_owned()
        };
        self.tokens.push(name(token.id));
        self.token_logprobs.push(token.logprob.map(finite));
        self.text_offset.push(offset);
        // The first token of a prompt has no probability, and no alternatives.
        self.top_logprobs.push(token.logprob.map(|logprob| {
            let mut top = Map::new();
            for alternative in &token.top {
                top.entry(name(alternative.id))
                    .or_insert_with(|| finite(alternative.logprob).into());
            }
            top.entry(name(token.id)).or_insert_with(|| finite(logprob).into());
            top
        }));
    }

    /// Appends the tokens of an answer that begins `offset` characters into the text.
    pub(super) fn extend(&mut self, text: &TextModel, entries: &[TokenEntry], offset: usize) {
        for entry in entries.iter().filter(|entry| !entry.is_silent) {
            self.push(text, &entry.token, offset + entry.start_char);
        }
    }
}

/// With at most `top` alternatives each: more of them may be there for other reports.
pub(super) fn prompt_logprobs(
    text: &TextModel,
    tokens: &[SampledToken],
    top: u8,
) -> PromptLogprobs {
    let told = |id, logprob, rank| PromptLogprob {
        logprob: finite(logprob),
        rank,
        decoded_token: token_text(text, id, logprob).token,
    };
    let one = |token: &SampledToken| {
        let logprob = token.logprob?;
        let ranked = (1..).zip(&token.top).take(usize::from(top));
        let mut all: BTreeMap<TokenId, PromptLogprob> =
            ranked.map(|(rank, t)| (t.id, told(t.id, t.logprob, Some(rank)))).collect();
        let place = token.top.iter().position(|t| t.id == token.id).map(|at| at + 1);
        all.entry(token.id).or_insert_with(|| told(token.id, logprob, place));
        Some(all)
    };
    tokens.iter().map(one).collect()
}

pub(super) fn token_ids(entries: &[TokenEntry]) -> Vec<TokenId> {
    entries.iter().map(|entry| entry.token.id).collect()
}
