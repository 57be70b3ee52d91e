//! What budgets have come to over all gateways: counted from usage records, each record once; and the word that one is
//! used up.
//!
//! A budget's row says what was spent, a gateway's slice of it what that gateway may still spend. Counting a record
//! moves its amount from the slice of the gateway that wrote it to what was spent. So once the last record of a gateway
//! that has ended is counted, its slice is what it never used, and comes back.
//!
//! Not here: handing slices out (`allowance`). Invariants: one gateway counts at a time; how far a log is counted
//! changes together with the budgets; a budget is told in the transaction that finds it used up, once for each limit.

use std::collections::{BTreeMap, HashMap};

use postgres::Transaction;

use super::PostgresError;
use super::dividing::SharedLimits;
use super::rows::{column, get, numeric, text, unsigned};
use super::store::{Tenure, beside};
use crate::ledger::now_ms;
use crate::limits::{Level, LimitKind, Period, ShareId, Watch};
use crate::store::{Message, Work};

/// Names the lock of who counts ("mintbudg").
const LOCK: i64 = 0x6d69_6e74_6275_6467;
/// Lines of one log that are counted at once.
const MAX_LINES: i64 = 100_000;
/// Which rows are slices of budgets: see [`ShareId::text`].
const IS_BUDGET: &str = "(s.name LIKE 'tokens\\_a\\_%' OR s.name LIKE 'money\\_a\\_%')";

/// Counts what is new, unless another gateway does so now. Returns whether there may be more.
pub(super) fn count_new(
    transaction: &mut Transaction<'_>,
    limits: &SharedLimits,
) -> Result<bool, PostgresError> {
    let row = transaction.query_one("SELECT pg_try_advisory_xact_lock($1)", &[&LOCK])?;
    if !get::<bool>(&row, 0)? {
        return Ok(false);
    }
    let more = count(transaction, limits)?;
    free_ended(transaction)?;
    Ok(more)
}

/// The row of a budget that has none: with all that the records of its period come to. Everything there is gets counted
/// first, so that no record is counted in it twice.
pub(super) fn begin(
    transaction: &mut Transaction<'_>,
    share: &ShareId,
    period_ms: (u64, u64),
    limits: &SharedLimits,
) -> Result<i128, PostgresError> {
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK])?;
    while count(transaction, limits)? {}
    spent_before(transaction, share, period_ms, &(limits.keys_of)(&share.party))
}

/// Remembers who is to hear when a budget is used up, and tells it at once where it is.
pub(super) fn watch(
    transaction: &mut Transaction<'_>,
    watch: &Watch,
    limits: &SharedLimits,
) -> Result<(), PostgresError> {
    // Before any row, as who counts does.
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK])?;
    let name = watch.share.text();
    let sql = "SELECT 1 FROM mintage.allowance WHERE name = $1";
    if transaction.query_opt(sql, &[&name])?.is_none() {
        let level = begin(transaction, &watch.share, watch.period_ms, limits)?;
        transaction.execute(
            "INSERT INTO mintage.allowance (name, level, at_ms) VALUES ($1, $2::text::numeric, $3)
             ON CONFLICT (name) DO NOTHING",
            &[&name, &level.to_string(), &column(now_ms())],
        )?;
    }
    let message = (limits.notice)(&watch.reached, &watch.organisation);
    let most = watch.reached.limit.count().to_string();
    transaction.execute(
        "UPDATE mintage.allowance SET most = $2::text::numeric, topic = $3, notice = $4
         WHERE name = $1",
        &[&name, &most, &&*message.topic, &message.body],
    )?;
    tell(transaction)
}

/// What an earlier process of this gateway had of budgets and did not use comes back: its records are all there.
pub(super) fn free_own(
    transaction: &mut Transaction<'_>,
    tenure: Tenure,
    limits: &SharedLimits,
) -> Result<(), PostgresError> {
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK])?;
    while count(transaction, limits)? {}
    transaction.execute(
        "DELETE FROM mintage.allowance_slice WHERE stream = $1 AND epoch < $2",
        &[&tenure.stream, &tenure.epoch],
    )?;
    Ok(())
}

