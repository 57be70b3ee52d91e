//! `mintage keys`: make, list and revoke API keys. A running server notices.

use anyhow::Result;
use clap::{Args, Subcommand};
use mintage_ledger::KeyInfo;

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
    let keys = keys_folder::open(&settings.data_dir)?;
    match &args.command {
        KeysCommand::Create { name, tenant, expires_days } => {
            let now = now_unix();
            let expires = expires_days.map(|days| now.saturating_add(days.saturating_mul(DAY_S)));
            let created = keys.create(name, tenant, now, expires)?;
            eprintln!("this is the only time the key is shown:");
            output::print(&format!("{}\n", created.secret.expose()))?;
        }
        KeysCommand::List => {
            let now = now_unix();
            let rows: Vec<_> = keys.list().iter().map(|key| row(key, now)).collect();
            output::print(&output::table(&["ID", "NAME", "TENANT", "STATE"], &rows))?;
        }
        KeysCommand::Revoke { id } => {
            keys.revoke(id, now_unix())?;
            output::print(&format!("{id} is revoked\n"))?;
        }
    }
    Ok(())
}

fn row(key: &KeyInfo, now: u64) -> Vec<String> {
    let state = match (key.revoked_unix, key.expires_unix) {
        (Some(_), _) => "revoked".to_owned(),
        (None, Some(end)) if end <= now => "expired".to_owned(),
        (None, Some(end)) => format!("valid for {} days", (end - now).div_ceil(DAY_S)),
        (None, None) => "valid".to_owned(),
    };
    vec![key.id.clone(), key.name.clone(), key.tenant.clone(), state]
}
