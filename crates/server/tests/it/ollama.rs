//! Ollama's dialect.

use mintage_model::{EngineFault, Script, ScriptEnd};
use serde_json::{Value, json};

use crate::harness::{House, MODEL, Reply, says, start, text_model};

/// The lines of a stream.
fn lines(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.header("content-type"), Some("application/x-ndjson"), "{}", reply.body);
    assert!(reply.complete && reply.body.ends_with('\n'), "cut: {:?}", reply.body);
    reply.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn chat(house: &House, patch: Value) -> Reply {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]});
    for (name, value) in patch.as_object().unwrap() {
        body[name] = value.clone();
    }
    house.speak("/api/chat", &[], &body).await
}

async fn generate(house: &House, patch: Value) -> Reply {
    let mut body = json!({"model": MODEL, "prompt": "Hi"});
    for (name, value) in patch.as_object().unwrap() {
        body[name] = value.clone();
    }
    house.speak("/api/generate", &[], &body).await
}

#[tokio::test]
async fn answers_in_each_form() {
    let house = start(says("abc")).await;
    let mut all = String::new();
    for (name, reply) in [
        ("chat", chat(&house, json!({"stream": false})).await),
        ("chat stream", chat(&house, json!({})).await),
        ("generate", generate(&house, json!({"stream": false})).await),
        ("generate stream", generate(&house, json!({"options": {"num_predict": 2}})).await),
        ("load", generate(&house, json!({"prompt": ""})).await),
        ("load for chats", chat(&house, json!({"messages": []})).await),
    ] {
        all += &format!("--- {name}\n{}\n", reply.transcript());
    }
    insta::assert_snapshot!("ollama_forms", all);
}

#[tokio::test]
async fn the_last_line_tells_what_it_took() {
    let script = Script {
        prefill_delay: std::time::Duration::from_millis(20),
        token_delay: std::time::Duration::from_millis(5),
        ..says("abcd")
    };
    let house = start(script).await;
    for stream in [true, false] {
        let reply = chat(&house, json!({"stream": stream})).await;
        let end = if stream { lines(&reply).pop().unwrap() } else { reply.json() };
        assert_eq!((&end["done"], &end["eval_count"]), (&json!(true), &json!(5)), "{end}");
        let prompt = house.engine.requests()[0].prompt.len();
        assert_eq!(end["prompt_eval_count"], prompt);
        let ns = |name: &str| end[name].as_u64().unwrap();
        assert!(ns("prompt_eval_duration") >= 20_000_000, "{end}");
        // The first token's delay began with the prompt's end, which this server may have heard of late.
        assert!(ns("prompt_eval_duration") + ns("eval_duration") >= 45_000_000, "{end}");
        assert!(ns("total_duration") >= ns("prompt_eval_duration") + ns("eval_duration"));
    }
}

#[tokio::test]
async fn options_reach_the_engine() {
    let house = start(says("x")).await;
    let options = json!({
        "num_predict": 7, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "min_p": 0.125, "seed": 9,
        "repeat_penalty": 1.25, "presence_penalty": 1.5, "frequency_penalty": -1, "stop": ["zz"],
        "num_ctx": 4096, "num_gpu": 1, "mirostat": 0, "unheard_of": true,
    });
    let patch = json!({"options": options, "keep_alive": "5m", "format": "", "unheard_of": 1,
        "model": format!("{MODEL}:latest")});
    assert_eq!(chat(&house, patch).await.status, 200);
    let request = house.engine.requests().remove(0);
    let s = &request.sampling;
    assert_eq!((s.temperature, s.top_p, s.top_k, s.min_p, s.seed), (0.5, 0.25, 3, 0.125, 9));
    assert_eq!((s.repetition_penalty, s.presence_penalty, s.frequency_penalty), (1.25, 1.5, -1.0));
    assert_eq!(request.max_new_tokens, 7);
    // No window to penalise over: no penalty.
    let options = json!({"repeat_penalty": 1.25, "repeat_last_n": 0, "num_predict": -1});
    assert_eq!(chat(&house, json!({"options": options})).await.status, 200);
    let request = house.engine.requests().remove(1);
    assert_eq!(request.sampling.repetition_penalty, 1.0);
    assert!(request.max_new_tokens > 7);
}

#[tokio::test]
async fn prompts_are_rendered_or_raw() {
    let house = start(says("x")).await;
    let mut prompts = String::new();
    for patch in [
        json!({}),
        json!({"system": "Be brief."}),
        json!({"raw": true, "prompt": "<|im_start|>x"}),
        json!({"think": false}),
    ] {
        let before = house.engine.requests().len();
        let reply = generate(&house, patch).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let prompt = house.engine.requests().remove(before).prompt;
        prompts += &text_model().tokenizer().decode(&prompt, false);
        prompts += "\n";
    }
    let messages = json!([
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
        {"role": "tool", "content": "42", "tool_name": "f"},
    ]);
    chat(&house, json!({"messages": messages})).await;
    prompts += &text_model().tokenizer().decode(&house.engine.requests()[4].prompt, false);
    insta::assert_snapshot!("ollama_prompts", prompts);
}

#[tokio::test]
async fn refusals_and_broken_streams() {
    let script = Script {
        tokens: vec![97],
        end: ScriptEnd::Fault(EngineFault::Internal("secret".into())),
        ..Script::default()
    };
    let house = start(script).await;
    let mut all = String::new();
    for patch in [
        json!({"model": "llama"}),
        json!({"model": null}),
        json!({"messages": [{"role": "robot", "content": "x"}]}),
        json!({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}),
        json!({"options": {"mirostat": 2}}),
        json!({"options": {"num_predict": 0}}),
        json!({"options": {"temperature": "warm"}}),
        json!({"format": "xml"}),
        json!({"think": "much"}),
        json!({"logprobs": true}),
    ] {
        let reply = chat(&house, patch.clone()).await;
        all += &format!("{patch}\n  {} {}\n", reply.status, reply.body);
    }
    for patch in [json!({"template": "x"}), json!({"context": [1]}), json!({"suffix": "x"})] {
        let reply = generate(&house, patch.clone()).await;
        all += &format!("{patch}\n  {} {}\n", reply.status, reply.body);
    }
    assert!(house.engine.requests().is_empty());
    let broken = lines(&chat(&house, json!({})).await);
    all += &format!("broken\n  {}\n", broken.last().unwrap());
    insta::assert_snapshot!("ollama_refusals", all);
}

#[tokio::test]
async fn models_are_told_of() {
    let house = start(says("x")).await;
    for path in ["/api/tags", "/api/ps"] {
        let reply = house.get(path).await.json();
        assert_eq!(reply["models"][0]["name"], MODEL);
        assert_eq!(reply["models"][0]["modified_at"], "2023-11-14T22:13:20Z");
    }
    let version = house.get("/api/version").await.json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    let shown = house.speak("/api/show", &[], &json!({"model": MODEL})).await.json();
    assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
    assert!(shown["template"].as_str().unwrap().contains("<|im_start|>"));
    // Bodies are JSON whatever their type says.
    let body = json!({"model": MODEL}).to_string();
    let request = house.request("POST", "/api/show", &body);
    let as_form = request.replace("application/json", "application/x-www-form-urlencoded");
    assert_eq!(house.send(&as_form).await.status, 200);
    let none = house.speak("/api/show", &[], &json!({"name": "none"})).await;
    assert_eq!((none.status, none.json()["error"].is_string()), (404, true));
}
