//! Files of projects: taken in under a temporary name, listed, read, removed.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{NumberedPage, PARTIAL, Storage, StorageError, io_error, remove, sync_folder};
use crate::auth::now_unix;
use crate::request_id::random_hex;

/// What is told of a file that comes in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NewFile {
    pub(crate) purpose: String,
    pub(crate) filename: String,
    /// In its owner's words.
    pub(crate) description: Option<String>,
    pub(crate) lifetime_s: Option<u64>,
}

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileRecord {
    pub(crate) id: String,
    pub(crate) purpose: String,
    pub(crate) filename: String,
    pub(crate) description: Option<String>,
    pub(crate) bytes: u64,
    /// Seconds since 1970, as the next.
    pub(crate) created: u64,
    pub(crate) expires: Option<u64>,
}

/// Which files are listed.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilePage {
    pub(crate) purpose: Option<String>,
    /// The id after which the page begins.
    pub(crate) after: Option<String>,
    pub(crate) limit: u32,
    /// Oldest first.
    pub(crate) ascending: bool,
}

/// What has come in for a project and is still to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coming {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// A file that is being written. Dropped before [`Storage::keep`] it is forgotten.
pub(crate) struct Upload {
    id: String,
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    max_bytes: u64,
}

impl Upload {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    #[cfg(test)]
    pub(super) fn path_for_tests(&self) -> PathBuf {
        self.path.clone()
    }

    /// Blocks.
    ///
    /// # Errors
    /// [`StorageError::Full`] beyond the limit of a file.
    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), StorageError> {
        self.bytes += data.len() as u64;
        if self.bytes > self.max_bytes {
            let most = self.max_bytes;
            return Err(StorageError::Full(format!("a file has at most {most} bytes")));
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(data).map_err(io_error(&self.path))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.file.take().is_some()
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!(%error, "an upload was not removed; the next start does it");
        }
    }
}

fn record(row: &Row<'_>) -> rusqlite::Result<FileRecord> {
    Ok(FileRecord {
        id: row.get("id")?,
        purpose: row.get("purpose")?,
        filename: row.get("filename")?,
        description: row.get("description")?,
        bytes: row.get("bytes")?,
        created: row.get("created")?,
        expires: row.get("expires")?,
    })
}

/// A file that is there: not removed, not expired.
const LIVES: &str = "removed = 0 AND (expires IS NULL OR expires > ?1)";

pub(super) fn find(
    index: &Connection,
    project: &str,
    id: &str,
) -> Result<(i64, FileRecord), StorageError> {
    let sql = format!("SELECT * FROM files WHERE {LIVES} AND project = ?2 AND id = ?3");
    let mut statement = index.prepare_cached(&sql)?;
    let found = statement
        .query_row(params![now_unix(), project, id], |row| Ok((row.get("number")?, record(row)?)));
    found.optional()?.ok_or(StorageError::NotFound)
}

/// Tells of a file whose content has its name already.
pub(super) fn insert(
    index: &Connection,
    project: &str,
    file: &FileRecord,
) -> Result<(), StorageError> {
    index.execute(
        "INSERT INTO files (id, project, purpose, filename, description, bytes, created, expires)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            file.id,
            project,
            file.purpose,
            file.filename,
            file.description,
            file.bytes,
            file.created,
            file.expires
        ],
    )?;
    Ok(())
}

impl Storage {
    /// Begins a file. Blocks.
    pub(crate) fn begin(&self) -> Result<Upload, StorageError> {
        let id = format!("file-{}", random_hex());
        let path = self.config.folder.join(PARTIAL).join(&id);
        let file = File::create_new(&path).map_err(io_error(&path))?;
        Ok(Upload { id, path, file: Some(file), bytes: 0, max_bytes: self.config.max_file_bytes })
    }

    /// Begins a file of the server's own making, without the limit of those that come in.
    pub(super) fn begin_own(&self) -> Result<Upload, StorageError> {
        let mut upload = self.begin()?;
        upload.max_bytes = u64::MAX;
        Ok(upload)
    }

    /// Gives an upload its content's last name: durable, and not told of yet.
    pub(super) fn settle_content(&self, upload: &mut Upload) -> Result<String, StorageError> {
        if let Some(file) = &upload.file {
            file.sync_all().map_err(io_error(&upload.path))?;
        }
        let last = self.content(&upload.id);
        std::fs::rename(&upload.path, &last).map_err(io_error(&last))?;
        upload.file = None;
        sync_folder(last.parent().unwrap_or(&self.config.folder))?;
        Ok(upload.id.clone())
    }

    /// Keeps an upload as a file of a project, if it has room. Blocks.
    pub(crate) fn keep(
        &self,
        project: &str,
        mut upload: Upload,
        file: NewFile,
    ) -> Result<FileRecord, StorageError> {
        self.check_room(&self.index(), project, Coming::default(), upload.bytes)?;
        let created = now_unix();
        let NewFile { purpose, filename, description, lifetime_s } = file;
        let file = FileRecord {
            id: self.settle_content(&mut upload)?,
            purpose,
            filename,
            description,
            bytes: upload.bytes,
            created,
            expires: lifetime_s.map(|s| created.saturating_add(s)),
        };
        let kept = {
            let index = self.index();
            // Once more, with what came in meanwhile.
            self.check_room(&index, project, Coming::default(), file.bytes)
                .and_then(|()| insert(&index, project, &file))
        };
        if let Err(error) = kept {
            remove(&self.content(&file.id))?;
            return Err(error);
        }
        Ok(file)
    }

