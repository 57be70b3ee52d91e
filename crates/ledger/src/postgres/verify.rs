//! Reading everything back: each stream's chain and sums, each record's digest, each pool's and slice's arithmetic.
//!
//! Not here: repair. What is damaged is named; a backup is the way back.

use std::collections::BTreeMap;
use std::sync::Arc;

use postgres::Transaction;
use postgres::fallible_iterator::FallibleIterator;
use sha2::{Digest, Sha256};

use super::PostgresError;
use super::connect::Session;
use super::read;
use super::rows::{
    LOG_COLUMNS, column, damaged, digest, get, line, number, numeric, place, text, unsigned, usage,
    usage_columns,
};
use crate::book::{EntryKind, Sums};
use crate::store::{LogLine, Pruned, Verified, chain, of_table};

type Totals = BTreeMap<(i64, Arc<str>, Arc<str>), Sums>;
/// By account, asset and stream: leased in the pool's logs, received and spent in the gateways'.
type Slices = BTreeMap<(Arc<str>, Arc<str>, i64), (i128, i128, i128)>;

/// What the lines of the log come to.
#[derive(Default)]
struct Walked {
    lines: u64,
    totals: Totals,
    slices: Slices,
    links: Vec<[u8; 32]>,
}

/// Everything, in one read transaction.
pub(super) fn verify(session: &mut Session) -> Result<Verified, PostgresError> {
    let mut transaction = session
        .client()
        .build_transaction()
        .isolation_level(postgres::IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()?;
    transaction.batch_execute("SET LOCAL statement_timeout = 0")?;
    verify_in(&mut transaction)
}

/// The same within a transaction that may have written what is verified.
pub(super) fn verify_in(transaction: &mut Transaction<'_>) -> Result<Verified, PostgresError> {
    let walked = walk(transaction)?;
    sums(transaction, &walked.totals)?;
    slices(transaction, &walked)?;
    let records = records(transaction)?;
    let documents = documents(transaction)?;
    read::operations(transaction, None)?;
    let mut marks = 0;
    for row in transaction.query("SELECT id FROM mintage.stream ORDER BY id", &[])? {
        marks += read::marks(transaction, get(&row, 0)?)?.len() as u64;
    }
    read::messages(transaction, u64::MAX, u64::MAX)?;
    let kept = transaction.query(
        "SELECT scope, key, body_digest, answer, expires_ms, sum FROM mintage.answer",
        &[],
    )?;
    kept.iter().try_for_each(|row| read::answer(row).map(|_| ()))?;
    Ok(Verified { lines: walked.lines, records, documents, marks, link: joined(&walked.links) })
}

/// One stream's link as it is; of several, their digest.
fn joined(links: &[[u8; 32]]) -> String {
    let link = match links {
        [] => chain::GENESIS,
        [only] => *only,
        many => Sha256::digest(many.concat()).into(),
    };
    link.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn walk(transaction: &mut Transaction<'_>) -> Result<Walked, PostgresError> {
    let mut walked = Walked::default();
    let streams = transaction
        .query("SELECT id, seq, link, name, kind FROM mintage.stream ORDER BY id", &[])?;
    for row in &streams {
        let (stream, seq, link) = (get(row, 0)?, unsigned(row, 1)?, digest(row, 2)?);
        let found = walk_stream(transaction, stream, &mut walked)?;
        if found != (seq, link) {
            return Err(damaged(format!(
                "the log of {} `{}` ends at line {} instead of {seq}",
                get::<&str>(row, 4)?,
                get::<&str>(row, 3)?,
                found.0
            )));
        }
        if seq > 0 {
            walked.links.push(link);
        }
    }
    Ok(walked)
}

fn walk_stream(
    transaction: &mut Transaction<'_>,
    stream: i64,
    walked: &mut Walked,
) -> Result<(u64, [u8; 32]), PostgresError> {
    let sql = format!("SELECT {LOG_COLUMNS} FROM mintage.log WHERE stream = $1 ORDER BY seq");
    let (mut count, mut link) = (0, chain::GENESIS);
    let mut rows = transaction.query_raw(&sql, [stream])?;
    while let Some(row) = rows.next()? {
        let (_, read) = line(&row)?;
        count += 1;
        if read.seq != count {
            let number = number(stream, column(count));
            return Err(damaged(format!("line {number} of the log is missing")));
        }
        link = chain::link(&link, read.seq, read.at_ms, &read.entry);
        if link != read.link {
            return Err(damaged(format!(
                "line {} of the log is not what was written: the chain breaks there",
                number(stream, column(count))
            )));
        }
        add(walked, stream, &read);
    }
    walked.lines += count;
    Ok((count, link))
}

fn add(walked: &mut Walked, stream: i64, read: &LogLine) {
    let entry = &read.entry;
    let amount = i128::from(entry.amount);
    if amount == 0 {
        return;
    }
    for (account, debits, credits) in [(&entry.debit, amount, 0), (&entry.credit, 0, amount)] {
        let key = (stream, account.clone(), entry.asset.clone());
        let sums = walked.totals.entry(key).or_default();
        sums.debits += debits;
        sums.credits += credits;
    }
    // One line of a lease stands in the account's log, its twin in the gateway's; which is told by who is debited.
    let lease_of = |name: &str| name.strip_prefix("lease/").and_then(|id| id.parse::<i64>().ok());
    let (debited, credited) = (lease_of(&entry.debit), lease_of(&entry.credit));
    let (account, gateway, change) = match (entry.kind, debited, credited) {
        (EntryKind::Post | EntryKind::FreeUse, ..) => (&entry.debit, stream, (0, 0, amount)),
        (EntryKind::Lease, _, Some(gateway)) => (&entry.debit, gateway, (amount, 0, 0)),
        (EntryKind::Lease, Some(_), None) => (&entry.credit, stream, (0, amount, 0)),
        (EntryKind::Return, Some(gateway), _) => (&entry.credit, gateway, (-amount, 0, 0)),
        (EntryKind::Return, None, Some(_)) => (&entry.debit, stream, (0, -amount, 0)),
        _ => return,
    };
    let key = (account.clone(), entry.asset.clone(), gateway);
    let slice = walked.slices.entry(key).or_default();
    slice.0 += change.0;
    slice.1 += change.1;
    slice.2 += change.2;
}

fn sums(transaction: &mut Transaction<'_>, totals: &Totals) -> Result<(), PostgresError> {
    let rows = transaction.query(
        "SELECT stream, name, asset, debits::text, credits::text FROM mintage.sums
         WHERE debits > 0 OR credits > 0",
        &[],
    )?;
    let mut kept = Totals::new();
    for row in &rows {
        let sums = Sums { debits: numeric(row, 3)?, credits: numeric(row, 4)? };
        kept.insert((get(row, 0)?, text(row, 1)?, text(row, 2)?), sums);
    }
    let differs = |a: &Totals, b: &Totals| {
        a.iter().find(|(k, v)| b.get(*k) != Some(*v)).map(|(k, _)| k.clone())
    };
    match differs(&kept, totals).or_else(|| differs(totals, &kept)) {
        None => Ok(()),
        Some((stream, name, asset)) => Err(damaged(format!(
            "the sums of {name} in {asset} are not those of the log of stream {stream}"
        ))),
    }
}

/// Pools and slices against the logs of both sides.
fn slices(transaction: &mut Transaction<'_>, walked: &Walked) -> Result<(), PostgresError> {
    let pools =
        transaction.query("SELECT account, asset, stream, balance::text FROM mintage.pool", &[])?;
    for row in &pools {
        let (account, asset, stream) = (text(row, 0)?, text(row, 1)?, get(row, 2)?);
        let key = (stream, account.clone(), asset.clone());
        // What a ledger brought along that had one gateway stands in that gateway's log, not in the account's.
        let sums = walked.totals.get(&key).copied().unwrap_or_default();
        if numeric(row, 3)? != sums.credits - sums.debits {
            return Err(damaged(format!("the balance of {account} in {asset} is not its log's")));
        }
    }
    let mut open = walked.slices.clone();
    let rows = transaction.query(
        "SELECT s.account, s.asset, s.stream, leased::text, received::text, spent::text, t.live,
                t.name
         FROM mintage.slice s JOIN mintage.stream t ON t.id = s.stream",
        &[],
    )?;
    for row in &rows {
        let key = (text(row, 0)?, text(row, 1)?, get(row, 2)?);
        let of_log = open.remove(&key).unwrap_or_default();
        let kept = (numeric(row, 3)?, numeric(row, 4)?, numeric(row, 5)?);
        let (live, name): (bool, &str) = (get(row, 6)?, get(row, 7)?);
        if kept != of_log {
            return Err(damaged(format!(
                "the slice of {} in `{name}` is {kept:?}, by the logs {of_log:?}",
                key.0
            )));
        }
        if !live && (kept.0 != kept.1 || kept.1 != kept.2) {
            return Err(damaged(format!("`{name}` has ended and still has a slice of {}", key.0)));
        }
    }
    // A log from a file never had a slice: what left it must have come into the pool.
    match open.iter().find(|(_, slice)| slice.0 != slice.1) {
        None => Ok(()),
        Some(((account, ..), _)) => {
            Err(damaged(format!("a lease of {account} is in one log and not in the other")))
        }
    }
}

/// Up to which lines records have gone away, as the log itself says.
fn pruned(transaction: &mut Transaction<'_>) -> Result<Vec<(i64, i64)>, PostgresError> {
    let row = transaction.query_opt(
        "SELECT body FROM mintage.document WHERE kind = $1 AND id = $2
         ORDER BY version DESC LIMIT 1",
        &[&Pruned::KIND, &Pruned::ID],
    )?;
    let Some(row) = row else { return Ok(Vec::new()) };
    let pruned = Pruned::parse(get(&row, 0)?).map_err(damaged)?;
    Ok(pruned.upto.into_iter().map(place).collect())
}

/// Each posting has its record, as written, unless that has gone away; and no id has two.
fn records(transaction: &mut Transaction<'_>) -> Result<u64, PostgresError> {
    let pruned = pruned(transaction)?;
    let columns = usage_columns(transaction)?;
    let columns: Vec<String> = columns.split(", ").map(|name| of_table("u", name)).collect();
    let sql = format!(
        "SELECT {}, l.detail, l.id, l.amount, l.stream, l.seq, u.id IS NULL FROM mintage.log l
         LEFT JOIN mintage.usage u USING (stream, seq) WHERE l.kind = 'post'",
        columns.join(", ")
    );
    let width = columns.len();
    let mut count: i64 = 0;
    let mut rows = transaction.query_raw(&sql, std::iter::empty::<i64>())?;
    while let Some(row) = rows.next()? {
        let missing: bool = get(&row, width + 5)?;
        let (stream, seq): (i64, i64) = (get(&row, width + 3)?, get(&row, width + 4)?);
        if missing && pruned.iter().any(|(log, upto)| *log == stream && seq <= *upto) {
            continue;
        }
        let whole = !missing && {
            let (_, record) = usage(&row)?;
            chain::is_record(&record, &digest(&row, width)?)
                && *record.facts.id == *get::<&str>(&row, width + 1)?
                && record.amount.posted_pico() == Some(get(&row, width + 2)?)
        };
        if !whole {
            let number = number(stream, seq);
            return Err(damaged(format!(
                "the usage record of posting {number} is not what was written"
            )));
        }
        count += 1;
    }
    drop(rows);
    let row =
        transaction.query_one("SELECT count(*), count(DISTINCT id) FROM mintage.usage", &[])?;
    let (rows, ids): (i64, i64) = (get(&row, 0)?, get(&row, 1)?);
    if rows != ids || rows != count {
        return Err(damaged(format!("{rows} usage records with {ids} ids for {count} postings")));
    }
    Ok(u64::try_from(count).unwrap_or(0))
}

fn documents(transaction: &mut Transaction<'_>) -> Result<u64, PostgresError> {
    let rows = transaction.query(
        "SELECT d.kind, d.id, d.version, d.body, l.detail
         FROM mintage.document d JOIN mintage.log l USING (stream, seq)",
        &[],
    )?;
    for row in &rows {
        let document = read::document(row)?;
        if chain::document(&document) != digest(row, 4)? {
            return Err(damaged(format!(
                "version {} of document {}/{} is not what was written",
                document.version, document.kind, document.id
            )));
        }
    }
    let logged =
        transaction.query_one("SELECT count(*) FROM mintage.log WHERE kind = 'document'", &[])?;
    let logged: i64 = get(&logged, 0)?;
    if column(rows.len() as u64) != logged {
        return Err(damaged(format!("{} documents for {logged} lines of them", rows.len())));
    }
    Ok(rows.len() as u64)
}
