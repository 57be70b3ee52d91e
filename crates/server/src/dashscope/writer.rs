//! Writes an answer as DashScope's native API does, whole or as events.
//!
//! Invariants: events are numbered from 1; each has an `output`; only the last tells how the choices ended, and leaves
//! once the usage it tells is durable; without `incremental_output` each tells all of its choice so far.

use mintage_ledger::TokenUsage;

use crate::answer::Part;
use crate::chat::ToolCall;
use crate::dashscope::errors;
use crate::dashscope::parameters::ResultFormat;
use crate::dashscope::wire::{
    Body, CallBody, ChoiceBody, Content, MessageBody, NOT_FINISHED, Output, UsageBody,
    finish_reason,
};
use crate::error::ApiError;
use crate::job::Job;
use crate::respond::{Answer, Frames, Writer, json_bytes, json_text};
use crate::sse::Framing;
use crate::till::Settled;

/// How an answer is shaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) result_format: ResultFormat,
    pub(super) incremental_output: bool,
    /// `content` is a list.
    pub(super) content_as_parts: bool,
}

/// Writes one answer.
pub(super) struct GenerationWriter {
    id: String,
    request_id: String,
    shape: Shape,
    /// Of the last event.
    number: u64,
    choices: Vec<Said>,
}

/// What a choice has said that is to be told: all of it, or what no event told yet.
#[derive(Clone, Default)]
struct Said {
    text: String,
    reasoning: String,
    /// By their places in the answer.
    calls: Vec<(u32, ToolCall)>,
    finish_reason: Option<&'static str>,
}

impl GenerationWriter {
    pub(super) fn new(job: &Job, request_id: &str, shape: Shape) -> Self {
        Self {
            id: job.id.clone(),
            request_id: request_id.to_owned(),
            shape,
            number: 0,
            choices: vec![Said::default(); job.options.n as usize],
        }
    }

    fn choice(&self, index: u32, said: Said, end: &'static str) -> ChoiceBody {
        let calls = said.calls.into_iter().map(|(index, call)| CallBody::new(index, call));
        ChoiceBody {
            index,
            finish_reason: end,
            message: MessageBody {
                role: "assistant",
                content: Content::new(said.text, self.shape.content_as_parts),
                reasoning_content: said.reasoning,
                tool_calls: calls.collect(),
            },
        }
    }

