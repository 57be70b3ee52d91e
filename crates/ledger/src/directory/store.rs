//! The directory in a file, shared by the processes of one installation, and its index in memory.
//!
//! Invariants: what is on disk is always a whole, valid file (written beside, synced, renamed), and every change is
//! made under a file lock on a fresh read, so two processes do not lose each other's changes. Checking a key takes a
//! read lock for the time of a look-up and touches no disk.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::secret::{self, MAX_PRESENTED_BYTES, PEPPER_BYTES, PREFIX, Pepper, hex, random_base62};
use super::state::{KeyRecord, Written};
use super::{
    ApiKey, Directory, DirectoryError, KeyOwner, KeyRefusal, NewKey, Organisation, Principal,
    Project, Secret,
};
use crate::postgres::{PostgresUrl, SharedDirectory};

/// Operators' own keys: shorter ones could be guessed.
const MIN_IMPORTED_BYTES: usize = 8;
/// A file is not read beyond this.
const MAX_FILE_BYTES: u64 = 64 << 20;
const FORMAT_VERSION: u32 = 1;
const ID_CHARS: usize = 16;

const DIRECTORY_FILE: &str = "directory.json";
/// What the first version of this program kept, and what becomes of it.
const OLD_KEYS_FILE: &str = "keys.json";
const OLD_KEYS_TAKEN: &str = "keys.json.imported";
const PEPPER_FILE: &str = "keys.pepper";
const LOCK_FILE: &str = "keys.lock";

/// A key just made: the only time its secret is seen.
#[derive(Debug)]
pub struct CreatedKey {
    /// What is kept.
    pub info: ApiKey,
    /// What its owner keeps.
    pub secret: Secret,
}

/// What became of a key that the operator brought along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Imported {
    /// It is new.
    Added(ApiKey),
    /// It was there already, not revoked.
    Known(ApiKey),
}

/// What a key is looked up for.
struct Indexed {
    hash: String,
    key: ApiKey,
    principal: Result<Arc<Principal>, KeyRefusal>,
}

struct Loaded {
    directory: Arc<Directory>,
    index: HashMap<String, Indexed>,
    stamp: Option<Stamp>,
}

/// Tells whether the directory changed since it was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stamp {
    File { modified: SystemTime, len: u64 },
    Version(i64),
}

/// Where the directory is kept.
enum Home {
    /// In the folder's own file.
    Folder,
    /// In the database that gateways share; the folder has the pepper.
    Shared(Box<SharedDirectory>),
}

/// The directory of one installation, in a folder of its own. Shared between threads.
pub struct DirectoryStore {
    folder: PathBuf,
    home: Home,
    pepper: Pepper,
    loaded: RwLock<Loaded>,
}

