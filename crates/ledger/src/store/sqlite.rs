//! The ledger in one SQLite file.
//!
//! Write-ahead log, synced at each commit; every setting is read back, because SQLite takes unknown ones silently.
//! SQLite before 3.51.3 can lose committed writes where two connections share a write-ahead log, so an older one is
//! refused. Not here: threads. Invariants: one connection writes; a failed sync is never tried again, because the
//! kernel may have dropped the pages and would say yes the second time.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, params};

use super::{
    Batch, Delivery, Document, DocumentVersion, KeptAnswer, LogLine, Mark, Message, Outgoing,
    Reader, Restored, Store, StoreError, StoreErrorKind, SumsFilter, UsageFilter, UsageSums,
    Verified, Work, chain,
    checkpoint::{self, Checkpointer},
    rows, sums, verify,
};
use crate::book::{AccountSums, Entry, EntryKind, Kept, Sums};
use crate::usage::UsageRecord;

/// The file's name inside the ledger's folder.
pub(crate) const FILE_NAME: &str = "ledger.sqlite";
/// Older ones can lose committed writes (sqlite.org/wal.html#walresetbug).
const MIN_SQLITE: i32 = 3_051_003;
/// What a file of ours says it is ("MNTG").
const APPLICATION_ID: i64 = 0x4d4e_5447;
/// One script a version; a script never changes once released.
const MIGRATIONS: [&str; 3] =
    [include_str!("schema_1.sql"), include_str!("schema_2.sql"), include_str!("schema_3.sql")];
/// How long a reader or a backup may make a writer wait.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The write-ahead log is folded into the file after so many rows.
const ROWS_PER_CHECKPOINT: u64 = 8_192;
/// ... and begins anew once it has so many pages for each of them.
const PAGES_PER_ROW: u64 = 4;
/// Prepared statements kept.
const STATEMENTS: usize = 64;

/// SQLite's extended result codes of failed syncs: of a file, of a folder.
const SYNC_FAILED: [i32; 2] = [10 | (4 << 8), 10 | (5 << 8)];
/// ... and of failed writes: to a file, of its length, of the shared index.
const WRITE_FAILED: [i32; 4] = [10 | (3 << 8), 10 | (6 << 8), 10 | (19 << 8), 10 | (18 << 8)];

/// Whether a commit waits for the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// It does.
    #[default]
    Full,
    /// It does not: loses commits when the power fails. Here to show that the power-loss test can fail.
    Off,
}

/// The store.
pub struct SqliteStore {
    path: PathBuf,
    connection: Connection,
    last_seq: u64,
    last_link: [u8; 32],
    sums: HashMap<(Arc<str>, Arc<str>), Sums>,
    rows_since_checkpoint: u64,
    rows_per_checkpoint: u64,
    checkpointer: Checkpointer,
}

impl SqliteStore {
    /// Opens or makes the file in `folder`.
    ///
    /// # Errors
    /// [`StoreError`]: no such folder, not a ledger, written by a newer program, a setting that does not hold.
    pub fn open(folder: &Path, synchronous: Synchronous) -> Result<Self, StoreError> {
        let found = rusqlite::version_number();
        if found < MIN_SQLITE {
            return Err(StoreError::fatal(format!(
                "SQLite {} can lose committed writes; 3.51.3 or newer is needed",
                rusqlite::version()
            )));
        }
        let path = folder.join(FILE_NAME);
        let is_new = !path.exists();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&path, flags).map_err(sqlite_error)?;
        settings(&connection, synchronous, true)?;
        migrate(&mut connection, &path)?;
        if is_new {
            owner_only(&path)?;
            // The name of the file must survive a loss of power as well as what is in it.
            File::open(folder).and_then(|f| f.sync_all()).map_err(|e| {
                StoreError::fatal(format!("{} cannot be synced: {e}", folder.display()))
            })?;
        }
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        let checkpointer = Checkpointer::start(&path, synchronous)?;
        Ok(Self {
            checkpointer,
            path,
            connection,
            last_seq: 0,
            last_link: chain::GENESIS,
            sums: HashMap::new(),
            rows_since_checkpoint: 0,
            rows_per_checkpoint: ROWS_PER_CHECKPOINT,
        })
    }

    /// The same store folding its write-ahead log after so many rows: for tests of what happens meanwhile.
    #[must_use]
    pub fn folding_every(self, rows: u64) -> Self {
        Self { rows_per_checkpoint: rows, ..self }
    }

    /// Has the write-ahead log folded into the file once it is long, and begun anew.
    fn look_after_log(&mut self) -> Result<(), StoreError> {
        let pages = self.checkpointer.has_folded()?;
        if pages
            .is_some_and(|pages| pages >= self.rows_per_checkpoint.saturating_mul(PAGES_PER_ROW))
        {
            // Only what was committed meanwhile is left.
            checkpoint::fold(&self.connection)?;
        }
        if self.rows_since_checkpoint >= self.rows_per_checkpoint {
            self.rows_since_checkpoint = 0;
            self.checkpointer.begin();
        }
        Ok(())
    }
}

