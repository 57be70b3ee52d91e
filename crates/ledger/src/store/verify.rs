//! Reading everything back: the hash chain, the sums, the digests, and SQLite's own check of the file.
//!
//! Not here: repair. What is damaged is named; a backup is the way back.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};
use sha2::{Digest, Sha256};

use super::sqlite::sqlite_error;
use super::{
    Document, KeptAnswer, LogLine, Mark, Message, Outgoing, Pruned, StoreError, chain, rows,
};
use crate::book::{AccountSums, Book, Entry, EntryKind, Kept, Operation, Sums};

/// What was found to be whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Lines of the log.
    pub lines: u64,
    /// Usage records.
    pub records: u64,
    /// Versions of documents.
    pub documents: u64,
    /// Marks of holds: above 0 only while requests run, or after a crash.
    pub marks: u64,
    /// The last link of the chain, in hexadecimal: write it down elsewhere, and nobody can rewrite the log unseen.
    pub link: String,
}

/// Everything, in one read transaction.
pub(super) fn verify(connection: &mut Connection) -> Result<Verified, StoreError> {
    let transaction = connection.transaction().map_err(sqlite_error)?;
    file(&transaction)?;
    let mut sums = AccountSums::new();
    let (lines, link) = walk(&transaction, &mut sums)?;
    let records = records(&transaction)?;
    let documents = documents(&transaction)?;
    let operations = operations(&transaction)?;
    let accounts = super::sqlite::accounts(&transaction)?;
    sums.retain(|_, sums| *sums != Sums::default());
    if accounts != sums {
        let off = accounts.iter().find(|(name, kept)| sums.get(*name) != Some(*kept));
        let off = off.or_else(|| sums.iter().find(|(name, _)| !accounts.contains_key(*name)));
        let name = off.map_or_else(String::new, |((name, asset), _)| format!("{name} in {asset}"));
        return Err(StoreError::damaged(format!("the sums of {name} are not those of the log")));
    }
    let book = Book::restore(&Kept { accounts, operations }).map_err(StoreError::damaged)?;
    book.check().map_err(StoreError::damaged)?;
    let marks = marks(&transaction)?.len() as u64;
    messages(&transaction, u64::MAX, u64::MAX)?;
    all_answers(&transaction)?;
    Ok(Verified { lines, records, documents, marks, link: hex(&link) })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SQLite's own view: pages, indices, foreign keys.
fn file(connection: &Connection) -> Result<(), StoreError> {
    let said: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(sqlite_error)?;
    if said != "ok" {
        return Err(StoreError::damaged(format!("SQLite finds the file damaged: {said}")));
    }
    let orphan = connection
        .query_row("PRAGMA foreign_key_check", [], |row| row.get::<_, String>(0))
        .optional()
        .map_err(sqlite_error)?;
    orphan.map_or(Ok(()), |table| {
        Err(StoreError::damaged(format!("table {table} has a row without its line of the log")))
    })
}

/// The chain, line by line, and what each account must have by it.
fn walk(connection: &Connection, sums: &mut AccountSums) -> Result<(u64, [u8; 32]), StoreError> {
    let sql = format!("SELECT {} FROM log ORDER BY seq", rows::LOG_COLUMNS);
    let mut select = connection.prepare(&sql).map_err(sqlite_error)?;
    let lines = select.query_map([], rows::line).map_err(sqlite_error)?;
    let (mut count, mut link) = (0, chain::GENESIS);
    for line in lines {
        let LogLine { seq, at_ms, entry, link: stored } =
            line.map_err(|e| at_line(count + 1, e))?;
        if seq != count + 1 {
            return Err(StoreError::damaged(format!("line {} of the log is missing", count + 1)));
        }
        link = chain::link(&link, seq, at_ms, &entry);
        if link != stored {
            return Err(StoreError::damaged(format!(
                "line {seq} of the log is not what was written: the chain breaks there"
            )));
        }
        let amount = i128::from(entry.amount);
        let Entry { debit, credit, asset, .. } = entry;
        sums.entry((debit, asset.clone())).or_default().debits += amount;
        sums.entry((credit, asset)).or_default().credits += amount;
        count = seq;
    }
    Ok((count, link))
}

fn at_line(seq: u64, error: rusqlite::Error) -> StoreError {
    let error = sqlite_error(error);
    StoreError { message: format!("line {seq} of the log: {}", error.message), ..error }
}

/// Up to which line records have gone away, as the log itself says.
fn pruned(connection: &Connection) -> Result<u64, StoreError> {
    let body = connection
        .query_row(
            "SELECT body FROM document WHERE kind = ?1 AND id = ?2 ORDER BY version DESC LIMIT 1",
            [Pruned::KIND, Pruned::ID],
            |row| row.get::<_, Vec<u8>>(0),
        )
        .optional()
        .map_err(sqlite_error)?;
    let pruned = body.map(|body| Pruned::parse(&body)).transpose()?;
    Ok(pruned.and_then(|pruned| pruned.upto.first().copied()).unwrap_or(0))
}

/// A column of a table, or a value in its place as it stands.
pub(crate) fn of_table(table: &str, column: &str) -> String {
    let column = column.trim();
    if column.starts_with('\'') { column.to_owned() } else { format!("{table}.{column}") }
}

/// Each posting has its record, as written, unless that has gone away; and no id has two.
fn records(connection: &Connection) -> Result<u64, StoreError> {
    let pruned = pruned(connection)?;
    let columns = rows::usage_columns(connection).map_err(sqlite_error)?;
    let columns: Vec<String> = columns.split(", ").map(|name| of_table("usage", name)).collect();
    let sql = format!(
        "SELECT {}, log.detail, log.id, log.amount FROM log LEFT JOIN usage USING (seq) \
         WHERE log.kind = ?1 AND log.seq > ?2 ORDER BY log.seq",
        columns.join(", ")
    );
    let mut select = connection.prepare(&sql).map_err(sqlite_error)?;
    let width = columns.len();
    let found = select
        .query_map(params![EntryKind::Post.as_str(), rows::column(pruned)], |row| {
            let (seq, record) = rows::usage(row)?;
            let detail: [u8; 32] = row.get(width)?;
            let id: Arc<str> = row.get(width + 1)?;
            let amount: i64 = row.get(width + 2)?;
            let whole = chain::is_record(&record, &detail)
                && record.facts.id == id
                && record.amount.posted_pico() == Some(amount);
            Ok((seq, whole))
        })
        .map_err(sqlite_error)?;
    let mut count = 0;
    for row in found {
        let (seq, whole) = row.map_err(sqlite_error)?;
        if !whole {
            return Err(StoreError::damaged(format!(
                "the usage record of posting {seq} is not what was written"
            )));
        }
        count += 1;
    }
    let (rows, ids): (i64, i64) = connection
        .query_row("SELECT count(*), count(DISTINCT id) FROM usage", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .map_err(sqlite_error)?;
    if rows != ids || rows::column(count) != rows {
        return Err(StoreError::damaged(format!(
            "{rows} usage records with {ids} ids for {count} postings"
        )));
    }
    Ok(count)
}

fn documents(connection: &Connection) -> Result<u64, StoreError> {
    let mut select = connection
        .prepare(
            "SELECT document.kind, document.id, version, body, detail FROM document \
             JOIN log USING (seq)",
        )
        .map_err(sqlite_error)?;
    let rows = select
        .query_map([], |row| {
            let version: i64 = row.get(2)?;
            let document = Document {
                kind: row.get(0)?,
                id: row.get(1)?,
                version: u64::try_from(version).unwrap_or(0),
                body: row.get(3)?,
            };
            Ok((document, row.get::<_, [u8; 32]>(4)?))
        })
        .map_err(sqlite_error)?;
    let mut count = 0;
    for row in rows {
        let (document, detail) = row.map_err(sqlite_error)?;
        if chain::document(&document) != detail {
            return Err(StoreError::damaged(format!(
                "version {} of document {}/{} is not what was written",
                document.version, document.kind, document.id
            )));
        }
        count += 1;
    }
    let logged: i64 = connection
        .query_row("SELECT count(*) FROM log WHERE kind = 'document'", [], |row| row.get(0))
        .map_err(sqlite_error)?;
    if rows::column(count) != logged {
        return Err(StoreError::damaged(format!("{count} documents for {logged} lines of them")));
    }
    Ok(count)
}

/// Operations that were not requests, each held to its line's digest.
pub(super) fn operations(
    connection: &Connection,
) -> Result<Vec<(Arc<str>, Operation)>, StoreError> {
    let mut select = connection
        .prepare(
            "SELECT log.seq, log.id, operation.id, operation.body, log.detail \
             FROM operation JOIN log USING (seq) ORDER BY log.seq",
        )
        .map_err(sqlite_error)?;
    let rows = select
        .query_map([], |row| {
            let ids = (row.get::<_, Arc<str>>(1)?, row.get::<_, Arc<str>>(2)?);
            Ok((row.get::<_, i64>(0)?, ids, row.get::<_, String>(3)?, row.get::<_, [u8; 32]>(4)?))
        })
        .map_err(sqlite_error)?;
    let mut operations = Vec::new();
    for row in rows {
        let (seq, (logged, id), body, detail) = row.map_err(sqlite_error)?;
        let digest: [u8; 32] = Sha256::digest(body.as_bytes()).into();
        let parsed = serde_json::from_str(&body).ok();
        let Some(operation) = parsed.filter(|_| digest == detail && id == logged) else {
            return Err(StoreError::damaged(format!(
                "the operation of line {seq} is not what was written"
            )));
        };
        operations.push((id, operation));
    }
    Ok(operations)
}

/// Marks of open holds.
pub(super) fn marks(connection: &Connection) -> Result<Vec<Mark>, StoreError> {
    let mut select =
        connection.prepare("SELECT id, body, sum FROM mark ORDER BY id").map_err(sqlite_error)?;
    let rows = select
        .query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, Vec<u8>>(2)?))
        })
        .map_err(sqlite_error)?;
    let mut marks = Vec::new();
    for row in rows {
        let (id, body, sum) = row.map_err(sqlite_error)?;
        let expected = chain::row("mark", &[id.as_bytes(), body.as_bytes()], &[]);
        let mark = serde_json::from_str(&body).ok().filter(|_| expected[..] == sum[..]);
        let damaged = || StoreError::damaged(format!("the mark of {id} is not what was written"));
        marks.push(mark.ok_or_else(damaged)?);
    }
    Ok(marks)
}

