//! Chats that are kept, and the fields of chats that OpenAI's API has beside the usual.

use serde_json::{Value, json};

use crate::harness::{House, says, start, start_with};
use crate::openapi::{check as check_schema, document, validator};

const PATH: &str = "/v1/chat/completions";

fn messages() -> Value {
    json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ])
}

/// Has one whole chat kept, then a streamed one of two choices: their ids, and what the first was told.
async fn two_kept(house: &House) -> ([String; 2], Value) {
    let kept = |n: u32, stream: bool| {
        json!({"store": true, "stream": stream, "n": n, "messages": messages(),
            "metadata": {"n": n.to_string()}})
    };
    let whole = house.chat(kept(1, false)).await.json();
    let events = house.chat(kept(2, true)).await.events();
    let first: Value = serde_json::from_str(&events[0]).unwrap();
    let id = |answer: &Value| answer["id"].as_str().unwrap().to_owned();
    ([id(&whole), id(&first)], whole)
}

#[tokio::test]
async fn a_chat_is_kept_as_it_was_answered() {
    let house = start(says("Hi")).await;
    let unkept = house.chat(json!({"metadata": {"a": "b"}})).await.json();
    assert_eq!(house.get(&format!("{PATH}/{}", unkept["id"].as_str().unwrap())).await.status, 404);
    let (ids, whole) = two_kept(&house).await;
    let records = house.settled(3).await;
    for (id, n) in ids.iter().zip([1, 2]) {
        let mut kept = house.get(&format!("{PATH}/{id}")).await.json();
        if let Some(document) = document() {
            check_schema(&validator(&document, "CreateChatCompletionResponse"), &kept);
        }
        let metadata = kept.as_object_mut().unwrap().shift_remove("metadata");
        assert_eq!(metadata, Some(json!({"n": n.to_string()})));
        assert!(n == 2 || kept == whole, "{kept}");
        let choices = kept["choices"].as_array().unwrap();
        assert_eq!((&kept["object"], choices.len()), (&json!("chat.completion"), n));
        assert_eq!(choices[n - 1]["message"]["content"], "Hi");
        assert_eq!(kept["usage"]["total_tokens"], records[id].usage.total());
    }
}

#[tokio::test]
async fn kept_chats_are_listed() {
    let house = start(says("Hi")).await;
    let (ids, _) = two_kept(&house).await;
    for (query, expected, has_more) in [
        ("limit=1".to_owned(), &ids[..1], true),
        (format!("limit=1&after={}", ids[0]), &ids[1..], false),
        ("metadata[n]=2".to_owned(), &ids[1..], false),
        ("metadata%5Bn%5D=1&model=scripted".to_owned(), &ids[..1], false),
        ("metadata[n]=1&metadata[x]=1".to_owned(), &ids[..0], false),
        ("model=nobody".to_owned(), &ids[..0], false),
        ("order=desc&limit=1".to_owned(), &ids[1..], true),
    ] {
        let page = house.get(&format!("{PATH}?{query}")).await.json();
        let data = page["data"].as_array().unwrap().iter();
        let listed: Vec<&str> = data.map(|chat| chat["id"].as_str().unwrap()).collect();
        assert_eq!(
            (listed.as_slice(), &page["has_more"]),
            (expected.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), &json!(has_more),),
            "{query}"
        );
        if let Some(document) = document() {
            check_schema(&validator(&document, "ChatCompletionList"), &page);
        }
    }
    let one = format!("{PATH}/{}", ids[0]);
    let told = house.get(&format!("{one}/messages?limit=1&order=desc")).await.json();
    assert_eq!(told["has_more"], true);
    let message = &told["data"][0];
    assert_eq!((&message["role"], &message["content"]), (&json!("user"), &Value::Null));
    assert_eq!(message["content_parts"], messages()[1]["content"]);
    let after = format!("{one}/messages?order=desc&after={}", message["id"].as_str().unwrap());
    assert_eq!(house.get(&after).await.json()["data"][0]["content"], "Be brief.");
}

