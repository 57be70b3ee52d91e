//! A chat or a completion inside becomes the body of OpenAI's request.
//!
//! Invariants: it asks for a stream that tells its usage, always; what a service does not take is refused by the name of
//! the parameter, never left out.

use axum::body::Bytes;
use mintage_model::TokenId;
use serde_json::{Map, Value, json};

use super::config::{Flavour, UpstreamConfig};
use super::{Ask, Kind};
use crate::chat::{ChatRequest, Format, Message, Prompt, Role, ToolCall, ToolChoice};
use crate::error::ApiError;
use crate::fields::unsupported;
use crate::options::Options;
use crate::respond::json_bytes;

/// The most that a token of a message's frame, and the frame of a whole prompt, can come to.
const FRAME_TOKENS: u64 = 64;

/// What a chat asks of a service, and the most tokens that its prompt can have: one a byte, and what a template adds.
pub(crate) fn chat(
    config: &UpstreamConfig,
    request: &ChatRequest,
    max_tokens: Option<u32>,
) -> Result<(Ask, u64), ApiError> {
    refuse_tokens(request.logprobs, request.prompt_logprobs, &request.options)?;
    let mut body = common(config, &request.options, max_tokens)?;
    let messages: Vec<Value> =
        request.messages.iter().map(|message| self::message(config.flavour, message)).collect();
    body.insert("messages".to_owned(), messages.into());
    add_tools(&mut body, request);
    add_format(&mut body, config, &request.format, &request.format_field)?;
    add_thinking(&mut body, config, request)?;
    if request.continues_last {
        add_continued(&mut body, config)?;
    }
    let bytes = |field: &str| body.get(field).map_or(0, |value| value.to_string().len() as u64);
    let frames = FRAME_TOKENS * (request.messages.len() as u64 + request.tools.len() as u64 + 4);
    let prompt = bytes("messages") + bytes("tools") + bytes("response_format") + frames;
    let prompt = prompt.min(config.context_length.into());
    Ok((ask(Kind::Chat, body, &request.options, 1)?, prompt))
}

/// The same for prompts that are continued as they stand.
pub(crate) fn text(
    config: &UpstreamConfig,
    prompts: &[Prompt],
    suffix: Option<&str>,
    options: &Options,
    format: Option<(&Format, &str)>,
    max_tokens: Option<u32>,
) -> Result<(Ask, u64), ApiError> {
    refuse_tokens(None, None, options)?;
    let mut body = common(config, options, max_tokens)?;
    // This route knows the older name only.
    if let Some(max) = body.remove("max_completion_tokens") {
        body.insert("max_tokens".to_owned(), max);
    }
    let value = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => Value::from(text.as_str()),
        Prompt::Tokens(tokens) => Value::from(tokens.as_slice()),
    };
    let all: Vec<Value> = prompts.iter().map(value).collect();
    let is_one_text = matches!(prompts, [Prompt::Text(_)]);
    let prompt = if is_one_text { all.into_iter().next() } else { Some(all.into()) };
    body.insert("prompt".to_owned(), prompt.unwrap_or_default());
    if let Some(suffix) = suffix {
        body.insert("suffix".to_owned(), suffix.into());
    }
    if let Some((format, field)) = format {
        add_format(&mut body, config, format, field)?;
    }
    let tokens = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => text.len() as u64,
        Prompt::Tokens(tokens) => tokens.len() as u64,
    };
    let more = FRAME_TOKENS + suffix.map_or(0, |suffix| suffix.len() as u64);
    let context = u64::from(config.context_length);
    let most = prompts.iter().map(|prompt| (tokens(prompt) + more).min(context)).sum();
    Ok((ask(Kind::Text, body, options, prompts.len())?, most))
}

fn ask(
    kind: Kind,
    body: Map<String, Value>,
    options: &Options,
    prompts: usize,
) -> Result<Ask, ApiError> {
    Ok(Ask {
        kind,
        body: Bytes::from(json_bytes(&body)?),
        choices: u32::try_from(prompts).unwrap_or(u32::MAX).saturating_mul(options.n),
        stops: options.stops.clone(),
    })
}