/// Slices of gateways that have ended, whose last record is counted.
fn free_ended(transaction: &mut Transaction<'_>) -> Result<(), PostgresError> {
    // A gateway that begins anew meanwhile writes its slices with a later epoch.
    let sql = format!(
        "DELETE FROM mintage.allowance_slice s
         USING mintage.stream t LEFT JOIN mintage.part p ON p.stream = t.id
         WHERE t.id = s.stream AND NOT t.live AND s.epoch <= t.epoch
           AND (coalesce(p.counted, 0) >= t.seq OR NOT {IS_BUDGET})"
    );
    transaction.execute(&sql, &[])?;
    Ok(())
}

/// By budget: how much, and of which streams' slices.
type Spent = BTreeMap<String, HashMap<i64, i128>>;

/// Counts some of what is new in all logs; the lock is held. Returns whether there is more.
fn count(transaction: &mut Transaction<'_>, limits: &SharedLimits) -> Result<bool, PostgresError> {
    let streams = transaction.query(
        "SELECT t.id, coalesce(p.counted, 0), t.seq
         FROM mintage.stream t LEFT JOIN mintage.part p ON p.stream = t.id
         WHERE t.kind = 'gateway' AND t.seq > coalesce(p.counted, 0)",
        &[],
    )?;
    let (mut spent, mut more) = (Spent::new(), false);
    for row in &streams {
        let (stream, counted, seq): (i64, i64, i64) = (get(row, 0)?, get(row, 1)?, get(row, 2)?);
        let upto = seq.min(counted.saturating_add(MAX_LINES));
        more |= upto < seq;
        read(transaction, (stream, counted, upto), limits, &mut spent)?;
        transaction.execute(
            "INSERT INTO mintage.part (stream, counted) VALUES ($1, $2)
             ON CONFLICT (stream) DO UPDATE SET counted = EXCLUDED.counted",
            &[&stream, &upto],
        )?;
    }
    if !spent.is_empty() {
        add(transaction, &spent)?;
        tell(transaction)?;
    }
    Ok(more)
}

