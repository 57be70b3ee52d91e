//! Batches of projects, and the results of their lines until these become files.
//!
//! Invariant: a line has at most one result, the first that was written; the results of a batch become its two files,
//! and the batch is over, in one transaction.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::files::{self, FileRecord, Upload};
use super::{Storage, StorageError};
use crate::auth::now_unix;
use crate::request_id::random_hex;

/// What results become.
const OUTPUT_PURPOSE: &str = "batch_output";
/// Results read at once.
const RESULTS_PER_READ: usize = 256;

/// Where a batch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BatchStatus {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

impl BatchStatus {
    pub(crate) fn is_over(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }
}

/// Lines of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) total: u32,
    pub(crate) completed: u32,
    pub(crate) failed: u32,
}

/// What is wrong with an input file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BatchError {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    /// From 1 on.
    pub(crate) line: Option<u32>,
}

/// What is kept of a batch. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct BatchDocument {
    pub(crate) endpoint: String,
    pub(crate) input_file_id: String,
    pub(crate) completion_window: String,
    pub(crate) status: BatchStatus,
    /// The id of the key that made it: its lines run as that key's requests.
    pub(crate) key: String,
    pub(crate) model: Option<String>,
    pub(crate) errors: Vec<BatchError>,
    pub(crate) output_file_id: Option<String>,
    pub(crate) error_file_id: Option<String>,
    /// How long the files of results are kept, seconds; `None` keeps them.
    pub(crate) output_lifetime_s: Option<u64>,
    pub(crate) created_at: u64,
    pub(crate) expires_at: u64,
    pub(crate) in_progress_at: Option<u64>,
    pub(crate) finalizing_at: Option<u64>,
    pub(crate) completed_at: Option<u64>,
    pub(crate) failed_at: Option<u64>,
    pub(crate) expired_at: Option<u64>,
    pub(crate) cancelling_at: Option<u64>,
    pub(crate) cancelled_at: Option<u64>,
    pub(crate) request_counts: Counts,
    /// Sums over the answers, in the form of OpenAI's document.
    pub(crate) usage: Option<Value>,
    pub(crate) metadata: Option<Map<String, Value>>,
}

/// A batch and whose it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BatchRecord {
    pub(crate) id: String,
    pub(crate) project: String,
    pub(crate) document: BatchDocument,
}

/// What became of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LineResult {
    /// From 0 on.
    pub(crate) line: u32,
    /// It belongs into the file of errors.
    pub(crate) is_error: bool,
    /// A line of the file, without its end.
    pub(crate) text: Vec<u8>,
}

/// Which batches are listed, newest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct BatchPage {
    pub(crate) after: Option<String>,
    pub(crate) limit: u32,
}

/// The files of results, written and not told of yet.
#[derive(Default)]
pub(crate) struct Results {
    output: Option<Upload>,
    errors: Option<Upload>,
}

fn damaged(error: &serde_json::Error) -> StorageError {
    StorageError::Damaged(format!("a batch: {error}"))
}

fn read(row: &Row<'_>) -> rusqlite::Result<(i64, String, String, String)> {
    Ok((row.get("number")?, row.get("id")?, row.get("project")?, row.get("document")?))
}

fn record(row: (i64, String, String, String)) -> Result<BatchRecord, StorageError> {
    let (_, id, project, document) = row;
    let document = serde_json::from_str(&document).map_err(|error| damaged(&error))?;
    Ok(BatchRecord { id, project, document })
}

fn find(
    index: &Connection,
    project: &str,
    id: &str,
) -> Result<(i64, String, String, String), StorageError> {
    let mut statement =
        index.prepare_cached("SELECT * FROM batches WHERE project = ?1 AND id = ?2")?;
    statement.query_row([project, id], read).optional()?.ok_or(StorageError::NotFound)
}