/// What only an engine can tell.
fn refuse_tokens(
    logprobs: Option<u8>,
    prompt_logprobs: Option<u8>,
    options: &Options,
) -> Result<(), ApiError> {
    let asked = [
        ("logprobs", logprobs.is_some()),
        ("prompt_logprobs", prompt_logprobs.is_some()),
        ("return_token_ids", options.return_token_ids),
    ];
    match asked.into_iter().find(|(_, asked)| *asked) {
        None => Ok(()),
        Some((field, _)) => Err(unsupported(field, "another service answers for this model")),
    }
}

/// What both routes share.
fn common(
    config: &UpstreamConfig,
    options: &Options,
    max_tokens: Option<u32>,
) -> Result<Map<String, Value>, ApiError> {
    let mut body = Map::new();
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    };
    add("model", Some(config.model.as_str().into()));
    add("stream", Some(true.into()));
    add("stream_options", Some(json!({"include_usage": true})));
    let max_field =
        if config.max_completion_tokens { "max_completion_tokens" } else { "max_tokens" };
    add(max_field, max_tokens.map(Value::from));
    add("n", (options.n > 1).then(|| options.n.into()));
    add("stop", (!options.stops.is_empty()).then(|| options.stops.clone().into()));
    add("temperature", options.temperature.map(number));
    add("top_p", options.top_p.map(number));
    add("frequency_penalty", options.frequency_penalty.map(number));
    add("presence_penalty", options.presence_penalty.map(number));
    add("seed", options.seed.map(Value::from));
    let bias = |&(id, bias): &(TokenId, f32)| (id.to_string(), number(bias));
    let biases: Map<String, Value> = options.logit_bias.iter().map(bias).collect();
    add("logit_bias", (!biases.is_empty()).then(|| biases.into()));
    let is_vllm = matches!(config.flavour, Flavour::Vllm | Flavour::Mintage);
    let is_more = config.flavour != Flavour::Openai;
    for (name, value, is_taken) in [
        ("top_k", options.top_k.map(Value::from), is_more),
        ("repetition_penalty", options.repetition_penalty.map(number), is_more),
        ("min_p", options.min_p.map(number), is_vllm),
        ("typical_p", options.typical_p.map(number), config.flavour == Flavour::Mintage),
        ("ignore_eos", options.ignore_eos.then(|| true.into()), is_vllm),
        (
            "stop_token_ids",
            (!options.stop_token_ids.is_empty()).then(|| options.stop_token_ids.clone().into()),
            is_vllm,
        ),
    ] {
        if value.is_some() && !is_taken {
            return Err(unsupported(name, "the service behind this model does not take it"));
        }
        add(name, value);
    }
    Ok(body)
}

