//! The content-addressed store on this machine's disk.
//!
//! ```text
//! blobs/sha256-<hex>          one file each, verified before it gets this name
//! manifests/<name>.json       which blobs make up a model, and where it came from
//! models/<name>/<file>        the same blobs under the names that loaders expect (links)
//! partial/<key>/              downloads under way
//! locks/<key>.lock            held while a key is pulled; `store` while the set of models changes
//! ```
//!
//! Not a cache: nothing leaves it unless asked. Invariant: a blob under its final name had the right digest when it
//! got there, and a manifest is written only when all of its blobs are there.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher, hash_reader};
use crate::error::{AtPath, HubError};
use crate::names::{FileName, ModelName};
use crate::partial::{Partial, sync_folder_of, write_atomically};
use crate::progress::{Progress, PullEvent};

/// Bytes of the largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// What a stored model consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The name it is called by.
    pub name: ModelName,
    /// Where it came from, for people and to tell two models of one name apart.
    pub origin: String,
    /// Licence, where known.
    pub licence: Option<String>,
    /// The file to open; `None` where the folder is the model (safetensors).
    pub entry: Option<FileName>,
    /// All files.
    pub files: Vec<ManifestFile>,
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its name as loaders expect it.
    pub name: FileName,
    /// Its content.
    pub sha256: Digest,
    /// Its size.
    pub bytes: u64,
    /// Modification time of the blob when it was verified, nanoseconds since 1970; a difference means: verify again.
    pub verified_mtime_ns: u64,
}

