//! What the answers of a batch used together, as OpenAI's document has it.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::storage::LineResult;

/// Sums over answers.
#[derive(Debug, Default)]
pub(crate) struct UsageSum {
    input: u64,
    cached: u64,
    output: u64,
    reasoning: u64,
}

#[derive(Deserialize)]
struct Line {
    response: Option<Response>,
}

#[derive(Deserialize)]
struct Response {
    body: Body,
}

#[derive(Deserialize)]
struct Body {
    usage: Option<Usage>,
}

/// Of chats and completions, or of responses.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    #[serde(alias = "input_tokens")]
    prompt_tokens: u64,
    #[serde(alias = "output_tokens")]
    completion_tokens: u64,
    #[serde(alias = "input_tokens_details")]
    prompt_tokens_details: Option<Details>,
    #[serde(alias = "output_tokens_details")]
    completion_tokens_details: Option<Details>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: u64,
    reasoning_tokens: u64,
}

impl UsageSum {
    /// Errors used nothing.
    pub(crate) fn add(&mut self, result: &LineResult) {
        let line = serde_json::from_slice::<Line>(&result.text).ok().filter(|_| !result.is_error);
        let usage = line.and_then(|line| line.response?.body.usage).unwrap_or_default();
        self.input += usage.prompt_tokens;
        self.output += usage.completion_tokens;
        self.cached += usage.prompt_tokens_details.unwrap_or_default().cached_tokens;
        self.reasoning += usage.completion_tokens_details.unwrap_or_default().reasoning_tokens;
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "input_tokens": self.input,
            "input_tokens_details": {"cached_tokens": self.cached},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.input + self.output,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_are_summed() {
        let mut sum = UsageSum::default();
        for (is_error, usage) in [
            (
                false,
                r#"{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}"#,
            ),
            (
                false,
                r#"{"input_tokens":10,"output_tokens":20,"output_tokens_details":{"reasoning_tokens":5}}"#,
            ),
            (true, r#"{"prompt_tokens":100}"#),
        ] {
            let text = format!(
                r#"{{"id":"x","response":{{"status_code":200,"body":{{"usage":{usage}}}}}}}"#
            );
            sum.add(&LineResult { line: 0, is_error, text: text.into_bytes() });
        }
        let text = br#"{"response":null,"error":{}}"#.to_vec();
        sum.add(&LineResult { line: 0, is_error: false, text });
        let json = sum.to_json();
        assert_eq!((&json["input_tokens"], &json["output_tokens"]), (&json!(13), &json!(24)));
        assert_eq!(json["total_tokens"], 37);
        assert_eq!(json["input_tokens_details"]["cached_tokens"], 2);
        assert_eq!(json["output_tokens_details"]["reasoning_tokens"], 5);
    }
}