    fn body(&self, choices: Vec<(u32, Said, &'static str)>, usage: &TokenUsage) -> Body<'_> {
        let output = match self.shape.result_format {
            ResultFormat::Text => {
                let first = choices.into_iter().next();
                let (text, finish_reason) =
                    first.map_or((String::new(), NOT_FINISHED), |(_, said, end)| (said.text, end));
                Output::Text { text, finish_reason }
            }
            ResultFormat::Message => Output::Message {
                choices: choices
                    .into_iter()
                    .map(|(index, said, end)| self.choice(index, said, end))
                    .collect(),
            },
        };
        Body { output, usage: UsageBody::from(usage), request_id: &self.id }
    }

    fn event(
        &mut self,
        choices: Vec<(u32, Said, &'static str)>,
        usage: &TokenUsage,
        frames: &mut Frames,
    ) -> Result<(), ApiError> {
        self.number += 1;
        let data = json_text(&self.body(choices, usage))?;
        frames.raw(format!("id:{}\nevent:result\n:HTTP_STATUS/200\ndata:{data}\n\n", self.number));
        Ok(())
    }

    /// What is to be told of a choice now.
    fn told(&mut self, index: u32) -> Said {
        let Some(said) = self.choices.get_mut(index as usize) else { return Said::default() };
        if self.shape.incremental_output { std::mem::take(said) } else { said.clone() }
    }
}

impl Said {
    /// Whether an event has anything new to tell.
    fn add(&mut self, part: Part, incremental: bool) -> bool {
        match part {
            Part::Prompt { .. } => return false,
            Part::Reasoning { text, .. } => {
                self.reasoning.push_str(&text);
                return !text.is_empty();
            }
            Part::Text { text, .. } => {
                self.text.push_str(&text);
                return !text.is_empty();
            }
            Part::CallBegin { call, id, name } => {
                self.calls.push((call, ToolCall { id, name, arguments: String::new() }));
            }
            Part::CallArguments { call, text } => {
                match self.calls.iter_mut().find(|(index, _)| *index == call) {
                    Some((_, known)) => known.arguments.push_str(&text),
                    // Its beginning was told: more of it has neither id nor name.
                    None => {
                        self.calls.push((call, ToolCall { arguments: text, ..ToolCall::default() }))
                    }
                }
            }
            Part::CallEnd { broken: None, .. } => return false,
            Part::CallEnd { call, broken: Some(text) } => {
                self.calls.retain(|(index, _)| incremental || *index != call);
                self.text.push_str(&text);
            }
            Part::End { reason } => {
                self.finish_reason = Some(finish_reason(&reason));
                return false;
            }
        }
        true
    }
}

impl Writer for GenerationWriter {
    const FRAMING: Framing = Framing { keep_alive: Some(":keep-alive\n\n"), ..Framing::EVENTS };

    fn part(
        &mut self,
        index: u32,
        part: Part,
        so_far: &TokenUsage,
        frames: &mut Frames,
    ) -> Result<(), ApiError> {
        let incremental = self.shape.incremental_output;
        let Some(said) = self.choices.get_mut(index as usize) else { return Ok(()) };
        if !said.add(part, incremental) {
            return Ok(());
        }
        let said = self.told(index);
        self.event(vec![(index, said, NOT_FINISHED)], so_far, frames)
    }

    fn last(&mut self, settled: &Settled, frames: &mut Frames) -> Result<(), ApiError> {
        let said = std::mem::take(&mut self.choices);
        let ends = (0..).zip(said).map(|(index, said)| {
            let end = said.finish_reason.unwrap_or("stop");
            (index, said, end)
        });
        self.event(ends.collect(), &settled.usage, frames)
    }

    fn broken(&mut self, error: &ApiError, frames: &mut Frames) {
        self.number += 1;
        let status = errors::status(error).as_u16();
        let data = errors::body(error, &self.request_id);
        // No space behind `event:`, and a line with the status: the clients look for exactly these.
        frames.raw(format!(
            "id:{}\nevent:error\n:HTTP_STATUS/{status}\nstatus:{status}\ndata:{data}\n\n",
            self.number
        ));
    }

    fn whole(&mut self, answers: Vec<Answer>, settled: &Settled) -> Result<Vec<u8>, ApiError> {
        let choices = (0..).zip(answers).map(|(index, answer)| {
            let end = finish_reason(&answer.end);
            let said = Said {
                text: answer.text,
                reasoning: answer.reasoning,
                calls: (0..).zip(answer.calls).collect(),
                finish_reason: None,
            };
            (index, said, end)
        });
        json_bytes(&self.body(choices.collect(), &settled.usage))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::answer::EndReason;

    fn check(incremental_output: bool, broken: Option<&str>, expected: &[&str]) {
        let shape = Shape {
            result_format: ResultFormat::Message,
            incremental_output,
            content_as_parts: false,
        };
        let mut writer = GenerationWriter {
            id: "ds-1".to_owned(),
            request_id: "req_1".to_owned(),
            shape,
            number: 0,
            choices: vec![Said::default()],
        };
        let mut frames = Frames::default();
        for part in [
            Part::Prompt { logprobs: None },
            Part::Reasoning { text: "hm".to_owned(), entries: Vec::new() },
            Part::Text { text: "So:".to_owned(), entries: Vec::new() },
            Part::Text { text: String::new(), entries: Vec::new() },
            Part::CallBegin { call: 0, id: "c".to_owned(), name: "f".to_owned() },
            Part::CallArguments { call: 0, text: "{\"a\":".to_owned() },
            Part::CallArguments { call: 0, text: "1}".to_owned() },
            Part::CallEnd { call: 0, broken: broken.map(str::to_owned) },
            Part::End { reason: EndReason::ToolCalls },
        ] {
            writer.part(0, part, &TokenUsage::default(), &mut frames).unwrap();
        }
        writer.last(&Settled::default(), &mut frames).unwrap();
        let sent = frames.sent();
        let lines: Vec<String> = sent
            .split_terminator("\n\n")
            .map(|frame| {
                let data: Value =
                    serde_json::from_str(frame.split_once("data:").unwrap().1).unwrap();
                let choice = &data["output"]["choices"][0];
                let message = &choice["message"];
                let calls = message["tool_calls"].as_array().map_or(String::new(), |calls| {
                    let call = &calls[0];
                    assert_eq!((&call["index"], calls.len()), (&Value::from(0), 1));
                    format!(" {} {}", call["id"], call["function"])
                });
                format!(
                    "{} {} {}{calls}",
                    choice["finish_reason"], message["reasoning_content"], message["content"]
                )
            })
            .collect();
        assert_eq!(lines, expected, "{sent}");
    }

    #[test]
    fn calls_grow_and_are_told_in_part() {
        check(
            false,
            None,
            &[
                r#""null" "hm" """#,
                r#""null" "hm" "So:""#,
                r#""null" "hm" "So:" "c" {"name":"f","arguments":""}"#,
                r#""null" "hm" "So:" "c" {"name":"f","arguments":"{\"a\":"}"#,
                r#""null" "hm" "So:" "c" {"name":"f","arguments":"{\"a\":1}"}"#,
                r#""tool_calls" "hm" "So:" "c" {"name":"f","arguments":"{\"a\":1}"}"#,
            ],
        );
        check(
            true,
            None,
            &[
                r#""null" "hm" """#,
                r#""null" "" "So:""#,
                r#""null" "" "" "c" {"name":"f","arguments":""}"#,
                r#""null" "" "" "" {"name":"","arguments":"{\"a\":"}"#,
                r#""null" "" "" "" {"name":"","arguments":"1}"}"#,
                r#""tool_calls" "" """#,
            ],
        );
        // What is no call after all is text, and no longer a call where all so far is told.
        check(
            false,
            Some("<oh>"),
            &[
                r#""null" "hm" """#,
                r#""null" "hm" "So:""#,
                r#""null" "hm" "So:" "c" {"name":"f","arguments":""}"#,
                r#""null" "hm" "So:" "c" {"name":"f","arguments":"{\"a\":"}"#,
                r#""null" "hm" "So:" "c" {"name":"f","arguments":"{\"a\":1}"}"#,
                r#""null" "hm" "So:<oh>""#,
                r#""tool_calls" "hm" "So:<oh>""#,
            ],
        );
    }
}
