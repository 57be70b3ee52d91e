//! One request to a service, from its first attempt to its settlement: a task of its own, which outlives a client that
//! hangs up.
//!
//! What is billed: the usage that the service reports, held to what its request can have cost. Where it reports none,
//! what is counted here: with a tokenizer, of the prompt and of all text that came; without one, a token for each piece
//! of the answer that came, which is never too many, and nothing for the prompt. Of an answer that the service broke,
//! what had been taken until then, or nothing where the answer was to be sent as a whole.
//!
//! Invariants: nothing is told to the client before an answer has begun, and nothing is tried again afterwards; the usage
//! is applied exactly once, by whoever reads the end or, where nobody does, by the task.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_core::Stream;
use futures_util::StreamExt;
use mintage_ledger::TokenUsage;
use mintage_model::SpecialTokens;
use tokio::sync::{mpsc, oneshot};

use super::config::OnDisconnect;
use super::{Ask, BY_OURSELVES, BY_UPSTREAM, Failure, Heard, Hearing, RemoteModel};
use crate::answer::{EndReason, Part};
use crate::error::ApiError;
use crate::metered::{Meter, Relayed};
use crate::metrics::Outcome;

/// Parts that wait for a slow reader; then the service waits.
const MAX_WAITING_PARTS: usize = 16;

/// What a job asks of a service.
#[derive(Clone)]
pub(crate) struct Relay {
    pub(crate) remote: Arc<RemoteModel>,
    pub(crate) ask: Ask,
    pub(crate) bounds: Bounds,
}

/// The most that a request can come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Tokens of all prompts.
    pub(crate) prompt: u64,
    /// Tokens of each choice.
    pub(crate) output: u32,
    pub(crate) choices: u32,
    /// Tokens of all prompts as counted here, where a tokenizer is.
    pub(crate) own_prompt: Option<u64>,
}

impl Bounds {
    /// Tokens of all choices.
    pub(crate) fn all_output(&self) -> u64 {
        u64::from(self.output).saturating_mul(self.choices.into())
    }
}

/// What comes from the task.
enum Message {
    Part(u32, Part),
    End(Box<End>),
}

/// How it ended, for who applies it.
struct End {
    relayed: Relayed,
    error: Option<ApiError>,
}

/// An answer on its way: the parts of all choices.
pub(crate) struct Relaying {
    messages: mpsc::Receiver<Message>,
    meter: Meter,
    bounds: Bounds,
    is_over: bool,
}

impl Relay {
    /// Starts the task. What comes first resolves once the answer has begun, or with why it did not.
    pub(crate) fn start(
        self,
        meter: &Meter,
        deadline: Instant,
        request_timeout_s: u64,
    ) -> (oneshot::Receiver<Result<(), ApiError>>, Relaying) {
        let (opened, opening) = oneshot::channel();
        let (sender, messages) = mpsc::channel(MAX_WAITING_PARTS);
        meter.relaying(self.bounds.output);
        let relaying =
            Relaying { messages, meter: meter.clone(), bounds: self.bounds, is_over: false };
        let task = Task {
            heard: HeardSoFar::new(self.ask.choices),
            relay: self,
            meter: meter.clone(),
            begun: Instant::now(),
            deadline,
            request_timeout_s,
        };
        meter.spawn(task.run(opened, sender));
        (opening, relaying)
    }
}

impl Stream for Relaying {
    type Item = Result<(u32, Part), ApiError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        match std::task::ready!(self.messages.poll_recv(cx)) {
            Some(Message::Part(index, part)) => {
                let Bounds { own_prompt, .. } = self.bounds;
                let most = self.bounds.all_output();
                self.meter.relayed_part(own_prompt.unwrap_or(0), pieces(&part), most);
                Poll::Ready(Some(Ok((index, part))))
            }
            Some(Message::End(end)) => {
                self.is_over = true;
                self.meter.relayed(end.relayed);
                Poll::Ready(end.error.map(Err))
            }
            // The task is gone with the runtime, so is the process.
            None => {
                self.is_over = true;
                Poll::Ready(Some(Err(ApiError::shutting_down())))
            }
        }
    }
}

impl Drop for Relaying {
    /// An end that nobody read still counts.
    fn drop(&mut self) {
        self.messages.close();
        while let Ok(message) = self.messages.try_recv() {
            if let Message::End(end) = message {
                self.meter.relayed(end.relayed);
            }
        }
    }
}

/// The tokens that a part has at least.
fn pieces(part: &Part) -> u64 {
    match part {
        Part::Text { .. }
        | Part::Reasoning { .. }
        | Part::CallBegin { .. }
        | Part::CallArguments { .. } => 1,
        Part::Prompt { .. } | Part::CallEnd { .. } | Part::End { .. } => 0,
    }
}

