//! What a chat template finds in its environment beyond Jinja itself: the functions, filters and methods that
//! `transformers` gives it.
//!
//! Not here: anything that reads a clock, a file or the network; the date is the caller's.

use std::borrow::Cow;

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Json;

use super::pyformat::{self, JsonStyle};

/// Length of a `strftime` format.
const MAX_FORMAT_BYTES: usize = 256;
/// The names under which messages carry reasoning, as `transformers` knows them.
const REASONING_NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// What a template said to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(String);

impl Raised {
    /// The message, if the error is one that the template raised.
    pub(super) fn find(error: &Error) -> Option<String> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(Self(message)) = error.downcast_ref() {
                return Some(message.clone());
            }
            cause = error.source();
        }
        None
    }
}

pub(super) fn register(environment: &mut Environment<'static>) {
    // It prints the whole state, of any size.
    environment.remove_global("debug");
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", tojson);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.set_formatter(format);
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template")
        .with_source(Raised(message)))
}

/// `{{ value }}` as Jinja2 prints it.
fn format(out: &mut Output<'_>, _state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let text = match value.as_str() {
        Some(text) => Cow::Borrowed(text),
        None => Cow::Owned(pyformat::str_of(value)?),
    };
    out.write_str(&text).map_err(Error::from)
}

/// `json.dumps` with the defaults that `transformers` sets: no escaping of non-ASCII text, no HTML escapes.
fn tojson(state: &State<'_, '_>, value: &Value, arguments: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let separators: Option<Vec<String>> = arguments.get("separators")?;
    let default = || (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    let (item_separator, key_separator) = match separators.as_deref() {
        None => default(),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "`separators` are two strings"));
        }
    };
    let keep = state.lookup("tojson_keeps").and_then(|keep| keep.as_str()?.chars().next());
    let style = JsonStyle {
        ensure_ascii: arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item_separator,
        key_separator,
        keep,
    };
    arguments.assert_all_used()?;
    style.dumps(value)
}

/// The function `strftime_now` for a given time, UTC.
pub(super) fn strftime_now(now_unix_s: u64) -> Value {
    Value::from_function(move |format: &str| {
        if format.len() > MAX_FORMAT_BYTES {
            return Err(Error::new(ErrorKind::InvalidOperation, "the date format is too long"));
        }
        Ok(strftime(now_unix_s, format))
    })
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// C's `strftime` in the C locale, for the directives of dates and times; others stay as they are.
fn strftime(unix_s: u64, format: &str) -> String {
    let (days, seconds) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let name =
        |names: &[&'static str], at: u64| names.get(at as usize).copied().unwrap_or("").to_owned();
    let short = |text: String| text.chars().take(3).collect::<String>();
    let hour12 = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = rest.next();
        let padded = directive != Some('-');
        if !padded {
            directive = rest.next();
        }
        let two = |n: u64| if padded { format!("{n:02}") } else { n.to_string() };
        match directive {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&two(year % 100)),
            Some('m') => out.push_str(&two(month)),
            Some('d') => out.push_str(&two(day)),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('H') => out.push_str(&two(hour)),
            Some('I') => out.push_str(&two(hour12)),
            Some('M') => out.push_str(&two(minute)),
            Some('S') => out.push_str(&two(second)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('B') => out.push_str(&name(&MONTHS, month - 1)),
            Some('b' | 'h') => out.push_str(&short(name(&MONTHS, month - 1))),
            Some('A') => out.push_str(&name(&WEEKDAYS, (days + 4) % 7)),
            Some('a') => out.push_str(&short(name(&WEEKDAYS, (days + 4) % 7))),
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Days since 1970-01-01 → (year, month, day) of the Gregorian calendar, counted in 400-year eras from March 1st, 0000.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Reasoning is known under three names; a message that has one gets those that templates read.
pub(super) fn with_reasoning_names(message: &Json) -> Json {
    let Json::Object(fields) = message else { return message.clone() };
    let Some(reasoning) =
        REASONING_NAMES.iter().filter_map(|name| fields.get(*name)).find(|value| !value.is_null())
    else {
        return message.clone();
    };
    let mut fields = fields.clone();
    if !fields.contains_key("thinking") {
        fields.insert("thinking".to_owned(), reasoning.clone());
    }
    fields.insert("reasoning_content".to_owned(), reasoning.clone());
    Json::Object(fields)
}

/// `{% generation %}…{% endgeneration %}` marks the assistant's tokens for training in `transformers`; here it is a
/// block that is always rendered.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        let word =
            tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let check =
            |unix_s, format: &str, expected: &str| assert_eq!(strftime(unix_s, format), expected);
        check(0, "%Y-%m-%d %H:%M:%S %A", "1970-01-01 00:00:00 Thursday");
        check(1_721_952_000, "%d %b %Y", "26 Jul 2024");
        check(
            1_709_164_800 + 13 * 3600,
            "%a %-d %B %y, %I %p %% %Q",
            "Thu 29 February 24, 01 PM % %Q",
        );
        check(4_107_542_399, "%F %T", "2100-02-28 23:59:59");
    }

    #[test]
    fn generation_tags_become_plain_blocks() {
        let check =
            |source: &str, expected: &str| assert_eq!(without_generation_tags(source), expected);
        check(
            "a{% generation %}b{%- endgeneration -%}c{% if x %}",
            "a{% if true %}b{%- endif -%}c{% if x %}",
        );
        check("{% generation", "{% generation");
    }
}