/// A connection for reading only, of a file that may be in use.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(sqlite_error)?;
    settings(&connection, Synchronous::Full, false)?;
    connection.pragma_update(None, "query_only", true).map_err(sqlite_error)?;
    Ok(connection)
}

/// Sets what must be set, and reads it back.
pub(super) fn settings(
    connection: &Connection,
    synchronous: Synchronous,
    writer: bool,
) -> Result<(), StoreError> {
    connection.busy_timeout(BUSY_TIMEOUT).map_err(sqlite_error)?;
    if writer {
        set(connection, "journal_mode", "wal")?;
    }
    let level = match synchronous {
        Synchronous::Full => "2",
        Synchronous::Off => "0",
    };
    let all = [
        ("synchronous", level),
        ("foreign_keys", "1"),
        ("trusted_schema", "0"),
        ("cell_size_check", "1"),
        ("wal_autocheckpoint", "0"),
        ("mmap_size", "0"),
    ];
    for (name, value) in all {
        set(connection, name, value)?;
    }
    Ok(())
}

fn set(connection: &Connection, name: &str, value: &str) -> Result<(), StoreError> {
    let text = |row: &rusqlite::Row<'_>| {
        let value: rusqlite::types::Value = row.get(0)?;
        Ok(match value {
            rusqlite::types::Value::Integer(number) => number.to_string(),
            rusqlite::types::Value::Text(text) => text,
            _ => String::new(),
        })
    };
    // Some settings answer, some do not; what counts is what is read afterwards.
    connection
        .query_row(&format!("PRAGMA {name} = {value}"), [], text)
        .optional()
        .map_err(sqlite_error)?;
    let held = connection
        .query_row(&format!("PRAGMA {name}"), [], text)
        .optional()
        .map_err(sqlite_error)?;
    match held.as_deref() {
        Some(held) if held == value => Ok(()),
        // Compiled out: there is nothing to map.
        None if name == "mmap_size" => Ok(()),
        held => Err(StoreError::fatal(format!(
            "SQLite keeps {name} at {} instead of {value}; is the ledger on a network file system?",
            held.unwrap_or("nothing")
        ))),
    }
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let number = |connection: &Connection, name: &str| {
        connection
            .query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0))
            .map_err(sqlite_error)
    };
    let version = number(connection, "user_version")?;
    let application = number(connection, "application_id")?;
    let newest = MIGRATIONS.len();
    let at = usize::try_from(version).unwrap_or(usize::MAX);
    if (at > 0 || application != 0) && application != APPLICATION_ID {
        return Err(StoreError::fatal(format!("{} is not a ledger of Mintage", path.display())));
    }
    if at > newest {
        return Err(StoreError::fatal(format!(
            "{} has format {at}, this program knows up to {newest}: use a newer one",
            path.display()
        )));
    }
    for (index, script) in MIGRATIONS.iter().enumerate().skip(at) {
        let transaction = immediate(connection)?;
        transaction.execute_batch(script).map_err(sqlite_error)?;
        transaction
            .execute_batch(&format!(
                "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {};",
                index + 1
            ))
            .map_err(sqlite_error)?;
        transaction.commit().map_err(sqlite_error)?;
    }
    Ok(())
}

fn immediate(connection: &mut Connection) -> Result<Transaction<'_>, StoreError> {
    connection
        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
        .map_err(sqlite_error)
}

/// Nobody but the owner reads it.
pub(crate) fn owner_only(path: &Path) -> Result<(), StoreError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(path, mode)
            .map_err(|e| StoreError::fatal(format!("{}: {e}", path.display())))?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// SQLite's error with what can be done about it.
