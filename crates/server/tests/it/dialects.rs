//! One conversation in every dialect: the same prompt, the same answer, the same postings.

use mintage_ledger::TokenUsage;
use mintage_model::Script;
use serde_json::{Value, json};

use crate::harness::{
    END, House, MODEL, Reply, TEMPLATE, VOCAB, price, says, start, start_speaking, text_model_with,
};

const QUESTION: &str = "What is the sum?";
const SYSTEM: &str = "Be brief.";
pub(crate) const ANSWER: &str = "It is 42.";

fn tool() -> Value {
    json!({"type": "function", "function":
        {"name": "sum", "description": "Adds.", "parameters": {"type": "object"}}})
}

/// Name, path, headers, body.
pub(crate) type Request = (&'static str, &'static str, Vec<(&'static str, &'static str)>, Value);

/// A request in each dialect; `stream` and `thinks` as the dialect asks for it.
pub(crate) fn requests(stream: bool, thinks: bool) -> Vec<Request> {
    let call = json!({"id": "c1", "type": "function",
        "function": {"name": "sum", "arguments": "{\"a\":1}"}});
    let openai = json!([
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]);
    let ollama = json!([
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "Let me see.",
            "tool_calls": [{"id": "c1", "function": {"name": "sum", "arguments": {"a": 1}}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]);
    let anthropic = json!([
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": [
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "c1", "name": "sum", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "42"}]},
    ]);
    let of_openai = json!({"model": MODEL, "messages": openai, "tools": [tool()],
        "enable_thinking": thinks, "max_tokens": 80, "stream": stream});
    let native = json!({"model": MODEL, "input": {"messages": openai}, "parameters":
        {"tools": [tool()], "enable_thinking": thinks, "max_tokens": 80}});
    let thinking = match thinks {
        true => json!({"type": "enabled", "budget_tokens": 20}),
        false => json!({"type": "disabled"}),
    };
    let sse = if stream { vec![("x-dashscope-sse", "enable")] } else { Vec::new() };
    vec![
        ("openai", "/v1/chat/completions", Vec::new(), of_openai.clone()),
        ("compatible", "/compatible-mode/v1/chat/completions", Vec::new(), of_openai),
        (
            "anthropic",
            "/v1/messages",
            vec![("anthropic-version", "2023-06-01")],
            json!({"model": MODEL, "system": SYSTEM, "messages": anthropic, "max_tokens": 80,
                "tools": [{"name": "sum", "description": "Adds.", "input_schema": {"type": "object"}}],
                "thinking": thinking, "stream": stream}),
        ),
        (
            "dashscope",
            "/api/v1/services/aigc/text-generation/generation",
            sse.clone(),
            native.clone(),
        ),
        ("multimodal", "/api/v1/services/aigc/multimodal-generation/generation", sse, native),
        (
            "ollama",
            "/api/chat",
            Vec::new(),
            json!({"model": MODEL, "messages": ollama, "tools": [tool()], "think": thinks,
                "options": {"num_predict": 80}, "stream": stream}),
        ),
    ]
}

/// What the client was told: cached and all tokens of the prompt, and those that were sampled, of them thinking's. Ollama
/// tells no cached ones and no thinking.
pub(crate) fn told(
    name: &str,
    reply: &Reply,
    stream: bool,
) -> (Option<u64>, u64, u64, Option<u64>) {
    let last = match (name, stream) {
        (_, false) => reply.json(),
        ("ollama", true) => serde_json::from_str(reply.body.lines().last().unwrap()).unwrap(),
        ("anthropic", true) => {
            let frame = reply.body.split("\n\n").find(|f| f.contains("message_delta")).unwrap();
            serde_json::from_str(frame.split_once("data: ").unwrap().1).unwrap()
        }
        (_, true) => {
            let frame = reply.body.trim_end().rsplit("\n\n").next().unwrap();
            serde_json::from_str::<Value>(frame.split_once("data:").unwrap().1).unwrap()
        }
    };
    let usage = &last["usage"];
    let count = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{name}: {last}"));
    // Said where there was some.
    let details = |name: &str, part: &str| Some(usage[name][part].as_u64().unwrap_or(0));
    match name {
        "ollama" => (None, count(&last["prompt_eval_count"]), count(&last["eval_count"]), None),
        "anthropic" => {
            let cached = count(&usage["cache_read_input_tokens"]);
            (
                Some(cached),
                cached + count(&usage["input_tokens"]),
                count(&usage["output_tokens"]),
                details("output_tokens_details", "thinking_tokens"),
            )
        }
        "openai" | "compatible" => (
            Some(count(&usage["prompt_tokens_details"]["cached_tokens"])),
            count(&usage["prompt_tokens"]),
            count(&usage["completion_tokens"]),
            details("completion_tokens_details", "reasoning_tokens"),
        ),
        _ => (
            Some(count(&usage["prompt_tokens_details"]["cached_tokens"])),
            count(&usage["input_tokens"]),
            count(&usage["output_tokens"]),
            details("output_tokens_details", "reasoning_tokens"),
        ),
    }
}

