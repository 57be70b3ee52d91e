//! Anthropic's dialect, to the byte.

use mintage_model::{EngineFault, Script, ScriptEnd};
use serde_json::{Value, json};

use crate::harness::{CONTEXT, House, MODEL, Reply, says, start, text_model};

const PATH: &str = "/v1/messages";

/// A request for a message with some fields replaced.
fn message(patch: Value) -> Value {
    let mut body = json!({
        "model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "Hi"}],
    });
    for (name, value) in patch.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

async fn ask(house: &House, patch: Value) -> Reply {
    house.speak(PATH, &[("anthropic-version", "2023-06-01")], &message(patch)).await
}

/// Names and data of the events.
fn events(reply: &Reply) -> Vec<(String, Value)> {
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert!(reply.complete && reply.body.ends_with("\n\n"), "cut: {:?}", reply.body);
    let event = |frame: &str| {
        let (name, data) = frame.split_once('\n').unwrap();
        let data = data.strip_prefix("data: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        let name = name.strip_prefix("event: ").unwrap();
        assert_eq!(data["type"], name);
        (name.to_owned(), data)
    };
    reply.body.split_terminator("\n\n").map(event).collect()
}

#[tokio::test]
async fn a_message_whole_and_streamed() {
    let house = start(Script { cached_tokens: 7, ..says("Hello") }).await;
    let whole = ask(&house, json!({})).await;
    assert_eq!(whole.header("request-id"), whole.header("x-request-id"));
    insta::assert_snapshot!("anthropic_whole", whole.transcript());
    let streamed = ask(&house, json!({"stream": true})).await;
    insta::assert_snapshot!("anthropic_stream", streamed.transcript());
    // Each token of the prompt is counted in one field.
    let usage = &whole.json()["usage"];
    let prompt = house.engine.requests()[0].prompt.len() as u64;
    assert_eq!(usage["cache_read_input_tokens"], 7);
    assert_eq!(usage["input_tokens"], prompt - 7);
    let events = events(&streamed);
    let (_, end) = &events[events.len() - 2];
    assert_eq!(&end["usage"], usage);
}

#[tokio::test]
async fn ends_are_told_apart() {
    let house = start(says("one two three")).await;
    for (patch, text, reason, sequence) in [
        (json!({}), "one two three", "end_turn", Value::Null),
        (json!({"max_tokens": 3}), "one", "max_tokens", Value::Null),
        (json!({"stop_sequences": ["x", " three"]}), "one two", "stop_sequence", json!(" three")),
    ] {
        let whole = ask(&house, patch.clone()).await.json();
        assert_eq!(whole["content"], json!([{"type": "text", "text": text}]), "{patch}");
        assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!(reason), &sequence));
        let mut patch = patch;
        patch["stream"] = true.into();
        let events = events(&ask(&house, patch).await);
        let said: String =
            events.iter().filter_map(|(_, data)| data["delta"]["text"].as_str()).collect();
        assert_eq!(said, text);
        let (_, end) = &events[events.len() - 2];
        let expected = json!({"stop_reason": reason, "stop_sequence": sequence});
        assert_eq!(end["delta"], expected);
    }
}

#[tokio::test]
async fn a_stream_that_breaks_says_so() {
    let script = Script {
        tokens: vec![97, 98],
        end: ScriptEnd::Fault(EngineFault::Internal("secret".into())),
        ..Script::default()
    };
    let house = start(script).await;
    let reply = ask(&house, json!({"stream": true})).await;
    let events = events(&reply);
    let (name, data) = events.last().unwrap();
    assert_eq!((name.as_str(), &data["error"]["type"]), ("error", &json!("api_error")));
    assert!(!reply.body.contains("secret"));
    assert!(events.iter().all(|(name, _)| name != "message_stop"));
    let whole = ask(&house, json!({})).await;
    assert_eq!((whole.status, &whole.json()["error"]["type"]), (500, &json!("api_error")));
}

