//! What is asked: real requests of the kinds that speculation helps, and of the kinds that it must not hurt. The words
//! are fixed, so that figures of different days compare.

/// A program of about 150 lines.
const PROGRAM: &str = include_str!("inventory.py");

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Workload {
    /// A program to be given back with a small change.
    Edit,
    /// Programs to be written.
    Code,
    /// Prose to be written.
    Prose,
}

impl Workload {
    /// As the report calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Edit => "code edit",
            Self::Code => "code",
            Self::Prose => "prose",
        }
    }

    /// Tokens of the longest answer.
    pub(super) fn max_tokens(self) -> u32 {
        match self {
            Self::Edit => 1800,
            Self::Code | Self::Prose => 256,
        }
    }

    /// The user's messages, one for each request.
    pub(super) fn messages(self) -> Vec<String> {
        match self {
            Self::Edit => vec![format!(
                "Rename the method `stock` of `Warehouse` to `count_in_stock`, everywhere it is used. Give the whole \
                 file back, all else unchanged, and nothing but the file.\n\n```python\n{PROGRAM}```"
            )],
            Self::Code => [
                "Write a Python class for an LRU cache with get, put and a capacity, with type hints and docstrings.",
                "Write a Rust function that parses a line of CSV with quoted fields, and unit tests for it.",
                "Write a JavaScript function that debounces another function, and an example of its use.",
                "Write a SQL schema for a library with books, members and loans, and a query for overdue loans.",
            ]
            .map(str::to_owned)
            .to_vec(),
            Self::Prose => [
                "Tell the story of a lighthouse keeper who finds a letter in a bottle.",
                "Explain to a curious teenager why the sky is blue and sunsets are red.",
                "Describe a market in a small town on an autumn morning.",
                "Write a letter to a friend about what you learned from a long journey by train.",
            ]
            .map(str::to_owned)
            .to_vec(),
        }
    }
}
