//! Responses as programs make, continue, follow and find them. Answers and events are held to OpenAI's own document
//! where it is at hand.

use std::time::{Duration, Instant};

use mintage_ledger::TokenUsage;
use mintage_model::{EngineFault, Script, ScriptEnd};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{END, House, MODEL, Reply, says, start, start_in, start_with, text_model};
use crate::openapi::{check as check_schema, document, validator};

const PATH: &str = "/v1/responses";
const CALL: &str = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
const OTHER: &str = "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";

/// One object of the fields of both.
fn with(mut body: Value, patch: &Value) -> Value {
    for (name, value) in patch.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// The events of a stream: each named by its type, and numbered.
fn events(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert!(reply.complete, "cut: {}", reply.body);
    let frames = reply.body.split_terminator("\n\n").filter(|frame| !frame.starts_with(':'));
    let events = frames.map(|frame| {
        let (name, data) = frame.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str(), "{frame}");
        data
    });
    events.collect()
}

fn numbers(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect()
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|e| e["type"].as_str().unwrap().trim_start_matches("response.")).collect()
}

/// Without what differs from answer to answer.
fn steady(response: &Value) -> Value {
    let mut text = response.to_string();
    let id = response["id"].as_str().unwrap();
    text = text.replace(id.strip_prefix("resp_").unwrap(), "ID");
    let mut steady: Value = serde_json::from_str(&text).unwrap();
    for time in ["created_at", "completed_at"] {
        steady[time] = steady[time].is_number().into();
    }
    for item in steady["output"].as_array_mut().unwrap() {
        if item["call_id"].is_string() {
            item["call_id"] = "CALL".into();
        }
    }
    steady
}

fn text_of(response: &Value) -> String {
    let items = response["output"].as_array().unwrap().iter();
    let parts = items.filter_map(|item| item["content"].as_array()).flatten();
    parts.filter_map(|part| part["text"].as_str()).collect()
}

impl House {
    async fn respond(&self, patch: Value) -> Reply {
        self.post(PATH, with(json!({"model": MODEL, "input": "Hi"}), &patch)).await
    }

    /// The same, which must go well.
    async fn responds(&self, patch: Value) -> Value {
        let reply = self.respond(patch).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()
    }

    async fn response(&self, id: &Value) -> Reply {
        self.get(&format!("{PATH}/{}", id.as_str().unwrap())).await
    }