pub(crate) fn sqlite_error(error: rusqlite::Error) -> StoreError {
    let kind = match &error {
        rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
            ErrorCode::DiskFull => StoreErrorKind::Full,
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StoreErrorKind::Full,
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => StoreErrorKind::Damaged,
            _ if SYNC_FAILED.contains(&failure.extended_code) => StoreErrorKind::Fatal,
            _ if WRITE_FAILED.contains(&failure.extended_code) => StoreErrorKind::Full,
            _ => StoreErrorKind::Fatal,
        },
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::Utf8Error(..) => StoreErrorKind::Damaged,
        _ => StoreErrorKind::Fatal,
    };
    let message = match &error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            format!("SQLite: {error} (code {})", failure.extended_code)
        }
        _ => format!("SQLite: {error}"),
    };
    StoreError { kind, message }
}

impl Store for SqliteStore {
    fn load(&mut self) -> Result<Restored, StoreError> {
        let last = self
            .connection
            .query_row("SELECT seq, link FROM log ORDER BY seq DESC LIMIT 1", [], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, [u8; 32]>(1)?))
            })
            .optional()
            .map_err(sqlite_error)?;
        if let Some((seq, link)) = last {
            self.last_seq = u64::try_from(seq).map_err(|_| StoreError::damaged("log below 1"))?;
            self.last_link = link;
        }
        let accounts = accounts(&self.connection)?;
        self.sums = accounts.iter().map(|(name, sums)| (name.clone(), *sums)).collect();
        let operations = verify::operations(&self.connection)?;
        Ok(Restored {
            kept: Kept { accounts, operations },
            documents: document_versions(&self.connection)?,
            marks: verify::marks(&self.connection)?,
        })
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let transaction = immediate(&mut self.connection)?;
        let mut writing = Writing {
            transaction: &transaction,
            seq: self.last_seq,
            link: self.last_link,
            known: &self.sums,
            touched: HashMap::new(),
        };
        let mut rows = 0;
        for work in &batch.work {
            rows += 2 + work.entries.len() as u64;
            writing.work(work).map_err(sqlite_error)?;
        }
        writing.marks(&batch.marks).map_err(sqlite_error)?;
        writing.accounts().map_err(sqlite_error)?;
        let (seq, link, touched) = (writing.seq, writing.link, writing.touched);
        transaction.commit().map_err(sqlite_error)?;
        // Only now: a batch that failed is written again from here.
        self.last_seq = seq;
        self.last_link = link;
        self.sums.extend(touched);
        self.rows_since_checkpoint += rows;
        self.look_after_log()
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        Ok(Box::new(SqliteReader { connection: open_reader(&self.path)? }))
    }
}

/// One transaction in the making.
struct Writing<'a> {
    transaction: &'a Transaction<'a>,
    seq: u64,
    link: [u8; 32],
    known: &'a HashMap<(Arc<str>, Arc<str>), Sums>,
    touched: HashMap<(Arc<str>, Arc<str>), Sums>,
}

