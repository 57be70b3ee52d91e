//! `mintage usage`: what was used and what it cost, summed as asked.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use mintage_ledger::invoice::Month;
use mintage_ledger::{Amount, TokenUsage, UsageFilter, UsageRecord};
use serde_json::json;

use crate::admin_client::ServerArgs;
use crate::config::Settings;
use crate::kept_ledger::Books;
use crate::output;

/// Groups that are kept apart; the rest is summed under `(others)`.
const MAX_GROUPS: usize = 100_000;
/// Minutes from UTC in which months and days begin unless said otherwise: China's.
pub(crate) const DEFAULT_OFFSET_MINUTES: i16 = 480;

/// Show what was used and what it cost
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mintage usage --month 2026-11 --by model
  mintage usage --org acme --by key --json
  mintage usage --server http://127.0.0.1:8080      of a running server, with a key in MINTAGE_ADMIN_KEY")]
pub(crate) struct UsageArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Of this organisation
    #[arg(long)]
    org: Option<String>,
    /// Of this project
    #[arg(long)]
    project: Option<String>,
    /// Of this API key
    #[arg(long)]
    key: Option<String>,
    /// Of this model
    #[arg(long)]
    model: Option<String>,
    #[command(flatten)]
    period: Period,
    /// Sum up by
    #[arg(long, value_enum, default_value = "model")]
    by: Group,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Which requests, by when they ended.
#[derive(Debug, Args)]
pub(crate) struct Period {
    /// Only of this month, like 2026-11 (in UTC+08:00)
    #[arg(long, value_name = "YYYY-MM")]
    month: Option<String>,
    /// Only of the last so many days
    #[arg(long, value_name = "N", conflicts_with = "month")]
    days: Option<u64>,
}

impl Period {
    /// Narrows a filter.
    pub(crate) fn filter(&self, mut filter: UsageFilter) -> Result<UsageFilter> {
        if let Some(month) = &self.month {
            let month = Month::parse(month, DEFAULT_OFFSET_MINUTES)?;
            (filter.from_ms, filter.until_ms) = (month.from_ms(), month.until_ms());
        }
        if let Some(days) = self.days {
            let ms = days.checked_mul(86_400_000).context("that is too many days")?;
            filter.from_ms = super::price::now_ms().saturating_sub(ms);
        }
        Ok(filter)
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Group {
    Org,
    Project,
    Key,
    Model,
    Client,
}

impl Group {
    fn of(self, record: &UsageRecord) -> &str {
        match self {
            Self::Org => &record.facts.payer.org,
            Self::Project => &record.facts.payer.project,
            Self::Key => &record.facts.payer.key,
            Self::Model => &record.facts.model,
            Self::Client => &record.facts.client,
        }
    }
}

#[derive(Default)]
struct Sum {
    requests: u64,
    usage: TokenUsage,
    free_tokens: u64,
    amount: Amount,
}

impl Sum {
    fn add(&mut self, record: &UsageRecord) {
        self.requests += 1;
        self.usage = self.usage.saturating_add(&record.usage);
        self.free_tokens = self.free_tokens.saturating_add(record.free_tokens);
        self.amount = [self.amount, record.amount].into_iter().sum();
    }
}

pub(crate) fn run(settings: &Settings, args: &UsageArgs) -> Result<()> {
    let books = Books::open(settings, &args.server)?;
    let id = |id: &Option<String>| id.as_deref().map(Into::into);
    let filter = args.period.filter(UsageFilter {
        org: id(&args.org),
        project: id(&args.project),
        key: id(&args.key),
        model: id(&args.model),
        ..UsageFilter::default()
    })?;
    // Currencies are never added up.
    let mut sums = BTreeMap::<(String, String), Sum>::new();
    books.each_record(filter, |record| {
        let mut key = (args.by.of(record).to_owned(), record.currency.to_string());
        if sums.len() >= MAX_GROUPS && !sums.contains_key(&key) {
            key.0 = "(others)".to_owned();
        }
        sums.entry(key).or_default().add(record);
    })?;
    let text = if args.json {
        let rows: Vec<_> = sums.iter().map(|((name, currency), sum)| json!({
            "name": name, "currency": currency, "requests": sum.requests, "tokens": sum.usage,
            "free_tokens": sum.free_tokens, "amount": sum.amount,
        })).collect();
        serde_json::to_string_pretty(&rows)? + "\n"
    } else {
        let rows: Vec<_> =
            sums.iter().map(|((name, currency), sum)| row(name, currency, sum)).collect();
        let group = format!("{:?}", args.by).to_uppercase();
        output::table(
            &[
                &group,
                "REQUESTS",
                "PROMPT",
                "OF IT CACHED",
                "OUTPUT",
                "OF IT THINKING",
                "FREE",
                "AMOUNT",
            ],
            &rows,
        )
    };
    output::print(&text)?;
    Ok(())
}

fn row(name: &str, currency: &str, sum: &Sum) -> Vec<String> {
    let cached = sum.usage.cached_input.saturating_add(sum.usage.explicit_cached);
    vec![
        name.to_owned(),
        sum.requests.to_string(),
        sum.usage.prompt().to_string(),
        cached.to_string(),
        sum.usage.completion().to_string(),
        sum.usage.thinking.to_string(),
        sum.free_tokens.to_string(),
        format!("{} {currency}", sum.amount),
    ]
}
