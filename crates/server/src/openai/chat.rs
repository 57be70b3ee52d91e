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
use crate::error::{ApiError, json};
use crate::openai::chat_request::ChatRequest;
use crate::openai::generate::{Choices, Incoming, Job, find_model, response_id};
use crate::openai::prompt;
use crate::openai::usage::UsageSum;
use crate::openai::wire::{
    ChatChoice, ChatChunkChoice, ChatLogprobs, ChatMessage, Delta, FINGERPRINT, Head, Reply,
    chat_logprobs, finish_reason, token_ids,
};
use crate::served::ServedModel;
use crate::sse::{self, EventSource};

const ROLE: &str = "assistant";

/// Answers a chat.
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let job = app.on_text_thread(move || prepare(&shared, &body)).await?;
    let id = response_id("chatcmpl");
    let choices = job.submit(&app, &incoming, &id)?;
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
        usage: UsageSum::new(job.options.n),
    };
    if job.options.stream {
        let source = ChatStream::new(reply, choices, incoming.admission);
        return Ok(sse::response(source, app.limits.keep_alive_interval));
    }
    reply.whole(choices).await
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
    usage: UsageSum,
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
    async fn whole(mut self, mut choices: Choices) -> Result<Response, ApiError> {
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
                Piece::End { outcome, usage } => {
                    choice.finish_reason = finish_reason(outcome?);
                    self.usage.add(index, usage);
                }
            }
        }
        let choices: Vec<ChatChoice> = (0..).zip(growing).map(|(i, c)| self.choice(i, c)).collect();
        Ok(json(Reply {
            head: &self.head,
            choices: &choices,
            usage: Some(Some(self.usage.body())),
            prompt_token_ids: self.prompt_token_ids.as_deref(),
        }))
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
        usage: Option<UsageSum>,
    ) -> Result<String, ApiError> {
        let reply = Reply {
            head: &self.head,
            choices,
            usage: self.include_usage.then(|| usage.map(|usage| usage.body())),
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
    _admission: Admission,
}

impl ChatStream {
    fn new(reply: ChatReply, choices: Choices, admission: Admission) -> Self {
        Self { reply, choices: Some(choices), ready: VecDeque::new(), _admission: admission }
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
            Piece::End { outcome, usage } => {
                self.reply.usage.add(index, usage);
                ChatChunkChoice {
                    index,
                    delta: Delta::default(),
                    logprobs: None,
                    finish_reason: Some(finish_reason(outcome?)),
                    token_ids: None,
                }
            }
        };
        let with_prompt = chunk.delta.role.is_some() && index == 0;
        let event = self.reply.event(&[chunk], with_prompt, None)?;
        self.ready.push_back(event);
        Ok(())
    }

    fn last_events(&mut self) -> Result<(), ApiError> {
        if self.reply.include_usage {
            let event = self.reply.event(&[], false, Some(self.reply.usage))?;
            self.ready.push_back(event);
        }
        self.ready.push_back(sse::DONE.to_owned());
        Ok(())
    }
}

impl EventSource for ChatStream {
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