impl Writing<'_> {
    fn work(&mut self, work: &Work) -> rusqlite::Result<()> {
        let first = self.seq + 1;
        for entry in &work.entries {
            self.line(work.at_ms, entry)?;
        }
        if let Some(record) = &work.record {
            let mut insert = self.transaction.prepare_cached(&insert_usage())?;
            rows::insert_usage(&mut insert, first, record)?;
        }
        if let Some((id, operation)) = &work.operation {
            let body = serde_json::to_string(operation).unwrap_or_default();
            self.transaction
                .prepare_cached("INSERT INTO operation (seq, id, body) VALUES (?1, ?2, ?3)")?
                .execute(params![rows::column(first), id, body])?;
        }
        for document in &work.documents {
            self.document(work.at_ms, document)?;
        }
        for message in &work.messages {
            self.message(message)?;
        }
        for (number, delivery) in &work.deliveries {
            self.delivery(*number, *delivery)?;
        }
        for answer in &work.answers {
            self.answer(answer, work.at_ms)?;
        }
        for upto in &work.prune {
            self.transaction
                .prepare_cached("DELETE FROM usage WHERE seq <= ?1")?
                .execute([rows::column(*upto)])?;
        }
        if let Some(id) = &work.unmark {
            self.transaction.prepare_cached("DELETE FROM mark WHERE id = ?1")?.execute([id])?;
        }
        Ok(())
    }

    fn line(&mut self, at_ms: u64, entry: &Entry) -> rusqlite::Result<()> {
        self.seq += 1;
        self.link = chain::link(&self.link, self.seq, at_ms, entry);
        let line = LogLine { seq: self.seq, at_ms, entry: entry.clone(), link: self.link };
        let mut insert = self.transaction.prepare_cached(
            "INSERT INTO log (seq, at_ms, kind, id, debit, credit, asset, amount, refers, detail, \
             link) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?;
        rows::insert_line(&mut insert, &line)?;
        if entry.amount != 0 {
            let amount = i128::from(entry.amount);
            self.sums(&entry.debit, &entry.asset).debits += amount;
            self.sums(&entry.credit, &entry.asset).credits += amount;
        }
        Ok(())
    }

    fn sums(&mut self, account: &Arc<str>, asset: &Arc<str>) -> &mut Sums {
        let key = (account.clone(), asset.clone());
        let known = self.known.get(&key).copied().unwrap_or_default();
        self.touched.entry(key).or_insert(known)
    }

    /// Once a batch, however many lines touched them.
    fn accounts(&self) -> rusqlite::Result<()> {
        let mut write = self.transaction.prepare_cached(
            "INSERT INTO account (name, asset, debits, credits) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT (name, asset) DO UPDATE SET debits = excluded.debits, \
             credits = excluded.credits",
        )?;
        for ((name, asset), sums) in &self.touched {
            let texts = (sums.debits.to_string(), sums.credits.to_string());
            write.execute(params![name, asset, texts.0, texts.1])?;
        }
        Ok(())
    }

    fn marks(&self, marks: &[(Arc<str>, Mark)]) -> rusqlite::Result<()> {
        let mut write = self.transaction.prepare_cached(
            "INSERT INTO mark (id, body, sum) VALUES (?1, ?2, ?3) \
             ON CONFLICT (id) DO UPDATE SET body = excluded.body, sum = excluded.sum",
        )?;
        for (id, mark) in marks {
            let body = serde_json::to_string(mark).unwrap_or_default();
            let sum = chain::row("mark", &[id.as_bytes(), body.as_bytes()], &[]);
            write.execute(params![id, body, sum])?;
        }
        Ok(())
    }

    fn document(&mut self, at_ms: u64, document: &Document) -> rusqlite::Result<()> {
        let nothing: Arc<str> = "".into();
        let entry = Entry {
            kind: EntryKind::Document,
            id: format!("{}/{}", document.kind, document.id).into(),
            debit: nothing.clone(),
            credit: nothing.clone(),
            asset: nothing,
            amount: 0,
            refers: None,
            detail: chain::document(document),
        };
        self.line(at_ms, &entry)?;
        self.transaction
            .prepare_cached(
                "INSERT INTO document (kind, id, version, seq, body) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                document.kind,
                document.id,
                rows::column(document.version),
                rows::column(self.seq),
                document.body
            ])?;
        Ok(())
    }

    fn message(&self, message: &Message) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached(
                "INSERT INTO outbox (topic, body, due_ms, attempts, sum) \
                 VALUES (?1, ?2, ?3, 0, x'')",
            )?
            .execute(params![message.topic, message.body, rows::column(message.due_ms)])?;
        // The sum covers the number, which only the insertion tells.
        let number = self.transaction.last_insert_rowid();
        self.transaction
            .prepare_cached("UPDATE outbox SET sum = ?2 WHERE number = ?1")?
            .execute(params![number, verify::message_sum(number, message, 0)])?;
        Ok(())
    }

    fn delivery(&self, number: u64, delivery: Delivery) -> rusqlite::Result<()> {
        let number = rows::column(number);
        let Delivery::RetryAt(due_ms) = delivery else {
            let mut delete =
                self.transaction.prepare_cached("DELETE FROM outbox WHERE number = ?1")?;
            return delete.execute([number]).map(|_| ());
        };
        let mut select = self
            .transaction
            .prepare_cached("SELECT topic, body, attempts FROM outbox WHERE number = ?1")?;
        let found = select
            .query_row([number], |row| {
                let message = Message { topic: row.get(0)?, body: row.get(1)?, due_ms };
                Ok((message, row.get::<_, u32>(2)?))
            })
            .optional()?;
        let Some((message, attempts)) = found else { return Ok(()) };
        let attempts = attempts.saturating_add(1);
        self.transaction
            .prepare_cached(
                "UPDATE outbox SET attempts = ?2, due_ms = ?3, sum = ?4 WHERE number = ?1",
            )?
            .execute(params![
                number,
                attempts,
                rows::column(due_ms),
                verify::message_sum(number, &message, attempts)
            ])?;
        Ok(())
    }

    fn answer(&self, kept: &KeptAnswer, now_ms: u64) -> rusqlite::Result<()> {
        // What has expired goes away with what comes in, so the table is bounded by its lifetime.
        self.transaction
            .prepare_cached("DELETE FROM answer WHERE expires_ms <= ?1")?
            .execute([rows::column(now_ms)])?;
        self.transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO answer (scope, key, body_digest, answer, expires_ms, sum) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                kept.scope,
                kept.key,
                kept.body_digest,
                kept.answer,
                rows::column(kept.expires_ms),
                verify::answer_sum(kept),
            ])?;
        Ok(())
    }
}