/// Messages due until `now_ms`.
pub(super) fn messages(
    connection: &Connection,
    now_ms: u64,
    limit: u64,
) -> Result<Vec<Outgoing>, StoreError> {
    let mut select = connection
        .prepare_cached(
            "SELECT number, topic, body, due_ms, attempts, sum FROM outbox WHERE due_ms <= ?1 \
             ORDER BY due_ms, number LIMIT ?2",
        )
        .map_err(sqlite_error)?;
    let rows = select
        .query_map(params![rows::column(now_ms), rows::column(limit)], |row| {
            let message = Message {
                topic: row.get(1)?,
                body: row.get(2)?,
                due_ms: u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0),
            };
            let number = u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0);
            let attempts = u32::try_from(row.get::<_, i64>(4)?).unwrap_or(u32::MAX);
            Ok((Outgoing { number, message, attempts }, row.get::<_, Vec<u8>>(5)?))
        })
        .map_err(sqlite_error)?;
    let mut messages = Vec::new();
    for row in rows {
        let (outgoing, sum) = row.map_err(sqlite_error)?;
        let number = rows::column(outgoing.number);
        if message_sum(number, &outgoing.message, outgoing.attempts)[..] != sum[..] {
            let text = format!("message {number} of the outbox is not what was written");
            return Err(StoreError::damaged(text));
        }
        messages.push(outgoing);
    }
    Ok(messages)
}

