//! `mintage ledger`: verify, export, back up and restore the ledger, in a file or in PostgreSQL.
//!
//! All but `restore` and `migrate` work beside running servers.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use mintage_ledger::{
    DirectoryStore, PostgresUrl, Verified, backup_file, backup_shared, export_file, export_shared,
    migrate_file, restore_file, restore_shared, verify_file, verify_shared,
};

use crate::config::Settings;
use crate::output;

/// Verify, export, back up and restore the ledger
#[derive(Debug, Args)]
pub(crate) struct LedgerArgs {
    #[command(subcommand)]
    command: LedgerCommand,
}

#[derive(Debug, Subcommand)]
enum LedgerCommand {
    /// Hold every row to the hash chain, and every balance to the log
    Verify,
    /// Write the log and all usage records as lines of JSON
    Export {
        /// Into this file, which must not exist [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Copy the ledger into one verified file; the server may run
    Backup {
        /// The file, which must not exist
        file: PathBuf,
    },
    /// Move the ledger of the data folder into a PostgreSQL database, verified; no server may run
    Migrate {
        /// Of a database without a ledger: postgres://user:password@host/database [default: the settings' `ledger.url`]
        #[arg(long, value_name = "URL", hide_env_values = true)]
        to: Option<String>,
    },
    /// Make the ledger of the data folder, or of the database, from a backup; there must be none yet
    Restore {
        /// The backup
        file: PathBuf,
    },
}

pub(crate) fn run(settings: &Settings, args: &LedgerArgs) -> Result<()> {
    let folder = settings.data_dir.join("ledger");
    if let LedgerCommand::Migrate { to } = &args.command {
        let url: PostgresUrl = to.as_ref().unwrap_or(&settings.ledger.url.0).parse()?;
        let verified = migrate_file(&folder, &url)?;
        drop(DirectoryStore::open_shared(&settings.data_dir.join("keys"), &url)?);
        return Ok(output::print(&summary(&format!("moved to {url} and verified"), &verified))?);
    }
    if let Some(url) = settings.ledger.shared()? {
        return run_shared(&url, &args.command);
    }
    match &args.command {
        LedgerCommand::Migrate { .. } => Ok(()),
        LedgerCommand::Verify => {
            let verified = verify_file(&folder)
                .context("the ledger does not verify; restore a backup if it is damaged")?;
            Ok(output::print(&summary("verified", &verified))?)
        }
        LedgerCommand::Export { out: Some(path) } => {
            let file = std::fs::File::create_new(path)
                .with_context(|| format!("{} cannot be made", path.display()))?;
            let mut out = BufWriter::new(file);
            export_file(&folder, &mut out)?;
            let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            Ok(file.sync_all()?)
        }
        LedgerCommand::Export { out: None } => {
            let mut out = BufWriter::new(std::io::stdout().lock());
            export_file(&folder, &mut out)?;
            Ok(out.flush()?)
        }
        LedgerCommand::Backup { file } => {
            let verified = backup_file(&folder, file)?;
            Ok(output::print(&summary("backed up and verified", &verified))?)
        }
        LedgerCommand::Restore { file } => {
            let verified = restore_file(file, &folder)?;
            Ok(output::print(&summary("restored and verified", &verified))?)
        }
    }
}

/// On a ledger that gateways share.
fn run_shared(url: &PostgresUrl, command: &LedgerCommand) -> Result<()> {
    match command {
        LedgerCommand::Verify => {
            let verified = verify_shared(url).context("the ledger does not verify")?;
            Ok(output::print(&summary("verified", &verified))?)
        }
        LedgerCommand::Export { out: Some(path) } => {
            let file = std::fs::File::create_new(path)
                .with_context(|| format!("{} cannot be made", path.display()))?;
            let mut out = BufWriter::new(file);
            export_shared(url, &mut out)?;
            let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            Ok(file.sync_all()?)
        }
        LedgerCommand::Export { out: None } => {
            let mut out = BufWriter::new(std::io::stdout().lock());
            export_shared(url, &mut out)?;
            Ok(out.flush()?)
        }
        LedgerCommand::Backup { file } => {
            let verified = backup_shared(url, file)?;
            Ok(output::print(&summary("backed up and verified", &verified))?)
        }
        LedgerCommand::Restore { file } => {
            let verified = restore_shared(file, url)?;
            Ok(output::print(&summary("restored and verified", &verified))?)
        }
        LedgerCommand::Migrate { .. } => Ok(()),
    }
}

fn summary(what: &str, verified: &Verified) -> String {
    let Verified { lines, records, documents, marks, link } = verified;
    format!(
        "{what}: {lines} lines, {records} usage records, {documents} documents, {marks} open marks\n\
         last link {link}\n"
    )
}
