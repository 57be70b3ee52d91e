//! What differs between two price lists, path by path.
//!
//! Compares canonical JSON, so every form is covered, also ones added later. Invariant: a list does not differ from
//! itself, nor from what it reads back as.

use std::collections::BTreeMap;

use serde_json::Value;

use super::document::PriceDocument;
use super::exact::{PICO_DIGITS, scaled_decimal};

/// One value that is not the same in both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceChange {
    /// `qwen-plus / tier up to 128000 / input`.
    pub path: String,
    /// In the first list; `None` where it has no such value.
    pub before: Option<String>,
    /// In the second.
    pub after: Option<String>,
}

impl PriceChange {
    /// By how many thousandths the number changes, rounded towards zero, where both are numbers and the first is not 0.
    #[must_use]
    pub fn permille(&self) -> Option<i128> {
        let pico = |text: &Option<String>| scaled_decimal(text.as_deref()?, PICO_DIGITS).ok();
        let (before, after) = (pico(&self.before)?, pico(&self.after)?);
        let (before, after) = (i128::try_from(before).ok()?, i128::try_from(after).ok()?);
        (after - before).checked_mul(1000)?.checked_div(before)
    }
}

/// All changes from `before` to `after`, by path.
#[must_use]
pub fn diff(before: &PriceDocument, after: &PriceDocument) -> Vec<PriceChange> {
    let (before, mut after) = (leaves(before), leaves(after));
    let mut changes = Vec::new();
    for (path, value) in before {
        let other = after.remove(&path);
        if other.as_ref() != Some(&value) {
            changes.push(PriceChange { path, before: Some(value), after: other });
        }
    }
    let added = after.into_iter();
    changes.extend(added.map(|(path, value)| PriceChange {
        path,
        before: None,
        after: Some(value),
    }));
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    changes
}

fn leaves(document: &PriceDocument) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    collect(&document.to_json(), "", &mut found);
    found
}

/// Depth is that of a document: six.
fn collect(value: &Value, path: &str, found: &mut BTreeMap<String, String>) {
    let below =
        |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path} / {key}") };
    match value {
        Value::Null => {}
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    // A model is its name; other lists' elements say what they are themselves.
                    Value::Array(items) if key == "model" => {
                        for item in items {
                            collect(item, item["name"].as_str().unwrap_or_default(), found);
                        }
                    }
                    Value::Array(items) if items.iter().any(Value::is_object) => {
                        for item in items {
                            collect(item, &below(&format!("{key} {}", label(item))), found);
                        }
                    }
                    _ => collect(value, &below(key), found),
                }
            }
        }
        Value::Array(items) => {
            let texts: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            found.insert(path.to_owned(), texts.join(", "));
        }
        Value::String(text) => {
            found.insert(path.to_owned(), text.clone());
        }
        other => {
            found.insert(path.to_owned(), other.to_string());
        }
    }
}

/// How people would call a tier, a window or a promotion.
fn label(item: &Value) -> String {
    match (&item["from"], &item["start"], &item["up_to_tokens"]) {
        (Value::String(from), ..) => format!("from {from}"),
        (_, Value::String(start), _) => format!("from {start}"),
        (_, _, Value::Number(tokens)) => format!("up to {tokens}"),
        _ => "without end".to_owned(),
    }
}
