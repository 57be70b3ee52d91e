//! Usage summed up where it is stored: whoever shows a busy month asks for a few sums instead of each of its records.
//!
//! Invariant: the sums are those of the records that [`UsageFilter`](super::UsageFilter) with the same organisation and
//! times finds.

use std::sync::Arc;

use rusqlite::Row;

use super::rows;
use crate::money::{Amount, Currency};
use crate::usage::{Quantity, TokenUsage};

/// The most sums that one read returns; one more tells that there are too many.
pub const MAX_SUMS_PER_READ: usize = 100_000;
/// Amounts are added up in two parts, so that no sum leaves the 64 bits of a column: so many pico, and the rest.
const PART_PICO: i64 = 1_000_000;

/// Which records, and what keeps their sums apart, besides spans of time, quantity and currency.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SumsFilter {
    /// Of this organisation.
    pub org: Arc<str>,
    /// Ended at or after, ms since 1970.
    pub from_ms: u64,
    /// Ended before, ms since 1970; 0 for no end.
    pub until_ms: u64,
    /// Spans are so long, ms, and begin at multiples of that since 1970; at least 1.
    pub span_ms: u64,
    /// Each project by itself.
    pub by_project: bool,
    /// Each key by itself.
    pub by_key: bool,
    /// Each model by itself.
    pub by_model: bool,
    /// What came in batches by itself.
    pub by_batch: bool,
    /// Each dialect's route by itself.
    pub by_protocol: bool,
}

/// What the records of a span add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageSums {
    /// When the span begins, ms since 1970.
    pub span_start_ms: u64,
    /// Empty unless each is by itself.
    pub project: Arc<str>,
    /// Empty unless each is by itself.
    pub key: Arc<str>,
    /// Empty unless each is by itself.
    pub model: Arc<str>,
    /// Whether they came in batches; false unless that is by itself.
    pub batch: bool,
    /// Dialect and route; empty unless each is by itself.
    pub protocol: Arc<str>,
    /// What is counted.
    pub quantity: Quantity,
    /// Of `amount`.
    pub currency: Currency,
    /// How many records.
    pub records: u64,
    /// Tokens by class.
    pub usage: TokenUsage,
    /// What was posted.
    pub amount: Amount,
}

impl SumsFilter {
    pub(crate) fn span_ms(&self) -> u64 {
        self.span_ms.max(1)
    }

    /// The statement, where `table`, `organisation`, `from` and `until` are as the database names them and `whole` makes
    /// a sum a 64-bit integer. The columns are those of [`UsageSums`] in order, the amount in two.
    pub(crate) fn statement(
        &self,
        table: &str,
        [organisation, from, until]: [&str; 3],
        whole: &str,
    ) -> String {
        let apart = [
            (self.by_project, "project", "''"),
            (self.by_key, "key", "''"),
            (self.by_model, "model", "''"),
            (self.by_batch, "batch", "false"),
            (self.by_protocol, "protocol", "''"),
        ];
        let columns = apart.map(|(is_apart, name, none)| if is_apart { name } else { none });
        let groups = apart.iter().filter(|(is_apart, ..)| *is_apart);
        let groups: String = groups.map(|(_, name, _)| format!(", {name}")).collect();
        let span = format!("end_ms / {}", self.span_ms());
        let sums =
            ["input", "cached_input", "explicit_cached", "cache_created", "output", "thinking"];
        let sums: String = sums.iter().map(|name| format!(", SUM({name}){whole}")).collect();
        format!(
            "SELECT {span}, {}, quantity, currency, COUNT(*){sums}, \
             SUM(amount_pico / {PART_PICO}){whole}, SUM(amount_pico % {PART_PICO}){whole} \
             FROM {table} WHERE org = {organisation} AND end_ms >= {from} AND end_ms < {until} \
             GROUP BY {span}, quantity, currency{groups} LIMIT {}",
            columns.join(", "),
            MAX_SUMS_PER_READ + 1
        )
    }
}

/// An amount from its two parts.
pub(crate) fn amount(parts: i64, rest: i64) -> Amount {
    Amount::from_pico(i128::from(parts) * i128::from(PART_PICO) + i128::from(rest))
}

/// As SQLite has it, `span_ms` long.
pub(super) fn sums(row: &Row<'_>, span_ms: u64) -> rusqlite::Result<UsageSums> {
    let currency: String = row.get(7)?;
    let code = rows::unsigned(row, 6)?;
    let unknown = || rusqlite::Error::IntegralValueOutOfRange(6, rows::column(code));
    Ok(UsageSums {
        span_start_ms: rows::unsigned(row, 0)?.saturating_mul(span_ms),
        project: row.get(1)?,
        key: row.get(2)?,
        model: row.get(3)?,
        batch: row.get(4)?,
        protocol: row.get(5)?,
        quantity: rows::quantity_of(code).ok_or_else(unknown)?,
        currency: currency.parse().map_err(|e| rows::conversion(7, e))?,
        records: rows::unsigned(row, 8)?,
        usage: TokenUsage {
            input: rows::unsigned(row, 9)?,
            cached_input: rows::unsigned(row, 10)?,
            explicit_cached: rows::unsigned(row, 11)?,
            cache_created: rows::unsigned(row, 12)?,
            output: rows::unsigned(row, 13)?,
            thinking: rows::unsigned(row, 14)?,
        },
        amount: amount(row.get(15)?, row.get(16)?),
    })
}
