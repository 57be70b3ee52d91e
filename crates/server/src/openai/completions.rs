//! `POST /v1/completions`: continues texts or tokens as they stand, without a template.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use mintage_ledger::TokenUsage;
use mintage_model::{PendingBytes, SampledToken, TextModel};

use crate::answer::{Part, TokenEntry};
use crate::app::App;
use crate::auth::now_unix;
use crate::chat::{
    Limit, Prompt, Route, TokenisedPrompt, count_texts, tokenise_infill, tokenise_text,
};
use crate::error::ApiError;
use crate::fields::unsupported;
use crate::job::{Elsewhere, Incoming, Job, find_targets, response_id};
use crate::openai::completion_request::CompletionRequest;
use crate::openai::options::Shape;
use crate::openai::usage;
use crate::openai::wire::{
    FINGERPRINT, Head, Reply, TextChoice, TextLogprobs, finish_reason, prompt_logprobs, token_ids,
};
use crate::respond::{Answer, Frames, Writer, json_bytes, respond};
use crate::served::{ServedModel, Target};
use crate::sse;
use crate::structured;
use crate::till::Settled;
use crate::upstream::{self, Bounds, Relay, RemoteModel};

const ROUTE: Route = Route { protocol: "openai.completions", id_prefix: "cmpl-" };

/// Continues prompts.
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let (job, writer) = app.on_text_thread(body.len(), move || prepare(&shared, &body)).await?;
    respond(&app, incoming, job, writer).await
}

/// On a text thread: bytes to a job and its writer.
fn prepare(app: &App, body: &[u8]) -> Result<(Job, TextWriter), ApiError> {
    let request = Arc::new(CompletionRequest::parse(body, &app.limits)?);
    let id = response_id(ROUTE.id_prefix);
    let (first, others) = find_targets(&app.models, &request.model, &id)?;
    let prompts = match &first {
        Target::Own(model) => tokenised(model, &request)?,
        Target::Remote(_) => untokenised(&request)?,
    };
    let job = on_target(app, &request, &id, first, others)?;
    let writer = TextWriter {
        head: Head {
            id: job.id.clone(),
            object: "text_completion",
            created: now_unix(),
            model: job.model_name().to_owned(),
            system_fingerprint: FINGERPRINT,
        },
        text: job.target.text().cloned(),
        n: job.options.n,
        prompts,
        echo: request.echo,
        logprobs: job.logprobs.is_some(),
        prompt_logprobs: request.prompt_logprobs,
        return_token_ids: job.options.return_token_ids,
        shape: request.shape,
    };
    Ok((job, writer))
}

/// Makes the job for one target; the others stand in for it.
fn on_target(
    app: &App,
    request: &Arc<CompletionRequest>,
    id: &str,
    target: Target,
    others: Vec<Target>,
) -> Result<Job, ApiError> {
    let mut job = match &target {
        Target::Own(model) => on_own(model, request, id)?,
        Target::Remote(remote) => on_remote(app, remote, request, id)?,
    };
    if !others.is_empty() {
        let (request, id) = (Arc::clone(request), id.to_owned());
        let again = Arc::new(move |app: &App, target: Target, others: Vec<Target>| {
            on_target(app, &request, &id, target, others)
        });
        job.elsewhere = Some(Elsewhere { targets: others, again });
    }
    Ok(job)
}

fn on_own(
    model: &Arc<ServedModel>,
    request: &CompletionRequest,
    id: &str,
) -> Result<Job, ApiError> {
    let grammar = match &request.structured {
        Some(found) => structured::compile(model, &found.format, &found.field)?,
        None => None,
    };
    let prompts = tokenised(model, request)?;
    let mut options = request.options.clone();
    if request.suffix.is_some() && !options.ignore_eos {
        options.stop_token_ids.extend(model.text.infill_end_ids());
    }
    Ok(Job {
        id: id.to_owned(),
        stop_token_ids: Job::stop_tokens(model, &options)?,
        asked: request.model.clone(),
        target: Target::Own(Arc::clone(model)),
        elsewhere: None,
        relay: None,
        prompts: prompts.iter().map(|p| Arc::clone(&p.tokens)).collect(),
        max_tokens: Some(request.max_tokens),
        max_tokens_field: "max_tokens",
        grammar,
        calls: None,
        thinking: None,
        logprobs: request.logprobs,
        prompt_logprobs: request.logprobs.filter(|_| request.echo).max(request.prompt_logprobs),
        options,
        stream: request.shape.stream,
        protocol: ROUTE.protocol,
    })
}

