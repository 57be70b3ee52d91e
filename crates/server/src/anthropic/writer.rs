//! Writes an answer as a message of blocks, whole or as events.
//!
//! Invariants: blocks are numbered from 0 without gaps, at most one is open, and each that was opened is closed before
//! the message ends; a call is shown once it is known to be one, unless its tool is eager.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use mintage_ledger::TokenUsage;
use mintage_ledger::limits::{Standing, Standings};
use mintage_ledger::price::utc_text;
use serde_json::{Map, Value};

use crate::answer::Part;
use crate::anthropic::errors;
use crate::anthropic::wire::{Block, BlockDelta, MessageBody, MessageEnd, StreamEvent, UsageBody};
use crate::error::ApiError;
use crate::job::Job;
use crate::respond::{Answer, Frames, Writer, json_bytes, json_text};
use crate::sse::Framing;
use crate::till::{Settled, unix_ms};

/// Nothing here needs a signature to read thoughts again.
const SIGNATURE: &str = "";

/// Whose arguments are sent as they come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Eager {
    All,
    Tools(Vec<String>),
}

impl Eager {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Tools(names) => names.iter().any(|known| known == name),
        }
    }
}

/// Writes one message.
pub(super) struct MessageWriter {
    id: String,
    model: String,
    request_id: String,
    eager: Eager,
    /// Of the next block to be opened.
    next_index: u32,
    open: Option<Open>,
    /// A call that is not shown yet.
    held: Option<Call>,
    end: MessageEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Text,
    Thinking,
    Call,
}

struct Call {
    id: String,
    name: String,
    arguments: String,
}

impl MessageWriter {
    pub(super) fn new(job: &Job, request_id: &str, eager: Eager) -> Self {
        Self {
            id: job.id.clone(),
            model: job.model_name().to_owned(),
            request_id: request_id.to_owned(),
            eager,
            next_index: 0,
            open: None,
            held: None,
            end: MessageEnd::default(),
        }
    }

    fn message(&self, content: Vec<Block>, end: MessageEnd, usage: &TokenUsage) -> MessageBody<'_> {
        MessageBody {
            id: &self.id,
            r#type: "message",
            role: "assistant",
            model: &self.model,
            content,
            stop_reason: end.stop_reason,
            stop_sequence: end.stop_sequence,
            usage: UsageBody::from(usage),
        }
    }

    /// Opens a block unless one of its kind is open.
    fn open(&mut self, kind: Open, block: Block, frames: &mut Frames) -> Result<(), ApiError> {
        if self.open == Some(kind) && kind != Open::Call {
            return Ok(());
        }
        self.close(frames)?;
        self.open = Some(kind);
        let index = self.next_index;
        self.next_index += 1;
        event(&StreamEvent::ContentBlockStart { index, content_block: block }, frames)
    }

    fn delta(&self, delta: BlockDelta, frames: &mut Frames) -> Result<(), ApiError> {
        let index = self.next_index.saturating_sub(1);
        event(&StreamEvent::ContentBlockDelta { index, delta }, frames)
    }

    fn close(&mut self, frames: &mut Frames) -> Result<(), ApiError> {
        let Some(kind) = self.open.take() else { return Ok(()) };
        if kind == Open::Thinking {
            self.delta(BlockDelta::Signature { signature: SIGNATURE }, frames)?;
        }
        let index = self.next_index.saturating_sub(1);
        event(&StreamEvent::ContentBlockStop { index }, frames)
    }

    fn text(&mut self, text: String, frames: &mut Frames) -> Result<(), ApiError> {
        if text.is_empty() {
            return Ok(());
        }
        self.open(Open::Text, Block::Text { text: String::new() }, frames)?;
        self.delta(BlockDelta::Text { text }, frames)
    }

    fn thinking(&mut self, thinking: String, frames: &mut Frames) -> Result<(), ApiError> {
        if thinking.is_empty() {
            return Ok(());
        }
        let block = Block::Thinking { thinking: String::new(), signature: SIGNATURE };
        self.open(Open::Thinking, block, frames)?;
        self.delta(BlockDelta::Thinking { thinking }, frames)
    }

    fn show_call(&mut self, id: String, name: String, frames: &mut Frames) -> Result<(), ApiError> {
        let input = Value::Object(Map::new());
        self.open(Open::Call, Block::ToolUse { id, name, input }, frames)
    }

    fn arguments(&mut self, text: String, frames: &mut Frames) -> Result<(), ApiError> {
        match &mut self.held {
            Some(call) => {
                call.arguments.push_str(&text);
                Ok(())
            }
            None => self.delta(BlockDelta::InputJson { partial_json: text }, frames),
        }
    }

    fn end_call(&mut self, broken: Option<String>, frames: &mut Frames) -> Result<(), ApiError> {
        let held = self.held.take();
        if let Some(text) = broken {
            // An eager call was shown: it stays, cut as it is, and the text tells the rest.
            return self.text(text, frames);
        }
        if let Some(Call { id, name, arguments }) = held {
            self.show_call(id, name, frames)?;
            self.delta(BlockDelta::InputJson { partial_json: arguments }, frames)?;
        }
        self.close(frames)
    }
}

