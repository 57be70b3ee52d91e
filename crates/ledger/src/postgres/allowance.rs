//! Limits that gateways share, divided: a rate flows into one bucket and out of it by shares; of a total (budgets,
//! requests in flight) shares are handed out and come back.
//!
//! Not here: what requests take of their gateway's share (the limiter). Invariants: all shares handed out and not given
//! back are never more than the limit; a gateway that is killed takes along what it had of a budget until the period
//! ends, never more; its requests in flight end with its lease.

use postgres::Transaction;

use super::PostgresError;
use super::pool::{CHANNEL, gateways, live};
use super::rows::{column, get, numeric};
use super::store::Tenure;
use crate::limits::{Level, LimitKind, Missing, ShareId, ShareLimit};

/// A bucket counts in 1/60,000, so that so many a minute are so many a millisecond.
const UNITS: i128 = 60_000;
/// Begins the notice that somebody lacks a share.
pub(super) const SHORT: &str = "short";
/// Limits that nobody asked for in so long are forgotten: longer than any period, days.
const FORGOTTEN_DAYS: i64 = 70;

/// What became of a wish for a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allowed {
    /// So much more may be given away.
    Granted(i128),
    /// Nothing now; of a rate, there will be enough in so many ms.
    Later(Option<u64>),
}

/// Hands out what is missing, and up to `want` where there is plenty. `keys` are the ids of a key's rotations.
pub(super) fn allow(
    transaction: &mut Transaction<'_>,
    tenure: Tenure,
    missing: &Missing,
    want: i128,
    keys: &[String],
) -> Result<Allowed, PostgresError> {
    live(transaction, tenure)?;
    let name = missing.share.text();
    let now_ms: i64 = get(
        &transaction
            .query_one("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8", &[])?,
        0,
    )?;
    let (level, at_ms) = locked(transaction, missing, &name, now_ms, keys)?;
    let spare = |available: i128, gateways: i64| {
        let left = (available - missing.need).max(0);
        let share = left / (2 * i128::from(gateways.max(1)));
        missing.need + (want - missing.need).clamp(0, share)
    };
    match missing.limit {
        ShareLimit::Rate { per_minute, capacity } => {
            let gained = i128::from(per_minute) * i128::from(now_ms.saturating_sub(at_ms).max(0));
            let level = (level + gained).min(i128::from(capacity) * UNITS);
            if level < missing.need * UNITS {
                return Ok(Allowed::Later(until(missing, level, per_minute, capacity)));
            }
            let granted = spare(level / UNITS, gateways(transaction)?);
            set_level(transaction, &name, level - granted * UNITS, now_ms.max(at_ms))?;
            Ok(Allowed::Granted(granted))
        }
        ShareLimit::Total(total) => {
            let available = total - level - leased(transaction, &name, missing.share.kind)?;
            if available < missing.need {
                // Others may have some that they do not need.
                transaction
                    .execute("SELECT pg_notify($1, $2)", &[&CHANNEL, &format!("{SHORT} {name}")])?;
                return Ok(Allowed::Later(None));
            }
            let granted = spare(available, gateways(transaction)?);
            add_slice(transaction, tenure, &name, missing.share.kind, granted)?;
            set_level(transaction, &name, level, now_ms.max(at_ms))?;
            Ok(Allowed::Granted(granted))
        }
    }
}

/// When a rate will have what is needed; `None`: never.
fn until(missing: &Missing, level: i128, per_minute: u64, capacity: u64) -> Option<u64> {
    if per_minute == 0 || missing.need > i128::from(capacity) {
        return None;
    }
    let per_ms = i128::from(per_minute);
    u64::try_from((missing.need * UNITS - level + per_ms - 1) / per_ms).ok()
}

/// What of a share goes back; below zero, what was used beyond it.
pub(super) fn give_back(
    transaction: &mut Transaction<'_>,
    tenure: Tenure,
    share: &ShareId,
    amount: i128,
) -> Result<(), PostgresError> {
    live(transaction, tenure)?;
    let name = share.text();
    match share.kind {
        LimitKind::InFlight | LimitKind::TokenBudget(_) | LimitKind::MoneyBudget(_) => {
            add_slice(transaction, tenure, &name, share.kind, -amount)
        }
        _ => {
            transaction.execute(
                "UPDATE mintage.allowance SET level = level + $2::text::numeric WHERE name = $1",
                &[&name, &amount.saturating_mul(UNITS).to_string()],
            )?;
            Ok(())
        }
    }
}

/// Forgets limits of long ago.
pub(super) fn forget(transaction: &mut Transaction<'_>) -> Result<(), PostgresError> {
    transaction.execute(
        "DELETE FROM mintage.allowance
         WHERE at_ms < (extract(epoch FROM now()) * 1000)::int8 - $1::int8 * 86400000",
        &[&FORGOTTEN_DAYS],
    )?;
    Ok(())
}

