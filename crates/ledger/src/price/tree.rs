//! A price list's text as a tree of tables and scalars that know their lines, whether it came as TOML or as JSON.
//!
//! What keys mean is `read.rs`'s; numbers stay the digits that were written. Invariant: the text is bounded before it
//! is parsed, and reading a key marks it, so that a mistyped one is found rather than ignored.

use std::cell::{Cell, RefCell};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::exact::shown;

/// Bytes of the largest price list.
pub(super) const MAX_DOCUMENT_BYTES: usize = 1 << 20;
/// Problems that are reported at once; the rest would follow from these.
const MAX_PROBLEMS: usize = 20;

/// One thing wrong with a price list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line of the TOML text, from 1; 0 where the text has no lines that matter (JSON).
    pub line: usize,
    /// What is wrong, and what to write instead.
    pub message: String,
}

/// Problems as they are found.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    pub(super) fn add(&self, line: usize, message: impl Into<String>) {
        let mut problems = self.0.borrow_mut();
        if problems.len() < MAX_PROBLEMS {
            problems.push(Problem { line, message: message.into() });
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.borrow().len() >= MAX_PROBLEMS
    }

    /// In the order of lines.
    pub(super) fn into_sorted(self) -> Vec<Problem> {
        let mut problems = self.0.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }
}

/// A value and the line it stands on.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Table(Table),
    Array(Vec<Node>),
    /// Text, or a date.
    Text(String),
    /// The digits of a number as written, without underscores.
    Number(String),
    Bool,
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Self::Table(_) => "a table",
            Self::Array(_) => "an array",
            Self::Text(_) => "a text",
            Self::Number(_) => "a number",
            Self::Bool => "a truth value",
        }
    }
}

/// Keys with their lines and values, and which of them were asked for.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    key: String,
    line: usize,
    node: Node,
    asked: Cell<bool>,
}

impl Table {
    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        entry.asked.set(true);
        Some(&entry.node)
    }

    /// Says which keys nobody asked for; `known` are those that could stand here.
    pub(super) fn refuse_unknown(&self, known: &[&str], problems: &Problems) {
        for entry in self.entries.iter().filter(|entry| !entry.asked.get()) {
            if known.contains(&entry.key.as_str()) || problems.is_full() {
                continue;
            }
            let key = shown(&entry.key);
            let nearest = known.iter().min_by_key(|known| distance(&key, known));
            let hint = match nearest.filter(|known| distance(&key, known) <= 1 + known.len() / 3) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            problems.add(entry.line, format!("unknown key `{key}`; {hint}"));
        }
    }
}

/// Edits between two short words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let edit = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = edit.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

impl Node {
    /// What it is, for messages.
    pub(super) fn kind_name(&self) -> &'static str {
        self.kind.name()
    }

    /// A number written bare or as text, as its digits.
    pub(super) fn number_text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Number(text) | Kind::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Parses TOML.
    pub(super) fn from_toml(text: &str) -> Result<Self, Vec<Problem>> {
        check_size(text)?;
        let lines = Lines::of(text);
        let document = DeTable::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| lines.line(span.start));
            vec![Problem { line, message: error.message().to_owned() }]
        })?;
        Ok(Self { line: 1, kind: Kind::Table(lines.table(document.get_ref())) })
    }

    /// Parses the JSON that a document is kept as.
    pub(super) fn from_json(text: &str) -> Result<Self, Vec<Problem>> {
        check_size(text)?;
        let value: serde_json::Value = serde_json::from_str(text)
            .map_err(|error| vec![Problem { line: error.line(), message: error.to_string() }])?;
        Ok(json_node(&value))
    }
}

fn check_size(text: &str) -> Result<(), Vec<Problem>> {
    if text.len() <= MAX_DOCUMENT_BYTES {
        return Ok(());
    }
    let message =
        format!("{} bytes; a price list may have {MAX_DOCUMENT_BYTES}: split it", text.len());
    Err(vec![Problem { line: 1, message }])
}

/// Where lines begin, so that finding one is a search and a hostile text costs no more than its length.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n');
        Self(std::iter::once(0).chain(ends.map(|(index, _)| index + 1)).collect())
    }

    /// Counted from 1.
    fn line(&self, byte: usize) -> usize {
        self.0.partition_point(|&start| start <= byte)
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            let key_text: &std::borrow::Cow<'_, str> = key.get_ref();
            Entry {
                key: key_text.to_string(),
                line: self.line(key.span().start),
                node: self.node(value),
                asked: Cell::new(false),
            }
        };
        Table { entries: table.iter().map(entry).collect() }
    }

    fn node(&self, value: &Spanned<DeValue<'_>>) -> Node {
        let kind = match value.get_ref() {
            DeValue::String(text) => Kind::Text(text.to_string()),
            // Other radixes keep their letters out of the digits, so that `0x10` is not read as 10.
            DeValue::Integer(number) if number.radix() == 10 => {
                Kind::Number(number.as_str().to_owned())
            }
            DeValue::Integer(number) => Kind::Text(number.to_string()),
            DeValue::Float(number) => Kind::Number(number.as_str().to_owned()),
            DeValue::Boolean(_) => Kind::Bool,
            DeValue::Datetime(date) => Kind::Text(date.to_string()),
            DeValue::Array(items) => {
                Kind::Array(items.iter().map(|item| self.node(item)).collect())
            }
            DeValue::Table(table) => Kind::Table(self.table(table)),
        };
        Node { line: self.line(value.span().start), kind }
    }
}

/// Depth is bounded by the JSON parser.
fn json_node(value: &serde_json::Value) -> Node {
    let kind = match value {
        serde_json::Value::Null | serde_json::Value::Bool(_) => Kind::Bool,
        serde_json::Value::Number(number) => Kind::Number(number.to_string()),
        serde_json::Value::String(text) => Kind::Text(text.clone()),
        serde_json::Value::Array(items) => Kind::Array(items.iter().map(json_node).collect()),
        serde_json::Value::Object(entries) => {
            let entry = |(key, value): (&String, &serde_json::Value)| Entry {
                key: key.clone(),
                line: 0,
                node: json_node(value),
                asked: Cell::new(false),
            };
            let stated = entries.iter().filter(|(_, value)| !value.is_null());
            Kind::Table(Table { entries: stated.map(entry).collect() })
        }
    };
    Node { line: 0, kind }
}