/// What the records of a piece of a log come to, by every budget that there may be.
fn read(
    transaction: &mut Transaction<'_>,
    (stream, after, upto): (i64, i64, i64),
    limits: &SharedLimits,
    spent: &mut Spent,
) -> Result<(), PostgresError> {
    let offset_ms = i64::from(limits.calendar.utc_offset_minutes) * 60_000;
    let rows = transaction.query(
        "SELECT org, project, key, model, min(arrival_ms),
                sum(input + cached_input + explicit_cached + cache_created + output + thinking)
                    ::numeric::text,
                sum(amount_pico)::text
         FROM mintage.usage WHERE stream = $1 AND seq > $2 AND seq <= $3
         GROUP BY org, project, key, model, (arrival_ms + $4) / 86400000",
        &[&stream, &after, &upto, &offset_ms],
    )?;
    for row in &rows {
        let parties = [
            (Level::Organisation, text(row, 0)?),
            (Level::Project, text(row, 1)?),
            (Level::Key, (limits.lineage_of)(&text(row, 2)?)),
        ];
        let (model, arrival_ms) = (text(row, 3)?, unsigned(row, 4)?);
        let (tokens, pico) = (numeric(row, 5)?, numeric(row, 6)?);
        for (level, party) in parties {
            for model in [None, Some(&model)] {
                for period in [Period::Day, Period::Month] {
                    let number = limits.calendar.number(period, arrival_ms);
                    for (kind, amount) in [
                        (LimitKind::TokenBudget(period), tokens),
                        (LimitKind::MoneyBudget(period), pico),
                    ] {
                        let (party, model) = (party.clone(), model.cloned());
                        let name = ShareId { level, party, model, kind, number }.text();
                        *spent.entry(name).or_default().entry(stream).or_default() += amount;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Into those budgets that there are, and out of the slices. Rows are locked in the order of their names.
fn add(transaction: &mut Transaction<'_>, spent: &Spent) -> Result<(), PostgresError> {
    let names: Vec<&str> = spent.keys().map(String::as_str).collect();
    let known = transaction.query(
        "SELECT name FROM mintage.allowance WHERE name = ANY($1) ORDER BY name FOR UPDATE",
        &[&names],
    )?;
    let (mut names, mut streams, mut amounts) = (Vec::new(), Vec::new(), Vec::new());
    for row in &known {
        let name: &str = get(row, 0)?;
        for (stream, amount) in spent.get(name).into_iter().flatten() {
            names.push(name);
            streams.push(*stream);
            amounts.push(amount.to_string());
        }
    }
    transaction.execute(
        "UPDATE mintage.allowance a SET level = a.level + new.amount
         FROM (SELECT name, sum(amount::numeric) AS amount
               FROM unnest($1::text[], $2::text[]) AS one (name, amount) GROUP BY name) AS new
         WHERE a.name = new.name",
        &[&names, &amounts],
    )?;
    let locked = "SELECT s.name FROM mintage.allowance_slice s
         JOIN unnest($1::text[], $2::int8[]) AS one (name, stream) USING (name, stream)
         ORDER BY s.name, s.stream FOR UPDATE OF s";
    transaction.execute(locked, &[&names, &streams])?;
    transaction.execute(
        "UPDATE mintage.allowance_slice s SET leased = s.leased - one.amount::numeric
         FROM unnest($1::text[], $2::int8[], $3::text[]) AS one (name, stream, amount)
         WHERE s.name = one.name AND s.stream = one.stream",
        &[&names, &streams, &amounts],
    )?;
    Ok(())
}

/// Messages of budgets that are used up and of which that was not said.
fn tell(transaction: &mut Transaction<'_>) -> Result<(), PostgresError> {
    let rows = transaction.query(
        "UPDATE mintage.allowance SET told = most
         WHERE most > 0 AND level >= most AND (told IS NULL OR told < most)
         RETURNING topic, notice",
        &[],
    )?;
    let at_ms = now_ms();
    let message = |row| {
        let body = get::<Vec<u8>>(row, 1)?;
        Ok(Message { topic: text(row, 0)?, body, due_ms: at_ms })
    };
    let messages = rows.iter().map(message).collect::<Result<Vec<_>, PostgresError>>()?;
    beside(transaction, &Work { at_ms, messages, ..Work::default() })
}

/// What the counted records of a budget's period come to.
fn spent_before(
    transaction: &mut Transaction<'_>,
    share: &ShareId,
    period_ms: (u64, u64),
    keys: &[String],
) -> Result<i128, PostgresError> {
    let (from_ms, until_ms) = period_ms;
    let sum = match share.kind {
        LimitKind::MoneyBudget(_) => "amount_pico",
        _ => "input + cached_input + explicit_cached + cache_created + output + thinking",
    };
    let own = [share.party.to_string()];
    let (party, ids) = match share.level {
        Level::Organisation => ("org", &own[..]),
        Level::Project => ("project", &own[..]),
        Level::Key => ("key", keys),
    };
    // Names of columns are constants of this program.
    let sql = format!(
        "SELECT coalesce(sum({sum}), 0)::numeric::text
         FROM mintage.usage u JOIN mintage.part p USING (stream)
         WHERE u.{party} = ANY($1) AND ($2::text IS NULL OR u.model = $2)
           AND u.arrival_ms >= $3 AND u.arrival_ms < $4 AND u.seq <= p.counted"
    );
    let model = share.model.as_deref();
    let row = transaction.query_one(&sql, &[&ids, &model, &column(from_ms), &column(until_ms)])?;
    numeric(&row, 0)
}
