//! Prompts to tokens: the model's template for chats, the text as it stands for completions.
//!
//! In a chat, only the template writes control tokens; a user's `<|im_end|>` stays ten characters. In a plain
//! completion the prompt is the caller's alone, so control tokens in it count (fill-in-the-middle needs them).

use std::sync::Arc;

use mintage_model::{ChatError, ChatOptions, SpecialTokens, TokenId};

use crate::auth::now_unix;
use crate::error::ApiError;
use crate::openai::chat_request::ChatRequest;
use crate::openai::completion_request::Prompt;
use crate::served::ServedModel;

/// A plain prompt, ready to run.
#[derive(Clone, Debug)]
pub(super) struct TokenisedPrompt {
    pub(super) tokens: Arc<[TokenId]>,
    /// Its text, where it is to be repeated; else empty.
    pub(super) text: String,
}

/// Renders a chat and tokenises it.
pub(super) fn chat(model: &ServedModel, request: &ChatRequest) -> Result<Arc<[TokenId]>, ApiError> {
    let mut variables = serde_json::Map::new();
    if let Some(enable) = request.enable_thinking {
        variables.insert("enable_thinking".to_owned(), enable.into());
    }
    let options =
        ChatOptions { add_generation_prompt: true, variables, now_unix_s: Some(now_unix()) };
    let tools = (!request.tools.is_empty()).then_some(request.tools.as_slice());
    match model.text.encode_chat(&request.messages, tools, &options) {
        Ok(tokens) => Ok(tokens.into()),
        Err(error @ ChatError::NoTemplate) => {
            Err(ApiError::field("model", "no_chat_template", format!("`model`: {error}.")))
        }
        Err(error) => {
            Err(ApiError::field("messages", "invalid_value", format!("`messages`: {error}.")))
        }
    }
}

/// Tokenises a plain prompt; `index` is its place among the request's prompts.
pub(super) fn text(
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
