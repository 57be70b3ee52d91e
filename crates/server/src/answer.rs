//! One choice of an answer: tokens in, text out, ended by a stop token, a stop string or a limit.
//!
//! Not here: the wire format.
//! Invariants: text after a stop string is never released; released text is whole characters; entries of tokens whose
//! text was cut off are not released either; each choice ends with exactly one [`Part::End`] or an error.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_util::StreamExt;
use mintage_model::{
    CallEvent, CallFormat, CallReader, CallTool, Event, FinishReason, PendingBytes, Reading,
    SampledToken, TextModel, Thinking, TokenId,
};

use crate::error::ApiError;
use crate::metered::MeteredStream;
use crate::request_id::random_hex;
use crate::stop::{Released, StopMatcher};

/// A token of the answer with its place in the text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TokenEntry {
    pub(crate) token: SampledToken,
    /// Characters of the answer before it.
    pub(crate) start_char: usize,
    /// Bytes of the answer before it.
    start_byte: usize,
    /// It ended the answer, or is a control token: no part of the text.
    pub(crate) is_silent: bool,
}

/// Why a choice ended well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum EndReason {
    /// The model ended it.
    #[default]
    Stop,
    /// This stop string of the request was met.
    StopString(String),
    /// Its limit, or the context's.
    Length,
    /// It called tools, and waits for what they say.
    ToolCalls,
}

/// What a choice has to say. `Prompt` comes first, `End` last; calls are numbered from 0 in each choice and do not
/// overlap.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    /// The prompt is computed.
    Prompt { logprobs: Option<Vec<SampledToken>> },
    /// More of what it thinks, or entries of tokens, or both.
    Reasoning { text: String, entries: Vec<TokenEntry> },
    /// More text, or entries of tokens, or both. Entries of tokens that call tools come here, with no text.
    Text { text: String, entries: Vec<TokenEntry> },
    /// A call begins.
    CallBegin { call: u32, id: String, name: String },
    /// More of its arguments: JSON as text.
    CallArguments { call: u32, text: String },
    /// The call is over. Where what the model wrote is no call after all, `broken` is all of it, as text.
    CallEnd { call: u32, broken: Option<String> },
    /// The end.
    End { reason: EndReason },
}

/// What to look for in one choice, and what to report of it.
#[derive(Clone, Debug)]
pub(crate) struct ChoiceOptions {
    pub(crate) stops: Vec<String>,
    /// Tokens that end the answer and are no part of its text.
    pub(crate) stop_token_ids: Arc<[TokenId]>,
    /// Report tokens, not only text.
    pub(crate) wants_entries: bool,
    /// For the message of a deadline.
    pub(crate) request_timeout_s: u64,
    /// The calls to look for.
    pub(crate) calls: Option<Calls>,
    /// What tells thinking from the answer.
    pub(crate) thinking: Option<Thinking>,
}

/// The calls that a model may write, in the way its template shows.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    pub(crate) format: CallFormat,
    /// What is taken for one.
    pub(crate) reading: Reading,
    /// Functions it may call.
    pub(crate) tools: Arc<[CallTool]>,
    /// Control tokens whose text belongs to a call.
    pub(crate) marker_ids: Vec<TokenId>,
    /// Several in one answer; else it ends behind the first.
    pub(crate) parallel: bool,
}

/// One choice: a stream of [`Part`]s with the choice's index; an error is its end.
pub(crate) struct Choice {
    index: u32,
    text_model: Arc<TextModel>,
    events: MeteredStream,
    options: ChoiceOptions,
    utf8: PendingBytes,
    matcher: StopMatcher,
    /// Entries whose text is not released yet.
    entries: VecDeque<TokenEntry>,
    decoded_chars: usize,
    decoded_bytes: usize,
    released_bytes: usize,
    /// The stop string that was met.
    stopped: Option<String>,
    calls: Option<CallReader>,
    thinking: Option<Thinking>,
    /// Ends of lines that are part of what is thought, should more of it come.
    held_lines: String,
    /// What follows is the beginning of thoughts, or of an answer behind them: ends of lines before it are no part of it.
    trims_lines: bool,
    /// Calls that began, and those of them that were whole.
    begun_calls: u32,
    whole_calls: u32,
    /// The first call was all that was wanted: nothing behind it is part of the answer.
    called_once: bool,
    ended: bool,
    /// Parts to hand out before the next event.
    ready: VecDeque<Result<Part, ApiError>>,
}

