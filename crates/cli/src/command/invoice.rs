//! `mintage invoice`: issue a month's invoices, show them, correct them, hand them over.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use mintage_ledger::invoice::{self, CreditNote, Invoice, Language, Month};
use mintage_ledger::price::utc_text;
use mintage_ledger::{Amount, UsageFilter};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::admin_client::{ServerArgs, escaped};
use crate::command::price::now_ms;
use crate::command::usage::DEFAULT_OFFSET_MINUTES;
use crate::config::Settings;
use crate::kept_ledger::Books;
use crate::output;

/// Issue, show, correct and export invoices
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mintage invoice issue                         last month's, of every organisation that used anything
  mintage invoice show acme-2026-11
  mintage invoice export acme-2026-11 --format html --language zh --output acme.html
  mintage invoice credit acme-2026-11 12.50 --reason 'outage on the 3rd'")]
pub(crate) struct InvoiceArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: InvoiceCommand,
}

#[derive(Debug, Subcommand)]
enum InvoiceCommand {
    /// Issue a month's invoices; what was issued stays as it is
    Issue {
        /// Of this organisation; without it, of all that used anything
        #[arg(long)]
        org: Option<String>,
        /// Of this month; without it, of the last
        #[arg(long, value_name = "YYYY-MM")]
        month: Option<String>,
    },
    /// Show an invoice
    Show {
        /// Its number
        number: String,
    },
    /// List invoices
    List {
        /// Of this organisation
        #[arg(long)]
        org: Option<String>,
    },
    /// Correct an invoice: a credit note, and the money back on the balance
    Credit {
        /// The invoice's number
        number: String,
        /// How much, in whole coins
        amount: Amount,
        /// Why; it stands on the note
        #[arg(long)]
        reason: String,
    },
    /// Write an invoice as CSV, JSON or a printable page
    Export {
        /// Its number
        number: String,
        /// As what
        #[arg(long, value_enum, default_value = "html")]
        format: Format,
        /// Language of the page
        #[arg(long, value_enum, default_value = "zh")]
        language: PageLanguage,
        /// Into this file; without it, to standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Csv,
    Json,
    Html,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PageLanguage {
    Zh,
    En,
}

pub(crate) fn run(settings: &Settings, args: &InvoiceArgs) -> Result<()> {
    let books = Books::open(settings, &args.server)?;
    let text = match &args.command {
        InvoiceCommand::Issue { org, month } => {
            let month = match month {
                Some(text) => Month::parse(text, DEFAULT_OFFSET_MINUTES)?,
                None => Month::before(now_ms(), DEFAULT_OFFSET_MINUTES),
            };
            let orgs = match org {
                Some(org) => BTreeSet::from([Arc::from(org.as_str())]),
                None => users_of(&books, month)?,
            };
            if orgs.is_empty() {
                bail!("nobody used anything in {month}");
            }
            let one = |org: &Arc<str>| {
                issue(&books, org, month).with_context(|| format!("no invoice for `{org}`"))
            };
            table(&orgs.iter().map(one).collect::<Result<Vec<_>>>()?)
        }
        InvoiceCommand::List { org } => table(&list(&books, org.as_deref())?),
        InvoiceCommand::Show { number } => {
            let (invoice, notes) = get(&books, number)?;
            let mut text = shown(&invoice);
            for note in notes {
                let (number, amount, reason) = (&note.number, note.amount, &note.reason);
                text += &format!("credit note {number}: -{amount} {}: {reason}\n", note.currency);
            }
            text
        }
        InvoiceCommand::Credit { number, amount, reason } => {
            let note = credit(&books, number, *amount, reason)?;
            format!("{}: {} {} given back\n", note.number, note.amount, note.currency)
        }
        InvoiceCommand::Export { number, format, language, output } => {
            let text = export(&books, number, *format, *language)?;
            let Some(path) = output else { return Ok(output::print(&text)?) };
            std::fs::write(path, text)
                .with_context(|| format!("{} cannot be written", path.display()))?;
            format!("{number} is in {}\n", path.display())
        }
    };
    output::print(&text)?;
    Ok(())
}

fn path(number: &str) -> String {
    format!("/admin/v1/invoices/{}", escaped(number))
}

fn parsed<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).context("the server's answer is not what this program knows")
}

fn issue(books: &Books, org: &str, month: Month) -> Result<Invoice> {
    match books {
        Books::Here(kept) => Ok(invoice::issue(&kept.0, &kept.1.book(), org, month, now_ms())?),
        Books::There(client) => {
            let org = escaped(&client.organisation(org)?);
            let path = format!("/admin/v1/organizations/{org}/invoices");
            parsed(client.call("POST", &path, Some(&json!({"month": month.to_string()})))?)
        }
    }
}

