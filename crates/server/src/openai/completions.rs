//! `POST /v1/completions`: continues texts or tokens as they stand, without a template.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use mintage_model::{PendingBytes, SampledToken};

use crate::answer::{Piece, TokenEntry};
use crate::app::{Admission, App};
use crate::auth::now_unix;
use crate::error::{ApiError, json};
use crate::openai::completion_request::CompletionRequest;
use crate::openai::generate::{Choices, Incoming, Job, find_model, response_id};
use crate::openai::prompt::{self, TokenisedPrompt};
use crate::openai::usage::UsageSum;
use crate::openai::wire::{
    FINGERPRINT, Head, Reply, TextChoice, TextLogprobs, finish_reason, token_ids,
};
use crate::served::ServedModel;
use crate::sse::{self, EventSource};

/// Continues prompts.
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let (job, prompts, echo) = app.on_text_thread(move || prepare(&shared, &body)).await?;
    let id = response_id("cmpl");
    let choices = job.submit(&app, &incoming, &id)?;
    let reply = TextReply {
        head: Head {
            id,
            object: "text_completion",
            created: now_unix(),
            model: job.model.name.clone(),
            system_fingerprint: FINGERPRINT,
        },
        model: job.model,
        n: job.options.n,
        prompts,
        echo,
        logprobs: job.logprobs.is_some(),
        return_token_ids: job.options.return_token_ids,
        include_usage: job.options.include_usage,
        usage: UsageSum::new(job.options.n),
    };
    if job.options.stream {
        let source = TextStream {
            reply,
            choices: Some(choices),
            ready: VecDeque::new(),
            _admission: incoming.admission,
        };
        return Ok(sse::response(source, app.limits.keep_alive_interval));
    }
    reply.whole(choices).await
}

/// On a text thread: bytes to a job, its prompts and whether to repeat them.
fn prepare(app: &App, body: &[u8]) -> Result<(Job, Vec<TokenisedPrompt>, bool), ApiError> {
    let request = CompletionRequest::parse(body, &app.limits)?;
    let model = find_model(&app.models, &request.model)?;
    let vocab_size = model.engine.info().vocab_size;
    let prompts = request.prompts.iter().enumerate();
    let prompts = prompts.map(|(i, p)| prompt::text(&model, i, p, request.echo, vocab_size));
    let prompts: Vec<TokenisedPrompt> = prompts.collect::<Result<_, _>>()?;
    let job = Job {
        stop_token_ids: Job::stop_tokens(&model, &request.options)?,
        model,
        prompts: prompts.iter().map(|p| Arc::clone(&p.tokens)).collect(),
        max_tokens: Some(request.max_tokens),
        max_tokens_field: "max_tokens",
        logprobs: request.logprobs,
        prompt_logprobs: request.logprobs.filter(|_| request.echo),
        options: request.options,
    };
    Ok((job, prompts, request.echo))
}

/// What stays the same while an answer is written, and its usage so far.
struct TextReply {
    head: Head,
    model: Arc<ServedModel>,
    n: u32,
    prompts: Vec<TokenisedPrompt>,
    echo: bool,
    logprobs: bool,
    return_token_ids: bool,
    include_usage: bool,
    usage: UsageSum,
}

impl TextReply {
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
        }
    }

    /// The prompt is computed: it is repeated where asked for.
    fn add_prompt(&self, choice: &mut TextChoice, logprobs: Option<Vec<SampledToken>>) {
        let Some(prompt) = self.prompt(choice.index) else { return };
        if self.return_token_ids {
            choice.prompt_token_ids = Some(prompt.tokens.to_vec());
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

    /// Reads all choices to their ends.
    async fn whole(mut self, mut running: Choices) -> Result<Response, ApiError> {
        let count = u32::try_from(self.prompts.len()).unwrap_or(u32::MAX).saturating_mul(self.n);
        let mut choices: Vec<TextChoice> = (0..count).map(|i| self.empty(i)).collect();
        while let Some(piece) = running.next().await {
            let (index, piece) = piece?;
            let Some(choice) = choices.get_mut(index as usize) else { continue };
            match piece {
                Piece::Prompt { prompt_logprobs } => self.add_prompt(choice, prompt_logprobs),
                Piece::Delta { text, entries } => self.add_delta(choice, &text, &entries),
                Piece::End { outcome, usage } => {
                    choice.finish_reason = Some(finish_reason(outcome?));
                    self.usage.add(index, usage);
                }
            }
        }
        let usage = Some(Some(self.usage.body()));
        Ok(json(Reply { head: &self.head, choices: &choices, usage, prompt_token_ids: None }))
    }

    /// The data of an event. `usage` is given in the last one only.
    fn event(&self, choices: &[TextChoice], usage: Option<UsageSum>) -> Result<String, ApiError> {
        let usage = self.include_usage.then(|| usage.map(|usage| usage.body()));
        let reply = Reply { head: &self.head, choices, usage, prompt_token_ids: None };
        serde_json::to_string(&reply).map_err(|e| ApiError::internal(format!("an event: {e}")))
    }
}

/// The events of a streamed completion.
struct TextStream {
    reply: TextReply,
    /// `None` once the stream is over or broken; dropping it stops what still runs.
    choices: Option<Choices>,
    ready: VecDeque<String>,
    _admission: Admission,
}

impl TextStream {
    fn piece(&mut self, index: u32, piece: Piece) -> Result<(), ApiError> {
        let mut choice = self.reply.empty(index);
        match piece {
            // Nothing to say before the first token, unless the prompt is to be reported.
            Piece::Prompt { .. } if !self.reply.echo && !self.reply.return_token_ids => {
                return Ok(());
            }
            Piece::Prompt { prompt_logprobs } => {
                self.reply.add_prompt(&mut choice, prompt_logprobs);
            }
            Piece::Delta { text, entries } => self.reply.add_delta(&mut choice, &text, &entries),
            Piece::End { outcome, usage } => {
                self.reply.usage.add(index, usage);
                choice.finish_reason = Some(finish_reason(outcome?));
                choice.logprobs = None;
            }
        }
        let event = self.reply.event(&[choice], None)?;
        self.ready.push_back(event);
        Ok(())
    }

    fn last_events(&mut self) -> Result<(), ApiError> {
        if self.reply.include_usage {
            let event = self.reply.event(&[], Some(self.reply.usage))?;
            self.ready.push_back(event);
        }
        self.ready.push_back(sse::DONE.to_owned());
        Ok(())
    }
}

impl EventSource for TextStream {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Some(data);
            }
            let done = match self.choices.as_mut()?.next().await {
                Some(Ok((index, piece))) => self.piece(index, piece),
                Some(Err(error)) => Err(error),
                None => {
                    self.choices = None;
                    self.last_events()
                }
            };
            if let Err(error) = done {
                self.choices = None;
                self.ready.push_back(sse::error_data(&error));
            }
        }
    }
}
