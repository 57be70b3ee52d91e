//! A chat, whatever its dialect: one request inside, made ready to run.
//!
//! A dialect parses bytes into a [`ChatRequest`], [`prepare`] makes it a [`Job`], and `respond` writes the answer with the
//! dialect's `Writer`. Not here: any wire format, and how tokens become parts (`answer`).
//! Invariant: no dialect knows another, and nothing behind [`prepare`] knows which dialect asked.

mod prompt;
mod request;

use std::sync::Arc;

use mintage_model::{Grammar, Reading, TextModel, Thinking, TokenId};

pub(crate) use prompt::{
    Prompt, TokenisedPrompt, count as count_texts, infill as tokenise_infill, text as tokenise_text,
};
pub(crate) use request::{
    ChatRequest, Format, Message, Reasoning, Role, Tool, ToolCall, ToolChoice,
};

use crate::answer::Calls;
use crate::app::App;
use crate::error::ApiError;
use crate::job::{Elsewhere, Job, find_targets, not_here, response_id};
use crate::served::{ServedModel, Target};
use crate::structured;
use crate::upstream::{self, Bounds, Relay, RemoteModel};

/// What a dialect's route is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    /// Dialect and route, as records have it: `openai.chat`.
    pub(crate) protocol: &'static str,
    /// What ids of its answers begin with: `chatcmpl-`.
    pub(crate) id_prefix: &'static str,
}

/// What is asked: a chat, or a text that is continued.
#[derive(Clone)]
enum Asked {
    Chat,
    Text { prompt: Prompt, suffix: Option<String> },
}

/// Finds who answers and makes the request ready: a model of ours gets tokens, another service text. On a text thread: it
/// may take milliseconds.
pub(crate) fn prepare(app: &App, request: ChatRequest, route: Route) -> Result<Job, ApiError> {
    prepare_asked(app, request, Asked::Chat, route)
}

/// The same for a text that is continued as it stands: of `request`, messages and what is said of them do not count. With
/// a `suffix` the model fills in what is missing between the two.
pub(crate) fn prepare_text(
    app: &App,
    request: ChatRequest,
    prompt: Prompt,
    suffix: Option<&str>,
    route: Route,
) -> Result<Job, ApiError> {
    let suffix = suffix.map(str::to_owned);
    prepare_asked(app, request, Asked::Text { prompt, suffix }, route)
}

fn prepare_asked(
    app: &App,
    request: ChatRequest,
    asked: Asked,
    route: Route,
) -> Result<Job, ApiError> {
    let id = response_id(route.id_prefix);
    let (first, others) = find_targets(&app.models, &request.model, &id)?;
    let again = Arc::new((request, asked, id));
    on_target(app, &again, first, others, route)
}

/// Makes the job for one target; the others stand in for it.
fn on_target(
    app: &App,
    again: &Arc<(ChatRequest, Asked, String)>,
    target: Target,
    others: Vec<Target>,
    route: Route,
) -> Result<Job, ApiError> {
    let (request, asked, id) = &**again;
    let mut job = match &target {
        Target::Own(model) => on_own(model, request.clone(), asked, id.clone(), route)?,
        Target::Remote(remote) => on_remote(app, remote, request, asked, id.clone(), route)?,
    };
    if !others.is_empty() {
        let again = Arc::clone(again);
        let again = Arc::new(move |app: &App, target: Target, others: Vec<Target>| {
            on_target(app, &again, target, others, route)
        });
        job.elsewhere = Some(Elsewhere { targets: others, again });
    }
    Ok(job)
}

