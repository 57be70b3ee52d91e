//! A chat as data: what every dialect's request becomes.
//!
//! Not here: names on the wire. Whoever makes one has checked types and bounds; [`super::prepare`] checks what depends on
//! the model.

use mintage_model::CallTool;
use serde_json::{Map, Value, json};

use crate::options::Options;

/// A chat that can be rendered and run.
#[derive(Clone, Debug)]
pub(crate) struct ChatRequest {
    /// As the client named it.
    pub(crate) model: String,
    /// At least one.
    pub(crate) messages: Vec<Message>,
    /// What the model may call.
    pub(crate) tools: Vec<Tool>,
    pub(crate) tool_choice: ToolChoice,
    /// Several calls in one answer; else it ends behind the first.
    pub(crate) parallel_tool_calls: bool,
    /// What the answer must look like.
    pub(crate) format: Format,
    /// The name under which that was given, for refusals.
    pub(crate) format_field: String,
    pub(crate) reasoning: Reasoning,
    /// The last message is the assistant's and is to be continued, not answered.
    pub(crate) continues_last: bool,
    /// At least 1; `None`: as many as fit.
    pub(crate) max_tokens: Option<u32>,
    /// The name under which the limit was given, for refusals.
    pub(crate) max_tokens_field: &'static str,
    /// How many alternatives with each token; `None` reports no log-probabilities.
    pub(crate) logprobs: Option<u8>,
    /// The same for the prompt's tokens.
    pub(crate) prompt_logprobs: Option<u8>,
    pub(crate) options: Options,
    /// Text that the answer probably repeats.
    pub(crate) prediction: Option<String>,
    /// The answer is sent as it grows.
    pub(crate) stream: bool,
}

impl ChatRequest {
    /// A chat that asks for nothing but an answer.
    pub(crate) fn new(model: String, messages: Vec<Message>) -> Self {
        Self {
            model,
            messages,
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            format: Format::Text,
            format_field: "response_format".to_owned(),
            reasoning: Reasoning::default(),
            continues_last: false,
            max_tokens: None,
            max_tokens_field: "max_tokens",
            logprobs: None,
            prompt_logprobs: None,
            options: Options::default(),
            prediction: None,
            stream: false,
        }
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    System,
    User,
    Assistant,
    /// The result of a call.
    Tool,
}

/// One message. Text only: whoever parses joins or refuses other parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) text: String,
    /// Of its author, or of the function whose result it is.
    pub(crate) name: Option<String>,
    /// What an assistant thought before it spoke.
    pub(crate) reasoning: Option<String>,
    /// What an assistant called.
    pub(crate) calls: Vec<ToolCall>,
    /// The call whose result it is.
    pub(crate) call_id: Option<String>,
}

impl Message {
    /// A message of text alone.
    pub(crate) fn new(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            text: text.into(),
            name: None,
            reasoning: None,
            calls: Vec::new(),
            call_id: None,
        }
    }

    /// As chat templates know it: `role`, `content`, `name`, `tool_calls` (arguments as an object where they are one, as
    /// templates expect), `tool_call_id`, `reasoning_content`.
    pub(crate) fn for_template(&self) -> Value {
        let role = match self.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        let mut out = Map::new();
        out.insert("role".into(), role.into());
        out.insert("content".into(), self.text.as_str().into());
        if let Some(name) = &self.name {
            out.insert("name".into(), name.as_str().into());
        }
        if !self.calls.is_empty() {
            out.insert(
                "tool_calls".into(),
                self.calls.iter().map(ToolCall::for_template).collect(),
            );
        }
        if let Some(id) = &self.call_id {
            out.insert("tool_call_id".into(), id.as_str().into());
        }
        if let Some(reasoning) = &self.reasoning {
            out.insert("reasoning_content".into(), reasoning.as_str().into());
        }
        Value::Object(out)
    }
}

/// A function with its arguments, called by the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    pub(crate) name: String,
    /// JSON as text, as the model wrote it.
    pub(crate) arguments: String,
}

impl ToolCall {
    fn for_template(&self) -> Value {
        let arguments = match serde_json::from_str::<Value>(&self.arguments) {
            Ok(object @ Value::Object(_)) => object,
            _ => Value::String(self.arguments.clone()),
        };
        json!({
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": arguments},
        })
    }
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// As templates know it: `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub(crate) json: Value,
    /// Whether its arguments must follow its schema; where nothing is said, they do if they can be kept to it.
    pub(crate) strict: Option<bool>,
}

impl Tool {
    pub(crate) fn shows_parameters(&self) -> bool {
        self.json.pointer("/function/parameters").is_some_and(Value::is_object)
    }

    /// What is needed to read calls of it.
    pub(crate) fn for_calls(&self) -> CallTool {
        let parameters = self.json.pointer("/function/parameters").cloned();
        CallTool { name: self.name.clone(), parameters: parameters.unwrap_or_default() }
    }
}

/// Whether the model calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    /// Not at all: the tools are not shown to it.
    None,
    /// As it likes.
    #[default]
    Auto,
    /// At least one of them.
    Required,
    /// This one.
    Named(String),
}

/// What an answer must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// Anything.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema allows.
    JsonSchema(Value),
    /// Text that matches a regular expression.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of a grammar (Lark or GBNF).
    Grammar(String),
}

/// How a model that can think does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reasoning {
    /// Whether it does; `None` leaves it to the model's template.
    pub(crate) enabled: Option<bool>,
    /// Tokens it may think for; then it has to answer.
    pub(crate) budget_tokens: Option<u32>,
}
