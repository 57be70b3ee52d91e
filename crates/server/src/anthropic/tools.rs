//! The tools of a request and whether the model is to use them.

use serde_json::{Map, Value, json};

use crate::chat::{Tool, ToolChoice};
use crate::error::ApiError;
use crate::fields::{Fields, Null, missing, shortened, unsupported, wrong_type};

/// More tools than this are refused.
const MAX_TOOLS: usize = 128;

/// The tools, and whether the arguments of all of them are wanted as they come.
pub(super) fn take_tools(fields: &mut Fields) -> Result<(Vec<Tool>, Vec<String>), ApiError> {
    let values = fields.array("tools", Null::Absent)?.unwrap_or_default();
    if values.len() > MAX_TOOLS {
        let message = format!("`tools` holds at most {MAX_TOOLS} tools, not {}.", values.len());
        return Err(ApiError::field("tools", "invalid_value", message));
    }
    let mut tools = Vec::with_capacity(values.len());
    let mut eager = Vec::new();
    for (i, value) in values.into_iter().enumerate() {
        let (tool, is_eager) = tool(value, &format!("tools[{i}]"))?;
        if is_eager {
            eager.push(tool.name.clone());
        }
        tools.push(tool);
    }
    Ok((tools, eager))
}

fn tool(value: Value, path: &str) -> Result<(Tool, bool), ApiError> {
    let mut tool = Fields::object(value, path)?;
    match tool.string("type", Null::Absent)?.as_deref() {
        None | Some("custom") => {}
        Some(kind) => {
            let what = format!("tools of type `{}` do not run here", shortened(kind));
            return Err(unsupported(&format!("{path}.type"), &what));
        }
    }
    let name = tool.string("name", Null::Refused)?;
    let name = name.ok_or_else(|| missing(&format!("{path}.name")))?;
    let mut function = Map::new();
    function.insert("name".into(), name.as_str().into());
    if let Some(description) = tool.string("description", Null::Absent)? {
        function.insert("description".into(), description.into());
    }
    let schema = tool.required("input_schema")?;
    if !schema.is_object() {
        return Err(wrong_type(&format!("{path}.input_schema"), "an object", &schema));
    }
    function.insert("parameters".into(), schema);
    let strict = tool.bool("strict", Null::Absent)?;
    let eager = tool.bool("eager_input_streaming", Null::Absent)?.unwrap_or(false);
    tool.ignored_object("cache_control")?;
    // Hints of other features: the tool works without them.
    tool.array("input_examples", Null::Absent)?;
    tool.array("allowed_callers", Null::Absent)?;
    if tool.bool("defer_loading", Null::Absent)? == Some(true) {
        let name = format!("{path}.defer_loading");
        return Err(unsupported(&name, "tools are shown to the model from the start"));
    }
    tool.finish()?;
    let json = json!({"type": "function", "function": function});
    Ok((Tool { name, json, strict }, eager))
}

/// The choice, and whether several calls may stand in one answer.
pub(super) fn take_choice(
    fields: &mut Fields,
    tools: &[Tool],
) -> Result<(ToolChoice, bool), ApiError> {
    let Some(value) = fields.take("tool_choice", Null::Absent) else {
        return Ok((ToolChoice::Auto, true));
    };
    let mut choice = Fields::object(value, "tool_choice")?;
    let kind = choice.string("type", Null::Refused)?;
    let parallel = !choice.bool("disable_parallel_tool_use", Null::Absent)?.unwrap_or(false);
    let parsed = match kind.as_deref() {
        None => return Err(missing("tool_choice.type")),
        Some("auto") => ToolChoice::Auto,
        Some("none") => ToolChoice::None,
        Some("any") => ToolChoice::Required,
        Some("tool") => {
            let name = choice.string("name", Null::Refused)?;
            let name = name.ok_or_else(|| missing("tool_choice.name"))?;
            if !tools.iter().any(|tool| tool.name == name) {
                let message = format!(
                    "`tool_choice.name`: no tool in `tools` is called `{}`.",
                    shortened(&name)
                );
                return Err(ApiError::field("tool_choice.name", "invalid_value", message));
            }
            ToolChoice::Named(name)
        }
        Some(other) => {
            let message = format!(
                "`tool_choice.type` must be `auto`, `any`, `tool` or `none`, not `{}`.",
                shortened(other)
            );
            return Err(ApiError::field("tool_choice.type", "invalid_value", message));
        }
    };
    if tools.is_empty() && matches!(parsed, ToolChoice::Required) {
        let message = "`tool_choice` asks for a call, but `tools` holds no tool.";
        return Err(ApiError::field("tool_choice", "invalid_value", message));
    }
    choice.finish()?;
    Ok((parsed, parallel))
}
