//! One choice of an answer: tokens in, text out, ended by a stop token, a stop string or a limit.
//!
//! Not here: the wire format.
//! Invariants: text after a stop string is never released; released text is whole characters; entries of tokens whose
//! text was cut off are not released either; each choice ends with exactly one [`Piece::End`].

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_util::StreamExt;
use mintage_model::{Event, FinishReason, PendingBytes, SampledToken, TextModel, TokenId};

use crate::error::ApiError;
use crate::metered::MeteredStream;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndReason {
    Stop,
    Length,
}

/// What a choice has to say.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    /// The prompt is computed.
    Prompt { prompt_logprobs: Option<Vec<SampledToken>> },
    /// More text, or entries of tokens, or both.
    Delta { text: String, entries: Vec<TokenEntry> },
    /// The end.
    End { outcome: Result<EndReason, ApiError> },
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
}

/// One choice: a stream of [`Piece`]s with the choice's index.
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
    stopped: bool,
    ended: bool,
    /// Pieces to hand out before the next event.
    ready: VecDeque<Piece>,
}

impl Choice {
    pub(crate) fn new(
        index: u32,
        text_model: Arc<TextModel>,
        events: MeteredStream,
        options: ChoiceOptions,
    ) -> Self {
        let matcher = StopMatcher::new(options.stops.clone());
        Self {
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
            stopped: false,
            ended: false,
            ready: VecDeque::new(),
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Prefilled { prompt_logprobs, .. } => {
                self.ready.push_back(Piece::Prompt { prompt_logprobs });
            }
            // Sampled before the engine saw our cancel: counted, but no part of the answer.
            Event::Token(_) if self.stopped => {}
            Event::Token(token) => self.token(token),
            Event::Finished(finish) => {
                self.ended = true;
                if !self.stopped {
                    self.last_words();
                }
                let outcome = match finish.reason {
                    _ if self.stopped => Ok(EndReason::Stop),
                    FinishReason::Stop(_) => Ok(EndReason::Stop),
                    FinishReason::Length => Ok(EndReason::Length),
                    FinishReason::Deadline => {
                        Err(ApiError::deadline(self.options.request_timeout_s))
                    }
                    // We cancel only streams that nobody reads any more: then the engine is going down.
                    FinishReason::Cancelled => Err(ApiError::shutting_down()),
                    FinishReason::Fault(fault) => Err(ApiError::engine(&fault)),
                };
                self.ready.push_back(Piece::End { outcome });
            }
        }
    }

    fn token(&mut self, token: SampledToken) {
        let is_stop = self.options.stop_token_ids.contains(&token.id);
        let tokenizer = self.text_model.tokenizer();
        let is_silent = is_stop || tokenizer.is_special(token.id);
        let bytes = if is_silent { &[] } else { tokenizer.token_bytes(token.id).unwrap_or(&[]) };
        let piece = self.utf8.push(bytes);
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
            Released::Stopped(text) => {
                self.stopped = true;
                self.events.stop();
                self.release(text, true);
            }
        }
    }

    /// What was held back at the end of an answer without a stop string.
    fn last_words(&mut self) {
        let rest = self.utf8.finish();
        let text = match self.matcher.push(&rest) {
            Released::Text(text) => text + &self.matcher.finish(),
            Released::Stopped(text) => {
                self.stopped = true;
                text
            }
        };
        self.release(text, true);
    }

    /// Hands out text with the entries of tokens that begin in it.
    fn release(&mut self, text: String, is_last: bool) {
        self.released_bytes += text.len();
        let all = if is_last { !self.stopped } else { !self.matcher.holds_text() };
        let mut entries = Vec::new();
        while self.entries.front().is_some_and(|e| all || e.start_byte < self.released_bytes) {
            entries.extend(self.entries.pop_front());
        }
        if !text.is_empty() || !entries.is_empty() {
            self.ready.push_back(Piece::Delta { text, entries });
        }
    }
}

impl Stream for Choice {
    type Item = (u32, Piece);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Poll::Ready(Some((self.index, piece)));
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
