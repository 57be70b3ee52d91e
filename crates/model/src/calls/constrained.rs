//! The form of calls as a grammar: what keeps a model to calls that are read, with arguments that their schema accepts.

use serde_json::{Value as Json, json};

use super::coder::Types;
use super::{CallFormat, CallTool};
use crate::grammar::{CallInText, FreeAnswer, GrammarError, GrammarPiece, GrammarSpec};

/// With more tools than this, calls are not looked for in free text: each is one more thing that text may turn into.
const MAX_TOOLS_IN_TEXT: usize = 16;

impl CallFormat {
    /// The grammar of answers that call `tools`, at most `most` times. With `free` they may also be that instead; any text
    /// may then stand before the calls. What a tool's arguments must be is its schema, where that is an object's.
    ///
    /// # Errors
    /// [`GrammarError`] where a schema cannot be honoured in this format.
    pub fn grammar(
        self,
        tools: &[CallTool],
        free: Option<FreeAnswer>,
        most: Option<u32>,
    ) -> Result<GrammarSpec, GrammarError> {
        let options = tools
            .iter()
            .map(|tool| self.option(&tool.name, &object_schema(&tool.parameters)?))
            .collect::<Result<_, _>>()?;
        let [opener, before, between, after] = match self {
            Self::Hermes | Self::QwenCoder => ["<tool_call>", "", "\n<tool_call>", ""],
            Self::Llama => ["", "", "; ", ""],
            Self::Mistral => ["[TOOL_CALLS]", "[", ", ", "]"],
            Self::MistralNamed => ["[TOOL_CALLS]", "", "[TOOL_CALLS]", ""],
        }
        .map(str::to_owned);
        let in_text = match &free {
            Some(FreeAnswer::Text) if self.writes_calls_in_text(tools) => tools
                .iter()
                .map(|tool| {
                    let name = Json::String(tool.name.clone()).to_string();
                    let name = regex_syntax::escape(&name).replace('/', "\\/");
                    let begin = format!(r#"\{{\s*"name"\s*:\s*{name}\s*,\s*"arguments"\s*:"#);
                    Ok(CallInText { begin, schema: object_schema(&tool.parameters)? })
                })
                .collect::<Result<_, _>>()?,
            _ => Vec::new(),
        };
        Ok(GrammarSpec::Calls { free, in_text, opener, before, options, between, most, after })
    }

    /// Whether models of this format may write calls of `tools` without what their template opens them with, and the
    /// grammar of free text knows them: see [`super::Reading::Ordered`].
    #[must_use]
    pub fn writes_calls_in_text(self, tools: &[CallTool]) -> bool {
        self == Self::Hermes && tools.len() <= MAX_TOOLS_IN_TEXT
    }

    /// One call, behind what opens it.
    fn option(self, name: &str, schema: &Json) -> Result<Vec<GrammarPiece>, GrammarError> {
        let quoted = Json::String(name.to_owned());
        let text = GrammarPiece::Text;
        let arguments = GrammarPiece::Schema(schema.clone());
        Ok(match self {
            Self::Hermes => vec![
                text(format!("\n{{\"name\": {quoted}, \"arguments\": ")),
                arguments,
                text("}\n</tool_call>".to_owned()),
            ],
            Self::QwenCoder => {
                let mut pieces = vec![text(format!("\n<function={name}>\n"))];
                pieces.extend(parameters(schema)?);
                pieces.push(text("</function>\n</tool_call>".to_owned()));
                pieces
            }
            Self::Llama => vec![
                text(format!("{{\"name\": {quoted}, \"parameters\": ")),
                arguments,
                text("}".to_owned()),
            ],
            Self::Mistral => vec![
                text(format!("{{\"name\": {quoted}, \"arguments\": ")),
                arguments,
                text("}".to_owned()),
            ],
            Self::MistralNamed => vec![text(format!("{name}[ARGS]")), arguments],
        })
    }
}

/// The schema of arguments: an object's. A tool without one takes none.
fn object_schema(schema: &Json) -> Result<Json, GrammarError> {
    let Json::Object(fields) = schema else {
        return Ok(json!({"type": "object", "properties": {}, "additionalProperties": false}));
    };
    let mut fields = fields.clone();
    match fields.get("type") {
        Some(Json::String(name)) if name == "object" => {}
        None => drop(fields.insert("type".to_owned(), "object".into())),
        Some(_) => return Err(refused("type", "#", "arguments are an object")),
    }
    Ok(Json::Object(fields))
}

fn refused(keyword: &str, place: &str, reason: &str) -> GrammarError {
    GrammarError::Keyword {
        keyword: keyword.to_owned(),
        path: place.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Keywords of an object's schema that Qwen3-Coder's tags can follow: the others say something of the object as a whole.
const OBJECT_KEYWORDS: [&str; 9] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "$schema",
    "title",
    "description",
    "$defs",
    "definitions",
];
/// Keywords of a string's schema that say nothing of it, besides `enum` and `const`.
const STRING_KEYWORDS: [&str; 7] =
    ["type", "title", "description", "default", "examples", "enum", "const"];

/// The tags of all parameters that an object's schema lists, in its order; the optional ones may be left out.
fn parameters(schema: &Json) -> Result<Vec<GrammarPiece>, GrammarError> {
    let fields = schema.as_object().into_iter().flatten();
    if let Some((keyword, _)) =
        fields.into_iter().find(|(key, _)| !OBJECT_KEYWORDS.contains(&key.as_str()))
    {
        return Err(refused(keyword, "#", "this model writes arguments one by one"));
    }
    let required: Vec<&str> = match schema.get("required").and_then(Json::as_array) {
        Some(names) => names.iter().filter_map(Json::as_str).collect(),
        None => Vec::new(),
    };
    let properties = schema.get("properties").and_then(Json::as_object);
    let has = |name: &&str| properties.is_some_and(|all| all.contains_key(*name));
    if let Some(name) = required.iter().find(|name| !has(name)) {
        let reason = format!("`{name}` is not among `properties`");
        return Err(refused("required", "#", &reason));
    }
    let mut pieces = Vec::new();
    for (name, property) in properties.into_iter().flatten() {
        let mut tag = vec![GrammarPiece::Text(format!("<parameter={name}>\n"))];
        tag.push(value(schema, name, property)?);
        let is_ended = matches!(tag.last(), Some(GrammarPiece::TextUntil(_)));
        tag.push(GrammarPiece::Text(if is_ended { "\n" } else { "\n</parameter>\n" }.to_owned()));
        match required.contains(&name.as_str()) {
            true => pieces.extend(tag),
            false => pieces.push(GrammarPiece::Optional(tag)),
        }
    }
    Ok(pieces)
}

/// The value of a parameter, with its closing tag where that is what ends it.
fn value(schema: &Json, name: &str, property: &Json) -> Result<GrammarPiece, GrammarError> {
    let types = Types::of_property(schema, name);
    if !types.is_string() {
        // The definitions that it may refer to come with it.
        let mut whole = property.clone();
        if let Some(fields) = whole.as_object_mut() {
            for key in ["$defs", "definitions"] {
                if let Some(found) = schema.get(key) {
                    fields.entry(key).or_insert_with(|| found.clone());
                }
            }
        }
        return Ok(GrammarPiece::Schema(whole));
    }
    let place = format!("#/properties/{name}");
    if let Some(keyword) = property
        .as_object()
        .into_iter()
        .flat_map(|fields| fields.keys())
        .find(|key| !STRING_KEYWORDS.contains(&key.as_str()))
    {
        return Err(refused(keyword, &place, "this model writes texts without quotes"));
    }
    let listed = property.get("enum").and_then(Json::as_array);
    let texts: Vec<String> = listed
        .into_iter()
        .flatten()
        .chain(property.get("const"))
        .filter_map(Json::as_str)
        .map(str::to_owned)
        .collect();
    match texts.is_empty() {
        true => Ok(GrammarPiece::TextUntil("</parameter>".to_owned())),
        false => Ok(GrammarPiece::OneOf(texts)),
    }
}
