//! API keys: created once, shown once, kept as a keyed hash.
//!
//! A key reads `sk-mint-<id>-<secret><checksum>`: the id finds the record, the secret proves it, the checksum lets a
//! scanner (and us) tell a mistyped key without a look-up. A key that the operator brings along (a bootstrap key) may
//! have any form; its id is then derived from its hash.
//! Hashes are HMAC-SHA256 under a pepper that lies in a file of its own, so that a stolen key file alone is useless.
//! A secret of 256 random bits needs no slow hash. Comparison takes constant time.
//!
//! Not here: what a key may spend (accounts, limits), and how it travels (HTTP).
//! Invariant: what is on disk is always a whole, valid file (written beside, synced, renamed), and every change is made
//! under a file lock on a fresh read, so two processes do not lose each other's keys.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// How many keys one installation holds; more belongs into the shared ledger.
pub const MAX_KEYS: usize = 10_000;
/// Length of a key's or tenant's name.
pub const MAX_NAME_CHARS: usize = 64;
/// A key longer than this is refused before it is hashed.
const MAX_PRESENTED_BYTES: usize = 512;
/// Operators' own keys: shorter ones could be guessed.
const MIN_IMPORTED_BYTES: usize = 8;
/// The key file is not read beyond this.
const MAX_FILE_BYTES: u64 = 16 << 20;

const PREFIX: &str = "sk-mint-";
const ID_CHARS: usize = 12;
/// 43 digits of base 62 hold 256 bits.
const SECRET_CHARS: usize = 43;
const CHECKSUM_CHARS: usize = 6;
const PEPPER_BYTES: usize = 32;
const FORMAT_VERSION: u32 = 1;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

const KEYS_FILE: &str = "keys.json";
const PEPPER_FILE: &str = "keys.pepper";
const LOCK_FILE: &str = "keys.lock";

/// A key in clear text. Neither `Debug` nor an error ever shows it; it is wiped from nowhere, so let it live briefly.
pub struct Secret(String);

impl Secret {
    /// The text to hand to its owner.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A key just made: the only time its secret is seen.
#[derive(Debug)]
pub struct CreatedKey {
    /// What is kept.
    pub info: KeyInfo,
    /// What its owner keeps.
    pub secret: Secret,
}

/// What became of a key that the operator brought along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Imported {
    /// It is new.
    Added(KeyInfo),
    /// It was there already, not revoked.
    Known(KeyInfo),
}

/// What may be shown of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Finds the record; public.
    pub id: String,
    /// For people.
    pub name: String,
    /// On whose behalf requests with this key run.
    pub tenant: String,
    /// The first characters, so that its owner recognises it. Never part of the secret of a key made here.
    pub display: String,
    /// Seconds since 1970.
    pub created_unix: u64,
    /// Refused from then on, in seconds since 1970.
    pub expires_unix: Option<u64>,
    /// When it was revoked, in seconds since 1970.
    pub revoked_unix: Option<u64>,
}

/// A key that was presented and holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedKey {
    /// Finds the record; safe to log.
    pub id: String,
    /// On whose behalf the request runs.
    pub tenant: String,
}

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
    /// It was revoked.
    #[error("revoked")]
    Revoked,
}

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
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
    #[error("`{path}` is not a valid key file: {message}")]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The system gave no random bytes.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
    /// The caller's fault.
    #[error("{0}")]
    Invalid(String),
    /// No key has this id.
    #[error("there is no key with the id `{0}`")]
    NoSuchKey(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    info: KeyInfo,
    /// HMAC-SHA256(pepper, "key" ‖ whole key), hexadecimal.
    hash: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct KeysFile {
    version: u32,
    keys: Vec<Record>,
}

struct Loaded {
    records: BTreeMap<String, Record>,
    stamp: Option<Stamp>,
}

/// Tells whether the file changed since it was read.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    len: u64,
}

/// The keys of one installation, in a folder of their own. Shared between threads; verification takes a read lock and
/// touches no disk.
pub struct KeyStore {
    folder: PathBuf,
    pepper: [u8; PEPPER_BYTES],
    loaded: RwLock<Loaded>,
}