/// All that came of an answer.
struct HeardSoFar {
    pieces: u64,
    thinking_pieces: u64,
    /// Of each choice, for a tokenizer: what it said, and what it thought.
    texts: Vec<(String, String)>,
    usage: Option<TokenUsage>,
    ended: u32,
    is_length: bool,
    first: Option<Instant>,
}

impl HeardSoFar {
    fn new(choices: u32) -> Self {
        Self {
            pieces: 0,
            thinking_pieces: 0,
            texts: vec![(String::new(), String::new()); choices as usize],
            usage: None,
            ended: 0,
            is_length: false,
            first: None,
        }
    }

    fn part(&mut self, index: u32, part: &Part, keeps_text: bool) {
        let count = pieces(part);
        if count > 0 {
            self.first.get_or_insert_with(Instant::now);
        }
        match part {
            Part::Reasoning { .. } => self.thinking_pieces += count,
            _ => self.pieces += count,
        }
        if let Part::End { reason } = part {
            self.ended += 1;
            self.is_length |= *reason == EndReason::Length;
        }
        let Some((said, thought)) = self.texts.get_mut(index as usize).filter(|_| keeps_text)
        else {
            return;
        };
        match part {
            Part::Text { text, .. } | Part::CallArguments { text, .. } => said.push_str(text),
            Part::CallBegin { name, .. } => said.push_str(name),
            Part::Reasoning { text, .. } => thought.push_str(text),
            Part::Prompt { .. } | Part::CallEnd { .. } | Part::End { .. } => {}
        }
    }
}

/// Why reading ended.
enum Stopped {
    Complete,
    /// Nobody waits, and it was not read to its end.
    Cancelled,
    /// The request's own time is over.
    Deadline,
    Broken(Failure),
}

struct Task {
    relay: Relay,
    meter: Meter,
    heard: HeardSoFar,
    begun: Instant,
    deadline: Instant,
    request_timeout_s: u64,
}

impl Task {
    async fn run(
        mut self,
        mut opened: oneshot::Sender<Result<(), ApiError>>,
        sender: mpsc::Sender<Message>,
    ) {
        let model = self.relay.remote.config.name.clone();
        let remote = Arc::clone(&self.relay.remote);
        let place = match remote.place() {
            Ok(place) => place,
            Err(failure) => return self.not_opened(opened, failure.into_error(&model)),
        };
        let opening = remote.open(&self.relay.ask, || !sender.is_closed());
        let hearing = tokio::select! {
            hearing = opening => hearing,
            () = tokio::time::sleep_until(self.deadline.into()) => {
                let error = ApiError::deadline(self.request_timeout_s);
                return self.not_opened(opened, error);
            }
            () = self.left_alone(&mut opened) => return,
        };
        let hearing = match hearing {
            Ok(hearing) => hearing,
            Err(failure) => {
                tracing::warn!(upstream = %model, why = %failure.log, "no answer");
                return self.not_opened(opened, failure.into_error(&model));
            }
        };
        // Whether anybody hears it shows when parts are sent.
        let _ = opened.send(Ok(()));
        let (stopped, is_left) = self.read(hearing, &sender).await;
        drop(place);
        let end = self.end(stopped, is_left);
        if let Err(mpsc::error::SendError(Message::End(end))) =
            sender.send(Message::End(Box::new(end))).await
        {
            self.meter.relayed(end.relayed);
        }
    }

    /// Nothing is billed. The hold is given back before anybody hears, so that the same request can be let in again.
    fn not_opened(self, opened: oneshot::Sender<Result<(), ApiError>>, error: ApiError) {
        drop(self);
        let _ = opened.send(Err(error));
    }

    /// The client left before an answer began, and it is to be cancelled, or was waited for long enough.
    async fn left_alone(&self, opened: &mut oneshot::Sender<Result<(), ApiError>>) {
        opened.closed().await;
        if let OnDisconnect::Drain(limit) = self.relay.remote.config.on_disconnect {
            tokio::time::sleep(limit).await;
        }
    }

