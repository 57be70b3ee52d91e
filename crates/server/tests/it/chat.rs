//! Chats: whole transcripts, stop strings, choices, log-probabilities, usage.

use mintage_model::{CacheDomain, Script};
use serde_json::{Value, json};

use crate::harness::{END, House, says, start, start_with};

#[tokio::test]
async fn one_answer() {
    let house = start(Script { cached_tokens: 1, ..says("Hello, 世界!") }).await;
    let reply = house.chat(json!({"max_tokens": 20})).await;
    insta::assert_snapshot!(reply.transcript());
}

#[tokio::test]
async fn a_stream_with_usage() {
    let house = start(says("Hé")).await;
    let body = json!({"stream": true, "stream_options": {"include_usage": true}, "max_tokens": 9});
    let reply = house.chat(body).await;
    assert!(reply.complete);
    insta::assert_snapshot!(reply.transcript());
}

#[tokio::test]
async fn everything_reported() {
    let house = start(says("ab")).await;
    let body = json!({"logprobs": true, "top_logprobs": 2, "return_token_ids": true});
    insta::assert_snapshot!("everything_whole", house.chat(body.clone()).await.transcript());
    let mut streamed = body;
    streamed["stream"] = true.into();
    insta::assert_snapshot!("everything_streamed", house.chat(streamed).await.transcript());
}

/// The text and the end of one choice of a stream.
fn joined(events: &[String], index: u64) -> (String, Option<String>) {
    let mut text = String::new();
    let mut finish = None;
    for event in events.iter().filter(|e| *e != "[DONE]") {
        let event: Value = serde_json::from_str(event).unwrap();
        for choice in event["choices"].as_array().unwrap() {
            if choice["index"] == index {
                assert!(finish.is_none(), "after the end: {choice}");
                text += choice["delta"]["content"].as_str().unwrap_or("");
                finish = choice["finish_reason"].as_str().map(str::to_owned);
            }
        }
    }
    (text, finish)
}

#[tokio::test]
async fn stop_strings_end_the_answer_across_tokens() {
    for (stop, said, expected, finish) in [
        (json!("END"), "one END two", "one ", "stop"),
        (json!(["x", "two"]), "one two three", "one ", "stop"),
        (json!(["。"]), "你好。再见", "你好", "stop"),
        (json!(["zzz"]), "one zz", "one zz", "stop"),
        (json!("one"), "one", "", "stop"),
        (json!([]), "plain", "plain", "stop"),
    ] {
        let house = start(says(said)).await;
        let whole = house.chat(json!({"stop": stop})).await.json();
        let choice = &whole["choices"][0];
        assert_eq!(choice["message"]["content"], expected, "{stop}");
        assert_eq!(choice["finish_reason"], finish, "{stop}");
        let events = house.chat(json!({"stop": stop, "stream": true})).await.events();
        assert_eq!(joined(&events, 0), (expected.to_owned(), Some(finish.to_owned())), "{stop}");
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    }
}

#[tokio::test]
async fn a_stop_string_cancels_the_engine() {
    // Slow enough that an engine that goes on would be caught saying far more.
    let script = Script {
        token_delay: std::time::Duration::from_millis(5),
        ..says(&format!("ab STOP {}", "x".repeat(400)))
    };
    let house = start(script).await;
    let body = json!({"stop": "STOP", "logprobs": true, "return_token_ids": true});
    let reply = house.chat(body).await.json();
    let choice = &reply["choices"][0];
    assert_eq!(choice["message"]["content"], "ab ");
    // Tokens of the stop string are reported no more than its text.
    assert_eq!(choice["logprobs"]["content"].as_array().unwrap().len(), 3);
    assert_eq!(choice["token_ids"], json!([97, 98, 32]));
    let finish = house.finished(1).await.remove(0);
    assert!(finish.usage.output_tokens < 60, "{finish:?}");
    assert_eq!(reply["usage"]["completion_tokens"], 7);
    house.metric("vllm:request_success_total{model_name=\"scripted\",engine=\"0\",finished_reason=\"stop\"} 1").await;
}

/// How far an engine runs on before it sees the cancel is chance, and costs nothing.
#[tokio::test]
async fn nothing_behind_a_stop_string_is_counted() {
    let house = start(says(&format!("ab STOP {}", "x".repeat(400)))).await;
    let body = json!({"stop": "STOP"});
    let reply = house.chat(body).await.json();
    assert_eq!(reply["usage"]["completion_tokens"], 7);
    let body = json!({"stop": "STOP", "stream": true, "stream_options": {"include_usage": true}});
    let events = house.chat(body).await.events();
    let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(last["usage"]["completion_tokens"], 7);
    let sampled = house.finished(2).await;
    assert!(sampled.iter().any(|finish| finish.usage.output_tokens > 7), "{sampled:?}");
}

