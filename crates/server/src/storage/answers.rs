//! Answers that projects have the server keep: responses, chats, tasks.
//!
//! Not here: what their documents say. Invariants: of a project only so many, and so many bytes, are kept: the oldest
//! make room, and those that still run stay; what has expired is found no more.

use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter, types::Value as Sql};

use super::{Storage, StorageError};
use crate::auth::now_unix;

const SECONDS_A_DAY: u64 = 86_400;
/// A task that is over is kept for so long, as DashScope has it.
const TASK_KEPT_S: u64 = SECONDS_A_DAY;
/// One that is not over: it waits for a day at most, and runs within a request's time.
const TASK_OPEN_S: u64 = 2 * SECONDS_A_DAY;

/// How many answers are kept, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerLimits {
    /// Answers go away after so many days; 0: none are kept.
    pub keep_days: u64,
    /// Answers of a project.
    pub max_project: u64,
    /// Bytes of a project's answers.
    pub max_project_bytes: u64,
    /// Tasks of a project that are not over.
    pub max_project_tasks: u64,
    /// Tasks that run at once, of all projects together.
    pub max_running_tasks: usize,
}

impl Default for AnswerLimits {
    fn default() -> Self {
        Self {
            keep_days: 30,
            max_project: 10_000,
            max_project_bytes: 1 << 30,
            max_project_tasks: 100,
            max_running_tasks: 16,
        }
    }
}

/// What an answer was made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerKind {
    Response,
    Chat,
    Task,
}

impl AnswerKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Response => "response",
            Self::Chat => "chat",
            Self::Task => "task",
        }
    }
}

/// An answer that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AnswerRecord {
    pub(crate) id: String,
    pub(crate) project: String,
    pub(crate) model: String,
    /// JSON, as it is shown.
    pub(crate) document: String,
    /// JSON: what was given.
    pub(crate) input: String,
    /// JSON: how it came, where it can be streamed again; of a task, its answer.
    pub(crate) steps: Option<String>,
    /// JSON: where else it may be found after a crash.
    pub(crate) kept_at: Option<String>,
    /// Nothing more will come.
    pub(crate) is_over: bool,
}

/// Which answers are listed.
#[derive(Clone, Debug, Default)]
pub(crate) struct AnswerPage {
    pub(crate) model: Option<String>,
    /// Pairs that its metadata must hold.
    pub(crate) metadata: Vec<(String, String)>,
    /// The id after which the page begins.
    pub(crate) after: Option<String>,
    pub(crate) limit: u32,
    /// Oldest first.
    pub(crate) ascending: bool,
}

pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<AnswerRecord> {
    Ok(AnswerRecord {
        id: row.get("id")?,
        project: row.get("project")?,
        model: row.get("model")?,
        document: row.get("document")?,
        input: row.get("input")?,
        steps: row.get("steps")?,
        kept_at: row.get("kept_at")?,
        is_over: row.get("is_over")?,
    })
}

fn bytes(answer: &AnswerRecord) -> u64 {
    let steps = answer.steps.as_ref().map_or(0, String::len);
    (answer.document.len() + answer.input.len() + steps) as u64
}

fn number(
    index: &Connection,
    project: &str,
    kind: AnswerKind,
    id: &str,
) -> Result<i64, StorageError> {
    let mut statement = index.prepare_cached(
        "SELECT number FROM answers WHERE project = ?1 AND kind = ?2 AND id = ?3 AND expires > ?4",
    )?;
    let found =
        statement.query_row(params![project, kind.as_str(), id, now_unix()], |row| row.get(0));
    found.optional()?.ok_or(StorageError::NotFound)
}

impl Storage {
    /// Keeps an answer; older ones may make room. Blocks.
    pub(crate) fn add_answer(
        &self,
        kind: AnswerKind,
        answer: &AnswerRecord,
    ) -> Result<(), StorageError> {
        let mut index = self.index();
        let write = index.transaction()?;
        self.insert_answer(&write, kind, answer)?;
        write.commit()?;
        Ok(())
    }

    pub(super) fn insert_answer(
        &self,
        write: &Connection,
        kind: AnswerKind,
        answer: &AnswerRecord,
    ) -> Result<(), StorageError> {
        let lifetime_s = match kind {
            AnswerKind::Task => TASK_OPEN_S,
            _ => self.config.answers.keep_days.saturating_mul(SECONDS_A_DAY),
        };
        // A year is given in four digits, so this is far from the end of what SQLite counts.
        let expires = now_unix().saturating_add(lifetime_s).min(i64::MAX.cast_unsigned());
        write.execute(
            "INSERT INTO answers
             (id, project, kind, model, bytes, expires, is_over, document, input, steps, kept_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                answer.id,
                answer.project,
                kind.as_str(),
                answer.model,
                bytes(answer),
                expires,
                answer.is_over,
                answer.document,
                answer.input,
                answer.steps,
                answer.kept_at
            ],
        )?;
        self.make_room(write, &answer.project, write.last_insert_rowid())
    }

