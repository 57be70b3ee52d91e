//! A file that is not whole yet: `data` grows at its end, `state.json` remembers where it may safely be cut.
//!
//! Not verified: until [`Partial::digest`] says otherwise the bytes are a claim. Any source may go on where another
//! stopped, because what is being fetched is named by its digest, not by where it comes from.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher, hash_reader};
use crate::error::SourceError;

/// What a resumed download needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PartialState {
    /// Offsets at which numbered parts end, in order.
    pub(crate) part_ends: Vec<u64>,
    /// Strong ETag of the bytes, where the content is not pinned by a digest.
    pub(crate) etag: Option<String>,
}

/// A growing file and the lock-protected folder it lives in.
pub(crate) struct Partial {
    dir: PathBuf,
    file: File,
    len: u64,
    /// Hash of everything so far; `None` once bytes came from an earlier run.
    hasher: Option<Hasher>,
    state: PartialState,
}

impl Partial {
    /// Opens the folder, creating it; keeps what an earlier run left. The caller holds the lock of this pull.
    pub(crate) fn open(dir: PathBuf) -> Result<Self, SourceError> {
        std::fs::create_dir_all(&dir)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("data"))?;
        let len = file.seek(SeekFrom::End(0))?;
        let state = read_state(&dir.join("state.json"));
        let hasher = (len == 0).then(Hasher::default);
        Ok(Self { dir, file, len, hasher, state })
    }

    /// Bytes here.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Folder for a source's own temporary files.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.dir.join("scratch")
    }

    /// The file itself, to be moved into the store.
    pub(crate) fn data_path(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(crate) fn state(&self) -> &PartialState {
        &self.state
    }

    /// Bytes go to the end.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        Ok(())
    }

    /// Drops everything from `len` on.
    pub(crate) fn cut(&mut self, len: u64) -> Result<(), SourceError> {
        if len >= self.len {
            return Ok(());
        }
        self.file.set_len(len)?;
        self.file.seek(SeekFrom::Start(len))?;
        self.len = len;
        self.hasher = (len == 0).then(Hasher::default);
        let mut state = self.state.clone();
        state.part_ends.retain(|&end| end <= len);
        self.set_state(state)
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) -> Result<(), SourceError> {
        self.cut(0)?;
        self.set_state(PartialState::default())
    }

    /// Writes the state: data first, so that the state never promises bytes that a crash has lost.
    pub(crate) fn set_state(&mut self, state: PartialState) -> Result<(), SourceError> {
        if state == self.state {
            return Ok(());
        }
        self.file.sync_data()?;
        let text = serde_json::to_vec(&state).map_err(std::io::Error::other)?;
        write_atomically(&self.dir.join("state.json"), &text)?;
        self.state = state;
        Ok(())
    }

    /// The digest of what is here; free where every byte came in this run.
    pub(crate) fn digest(&mut self, advanced: impl FnMut(u64)) -> Result<Digest, SourceError> {
        if let Some(hasher) = &self.hasher {
            return Ok(hasher.clone().finish());
        }
        self.file.seek(SeekFrom::Start(0))?;
        let digest = hash_reader(&self.file, advanced)?;
        self.file.seek(SeekFrom::Start(self.len))?;
        Ok(digest)
    }

    /// Whether [`Partial::digest`] has to read the file.
    pub(crate) fn digest_reads_file(&self) -> bool {
        self.hasher.is_none()
    }

    /// Flushes to the disk.
    pub(crate) fn sync(&self) -> Result<(), SourceError> {
        Ok(self.file.sync_all()?)
    }

    /// Removes the folder; after the data has moved, or when the partial is abandoned.
    pub(crate) fn remove(self) -> Result<(), SourceError> {
        let Self { dir, file, .. } = self;
        drop(file);
        Ok(std::fs::remove_dir_all(dir)?)
    }
}

/// A damaged or missing state is an empty one: the bytes are checked at the end anyway.
fn read_state(path: &Path) -> PartialState {
    let Ok(text) = std::fs::read(path) else { return PartialState::default() };
    let state: PartialState = serde_json::from_slice(&text).unwrap_or_default();
    if state.part_ends.is_sorted() { state } else { PartialState::default() }
}

/// Writes a small file so that a crash leaves the old or the new content: temporary name, sync, rename, sync folder.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_folder_of(path)
}

/// Makes a rename inside the folder durable. Where folders cannot be opened (Windows) the system does it by itself.
pub(crate) fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_the_same_streamed_resumed_and_cut() {
        let dir = tempfile::tempdir().unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let mut partial = Partial::open(dir.path().join("p")).unwrap();
        partial.append(b"ab").unwrap();
        partial.set_state(PartialState { part_ends: vec![2], etag: None }).unwrap();
        drop(partial);

        let mut partial = Partial::open(dir.path().join("p")).unwrap();
        assert_eq!((partial.len(), partial.state().part_ends.as_slice()), (2, &[2][..]));
        partial.append(b"XY").unwrap();
        partial.cut(2).unwrap();
        partial.append(b"c").unwrap();
        assert!(partial.digest_reads_file());
        assert_eq!(partial.digest(|_| ()).unwrap().to_string(), abc);

        partial.clear().unwrap();
        assert_eq!(partial.state(), &PartialState::default());
        partial.append(b"abc").unwrap();
        assert!(!partial.digest_reads_file());
        assert_eq!(partial.digest(|_| ()).unwrap().to_string(), abc);
    }

    #[test]
    fn a_damaged_state_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{", "[]", r#"{"part_ends":[5,2]}"#, r#"{"part_ends":"x"}"#] {
            std::fs::write(dir.path().join("state.json"), text).unwrap();
            let partial = Partial::open(dir.path().to_owned()).unwrap();
            assert_eq!(partial.state(), &PartialState::default(), "{text}");
        }
    }
}
