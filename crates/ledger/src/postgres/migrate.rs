//! A ledger's file moves into the database that gateways share; and the commands that read such a ledger.
//!
//! The log goes over line by line with its chain, as the log of a gateway that has ended; what its accounts still have
//! goes into the pools by lines of their own. Invariants: all of it or nothing; the database must have no ledger yet;
//! what was written is verified, and held to what was read, before it counts.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use postgres::Transaction;

use super::connect::Session;
use super::pool::{Purse, import, lease_account};
use super::read::PostgresReader;
use super::rows::{
    LOG_COLUMNS, LOG_TYPES, USAGE_COLUMNS, USAGE_TYPES, column, damaged, line_values, usage_values,
};
use super::store::{Written, copy, write, write_document, write_sums};
use super::{PostgresError, PostgresUrl, schema, verify};
use crate::book::{Balance, Book, Entry, EntryKind, Sums};
use crate::files::{self, RowsBesideTheLog};
use crate::ledger::{Ledger, LedgerError};
use crate::money::Amount;
use crate::store::{
    Batch, FILE_NAME, MAX_RECORDS_PER_READ, Reader, SqliteReader, SqliteStore, Store, StoreError,
    Synchronous, UsageFilter, Verified, Work, chain,
};

/// The stream that the file's log becomes: its lines keep their numbers.
const IMPORTED: i64 = 0;
/// What the file is called afterwards.
const MOVED: &str = "ledger.sqlite.moved";

/// Holds a shared ledger to its chains and sums; gateways may use it meanwhile.
///
/// # Errors
/// [`LedgerError::Postgres`], [`LedgerError::Store`].
pub fn verify_shared(url: &PostgresUrl) -> Result<Verified, LedgerError> {
    Ok(PostgresReader::open(url)?.verify()?)
}

/// Writes all logs and usage records as lines of JSON; gateways may use the ledger meanwhile.
///
/// # Errors
/// [`LedgerError::Io`], [`LedgerError::Postgres`], [`LedgerError::Store`].
pub fn export_shared(url: &PostgresUrl, out: &mut dyn Write) -> Result<(), LedgerError> {
    files::export(&mut PostgresReader::open(url)?, out)
}

/// Moves the ledger of a folder into a database that has none, and puts the file aside. Returns what was verified
/// there.
///
/// # Errors
/// [`LedgerError::InUse`], [`LedgerError::Io`], [`LedgerError::Store`], [`LedgerError::Postgres`]; the file is as it was
/// then, and the database empty.
pub fn migrate_file(folder: &Path, url: &PostgresUrl) -> Result<Verified, LedgerError> {
    // What a crash left is settled first.
    drop(Ledger::open(folder)?);
    let _lock = crate::ledger::lock(folder)?;
    let path = folder.join(FILE_NAME);
    let mut source = SqliteReader { connection: crate::store::open_reader(&path)? };
    let before = source.verify()?;
    let kept = SqliteStore::open(folder, Synchronous::Full)?.load()?.kept;
    let book = Book::restore(&kept).map_err(StoreError::damaged)?;
    let mut session = Session::open(url, "migration")?;
    schema::migrate(&mut session)?;
    let mut transaction = session.client().transaction().map_err(PostgresError::from)?;
    transaction.batch_execute("SET LOCAL statement_timeout = 0").map_err(PostgresError::from)?;
    begin(&mut transaction)?;
    let (seq, link) = lines(&mut transaction, &mut source)?;
    records(&mut transaction, &mut source)?;
    beside(&mut transaction, &files::beside_the_log(&source)?)?;
    let moved = pools(&mut transaction, &book, seq, link)?;
    let after = verify::verify_in(&mut transaction)?;
    let same = after.records == before.records
        && after.documents == before.documents
        && after.lines == before.lines + 2 * moved;
    if !same {
        let text = format!("the copy has {after:?}, the file {before:?} and {moved} accounts");
        return Err(PostgresError::Damaged(text).into());
    }
    transaction.commit().map_err(PostgresError::from)?;
    let io = |source| LedgerError::Io { path: path.display().to_string(), source };
    std::fs::rename(&path, folder.join(MOVED)).map_err(io)?;
    Ok(after)
}

fn begin(transaction: &mut Transaction<'_>) -> Result<(), PostgresError> {
    transaction.batch_execute("LOCK TABLE mintage.stream IN EXCLUSIVE MODE")?;
    if transaction.query_opt("SELECT 1 FROM mintage.stream LIMIT 1", &[])?.is_some() {
        return Err(PostgresError::Unfit("the database has a ledger already".to_owned()));
    }
    transaction.execute(
        "INSERT INTO mintage.stream (id, kind, name, link) VALUES ($1, 'gateway', 'imported', $2)",
        &[&IMPORTED, &&chain::GENESIS[..]],
    )?;
    transaction
        .batch_execute("SELECT setval(pg_get_serial_sequence('mintage.stream', 'id'), 0, true)")?;
    Ok(())
}

