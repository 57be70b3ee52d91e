//! OpenAI's own administration, under the addresses and in the forms of its document: projects and their keys, users,
//! admin keys, usage and costs. The organisation is the key's own; the operator names one in `OpenAI-Organization`.
//!
//! Not here: what this installation has beyond it (`/admin/v1`). What both have is the same thing seen twice.

pub(crate) mod admin_keys;
mod buckets;
pub(crate) mod project_keys;
pub(crate) mod projects;
pub(crate) mod usage;
pub(crate) mod users;

use mintage_ledger::directory::ApiKey;

/// What may be seen of a key, as OpenAI shortens it.
fn redacted(key: &ApiKey) -> String {
    format!("{}-…", key.display.trim_end_matches('…'))
}
