//! Folds SQLite's write-ahead log into the file beside the writer, so that commits do not wait for it.
//!
//! It is folded on a thread with a connection of its own. While commits go on there is always something left, so that
//! the log would only grow: what is left, little, the writer folds itself once the log is long, which then begins anew.
//! Not here: when. Invariant: a sync that failed here is told to the writer, which then writes nothing more.

use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;

use rusqlite::{Connection, OpenFlags};

use super::sqlite::{settings, sqlite_error};
use super::{StoreError, StoreErrorKind, Synchronous};

/// The thread; ends when dropped.
pub(super) struct Checkpointer {
    /// `None` only while it is being dropped.
    wanted: Option<mpsc::Sender<()>>,
    folded: mpsc::Receiver<Result<u64, StoreError>>,
    is_busy: bool,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Opens the file of `path` once more.
    pub(super) fn start(path: &Path, synchronous: Synchronous) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(sqlite_error)?;
        settings(&connection, synchronous, false)?;
        let (wanted, wishes) = mpsc::channel();
        let (done, folded) = mpsc::channel();
        let run = move || {
            while wishes.recv().is_ok() {
                if done.send(fold(&connection)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("ledger-fold".to_owned())
            .spawn(run)
            .map_err(|e| StoreError::fatal(format!("no thread: {e}")))?;
        Ok(Self { wanted: Some(wanted), folded, is_busy: false, thread: Some(thread) })
    }

    /// Begins to fold, unless it is at it.
    pub(super) fn begin(&mut self) {
        if !self.is_busy {
            self.is_busy = self.wanted.as_ref().is_some_and(|wanted| wanted.send(()).is_ok());
        }
    }

    /// Whether it has folded since the last time this was asked, and how many pages the log had.
    ///
    /// # Errors
    /// Of the file: it must not be written to any more.
    pub(super) fn has_folded(&mut self) -> Result<Option<u64>, StoreError> {
        match self.folded.try_recv() {
            Ok(outcome) => {
                self.is_busy = false;
                outcome.map(Some)
            }
            Err(mpsc::TryRecvError::Empty) => Ok(None),
            Err(mpsc::TryRecvError::Disconnected) => {
                Err(StoreError::fatal("the write-ahead log is not folded any more"))
            }
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.wanted = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Folds what can be folded without making anybody wait. Returns how many pages the log has.
pub(super) fn fold(connection: &Connection) -> Result<u64, StoreError> {
    let folded =
        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get::<_, i64>(1));
    match folded.map_err(sqlite_error) {
        // No room in the file yet: the log keeps everything, and it is tried again later.
        Err(e) if e.kind == StoreErrorKind::Full => Ok(0),
        pages => pages.map(|pages| u64::try_from(pages).unwrap_or(0)),
    }
}