impl Choice {
    pub(crate) fn new(
        index: u32,
        text_model: Arc<TextModel>,
        events: MeteredStream,
        options: ChoiceOptions,
    ) -> Self {
        let matcher = StopMatcher::new(options.stops.clone());
        let reader = |calls: &Calls| {
            CallReader::new(calls.format, Arc::clone(&calls.tools)).reading(calls.reading)
        };
        let calls = options.calls.as_ref().map(reader);
        Self {
            calls,
            thinking: options.thinking,
            held_lines: String::new(),
            trims_lines: options.thinking.is_some_and(|thinking| thinking.is_inside()),
            begun_calls: 0,
            whole_calls: 0,
            called_once: false,
            index,
            text_model,
            events,
            options,
            utf8: PendingBytes::default(),
            matcher,
            entries: VecDeque::new(),
            decoded_chars: 0,
            decoded_bytes: 0,
            released_bytes: 0,
            stopped: None,
            ended: false,
            ready: VecDeque::new(),
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Prefilled { prompt_logprobs, .. } => {
                self.ready.push_back(Ok(Part::Prompt { logprobs: prompt_logprobs }));
            }
            // Sampled before the engine saw our cancel: no part of the answer, and not counted.
            Event::Token(_) if self.stopped.is_some() || self.called_once => {}
            Event::Token(token) => self.token(token),
            // Of engines that `encode` asks, not this.
            Event::Vector(_) => {}
            Event::Finished(finish) => {
                self.ended = true;
                if self.stopped.is_none() && !self.called_once {
                    self.last_words();
                }
                self.last_calls();
                let stopped = self.stopped.take();
                let outcome = match (finish.reason, stopped) {
                    (_, _) if self.called_once => Ok(EndReason::ToolCalls),
                    (FinishReason::Stop(_), None) if self.whole_calls > 0 => {
                        Ok(EndReason::ToolCalls)
                    }
                    (_, Some(stop)) => Ok(EndReason::StopString(stop)),
                    (FinishReason::Stop(_), None) => Ok(EndReason::Stop),
                    (FinishReason::Length, None) => Ok(EndReason::Length),
                    (FinishReason::Deadline, None) => {
                        Err(ApiError::deadline(self.options.request_timeout_s))
                    }
                    // We cancel only streams that nobody reads any more: then the engine is going down.
                    (FinishReason::Cancelled, None) => Err(ApiError::shutting_down()),
                    (FinishReason::Fault(fault), None) => Err(ApiError::engine(&fault)),
                };
                self.ready.push_back(outcome.map(|reason| Part::End { reason }));
            }
        }
    }

    fn token(&mut self, token: SampledToken) {
        if self.thinking.as_mut().is_some_and(|thinking| thinking.push(token.id)) {
            self.thought(token);
            return;
        }
        let is_stop = self.options.stop_token_ids.contains(&token.id);
        let tokenizer = self.text_model.tokenizer();
        let is_marker =
            self.options.calls.as_ref().is_some_and(|calls| calls.marker_ids.contains(&token.id));
        let is_silent = is_stop || (tokenizer.is_special(token.id) && !is_marker);
        let bytes = if is_silent { &[] } else { tokenizer.token_bytes(token.id).unwrap_or(&[]) };
        let piece = self.utf8.push(bytes);
        let had_text = !piece.is_empty();
        let piece = self.trimmed(piece);
        let is_silent = is_silent || (had_text && piece.is_empty());
        if self.options.wants_entries {
            self.entries.push_back(TokenEntry {
                token,
                start_char: self.decoded_chars,
                start_byte: self.decoded_bytes,
                is_silent,
            });
        }
        self.decoded_bytes += piece.len();
        self.decoded_chars += piece.chars().count();
        match self.matcher.push(&piece) {
            Released::Text(text) => self.release(text, false),
            Released::Stopped { text, stop } => {
                self.stopped = Some(stop);
                self.events.stop();
                self.release(text, true);
            }
        }
    }

    /// A token of thinking. Stop strings are of the answer, not of this.
    fn thought(&mut self, token: SampledToken) {
        let tokenizer = self.text_model.tokenizer();
        let thinking = self.thinking.map(|thinking| (thinking.tokens(), thinking.is_inside()));
        let is_marker = thinking.is_some_and(|(t, _)| token.id == t.begin || token.id == t.end);
        let is_over = thinking.is_some_and(|(_, is_inside)| !is_inside);
        let is_silent = is_marker
            || tokenizer.is_special(token.id)
            || self.options.stop_token_ids.contains(&token.id);
        let bytes = if is_silent { &[] } else { tokenizer.token_bytes(token.id).unwrap_or(&[]) };
        let mut piece = self.utf8.push(bytes);
        if is_over {
            piece += &self.utf8.finish();
        }
        let mut entries = Vec::new();
        if self.options.wants_entries {
            let (start_char, start_byte) = (self.decoded_chars, self.decoded_bytes);
            entries.push(TokenEntry { token, start_char, start_byte, is_silent });
        }
        // The last lines' ends belong to the marker behind them.
        let mut text = std::mem::take(&mut self.held_lines) + &self.trimmed(piece);
        self.held_lines = text.split_off(text.trim_end_matches('\n').len());
        if is_marker {
            self.held_lines.clear();
            self.trims_lines = true;
        }
        if !text.is_empty() || !entries.is_empty() {
            self.ready.push_back(Ok(Part::Reasoning { text, entries }));
        }
    }

