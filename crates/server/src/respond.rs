//! The tail that all dialects share: a job is submitted, its parts are written as they come or as a whole, and settled
//! before the last of them leaves.
//!
//! Not here: what is written (a dialect's [`Writer`]).
//! Invariants: what tells of the usage leaves only once the posting is durable; a broken whole answer costs nothing; what
//! is kept for repetitions is byte for byte what was sent.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Instant;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use mintage_ledger::TokenUsage;
use mintage_ledger::limits::Standings;
use mintage_model::SampledToken;
use serde::Serialize;

use crate::answer::{EndReason, Part, TokenEntry};
use crate::app::{Admission, App};
use crate::chat::ToolCall;
use crate::error::ApiError;
use crate::idempotency::{Form, Keeping, Transcript};
use crate::job::{Choices, Incoming, Job};
use crate::rate_limit;
use crate::sse::{self, EventSource, Framing};
use crate::structured;
use crate::till::Settled;

/// Writes an answer as a dialect does.
pub(crate) trait Writer: Send + 'static {
    /// How frames of a stream are told apart.
    const FRAMING: Framing = Framing::EVENTS;

    /// Writes a part of the choice with this index into a stream. `so_far`: what all choices used until now.
    fn part(
        &mut self,
        index: u32,
        part: Part,
        so_far: &TokenUsage,
        frames: &mut Frames,
    ) -> Result<(), ApiError>;

    /// Writes the end of a stream whose choices have all ended.
    fn last(&mut self, settled: &Settled, frames: &mut Frames) -> Result<(), ApiError>;

    /// Writes the end of a stream that broke.
    fn broken(&mut self, error: &ApiError, frames: &mut Frames);

    /// Writes the body of a whole answer; one [`Answer`] a choice, in order.
    fn whole(&mut self, answers: Vec<Answer>, settled: &Settled) -> Result<Vec<u8>, ApiError>;

    /// Another target answers than the one for which it was made.
    fn answered_by(&mut self, _job: &Job) {}

    /// Sees a part of a whole answer as it comes, before [`Writer::whole`].
    fn seen(&mut self, _index: u32, _part: &Part) {}

    /// What else is to be done before the end of an answer leaves, once it was written.
    fn keep(&mut self) -> Option<Keep> {
        None
    }

    /// Tells of the tenant's limits in the answer's headers.
    fn headers(&self, standings: &Standings, headers: &mut HeaderMap) {
        rate_limit::add_to(headers, standings);
    }
}

/// Work that an answer's end waits for.
pub(crate) type Keep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One choice, whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// Where asked for.
    pub(crate) prompt_logprobs: Option<Vec<SampledToken>>,
    pub(crate) reasoning: String,
    pub(crate) text: String,
    pub(crate) calls: Vec<ToolCall>,
    /// Of the tokens of `text` and of calls, where asked for.
    pub(crate) entries: Vec<TokenEntry>,
    /// Of the tokens of `reasoning`, where asked for.
    pub(crate) reasoning_entries: Vec<TokenEntry>,
    pub(crate) end: EndReason,
    /// When its prompt was computed.
    pub(crate) prefilled: Option<Instant>,
}

impl Answer {
    pub(crate) fn add(&mut self, part: Part) {
        match part {
            Part::Prompt { logprobs } => {
                self.prompt_logprobs = logprobs;
                self.prefilled = Some(Instant::now());
            }
            Part::Reasoning { text, entries } => {
                self.reasoning.push_str(&text);
                self.reasoning_entries.extend(entries);
            }
            Part::Text { text, entries } => {
                self.text.push_str(&text);
                self.entries.extend(entries);
            }
            Part::CallBegin { id, name, .. } => {
                self.calls.push(ToolCall { id, name, arguments: String::new() });
            }
            Part::CallArguments { text, .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&text);
                }
            }
            Part::CallEnd { broken: None, .. } => {}
            Part::CallEnd { broken: Some(text), .. } => {
                self.calls.pop();
                self.text.push_str(&text);
            }
            Part::End { reason } => self.end = reason,
        }
    }
}

/// Frames of a stream, complete with what sets them apart.
#[derive(Debug, Default)]
pub(crate) struct Frames(VecDeque<Bytes>);

impl Frames {
    /// `data: …`
    pub(crate) fn data(&mut self, value: &impl Serialize) -> Result<(), ApiError> {
        self.raw(sse::frame(&json_text(value)?));
        Ok(())
    }

    /// All of them, as they would be sent.
    #[cfg(test)]
    pub(crate) fn sent(&self) -> String {
        self.0.iter().map(|frame| String::from_utf8_lossy(frame)).collect()
    }

    /// The next one to be sent.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        self.0.pop_front()
    }

    /// A frame as it stands.
    pub(crate) fn raw(&mut self, frame: impl Into<Bytes>) {
        self.0.push_back(frame.into());
    }
}

/// Submits the job, or the same for another target where one cannot: `elsewhere` is told of that.
pub(crate) async fn submit(
    app: &App,
    incoming: &Incoming,
    job: &mut Job,
    mut elsewhere: impl FnMut(&Job),
) -> Result<Choices, ApiError> {
    loop {
        let error = match job.submit_covered(app, incoming).await {
            Ok(choices) => return Ok(choices),
            Err(error) => error,
        };
        match structured::blocking(|| job.next(app, &error)) {
            Some(next) => *job = next?,
            None => return Err(error),
        }
        elsewhere(job);
    }
}

