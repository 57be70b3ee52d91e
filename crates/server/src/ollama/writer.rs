//! Writes an answer as Ollama does: lines of JSON, or one.
//!
//! Invariants: each line is one object; only the last is `done`, and it leaves once the usage it tells is durable; calls
//! are told whole.

use std::time::Instant;

use mintage_ledger::TokenUsage;
use mintage_ledger::price::utc_text;
use serde::Serialize;
use serde_json::Value;

use crate::answer::{EndReason, Part};
use crate::chat::ToolCall;
use crate::error::ApiError;
use crate::job::Job;
use crate::ollama::errors;
use crate::respond::{Answer, Frames, Writer, json_bytes, json_text};
use crate::sse::Framing;
use crate::till::{Settled, unix_ms};

/// Whether an answer is a message or a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Chat,
    Generate,
}

/// Writes one answer.
pub(super) struct LineWriter {
    model: String,
    form: Form,
    arrival: Instant,
    /// When the prompt was computed.
    prefilled: Option<Instant>,
    /// Calls that are not complete.
    calls: Vec<(u32, ToolCall)>,
    done_reason: &'static str,
}

#[derive(Serialize)]
struct Line<'a> {
    model: &'a str,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<String>,
    /// Of a plain text.
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<String>,
    done: bool,
    #[serde(flatten)]
    end: Option<End>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    thinking: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

#[derive(Serialize)]
struct Call {
    id: String,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    index: u32,
    name: String,
    arguments: Value,
}

/// How it ended and what it took; durations in ns.
#[derive(Serialize)]
struct End {
    done_reason: &'static str,
    #[serde(flatten)]
    taken: Option<Taken>,
}

#[derive(Serialize)]
struct Taken {
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: u64,
    prompt_eval_duration: u64,
    eval_count: u64,
    eval_duration: u64,
}

/// What one line says.
#[derive(Default)]
struct Said {
    text: String,
    thinking: String,
    calls: Vec<(u32, ToolCall)>,
}

impl LineWriter {
    pub(super) fn new(job: &Job, form: Form, arrival: Instant) -> Self {
        Self {
            model: job.model_name().to_owned(),
            form,
            arrival,
            prefilled: None,
            calls: Vec::new(),
            done_reason: "stop",
        }
    }

    fn line(&self, said: Said, end: Option<End>) -> Line<'_> {
        line(&self.model, self.form, said, end)
    }

    fn end(&self, settled: &Settled) -> End {
        let now = Instant::now();
        let prefilled = self.prefilled.unwrap_or(now);
        let ns = |from: Instant, to: Instant| {
            u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
        };
        let taken = Taken {
            total_duration: ns(self.arrival, now),
            // The model was there before the request.
            load_duration: 0,
            prompt_eval_count: settled.usage.prompt(),
            prompt_eval_duration: ns(self.arrival, prefilled),
            eval_count: settled.usage.completion(),
            eval_duration: ns(prefilled, now),
        };
        End { done_reason: self.done_reason, taken: Some(taken) }
    }

    fn say(&self, said: Said, frames: &mut Frames) -> Result<(), ApiError> {
        if said.text.is_empty() && said.thinking.is_empty() && said.calls.is_empty() {
            return Ok(());
        }
        frames.raw(json_text(&self.line(said, None))? + "\n");
        Ok(())
    }
}

fn line(model: &str, form: Form, said: Said, end: Option<End>) -> Line<'_> {
    let done = end.is_some();
    let line = Line {
        model,
        created_at: utc_text(unix_ms()),
        message: None,
        response: None,
        thinking: None,
        done,
        end,
    };
    match form {
        Form::Chat => {
            let message = Message {
                role: "assistant",
                content: said.text,
                thinking: said.thinking,
                tool_calls: said
                    .calls
                    .into_iter()
                    .map(|(index, call)| whole(index, call))
                    .collect(),
            };
            Line { message: Some(message), ..line }
        }
        Form::Generate => Line {
            response: Some(said.text),
            thinking: Some(said.thinking).filter(|text| !text.is_empty()),
            ..line
        },
    }
}

/// The answer to who only wants the model loaded.
pub(super) fn loaded(model: &str, form: Form) -> Result<Vec<u8>, ApiError> {
    let end = End { done_reason: "load", taken: None };
    json_bytes(&line(model, form, Said::default(), Some(end)))
}

