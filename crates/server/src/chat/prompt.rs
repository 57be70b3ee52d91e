//! Prompts to tokens: the model's template for chats, the text as it stands for completions.
//!
//! In a chat, only the template writes control tokens; a user's `<|im_end|>` stays ten characters. In a plain
//! completion the prompt is the caller's alone, so control tokens in it count (fill-in-the-middle needs them).

use std::sync::Arc;

use mintage_model::{ChatError, ChatOptions, SpecialTokens, TextModel, TokenId};
use serde_json::Value;

use crate::auth::now_unix;
use crate::chat::{ChatRequest, Message, ToolChoice};
use crate::error::ApiError;
use crate::served::ServedModel;

/// One plain prompt, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// A plain prompt, ready to run.
#[derive(Clone, Debug)]
pub(crate) struct TokenisedPrompt {
    pub(crate) tokens: Arc<[TokenId]>,
    /// Its text, where it is to be repeated; else empty.
    pub(crate) text: String,
}

/// Renders a chat and tokenises it.
pub(super) fn chat(text: &TextModel, request: &ChatRequest) -> Result<Arc<[TokenId]>, ApiError> {
    let mut variables = serde_json::Map::new();
    if let Some(enable) = request.reasoning.enabled {
        variables.insert("enable_thinking".to_owned(), enable.into());
    }
    let options =
        ChatOptions { add_generation_prompt: true, variables, now_unix_s: Some(now_unix()) };
    let (answered, begun) = match request.messages.split_last() {
        Some((last, before)) if request.continues_last => (before, Some(last)),
        _ => (request.messages.as_slice(), None),
    };
    let messages: Vec<Value> = answered.iter().map(Message::for_template).collect();
    let shown = request.tools.iter().filter(|_| request.tool_choice != ToolChoice::None);
    let tools: Vec<Value> = shown.map(|tool| tool.json.clone()).collect();
    let tools = (!tools.is_empty()).then_some(tools.as_slice());
    match text.encode_chat(&messages, tools, &options) {
        Ok(mut tokens) => {
            if let Some(begun) = begun {
                tokens.extend(text.tokenizer().encode(&begun.text, SpecialTokens::AsText));
            }
            Ok(tokens.into())
        }
        Err(error @ ChatError::NoTemplate) => {
            Err(ApiError::field("model", "no_chat_template", format!("`model`: {error}.")))
        }
        Err(error) => {
            Err(ApiError::field("messages", "invalid_value", format!("`messages`: {error}.")))
        }
    }
}

/// Tokens of plain prompts, where only their number is wanted.
pub(crate) fn count(text: &TextModel, prompts: &[Prompt]) -> u64 {
    let one = |prompt: &Prompt| match prompt {
        Prompt::Text(given) => text.encode_completion(given, SpecialTokens::Allow).len() as u64,
        Prompt::Tokens(tokens) => tokens.len() as u64,
    };
    prompts.iter().map(one).sum()
}

/// The tokens of a text that the answer probably repeats; what is too long for any answer is left out.
pub(super) fn prediction(model: &ServedModel, text: &str) -> Arc<[TokenId]> {
    let mut tokens = model.text.tokenizer().encode(text, SpecialTokens::AsText);
    tokens.truncate(model.engine.info().context_length as usize);
    tokens.into()
}

/// Tokenises a prompt and what comes behind its answer, for a model that fills in what is missing between them.
pub(crate) fn infill(
    model: &ServedModel,
    prompt: &TokenisedPrompt,
    suffix: &str,
) -> Result<TokenisedPrompt, ApiError> {
    let tokens = model.text.encode_infill(&prompt.tokens, suffix).ok_or_else(|| {
        let message = "`suffix`: this model has no tokens for filling in the middle.";
        ApiError::field("suffix", "unsupported_parameter", message)
    })?;
    Ok(TokenisedPrompt { tokens: tokens.into(), text: prompt.text.clone() })
}

/// Tokenises a plain prompt; `index` is its place among the request's prompts.
pub(crate) fn text(
    model: &ServedModel,
    index: usize,
    prompt: &Prompt,
    echo: bool,
    vocab_size: u32,
) -> Result<TokenisedPrompt, ApiError> {
    let tokenizer = model.text.tokenizer();
    let (tokens, text) = match prompt {
        Prompt::Text(text) => {
            let tokens = model.text.encode_completion(text, SpecialTokens::Allow);
            (tokens, if echo { text.clone() } else { String::new() })
        }
        Prompt::Tokens(tokens) => {
            if let Some(id) = tokens.iter().find(|id| **id >= vocab_size) {
                let message = format!(
                    "`prompt` holds the token {id}, but the model's vocabulary has {vocab_size}."
                );
                return Err(ApiError::field("prompt", "invalid_value", message));
            }
            let text = if echo { tokenizer.decode(tokens, false) } else { String::new() };
            (tokens.clone(), text)
        }
    };
    if tokens.is_empty() {
        let message = format!("`prompt[{index}]` is empty: it must hold at least one token.");
        return Err(ApiError::field("prompt", "invalid_value", message));
    }
    Ok(TokenisedPrompt { tokens: tokens.into(), text })
}
