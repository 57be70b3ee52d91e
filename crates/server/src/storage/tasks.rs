//! Tasks of projects: answers (`answers`) that are asked for now and computed later.
//!
//! Not here: what runs them. Invariants: of a project only so many are open; what was asked goes when a task is over.

use rusqlite::{OptionalExtension, named_params, params};
use serde::{Deserialize, Serialize};

use super::answers::{AnswerKind, AnswerRecord, record};
use super::{NumberedPage, Storage, StorageError};
use crate::auth::now_unix;

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum TaskStatus {
    Pending,
    Running,
    Succeeded,
    Failed,
    Canceled,
}

impl TaskStatus {
    /// As DashScope writes it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Canceled => "CANCELED",
        }
    }

    fn is_over(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

/// What is kept of a task beside what was asked and answered. Times are ms since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskDocument {
    pub(crate) status: TaskStatus,
    /// Of the service that was asked.
    pub(crate) path: String,
    /// The id of the key that sent it: it runs as that key's request.
    pub(crate) key: String,
    /// The client program as it named itself.
    pub(crate) client: String,
    /// Of the request that sent it.
    pub(crate) request_id: String,
    pub(crate) submitted_ms: u64,
    pub(crate) scheduled_ms: Option<u64>,
    pub(crate) ended_ms: Option<u64>,
    /// Why it failed.
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
}

/// A task and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TaskRecord {
    pub(crate) id: String,
    pub(crate) project: String,
    /// As it was asked for.
    pub(crate) model: String,
    pub(crate) document: TaskDocument,
    /// The request's body, until it is over.
    pub(crate) input: String,
    /// JSON, once it succeeded.
    pub(crate) answer: Option<String>,
    /// JSON: where its answer may be found after a crash. Tells one request from another.
    pub(crate) kept_at: String,
}

/// Which tasks are listed, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TaskFilter {
    pub(crate) id: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) status: Option<String>,
    pub(crate) key: Option<String>,
    /// When they were submitted, ms since 1970.
    pub(crate) from_ms: Option<u64>,
    pub(crate) to_ms: Option<u64>,
}

/// A task in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedTask {
    pub(crate) id: String,
    pub(crate) model: String,
    pub(crate) document: TaskDocument,
}

fn damaged(error: &serde_json::Error) -> StorageError {
    StorageError::Damaged(format!("a task: {error}"))
}

impl TaskRecord {
    fn read(answer: AnswerRecord) -> Result<Self, StorageError> {
        Ok(Self {
            document: serde_json::from_str(&answer.document).map_err(|error| damaged(&error))?,
            id: answer.id,
            project: answer.project,
            model: answer.model,
            input: answer.input,
            answer: answer.steps,
            kept_at: answer.kept_at.unwrap_or_default(),
        })
    }

    fn written(&self) -> Result<AnswerRecord, StorageError> {
        let is_over = self.document.status.is_over();
        Ok(AnswerRecord {
            id: self.id.clone(),
            project: self.project.clone(),
            model: self.model.clone(),
            document: serde_json::to_string(&self.document).map_err(|error| damaged(&error))?,
            input: if is_over { String::new() } else { self.input.clone() },
            steps: self.answer.clone(),
            kept_at: Some(self.kept_at.clone()),
            is_over,
        })
    }
}