fn whole(index: u32, call: ToolCall) -> Call {
    let ToolCall { id, name, arguments } = call;
    let arguments = serde_json::from_str(&arguments).unwrap_or(Value::String(arguments));
    Call { id, function: Function { index, name, arguments } }
}

fn done_reason(end: &EndReason) -> &'static str {
    match end {
        EndReason::Stop | EndReason::StopString(_) | EndReason::ToolCalls => "stop",
        EndReason::Length => "length",
    }
}

impl Writer for LineWriter {
    const FRAMING: Framing = Framing { content_type: "application/x-ndjson", keep_alive: None };

    fn answered_by(&mut self, job: &Job) {
        job.model_name().clone_into(&mut self.model);
    }

    fn part(
        &mut self,
        _index: u32,
        part: Part,
        _so_far: &TokenUsage,
        frames: &mut Frames,
    ) -> Result<(), ApiError> {
        let said = match part {
            Part::Prompt { .. } => {
                self.prefilled = Some(Instant::now());
                return Ok(());
            }
            Part::Reasoning { text, .. } => Said { thinking: text, ..Said::default() },
            Part::Text { text, .. } => Said { text, ..Said::default() },
            Part::CallBegin { call, id, name } => {
                self.calls.push((call, ToolCall { id, name, arguments: String::new() }));
                return Ok(());
            }
            Part::CallArguments { text, .. } => {
                if let Some((_, call)) = self.calls.last_mut() {
                    call.arguments.push_str(&text);
                }
                return Ok(());
            }
            Part::CallEnd { broken: None, .. } => {
                Said { calls: std::mem::take(&mut self.calls), ..Said::default() }
            }
            Part::CallEnd { broken: Some(text), .. } => {
                self.calls.clear();
                Said { text, ..Said::default() }
            }
            Part::End { reason } => {
                self.done_reason = done_reason(&reason);
                return Ok(());
            }
        };
        self.say(said, frames)
    }

    fn last(&mut self, settled: &Settled, frames: &mut Frames) -> Result<(), ApiError> {
        let last = self.line(Said::default(), Some(self.end(settled)));
        frames.raw(json_text(&last)? + "\n");
        Ok(())
    }

    fn broken(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.raw(errors::body(error) + "\n");
    }

    fn whole(&mut self, answers: Vec<Answer>, settled: &Settled) -> Result<Vec<u8>, ApiError> {
        let answer = answers.into_iter().next().unwrap_or_default();
        self.done_reason = done_reason(&answer.end);
        self.prefilled = answer.prefilled;
        let said = Said {
            text: answer.text,
            thinking: answer.reasoning,
            calls: (0..).zip(answer.calls).collect(),
        };
        json_bytes(&self.line(said, Some(self.end(settled))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn calls_are_told_whole_or_as_text() {
        let mut writer = LineWriter {
            model: "m".to_owned(),
            form: Form::Chat,
            arrival: Instant::now(),
            prefilled: None,
            calls: Vec::new(),
            done_reason: "stop",
        };
        let mut frames = Frames::default();
        let begin =
            |call, name: &str| Part::CallBegin { call, id: "c".to_owned(), name: name.to_owned() };
        let arguments = |call, text: &str| Part::CallArguments { call, text: text.to_owned() };
        for part in [
            Part::Reasoning { text: "hm".to_owned(), entries: Vec::new() },
            begin(0, "f"),
            arguments(0, "{\"a\":"),
            arguments(0, "1}"),
            Part::CallEnd { call: 0, broken: None },
            begin(1, "g"),
            arguments(1, "{oh"),
            Part::CallEnd { call: 1, broken: Some("{oh no".to_owned()) },
        ] {
            writer.part(0, part, &TokenUsage::default(), &mut frames).unwrap();
        }
        let sent = frames.sent();
        let messages: Vec<Value> = sent
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["message"].clone())
            .collect();
        let call = json!({"id": "c", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}});
        assert_eq!(
            messages,
            [
                json!({"role": "assistant", "content": "", "thinking": "hm"}),
                json!({"role": "assistant", "content": "", "tool_calls": [call]}),
                json!({"role": "assistant", "content": "{oh no"}),
            ]
        );
    }
}
