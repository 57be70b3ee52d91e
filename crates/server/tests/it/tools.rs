//! Calls of tools in every dialect: text of the model in, the dialect's own form out, whole and streamed.

use mintage_model::{Script, TokenId};
use serde_json::{Value, json};

use crate::harness::{END, House, MODEL, VOCAB, says, start, start_speaking, text_model_with};

const CALL: &str = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}ü\"}}\n</tool_call>";
const OTHER: &str = "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
const ARGUMENTS: &str = "{\"a\": \"}ü\"}";

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "f"}},
        {"type": "function", "function": {"name": "g"}},
    ])
}

/// One object of the fields of both.
fn merged(mut body: Value, patch: &Value) -> Value {
    for (name, value) in patch.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn with_tools(patch: &Value) -> Value {
    merged(json!({"tools": tools()}), patch)
}

/// What a client makes of a stream: text, calls (name and arguments, by index) and the end.
fn joined(events: &[String]) -> (String, Vec<(String, String)>, Value) {
    let (mut text, mut finish) = (String::new(), Value::Null);
    let mut calls: Vec<(String, String)> = Vec::new();
    for event in events.iter().filter(|e| *e != "[DONE]") {
        let event: Value = serde_json::from_str(event).unwrap();
        let choice = &event["choices"][0];
        assert!(finish.is_null(), "after the end: {choice}");
        text += choice["delta"]["content"].as_str().unwrap_or("");
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            let function = &call["function"];
            if index == calls.len() {
                assert!(call["id"].as_str().unwrap().len() > "call_".len(), "{call}");
                assert_eq!(call["type"], "function");
                calls.push((function["name"].as_str().unwrap().to_owned(), String::new()));
            } else {
                assert!(call.get("id").is_none() && function.get("name").is_none(), "{call}");
            }
            calls[index].1 += function["arguments"].as_str().unwrap();
        }
        finish = choice["finish_reason"].clone();
    }
    (text, calls, finish)
}

