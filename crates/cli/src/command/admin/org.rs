//! `mintage org`: organisations, who pay.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::admin_client::{AdminArgs, AdminClient, Needs, escaped};
use crate::config::Settings;

const FIELDS: &[&str] = &["id", "name", "weight", "suspended"];

/// Make, list, suspend organisations: they own projects and pay
#[derive(Debug, Args)]
pub(crate) struct OrgArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: OrgCommand,
}

#[derive(Debug, Subcommand)]
enum OrgCommand {
    /// Make an organisation
    Create {
        /// A name that no other has
        name: String,
        /// Its share of the engine among others
        #[arg(long, default_value_t = 1)]
        weight: u32,
    },
    /// List organisations
    List,
    /// Refuse an organisation's keys until it is resumed
    Suspend {
        /// Its id or name
        org: String,
    },
    /// Take an organisation's keys again
    Resume {
        /// Its id or name
        org: String,
    },
    /// Change an organisation's share of the engine
    Weight {
        /// Its id or name
        org: String,
        /// 1 to 1000
        weight: u32,
    },
}

pub(crate) fn run(settings: &Settings, args: &OrgArgs) -> Result<()> {
    let client = AdminClient::open(settings, &args.admin, Needs::Directory)?;
    let change = |org: &str, change| {
        let path = format!("/admin/v1/organizations/{}", escaped(&client.organisation(org)?));
        client.call("PATCH", &path, Some(&change))
    };
    let shown = match &args.command {
        OrgCommand::Create { name, weight } => {
            let body = json!({"name": name, "weight": weight});
            client.call("POST", "/admin/v1/organizations", Some(&body))?
        }
        OrgCommand::List => client.list("/admin/v1/organizations")?,
        OrgCommand::Suspend { org } => change(org, json!({"suspended": true}))?,
        OrgCommand::Resume { org } => change(org, json!({"suspended": false}))?,
        OrgCommand::Weight { org, weight } => change(org, json!({"weight": weight}))?,
    };
    client.show(&shown, FIELDS)
}
