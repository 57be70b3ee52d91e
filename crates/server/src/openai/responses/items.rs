//! Items of a response's input and of what was answered before: as they come, as they are kept, as messages of a chat.
//!
//! Not here: where earlier responses are kept. Invariant: what [`Item::resource`] writes, [`item`] reads again.

use serde_json::{Value, json};

use crate::chat::{Message, Role, ToolCall};
use crate::error::ApiError;
use crate::fields::{Fields, Null, missing, shortened, unsupported, wrong_type, wrong_value};

/// Items of a request, and of all that went before it together.
pub(super) const MAX_ITEMS: usize = 4096;
/// What ids of responses begin with.
pub(super) const ID_PREFIX: &str = "resp_";

/// What an input consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Given {
    Item(Item),
    /// An item of a response that is kept, by its id.
    Reference {
        id: String,
        /// Where it was given, for refusals.
        path: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Message {
        speaker: Speaker,
        text: String,
    },
    Call(ToolCall),
    /// The result of a call.
    Output {
        call_id: String,
        text: String,
    },
    /// What the model thought.
    Reasoning(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaker {
    System,
    Developer,
    User,
    Assistant,
}

impl Speaker {
    fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }

    fn role(self) -> Role {
        match self {
            Self::System | Self::Developer => Role::System,
            Self::User => Role::User,
            Self::Assistant => Role::Assistant,
        }
    }
}

/// The id of an item of this response: unique, and tells whose it is. `place` counts from 0 among what was said, and is
/// `i0`, `i1` … among what was given.
pub(super) fn item_id(kind: &str, response: &str, place: &str) -> String {
    let response = response.strip_prefix(ID_PREFIX).unwrap_or(response);
    format!("{kind}_{response}_{place}")
}

/// Whose item this is.
pub(super) fn response_of(item: &str) -> Option<String> {
    let mut parts = item.split('_');
    let (_, response, _) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then(|| format!("{ID_PREFIX}{response}"))
}

/// `input`: a text, or items; at least one.
pub(super) fn take_input(fields: &mut Fields) -> Result<Vec<Given>, ApiError> {
    let values = match fields.required("input")? {
        Value::String(text) => {
            return Ok(vec![Given::Item(Item::Message { speaker: Speaker::User, text })]);
        }
        Value::Array(values) => values,
        other => return Err(wrong_type("input", "a string or an array", &other)),
    };
    if values.is_empty() || values.len() > MAX_ITEMS {
        let message = format!("`input` must hold 1 to {MAX_ITEMS} items, not {}.", values.len());
        return Err(ApiError::field("input", "invalid_value", message));
    }
    let items = values.into_iter().enumerate();
    items.map(|(i, value)| item(value, &format!("input[{i}]"))).collect()
}

/// An item as it comes, or as it was kept.
pub(super) fn item(value: Value, path: &str) -> Result<Given, ApiError> {
    let mut fields = Fields::object(value, path)?;
    let kind = fields.string("type", Null::Absent)?;
    let is_message = matches!(kind.as_deref(), None | Some("message"));
    let role = if is_message { fields.take("role", Null::Absent) } else { None };
    let id = fields.string("id", Null::Absent)?;
    let item = match (kind.as_deref(), role) {
        (None | Some("message"), Some(role)) => message(&mut fields, path, &role)?,
        (Some("message"), None) => return Err(missing(&format!("{path}.role"))),
        (None | Some("item_reference"), _) => {
            fields.finish()?;
            let id = id.ok_or_else(|| missing(&format!("{path}.id")))?;
            return Ok(Given::Reference { id, path: path.to_owned() });
        }
        (Some("function_call"), _) => Item::Call(ToolCall {
            id: text(&mut fields, "call_id")?,
            name: text(&mut fields, "name")?,
            arguments: text(&mut fields, "arguments")?,
        }),
        (Some("function_call_output"), _) => Item::Output {
            call_id: text(&mut fields, "call_id")?,
            text: content(&mut fields, "output", &["input_text"])?,
        },
        (Some("reasoning"), _) => reasoning(&mut fields)?,
        (Some(other), _) => {
            let what = format!("items of type `{}` are not supported", shortened(other));
            return Err(unsupported(&format!("{path}.type"), &what));
        }
    };
    // What our own items carry and clients send back.
    for field in ["status", "phase", "created_by"] {
        fields.string(field, Null::Absent)?;
    }
    fields.finish()?;
    Ok(Given::Item(item))
}

fn text(fields: &mut Fields, field: &str) -> Result<String, ApiError> {
    match fields.required(field)? {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(&fields.name(field), "a string", &other)),
    }
}

