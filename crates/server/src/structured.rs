//! What an answer must look like, as requests say it: OpenAI's `response_format` and vLLM's extras (`guided_json`,
//! `guided_regex`, `guided_choice`, `guided_grammar`, and their later form `structured_outputs`) become one
//! [`Format`], which is compiled to a grammar before anything is held or computed. So are calls of tools that have to come
//! (`tool_choice`) or whose arguments have to follow their schema (`strict`).
//!
//! Invariant: it fails closed. Two constraints at once, or one that cannot be honoured, are a refusal that names the field
//! (and of a schema the keyword); none is ever passed over.

use std::sync::Arc;

use mintage_model::{
    CallFormat, CallTool, FreeAnswer, Grammar, GrammarError, GrammarSpec, Reading,
};
use serde_json::{Value, json};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::chat::{ChatRequest, Format, Tool, ToolChoice};
use crate::error::{ApiError, Fault};
use crate::fields::{Fields, Null, shortened, shown, unsupported, wrong_type};
use crate::served::ServedModel;

/// What the answer must look like, and the field that says so.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Structured {
    pub(crate) field: String,
    pub(crate) format: Format,
}

impl Structured {
    /// The one constraint of a request; `None` where it has none.
    pub(crate) fn take(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        let mut found = Vec::new();
        if let Some(value) = fields.take("response_format", Null::Absent) {
            found.extend(response_format(value)?);
        }
        take_guided(fields, "guided_", &mut found)?;
        if let Some(value) = fields.take("structured_outputs", Null::Absent) {
            let mut inner = Fields::object(value, "structured_outputs")?;
            take_guided(&mut inner, "", &mut found)?;
            inner.finish()?;
        }
        let Some(last) = found.pop() else { return Ok(None) };
        if let Some(other) = found.pop() {
            let message = format!(
                "`{}` and `{}` both say what the answer must look like: give one of them.",
                other.field, last.field
            );
            return Err(ApiError::field(last.field, "invalid_value", message));
        }
        Ok(Some(last))
    }
}

/// The grammar of a format for `model`; `None` for any text. `field` is where it came from. On a text thread: it may take
/// long.
pub(crate) fn compile(
    model: &ServedModel,
    format: &Format,
    field: &str,
) -> Result<Option<Arc<dyn Grammar>>, ApiError> {
    let spec = match format {
        Format::Text => return Ok(None),
        Format::JsonObject => GrammarSpec::JsonObject,
        Format::JsonSchema(schema) => GrammarSpec::JsonSchema(schema.clone()),
        Format::Regex(text) => GrammarSpec::Regex(text.clone()),
        Format::Choice(texts) => GrammarSpec::Choice(texts.clone()),
        Format::Grammar(text) => GrammarSpec::from_grammar_text(text.clone()),
    };
    compile_spec(model, &spec, field).map(Some)
}

/// What answers must look like that call tools.
pub(crate) struct KeptCalls {
    pub(crate) grammar: Arc<dyn Grammar>,
    /// What is taken for a call in them.
    pub(crate) reading: Reading,
}

/// What answers must look like that call tools, and what is then taken for a call. All of those that have to call are kept
/// to it; of those that may, the arguments of `strict` tools, and of others unless they say otherwise and where that can
/// be done. `None` where there is nothing to be kept to.
pub(crate) fn compile_calls(
    model: &ServedModel,
    request: &ChatRequest,
) -> Result<Option<KeptCalls>, ApiError> {
    let forced = match &request.tool_choice {
        ToolChoice::None => return Ok(None),
        ToolChoice::Auto if request.tools.is_empty() => return Ok(None),
        ToolChoice::Auto => false,
        ToolChoice::Required | ToolChoice::Named(_) => true,
    };
    let is_json = matches!(request.format, Format::JsonObject | Format::JsonSchema(_));
    let strict = request.tools.iter().any(|tool| tool.strict == Some(true));
    let is_text = request.format == Format::Text;
    let Some(format) = model.call_format() else {
        let what = "this model's chat template shows no form of calls that is known here";
        let must = forced || (strict && (is_text || is_json));
        return if must { Err(unsupported("tool_choice", what)) } else { Ok(None) };
    };
    let tools = called_tools(request)?;
    let held_tools = |is_held: &dyn Fn(&Tool) -> bool| {
        let mut held = tools.clone();
        for (tool, _) in held.iter_mut().zip(&request.tools).filter(|(_, tool)| !is_held(tool)) {
            tool.parameters = json!({"type": "object"});
        }
        held
    };
    if !forced && is_text && format.writes_calls_in_text(&tools) {
        // A tool that shows no parameters may have some.
        let held = held_tools(&|tool| tool.strict.unwrap_or(tool.shows_parameters()));
        let grammar = compile_calls_of(model, request, format, &held, Some(FreeAnswer::Text));
        return match grammar {
            Ok(grammar) if !strict => Ok(Some(KeptCalls { grammar, reading: Reading::Lenient })),
            // What a tool does not insist on is given up where it cannot be had.
            Err(_) if !strict => Ok(None),
            Ok(grammar) => Ok(Some(KeptCalls { grammar, reading: Reading::Ordered })),
            Err(_) => {
                let held = held_tools(&|tool| tool.strict == Some(true));
                let free = Some(FreeAnswer::Text);
                let grammar = compile_calls_of(model, request, format, &held, free)?;
                Ok(Some(KeptCalls { grammar, reading: Reading::Ordered }))
            }
        };
    }
    if !(forced || is_json || (strict && is_text)) {
        return Ok(None);
    }
    let free = match &request.format {
        _ if forced => None,
        Format::JsonObject => Some(FreeAnswer::Schema(json!({"type": "object"}))),
        Format::JsonSchema(schema) => Some(FreeAnswer::Schema(schema.clone())),
        _ => Some(FreeAnswer::Text),
    };
    let held = match forced {
        true => tools,
        false => held_tools(&|tool| tool.strict == Some(true)),
    };
    let grammar = compile_calls_of(model, request, format, &held, free)?;
    Ok(Some(KeptCalls { grammar, reading: Reading::Template }))
}