    /// Reads the answer and hands it on; whether the client left.
    async fn read(
        &mut self,
        mut hearing: Hearing,
        sender: &mpsc::Sender<Message>,
    ) -> (Stopped, bool) {
        let keeps_text = self.relay.remote.config.tokenizer.is_some();
        let mut is_left = false;
        let mut end = self.deadline;
        loop {
            let heard = tokio::select! {
                biased;
                () = sender.closed(), if !is_left => {
                    is_left = true;
                    match self.relay.remote.config.on_disconnect {
                        OnDisconnect::Cancel => return (Stopped::Cancelled, true),
                        OnDisconnect::Drain(limit) => end = end.min(Instant::now() + limit),
                    }
                    continue;
                }
                heard = hearing.next() => heard,
                () = tokio::time::sleep_until(end.into()) => {
                    let why = if is_left { Stopped::Cancelled } else { Stopped::Deadline };
                    return (why, is_left);
                }
            };
            match heard {
                None => return (Stopped::Complete, is_left),
                Some(Err(failure)) => return (Stopped::Broken(failure), is_left),
                Some(Ok(Heard::Usage(usage))) => self.heard.usage = Some(usage),
                Some(Ok(Heard::Part(index, part))) => {
                    self.heard.part(index, &part, keeps_text);
                    if !is_left {
                        let sending = sender.send(Message::Part(index, part));
                        // That nobody takes it any more shows in the next turn.
                        if tokio::time::timeout_at(end.into(), sending).await.is_err() {
                            return (Stopped::Deadline, false);
                        }
                    }
                }
            }
        }
    }

    fn end(&self, stopped: Stopped, is_left: bool) -> End {
        let remote = &self.relay.remote;
        let name = &remote.config.name;
        let outcome = match &stopped {
            Stopped::Complete if is_left => Outcome::Abort,
            Stopped::Complete if self.heard.is_length => Outcome::Length,
            Stopped::Complete => Outcome::Stop,
            Stopped::Cancelled => Outcome::Abort,
            Stopped::Deadline => Outcome::Error,
            Stopped::Broken(_) if is_left => Outcome::Abort,
            Stopped::Broken(_) => Outcome::Error,
        };
        let reported = self.heard.usage.map(|usage| self.bounded(usage));
        let is_broken = matches!(stopped, Stopped::Broken(_) | Stopped::Deadline) && !is_left;
        let usage = match reported {
            Some(usage) => Some(usage),
            // What was taken, which the reader knows: of an answer that said nothing, nothing.
            None if is_broken || self.heard.first.is_none() => None,
            None => Some(self.own_count()),
        };
        if reported.is_none() {
            remote.counted_here();
        }
        let (fault, error) = match stopped {
            Stopped::Complete | Stopped::Cancelled => (None, None),
            Stopped::Deadline => (None, Some(ApiError::deadline(self.request_timeout_s))),
            Stopped::Broken(failure) => {
                tracing::warn!(upstream = %name, why = %failure.log, "an answer broke");
                remote.broke(&failure);
                (Some(failure.log.clone()), Some(failure.into_error(name)))
            }
        };
        let relayed = Relayed {
            usage,
            metered_by: if reported.is_some() { BY_UPSTREAM } else { BY_OURSELVES },
            outcome,
            choices: self.heard.ended,
            fault,
            first: self.heard.first.map(|first| first.saturating_duration_since(self.begun)),
            total: self.begun.elapsed(),
        };
        End { relayed, error }
    }

    /// What a service reports cannot be more than was asked for and held.
    fn bounded(&self, reported: TokenUsage) -> TokenUsage {
        let (prompt, output) = (self.relay.bounds.prompt, self.relay.bounds.all_output());
        let cached_input = reported.cached_input.min(prompt);
        let thinking = reported.thinking.min(output);
        let usage = TokenUsage {
            input: reported.input.min(prompt - cached_input),
            cached_input,
            output: reported.output.min(output - thinking),
            thinking,
            ..TokenUsage::default()
        };
        if usage != reported {
            self.relay.remote.contradicted();
            tracing::warn!(
                upstream = %self.relay.remote.config.name, ?reported, bounds = ?self.relay.bounds,
                "a service reported more tokens than its request can have: billed at the bound"
            );
        }
        usage
    }

    /// What is billed where the service reports nothing.
    fn own_count(&self) -> TokenUsage {
        let heard = &self.heard;
        let (output, thinking) = match &self.relay.remote.config.tokenizer {
            None => (heard.pieces, heard.thinking_pieces),
            Some(text) => {
                let count = |heard: &str| {
                    text.tokenizer().encode(heard, SpecialTokens::AsText).len() as u64
                };
                heard.texts.iter().fold((0, 0), |(output, thinking), (said, thought)| {
                    (output + count(said), thinking + count(thought))
                })
            }
        };
        let input = self.relay.bounds.own_prompt.unwrap_or(0);
        self.bounded(TokenUsage { input, output, thinking, ..TokenUsage::default() })
    }
}
