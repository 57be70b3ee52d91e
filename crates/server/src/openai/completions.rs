//! `POST /v1/completions`: continues texts or tokens as they stand, without a template.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use mintage_ledger::TokenUsage;
use mintage_model::{PendingBytes, SampledToken};

use crate::answer::{Part, TokenEntry};
use crate::app::App;
use crate::auth::now_unix;
use crate::chat::{TokenisedPrompt, tokenise_infill, tokenise_text};
use crate::error::ApiError;
use crate::job::{Incoming, Job, find_model, response_id};
use crate::openai::completion_request::CompletionRequest;
use crate::openai::options::Shape;
use crate::openai::usage;
use crate::openai::wire::{
    FINGERPRINT, Head, Reply, TextChoice, TextLogprobs, finish_reason, prompt_logprobs, token_ids,
};
use crate::respond::{Answer, Frames, Writer, json_bytes, respond};
use crate::served::ServedModel;
use crate::sse;
use crate::structured;
use crate::till::Settled;

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
    let request = CompletionRequest::parse(body, &app.limits)?;
    let model = find_model(&app.models, &request.model)?;
    let grammar = match &request.structured {
        Some(found) => structured::compile(&model, &found.format, &found.field)?,
        None => None,
    };
    let vocab_size = model.engine.info().vocab_size;
    let prompts = request.prompts.iter().enumerate();
    let prompts = prompts.map(|(i, p)| tokenise_text(&model, i, p, request.echo, vocab_size));
    let mut prompts: Vec<TokenisedPrompt> = prompts.collect::<Result<_, _>>()?;
    let mut options = request.options;
    if let Some(suffix) = &request.suffix {
        for prompt in &mut prompts {
            *prompt = tokenise_infill(&model, prompt, suffix)?;
        }
        if !options.ignore_eos {
            options.stop_token_ids.extend(model.text.infill_end_ids());
        }
    }
    let job = Job {
        id: response_id("cmpl-"),
        stop_token_ids: Job::stop_tokens(&model, &options)?,
        model,
        prompts: prompts.iter().map(|p| Arc::clone(&p.tokens)).collect(),
        max_tokens: Some(request.max_tokens),
        max_tokens_field: "max_tokens",
        grammar,
        calls: None,
        logprobs: request.logprobs,
        prompt_logprobs: request.logprobs.filter(|_| request.echo).max(request.prompt_logprobs),
        options,
        stream: request.shape.stream,
        protocol: "openai.completions",
    };
    let writer = TextWriter {
        head: Head {
            id: job.id.clone(),
            object: "text_completion",
            created: now_unix(),
            model: job.model.name.clone(),
            system_fingerprint: FINGERPRINT,
        },
        model: Arc::clone(&job.model),
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

/// What stays the same while an answer is written.
struct TextWriter {
    head: Head,
    model: Arc<ServedModel>,
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
        if let (Some(top), Some(tokens)) = (self.prompt_logprobs, &logprobs) {
            choice.prompt_logprobs = Some(prompt_logprobs(&self.model.text, tokens, top));
        }
        if self.echo {
            choice.text.push_str(&prompt.text);
            if let (Some(lists), Some(tokens)) = (&mut choice.logprobs, logprobs) {
                self.add_prompt_logprobs(lists, &tokens);
            }
        }
    }

    fn add_prompt_logprobs(&self, lists: &mut TextLogprobs, tokens: &[SampledToken]) {
        let text = &self.model.text;
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
        if let Some(lists) = &mut choice.logprobs {
            lists.extend(&self.model.text, entries, offset);
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
        })
    }
}

impl Writer for TextWriter {
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
        })
    }
}