    /// Waits until a response is as asked.
    async fn response_until(&self, id: &Value, until: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let response = self.response(id).await.json();
            if until(&response) {
                return response;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{response:#}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Begins a stream, hangs up once it has told of `until`, and tells its id.
    async fn begin_stream(&self, body: &Value, until: &str) -> String {
        let mut socket = self.connect().await;
        let request = self.request("POST", PATH, &body.to_string());
        socket.write_all(request.as_bytes()).await.unwrap();
        let (mut seen, mut piece) = (String::new(), [0; 4096]);
        while !seen.contains(until) {
            let read = tokio::time::timeout(Duration::from_secs(10), socket.read(&mut piece)).await;
            let read = read.expect("the stream goes on").unwrap();
            assert!(read > 0, "ended before `{until}`: {seen}");
            seen += &String::from_utf8_lossy(&piece[..read]);
        }
        let at = seen.find("resp_").unwrap();
        seen[at..].split('"').next().unwrap().to_owned()
    }

    /// The prompt of the last request, as text.
    fn last_prompt(&self) -> String {
        let request = self.engine.requests().pop().unwrap();
        text_model().tokenizer().decode(&request.prompt, false)
    }
}

#[tokio::test]
async fn a_response_is_answered_kept_and_billed() {
    let house = start(Script { cached_tokens: 9, ..says("It is 42.") }).await;
    let body = json!({
        "instructions": "Be brief.", "input": "What is it?", "metadata": {"a": "b"},
        "temperature": 0.5, "max_output_tokens": 50, "user": "u", "reasoning": {"effort": "none"},
    });
    let whole = house.responds(body.clone()).await;
    insta::assert_snapshot!(format!("{:#}", steady(&whole)));
    assert_eq!(house.response(&whole["id"]).await.json(), whole);
    let request = house.engine.requests().remove(0);
    assert_eq!((request.max_new_tokens, request.sampling.temperature), (50, 0.5));
    // What a chat would be: the same prompt, the same bill.
    house
        .chat(json!({"messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}],
            "temperature": 0.5, "max_tokens": 50, "reasoning_effort": "none"}))
        .await;
    assert_eq!(house.engine.requests()[1].prompt, request.prompt);
    let counted = house.post("/v1/responses/input_tokens", with(json!({"model": MODEL}), &body));
    assert_eq!(counted.await.json()["input_tokens"], whole["usage"]["input_tokens"]);
    let records = house.settled(2).await;
    let record = &records[whole["id"].as_str().unwrap()];
    let usage = TokenUsage {
        input: request.prompt.len() as u64 - 9,
        cached_input: 9,
        output: 10,
        ..TokenUsage::default()
    };
    assert_eq!((&*record.facts.protocol, record.usage), ("openai.responses", usage));
    assert_eq!(whole["usage"]["total_tokens"], usage.total());
    if let Some(document) = document() {
        check_schema(&validator(&document, "Response"), &whole);
    }
}

#[tokio::test]
async fn a_stream_is_numbered_and_says_what_the_whole_says() {
    let house = start(says("Hi ü")).await;
    let whole = house.responds(json!({})).await;
    let reply = house.respond(json!({"stream": true})).await;
    let events = events(&reply);
    assert_eq!(
        types(&events),
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
    );
    assert_eq!(numbers(&events), (0..12).collect::<Vec<u64>>());
    let deltas: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!((deltas.as_str(), &events[8]["text"]), ("Hi ü", &json!("Hi ü")));
    let last = &events[11]["response"];
    assert_eq!(steady(last), steady(&whole));
    assert_eq!(house.response(&last["id"]).await.json(), *last);
    assert_eq!(events[0]["response"]["output"], json!([]));
    assert_eq!(events[0]["response"].get("usage"), None);
    if let Some(document) = document() {
        let schema = validator(&document, "ResponseStreamEvent");
        events.iter().for_each(|event| check_schema(&schema, event));
    }
    let padded = json!({"stream": true, "stream_options": {"include_obfuscation": true}});
    for event in self::events(&house.respond(padded).await) {
        let padding = event["obfuscation"].as_str().map(str::len);
        let size = event["delta"].as_str().map(|delta| delta.len() + padding.unwrap_or(0));
        assert!(size.is_none_or(|size| size == 32), "{event}");
    }
    house.settled(3).await;
}

fn tools() -> Value {
    let tool = |name: &str| json!({"type": "function", "name": name, "parameters": {"type": "object"}, "strict": false});
    json!([tool("f"), tool("g")])
}

#[tokio::test]
async fn calls_are_items() {
    let both = format!("Let me see.\n{CALL}\n{OTHER}");
    let broken = CALL.replace("1}", "True}");
    for (patch, said, expected) in [
        (json!({}), CALL, vec!["f{\"a\": 1}"]),
        (json!({}), &*both, vec!["Let me see.\n", "f{\"a\": 1}", "g{}"]),
        (json!({"parallel_tool_calls": false}), &*both, vec!["Let me see.\n", "f{\"a\": 1}"]),
        (json!({"tool_choice": "none"}), CALL, vec![CALL]),
        (json!({}), &*broken, vec![&*broken]),
        // One that may not be called is none.
        (
            json!({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]}}),
            CALL,
            vec![CALL],
        ),
    ] {
        let house = start(says(said)).await;
        let patch = with(json!({"tools": tools()}), &patch);
        let whole = house.responds(patch.clone()).await;
        let shown = |item: &Value| match item["type"].as_str().unwrap() {
            "function_call" => {
                assert!(item["call_id"].as_str().unwrap().starts_with("call_"), "{item}");
                format!("{}{}", item["name"].as_str().unwrap(), item["arguments"].as_str().unwrap())
            }
            _ => item["content"][0]["text"].as_str().unwrap().to_owned(),
        };
        let items: Vec<String> = whole["output"].as_array().unwrap().iter().map(shown).collect();
        assert_eq!(items, expected, "{said}");
        let streamed = house.respond(with(patch, &json!({"stream": true}))).await;
        let events = events(&streamed);
        assert_eq!(numbers(&events), (0..events.len() as u64).collect::<Vec<u64>>());
        let last = events.last().unwrap();
        assert_eq!(steady(&last["response"]), steady(&whole), "{said}");
        // Each item begins, is told and ends before the next.
        let mut open = None;
        let mut done = Vec::new();
        for event in &events {
            match event["type"].as_str().unwrap() {
                "response.output_item.added" => {
                    assert_eq!(open.replace(event["output_index"].clone()), None, "{events:#?}");
                }
                "response.output_item.done" => {
                    assert_eq!(open.take(), Some(event["output_index"].clone()));
                    done.push(event["item"].clone());
                }
                kind if kind.contains("delta") || kind.contains("done") => {
                    assert_eq!(open, Some(event["output_index"].clone()), "{event}");
                }
                _ => {}
            }
        }
        assert_eq!(json!(done), last["response"]["output"]);
        if let Some(document) = document() {
            let schema = validator(&document, "ResponseStreamEvent");
            events.iter().for_each(|event| check_schema(&schema, event));
            check_schema(&validator(&document, "Response"), &whole);
        }
    }
}

#[tokio::test]
async fn events_of_a_call() {
    let house = start(says(CALL)).await;
    let reply = house.respond(json!({"tools": tools(), "stream": true})).await;
    let events = events(&reply);
    let calls = types(&events);
    assert_eq!(calls[..3], ["created", "in_progress", "output_item.added"]);
    assert_eq!(
        calls[calls.len() - 3..],
        ["function_call_arguments.done", "output_item.done", "completed"]
    );
    let deltas: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    let done = &events[events.len() - 3];
    assert_eq!(
        (deltas.as_str(), &done["arguments"], &done["name"]),
        ("{\"a\": 1}", &json!("{\"a\": 1}"), &json!("f"))
    );
    assert_eq!(events[2]["item"]["arguments"], "");
}

#[tokio::test]
async fn a_conversation_goes_on_from_what_is_kept() {
    let house = start(says(CALL)).await;
    let first = json!({"instructions": "Be brief.", "input": "Sum?", "tools": tools()});
    let first = house.responds(first).await;
    let call = &first["output"][0]["call_id"];
    let result = json!([{"type": "function_call_output", "call_id": call, "output": "42"}]);
    let second = json!({"input": result, "previous_response_id": first["id"], "tools": tools()});
    let second = house.responds(second).await;
    // Instructions are of one response only.
    let tools = r#"<|im_start|>tools {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}} {"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}}<|im_end|>"#;
    let history = "<|im_start|>user Sum?<|im_end|><|im_start|>assistant [f {\"a\": 1}]<|im_end|><|im_start|>tool 42<|im_end|>";
    let prompt = |tools: &str, more: &str| format!("{tools}{history}{more}<|im_start|>assistant ");
    assert_eq!(house.last_prompt(), prompt(tools, ""));
    // All of it, newest first, page by page.
    let path = format!("{PATH}/{}/input_items", second["id"].as_str().unwrap());
    let all = house.get(&path).await.json();
    let kinds: Vec<&str> =
        all["data"].as_array().unwrap().iter().map(|i| i["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["function_call_output", "function_call", "message"]);
    let (mut pages, mut after) = (Vec::new(), String::new());
    for has_more in [true, true, false] {
        let page =
            house.get(&format!("{path}?limit=1&order=asc{after}&include[]=x&include[]=y")).await;
        let page = page.json();
        assert_eq!((&page["has_more"], &page["first_id"]), (&json!(has_more), &page["last_id"]));
        after = format!("&after={}", page["last_id"].as_str().unwrap());
        pages.insert(0, page["data"][0].clone());
    }
    assert_eq!(json!(pages), all["data"]);
    if let Some(document) = document() {
        check_schema(&validator(&document, "ResponseItemList"), &all);
    }
    // The same by reference: the items of both, as they are kept.
    let reference = |item: &Value| json!({"type": "item_reference", "id": item["id"]});
    let mut given: Vec<Value> = pages.iter().rev().map(reference).collect();
    given.push(json!({"role": "user", "content": "Why?"}));
    house.responds(json!({"input": given})).await;
    assert_eq!(house.last_prompt(), prompt("", "<|im_start|>user Why?<|im_end|>"));
    // What was removed cannot be continued, by nobody further down either.
    let gone = house.delete(&format!("{PATH}/{}", first["id"].as_str().unwrap())).await;
    assert_eq!(gone.json(), json!({"id": first["id"], "object": "response", "deleted": true}));
    assert_eq!(house.response(&first["id"]).await.status, 404);
    let reply = house.respond(json!({"previous_response_id": second["id"]})).await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (400, &json!("previous_response_not_found"))
    );
    house.settled(3).await;
}

#[tokio::test]
async fn another_projects_responses_do_not_exist() {
    let house = start(says("Hi")).await;
    let id = house.responds(json!({})).await["id"].clone();
    let stranger = house.stranger().await;
    let one = format!("{PATH}/{}", id.as_str().unwrap());
    for (method, path) in [
        ("GET", one.clone()),
        ("GET", format!("{one}/input_items")),
        ("POST", format!("{one}/cancel")),
        ("DELETE", one.clone()),
    ] {
        let theirs = house.ask(&stranger, method, &path, &Value::Null).await;
        let nobodys = house
            .ask(&stranger, method, &path.replace(id.as_str().unwrap(), "x"), &Value::Null)
            .await;
        assert_eq!(theirs.status, 404, "{method} {path}: {}", theirs.body);
        assert_eq!(theirs.body.replace(id.as_str().unwrap(), "x"), nobodys.body);
    }
    for patch in [
        json!({"previous_response_id": id}),
        json!({"input": [{"type": "item_reference", "id": id.as_str().unwrap().replace("resp", "msg") + "_0"}]}),
    ] {
        let body = with(json!({"model": MODEL, "input": "Hi"}), &patch);
        let reply = house.ask(&stranger, "POST", PATH, &body).await;
        assert_eq!(reply.status, 400, "{}", reply.body);
        assert_eq!(house.respond(patch).await.status, 200);
    }
    assert_eq!(house.response(&id).await.status, 200);
}

#[tokio::test]
async fn what_is_not_kept_is_not_found_and_the_oldest_make_room() {
    let house = start_with(
        |config| config.storage.as_mut().unwrap().answers.max_project = 2,
        |_| Ok(says("Hi")),
    )
    .await;
    let unkept = house.responds(json!({"store": false})).await;
    assert_eq!(unkept["store"], false);
    assert_eq!(house.response(&unkept["id"]).await.status, 404);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(house.responds(json!({})).await["id"].clone());
    }
    let statuses = [404, 200, 200];
    for (id, status) in ids.iter().zip(statuses) {
        assert_eq!(house.response(id).await.status, status);
    }
    // Where nothing is kept only who insists is refused.
    let house = start_with(
        |config| config.storage.as_mut().unwrap().answers.keep_days = 0,
        |_| Ok(says("Hi")),
    )
    .await;
    assert_eq!(house.responds(json!({})).await["store"], false);
    for (field, patch) in
        [("store", json!({"store": true})), ("background", json!({"background": true}))]
    {
        let reply = house.respond(patch).await;
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(field)));
    }
}