impl fmt::Debug for KeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyStore").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl KeyStore {
    /// Opens the store in `folder`, creating the folder and the pepper where they do not exist.
    ///
    /// # Errors
    /// [`KeyError::Io`], [`KeyError::Damaged`], or no random numbers for a new pepper.
    pub fn open(folder: &Path) -> Result<Self, KeyError> {
        fs::create_dir_all(folder).map_err(io_error("create", folder))?;
        let _lock = lock(folder)?;
        let pepper = read_or_make_pepper(folder)?;
        let loaded = load(&folder.join(KEYS_FILE))?;
        Ok(Self { folder: folder.to_owned(), pepper, loaded: RwLock::new(loaded) })
    }

    /// Makes a key. `name` and `tenant` have 1 to [`MAX_NAME_CHARS`] characters, none of them control characters.
    ///
    /// # Errors
    /// [`KeyError::Invalid`] for a name, too many keys, or the file could not be written.
    pub fn create(
        &self,
        name: &str,
        tenant: &str,
        now_unix: u64,
        expires_unix: Option<u64>,
    ) -> Result<CreatedKey, KeyError> {
        let id = random_base62(ID_CHARS)?;
        let secret = random_base62(SECRET_CHARS)?;
        let text = format!("{PREFIX}{id}-{secret}{}", checksum(&id, &secret));
        let info = KeyInfo {
            display: format!("{PREFIX}{id}"),
            id,
            name: checked_name("name", name)?,
            tenant: checked_name("tenant", tenant)?,
            created_unix: now_unix,
            expires_unix,
            revoked_unix: None,
        };
        let record = Record { info: info.clone(), hash: hex(&self.hash(&text)) };
        self.change(|records| insert(records, record))?;
        Ok(CreatedKey { info, secret: Secret(text) })
    }

    /// Takes a key that the operator chose, such as the bootstrap key of a container. Taking it twice is no error.
    ///
    /// # Errors
    /// [`KeyError::Invalid`] where it is shorter than 16 or longer than 512 bytes or holds anything but visible ASCII;
    /// [`KeyError::Invalid`] where it was revoked here before.
    pub fn import(
        &self,
        name: &str,
        tenant: &str,
        key: &str,
        now_unix: u64,
    ) -> Result<Imported, KeyError> {
        if !(MIN_IMPORTED_BYTES..=MAX_PRESENTED_BYTES).contains(&key.len()) {
            return Err(KeyError::Invalid(format!(
                "a key has {MIN_IMPORTED_BYTES} to {MAX_PRESENTED_BYTES} characters, this one has {}",
                key.len()
            )));
        }
        if !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(KeyError::Invalid(
                "a key consists of visible ASCII characters without spaces".into(),
            ));
        }
        let id =
            self.id_of(key).map_err(|_| KeyError::Invalid("the key is too long".to_owned()))?;
        let info = KeyInfo {
            display: format!("{}…", key.get(..4).unwrap_or_default()),
            id: id.clone(),
            name: checked_name("name", name)?,
            tenant: checked_name("tenant", tenant)?,
            created_unix: now_unix,
            expires_unix: None,
            revoked_unix: None,
        };
        let hash = hex(&self.hash(key));
        self.change(|records| match records.get(&id) {
            Some(known) if known.hash != hash => {
                Err(KeyError::Invalid(format!("another key has the id `{id}` already")))
            }
            Some(known) if known.info.revoked_unix.is_some() => {
                Err(KeyError::Invalid(format!("the key `{id}` was revoked; choose another")))
            }
            Some(known) => Ok(Imported::Known(known.info.clone())),
            None => {
                insert(records, Record { info: info.clone(), hash })?;
                Ok(Imported::Added(info))
            }
        })
    }

    /// Revokes a key for good. Revoking twice keeps the first time.
    ///
    /// # Errors
    /// [`KeyError::NoSuchKey`], or the file could not be written.
    pub fn revoke(&self, id: &str, now_unix: u64) -> Result<(), KeyError> {
        self.change(|records| {
            let record = records.get_mut(id).ok_or_else(|| KeyError::NoSuchKey(id.to_owned()))?;
            record.info.revoked_unix.get_or_insert(now_unix);
            Ok(())
        })
    }

    /// All keys, revoked and expired ones too, by id.
    #[must_use]
    pub fn list(&self) -> Vec<KeyInfo> {
        self.with(|loaded| loaded.records.values().map(|r| r.info.clone()).collect())
    }

    /// Whether any key would be accepted at `now_unix`.
    #[must_use]
    pub fn has_valid_key(&self, now_unix: u64) -> bool {
        self.with(|loaded| loaded.records.values().any(|r| validity(&r.info, now_unix).is_ok()))
    }

    /// Checks a presented key.
    ///
    /// # Errors
    /// [`KeyRefusal`] says why not. An unknown id costs the same hash as a known one.
    pub fn verify(&self, presented: &str, now_unix: u64) -> Result<VerifiedKey, KeyRefusal> {
        let id = self.id_of(presented)?;
        let hash = hex(&self.hash(presented));
        self.with(|loaded| {
            let record = loaded.records.get(&id);
            // An id that nobody has is compared with zeros, which no HMAC yields in practice: same work, same answer.
            let expected = record.map_or_else(|| "0".repeat(hash.len()), |r| r.hash.clone());
            let equal = bool::from(expected.as_bytes().ct_eq(hash.as_bytes()));
            match record {
                Some(record) if equal => {
                    validity(&record.info, now_unix)?;
                    Ok(VerifiedKey { id: id.clone(), tenant: record.info.tenant.clone() })
                }
                _ => Err(KeyRefusal::Unknown),
            }
        })
    }

    /// Reads the file again if another process changed it; `true` if so. Cheap: one `stat` otherwise.
    ///
    /// # Errors
    /// The file can no longer be read; the keys known so far stay in force.
    pub fn reload_if_changed(&self) -> Result<bool, KeyError> {
        let path = self.folder.join(KEYS_FILE);
        let stamp = stamp(&path)?;
        if self.with(|loaded| loaded.stamp == stamp) {
            return Ok(false);
        }
        let fresh = load(&path)?;
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(true)
    }

    /// A secret of this installation for another purpose, derived from the pepper; the same on every start.
    #[must_use]
    pub fn derived_secret(&self, purpose: &str) -> [u8; 32] {
        keyed_hash(&self.pepper, "derive", purpose)
    }

    fn hash(&self, key: &str) -> [u8; 32] {
        keyed_hash(&self.pepper, "key", key)
    }

    /// The id under which a presented key's record lies.
    fn id_of(&self, presented: &str) -> Result<String, KeyRefusal> {
        if presented.is_empty() || presented.len() > MAX_PRESENTED_BYTES {
            return Err(KeyRefusal::Malformed);
        }
        if let Some(id) = own_id(presented) {
            return Ok(id.to_owned());
        }
        // An imported key may look like anything, like one of ours with another checksum too.
        let mut id = hex(&keyed_hash(&self.pepper, "id", presented));
        id.truncate(16);
        id.insert_str(0, "own-");
        Ok(id)
    }

    fn with<T>(&self, read: impl FnOnce(&Loaded) -> T) -> T {
        read(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Applies a change to what the file holds now, writes it, and only then lets it count.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Record>) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let _lock = lock(&self.folder)?;
        let path = self.folder.join(KEYS_FILE);
        let mut fresh = load(&path)?;
        let outcome = change(&mut fresh.records)?;
        let file =
            KeysFile { version: FORMAT_VERSION, keys: fresh.records.values().cloned().collect() };
        let text = serde_json::to_string_pretty(&file)
            .map_err(|e| KeyError::Damaged { path: path.clone(), message: e.to_string() })?;
        write_atomically(&path, text.as_bytes())?;
        fresh.stamp = stamp(&path)?;
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(outcome)
    }
}

