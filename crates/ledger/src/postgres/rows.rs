//! Usage records and log lines as PostgreSQL rows.
//!
//! Invariant: a line's number outside of its stream is the stream's id and its place in it, in one integer that fits
//! PostgreSQL's and SQLite's; so numbers of a ledger that had one stream stay what they were.

use std::sync::Arc;

use postgres::types::{FromSql, ToSql, Type};
use postgres::{GenericClient, Row};

use super::PostgresError;
use crate::book::{Entry, EntryKind};
use crate::money::Amount;
use crate::store::{LogLine, UsageSums, amount_of_parts, chain, quantity_code, quantity_of};
use crate::usage::{Outcome, Payer, RequestFacts, TokenUsage, UsageRecord};

/// Bits of a number that say the place in the stream.
const PLACE_BITS: u32 = 40;

/// A line's number among all streams'.
pub(super) fn number(stream: i64, seq: i64) -> u64 {
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    (part(stream) << PLACE_BITS) | part(seq)
}

/// The stream and the place in it.
pub(super) fn place(number: u64) -> (i64, i64) {
    let place = number & ((1 << PLACE_BITS) - 1);
    (column(number >> PLACE_BITS), column(place))
}

/// The log of a line, by its number.
pub(crate) fn log_of(number: u64) -> u64 {
    number >> PLACE_BITS
}

/// As a column: PostgreSQL's integers are signed.
pub(super) fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn damaged(what: impl std::fmt::Display) -> PostgresError {
    PostgresError::Damaged(what.to_string())
}

/// A column, whatever is in it.
pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, PostgresError> {
    row.try_get(column).map_err(damaged)
}

pub(super) fn text(row: &Row, column: usize) -> Result<Arc<str>, PostgresError> {
    Ok(get::<&str>(row, column)?.into())
}

pub(super) fn unsigned(row: &Row, column: usize) -> Result<u64, PostgresError> {
    let number: i64 = get(row, column)?;
    u64::try_from(number).map_err(|_| damaged(format!("{number} is below zero")))
}

pub(super) fn digest(row: &Row, column: usize) -> Result<[u8; 32], PostgresError> {
    get::<&[u8]>(row, column)?.try_into().map_err(|_| damaged("a digest has another length"))
}

/// A `numeric` read as text.
pub(super) fn numeric(row: &Row, column: usize) -> Result<i128, PostgresError> {
    let text: &str = get(row, column)?;
    text.parse().map_err(|_| damaged(format!("`{text}` is no whole number")))
}

/// All columns of a usage record, in the order of [`usage_values`] and [`usage`].
pub(super) const USAGE_COLUMNS: &str = "stream, seq, id, org, project, key, model, model_digest, \
     adapter, protocol, client, batch, arrival_ms, first_token_ms, end_ms, finish, label, quantity, \
     input, cached_input, explicit_cached, cache_created, output, thinking, units, price_version, \
     amount_pico, currency, free_tokens, metered_by";
/// Their types.
pub(super) const USAGE_TYPES: [Type; 30] = [
    Type::INT8,
    Type::INT8,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::BOOL,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::TEXT,
    Type::TEXT,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::TEXT,
    Type::INT8,
    Type::TEXT,
    Type::INT8,
    Type::TEXT,
];

/// The columns as tables of any version have them, which may be read without being brought up to date.
pub(super) fn usage_columns(client: &mut impl GenericClient) -> Result<String, PostgresError> {
    let row = client.query_one(
        "SELECT EXISTS (SELECT 1 FROM information_schema.columns
         WHERE table_schema = 'mintage' AND table_name = 'usage' AND column_name = 'metered_by')",
        &[],
    )?;
    let has_meter: bool = get(&row, 0)?;
    let none = || USAGE_COLUMNS.replace("metered_by", "''::text");
    Ok(if has_meter { USAGE_COLUMNS.to_owned() } else { none() })
}

type Values = Vec<Box<dyn ToSql + Sync>>;

pub(super) fn usage_values(stream: i64, seq: u64, record: &UsageRecord) -> Values {
    let (facts, outcome, usage) = (&record.facts, &record.outcome, &record.usage);
    let int = |number: u64| -> Box<dyn ToSql + Sync> { Box::new(column(number)) };
    let text = |text: &str| -> Box<dyn ToSql + Sync> { Box::new(text.to_owned()) };
    vec![
        Box::new(stream),
        int(seq),
        text(&facts.id),
        text(&facts.payer.org),
        text(&facts.payer.project),
        text(&facts.payer.key),
        text(&facts.model),
        text(&facts.model_digest),
        text(&facts.adapter),
        text(&facts.protocol),
        text(&facts.client),
        Box::new(facts.batch),
        int(facts.arrival_ms),
        int(outcome.first_token_ms),
        int(outcome.end_ms),
        text(&outcome.finish),
        text(&outcome.label),
        int(quantity_code(record.quantity)),
        int(usage.input),
        int(usage.cached_input),
        int(usage.explicit_cached),
        int(usage.cache_created),
        int(usage.output),
        int(usage.thinking),
        int(record.units),
        text(&record.price_version),
        Box::new(record.amount.posted_pico().unwrap_or(i64::MAX)),
        text(record.currency.code()),
        int(record.free_tokens),
        text(&facts.metered_by),
    ]
}

