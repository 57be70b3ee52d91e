//! `mintage member`: people in an organisation.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::admin_client::{AdminArgs, AdminClient, Needs, escaped};
use crate::config::Settings;
use crate::keys_folder::DEFAULT_TENANT;

const FIELDS: &[&str] = &["id", "name", "role", "organization"];

/// Add, list, change, remove members of an organisation
#[derive(Debug, Args)]
pub(crate) struct MemberArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: MemberCommand,
}

#[derive(Debug, Subcommand)]
enum MemberCommand {
    /// Add a member
    Add {
        /// Address or name
        name: String,
        /// owner, admin, developer, billing or viewer
        #[arg(long, default_value = "developer")]
        role: String,
        /// Of which organisation: id or name
        #[arg(long, default_value = DEFAULT_TENANT)]
        org: String,
    },
    /// List an organisation's members
    List {
        /// Of which organisation: id or name
        #[arg(long, default_value = DEFAULT_TENANT)]
        org: String,
    },
    /// Change a member's role
    Role {
        /// The member's id
        id: String,
        /// owner, admin, developer, billing or viewer
        role: String,
    },
    /// Remove a member: its keys open nothing from then on
    Remove {
        /// The member's id
        id: String,
    },
}

pub(crate) fn run(settings: &Settings, args: &MemberArgs) -> Result<()> {
    let client = AdminClient::open(settings, &args.admin, Needs::Directory)?;
    let of = |org: &str| -> Result<String> {
        Ok(format!("/admin/v1/organizations/{}/members", escaped(&client.organisation(org)?)))
    };
    let one = |id: &str| format!("/admin/v1/members/{}", escaped(id));
    let shown = match &args.command {
        MemberCommand::Add { name, role, org } => {
            client.call("POST", &of(org)?, Some(&json!({"name": name, "role": role})))?
        }
        MemberCommand::List { org } => client.list(&of(org)?)?,
        MemberCommand::Role { id, role } => {
            client.call("PATCH", &one(id), Some(&json!({"role": role})))?
        }
        MemberCommand::Remove { id } => {
            let gone = client.call("DELETE", &one(id), None)?;
            return client.show(&gone, &["id", "deleted"]);
        }
    };
    client.show(&shown, FIELDS)
}