#[tokio::test]
async fn openai_answers() {
    let (f, g) = (("f", ARGUMENTS), ("g", "{}"));
    let both = format!("{CALL}\n{OTHER}");
    let led = format!("Let me see.\n{CALL}");
    let broken = CALL.replace("\"}ü\"", "True");
    let unknown = CALL.replace("\"f\"", "\"h\"");
    let fenced = CALL.replace("<tool_call>", "```json").replace("</tool_call>", "```");
    let cut = format!("{CALL}{}", OTHER.replace("}}\n</tool_call>", ""));
    for (patch, said, content, calls, finish) in [
        (json!({}), CALL, None, vec![f], "tool_calls"),
        (json!({}), &*both, None, vec![f, g], "tool_calls"),
        (json!({"parallel_tool_calls": false}), &*both, None, vec![f], "tool_calls"),
        (json!({}), &*led, Some("Let me see.\n"), vec![f], "tool_calls"),
        (json!({}), &*broken, Some(&*broken), vec![], "stop"),
        (json!({}), &*unknown, Some(&*unknown), vec![], "stop"),
        // A call that was read stays one, whatever comes of the next.
        (json!({}), &*cut, Some(&cut[CALL.len()..]), vec![f], "tool_calls"),
        (json!({}), &*fenced, None, vec![f], "tool_calls"),
        (json!({"tool_choice": "none"}), CALL, Some(CALL), vec![], "stop"),
        (json!({"tools": []}), CALL, Some(CALL), vec![], "stop"),
        (json!({"stop": "ü"}), CALL, CALL.split('ü').next(), vec![], "stop"),
    ] {
        let house = start(says(said)).await;
        let reply = house.chat(with_tools(&patch)).await.json();
        let choice = &reply["choices"][0];
        assert_eq!(choice["message"]["content"], json!(content), "{said} {reply}");
        assert_eq!(choice["finish_reason"], finish, "{said}");
        let told = choice["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
        assert_eq!(choice["message"].get("tool_calls").is_some(), !calls.is_empty(), "{reply}");
        assert_eq!(told.len(), calls.len(), "{said} {reply}");
        let mut ids = std::collections::BTreeSet::new();
        for (call, (name, arguments)) in told.iter().zip(&calls) {
            assert_eq!(call["type"], "function");
            assert_eq!(call["function"], json!({"name": name, "arguments": arguments}), "{said}");
            assert!(call["id"].as_str().unwrap().starts_with("call_"));
            ids.insert(call["id"].to_string());
        }
        assert_eq!(ids.len(), calls.len(), "ids are unique");

        let mut streamed = with_tools(&patch);
        streamed["stream"] = true.into();
        let (text, sent, end) = joined(&house.chat(streamed).await.events());
        assert_eq!((text.as_str(), &end), (content.unwrap_or(""), &json!(finish)), "{said}");
        // Of a call that broke, a stream has told something already: it comes behind those that are whole here.
        let sent: Vec<(&str, &str)> =
            sent.iter().take(calls.len()).map(|(n, a)| (n.as_str(), a.as_str())).collect();
        assert_eq!(sent, calls, "{said}");
    }
}

#[tokio::test]
async fn openai_events_of_a_call() {
    let house = start(says(OTHER)).await;
    let events = house.chat(with_tools(&json!({"stream": true}))).await.events();
    let deltas: Vec<Value> = events
        .iter()
        .filter(|e| *e != "[DONE]")
        .map(|event| {
            let mut event: Value = serde_json::from_str(event).unwrap();
            if let Some(id) = event.pointer_mut("/choices/0/delta/tool_calls/0/id") {
                *id = "ID".into();
            }
            event["choices"][0]["delta"].take()
        })
        .collect();
    let begin = json!({"index": 0, "id": "ID", "type": "function", "function": {"name": "g", "arguments": ""}});
    let more = |text| json!({"tool_calls": [{"index": 0, "function": {"arguments": text}}]});
    assert_eq!(
        deltas,
        [
            json!({"role": "assistant", "content": ""}),
            json!({"tool_calls": [begin]}),
            more("{"),
            more("}"),
            json!({}),
        ]
    );
}

#[tokio::test]
async fn tokens_of_calls_are_reported_too() {
    let said = format!("Hi {OTHER}");
    let house = start(says(&said)).await;
    let token = |entry: &Value| entry["token"].as_str().unwrap().to_owned();
    let body = with_tools(&json!({"logprobs": true}));
    let whole = house.chat(body.clone()).await.json();
    let entries = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let of_text: String = entries.iter().take(said.len()).map(token).collect();
    assert_eq!(of_text, said);
    let mut streamed = body;
    streamed["stream"] = true.into();
    let mut sent = Vec::new();
    for event in house.chat(streamed).await.events().iter().filter(|e| *e != "[DONE]") {
        let event: Value = serde_json::from_str(event).unwrap();
        let choice = &event["choices"][0];
        let Some(new) = choice["logprobs"]["content"].as_array() else { continue };
        // Text comes with its own tokens, and with no others.
        let content = choice["delta"]["content"].as_str().unwrap();
        let tokens: String = new.iter().map(token).collect();
        assert!(content.is_empty() || content == tokens, "{choice}");
        sent.extend(new.iter().cloned());
    }
    assert_eq!(sent, entries);
}

async fn hosted() -> (House, Value) {
    let house = start(says(&format!("So: {CALL}"))).await;
    (house, json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}))
}

#[tokio::test]
async fn anthropic_answers() {
    let (house, body) = hosted().await;
    let tools = json!([{"name": "f", "input_schema": {"type": "object"}}]);
    let body = merged(body, &json!({"max_tokens": 200, "tools": tools}));
    let headers = [("anthropic-version", "2023-06-01")];
    let mut whole = house.speak("/v1/messages", &headers, &body).await.json();
    assert_eq!(whole["stop_reason"], "tool_use", "{whole}");
    assert_eq!(whole["content"][0], json!({"type": "text", "text": "So: "}));
    whole["content"][1]["id"].take();
    let call = json!({"type": "tool_use", "id": null, "name": "f", "input": {"a": "}ü"}});
    assert_eq!(whole["content"].as_array().unwrap()[1..], [call]);
    let streamed = merged(body, &json!({"stream": true}));
    let sent = house.speak("/v1/messages", &headers, &streamed).await.body;
    let data: Vec<Value> = sent
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let starts: Vec<&Value> =
        data.iter().map(|d| &d["content_block"]["name"]).filter(|n| n.is_string()).collect();
    assert_eq!(starts, ["f"], "{sent}");
    let input: String = data.iter().filter_map(|d| d["delta"]["partial_json"].as_str()).collect();
    assert_eq!(input, ARGUMENTS, "{sent}");
    assert!(data.iter().any(|d| d["delta"]["stop_reason"] == "tool_use"), "{sent}");
}

