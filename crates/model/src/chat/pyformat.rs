//! Values as Python writes them: `json.dumps` and `repr`.
//!
//! Not a serialiser for anything but prompts: the models were trained on exactly these spaces, quotes and digits.
//!
//! Invariant: nesting deeper than [`MAX_DEPTH`] is an error, as templates can build it.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Nesting of a value that a template prints.
const MAX_DEPTH: usize = 100;
/// Spaces of one level of indentation.
const MAX_INDENT: usize = 16;

/// `json.dumps`' arguments.
pub(super) struct JsonStyle {
    pub(super) ensure_ascii: bool,
    pub(super) indent: Option<usize>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) sort_keys: bool,
    /// A character that is never escaped.
    pub(super) keep: Option<char>,
}

fn refuse(message: &'static str) -> Error {
    Error::new(ErrorKind::BadSerialization, message)
}

impl JsonStyle {
    /// What `json.dumps(value, …)` gives.
    pub(super) fn dumps(&self, value: &Value) -> Result<String, Error> {
        if self.indent.is_some_and(|indent| indent > MAX_INDENT) {
            return Err(refuse("the indent is too large"));
        }
        let mut out = String::new();
        self.write(&mut out, value, 0)?;
        Ok(out)
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(refuse("the value is nested too deep"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.string(out, value.as_str().unwrap_or("")),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container(out, depth, ('[', ']'), items.len(), |out, at| {
                    items.get(at).map_or(Ok(()), |item| self.write(out, item, depth + 1))
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.container(out, depth, ('{', '}'), keys.len(), |out, at| {
                    let Some(key) = keys.get(at) else { return Ok(()) };
                    match key.as_str() {
                        Some(key) => self.string(out, key),
                        None if key.kind() == ValueKind::Number => self.string(out, &number(key)),
                        None => return Err(refuse("a key is not a string")),
                    }
                    out.push_str(&self.key_separator);
                    self.write(out, &value.get_item(key)?, depth + 1)
                })?;
            }
            _ => return Err(refuse("the value has no JSON form")),
        }
        Ok(())
    }

    fn container(
        &self,
        out: &mut String,
        depth: usize,
        (open, close): (char, char),
        len: usize,
        mut item: impl FnMut(&mut String, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let new_line = |out: &mut String, depth| {
            if let Some(indent) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * depth));
            }
        };
        out.push(open);
        for at in 0..len {
            if at > 0 {
                out.push_str(&self.item_separator);
            }
            new_line(out, depth + 1);
            item(out, at)?;
        }
        if len > 0 {
            new_line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~' && Some(c) != self.keep) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}"); // writing to a String cannot fail
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// What `str(value)` gives: what `{{ value }}` prints.
pub(super) fn str_of(value: &Value) -> Result<String, Error> {
    match (value.kind(), value.as_str()) {
        (_, Some(text)) => Ok(text.to_owned()),
        (ValueKind::Undefined, _) => Ok(String::new()),
        _ => {
            let mut out = String::new();
            repr(&mut out, value, 0)?;
            Ok(out)
        }
    }
}

fn repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(refuse("the value is nested too deep"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => repr_str(out, value.as_str().unwrap_or("")),
        ValueKind::Seq => {
            out.push('[');
            for (at, item) in value.try_iter()?.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                repr(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter()?.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                repr(out, &key, depth + 1)?;
                out.push_str(": ");
                repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Undefined => out.push_str("Undefined"),
        _ => return Err(refuse("the value cannot be printed")),
    }
    Ok(())
}

fn repr_str(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c)); // writing to a String cannot fail
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Whole numbers as they are, others as Python's shortest `repr`.
fn number(value: &Value) -> String {
    if value.is_integer()
        && let Ok(whole) = i128::try_from(value.clone())
    {
        return whole.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
}

/// Python switches to an exponent below 1e-4 and from 1e16 on.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let magnitude = x.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let short = format!("{x:e}");
        let (digits, exponent) = short.split_once('e').unwrap_or((&short, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let plain = format!("{x}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_pythons() {
        let check = |x: f64, expected: &str| assert_eq!(float(x), expected);
        check(1.0, "1.0");
        check(-0.0, "-0.0");
        check(0.1, "0.1");
        check(1e15, "1000000000000000.0");
        check(1e16, "1e+16");
        check(1.5e300, "1.5e+300");
        check(0.0001, "0.0001");
        check(0.000_01, "1e-05");
        check(1.234e-7, "1.234e-07");
    }

    #[test]
    fn repr_is_pythons() {
        let check = |json: &str, expected: &str| {
            let value: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(str_of(&Value::from(minijinja::value::Serde(&value))).unwrap(), expected);
        };
        check("null", "None");
        check(
            r#"[true, false, 1, 2.5, "a'b", "a\"b", "a'b\"c\n"]"#,
            "[True, False, 1, 2.5, \"a'b\", 'a\"b', 'a\\'b\"c\\n']",
        );
        check(r#"{"b": {"a": null}}"#, "{'b': {'a': None}}");
    }
}