#[tokio::test]
async fn a_response_that_is_cut_is_incomplete() {
    let house = start(says("a long answer")).await;
    let whole = house.responds(json!({"max_output_tokens": 3})).await;
    assert_eq!((&whole["status"], text_of(&whole)), (&json!("incomplete"), "a l".to_owned()));
    assert_eq!(whole["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(whole["output"][0]["status"], "incomplete");
    let reply = house.respond(json!({"max_output_tokens": 3, "stream": true})).await;
    let events = events(&reply);
    assert_eq!(types(&events).last(), Some(&"incomplete"));
    assert_eq!(steady(&events.last().unwrap()["response"]), steady(&whole));
    if let Some(document) = document() {
        check_schema(&validator(&document, "Response"), &whole);
        check_schema(&validator(&document, "ResponseStreamEvent"), events.last().unwrap());
    }
}

#[tokio::test]
async fn a_stream_that_breaks_says_so() {
    let fault = ScriptEnd::Fault(EngineFault::Internal("secret".to_owned()));
    let script = Script { tokens: vec![65, 66], end: fault, ..Script::default() };
    let house = start(script).await;
    let reply = house.respond(json!({"stream": true})).await;
    let events = events(&reply);
    assert_eq!(types(&events)[types(&events).len() - 2..], ["output_item.done", "failed"]);
    let failed = &events.last().unwrap()["response"];
    assert_eq!(
        (&failed["status"], &failed["error"]["code"]),
        (&json!("failed"), &json!("server_error"))
    );
    assert!(!reply.body.contains("secret"));
    if let Some(document) = document() {
        check_schema(&validator(&document, "ResponseStreamEvent"), events.last().unwrap());
    }
    // What was sent is billed, and nothing of it is kept.
    house.settled(1).await;
    assert_eq!(house.response(&failed["id"]).await.status, 404);
    assert_eq!(house.respond(json!({})).await.status, 500);
}

#[tokio::test]
async fn probabilities_come_with_the_text() {
    let house = start(says("Hi")).await;
    let patch = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let whole = house.responds(patch.clone()).await;
    let told = whole["output"][0]["content"][0]["logprobs"].as_array().unwrap().clone();
    let tokens: String = told.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
    assert_eq!(tokens, "Hi");
    let reply = house.respond(with(patch, &json!({"stream": true}))).await;
    let events = events(&reply);
    let sent: Vec<Value> = events
        .iter()
        .filter(|event| event["delta"].is_string())
        .flat_map(|event| event["logprobs"].as_array().unwrap().clone())
        .collect();
    assert_eq!(sent, told);
    if let Some(document) = document() {
        check_schema(&validator(&document, "Response"), &whole);
        let schema = validator(&document, "ResponseStreamEvent");
        events.iter().for_each(|event| check_schema(&schema, event));
    }
}

#[tokio::test]
async fn what_is_too_long_is_cut_only_where_asked() {
    let house = start(says("Hi")).await;
    let input: Vec<Value> = (0..30)
        .map(|n| json!({"role": if n % 2 == 0 { "user" } else { "assistant" }, "content": format!("message {n:02}")}))
        .collect();
    let body = json!({"instructions": "Be brief.", "input": input, "max_output_tokens": 20});
    let reply = house.respond(body.clone()).await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (400, &json!("context_length_exceeded"))
    );
    house.responds(with(body, &json!({"truncation": "auto"}))).await;
    let prompt = house.last_prompt();
    assert!(prompt.starts_with("<|im_start|>system Be brief.<|im_end|><|im_start|>"), "{prompt}");
    assert!(prompt.contains("message 29") && !prompt.contains("message 00"), "{prompt}");
    // One message more would not fit.
    let length = house.engine.requests().pop().unwrap().prompt.len();
    assert!((512 - 20 - 40..=512 - 20).contains(&length), "{length}");
}

#[tokio::test]
async fn what_is_not_here_is_refused_by_name() {
    let house = start(says("Hi")).await;
    for (patch, param) in [
        (json!({"input": []}), "input"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input[0].content[0].type",
        ),
        (json!({"input": [{"type": "web_search_call", "id": "x"}]}), "input[0].type"),
        (json!({"input": [{"role": "tool", "content": "x"}]}), "input[0].role"),
        (
            json!({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}),
            "input",
        ),
        (json!({"input": [{"type": "item_reference", "id": "msg_x_0"}]}), "input[0].id"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tool_choice": {"type": "function", "name": "f"}}), "tool_choice.name"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "array", "uniqueItems": true}}}}),
            "text.format.schema",
        ),
        (json!({"reasoning": {"effort": "huge"}}), "reasoning.effort"),
        (json!({"include": ["everything"]}), "include[0]"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "x"}}), "prompt"),
        (json!({"background": true, "store": false}), "background"),
        (json!({"truncation": "middle"}), "truncation"),
        (json!({"stream_options": {}}), "stream_options"),
        (json!({"metadata": {"a": 1}}), "metadata"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"max_output_tokens": 9999}), "max_output_tokens"),
        (json!({"messages": []}), "messages"),
        (json!({"model": "nobody"}), "model"),
    ] {
        let reply = house.respond(patch.clone()).await;
        assert!(matches!(reply.status, 400 | 404), "{patch}: {}", reply.body);
        assert_eq!(reply.json()["error"]["param"], param, "{patch}: {}", reply.body);
    }
    let id = house.responds(json!({})).await["id"].clone();
    let one = format!("{PATH}/{}", id.as_str().unwrap());
    for (path, param) in [
        (format!("{one}?stream=true"), "stream"),
        (format!("{one}?starting_after=1"), "starting_after"),
        (format!("{one}?starting_after=x&stream=true"), "starting_after"),
        (format!("{one}/input_items?limit=0"), "limit"),
    ] {
        let reply = house.get(&path).await;
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{path}");
    }
    let reply = house.post(&format!("{one}/cancel"), json!({})).await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (400, &json!("response_not_cancellable"))
    );
    assert_eq!(house.engine.requests().len(), 1);
}