fn message(fields: &mut Fields, path: &str, role: &Value) -> Result<Item, ApiError> {
    let speaker = match role.as_str() {
        Some("system") => Speaker::System,
        Some("developer") => Speaker::Developer,
        Some("user") => Speaker::User,
        Some("assistant") => Speaker::Assistant,
        _ => {
            let expected = "`system`, `developer`, `user` or `assistant`";
            return Err(wrong_value(&format!("{path}.role"), expected, role));
        }
    };
    let kinds: &[&str] = match speaker {
        Speaker::Assistant => &["output_text", "refusal", "input_text"],
        _ => &["input_text"],
    };
    Ok(Item::Message { speaker, text: content(fields, "content", kinds)? })
}

/// A string, or parts of text, which are joined.
fn content(fields: &mut Fields, field: &str, kinds: &[&str]) -> Result<String, ApiError> {
    let name = fields.name(field);
    match fields.required(field)? {
        Value::String(text) => Ok(text),
        Value::Array(parts) => parts_text(parts, &name, kinds),
        other => Err(wrong_type(&name, "a string or an array of content parts", &other)),
    }
}

fn parts_text(parts: Vec<Value>, path: &str, kinds: &[&str]) -> Result<String, ApiError> {
    let mut all = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        let mut part = Fields::object(part, &path)?;
        let kind = text(&mut part, "type")?;
        if !kinds.contains(&kind.as_str()) {
            let what = format!(
                "parts of type `{}` are not supported here, only {}",
                shortened(&kind),
                kinds.join(", ")
            );
            return Err(unsupported(&format!("{path}.type"), &what));
        }
        let field = if kind == "refusal" { "refusal" } else { "text" };
        all.push_str(&text(&mut part, field)?);
        // What our own parts carry, and markers of prompt caching, which is automatic here.
        for field in ["annotations", "logprobs"] {
            part.array(field, Null::Absent)?;
        }
        part.ignored_object("prompt_cache_breakpoint")?;
        part.finish()?;
    }
    Ok(all)
}

/// What was thought, else its summary.
fn reasoning(fields: &mut Fields) -> Result<Item, ApiError> {
    let summary = fields.array("summary", Null::Absent)?.unwrap_or_default();
    let summary = parts_text(summary, &fields.name("summary"), &["summary_text"])?;
    let thoughts = fields.array("content", Null::Absent)?.unwrap_or_default();
    let thoughts = parts_text(thoughts, &fields.name("content"), &["reasoning_text"])?;
    // Thoughts are not hidden here, so nothing is encrypted.
    fields.string("encrypted_content", Null::Absent)?;
    Ok(Item::Reasoning(if thoughts.is_empty() { summary } else { thoughts }))
}

impl Item {
    /// As it is listed, under the id that `id` makes of its kind.
    pub(super) fn resource(&self, id: impl Fn(&str) -> String) -> Value {
        match self {
            Self::Message { speaker: Speaker::Assistant, text } => json!({
                "id": id("msg"), "type": "message", "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
            }),
            Self::Message { speaker, text } => json!({
                "id": id("msg"), "type": "message", "status": "completed", "role": speaker.as_str(),
                "content": [{"type": "input_text", "text": text}],
            }),
            Self::Call(call) => json!({
                "id": id("fc"), "type": "function_call", "status": "completed",
                "call_id": call.id, "name": call.name, "arguments": call.arguments,
            }),
            Self::Output { call_id, text } => json!({
                "id": id("fco"), "type": "function_call_output", "status": "completed",
                "call_id": call_id, "output": text,
            }),
            Self::Reasoning(text) => json!({
                "id": id("rs"), "type": "reasoning", "status": "completed", "summary": [],
                "content": [{"type": "reasoning_text", "text": text}],
            }),
        }
    }
}

