//! `mintage key`: keys of projects, members and the operator. (`mintage keys` is its short form for one tenant.)

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::admin_client::{AdminArgs, AdminClient, Needs, escaped};
use crate::config::Settings;
use crate::keys_folder::now_unix;

const FIELDS: &[&str] = &["id", "name", "organization", "state", "expires_at"];
const DAY_S: u64 = 86_400;
const HOUR_S: u64 = 3600;

/// Make, list, rotate, disable, revoke keys of projects, members and the operator
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a key; it is shown once and stored as a hash
    Create(CreateArgs),
    /// List keys; the keys themselves cannot be shown
    List {
        /// Of an organisation: id or name
        #[arg(long, conflicts_with = "project")]
        org: Option<String>,
        /// Of a project: id
        #[arg(long)]
        project: Option<String>,
    },
    /// Make a key in place of another, which opens for a while longer
    Rotate {
        /// The old one's id
        id: String,
        /// Hours that both open
        #[arg(long, default_value_t = 24)]
        overlap_hours: u64,
    },
    /// Switch a key off at once
    Disable {
        /// Its id
        id: String,
    },
    /// Switch a key on again
    Enable {
        /// Its id
        id: String,
    },
    /// Revoke a key for good
    Revoke {
        /// Its id
        id: String,
    },
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// What it is for
    name: String,
    /// Calls models for this project
    #[arg(long, value_name = "ID", conflicts_with_all = ["member", "operator"])]
    project: Option<String>,
    /// Administers as far as this member's role goes
    #[arg(long, value_name = "ID", conflicts_with = "operator")]
    member: Option<String>,
    /// Administers the whole installation
    #[arg(long)]
    operator: bool,
    /// End its validity after so many days
    #[arg(long, value_name = "N")]
    expires_days: Option<u64>,
    /// Only for these models; `*` at the end stands for any ending
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// Only for these routes; `*` at the end stands for any ending
    #[arg(long = "endpoint", value_name = "ROUTE")]
    endpoints: Vec<String>,
}

fn create(client: &AdminClient, args: &CreateArgs) -> Result<()> {
    let path = match (&args.project, &args.member, args.operator) {
        (Some(id), ..) => format!("/admin/v1/projects/{}/keys", escaped(id)),
        (None, Some(id), _) => format!("/admin/v1/members/{}/keys", escaped(id)),
        (None, None, true) => "/admin/v1/operator-keys".to_owned(),
        (None, None, false) => bail!(
            "whose key? `--project ID` calls models, `--member ID` administers an organisation, `--operator` everything"
        ),
    };
    let expires = args.expires_days.map(|n| now_unix().saturating_add(n.saturating_mul(DAY_S)));
    let body = json!({
        "name": args.name,
        "expires_at": expires,
        "models": args.models,
        "endpoints": args.endpoints,
    });
    client.show_secret(&client.call("POST", &path, Some(&body))?)
}

pub(crate) fn run(settings: &Settings, args: &KeyArgs) -> Result<()> {
    let client = AdminClient::open(settings, &args.admin, Needs::Directory)?;
    let one = |id: &str, what: &str| format!("/admin/v1/keys/{}{what}", escaped(id));
    match &args.command {
        KeyCommand::Create(args) => create(&client, args),
        KeyCommand::List { org, project } => {
            let path = match (org, project) {
                (_, Some(id)) => format!("/admin/v1/projects/{}/keys", escaped(id)),
                (Some(org), None) => {
                    format!("/admin/v1/organizations/{}/keys", escaped(&client.organisation(org)?))
                }
                (None, None) => bail!("whose keys? `--org NAME` or `--project ID`"),
            };
            client.show(&client.list(&path)?, FIELDS)
        }
        KeyCommand::Rotate { id, overlap_hours } => {
            let body = json!({"overlap_s": overlap_hours.saturating_mul(HOUR_S)});
            client.show_secret(&client.call("POST", &one(id, "/rotate"), Some(&body))?)
        }
        KeyCommand::Disable { id } => {
            client.show(&client.call("POST", &one(id, "/disable"), None)?, FIELDS)
        }
        KeyCommand::Enable { id } => {
            client.show(&client.call("POST", &one(id, "/enable"), None)?, FIELDS)
        }
        KeyCommand::Revoke { id } => {
            client.show(&client.call("DELETE", &one(id, ""), None)?, &["id", "deleted"])
        }
    }
}
