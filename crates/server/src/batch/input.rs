//! The input of a batch: JSON lines, checked as a whole before the first runs.
//!
//! Invariant: bytes of one line and lines of one file are bounded; of the file only the places of its lines are kept.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::storage::BatchError;

/// What lines may ask for.
pub(crate) const ENDPOINTS: &[&str] =
    &["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"];
const MAX_CUSTOM_ID_CHARS: usize = 512;
/// Mistakes that are told of one file.
const MAX_ERRORS: usize = 100;

/// Bounds of an input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InputLimits {
    pub(crate) lines: u32,
    pub(crate) line_bytes: usize,
}

/// A checked input: where its lines stand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Input {
    lines: Vec<Place>,
    /// Of all lines.
    pub(crate) model: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    offset: u64,
    bytes: usize,
}

/// A line, read.
#[derive(Debug, Deserialize)]
pub(crate) struct Line {
    pub(crate) custom_id: String,
    pub(crate) body: Box<RawValue>,
}

#[derive(Deserialize)]
struct Given {
    custom_id: Option<String>,
    method: Option<String>,
    url: Option<String>,
    body: Option<Box<RawValue>>,
}

/// What must be known of a body before it is run.
#[derive(Deserialize)]
struct Body {
    model: Option<String>,
    #[serde(default)]
    stream: Option<bool>,
}

/// Collects mistakes.
struct Check<'a> {
    endpoint: &'a str,
    custom_ids: HashSet<String>,
    model: Option<String>,
    errors: Vec<BatchError>,
}

impl Check<'_> {
    fn refuse(&mut self, line: u32, code: &str, param: Option<&str>, message: impl Into<String>) {
        self.errors.push(BatchError {
            code: code.to_owned(),
            message: message.into(),
            param: param.map(str::to_owned),
            line: Some(line),
        });
    }

    fn line(&mut self, number: u32, text: &[u8]) {
        let given: Given = match serde_json::from_slice(text) {
            Ok(given) => given,
            Err(error) => {
                let message = format!("This line is not a valid JSON object: {error}.");
                return self.refuse(number, "invalid_json_line", None, message);
            }
        };
        match given.custom_id {
            Some(id) if (1..=MAX_CUSTOM_ID_CHARS).contains(&id.chars().count()) => {
                if !self.custom_ids.insert(id) {
                    let message = "The `custom_id` was used by an earlier line.";
                    self.refuse(number, "duplicate_custom_id", Some("custom_id"), message);
                }
            }
            _ => {
                let message = format!("`custom_id` has 1 to {MAX_CUSTOM_ID_CHARS} characters.");
                self.refuse(number, "invalid_custom_id", Some("custom_id"), message);
            }
        }
        if given.method.as_deref() != Some("POST") {
            self.refuse(number, "invalid_method", Some("method"), "`method` must be `POST`.");
        }
        if given.url.as_deref() != Some(self.endpoint) {
            let message = format!("`url` must be the batch's endpoint, `{}`.", self.endpoint);
            self.refuse(number, "invalid_url", Some("url"), message);
        }
        match given.body {
            Some(body) => self.body(number, &body),
            None => {
                self.refuse(
                    number,
                    "missing_required_parameter",
                    Some("body"),
                    "`body` is missing.",
                );
            }
        }
    }

    fn body(&mut self, number: u32, body: &RawValue) {
        let body: Body = match serde_json::from_str(body.get()) {
            Ok(body) => body,
            Err(error) => {
                let message = format!("`body` is no request: {error}.");
                return self.refuse(number, "invalid_request", Some("body"), message);
            }
        };
        if body.stream == Some(true) {
            let message = "Answers in a batch are not streamed: leave `stream` out.";
            self.refuse(number, "invalid_value", Some("body.stream"), message);
        }
        match (&self.model, body.model) {
            (_, None) => {
                let message = "`body.model` is missing.";
                self.refuse(number, "missing_required_parameter", Some("body.model"), message);
            }
            (None, first) => self.model = first,
            (Some(model), Some(other)) if *model != other => {
                let message =
                    format!("All lines must ask the same model; the first asks `{model}`.");
                self.refuse(number, "mismatched_model", Some("body.model"), message);
            }
            _ => {}
        }
    }
}

