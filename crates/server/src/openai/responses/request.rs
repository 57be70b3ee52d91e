//! Parse, don't validate: the bytes of `POST /v1/responses` become a [`ResponseRequest`] or a refusal.
//!
//! What a context of earlier responses and of references adds is not known here: [`ResponseRequest::with`] takes it.
//! Beyond OpenAI's fields stand those that the other endpoints have: `top_k`, `min_p`, `repetition_penalty`,
//! `frequency_penalty`, `presence_penalty`, `seed`, `enable_thinking`, `thinking_budget`.

use serde_json::{Map, Value, json};

use crate::auth::now_unix;
use crate::chat::{self, ChatRequest, Format, Tool, ToolChoice};
use crate::error::ApiError;
use crate::fields::{Fields, Null, kind, missing, shortened, unsupported, wrong_type, wrong_value};
use crate::job::find_model;
use crate::openai::batches::metadata;
use crate::openai::chat_request::{take_model, take_thinking};
use crate::openai::options::{reasoning_of, take_effort};
use crate::openai::responses::items::{Given, Item, messages, take_input};
use crate::openai::responses::wire::{ReasoningBody, ResponseBody, Status};
use crate::options::Options;
use crate::served::{ModelSet, ServedModel};

const MAX_TOOLS: usize = 128;
const MAX_TOP_LOGPROBS: i64 = 20;
/// What may be included. Most of it belongs to tools that are not here, so there is nothing of it to leave out.
const INCLUDES: &[&str] = &[
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
];
const LOGPROBS: &str = "message.output_text.logprobs";

/// A response that can be prepared once its context is known.
#[derive(Debug)]
pub(super) struct ResponseRequest {
    /// Without messages.
    chat: ChatRequest,
    pub(super) given: Vec<Given>,
    pub(super) previous: Option<String>,
    /// Said by the client; else it is kept where that is possible.
    pub(super) store: Option<bool>,
    /// What does not fit is left out, oldest first.
    truncates: bool,
    pub(super) obfuscates: bool,
    pub(super) stream: bool,
    pub(super) background: bool,
    /// What the answer tells of the request.
    pub(super) shown: ResponseBody,
}

impl ResponseRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut shown = empty(take_model(&mut fields)?);
        let mut chat = ChatRequest::new(shown.model.clone(), Vec::new());
        let given = take_input(&mut fields)?;
        shown.instructions = fields.string("instructions", Null::Absent)?;
        take_tools(&mut fields, &mut chat, &mut shown)?;
        take_text(&mut fields, &mut chat, &mut shown)?;
        take_reasoning(&mut fields, &mut chat, &mut shown)?;
        take_logprobs(&mut fields, &mut chat, &mut shown)?;
        chat.max_tokens = fields.count("max_output_tokens", 1)?;
        chat.max_tokens_field = "max_output_tokens";
        shown.max_output_tokens = chat.max_tokens;
        shown.max_tool_calls = fields.count("max_tool_calls", 1)?;
        chat.options = take_options(&mut fields)?;
        shown.metadata = metadata(&mut fields)?.unwrap_or_default();
        shown.user = fields.string("user", Null::Absent)?;
        shown.safety_identifier = fields.string("safety_identifier", Null::Absent)?;
        shown.prompt_cache_key = fields.string("prompt_cache_key", Null::Absent)?;
        for field in ["prompt_cache_retention", "service_tier"] {
            fields.string(field, Null::Absent)?;
        }
        let truncates = take_truncation(&mut fields)?;
        if truncates {
            "auto".clone_into(&mut shown.truncation);
        }
        let store = fields.bool("store", Null::Absent)?;
        let previous = fields.string("previous_response_id", Null::Absent)?;
        shown.previous_response_id.clone_from(&previous);
        let background = take_background(&mut fields, store)?;
        shown.background = background;
        let stream = fields.bool("stream", Null::Absent)?.unwrap_or(false);
        let obfuscates = take_stream_options(&mut fields, stream)?;
        refuse_unsupported(&mut fields)?;
        fields.finish()?;
        // A background response is read by the server itself, whoever else may look on.
        chat.stream = stream && !background;
        Ok(Self { chat, given, previous, store, truncates, obfuscates, stream, background, shown })
    }

    /// The whole conversation, which fits its model if it may be cut.
    pub(super) fn with(self, models: &ModelSet, items: &[Item]) -> Result<ChatRequest, ApiError> {
        let mut request = self.chat;
        let instructions = self.shown.instructions.as_deref();
        request.messages = messages(instructions, items)?;
        if self.truncates {
            let model = find_model(models, &request.model)?;
            cut(&model, &mut request, usize::from(instructions.is_some()))?;
        }
        Ok(request)
    }
}

