//! Reading what is durable: all streams together, in the order of their numbers.
//!
//! Invariant: nothing is written here. The connection lives on a thread of its own, so that a reader may be called from
//! anywhere, asynchronous code included.

use std::sync::Arc;
use std::sync::mpsc;

use postgres::types::ToSql;
use postgres::{Client, GenericClient, Row};
use sha2::{Digest, Sha256};

use super::connect::Session;
use super::rows::{
    LOG_COLUMNS, column, damaged, digest, get, line, number, place, sums, text, unsigned, usage,
    usage_columns,
};
use super::{PostgresError, PostgresUrl, verify};
use crate::book::Operation;
use crate::store::{
    Document, KeptAnswer, LogLine, MAX_RECORDS_PER_READ, Mark, Message, Outgoing, Reader,
    StoreError, SumsFilter, UsageFilter, UsageSums, Verified, answer_sum, chain,
};

/// A message is sent by one gateway for so long, unless that says so again; far longer than an attempt takes.
const MESSAGE_CLAIM_S: f64 = 60.0;
/// Messages that one gateway takes on at once.
const MESSAGES_PER_CLAIM: u64 = 256;

type Job = Box<dyn FnOnce(&mut Option<Session>) + Send>;

/// A connection on a thread of its own. The thread ends when this is dropped.
pub(super) struct Remote {
    url: PostgresUrl,
    purpose: &'static str,
    jobs: mpsc::Sender<Job>,
}

impl Remote {
    /// Connects.
    pub(super) fn open(url: &PostgresUrl, purpose: &'static str) -> Result<Self, PostgresError> {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name(format!("ledger-{purpose}"))
            .spawn(move || {
                let mut session = None;
                for job in queue {
                    job(&mut session);
                }
            })
            .map_err(|e| PostgresError::Unfit(format!("no thread: {e}")))?;
        let remote = Self { url: url.clone(), purpose, jobs };
        remote.run(|_| Ok(()))?;
        Ok(remote)
    }

    /// Runs `work` there and waits for it. A connection that was lost is opened anew, once.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Session) -> Result<T, PostgresError> + Send + 'static,
    ) -> Result<T, PostgresError> {
        let (done, answer) = mpsc::sync_channel(1);
        let (url, purpose) = (self.url.clone(), self.purpose);
        let job: Job = Box::new(move |slot| {
            let _ = done.send(attempt(slot, &url, purpose, &work));
        });
        let gone = |_| PostgresError::Unreachable("its thread has ended".to_owned());
        self.jobs.send(job).map_err(|_| gone(mpsc::RecvError))?;
        answer.recv().map_err(gone)?
    }
}

fn attempt<T>(
    slot: &mut Option<Session>,
    url: &PostgresUrl,
    purpose: &str,
    work: &impl Fn(&mut Session) -> Result<T, PostgresError>,
) -> Result<T, PostgresError> {
    for fresh in [false, true] {
        let was_open = slot.is_some();
        let mut session = match slot.take() {
            Some(session) => session,
            None => Session::open(url, purpose)?,
        };
        match work(&mut session) {
            Err(error) if error.is_transient() => {
                if fresh || !was_open {
                    return Err(error);
                }
            }
            outcome => {
                *slot = Some(session);
                return outcome;
            }
        }
    }
    Err(PostgresError::Unreachable("the connection was lost twice".to_owned()))
}

/// Reads through a connection of its own.
pub struct PostgresReader {
    remote: Remote,
    /// The gateway whose messages are to be sent; without one, messages are only shown.
    stream: Option<i64>,
}

impl PostgresReader {
    /// Connects.
    ///
    /// # Errors
    /// The database cannot be reached or is not fit.
    pub fn open(url: &PostgresUrl) -> Result<Self, PostgresError> {
        Ok(Self { remote: Remote::open(url, "reader")?, stream: None })
    }

    /// The same for the gateway of a stream: messages that it reads, no other gateway reads meanwhile.
    #[must_use]
    pub fn for_gateway(self, stream: i64) -> Self {
        Self { stream: Some(stream), ..self }
    }
}

