//! What a choice says, step by step, into a response and its numbered events.
//!
//! Pure: the same steps make the same items, ids and numbers, so that a stream can be told again from its steps.
//! Invariants: items are numbered from 0 without gaps, at most one is open, and each that was added is done before the
//! response ends; a call is told once it is known to be one, so what turned out to be no call is text and nothing else.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answer::{EndReason, Part, TokenEntry};
use crate::error::ApiError;
use crate::openai::obfuscation;
use crate::openai::responses::items::item_id;
use crate::openai::responses::wire::{
    Content, Event, IncompleteDetails, ItemStatus, Numbered, OutputItem, ResponseBody, Status,
};
use crate::respond::{Frames, json_text};

const ASSISTANT: &str = "assistant";
const MAX_OUTPUT_TOKENS: &str = "max_output_tokens";

/// What happened to a choice. Short names: many of them are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Step {
    /// The prompt is computed.
    #[serde(rename = "p")]
    Prompt,
    #[serde(rename = "r")]
    Reasoning(String),
    /// Text, and what is told of its tokens where asked for.
    #[serde(rename = "t")]
    Text(String, Vec<Value>),
    /// A whole call: id, name, and its arguments as they came.
    #[serde(rename = "c")]
    Call(String, String, Vec<String>),
    /// The end; whether a limit cut it.
    #[serde(rename = "e")]
    End(bool),
}

/// Parts to steps: a call is held until it is whole.
#[derive(Default)]
pub(super) struct Steps {
    held: Option<(String, String, Vec<String>)>,
    /// Of tokens whose text is still to come.
    entries: Vec<Value>,
}