/// Slow enough to be looked at.
fn slow(text: &str) -> Script {
    Script { token_delay: Duration::from_millis(10), ..says(text) }
}

#[tokio::test]
async fn a_background_response_runs_whoever_waits() {
    let house = start(slow("0123456789")).await;
    let begun = house.responds(json!({"background": true})).await;
    assert_eq!((&begun["status"], &begun["output"]), (&json!("queued"), &json!([])));
    let some = house.response_until(&begun["id"], |r| !text_of(r).is_empty()).await;
    assert!("0123456789".starts_with(&text_of(&some)));
    // Nothing can follow what has not ended.
    if some["status"] == "in_progress" {
        let reply = house.respond(json!({"previous_response_id": begun["id"]})).await;
        let code = reply.json()["error"]["code"].clone();
        assert!(reply.status == 200 || code == "previous_response_not_complete", "{code}");
    }
    let over = house.response_until(&begun["id"], |r| r["status"] == "completed").await;
    assert_eq!(text_of(&over), "0123456789");
    let reply =
        house.post(&format!("{PATH}/{}/cancel", begun["id"].as_str().unwrap()), json!({})).await;
    assert_eq!(reply.json(), over, "what is over stays");
    let records = house.records().await;
    let record = &records[begun["id"].as_str().unwrap()];
    assert_eq!(over["usage"]["total_tokens"], record.usage.total());
    if let Some(document) = document() {
        for response in [begun, some, over] {
            check_schema(&validator(&document, "Response"), &response);
        }
    }
}

