//! Plain completions: texts, tokens, several prompts, echo, log-probabilities.

use mintage_model::Script;
use serde_json::json;

use crate::harness::{END, says, start, start_with};

#[tokio::test]
async fn one_text() {
    let house = start(says(" there")).await;
    insta::assert_snapshot!(house.complete(json!({"prompt": "Hi"})).await.transcript());
}

#[tokio::test]
async fn a_stream_of_tokens_with_everything() {
    let house = start(says("你")).await;
    let body = json!({
        "prompt": [72, 105], "stream": true, "stream_options": {"include_usage": true}, "logprobs": 1,
        "return_token_ids": true, "echo": true
    });
    insta::assert_snapshot!(house.complete(body).await.transcript());
}

#[tokio::test]
async fn several_prompts_and_choices_keep_their_order() {
    let house = start_with(
        |_| {},
        |request| {
            let mut tokens = request.prompt.to_vec();
            tokens.push(END);
            Ok(Script { tokens, ..Script::default() })
        },
    )
    .await;
    for prompt in [json!(["one", "two"]), json!([[111, 110, 101], [116, 119, 111]])] {
        let reply = house.complete(json!({"prompt": prompt, "n": 2})).await.json();
        let texts: Vec<&str> = reply["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["text"].as_str().unwrap())
            .collect();
        assert_eq!(texts, ["one", "one", "two", "two"]);
        assert_eq!(reply["usage"]["prompt_tokens"], 6);
        assert_eq!(reply["usage"]["completion_tokens"], 16);
    }
}

#[tokio::test]
async fn echo_with_offsets() {
    let house = start(says("b世")).await;
    let body = json!({"prompt": "é!", "echo": true, "logprobs": 0, "max_tokens": 5});
    let reply = house.complete(body).await.json();
    let choice = &reply["choices"][0];
    assert_eq!(choice["text"], "é!b世");
    // Tokens are bytes; an offset counts the whole characters before.
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 0, 1, 2, 3, 3, 3]));
    assert_eq!(choice["logprobs"]["token_logprobs"][0], json!(null));
    assert_eq!(choice["logprobs"]["top_logprobs"][0], json!(null));
    // A prompt alone.
    let body = json!({"prompt": "ab", "echo": true, "logprobs": 2, "max_tokens": 0});
    let reply = house.complete(body).await.json();
    assert_eq!(reply["choices"][0]["text"], "ab");
    assert_eq!(reply["choices"][0]["logprobs"]["tokens"], json!(["a", "b"]));
    assert_eq!(reply["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn sixteen_tokens_by_default() {
    let house = start(says(&"x".repeat(40))).await;
    let reply = house.complete(json!({"prompt": "a"})).await.json();
    assert_eq!(reply["choices"][0]["text"], "x".repeat(16));
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn usage_so_far_is_told_with_each_event() {
    let house = start(says("abc")).await;
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let chat = json!({"stream": true, "stream_options": options});
    let mut text = chat.clone();
    text["prompt"] = "Hi".into();
    for reply in [house.complete(text).await, house.chat(chat).await] {
        let events: Vec<serde_json::Value> =
            reply.events().iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
        let told: Vec<u64> =
            events.iter().map(|e| e["usage"]["completion_tokens"].as_u64().unwrap()).collect();
        assert!(told.is_sorted() && told.last() == Some(&4) && told[1] < 4, "{told:?}");
        let prompt = &events.last().unwrap()["usage"]["prompt_tokens"];
        assert!(events.iter().all(|e| e["usage"]["prompt_tokens"] == *prompt));
    }
}