fn validity(info: &KeyInfo, now_unix: u64) -> Result<(), KeyRefusal> {
    if info.revoked_unix.is_some() {
        return Err(KeyRefusal::Revoked);
    }
    match info.expires_unix {
        Some(end) if now_unix >= end => Err(KeyRefusal::Expired),
        _ => Ok(()),
    }
}

fn insert(records: &mut BTreeMap<String, Record>, record: Record) -> Result<(), KeyError> {
    if records.len() >= MAX_KEYS {
        return Err(KeyError::Invalid(format!("there are {MAX_KEYS} keys already, the limit")));
    }
    records.insert(record.info.id.clone(), record);
    Ok(())
}

fn checked_name(what: &str, name: &str) -> Result<String, KeyError> {
    let chars = name.chars().count();
    if (1..=MAX_NAME_CHARS).contains(&chars) && !name.chars().any(char::is_control) {
        return Ok(name.to_owned());
    }
    Err(KeyError::Invalid(format!(
        "a {what} has 1 to {MAX_NAME_CHARS} characters and no control characters; this one has {chars}"
    )))
}

/// HMAC-SHA256(pepper, label ‖ 0 ‖ text): labels keep the uses of one pepper apart.
fn keyed_hash(pepper: &[u8; PEPPER_BYTES], label: &str, text: &str) -> [u8; 32] {
    let mut block = [0_u8; 64];
    block[..PEPPER_BYTES].copy_from_slice(pepper);
    let mut mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
    mac.update(label.as_bytes());
    mac.update(&[0]);
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().into()
}