fn on_own(
    model: &Arc<ServedModel>,
    mut request: ChatRequest,
    asked: &Asked,
    id: String,
    route: Route,
) -> Result<Job, ApiError> {
    let mut thinking = None;
    let prompt = match asked {
        Asked::Chat => {
            let prompt = prompt::chat(&model.text, &request)?;
            thinking = model.text.thinking_tokens().map(|tokens| tokens.behind(&prompt));
            prompt
        }
        Asked::Text { prompt, suffix } => {
            let vocab_size = model.engine.info().vocab_size;
            let mut prompt = tokenise_text(model, 0, prompt, false, vocab_size)?;
            if let Some(suffix) = suffix {
                prompt = tokenise_infill(model, &prompt, suffix)?;
                request.options.stop_token_ids.extend(model.text.infill_end_ids());
            }
            prompt.tokens
        }
    };
    if let Some(text) = &request.prediction {
        request.options.prediction = prompt::prediction(model, text);
    }
    let of_calls = structured::compile_calls(model, &request)?;
    let (grammar, reading) = match of_calls {
        Some(kept) => (Some(kept.grammar), kept.reading),
        None => {
            let format = structured::compile(model, &request.format, &request.format_field)?;
            (format, Reading::Lenient)
        }
    };
    let grammar = thinking_first(model, &request, thinking, grammar);
    let calls = calls(model, &request, reading);
    Ok(Job {
        id,
        calls,
        thinking,
        stop_token_ids: Job::stop_tokens(model, &request.options)?,
        asked: request.model,
        target: Target::Own(Arc::clone(model)),
        elsewhere: None,
        relay: None,
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

fn on_remote(
    app: &App,
    remote: &Arc<RemoteModel>,
    request: &ChatRequest,
    asked: &Asked,
    id: String,
    route: Route,
) -> Result<Job, ApiError> {
    let config = &remote.config;
    let limit = Limit::of(app, remote, request.max_tokens, request.max_tokens_field)?;
    let tokenizer = config.tokenizer.as_deref();
    let (ask, prompt, own_prompt) = match asked {
        Asked::Chat => {
            let (ask, prompt) = upstream::chat(config, request, limit.sent)?;
            let own = tokenizer.map(|text| prompt::chat(text, request)).transpose()?;
            (ask, prompt, own.map(|tokens| tokens.len() as u64))
        }
        Asked::Text { prompt, suffix } => {
            let format = Some((&request.format, request.format_field.as_str()));
            let prompts = std::slice::from_ref(prompt);
            let suffix = suffix.as_deref();
            let (ask, most) =
                upstream::text(config, prompts, suffix, &request.options, format, limit.sent)?;
            (ask, most, tokenizer.map(|text| prompt::count(text, prompts)))
        }
    };
    let choices = ask.choices;
    let bounds = Bounds { prompt, output: limit.most, choices, own_prompt };
    Ok(Job {
        max_tokens: request.max_tokens,
        max_tokens_field: request.max_tokens_field,
        options: request.options.clone(),
        stream: request.stream,
        ..Job::relayed(id, &request.model, Relay { remote: Arc::clone(remote), ask, bounds }, route)
    })
}

/// Tokens of an answer of another service.
pub(crate) struct Limit {
    /// What the service is told; `None` leaves it to the context.
    pub(crate) sent: Option<u32>,
    /// The most that it can come to.
    pub(crate) most: u32,
}

impl Limit {
    /// `asked`: by the client, under the name `field`.
    pub(crate) fn of(
        app: &App,
        remote: &RemoteModel,
        asked: Option<u32>,
        field: &'static str,
    ) -> Result<Self, ApiError> {
        let config = &remote.config;
        let of_server = app.limits.max_output_tokens;
        let cap = [of_server, config.max_output_tokens].into_iter().flatten().min();
        let cap = cap.unwrap_or(u32::MAX).min(config.context_length);
        match asked {
            Some(asked) if asked > cap => {
                let name = &config.name;
                let message =
                    format!("`{field}` is limited to {cap} for the model `{name}`, not {asked}.");
                Err(ApiError::field(field, "invalid_value", message))
            }
            Some(asked) => Ok(Self { sent: Some(asked), most: asked }),
            None => Ok(Self { sent: (cap < config.context_length).then_some(cap), most: cap }),
        }
    }
}

/// The prompt of a chat, without more: what it would be billed for.
pub(crate) fn tokens(text: &TextModel, request: &ChatRequest) -> Result<Arc<[TokenId]>, ApiError> {
    prompt::chat(text, request)
}

/// The same for whoever answers to the model's name, with what made it tokens.
pub(crate) fn count(
    app: &App,
    request: &ChatRequest,
) -> Result<(Arc<TextModel>, Arc<[TokenId]>), ApiError> {
    // Whoever is healthy: all targets of a route are as good for that.
    let (first, others) = find_targets(&app.models, &request.model, "")?;
    let mut all = std::iter::once(first).chain(others);
    let text = all.find_map(|target| target.text().cloned());
    let text = text.ok_or_else(|| not_here(&request.model))?;
    let tokens = tokens(&text, request)?;
    Ok((text, tokens))
}

/// The grammar of an answer, which begins behind what the model thinks, for as long as it may.
fn thinking_first(
    model: &ServedModel,
    request: &ChatRequest,
    thinking: Option<Thinking>,
    grammar: Option<Arc<dyn Grammar>>,
) -> Option<Arc<dyn Grammar>> {
    let Some(thinking) = thinking else { return grammar };
    let Reasoning { enabled, budget_tokens } = request.reasoning;
    // Who was told not to think answers at once.
    let may_think = thinking.is_inside() || enabled != Some(false);
    if !may_think || (grammar.is_none() && budget_tokens.is_none()) {
        return grammar;
    }
    let vocab_size = model.engine.info().vocab_size;
    Some(model.grammars.after_thinking(thinking, budget_tokens, grammar, vocab_size))
}

/// The calls to look for, where the model's template shows it a form for them.
fn calls(model: &ServedModel, request: &ChatRequest, reading: Reading) -> Option<Calls> {
    if request.tools.is_empty() || request.tool_choice == ToolChoice::None {
        return None;
    }
    let format = model.call_format()?;
    let marker = |text: &&str| model.text.tokenizer().added_token(text);
    Some(Calls {
        format,
        reading,
        tools: request.tools.iter().map(Tool::for_calls).collect(),
        marker_ids: format.markers().iter().filter_map(marker).collect(),
        parallel: request.parallel_tool_calls,
    })
}
