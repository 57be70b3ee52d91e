//! Taking typed fields out of a JSON object: each refusal names the field, what it must be and what was given.
//!
//! Invariant: after [`Fields::finish`] every field of the object was looked at.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{ApiError, Fault};

/// How much of a refused value is repeated to the client.
const SHOWN_CHARS: usize = 60;
/// Texts that end an answer: OpenAI allows 4; more do no harm.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 512;

/// The fields of one object that were not taken yet.
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// `messages[3].`, or empty at the top.
    path: String,
}

/// Whether `null` means absent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Null {
    Absent,
    Refused,
}

impl Fields {
    /// The top of a request's body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            let message =
                format!("The request's body is not valid JSON (at most 128 levels deep): {error}.");
            ApiError::new(Fault::Invalid, "invalid_json", message)
        })?;
        match value {
            Value::Object(map) => Ok(Self { map, path: String::new() }),
            other => {
                let message =
                    format!("The request's body must be a JSON object, not {}.", kind(&other));
                Err(ApiError::new(Fault::Invalid, "invalid_type", message))
            }
        }
    }

    /// An object inside the body.
    pub(crate) fn object(value: Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, path: format!("{path}.") }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    pub(crate) fn name(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    /// The field as it stands.
    pub(crate) fn take(&mut self, field: &str, null: Null) -> Option<Value> {
        self.map.shift_remove(field).filter(|value| !(value.is_null() && null == Null::Absent))
    }

    pub(crate) fn has(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    pub(crate) fn required(&mut self, field: &str) -> Result<Value, ApiError> {
        self.take(field, Null::Refused).ok_or_else(|| {
            let name = self.name(field);
            let message = format!("`{name}` is missing.");
            ApiError::field(name, "missing_required_parameter", message)
        })
    }

    pub(crate) fn bool(&mut self, field: &str, null: Null) -> Result<Option<bool>, ApiError> {
        self.typed(field, null, "a boolean", |v| v.as_bool())
    }

    pub(crate) fn string(&mut self, field: &str, null: Null) -> Result<Option<String>, ApiError> {
        self.typed(field, null, "a string", |v| v.as_str().map(str::to_owned))
    }

    pub(crate) fn array(
        &mut self,
        field: &str,
        null: Null,
    ) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(field, null) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(wrong_type(&self.name(field), "an array", &other)),
        }
    }

    pub(crate) fn integer(
        &mut self,
        field: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(field, Null::Absent) else { return Ok(None) };
        integer(&self.name(field), &value, range).map(Some)
    }

    /// An integer that fits `u32`, from `least` on.
    pub(crate) fn count(&mut self, field: &str, least: u32) -> Result<Option<u32>, ApiError> {
        let given = self.integer(field, i64::from(least)..=i64::from(u32::MAX))?;
        Ok(given.and_then(|n| u32::try_from(n).ok()))
    }

    pub(crate) fn number(
        &mut self,
        field: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(field, Null::Absent) else { return Ok(None) };
        number(&self.name(field), &value, range).map(Some)
    }

    /// Texts that end an answer: one string or an array of them, each not empty.
    pub(crate) fn stop_texts(&mut self, field: &str) -> Result<Vec<String>, ApiError> {
        let name = self.name(field);
        let values = match self.take(field, Null::Absent) {
            None => return Ok(Vec::new()),
            Some(text @ Value::String(_)) => vec![text],
            Some(Value::Array(values)) => values,
            Some(other) => {
                return Err(wrong_type(&name, "a string or an array of strings", &other));
            }
        };
        if values.len() > MAX_STOPS {
            let message =
                format!("`{name}` holds at most {MAX_STOPS} strings, not {}.", values.len());
            return Err(ApiError::field(name, "invalid_value", message));
        }
        let text = |(i, value)| stop_text(&format!("{name}[{i}]"), value);
        values.into_iter().enumerate().map(text).collect()
    }

    /// An object whose fields are of no interest here.
    pub(crate) fn ignored_object(&mut self, field: &str) -> Result<(), ApiError> {
        let Some(value) = self.take(field, Null::Absent) else { return Ok(()) };
        Self::object(value, &self.name(field)).map(Self::ignore_rest)
    }

    /// Everything that means something was taken: what is left is unknown.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        let Some(field) = self.map.keys().next() else { return Ok(()) };
        let name = shortened(&self.name(field));
        let message = format!("Unknown parameter: `{name}`.");
        Err(ApiError::field(name, "unknown_parameter", message))
    }

    /// Whether every field was taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Gives a field back, for who takes it next.
    pub(crate) fn put_back(&mut self, field: &str, value: Value) {
        self.map.insert(field.to_owned(), value);
    }

    /// What is left is of no interest.
    pub(crate) fn ignore_rest(self) {}

    fn typed<T>(
        &mut self,
        field: &str,
        null: Null,
        expected: &str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(field, null) else { return Ok(None) };
        match convert(&value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(wrong_type(&self.name(field), expected, &value)),
        }
    }
}