    /// Removes a project's oldest answers that are too many, and not the one that was just written, whatever its size.
    fn make_room(
        &self,
        index: &Connection,
        project: &str,
        written: i64,
    ) -> Result<(), StorageError> {
        let limits = &self.config.answers;
        let (mut count, mut stored): (u64, u64) = index
            .prepare_cached(
                "SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM answers WHERE project = ?1",
            )?
            .query_row([project], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let mut gone: Vec<i64> = Vec::new();
        if count > limits.max_project || stored > limits.max_project_bytes {
            let mut oldest = index.prepare_cached(
                "SELECT number, bytes FROM answers WHERE project = ?1 AND is_over = 1 AND number <> ?2 ORDER BY number",
            )?;
            let mut rows = oldest.query(params![project, written])?;
            while let Some(row) = rows.next()? {
                if count <= limits.max_project && stored <= limits.max_project_bytes {
                    break;
                }
                gone.push(row.get(0)?);
                count -= 1;
                stored = stored.saturating_sub(row.get::<_, u64>(1)?);
            }
        }
        for number in gone {
            index.execute("DELETE FROM answers WHERE number = ?1", [number])?;
        }
        Ok(())
    }

    /// Blocks.
    pub(crate) fn answer(
        &self,
        project: &str,
        kind: AnswerKind,
        id: &str,
    ) -> Result<AnswerRecord, StorageError> {
        let index = self.index();
        let number = number(&index, project, kind, id)?;
        let mut statement = index.prepare_cached("SELECT * FROM answers WHERE number = ?1")?;
        Ok(statement.query_row([number], record)?)
    }

    /// Changes what is kept of an answer: its document, its input, its steps, whether it is over. A task is kept from its
    /// end on. Blocks.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] where it was removed meanwhile.
    pub(crate) fn change_answer(
        &self,
        kind: AnswerKind,
        answer: &AnswerRecord,
    ) -> Result<(), StorageError> {
        let index = self.index();
        let number = number(&index, &answer.project, kind, &answer.id)?;
        index.execute(
            "UPDATE answers SET document = ?2, input = ?3, steps = ?4, is_over = ?5, bytes = ?6,
             expires = COALESCE(?7, expires) WHERE number = ?1",
            params![
                number,
                answer.document,
                answer.input,
                answer.steps,
                answer.is_over,
                bytes(answer),
                (kind == AnswerKind::Task && answer.is_over).then(|| now_unix() + TASK_KEPT_S)
            ],
        )?;
        self.make_room(&index, &answer.project, number)
    }

    /// Blocks.
    pub(crate) fn remove_answer(
        &self,
        project: &str,
        kind: AnswerKind,
        id: &str,
    ) -> Result<(), StorageError> {
        let index = self.index();
        let number = number(&index, project, kind, id)?;
        index.execute("DELETE FROM answers WHERE number = ?1", [number])?;
        Ok(())
    }

    /// A page of a project's answers, and whether more follow. Blocks.
    pub(crate) fn answers(
        &self,
        project: &str,
        kind: AnswerKind,
        page: &AnswerPage,
    ) -> Result<(Vec<AnswerRecord>, bool), StorageError> {
        let index = self.index();
        let after = match &page.after {
            None => None,
            Some(id) => Some(number(&index, project, kind, id)?),
        };
        let (compare, order) = if page.ascending { (">", "ASC") } else { ("<", "DESC") };
        let mut sql =
            "SELECT * FROM answers WHERE project = ? AND kind = ? AND expires > ?".to_owned();
        let text = |text: &str| Sql::Text(text.to_owned());
        let now = i64::try_from(now_unix()).unwrap_or(i64::MAX);
        let mut values = vec![text(project), text(kind.as_str()), Sql::Integer(now)];
        if let Some(after) = after {
            sql += &format!(" AND number {compare} ?");
            values.push(Sql::Integer(after));
        }
        if let Some(model) = &page.model {
            sql += " AND model = ?";
            values.push(text(model));
        }
        for (key, value) in &page.metadata {
            sql += " AND EXISTS (SELECT 1 FROM json_each(document, '$.metadata') AS pair
                     WHERE pair.key = ? AND pair.value = ?)";
            values.extend([text(key), text(value)]);
        }
        sql += &format!(" ORDER BY number {order} LIMIT ?");
        values.push(Sql::Integer(i64::from(page.limit) + 1));
        let mut statement = index.prepare(&sql)?;
        let rows = statement.query_map(params_from_iter(values), record)?;
        let mut answers = rows.collect::<Result<Vec<_>, _>>()?;
        let has_more = answers.len() > page.limit as usize;
        answers.truncate(page.limit as usize);
        Ok((answers, has_more))
    }

    /// What was not over when the last server ended, oldest first. Blocks.
    pub(crate) fn answers_to_end(
        &self,
        kind: AnswerKind,
    ) -> Result<Vec<AnswerRecord>, StorageError> {
        let index = self.index();
        let mut statement = index.prepare_cached(
            "SELECT * FROM answers WHERE is_over = 0 AND kind = ?1 ORDER BY number",
        )?;
        let rows = statement.query_map([kind.as_str()], record)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Removes what has expired; what still runs is ended by who runs it, but for tasks, which wait only as long as they can
    /// be asked for. Blocks.
    pub(super) fn sweep_answers(&self) -> Result<(), StorageError> {
        self.index().execute(
            "DELETE FROM answers WHERE number IN
             (SELECT number FROM answers WHERE expires <= ?1 AND (is_over = 1 OR kind = 'task') LIMIT 1000)",
            [now_unix()],
        )?;
        Ok(())
    }
}