/// `thinking` of the `sampled` tokens are thinking's.
async fn one_conversation(house: &House, stream: bool, sampled: u64, thinking: u64) {
    let mut prompts = Vec::new();
    let mut told_of = Vec::new();
    for (name, path, headers, mut body) in requests(stream, thinking > 0) {
        if stream && path.ends_with("/chat/completions") {
            body["stream_options"] = json!({"include_usage": true});
        }
        let before = house.engine.requests().len();
        let reply = house.speak(path, &headers, &body).await;
        assert_eq!(reply.status, 200, "{name}: {}", reply.body);
        prompts.push((name, house.engine.requests().remove(before).prompt));
        if stream && path.ends_with("/chat/completions") {
            // Its last event is no JSON.
            let body = reply.body.replace("data: [DONE]\n\n", "");
            told_of.push((name, told(name, &Reply { body, ..reply }, stream)));
        } else {
            told_of.push((name, told(name, &reply, stream)));
        }
    }
    for (name, prompt) in &prompts {
        assert_eq!(prompt, &prompts[0].1, "{name} reads another prompt");
    }
    let prompt = prompts[0].1.len() as u64;
    for (name, (cached, all, output, thought)) in told_of {
        let told = (cached.unwrap_or(9), all, output, thought.unwrap_or(thinking));
        assert_eq!(told, (9, prompt, sampled, thinking), "{name}");
    }
}

/// Each dialect, whole and streamed: told alike, recorded alike, billed alike.
async fn every_dialect(house: &House, sampled: u64, thinking: u64) {
    one_conversation(house, false, sampled, thinking).await;
    one_conversation(house, true, sampled, thinking).await;
    let records = house.settled(12).await;
    let first = records.values().next().unwrap();
    let expected = TokenUsage {
        input: first.usage.prompt() - 9,
        cached_input: 9,
        output: sampled - thinking,
        thinking,
        ..TokenUsage::default()
    };
    let mut protocols = std::collections::BTreeMap::<String, u32>::new();
    for record in records.values() {
        assert_eq!(record.usage, expected, "{}", record.facts.protocol);
        assert_eq!(record.amount, price(&expected), "{}", record.facts.protocol);
        assert_eq!(&*record.outcome.finish, "stop");
        *protocols.entry(record.facts.protocol.to_string()).or_default() += 1;
    }
    let protocols: Vec<(&str, u32)> = protocols.iter().map(|(n, c)| (n.as_str(), *c)).collect();
    assert_eq!(
        protocols,
        [
            ("anthropic.messages", 2),
            ("dashscope.generation", 2),
            ("dashscope.multimodal", 2),
            ("ollama.chat", 2),
            ("openai.chat", 4),
        ]
    );
}

#[tokio::test]
async fn the_same_work_costs_the_same_in_every_dialect() {
    let house = start(Script { cached_tokens: 9, ..says(ANSWER) }).await;
    every_dialect(&house, ANSWER.len() as u64 + 1, 0).await;
}

#[tokio::test]
async fn so_do_thinking_and_calls() {
    let call = "<tool_call>\n{\"name\": \"sum\", \"arguments\": {}}\n</tool_call>";
    let thought = [&[VOCAB], &*bytes("hm"), &[VOCAB + 1]].concat();
    let tokens = [&*thought, &*bytes(call), &[END]].concat();
    let sampled = tokens.len() as u64;
    let script = Script { cached_tokens: 9, tokens, ..Script::default() };
    let text = text_model_with(TEMPLATE, &[("<think>", false), ("</think>", false)]);
    let house = start_speaking(text, move |_| Ok(script.clone())).await;
    every_dialect(&house, sampled, thought.len() as u64).await;
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}