impl Input {
    /// Reads a file once. Empty lines are no lines. Blocks.
    ///
    /// # Errors
    /// What is wrong with it, in the order of its lines; or the disk.
    pub(crate) fn check(
        file: File,
        endpoint: &str,
        limits: InputLimits,
    ) -> std::io::Result<Result<Self, Vec<BatchError>>> {
        let mut check =
            Check { endpoint, custom_ids: HashSet::new(), model: None, errors: Vec::new() };
        let mut reader = BufReader::new(file);
        let mut lines = Vec::new();
        let (mut offset, mut number, mut text) = (0_u64, 0_u32, Vec::new());
        loop {
            text.clear();
            // One byte beyond tells a line that is too long.
            let most = limits.line_bytes as u64 + 1;
            let read = (&mut reader).take(most).read_until(b'\n', &mut text)?;
            if read == 0 || check.errors.len() >= MAX_ERRORS {
                break;
            }
            number = number.saturating_add(1);
            if text.len() > limits.line_bytes && !text.ends_with(b"\n") {
                let message = format!("A line has at most {} bytes.", limits.line_bytes);
                check.refuse(number, "line_too_long", None, message);
                break;
            }
            let place = Place { offset, bytes: text.len() };
            offset += text.len() as u64;
            if text.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if lines.len() >= limits.lines as usize {
                let message = format!("A batch has at most {} lines.", limits.lines);
                check.refuse(number, "too_many_lines", None, message);
                break;
            }
            lines.push(place);
            check.line(number, &text);
        }
        let Check { mut errors, model, .. } = check;
        if lines.is_empty() && errors.is_empty() {
            errors.push(BatchError {
                code: "empty_file".to_owned(),
                message: "The input file has no lines.".to_owned(),
                param: Some("input_file_id".to_owned()),
                line: None,
            });
        }
        if !errors.is_empty() {
            return Ok(Err(errors));
        }
        Ok(Ok(Self { lines, model: model.unwrap_or_default() }))
    }

    /// How many lines there are.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.lines.len()).unwrap_or(u32::MAX)
    }

    /// Reads a line of the same file again. Blocks.
    pub(crate) fn line(&self, file: &mut File, number: u32) -> std::io::Result<Line> {
        let place = self.lines.get(number as usize).copied();
        let Some(Place { offset, bytes }) = place else {
            return Err(std::io::ErrorKind::NotFound.into());
        };
        file.seek(SeekFrom::Start(offset))?;
        let mut text = vec![0; bytes];
        file.read_exact(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn input(text: &str) -> (File, Result<Input, Vec<BatchError>>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        let limits = InputLimits { lines: 3, line_bytes: 200 };
        let checked =
            Input::check(file.try_clone().unwrap(), "/v1/chat/completions", limits).unwrap();
        (file, checked)
    }

    fn line(id: &str, rest: &str) -> String {
        format!(
            "{{\"custom_id\":\"{id}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{{\"model\":\"m\"{rest}}}}}"
        )
    }

    #[test]
    fn mistakes_are_told_by_line() {
        let check = |text: &str, expected: &[(&str, Option<u32>)]| {
            let errors = input(text).1.unwrap_err();
            let told: Vec<_> = errors.iter().map(|e| (e.code.as_str(), e.line)).collect();
            assert_eq!(told, expected, "{text}");
        };
        let a = line("a", "");
        check("", &[("empty_file", None)]);
        check("\n \n", &[("empty_file", None)]);
        check("[1]\n", &[("invalid_json_line", Some(1))]);
        check(&format!("{a}\n\nnonsense"), &[("invalid_json_line", Some(3))]);
        check(&format!("{a}\n{a}"), &[("duplicate_custom_id", Some(2))]);
        check(&a.replace("POST", "GET"), &[("invalid_method", Some(1))]);
        check(&a.replace("chat/", ""), &[("invalid_url", Some(1))]);
        let other = line("b", "").replace("\"m\"", "\"n\"");
        check(&format!("{a}\n{other}"), &[("mismatched_model", Some(2))]);
        check(&line("a", ",\"stream\":true"), &[("invalid_value", Some(1))]);
        check(&line(&"x".repeat(513), ""), &[("line_too_long", Some(1))]);
        check(&line("", ""), &[("invalid_custom_id", Some(1))]);
        let four: Vec<String> = (0..4).map(|i| line(&i.to_string(), "")).collect();
        check(&four.join("\n"), &[("too_many_lines", Some(4))]);
        check(
            "{}",
            &[
                ("invalid_custom_id", Some(1)),
                ("invalid_method", Some(1)),
                ("invalid_url", Some(1)),
                ("missing_required_parameter", Some(1)),
            ],
        );
    }

    #[test]
    fn lines_are_found_again() {
        let text = format!("{}\r\n\n{}", line("a", ""), line("ü", ",\"n\":2"));
        let (mut file, checked) = input(&text);
        let input = checked.unwrap();
        assert_eq!((input.len(), input.model.as_str()), (2, "m"));
        assert_eq!(input.line(&mut file, 0).unwrap().custom_id, "a");
        let second = input.line(&mut file, 1).unwrap();
        assert_eq!(
            (second.custom_id.as_str(), second.body.get()),
            ("ü", "{\"model\":\"m\",\"n\":2}")
        );
        assert!(input.line(&mut file, 2).is_err());
    }
}
