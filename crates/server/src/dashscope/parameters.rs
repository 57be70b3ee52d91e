//! `parameters`: how the answer is made and shaped.

use mintage_model::MAX_STOP_TOKEN_IDS;
use serde_json::Value;

use crate::chat::{Format, Reasoning, Tool, ToolChoice};
use crate::error::ApiError;
use crate::fields::{
    Fields, Null, integer, missing, shortened, stop_text, unsupported, wrong_type,
};
use crate::options::Options;

/// DashScope's own limit.
const MAX_CHOICES: i64 = 4;
const MAX_TOOLS: usize = 128;
const MAX_STOPS: usize = 16;

/// How an answer is shaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResultFormat {
    Text,
    Message,
}

/// Everything under `parameters`.
#[derive(Clone, Debug)]
pub(super) struct Parameters {
    pub(super) result_format: ResultFormat,
    /// Events hold what is new, not all so far.
    pub(super) incremental_output: bool,
    pub(super) max_tokens: Option<u32>,
    pub(super) options: Options,
    pub(super) reasoning: Reasoning,
    pub(super) tools: Vec<Tool>,
    pub(super) tool_choice: ToolChoice,
    pub(super) parallel_tool_calls: bool,
    pub(super) format: Format,
}

impl Parameters {
    /// `usual` is the form of an answer where none is asked for.
    pub(super) fn take(
        mut fields: Fields,
        usual: ResultFormat,
        max_choices: usize,
    ) -> Result<Self, ApiError> {
        refuse_unsupported(&mut fields)?;
        let reasoning = Reasoning {
            enabled: fields.bool("enable_thinking", Null::Absent)?,
            budget_tokens: fields.count("thinking_budget", 1)?,
        };
        let tools = take_tools(&mut fields)?;
        let tool_choice = take_choice(&mut fields, &tools)?;
        let needed = match (tools.is_empty(), reasoning.enabled) {
            (false, _) => Some("`tools`"),
            (true, Some(true)) => Some("`enable_thinking`"),
            (true, _) => None,
        };
        let result_format = take_result_format(&mut fields, usual, needed)?;
        let parameters = Self {
            result_format,
            incremental_output: fields.bool("incremental_output", Null::Absent)?.unwrap_or(false),
            max_tokens: fields.count("max_tokens", 1)?,
            options: take_options(&mut fields, result_format, max_choices)?,
            reasoning,
            tools,
            tool_choice,
            parallel_tool_calls: fields.bool("parallel_tool_calls", Null::Absent)?.unwrap_or(true),
            format: take_format(&mut fields)?,
        };
        fields.finish()?;
        Ok(parameters)
    }
}

/// `needed`: what only a message can tell of.
fn take_result_format(
    fields: &mut Fields,
    usual: ResultFormat,
    needed: Option<&str>,
) -> Result<ResultFormat, ApiError> {
    let given = fields.string("result_format", Null::Absent)?;
    match (given.as_deref(), needed) {
        (Some("message"), _) | (None, Some(_)) => Ok(ResultFormat::Message),
        (Some("text"), None) => Ok(ResultFormat::Text),
        (None, None) => Ok(usual),
        (Some("text"), Some(why)) => {
            let message = format!("`parameters.result_format` must be `message` with {why}.");
            Err(ApiError::field("parameters.result_format", "invalid_value", message))
        }
        (Some(other), _) => {
            let message = format!(
                "`parameters.result_format` must be `text` or `message`, not `{}`.",
                shortened(other)
            );
            Err(ApiError::field("parameters.result_format", "invalid_value", message))
        }
    }
}