/// A text that ends an answer.
pub(crate) fn stop_text(name: &str, value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) if (1..=MAX_STOP_BYTES).contains(&text.len()) => Ok(text),
        Value::String(text) => {
            let message =
                format!("`{name}` must have 1 to {MAX_STOP_BYTES} bytes, not {}.", text.len());
            Err(ApiError::field(name, "invalid_value", message))
        }
        other => Err(wrong_type(name, "a string", &other)),
    }
}

/// A required field that is not there.
pub(crate) fn missing(name: &str) -> ApiError {
    ApiError::field(name, "missing_required_parameter", format!("`{name}` is missing."))
}

pub(crate) fn integer(
    name: &str,
    value: &Value,
    range: RangeInclusive<i64>,
) -> Result<i64, ApiError> {
    let expected = match (*range.start(), *range.end()) {
        (i64::MIN, i64::MAX) => "an integer of 64 bits".to_owned(),
        (least, most) => format!("an integer from {least} to {most}"),
    };
    let given = match value {
        Value::Number(number) if !number.is_f64() => number.as_i64(),
        other => return Err(wrong_type(name, &expected, other)),
    };
    given.filter(|n| range.contains(n)).ok_or_else(|| wrong_value(name, &expected, value))
}

pub(crate) fn number(
    name: &str,
    value: &Value,
    range: RangeInclusive<f64>,
) -> Result<f32, ApiError> {
    let expected = format!("a number from {} to {}", range.start(), range.end());
    let given = value.as_f64().ok_or_else(|| wrong_type(name, &expected, value))?;
    if !range.contains(&given) {
        return Err(wrong_value(name, &expected, value));
    }
    // Rounding to f32 may not leave the range, because its ends are exact in f32.
    Ok(given as f32)
}

pub(crate) fn wrong_type(name: &str, expected: &str, given: &Value) -> ApiError {
    let message = format!("`{name}` must be {expected}, not {}.", kind(given));
    ApiError::field(name, "invalid_type", message)
}

pub(crate) fn wrong_value(name: &str, expected: &str, given: &Value) -> ApiError {
    let message = format!("`{name}` must be {expected}, not {}.", shown(given));
    ApiError::field(name, "invalid_value", message)
}

/// A thing that a dialect has and we have not.
pub(crate) fn unsupported(name: &str, what: &str) -> ApiError {
    ApiError::field(name, "unsupported_parameter", format!("`{name}`: {what}."))
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Scalars as they stand, the rest by kind.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Number(_) | Value::Bool(_) | Value::String(_) => shortened(&value.to_string()),
        other => kind(other).to_owned(),
    }
}

pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Requests gone wrong: each part of a good one replaced by each of some odd values.
#[cfg(test)]
pub(crate) fn mutations(good: &Value) -> Vec<Value> {
    let odd = serde_json::json!([
        null, true, -1, 1e300, 18_446_744_073_709_551_615_u64, "", "\u{1f600}", [], {}, [[]], [null],
        {"type": "text"}, {"type": "function"}, {"function": {}}, {"role": "assistant"},
    ]);
    let odd: Vec<Value> = odd.as_array().cloned().unwrap_or_default();
    let mut all = odd.clone();
    let children: Vec<(String, Value)> = match good {
        Value::Array(items) => {
            (0..).zip(items).map(|(i, item): (u32, _)| (i.to_string(), item.clone())).collect()
        }
        Value::Object(map) => map.iter().map(|(key, item)| (key.clone(), item.clone())).collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let pointer = format!("/{}", key.replace('~', "~0").replace('/', "~1"));
        for changed in mutations(&child) {
            let mut whole = good.clone();
            if let Some(place) = whole.pointer_mut(&pointer) {
                *place = changed;
            }
            all.push(whole);
        }
        let mut without = good.clone();
        if let Some(map) = without.as_object_mut() {
            map.shift_remove(&key);
        }
        all.push(without);
    }
    all
}

/// Parses every mutation of a good request, which parses itself: none panics, some still parse, and each refusal is short
/// enough to be sent.
#[cfg(test)]
pub(crate) fn check_mutations<T>(good: &Value, parse: impl Fn(&[u8]) -> Result<T, ApiError>) {
    let parse = |value: &Value| parse(value.to_string().as_bytes());
    assert!(parse(good).is_ok(), "{:?}", parse(good).err());
    let mutations = mutations(good);
    let mut parsed = 0;
    for mutation in &mutations {
        match parse(mutation) {
            Ok(_) => parsed += 1,
            Err(error) => assert!(
                !error.message.is_empty()
                    && error.message.len() < 400
                    && error.param.is_none_or(|p| p.len() < 200),
                "{mutation}: {}",
                error.message
            ),
        }
    }
    assert!(parsed > 0 && parsed < mutations.len(), "{parsed} of {} parse", mutations.len());
}