/// The shortest decimal that is this number: `0.7`, not what it becomes in twice the bits.
fn number(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn message(flavour: Flavour, message: &Message) -> Value {
    let role = match message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    let only_calls = message.text.is_empty() && !message.calls.is_empty();
    let content = if only_calls { Value::Null } else { message.text.as_str().into() };
    let mut out = json!({"role": role, "content": content});
    let Some(fields) = out.as_object_mut() else { return out };
    if let Some(name) = &message.name {
        fields.insert("name".to_owned(), name.as_str().into());
    }
    if !message.calls.is_empty() {
        let call = |call: &ToolCall| {
            json!({"id": call.id, "type": "function",
                "function": {"name": call.name, "arguments": call.arguments}})
        };
        fields.insert("tool_calls".to_owned(), message.calls.iter().map(call).collect());
    }
    if message.role == Role::Tool {
        let id = message.call_id.as_deref().unwrap_or_default();
        fields.insert("tool_call_id".to_owned(), id.into());
    }
    // OpenAI's own API hides what models think, and takes none of it.
    if let Some(thought) = message.reasoning.as_ref().filter(|_| flavour != Flavour::Openai) {
        fields.insert("reasoning_content".to_owned(), thought.as_str().into());
    }
    out
}

fn add_tools(body: &mut Map<String, Value>, request: &ChatRequest) {
    if request.tools.is_empty() {
        return;
    }
    let tools: Vec<Value> = request.tools.iter().map(|tool| tool.json.clone()).collect();
    body.insert("tools".to_owned(), tools.into());
    let choice = match &request.tool_choice {
        ToolChoice::Auto => None,
        ToolChoice::None => Some("none".into()),
        ToolChoice::Required => Some("required".into()),
        ToolChoice::Named(name) => Some(json!({"type": "function", "function": {"name": name}})),
    };
    if let Some(choice) = choice {
        body.insert("tool_choice".to_owned(), choice);
    }
    if !request.parallel_tool_calls {
        body.insert("parallel_tool_calls".to_owned(), false.into());
    }
}

fn add_format(
    body: &mut Map<String, Value>,
    config: &UpstreamConfig,
    format: &Format,
    field: &str,
) -> Result<(), ApiError> {
    let (name, value) = match format {
        Format::Text => return Ok(()),
        Format::JsonObject => ("response_format", json!({"type": "json_object"})),
        Format::JsonSchema(schema) => (
            "response_format",
            json!({"type": "json_schema",
                "json_schema": {"name": "answer", "strict": true, "schema": schema}}),
        ),
        Format::Regex(text) => ("guided_regex", text.as_str().into()),
        Format::Choice(texts) => ("guided_choice", texts.clone().into()),
        Format::Grammar(text) => ("guided_grammar", text.as_str().into()),
    };
    if name != "response_format" && !matches!(config.flavour, Flavour::Vllm | Flavour::Mintage) {
        return Err(unsupported(field, "the service behind this model does not take it"));
    }
    body.insert(name.to_owned(), value);
    Ok(())
}

fn add_thinking(
    body: &mut Map<String, Value>,
    config: &UpstreamConfig,
    request: &ChatRequest,
) -> Result<(), ApiError> {
    let reasoning = &request.reasoning;
    let refused = |field| Err(unsupported(field, "the service behind this model does not take it"));
    if let Some(enabled) = reasoning.enabled {
        match config.flavour {
            // A model that does not think does as it is told.
            Flavour::Openai if !enabled => {}
            Flavour::Openai => return refused("enable_thinking"),
            Flavour::Dashscope | Flavour::Mintage => {
                body.insert("enable_thinking".to_owned(), enabled.into());
            }
            Flavour::Vllm => {
                let kwargs = json!({"enable_thinking": enabled});
                body.insert("chat_template_kwargs".to_owned(), kwargs);
            }
        }
    }
    if let Some(budget) = reasoning.budget_tokens {
        match config.flavour {
            Flavour::Dashscope | Flavour::Mintage => {
                body.insert("thinking_budget".to_owned(), budget.into());
            }
            Flavour::Openai | Flavour::Vllm => return refused("thinking_budget"),
        }
    }
    Ok(())
}

/// The last message is to be continued.
fn add_continued(body: &mut Map<String, Value>, config: &UpstreamConfig) -> Result<(), ApiError> {
    match config.flavour {
        Flavour::Openai => {
            let what = "the service behind this model does not continue a message of the assistant";
            return Err(unsupported("messages", what));
        }
        Flavour::Vllm => {
            body.insert("continue_final_message".to_owned(), true.into());
            body.insert("add_generation_prompt".to_owned(), false.into());
        }
        Flavour::Dashscope | Flavour::Mintage => {
            let messages = body.get_mut("messages").and_then(Value::as_array_mut);
            let last = messages.and_then(|messages| messages.last_mut()?.as_object_mut());
            if let Some(last) = last {
                last.insert("partial".to_owned(), true.into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Reasoning, Tool};

    fn config(flavour: Flavour) -> UpstreamConfig {
        UpstreamConfig { flavour, ..UpstreamConfig::new("m", "http://x/v1", "theirs", 1000) }
    }

    fn full() -> ChatRequest {
        let call = ToolCall { id: "c".into(), name: "f".into(), arguments: "{}".into() };
        let assistant = Message {
            calls: vec![call],
            reasoning: Some("hm".into()),
            ..Message::new(Role::Assistant, "")
        };
        let result = Message { call_id: Some("c".into()), ..Message::new(Role::Tool, "42") };
        let messages =
            vec![Message::new(Role::System, "s"), Message::new(Role::User, "u"), assistant, result];
        let tool = json!({"type": "function", "function": {"name": "f"}});
        ChatRequest {
            tools: vec![Tool { name: "f".into(), json: tool, strict: Some(true) }],
            tool_choice: ToolChoice::Named("f".into()),
            parallel_tool_calls: false,
            format: Format::JsonSchema(json!({"type": "object"})),
            options: Options {
                n: 2,
                stops: vec!["x".into()],
                temperature: Some(0.7),
                logit_bias: vec![(5, -1.5)],
                seed: Some(-3),
                ..Options::default()
            },
            ..ChatRequest::new("m".into(), messages)
        }
    }

    fn body(config: &UpstreamConfig, request: &ChatRequest) -> Result<Value, String> {
        let (ask, most) = chat(config, request, Some(9)).map_err(|error| error.message)?;
        assert!(most > ask.body.len() as u64 / 2, "a bound on the prompt");
        Ok(serde_json::from_slice(&ask.body).unwrap())
    }

    #[test]
    fn a_chat_is_written_as_openai_has_it() {
        let expected = json!({
            "model": "theirs", "stream": true, "stream_options": {"include_usage": true},
            "max_tokens": 9, "n": 2, "stop": ["x"], "temperature": 0.7, "seed": -3, "logit_bias": {"5": -1.5},
            "messages": [
                {"role": "system", "content": "s"}, {"role": "user", "content": "u"},
                {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                {"role": "tool", "content": "42", "tool_call_id": "c"}],
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": false,
            "response_format": {"type": "json_schema", "json_schema":
                {"name": "answer", "strict": true, "schema": {"type": "object"}}},
        });
        assert_eq!(body(&config(Flavour::Openai), &full()), Ok(expected));
        let newer = UpstreamConfig { max_completion_tokens: true, ..config(Flavour::Openai) };
        let written = body(&newer, &full()).unwrap();
        assert_eq!(
            (&written["max_completion_tokens"], written.get("max_tokens")),
            (&json!(9), None)
        );
    }

    #[test]
    fn what_a_service_does_not_take_is_refused_by_name() {
        use Flavour::{Dashscope, Mintage, Openai, Vllm};
        type Change = fn(&mut ChatRequest);
        let check = |change: Change, field: &str, takers: &[Flavour]| {
            for flavour in [Openai, Dashscope, Vllm, Mintage] {
                let mut request = full();
                change(&mut request);
                let written = body(&config(flavour), &request);
                let is_taken = takers.contains(&flavour);
                assert_eq!(written.is_ok(), is_taken, "{field} {flavour:?}: {written:?}");
                match written {
                    Ok(written) => {
                        assert!(written.to_string().contains(&format!("\"{field}\"")), "{written}")
                    }
                    Err(message) => assert!(message.contains(&format!("`{field}`")), "{message}"),
                }
            }
        };
        check(|r| r.options.top_k = Some(3), "top_k", &[Dashscope, Vllm, Mintage]);
        check(
            |r| r.options.repetition_penalty = Some(1.1),
            "repetition_penalty",
            &[Dashscope, Vllm, Mintage],
        );
        check(|r| r.options.min_p = Some(0.1), "min_p", &[Vllm, Mintage]);
        check(|r| r.options.typical_p = Some(0.9), "typical_p", &[Mintage]);
        check(|r| r.options.ignore_eos = true, "ignore_eos", &[Vllm, Mintage]);
        check(|r| r.options.stop_token_ids = vec![1], "stop_token_ids", &[Vllm, Mintage]);
        check(|r| r.options.return_token_ids = true, "return_token_ids", &[]);
        check(|r| r.logprobs = Some(0), "logprobs", &[]);
        check(|r| r.prompt_logprobs = Some(0), "prompt_logprobs", &[]);
        check(
            |r| r.reasoning = Reasoning { enabled: Some(true), budget_tokens: None },
            "enable_thinking",
            &[Dashscope, Vllm, Mintage],
        );
        check(|r| r.reasoning.budget_tokens = Some(7), "thinking_budget", &[Dashscope, Mintage]);
        check(
            |r| {
                r.format = Format::Regex("a".into());
                r.format_field = "guided_regex".into();
            },
            "guided_regex",
            &[Vllm, Mintage],
        );
    }
}