impl Storage {
    /// Takes in a task, or finds the one that has its id already, which is told. One that failed makes way for it: errors
    /// are not kept. Blocks.
    ///
    /// # Errors
    /// [`StorageError::Full`] where the project has too many that are not over.
    pub(crate) fn add_task(&self, task: &TaskRecord) -> Result<Option<TaskRecord>, StorageError> {
        let written = task.written()?;
        let mut index = self.index();
        let write = index.transaction()?;
        let kind = AnswerKind::Task;
        write.execute(
            "DELETE FROM answers WHERE id = ?1 AND kind = 'task' AND expires <= ?2",
            params![task.id, now_unix()],
        )?;
        let known = "SELECT * FROM answers WHERE id = ?1 AND project = ?2 AND kind = 'task'";
        let known = write.query_row(known, [&task.id, &task.project], record).optional()?;
        if let Some(known) = known.map(TaskRecord::read).transpose()? {
            if known.document.status != TaskStatus::Failed {
                return Ok(Some(known));
            }
            write.execute("DELETE FROM answers WHERE id = ?1 AND kind = 'task'", [&task.id])?;
        }
        let open = "SELECT COUNT(*) FROM answers
             WHERE project = ?1 AND kind = 'task' AND is_over = 0 AND expires > ?2";
        let open: u64 =
            write.query_row(open, params![task.project, now_unix()], |row| row.get(0))?;
        let most = self.config.answers.max_project_tasks;
        if open >= most {
            let text =
                format!("the project has {open} tasks that are not over; the limit is {most}");
            return Err(StorageError::Full(text));
        }
        self.insert_answer(&write, kind, &written)?;
        write.commit()?;
        Ok(None)
    }

    /// Blocks.
    pub(crate) fn task(&self, project: &str, id: &str) -> Result<TaskRecord, StorageError> {
        TaskRecord::read(self.answer(project, AnswerKind::Task, id)?)
    }

    /// Writes down where a task stands. Blocks.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] where it was removed meanwhile.
    pub(crate) fn change_task(&self, task: &TaskRecord) -> Result<(), StorageError> {
        self.change_answer(AnswerKind::Task, &task.written()?)
    }

    /// Projects and ids of all tasks that are not over, oldest first. Those that nobody can ask for any more go. Blocks.
    pub(crate) fn open_tasks(&self) -> Result<Vec<(String, String)>, StorageError> {
        let index = self.index();
        index.execute(
            "DELETE FROM answers WHERE is_over = 0 AND kind = 'task' AND expires <= ?1",
            [now_unix()],
        )?;
        let mut statement = index.prepare_cached(
            "SELECT project, id FROM answers WHERE is_over = 0 AND kind = 'task' ORDER BY number",
        )?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Some of a project's tasks, newest first, and how many it has of them. Blocks.
    pub(crate) fn tasks(
        &self,
        project: &str,
        filter: &TaskFilter,
        page: NumberedPage,
    ) -> Result<(Vec<ListedTask>, u64), StorageError> {
        const THOSE: &str =
            "FROM answers WHERE project = :project AND kind = 'task' AND expires > :now
             AND (:id IS NULL OR id = :id) AND (:model IS NULL OR model = :model)
             AND (:status IS NULL OR json_extract(document, '$.status') = :status)
             AND (:key IS NULL OR json_extract(document, '$.key') = :key)
             AND (:from IS NULL OR json_extract(document, '$.submitted_ms') >= :from)
             AND (:to IS NULL OR json_extract(document, '$.submitted_ms') <= :to)";
        let index = self.index();
        let mut count = index.prepare_cached(&format!("SELECT COUNT(*) {THOSE}"))?;
        let now = now_unix();
        let total = count.query_row(
            named_params! {
                ":project": project, ":now": now, ":id": filter.id, ":model": filter.model,
                ":status": filter.status, ":key": filter.key, ":from": filter.from_ms, ":to": filter.to_ms,
            },
            |row| row.get(0),
        )?;
        let sql = format!(
            "SELECT id, model, document {THOSE} ORDER BY number DESC LIMIT :limit OFFSET :offset"
        );
        let mut statement = index.prepare_cached(&sql)?;
        let rows = statement.query_map(
            named_params! {
                ":project": project, ":now": now, ":id": filter.id, ":model": filter.model,
                ":status": filter.status, ":key": filter.key, ":from": filter.from_ms, ":to": filter.to_ms,
                ":limit": page.limit, ":offset": page.offset,
            },
            |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?)),
        )?;
        let listed = rows.map(|row| {
            let (id, model, document) = row?;
            let document = serde_json::from_str(&document).map_err(|error| damaged(&error))?;
            Ok(ListedTask { id, model, document })
        });
        Ok((listed.collect::<Result<_, StorageError>>()?, total))
    }
}