/// A response to a request that says nothing.
fn empty(model: String) -> ResponseBody {
    ResponseBody {
        id: String::new(),
        object: "response".to_owned(),
        created_at: now_unix(),
        status: Status::InProgress,
        completed_at: None,
        background: false,
        error: None,
        incomplete_details: None,
        instructions: None,
        max_output_tokens: None,
        max_tool_calls: None,
        metadata: Map::new(),
        model,
        output: Vec::new(),
        parallel_tool_calls: true,
        previous_response_id: None,
        prompt_cache_key: None,
        reasoning: ReasoningBody::default(),
        safety_identifier: None,
        service_tier: "default".to_owned(),
        store: false,
        temperature: 1.0,
        text: json!({"format": {"type": "text"}}),
        tool_choice: "auto".into(),
        tools: Vec::new(),
        top_logprobs: 0,
        top_p: 1.0,
        truncation: "disabled".to_owned(),
        usage: None,
        user: None,
    }
}

fn take_tools(
    fields: &mut Fields,
    chat: &mut ChatRequest,
    shown: &mut ResponseBody,
) -> Result<(), ApiError> {
    let values = fields.array("tools", Null::Absent)?.unwrap_or_default();
    if values.len() > MAX_TOOLS {
        let message = format!("`tools` holds at most {MAX_TOOLS} tools, not {}.", values.len());
        return Err(ApiError::field("tools", "invalid_value", message));
    }
    for (i, value) in values.into_iter().enumerate() {
        let (tool, as_shown) = tool(value, &format!("tools[{i}]"))?;
        chat.tools.push(tool);
        shown.tools.push(as_shown);
    }
    let parallel = fields.bool("parallel_tool_calls", Null::Absent)?.unwrap_or(true);
    (chat.parallel_tool_calls, shown.parallel_tool_calls) = (parallel, parallel);
    if let Some(value) = fields.take("tool_choice", Null::Absent) {
        shown.tool_choice = value.clone();
        take_choice(value, chat)?;
    }
    Ok(())
}

/// A function, which stands flat here, and what is shown of it.
fn tool(value: Value, path: &str) -> Result<(Tool, Value), ApiError> {
    let mut tool = Fields::object(value, path)?;
    match tool.string("type", Null::Refused)?.as_deref() {
        Some("function") => {}
        Some(kind) => {
            let what = format!(
                "tools of type `{}` do not run here; only `function` is supported",
                shortened(kind)
            );
            return Err(unsupported(&format!("{path}.type"), &what));
        }
        None => return Err(missing(&format!("{path}.type"))),
    }
    let name = tool.string("name", Null::Refused)?;
    let name = name.ok_or_else(|| missing(&format!("{path}.name")))?;
    let description = tool.string("description", Null::Absent)?;
    let parameters = tool.take("parameters", Null::Absent);
    if let Some(other) = parameters.as_ref().filter(|p| !p.is_object()) {
        return Err(wrong_type(&format!("{path}.parameters"), "an object", other));
    }
    let strict = tool.bool("strict", Null::Absent)?;
    // Hints of other features: the tool works without them.
    tool.ignored_object("output_schema")?;
    tool.array("allowed_callers", Null::Absent)?;
    if tool.bool("defer_loading", Null::Absent)? == Some(true) {
        let name = format!("{path}.defer_loading");
        return Err(unsupported(&name, "tools are shown to the model from the start"));
    }
    tool.finish()?;
    let mut function = Map::new();
    function.insert("name".into(), name.as_str().into());
    if let Some(description) = &description {
        function.insert("description".into(), description.as_str().into());
    }
    if let Some(parameters) = &parameters {
        function.insert("parameters".into(), parameters.clone());
    }
    let shown = json!({
        "type": "function", "name": name, "description": description,
        "parameters": parameters, "strict": strict.unwrap_or(false),
    });
    let json = json!({"type": "function", "function": function});
    Ok((Tool { name, json, strict }, shown))
}

