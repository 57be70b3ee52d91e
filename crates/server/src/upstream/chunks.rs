//! The events of a service's stream become parts of an answer and its usage.
//!
//! Not here: bytes and lines. Invariants: parts come as an engine's do: of each choice the prompt first, calls one after
//! the other, the end last and once; an answer that lacks an end is a failure, never a short answer.

use std::collections::VecDeque;

use mintage_ledger::TokenUsage;
use serde::Deserialize;
use serde_json::Value;

use super::{Ask, Failure, Heard, Kind};
use crate::answer::{EndReason, Part};
use crate::request_id::random_hex;

/// Calls of one choice.
const MAX_CALLS: u32 = 128;

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<ChunkChoice>>,
    usage: Option<Value>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct ChunkChoice {
    index: Option<u32>,
    delta: Option<Delta>,
    text: Option<String>,
    finish_reason: Option<String>,
    /// vLLM's: the stop string that was met.
    stop_reason: Option<Value>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
    refusal: Option<String>,
    reasoning_content: Option<String>,
    /// The same, as others call it.
    reasoning: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    index: Option<u32>,
    id: Option<String>,
    function: Option<FunctionDelta>,
}

#[derive(Default, Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<String>,
}

/// Where a choice stands.
#[derive(Clone, Debug, Default)]
struct Said {
    begun: bool,
    ended: bool,
    /// Calls that began.
    calls: u32,
    /// The call that is being written: its index and id, as the service has them.
    open: Option<(u32, String)>,
}

/// Reads the events of one answer.
#[derive(Debug)]
pub(super) struct Chunks {
    kind: Kind,
    choices: Vec<Said>,
    stops: Vec<String>,
}

impl Chunks {
    pub(super) fn new(ask: &Ask) -> Self {
        Self {
            kind: ask.kind,
            choices: vec![Said::default(); ask.choices as usize],
            stops: ask.stops.clone(),
        }
    }

    /// Takes the data of an event.
    pub(super) fn data(&mut self, data: &str, out: &mut VecDeque<Heard>) -> Result<(), Failure> {
        let chunk: Chunk = serde_json::from_str(data)
            .map_err(|error| Failure::nonsense(format!("an event that is no chunk: {error}")))?;
        if let Some(error) = chunk.error {
            return Err(Failure::of_event(&error));
        }
        for choice in chunk.choices.unwrap_or_default() {
            self.choice(choice, out)?;
        }
        if let Some(usage) = chunk.usage.as_ref().and_then(usage) {
            out.push_back(Heard::Usage(usage));
        }
        Ok(())
    }

    /// Nothing more comes.
    pub(super) fn end(&self) -> Result<(), Failure> {
        match self.choices.iter().position(|choice| !choice.ended) {
            None => Ok(()),
            Some(index) => Err(Failure::nonsense(format!(
                "the answer ended without an end of its choice {index}"
            ))),
        }
    }

    fn choice(&mut self, given: ChunkChoice, out: &mut VecDeque<Heard>) -> Result<(), Failure> {
        let index = given.index.unwrap_or(0);
        let asked = self.choices.len();
        let Some(said) = self.choices.get_mut(index as usize) else {
            let odd = format!("a choice {index}, of {asked} that were asked for");
            return Err(Failure::nonsense(odd));
        };
        if said.ended {
            return Ok(());
        }
        let mut add = |part| out.push_back(Heard::Part(index, part));
        if !std::mem::replace(&mut said.begun, true) {
            add(Part::Prompt { logprobs: None });
        }
        let delta = given.delta.unwrap_or_default();
        let thought = delta.reasoning_content.or(delta.reasoning);
        if let Some(text) = thought.filter(|text| !text.is_empty()) {
            add(Part::Reasoning { text, entries: Vec::new() });
        }
        let text = match self.kind {
            Kind::Chat => delta.content.filter(|text| !text.is_empty()).or(delta.refusal),
            Kind::Text => given.text,
        };
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            said.close_call(&mut add);
            add(Part::Text { text, entries: Vec::new() });
        }
        for call in delta.tool_calls.unwrap_or_default() {
            said.call(call, &mut add)?;
        }
        if let Some(finish) = given.finish_reason {
            said.close_call(&mut add);
            said.ended = true;
            let met = given.stop_reason.as_ref().and_then(Value::as_str);
            let met = met.filter(|met| self.stops.iter().any(|stop| stop == met));
            let reason = match (finish.as_str(), met) {
                ("length", _) => EndReason::Length,
                (_, Some(stop)) => EndReason::StopString(stop.to_owned()),
                _ if said.calls > 0 => EndReason::ToolCalls,
                _ => EndReason::Stop,
            };
            add(Part::End { reason });
        }
        Ok(())
    }
}