#[tokio::test]
async fn ollama_answers() {
    let (house, body) = hosted().await;
    let body = merged(body, &json!({"tools": tools()}));
    let function = json!({"index": 0, "name": "f", "arguments": {"a": "}ü"}});
    let whole = merged(body.clone(), &json!({"stream": false}));
    let whole = house.speak("/api/chat", &[], &whole).await.json();
    assert_eq!(whole["message"]["content"], "So: ", "{whole}");
    assert_eq!(whole["message"]["tool_calls"][0]["function"], function, "{whole}");
    assert_eq!(whole["done_reason"], "stop");
    let sent = house.speak("/api/chat", &[], &body).await.body;
    let lines: Vec<Value> = sent.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let calls: Vec<&Value> =
        lines.iter().filter_map(|l| l["message"]["tool_calls"].as_array()).flatten().collect();
    assert_eq!(calls.len(), 1, "{sent}");
    assert_eq!(calls[0]["function"], function, "{sent}");
    let text: String = lines.iter().filter_map(|l| l["message"]["content"].as_str()).collect();
    assert_eq!(text, "So: ");
}

#[tokio::test]
async fn dashscope_answers() {
    const PATH: &str = "/api/v1/services/aigc/text-generation/generation";
    let (house, body) = hosted().await;
    let body = json!({
        "model": MODEL,
        "input": {"messages": body["messages"]},
        "parameters": {"result_format": "message", "incremental_output": true, "tools": tools()},
    });
    let whole = house.speak(PATH, &[], &body).await.json();
    let choice = &whole["output"]["choices"][0];
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{whole}");
    assert_eq!(choice["message"]["content"], "So: ", "{whole}");
    assert_eq!(call["function"], json!({"name": "f", "arguments": ARGUMENTS}), "{whole}");
    assert_eq!((&call["type"], &call["index"]), (&json!("function"), &json!(0)));
    let sent = house.speak(PATH, &[("x-dashscope-sse", "enable")], &body).await.body;
    let (mut arguments, mut names, mut finish) = (String::new(), Vec::new(), Value::Null);
    for data in sent.lines().filter_map(|line| line.strip_prefix("data:")) {
        let data: Value = serde_json::from_str(data).unwrap();
        let choice = &data["output"]["choices"][0];
        for call in choice["message"]["tool_calls"].as_array().into_iter().flatten() {
            arguments += call["function"]["arguments"].as_str().unwrap_or("");
            names.extend(
                call["function"]["name"].as_str().filter(|n| !n.is_empty()).map(str::to_owned),
            );
        }
        finish = choice["finish_reason"].clone();
    }
    assert_eq!((arguments.as_str(), finish), (ARGUMENTS, json!("tool_calls")), "{sent}");
    assert_eq!(names, ["f"], "{sent}");
}

/// Tools with schemas, `f` with `strict`, `null` where it says nothing.
fn typed(strict: Option<bool>) -> Value {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "f", "strict": strict, "parameters": schema}},
        {"type": "function", "function": {"name": "g"}},
    ])
}

fn call(name: &str, arguments: &str) -> String {
    format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
}

fn fenced(name: &str, arguments: &str) -> String {
    format!("```json\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n```")
}