impl fmt::Debug for DirectoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectoryStore").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl DirectoryStore {
    /// Opens the directory in `folder`, creating the folder and the pepper where they do not exist. Keys of an older
    /// version are taken over once: each tenant becomes an organisation with one project.
    ///
    /// # Errors
    /// [`DirectoryError::Io`], [`DirectoryError::Damaged`], or no random numbers for a new pepper.
    pub fn open(folder: &Path) -> Result<Self, DirectoryError> {
        fs::create_dir_all(folder).map_err(io_error("create", folder))?;
        let _lock = lock(folder)?;
        let pepper = read_or_make_pepper(folder)?;
        take_over_old_keys(folder)?;
        let loaded = load(&folder.join(DIRECTORY_FILE))?;
        let loaded = RwLock::new(loaded);
        Ok(Self { folder: folder.to_owned(), home: Home::Folder, pepper, loaded })
    }

    /// Opens the directory that gateways share in a database. Where there is none yet, the folder's own becomes it.
    /// The pepper stays in the folder: whoever steals the database has no keys. All gateways need the same.
    ///
    /// # Errors
    /// [`DirectoryError::Shared`]; [`DirectoryError::Invalid`] where the folder's pepper is another one.
    pub fn open_shared(folder: &Path, url: &PostgresUrl) -> Result<Self, DirectoryError> {
        let own = Self::open(folder)?;
        let directory = SharedDirectory::open(url)?;
        let text = to_text(&own.snapshot(), shared_path())?;
        let check = hex(&own.pepper.keyed("check", "shared directory"));
        if directory.found(&text, &check)? != check {
            return Err(DirectoryError::Invalid(format!(
                "{} is not the pepper that the shared directory was made with: copy the file from \
                 another gateway",
                folder.join(PEPPER_FILE).display()
            )));
        }
        let store = Self { home: Home::Shared(Box::new(directory)), ..own };
        store.reload_if_changed()?;
        Ok(store)
    }

    /// The directory as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Directory> {
        self.with(|loaded| Arc::clone(&loaded.directory))
    }

    /// Changes the directory; what `change` refuses changes nothing. Durable when it returns.
    ///
    /// # Errors
    /// What `change` says, or the file could not be written.
    pub fn change<T>(
        &self,
        change: impl FnOnce(&mut Directory) -> Result<T, DirectoryError>,
    ) -> Result<T, DirectoryError> {
        let _lock = lock(&self.folder)?;
        let (outcome, fresh) = match &self.home {
            Home::Folder => {
                let path = self.folder.join(DIRECTORY_FILE);
                let mut directory = read_directory(&path)?;
                let outcome = change(&mut directory)?;
                write_directory(&path, &directory)?;
                (outcome, index(directory, stamp(&path)?))
            }
            Home::Shared(shared) => {
                let mut turn = shared.begin()?;
                let mut directory = from_text(turn.body(), shared_path())?;
                let outcome = change(&mut directory)?;
                let version = turn.finish(to_text(&directory, shared_path())?)?;
                (outcome, index(directory, Some(Stamp::Version(version))))
            }
        };
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(outcome)
    }

    /// Makes an organisation.
    ///
    /// # Errors
    /// As [`Directory::put_organisation`], or the file could not be written.
    pub fn create_organisation(
        &self,
        name: &str,
        now_unix: u64,
    ) -> Result<Organisation, DirectoryError> {
        let organisation = Organisation {
            id: format!("org-{}", random_base62(ID_CHARS)?),
            name: name.to_owned(),
            created_unix: now_unix,
            weight: 1,
            policy: Default::default(),
            suspended: false,
        };
        self.change(|directory| directory.put_organisation(organisation.clone()))?;
        Ok(organisation)
    }

    /// Makes a project.
    ///
    /// # Errors
    /// As [`Directory::put_project`], or the file could not be written.
    pub fn create_project(
        &self,
        organisation: &str,
        name: &str,
        now_unix: u64,
    ) -> Result<Project, DirectoryError> {
        let project = Project {
            id: format!("proj_{}", random_base62(ID_CHARS)?),
            organisation: organisation.to_owned(),
            name: name.to_owned(),
            created_unix: now_unix,
            policy: Default::default(),
            archived_unix: None,
        };
        self.change(|directory| directory.put_project(project.clone()))?;
        Ok(project)
    }

    /// The project `default` of the organisation named `tenant`; both are made where they do not exist.
    ///
    /// # Errors
    /// A name that cannot be used, or the file could not be written.
    pub fn ensure_tenant(&self, tenant: &str, now_unix: u64) -> Result<Project, DirectoryError> {
        if let Some(project) = project_of(&self.snapshot(), tenant) {
            return Ok(project);
        }
        let ids = tenant_ids(tenant)?;
        self.change(|directory| ensure_tenant(directory, tenant, &ids, now_unix))
    }

    /// Makes a key.
    ///
    /// # Errors
    /// [`DirectoryError`] for a name, scope or policy that cannot be used, an owner that does not exist, too many keys,
    /// or the file could not be written.
    pub fn create_key(&self, new: NewKey, now_unix: u64) -> Result<CreatedKey, DirectoryError> {
        let (id, secret) = secret::new_key()?;
        let info = ApiKey {
            display: format!("{PREFIX}{id}"),
            lineage: id.clone(),
            id,
            name: new.name,
            owner: new.owner,
            created_unix: now_unix,
            expires_unix: new.expires_unix,
            disabled_unix: None,
            revoked_unix: None,
            scopes: new.scopes,
            policy: new.policy,
        };
        let hash = hex(&self.pepper.hash(secret.expose()));
        self.change(|directory| directory.add_key(KeyRecord { key: info.clone(), hash }))?;
        Ok(CreatedKey { info, secret })
    }

    /// Makes a key that takes the place of another: same owner, scopes, rules and counters. The old one opens for
    /// another `overlap_s`, and is refused then.
    ///
    /// # Errors
    /// There is no such key, it is revoked, or the file could not be written.
    pub fn rotate_key(
        &self,
        id: &str,
        overlap_s: u64,
        now_unix: u64,
    ) -> Result<CreatedKey, DirectoryError> {
        let (new_id, secret) = secret::new_key()?;
        let hash = hex(&self.pepper.hash(secret.expose()));
        let info = self.change(|directory| {
            let old = directory.key(id)?.clone();
            if let Err(why) = old.validity(now_unix) {
                let message = format!("the key `{id}` is {why}; make a new one instead");
                return Err(DirectoryError::Invalid(message));
            }
            let end = now_unix.saturating_add(overlap_s);
            directory.change_key(id, |key| {
                key.expires_unix = Some(key.expires_unix.map_or(end, |known| known.min(end)));
            })?;
            let info = ApiKey {
                display: format!("{PREFIX}{new_id}"),
                id: new_id,
                created_unix: now_unix,
                ..old
            };
            directory.add_key(KeyRecord { key: info.clone(), hash })?;
            Ok(info)
        })?;
        Ok(CreatedKey { info, secret })
    }

    /// Takes a key that the operator chose, such as the bootstrap key of a container, for a project. Taking it twice
    /// is no error.
    ///
    /// # Errors
    /// [`DirectoryError::Invalid`] where it is too short, too long or holds anything but visible ASCII, or where it was
    /// revoked here before.
    pub fn import_key(
        &self,
        name: &str,
        project: &str,
        key: &str,
        now_unix: u64,
    ) -> Result<Imported, DirectoryError> {
        if !(MIN_IMPORTED_BYTES..=MAX_PRESENTED_BYTES).contains(&key.len()) {
            return Err(DirectoryError::Invalid(format!(
                "a key has {MIN_IMPORTED_BYTES} to {MAX_PRESENTED_BYTES} characters, this one has {}",
                key.len()
            )));
        }
        if !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(DirectoryError::Invalid(
                "a key consists of visible ASCII characters without spaces".into(),
            ));
        }
        let id = self
            .pepper
            .id_of(key)
            .map_err(|_| DirectoryError::Invalid("the key is too long".to_owned()))?;
        let hash = hex(&self.pepper.hash(key));
        let new = NewKey::of_project(name, project);
        self.change(|directory| match directory.keys.get(&id) {
            Some(known) if known.hash != hash => {
                Err(DirectoryError::Invalid(format!("another key has the id `{id}` already")))
            }
            Some(known) if known.key.revoked_unix.is_some() => {
                Err(DirectoryError::Invalid(format!("the key `{id}` was revoked; choose another")))
            }
            Some(known) => Ok(Imported::Known(known.key.clone())),
            None => {
                let info = ApiKey {
                    display: format!("{}…", key.get(..4).unwrap_or_default()),
                    lineage: id.clone(),
                    id,
                    name: new.name,
                    owner: new.owner,
                    created_unix: now_unix,
                    expires_unix: None,
                    disabled_unix: None,
                    revoked_unix: None,
                    scopes: new.scopes,
                    policy: new.policy,
                };
                directory.add_key(KeyRecord { key: info.clone(), hash })?;
                Ok(Imported::Added(info))
            }
        })
    }

    /// Revokes a key for good. Revoking twice keeps the first time.
    ///
    /// # Errors
    /// [`DirectoryError::NoSuch`], or the file could not be written.
    pub fn revoke_key(&self, id: &str, now_unix: u64) -> Result<(), DirectoryError> {
        self.change(|directory| {
            directory.change_key(id, |key| {
                key.revoked_unix.get_or_insert(now_unix);
            })
        })?;
        Ok(())
    }

    /// Switches a key off, or on again.
    ///
    /// # Errors
    /// [`DirectoryError::NoSuch`], or the file could not be written.
    pub fn set_key_enabled(
        &self,
        id: &str,
        enabled: bool,
        now_unix: u64,
    ) -> Result<(), DirectoryError> {
        self.change(|directory| {
            directory.change_key(id, |key| {
                key.disabled_unix =
                    if enabled { None } else { Some(key.disabled_unix.unwrap_or(now_unix)) };
            })
        })?;
        Ok(())
    }

    /// Whether any key of a project would be accepted at `now_unix`.
    #[must_use]
    pub fn has_valid_key(&self, now_unix: u64) -> bool {
        self.with(|loaded| {
            loaded.index.values().any(|indexed| {
                indexed.key.validity(now_unix).is_ok()
                    && indexed.principal.as_ref().is_ok_and(|p| p.project.is_some())
            })
        })
    }

    /// Checks a presented key and says for whom it stands.
    ///
    /// # Errors
    /// [`KeyRefusal`] says why not. An unknown id costs the same hash as a known one.
    pub fn authenticate(
        &self,
        presented: &str,
        now_unix: u64,
    ) -> Result<Arc<Principal>, KeyRefusal> {
        let id = self.pepper.id_of(presented)?;
        let hash = hex(&self.pepper.hash(presented));
        self.with(|loaded| {
            let indexed = loaded.index.get(&id);
            // An id that nobody has is compared with zeros, which no HMAC yields in practice: same work, same answer.
            let nobody = [b'0'; 64];
            let expected = indexed.map_or(&nobody[..], |i| i.hash.as_bytes());
            let equal = bool::from(expected.ct_eq(hash.as_bytes()));
            match indexed {
                Some(indexed) if equal => {
                    indexed.key.validity(now_unix)?;
                    indexed.principal.clone()
                }
                _ => Err(KeyRefusal::Unknown),
            }
        })
    }

    /// For whom a key stands, by its id: for work that goes on after the request that brought it.
    ///
    /// # Errors
    /// [`KeyRefusal`] says why not, as it would the key's holder.
    pub fn principal(&self, key: &str, now_unix: u64) -> Result<Arc<Principal>, KeyRefusal> {
        self.with(|loaded| {
            let indexed = loaded.index.get(key).ok_or(KeyRefusal::Unknown)?;
            indexed.key.validity(now_unix)?;
            indexed.principal.clone()
        })
    }

    /// Reads the file again if another process changed it; `true` if so. Cheap: one `stat` otherwise.
    ///
    /// # Errors
    /// The file can no longer be read; what was known so far stays in force.
    pub fn reload_if_changed(&self) -> Result<bool, DirectoryError> {
        let known = self.with(|loaded| loaded.stamp);
        let fresh = match &self.home {
            Home::Folder => {
                let path = self.folder.join(DIRECTORY_FILE);
                if known == stamp(&path)? {
                    return Ok(false);
                }
                load(&path)?
            }
            Home::Shared(shared) => {
                let version = match known {
                    Some(Stamp::Version(version)) => version,
                    _ => 0,
                };
                let Some((version, text)) = shared.newer_than(version)? else { return Ok(false) };
                index(from_text(&text, shared_path())?, Some(Stamp::Version(version)))
            }
        };
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(true)
    }

    /// A secret of this installation for another purpose, derived from the pepper; the same on every start.
    #[must_use]
    pub fn derived_secret(&self, purpose: &str) -> [u8; 32] {
        self.pepper.keyed("derive", purpose)
    }

    fn with<T>(&self, read: impl FnOnce(&Loaded) -> T) -> T {
        read(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Ids for an organisation and its project, should they be needed. Those of the tenant `default` are known names.
fn tenant_ids(tenant: &str) -> Result<(String, String), DirectoryError> {
    if tenant == "default" {
        return Ok(("org-default".to_owned(), "proj_default".to_owned()));
    }
    let random = random_base62(ID_CHARS)?;
    Ok((format!("org-{random}"), format!("proj_{random}")))
}

fn project_of(directory: &Directory, tenant: &str) -> Option<Project> {
    let organisation = directory.organisations().find(|o| o.name == tenant)?;
    let of = |p: &&Project| p.organisation == organisation.id && p.name == "default";
    directory.projects().find(of).cloned()
}

fn ensure_tenant(
    directory: &mut Directory,
    tenant: &str,
    (organisation_id, project_id): &(String, String),
    now_unix: u64,
) -> Result<Project, DirectoryError> {
    if let Some(project) = project_of(directory, tenant) {
        return Ok(project);
    }
    let known = directory.organisations().find(|o| o.name == tenant).map(|o| o.id.clone());
    let organisation = match known {
        Some(id) => id,
        None => {
            directory.put_organisation(Organisation {
                id: organisation_id.clone(),
                name: tenant.to_owned(),
                created_unix: now_unix,
                weight: 1,
                policy: Default::default(),
                suspended: false,
            })?;
            organisation_id.clone()
        }
    };
    let project = Project {
        id: project_id.clone(),
        organisation,
        name: "default".to_owned(),
        created_unix: now_unix,
        policy: Default::default(),
        archived_unix: None,
    };
    directory.put_project(project.clone())?;
    Ok(project)
}

/// A key as the first version of this program wrote it down.
#[derive(Deserialize)]
struct OldKey {
    id: String,
    name: String,
    tenant: String,
    display: String,
    created_unix: u64,
    expires_unix: Option<u64>,
    revoked_unix: Option<u64>,
    hash: String,
}

#[derive(Deserialize)]
struct OldKeys {
    version: u32,
    keys: Vec<OldKey>,
}

/// Under the lock. The old file is put aside once the new one is safe.
fn take_over_old_keys(folder: &Path) -> Result<(), DirectoryError> {
    let old_path = folder.join(OLD_KEYS_FILE);
    let new_path = folder.join(DIRECTORY_FILE);
    let Some(text) = read_bounded(&old_path)? else { return Ok(()) };
    if read_bounded(&new_path)?.is_none() {
        let damaged = |message| DirectoryError::Damaged { path: old_path.clone(), message };
        let old: OldKeys = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        if old.version != FORMAT_VERSION {
            return Err(damaged(format!("its version is {}, expected 1", old.version)));
        }
        let mut directory = Directory::default();
        for key in old.keys {
            let ids = tenant_ids(&key.tenant)?;
            let project = ensure_tenant(&mut directory, &key.tenant, &ids, key.created_unix)?;
            let info = ApiKey {
                lineage: key.id.clone(),
                id: key.id,
                name: key.name,
                owner: KeyOwner::Project(project.id),
                display: key.display,
                created_unix: key.created_unix,
                expires_unix: key.expires_unix,
                disabled_unix: None,
                revoked_unix: key.revoked_unix,
                scopes: Default::default(),
                policy: Default::default(),
            };
            directory
                .add_key(KeyRecord { key: info, hash: key.hash })
                .map_err(|e| damaged(e.to_string()))?;
        }
        write_directory(&new_path, &directory)?;
    }
    fs::rename(&old_path, folder.join(OLD_KEYS_TAKEN)).map_err(io_error("rename", &old_path))
}

fn index(directory: Directory, stamp: Option<Stamp>) -> Loaded {
    let entry = |record: &KeyRecord| Indexed {
        hash: record.hash.clone(),
        key: record.key.clone(),
        principal: directory.principal(&record.key).map(Arc::new),
    };
    let index =
        directory.keys.values().map(|record| (record.key.id.clone(), entry(record))).collect();
    Loaded { index, directory: Arc::new(directory), stamp }
}

fn load(path: &Path) -> Result<Loaded, DirectoryError> {
    let stamp = stamp(path)?;
    Ok(index(read_directory(path)?, stamp))
}

fn read_directory(path: &Path) -> Result<Directory, DirectoryError> {
    let Some(text) = read_bounded(path)? else { return Ok(Directory::default()) };
    from_text(&text, path)
}

fn from_text(text: &str, path: &Path) -> Result<Directory, DirectoryError> {
    let damaged = |message| DirectoryError::Damaged { path: path.to_owned(), message };
    let written: Written = serde_json::from_str(text).map_err(|e| damaged(e.to_string()))?;
    if written.version != FORMAT_VERSION {
        return Err(damaged(format!(
            "its version is {}, this program writes {FORMAT_VERSION}",
            written.version
        )));
    }
    Directory::read(written).map_err(damaged)
}

/// For messages: where a directory stands that is no file.
fn shared_path() -> &'static Path {
    Path::new("the shared directory")
}

fn to_text(directory: &Directory, path: impl AsRef<Path>) -> Result<String, DirectoryError> {
    serde_json::to_string_pretty(&directory.write(FORMAT_VERSION)).map_err(|e| {
        DirectoryError::Damaged { path: path.as_ref().to_owned(), message: e.to_string() }
    })
}

fn write_directory(path: &Path, directory: &Directory) -> Result<(), DirectoryError> {
    write_atomically(path, to_text(directory, path)?.as_bytes())
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Io { action, path, source }
}

/// Held until dropped; other processes wait.
fn lock(folder: &Path) -> Result<File, DirectoryError> {
    let path = folder.join(LOCK_FILE);
    let file = private_options()
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("open", &path))?;
    file.lock().map_err(io_error("lock", &path))?;
    Ok(file)
}

