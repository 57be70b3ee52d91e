//! `mintage topup` and `mintage balance`: money of organisations. Each movement has an id: repeated, it moves once.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::admin_client::{AdminArgs, AdminClient, Needs, escaped};
use crate::config::Settings;

const FIELDS: &[&str] =
    &["organization", "currency", "balance", "held", "credit_line", "available"];

/// Put money on an organisation's balance
#[derive(Debug, Args)]
pub(crate) struct TopupArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Whose: id or name
    org: String,
    /// How much, like 12.50
    amount: String,
    /// Of this movement, such as the payment's number: the same again moves nothing twice
    #[arg(long)]
    id: String,
}

/// Show and correct balances, set credit lines, refund
#[derive(Debug, Args)]
pub(crate) struct BalanceArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: BalanceCommand,
}

#[derive(Debug, Subcommand)]
enum BalanceCommand {
    /// Show one balance, or all
    Show {
        /// Whose: id or name
        org: Option<String>,
    },
    /// Give money away
    Credit(Movement),
    /// Correct a balance by hand; a negative amount takes
    Adjust(Movement),
    /// Set how far below zero a balance may go: an amount, or `unlimited`
    Line(Movement),
    /// Give back part or all of what a request cost
    Refund {
        /// The request's id, as its client saw it
        request: String,
        /// How much
        amount: String,
        /// Of this movement: the same again moves nothing twice
        #[arg(long)]
        id: String,
    },
}

#[derive(Debug, Args)]
struct Movement {
    /// Whose: id or name
    org: String,
    /// How much
    #[arg(allow_hyphen_values = true)]
    amount: String,
    /// Of this movement: the same again moves nothing twice
    #[arg(long)]
    id: String,
}

fn of(client: &AdminClient, org: &str, what: &str) -> Result<String> {
    Ok(format!("/admin/v1/organizations/{}/{what}", escaped(&client.organisation(org)?)))
}

pub(crate) fn run_topup(settings: &Settings, args: &TopupArgs) -> Result<()> {
    let client = AdminClient::open(settings, &args.admin, Needs::Ledger)?;
    let body = json!({"id": args.id, "amount": args.amount});
    let path = of(&client, &args.org, "topups")?;
    client.show(&client.call("POST", &path, Some(&body))?, FIELDS)
}

pub(crate) fn run_balance(settings: &Settings, args: &BalanceArgs) -> Result<()> {
    let client = AdminClient::open(settings, &args.admin, Needs::Ledger)?;
    let moved = |movement: &Movement, what: &str| -> Result<Value> {
        let body = json!({"id": movement.id, "amount": movement.amount});
        client.call("POST", &of(&client, &movement.org, what)?, Some(&body))
    };
    let shown = match &args.command {
        BalanceCommand::Show { org: Some(org) } => client.get(&of(&client, org, "balance")?)?,
        BalanceCommand::Show { org: None } => {
            let mut all = client.get("/admin/v1/balances")?;
            all["data"].take()
        }
        BalanceCommand::Credit(movement) => moved(movement, "credits")?,
        BalanceCommand::Adjust(movement) => moved(movement, "adjustments")?,
        BalanceCommand::Line(movement) => {
            let body = json!({"id": movement.id, "limit": movement.amount});
            client.call("PUT", &of(&client, &movement.org, "credit-line")?, Some(&body))?
        }
        BalanceCommand::Refund { request, amount, id } => {
            let path = format!("/admin/v1/usage/{}/refunds", escaped(request));
            client.call("POST", &path, Some(&json!({"id": id, "amount": amount})))?
        }
    };
    client.show(&shown, FIELDS)
}