/// Submits the job and answers. Nothing is sent before the job was admitted, and nothing is tried elsewhere after that.
pub(crate) async fn respond<W: Writer>(
    app: &App,
    incoming: Incoming,
    mut job: Job,
    mut writer: W,
) -> Result<Response, ApiError> {
    let choices = submit(app, &incoming, &mut job, |job| writer.answered_by(job)).await?;
    let mut headers = HeaderMap::new();
    writer.headers(&choices.standings, &mut headers);
    let mut response = if job.stream {
        let source = Streamed {
            writer,
            choices: Some(choices),
            ready: Frames::default(),
            transcript: Transcript::new(incoming.keeping, Form::of(&W::FRAMING)),
            ending: None,
            _admission: incoming.admission,
        };
        sse::response(source, &W::FRAMING, app.limits.keep_alive_interval)
    } else {
        whole(&mut writer, &job, choices, incoming.keeping.as_ref()).await?
    };
    response.headers_mut().extend(headers);
    Ok(response)
}

/// An answer that is sent as a whole: read to its end, settled, then sent.
async fn whole(
    writer: &mut impl Writer,
    job: &Job,
    mut choices: Choices,
    keeping: Option<&Keeping>,
) -> Result<Response, ApiError> {
    let answers = match read(job, &mut choices, writer).await {
        Ok(answers) => answers,
        Err(error) => {
            choices.forgive();
            return Err(error);
        }
    };
    let mut bytes = Vec::new();
    let settling = choices.settle(|settled| {
        bytes = writer.whole(answers, settled)?;
        keeping.map_or(Ok(None), |keeping| keeping.whole(&bytes))
    })?;
    settling.await?;
    if let Some(keep) = writer.keep() {
        keep.await;
    }
    Ok(json_response(bytes))
}

/// A response of JSON that is written already.
pub(crate) fn json_response(bytes: Vec<u8>) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], bytes).into_response()
}

async fn read(
    job: &Job,
    choices: &mut Choices,
    writer: &mut impl Writer,
) -> Result<Vec<Answer>, ApiError> {
    let mut answers = vec![Answer::default(); job.choices() as usize];
    while let Some(part) = choices.next().await {
        let (index, part) = part?;
        writer.seen(index, &part);
        if let Some(answer) = answers.get_mut(index as usize) {
            answer.add(part);
        }
    }
    Ok(answers)
}

/// JSON that we made ourselves.
pub(crate) fn json_bytes(value: &impl Serialize) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(value).map_err(|e| ApiError::internal(format!("an answer: {e}")))
}

/// JSON that we made ourselves.
pub(crate) fn json_text(value: &impl Serialize) -> Result<String, ApiError> {
    serde_json::to_string(value).map_err(|e| ApiError::internal(format!("an event: {e}")))
}

/// Resolves when an answer's end may leave.
type Durable = Pin<Box<dyn Future<Output = Result<(), ApiError>> + Send>>;

/// An answer that is sent as it grows.
struct Streamed<W> {
    writer: W,
    /// `None` once the stream is over or broken; dropping it stops what still runs.
    choices: Option<Choices>,
    ready: Frames,
    transcript: Transcript,
    /// The last frames, once what they tell is durable.
    ending: Option<(Durable, Frames)>,
    _admission: Admission,
}

impl<W: Writer> Streamed<W> {
    fn part(&mut self, index: u32, part: Part, so_far: &TokenUsage) -> Result<(), ApiError> {
        let before = self.ready.0.len();
        self.writer.part(index, part, so_far, &mut self.ready)?;
        for frame in self.ready.0.iter().skip(before) {
            self.transcript.frame(frame);
        }
        Ok(())
    }

    /// All choices have ended: posts what they used.
    fn settle(&mut self) -> Result<(), ApiError> {
        let Some(choices) = self.choices.take() else { return Ok(()) };
        let mut last = Frames::default();
        let settling = choices.settle(|settled| {
            self.writer.last(settled, &mut last)?;
            Ok(self.transcript.answer(&last.0))
        })?;
        let keep = self.writer.keep();
        let durable = async move {
            settling.await?;
            if let Some(keep) = keep {
                keep.await;
            }
            Ok(())
        };
        self.ending = Some((Box::pin(durable), last));
        Ok(())
    }

    fn broken(&mut self, error: &ApiError) {
        if let Some(log) = &error.log {
            tracing::warn!(error = %log, "a stream broke");
        }
        self.writer.broken(error, &mut self.ready);
    }
}

impl<W: Writer> EventSource for Streamed<W> {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.ready.0.pop_front() {
                return Some(frame);
            }
            if let Some((durable, last)) = &mut self.ending {
                // Polled again where it was left, should this future be dropped.
                let durable = durable.await;
                let last = std::mem::take(last);
                self.ending = None;
                match durable {
                    Ok(()) => self.ready = last,
                    Err(error) => self.broken(&error),
                }
                continue;
            }
            let choices = self.choices.as_mut()?;
            let done = match choices.next().await {
                Some(Ok((index, part))) => {
                    let so_far = choices.so_far();
                    self.part(index, part, &so_far)
                }
                Some(Err(error)) => Err(error),
                None => self.settle(),
            };
            if let Err(error) = done {
                self.choices = None;
                self.broken(&error);
            }
        }
    }
}