#[tokio::test]
async fn a_background_stream_is_told_from_any_event_on() {
    let house = start(slow("0123456789")).await;
    // Read to the third event; then the client goes away.
    let body = json!({"model": MODEL, "input": "Hi", "background": true, "stream": true});
    let id = house.begin_stream(&body, "response.in_progress").await;
    let path = format!("{PATH}/{id}?stream=true");
    let live = events(&house.get(&path).await);
    assert_eq!(types(&live)[..3], ["created", "queued", "in_progress"]);
    assert_eq!(numbers(&live), (0..live.len() as u64).collect::<Vec<u64>>());
    let last = live.last().unwrap();
    assert_eq!(
        (&last["type"], text_of(&last["response"])),
        (&json!("response.completed"), "0123456789".to_owned())
    );
    // Once more when it is over, and from behind each event on.
    for after in [0, 5, live.len() - 1] {
        let again = events(&house.get(&format!("{path}&starting_after={after}")).await);
        assert_eq!(again, live[after + 1..], "{after}");
    }
    assert_eq!(house.get(&format!("{PATH}/{id}")).await.json(), last["response"]);
    house.settled(1).await;
    if let Some(document) = document() {
        let schema = validator(&document, "ResponseStreamEvent");
        live.iter().for_each(|event| check_schema(&schema, event));
    }
}

