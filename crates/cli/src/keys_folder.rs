//! The directory of a data folder, and the first key. What a key may do is the ledger's.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use mintage_ledger::DirectoryStore;
use mintage_ledger::directory::{CreatedKey, NewKey};

use crate::config::Settings;

/// The tenant of keys that nobody assigned.
pub(crate) const DEFAULT_TENANT: &str = "default";
/// The environment variable with the first key.
pub(crate) const BOOTSTRAP_VARIABLE: &str = "MINTAGE_BOOTSTRAP_KEY";

/// How a caller can prove itself to the server.
pub(crate) enum FirstKey {
    /// Made now; to be shown this once.
    Created(Box<CreatedKey>),
    /// Taken from the environment.
    Bootstrap,
    /// There are keys already.
    Existing,
    /// Everyone is served.
    NotNeeded,
}

/// Opens the directory of a data folder.
pub(crate) fn open(data_dir: &Path) -> Result<DirectoryStore> {
    let folder = data_dir.join("keys");
    DirectoryStore::open(&folder)
        .with_context(|| format!("the API keys in {} cannot be opened", folder.display()))
}

/// Opens the directory that the settings name: the database's where gateways share one, else the data folder's.
pub(crate) fn open_by(settings: &Settings) -> Result<DirectoryStore> {
    match settings.ledger.shared()? {
        None => open(&settings.data_dir),
        Some(url) => DirectoryStore::open_shared(&settings.data_dir.join("keys"), &url)
            .with_context(|| format!("the API keys in {url} cannot be opened")),
    }
}

/// Takes the key of the environment, if there is one.
pub(crate) fn import_bootstrap(keys: &DirectoryStore) -> Result<bool> {
    let Some(key) = std::env::var(BOOTSTRAP_VARIABLE).ok().filter(|key| !key.is_empty()) else {
        return Ok(false);
    };
    let project = keys.ensure_tenant(DEFAULT_TENANT, now_unix())?;
    keys.import_key("bootstrap", &project.id, &key, now_unix())
        .with_context(|| format!("the key in {BOOTSTRAP_VARIABLE} cannot be used"))?;
    Ok(true)
}

/// Makes a key if no valid one exists.
pub(crate) fn ensure_first(keys: &DirectoryStore) -> Result<FirstKey> {
    if keys.has_valid_key(now_unix()) {
        return Ok(FirstKey::Existing);
    }
    let project = keys.ensure_tenant(DEFAULT_TENANT, now_unix())?;
    let new = NewKey::of_project("first", &project.id);
    Ok(FirstKey::Created(Box::new(keys.create_key(new, now_unix())?)))
}

/// Seconds since 1970.
pub(crate) fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_secs())
}