impl Reader for PostgresReader {
    fn usage(
        &mut self,
        filter: &UsageFilter,
    ) -> Result<Vec<(u64, crate::UsageRecord)>, StoreError> {
        let filter = filter.clone();
        Ok(self.remote.run(move |session| usage_records(session.client(), &filter))?)
    }

    fn sums(&mut self, filter: &SumsFilter) -> Result<Vec<UsageSums>, StoreError> {
        let filter = filter.clone();
        Ok(self.remote.run(move |session| usage_sums(session.client(), &filter))?)
    }

    fn records_before(
        &mut self,
        before_ms: u64,
        limit: usize,
    ) -> Result<(Vec<u64>, u64), StoreError> {
        Ok(self.remote.run(move |session| records_before(session.client(), before_ms, limit))?)
    }

    fn log(&mut self, after: u64, limit: usize) -> Result<Vec<LogLine>, StoreError> {
        let limit = limit.min(MAX_RECORDS_PER_READ) as u64;
        Ok(self.remote.run(move |session| log(session.client(), after, limit))?)
    }

    fn documents(&mut self, kind: &str) -> Result<Vec<Document>, StoreError> {
        let kind = kind.to_owned();
        let sql = "SELECT * FROM (SELECT DISTINCT ON (id) kind, id, version, body
                   FROM mintage.document WHERE kind = $1 ORDER BY id, version DESC) newest
                   WHERE length(body) > 0 ORDER BY id";
        Ok(self.remote.run(move |session| {
            let rows = session.client().query(sql, &[&kind])?;
            rows.iter().map(document).collect()
        })?)
    }

    fn history(&mut self, kind: &str, id: &str) -> Result<Vec<Document>, StoreError> {
        let (kind, id) = (kind.to_owned(), id.to_owned());
        let sql = "SELECT kind, id, version, body FROM mintage.document
                   WHERE kind = $1 AND id = $2 ORDER BY version";
        Ok(self.remote.run(move |session| {
            let rows = session.client().query(sql, &[&kind, &id])?;
            rows.iter().map(document).collect()
        })?)
    }

    fn due_messages(&mut self, now_ms: u64, limit: usize) -> Result<Vec<Outgoing>, StoreError> {
        let limit = limit.min(MAX_RECORDS_PER_READ) as u64;
        let stream = self.stream;
        Ok(self.remote.run(move |session| match stream {
            Some(stream) => claimed_messages(session.client(), stream, now_ms, limit),
            None => messages(session.client(), now_ms, limit),
        })?)
    }

    fn answer(
        &mut self,
        scope: &str,
        key: &str,
        now_ms: u64,
    ) -> Result<Option<KeptAnswer>, StoreError> {
        let (scope, key) = (scope.to_owned(), key.to_owned());
        let sql = "SELECT scope, key, body_digest, answer, expires_ms, sum FROM mintage.answer
                   WHERE scope = $1 AND key = $2 AND expires_ms > $3";
        Ok(self.remote.run(move |session| {
            let row = session.client().query_opt(sql, &[&scope, &key, &column(now_ms)])?;
            row.as_ref().map(answer).transpose()
        })?)
    }

    fn verify(&mut self) -> Result<Verified, StoreError> {
        Ok(self.remote.run(verify::verify)?)
    }
}