#[tokio::test]
async fn a_background_response_is_cancelled_for_what_it_used() {
    let script = Script { tokens: vec![65, 66], end: ScriptEnd::Silence, ..Script::default() };
    let house = start(script).await;
    let begun = house.responds(json!({"background": true})).await;
    house.response_until(&begun["id"], |r| text_of(r) == "AB").await;
    let path = format!("{PATH}/{}", begun["id"].as_str().unwrap());
    let cancelled = house.post(&format!("{path}/cancel"), json!({})).await.json();
    assert_eq!((&cancelled["status"], text_of(&cancelled)), (&json!("cancelled"), "AB".to_owned()));
    assert_eq!(house.get(&path).await.json(), cancelled);
    let records = house.settled(1).await;
    assert_eq!(records.values().next().unwrap().usage.output, 2);
    // Removed while it runs: it stops.
    let begun = house.responds(json!({"background": true})).await;
    house.response_until(&begun["id"], |r| text_of(r) == "AB").await;
    let path = format!("{PATH}/{}", begun["id"].as_str().unwrap());
    assert_eq!(house.delete(&path).await.status, 200);
    assert_eq!(house.get(&path).await.status, 404);
    house.settled(2).await;
}

#[tokio::test]
async fn a_background_response_that_fails_costs_nothing() {
    let fault = ScriptEnd::Fault(EngineFault::Internal("secret".to_owned()));
    let house = start(Script { tokens: vec![65], end: fault, ..Script::default() }).await;
    let begun = house.responds(json!({"background": true})).await;
    let failed = house.response_until(&begun["id"], |r| r["status"] == "failed").await;
    assert_eq!((&failed["error"]["code"], &failed["output"]), (&json!("server_error"), &json!([])));
    assert!(house.settled(0).await.is_empty());
    // What is refused is never there.
    let reply = house.respond(json!({"background": true, "max_output_tokens": 9999})).await;
    assert_eq!(reply.status, 400);
}