/// The id inside a key of this store's making: right lengths, right checksum.
fn own_id(presented: &str) -> Option<&str> {
    let rest = presented.strip_prefix(PREFIX).filter(|rest| rest.is_ascii())?;
    if rest.len() != ID_CHARS + 1 + SECRET_CHARS + CHECKSUM_CHARS {
        return None;
    }
    let (id, rest) = rest.split_at(ID_CHARS);
    let (secret, given) = rest.strip_prefix('-')?.split_at(SECRET_CHARS);
    (checksum(id, secret) == given).then_some(id)
}

fn checksum(id: &str, secret: &str) -> String {
    let mut sum = Sha256::new();
    sum.update(PREFIX.as_bytes());
    sum.update(id.as_bytes());
    sum.update(b"-");
    sum.update(secret.as_bytes());
    // Slightly uneven over 62 digits, which does not matter to a checksum.
    sum.finalize()[..CHECKSUM_CHARS]
        .iter()
        .map(|b| char::from(BASE62[usize::from(*b) % 62]))
        .collect()
}

/// Digits drawn evenly: bytes of 248 and more are thrown away.
fn random_base62(chars: usize) -> Result<String, KeyError> {
    let mut out = String::with_capacity(chars);
    let mut bytes = [0_u8; 64];
    while out.len() < chars {
        getrandom::fill(&mut bytes).map_err(|e| KeyError::Random(e.to_string()))?;
        for byte in bytes.iter().filter(|b| **b < 248).take(chars - out.len()) {
            out.push(char::from(BASE62[usize::from(*byte) % 62]));
        }
    }
    Ok(out)
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|d| char::from(b"0123456789abcdef"[usize::from(d)]))
        .collect()
}