fn compile_calls_of(
    model: &ServedModel,
    request: &ChatRequest,
    format: CallFormat,
    tools: &[CallTool],
    free: Option<FreeAnswer>,
) -> Result<Arc<dyn Grammar>, ApiError> {
    let one = !request.parallel_tool_calls || matches!(request.tool_choice, ToolChoice::Named(_));
    let spec = format.grammar(tools, free, one.then_some(1));
    let spec = spec.map_err(|error| refused("tools", &error))?;
    compile_spec(model, &spec, "tools")
}

/// The tools that may be called by `tool_choice`; at least one.
fn called_tools(request: &ChatRequest) -> Result<Vec<CallTool>, ApiError> {
    let wanted = |tool: &&Tool| match &request.tool_choice {
        ToolChoice::Named(name) => tool.name == *name,
        _ => true,
    };
    let tools: Vec<CallTool> = request.tools.iter().filter(wanted).map(Tool::for_calls).collect();
    if tools.is_empty() {
        let message = match &request.tool_choice {
            ToolChoice::Named(name) => {
                format!("`tool_choice`: no tool in `tools` is called `{}`.", shortened(name))
            }
            _ => "`tool_choice` asks for a call, but `tools` holds no tool.".to_owned(),
        };
        return Err(ApiError::field("tool_choice", "invalid_value", message));
    }
    Ok(tools)
}

fn compile_spec(
    model: &ServedModel,
    spec: &GrammarSpec,
    field: &str,
) -> Result<Arc<dyn Grammar>, ApiError> {
    if let Some(grammar) = model.grammars.cached(spec) {
        return Ok(grammar);
    }
    let compiled = blocking(|| model.grammars.compile(spec));
    compiled.map_err(|error| refused(field, &error))
}