impl Said {
    fn close_call(&mut self, add: &mut impl FnMut(Part)) {
        if self.open.take().is_some() {
            add(Part::CallEnd { call: self.calls.saturating_sub(1), broken: None });
        }
    }

    fn call(&mut self, given: CallDelta, add: &mut impl FnMut(Part)) -> Result<(), Failure> {
        let function = given.function.unwrap_or_default();
        let id = given.id.filter(|id| !id.is_empty());
        let name = function.name.filter(|name| !name.is_empty());
        let is_open = self.open.as_ref().is_some_and(|(index, open_id)| {
            let same_place = given.index.is_none_or(|given| given == *index);
            // Some services number all calls 0: then another id with a name is another call.
            same_place && (name.is_none() || id.as_ref().is_none_or(|id| id == open_id))
        });
        if !is_open {
            let Some(name) = name else {
                return Err(Failure::nonsense("a call without a name".to_owned()));
            };
            if self.calls >= MAX_CALLS {
                return Err(Failure::nonsense(format!("more than {MAX_CALLS} calls")));
            }
            self.close_call(add);
            let id = id.unwrap_or_else(|| format!("call_{}", random_hex()));
            self.open = Some((given.index.unwrap_or(0), id.clone()));
            self.calls += 1;
            add(Part::CallBegin { call: self.calls - 1, id, name });
        }
        if let Some(text) = function.arguments.filter(|text| !text.is_empty()) {
            add(Part::CallArguments { call: self.calls.saturating_sub(1), text });
        }
        Ok(())
    }
}

