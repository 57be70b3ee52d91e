//! `POST /v1/chat/completions`: one answer, or a stream of events.
//!
//! Tools in a request are rendered by the model's template; calls in the answer are text so far, as the model wrote
//! them.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use mintage_model::TokenId;

use crate::answer::{Piece, TokenEntry};
use crate::app::{Admission, App};
use crate::auth::now_unix;
use crate::error::ApiError;
use crate::idempotency::{Keeping, Transcript};
use crate::openai::chat_request::ChatRequest;
use crate::openai::generate::{
    Choices, Incoming, Job, Settling, find_model, json_bytes, response_id, whole_answer,
};
use crate::openai::prompt;
use crate::openai::usage;
use crate::openai::wire::{
    ChatChoice, ChatChunkChoice, ChatLogprobs, ChatMessage, Delta, FINGERPRINT, Head, Reply,
    chat_logprobs, finish_reason, token_ids,
};
use crate::rate_limit;
use crate::served::ServedModel;
use crate::sse::{self, EventSource};
use crate::till::Settled;

const ROLE: &str = "assistant";

/// Answers a chat.
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let job = app.on_text_thread(body.len(), move || prepare(&shared, &body)).await?;
    let id = response_id("chatcmpl");
    let choices = job.submit_covered(&app, &incoming, &id).await?;
    let standings = choices.standings;
    let reply = ChatReply {
        head: Head {
            id,
            object: if job.options.stream { "chat.completion.chunk" } else { "chat.completion" },
            created: now_unix(),
            model: job.model.name.clone(),
            system_fingerprint: FINGERPRINT,
        },
        model: job.model,
        n: job.options.n,
        logprobs: job.logprobs.is_some(),
        prompt_token_ids: job
            .options
            .return_token_ids
            .then(|| job.prompts.first().cloned())
            .flatten(),
        include_usage: job.options.include_usage,
        include_cost: job.options.include_cost,
    };
    if job.options.stream {
        let source = ChatStream::new(reply, choices, incoming);
        let response = sse::response(source, app.limits.keep_alive_interval);
        return Ok(rate_limit::with_headers(response, &standings));
    }
    let response = reply.whole(choices, incoming.keeping.as_ref()).await?;
    Ok(rate_limit::with_headers(response, &standings))
}

/// On a text thread: bytes to a job.
fn prepare(app: &App, body: &[u8]) -> Result<Job, ApiError> {
    let request = ChatRequest::parse(body, &app.limits)?;
    let model = find_model(&app.models, &request.model)?;
    let prompt = prompt::chat(&model, &request)?;
    Ok(Job {
        stop_token_ids: Job::stop_tokens(&model, &request.options)?,
        model,
        prompts: vec![prompt],
        max_tokens: request.max_tokens,
        max_tokens_field: request.max_tokens_field,
        logprobs: request.logprobs,
        prompt_logprobs: None,
        options: request.options,
        protocol: "openai.chat",
    })
}

/// What stays the same while an answer is written, and its usage so far.
struct ChatReply {
    head: Head,
    model: Arc<ServedModel>,
    n: u32,
    logprobs: bool,
    /// Where token ids are asked for.
    prompt_token_ids: Option<Arc<[TokenId]>>,
    include_usage: bool,
    include_cost: bool,
}

/// One choice of a whole answer, growing.
#[derive(Default)]
struct Growing {
    text: String,
    entries: Vec<TokenEntry>,
    finish_reason: &'static str,
}

impl ChatReply {
    fn logprobs(&self, entries: &[TokenEntry]) -> Option<ChatLogprobs> {
        self.logprobs.then(|| chat_logprobs(&self.model.text, entries))
    }

    fn token_ids(&self, entries: &[TokenEntry]) -> Option<Vec<TokenId>> {
        self.prompt_token_ids.as_ref().map(|_| token_ids(entries))
    }

