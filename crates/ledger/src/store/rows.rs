//! Usage records and log lines as SQLite rows.

use std::sync::Arc;

use rusqlite::{Connection, Row, params};

use super::{LogLine, StoreError};
use crate::book::{Entry, EntryKind};
use crate::money::Amount;
use crate::usage::{Outcome, Payer, Quantity, RequestFacts, TokenUsage, UsageRecord};

/// The version of the file in which a record got the column.
const METERED_BY_SINCE: i64 = 3;
const QUANTITIES: [(Quantity, u64); 3] =
    [(Quantity::Tokens, 0), (Quantity::TrainingTokens, 1), (Quantity::DeploymentMs, 2)];

/// How a quantity is stored.
pub(crate) fn quantity_code(quantity: Quantity) -> u64 {
    QUANTITIES.iter().find(|(known, _)| *known == quantity).map_or(0, |(_, code)| *code)
}

/// The quantity of that code.
pub(crate) fn quantity_of(code: u64) -> Option<Quantity> {
    QUANTITIES.iter().find(|(_, known)| *known == code).map(|(quantity, _)| *quantity)
}

/// As a column: SQLite's integers are signed.
pub(super) fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(index)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(index, number))
}

fn text(row: &Row<'_>, index: usize) -> rusqlite::Result<Arc<str>> {
    row.get(index)
}

/// All columns of a usage record, in the order of [`insert_usage`] and [`usage`].
pub(super) const USAGE_COLUMNS: &str = "seq, id, org, project, key, model, model_digest, adapter, \
     protocol, client, batch, arrival_ms, first_token_ms, end_ms, finish, label, quantity, input, \
     cached_input, explicit_cached, cache_created, output, thinking, units, price_version, \
     amount_pico, currency, free_tokens, metered_by";

/// The same as a file of any version has them, which may be read without being brought up to date.
pub(super) fn usage_columns(connection: &Connection) -> rusqlite::Result<String> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let has_meter = version >= METERED_BY_SINCE;
    Ok(if has_meter { USAGE_COLUMNS.to_owned() } else { USAGE_COLUMNS.replace("metered_by", "''") })
}

pub(super) fn insert_usage(
    statement: &mut rusqlite::Statement<'_>,
    seq: u64,
    record: &UsageRecord,
) -> rusqlite::Result<()> {
    let (facts, outcome, usage) = (&record.facts, &record.outcome, &record.usage);
    statement.execute(params![
        column(seq),
        facts.id,
        facts.payer.org,
        facts.payer.project,
        facts.payer.key,
        facts.model,
        facts.model_digest,
        facts.adapter,
        facts.protocol,
        facts.client,
        facts.batch,
        column(facts.arrival_ms),
        column(outcome.first_token_ms),
        column(outcome.end_ms),
        outcome.finish,
        outcome.label,
        column(quantity_code(record.quantity)),
        column(usage.input),
        column(usage.cached_input),
        column(usage.explicit_cached),
        column(usage.cache_created),
        column(usage.output),
        column(usage.thinking),
        column(record.units),
        record.price_version,
        record.amount.posted_pico().unwrap_or(i64::MAX),
        record.currency.code(),
        column(record.free_tokens),
        facts.metered_by,
    ])?;
    Ok(())
}

pub(super) fn usage(row: &Row<'_>) -> rusqlite::Result<(u64, UsageRecord)> {
    let facts = RequestFacts {
        id: text(row, 1)?,
        payer: Payer { org: text(row, 2)?, project: text(row, 3)?, key: text(row, 4)? },
        model: text(row, 5)?,
        model_digest: text(row, 6)?,
        metered_by: text(row, 28)?,
        adapter: text(row, 7)?,
        protocol: text(row, 8)?,
        client: text(row, 9)?,
        batch: row.get(10)?,
        arrival_ms: unsigned(row, 11)?,
    };
    let outcome = Outcome {
        first_token_ms: unsigned(row, 12)?,
        end_ms: unsigned(row, 13)?,
        finish: text(row, 14)?,
        label: text(row, 15)?,
    };
    let code = unsigned(row, 16)?;
    let out_of_range = || rusqlite::Error::IntegralValueOutOfRange(16, column(code));
    let currency: String = row.get(26)?;
    let record = UsageRecord {
        facts: facts.with_meter_apart(),
        outcome,
        quantity: quantity_of(code).ok_or_else(out_of_range)?,
        usage: TokenUsage {
            input: unsigned(row, 17)?,
            cached_input: unsigned(row, 18)?,
            explicit_cached: unsigned(row, 19)?,
            cache_created: unsigned(row, 20)?,
            output: unsigned(row, 21)?,
            thinking: unsigned(row, 22)?,
        },
        units: unsigned(row, 23)?,
        price_version: text(row, 24)?,
        amount: Amount::from_pico(i128::from(row.get::<_, i64>(25)?)),
        currency: currency.parse().map_err(|e| conversion(26, e))?,
        free_tokens: unsigned(row, 27)?,
    };
    Ok((unsigned(row, 0)?, record))
}

pub(super) const LOG_COLUMNS: &str =
    "seq, at_ms, kind, id, debit, credit, asset, amount, refers, detail, link";

pub(super) fn insert_line(
    statement: &mut rusqlite::Statement<'_>,
    line: &LogLine,
) -> rusqlite::Result<()> {
    let entry = &line.entry;
    statement.execute(params![
        column(line.seq),
        column(line.at_ms),
        entry.kind.as_str(),
        entry.id,
        entry.debit,
        entry.credit,
        entry.asset,
        entry.amount,
        entry.refers.map(column),
        entry.detail,
        line.link,
    ])?;
    Ok(())
}

pub(super) fn line(row: &Row<'_>) -> rusqlite::Result<LogLine> {
    let kind: String = row.get(2)?;
    let known = EntryKind::from_name(&kind);
    let refers: Option<i64> = row.get(8)?;
    Ok(LogLine {
        seq: unsigned(row, 0)?,
        at_ms: unsigned(row, 1)?,
        entry: Entry {
            kind: known.ok_or_else(|| conversion(2, StoreError::damaged("unknown kind")))?,
            id: text(row, 3)?,
            debit: text(row, 4)?,
            credit: text(row, 5)?,
            asset: text(row, 6)?,
            amount: row.get(7)?,
            refers: refers.map(|_| unsigned(row, 8)).transpose()?,
            detail: row.get(9)?,
        },
        link: row.get(10)?,
    })
}

pub(super) fn conversion(
    index: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(error))
}
