//! A JSON schema on its way to llguidance: walked once, bounded, and noted where each keyword stands, so that a refusal
//! can say which one it was and where.
//!
//! The subset of draft 2020-12 that is honoured: `type`, `enum`, `const`, `$ref`, `anyOf`, `allOf`, `oneOf` (where its
//! options exclude one another), `properties`, `required`, `additionalProperties`, `patternProperties`,
//! `min`/`maxProperties`, `items`, `prefixItems`, `min`/`maxItems`, `min`/`maxLength`, `pattern`, `format`, `minimum`,
//! `maximum`, `exclusive…`, `multipleOf`; older drafts as their `$schema` says. What it asserts besides is refused, never
//! passed over. What no draft knows, or only describes, asserts nothing.
//!
//! Invariant: what is changed here makes a schema stricter or leaves it as it was, so that whatever the result accepts
//! the schema accepts.

use serde_json::{Map, Value as Json, json};

use super::GrammarError;
use super::rewrite;

/// Nesting of schemas in one another.
const MAX_DEPTH: usize = 64;
/// Schemas in one another, all together.
const MAX_SCHEMAS: usize = 20_000;
/// Between the tokens of JSON: a space, or a new line and its indentation. Bounded, for a model may not get out of it.
const WHITESPACE: &str = r"\x20|\n[\x20]{0,32}";

/// What a draft says of a keyword.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Draft {
    Four,
    Six,
    Seven,
    Y2019,
    Y2020,
}

impl Draft {
    fn of(schema: &Json) -> Self {
        let uri = schema.get("$schema").and_then(Json::as_str).unwrap_or("");
        if uri.contains("draft-03") || uri.contains("draft-04") {
            Self::Four
        } else if uri.contains("draft-06") {
            Self::Six
        } else if uri.contains("draft-07") {
            Self::Seven
        } else if uri.contains("2019-09") {
            Self::Y2019
        } else {
            Self::Y2020
        }
    }
}

/// Where the keywords stand that may be refused.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    places: Vec<(String, String)>,
}

/// What begins an error of llguidance's, and the keyword that it speaks of.
const SAYINGS: [(&str, &str); 14] = [
    ("Unknown format", "format"),
    ("oneOf constraints", "oneOf"),
    ("patternProperty regex", "patternProperties"),
    ("can't determine if patternProperty", "patternProperties"),
    ("circular references", "$ref"),
    ("minProperties", "minProperties"),
    ("maxProperties", "maxProperties"),
    ("min/maxProperties", "maxProperties"),
    ("required", "required"),
    ("enum", "enum"),
    ("$ref", "$ref"),
    ("Resource", "$ref"),
    ("Pointer", "$ref"),
    ("Invalid type", "type"),
];

impl Notes {
    /// The error that names the keyword which llguidance refused; `None` where its words name none.
    pub(super) fn explain(&self, text: &str) -> Option<GrammarError> {
        if self.places.is_empty() {
            return None;
        }
        let line = text.lines().next().unwrap_or_default().trim();
        // Lark says where, in a text that nobody wrote.
        let line = match line.strip_prefix("at ").and_then(|line| line.split_once("): ")) {
            Some((_, said)) => said,
            None => line,
        };
        let line = line.strip_prefix("failed to compile JSON schema: ").unwrap_or(line);
        let keyword = match line.strip_prefix("Unimplemented keys: [") {
            Some(rest) => rest.split('"').nth(1).map(str::to_owned),
            None => {
                let said = SAYINGS.iter().find(|(words, _)| line.contains(words));
                let quoted = || line.split('\'').nth(1).filter(|word| self.path(word).is_some());
                said.map(|(_, keyword)| *keyword).or_else(quoted).map(str::to_owned)
            }
        }?;
        let reason = match line.starts_with("Unimplemented keys") {
            true => "it is not supported".to_owned(),
            false => line.to_owned(),
        };
        let path = self.path(&keyword).unwrap_or("#").to_owned();
        Some(GrammarError::Keyword { keyword, path, reason })
    }

    /// Takes what was noted of another schema too.
    pub(super) fn join(&mut self, other: Self) {
        self.places.extend(other.places);
    }

    fn path(&self, keyword: &str) -> Option<&str> {
        self.places.iter().find(|(known, _)| known == keyword).map(|(_, path)| path.as_str())
    }
}

