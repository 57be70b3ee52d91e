//! `mintage price`: check, import and compare price lists, and ask what past usage would have brought.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use mintage_ledger::price::{
    KeptPrices, ModelPrices, PriceDocument, PriceVersion, Revenue, TokenClass, WhatIf, diff,
    utc_text,
};
use mintage_ledger::{Amount, UsageFilter};
use serde_json::json;

use crate::command::usage::Period;
use crate::config::Settings;
use crate::keys_folder::now_unix;
use crate::{kept_ledger, output};

/// The list that Mintage is shipped with.
pub(crate) const SHIPPED: &str = include_str!("../../../../prices.toml");
/// What it is called on the command line.
const SHIPPED_NAME: &str = "shipped";
/// The list in force now.
const CURRENT_NAME: &str = "current";
/// Bytes of a list that are read at all; the ledger's own bound is below.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Check, import and compare price lists
#[derive(Debug, Args)]
#[command(
    after_help = "A LIST is a file, `current` (in force now), `shipped` (comes with Mintage), or the beginning of \
a version's id.

Examples:
  mintage price check prices.toml               what is wrong with a list, line by line
  mintage price import prices.toml              from now on, or from the list's `in_force_from`
  mintage price diff current new.toml           what would change
  mintage price whatif new.toml                 what past usage would have brought under it"
)]
pub(crate) struct PriceArgs {
    #[command(subcommand)]
    command: PriceCommand,
}