fn update(index: &Connection, batch: &BatchRecord) -> Result<(), StorageError> {
    let text = serde_json::to_string(&batch.document).map_err(|error| damaged(&error))?;
    index.execute(
        "UPDATE batches SET is_over = ?2, document = ?3 WHERE id = ?1",
        params![batch.id, batch.document.status.is_over(), text],
    )?;
    Ok(())
}

impl Storage {
    /// Takes in a batch over a file of the same project. Blocks.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] where the project has no such file, [`StorageError::Full`].
    pub(crate) fn add_batch(
        &self,
        project: &str,
        document: BatchDocument,
    ) -> Result<BatchRecord, StorageError> {
        let index = self.index();
        files::find(&index, project, &document.input_file_id)?;
        let open: u64 = index.query_row(
            "SELECT COUNT(*) FROM batches WHERE project = ?1 AND is_over = 0",
            [project],
            |row| row.get(0),
        )?;
        let most = self.config.max_project_batches;
        if open >= most {
            let text =
                format!("the project has {open} batches that are not over; the limit is {most}");
            return Err(StorageError::Full(text));
        }
        let batch = BatchRecord {
            id: format!("batch_{}", random_hex()),
            project: project.to_owned(),
            document,
        };
        let text = serde_json::to_string(&batch.document).map_err(|error| damaged(&error))?;
        index.execute(
            "INSERT INTO batches (id, project, input_file, is_over, document) VALUES (?1, ?2, ?3, 0, ?4)",
            params![batch.id, project, batch.document.input_file_id, text],
        )?;
        Ok(batch)
    }

    /// Blocks.
    pub(crate) fn batch(&self, project: &str, id: &str) -> Result<BatchRecord, StorageError> {
        record(find(&self.index(), project, id)?)
    }

    /// A page of a project's batches, newest first, and whether more follow. Blocks.
    pub(crate) fn batches(
        &self,
        project: &str,
        page: &BatchPage,
    ) -> Result<(Vec<BatchRecord>, bool), StorageError> {
        let index = self.index();
        let before = match &page.after {
            None => i64::MAX,
            Some(id) => find(&index, project, id)?.0,
        };
        let mut statement = index.prepare_cached(
            "SELECT * FROM batches WHERE project = ?1 AND number < ?2 ORDER BY number DESC LIMIT ?3",
        )?;
        let rows =
            statement.query_map(params![project, before, u64::from(page.limit) + 1], read)?;
        let mut batches = rows.map(|row| record(row?)).collect::<Result<Vec<_>, StorageError>>()?;
        let has_more = batches.len() > page.limit as usize;
        batches.truncate(page.limit as usize);
        Ok((batches, has_more))
    }

    /// All batches that are not over, oldest first. Blocks.
    pub(crate) fn batches_to_do(&self) -> Result<Vec<BatchRecord>, StorageError> {
        let index = self.index();
        let mut statement =
            index.prepare_cached("SELECT * FROM batches WHERE is_over = 0 ORDER BY number")?;
        let rows = statement.query_map([], read)?;
        rows.map(|row| record(row?)).collect()
    }

    /// Changes a batch as it stands. Blocks.
    ///
    /// # Errors
    /// [`StorageError::NotFound`].
    pub(crate) fn change_batch(
        &self,
        project: &str,
        id: &str,
        change: impl FnOnce(&mut BatchDocument),
    ) -> Result<BatchRecord, StorageError> {
        let index = self.index();
        let mut batch = record(find(&index, project, id)?)?;
        change(&mut batch.document);
        update(&index, &batch)?;
        Ok(batch)
    }