/// The sum of a message's row.
pub(super) fn message_sum(number: i64, message: &Message, attempts: u32) -> [u8; 32] {
    let texts = [message.topic.as_bytes(), &message.body];
    let number = u64::try_from(number).unwrap_or(0);
    chain::row("outbox", &texts, &[number, message.due_ms, attempts.into()])
}

/// The sum of a kept answer's row.
pub(crate) fn answer_sum(kept: &KeptAnswer) -> [u8; 32] {
    let texts = [kept.scope.as_bytes(), kept.key.as_bytes(), &kept.body_digest, &kept.answer];
    chain::row("answer", &texts, &[kept.expires_ms])
}

const ANSWER_COLUMNS: &str = "scope, key, body_digest, answer, expires_ms, sum";

fn answer_row(row: &Row<'_>) -> rusqlite::Result<(KeptAnswer, Vec<u8>)> {
    let kept = KeptAnswer {
        scope: row.get(0)?,
        key: row.get(1)?,
        body_digest: row.get(2)?,
        answer: row.get(3)?,
        expires_ms: u64::try_from(row.get::<_, i64>(4)?).unwrap_or(0),
    };
    Ok((kept, row.get(5)?))
}

fn whole_answer((kept, sum): (KeptAnswer, Vec<u8>)) -> Result<KeptAnswer, StoreError> {
    if answer_sum(&kept)[..] == sum[..] {
        return Ok(kept);
    }
    Err(StoreError::damaged(format!("the answer kept for `{}` is not what was written", kept.key)))
}

/// The answer kept for a key, unless it has expired.
pub(super) fn answer(
    connection: &Connection,
    scope: &str,
    key: &str,
    now_ms: u64,
) -> Result<Option<KeptAnswer>, StoreError> {
    let sql = format!(
        "SELECT {ANSWER_COLUMNS} FROM answer WHERE scope = ?1 AND key = ?2 AND expires_ms > ?3"
    );
    connection
        .prepare_cached(&sql)
        .and_then(|mut select| {
            select.query_row(params![scope, key, rows::column(now_ms)], answer_row).optional()
        })
        .map_err(sqlite_error)?
        .map(whole_answer)
        .transpose()
}

fn all_answers(connection: &Connection) -> Result<(), StoreError> {
    let sql = format!("SELECT {ANSWER_COLUMNS} FROM answer");
    let mut select = connection.prepare(&sql).map_err(sqlite_error)?;
    for row in select.query_map([], answer_row).map_err(sqlite_error)? {
        whole_answer(row.map_err(sqlite_error)?)?;
    }
    Ok(())
}