/// Whether the answer to the last request may be these tokens, and end there.
fn may_be(house: &House, tokens: &[TokenId]) -> bool {
    let request = house.engine.requests().pop().unwrap();
    let Some(grammar) = request.grammar else { return true };
    let mut state = grammar.start().unwrap();
    tokens.iter().chain([&END]).all(|&token| {
        let allowed = state.mask().unwrap().allows(token);
        allowed && state.accept(token).is_ok()
    })
}

fn bytes(text: &str) -> Vec<TokenId> {
    text.bytes().map(TokenId::from).collect()
}

#[tokio::test]
async fn what_has_to_be_called_is_called() {
    let house = start(says("x")).await;
    let (f, g, wrong) = (call("f", "{\"a\": 1}"), call("g", "{}"), call("f", "{\"a\": \"x\"}"));
    let (both, led) = (format!("{f}\n{g}"), format!("Hi {f}"));
    let (f, g, wrong, both, led) = (&*f, &*g, &*wrong, &*both, &*led);
    let (any_g, no_h) = (call("g", "{\"x\": [1]}"), call("h", "{}"));
    let (fenced, wrongly_fenced) = (fenced("f", "{\"a\": 1}"), fenced("f", "{\"a\": \"x\"}"));
    let (fenced, wrongly_fenced) = (&*fenced, &*wrongly_fenced);
    let json = "{\"b\": 1}";
    let named = json!({"type": "function", "function": {"name": "g"}});
    for (strict, patch, good, bad) in [
        (Some(false), json!({}), vec!["Hi", f, wrong], vec![]),
        (Some(false), json!({"tool_choice": "required"}), vec![f, g, both], vec!["Hi", wrong, led]),
        (
            Some(false),
            json!({"tool_choice": "required", "parallel_tool_calls": false}),
            vec![f, g],
            vec![both],
        ),
        (Some(false), json!({"tool_choice": named}), vec![g], vec!["Hi", f, both]),
        (
            Some(true),
            json!({}),
            vec!["Hi", "", f, led, both, fenced],
            vec![wrong, wrongly_fenced, "<tool_call>"],
        ),
        // Nothing is said: kept to the schema where it can be.
        (None, json!({}), vec!["Hi", f, both, fenced], vec![wrong, wrongly_fenced]),
        (Some(true), json!({"tool_choice": "none"}), vec!["Hi", wrong], vec![]),
        // Who is not strict may write any object.
        (Some(true), json!({}), vec![&*any_g], vec![&*no_h]),
        (
            Some(false),
            json!({"response_format": {"type": "json_object"}}),
            vec![json, f, wrong],
            vec!["Hi", led],
        ),
    ] {
        let body = merged(json!({"tools": typed(strict)}), &patch);
        let reply = house.chat(body).await;
        assert_eq!(reply.status, 200, "{patch}: {}", reply.body);
        good.iter().for_each(|text| assert!(may_be(&house, &bytes(text)), "{patch} {text}"));
        bad.iter().for_each(|text| assert!(!may_be(&house, &bytes(text)), "{patch} {text}"));
    }
}

