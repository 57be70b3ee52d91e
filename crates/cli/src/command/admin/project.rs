//! `mintage project`: projects of an organisation.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::admin_client::{AdminArgs, AdminClient, Needs, escaped};
use crate::config::Settings;
use crate::keys_folder::DEFAULT_TENANT;

const FIELDS: &[&str] = &["id", "name", "organization", "archived_at"];

/// Make, list, archive projects: they own keys
#[derive(Debug, Args)]
pub(crate) struct ProjectArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: ProjectCommand,
}

#[derive(Debug, Subcommand)]
enum ProjectCommand {
    /// Make a project
    Create {
        /// A name that no other of the organisation has
        name: String,
        /// Whose: id or name
        #[arg(long, default_value = DEFAULT_TENANT)]
        org: String,
    },
    /// List an organisation's projects
    List {
        /// Whose: id or name
        #[arg(long, default_value = DEFAULT_TENANT)]
        org: String,
        /// Archived ones too
        #[arg(long)]
        all: bool,
    },
    /// Archive a project for good: its keys are refused
    Archive {
        /// Its id
        id: String,
    },
}

pub(crate) fn run(settings: &Settings, args: &ProjectArgs) -> Result<()> {
    let client = AdminClient::open(settings, &args.admin, Needs::Directory)?;
    let of = |org: &str| -> Result<String> {
        Ok(format!("/admin/v1/organizations/{}/projects", escaped(&client.organisation(org)?)))
    };
    let shown = match &args.command {
        ProjectCommand::Create { name, org } => {
            client.call("POST", &of(org)?, Some(&json!({"name": name})))?
        }
        ProjectCommand::List { org, all } => {
            client.list(&format!("{}?include_archived={all}", of(org)?))?
        }
        ProjectCommand::Archive { id } => {
            client.call("POST", &format!("/admin/v1/projects/{}/archive", escaped(id)), None)?
        }
    };
    client.show(&shown, FIELDS)
}
