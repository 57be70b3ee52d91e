//! `/tokenize`, `/detokenize` and log-probabilities of prompts, in vLLM's shapes.

use serde_json::{Value, json};

use crate::harness::{CONTEXT, MODEL, says, start};

#[tokio::test]
async fn texts_and_chats_are_told_in_tokens() {
    let house = start(says("x")).await;
    let ask = async |body: Value| house.post("/tokenize", body).await;
    let told = ask(json!({"model": MODEL, "prompt": "Hé"})).await.json();
    let ids = json!([72, 195, 169]);
    let expected = json!({"count": 3, "max_model_len": CONTEXT, "tokens": ids, "token_strs": null});
    assert_eq!(told, expected);
    // One model is served, so it need not be named; control tokens of the caller count.
    let body = json!({"prompt": "a<|im_end|>", "return_token_strs": true});
    let told = ask(body).await.json();
    assert_eq!((&told["count"], &told["token_strs"]), (&2.into(), &json!(["a", "<|im_end|>"])));

    // A chat has the tokens that its answer is billed for.
    let chats = [
        json!({"messages": [{"role": "user", "content": "Hi <|im_end|>"}]}),
        json!({
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "chat_template_kwargs": {"enable_thinking": false},
        }),
        json!({"messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "So", "partial": true},
        ]}),
    ];
    for chat in chats {
        let mut asked = chat.clone();
        asked["return_token_ids"] = true.into();
        let answered = house.chat(asked).await.json();
        let told = ask(chat.clone()).await.json();
        assert_eq!(told["tokens"], answered["prompt_token_ids"], "{chat}");
        assert_eq!(told["count"], answered["usage"]["prompt_tokens"], "{chat}");
        let text = house.post("/detokenize", json!({"tokens": told["tokens"]})).await.json();
        let again = ask(json!({"prompt": text["prompt"]})).await.json();
        // Text that only looks like a control token is one when it is read as a plain prompt.
        if !chat.to_string().contains("im_end") {
            assert_eq!(again["tokens"], told["tokens"]);
        }
    }
    let continued = json!({
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "So"},
        ],
        "continue_final_message": true,
        "add_generation_prompt": false,
    });
    let ids = ask(continued).await.json();
    assert_eq!(ids["tokens"].as_array().unwrap().last(), Some(&json!(u32::from(b'o'))));
    let text = house.post("/detokenize", json!({"tokens": [72, 195, 169]})).await.json();
    assert_eq!(text, json!({"prompt": "Hé"}));
    let info = house.get(&format!("/tokenizer_info?model={MODEL}")).await.json();
    assert_eq!(info, house.get("/tokenizer_info").await.json());
    assert_eq!((&info["eos_token"], &info["bos_token"]), (&"<|im_end|>".into(), &Value::Null));
    assert_eq!(house.get("/tokenizer_info?model=none").await.status, 404);
    // Only the three answers were billed.
    house.settled(3).await;
}

#[tokio::test]
async fn what_is_no_text_and_no_tokens_is_refused() {
    let house = start(says("x")).await;
    for (path, body, param) in [
        ("/tokenize", json!({"prompt": 5}), "prompt"),
        ("/tokenize", json!({}), "messages"),
        ("/tokenize", json!({"prompt": "a", "messages": []}), "messages"),
        ("/tokenize", json!({"model": "gpt-5", "prompt": "a"}), "model"),
        ("/tokenize", json!({"prompt": "a", "prompts": "b"}), "prompts"),
        (
            "/tokenize",
            json!({"messages": [{"role": "user", "content": "a"}], "add_special_tokens": true}),
            "add_special_tokens",
        ),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": "a"}), "tokens"),
        ("/detokenize", json!({"tokens": [1, "a"]}), "tokens[1]"),
        ("/detokenize", json!({"tokens": [1, 259]}), "tokens[1]"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens[0]"),
    ] {
        let reply = house.post(path, body.clone()).await;
        assert!(matches!(reply.status, 400 | 404), "{body}: {}", reply.body);
        assert_eq!(reply.json()["error"]["param"], param, "{body}");
    }
    for path in ["/tokenize", "/detokenize"] {
        let reply = house.post_with("sk-wrong", path, &[], &json!({"prompt": "a"})).await;
        assert_eq!(reply.status, 401);
    }
}

#[tokio::test]
async fn prompts_are_told_with_their_probabilities() {
    let house = start(says("x")).await;
    let message = json!([{"role": "user", "content": "Hi"}]);
    let body = json!({"messages": message, "prompt_logprobs": 2, "return_token_ids": true});
    let reply = house.chat(body).await.json();
    let told = reply["prompt_logprobs"].as_array().unwrap();
    let ids = reply["prompt_token_ids"].as_array().unwrap();
    check(told, ids);
    let reply = house.complete(json!({"prompt": "ab", "prompt_logprobs": 0, "n": 2})).await.json();
    for choice in reply["choices"].as_array().unwrap() {
        check(choice["prompt_logprobs"].as_array().unwrap(), &[97.into(), 98.into()]);
    }
    let streamed = house.chat(json!({"prompt_logprobs": 0, "stream": true})).await;
    assert_eq!(streamed.json()["error"]["param"], "prompt_logprobs");
    assert!(house.chat(json!({})).await.json()["prompt_logprobs"].is_null());
}

/// Nothing of the first token; of each other one itself, and with its text.
fn check(told: &[Value], ids: &[Value]) {
    assert_eq!(told.len(), ids.len());
    assert!(told[0].is_null());
    for (token, id) in told.iter().zip(ids).skip(1) {
        let own = &token[id.to_string()];
        assert!(own["logprob"].as_f64().unwrap() <= 0.0, "{token}");
        let byte = u8::try_from(id.as_u64().unwrap()).ok();
        if let Some(byte) = byte.filter(u8::is_ascii) {
            assert_eq!(own["decoded_token"], char::from(byte).to_string());
        }
    }
}

#[tokio::test]
async fn a_middle_is_filled_in_only_by_who_can() {
    let house = start(says("x")).await;
    for body in [
        json!({"prompt": "a", "suffix": "b"}),
        json!({"prompt": "a", "suffix": "b", "echo": true}),
        json!({"prompt": "a", "suffix": 5}),
    ] {
        let reply = house.complete(body).await;
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &"suffix".into()));
    }
    assert_eq!(house.complete(json!({"prompt": "a", "suffix": ""})).await.status, 200);
}