    /// Keeps results, all or none, and how many there are by then. Blocks.
    pub(crate) fn add_results(
        &self,
        batch: &BatchRecord,
        results: &[LineResult],
    ) -> Result<BatchRecord, StorageError> {
        let mut index = self.index();
        let write = index.transaction()?;
        let mut batch = record(find(&write, &batch.project, &batch.id)?)?;
        {
            let mut insert = write.prepare_cached(
                "INSERT OR IGNORE INTO batch_lines (batch, line, is_error, result) VALUES (?1, ?2, ?3, ?4)",
            )?;
            let counts = &mut batch.document.request_counts;
            for result in results {
                let new =
                    insert.execute(params![batch.id, result.line, result.is_error, result.text])?;
                let new = u32::try_from(new).unwrap_or(0);
                if result.is_error {
                    counts.failed += new;
                } else {
                    counts.completed += new;
                }
            }
        }
        update(&write, &batch)?;
        write.commit()?;
        Ok(batch)
    }

    /// The lines of a batch that have a result. Blocks.
    pub(crate) fn finished_lines(&self, id: &str) -> Result<Vec<u32>, StorageError> {
        let index = self.index();
        let mut statement =
            index.prepare_cached("SELECT line FROM batch_lines WHERE batch = ?1")?;
        let lines = statement.query_map([id], |row| row.get(0))?;
        Ok(lines.collect::<Result<_, _>>()?)
    }

    /// Writes the results of a batch as files, in the order of its lines; `each` sees every one. Blocks.
    pub(crate) fn write_results(
        &self,
        id: &str,
        mut each: impl FnMut(&LineResult),
    ) -> Result<Results, StorageError> {
        let mut results = Results::default();
        let mut next = 0_u32;
        loop {
            let page = self.results(id, next)?;
            let Some(last) = page.last() else { return Ok(results) };
            next = last.line.saturating_add(1);
            for result in page {
                each(&result);
                let place = if result.is_error { &mut results.errors } else { &mut results.output };
                let upload = match place {
                    Some(upload) => upload,
                    None => place.insert(self.begin_own()?),
                };
                let mut text = result.text;
                text.push(b'\n');
                upload.write(&text)?;
            }
        }
    }

    fn results(&self, id: &str, from: u32) -> Result<Vec<LineResult>, StorageError> {
        let index = self.index();
        let mut statement = index.prepare_cached(
            "SELECT line, is_error, result FROM batch_lines WHERE batch = ?1 AND line >= ?2 ORDER BY line LIMIT ?3",
        )?;
        let rows = statement.query_map(params![id, from, RESULTS_PER_READ], |row| {
            Ok(LineResult { line: row.get(0)?, is_error: row.get(1)?, text: row.get(2)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Ends a batch: its results become files, and it is over. Blocks.
    pub(crate) fn end_batch(
        &self,
        batch: &BatchRecord,
        results: Results,
        change: impl FnOnce(&mut BatchDocument),
    ) -> Result<BatchRecord, StorageError> {
        let Results { output, errors } = results;
        let output = output.map(|upload| self.result_file(batch, upload, "output")).transpose()?;
        let errors = errors.map(|upload| self.result_file(batch, upload, "errors")).transpose()?;
        let mut index = self.index();
        let write = index.transaction()?;
        let mut batch = record(find(&write, &batch.project, &batch.id)?)?;
        for file in [&output, &errors].into_iter().flatten() {
            files::insert(&write, &batch.project, file)?;
        }
        batch.document.output_file_id = output.map(|file| file.id);
        batch.document.error_file_id = errors.map(|file| file.id);
        change(&mut batch.document);
        write.execute("DELETE FROM batch_lines WHERE batch = ?1", [&batch.id])?;
        update(&write, &batch)?;
        write.commit()?;
        Ok(batch)
    }

    fn result_file(
        &self,
        batch: &BatchRecord,
        mut upload: Upload,
        kind: &str,
    ) -> Result<FileRecord, StorageError> {
        let created = now_unix();
        Ok(FileRecord {
            id: self.settle_content(&mut upload)?,
            purpose: OUTPUT_PURPOSE.to_owned(),
            filename: format!("{}_{kind}.jsonl", batch.id),
            description: None,
            bytes: upload.bytes(),
            created,
            expires: batch.document.output_lifetime_s.map(|s| created.saturating_add(s)),
        })
    }
}