impl Steps {
    /// The step that a part makes, if any. `told`: what is told of tokens.
    pub(super) fn step(
        &mut self,
        part: &Part,
        told: impl Fn(&[TokenEntry]) -> Vec<Value>,
    ) -> Option<Step> {
        match part {
            Part::Prompt { .. } => Some(Step::Prompt),
            Part::Reasoning { text, .. } => {
                (!text.is_empty()).then(|| Step::Reasoning(text.clone()))
            }
            Part::Text { text, entries } => {
                self.entries.extend(told(entries));
                (!text.is_empty())
                    .then(|| Step::Text(text.clone(), std::mem::take(&mut self.entries)))
            }
            Part::CallBegin { id, name, .. } => {
                self.held = Some((id.clone(), name.clone(), Vec::new()));
                None
            }
            Part::CallArguments { text, .. } => {
                if let Some((_, _, pieces)) = &mut self.held {
                    pieces.push(text.clone());
                }
                None
            }
            Part::CallEnd { broken, .. } => {
                let held = self.held.take();
                let entries = std::mem::take(&mut self.entries);
                match broken {
                    Some(text) => Some(Step::Text(text.clone(), entries)),
                    None => held.map(|(id, name, pieces)| Step::Call(id, name, pieces)),
                }
            }
            Part::End { reason } => Some(Step::End(matches!(reason, EndReason::Length))),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Text,
    Reasoning,
}

/// A response as it grows. Events go to `frames` where they are wanted; their numbers count either way.
pub(super) struct Composer {
    pub(super) body: ResponseBody,
    open: Option<Open>,
    /// Of the next event.
    next_number: u64,
    /// Events up to this number are not wanted.
    after: Option<u64>,
    /// Deltas are padded, so that their sizes tell nothing.
    obfuscates: bool,
}

impl Composer {
    pub(super) fn new(body: ResponseBody, obfuscates: bool) -> Self {
        Self { body, open: None, next_number: 0, after: None, obfuscates }
    }

    /// Leaves out events up to this number.
    pub(super) fn after(mut self, number: Option<u64>) -> Self {
        self.after = number;
        self
    }

    /// Tells of a response that waits for its turn.
    pub(super) fn queued(&mut self, frames: Option<&mut Frames>) -> Result<(), ApiError> {
        let mut out = Out::new(self.next_number, self.after, frames);
        out.event(&Event::Created { response: &self.body })?;
        out.event(&Event::Queued { response: &self.body })?;
        self.next_number = out.number;
        Ok(())
    }

    pub(super) fn step(
        &mut self,
        step: &Step,
        frames: Option<&mut Frames>,
    ) -> Result<(), ApiError> {
        let mut out = Out::new(self.next_number, self.after, frames);
        match step {
            Step::Prompt => self.begin(&mut out)?,
            Step::Reasoning(text) => self.reasoning(text, &mut out)?,
            Step::Text(text, logprobs) => self.text(text, logprobs, &mut out)?,
            Step::Call(id, name, pieces) => self.call(id, name, pieces, &mut out)?,
            Step::End(is_cut) => self.end(*is_cut, &mut out)?,
        }
        self.next_number = out.number;
        Ok(())
    }

    /// Closes what is open, and tells how the response ended.
    pub(super) fn last(
        &mut self,
        ended: ResponseBody,
        frames: Option<&mut Frames>,
    ) -> Result<(), ApiError> {
        let mut out = Out::new(self.next_number, self.after, frames);
        self.close(ItemStatus::Incomplete, &mut out)?;
        self.body = ended;
        let response = &self.body;
        out.event(&match response.status {
            Status::Completed => Event::Completed { response },
            Status::Failed => Event::Failed { response },
            // OpenAI's document knows no event of a response that was cancelled.
            _ => Event::Incomplete { response },
        })?;
        self.next_number = out.number;
        Ok(())
    }

    /// Closes what is open: nothing more will be said.
    pub(super) fn cut(&mut self) -> Result<(), ApiError> {
        self.close(ItemStatus::Incomplete, &mut Out::new(self.next_number, None, None))
    }

    fn begin(&mut self, out: &mut Out<'_>) -> Result<(), ApiError> {
        let was_queued = self.body.status == Status::Queued;
        self.body.status = Status::InProgress;
        if !was_queued {
            out.event(&Event::Created { response: &self.body })?;
        }
        out.event(&Event::InProgress { response: &self.body })
    }

    fn id(&self, kind: &str) -> String {
        item_id(kind, &self.body.id, &self.body.output.len().to_string())
    }

    fn add(&mut self, item: OutputItem, out: &mut Out<'_>) -> Result<(), ApiError> {
        let output_index = self.body.output.len();
        self.body.output.push(item);
        out.event(&Event::ItemAdded { output_index, item: &self.body.output[output_index] })
    }

    /// Opens an item of this kind unless it is open.
    fn open(&mut self, kind: Open, out: &mut Out<'_>) -> Result<(), ApiError> {
        if self.open == Some(kind) {
            return Ok(());
        }
        self.close(ItemStatus::Completed, out)?;
        let (status, content) = (ItemStatus::InProgress, Vec::new());
        let (item, part) = match kind {
            Open::Text => (
                OutputItem::Message { id: self.id("msg"), status, role: ASSISTANT.into(), content },
                Content::text(String::new(), Vec::new()),
            ),
            Open::Reasoning => (
                OutputItem::Reasoning { id: self.id("rs"), status, summary: Vec::new(), content },
                Content::ReasoningText { text: String::new() },
            ),
        };
        self.add(item, out)?;
        self.open = Some(kind);
        let output_index = self.body.output.len() - 1;
        if let Some(
            OutputItem::Message { id, content, .. } | OutputItem::Reasoning { id, content, .. },
        ) = self.body.output.last_mut()
        {
            let event =
                Event::PartAdded { item_id: id, output_index, content_index: 0, part: &part };
            out.event(&event)?;
            content.push(part);
        }
        Ok(())
    }

    fn text(&mut self, delta: &str, logprobs: &[Value], out: &mut Out<'_>) -> Result<(), ApiError> {
        self.open(Open::Text, out)?;
        let output_index = self.body.output.len().saturating_sub(1);
        let obfuscation = self.obfuscates.then(|| obfuscation(delta));
        let Some(OutputItem::Message { id, content, .. }) = self.body.output.last_mut() else {
            return Ok(());
        };
        if let Some(Content::OutputText { text, logprobs: all, .. }) = content.first_mut() {
            text.push_str(delta);
            all.extend_from_slice(logprobs);
        }
        let (item_id, content_index) = (id.as_str(), 0);
        out.event(&Event::TextDelta {
            item_id,
            output_index,
            content_index,
            delta,
            logprobs,
            obfuscation,
        })
    }

    fn reasoning(&mut self, delta: &str, out: &mut Out<'_>) -> Result<(), ApiError> {
        self.open(Open::Reasoning, out)?;
        let output_index = self.body.output.len().saturating_sub(1);
        let obfuscation = self.obfuscates.then(|| obfuscation(delta));
        let Some(OutputItem::Reasoning { id, content, .. }) = self.body.output.last_mut() else {
            return Ok(());
        };
        if let Some(Content::ReasoningText { text }) = content.first_mut() {
            text.push_str(delta);
        }
        let (item_id, content_index) = (id.as_str(), 0);
        out.event(&Event::ReasoningDelta {
            item_id,
            output_index,
            content_index,
            delta,
            obfuscation,
        })
    }

    fn call(
        &mut self,
        call_id: &str,
        name: &str,
        pieces: &[String],
        out: &mut Out<'_>,
    ) -> Result<(), ApiError> {
        self.close(ItemStatus::Completed, out)?;
        let id = self.id("fc");
        let item = |status, arguments| OutputItem::FunctionCall {
            id: id.clone(),
            status,
            call_id: call_id.to_owned(),
            name: name.to_owned(),
            arguments,
        };
        self.add(item(ItemStatus::InProgress, String::new()), out)?;
        let output_index = self.body.output.len() - 1;
        let item_id = id.as_str();
        for delta in pieces {
            let obfuscation = self.obfuscates.then(|| obfuscation(delta));
            out.event(&Event::ArgumentsDelta { item_id, output_index, delta, obfuscation })?;
        }
        let arguments = pieces.concat();
        let (name, all) = (name, arguments.as_str());
        out.event(&Event::ArgumentsDone { item_id, output_index, name, arguments: all })?;
        let done = item(ItemStatus::Completed, arguments);
        out.event(&Event::ItemDone { output_index, item: &done })?;
        self.body.output[output_index] = done;
        Ok(())
    }

    /// Closes the item that is open.
    fn close(&mut self, how: ItemStatus, out: &mut Out<'_>) -> Result<(), ApiError> {
        if self.open.take().is_none() {
            return Ok(());
        }
        let output_index = self.body.output.len().saturating_sub(1);
        let Some(item) = self.body.output.last_mut() else { return Ok(()) };
        if let OutputItem::Message { id, status, content, .. }
        | OutputItem::Reasoning { id, status, content, .. } = item
        {
            *status = how;
            let (item_id, content_index) = (id.as_str(), 0);
            if let Some(part) = content.first() {
                out.event(&match part {
                    Content::OutputText { text, logprobs, .. } => {
                        Event::TextDone { item_id, output_index, content_index, text, logprobs }
                    }
                    Content::ReasoningText { text } => {
                        Event::ReasoningDone { item_id, output_index, content_index, text }
                    }
                })?;
                out.event(&Event::PartDone { item_id, output_index, content_index, part })?;
            }
        }
        out.event(&Event::ItemDone { output_index, item })
    }

    fn end(&mut self, is_cut: bool, out: &mut Out<'_>) -> Result<(), ApiError> {
        let is_silent =
            !self.body.output.iter().any(|item| !matches!(item, OutputItem::Reasoning { .. }));
        if is_silent && !is_cut {
            self.open(Open::Text, out)?;
        }
        self.close(if is_cut { ItemStatus::Incomplete } else { ItemStatus::Completed }, out)?;
        if is_cut {
            let reason = MAX_OUTPUT_TOKENS.to_owned();
            self.body.incomplete_details = Some(IncompleteDetails { reason });
        }
        Ok(())
    }
}

/// Where events go.
struct Out<'a> {
    number: u64,
    after: Option<u64>,
    frames: Option<&'a mut Frames>,
}

impl<'a> Out<'a> {
    fn new(number: u64, after: Option<u64>, frames: Option<&'a mut Frames>) -> Self {
        Self { number, after, frames }
    }

    fn event(&mut self, event: &Event<'_>) -> Result<(), ApiError> {
        let sequence_number = self.number;
        self.number += 1;
        let is_wanted = self.after.is_none_or(|after| sequence_number > after);
        if let Some(frames) = self.frames.as_mut().filter(|_| is_wanted) {
            let data = json_text(&Numbered { event, sequence_number })?;
            frames.raw(format!("event: {}\ndata: {data}\n\n", event.name()));
        }
        Ok(())
    }
}
