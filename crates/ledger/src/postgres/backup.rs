//! A shared ledger as one file, and back: for moving, and for where nobody runs PostgreSQL's own backups.
//!
//! The file holds every table as PostgreSQL's `COPY` writes it, all of one moment, then a SHA-256 of all before. Not
//! here: the keys' pepper, which is in no database. Invariants: gateways may run meanwhile; what is written was verified
//! in the same snapshot; a restored ledger is verified before it counts, and the database had none before.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use postgres::{IsolationLevel, Transaction};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::connect::Session;
use super::{PostgresError, PostgresUrl, schema, verify};
use crate::ledger::LedgerError;
use crate::store::Verified;

/// Of this form of file.
const FORMAT: u32 = 1;
/// Bytes in one piece of a table.
const PIECE_BYTES: usize = 256 << 10;
/// The longest line between pieces.
const MAX_LINE_BYTES: u64 = 1_024;
/// Each table with the version of the tables that it came with, what is referred to before what refers to it. Keys of
/// running requests (`answering`) end with the gateways that run them.
const TABLES: [(&str, usize); 15] = [
    ("stream", 1),
    ("log", 1),
    ("usage", 1),
    ("operation", 1),
    ("document", 1),
    ("sums", 1),
    ("mark", 1),
    ("outbox", 1),
    ("answer", 1),
    ("pool", 1),
    ("slice", 1),
    ("claim", 1),
    ("directory", 1),
    ("allowance", 2),
    ("allowance_slice", 2),
];
/// ... that came later than those it would stand among.
const LATER_TABLES: [(&str, usize); 1] = [("part", 3)];

#[derive(Serialize, Deserialize)]
struct Header {
    mintage_ledger: u32,
    /// The version of its tables.
    tables: usize,
}

fn tables(version: usize) -> impl Iterator<Item = &'static str> {
    let all = TABLES.iter().chain(&LATER_TABLES);
    all.filter(move |(_, since)| *since <= version).map(|(name, _)| *name)
}

/// Copies the ledger of a database into one file, verified; gateways may use it meanwhile.
///
/// # Errors
/// [`LedgerError::Io`] where `target` exists, [`LedgerError::Postgres`].
pub fn backup_shared(url: &PostgresUrl, target: &Path) -> Result<Verified, LedgerError> {
    let named = |source| LedgerError::Io { path: target.display().to_string(), source };
    if target.exists() {
        let text = "it exists; move it away first, nothing is overwritten";
        return Err(named(io::Error::new(io::ErrorKind::AlreadyExists, text)));
    }
    let mut session = Session::open(url, "backup")?;
    let version = schema::version(&mut session)?;
    let begun = session
        .client()
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start();
    let mut transaction = begun.map_err(PostgresError::from)?;
    unhurried(&mut transaction)?;
    let verified = verify::verify_in(&mut transaction)?;
    let beside = target.with_extension("partial");
    let file = File::create(&beside).map_err(named)?;
    crate::store::owner_only(&beside)?;
    let mut out = Hashing { inner: BufWriter::new(file), sum: Sha256::new() };
    write(&mut transaction, version, &mut out)?.map_err(named)?;
    let file = out.inner.into_inner().map_err(|error| named(error.into_error()))?;
    file.sync_all().map_err(named)?;
    std::fs::rename(&beside, target).map_err(named)?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new(".")));
    folder.and_then(|folder| folder.sync_all()).map_err(named)?;
    Ok(verified)
}

/// Makes the ledger of a database that has none from a backup, verified: all of it or nothing.
///
/// # Errors
/// [`LedgerError::Io`] for a file that is cut, changed or none; [`LedgerError::Postgres`].
pub fn restore_shared(backup: &Path, url: &PostgresUrl) -> Result<Verified, LedgerError> {
    let named = |source| LedgerError::Io { path: backup.display().to_string(), source };
    check(backup).map_err(named)?;
    let mut input = BufReader::new(File::open(backup).map_err(named)?);
    let header = header(&mut input).map_err(named)?;
    let mut session = Session::open(url, "restore")?;
    schema::migrate_to(&mut session, header.tables)?;
    let mut transaction = session.client().transaction().map_err(PostgresError::from)?;
    unhurried(&mut transaction)?;
    lock_empty(&mut transaction)?;
    for table in tables(header.tables) {
        read_table(&mut transaction, table, &mut input)?.map_err(named)?;
    }
    let go_on = "SELECT setval(pg_get_serial_sequence('mintage.stream', 'id'),
                        (SELECT coalesce(max(id) + 1, 0) FROM mintage.stream), false),
                setval(pg_get_serial_sequence('mintage.outbox', 'number'),
                       (SELECT coalesce(max(number) + 1, 1) FROM mintage.outbox), false),
                setval('mintage.ticket',
                       (SELECT coalesce(max(ticket) + 1, 1) FROM mintage.claim), false)";
    transaction.batch_execute(go_on).map_err(PostgresError::from)?;
    let verified = verify::verify_in(&mut transaction)?;
    transaction.commit().map_err(PostgresError::from)?;
    schema::migrate(&mut session)?;
    Ok(verified)
}