fn take_options(
    fields: &mut Fields,
    format: ResultFormat,
    max_choices: usize,
) -> Result<Options, ApiError> {
    let most = i64::try_from(max_choices).unwrap_or(i64::MAX).min(MAX_CHOICES);
    let n = fields.integer("n", 1..=most)?.unwrap_or(1);
    if n > 1 && format == ResultFormat::Text {
        let message = "`parameters.n` may be above 1 only where `result_format` is `message`.";
        return Err(ApiError::field("parameters.n", "invalid_value", message));
    }
    let (stops, stop_token_ids) = take_stops(fields)?;
    Ok(Options {
        n: u32::try_from(n).unwrap_or(1),
        stops,
        stop_token_ids,
        temperature: fields.number("temperature", 0.0..=2.0)?,
        top_p: fields.number("top_p", 0.0..=1.0)?,
        top_k: fields.count("top_k", 0)?,
        repetition_penalty: fields.number("repetition_penalty", 0.0625..=16.0)?,
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
        seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
        ..Options::default()
    })
}

/// Texts and tokens, one or several; a token may stand in a list of its own, as DashScope has sequences of them.
fn take_stops(fields: &mut Fields) -> Result<(Vec<String>, Vec<u32>), ApiError> {
    let name = "parameters.stop";
    let values = match fields.take("stop", Null::Absent) {
        None => return Ok((Vec::new(), Vec::new())),
        Some(Value::Array(values)) => values,
        Some(one) => vec![one],
    };
    let most = MAX_STOPS.min(MAX_STOP_TOKEN_IDS);
    if values.len() > most {
        let message = format!("`{name}` holds at most {most} entries, not {}.", values.len());
        return Err(ApiError::field(name, "invalid_value", message));
    }
    let (mut texts, mut ids) = (Vec::new(), Vec::new());
    for (i, value) in values.into_iter().enumerate() {
        let name = format!("{name}[{i}]");
        let token = match value {
            Value::String(_) => {
                texts.push(stop_text(&name, value)?);
                continue;
            }
            Value::Array(sequence) => match <[Value; 1]>::try_from(sequence) {
                Ok([token]) => token,
                Err(_) => {
                    let what = "sequences of several tokens are not supported; give their text";
                    return Err(unsupported(&name, what));
                }
            },
            other => other,
        };
        let id = integer(&name, &token, 0..=i64::from(u32::MAX))?;
        ids.push(u32::try_from(id).unwrap_or(u32::MAX));
    }
    Ok((texts, ids))
}

fn take_tools(fields: &mut Fields) -> Result<Vec<Tool>, ApiError> {
    let values = fields.array("tools", Null::Absent)?.unwrap_or_default();
    if values.len() > MAX_TOOLS {
        let message =
            format!("`parameters.tools` holds at most {MAX_TOOLS} tools, not {}.", values.len());
        return Err(ApiError::field("parameters.tools", "invalid_value", message));
    }
    let tool = |(i, value)| tool(value, &format!("parameters.tools[{i}]"));
    values.into_iter().enumerate().map(tool).collect()
}

fn tool(value: Value, path: &str) -> Result<Tool, ApiError> {
    let json = value.clone();
    let mut tool = Fields::object(value, path)?;
    match tool.string("type", Null::Refused)?.as_deref() {
        Some("function") => {}
        Some(_) => {
            return Err(unsupported(&format!("{path}.type"), "only `function` is supported"));
        }
        None => return Err(missing(&format!("{path}.type"))),
    }
    let path = format!("{path}.function");
    let mut function = Fields::object(tool.required("function")?, &path)?;
    let name = function.string("name", Null::Refused)?;
    let name = name.ok_or_else(|| missing(&format!("{path}.name")))?;
    function.string("description", Null::Absent)?;
    // A schema, or a list of parameters as Qwen-Agent writes it: the template shows either.
    if let Some(given) = function.take("parameters", Null::Absent)
        && !(given.is_object() || given.is_array())
    {
        return Err(wrong_type(&format!("{path}.parameters"), "an object or an array", &given));
    }
    let strict = function.bool("strict", Null::Absent)?;
    function.finish()?;
    tool.finish()?;
    Ok(Tool { name, json, strict })
}