fn tokenised(
    model: &ServedModel,
    request: &CompletionRequest,
) -> Result<Vec<TokenisedPrompt>, ApiError> {
    let vocab_size = model.engine.info().vocab_size;
    let prompts = request.prompts.iter().enumerate();
    let prompts = prompts.map(|(i, p)| tokenise_text(model, i, p, request.echo, vocab_size));
    let mut prompts: Vec<TokenisedPrompt> = prompts.collect::<Result<_, _>>()?;
    if let Some(suffix) = &request.suffix {
        for prompt in &mut prompts {
            *prompt = tokenise_infill(model, prompt, suffix)?;
        }
    }
    Ok(prompts)
}

/// Where another service makes tokens of prompts: their text, if they have some and it is to be repeated.
fn untokenised(request: &CompletionRequest) -> Result<Vec<TokenisedPrompt>, ApiError> {
    let text = |prompt: &Prompt| match prompt {
        _ if !request.echo => Ok(String::new()),
        Prompt::Text(text) => Ok(text.clone()),
        Prompt::Tokens(_) => {
            Err(unsupported("echo", "another service answers, and the prompt's text is not known"))
        }
    };
    let one = |prompt| Ok(TokenisedPrompt { tokens: Arc::from([]), text: text(prompt)? });
    request.prompts.iter().map(one).collect()
}

fn on_remote(
    app: &App,
    remote: &Arc<RemoteModel>,
    request: &CompletionRequest,
    id: &str,
) -> Result<Job, ApiError> {
    if request.logprobs.is_some() || request.prompt_logprobs.is_some() {
        return Err(unsupported("logprobs", "another service answers for this model"));
    }
    let limit = Limit::of(app, remote, Some(request.max_tokens), "max_tokens")?;
    let format = request.structured.as_ref().map(|found| (&found.format, found.field.as_str()));
    let (ask, prompt) = upstream::text(
        &remote.config,
        &request.prompts,
        request.suffix.as_deref(),
        &request.options,
        format,
        limit.sent,
    )?;
    let own_prompt =
        remote.config.tokenizer.as_deref().map(|text| count_texts(text, &request.prompts));
    let bounds = Bounds { prompt, output: limit.most, choices: ask.choices, own_prompt };
    Ok(Job {
        max_tokens: Some(request.max_tokens),
        options: request.options.clone(),
        stream: request.shape.stream,
        ..Job::relayed(
            id.to_owned(),
            &request.model,
            Relay { remote: Arc::clone(remote), ask, bounds },
            ROUTE,
        )
    })
}

/// What stays the same while an answer is written.
struct TextWriter {
    head: Head,
    /// Of tokens that are told of; other services tell of none.
    text: Option<Arc<TextModel>>,
    n: u32,
    prompts: Vec<TokenisedPrompt>,
    echo: bool,
    logprobs: bool,
    /// Alternatives to tell with tokens of the prompt.
    prompt_logprobs: Option<u8>,
    return_token_ids: bool,
    shape: Shape,
}

impl TextWriter {
    fn prompt(&self, index: u32) -> Option<&TokenisedPrompt> {
        self.prompts.get((index / self.n.max(1)) as usize)
    }

    /// Characters before the answer.
    fn offset(&self, index: u32) -> usize {
        match self.prompt(index) {
            Some(prompt) if self.echo => prompt.text.chars().count(),
            _ => 0,
        }
    }

    /// A choice that says nothing yet.
    fn empty(&self, index: u32) -> TextChoice {
        TextChoice {
            index,
            text: String::new(),
            logprobs: self.logprobs.then(TextLogprobs::default),
            finish_reason: None,
            token_ids: self.return_token_ids.then(Vec::new),
            prompt_token_ids: None,
            prompt_logprobs: None,
        }
    }