/// The schema for llguidance.
pub(super) fn prepare(schema: &Json) -> Result<(Json, Notes), GrammarError> {
    let mut walk = Walk {
        root: if has_inner_ids(schema, true) { &Json::Null } else { schema },
        draft: Draft::of(schema),
        notes: Notes::default(),
        schemas: 0,
        resolved: false,
    };
    let mut schema = match schema {
        Json::Bool(true) => json!({}),
        Json::Object(_) => schema.clone(),
        Json::Bool(false) => {
            let reason = "no value satisfies it".to_owned();
            return Err(GrammarError::Malformed { kind: "JSON schema", reason });
        }
        _ => {
            let reason = "a schema is an object or a boolean".to_owned();
            return Err(GrammarError::Malformed { kind: "JSON schema", reason });
        }
    };
    walk.schema(&mut schema, "#", 0)?;
    if let Json::Object(map) = &mut schema {
        // Only ours: a schema from outside must not switch checks off.
        map.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": WHITESPACE }));
    }
    Ok((schema, walk.notes))
}

/// Whether a part of the document has a name of its own, to which references may be relative. (Or a value looks so.)
fn has_inner_ids(value: &Json, is_root: bool) -> bool {
    match value {
        Json::Object(map) => {
            let named =
                ["$id", "id"].iter().any(|word| map.get(*word).is_some_and(Json::is_string));
            (named && !is_root) || map.values().any(|inner| has_inner_ids(inner, false))
        }
        Json::Array(list) => list.iter().any(|inner| has_inner_ids(inner, false)),
        _ => false,
    }
}

struct Walk<'s> {
    /// As it was given, for references; null where these may be relative to a part of it.
    root: &'s Json,
    draft: Draft,
    notes: Notes,
    schemas: usize,
    /// Inside of options that references led to.
    resolved: bool,
}

/// Keywords whose value is a schema, a list of schemas (or either), a map of schemas.
const ONE: [&str; 12] = [
    "additionalProperties",
    "additionalItems",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "unevaluatedProperties",
    "unevaluatedItems",
    "items",
    "contentSchema",
];
const LIST: [&str; 5] = ["items", "prefixItems", "anyOf", "allOf", "oneOf"];
const MAP: [&str; 6] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];

impl Walk<'_> {
    fn schema(&mut self, schema: &mut Json, path: &str, depth: usize) -> Result<(), GrammarError> {
        let too_large = |given, limit, unit| {
            Err(GrammarError::TooLarge { kind: "JSON schema", given, limit, unit })
        };
        let Json::Object(map) = schema else { return Ok(()) };
        self.schemas += 1;
        if depth > MAX_DEPTH {
            return too_large(depth, MAX_DEPTH, "levels");
        }
        if self.schemas > MAX_SCHEMAS {
            return too_large(self.schemas, MAX_SCHEMAS, "schemas");
        }
        map.remove("x-guidance");
        rewrite::schema(map, self.draft, self.root);
        // Only in the document as it was given: what was put in its place may lead back to it.
        let resolves = !self.resolved && rewrite::resolve_options(map, self.root);
        self.resolved |= resolves;
        self.note(map, path);
        self.parts(map, path, depth)?;
        self.resolved &= !resolves;
        Ok(())
    }

    /// What is inside of a schema object.
    fn parts(
        &mut self,
        map: &mut Map<String, Json>,
        path: &str,
        depth: usize,
    ) -> Result<(), GrammarError> {
        for keyword in ONE {
            if let Some(inner @ Json::Object(_)) = map.get_mut(keyword) {
                self.schema(inner, &format!("{path}/{keyword}"), depth + 1)?;
            }
        }
        for keyword in LIST {
            let Some(Json::Array(list)) = map.get_mut(keyword) else { continue };
            for (index, inner) in list.iter_mut().enumerate() {
                self.schema(inner, &format!("{path}/{keyword}/{index}"), depth + 1)?;
            }
        }
        for keyword in MAP {
            let Some(Json::Object(inner)) = map.get_mut(keyword) else { continue };
            for (name, inner) in inner.iter_mut() {
                let name = name.replace('~', "~0").replace('/', "~1");
                self.schema(inner, &format!("{path}/{keyword}/{name}"), depth + 1)?;
            }
        }
        Ok(())
    }

    fn note(&mut self, map: &Map<String, Json>, path: &str) {
        // The first place of each keyword is enough: a schema has few keywords and many places.
        for keyword in map.keys() {
            if self.notes.path(keyword).is_none() {
                self.notes.places.push((keyword.clone(), path.to_owned()));
            }
        }
    }
}