fn take_choice(fields: &mut Fields, tools: &[Tool]) -> Result<ToolChoice, ApiError> {
    let field = "parameters.tool_choice";
    let value = match fields.take("tool_choice", Null::Absent) {
        None => return Ok(ToolChoice::Auto),
        Some(Value::String(choice)) => {
            return match choice.as_str() {
                "auto" => Ok(ToolChoice::Auto),
                "none" => Ok(ToolChoice::None),
                "required" if !tools.is_empty() => Ok(ToolChoice::Required),
                other => {
                    let message = format!(
                        "`{field}` must be `auto`, `none`, `required` (with `tools`) or a \
                         function, not `{}`.",
                        shortened(other)
                    );
                    Err(ApiError::field(field, "invalid_value", message))
                }
            };
        }
        Some(other) => other,
    };
    let mut choice = Fields::object(value, field)?;
    choice.string("type", Null::Absent)?;
    let path = format!("{field}.function");
    let mut function = Fields::object(choice.required("function")?, &path)?;
    let name = function.string("name", Null::Refused)?;
    let name = name.ok_or_else(|| missing(&format!("{path}.name")))?;
    if !tools.iter().any(|tool| tool.name == name) {
        let message = format!("`{path}.name`: no tool is called `{}`.", shortened(&name));
        return Err(ApiError::field(format!("{path}.name"), "invalid_value", message));
    }
    function.finish()?;
    choice.finish()?;
    Ok(ToolChoice::Named(name))
}

fn take_format(fields: &mut Fields) -> Result<Format, ApiError> {
    let field = "parameters.response_format";
    let Some(value) = fields.take("response_format", Null::Absent) else {
        return Ok(Format::Text);
    };
    let mut format = Fields::object(value, field)?;
    let parsed = match format.string("type", Null::Refused)?.as_deref() {
        None => return Err(missing(&format!("{field}.type"))),
        Some("text") => Format::Text,
        Some("json_object") => Format::JsonObject,
        Some("json_schema") => {
            let path = format!("{field}.json_schema");
            let mut inner = Fields::object(format.required("json_schema")?, &path)?;
            let schema = inner.required("schema")?;
            if !schema.is_object() {
                return Err(wrong_type(&format!("{path}.schema"), "an object", &schema));
            }
            for text in ["name", "description"] {
                inner.string(text, Null::Absent)?;
            }
            inner.bool("strict", Null::Absent)?;
            inner.finish()?;
            Format::JsonSchema(schema)
        }
        Some(other) => {
            let message = format!(
                "`{field}.type` must be `text`, `json_object` or `json_schema`, not `{}`.",
                shortened(other)
            );
            return Err(ApiError::field(format!("{field}.type"), "invalid_value", message));
        }
    };
    format.finish()?;
    Ok(parsed)
}

/// What DashScope can and this server cannot, refused where it is asked for; and what changes nothing here.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    for field in ["enable_search", "enable_code_interpreter", "enable_omni_output_audio_url"] {
        if fields.bool(field, Null::Absent)? == Some(true) {
            return Err(unsupported(&format!("parameters.{field}"), "it is not available here"));
        }
    }
    if fields.bool("logprobs", Null::Absent)? == Some(true) {
        let what = "log-probabilities are told under `/compatible-mode/v1`";
        return Err(unsupported("parameters.logprobs", what));
    }
    fields.count("top_logprobs", 0)?;
    if fields.take("translation_options", Null::Absent).is_some() {
        return Err(unsupported(
            "parameters.translation_options",
            "no model here translates by it",
        ));
    }
    // Settings of searches and of media, and who sent it.
    fields.ignored_object("search_options")?;
    fields.bool("vl_high_resolution_images", Null::Absent)?;
    fields.string("user_agent", Null::Absent)?;
    fields.count("max_input_tokens", 1)?;
    fields.bool("stream", Null::Absent)?;
    Ok(())
}
