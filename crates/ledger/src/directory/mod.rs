//! Who is who: organisations, their projects, the projects' API keys, members with roles.
//!
//! [`Directory`] is the state, pure; [`DirectoryStore`] keeps it in a file that several processes may change, and
//! answers [`DirectoryStore::authenticate`] from memory. A check costs one keyed hash and one comparison in constant
//! time.
//!
//! Not here: what is spent (the ledger) and how keys travel (HTTP).
//! Invariant: a key's secret exists in clear text only in the hands of its owner.

mod principal;
mod records;
mod secret;
mod state;
mod store;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

pub use principal::Principal;
pub use records::{
    Action, ApiKey, KeyOwner, KeyScopes, MAX_NAME_CHARS, MAX_SCOPE_ENTRIES, MAX_WEIGHT, Member,
    NewKey, Organisation, Project, Role,
};
pub use secret::Secret;
pub use state::{Directory, MAX_KEYS, MAX_MEMBERS, MAX_ORGANISATIONS, MAX_PROJECTS};
pub use store::{CreatedKey, DirectoryStore, Imported};

use crate::limits::PolicyError;

/// Why a presented key does not open the door. A client is told only that it does not; the log may say why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// Empty or too long.
    #[error("malformed")]
    Malformed,
    /// No such id, or the secret is another one.
    #[error("unknown")]
    Unknown,
    /// Its time is over.
    #[error("expired")]
    Expired,
    /// It is switched off for now.
    #[error("disabled")]
    Disabled,
    /// It was revoked.
    #[error("revoked")]
    Revoked,
    /// Its project is archived, its organisation suspended or its member gone.
    #[error("its owner is inactive")]
    OwnerInactive,
}

/// Why the directory could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Reading or writing failed.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file is not one of ours, or was damaged.
    #[error("`{path}` is not a valid directory file: {message}")]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The database that has it could not be asked.
    #[error(transparent)]
    Shared(#[from] crate::postgres::PostgresError),
    /// The system gave no random bytes.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
    /// The caller's fault.
    #[error("{0}")]
    Invalid(String),
    /// The rules of a party cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Nothing has this id.
    #[error("there is no {kind} with the id `{id}`")]
    NoSuch {
        /// What was looked for.
        kind: &'static str,
        /// The id.
        id: String,
    },
}