impl Writer for MessageWriter {
    const FRAMING: Framing = Framing {
        keep_alive: Some("event: ping\ndata: {\"type\":\"ping\"}\n\n"),
        ..Framing::EVENTS
    };

    fn part(
        &mut self,
        _index: u32,
        part: Part,
        so_far: &TokenUsage,
        frames: &mut Frames,
    ) -> Result<(), ApiError> {
        match part {
            Part::Prompt { .. } => {
                let message = self.message(Vec::new(), MessageEnd::default(), so_far);
                event(&StreamEvent::MessageStart { message }, frames)
            }
            Part::Reasoning { text, .. } => self.thinking(text, frames),
            Part::Text { text, .. } => self.text(text, frames),
            Part::CallBegin { id, name, .. } if self.eager.has(&name) => {
                self.show_call(id, name, frames)
            }
            Part::CallBegin { id, name, .. } => {
                self.held = Some(Call { id, name, arguments: String::new() });
                self.close(frames)
            }
            Part::CallArguments { text, .. } => self.arguments(text, frames),
            Part::CallEnd { broken, .. } => self.end_call(broken, frames),
            Part::End { reason } => {
                self.end = reason.into();
                self.close(frames)
            }
        }
    }

    fn last(&mut self, settled: &Settled, frames: &mut Frames) -> Result<(), ApiError> {
        let usage = UsageBody::from(&settled.usage);
        let delta = std::mem::take(&mut self.end);
        event(&StreamEvent::MessageDelta { delta, usage }, frames)?;
        event(&StreamEvent::MessageStop, frames)
    }

    fn broken(&mut self, error: &ApiError, frames: &mut Frames) {
        let data = errors::body(error, Some(&self.request_id));
        frames.raw(format!("event: error\ndata: {data}\n\n"));
    }

    fn whole(&mut self, answers: Vec<Answer>, settled: &Settled) -> Result<Vec<u8>, ApiError> {
        let answer = answers.into_iter().next().unwrap_or_default();
        let mut content = Vec::new();
        if !answer.reasoning.is_empty() {
            content.push(Block::Thinking { thinking: answer.reasoning, signature: SIGNATURE });
        }
        if !answer.text.is_empty() {
            content.push(Block::Text { text: answer.text });
        }
        for call in answer.calls {
            // What is no object was not taken for a call; should it ever be, the client sees it as it is.
            let input = serde_json::from_str(&call.arguments)
                .unwrap_or_else(|_| Value::String(call.arguments.clone()));
            content.push(Block::ToolUse { id: call.id, name: call.name, input });
        }
        json_bytes(&self.message(content, answer.end.into(), &settled.usage))
    }

    fn answered_by(&mut self, job: &Job) {
        job.model_name().clone_into(&mut self.model);
    }

    fn headers(&self, standings: &Standings, headers: &mut HeaderMap) {
        let limits = [
            (
                [
                    "anthropic-ratelimit-requests-limit",
                    "anthropic-ratelimit-requests-remaining",
                    "anthropic-ratelimit-requests-reset",
                ],
                standings.requests,
            ),
            (
                [
                    "anthropic-ratelimit-tokens-limit",
                    "anthropic-ratelimit-tokens-remaining",
                    "anthropic-ratelimit-tokens-reset",
                ],
                standings.tokens,
            ),
        ];
        for (names, standing) in limits {
            let Some(Standing { limit, remaining, reset_ms }) = standing else { continue };
            let reset = utc_text(unix_ms().saturating_add(reset_ms));
            let values = [
                Some(HeaderValue::from(limit)),
                Some(HeaderValue::from(remaining)),
                HeaderValue::from_str(&reset).ok(),
            ];
            for (name, value) in names.into_iter().zip(values) {
                headers.extend(value.map(|value| (HeaderName::from_static(name), value)));
            }
        }
    }
}