/// `auto`, `none`, `required`, a function, or some of the tools.
fn take_choice(value: Value, chat: &mut ChatRequest) -> Result<(), ApiError> {
    let object = match value {
        Value::String(choice) => {
            chat.tool_choice = match choice.as_str() {
                "auto" => ToolChoice::Auto,
                "none" => ToolChoice::None,
                "required" => ToolChoice::Required,
                _ => {
                    let expected = "`auto`, `none`, `required` or an object";
                    return Err(wrong_value("tool_choice", expected, &Value::String(choice)));
                }
            };
            return Ok(());
        }
        object @ Value::Object(_) => object,
        other => return Err(wrong_type("tool_choice", "a string or an object", &other)),
    };
    let mut choice = Fields::object(object, "tool_choice")?;
    let name = |fields: &mut Fields, path: &str| -> Result<String, ApiError> {
        let name = fields.string("name", Null::Refused)?;
        let name = name.ok_or_else(|| missing(&format!("{path}.name")))?;
        if chat.tools.iter().any(|tool| tool.name == name) {
            return Ok(name);
        }
        let message = format!("`{path}.name`: there is no tool `{}`.", shortened(&name));
        Err(ApiError::field(format!("{path}.name"), "invalid_value", message))
    };
    match choice.string("type", Null::Refused)?.as_deref() {
        Some("function") => {
            chat.tool_choice = ToolChoice::Named(name(&mut choice, "tool_choice")?);
        }
        Some("allowed_tools") => {
            let mode = choice.required("mode")?;
            chat.tool_choice = match mode.as_str() {
                Some("auto") => ToolChoice::Auto,
                Some("required") => ToolChoice::Required,
                _ => {
                    return Err(wrong_value("tool_choice.mode", "`auto` or `required`", &mode));
                }
            };
            let mut allowed = Vec::new();
            let tools = choice.array("tools", Null::Refused)?;
            let tools = tools.ok_or_else(|| missing("tool_choice.tools"))?;
            for (i, value) in tools.into_iter().enumerate() {
                let path = format!("tool_choice.tools[{i}]");
                let mut tool = Fields::object(value, &path)?;
                if tool.string("type", Null::Refused)?.as_deref() != Some("function") {
                    return Err(unsupported(&format!("{path}.type"), "it must be `function`"));
                }
                allowed.push(name(&mut tool, &path)?);
                tool.finish()?;
            }
            chat.tools.retain(|tool| allowed.contains(&tool.name));
        }
        Some(_) => return Err(unsupported("tool_choice.type", "only functions can be chosen")),
        None => return Err(missing("tool_choice.type")),
    }
    choice.finish()
}

/// What the answer must look like.
fn take_text(
    fields: &mut Fields,
    chat: &mut ChatRequest,
    shown: &mut ResponseBody,
) -> Result<(), ApiError> {
    let Some(value) = fields.take("text", Null::Absent) else { return Ok(()) };
    let mut text = Fields::object(value, "text")?;
    if let Some(value) = text.take("format", Null::Absent) {
        shown.text["format"] = value.clone();
        let mut format = Fields::object(value, "text.format")?;
        let kind = format.required("type")?;
        chat.format = match kind.as_str() {
            Some("text") => Format::Text,
            Some("json_object") => Format::JsonObject,
            Some("json_schema") => {
                let name = format.string("name", Null::Refused)?;
                name.ok_or_else(|| missing("text.format.name"))?;
                format.string("description", Null::Absent)?;
                format.bool("strict", Null::Absent)?;
                "text.format.schema".clone_into(&mut chat.format_field);
                Format::JsonSchema(format.required("schema")?)
            }
            _ => {
                let expected = "`text`, `json_object` or `json_schema`";
                return Err(wrong_value("text.format.type", expected, &kind));
            }
        };
        format.finish()?;
    }
    if let Some(verbosity) = text.string("verbosity", Null::Absent)? {
        shown.text["verbosity"] = checked(verbosity, "text.verbosity", &["low", "medium", "high"])?;
    }
    text.finish()
}

fn checked(given: String, name: &str, choices: &[&str]) -> Result<Value, ApiError> {
    let given = Value::String(given);
    if choices.iter().any(|choice| given == *choice) {
        return Ok(given);
    }
    Err(wrong_value(name, &format!("one of {}", choices.join(", ")), &given))
}

/// How much it thinks. Thoughts are told as they are, so nobody makes summaries.
fn take_reasoning(
    fields: &mut Fields,
    chat: &mut ChatRequest,
    shown: &mut ResponseBody,
) -> Result<(), ApiError> {
    if let Some(value) = fields.take("reasoning", Null::Absent) {
        let mut reasoning = Fields::object(value, "reasoning")?;
        if let Some(effort) = take_effort(&mut reasoning, "effort")? {
            chat.reasoning = reasoning_of(effort);
            shown.reasoning.effort = Some(effort.to_owned());
        }
        for field in ["summary", "generate_summary", "context", "mode"] {
            let given = reasoning.string(field, Null::Absent)?;
            if field == "summary" {
                shown.reasoning.summary = given;
            }
        }
        reasoning.finish()?;
    }
    if let Some(enabled) = take_thinking(fields)? {
        chat.reasoning.enabled = Some(enabled);
    }
    if let Some(budget) = fields.count("thinking_budget", 1)? {
        chat.reasoning.budget_tokens = Some(budget);
    }
    Ok(())
}