/// Small bodies are understood on the threads that serve: those are given to others while one of them waits.
pub(crate) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    let runtime = Handle::try_current().map(|handle| handle.runtime_flavor());
    match runtime {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn refused(field: &str, error: &GrammarError) -> ApiError {
    let message = format!("`{field}`: {error}.");
    let code = match error {
        GrammarError::Busy => return ApiError::new(Fault::Overloaded, "overloaded", message),
        GrammarError::Internal(_) => return ApiError::internal(error.to_string()),
        GrammarError::Keyword { .. } => "unsupported_schema_keyword",
        _ => "invalid_grammar",
    };
    ApiError::field(field, code, message)
}

/// OpenAI's field.
fn response_format(value: Value) -> Result<Option<Structured>, ApiError> {
    let mut format = Fields::object(value, "response_format")?;
    let kind = format.required("type")?;
    let found = match kind.as_str() {
        Some("text") => None,
        Some("json_object") => {
            // Others than OpenAI let a schema follow.
            let schema = format.take("schema", Null::Absent);
            let format = schema.map_or(Format::JsonObject, Format::JsonSchema);
            Some(Structured { field: "response_format".to_owned(), format })
        }
        Some("json_schema") => {
            Some(json_schema(format.required("json_schema")?, "response_format.json_schema")?)
        }
        _ => {
            let message = format!(
                "`response_format.type` must be `text`, `json_object` or `json_schema`, not {}.",
                shown(&kind)
            );
            return Err(ApiError::field("response_format.type", "invalid_value", message));
        }
    };
    format.finish()?;
    Ok(found)
}

/// The schema of `response_format`. `strict` changes nothing: a schema is followed or refused either way.
fn json_schema(value: Value, path: &str) -> Result<Structured, ApiError> {
    let mut fields = Fields::object(value, path)?;
    fields.string("name", Null::Absent)?;
    fields.string("description", Null::Absent)?;
    fields.bool("strict", Null::Absent)?;
    let schema = fields.take("schema", Null::Absent);
    fields.finish()?;
    Ok(Structured {
        field: format!("{path}.schema"),
        format: schema.map_or(Format::JsonObject, Format::JsonSchema),
    })
}

/// vLLM's fields, under their names with `prefix`.
fn take_guided(
    fields: &mut Fields,
    prefix: &str,
    found: &mut Vec<Structured>,
) -> Result<(), ApiError> {
    let mut add = |field: String, format| found.push(Structured { field, format });
    let (json_name, choice_name) = (format!("{prefix}json"), format!("{prefix}choice"));
    if let Some(value) = fields.take(&json_name, Null::Absent) {
        let name = fields.name(&json_name);
        let schema = match value {
            // A schema may come as its text.
            Value::String(text) => serde_json::from_str(&text).map_err(|error| {
                let message = format!("`{name}` is a text that is not JSON: {error}.");
                ApiError::field(name.clone(), "invalid_value", message)
            })?,
            other => other,
        };
        add(name, Format::JsonSchema(schema));
    }
    if fields.bool(&format!("{prefix}json_object"), Null::Absent)? == Some(true) {
        add(fields.name(&format!("{prefix}json_object")), Format::JsonObject);
    }
    if let Some(texts) = fields.array(&choice_name, Null::Absent)? {
        let name = fields.name(&choice_name);
        let text = |(i, value): (usize, Value)| match value {
            Value::String(text) => Ok(text),
            other => Err(wrong_type(&format!("{name}[{i}]"), "a string", &other)),
        };
        let texts = texts.into_iter().enumerate().map(text).collect::<Result<_, _>>()?;
        add(name, Format::Choice(texts));
    }
    if let Some(text) = fields.string(&format!("{prefix}regex"), Null::Absent)? {
        add(fields.name(&format!("{prefix}regex")), Format::Regex(text));
    }
    if let Some(text) = fields.string(&format!("{prefix}grammar"), Null::Absent)? {
        add(fields.name(&format!("{prefix}grammar")), Format::Grammar(text));
    }
    // Which library compiles it is ours to say.
    if prefix == "guided_" {
        fields.string("guided_decoding_backend", Null::Absent)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(body: Value) -> Result<Option<Structured>, ApiError> {
        let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
        let taken = Structured::take(&mut fields)?;
        fields.finish()?;
        Ok(taken)
    }

    #[test]
    fn each_field_becomes_its_constraint() {
        let schema = || json!({ "type": "integer" });
        let text = str::to_owned;
        for (body, wanted) in [
            (json!({}), None),
            (json!({"response_format": null, "guided_json": null}), None),
            (json!({"response_format": {"type": "text"}}), None),
            (
                json!({"response_format": {"type": "json_object"}}),
                Some(("response_format", Format::JsonObject)),
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema":
                    {"name": "n", "strict": true, "schema": schema()}}}),
                Some(("response_format.json_schema.schema", Format::JsonSchema(schema()))),
            ),
            (json!({"guided_json": schema()}), Some(("guided_json", Format::JsonSchema(schema())))),
            (
                json!({"guided_json": "{\"type\":\"integer\"}"}),
                Some(("guided_json", Format::JsonSchema(schema()))),
            ),
            (json!({"guided_regex": "a+"}), Some(("guided_regex", Format::Regex(text("a+"))))),
            (
                json!({"guided_choice": ["a", "b"], "guided_decoding_backend": "auto"}),
                Some(("guided_choice", Format::Choice(vec![text("a"), text("b")]))),
            ),
            (
                json!({"guided_grammar": "root ::= \"a\""}),
                Some(("guided_grammar", Format::Grammar(text("root ::= \"a\"")))),
            ),
            (
                json!({"structured_outputs": {"grammar": "start: \"a\""}}),
                Some(("structured_outputs.grammar", Format::Grammar(text("start: \"a\"")))),
            ),
            (
                json!({"structured_outputs": {"json_object": true}}),
                Some(("structured_outputs.json_object", Format::JsonObject)),
            ),
        ] {
            let wanted =
                wanted.map(|(field, format)| Structured { field: field.to_owned(), format });
            assert_eq!(take(body.clone()), Ok(wanted), "{body}");
        }
    }

    #[test]
    fn a_refusal_names_the_field() {
        for (body, param, says) in [
            (json!({"response_format": "json"}), "response_format", "an object"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type", "not \"xml\""),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema",
                "missing",
            ),
            (
                json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}),
                "guided_regex",
                "`response_format` and `guided_regex` both say",
            ),
            (json!({"guided_choice": ["a", 1]}), "guided_choice[1]", "a string"),
            (json!({"guided_json": "{"}), "guided_json", "not JSON"),
            (json!({"structured_outputs": {"xml": 1}}), "structured_outputs.xml", "Unknown"),
        ] {
            let error = take(body.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
            assert!(error.message.contains(says), "{}", error.message);
        }
    }
}