/// `event: …`, `data: …` and an empty line.
fn event(event: &StreamEvent<'_>, frames: &mut Frames) -> Result<(), ApiError> {
    frames.raw(format!("event: {}\ndata: {}\n\n", event.name(), json_text(event)?));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::answer::EndReason;

    fn text(text: &str) -> Part {
        Part::Text { text: text.to_owned(), entries: Vec::new() }
    }

    fn thought(text: &str) -> Part {
        Part::Reasoning { text: text.to_owned(), entries: Vec::new() }
    }

    fn begin(call: u32, name: &str) -> Part {
        Part::CallBegin { call, id: format!("call_{call}"), name: name.to_owned() }
    }

    fn arguments(call: u32, text: &str) -> Part {
        Part::CallArguments { call, text: text.to_owned() }
    }

    fn end(call: u32, broken: Option<&str>) -> Part {
        Part::CallEnd { call, broken: broken.map(str::to_owned) }
    }

    fn writer(eager: Eager) -> MessageWriter {
        MessageWriter {
            id: "msg_1".to_owned(),
            model: "m".to_owned(),
            request_id: "req_1".to_owned(),
            eager,
            next_index: 0,
            open: None,
            held: None,
            end: MessageEnd::default(),
        }
    }

    /// Each event on a line: what kind, of which block, and what it brings.
    fn check(eager: Eager, parts: Vec<Part>, expected: &[&str]) {
        let (mut writer, mut frames) = (writer(eager), Frames::default());
        let parts = parts.into_iter().chain([Part::End { reason: EndReason::ToolCalls }]);
        for part in parts {
            writer.part(0, part, &TokenUsage::default(), &mut frames).unwrap();
        }
        writer.last(&Settled::default(), &mut frames).unwrap();
        let sent = frames.sent();
        let lines: Vec<String> = sent
            .split_terminator("\n\n")
            .map(|frame| {
                let (name, data) = frame.split_once("\ndata: ").unwrap();
                let data: Value = serde_json::from_str(data).unwrap();
                let index = &data["index"];
                match name.strip_prefix("event: content_block_") {
                    Some("start") => format!("start {index} {}", data["content_block"]),
                    Some("delta") => format!("delta {index} {}", data["delta"]),
                    Some("stop") => format!("stop {index}"),
                    _ => name.replace("event: ", ""),
                }
            })
            .collect();
        assert_eq!(lines, expected, "{sent}");
    }

    const TEXT: &str = r#"start 0 {"type":"text","text":""}"#;

    #[test]
    fn blocks_are_opened_and_closed_in_order() {
        check(
            Eager::Tools(Vec::new()),
            vec![
                thought("h"),
                thought("m"),
                text(""),
                text("So:"),
                begin(0, "f"),
                arguments(0, r#"{"a":"#),
                arguments(0, "1}"),
                end(0, None),
                begin(1, "g"),
                arguments(1, "{}"),
                end(1, None),
            ],
            &[
                r#"start 0 {"type":"thinking","thinking":"","signature":""}"#,
                r#"delta 0 {"type":"thinking_delta","thinking":"h"}"#,
                r#"delta 0 {"type":"thinking_delta","thinking":"m"}"#,
                r#"delta 0 {"type":"signature_delta","signature":""}"#,
                "stop 0",
                r#"start 1 {"type":"text","text":""}"#,
                r#"delta 1 {"type":"text_delta","text":"So:"}"#,
                "stop 1",
                r#"start 2 {"type":"tool_use","id":"call_0","name":"f","input":{}}"#,
                r#"delta 2 {"type":"input_json_delta","partial_json":"{\"a\":1}"}"#,
                "stop 2",
                r#"start 3 {"type":"tool_use","id":"call_1","name":"g","input":{}}"#,
                r#"delta 3 {"type":"input_json_delta","partial_json":"{}"}"#,
                "stop 3",
                "message_delta",
                "message_stop",
            ],
        );
    }

    #[test]
    fn what_is_no_call_after_all_is_text() {
        let parts =
            || vec![text("So: "), begin(0, "f"), arguments(0, "{oh"), end(0, Some("{oh no"))];
        check(
            Eager::Tools(vec!["g".to_owned()]),
            parts(),
            &[
                TEXT,
                r#"delta 0 {"type":"text_delta","text":"So: "}"#,
                "stop 0",
                r#"start 1 {"type":"text","text":""}"#,
                r#"delta 1 {"type":"text_delta","text":"{oh no"}"#,
                "stop 1",
                "message_delta",
                "message_stop",
            ],
        );
        // An eager tool's call was shown before that was known.
        check(
            Eager::All,
            parts(),
            &[
                TEXT,
                r#"delta 0 {"type":"text_delta","text":"So: "}"#,
                "stop 0",
                r#"start 1 {"type":"tool_use","id":"call_0","name":"f","input":{}}"#,
                r#"delta 1 {"type":"input_json_delta","partial_json":"{oh"}"#,
                "stop 1",
                r#"start 2 {"type":"text","text":""}"#,
                r#"delta 2 {"type":"text_delta","text":"{oh no"}"#,
                "stop 2",
                "message_delta",
                "message_stop",
            ],
        );
    }

    #[test]
    fn a_whole_message_has_its_blocks_in_order() {
        let call = crate::chat::ToolCall {
            id: "c".to_owned(),
            name: "f".to_owned(),
            arguments: r#"{"a":1}"#.to_owned(),
        };
        let answer = Answer {
            reasoning: "hm".to_owned(),
            text: "So:".to_owned(),
            calls: vec![call],
            end: EndReason::ToolCalls,
            ..Answer::default()
        };
        let usage = TokenUsage {
            input: 3,
            cached_input: 2,
            output: 5,
            thinking: 4,
            ..TokenUsage::default()
        };
        let settled = Settled { usage, cost: None };
        let body = writer(Eager::All).whole(vec![answer], &settled).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let expected = json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "So:"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
            ],
            "stop_reason": "tool_use", "stop_sequence": null,
            "usage": {"input_tokens": 3, "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 2, "output_tokens": 9,
                "output_tokens_details": {"thinking_tokens": 4}},
        });
        assert_eq!(body, expected);
    }
}
