//! DashScope's dialect, to the byte.

use mintage_model::{EngineFault, Script, ScriptEnd};
use serde_json::{Value, json};

use crate::harness::{CONTEXT, House, MODEL, Reply, says, start, start_with, text_model};

pub(crate) const TEXT: &str = "/api/v1/services/aigc/text-generation/generation";
pub(crate) const MULTIMODAL: &str = "/api/v1/services/aigc/multimodal-generation/generation";
const SSE: (&str, &str) = ("x-dashscope-sse", "enable");

pub(crate) fn body(parameters: Value) -> Value {
    json!({
        "model": MODEL,
        "input": {"messages": [{"role": "user", "content": "Hi"}]},
        "parameters": parameters,
    })
}

async fn whole(house: &House, parameters: Value) -> Reply {
    house.speak(TEXT, &[], &body(parameters)).await
}

async fn streamed(house: &House, parameters: Value) -> Reply {
    house.speak(TEXT, &[SSE], &body(parameters)).await
}

/// The data of the events, checking their form to the byte.
fn events(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert!(reply.complete && reply.body.ends_with("\n\n"), "cut: {:?}", reply.body);
    let frames = reply.body.split_terminator("\n\n").enumerate();
    frames
        .map(|(i, frame)| {
            let head = format!("id:{}\nevent:result\n:HTTP_STATUS/200\ndata:", i + 1);
            let data = frame.strip_prefix(&head).unwrap_or_else(|| panic!("{frame:?}"));
            serde_json::from_str(data).unwrap()
        })
        .collect()
}

#[tokio::test]
async fn answers_in_each_form() {
    let house = start(Script { cached_tokens: 2, ..says("Hello") }).await;
    let message = json!({"result_format": "message"});
    let incremental = json!({"result_format": "message", "incremental_output": true});
    let mut all = String::new();
    for (name, reply) in [
        ("text", whole(&house, json!({})).await),
        ("message", whole(&house, message.clone()).await),
        ("parts", house.speak(MULTIMODAL, &[], &body(json!({}))).await),
        ("text stream", streamed(&house, json!({"max_tokens": 2})).await),
        (
            "message stream",
            streamed(&house, json!({"result_format": "message", "max_tokens": 2})).await,
        ),
        ("incremental stream", streamed(&house, incremental.clone()).await),
        ("parts stream", house.speak(MULTIMODAL, &[SSE], &body(incremental)).await),
    ] {
        all += &format!("--- {name}\n{}\n", reply.transcript());
    }
    insta::assert_snapshot!("dashscope_forms", all);
}

