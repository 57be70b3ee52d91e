//! A chat, whatever its dialect: one request inside, made ready to run.
//!
//! A dialect parses bytes into a [`ChatRequest`], [`prepare`] makes it a [`Job`], and `respond` writes the answer with the
//! dialect's `Writer`. Not here: any wire format, and how tokens become parts (`answer`).
//! Invariant: no dialect knows another, and nothing behind [`prepare`] knows which dialect asked.

mod prompt;
mod request;
mod tools;

use std::sync::Arc;

use mintage_model::TokenId;

pub(crate) use prompt::{
    Prompt, TokenisedPrompt, infill as tokenise_infill, text as tokenise_text,
};
pub(crate) use request::{
    ChatRequest, Format, Message, Reasoning, Role, Tool, ToolCall, ToolChoice,
};
pub(crate) use tools::{CallEvent, CallParser};

use crate::answer::Calls;
use crate::app::App;
use crate::error::ApiError;
use crate::job::{Job, find_model, response_id};
use crate::served::ServedModel;
use crate::structured;

/// What a dialect's route is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    /// Dialect and route, as records have it: `openai.chat`.
    pub(crate) protocol: &'static str,
    /// What ids of its answers begin with: `chatcmpl-`.
    pub(crate) id_prefix: &'static str,
}

/// Finds the model, renders the messages and tokenises them. On a text thread: it may take milliseconds.
pub(crate) fn prepare(app: &App, request: ChatRequest, route: Route) -> Result<Job, ApiError> {
    let model = find_model(&app.models, &request.model)?;
    refuse_unsupported(&request)?;
    let prompt = prompt::chat(&model, &request)?;
    job(model, request, prompt, route)
}

/// The prompt of a chat, without more: what it would be billed for.
pub(crate) fn tokens(
    model: &ServedModel,
    request: &ChatRequest,
) -> Result<Arc<[TokenId]>, ApiError> {
    prompt::chat(model, request)
}

fn job(
    model: Arc<ServedModel>,
    request: ChatRequest,
    prompt: Arc<[TokenId]>,
    route: Route,
) -> Result<Job, ApiError> {
    let grammar = structured::compile(&model, &request.format, &request.format_field)?;
    let calls = calls(&model, &request);
    Ok(Job {
        id: response_id(route.id_prefix),
        calls,
        stop_token_ids: Job::stop_tokens(&model, &request.options)?,
        model,
        prompts: vec![prompt],
        max_tokens: request.max_tokens,
        max_tokens_field: request.max_tokens_field,
        grammar,
        logprobs: request.logprobs,
        prompt_logprobs: request.prompt_logprobs,
        options: request.options,
        stream: request.stream,
        protocol: route.protocol,
    })
}

/// The calls to look for: of models whose template shows them as Hermes does.
fn calls(model: &ServedModel, request: &ChatRequest) -> Option<Calls> {
    let source = model.text.template()?.source();
    let is_hermes = source.contains("<tool_call>") && !source.contains("<function=");
    let wanted = is_hermes && !request.tools.is_empty() && request.tool_choice != ToolChoice::None;
    wanted.then(|| Calls {
        names: request.tools.iter().map(|tool| tool.name.clone()).collect(),
        parallel: request.parallel_tool_calls,
    })
}

/// The same for a text that is continued as it stands: of `request`, messages and what is said of them do not count. With
/// a `suffix` the model fills in what is missing between the two.
pub(crate) fn prepare_text(
    app: &App,
    mut request: ChatRequest,
    prompt: Prompt,
    suffix: Option<&str>,
    route: Route,
) -> Result<Job, ApiError> {
    let model = find_model(&app.models, &request.model)?;
    refuse_unsupported(&request)?;
    let vocab_size = model.engine.info().vocab_size;
    let mut prompt = tokenise_text(&model, 0, &prompt, false, vocab_size)?;
    if let Some(suffix) = suffix {
        prompt = tokenise_infill(&model, &prompt, suffix)?;
        request.options.stop_token_ids.extend(model.text.infill_end_ids());
    }
    job(model, request, prompt.tokens, route)
}

/// What a chat can ask for and this server cannot do yet: refused by name, never ignored.
fn refuse_unsupported(request: &ChatRequest) -> Result<(), ApiError> {
    let refuse = |field: &str, what: &str| {
        Err(ApiError::field(field, "unsupported_parameter", format!("`{field}`: {what}.")))
    };
    if matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Named(_)) {
        return refuse("tool_choice", "only `auto` and `none` are supported");
    }
    if let Some(index) = request.tools.iter().position(|tool| tool.strict) {
        let field = format!("tools[{index}].function.strict");
        return refuse(&field, "strict schemas are not supported yet");
    }
    Ok(())
}