    /// Whether a project has room for an upload beside what comes with it. Blocks.
    pub(crate) fn check_room_beside(
        &self,
        project: &str,
        coming: Coming,
        upload: &Upload,
    ) -> Result<(), StorageError> {
        self.check_room(&self.index(), project, coming, upload.bytes)
    }

    fn check_room(
        &self,
        index: &Connection,
        project: &str,
        coming: Coming,
        bytes: u64,
    ) -> Result<(), StorageError> {
        let sql = "SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM files WHERE project = ?1";
        let mut statement = index.prepare_cached(sql)?;
        let (files, stored): (u64, u64) =
            statement.query_row([project], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let (files, stored) =
            (files.saturating_add(coming.files), stored.saturating_add(coming.bytes));
        let (most_files, most_bytes) =
            (self.config.max_project_files, self.config.max_project_bytes);
        if files >= most_files {
            let text = format!("the project has {files} files; the limit is {most_files}");
            return Err(StorageError::Full(text));
        }
        if stored.saturating_add(bytes) > most_bytes {
            let text = format!(
                "the project's files have {stored} bytes and this one {bytes}; the limit is {most_bytes}"
            );
            return Err(StorageError::Full(text));
        }
        Ok(())
    }

    /// Blocks.
    pub(crate) fn file(&self, project: &str, id: &str) -> Result<FileRecord, StorageError> {
        find(&self.index(), project, id).map(|(_, file)| file)
    }

    /// A page of a project's files, and whether more follow. Blocks.
    pub(crate) fn files(
        &self,
        project: &str,
        page: &FilePage,
    ) -> Result<(Vec<FileRecord>, bool), StorageError> {
        let index = self.index();
        let after = match &page.after {
            None => None,
            Some(id) => Some(find(&index, project, id)?.0),
        };
        let (compare, order) = if page.ascending { (">", "ASC") } else { ("<", "DESC") };
        let sql = format!(
            "SELECT * FROM files WHERE {LIVES} AND project = ?2
             AND (?3 IS NULL OR purpose = ?3) AND (?4 IS NULL OR number {compare} ?4)
             ORDER BY number {order} LIMIT ?5"
        );
        let mut statement = index.prepare_cached(&sql)?;
        let rows = statement.query_map(
            params![now_unix(), project, page.purpose, after, u64::from(page.limit) + 1],
            record,
        )?;
        let mut files = rows.collect::<Result<Vec<_>, _>>()?;
        let has_more = files.len() > page.limit as usize;
        files.truncate(page.limit as usize);
        Ok((files, has_more))
    }

    /// Some of a project's files, newest first, and how many it has. Blocks.
    pub(crate) fn numbered_files(
        &self,
        project: &str,
        page: NumberedPage,
    ) -> Result<(Vec<FileRecord>, u64), StorageError> {
        let index = self.index();
        let count = format!("SELECT COUNT(*) FROM files WHERE {LIVES} AND project = ?2");
        let mut count = index.prepare_cached(&count)?;
        let now = now_unix();
        let total = count.query_row(params![now, project], |row| row.get(0))?;
        let sql = format!(
            "SELECT * FROM files WHERE {LIVES} AND project = ?2 ORDER BY number DESC LIMIT ?3 OFFSET ?4"
        );
        let mut statement = index.prepare_cached(&sql)?;
        let rows = statement.query_map(params![now, project, page.limit, page.offset], record)?;
        Ok((rows.collect::<Result<_, _>>()?, total))
    }

    /// The content of a file of the project. Blocks.
    pub(crate) fn open_file(
        &self,
        project: &str,
        id: &str,
    ) -> Result<(FileRecord, File), StorageError> {
        let file = self.file(project, id)?;
        let path = self.content(&file.id);
        let content = File::open(&path).map_err(io_error(&path))?;
        Ok((file, content))
    }

    /// The input of a batch, which may be removed already as far as others can tell. Blocks.
    pub(crate) fn open_input(&self, id: &str) -> Result<File, StorageError> {
        let path = self.content(id);
        File::open(&path).map_err(io_error(&path))
    }

    /// Forgets a file; its content goes too, unless a batch still reads it. Blocks.
    pub(crate) fn remove_file(&self, project: &str, id: &str) -> Result<(), StorageError> {
        let index = self.index();
        let (number, _) = find(&index, project, id)?;
        index.execute("UPDATE files SET removed = 1 WHERE number = ?1", [number])?;
        drop(index);
        self.sweep()
    }

    /// Removes what was removed or has expired, and is read by no batch. Blocks.
    pub(crate) fn sweep(&self) -> Result<(), StorageError> {
        let index = self.index();
        let gone: Vec<(i64, String)> = {
            let mut statement = index.prepare_cached(
                "SELECT number, id FROM files
                 WHERE (removed = 1 OR expires <= ?1)
                 AND NOT EXISTS (SELECT 1 FROM batches WHERE is_over = 0 AND input_file = files.id)
                 LIMIT 1000",
            )?;
            let rows = statement.query_map([now_unix()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        for (number, id) in gone {
            index.execute("DELETE FROM files WHERE number = ?1", [number])?;
            remove(&self.content(&id))?;
        }
        drop(index);
        self.sweep_answers()
    }
}
