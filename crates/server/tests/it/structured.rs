//! Structured output up to the engine: each field becomes the grammar that the engine gets; what cannot be honoured is
//! refused by name before anything is computed; an answer that cannot go on ends with the client's error.

use mintage_model::{EngineFault, GrammarFault, Script, ScriptEnd};
use serde_json::{Value, json};

use crate::harness::{END, House, says, start};

/// The first bytes that the grammar of the last request allows, of some.
fn first_bytes(house: &House) -> String {
    let request = house.engine.requests().pop().unwrap();
    let Some(grammar) = request.grammar else { return "anything".to_owned() };
    let mut state = grammar.start().unwrap();
    let mask = state.mask().unwrap();
    assert!(!mask.allows(END), "an empty answer is allowed");
    "{[\"1tyx ".chars().filter(|&c| mask.allows(c as u32)).collect()
}

#[tokio::test]
async fn the_engine_gets_the_grammar_that_was_asked_for() {
    let house = start(says("x")).await;
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}}});
    let cases = [
        (json!({}), "anything"),
        (json!({"response_format": {"type": "text"}}), "anything"),
        (json!({"response_format": {"type": "json_object"}}), "{"),
        (schema(json!({"type": ["array", "boolean"]})), "[t"),
        (schema(json!({"enum": ["a", 1]})), "\"1"),
        (json!({"guided_json": {"type": "string"}}), "\""),
        (json!({"guided_regex": "[xy]+"}), "yx"),
        (json!({"guided_choice": ["yes", "{"]}), "{y"),
        (json!({"guided_grammar": "root ::= \"x\" | \"[\""}), "[x"),
        (json!({"structured_outputs": {"grammar": "start: \"x\" | \"1\""}}), "1x"),
    ];
    for (body, wanted) in cases {
        let mut prompted = body.clone();
        prompted["prompt"] = "a".into();
        for reply in [house.chat(body.clone()).await, house.complete(prompted).await] {
            assert_eq!(reply.status, 200, "{body}: {}", reply.body);
            assert_eq!(first_bytes(&house), wanted, "{body}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_name() {
    let house = start(says("x")).await;
    let mut out = String::new();
    for body in [
        json!({"guided_json": {"items": {"uniqueItems": true}, "type": "array"}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://h/x"}}}}),
        json!({"guided_json": {"type": "strin"}}),
        json!({"guided_regex": "(a"}),
        json!({"guided_choice": []}),
        json!({"guided_grammar": "root ::= missing"}),
        json!({"guided_grammar": "start: missing"}),
        json!({"guided_regex": "a", "guided_choice": ["a"]}),
        json!({"guided_regex": "x".repeat(300_000)}),
    ] {
        let mut shown = body.to_string();
        shown.truncate(120);
        let reply = house.chat(body).await;
        let error = &reply.json()["error"];
        let (param, code, message) = (&error["param"], &error["code"], &error["message"]);
        out += &format!("{shown}\n  {} {param} {code}: {message}\n", reply.status);
    }
    assert!(house.engine.requests().is_empty());
    insta::assert_snapshot!(out);
}

#[tokio::test]
async fn an_answer_that_cannot_go_on_is_the_clients_error() {
    let end = ScriptEnd::Fault(EngineFault::Grammar(GrammarFault::DeadEnd));
    let house = start(Script { tokens: vec![b'a'.into()], end, ..Script::default() }).await;
    let reply = house.chat(json!({"guided_regex": "ab"})).await;
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (400, Some("grammar_failed"))
    );
}