/// The messages of a chat: what one turn of the assistant thought, said and called is one message.
///
/// # Errors
/// A result of a call that is nowhere before it.
pub(super) fn messages(
    instructions: Option<&str>,
    items: &[Item],
) -> Result<Vec<Message>, ApiError> {
    let mut messages: Vec<Message> = Vec::with_capacity(items.len() + 1);
    messages.extend(instructions.map(|text| Message::new(Role::System, text)));
    let mut reasoning: Option<String> = None;
    for item in items {
        match item {
            Item::Reasoning(text) => reasoning.get_or_insert_default().push_str(text),
            Item::Message { speaker, text } => {
                let mut message = Message::new(speaker.role(), text.as_str());
                if *speaker == Speaker::Assistant {
                    message.reasoning = reasoning.take();
                }
                messages.push(message);
            }
            Item::Call(call) => match messages.last_mut() {
                Some(last) if last.role == Role::Assistant && reasoning.is_none() => {
                    last.calls.push(call.clone());
                }
                _ => messages.push(Message {
                    reasoning: reasoning.take(),
                    calls: vec![call.clone()],
                    ..Message::new(Role::Assistant, "")
                }),
            },
            Item::Output { call_id, text } => {
                let called = messages.iter().flat_map(|m| &m.calls).find(|c| c.id == *call_id);
                if called.is_none() {
                    let message = format!(
                        "`input`: there is no function call with the `call_id` `{}` before its output.",
                        shortened(call_id)
                    );
                    return Err(ApiError::field("input", "invalid_value", message));
                }
                let call_id = Some(call_id.clone());
                messages.push(Message { call_id, ..Message::new(Role::Tool, text.as_str()) });
            }
        }
    }
    if messages.len() > MAX_ITEMS {
        let message = format!(
            "`input`: the conversation has {} messages; the limit is {MAX_ITEMS}.",
            messages.len()
        );
        return Err(ApiError::field("input", "invalid_value", message));
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listed_is_read_again() {
        let call = ToolCall { id: "c".into(), name: "f".into(), arguments: "{}".into() };
        let message = |speaker| Item::Message { speaker, text: "x".into() };
        for known in [
            message(Speaker::System),
            message(Speaker::Developer),
            message(Speaker::User),
            message(Speaker::Assistant),
            Item::Call(call),
            Item::Output { call_id: "c".into(), text: "42".into() },
            Item::Reasoning("hm".into()),
        ] {
            let listed = known.resource(|kind| item_id(kind, "resp_ab", "i0"));
            let id = listed["id"].as_str().unwrap().to_owned();
            assert_eq!(response_of(&id).as_deref(), Some("resp_ab"), "{id}");
            assert_eq!(item(listed, "input[0]"), Ok(Given::Item(known)));
        }
        for odd in ["", "msg", "msg_a", "msg_a_0_1"] {
            assert_eq!(response_of(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_turn_is_one_message() {
        let call = |id: &str| {
            Item::Call(ToolCall { id: id.into(), name: "f".into(), arguments: "{}".into() })
        };
        let output = |id: &str| Item::Output { call_id: id.into(), text: "42".into() };
        let said = |speaker, text: &str| Item::Message { speaker, text: text.into() };
        let items = [
            said(Speaker::Developer, "brief"),
            said(Speaker::User, "q"),
            Item::Reasoning("hm".into()),
            said(Speaker::Assistant, "see"),
            call("a"),
            call("b"),
            output("a"),
            output("b"),
            Item::Reasoning("so".into()),
            call("c"),
            output("c"),
        ];
        let shown: Vec<String> = messages(Some("be"), &items)
            .unwrap()
            .iter()
            .map(|m| {
                let calls: Vec<&str> = m.calls.iter().map(|c| c.id.as_str()).collect();
                format!("{:?} {:?} {:?} {calls:?} {:?}", m.role, m.reasoning, m.text, m.call_id)
            })
            .collect();
        insta::assert_snapshot!(shown.join("\n"), @r#"
        System None "be" [] None
        System None "brief" [] None
        User None "q" [] None
        Assistant Some("hm") "see" ["a", "b"] None
        Tool None "42" [] Some("a")
        Tool None "42" [] Some("b")
        Assistant Some("so") "" ["c"] None
        Tool None "42" [] Some("c")
        "#);
        let error = messages(None, &[output("x")]).unwrap_err();
        assert!(error.message.contains("`call_id` `x`"), "{}", error.message);
    }
}