pub(super) fn usage(row: &Row) -> Result<(u64, UsageRecord), PostgresError> {
    let facts = RequestFacts {
        id: text(row, 2)?,
        payer: Payer { org: text(row, 3)?, project: text(row, 4)?, key: text(row, 5)? },
        model: text(row, 6)?,
        model_digest: text(row, 7)?,
        metered_by: text(row, 29)?,
        adapter: text(row, 8)?,
        protocol: text(row, 9)?,
        client: text(row, 10)?,
        batch: get(row, 11)?,
        arrival_ms: unsigned(row, 12)?,
    };
    let outcome = Outcome {
        first_token_ms: unsigned(row, 13)?,
        end_ms: unsigned(row, 14)?,
        finish: text(row, 15)?,
        label: text(row, 16)?,
    };
    let quantity = quantity_of(unsigned(row, 17)?);
    let currency: &str = get(row, 27)?;
    let record = UsageRecord {
        facts: facts.with_meter_apart(),
        outcome,
        quantity: quantity.ok_or_else(|| damaged("an unknown quantity"))?,
        usage: TokenUsage {
            input: unsigned(row, 18)?,
            cached_input: unsigned(row, 19)?,
            explicit_cached: unsigned(row, 20)?,
            cache_created: unsigned(row, 21)?,
            output: unsigned(row, 22)?,
            thinking: unsigned(row, 23)?,
        },
        units: unsigned(row, 24)?,
        price_version: text(row, 25)?,
        amount: Amount::from_pico(i128::from(get::<i64>(row, 26)?)),
        currency: currency.parse().map_err(damaged)?,
        free_tokens: unsigned(row, 28)?,
    };
    Ok((number(get(row, 0)?, get(row, 1)?), record))
}

/// What records add up to, as [`SumsFilter::statement`](crate::store::SumsFilter) has it in spans of `span_ms`.
pub(super) fn sums(row: &Row, span_ms: u64) -> Result<UsageSums, PostgresError> {
    let quantity = quantity_of(unsigned(row, 6)?);
    let currency: &str = get(row, 7)?;
    Ok(UsageSums {
        span_start_ms: unsigned(row, 0)?.saturating_mul(span_ms),
        project: text(row, 1)?,
        key: text(row, 2)?,
        model: text(row, 3)?,
        batch: get(row, 4)?,
        protocol: text(row, 5)?,
        quantity: quantity.ok_or_else(|| damaged("an unknown quantity"))?,
        currency: currency.parse().map_err(damaged)?,
        records: unsigned(row, 8)?,
        usage: TokenUsage {
            input: unsigned(row, 9)?,
            cached_input: unsigned(row, 10)?,
            explicit_cached: unsigned(row, 11)?,
            cache_created: unsigned(row, 12)?,
            output: unsigned(row, 13)?,
            thinking: unsigned(row, 14)?,
        },
        amount: amount_of_parts(get(row, 15)?, get(row, 16)?),
    })
}

pub(super) const LOG_COLUMNS: &str =
    "stream, seq, at_ms, kind, id, debit, credit, asset, amount, refers, detail, link";
pub(super) const LOG_TYPES: [Type; 12] = [
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::INT8,
    Type::INT8,
    Type::BYTEA,
    Type::BYTEA,
];

pub(super) fn line_values(stream: i64, line: &LogLine) -> Values {
    let entry = &line.entry;
    let text = |text: &str| -> Box<dyn ToSql + Sync> { Box::new(text.to_owned()) };
    vec![
        Box::new(stream),
        Box::new(column(line.seq)),
        Box::new(column(line.at_ms)),
        text(entry.kind.as_str()),
        text(&entry.id),
        text(&entry.debit),
        text(&entry.credit),
        text(&entry.asset),
        Box::new(entry.amount),
        Box::new(entry.refers.map(column)),
        Box::new(entry.detail.to_vec()),
        Box::new(line.link.to_vec()),
    ]
}

/// A line with its stream; its `seq` is the place in it.
pub(super) fn line(row: &Row) -> Result<(i64, LogLine), PostgresError> {
    let kind: &str = get(row, 3)?;
    let refers: Option<i64> = get(row, 9)?;
    let line = LogLine {
        seq: unsigned(row, 1)?,
        at_ms: unsigned(row, 2)?,
        entry: Entry {
            kind: EntryKind::from_name(kind).ok_or_else(|| damaged(format!("kind `{kind}`")))?,
            id: text(row, 4)?,
            debit: text(row, 5)?,
            credit: text(row, 6)?,
            asset: text(row, 7)?,
            amount: get(row, 8)?,
            refers: refers.map(|_| unsigned(row, 9)).transpose()?,
            detail: digest(row, 10)?,
        },
        link: digest(row, 11)?,
    };
    Ok((get(row, 0)?, line))
}

/// Lines made of entries, linked to the chain behind `seq` and `link`.
pub(super) fn linked(
    seq: &mut u64,
    link: &mut [u8; 32],
    at_ms: u64,
    entries: &[Entry],
) -> Vec<LogLine> {
    let next = |entry: &Entry| {
        *seq += 1;
        *link = chain::link(link, *seq, at_ms, entry);
        LogLine { seq: *seq, at_ms, entry: entry.clone(), link: *link }
    };
    entries.iter().map(next).collect()
}
