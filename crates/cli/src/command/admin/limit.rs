//! `mintage limit` and `mintage budget`: rates and budgets of organisations, projects and keys.

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use crate::admin_client::{AdminArgs, AdminClient, Needs, escaped};
use crate::config::Settings;

/// Show and set rates: requests and tokens a minute, requests in flight
#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    party: Party,
    #[command(subcommand)]
    command: LimitCommand,
}

/// Show and set budgets: money or tokens of a day or a month
#[derive(Debug, Args)]
pub(crate) struct BudgetArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    party: Party,
    #[command(subcommand)]
    command: BudgetCommand,
}

/// Whose.
#[derive(Debug, Args)]
struct Party {
    /// Of an organisation: id or name
    #[arg(long, global = true, conflicts_with_all = ["project", "key"])]
    org: Option<String>,
    /// Of a project: id
    #[arg(long, global = true, conflicts_with = "key")]
    project: Option<String>,
    /// Of a key: id
    #[arg(long, global = true)]
    key: Option<String>,
}

#[derive(Debug, Subcommand)]
enum LimitCommand {
    /// Show what is set
    Show,
    /// Set the rates for all models together, each of them, or one; what is left out is unlimited
    Set {
        /// For one model; `each` counts each by itself [default: all together]
        #[arg(long)]
        model: Option<String>,
        /// Requests a minute
        #[arg(long)]
        rpm: Option<u64>,
        /// Tokens a minute
        #[arg(long)]
        tpm: Option<u64>,
        /// Requests admitted and not yet answered
        #[arg(long)]
        in_flight: Option<u32>,
        /// Spread a minute's allowance over its seconds
        #[arg(long)]
        smooth: bool,
    },
    /// Remove all rates
    Clear,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Period {
    Day,
    Month,
}

#[derive(Debug, Subcommand)]
enum BudgetCommand {
    /// Show what is set
    Show,
    /// Set the budget of a period, in money or in tokens
    Set {
        /// In how long
        period: Period,
        /// So much money, like 100 or 12.50
        #[arg(long, conflicts_with = "tokens", required_unless_present = "tokens")]
        money: Option<String>,
        /// So many tokens, of prompts and answers
        #[arg(long)]
        tokens: Option<u64>,
        /// For one model; `each` counts each by itself [default: all together]
        #[arg(long)]
        model: Option<String>,
        /// Tell of it once used up instead of refusing
        #[arg(long)]
        warn: bool,
    },
    /// Remove all budgets
    Clear,
}

fn models(given: Option<&str>) -> Value {
    match given {
        None => "together".into(),
        Some("each") => "each".into(),
        Some(name) => json!({"one": name}),
    }
}

fn path(client: &AdminClient, party: &Party) -> Result<String> {
    let (kind, id) = match (&party.org, &party.project, &party.key) {
        (Some(org), ..) => ("organizations", client.organisation(org)?),
        (None, Some(id), _) => ("projects", id.clone()),
        (None, None, Some(id)) => ("keys", id.clone()),
        (None, None, None) => bail!("whose? `--org NAME`, `--project ID` or `--key ID`"),
    };
    Ok(format!("/admin/v1/{kind}/{}/limits", escaped(&id)))
}

/// Changes one of the two lists, and leaves the other as it is.
fn changed(
    client: &AdminClient,
    path: &str,
    list: &str,
    change: impl FnOnce(&mut Vec<Value>),
) -> Result<Value> {
    let mut known = client.get(path)?;
    let mut rules = match known[list].take() {
        Value::Array(rules) => rules,
        _ => Vec::new(),
    };
    change(&mut rules);
    known[list] = rules.into();
    let body = json!({"rates": known["rates"], "budgets": known["budgets"]});
    client.call("PUT", path, Some(&body))
}

pub(crate) fn run_limit(settings: &Settings, args: &LimitArgs) -> Result<()> {
    let client = AdminClient::open(settings, &args.admin, Needs::Directory)?;
    let path = path(&client, &args.party)?;
    let shown = match &args.command {
        LimitCommand::Show => client.get(&path)?,
        LimitCommand::Clear => changed(&client, &path, "rates", Vec::clear)?,
        LimitCommand::Set { model, rpm, tpm, in_flight, smooth } => {
            let models = models(model.as_deref());
            let mut rule = Map::from_iter([("models".to_owned(), models.clone())]);
            let numbers = [
                ("requests_per_minute", rpm.map(Value::from)),
                ("tokens_per_minute", tpm.map(Value::from)),
                ("requests_in_flight", in_flight.map(Value::from)),
            ];
            rule.extend(numbers.into_iter().filter_map(|(n, v)| Some((n.to_owned(), v?))));
            if rule.len() == 1 {
                bail!("which limit? `--rpm N`, `--tpm N` or `--in-flight N`");
            }
            rule.insert("smooth".to_owned(), (*smooth).into());
            changed(&client, &path, "rates", |rules| {
                rules.retain(|known| known["models"] != models);
                rules.push(rule.into());
            })?
        }
    };
    let fields =
        ["models", "requests_per_minute", "tokens_per_minute", "requests_in_flight", "smooth"];
    client.show(&shown["rates"], &fields)
}

pub(crate) fn run_budget(settings: &Settings, args: &BudgetArgs) -> Result<()> {
    let client = AdminClient::open(settings, &args.admin, Needs::Directory)?;
    let path = path(&client, &args.party)?;
    let shown = match &args.command {
        BudgetCommand::Show => client.get(&path)?,
        BudgetCommand::Clear => changed(&client, &path, "budgets", Vec::clear)?,
        BudgetCommand::Set { period, money, tokens, model, warn } => {
            let period = match period {
                Period::Day => "day",
                Period::Month => "month",
            };
            let limit = match money {
                Some(money) => json!({"money": money}),
                None => json!({"tokens": tokens}),
            };
            let rule = json!({
                "models": models(model.as_deref()),
                "period": period,
                "limit": limit,
                "effect": if *warn { "warn" } else { "hard" },
            });
            // One warning and one refusal each may stand beside each other.
            let same = |known: &Value| {
                ["models", "period", "effect"].iter().all(|field| known[field] == rule[field])
            };
            changed(&client, &path, "budgets", |rules| {
                rules.retain(|known| !same(known));
                rules.push(rule.clone());
            })?
        }
    };
    client.show(&shown["budgets"], &["models", "period", "limit", "effect"])
}