    /// The prompt is computed: it is repeated where asked for.
    fn add_prompt(&self, choice: &mut TextChoice, logprobs: Option<Vec<SampledToken>>) {
        let Some(prompt) = self.prompt(choice.index) else { return };
        if self.return_token_ids {
            choice.prompt_token_ids = Some(prompt.tokens.to_vec());
        }
        if let (Some(top), Some(tokens), Some(text)) = (self.prompt_logprobs, &logprobs, &self.text)
        {
            choice.prompt_logprobs = Some(prompt_logprobs(text, tokens, top));
        }
        if self.echo {
            choice.text.push_str(&prompt.text);
            if let (Some(lists), Some(tokens)) = (&mut choice.logprobs, logprobs) {
                self.add_prompt_logprobs(lists, &tokens);
            }
        }
    }

    fn add_prompt_logprobs(&self, lists: &mut TextLogprobs, tokens: &[SampledToken]) {
        let Some(text) = &self.text else { return };
        let mut utf8 = PendingBytes::default();
        let mut chars = 0;
        for token in tokens {
            lists.push(text, token, chars);
            let bytes = text.tokenizer().token_bytes(token.id).unwrap_or(&[]);
            chars += utf8.push(bytes).chars().count();
        }
    }

    fn add_delta(&self, choice: &mut TextChoice, delta: &str, entries: &[TokenEntry]) {
        choice.text.push_str(delta);
        let offset = self.offset(choice.index);
        if let (Some(lists), Some(text)) = (&mut choice.logprobs, &self.text) {
            lists.extend(text, entries, offset);
        }
        if let Some(ids) = &mut choice.token_ids {
            ids.extend(token_ids(entries));
        }
    }

    fn choice(&self, index: u32, answer: Answer) -> TextChoice {
        let mut choice = self.empty(index);
        self.add_prompt(&mut choice, answer.prompt_logprobs);
        self.add_delta(&mut choice, &answer.text, &answer.entries);
        choice.finish_reason = Some(finish_reason(&answer.end));
        choice
    }

    /// The data of an event. `usage` is given in the last one, and in each where that is asked for.
    fn event(
        &self,
        choices: &[TextChoice],
        usage: Option<&Settled>,
        frames: &mut Frames,
    ) -> Result<(), ApiError> {
        let usage = self
            .shape
            .include_usage
            .then(|| usage.map(|settled| usage::body(settled, self.shape.include_cost)));
        frames.data(&Reply {
            head: &self.head,
            choices,
            usage,
            prompt_token_ids: None,
            prompt_logprobs: None,
            service_tier: None,
            obfuscation: None,
        })
    }
}

impl Writer for TextWriter {
    fn answered_by(&mut self, job: &Job) {
        job.model_name().clone_into(&mut self.head.model);
        self.text = job.target.text().cloned();
    }

    fn part(
        &mut self,
        index: u32,
        part: Part,
        so_far: &TokenUsage,
        frames: &mut Frames,
    ) -> Result<(), ApiError> {
        let mut choice = self.empty(index);
        match part {
            // Nothing to say before the first token, unless the prompt is to be reported.
            Part::Prompt { .. } if !self.echo && !self.return_token_ids => return Ok(()),
            Part::Prompt { logprobs } => self.add_prompt(&mut choice, logprobs),
            Part::Text { text, entries } => self.add_delta(&mut choice, &text, &entries),
            Part::End { reason } => {
                choice.finish_reason = Some(finish_reason(&reason));
                choice.logprobs = None;
            }
            // A plain completion neither thinks nor calls: all of it is text.
            Part::Reasoning { .. }
            | Part::CallBegin { .. }
            | Part::CallArguments { .. }
            | Part::CallEnd { .. } => return Ok(()),
        }
        let running = self.shape.running(so_far);
        self.event(&[choice], running.as_ref(), frames)
    }

    fn last(&mut self, settled: &Settled, frames: &mut Frames) -> Result<(), ApiError> {
        if self.shape.include_usage {
            self.event(&[], Some(settled), frames)?;
        }
        frames.raw(sse::frame(super::DONE));
        Ok(())
    }

    fn broken(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.raw(sse::frame(&error.to_json()));
    }

    fn whole(&mut self, answers: Vec<Answer>, settled: &Settled) -> Result<Vec<u8>, ApiError> {
        let choices: Vec<TextChoice> =
            (0..).zip(answers).map(|(index, answer)| self.choice(index, answer)).collect();
        json_bytes(&Reply {
            head: &self.head,
            choices: &choices,
            usage: Some(Some(usage::body(settled, self.shape.include_cost))),
            prompt_token_ids: None,
            prompt_logprobs: None,
            service_tier: None,
            obfuscation: None,
        })
    }
}
