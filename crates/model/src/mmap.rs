//! A file mapped read-only into memory: the one place of this crate with `unsafe`.
//!
//! Invariant: the bytes are only ever read, so the kernel may drop and reread any page at any time.
//! What this cannot promise: if another process truncates the file while it is mapped, touching a lost page ends the
//! process with SIGBUS. Mintage's own store replaces files by renaming and never writes one in place.

use std::fs::File;
use std::path::Path;

use crate::error::ModelError;

/// The bytes of a model file: mapped, or held (tests and fuzzing).
#[derive(Debug)]
pub(crate) enum FileBytes {
    /// Read-only map of a file.
    Mapped(memmap2::Mmap),
    /// Bytes in memory.
    Held(Vec<u8>),
}

impl FileBytes {
    /// Maps a regular file. An empty file gives no bytes.
    ///
    /// # Errors
    /// [`ModelError::Io`] where the system refuses, [`ModelError::NotAModel`] where the path is no regular file.
    pub(crate) fn map(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let about = file.metadata().map_err(io)?;
        if !about.is_file() {
            return Err(ModelError::NotAModel {
                found: format!("`{}` is not a regular file", path.display()),
            });
        }
        if about.len() == 0 {
            return Ok(Self::Held(Vec::new()));
        }
        #[allow(unsafe_code, reason = "a memory map")]
        // SAFETY: the map is read-only and private to this value, and handed out only as `&[u8]`. Model files are
        // replaced by rename, never written in place, so the bytes do not change under the borrow (see the module).
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Ok(Self::Mapped(map))
    }

    /// All bytes of the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Held(bytes) => bytes,
        }
    }

    /// Lets the kernel take back the memory of the pages read so far; they are read again from the file when touched.
    pub(crate) fn release(&self) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            #[allow(unsafe_code, reason = "advice that drops clean pages")]
            // SAFETY: MADV_DONTNEED loses only changes that were not written back, and a read-only map of a file has
            // none: every later read sees the same bytes of the file.
            let released = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            // Advice is only advice: where the system does not take it, the pages stay until it needs them.
            let _ = released;
        }
    }
}