/// OpenAI's usage, and what others add to it. Explicit zeros are usage; nothing that counts is none.
fn usage(value: &Value) -> Option<TokenUsage> {
    let count = |path: &str| value.pointer(path).and_then(Value::as_u64);
    let (prompt, completion) = (count("/prompt_tokens"), count("/completion_tokens"));
    if prompt.is_none() && completion.is_none() {
        return None;
    }
    let (prompt, completion) = (prompt.unwrap_or(0), completion.unwrap_or(0));
    let cached = count("/prompt_tokens_details/cached_tokens")
        .or_else(|| count("/prompt_cache_hit_tokens"))
        .unwrap_or(0)
        .min(prompt);
    let thinking =
        count("/completion_tokens_details/reasoning_tokens").unwrap_or(0).min(completion);
    Some(TokenUsage {
        input: prompt - cached,
        cached_input: cached,
        output: completion - thinking,
        thinking,
        ..TokenUsage::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The parts, each as a short word, or why it failed.
    fn read(choices: u32, kind: Kind, events: &[Value]) -> Result<String, String> {
        let ask = Ask { kind, body: "".into(), choices, stops: vec!["END".to_owned()] };
        let mut chunks = Chunks::new(&ask);
        let mut out = VecDeque::new();
        for event in events {
            chunks.data(&event.to_string(), &mut out).map_err(|failure| failure.log)?;
        }
        chunks.end().map_err(|failure| failure.log)?;
        let word = |heard: &Heard| match heard {
            Heard::Usage(u) => {
                format!("U{}/{}+{}/{}", u.input, u.cached_input, u.output, u.thinking)
            }
            Heard::Part(i, part) => match part {
                Part::Prompt { .. } => format!("{i}P"),
                Part::Reasoning { text, .. } => format!("{i}R({text})"),
                Part::Text { text, .. } => format!("{i}T({text})"),
                Part::CallBegin { call, name, .. } => format!("{i}B{call}({name})"),
                Part::CallArguments { call, text } => format!("{i}A{call}({text})"),
                Part::CallEnd { call, .. } => format!("{i}E{call}"),
                Part::End { reason } => format!("{i}.{reason:?}"),
            },
        };
        Ok(out.iter().map(word).collect::<Vec<_>>().join(" "))
    }

    fn delta(delta: Value) -> Value {
        json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}], "usage": null})
    }

    fn finish(reason: &str) -> Value {
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    }

    fn call(index: u32, id: Value, name: Value, arguments: &str) -> Value {
        delta(json!({"tool_calls": [{"index": index, "id": id, "type": "function",
            "function": {"name": name, "arguments": arguments}}]}))
    }

    #[test]
    fn events_become_parts() {
        let check = |events: &[Value], expected: &str| {
            assert_eq!(read(1, Kind::Chat, events), Ok(expected.to_owned()), "{events:?}");
        };
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}}});
        check(
            &[
                delta(json!({"role": "assistant", "content": ""})),
                delta(json!({"content": "a"})),
                delta(json!({"content": "b"})),
                finish("stop"),
                usage,
            ],
            "0P 0T(a) 0T(b) 0.Stop U5/4+3/2",
        );
        check(
            &[delta(json!({"reasoning": "h", "content": null})), finish("length")],
            "0P 0R(h) 0.Length",
        );
        check(
            &[
                call(0, json!("c1"), json!("f"), ""),
                call(0, json!(""), json!(""), "{\"a\""),
                call(0, json!(null), json!(null), ":1}"),
                call(1, json!("c2"), json!("g"), "{}"),
                finish("tool_calls"),
            ],
            "0P 0B0(f) 0A0({\"a\") 0A0(:1}) 0E0 0B1(g) 0A1({}) 0E1 0.ToolCalls",
        );
        // All numbered 0, and an end that does not tell of calls.
        check(
            &[
                call(0, json!("c1"), json!("f"), "{}"),
                call(0, json!("c2"), json!("f"), "{}"),
                finish("stop"),
            ],
            "0P 0B0(f) 0A0({}) 0E0 0B1(f) 0A1({}) 0E1 0.ToolCalls",
        );
        let mut met = finish("stop");
        met["choices"][0]["stop_reason"] = "END".into();
        check(&[met], "0P 0.StopString(\"END\")");
        // What comes behind an end is no part of the answer; explicit zeros are usage.
        check(
            &[
                finish("stop"),
                delta(json!({"content": "x"})),
                json!({"usage": {"prompt_tokens": 0, "completion_tokens": 0}}),
                json!({"usage": {}}),
            ],
            "0P 0.Stop U0/0+0/0",
        );
    }

    #[test]
    fn each_choice_has_its_own_end() {
        let two = |a: Value, b: Value| json!({"choices": [a, b]});
        let text = |index: u32, text: &str, end: Value| json!({"index": index, "text": text, "finish_reason": end});
        let both = [
            two(text(1, "b", json!(null)), text(0, "a", json!("stop"))),
            two(text(1, "c", json!("length")), text(0, "", json!(null))),
        ];
        assert_eq!(
            read(2, Kind::Text, &both),
            Ok("1P 1T(b) 0P 0T(a) 0.Stop 1T(c) 1.Length".to_owned())
        );
        assert!(read(2, Kind::Text, &both[..1]).unwrap_err().contains("its choice 1"));
        assert!(read(1, Kind::Text, &both).unwrap_err().contains("a choice 1"));
    }

    #[test]
    fn nonsense_is_a_failure() {
        let check = |event: Value, says: &str| {
            let error = read(1, Kind::Chat, &[event]).unwrap_err();
            assert!(error.contains(says), "{error}");
        };
        check(json!({"error": {"message": "no room", "code": 503}}), "status 503: no room");
        check(json!({"error": {"message": "odd"}}), "status 502: odd");
        check(json!([1]), "no chunk");
        check(json!({"choices": {"a": 1}}), "no chunk");
        check(delta(json!({"content": 1})), "no chunk");
        check(call(0, json!("c"), json!(""), "{}"), "without a name");
        check(delta(json!({"content": "cut"})), "without an end");
    }
}