    /// Without the ends of lines that stand behind a marker of thinking.
    fn trimmed(&mut self, piece: String) -> String {
        if !self.trims_lines {
            return piece;
        }
        let rest = piece.trim_start_matches('\n').to_owned();
        self.trims_lines = rest.is_empty();
        rest
    }

    /// What was held back at the end of an answer without a stop string.
    fn last_words(&mut self) {
        let rest = self.utf8.finish();
        if self.thinking.is_some_and(|thinking| thinking.is_inside()) {
            if !rest.is_empty() {
                let text = std::mem::take(&mut self.held_lines) + &rest;
                self.ready.push_back(Ok(Part::Reasoning { text, entries: Vec::new() }));
            }
            return;
        }
        let text = match self.matcher.push(&rest) {
            Released::Text(text) => text + &self.matcher.finish(),
            Released::Stopped { text, stop } => {
                self.stopped = Some(stop);
                text
            }
        };
        self.release(text, true);
    }

    /// Hands out text with the entries of tokens that begin in it.
    fn release(&mut self, text: String, is_last: bool) {
        self.released_bytes += text.len();
        let all = if is_last { self.stopped.is_none() } else { !self.matcher.holds_text() };
        let mut entries = Vec::new();
        while self.entries.front().is_some_and(|e| all || e.start_byte < self.released_bytes) {
            entries.extend(self.entries.pop_front());
        }
        let Some(parser) = &mut self.calls else {
            if !text.is_empty() || !entries.is_empty() {
                self.ready.push_back(Ok(Part::Text { text, entries }));
            }
            return;
        };
        let mut events = Vec::new();
        parser.push(&text, &mut events);
        self.called(events, entries);
    }

    /// The answer is over: what may have become a call is one, or is text.
    fn last_calls(&mut self) {
        let Some(mut parser) = self.calls.take() else { return };
        if !self.called_once {
            let mut events = Vec::new();
            parser.finish(&mut events);
            self.called(events, Vec::new());
        }
    }

    /// Hands out what the parser understood. The entries of the tokens that brought it go with its text where it begins
    /// with text, and else before it: those of a call's tokens, and of text that may yet become a call.
    fn called(&mut self, events: Vec<CallEvent>, mut entries: Vec<TokenEntry>) {
        if !entries.is_empty() && !matches!(events.first(), Some(CallEvent::Text(_))) {
            let entries = std::mem::take(&mut entries);
            self.ready.push_back(Ok(Part::Text { text: String::new(), entries }));
        }
        for event in events {
            let call = self.begun_calls.saturating_sub(1);
            let part = match event {
                CallEvent::Text(text) => Part::Text { text, entries: std::mem::take(&mut entries) },
                CallEvent::Begin(name) => {
                    self.begun_calls += 1;
                    let length = self.options.calls.as_ref().and_then(|c| c.format.id_length());
                    let id = match length {
                        Some(length) => random_hex().chars().take(length).collect(),
                        None => format!("call_{}", random_hex()),
                    };
                    Part::CallBegin { call: self.begun_calls - 1, id, name }
                }
                CallEvent::Arguments(text) => Part::CallArguments { call, text },
                CallEvent::End(broken) => {
                    self.whole_calls += u32::from(broken.is_none());
                    Part::CallEnd { call, broken }
                }
            };
            let is_last = matches!(part, Part::CallEnd { broken: None, .. })
                && self.options.calls.as_ref().is_some_and(|calls| !calls.parallel);
            self.ready.push_back(Ok(part));
            if is_last {
                self.called_once = true;
                self.events.stop();
                return;
            }
        }
    }
}

impl Stream for Choice {
    type Item = Result<(u32, Part), ApiError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(part) = self.ready.pop_front() {
                return Poll::Ready(Some(part.map(|part| (self.index, part))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.events.poll_next_unpin(cx)) {
                Some(event) => self.event(event),
                None => self.ended = true,
            }
        }
    }
}
