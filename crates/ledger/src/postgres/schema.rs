//! The tables, by embedded migrations. Invariant: each is applied once, by one process at a time, in order; a database
//! of a newer program is refused.

use super::PostgresError;
use super::connect::Session;

/// Migrations in order. One that was released never changes.
const MIGRATIONS: [&str; 4] = [
    include_str!("0001.sql"),
    include_str!("0002.sql"),
    include_str!("0003.sql"),
    include_str!("0004.sql"),
];
/// Names the lock under which migrations run ("mint").
const LOCK: i64 = 0x6d69_6e74;

/// The version of the tables of this program.
pub(super) const LATEST: usize = MIGRATIONS.len();

/// Brings the tables up to date.
pub(super) fn migrate(session: &mut Session) -> Result<(), PostgresError> {
    apply(session, LATEST).map(|_| ())
}

/// Makes the tables as they were at a version; a database that has later ones is refused.
pub(super) fn migrate_to(session: &mut Session, version: usize) -> Result<(), PostgresError> {
    let found = apply(session, version)?;
    if found > version {
        let text = format!("the database has tables of version {found}; use an empty one");
        return Err(PostgresError::Unfit(text));
    }
    Ok(())
}

/// The version of the tables that are there; brings them up to date before.
pub(super) fn version(session: &mut Session) -> Result<usize, PostgresError> {
    apply(session, LATEST)
}

/// Applies what is missing up to a version. Returns which version there is then.
fn apply(session: &mut Session, upto: usize) -> Result<usize, PostgresError> {
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
    if applied > LATEST {
        return Err(PostgresError::Unfit(format!(
            "the database has the tables of a newer program (version {applied}, this one knows {LATEST})"
        )));
    }
    for (at, sql) in MIGRATIONS.iter().enumerate().take(upto).skip(applied) {
        transaction.batch_execute(sql)?;
        let version = i32::try_from(at + 1).unwrap_or(i32::MAX);
        transaction.execute("INSERT INTO mintage.migration (version) VALUES ($1)", &[&version])?;
    }
    transaction.commit()?;
    Ok(applied.max(upto))
}