fn unhurried(transaction: &mut Transaction<'_>) -> Result<(), PostgresError> {
    Ok(transaction.batch_execute(
        "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0",
    )?)
}

fn lock_empty(transaction: &mut Transaction<'_>) -> Result<(), PostgresError> {
    transaction.batch_execute("LOCK TABLE mintage.stream IN EXCLUSIVE MODE")?;
    for table in ["stream", "directory"] {
        let sql = format!("SELECT 1 FROM mintage.{table} LIMIT 1");
        if transaction.query_opt(&sql, &[])?.is_some() {
            return Err(PostgresError::Unfit("the database has a ledger already".to_owned()));
        }
    }
    Ok(())
}

/// What is written, and its digest.
struct Hashing<W> {
    inner: W,
    sum: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The outer error is the database's, the inner one the file's.
fn write<W: Write>(
    transaction: &mut Transaction<'_>,
    version: usize,
    out: &mut Hashing<W>,
) -> Result<io::Result<()>, PostgresError> {
    let header = Header { mintage_ledger: FORMAT, tables: version };
    let line = serde_json::to_string(&header).unwrap_or_default();
    if let Err(error) = writeln!(out, "{line}") {
        return Ok(Err(error));
    }
    for table in tables(version) {
        let mut rows = transaction.copy_out(&format!("COPY mintage.{table} TO STDOUT"))?;
        if let Err(error) = write_table(table, &mut rows, out) {
            return Ok(Err(error));
        }
    }
    let sum = hex(&out.sum.clone().finalize());
    Ok(writeln!(out, "sha256 {sum}"))
}

fn write_table(table: &str, rows: &mut impl Read, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "table {table}")?;
    let mut piece = vec![0; PIECE_BYTES];
    // Behind its end the database's answer is not read again.
    let mut has_ended = false;
    while !has_ended {
        let mut length = 0;
        while length < piece.len() && !has_ended {
            let count = rows.read(&mut piece[length..])?;
            has_ended = count == 0;
            length += count;
        }
        if length > 0 {
            writeln!(out, "{length}")?;
            out.write_all(&piece[..length])?;
        }
    }
    writeln!(out, "0")
}

fn read_table(
    transaction: &mut Transaction<'_>,
    table: &str,
    input: &mut impl BufRead,
) -> Result<io::Result<()>, PostgresError> {
    let mut rows = transaction.copy_in(&format!("COPY mintage.{table} FROM STDIN"))?;
    if let Err(error) = pieces(table, input, &mut rows) {
        return Ok(Err(error));
    }
    rows.finish()?;
    Ok(Ok(()))
}

fn pieces(table: &str, input: &mut impl BufRead, rows: &mut impl Write) -> io::Result<()> {
    let name = line(input)?;
    if name != format!("table {table}") {
        return Err(unfit(&format!("`{name}` stands where the table `{table}` should")));
    }
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length: usize = line(input)?.parse().map_err(|_| unfit("a length is not a number"))?;
        if length == 0 {
            return Ok(());
        }
        let piece = piece.get_mut(..length).ok_or_else(|| unfit("a piece is too long"))?;
        input.read_exact(piece)?;
        rows.write_all(piece)?;
    }
}

/// Holds the file to its digest, before anything of it is used.
fn check(path: &Path) -> io::Result<()> {
    let mut input = BufReader::new(File::open(path)?);
    let mut sum = Sha256::new();
    let version = {
        let text = line(&mut input)?;
        sum.update(format!("{text}\n"));
        parse(&text)?.tables
    };
    for _ in tables(version) {
        sum.update(format!("{}\n", line(&mut input)?));
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let text = line(&mut input)?;
            let length: usize = text.parse().map_err(|_| unfit("a length is not a number"))?;
            sum.update(format!("{text}\n"));
            let piece = piece.get_mut(..length).ok_or_else(|| unfit("a piece is too long"))?;
            input.read_exact(piece)?;
            sum.update(&*piece);
            if length == 0 {
                break;
            }
        }
    }
    if line(&mut input)? != format!("sha256 {}", hex(&sum.finalize())) {
        return Err(unfit("its digest is another one: the backup was changed or cut"));
    }
    Ok(())
}

fn header(input: &mut impl BufRead) -> io::Result<Header> {
    parse(&line(input)?)
}

fn parse(text: &str) -> io::Result<Header> {
    let header: Header =
        serde_json::from_str(text).map_err(|_| unfit("it is no backup of a shared ledger"))?;
    if header.mintage_ledger != FORMAT || header.tables > schema::LATEST || header.tables == 0 {
        return Err(unfit("it was written by a newer program"));
    }
    Ok(header)
}

fn line(input: &mut impl BufRead) -> io::Result<String> {
    let mut text = String::new();
    input.by_ref().take(MAX_LINE_BYTES).read_line(&mut text)?;
    match text.strip_suffix('\n') {
        Some(line) => Ok(line.to_owned()),
        None => Err(unfit("it is cut, or no backup of a shared ledger")),
    }
}

fn unfit(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