    /// Reads all choices to their ends.
    async fn whole(
        self,
        mut choices: Choices,
        keeping: Option<&Keeping>,
    ) -> Result<Response, ApiError> {
        let growing = match self.read(&mut choices).await {
            Ok(growing) => growing,
            Err(error) => {
                choices.forgive();
                return Err(error);
            }
        };
        let all: Vec<ChatChoice> = (0..).zip(growing).map(|(i, c)| self.choice(i, c)).collect();
        whole_answer(choices, keeping, |settled| {
            json_bytes(&Reply {
                head: &self.head,
                choices: &all,
                usage: Some(Some(usage::body(settled, self.include_cost))),
                prompt_token_ids: self.prompt_token_ids.as_deref(),
            })
        })
        .await
    }

    async fn read(&self, choices: &mut Choices) -> Result<Vec<Growing>, ApiError> {
        let mut growing: Vec<Growing> = (0..self.n).map(|_| Growing::default()).collect();
        while let Some(piece) = choices.next().await {
            let (index, piece) = piece?;
            let Some(choice) = growing.get_mut(index as usize) else { continue };
            match piece {
                Piece::Prompt { .. } => {}
                Piece::Delta { text, entries } => {
                    choice.text.push_str(&text);
                    choice.entries.extend(entries);
                }
                Piece::End { outcome } => choice.finish_reason = finish_reason(outcome?),
            }
        }
        Ok(growing)
    }

    fn choice(&self, index: u32, choice: Growing) -> ChatChoice {
        ChatChoice {
            index,
            message: ChatMessage { role: ROLE, content: choice.text, refusal: None },
            logprobs: self.logprobs(&choice.entries),
            finish_reason: choice.finish_reason,
            token_ids: self.token_ids(&choice.entries),
        }
    }

    /// The data of an event. `usage` is given in the last one only.
    fn event(
        &self,
        choices: &[ChatChunkChoice],
        with_prompt: bool,
        usage: Option<&Settled>,
    ) -> Result<String, ApiError> {
        let reply = Reply {
            head: &self.head,
            choices,
            usage: self
                .include_usage
                .then(|| usage.map(|settled| usage::body(settled, self.include_cost))),
            prompt_token_ids: self.prompt_token_ids.as_deref().filter(|_| with_prompt),
        };
        serde_json::to_string(&reply).map_err(|e| ApiError::internal(format!("an event: {e}")))
    }
}

/// The events of a streamed chat.
struct ChatStream {
    reply: ChatReply,
    /// `None` once the stream is over or broken; dropping it stops what still runs.
    choices: Option<Choices>,
    ready: VecDeque<String>,
    transcript: Transcript,
    /// The last events, once what they tell is durable.
    ending: Option<(Settling, Vec<String>)>,
    _admission: Admission,
}

impl ChatStream {
    fn new(reply: ChatReply, choices: Choices, incoming: Incoming) -> Self {
        Self {
            reply,
            choices: Some(choices),
            ready: VecDeque::new(),
            transcript: Transcript::new(incoming.keeping),
            ending: None,
            _admission: incoming.admission,
        }
    }

    fn piece(&mut self, index: u32, piece: Piece) -> Result<(), ApiError> {
        let chunk = match piece {
            Piece::Prompt { .. } => ChatChunkChoice {
                index,
                delta: Delta { role: Some(ROLE), content: Some(String::new()) },
                logprobs: None,
                finish_reason: None,
                token_ids: None,
            },
            Piece::Delta { text, entries } => ChatChunkChoice {
                index,
                delta: Delta { role: None, content: Some(text) },
                logprobs: self.reply.logprobs(&entries),
                finish_reason: None,
                token_ids: self.reply.token_ids(&entries),
            },
            Piece::End { outcome } => ChatChunkChoice {
                index,
                delta: Delta::default(),
                logprobs: None,
                finish_reason: Some(finish_reason(outcome?)),
                token_ids: None,
            },
        };
        let with_prompt = chunk.delta.role.is_some() && index == 0;
        let event = self.reply.event(&[chunk], with_prompt, None)?;
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
            last.push(self.reply.event(&[], false, Some(settled))?);
        }
        last.push(sse::DONE.to_owned());
        Ok(last)
    }
}

impl EventSource for ChatStream {
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