#[tokio::test]
async fn a_kept_chat_is_changed_and_removed_by_its_project_alone() {
    let house = start(says("Hi")).await;
    let (ids, _) = two_kept(&house).await;
    let one = format!("{PATH}/{}", ids[0]);
    let changed = house.post(&one, json!({"metadata": {"x": "y"}})).await.json();
    assert_eq!(changed["metadata"], json!({"x": "y"}));
    assert_eq!(house.get(&one).await.json(), changed);
    for body in [json!({}), json!({"metadata": {"x": 1}}), json!({"metadata": {}, "n": 1})] {
        assert_eq!(house.post(&one, body.clone()).await.status, 400, "{body}");
    }
    let stranger = house.stranger().await;
    for (method, path, body) in [
        ("GET", one.clone(), Value::Null),
        ("GET", format!("{one}/messages"), Value::Null),
        ("POST", one.clone(), json!({"metadata": {}})),
        ("DELETE", one.clone(), Value::Null),
    ] {
        assert_eq!(house.ask(&stranger, method, &path, &body).await.status, 404, "{method} {path}");
    }
    assert_eq!(house.get_with(&stranger, PATH).await.json()["data"], json!([]));
    assert_eq!(house.get(&one).await.json(), changed);
    let deleted = house.delete(&one).await.json();
    assert_eq!(
        deleted,
        json!({"object": "chat.completion.deleted", "id": ids[0], "deleted": true})
    );
    if let Some(document) = document() {
        check_schema(&validator(&document, "ChatCompletionDeleted"), &deleted);
    }
    assert_eq!(house.get(&one).await.status, 404);
}

#[tokio::test]
async fn where_nothing_is_kept_store_is_refused() {
    let house = start_with(
        |config| config.storage.as_mut().unwrap().answers.keep_days = 0,
        |_| Ok(says("Hi")),
    )
    .await;
    let reply = house.chat(json!({"store": true})).await;
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("store")));
    assert_eq!(house.chat(json!({"store": false})).await.status, 200);
}

#[tokio::test]
async fn events_are_padded_where_asked() {
    let house = start(says("Hi")).await;
    let body = json!({"stream": true, "stream_options": {"include_obfuscation": true}, "service_tier": "auto"});
    let events = house.chat(body).await.events();
    let mut sizes = Vec::new();
    for event in events.iter().filter(|e| *e != "[DONE]") {
        let event: Value = serde_json::from_str(event).unwrap();
        assert_eq!(event["service_tier"], "default");
        let text = event["choices"][0]["delta"]["content"].as_str().unwrap_or("");
        sizes.push(text.len() + event["obfuscation"].as_str().unwrap().len());
    }
    assert!(sizes.len() > 3 && sizes.iter().all(|size| *size == 32), "{sizes:?}");
    let plain = house.chat(json!({"stream": true})).await.body;
    assert!(!plain.contains("obfuscation") && !plain.contains("service_tier"));
}

#[tokio::test]
async fn effort_decides_whether_it_thinks() {
    let house = start(says("Hi")).await;
    for (body, thinks) in [
        (json!({}), true),
        (json!({"reasoning_effort": "none"}), false),
        (json!({"reasoning_effort": "low"}), true),
        (json!({"reasoning_effort": "none", "enable_thinking": true}), true),
    ] {
        assert_eq!(house.chat(body.clone()).await.status, 200);
        let prompt = house.engine.requests().pop().unwrap().prompt;
        let prompt = crate::harness::text_model().tokenizer().decode(&prompt, false);
        assert_eq!(!prompt.contains("(no thinking)"), thinks, "{body}");
    }
    let reply = house.chat(json!({"reasoning_effort": "much"})).await;
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("reasoning_effort")));
}

#[tokio::test]
async fn what_is_not_here_is_refused_by_name() {
    let house = start(says("Hi")).await;
    for (body, param) in [
        (json!({"audio": {"voice": "alloy", "format": "wav"}}), "audio"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"web_search_options": {}}), "web_search_options"),
        (json!({"prediction": {"type": "tokens", "content": "x"}}), "prediction.type"),
        (json!({"prediction": {"type": "content", "content": []}}), "prediction.content"),
        (
            json!({"prediction": {"type": "content", "content": [{"type": "image_url"}]}}),
            "prediction.content[0].type",
        ),
        (json!({"metadata": {"a": 1}}), "metadata"),
    ] {
        let reply = house.chat(body.clone()).await;
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{body}");
    }
    for content in [json!("Hi"), json!([{"type": "text", "text": "Hi"}])] {
        let body = json!({"prediction": {"type": "content", "content": content}});
        assert_eq!(house.chat(body).await.status, 200);
        let request = house.engine.requests().pop().unwrap();
        assert_eq!(*request.prediction, [72, 105], "the bytes are the tokens");
    }
}