#[tokio::test]
async fn a_shutdown_ends_what_runs_and_bills_nothing() {
    let hang =
        |_: &_| Ok(Script { tokens: vec![65, 66], end: ScriptEnd::Silence, ..Script::default() });
    let brief = |config: &mut mintage_server::ServerConfig| {
        config.drain_timeout = Duration::from_millis(50);
    };
    let mut house = start_with(brief, hang).await;
    let begun = house.responds(json!({"background": true})).await;
    house.response_until(&begun["id"], |r| text_of(r) == "AB").await;
    house.stop();
    let house = start_in(house.gone().await, |_| {}, |_| Ok(says("Hi"))).await;
    let failed = house.response(&begun["id"]).await.json();
    assert_eq!((&failed["status"], &failed["output"]), (&json!("failed"), &json!([])));
    assert!(failed["error"]["message"].as_str().unwrap().contains("shutting down"), "{failed}");
    assert!(house.settled(0).await.is_empty());
}

/// As kills leave them: one was billed and not written down as over, the other was not billed.
#[tokio::test]
async fn after_a_restart_a_response_is_there_and_billed_or_failed_and_not() {
    let mut house = start(says("Hi")).await;
    let mut over = Vec::new();
    for patch in [json!({"background": true}), json!({"background": true, "stream": true})] {
        let reply = house.respond(patch).await;
        let id = match reply.header("content-type").unwrap() {
            "application/json" => reply.json()["id"].clone(),
            _ => events(&reply)[0]["response"]["id"].clone(),
        };
        over.push(house.response_until(&id, |r| r["status"] == "completed").await);
    }
    house.stop();
    let folder = house.gone().await;
    let index = rusqlite::Connection::open(folder.path().join("files/index.sqlite")).unwrap();
    let lost = over[0].clone();
    let begun = |response: &Value| {
        let mut begun = response.clone();
        (begun["status"], begun["output"], begun["completed_at"]) =
            ("queued".into(), json!([]), Value::Null);
        begun.as_object_mut().unwrap().shift_remove("usage");
        begun
    };
    for response in &over {
        let sql = "UPDATE answers SET is_over = 0, document = ?2 WHERE id = ?1";
        let changed = index.execute(sql, (response["id"].as_str(), begun(response).to_string()));
        assert_eq!(changed.unwrap(), 1);
    }
    let mut third = begun(&lost);
    third["id"] = "resp_third".into();
    let sql = "INSERT INTO answers SELECT 99, 'resp_third', project, kind, model, bytes, expires, 0, ?2, input, NULL,
               replace(kept_at, id, 'resp_third') FROM answers WHERE id = ?1";
    index.execute(sql, (lost["id"].as_str(), third.to_string())).unwrap();
    drop(index);
    let house = start_in(folder, |_| {}, |_| Ok(says("Hi"))).await;
    for response in &over {
        assert_eq!(house.response(&response["id"]).await.json(), *response);
    }
    let failed = house.response(&json!("resp_third")).await.json();
    assert_eq!(failed["status"], "failed");
    assert!(
        failed["error"]["message"].as_str().unwrap().contains("Nothing was billed"),
        "{failed}"
    );
    house.settled(2).await;
}