fn list(books: &Books, org: Option<&str>) -> Result<Vec<Invoice>> {
    match books {
        Books::Here(kept) => Ok(invoice::list(&kept.0, org)?),
        Books::There(client) => {
            let query = match org {
                Some(org) => format!("?organization={}", escaped(&client.organisation(org)?)),
                None => String::new(),
            };
            let all = client.get(&format!("/admin/v1/invoices{query}"))?;
            let numbers = all["data"].as_array().into_iter().flatten();
            let whole = |one: &Value| get(books, one["id"].as_str().unwrap_or_default());
            numbers.map(|one| Ok(whole(one)?.0)).collect()
        }
    }
}

fn get(books: &Books, number: &str) -> Result<(Invoice, Vec<CreditNote>)> {
    match books {
        Books::Here(kept) => Ok(invoice::get(&kept.0, number)?),
        Books::There(client) => {
            let mut shown = client.get(&path(number))?;
            let notes = parsed(shown["credit_notes"].take())?;
            Ok((parsed(shown)?, notes))
        }
    }
}

fn credit(books: &Books, number: &str, amount: Amount, reason: &str) -> Result<CreditNote> {
    match books {
        Books::Here(kept) => Ok(invoice::credit(&kept.0, number, amount, reason, now_ms())?),
        Books::There(client) => {
            let body = json!({"amount": amount.to_string(), "reason": reason});
            let path = format!("{}/credit-notes", path(number));
            parsed(client.call("POST", &path, Some(&body))?)
        }
    }
}

fn export(books: &Books, number: &str, format: Format, language: PageLanguage) -> Result<String> {
    match books {
        Books::Here(kept) => {
            let (invoice, notes) = invoice::get(&kept.0, number)?;
            let language = match language {
                PageLanguage::Zh => Language::Chinese,
                PageLanguage::En => Language::English,
            };
            Ok(match format {
                Format::Csv => invoice.to_csv(),
                Format::Json => serde_json::to_string_pretty(&invoice)? + "\n",
                Format::Html => invoice.to_html(language, &notes),
            })
        }
        Books::There(client) => {
            let format = match format {
                Format::Csv => "csv",
                Format::Json => {
                    return Ok(serde_json::to_string_pretty(&get(books, number)?.0)? + "\n");
                }
                Format::Html => "html",
            };
            let language = match language {
                PageLanguage::Zh => "zh",
                PageLanguage::En => "en",
            };
            let path = format!("{}?format={format}&language={language}", path(number));
            client.text("GET", &path, None)
        }
    }
}

/// Organisations with usage in a month.
fn users_of(books: &Books, month: Month) -> Result<BTreeSet<Arc<str>>> {
    let filter = UsageFilter {
        from_ms: month.from_ms(),
        until_ms: month.until_ms(),
        ..UsageFilter::default()
    };
    let mut found = BTreeSet::new();
    books.each_record(filter, |record| {
        found.insert(Arc::clone(&record.facts.payer.org));
    })?;
    Ok(found)
}

fn table(invoices: &[Invoice]) -> String {
    let row = |invoice: &Invoice| {
        vec![
            invoice.number.clone(),
            invoice.organisation.to_string(),
            invoice.month.to_string(),
            invoice.records.to_string(),
            invoice.total.to_string(),
            format!("{} {}", invoice.payable, invoice.currency),
            utc_text(invoice.issued_ms),
        ]
    };
    let rows: Vec<_> = invoices.iter().map(row).collect();
    let header =
        ["NUMBER", "ORGANISATION", "MONTH", "REQUESTS", "EXACT TOTAL", "PAYABLE", "ISSUED"];
    output::table(&header, &rows)
}

fn shown(invoice: &Invoice) -> String {
    let row = |line: &invoice::InvoiceLine| {
        vec![
            line.project.to_string(),
            line.key.to_string(),
            line.model.to_string(),
            if line.batch { format!("{} (batch)", line.class) } else { line.class.clone() },
            line.quantity.to_string(),
            line.free.to_string(),
            line.unit_price.map(|price| price.to_string()).unwrap_or_default(),
            line.amount.to_string(),
        ]
    };
    let rows: Vec<_> = invoice.lines.iter().map(row).collect();
    let header =
        ["PROJECT", "KEY", "MODEL", "CLASS", "QUANTITY", "OF IT FREE", "UNIT PRICE", "AMOUNT"];
    format!(
        "{} for {}\n\n{}\nexact total {}\ncarried in {}\ncarried out {} (rounding remainder)\npayable {} {}\n",
        invoice.number,
        invoice.month,
        output::table(&header, &rows),
        invoice.total,
        invoice.carried_in,
        invoice.carried_out,
        invoice.payable,
        invoice.currency,
    )
}