#[tokio::test]
async fn every_dialect_can_ask_for_a_call() {
    let house = start(says(&call("g", "{}"))).await;
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let tools = json!([{"name": "f", "input_schema": {"type": "object"}}, {"name": "g", "input_schema": {"type": "object"}}]);
    let anthropic = |choice: Value| json!({"model": MODEL, "max_tokens": 200, "messages": messages, "tools": tools, "tool_choice": choice});
    let native = |choice: Value| {
        json!({"model": MODEL, "input": {"messages": messages},
        "parameters": {"tools": typed(None), "tool_choice": choice}})
    };
    let generation = "/api/v1/services/aigc/text-generation/generation";
    let headers = [("anthropic-version", "2023-06-01")];
    let (one, other) = (call("g", "{}"), call("f", "{\"a\": 1}"));
    let two = format!("{one}\n{other}");
    for (path, body, two_may_come, other_may_come) in [
        ("/v1/messages", anthropic(json!({"type": "any"})), true, true),
        (
            "/v1/messages",
            anthropic(json!({"type": "any", "disable_parallel_tool_use": true})),
            false,
            true,
        ),
        ("/v1/messages", anthropic(json!({"type": "tool", "name": "g"})), false, false),
        (generation, native(json!("required")), true, true),
        (generation, native(json!({"type": "function", "function": {"name": "g"}})), false, false),
    ] {
        let reply = house.speak(path, &headers, &body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(reply.body.contains("\"g\"") && !may_be(&house, &bytes("Hi")), "{}", reply.body);
        assert!(may_be(&house, &bytes(&one)), "{body}");
        assert_eq!(may_be(&house, &bytes(&two)), two_may_come, "{body}");
        assert_eq!(may_be(&house, &bytes(&other)), other_may_come, "{body}");
    }
}

#[tokio::test]
async fn what_cannot_be_called_is_refused() {
    let house = start(says("x")).await;
    let unsupported = json!([{"type": "function", "function": {"name": "f", "strict": true,
        "parameters": {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true}}}}}]);
    for (body, param, says) in [
        (json!({"tools": unsupported}), "tools", "`uniqueItems`"),
        (
            json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "h"}}}),
            "tool_choice",
            "`h`",
        ),
        (json!({"tool_choice": "required"}), "tool_choice", "no tool"),
    ] {
        let reply = house.chat(body.clone()).await;
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["param"]), (400, &json!(param)), "{body} {error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
    let text = text_model_with("{{ messages[0].content }}", &[]);
    let house = start_speaking(text, |_| Ok(says("x"))).await;
    let reply = house.chat(json!({"tools": tools(), "tool_choice": "required"})).await;
    assert_eq!(reply.json()["error"]["code"], "unsupported_parameter", "{}", reply.body);
}

/// Formats by the template, with markers that are control tokens of their vocabularies.
#[tokio::test]
async fn models_call_as_their_templates_show() {
    let prompt = "{% for m in messages %}{{ m.content }}{% endfor %}";
    for (shown, markers, said) in [
        (
            "<tool_call>",
            &["<tool_call>", "</tool_call>"][..],
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
        ),
        (
            "<function=f><parameter=a>",
            &["<tool_call>", "</tool_call>"],
            "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        ),
        ("<|python_tag|>", &["<|python_tag|>"], "{\"name\": \"f\", \"parameters\": {\"a\": 1}}"),
        (
            "[TOOL_CALLS]",
            &["[TOOL_CALLS]"],
            "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": 1}}]",
        ),
        ("[TOOL_CALLS][ARGS]", &["[TOOL_CALLS]", "[ARGS]"], "[TOOL_CALLS]f[ARGS]{\"a\": 1}"),
    ] {
        let more: Vec<(&str, bool)> = markers.iter().map(|marker| (*marker, true)).collect();
        let text = text_model_with(&format!("{{# {shown} #}}{prompt}"), &more);
        let mut tokens = Vec::new();
        let mut rest = said;
        while let Some(c) = rest.chars().next() {
            let marker = markers.iter().position(|marker| rest.starts_with(marker));
            tokens.push(marker.map_or(c as u32, |at| VOCAB + at as u32));
            rest = &rest[marker.map_or(c.len_utf8(), |at| markers[at].len())..];
        }
        let script =
            Script { tokens: tokens.iter().copied().chain([END]).collect(), ..Script::default() };
        let house = start_speaking(text, move |_| Ok(script.clone())).await;
        for choice in ["auto", "required"] {
            let reply =
                house.chat(json!({"tools": typed(Some(true)), "tool_choice": choice})).await;
            let message = &reply.json()["choices"][0]["message"];
            let function = &message["tool_calls"][0]["function"];
            assert_eq!(function["name"], "f", "{said}: {}", reply.body);
            let arguments: Value =
                serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
            assert_eq!(arguments, json!({"a": 1}), "{said}");
            assert_eq!(message["content"], Value::Null, "{said}");
            assert!(may_be(&house, &tokens), "{said}");
            assert_eq!(may_be(&house, &bytes("Hi")), choice == "auto", "{said}");
            assert!(!may_be(&house, &tokens[..tokens.len() - 3]), "{said}");
        }
    }
}