fn insert_usage() -> String {
    // Built at each call and cheap beside the row; the prepared statement is found by its text.
    format!(
        "INSERT INTO usage ({}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, \
         ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29)",
        rows::USAGE_COLUMNS
    )
}

pub(super) fn accounts(connection: &Connection) -> Result<AccountSums, StoreError> {
    let mut select = connection
        .prepare("SELECT name, asset, debits, credits FROM account")
        .map_err(sqlite_error)?;
    let rows = select
        .query_map([], |row| {
            Ok(((row.get(0)?, row.get(1)?), (row.get::<_, String>(2)?, row.get::<_, String>(3)?)))
        })
        .map_err(sqlite_error)?;
    let mut accounts = AccountSums::new();
    for row in rows {
        let (name, (debits, credits)) = row.map_err(sqlite_error)?;
        let number = |text: &str| {
            text.parse::<i128>()
                .map_err(|_| StoreError::damaged(format!("table account: `{text}` is no number")))
        };
        accounts.insert(name, Sums { debits: number(&debits)?, credits: number(&credits)? });
    }
    Ok(accounts)
}

fn document_versions(connection: &Connection) -> Result<Vec<DocumentVersion>, StoreError> {
    let mut select = connection
        .prepare("SELECT kind, id, max(version) FROM document GROUP BY kind, id")
        .map_err(sqlite_error)?;
    let rows = select
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?)))
        .map_err(sqlite_error)?;
    let versions = rows.map(|row| {
        let (kind, id, version) = row.map_err(sqlite_error)?;
        Ok((kind, id, u64::try_from(version).unwrap_or(0)))
    });
    versions.collect()
}

/// Reads through a connection of its own.
pub(crate) struct SqliteReader {
    pub(crate) connection: Connection,
}

impl Reader for SqliteReader {
    fn usage(&mut self, filter: &UsageFilter) -> Result<Vec<(u64, UsageRecord)>, StoreError> {
        let columns = rows::usage_columns(&self.connection).map_err(sqlite_error)?;
        let mut sql = format!("SELECT {columns} FROM usage WHERE seq > ?");
        let mut values: Vec<rusqlite::types::Value> = vec![rows::column(filter.after).into()];
        let wanted = [
            ("id", &filter.id),
            ("org", &filter.org),
            ("project", &filter.project),
            ("key", &filter.key),
            ("model", &filter.model),
        ];
        // The first page comes by the index of organisations. Where there are more, they come by number: the index
        // would be read, and sorted, as a whole for each of them.
        let by_number = if filter.after > 0 { "+" } else { "" };
        for (name, value) in wanted {
            if let Some(value) = value {
                let by_number = if name == "org" { by_number } else { "" };
                sql.push_str(&format!(" AND {by_number}{name} = ?"));
                values.push(value.to_string().into());
            }
        }
        sql.push_str(" AND end_ms >= ?");
        values.push(rows::column(filter.from_ms).into());
        if filter.until_ms > 0 {
            sql.push_str(" AND end_ms < ?");
            values.push(rows::column(filter.until_ms).into());
        }
        let most = super::MAX_RECORDS_PER_READ;
        let limit = if filter.limit == 0 { most } else { filter.limit.min(most) };
        sql.push_str(&format!(" ORDER BY seq LIMIT {limit}"));
        let mut select = self.connection.prepare_cached(&sql).map_err(sqlite_error)?;
        let rows = select
            .query_map(rusqlite::params_from_iter(values), rows::usage)
            .map_err(sqlite_error)?;
        rows.map(|row| row.map_err(sqlite_error)).collect()
    }