fn usage_records(
    client: &mut Client,
    filter: &UsageFilter,
) -> Result<Vec<(u64, crate::UsageRecord)>, PostgresError> {
    let (stream, seq) = place(filter.after);
    let columns = usage_columns(client)?;
    let mut sql = format!("SELECT {columns} FROM mintage.usage WHERE (stream, seq) > ($1, $2)");
    let from_ms = column(filter.from_ms);
    let until_ms = column(if filter.until_ms > 0 { filter.until_ms } else { u64::MAX });
    sql.push_str(" AND end_ms >= $3 AND end_ms < $4");
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&stream, &seq, &from_ms, &until_ms];
    let wanted = [
        ("id", &filter.id),
        ("org", &filter.org),
        ("project", &filter.project),
        ("key", &filter.key),
        ("model", &filter.model),
    ];
    let wanted: Vec<(&str, &str)> =
        wanted.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
    for (name, value) in &wanted {
        values.push(value);
        sql.push_str(&format!(" AND {name} = ${}", values.len()));
    }
    let most = MAX_RECORDS_PER_READ;
    let limit = if filter.limit == 0 { most } else { filter.limit.min(most) };
    sql.push_str(&format!(" ORDER BY stream, seq LIMIT {limit}"));
    client.query(&sql, &values)?.iter().map(usage).collect()
}

fn usage_sums(client: &mut Client, filter: &SumsFilter) -> Result<Vec<UsageSums>, PostgresError> {
    let sql = filter.statement("mintage.usage", ["$1", "$2", "$3"], "::bigint");
    let until_ms = if filter.until_ms > 0 { filter.until_ms } else { u64::MAX };
    let values: [&(dyn ToSql + Sync); 3] =
        [&&*filter.org, &column(filter.from_ms), &column(until_ms)];
    let rows = client.query(&sql, &values)?;
    rows.iter().map(|row| sums(row, filter.span_ms())).collect()
}

fn records_before(
    client: &mut Client,
    before_ms: u64,
    limit: usize,
) -> Result<(Vec<u64>, u64), PostgresError> {
    let streams = client.query("SELECT DISTINCT stream FROM mintage.usage", &[])?;
    let (mut all, mut count) = (Vec::new(), 0);
    for stream in &streams {
        let stream: i64 = get(stream, 0)?;
        let rows = client.query(
            "SELECT u.seq, l.at_ms FROM mintage.usage u JOIN mintage.log l USING (stream, seq)
             WHERE u.stream = $1 ORDER BY u.seq LIMIT $2",
            &[&stream, &column(limit as u64)],
        )?;
        let mut upto = None;
        for row in &rows {
            if unsigned(row, 1)? >= before_ms {
                break;
            }
            upto = Some(number(stream, get(row, 0)?));
            count += 1;
        }
        all.extend(upto);
    }
    Ok((all, count))
}

fn log(client: &mut Client, after: u64, limit: u64) -> Result<Vec<LogLine>, PostgresError> {
    let (stream, seq) = place(after);
    let sql = format!(
        "SELECT {LOG_COLUMNS} FROM mintage.log WHERE (stream, seq) > ($1, $2)
         ORDER BY stream, seq LIMIT $3"
    );
    let rows = client.query(&sql, &[&stream, &seq, &column(limit)])?;
    let numbered = |row| {
        let (stream, line) = line(row)?;
        Ok(LogLine { seq: number(stream, column(line.seq)), ..line })
    };
    rows.iter().map(numbered).collect()
}

pub(super) fn document(row: &Row) -> Result<Document, PostgresError> {
    Ok(Document {
        kind: text(row, 0)?,
        id: text(row, 1)?,
        version: unsigned(row, 2)?,
        body: get(row, 3)?,
    })
}

pub(super) fn messages(
    client: &mut impl GenericClient,
    now_ms: u64,
    limit: u64,
) -> Result<Vec<Outgoing>, PostgresError> {
    let rows = client.query(
        "SELECT number, topic, body, due_ms, attempts, sum FROM mintage.outbox WHERE due_ms <= $1
         ORDER BY due_ms, number LIMIT $2",
        &[&column(now_ms), &column(limit)],
    )?;
    rows.iter().map(outgoing).collect()
}

