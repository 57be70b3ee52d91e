//! `POST /v1/chat/completions`: one answer, or a stream of events.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use mintage_ledger::TokenUsage;
use mintage_model::{TextModel, TokenId};

use crate::answer::{Part, TokenEntry};
use crate::app::App;
use crate::auth::now_unix;
use crate::chat::{self, Route};
use crate::error::ApiError;
use crate::fields::unsupported;
use crate::job::{Incoming, Job};
use crate::openai::chat_request::{self, Parsed};
use crate::openai::options::Shape;
use crate::openai::stored::{self, Kept, Shelf};
use crate::openai::usage;
use crate::openai::wire::{
    ChatChoice, ChatChunkChoice, ChatLogprobs, ChatMessage, Delta, FINGERPRINT, FunctionBody,
    FunctionDelta, Head, Reply, TIER, ToolCallBody, ToolCallDelta, chat_logprobs, finish_reason,
    prompt_logprobs, token_ids,
};
use crate::project_store::keeping;
use crate::respond::{Answer, Frames, Keep, Writer, json_bytes, respond};
use crate::sse;
use crate::storage::AnswerKind;
use crate::till::Settled;

const ROLE: &str = "assistant";
const FUNCTION: &str = "function";
const WHOLE: &str = "chat.completion";
const CHUNK: &str = "chat.completion.chunk";
const ROUTE: Route = Route { protocol: "openai.chat", id_prefix: "chatcmpl-" };

/// Answers a chat.
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let incoming = Incoming::read(&app, request).await?;
    let (shared, body) = (Arc::clone(&app), incoming.body.clone());
    let project: Arc<str> = incoming.caller.project().into();
    let prepare = move || {
        let Parsed { request, shape, kept } = chat_request::parse(&body, &shared.limits)?;
        let shelf = kept.map(|kept| shelf(&shared, &project, kept)).transpose()?;
        let job = chat::prepare(&shared, request, ROUTE)?;
        let writer = ChatWriter::new(&job, shape, shelf);
        Ok((job, writer))
    };
    let (job, writer) = app.on_text_thread(incoming.body.len(), prepare).await?;
    respond(&app, incoming, job, writer).await
}

/// Where an answer goes that is to be kept.
fn shelf(app: &App, project: &Arc<str>, kept: Kept) -> Result<Shelf, ApiError> {
    let storage = keeping(app).ok_or_else(|| {
        unsupported("store", "this server keeps no answers, as its settings have it")
    })?;
    Ok(Shelf { storage, project: Arc::clone(project), kept })
}

/// What stays the same while an answer is written.
struct ChatWriter {
    head: Head,
    /// Of tokens that are told of; other services tell of none.
    text: Option<Arc<TextModel>>,
    shape: Shape,
    logprobs: bool,
    /// Alternatives to tell with tokens of the prompt.
    prompt_logprobs: Option<u8>,
    /// Where token ids are asked for.
    prompt_token_ids: Option<Arc<[TokenId]>>,
    shelf: Option<Shelf>,
    /// What a stream said so far, by choice, where it is to be kept.
    said: Vec<Answer>,
    /// The answer as it is kept.
    kept: Option<Vec<u8>>,
}

impl ChatWriter {
    fn new(job: &Job, shape: Shape, shelf: Option<Shelf>) -> Self {
        let object = if shape.stream { CHUNK } else { WHOLE };
        let prompt_token_ids = job.options.return_token_ids.then(|| job.prompts.first().cloned());
        Self {
            head: Head {
                id: job.id.clone(),
                object,
                created: now_unix(),
                model: job.model_name().to_owned(),
                system_fingerprint: FINGERPRINT,
            },
            text: job.target.text().cloned(),
            shape,
            logprobs: job.logprobs.is_some(),
            prompt_logprobs: job.prompt_logprobs,
            prompt_token_ids: prompt_token_ids.flatten(),
            said: if shelf.is_some() && shape.stream {
                vec![Answer::default(); job.options.n as usize]
            } else {
                Vec::new()
            },
            shelf,
            kept: None,
        }
    }

    /// A whole answer, which all choices of one prompt make.
    fn body(&self, answers: Vec<Answer>, settled: &Settled) -> Result<Vec<u8>, ApiError> {
        let of_prompt = answers.first().and_then(|answer| answer.prompt_logprobs.as_deref());
        let prompt_logprobs = self
            .prompt_logprobs
            .zip(of_prompt)
            .zip(self.text.as_deref())
            .map(|((top, tokens), text)| prompt_logprobs(text, tokens, top));
        let choices: Vec<ChatChoice> =
            (0..).zip(answers).map(|(index, answer)| self.choice(index, answer)).collect();
        json_bytes(&Reply {
            head: &Head { object: WHOLE, ..self.head.clone() },
            choices: &choices,
            usage: Some(Some(usage::body(settled, self.shape.include_cost))),
            service_tier: self.shape.tells_tier.then_some(TIER),
            obfuscation: None,
            prompt_token_ids: self.prompt_token_ids.as_deref(),
            prompt_logprobs,
        })
    }

    fn logprobs(&self, entries: &[TokenEntry]) -> Option<ChatLogprobs> {
        self.text.as_ref().filter(|_| self.logprobs).map(|text| chat_logprobs(text, entries))
    }

    fn token_ids(&self, entries: &[TokenEntry]) -> Option<Vec<TokenId>> {
        self.prompt_token_ids.as_ref().map(|_| token_ids(entries))
    }

