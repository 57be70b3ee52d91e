//! Why a model did not load: what is wrong in which file, the limit and the value given, and what to do next.

use std::path::PathBuf;

/// Why a model did not load. Nothing here is retryable except [`ModelError::Io`]: the file itself must change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The operating system refused.
    #[error("cannot read `{path}`: {source}")]
    Io {
        /// What was opened.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Another error, with the file it was found in.
    #[error("`{path}`: {fault}")]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: Box<ModelError>,
    },
    /// Neither a GGUF file nor a folder with safetensors.
    #[error("{found}; give a .gguf file, or a folder with config.json and model.safetensors")]
    NotAModel {
        /// What was there instead.
        found: String,
    },
    /// A pickle can run any program while it loads, so it is never opened.
    #[error(
        "`{file}` is a pickle, which can run code when it is opened, so it is refused; \
         convert the model to safetensors or GGUF"
    )]
    Pickle {
        /// The file's name.
        file: String,
    },
    /// The model wants its own Python code to run.
    #[error(
        "`{key}` asks to run the model's own code, which Mintage never does; \
         use a model of the families qwen2, qwen3 or llama"
    )]
    RemoteCode {
        /// Where it asks.
        key: String,
    },
    /// The file ends too early.
    #[error(
        "{what} needs {needed} bytes, but only {available} are left; \
         the file is cut short or damaged: download it again"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes left.
        available: u64,
    },
    /// A count or size is above a limit of this reader.
    #[error("{what} is {given}, the limit is {limit}; the file is damaged or not meant to load")]
    TooLarge {
        /// What is counted.
        what: String,
        /// The limit.
        limit: u64,
        /// The value in the file.
        given: u64,
    },
    /// The file breaks the rules of its format.
    #[error("{what} {problem}; the file is damaged: download or convert it again")]
    Malformed {
        /// Which part.
        what: String,
        /// Which rule.
        problem: String,
    },
    /// A format version, architecture, tensor type or feature that does not load.
    #[error("{what} is {given}, which is not supported; supported: {supported}")]
    Unsupported {
        /// The key or tensor.
        what: String,
        /// Its value.
        given: String,
        /// What would load.
        supported: String,
    },
    /// A required key is absent.
    #[error("the key `{key}` is missing; the conversion was incomplete: convert the model again")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A key has a value of the wrong type.
    #[error("`{key}` must be {expected}, but is {given}")]
    WrongType {
        /// The key.
        key: String,
        /// What it should be.
        expected: String,
        /// What it is.
        given: String,
    },
    /// A key has the right type and an impossible value.
    #[error("`{key}` must be {expected}, but is {given}")]
    OutOfRange {
        /// The key.
        key: String,
        /// The range.
        expected: String,
        /// The value.
        given: String,
    },
    /// A required tensor is absent.
    #[error(
        "the tensor `{tensor}` is missing; the file is incomplete: download or convert it again"
    )]
    MissingTensor {
        /// Its name.
        tensor: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("the tensor `{tensor}` has shape {given}, but the configuration needs {expected}")]
    WrongShape {
        /// Its name.
        tensor: String,
        /// (rows, columns) by the configuration.
        expected: String,
        /// The file's shape, outermost first.
        given: String,
    },
    /// Two tensors share bytes.
    #[error("the tensors `{first}` and `{second}` overlap; the file is damaged: download it again")]
    Overlap {
        /// The one that starts earlier.
        first: String,
        /// The one that starts inside it.
        second: String,
    },
    /// A tensor that the arithmetic would have to use and does not know.
    #[error(
        "the tensor `{tensor}` has no place in a {family} model; \
         the model is a variant that is not supported"
    )]
    UnknownTensor {
        /// Its name.
        tensor: String,
        /// The family.
        family: &'static str,
    },
    /// A JSON file does not parse.
    #[error("not valid JSON: {message}")]
    Json {
        /// The parser's message, with line and column.
        message: String,
    },
}

impl ModelError {
    /// Says in which file it was found.
    #[must_use]
    pub fn in_file(self, path: impl Into<PathBuf>) -> Self {
        match self {
            Self::Io { .. } | Self::InFile { .. } => self,
            fault => Self::InFile { path: path.into(), fault: Box::new(fault) },
        }
    }

    /// A JSON file that does not parse; parsers repeat what they found, however long it is.
    pub(crate) fn json(error: &serde_json::Error) -> Self {
        Self::Json { message: shortened(&error.to_string()) }
    }

    pub(crate) fn malformed(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Malformed { what: what.into(), problem: problem.into() }
    }

    pub(crate) fn too_large(what: impl Into<String>, limit: u64, given: u64) -> Self {
        Self::TooLarge { what: what.into(), limit, given }
    }

    pub(crate) fn unsupported(
        what: impl Into<String>,
        given: impl Into<String>,
        supported: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            what: what.into(),
            given: shortened(&given.into()),
            supported: supported.into(),
        }
    }
}

/// Longest part of a file's own text that a message repeats.
const MAX_QUOTED_CHARS: usize = 200;

/// The beginning of a text from a file, so that a message stays readable whatever the file holds.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}