fn take_logprobs(
    fields: &mut Fields,
    chat: &mut ChatRequest,
    shown: &mut ResponseBody,
) -> Result<(), ApiError> {
    let mut is_wanted = false;
    for (i, value) in fields.array("include", Null::Absent)?.unwrap_or_default().iter().enumerate()
    {
        let name = format!("include[{i}]");
        let text = value.as_str().ok_or_else(|| wrong_type(&name, "a string", value))?;
        checked(text.to_owned(), &name, INCLUDES)?;
        is_wanted |= text == LOGPROBS;
    }
    let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    let top = top.and_then(|top| u8::try_from(top).ok());
    shown.top_logprobs = top.unwrap_or(0);
    chat.logprobs = (is_wanted || shown.top_logprobs > 0).then_some(shown.top_logprobs);
    Ok(())
}

fn take_options(fields: &mut Fields) -> Result<Options, ApiError> {
    Ok(Options {
        temperature: fields.number("temperature", 0.0..=2.0)?,
        top_p: fields.number("top_p", 0.0..=1.0)?,
        top_k: fields.count("top_k", 0)?,
        min_p: fields.number("min_p", 0.0..=1.0)?,
        repetition_penalty: fields.number("repetition_penalty", 0.0625..=16.0)?,
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
        seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
        ..Options::default()
    })
}

fn take_truncation(fields: &mut Fields) -> Result<bool, ApiError> {
    let Some(given) = fields.string("truncation", Null::Absent)? else { return Ok(false) };
    Ok(checked(given, "truncation", &["auto", "disabled"])? == "auto")
}

fn take_background(fields: &mut Fields, store: Option<bool>) -> Result<bool, ApiError> {
    let background = fields.bool("background", Null::Absent)?.unwrap_or(false);
    if background && store == Some(false) {
        let message = "`background` needs `store`: who asks for the answer finds it there.";
        return Err(ApiError::field("background", "invalid_value", message));
    }
    Ok(background)
}

/// Whether deltas are padded.
fn take_stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(value) = fields.take("stream_options", Null::Absent) else { return Ok(false) };
    let mut options = Fields::object(value, "stream_options")?;
    if !stream {
        let message = "`stream_options` is only allowed with `stream: true`.";
        return Err(ApiError::field("stream_options", "invalid_value", message));
    }
    let obfuscates = options.bool("include_obfuscation", Null::Absent)?.unwrap_or(false);
    options.finish()?;
    Ok(obfuscates)
}

/// What OpenAI's API can and this server cannot: refused by name.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    for field in
        ["conversation", "prompt", "context_management", "moderation", "prompt_cache_options"]
    {
        if let Some(value) = fields.take(field, Null::Absent) {
            let what = format!("not supported (given: {})", kind(&value));
            return Err(unsupported(field, &what));
        }
    }
    Ok(())
}

/// Leaves out the oldest messages behind the first `kept` until an answer fits, as few as possible; the last one stays.
fn cut(model: &ServedModel, request: &mut ChatRequest, kept: usize) -> Result<(), ApiError> {
    let context = model.engine.info().context_length as usize;
    let room = context.saturating_sub(request.max_tokens.unwrap_or(1) as usize);
    let all = std::mem::take(&mut request.messages);
    let without = |count: usize| -> Vec<_> {
        let (first, rest) = all.split_at(kept.min(all.len()));
        // A result without its call says nothing.
        let rest = rest.iter().skip(count).skip_while(|m| count > 0 && m.call_id.is_some());
        first.iter().chain(rest).cloned().collect()
    };
    let mut fits = |count: usize| -> Result<bool, ApiError> {
        request.messages = without(count);
        Ok(chat::tokens(&model.text, request)?.len() <= room)
    };
    // More left out is never longer: the least number that fits, by halves.
    let (mut least, mut most) = (0, all.len().saturating_sub(kept + 1));
    if !fits(0)? {
        while least < most {
            let middle = usize::midpoint(least, most);
            if fits(middle)? {
                most = middle;
            } else {
                least = middle + 1;
            }
        }
    }
    request.messages = without(least);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::check_mutations;

    #[test]
    fn odd_requests_are_refused_in_words() {
        let good = json!({
            "model": "m", "instructions": "be brief", "stream": true, "max_output_tokens": 20,
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "h"}]},
                {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "42"}]},
                {"type": "item_reference", "id": "msg_a_0"}],
            "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": false}],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": true}, "verbosity": "low"},
            "reasoning": {"effort": "low", "summary": "auto"}, "include": [LOGPROBS], "top_logprobs": 2,
            "temperature": 0.5, "top_p": 0.5, "metadata": {"a": "b"}, "truncation": "auto", "store": true,
            "previous_response_id": "resp_a", "stream_options": {"include_obfuscation": true}, "user": "u",
        });
        check_mutations(&good, ResponseRequest::parse);
    }
}
