//! `POST /v1/completions`: continues texts or tokens as they stand, without a template.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use mintage_model::{PendingBytes, SampledToken};

use crate::answer::{Piece, TokenEntry};
use crate::app::{Admission, App};
use crate::auth::now_unix;
use crate::error::ApiError;
use crate::idempotency::{Keeping, Transcript};
use crate::openai::completion_request::CompletionRequest;
use crate::openai::generate::{
    Choices, Incoming, Job, Settling, find_model, json_bytes, response_id, whole_answer,
};
use crate::openai::prompt::{self, TokenisedPrompt};
use crate::openai::usage;
use crate::openai::wire::{
    FINGERPRINT, Head, Reply, TextChoice, TextLogprobs, finish_reason, token_ids,
};
use crate::rate_limit;
use crate::served::ServedModel;
use crate::sse::{self, EventSource};
use crate::till::Settled;

/// Continues prompts.
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let (job, prompts, echo) =
        app.on_text_thread(body.len(), move || prepare(&shared, &body)).await?;
    let id = response_id("cmpl");
    let choices = job.submit_covered(&app, &incoming, &id).await?;
    let standings = choices.standings;
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
        include_cost: job.options.include_cost,
    };
    if job.options.stream {
        let source = TextStream {
            reply,
            choices: Some(choices),
            ready: VecDeque::new(),
            transcript: Transcript::new(incoming.keeping),
            ending: None,
            _admission: incoming.admission,
        };
        let response = sse::response(source, app.limits.keep_alive_interval);
        return Ok(rate_limit::with_headers(response, &standings));
    }
    let response = reply.whole(choices, incoming.keeping.as_ref()).await?;
    Ok(rate_limit::with_headers(response, &standings))
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
        protocol: "openai.completions",
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
    include_cost: bool,
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
    async fn whole(
        self,
        mut running: Choices,
        keeping: Option<&Keeping>,
    ) -> Result<Response, ApiError> {
        let choices = match self.read(&mut running).await {
            Ok(choices) => choices,
            Err(error) => {
                running.forgive();
                return Err(error);
            }
        };
        whole_answer(running, keeping, |settled| {
            let usage = Some(Some(usage::body(settled, self.include_cost)));
            json_bytes(&Reply {
                head: &self.head,
                choices: &choices,
                usage,
                prompt_token_ids: None,
            })
        })
        .await
    }

    async fn read(&self, running: &mut Choices) -> Result<Vec<TextChoice>, ApiError> {
        let count = u32::try_from(self.prompts.len()).unwrap_or(u32::MAX).saturating_mul(self.n);
        let mut choices: Vec<TextChoice> = (0..count).map(|i| self.empty(i)).collect();
        while let Some(piece) = running.next().await {
            let (index, piece) = piece?;
            let Some(choice) = choices.get_mut(index as usize) else { continue };
            match piece {
                Piece::Prompt { prompt_logprobs } => self.add_prompt(choice, prompt_logprobs),
                Piece::Delta { text, entries } => self.add_delta(choice, &text, &entries),
                Piece::End { outcome } => choice.finish_reason = Some(finish_reason(outcome?)),
            }
        }
        Ok(choices)
    }

    /// The data of an event. `usage` is given in the last one only.
    fn event(&self, choices: &[TextChoice], usage: Option<&Settled>) -> Result<String, ApiError> {
        let usage = self
            .include_usage
            .then(|| usage.map(|settled| usage::body(settled, self.include_cost)));
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
    transcript: Transcript,
    /// The last events, once what they tell is durable.
    ending: Option<(Settling, Vec<String>)>,
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
            Piece::End { outcome } => {
                choice.finish_reason = Some(finish_reason(outcome?));
                choice.logprobs = None;
            }
        }
        let event = self.reply.event(&[choice], None)?;
        self.transcript.event(&event);
        self.ready.push_back(event);
        Ok(())
    }

    /// All choices have ended: posts what they used.
    fn settle(&mut self) -> Result<(), ApiError> {
        let Some(choices) = self.choices.take() else { return Ok(()) };
        let mut last = Vec::new();
        let settling = choices.settle(|settled| {
            last = self.last_events(settled)?;
            Ok(self.transcript.answer(&last))
        })?;
        self.ending = Some((settling, last));
        Ok(())
    }

    fn last_events(&self, settled: &Settled) -> Result<Vec<String>, ApiError> {
        let mut last = Vec::new();
        if self.reply.include_usage {
            last.push(self.reply.event(&[], Some(settled))?);
        }
        last.push(sse::DONE.to_owned());
        Ok(last)
    }
}

impl EventSource for TextStream {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Some(data);
            }
            if let Some((settling, last)) = &mut self.ending {
                // Polled again where it was left, should this future be dropped.
                let durable = settling.await;
                self.ready.extend(match durable {
                    Ok(()) => std::mem::take(last),
                    Err(error) => vec![sse::error_data(&error)],
                });
                self.ending = None;
                continue;
            }
            let done = match self.choices.as_mut()?.next().await {
                Some(Ok((index, piece))) => self.piece(index, piece),
                Some(Err(error)) => Err(error),
                None => self.settle(),
            };
            if let Err(error) = done {
                self.choices = None;
                self.ready.push_back(sse::error_data(&error));
            }
        }
    }
}
