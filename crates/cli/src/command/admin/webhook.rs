//! `mintage webhook`: where events of the ledger are posted.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::admin_client::{AdminArgs, AdminClient, Needs, escaped};
use crate::config::Settings;

const FIELDS: &[&str] = &["id", "organization", "enabled", "topics", "url"];

/// Make, list, test webhooks; retry what was given up
#[derive(Debug, Args)]
pub(crate) struct WebhookArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: WebhookCommand,
}

#[derive(Debug, Subcommand)]
enum WebhookCommand {
    /// Post events to a URL; shows the secret that signs them
    Create {
        /// https://…
        url: String,
        /// Only events of this organisation: id or name [default: of all]
        #[arg(long)]
        org: Option<String>,
        /// Only these: balance.low, budget.reached, invoice.issued
        #[arg(long = "topic", value_name = "TOPIC")]
        topics: Vec<String>,
    },
    /// List webhooks
    List,
    /// Stop posting to an endpoint; what would go there is dropped
    Disable {
        /// Its id
        id: String,
    },
    /// Post again
    Enable {
        /// Its id
        id: String,
    },
    /// Remove an endpoint
    Remove {
        /// Its id
        id: String,
    },
    /// Give an endpoint another secret, at once
    Rotate {
        /// Its id
        id: String,
    },
    /// Post a test event
    Test {
        /// Its id
        id: String,
    },
    /// List events that were given up
    Letters,
    /// Post an event that was given up once more
    Retry {
        /// Its id, as `mintage webhook letters` shows it
        letter: String,
    },
    /// Tell (`balance.low`) when an organisation can spend less than this; `never` ends it
    Alert {
        /// Whose: id or name
        org: String,
        /// An amount, or `never`
        below: String,
    },
}

pub(crate) fn run(settings: &Settings, args: &WebhookArgs) -> Result<()> {
    let client = AdminClient::open(settings, &args.admin, Needs::Ledger)?;
    let one = |id: &str, what: &str| format!("/admin/v1/webhooks/{}{what}", escaped(id));
    let listed = |path: &str| -> Result<Value> { Ok(client.get(path)?["data"].take()) };
    let with_secret = ["id", "url", "secret"];
    match &args.command {
        WebhookCommand::Create { url, org, topics } => {
            let org = org.as_ref().map(|org| client.organisation(org)).transpose()?;
            let body = json!({"url": url, "organization": org, "topics": topics});
            client.show(&client.call("POST", "/admin/v1/webhooks", Some(&body))?, &with_secret)
        }
        WebhookCommand::List => client.show(&listed("/admin/v1/webhooks")?, FIELDS),
        WebhookCommand::Disable { id } => {
            let body = json!({"enabled": false});
            client.show(&client.call("PATCH", &one(id, ""), Some(&body))?, FIELDS)
        }
        WebhookCommand::Enable { id } => {
            let body = json!({"enabled": true});
            client.show(&client.call("PATCH", &one(id, ""), Some(&body))?, FIELDS)
        }
        WebhookCommand::Remove { id } => {
            client.show(&client.call("DELETE", &one(id, ""), None)?, &["id", "deleted"])
        }
        WebhookCommand::Rotate { id } => {
            client.show(&client.call("POST", &one(id, "/rotate"), None)?, &with_secret)
        }
        WebhookCommand::Test { id } => {
            client.show(&client.call("POST", &one(id, "/test"), None)?, &["webhook", "message"])
        }
        WebhookCommand::Letters => {
            let fields = ["id", "webhook", "topic", "attempts", "last_error"];
            client.show(&listed("/admin/v1/webhook-dead-letters")?, &fields)
        }
        WebhookCommand::Retry { letter } => {
            let path = format!("/admin/v1/webhook-dead-letters/{}/retry", escaped(letter));
            client.show(&client.call("POST", &path, None)?, &["id", "message"])
        }
        WebhookCommand::Alert { org, below } => {
            let id = client.organisation(org)?;
            let path = format!("/admin/v1/organizations/{}/balance-alert", escaped(&id));
            let below = (below != "never").then_some(below);
            let body = json!({"below": below});
            client.show(&client.call("PUT", &path, Some(&body))?, &["organization", "below"])
        }
    }
}
