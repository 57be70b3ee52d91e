//! Every numeric field of OpenAI's document, and of our extensions, against values that no such field should take:
//! each is refused with a 400 that names the field, and nothing reaches the engine.

use serde_json::{Value, json};

use crate::harness::{MODEL, says, start};

/// Path of the request, name, least and most value, whether it is an integer. From OpenAI's document (the table is
/// compared with it in `openapi.rs` where that is at hand), then our extensions.
pub(crate) const FIELDS: &[(&str, &str, f64, f64, bool)] = &[
    ("chat", "frequency_penalty", -2.0, 2.0, false),
    ("chat", "presence_penalty", -2.0, 2.0, false),
    ("chat", "temperature", 0.0, 2.0, false),
    ("chat", "top_p", 0.0, 1.0, false),
    ("chat", "top_logprobs", 0.0, 20.0, true),
    ("chat", "max_completion_tokens", 1.0, 4294967295.0, true),
    ("chat", "max_tokens", 1.0, 4294967295.0, true),
    ("chat", "n", 1.0, 16.0, true),
    ("chat", "seed", -9223372036854775808.0, 9223372036854775807.0, true),
    ("completions", "best_of", 0.0, 20.0, true),
    ("completions", "frequency_penalty", -2.0, 2.0, false),
    ("completions", "logprobs", 0.0, 5.0, true),
    ("completions", "max_tokens", 0.0, 4294967295.0, true),
    ("completions", "n", 1.0, 16.0, true),
    ("completions", "presence_penalty", -2.0, 2.0, false),
    ("completions", "seed", -9223372036854775808.0, 9223372036854775807.0, true),
    ("completions", "temperature", 0.0, 2.0, false),
    ("completions", "top_p", 0.0, 1.0, false),
    ("chat", "top_k", 0.0, 4294967295.0, true),
    ("chat", "min_p", 0.0, 1.0, false),
    ("chat", "typical_p", 0.0, 1.0, false),
    ("chat", "repetition_penalty", 0.0625, 16.0, false),
];

fn body(kind: &str, field: &str, value: &str) -> String {
    let rest = match kind {
        "chat" => r#""messages":[{"role":"user","content":"x"}],"logprobs":true"#,
        _ => r#""prompt":"x""#,
    };
    format!(r#"{{"model":"{MODEL}",{rest},"{field}":{value}}}"#)
}

#[tokio::test]
async fn impossible_numbers_are_refused() {
    let house = start(says("x")).await;
    for (kind, field, least, most, integer) in FIELDS {
        let path = if *kind == "chat" { "/v1/chat/completions" } else { "/v1/completions" };
        let mut bad: Vec<String> = [
            "9223372036854775808",
            "18446744073709551615",
            "18446744073709551616",
            "-9223372036854775809",
            "1e300",
            "-1e300",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e999",
            "\"1\"",
            "\"NaN\"",
            "true",
            "[1]",
            "{}",
            "0x10",
        ]
        .map(str::to_owned)
        .into();
        if *least > -1e18 {
            bad.push(format!("{}", least - 1.0));
            bad.push("-9223372036854775808".to_owned());
        }
        if *most < 1e18 {
            bad.push(format!("{}", most + 1.0));
        }
        if *integer {
            bad.extend(["1.5", "1.0", "1e1"].map(str::to_owned));
        }
        for value in bad {
            let reply = house.post_text(path, &body(kind, field, &value)).await;
            assert_eq!(reply.status, 400, "{kind} {field}={value}: {}", reply.body);
            let error = reply.json();
            let error = &error["error"];
            assert_eq!(error["type"], "invalid_request_error");
            // Where it is JSON at all, the field is named.
            if error["code"] != "invalid_json" {
                assert_eq!(error["param"], *field, "{kind} {field}={value}: {error}");
            }
        }
        // The ends of the range are inside, and so is null.
        assert!(house.engine.requests().is_empty());
    }
    for (kind, field, least, most, integer) in FIELDS {
        let path = if *kind == "chat" { "/v1/chat/completions" } else { "/v1/completions" };
        for end in [least, most] {
            if *integer && end.abs() > 1e9 || *field == "best_of" {
                continue;
            }
            let reply = house.post_text(path, &body(kind, field, &end.to_string())).await;
            assert_eq!(reply.status, 200, "{kind} {field}={end}: {}", reply.body);
        }
        let reply = house.post_text(path, &body(kind, field, "null")).await;
        assert_eq!(reply.status, 200, "{kind} {field}=null: {}", reply.body);
    }
}

/// Numbers inside lists and maps.
#[tokio::test]
async fn impossible_token_ids_are_refused() {
    let house = start(says("x")).await;
    for value in ["-1", "259", "4294967296", "9223372036854775808", "1.5", "\"1\"", "null", "[[1]]"]
    {
        for (field, given) in [
            ("stop_token_ids", format!("[{value}]")),
            ("prompt", format!("[1,{value}]")),
            ("logit_bias", format!("{{\"{}\":1}}", value.trim_matches('"'))),
        ] {
            if field == "logit_bias" && value == "\"1\"" {
                continue;
            }
            let prompt = if field == "prompt" { "" } else { r#""prompt":"x","# };
            let text = format!(r#"{{"model":"{MODEL}",{prompt}"{field}":{given}}}"#);
            let reply = house.post_text("/v1/completions", &text).await;
            assert_eq!(reply.status, 400, "{text}: {}", reply.body);
            let param = reply.json()["error"]["param"].as_str().unwrap_or("").to_owned();
            assert!(param.starts_with(field), "{text}: {}", reply.body);
        }
    }
    let bias: Value =
        (0..1025).map(|i| (i.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into();
    assert_eq!(house.complete(json!({"prompt": "x", "logit_bias": bias})).await.status, 400);
    assert!(house.engine.requests().is_empty());
}
