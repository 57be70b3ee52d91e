//! Why a grammar is not compiled, in the words of whoever wrote it.

/// Why there is no grammar. All but `Busy` and `Internal` are the client's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// A keyword of a schema that cannot be honoured.
    #[error("the schema's `{keyword}` at `{path}` cannot be honoured: {reason}")]
    Keyword {
        /// The keyword, such as `uniqueItems`.
        keyword: String,
        /// A JSON pointer to the schema that has it; `#` is the whole.
        path: String,
        /// Why not.
        reason: String,
    },
    /// Something else in the grammar that cannot be honoured, or a mistake in it.
    #[error("the {kind} cannot be honoured: {reason}")]
    Malformed {
        /// What was given, such as `regular expression`.
        kind: &'static str,
        /// What is wrong, with the place where it is known.
        reason: String,
    },
    /// It is larger than it may be.
    #[error("the {kind} has {given} {unit}, the limit is {limit}")]
    TooLarge {
        /// What was given.
        kind: &'static str,
        /// How much of it there is.
        given: usize,
        /// How much of it there may be.
        limit: usize,
        /// Of what.
        unit: &'static str,
    },
    /// Compiling it takes longer than it may.
    #[error("the {kind} was not compiled within {limit_ms} ms: make it simpler")]
    TooSlow {
        /// What was given.
        kind: &'static str,
        /// How long it may take.
        limit_ms: u64,
    },
    /// Our capacity: as many grammars are being compiled as may be at once. Retry later.
    #[error("too many grammars are being compiled: retry")]
    Busy,
    /// A defect. The text is for the log.
    #[error("internal error of the grammar compiler: {0}")]
    Internal(String),
}