#[derive(Debug, Subcommand)]
enum PriceCommand {
    /// Say what is wrong with a list, line by line
    Check {
        /// TOML; the prices.toml of the source tree shows all forms
        file: String,
    },
    /// Make a list a version; it holds from now on or from its `in_force_from`
    Import {
        /// A file, or `shipped`
        list: String,
    },
    /// Show which version holds from when
    History,
    /// Show what differs between two lists
    Diff {
        /// The first list
        before: String,
        /// The second list
        after: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Rate past usage by another list: revenue before and after, by model and organisation
    Whatif {
        /// The other list
        list: String,
        #[command(flatten)]
        period: Period,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a list: its prices, or its canonical JSON
    Show {
        /// Which list
        #[arg(default_value = CURRENT_NAME)]
        list: String,
        /// The canonical JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(settings: &Settings, args: &PriceArgs) -> Result<()> {
    let text = match &args.command {
        PriceCommand::Check { file } => check(file)?,
        PriceCommand::Import { list } => import(settings, list)?,
        PriceCommand::History => history(settings)?,
        PriceCommand::Diff { before, after, json } => differences(settings, before, after, *json)?,
        PriceCommand::Whatif { list, period, json } => what_if(settings, list, period, *json)?,
        PriceCommand::Show { list, json } => {
            let version = find(settings, list)?;
            if *json { pretty(&version.document().to_json())? } else { shown(&version) }
        }
    };
    output::print(&text)?;
    Ok(())
}

/// A list from its text; problems begin with file and line.
fn parse(name: &str, text: &str) -> Result<PriceDocument> {
    PriceDocument::from_toml(text).map_err(|problems| {
        let lines: Vec<String> = problems
            .iter()
            .map(|problem| format!("{name}:{}: {}", problem.line, problem.message))
            .collect();
        anyhow!("{}", lines.join("\n       "))
    })
}

fn read(list: &str) -> Result<PriceDocument> {
    if list == SHIPPED_NAME {
        return parse("prices.toml", SHIPPED);
    }
    let context = || format!("the price list {list} cannot be read");
    let size = std::fs::metadata(list).with_context(context)?.len();
    if size > MAX_FILE_BYTES {
        bail!("{list} has {size} bytes; a price list has at most {MAX_FILE_BYTES}");
    }
    parse(list, &std::fs::read_to_string(list).with_context(context)?)
}

/// A list from wherever its name says.
pub(crate) fn find(settings: &Settings, list: &str) -> Result<Arc<PriceVersion>> {
    if list == SHIPPED_NAME || Path::new(list).is_file() {
        return Ok(Arc::new(PriceVersion::new(read(list)?)));
    }
    let (_ledger, prices) = kept_ledger::open(settings)?;
    kept(&prices, list)
}

/// The list in force, or the shipped one where there is none or a running server has the ledger for itself.
pub(crate) fn current_or_shipped(settings: &Settings) -> Result<Arc<PriceVersion>> {
    if kept_ledger::exists(settings)?
        && let Ok(current) = find(settings, CURRENT_NAME)
    {
        return Ok(current);
    }
    find(settings, SHIPPED_NAME)
}

fn kept(prices: &KeptPrices, list: &str) -> Result<Arc<PriceVersion>> {
    let book = prices.book();
    if list == CURRENT_NAME {
        let current = book.in_force_at(now_ms()).cloned();
        return current.context(
            "no price list is in force yet; `mintage price import shipped` takes the one that comes with Mintage",
        );
    }
    let mut found = book.versions_like(list);
    match (found.next(), found.next()) {
        (Some(version), None) => Ok(Arc::clone(version)),
        (Some(_), Some(_)) => bail!("several versions begin with `{list}`; write more of its id"),
        (None, _) => bail!(
            "`{list}` is neither a file nor a version; `mintage price history` shows the versions"
        ),
    }
}

pub(crate) fn now_ms() -> u64 {
    now_unix().saturating_mul(1000)
}

fn check(file: &str) -> Result<String> {
    let version = PriceVersion::new(read(file)?);
    let models = version.document().models.len();
    Ok(format!("{file} is in order; models: {models}, version {}\n", version.id()))
}

fn import(settings: &Settings, list: &str) -> Result<String> {
    let document = read(list)?;
    let (ledger, prices) = kept_ledger::open(settings)?;
    Ok(match prices.import(&ledger, document, now_ms())? {
        Some(import) => {
            let from = utc_text(import.in_force_from_ms);
            format!("version {} holds from {from} on\n", import.id)
        }
        None => "this list is in force already\n".to_owned(),
    })
}

fn history(settings: &Settings) -> Result<String> {
    let (_ledger, prices) = kept_ledger::open(settings)?;
    let book = prices.book();
    let current = book.in_force_at(now_ms()).map(|version| Arc::clone(version.id()));
    let row = |entry: &mintage_ledger::price::InForce| {
        let version = book.version(&entry.id);
        vec![
            entry.id.to_string(),
            version.map(|version| version.document().name.clone()).unwrap_or_default(),
            utc_text(entry.from_ms),
            utc_text(entry.imported_ms),
            if entry.from_ms > now_ms() {
                "to come".to_owned()
            } else if Some(&entry.id) == current.as_ref() {
                "in force".to_owned()
            } else {
                "past".to_owned()
            },
        ]
    };
    let rows: Vec<_> = book.schedule().iter().map(row).collect();
    Ok(output::table(&["VERSION", "NAME", "HOLDS FROM", "IMPORTED", "STATE"], &rows))
}

fn differences(settings: &Settings, before: &str, after: &str, as_json: bool) -> Result<String> {
    let (before, after) = (find(settings, before)?, find(settings, after)?);
    let changes = diff(before.document(), after.document());
    if as_json {
        let change = |change: &mintage_ledger::price::PriceChange| json!({ "path": change.path, "before": change.before, "after": change.after });
        return pretty(&json!(changes.iter().map(change).collect::<Vec<_>>()));
    }
    if changes.is_empty() {
        return Ok("the lists have the same prices\n".to_owned());
    }
    let side = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let row = |change: &mintage_ledger::price::PriceChange| {
        let share = change.permille().map(output::permille).unwrap_or_default();
        vec![change.path.clone(), side(&change.before), side(&change.after), share]
    };
    let rows: Vec<_> = changes.iter().map(row).collect();
    Ok(output::table(&["WHAT", "BEFORE", "AFTER", "CHANGE"], &rows))
}

fn what_if(settings: &Settings, list: &str, period: &Period, as_json: bool) -> Result<String> {
    let (ledger, prices) = kept_ledger::open(settings)?;
    let version = if list == SHIPPED_NAME || Path::new(list).is_file() {
        Arc::new(PriceVersion::new(read(list)?))
    } else {
        kept(&prices, list)?
    };
    let currency = version.document().currency;
    let mut whatif = WhatIf::new(version);
    let filter = period.filter(UsageFilter::default())?;
    kept_ledger::each_record(&ledger, filter, |record| whatif.add(record))?;
    let groups = [("MODEL", whatif.by_model()), ("ORGANISATION", whatif.by_organisation())];
    let total = whatif.total();
    if as_json {
        return pretty(&json!({
            "currency": currency,
            "model": revenues_json(&groups[0].1),
            "organisation": revenues_json(&groups[1].1),
            "total": revenue_json(&total),
        }));
    }
    let mut text = String::new();
    for (name, rows) in groups {
        let mut rows: Vec<_> = rows.iter().map(|(key, row)| revenue_row(key, row)).collect();
        rows.push(revenue_row("all", &total));
        let before = format!("BEFORE ({currency})");
        text += &output::table(
            &[name, "REQUESTS", "TOKENS", &before, "AFTER", "CHANGE", "UNPRICED"],
            &rows,
        );
        text.push('\n');
    }
    Ok(text)
}

fn revenue_row(key: &str, row: &Revenue) -> Vec<String> {
    let change = permille(row.before, row.after);
    vec![
        key.to_owned(),
        row.records.to_string(),
        row.tokens.to_string(),
        row.before.to_string(),
        row.after.to_string(),
        change.map(output::permille).unwrap_or_default(),
        row.unpriced.to_string(),
    ]
}

fn permille(before: Amount, after: Amount) -> Option<i128> {
    (after.pico() - before.pico()).checked_mul(1000)?.checked_div(before.pico())
}

fn revenue_json(row: &Revenue) -> serde_json::Value {
    json!({
        "requests": row.records,
        "tokens": row.tokens,
        "before": row.before,
        "after": row.after,
        "unpriced": row.unpriced,
    })
}

fn revenues_json(rows: &BTreeMap<Arc<str>, Revenue>) -> serde_json::Value {
    rows.iter().map(|(key, row)| (key.to_string(), revenue_json(row))).collect()
}

/// A row a tier; what else a model has, in words.
fn shown(version: &PriceVersion) -> String {
    let document = version.document();
    let mut rows = Vec::new();
    for model in &document.models {
        for tier in &model.tiers {
            let up_to = tier.up_to_tokens.map_or_else(String::new, |tokens| format!("≤ {tokens}"));
            let mut row = vec![model.name.clone(), up_to];
            row.extend(
                TokenClass::ALL.map(|class| output::per_million(tier.pico_per_token.of(class))),
            );
            row.push(forms(model));
            rows.push(row);
        }
        if model.tiers.is_empty() {
            let mut row = vec![model.name.clone()];
            row.resize(8, String::new());
            row.push(forms(model));
            rows.push(row);
        }
    }
    let header =
        ["MODEL", "PROMPT", "INPUT", "CACHED", "EXPLICIT", "CREATED", "OUTPUT", "THINKING", "ALSO"];
    let (name, currency) = (&document.name, document.currency);
    format!(
        "{name}, version {}: {currency} for a million tokens\n\n{}",
        version.id(),
        output::table(&header, &rows)
    )
}

fn forms(model: &ModelPrices) -> String {
    let all = [
        (model.batch.is_some(), "batch"),
        (!model.windows.is_empty(), "windows"),
        (!model.promotions.is_empty(), "promotions"),
        (model.free_quota.is_some(), "free quota"),
        (model.minimum_pico > 0, "minimum"),
        (model.training_pico_per_token.is_some(), "training"),
        (model.deployment.is_some(), "deployment"),
    ];
    let names: Vec<_> = all.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect();
    names.join(", ")
}

fn pretty(value: &serde_json::Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}