/// The log as it is, with the sums it comes to. Returns its end.
fn lines(
    transaction: &mut Transaction<'_>,
    source: &mut SqliteReader,
) -> Result<(u64, [u8; 32]), LedgerError> {
    let mut sums: HashMap<(Arc<str>, Arc<str>), Sums> = HashMap::new();
    let (mut seq, mut link) = (0, chain::GENESIS);
    loop {
        let page = source.log(seq, MAX_RECORDS_PER_READ)?;
        let Some(last) = page.last() else { break };
        (seq, link) = (last.seq, last.link);
        for line in page.iter().filter(|line| line.entry.amount != 0) {
            let (entry, amount) = (&line.entry, i128::from(line.entry.amount));
            let name = |account: &Arc<str>| (account.clone(), entry.asset.clone());
            sums.entry(name(&entry.debit)).or_default().debits += amount;
            sums.entry(name(&entry.credit)).or_default().credits += amount;
        }
        let rows = page.iter().map(|line| line_values(IMPORTED, line));
        copy(transaction, "log", LOG_COLUMNS, &LOG_TYPES, rows)?;
    }
    write_sums(transaction, IMPORTED, &sums)?;
    Ok((seq, link))
}

fn records(
    transaction: &mut Transaction<'_>,
    source: &mut SqliteReader,
) -> Result<(), LedgerError> {
    let mut filter = UsageFilter::default();
    loop {
        let page = source.usage(&filter)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        filter.after = *last;
        let rows = page.iter().map(|(seq, record)| usage_values(IMPORTED, *seq, record));
        copy(transaction, "usage", USAGE_COLUMNS, &USAGE_TYPES, rows)?;
    }
}

fn beside(transaction: &mut Transaction<'_>, rows: &RowsBesideTheLog) -> Result<(), PostgresError> {
    for (seq, id, body) in &rows.operations {
        transaction.execute(
            "INSERT INTO mintage.operation (id, stream, seq, body) VALUES ($1, $2, $3, $4)",
            &[id, &IMPORTED, seq, body],
        )?;
    }
    for (seq, document) in &rows.documents {
        write_document(transaction, IMPORTED, *seq, document)?;
    }
    let work =
        Work { messages: rows.messages.clone(), answers: rows.answers.clone(), ..Work::default() };
    super::store::beside(transaction, &work)
}

/// What is left in each account goes from the imported log into a pool. Returns how many accounts that are.
fn pools(
    transaction: &mut Transaction<'_>,
    book: &Book,
    seq: u64,
    link: [u8; 32],
) -> Result<u64, PostgresError> {
    let lease = lease_account(IMPORTED);
    let mut entries = Vec::new();
    for (org, currency, Balance { balance, credit_line, .. }) in book.balances() {
        let purse = Purse { account: format!("org/{org}").into(), asset: currency.code().into() };
        let entry = import(transaction, &purse, &lease, balance, credit_line)?;
        entries.extend(entry);
    }
    for standing in book.slices().into_iter().filter(|s| s.account.starts_with("grant/")) {
        let purse = Purse { account: standing.account, asset: standing.asset };
        let left = Amount::from_pico(standing.unused);
        entries.extend(import(transaction, &purse, &lease, left, Amount::ZERO)?);
    }
    let moved = entries.len() as u64;
    let entries: Vec<Entry> = entries;
    debug_assert!(entries.iter().all(|e| matches!(e.kind, EntryKind::Return | EntryKind::Lease)));
    let at_ms = crate::ledger::now_ms();
    let batch = Batch { work: vec![Work { at_ms, entries, ..Work::default() }], marks: Vec::new() };
    let known = super::store::sums_of(transaction, IMPORTED)?;
    let written = Written::of(&batch, seq, link, &known);
    write(transaction, IMPORTED, &batch, &written)?;
    let ended = transaction.execute(
        "UPDATE mintage.stream SET seq = $2, link = $3, expires = now() WHERE id = $1",
        &[&IMPORTED, &column(written.seq), &&written.link[..]],
    )?;
    // Budgets begin with what all records come to, and count on from there.
    transaction.execute(
        "INSERT INTO mintage.part (stream, counted) VALUES ($1, $2)",
        &[&IMPORTED, &column(written.seq)],
    )?;
    if ended == 1 { Ok(moved) } else { Err(damaged("the imported log is gone")) }
}
