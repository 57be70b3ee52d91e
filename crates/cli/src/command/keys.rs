//! `mintage keys`: make, list and revoke API keys. A running server notices.

use anyhow::Result;
use clap::{Args, Subcommand};
use mintage_ledger::directory::{ApiKey, Directory, KeyOwner, NewKey};

use crate::config::Settings;
use crate::keys_folder::{self, DEFAULT_TENANT, now_unix};
use crate::output;

/// Seconds of a day.
const DAY_S: u64 = 86_400;

/// Make, list and revoke API keys
#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key; it is shown once and stored as a hash
    Create {
        /// What it is for
        #[arg(default_value = "key")]
        name: String,
        /// Whose it is: prompts are cached apart for each tenant
        #[arg(long, default_value = DEFAULT_TENANT)]
        tenant: String,
        /// End its validity after so many days
        #[arg(long, value_name = "N")]
        expires_days: Option<u64>,
    },
    /// List keys; the keys themselves cannot be shown
    List,
    /// Revoke a key for good
    Revoke {
        /// Its id, as `mintage keys list` shows it
        id: String,
    },
}

pub(crate) fn run(settings: &Settings, args: &KeysArgs) -> Result<()> {
    let keys = keys_folder::open_by(settings)?;
    match &args.command {
        KeysCommand::Create { name, tenant, expires_days } => {
            let now = now_unix();
            let expires = expires_days.map(|days| now.saturating_add(days.saturating_mul(DAY_S)));
            let project = keys.ensure_tenant(tenant, now)?;
            let new = NewKey { expires_unix: expires, ..NewKey::of_project(name, &project.id) };
            let created = keys.create_key(new, now)?;
            eprintln!("this is the only time the key is shown:");
            output::print(&format!("{}\n", created.secret.expose()))?;
        }
        KeysCommand::List => {
            let now = now_unix();
            let directory = keys.snapshot();
            let rows: Vec<_> = directory.keys().map(|key| row(&directory, key, now)).collect();
            output::print(&output::table(&["ID", "NAME", "TENANT", "STATE"], &rows))?;
        }
        KeysCommand::Revoke { id } => {
            keys.revoke_key(id, now_unix())?;
            output::print(&format!("{id} is revoked\n"))?;
        }
    }
    Ok(())
}

/// The name of the organisation a key belongs to.
fn tenant(directory: &Directory, key: &ApiKey) -> String {
    let organisation = match &key.owner {
        KeyOwner::Project(id) => directory.project(id).map(|project| &project.organisation),
        KeyOwner::Member(id) => directory.member(id).map(|member| &member.organisation),
        KeyOwner::Operator => return "(operator)".to_owned(),
    };
    let name = organisation.and_then(|id| directory.organisation(id)).map(|o| o.name.clone());
    name.unwrap_or_else(|_| "(gone)".to_owned())
}

fn row(directory: &Directory, key: &ApiKey, now: u64) -> Vec<String> {
    let state = match (key.revoked_unix, key.expires_unix) {
        (Some(_), _) => "revoked".to_owned(),
        _ if key.disabled_unix.is_some() => "disabled".to_owned(),
        (None, Some(end)) if end <= now => "expired".to_owned(),
        (None, Some(end)) => format!("valid for {} days", (end - now).div_ceil(DAY_S)),
        (None, None) => "valid".to_owned(),
    };
    vec![key.id.clone(), key.name.clone(), tenant(directory, key), state]
}
