//! What projects leave with the server: files, batches and what became of their lines, answers, tasks. A folder of contents
//! beside one SQLite file that says what they are.
//!
//! Not here: HTTP, and what batches do. Invariants: content has its last name before a row tells of it, and loses its
//! row before it goes, so a crash leaves at most content without a row, which the next start removes; every read and
//! write names the project, and finds nothing of another's.

mod answers;
mod batches;
mod files;
mod tasks;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

pub use answers::AnswerLimits;
pub(crate) use answers::{AnswerKind, AnswerPage, AnswerRecord};
pub(crate) use batches::{
    BatchDocument, BatchError, BatchPage, BatchRecord, BatchStatus, Counts, LineResult,
};
pub(crate) use files::{Coming, FilePage, FileRecord, NewFile, Upload};
pub(crate) use tasks::{ListedTask, TaskDocument, TaskFilter, TaskRecord, TaskStatus};

/// Contents of files, each under its id.
const CONTENT: &str = "content";
/// Uploads that are not complete.
const PARTIAL: &str = "partial";
const INDEX: &str = "index.sqlite";
/// How long a writer waits for another program that looks into the index, ms.
const BUSY_MS: u64 = 5_000;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    project TEXT NOT NULL,
    purpose TEXT NOT NULL,
    filename TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER,
    removed INTEGER NOT NULL DEFAULT 0,
    description TEXT
);
CREATE INDEX IF NOT EXISTS files_of_project ON files (project, removed, number);
CREATE INDEX IF NOT EXISTS files_to_sweep ON files (number) WHERE removed = 1 OR expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    project TEXT NOT NULL,
    input_file TEXT NOT NULL,
    is_over INTEGER NOT NULL,
    document TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS batches_of_project ON batches (project, number);
CREATE INDEX IF NOT EXISTS batches_to_do ON batches (is_over) WHERE is_over = 0;
CREATE TABLE IF NOT EXISTS batch_lines (
    batch TEXT NOT NULL,
    line INTEGER NOT NULL,
    is_error INTEGER NOT NULL,
    result BLOB NOT NULL,
    PRIMARY KEY (batch, line)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    project TEXT NOT NULL,
    kind TEXT NOT NULL,
    model TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    is_over INTEGER NOT NULL,
    document TEXT NOT NULL,
    input TEXT NOT NULL,
    steps TEXT,
    kept_at TEXT
);
CREATE INDEX IF NOT EXISTS answers_of_project ON answers (project, number, bytes, is_over);
CREATE INDEX IF NOT EXISTS answers_to_end ON answers (is_over) WHERE is_over = 0;
CREATE INDEX IF NOT EXISTS answers_to_sweep ON answers (expires);
";

/// What folders of earlier versions lack: table, column, its type.
const ADDED_COLUMNS: &[(&str, &str, &str)] = &[("files", "description", "TEXT")];

/// A page by its place in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NumberedPage {
    pub(crate) offset: u64,
    pub(crate) limit: u32,
}

/// Where it lies and how much it may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageConfig {
    /// The folder; made where it is missing.
    pub folder: PathBuf,
    /// Bytes of one file.
    pub max_file_bytes: u64,
    /// Bytes of all files of a project.
    pub max_project_bytes: u64,
    /// Files of a project.
    pub max_project_files: u64,
    /// Lines of a batch.
    pub max_batch_lines: u32,
    /// Batches of a project that are not over.
    pub max_project_batches: u64,
    /// Lines of batches that are computed at once, of all projects together.
    pub max_lines_in_flight: usize,
    /// Responses, chats and tasks that are kept.
    pub answers: AnswerLimits,
}

impl StorageConfig {
    /// The defaults, in this folder.
    #[must_use]
    pub fn in_folder(folder: PathBuf) -> Self {
        Self {
            folder,
            max_file_bytes: 512 << 20,
            max_project_bytes: 20 << 30,
            max_project_files: 10_000,
            max_batch_lines: 50_000,
            max_project_batches: 100,
            max_lines_in_flight: 8,
            answers: AnswerLimits::default(),
        }
    }
}

/// Why something was not stored or found.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The system refuses.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The index refuses.
    #[error("the index of stored files: {0}")]
    Index(#[from] rusqlite::Error),
    /// The index holds what this program did not write.
    #[error("the index of stored files is damaged: {0}")]
    Damaged(String),
    /// The ledger does not tell what was billed.
    #[error(transparent)]
    Ledger(#[from] mintage_ledger::LedgerError),
    /// A project has no room left for this.
    #[error("{0}")]
    Full(String),
    /// There is no such thing in the project.
    #[error("not found")]
    NotFound,
}

/// The folder, opened.
pub(crate) struct Storage {
    pub(crate) config: StorageConfig,
    connection: Mutex<Connection>,
    /// Held so that no second program runs the same batches.
    _lock: File,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.display().to_string();
    move |source| StorageError::Io { path, source }
}

fn add_columns(connection: &Connection) -> Result<(), StorageError> {
    for (table, column, kind) in ADDED_COLUMNS {
        let known = "SELECT COUNT(*) FROM pragma_table_info(?1) WHERE name = ?2";
        let known: u64 = connection.query_row(known, [table, column], |row| row.get(0))?;
        if known == 0 {
            connection.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} {kind}"))?;
        }
    }
    Ok(())
}

/// Makes renames and new names in a folder durable.
fn sync_folder(folder: &Path) -> Result<(), StorageError> {
    #[cfg(unix)]
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error(folder))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

impl Storage {
    /// Opens the folder and removes what a crash left behind.
    ///
    /// # Errors
    /// The folder cannot be written, or another program has it.
    pub(crate) fn open(config: StorageConfig) -> Result<Self, StorageError> {
        for folder in [CONTENT, PARTIAL] {
            let path = config.folder.join(folder);
            std::fs::create_dir_all(&path).map_err(io_error(&path))?;
        }
        let path = config.folder.join("lock");
        let lock = File::create(&path).map_err(io_error(&path))?;
        lock.try_lock().map_err(|error| StorageError::Io {
            path: path.display().to_string(),
            source: match error {
                std::fs::TryLockError::Error(error) => error,
                std::fs::TryLockError::WouldBlock => {
                    io::Error::other("another `mintage serve` uses this data folder")
                }
            },
        })?;
        let connection = Connection::open(config.folder.join(INDEX))?;
        connection.busy_timeout(std::time::Duration::from_millis(BUSY_MS))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.execute_batch(SCHEMA)?;
        add_columns(&connection)?;
        let storage = Self { config, connection: Mutex::new(connection), _lock: lock };
        storage.sweep_orphans()?;
        Ok(storage)
    }

    fn index(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn content(&self, id: &str) -> PathBuf {
        self.config.folder.join(CONTENT).join(id)
    }

    /// Content without a row, and uploads that were cut off.
    fn sweep_orphans(&self) -> Result<(), StorageError> {
        let known: HashSet<String> = {
            let index = self.index();
            let mut ids = index.prepare("SELECT id FROM files")?;
            let ids = ids.query_map([], |row| row.get(0))?;
            ids.collect::<Result<_, _>>()?
        };
        for folder in [CONTENT, PARTIAL] {
            let folder = self.config.folder.join(folder);
            for entry in std::fs::read_dir(&folder).map_err(io_error(&folder))? {
                let entry = entry.map_err(io_error(&folder))?;
                if !entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
                    remove(&entry.path())?;
                }
            }
        }
        Ok(())
    }
}

/// Removes a file that may be gone already.
fn remove(path: &Path) -> Result<(), StorageError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}