/// The limit's row, locked; made where there is none, full of what nobody has used yet.
fn locked(
    transaction: &mut Transaction<'_>,
    missing: &Missing,
    name: &str,
    now_ms: i64,
    keys: &[String],
) -> Result<(i128, i64), PostgresError> {
    let sql = "SELECT level::text, at_ms FROM mintage.allowance WHERE name = $1 FOR UPDATE";
    if let Some(row) = transaction.query_opt(sql, &[&name])? {
        return Ok((numeric(&row, 0)?, get(&row, 1)?));
    }
    let level = match missing.limit {
        ShareLimit::Rate { capacity, .. } => i128::from(capacity) * UNITS,
        ShareLimit::Total(_) => used_before(transaction, missing, keys)?,
    };
    transaction.execute(
        "INSERT INTO mintage.allowance (name, level, at_ms) VALUES ($1, $2::text::numeric, $3)
         ON CONFLICT (name) DO NOTHING",
        &[&name, &level.to_string(), &now_ms],
    )?;
    let row = transaction.query_one(sql, &[&name])?;
    Ok((numeric(&row, 0)?, get(&row, 1)?))
}

/// What the records of a budget's period come to so far.
fn used_before(
    transaction: &mut Transaction<'_>,
    missing: &Missing,
    keys: &[String],
) -> Result<i128, PostgresError> {
    let Some((from_ms, until_ms)) = missing.period_ms else { return Ok(0) };
    let share = &missing.share;
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
        "SELECT coalesce(sum({sum}), 0)::numeric::text FROM mintage.usage
         WHERE {party} = ANY($1) AND ($2::text IS NULL OR model = $2)
           AND arrival_ms >= $3 AND arrival_ms < $4"
    );
    let model = share.model.as_deref();
    let row = transaction.query_one(&sql, &[&ids, &model, &column(from_ms), &column(until_ms)])?;
    numeric(&row, 0)
}

/// What gateways have of a total. Of a budget also what those have that ended: they used it, or nobody knows.
fn leased(
    transaction: &mut Transaction<'_>,
    name: &str,
    kind: LimitKind,
) -> Result<i128, PostgresError> {
    let all = kind != LimitKind::InFlight;
    let row = transaction.query_one(
        "SELECT coalesce(sum(s.leased), 0)::text FROM mintage.allowance_slice s
         JOIN mintage.stream t ON t.id = s.stream
         WHERE s.name = $1 AND ($2 OR (t.live AND t.expires > now() AND t.epoch = s.epoch))",
        &[&name, &all],
    )?;
    numeric(&row, 0)
}

fn set_level(
    transaction: &mut Transaction<'_>,
    name: &str,
    level: i128,
    at_ms: i64,
) -> Result<(), PostgresError> {
    transaction.execute(
        "UPDATE mintage.allowance SET level = $2::text::numeric, at_ms = $3 WHERE name = $1",
        &[&name, &level.to_string(), &at_ms],
    )?;
    Ok(())
}

fn add_slice(
    transaction: &mut Transaction<'_>,
    tenure: Tenure,
    name: &str,
    kind: LimitKind,
    amount: i128,
) -> Result<(), PostgresError> {
    // What an earlier process of this gateway had in flight has ended with it; what it had of a budget may be used.
    let keeps = kind != LimitKind::InFlight;
    transaction.execute(
        "INSERT INTO mintage.allowance_slice (name, stream, epoch, leased)
         VALUES ($1, $2, $3, $4::text::numeric)
         ON CONFLICT (name, stream) DO UPDATE SET epoch = EXCLUDED.epoch, leased = EXCLUDED.leased
             + CASE WHEN $5 OR mintage.allowance_slice.epoch = EXCLUDED.epoch
                    THEN mintage.allowance_slice.leased ELSE 0 END",
        &[&name, &tenure.stream, &tenure.epoch, &amount.to_string(), &keeps],
    )?;
    Ok(())
}

/// The share that a notice speaks of.
pub(super) fn is_named(share: &ShareId, wanted: &std::collections::HashSet<String>) -> bool {
    !wanted.is_empty() && wanted.contains(&share.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_says_when_there_is_enough() {
        let missing = |need| Missing {
            share: ShareId {
                level: Level::Key,
                party: "k".into(),
                model: None,
                kind: LimitKind::Requests,
                number: 0,
            },
            limit: ShareLimit::Rate { per_minute: 60, capacity: 60 },
            period_ms: None,
            need,
        };
        for (need, level, per_minute, expected) in [
            (1, 0, 60, Some(1000)),
            (1, UNITS - 1, 60, Some(1)),
            (3, UNITS, 60, Some(2000)),
            (61, 0, 60, None),
            (1, 0, 0, None),
        ] {
            assert_eq!(until(&missing(need), level, per_minute, 60), expected, "{need} {level}");
        }
    }
}