#[tokio::test]
async fn keys_in_either_header() {
    let house = start(says("x")).await;
    let body = message(json!({})).to_string();
    let with = |headers: String| {
        format!(
            "POST {PATH} HTTP/1.1\r\nhost: x\r\n{headers}connection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let key = &house.key;
    for (headers, status) in [
        (format!("x-api-key: {key}\r\n"), 200),
        (format!("authorization: Bearer {key}\r\n"), 200),
        (format!("authorization: Bearer {key}\r\nx-api-key: {key}\r\n"), 200),
        (format!("authorization: Bearer {key}\r\nx-api-key: {key}x\r\n"), 401),
        (format!("x-api-key: {key}x\r\n"), 401),
        (format!("x-api-key: {key}\r\nx-api-key: {key}\r\n"), 401),
        (String::new(), 401),
    ] {
        let reply = house.send(&with(headers.clone())).await;
        assert_eq!(reply.status, status, "{headers} {}", reply.body);
        if status == 401 {
            assert_eq!(reply.json()["error"]["type"], "authentication_error");
            assert!(reply.header("request-id").is_some());
        }
    }
}

#[tokio::test]
async fn refused_messages() {
    let house = start(says("x")).await;
    let block = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    let tool = |patch: Value| {
        let mut tool = json!({"name": "f", "input_schema": {"type": "object"}});
        for (name, value) in patch.as_object().unwrap() {
            tool[name] = value.clone();
        }
        json!({"tools": [tool]})
    };
    let cases = [
        json!({"model": "claude"}),
        json!({"max_tokens": null}),
        json!({"max_tokens": 0}),
        json!({"max_tokens": CONTEXT + 1}),
        json!({"messages": []}),
        json!({"messages": [{"role": "tool", "content": "x"}]}),
        json!({"messages": [{"role": "user"}]}),
        json!({"messages": [{"role": "user", "content": "x", "name": "y"}]}),
        block(json!({"type": "image", "source": {}})),
        block(json!({"type": "text"})),
        block(json!({"type": "text", "text": "x", "texts": "y"})),
        block(json!({"type": "tool_result", "tool_use_id": "t1"})),
        json!({"system": [{"type": "image"}]}),
        json!({"system": 5}),
        json!({"temperature": 1.5}),
        json!({"stop_sequences": [""]}),
        json!({"thinking": {"type": "enabled"}}),
        json!({"thinking": {"type": "enabled", "budget_tokens": 64}}),
        json!({"thinking": {"type": "often"}}),
        json!({"tool_choice": {"type": "any"}}),
        json!({"tool_choice": {"type": "tool", "name": "g"}}),
        tool(json!({"type": "web_search_20250305"})),
        tool(json!({"input_schema": "x"})),
        tool(json!({"names": "x"})),
        json!({"mcp_servers": []}),
        json!({"stream": "yes"}),
    ];
    let mut lines = String::new();
    for case in cases {
        let reply = ask(&house, case.clone()).await;
        let body = reply.json();
        let error = &body["error"];
        lines += &format!(
            "{case}\n  {} {} {}: {}\n",
            reply.status,
            error["type"].as_str().unwrap(),
            error["details"]["error_code"].as_str().unwrap(),
            error["message"].as_str().unwrap()
        );
        assert_eq!(body["request_id"].as_str(), reply.header("request-id"));
    }
    assert!(house.engine.requests().is_empty());
    insta::assert_snapshot!("anthropic_refusals", lines);
}

#[tokio::test]
async fn blocks_become_the_messages_that_templates_know() {
    let house = start(says("x")).await;
    let body = json!({
        "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": "t2", "name": "g", "input": {}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "42"},
                {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "<|im_end|>"}], "is_error": true},
                {"type": "text", "text": "Well?"}]},
        ],
        "tools": [{"name": "f", "description": "F.", "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}}}],
        "metadata": {"user_id": "u"}, "service_tier": "auto", "max_tokens": 5,
        "top_k": 3, "top_p": 0.5, "temperature": 0.25,
    });
    let reply = ask(&house, body.clone()).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let request = house.engine.requests().remove(0);
    let prompt = text_model().tokenizer().decode(&request.prompt, false);
    insta::assert_snapshot!("anthropic_prompt", prompt);
    let s = &request.sampling;
    assert_eq!((s.top_k, s.top_p, s.temperature, request.max_new_tokens), (3, 0.5, 0.25, 5));
    // What is counted is what would be read.
    let mut counted = message(body);
    counted.as_object_mut().unwrap().remove("max_tokens");
    let reply = house.speak("/v1/messages/count_tokens", &[], &counted).await;
    assert_eq!(reply.json(), json!({"input_tokens": request.prompt.len()}));
    assert_eq!(house.engine.requests().len(), 1, "counting computes nothing");
}

#[tokio::test]
async fn one_path_lists_models_in_two_dialects() {
    let house = start(says("x")).await;
    let version = [("anthropic-version", "2023-06-01")];
    let page = house.speak("/v1/models", &version, &Value::Null).await.json();
    assert_eq!((&page["first_id"], &page["has_more"]), (&json!(MODEL), &json!(false)));
    let model = &page["data"][0];
    assert_eq!((&model["type"], &model["id"]), (&json!("model"), &json!(MODEL)));
    assert_eq!(model["created_at"], "2023-11-14T22:13:20Z");
    let one = house.speak(&format!("/v1/models/{MODEL}"), &version, &Value::Null).await.json();
    assert_eq!(&one, model);
    let none = house.speak("/v1/models/none", &version, &Value::Null).await;
    assert_eq!((none.status, &none.json()["error"]["type"]), (404, &json!("not_found_error")));
    for bad in ["limit=0", "limit=x", "after_id=none"] {
        let reply = house.speak(&format!("/v1/models?{bad}"), &version, &Value::Null).await;
        assert_eq!((reply.status, &reply.json()["type"]), (400, &json!("error")), "{bad}");
    }
    // Without the header it is OpenAI's.
    assert_eq!(house.get("/v1/models").await.json()["object"], "list");
    // Model Studio's prefix.
    let reply = house.speak("/apps/anthropic/v1/messages", &version, &message(json!({}))).await;
    assert_eq!(reply.json()["type"], "message");
}
