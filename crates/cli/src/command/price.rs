//! `mintage price`: check, import and compare price lists, and ask what past usage would have brought.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use mintage_ledger::price::{
    InForce, KeptPrices, ModelPrices, PriceDocument, PriceVersion, Revenue, TokenClass, WhatIf,
    diff, utc_text,
};
use mintage_ledger::{Amount, UsageFilter};
use serde_json::json;

use crate::admin_client::{AdminClient, ServerArgs, escaped};
use crate::command::usage::Period;
use crate::config::Settings;
use crate::kept_ledger::Books;
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
    #[command(flatten)]
    server: ServerArgs,
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
    let from = (settings, &args.server);
    let text = match &args.command {
        PriceCommand::Check { file } => check(file)?,
        PriceCommand::Import { list } => import(from, list)?,
        PriceCommand::History => history(from)?,
        PriceCommand::Diff { before, after, json } => differences(from, before, after, *json)?,
        PriceCommand::Whatif { list, period, json } => what_if(from, list, period, *json)?,
        PriceCommand::Show { list, json } => {
            let version = find(from, list)?;
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

/// Where the ledger is: the settings, and the server that is asked instead.
type From<'a> = (&'a Settings, &'a ServerArgs);

/// A list from wherever its name says.
fn find((settings, server): From<'_>, list: &str) -> Result<Arc<PriceVersion>> {
    if list == SHIPPED_NAME || Path::new(list).is_file() {
        return Ok(Arc::new(PriceVersion::new(read(list)?)));
    }
    in_books(&Books::open(settings, server)?, list)
}

/// A list that the ledger keeps.
fn in_books(books: &Books, list: &str) -> Result<Arc<PriceVersion>> {
    let client = match books {
        Books::Here(open) => return kept(&open.1, list),
        Books::There(client) => client,
    };
    if list == CURRENT_NAME {
        return version(&client.get("/admin/v1/prices/in-force")?).map(Arc::new);
    }
    let all = client.get("/admin/v1/prices")?;
    let ids = all["data"].as_array().into_iter().flatten().filter_map(|entry| entry["id"].as_str());
    let found: BTreeSet<&str> = ids.filter(|id| id.starts_with(list)).collect();
    match found.len() {
        1 => asked(client, found.first().copied().unwrap_or_default()).map(Arc::new),
        0 => bail!("{}", no_such_list(list)),
        _ => bail!("several versions begin with `{list}`; write more of its id"),
    }
}

fn asked(client: &AdminClient, id: &str) -> Result<PriceVersion> {
    version(&client.get(&format!("/admin/v1/prices/{}", escaped(id)))?)
}

fn version(shown: &serde_json::Value) -> Result<PriceVersion> {
    let document = PriceDocument::from_json(&shown["document"].to_string());
    let unknown = |_| anyhow!("the server's price list is not one that this program knows");
    Ok(PriceVersion::new(document.map_err(unknown)?))
}

fn no_such_list(list: &str) -> String {
    format!("`{list}` is neither a file nor a version; `mintage price history` shows the versions")
}

/// What `mintage cost` compares with.
pub(crate) fn find_here(settings: &Settings, list: &str) -> Result<Arc<PriceVersion>> {
    find((settings, &ServerArgs::default()), list)
}

/// The list in force, or the shipped one where there is none or a running server has the ledger for itself.
pub(crate) fn current_or_shipped(settings: &Settings) -> Result<Arc<PriceVersion>> {
    if kept_ledger::exists(settings)?
        && let Ok(current) = find_here(settings, CURRENT_NAME)
    {
        return Ok(current);
    }
    find_here(settings, SHIPPED_NAME)
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
        (None, _) => bail!("{}", no_such_list(list)),
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

fn import((settings, server): From<'_>, list: &str) -> Result<String> {
    let document = read(list)?;
    let from_ms = match Books::open(settings, server)? {
        Books::Here(open) => {
            let import = open.1.import(&open.0, document, now_ms())?;
            import.map(|import| (import.id, import.in_force_from_ms))
        }
        Books::There(client) => {
            let body = json!({"document": document.to_json()});
            let entry = client.call("POST", "/admin/v1/prices", Some(&body))?;
            entry["id"].as_str().map(|id| (id.into(), entry["from_ms"].as_u64().unwrap_or(0)))
        }
    };
    Ok(match from_ms {
        Some((id, from_ms)) => format!("version {id} holds from {} on\n", utc_text(from_ms)),
        None => "this list is in force already\n".to_owned(),
    })
}

/// One line of the schedule, and the name of its list.
type Line = (InForce, String);

fn history((settings, server): From<'_>) -> Result<String> {
    let lines = match Books::open(settings, server)? {
        Books::Here(open) => {
            let book = open.1.book();
            let name = |entry: &InForce| {
                let version = book.version(&entry.id);
                version.map(|version| version.document().name.clone()).unwrap_or_default()
            };
            book.schedule().iter().map(|entry| (entry.clone(), name(entry))).collect()
        }
        Books::There(client) => schedule(&client)?,
    };
    let now_ms = now_ms();
    let current = lines.iter().rposition(|(entry, _)| entry.from_ms <= now_ms);
    let row = |(at, (entry, name)): (usize, &Line)| {
        let state = match (entry.from_ms > now_ms, Some(at) == current) {
            (true, _) => "to come",
            (_, true) => "in force",
            _ => "past",
        };
        vec![
            entry.id.to_string(),
            name.clone(),
            utc_text(entry.from_ms),
            utc_text(entry.imported_ms),
            state.to_owned(),
        ]
    };
    let rows: Vec<_> = lines.iter().enumerate().map(row).collect();
    Ok(output::table(&["VERSION", "NAME", "HOLDS FROM", "IMPORTED", "STATE"], &rows))
}

/// A server's schedule.
fn schedule(client: &AdminClient) -> Result<Vec<Line>> {
    let all = client.get("/admin/v1/prices")?;
    let (mut names, mut lines) = (BTreeMap::<String, String>::new(), Vec::new());
    for entry in all["data"].as_array().into_iter().flatten() {
        let id = entry["id"].as_str().unwrap_or_default();
        if !names.contains_key(id) {
            names.insert(id.to_owned(), asked(client, id)?.document().name.clone());
        }
        let ms = |field: &str| entry[field].as_u64().unwrap_or(0);
        let (from_ms, imported_ms) = (ms("from_ms"), ms("imported_ms"));
        let name = names.get(id).cloned().unwrap_or_default();
        lines.push((InForce { from_ms, imported_ms, id: id.into() }, name));
    }
    Ok(lines)
}

fn differences(from: From<'_>, before: &str, after: &str, as_json: bool) -> Result<String> {
    let (before, after) = (find(from, before)?, find(from, after)?);
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

fn what_if(
    (settings, server): From<'_>,
    list: &str,
    period: &Period,
    as_json: bool,
) -> Result<String> {
    let books = Books::open(settings, server)?;
    let version = if list == SHIPPED_NAME || Path::new(list).is_file() {
        Arc::new(PriceVersion::new(read(list)?))
    } else {
        in_books(&books, list)?
    };
    let currency = version.document().currency;
    let mut whatif = WhatIf::new(version);
    let filter = period.filter(UsageFilter::default())?;
    books.each_record(filter, |record| whatif.add(record))?;
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
