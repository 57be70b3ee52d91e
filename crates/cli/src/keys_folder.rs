//! The key store of a data folder, and the first key. What a key may do is the ledger's.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use mintage_ledger::{KeyStore, Secret};

/// The tenant of keys that nobody assigned.
pub(crate) const DEFAULT_TENANT: &str = "default";
/// The environment variable with the first key.
pub(crate) const BOOTSTRAP_VARIABLE: &str = "MINTAGE_BOOTSTRAP_KEY";

/// How the caller can prove itself to the server just started.
pub(crate) enum FirstKey {
    /// Made now; shown this once.
    Created(Secret),
    /// Taken from the environment.
    Bootstrap,
    /// There are keys already.
    Existing,
}

/// Opens the key store of a data folder.
pub(crate) fn open(data_dir: &Path) -> Result<KeyStore> {
    let folder = data_dir.join("keys");
    KeyStore::open(&folder)
        .with_context(|| format!("the API keys in {} cannot be opened", folder.display()))
}

/// Makes sure that there is a valid key.
pub(crate) fn ensure_first(keys: &KeyStore) -> Result<FirstKey> {
    let now = now_unix();
    if let Some(key) = std::env::var(BOOTSTRAP_VARIABLE).ok().filter(|key| !key.is_empty()) {
        keys.import("bootstrap", DEFAULT_TENANT, &key, now)
            .with_context(|| format!("the key in {BOOTSTRAP_VARIABLE} cannot be used"))?;
        return Ok(FirstKey::Bootstrap);
    }
    if keys.has_valid_key(now) {
        return Ok(FirstKey::Existing);
    }
    let created = keys.create("first", DEFAULT_TENANT, now, None)?;
    Ok(FirstKey::Created(created.secret))
}

/// Seconds since 1970.
pub(crate) fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_secs())
}