impl Manifest {
    /// Of the model's one file, or of the list of its files' digests and names.
    #[must_use]
    pub fn digest(&self) -> Digest {
        if let [only] = self.files.as_slice() {
            return only.sha256;
        }
        let mut hasher = Hasher::default();
        for file in &self.files {
            hasher.update(format!("{}  {}\n", file.sha256, file.name).as_bytes());
        }
        hasher.finish()
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// What a check of a stored model found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredState {
    /// Every blob is as it was when it was verified.
    Verified,
    /// A blob is missing or has another size or digest.
    Damaged {
        /// The digest it should have.
        expected: Digest,
    },
}

/// A held lock file. Released when dropped, and by the system when the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// The store under one data folder. Handles are cheap; several processes may use one folder.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store, creating its folders.
    ///
    /// # Errors
    /// Where a folder cannot be created.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, HubError> {
        let root = root.into();
        for folder in ["blobs", "manifests", "models", "partial", "locks"] {
            let path = root.join(folder);
            std::fs::create_dir_all(&path).at(&path)?;
        }
        Ok(Self { root })
    }

    /// The data folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the blob of a digest is, or would be.
    #[must_use]
    pub fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs").join(format!("sha256-{digest}"))
    }

    /// What a loader opens: a file, or a folder for safetensors.
    #[must_use]
    pub fn model_path(&self, manifest: &Manifest) -> PathBuf {
        let folder = self.root.join("models").join(manifest.name.as_str());
        manifest.entry.as_ref().map_or_else(|| folder.clone(), |entry| folder.join(entry.as_str()))
    }

    fn manifest_path(&self, name: &ModelName) -> PathBuf {
        self.root.join("manifests").join(format!("{name}.json"))
    }

    /// The manifest of a model, if it is stored.
    ///
    /// # Errors
    /// Where it cannot be read or parsed.
    pub fn manifest(&self, name: &ModelName) -> Result<Option<Manifest>, HubError> {
        let path = self.manifest_path(name);
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            found => {
                let bytes = found.at(&path)?.len();
                if bytes > MANIFEST_BYTES_MAX {
                    let message = format!("has {bytes} bytes; the limit is {MANIFEST_BYTES_MAX}");
                    return Err(HubError::Manifest { path, message });
                }
            }
        }
        let text = std::fs::read(&path).at(&path)?;
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| {
            HubError::Manifest { path: path.clone(), message: error.to_string() }
        })?;
        if manifest.name != *name {
            let message = format!("is the manifest of `{}`", manifest.name);
            return Err(HubError::Manifest { path, message });
        }
        Ok(Some(manifest))
    }

    /// All stored models by name.
    ///
    /// # Errors
    /// Where the folder or a manifest cannot be read.
    pub fn list(&self) -> Result<Vec<Manifest>, HubError> {
        let folder = self.root.join("manifests");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&folder).at(&folder)? {
            let file_name = entry.at(&folder)?.file_name();
            let name = file_name.to_str().and_then(|text| text.strip_suffix(".json"));
            names.extend(name.and_then(|text| text.parse::<ModelName>().ok()));
        }
        names.sort();
        names.iter().filter_map(|name| self.manifest(name).transpose()).collect()
    }

    /// Checks a model quickly: sizes and modification times; a blob whose time differs is hashed.
    ///
    /// # Errors
    /// On unreadable files; a missing one is not an error but [`StoredState::Damaged`].
    pub fn check(
        &self,
        manifest: &Manifest,
        progress: &dyn Progress,
    ) -> Result<StoredState, HubError> {
        for file in &manifest.files {
            let unchanged = self
                .blob_size_and_mtime(file.sha256)?
                .is_some_and(|found| found == (file.bytes, file.verified_mtime_ns));
            if !unchanged && !self.hash_matches(file, progress)? {
                return Ok(StoredState::Damaged { expected: file.sha256 });
            }
        }
        Ok(StoredState::Verified)
    }

    /// Hashes every blob of a model.
    ///
    /// # Errors
    /// As [`Store::check`].
    pub fn verify(
        &self,
        manifest: &Manifest,
        progress: &dyn Progress,
    ) -> Result<StoredState, HubError> {
        for file in &manifest.files {
            if !self.hash_matches(file, progress)? {
                return Ok(StoredState::Damaged { expected: file.sha256 });
            }
        }
        Ok(StoredState::Verified)
    }

    pub(crate) fn hash_matches(
        &self,
        file: &ManifestFile,
        progress: &dyn Progress,
    ) -> Result<bool, HubError> {
        let path = self.blob_path(file.sha256);
        if self.blob_size_and_mtime(file.sha256)?.map(|found| found.0) != Some(file.bytes) {
            return Ok(false);
        }
        progress.event(PullEvent::Verifying { file: file.name.as_str(), bytes: file.bytes });
        let mut at = 0;
        let digest = hash_reader(File::open(&path).at(&path)?, |read| {
            at += read;
            progress.event(PullEvent::At { at });
        })
        .at(&path)?;
        progress.event(PullEvent::Finished { file: file.name.as_str() });
        Ok(digest == file.sha256)
    }

    /// Size and modification time of a blob; `None` where there is none.
    pub(crate) fn blob_size_and_mtime(
        &self,
        digest: Digest,
    ) -> Result<Option<(u64, u64)>, HubError> {
        let path = self.blob_path(digest);
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            found => {
                let metadata = found.at(&path)?;
                let mtime =
                    metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
                let mtime_ns = mtime.and_then(|d| u64::try_from(d.as_nanos()).ok()).unwrap_or(0);
                Ok(Some((metadata.len(), mtime_ns)))
            }
        }
    }

    /// Folder of a download under way; the key is a digest or a checked name.
    pub(crate) fn partial_path(&self, key: &str) -> PathBuf {
        self.root.join("partial").join(key)
    }

    /// Folder of this process for what a pull of this model needs on the way, at one of its sources.
    pub(crate) fn scratch_path(&self, model: &ModelName, source: usize) -> PathBuf {
        self.partial_path(&format!("{model}--{source}--{}", std::process::id()))
    }

    /// Takes the lock of a key, calling `waiting` first if somebody else holds it.
    pub(crate) fn lock(&self, key: &str, waiting: impl FnOnce()) -> Result<Lock, HubError> {
        let path = self.root.join("locks").join(format!("{key}.lock"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .at(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock().at(&path)?;
            }
            Err(TryLockError::Error(error)) => return Err(error).at(&path),
        }
        Ok(Lock { _file: file })
    }

    /// Gives verified bytes their name. The caller has compared the digest.
    pub(crate) fn adopt(&self, partial: Partial, digest: Digest) -> Result<(), HubError> {
        let path = self.blob_path(digest);
        partial.sync()?;
        std::fs::rename(partial.data_path(), &path).at(&path)?;
        sync_folder_of(&path).at(&path)?;
        Ok(partial.remove()?)
    }

    /// Removes a blob that turned out to be damaged, so that it can be fetched anew.
    pub(crate) fn discard_blob(&self, digest: Digest) -> Result<(), HubError> {
        let path = self.blob_path(digest);
        remove_if_there(&path)
    }

    /// Makes a model visible: links, then the manifest.
    pub(crate) fn commit(&self, manifest: &Manifest) -> Result<(), HubError> {
        let _lock = self.lock("store", || ())?;
        let folder = self.root.join("models").join(manifest.name.as_str());
        std::fs::create_dir_all(&folder).at(&folder)?;
        for file in &manifest.files {
            let blob = self.blob_path(file.sha256);
            // A concurrent `rm` may have taken a blob that this model shares with the one removed.
            std::fs::metadata(&blob).at(&blob)?;
            let link = folder.join(file.name.as_str());
            // Renamed into place: a process that opens the model at this moment finds the old link or the new one.
            let temporary = folder.join(format!(".{}", file.name));
            remove_if_there(&temporary)?;
            link_to_blob(&blob, &temporary, file.sha256).at(&temporary)?;
            std::fs::rename(&temporary, &link).at(&link)?;
        }
        let text = serde_json::to_vec_pretty(manifest)
            .map_err(|error| HubError::Manifest { path: folder, message: error.to_string() })?;
        let path = self.manifest_path(&manifest.name);
        write_atomically(&path, &text).at(&path)
    }

    /// Removes a model and every blob that no other model uses. Returns the bytes freed; `None` where it is not there.
    ///
    /// # Errors
    /// Where a file cannot be removed.
    pub fn remove(&self, name: &ModelName) -> Result<Option<u64>, HubError> {
        let _lock = self.lock("store", || ())?;
        let Some(manifest) = self.manifest(name)? else { return Ok(None) };
        remove_if_there(&self.manifest_path(name))?;
        let folder = self.root.join("models").join(name.as_str());
        if folder.exists() {
            std::fs::remove_dir_all(&folder).at(&folder)?;
        }
        let others = self.list()?;
        let in_use = |digest| others.iter().flat_map(|m| &m.files).any(|f| f.sha256 == digest);
        let mut freed = 0;
        for file in manifest.files.iter().filter(|file| !in_use(file.sha256)) {
            freed += self.blob_size_and_mtime(file.sha256)?.map_or(0, |found| found.0);
            self.discard_blob(file.sha256)?;
        }
        Ok(Some(freed))
    }
}

fn remove_if_there(path: &Path) -> Result<(), HubError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at(path),
        _ => Ok(()),
    }
}

/// Relative, so that the data folder can be moved or mounted elsewhere.
#[cfg(unix)]
fn link_to_blob(_blob: &Path, link: &Path, digest: Digest) -> std::io::Result<()> {
    std::os::unix::fs::symlink(format!("../../blobs/sha256-{digest}"), link)
}

#[cfg(not(unix))]
fn link_to_blob(blob: &Path, link: &Path, _digest: Digest) -> std::io::Result<()> {
    std::fs::hard_link(blob, link)
}
