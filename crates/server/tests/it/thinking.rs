//! Thinking: told apart in every dialect, whole and streamed, counted and billed as its own class, kept within its budget.

use mintage_ledger::TokenUsage;
use mintage_model::{Script, TokenId};
use serde_json::{Value, json};

use crate::harness::{
    END, House, MODEL, Reply, TEMPLATE, VOCAB, price, start_speaking, text_model_with,
};

const BEGIN: TokenId = VOCAB;
const STOP: TokenId = VOCAB + 1;

/// Tokens of a text in which `<` and `>` are the markers of thinking.
fn tokens(text: &str) -> Vec<TokenId> {
    let token = |byte: u8| match byte {
        b'<' => BEGIN,
        b'>' => STOP,
        byte => byte.into(),
    };
    text.bytes().map(token).chain([END]).collect()
}

/// A house whose model says this; `opened`: its template begins to think.
async fn thinks(said: &str, opened: bool) -> House {
    let script = Script { tokens: tokens(said), ..Script::default() };
    let template = if opened {
        format!("{TEMPLATE}{{% if enable_thinking is not false %}}<think>\n{{% endif %}}")
    } else {
        TEMPLATE.to_owned()
    };
    let text = text_model_with(&template, &[("<think>", false), ("</think>", false)]);
    start_speaking(text, move |_| Ok(script.clone())).await
}

/// Reasoning, content and sampled tokens of thinking, as an OpenAI client has them.
fn whole(reply: &Reply) -> (String, String, u64) {
    let reply = reply.json();
    let message = &reply["choices"][0]["message"];
    let text = |name: &str| message[name].as_str().unwrap_or("").to_owned();
    let details = &reply["usage"]["completion_tokens_details"]["reasoning_tokens"];
    (text("reasoning_content"), text("content"), details.as_u64().unwrap_or(0))
}

fn joined(reply: &Reply) -> (String, String, u64) {
    let mut out = (String::new(), String::new(), 0);
    for event in reply.events().iter().filter(|event| *event != "[DONE]") {
        let event: Value = serde_json::from_str(event).unwrap();
        let delta = &event["choices"][0]["delta"];
        // The answer begins when the thinking is over.
        assert!(delta["reasoning_content"].is_null() || out.1.is_empty(), "{event}");
        out.0 += delta["reasoning_content"].as_str().unwrap_or("");
        out.1 += delta["content"].as_str().unwrap_or("");
        let details = &event["usage"]["completion_tokens_details"]["reasoning_tokens"];
        out.2 = details.as_u64().unwrap_or(out.2);
    }
    out
}

#[tokio::test]
async fn thinking_is_told_apart_and_billed_as_its_own_class() {
    for (said, opened, reasoning, content, count) in [
        ("<\nhm\n\nü\n>\n\nYes.\n", false, "hm\n\nü", "Yes.\n", 10),
        ("hm\n>\n\nYes.", true, "hm", "Yes.", 4),
        ("<>Yes.", false, "", "Yes.", 2),
        ("Yes.", false, "", "Yes.", 0),
        // A marker later on begins nothing; thinking that never ends has no answer.
        ("Yes. <x>", false, "", "Yes. <think>x</think>", 0),
        ("<hm", false, "hm", "", 4),
    ] {
        let house = thinks(said, opened).await;
        let reply = house.chat(json!({})).await;
        let expected = (reasoning.to_owned(), content.to_owned(), count);
        assert_eq!(whole(&reply), expected, "{said:?}: {}", reply.body);
        let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
        let reply = house.chat(streamed).await;
        assert_eq!(joined(&reply), expected, "{said:?}: {}", reply.body);
        let sampled = tokens(said).len() as u64;
        for record in house.settled(2).await.values() {
            let usage = TokenUsage { thinking: count, output: sampled - count, ..record.usage };
            assert_eq!(record.usage, usage, "{said:?}");
            assert_eq!(record.amount, price(&usage), "{said:?}");
        }
    }
}

#[tokio::test]
async fn who_is_told_not_to_think_does_not() {
    let house = thinks("Yes.", true).await;
    let reply = house.chat(json!({"enable_thinking": false})).await;
    assert_eq!(whole(&reply), (String::new(), "Yes.".to_owned(), 0), "{}", reply.body);
}

#[tokio::test]
async fn stop_strings_and_log_probabilities_know_the_difference() {
    let house = thinks("<a.b>\n\nc.d", false).await;
    let reply = house.chat(json!({"stop": ".", "logprobs": true})).await;
    assert_eq!(whole(&reply), ("a.b".to_owned(), "c".to_owned(), 5), "{}", reply.body);
    // They are of the answer's text.
    let reply = reply.json();
    let entries = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let tokens: Vec<&Value> = entries.iter().map(|entry| &entry["token"]).collect();
    assert_eq!(tokens, ["c"]);
}

