//! The tables, by embedded migrations. Invariant: each is applied once, by one process at a time, in order; a database
//! of a newer program is refused.

use super::PostgresError;
use super::connect::Session;

/// Migrations in order. One that was released never changes.
const MIGRATIONS: [&str; 2] = [include_str!("0001.sql"), include_str!("0002.sql")];
/// Names the lock under which migrations run ("mint").
const LOCK: i64 = 0x6d69_6e74;

/// Brings the tables up to date.
pub(super) fn migrate(session: &mut Session) -> Result<(), PostgresError> {
    let mut transaction = session.client().transaction()?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK])?;
    transaction.batch_execute(
        "CREATE SCHEMA IF NOT EXISTS mintage;
         CREATE TABLE IF NOT EXISTS mintage.migration (
             version int4 PRIMARY KEY,
             applied timestamptz NOT NULL DEFAULT now()
         )",
    )?;
    let row =
        transaction.query_one("SELECT coalesce(max(version), 0) FROM mintage.migration", &[])?;
    let known: i32 = row.get(0);
    let applied = usize::try_from(known).unwrap_or(0);
    if applied > MIGRATIONS.len() {
        return Err(PostgresError::Unfit(format!(
            "the database has the tables of a newer program (version {applied}, this one knows {})",
            MIGRATIONS.len()
        )));
    }
    for (at, sql) in MIGRATIONS.iter().enumerate().skip(applied) {
        transaction.batch_execute(sql)?;
        let version = i32::try_from(at + 1).unwrap_or(i32::MAX);
        transaction.execute("INSERT INTO mintage.migration (version) VALUES ($1)", &[&version])?;
    }
    transaction.commit()?;
    Ok(())
}
