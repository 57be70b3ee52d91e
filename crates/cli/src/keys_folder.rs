//! The key store of a data folder, and the first key. What a key may do is the ledger's.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use mintage_ledger::{CreatedKey, KeyStore};

/// The tenant of keys that nobody assigned.
pub(crate) const DEFAULT_TENANT: &str = "default";
/// The environment variable with the first key.
pub(crate) const BOOTSTRAP_VARIABLE: &str = "MINTAGE_BOOTSTRAP_KEY";

/// How a caller can prove itself to the server.
pub(crate) enum FirstKey {
    /// Made now; to be shown this once.
    Created(CreatedKey),
    /// Taken from the environment.
    Bootstrap,
    /// There are keys already.
    Existing,
    /// Everyone is served.
    NotNeeded,
}

/// Opens the key store of a data folder.
pub(crate) fn open(data_dir: &Path) -> Result<KeyStore> {
    let folder = data_dir.join("keys");
    KeyStore::open(&folder)
        .with_context(|| format!("the API keys in {} cannot be opened", folder.display()))
}

/// Takes the key of the environment, if there is one.
pub(crate) fn import_bootstrap(keys: &KeyStore) -> Result<bool> {
    let Some(key) = std::env::var(BOOTSTRAP_VARIABLE).ok().filter(|key| !key.is_empty()) else {
        return Ok(false);
    };
    keys.import("bootstrap", DEFAULT_TENANT, &key, now_unix())
        .with_context(|| format!("the key in {BOOTSTRAP_VARIABLE} cannot be used"))?;
    Ok(true)
}

/// Makes a key if no valid one exists.
pub(crate) fn ensure_first(keys: &KeyStore) -> Result<FirstKey> {
    if keys.has_valid_key(now_unix()) {
        return Ok(FirstKey::Existing);
    }
    Ok(FirstKey::Created(keys.create("first", DEFAULT_TENANT, now_unix(), None)?))
}

/// Seconds since 1970.
pub(crate) fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_secs())
}