    fn sums(&mut self, filter: &SumsFilter) -> Result<Vec<UsageSums>, StoreError> {
        let sql = filter.statement("usage", ["?1", "?2", "?3"], "");
        let until_ms = if filter.until_ms > 0 { filter.until_ms } else { u64::MAX };
        let mut select = self.connection.prepare_cached(&sql).map_err(sqlite_error)?;
        let times = (rows::column(filter.from_ms), rows::column(until_ms));
        let span_ms = filter.span_ms();
        let rows = select
            .query_map(params![filter.org, times.0, times.1], |row| sums::sums(row, span_ms))
            .map_err(sqlite_error)?;
        rows.map(|row| row.map_err(sqlite_error)).collect()
    }

    fn records_before(
        &mut self,
        before_ms: u64,
        limit: usize,
    ) -> Result<(Vec<u64>, u64), StoreError> {
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT usage.seq, log.at_ms FROM usage JOIN log USING (seq) ORDER BY usage.seq LIMIT ?1",
            )
            .map_err(sqlite_error)?;
        let rows = select
            .query_map([rows::column(limit as u64)], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })
            .map_err(sqlite_error)?;
        let (mut upto, mut count) = (Vec::new(), 0);
        for row in rows {
            let (seq, at_ms) = row.map_err(sqlite_error)?;
            if at_ms >= rows::column(before_ms) {
                break;
            }
            upto = vec![u64::try_from(seq).unwrap_or(0)];
            count += 1;
        }
        Ok((upto, count))
    }

    fn log(&mut self, after: u64, limit: usize) -> Result<Vec<LogLine>, StoreError> {
        let sql =
            format!("SELECT {} FROM log WHERE seq > ?1 ORDER BY seq LIMIT ?2", rows::LOG_COLUMNS);
        let mut select = self.connection.prepare_cached(&sql).map_err(sqlite_error)?;
        let limit = limit.min(super::MAX_RECORDS_PER_READ);
        let rows = select
            .query_map(params![rows::column(after), rows::column(limit as u64)], rows::line)
            .map_err(sqlite_error)?;
        rows.map(|row| row.map_err(sqlite_error)).collect()
    }

    fn documents(&mut self, kind: &str) -> Result<Vec<Document>, StoreError> {
        // With one `max`, SQLite takes the other columns from the row that has it.
        documents(
            &self.connection,
            "SELECT kind, id, max(version), body FROM document WHERE kind = ?1 GROUP BY id \
             HAVING length(body) > 0 ORDER BY id",
            &[kind],
        )
    }

    fn history(&mut self, kind: &str, id: &str) -> Result<Vec<Document>, StoreError> {
        documents(
            &self.connection,
            "SELECT kind, id, version, body FROM document WHERE kind = ?1 AND id = ?2 \
             ORDER BY version",
            &[kind, id],
        )
    }

    fn due_messages(&mut self, now_ms: u64, limit: usize) -> Result<Vec<Outgoing>, StoreError> {
        let limit = limit.min(super::MAX_RECORDS_PER_READ) as u64;
        verify::messages(&self.connection, now_ms, limit)
    }

    fn answer(
        &mut self,
        scope: &str,
        key: &str,
        now_ms: u64,
    ) -> Result<Option<KeptAnswer>, StoreError> {
        verify::answer(&self.connection, scope, key, now_ms)
    }

    fn verify(&mut self) -> Result<Verified, StoreError> {
        verify::verify(&mut self.connection)
    }
}

fn documents(
    connection: &Connection,
    sql: &str,
    values: &[&str],
) -> Result<Vec<Document>, StoreError> {
    let mut select = connection.prepare_cached(sql).map_err(sqlite_error)?;
    let rows = select
        .query_map(rusqlite::params_from_iter(values), |row| {
            let version: i64 = row.get(2)?;
            Ok(Document {
                kind: row.get(0)?,
                id: row.get(1)?,
                version: u64::try_from(version).unwrap_or(0),
                body: row.get(3)?,
            })
        })
        .map_err(sqlite_error)?;
    rows.map(|row| row.map_err(sqlite_error)).collect()
}