fn unhex(text: &str) -> Option<[u8; PEPPER_BYTES]> {
    let text = text.as_bytes();
    if text.len() != 2 * PEPPER_BYTES {
        return None;
    }
    let mut out = [0; PEPPER_BYTES];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |d: u8| char::from(d).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(out)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyError {
    let path = path.to_owned();
    move |source| KeyError::Io { action, path, source }
}

/// Held until dropped; other processes wait.
fn lock(folder: &Path) -> Result<File, KeyError> {
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
fn read_or_make_pepper(folder: &Path) -> Result<[u8; PEPPER_BYTES], KeyError> {
    let path = folder.join(PEPPER_FILE);
    match read_bounded(&path)? {
        Some(text) => unhex(text.trim()).ok_or_else(|| KeyError::Damaged {
            path,
            message: format!("expected {} hexadecimal digits", 2 * PEPPER_BYTES),
        }),
        None => {
            let mut pepper = [0; PEPPER_BYTES];
            getrandom::fill(&mut pepper).map_err(|e| KeyError::Random(e.to_string()))?;
            write_atomically(&path, hex(&pepper).as_bytes())?;
            Ok(pepper)
        }
    }
}

fn read_bounded(path: &Path) -> Result<Option<String>, KeyError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("open", path)(e)),
    };
    let mut text = String::new();
    let read =
        file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(io_error("read", path))?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(KeyError::Damaged {
            path: path.to_owned(),
            message: format!("it is longer than {MAX_FILE_BYTES} bytes"),
        });
    }
    Ok(Some(text))
}

fn load(path: &Path) -> Result<Loaded, KeyError> {
    let stamp = stamp(path)?;
    let Some(text) = read_bounded(path)? else {
        return Ok(Loaded { records: BTreeMap::new(), stamp });
    };
    let damaged = |message: String| KeyError::Damaged { path: path.to_owned(), message };
    let file: KeysFile = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
    if file.version != FORMAT_VERSION {
        return Err(damaged(format!(
            "its version is {}, this program writes {FORMAT_VERSION}",
            file.version
        )));
    }
    let mut records = BTreeMap::new();
    for record in file.keys {
        if records.insert(record.info.id.clone(), record).is_some() {
            return Err(damaged("two keys have the same id".into()));
        }
    }
    Ok(Loaded { records, stamp })
}

fn stamp(path: &Path) -> Result<Option<Stamp>, KeyError> {
    match fs::metadata(path) {
        Ok(meta) => {
            let modified = meta.modified().map_err(io_error("examine", path))?;
            Ok(Some(Stamp { modified, len: meta.len() }))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error("examine", path)(e)),
    }
}

