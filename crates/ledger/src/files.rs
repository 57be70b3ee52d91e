//! A ledger's file while no server runs, or beside one: verify, back up, restore, export.
//!
//! Not here: changes to what is in it. Invariant: nothing is overwritten; a backup or a restored ledger is verified
//! before it gets its name.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use rusqlite::backup::Backup;

use crate::ledger::{self, LedgerError};
use crate::store::{
    Document, FILE_NAME, KeptAnswer, MAX_RECORDS_PER_READ, Message, Reader, SqliteReader,
    StoreError, UsageFilter, Verified, open_reader, sqlite_error,
};

/// Pages copied between two chances for a running server to write.
const PAGES_PER_STEP: i32 = 1_024;
const PAUSE: Duration = Duration::from_millis(2);

fn reader(folder: &Path) -> Result<SqliteReader, LedgerError> {
    let path = folder.join(FILE_NAME);
    if !path.is_file() {
        let text = format!("there is no ledger in {}", folder.display());
        return Err(StoreError::fatal(text).into());
    }
    Ok(SqliteReader { connection: open_reader(&path)? })
}

/// Holds a ledger's file to its chain and sums; a server may use it meanwhile.
///
/// # Errors
/// [`LedgerError::Store`].
pub fn verify_file(folder: &Path) -> Result<Verified, LedgerError> {
    Ok(reader(folder)?.verify()?)
}

/// Copies a ledger into one file, verified; a server may use it meanwhile.
///
/// # Errors
/// [`LedgerError::Io`] where `target` exists, [`LedgerError::Store`].
pub fn backup_file(folder: &Path, target: &Path) -> Result<Verified, LedgerError> {
    let source = reader(folder)?;
    copy(&source.connection, target)
}

/// Makes a folder's ledger from a backup, verified. The folder must not have one.
///
/// # Errors
/// [`LedgerError::InUse`], [`LedgerError::Io`] where there is a ledger, [`LedgerError::Store`].
pub fn restore_file(backup: &Path, folder: &Path) -> Result<Verified, LedgerError> {
    let io = |source| LedgerError::Io { path: folder.display().to_string(), source };
    ledger::make_folder(folder).map_err(io)?;
    let _lock = ledger::lock(folder)?;
    let source = open_reader(backup)?;
    copy(&source, &folder.join(FILE_NAME))
}

/// Into a temporary name; verified and synced before it gets its own.
fn copy(source: &rusqlite::Connection, target: &Path) -> Result<Verified, LedgerError> {
    let io = |source| LedgerError::Io { path: target.display().to_string(), source };
    if target.exists() {
        let exists = std::io::Error::new(
            std::io::ErrorKind::AlreadyExists,
            "it exists; move it away first, nothing is overwritten",
        );
        return Err(io(exists));
    }
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let beside = target.with_extension("partial");
    if beside.exists() {
        std::fs::remove_file(&beside).map_err(io)?;
    }
    let mut destination = rusqlite::Connection::open(&beside).map_err(sqlite_error)?;
    Backup::new(source, &mut destination)
        .and_then(|backup| backup.run_to_completion(PAGES_PER_STEP, PAUSE, None))
        .map_err(sqlite_error)?;
    // One file, without a log beside it.
    destination.query_row("PRAGMA journal_mode = delete", [], |_| Ok(())).map_err(sqlite_error)?;
    let verified = SqliteReader { connection: destination }.verify()?;
    crate::store::owner_only(&beside)?;
    File::open(&beside).and_then(|file| file.sync_all()).map_err(io)?;
    std::fs::rename(&beside, target).map_err(io)?;
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(io)?;
    Ok(verified)
}

/// Writes the whole log and all usage records as lines of JSON, in order; a server may use the ledger meanwhile.
///
/// # Errors
/// [`LedgerError::Io`], [`LedgerError::Store`].
pub fn export_file(folder: &Path, out: &mut dyn Write) -> Result<(), LedgerError> {
    export(&mut reader(folder)?, out)
}

/// The same from any store.
pub(crate) fn export(reader: &mut dyn Reader, out: &mut dyn Write) -> Result<(), LedgerError> {
    let io = |source| LedgerError::Io { path: "export".to_owned(), source };
    let mut after = 0;
    loop {
        let lines = reader.log(after, MAX_RECORDS_PER_READ)?;
        let Some(last) = lines.last() else { break };
        after = last.seq;
        for line in &lines {
            let entry = &line.entry;
            let json = serde_json::json!({
                "line": line.seq,
                "at_ms": line.at_ms,
                "kind": entry.kind,
                "id": entry.id,
                "debit": entry.debit,
                "credit": entry.credit,
                "asset": entry.asset,
                "amount": entry.amount,
                "refers": entry.refers,
                "detail": hex(&entry.detail),
                "link": hex(&line.link),
            });
            writeln!(out, "{json}").map_err(io)?;
        }
    }
    let mut filter = UsageFilter::default();
    loop {
        let records = reader.usage(&filter)?;
        let Some((last, _)) = records.last() else { break };
        filter.after = *last;
        for (posting, record) in &records {
            let json = serde_json::json!({ "posting": posting, "usage_record": record });
            writeln!(out, "{json}").map_err(io)?;
        }
    }
    out.flush().map_err(io)
}

/// Rows of a file that are neither lines of the log nor usage records.
#[derive(Default)]
pub(crate) struct RowsBesideTheLog {
    /// With the line that each made.
    pub(crate) operations: Vec<(i64, String, String)>,
    /// With the line that tells of each.
    pub(crate) documents: Vec<(u64, Document)>,
    /// Still to go out.
    pub(crate) messages: Vec<Message>,
    /// Kept for repetitions.
    pub(crate) answers: Vec<KeptAnswer>,
}

fn number(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(at)?).unwrap_or(0))
}

/// Reads them as they are; the file was verified before.
pub(crate) fn beside_the_log(reader: &SqliteReader) -> Result<RowsBesideTheLog, LedgerError> {
    let rows = || -> rusqlite::Result<RowsBesideTheLog> {
        let connection = &reader.connection;
        let mut rows = RowsBesideTheLog::default();
        let mut select = connection.prepare("SELECT seq, id, body FROM operation ORDER BY seq")?;
        let all = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.operations = all.collect::<rusqlite::Result<_>>()?;
        let mut select =
            connection.prepare("SELECT seq, kind, id, version, body FROM document ORDER BY seq")?;
        let all = select.query_map([], |row| {
            let version = number(row, 3)?;
            let document =
                Document { kind: row.get(1)?, id: row.get(2)?, version, body: row.get(4)? };
            Ok((number(row, 0)?, document))
        })?;
        rows.documents = all.collect::<rusqlite::Result<_>>()?;
        let mut select =
            connection.prepare("SELECT topic, body, due_ms FROM outbox ORDER BY number")?;
        let all = select.query_map([], |row| {
            Ok(Message { topic: row.get(0)?, body: row.get(1)?, due_ms: number(row, 2)? })
        })?;
        rows.messages = all.collect::<rusqlite::Result<_>>()?;
        let mut select =
            connection.prepare("SELECT scope, key, body_digest, answer, expires_ms FROM answer")?;
        let all = select.query_map([], |row| {
            Ok(KeptAnswer {
                scope: row.get(0)?,
                key: row.get(1)?,
                body_digest: row.get(2)?,
                answer: row.get(3)?,
                expires_ms: number(row, 4)?,
            })
        })?;
        rows.answers = all.collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    };
    Ok(rows().map_err(sqlite_error)?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