#[tokio::test]
async fn a_keyed_background_response_is_computed_once() {
    let house = start(says("Hi")).await;
    for stream in [false, true] {
        let body = json!({"model": MODEL, "input": "Hi", "background": true, "stream": stream});
        let key = format!("k-{stream}");
        let first = house.speak(PATH, &[("idempotency-key", &key)], &body).await;
        let id = if stream {
            events(&first)[0]["response"]["id"].clone()
        } else {
            first.json()["id"].clone()
        };
        let over = house.response_until(&id, |r| r["status"] == "completed").await;
        let again = house.speak(PATH, &[("idempotency-key", &key)], &body).await;
        assert_eq!(again.header("idempotent-replayed"), Some("true"));
        if stream {
            assert_eq!(again.body, first.body);
        } else {
            assert_eq!(again.json(), over);
        }
    }
    house.settled(2).await;
    assert_eq!(house.engine.requests().len(), 2);
}

#[tokio::test]
async fn lines_of_a_batch_are_answered_and_not_kept() {
    let house = start(says("Hi")).await;
    let line = |name: &str, more: Value| {
        let body = with(json!({"model": MODEL, "input": "Hi"}), &more);
        json!({"custom_id": name, "method": "POST", "url": PATH, "body": body}).to_string() + "\n"
    };
    let file =
        house.upload(&(line("a", json!({})) + &line("b", json!({"background": true})))).await;
    let body = json!({"input_file_id": file, "endpoint": PATH, "completion_window": "24h"});
    let id = house.post("/v1/batches", body).await.json()["id"].as_str().unwrap().to_owned();
    let batch = house.batch_over(&id).await;
    assert_eq!(batch["request_counts"], json!({"total": 2, "completed": 1, "failed": 1}));
    let output = house.results(&batch, "output_file_id").await;
    let response = &output[0]["response"]["body"];
    assert_eq!((text_of(response), &response["store"]), ("Hi".to_owned(), &json!(false)));
    assert_eq!(house.response(&response["id"]).await.status, 404);
    assert_eq!(batch["usage"]["total_tokens"], response["usage"]["total_tokens"]);
    house.settled(1).await;
}

#[tokio::test]
async fn an_empty_answer_is_an_empty_message() {
    let house = start(Script { tokens: vec![END], ..Script::default() }).await;
    let whole = house.responds(json!({})).await;
    assert_eq!((text_of(&whole), whole["output"].as_array().unwrap().len()), (String::new(), 1));
}