/// Those that this gateway is to send: nobody else reads them until its claim ends, which reading them again prolongs.
fn claimed_messages(
    client: &mut impl GenericClient,
    stream: i64,
    now_ms: u64,
    limit: u64,
) -> Result<Vec<Outgoing>, PostgresError> {
    let limit = limit.min(MESSAGES_PER_CLAIM);
    let rows = client.query(
        "WITH due AS (
             SELECT number FROM mintage.outbox
             WHERE due_ms <= $1
               AND (claimed_by = $3 OR claimed_until IS NULL OR claimed_until < now())
             ORDER BY due_ms, number LIMIT $2 FOR UPDATE SKIP LOCKED)
         UPDATE mintage.outbox o
         SET claimed_by = $3, claimed_until = now() + $4 * interval '1 second'
         FROM due WHERE o.number = due.number
         RETURNING o.number, o.topic, o.body, o.due_ms, o.attempts, o.sum",
        &[&column(now_ms), &column(limit), &stream, &MESSAGE_CLAIM_S],
    )?;
    let mut all = rows.iter().map(outgoing).collect::<Result<Vec<_>, _>>()?;
    all.sort_by_key(|outgoing| (outgoing.message.due_ms, outgoing.number));
    Ok(all)
}

fn outgoing(row: &Row) -> Result<Outgoing, PostgresError> {
    {
        let message =
            Message { topic: text(row, 1)?, body: get(row, 2)?, due_ms: unsigned(row, 3)? };
        let attempts: i32 = get(row, 4)?;
        let outgoing = Outgoing {
            number: unsigned(row, 0)?,
            message,
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        };
        let message = &outgoing.message;
        if chain::row("outbox", &[message.topic.as_bytes(), &message.body], &[]) != digest(row, 5)?
        {
            let number = outgoing.number;
            return Err(damaged(format!("message {number} of the outbox is not what was written")));
        }
        Ok(outgoing)
    }
}

pub(super) fn answer(row: &Row) -> Result<KeptAnswer, PostgresError> {
    let kept = KeptAnswer {
        scope: text(row, 0)?,
        key: text(row, 1)?,
        body_digest: digest(row, 2)?,
        answer: get(row, 3)?,
        expires_ms: unsigned(row, 4)?,
    };
    if answer_sum(&kept) == digest(row, 5)? {
        return Ok(kept);
    }
    Err(damaged(format!("the answer kept for `{}` is not what was written", kept.key)))
}

/// Operations that were not requests, each held to its line's digest: those of one stream with all grants, or all.
pub(super) fn operations(
    client: &mut impl GenericClient,
    stream: Option<i64>,
) -> Result<Vec<(Arc<str>, Operation)>, PostgresError> {
    let rows = client.query(
        "SELECT o.id, l.id, o.body, l.detail FROM mintage.operation o
         JOIN mintage.log l USING (stream, seq)
         WHERE $1::int8 IS NULL OR o.stream = $1 OR l.kind = 'grant' ORDER BY o.stream, o.seq",
        &[&stream],
    )?;
    let operation = |row| {
        let (id, body): (Arc<str>, &str) = (text(row, 0)?, get(row, 2)?);
        let written: [u8; 32] = Sha256::digest(body.as_bytes()).into();
        let whole = get::<&str>(row, 1)? == &*id && digest(row, 3)? == written;
        let parsed = serde_json::from_str(body).ok().filter(|_| whole);
        let operation =
            parsed.ok_or_else(|| damaged(format!("the operation `{id}` is not what was written")));
        Ok((id, operation?))
    };
    rows.iter().map(operation).collect()
}

/// Marks of open holds of a stream.
pub(super) fn marks(
    client: &mut impl GenericClient,
    stream: i64,
) -> Result<Vec<Mark>, PostgresError> {
    let rows = client.query(
        "SELECT id, body, sum FROM mintage.mark WHERE stream = $1 ORDER BY id",
        &[&stream],
    )?;
    let mark = |row| {
        let (id, body): (&str, &str) = (get(row, 0)?, get(row, 1)?);
        let expected = chain::row("mark", &[id.as_bytes(), body.as_bytes()], &[]);
        let found = digest(row, 2)? == expected;
        let mark = serde_json::from_str(body).ok().filter(|_| found);
        mark.ok_or_else(|| damaged(format!("the mark of {id} is not what was written")))
    };
    rows.iter().map(mark).collect()
}