#[tokio::test]
async fn every_event_tells_all_so_far_unless_told_otherwise() {
    let house = start(says("abc")).await;
    let said = |events: &[Value]| -> Vec<String> {
        let text = |event: &Value| {
            event["output"]["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
        };
        events.iter().map(text).collect()
    };
    let cumulative = events(&streamed(&house, json!({"result_format": "message"})).await);
    assert_eq!(said(&cumulative), ["a", "ab", "abc", "abc"]);
    let parameters = json!({"result_format": "message", "incremental_output": true});
    let incremental = events(&streamed(&house, parameters).await);
    assert_eq!(said(&incremental), ["a", "b", "c", ""]);
    let whole = whole(&house, json!({"result_format": "message"})).await.json();
    for events in [&cumulative, &incremental] {
        let ends: Vec<&Value> =
            events.iter().map(|e| &e["output"]["choices"][0]["finish_reason"]).collect();
        assert_eq!(ends, ["null", "null", "null", "stop"]);
        let counts: Vec<&Value> = events.iter().map(|e| &e["usage"]["output_tokens"]).collect();
        // The end of the turn is a token, too.
        assert_eq!(counts, [1, 2, 3, 4]);
        assert_eq!(events[3]["usage"], whole["usage"]);
        assert!(events.iter().all(|event| event.get("code").is_none()));
    }
    // `Accept` asks for events as well.
    let accept = [("accept", "text/event-stream")];
    assert_eq!(events(&house.speak(TEXT, &accept, &body(json!({}))).await).len(), 4);
}

#[tokio::test]
async fn several_choices() {
    let house = start_with(|_| {}, |r| Ok(says(&format!("{:x}", r.sampling.seed & 0xF)))).await;
    let parameters =
        json!({"result_format": "message", "n": 3, "seed": 5, "incremental_output": true});
    let whole = whole(&house, parameters.clone()).await.json();
    let choices = whole["output"]["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    let events = events(&streamed(&house, parameters).await);
    for (index, choice) in choices.iter().enumerate() {
        let of_choice = events
            .iter()
            .flat_map(|event| event["output"]["choices"].as_array().unwrap())
            .filter(|c| c["index"] == index);
        let text: String = of_choice.map(|c| c["message"]["content"].as_str().unwrap()).collect();
        assert_eq!(choice["message"]["content"], text);
    }
    assert_eq!(events.last().unwrap()["usage"], whole["usage"]);
}

#[tokio::test]
async fn a_stream_that_breaks_says_so_as_the_clients_read_it() {
    let script = Script {
        tokens: vec![97],
        end: ScriptEnd::Fault(EngineFault::Internal("secret".into())),
        ..Script::default()
    };
    let house = start(script).await;
    let reply = streamed(&house, json!({})).await;
    let last = reply.body.trim_end().rsplit("\n\n").next().unwrap();
    let head = "id:2\nevent:error\n:HTTP_STATUS/500\nstatus:500\ndata:";
    let data: Value = serde_json::from_str(last.strip_prefix(head).unwrap()).unwrap();
    assert_eq!(data["code"], "InternalError");
    assert!(data["message"].is_string() && data["request_id"].is_string());
    assert!(!reply.body.contains("secret"));
}

#[tokio::test]
async fn refused_generations() {
    let house = start(says("x")).await;
    let input = |input: Value| json!({"model": MODEL, "input": input});
    let messages = |messages: Value| input(json!({"messages": messages}));
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let cases = [
        json!({}),
        json!({"model": MODEL}),
        json!({"model": "qwen-max", "input": {"prompt": "x"}}),
        input(json!({})),
        input(json!("x")),
        input(json!({"prompt": 5})),
        messages(json!([{"role": "bot", "content": "x"}])),
        messages(json!([{"role": "user"}])),
        messages(json!([{"role": "user", "content": [{"image": "x"}]}])),
        messages(
            json!([{"role": "assistant", "content": "x", "partial": true}, {"role": "user", "content": "x"}]),
        ),
        body(json!({"temperature": "warm"})),
        body(json!({"max_tokens": CONTEXT + 1})),
        body(json!({"max_token": 5})),
        body(json!({"n": 5, "result_format": "message"})),
        body(json!({"n": 2})),
        body(json!({"result_format": "json"})),
        body(json!({"result_format": "text", "tools": [tool]})),
        body(json!({"result_format": "text", "enable_thinking": true})),
        body(json!({"enable_search": true})),
        body(json!({"stop": [[1, 2]]})),
        body(json!({"tools": [{"type": "web_search"}]})),
        body(json!({"tool_choice": "required"})),
        body(json!({"response_format": {"type": "xml"}})),
        body(json!({"logprobs": true})),
    ];
    let mut lines = String::new();
    for case in cases {
        let reply = house.speak(TEXT, &[], &case).await;
        let error = reply.json();
        assert_eq!(error.as_object().unwrap().len(), 3);
        assert_eq!(error["request_id"].as_str(), reply.header("x-request-id"));
        lines += &format!(
            "{case}\n  {} {}: {}\n",
            reply.status,
            error["code"].as_str().unwrap(),
            error["message"].as_str().unwrap()
        );
    }
    let task = house.speak(TEXT, &[("x-dashscope-async", "enable"), SSE], &body(json!({}))).await;
    lines += &format!("task\n  {} {}\n", task.status, task.json()["message"]);
    let key = house.key.clone();
    let stranger = house
        .send(&house.request("POST", TEXT, &body(json!({})).to_string()).replace(&key, "sk-no"))
        .await;
    assert_eq!((stranger.status, &stranger.json()["code"]), (401, &json!("InvalidApiKey")));
    let wrong = house.get(TEXT).await;
    assert_eq!((wrong.status, &wrong.json()["code"]), (405, &json!("InvalidURL")));
    assert!(house.engine.requests().is_empty());
    insta::assert_snapshot!("dashscope_refusals", lines);
}

#[tokio::test]
async fn inputs_of_every_shape_are_rendered() {
    let house = start(says("x")).await;
    let mut prompts = String::new();
    for input in [
        json!({"prompt": "Hi"}),
        json!({"prompt": "and now?", "history": [{"user": "a", "bot": "b"}]}),
        json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "prompt": "p"}),
        json!({"messages": [
            {"role": "user", "content": [{"text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": null, "tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}]},
            {"role": "tool", "content": "42", "name": "f"}]}),
    ] {
        let before = house.engine.requests().len();
        let body = json!({"model": MODEL, "input": input});
        let reply = house.speak(TEXT, &[], &body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let prompt = house.engine.requests().remove(before).prompt;
        prompts += &text_model().tokenizer().decode(&prompt, false);
        prompts += "\n";
    }
    insta::assert_snapshot!("dashscope_prompts", prompts);
}

#[tokio::test]
async fn parameters_reach_the_engine() {
    let house = start(says("x")).await;
    let parameters = json!({
        "max_tokens": 7, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "seed": 9,
        "repetition_penalty": 1.25, "presence_penalty": 1.5, "stop": ["ab", [3], 4],
        "enable_search": false, "user_agent": "x", "tools": null,
    });
    let reply = whole(&house, parameters).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let request = house.engine.requests().remove(0);
    let s = &request.sampling;
    assert_eq!((s.temperature, s.top_p, s.top_k, s.seed), (0.5, 0.25, 3, 9));
    assert_eq!((s.repetition_penalty, s.presence_penalty), (1.25, 1.5));
    assert_eq!((request.max_new_tokens, &request.stop_token_ids[..2]), (7, &[3, 4][..]));
}

#[tokio::test]
async fn tokens_and_models() {
    let house = start(says("x")).await;
    let ask = |input: Value| {
        let body = json!({"model": MODEL, "input": input});
        let house = &house;
        async move { house.speak("/api/v1/tokenizer", &[], &body).await.json() }
    };
    let plain = ask(json!({"prompt": "Hé"})).await;
    assert_eq!(plain["output"]["token_ids"], json!([72, 0xC3, 0xA9]));
    assert_eq!(plain["output"]["tokens"][0], "H");
    assert_eq!(plain["usage"], json!({"input_tokens": 3}));
    let chat = ask(json!({"messages": [{"role": "user", "content": "Hi"}]})).await;
    let answered = whole(&house, json!({})).await.json();
    assert_eq!(chat["usage"]["input_tokens"], answered["usage"]["input_tokens"]);

    let page = house.get("/api/v1/models").await.json();
    assert_eq!(
        (&page["output"]["total"], &page["output"]["models"][0]["model"]),
        (&json!(1), &json!(MODEL))
    );
    let found = house.get(&format!("/api/v1/models?model={MODEL}&page_no=1&page_size=1")).await;
    assert_eq!(found.json()["output"]["models"][0]["context_window"], CONTEXT);
    let none = house.get("/api/v1/models?model=none").await.json();
    assert_eq!(none["output"]["models"], json!([]));
    assert_eq!(house.get("/api/v1/models?page_no=0").await.json()["code"], "InvalidParameter");
}

#[tokio::test]
async fn the_compatible_prefix_is_openais_dialect() {
    let house = start(says("Hello")).await;
    let body = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "Hi"}],
        "enable_thinking": false, "top_k": 5, "repetition_penalty": 1.1,
    });
    let reply = house.speak("/compatible-mode/v1/chat/completions", &[], &body).await;
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "Hello", "{}", reply.body);
    assert_eq!(house.get("/compatible-mode/v1/models").await.json()["object"], "list");
    // A last message of the assistant is continued where it says so, in both dialects.
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Wel", "partial": true}]);
    let compatible = json!({"model": MODEL, "messages": messages, "thinking_budget": 9,
        "incremental_output": true, "enable_search": false});
    let native = json!({"model": MODEL, "input": {"messages": messages}});
    for (path, body) in [("/compatible-mode/v1/chat/completions", compatible), (TEXT, native)] {
        let reply = house.speak(path, &[], &body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let prompt = house.engine.requests().pop().unwrap().prompt;
        let prompt = text_model().tokenizer().decode(&prompt, false);
        assert!(prompt.ends_with("<|im_start|>assistant Wel"), "{prompt}");
    }
    let first = json!([{"role": "assistant", "content": "x", "partial": true}, {"role": "user", "content": "x"}]);
    let body = json!({"model": MODEL, "messages": first});
    let reply = house.speak("/v1/chat/completions", &[], &body).await;
    assert_eq!(reply.json()["error"]["param"], "messages[0].partial");
}