/// Under the lock.
fn read_or_make_pepper(folder: &Path) -> Result<Pepper, DirectoryError> {
    let path = folder.join(PEPPER_FILE);
    match read_bounded(&path)? {
        Some(text) => Pepper::parse(text.trim()).ok_or_else(|| DirectoryError::Damaged {
            path,
            message: format!("expected {} hexadecimal digits", 2 * PEPPER_BYTES),
        }),
        None => {
            let mut pepper = [0; PEPPER_BYTES];
            getrandom::fill(&mut pepper).map_err(|e| DirectoryError::Random(e.to_string()))?;
            write_atomically(&path, hex(&pepper).as_bytes())?;
            Ok(Pepper(pepper))
        }
    }
}

fn read_bounded(path: &Path) -> Result<Option<String>, DirectoryError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("open", path)(e)),
    };
    let mut text = String::new();
    let read =
        file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(io_error("read", path))?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(DirectoryError::Damaged {
            path: path.to_owned(),
            message: format!("it is longer than {MAX_FILE_BYTES} bytes"),
        });
    }
    Ok(Some(text))
}

fn stamp(path: &Path) -> Result<Option<Stamp>, DirectoryError> {
    match fs::metadata(path) {
        Ok(meta) => {
            let modified = meta.modified().map_err(io_error("examine", path))?;
            Ok(Some(Stamp::File { modified, len: meta.len() }))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error("examine", path)(e)),
    }
}

/// Under the lock, so one temporary name is enough.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), DirectoryError> {
    let beside = path.with_extension("tmp");
    let mut file = private_options()
        .create(true)
        .truncate(true)
        .open(&beside)
        .map_err(io_error("create", &beside))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io_error("write", &beside))?;
    fs::rename(&beside, path).map_err(io_error("replace", path))?;
    if let Some(folder) = path.parent() {
        File::open(folder).and_then(|f| f.sync_all()).map_err(io_error("sync", folder))?;
    }
    Ok(())
}

/// Readable by the owner only.
fn private_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}