#[tokio::test]
async fn every_dialect_tells_it() {
    let house = thinks("<hm>\n\nYes.", false).await;
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let anthropic = json!({"model": MODEL, "max_tokens": 50, "messages": messages,
        "thinking": {"type": "enabled", "budget_tokens": 20}});
    let headers = [("anthropic-version", "2023-06-01")];
    let reply = house.speak("/v1/messages", &headers, &anthropic).await.json();
    assert_eq!(reply["content"][0]["thinking"], "hm", "{reply}");
    assert_eq!(reply["content"][1]["text"], "Yes.", "{reply}");
    assert_eq!(reply["usage"]["output_tokens_details"]["thinking_tokens"], 4, "{reply}");
    let path = "/api/v1/services/aigc/text-generation/generation";
    let native = json!({"model": MODEL, "input": {"messages": messages},
        "parameters": {"enable_thinking": true}});
    let reply = house.speak(path, &[], &native).await.json();
    let message = &reply["output"]["choices"][0]["message"];
    assert_eq!(
        (&message["reasoning_content"], &message["content"]),
        (&json!("hm"), &json!("Yes.")),
        "{reply}"
    );
    assert_eq!(reply["usage"]["output_tokens_details"]["reasoning_tokens"], 4, "{reply}");
    let ollama = json!({"model": MODEL, "messages": messages, "stream": false, "think": true});
    let reply = house.speak("/api/chat", &[], &ollama).await.json();
    let message = &reply["message"];
    assert_eq!((&message["thinking"], &message["content"]), (&json!("hm"), &json!("Yes.")));
    let usages: Vec<TokenUsage> = house.settled(3).await.values().map(|r| r.usage).collect();
    assert!(usages.iter().all(|u| (u.thinking, u.output) == (4, 7)), "{usages:?}");
}

/// Follows the grammar of the last request with these tokens, and says what was allowed of `wanted` behind them.
fn allowed(house: &House, said: &str, wanted: &str) -> String {
    let request = house.engine.requests().pop().unwrap();
    let Some(grammar) = request.grammar else { return "anything".to_owned() };
    let mut state = grammar.start().unwrap();
    for token in &tokens(said)[..said.len()] {
        assert_ne!(state.valid_prefix(&[*token]), 0, "{said:?} {token}");
        state.accept(*token).unwrap();
    }
    let mut allowed = String::new();
    for c in wanted.chars() {
        let token = tokens(&c.to_string())[0];
        let mask = state.mask().unwrap().allows(token);
        assert_eq!(state.valid_prefix(&[token]) == 1, mask, "{said:?} {c}");
        allowed.extend(mask.then_some(c));
    }
    allowed
}

#[tokio::test]
async fn budgets_and_forms_of_answers_are_kept() {
    let house = thinks("<hm>yes", false).await;
    let opened = thinks("hm>yes", true).await;
    let form = json!({"guided_choice": ["yes", "no"]});
    let budget = json!({"thinking_budget": 4});
    let both = json!({"guided_choice": ["yes", "no"], "thinking_budget": 4});
    let off = json!({"guided_choice": ["yes", "no"], "enable_thinking": false});
    for (house, body, said, expected) in [
        (&house, &json!({}), "", "anything"),
        // Free, but that its end is the last of four.
        (&house, &budget, "", "<>xyn"),
        (&house, &budget, "<h", "<>xyn"),
        (&house, &budget, "<hm", ">"),
        (&house, &budget, "<hm>", "<>xyn"),
        (&house, &budget, "xxxxx", "<>xyn"),
        (&opened, &budget, "hm", "<>xyn"),
        (&opened, &budget, "hmm", ">"),
        // The answer has its form, not what comes before it.
        (&house, &form, "", "<yn"),
        (&house, &form, "<x", "<>xyn"),
        (&house, &form, "<x>", "yn"),
        (&house, &both, "<hm", ">"),
        (&house, &both, "<hm>", "yn"),
        (&opened, &form, "", "<>xyn"),
        (&house, &off, "", "yn"),
    ] {
        let reply = house.chat(body.clone()).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert_eq!(allowed(house, said, "<>xyn"), expected, "{body} {said:?}");
    }
    // With a form an answer has to follow; without one it may end where it is.
    house.chat(form).await;
    let grammar = house.engine.requests().pop().unwrap().grammar.unwrap();
    let mut state = grammar.start().unwrap();
    state.accept(BEGIN).unwrap();
    assert!(!state.mask().unwrap().allows(END) && state.accept(END).is_err());
}
