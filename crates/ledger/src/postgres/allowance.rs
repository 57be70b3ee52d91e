//! Limits that gateways share, divided: a rate flows into one bucket and out of it by shares; of a total (budgets,
//! requests in flight) shares are handed out and come back.
//!
//! Not here: what requests take of their gateway's share (the limiter); what of a budget is spent (`budgets`). Invariant:
//! all shares handed out and not given back, and what was spent before, are never more than the limit. What a gateway had
//! that was killed comes back: requests in flight with the end of its lease, budgets once its last record is counted.

use postgres::Transaction;

use super::dividing::SharedLimits;
use super::pool::{CHANNEL, gateways, live};
use super::rows::{get, numeric};
use super::store::Tenure;
use super::{PostgresError, budgets};
use crate::limits::{LimitKind, Missing, ShareId, ShareLimit};

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

/// Hands out what is missing, and up to `want` where there is plenty.
pub(super) fn allow(
    transaction: &mut Transaction<'_>,
    tenure: Tenure,
    missing: &Missing,
    want: i128,
    limits: &SharedLimits,
) -> Result<Allowed, PostgresError> {
    live(transaction, tenure)?;
    let name = missing.share.text();
    let now_ms: i64 = get(
        &transaction
            .query_one("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8", &[])?,
        0,
    )?;
    let (level, at_ms) = locked(transaction, missing, &name, now_ms, limits)?;
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

/// Whether this return of shares did not come before: its answer may have been lost. Numbers only grow.
pub(super) fn is_first(
    transaction: &mut Transaction<'_>,
    tenure: Tenure,
    number: i64,
) -> Result<bool, PostgresError> {
    live(transaction, tenure)?;
    let noted = transaction.execute(
        "INSERT INTO mintage.part (stream, returned) VALUES ($1, $2)
         ON CONFLICT (stream) DO UPDATE SET returned = EXCLUDED.returned
         WHERE mintage.part.returned < EXCLUDED.returned",
        &[&tenure.stream, &number],
    )?;
    Ok(noted == 1)
}

/// What of a share goes back; below zero, what was used beyond it.
pub(super) fn give_back(
    transaction: &mut Transaction<'_>,
    tenure: Tenure,
    share: &ShareId,
    amount: i128,
) -> Result<(), PostgresError> {
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
    limits: &SharedLimits,
) -> Result<(i128, i64), PostgresError> {
    let sql = "SELECT level::text, at_ms FROM mintage.allowance WHERE name = $1 FOR UPDATE";
    if let Some(row) = transaction.query_opt(sql, &[&name])? {
        return Ok((numeric(&row, 0)?, get(&row, 1)?));
    }
    let level = match missing.limit {
        ShareLimit::Rate { capacity, .. } => i128::from(capacity) * UNITS,
        ShareLimit::Total(_) => match missing.period_ms {
            None => 0,
            Some(period_ms) => budgets::begin(transaction, &missing.share, period_ms, limits)?,
        },
    };
    transaction.execute(
        "INSERT INTO mintage.allowance (name, level, at_ms) VALUES ($1, $2::text::numeric, $3)
         ON CONFLICT (name) DO NOTHING",
        &[&name, &level.to_string(), &now_ms],
    )?;
    let row = transaction.query_one(sql, &[&name])?;
    Ok((numeric(&row, 0)?, get(&row, 1)?))
}

/// What gateways have of a total. Of a budget also what those have that ended and are not all counted.
fn leased(
    transaction: &mut Transaction<'_>,
    name: &str,
    kind: LimitKind,
) -> Result<i128, PostgresError> {
    let all = kind != LimitKind::InFlight;
    // Below zero where something was spent that had been admitted before the budget was set: that is no more to spend.
    let row = transaction.query_one(
        "SELECT coalesce(sum(greatest(s.leased, 0)), 0)::text FROM mintage.allowance_slice s
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
    // What an earlier process of this gateway had in flight has ended with it; of budgets it has come back before.
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
    use crate::limits::Level;

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