    fn choice(&self, index: u32, answer: Answer) -> ChatChoice {
        let calls = answer.calls.into_iter().map(|call| ToolCallBody {
            id: call.id,
            r#type: FUNCTION,
            function: FunctionBody { name: call.name, arguments: call.arguments },
        });
        let calls: Vec<ToolCallBody> = calls.collect();
        let all: Vec<TokenEntry> =
            answer.reasoning_entries.iter().chain(&answer.entries).cloned().collect();
        ChatChoice {
            index,
            message: ChatMessage {
                role: ROLE,
                // OpenAI's null where there are calls and nothing else.
                content: (calls.is_empty() || !answer.text.is_empty()).then_some(answer.text),
                refusal: None,
                reasoning_content: (!answer.reasoning.is_empty()).then_some(answer.reasoning),
                tool_calls: (!calls.is_empty()).then_some(calls),
            },
            logprobs: self.logprobs(&answer.entries),
            finish_reason: finish_reason(&answer.end),
            token_ids: self.token_ids(&all),
        }
    }

    /// The data of an event. `usage` is given in the last one, and in each where that is asked for.
    fn event(
        &self,
        choices: &[ChatChunkChoice],
        with_prompt: bool,
        usage: Option<&Settled>,
        frames: &mut Frames,
    ) -> Result<(), ApiError> {
        frames.data(&Reply {
            head: &self.head,
            choices,
            usage: self
                .shape
                .include_usage
                .then(|| usage.map(|settled| usage::body(settled, self.shape.include_cost))),
            service_tier: self.shape.tells_tier.then_some(TIER),
            obfuscation: self.shape.obfuscates.then(|| super::obfuscation(&said(choices))),
            prompt_token_ids: self.prompt_token_ids.as_deref().filter(|_| with_prompt),
            prompt_logprobs: None,
        })
    }

    fn chunk(&self, index: u32, part: Part) -> Option<ChatChunkChoice> {
        let said = |delta| ChatChunkChoice { index, delta, ..ChatChunkChoice::default() };
        let call = |delta: ToolCallDelta| {
            said(Delta { tool_calls: Some(vec![delta]), ..Delta::default() })
        };
        Some(match part {
            Part::Prompt { .. } => {
                let content = Some(String::new());
                said(Delta { role: Some(ROLE), content, ..Delta::default() })
            }
            Part::Text { text, entries } => ChatChunkChoice {
                logprobs: self.logprobs(&entries),
                token_ids: self.token_ids(&entries),
                ..said(Delta { content: Some(text), ..Delta::default() })
            },
            Part::Reasoning { text, entries } => ChatChunkChoice {
                token_ids: self.token_ids(&entries),
                ..said(Delta { reasoning_content: Some(text), ..Delta::default() })
            },
            Part::CallBegin { call: index, id, name } => call(ToolCallDelta {
                index,
                id: Some(id),
                r#type: Some(FUNCTION),
                function: FunctionDelta { name: Some(name), arguments: String::new() },
            }),
            Part::CallArguments { call: index, text } => call(ToolCallDelta {
                index,
                id: None,
                r#type: None,
                function: FunctionDelta { name: None, arguments: text },
            }),
            Part::CallEnd { broken: None, .. } => return None,
            // No call after all: what was told of it cannot be taken back, but nothing that was said is lost.
            Part::CallEnd { broken: Some(text), .. } => {
                said(Delta { content: Some(text), ..Delta::default() })
            }
            Part::End { reason } => ChatChunkChoice {
                finish_reason: Some(finish_reason(&reason)),
                ..said(Delta::default())
            },
        })
    }
}

impl Writer for ChatWriter {
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
        let with_prompt = matches!(part, Part::Prompt { .. }) && index == 0;
        if let Some(answer) = self.said.get_mut(index as usize) {
            answer.add(part.clone());
        }
        let Some(chunk) = self.chunk(index, part) else { return Ok(()) };
        let running = self.shape.running(so_far);
        self.event(&[chunk], with_prompt, running.as_ref(), frames)
    }

    fn last(&mut self, settled: &Settled, frames: &mut Frames) -> Result<(), ApiError> {
        if self.shelf.is_some() {
            let said = std::mem::take(&mut self.said);
            self.kept = Some(self.body(said, settled)?);
        }
        if self.shape.include_usage {
            self.event(&[], false, Some(settled), frames)?;
        }
        frames.raw(sse::frame(super::DONE));
        Ok(())
    }

    fn broken(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.raw(sse::frame(&error.to_json()));
    }

    fn whole(&mut self, answers: Vec<Answer>, settled: &Settled) -> Result<Vec<u8>, ApiError> {
        let body = self.body(answers, settled)?;
        self.kept = self.shelf.is_some().then(|| body.clone());
        Ok(body)
    }

    fn keep(&mut self) -> Option<Keep> {
        let (storage, record) = self.shelf.take()?.record(&self.kept.take()?);
        Some(stored::keep(storage, AnswerKind::Chat, record))
    }
}

/// The text that an event tells.
fn said(choices: &[ChatChunkChoice]) -> String {
    let text = |choice: &ChatChunkChoice| {
        let delta = &choice.delta;
        let calls = delta.tool_calls.iter().flatten().map(|call| call.function.arguments.as_str());
        let texts = [delta.content.as_deref(), delta.reasoning_content.as_deref()];
        texts.into_iter().flatten().chain(calls).collect::<String>()
    };
    choices.iter().map(text).collect()
}