/// Under the lock, so one temporary name is enough.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, KeyStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = KeyStore::open(folder.path()).unwrap();
        (folder, store)
    }

    #[test]
    fn a_created_key_opens_and_its_neighbours_do_not() {
        let (_folder, store) = store();
        let key = store.create("laptop", "acme", 100, None).unwrap();
        let text = key.secret.expose().to_owned();
        assert_eq!(text.len(), PREFIX.len() + ID_CHARS + 1 + SECRET_CHARS + CHECKSUM_CHARS);
        assert_eq!(
            store.verify(&text, 100),
            Ok(VerifiedKey { id: key.info.id.clone(), tenant: "acme".into() })
        );
        // One character changed anywhere never opens; the checksum catches it where it is well-formed.
        for at in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'x' { b'y' } else { b'x' };
            let other = String::from_utf8(other).unwrap();
            assert!(store.verify(&other, 100).is_err(), "position {at}");
        }
        // The right id and checksum with another secret: same first and last bytes matter not.
        let forged = random_base62(SECRET_CHARS).unwrap();
        let forged = format!("{PREFIX}{}-{forged}{}", key.info.id, checksum(&key.info.id, &forged));
        assert_eq!(store.verify(&forged, 100), Err(KeyRefusal::Unknown));
    }

    #[test]
    fn odd_presentations_are_refused() {
        let (_folder, store) = store();
        store.create("a", "t", 0, None).unwrap();
        let long = "x".repeat(MAX_PRESENTED_BYTES + 1);
        for (presented, why) in [
            ("", KeyRefusal::Malformed),
            (long.as_str(), KeyRefusal::Malformed),
            ("sk-mint-", KeyRefusal::Unknown),
            ("sk-mint-ключ", KeyRefusal::Unknown),
            ("' OR 1=1 --", KeyRefusal::Unknown),
            ("0000000000000000", KeyRefusal::Unknown),
        ] {
            assert_eq!(store.verify(presented, 0), Err(why), "{presented:?}");
        }
    }

    #[test]
    fn the_files_hold_no_secret_and_survive_a_restart() {
        let (folder, store) = store();
        let key = store.create("a", "t", 0, None).unwrap();
        let secret_part = &key.secret.expose()[PREFIX.len() + ID_CHARS + 1..];
        for entry in fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            assert!(!text.contains(&secret_part[..8]), "{}", path.display());
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0);
            }
        }
        assert!(!format!("{key:?} {store:?}").contains(&secret_part[..8]));
        let again = KeyStore::open(folder.path()).unwrap();
        assert!(again.verify(key.secret.expose(), 0).is_ok());
        // Another installation has another pepper: the same key file opens nothing there.
        let (other_folder, _) = self::store();
        fs::copy(folder.path().join(KEYS_FILE), other_folder.path().join(KEYS_FILE)).unwrap();
        let other = KeyStore::open(other_folder.path()).unwrap();
        assert_eq!(other.verify(key.secret.expose(), 0), Err(KeyRefusal::Unknown));
        assert_ne!(other.derived_secret("x"), store.derived_secret("x"));
        assert_eq!(again.derived_secret("x"), store.derived_secret("x"));
    }

    #[test]
    fn expiry_and_revocation() {
        let (folder, store) = store();
        let key = store.create("a", "t", 10, Some(20)).unwrap();
        let text = key.secret.expose();
        assert!(store.verify(text, 19).is_ok());
        assert_eq!(store.verify(text, 20), Err(KeyRefusal::Expired));
        assert!(store.has_valid_key(19) && !store.has_valid_key(20));

        // Revoked by another process: seen after a reload.
        let other = KeyStore::open(folder.path()).unwrap();
        other.revoke(&key.info.id, 12).unwrap();
        assert!(store.reload_if_changed().unwrap());
        assert!(!store.reload_if_changed().unwrap());
        assert_eq!(store.verify(text, 15), Err(KeyRefusal::Revoked));
        assert!(matches!(store.revoke("nobody", 0), Err(KeyError::NoSuchKey(_))));
    }

    #[test]
    fn a_bootstrap_key_is_taken_once() {
        let (_folder, store) = store();
        let key = "correct-horse-battery-staple";
        assert!(matches!(store.import("boot", "t", key, 0), Ok(Imported::Added(_))));
        let Ok(Imported::Known(info)) = store.import("boot", "t", key, 0) else {
            panic!("taken twice");
        };
        assert_eq!(store.list().len(), 1);
        assert_eq!(store.verify(key, 0).unwrap().tenant, "t");
        store.revoke(&info.id, 1).unwrap();
        assert!(store.import("boot", "t", key, 0).is_err());
        let lookalike = "sk-mint-looks-like-ours-but-is-not";
        assert!(matches!(store.import("b", "t", lookalike, 0), Ok(Imported::Added(_))));
        assert_eq!(store.verify(lookalike, 0).unwrap().tenant, "t");
        for bad in ["short", "has space in it 123"] {
            assert!(matches!(store.import("b", "t", bad, 0), Err(KeyError::Invalid(_))), "{bad}");
        }
    }

    #[test]
    fn two_writers_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let folder = folder.path();
                scope.spawn(move || {
                    let store = KeyStore::open(folder).unwrap();
                    for _ in 0..5 {
                        store.create("k", &format!("t{writer}"), 0, None).unwrap();
                    }
                });
            }
        });
        assert_eq!(KeyStore::open(folder.path()).unwrap().list().len(), 20);
    }

    #[test]
    fn damaged_files_are_refused_not_replaced() {
        for (file, text) in [
            (KEYS_FILE, "{"),
            (KEYS_FILE, r#"{"version":2,"keys":[]}"#),
            (PEPPER_FILE, "zz"),
            (PEPPER_FILE, ""),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(file), text).unwrap();
            assert!(
                matches!(KeyStore::open(folder.path()), Err(KeyError::Damaged { .. })),
                "{text}"
            );
            assert_eq!(fs::read_to_string(folder.path().join(file)).unwrap(), text);
        }
    }
}