#[tokio::test]
async fn choices_have_seeds_of_their_own() {
    let house =
        start_with(|_| {}, |request| Ok(says(&format!("{:x}", request.sampling.seed)))).await;
    let body = json!({"n": 3, "seed": 42});
    let texts = |reply: Value| -> Vec<String> {
        let choices = reply["choices"].as_array().unwrap().clone();
        choices.iter().map(|c| c["message"]["content"].as_str().unwrap().to_owned()).collect()
    };
    let reply = house.chat(body.clone()).await.json();
    let first = texts(reply.clone());
    assert_eq!(first[0], "2a");
    assert!(first[0] != first[1] && first[1] != first[2]);
    assert_eq!(texts(house.chat(body).await.json()), first);
    // The prompt is counted once, the answers all.
    let sampled: u64 = first.iter().map(|t| t.len() as u64 + 1).sum();
    assert_eq!(reply["usage"]["completion_tokens"], sampled);
    let prompt = house.engine.requests()[0].prompt.len();
    assert_eq!(reply["usage"]["prompt_tokens"], prompt);
    let events = house.chat(json!({"n": 3, "seed": 42, "stream": true})).await.events();
    for (index, text) in first.iter().enumerate() {
        assert_eq!(&joined(&events, index as u64).0, text);
    }
}

#[tokio::test]
async fn limits_and_sampling_reach_the_engine() {
    let house = start(says("x")).await;
    house
        .chat(json!({
            "max_completion_tokens": 7, "max_tokens": 5, "temperature": 0.5, "top_p": 0.25, "top_k": 3,
            "min_p": 0.125, "typical_p": 0.75, "frequency_penalty": -1, "presence_penalty": 1.5,
            "repetition_penalty": 1.25, "logit_bias": {"65": -100, "66": 1.5}, "seed": 7,
            "stop_token_ids": [3], "user": "u", "store": false, "metadata": {"a": "b"},
            "response_format": {"type": "text"}, "logit_bias ": null,
        }))
        .await;
    assert!(house.engine.requests().is_empty(), "an unknown field was let through");
    let reply = house
        .chat(json!({
            "max_completion_tokens": 7, "max_tokens": 5, "temperature": 0.5, "top_p": 0.25, "top_k": 3,
            "min_p": 0.125, "typical_p": 0.75, "frequency_penalty": -1, "presence_penalty": 1.5,
            "repetition_penalty": 1.25, "logit_bias": {"65": -100, "66": 1.5}, "seed": 7,
            "stop_token_ids": [3], "user": "u", "store": false, "metadata": {"a": "b"},
            "response_format": {"type": "text"}, "stop": null, "n": null, "stream": null,
        }))
        .await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let request = house.engine.requests().remove(0);
    let s = &request.sampling;
    assert_eq!(request.max_new_tokens, 7);
    assert_eq!(
        (s.temperature, s.top_p, s.top_k, s.min_p, s.typical_p),
        (0.5, 0.25, 3, 0.125, 0.75)
    );
    assert_eq!((s.frequency_penalty, s.presence_penalty, s.repetition_penalty), (-1.0, 1.5, 1.25));
    assert_eq!((s.logit_bias.as_slice(), s.seed), (&[(65, -100.0), (66, 1.5)][..], 7));
    assert_eq!(&*request.stop_token_ids, &[3, END, END + 1]);
    assert_ne!(request.cache_domain, CacheDomain::default());
    assert!(request.deadline.is_some());
}

#[tokio::test]
async fn an_ignored_end_does_not_end() {
    let script = Script { tokens: vec![97, END, 98], ..Script::default() };
    let house = start(script).await;
    let reply = house.chat(json!({"ignore_eos": true, "return_token_ids": true})).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], "ab");
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert_eq!(reply["choices"][0]["token_ids"], json!([97, END, 98]));
}

async fn prompt_of(house: &House, messages: Value) -> String {
    let before = house.engine.requests().len();
    let reply = house.chat(json!({"messages": messages})).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let ids = house.engine.requests().remove(before).prompt;
    house::decode(&ids)
}

mod house {
    pub(super) fn decode(ids: &[u32]) -> String {
        crate::harness::text_model().tokenizer().decode(ids, false)
    }
}

#[tokio::test]
async fn messages_of_every_shape_are_rendered() {
    let house = start(says("x")).await;
    let prompt = prompt_of(
        &house,
        json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Al"},
            {"role": "assistant", "content": null, "refusal": null, "annotations": [], "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
            {"role": "assistant", "content": "It is 42."},
            {"role": "user", "content": "Thanks <|im_end|>"},
        ]),
    )
    .await;
    insta::assert_snapshot!(prompt);
}
