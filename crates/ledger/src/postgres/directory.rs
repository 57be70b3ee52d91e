//! The directory of organisations, projects and keys in the database that gateways share.
//!
//! It is one text with a version: changes are rare, and a gateway that sees another version reads it whole. Not here:
//! what it says. Invariants: one change at a time, over all gateways; the pepper never comes here, only a check of it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::read::Remote;
use super::rows::get;
use super::{PostgresError, PostgresUrl, schema};

/// The shared text.
pub(crate) struct SharedDirectory {
    remote: Mutex<Remote>,
}

impl SharedDirectory {
    /// Connects, and brings the tables up to date.
    pub(crate) fn open(url: &PostgresUrl) -> Result<Self, PostgresError> {
        let remote = Remote::open(url, "directory")?;
        remote.run(schema::migrate)?;
        Ok(Self { remote: Mutex::new(remote) })
    }

    fn remote(&self) -> MutexGuard<'_, Remote> {
        self.remote.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `text` the directory where there is none. Returns the check of the pepper that it was made with.
    pub(crate) fn found(&self, text: &str, check: &str) -> Result<String, PostgresError> {
        let (text, check) = (text.to_owned(), check.to_owned());
        self.remote().run(move |session| {
            session.client().execute(
                "INSERT INTO mintage.directory (version, body, pepper_check) VALUES (1, $1, $2)
                 ON CONFLICT (one) DO NOTHING",
                &[&text, &check],
            )?;
            let row =
                session.client().query_one("SELECT pepper_check FROM mintage.directory", &[])?;
            get(&row, 0)
        })
    }

    /// The directory, if it is newer than that.
    pub(crate) fn newer_than(&self, version: i64) -> Result<Option<(i64, String)>, PostgresError> {
        self.remote().run(move |session| {
            let sql = "SELECT version, body FROM mintage.directory WHERE version <> $1";
            let read = session.prepare(sql)?;
            let row = session.client().query_opt(&read, &[&version])?;
            row.map(|row| Ok((get(&row, 0)?, get(&row, 1)?))).transpose()
        })
    }

    /// Locks it for a change; others wait.
    pub(crate) fn begin(&self) -> Result<Turn<'_>, PostgresError> {
        let remote = self.remote();
        let (version, body) = remote.run(|session| {
            session.client().batch_execute("ROLLBACK; BEGIN")?;
            let sql = "SELECT version, body FROM mintage.directory FOR UPDATE";
            let row = session.client().query_one(sql, &[])?;
            Ok((get(&row, 0)?, get(&row, 1)?))
        })?;
        Ok(Turn { remote, version, body, is_open: true })
    }
}

/// A change in the making; given up when dropped.
pub(crate) struct Turn<'a> {
    remote: MutexGuard<'a, Remote>,
    version: i64,
    body: String,
    is_open: bool,
}

impl Turn<'_> {
    /// The directory as it stands.
    pub(crate) fn body(&self) -> &str {
        &self.body
    }

    /// Writes the changed one, durably. Returns its version.
    pub(crate) fn finish(&mut self, text: String) -> Result<i64, PostgresError> {
        self.is_open = false;
        let version = self.version;
        self.remote.run(move |session| {
            // The lock may have gone with its connection: the version tells whether somebody else came in between.
            let changed = session.client().execute(
                "UPDATE mintage.directory SET version = version + 1, body = $2 WHERE version = $1",
                &[&version, &text],
            )?;
            session.client().batch_execute("COMMIT")?;
            match changed {
                1 => Ok(version + 1),
                _ => Err(PostgresError::Unreachable(
                    "the directory changed meanwhile; try again".to_owned(),
                )),
            }
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.is_open {
            let _ = self.remote.run(|session| Ok(session.client().batch_execute("ROLLBACK")?));
        }
    }
}
