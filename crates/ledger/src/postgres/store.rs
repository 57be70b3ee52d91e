//! A gateway's stream as a [`Store`]: what the writer commits goes into its own log and chain.
//!
//! Not here: slices (the pool hands them out) and reading (any stream's lines, for anybody). Invariants: the stream is
//! written by whoever opened it last, which the epoch shows at each commit; a commit whose answer was lost is looked
//! up before it is tried again, so it happens once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::binary_copy::BinaryCopyInWriter;
use postgres::types::ToSql;
use postgres::{GenericClient, Transaction};

use super::connect::Session;
use super::read::{self, PostgresReader};
use super::rows::{
    LOG_COLUMNS, LOG_TYPES, USAGE_COLUMNS, USAGE_TYPES, column, damaged, digest, get, line_values,
    linked, numeric, place, text, unsigned, usage_values,
};
use super::{PostgresError, PostgresUrl, schema};
use crate::book::{Entry, EntryKind, Kept, Operation, Sums};
use crate::store::{
    Batch, Delivery, Document, DocumentVersion, LogLine, Reader, Restored, Store, StoreError,
    StoreErrorKind, chain,
};

/// How long a gateway's lease lasts unless it says something.
pub const LEASE_TTL: Duration = Duration::from_secs(10);
/// How often a stream that another process still has is asked for again.
const OPEN_RETRY: Duration = Duration::from_millis(200);

impl From<PostgresError> for StoreError {
    fn from(error: PostgresError) -> Self {
        let kind = match &error {
            PostgresError::Unreachable(_) => StoreErrorKind::Full,
            PostgresError::Damaged(_) => StoreErrorKind::Damaged,
            _ => StoreErrorKind::Fatal,
        };
        Self { kind, message: format!("PostgreSQL: {error}") }
    }
}

/// Which stream, and as whose successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// The stream's id.
    pub stream: i64,
    /// One more each time it is opened.
    pub epoch: i64,
}

/// The store of one gateway.
pub struct PostgresStore {
    url: PostgresUrl,
    session: Option<Session>,
    tenure: Tenure,
    last_seq: u64,
    last_link: [u8; 32],
    sums: HashMap<(Arc<str>, Arc<str>), Sums>,
}

impl PostgresStore {
    /// Opens the stream of the gateway of that name. Where a process of that name still has it, or had until it was
    /// killed, this waits until its lease expires.
    ///
    /// # Errors
    /// The database cannot be reached, is not fit, or the name stays in use.
    pub fn open(url: &PostgresUrl, name: &str) -> Result<Self, PostgresError> {
        let mut session = Session::open(url, "store")?;
        schema::migrate(&mut session)?;
        let deadline = Instant::now() + 2 * LEASE_TTL;
        loop {
            if let Some(tenure) = take(&mut session, name)? {
                return Ok(Self::with(url, session, tenure));
            }
            if Instant::now() > deadline {
                return Err(PostgresError::Unfit(format!(
                    "a gateway named `{name}` is running; give each gateway a name of its own"
                )));
            }
            std::thread::sleep(OPEN_RETRY);
        }
    }

    /// Takes over the stream of a gateway whose lease has expired; `None` where somebody else did.
    ///
    /// # Errors
    /// The database's.
    pub(super) fn take_over(url: &PostgresUrl, stream: i64) -> Result<Option<Self>, PostgresError> {
        let mut session = Session::open(url, "takeover")?;
        let take = session.prepare(
            "UPDATE mintage.stream
             SET epoch = epoch + 1, expires = now() + $2 * interval '1 second'
             WHERE id = $1 AND live AND expires < now() RETURNING epoch",
        )?;
        let row = session.client().query_opt(&take, &[&stream, &LEASE_TTL.as_secs_f64()])?;
        let Some(row) = row else { return Ok(None) };
        let tenure = Tenure { stream, epoch: get(&row, 0)? };
        Ok(Some(Self::with(url, session, tenure)))
    }

    fn with(url: &PostgresUrl, session: Session, tenure: Tenure) -> Self {
        Self {
            url: url.clone(),
            session: Some(session),
            tenure,
            last_seq: 0,
            last_link: chain::GENESIS,
            sums: HashMap::new(),
        }
    }

    /// The stream and the epoch.
    #[must_use]
    pub fn tenure(&self) -> Tenure {
        self.tenure
    }

    fn session(&mut self) -> Result<&mut Session, PostgresError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => Session::open(&self.url, "store")?,
        };
        Ok(self.session.insert(session))
    }

    fn try_load(&mut self) -> Result<Restored, PostgresError> {
        let stream = self.tenure.stream;
        let session = self.session()?;
        let row = session
            .client()
            .query_one("SELECT seq, link FROM mintage.stream WHERE id = $1", &[&stream])?;
        let (seq, link) = (unsigned(&row, 0)?, digest(&row, 1)?);
        let mut accounts = sums_of::<BTreeMap<_, _>>(session.client(), stream)?;
        let operations = read::operations(session.client(), Some(stream))?;
        for (_, operation) in &operations {
            // A grant of the pool is known here, its tokens come in slices.
            if let Operation::Grant { grant, .. } = operation {
                let name = (format!("grant/{grant}").into(), crate::book::TOKENS.into());
                accounts.entry(name).or_default();
            }
        }
        let documents = document_versions(session)?;
        let marks = read::marks(session.client(), stream)?;
        self.last_seq = seq;
        self.last_link = link;
        self.sums = accounts.iter().map(|(name, sums)| (name.clone(), *sums)).collect();
        Ok(Restored { kept: Kept { accounts, operations }, documents, marks })
    }

    fn try_commit(&mut self, batch: &Batch) -> Result<(), PostgresError> {
        let tenure = self.tenure;
        let written = Written::of(batch, self.last_seq, self.last_link, &self.sums);
        let (before, known) = (column(self.last_seq), self.session.is_some());
        let session = self.session()?;
        if !known && is_committed(session, tenure, &written)? {
            self.settled(written);
            return Ok(());
        }
        let mut transaction = session.client().transaction()?;
        let kept = transaction.execute(
            "UPDATE mintage.stream SET seq = $4, link = $5,
                    expires = greatest(expires, now() + $6 * interval '1 second')
             WHERE id = $1 AND epoch = $2 AND live AND seq = $3",
            &[
                &tenure.stream,
                &tenure.epoch,
                &before,
                &column(written.seq),
                &&written.link[..],
                &LEASE_TTL.as_secs_f64(),
            ],
        )?;
        if kept != 1 {
            return Err(PostgresError::Fenced);
        }
        write(&mut transaction, tenure.stream, batch, &written)?;
        write_slices(&mut transaction, tenure.stream, &written.lines)?;
        transaction.commit()?;
        self.settled(written);
        Ok(())
    }

    /// Only now: a batch that failed is written again from where it began.
    fn settled(&mut self, written: Written) {
        self.last_seq = written.seq;
        self.last_link = written.link;
        self.sums.extend(written.touched);
    }
}

/// Becomes the stream's writer, unless another one lives.
fn take(session: &mut Session, name: &str) -> Result<Option<Tenure>, PostgresError> {
    let row = session.client().query_opt(
        "INSERT INTO mintage.stream (kind, name, live, expires, link)
         VALUES ('gateway', $1, true, now() + $2 * interval '1 second', $3)
         ON CONFLICT (kind, name) DO UPDATE
         SET epoch = mintage.stream.epoch + 1, live = true, expires = EXCLUDED.expires
         WHERE NOT mintage.stream.live OR mintage.stream.expires < now()
         RETURNING id, epoch",
        &[&name, &LEASE_TTL.as_secs_f64(), &&chain::GENESIS[..]],
    )?;
    row.map(|row| Ok(Tenure { stream: get(&row, 0)?, epoch: get(&row, 1)? })).transpose()
}

/// Whether the batch whose answer was lost is there.
fn is_committed(
    session: &mut Session,
    tenure: Tenure,
    written: &Written,
) -> Result<bool, PostgresError> {
    let row = session.client().query_opt(
        "SELECT seq, link FROM mintage.stream WHERE id = $1 AND epoch = $2 AND live",
        &[&tenure.stream, &tenure.epoch],
    )?;
    let Some(row) = row else { return Err(PostgresError::Fenced) };
    // A batch without lines (marks, deliveries) leaves no trace there, and may be written twice.
    Ok(!written.lines.is_empty()
        && unsigned(&row, 0)? == written.seq
        && digest(&row, 1)? == written.link)
}

/// What went through each account in this stream.
pub(super) fn sums_of<T: FromIterator<((Arc<str>, Arc<str>), Sums)>>(
    client: &mut impl GenericClient,
    stream: i64,
) -> Result<T, PostgresError> {
    let rows = client.query(
        "SELECT name, asset, debits::text, credits::text FROM mintage.sums WHERE stream = $1",
        &[&stream],
    )?;
    let sums = |row| {
        let sums = Sums { debits: numeric(row, 2)?, credits: numeric(row, 3)? };
        Ok(((text(row, 0)?, text(row, 1)?), sums))
    };
    rows.iter().map(sums).collect()
}

fn document_versions(session: &mut Session) -> Result<Vec<DocumentVersion>, PostgresError> {
    let rows = session
        .client()
        .query("SELECT kind, id, max(version) FROM mintage.document GROUP BY kind, id", &[])?;
    rows.iter().map(|row| Ok((text(row, 0)?, text(row, 1)?, unsigned(row, 2)?))).collect()
}

/// What a batch comes to, before anything is sent.
pub(super) struct Written {
    pub(super) seq: u64,
    pub(super) link: [u8; 32],
    pub(super) lines: Vec<LogLine>,
    /// By each unit of work: its first line, and the first of its documents.
    firsts: Vec<(u64, u64)>,
    touched: HashMap<(Arc<str>, Arc<str>), Sums>,
}

impl Written {
    pub(super) fn of(
        batch: &Batch,
        mut seq: u64,
        mut link: [u8; 32],
        known: &HashMap<(Arc<str>, Arc<str>), Sums>,
    ) -> Self {
        let mut lines = Vec::new();
        let mut firsts = Vec::with_capacity(batch.work.len());
        for work in &batch.work {
            let first = seq + 1;
            lines.extend(linked(&mut seq, &mut link, work.at_ms, &work.entries));
            firsts.push((first, seq + 1));
            let documents: Vec<Entry> = work.documents.iter().map(document_entry).collect();
            lines.extend(linked(&mut seq, &mut link, work.at_ms, &documents));
        }
        let mut touched: HashMap<(Arc<str>, Arc<str>), Sums> = HashMap::new();
        for line in lines.iter().filter(|line| line.entry.amount != 0) {
            let entry = &line.entry;
            let amount = i128::from(entry.amount);
            for (account, debits, credits) in
                [(&entry.debit, amount, 0), (&entry.credit, 0, amount)]
            {
                let key = (account.clone(), entry.asset.clone());
                let before = known.get(&key).copied().unwrap_or_default();
                let sums = touched.entry(key).or_insert(before);
                sums.debits += debits;
                sums.credits += credits;
            }
        }
        Self { seq, link, lines, firsts, touched }
    }
}

fn document_entry(document: &Document) -> Entry {
    let nothing: Arc<str> = "".into();
    Entry {
        kind: EntryKind::Document,
        id: format!("{}/{}", document.kind, document.id).into(),
        debit: nothing.clone(),
        credit: nothing.clone(),
        asset: nothing,
        amount: 0,
        refers: None,
        detail: chain::document(document),
    }
}

/// All rows of a batch, into the stream.
pub(super) fn write(
    transaction: &mut Transaction<'_>,
    stream: i64,
    batch: &Batch,
    written: &Written,
) -> Result<(), PostgresError> {
    let lines = written.lines.iter().map(|line| line_values(stream, line));
    copy(transaction, "log", LOG_COLUMNS, &LOG_TYPES, lines)?;
    let works = || batch.work.iter().zip(&written.firsts);
    let records = works()
        .filter_map(|(work, (first, _))| Some((first, work.record.as_ref()?)))
        .map(|(first, record)| usage_values(stream, *first, record));
    copy(transaction, "usage", USAGE_COLUMNS, &USAGE_TYPES, records)?;
    for (work, (first, first_document)) in works() {
        if let Some((id, operation)) = &work.operation {
            let body = serde_json::to_string(operation).map_err(damaged)?;
            transaction.execute(
                "INSERT INTO mintage.operation (id, stream, seq, body) VALUES ($1, $2, $3, $4)",
                &[&&**id, &stream, &column(*first), &body],
            )?;
        }
        for (document, seq) in work.documents.iter().zip(*first_document..) {
            write_document(transaction, stream, seq, document)?;
        }
        beside(transaction, work)?;
    }
    write_marks(transaction, stream, batch)?;
    write_sums(transaction, stream, &written.touched)
}

pub(super) fn copy(
    transaction: &mut Transaction<'_>,
    table: &str,
    columns: &str,
    types: &[postgres::types::Type],
    rows: impl Iterator<Item = Vec<Box<dyn ToSql + Sync>>>,
) -> Result<(), PostgresError> {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    // Table and columns are constants of this program.
    let sql = format!("COPY mintage.{table} ({columns}) FROM STDIN BINARY");
    let mut writer = BinaryCopyInWriter::new(transaction.copy_in(&sql)?, types);
    for row in rows {
        let values: Vec<&(dyn ToSql + Sync)> = row.iter().map(|value| &**value).collect();
        writer.write(&values)?;
    }
    writer.finish()?;
    Ok(())
}

pub(super) fn write_document(
    transaction: &mut Transaction<'_>,
    stream: i64,
    seq: u64,
    document: &Document,
) -> Result<(), PostgresError> {
    transaction.execute(
        "INSERT INTO mintage.document (kind, id, version, stream, seq, body)
         VALUES ($1, $2, $3, $4, $5, $6)",
        &[
            &&*document.kind,
            &&*document.id,
            &column(document.version),
            &stream,
            &column(seq),
            &document.body,
        ],
    )?;
    Ok(())
}

/// What belongs to no line: messages and answers.
pub(super) fn beside(
    transaction: &mut Transaction<'_>,
    work: &crate::store::Work,
) -> Result<(), PostgresError> {
    for message in &work.messages {
        let sum = chain::row("outbox", &[message.topic.as_bytes(), &message.body], &[]);
        transaction.execute(
            "INSERT INTO mintage.outbox (topic, body, due_ms, sum) VALUES ($1, $2, $3, $4)",
            &[&&*message.topic, &message.body, &column(message.due_ms), &&sum[..]],
        )?;
    }
    for (number, delivery) in &work.deliveries {
        let place = column(*number);
        let found = match delivery {
            Delivery::Done => {
                transaction.execute("DELETE FROM mintage.outbox WHERE number = $1", &[&place])?
            }
            Delivery::RetryAt(due_ms) => transaction.execute(
                "UPDATE mintage.outbox
                 SET attempts = attempts + 1, due_ms = $2, claimed_by = NULL, claimed_until = NULL
                 WHERE number = $1",
                &[&place, &column(*due_ms)],
            )?,
        };
        if found == 0 {
            // Another gateway saw to it: whatever else is to be written with this was written with that.
            let (kind, id) = ("outbox".into(), number.to_string().into());
            return Err(PostgresError::Conflict { kind, id, current: 0 });
        }
    }
    for upto in &work.prune {
        let (stream, seq) = place(*upto);
        transaction.execute(
            "DELETE FROM mintage.usage WHERE stream = $1 AND seq <= $2",
            &[&stream, &seq],
        )?;
    }
    for answer in &work.answers {
        // What has expired goes away with what comes in, so the table is bounded by its lifetime.
        transaction
            .execute("DELETE FROM mintage.answer WHERE expires_ms <= $1", &[&column(work.at_ms)])?;
        transaction.execute(
            "INSERT INTO mintage.answer (scope, key, body_digest, answer, expires_ms, sum)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (scope, key) DO UPDATE SET body_digest = EXCLUDED.body_digest,
                 answer = EXCLUDED.answer, expires_ms = EXCLUDED.expires_ms, sum = EXCLUDED.sum",
            &[
                &&*answer.scope,
                &&*answer.key,
                &&answer.body_digest[..],
                &answer.answer,
                &column(answer.expires_ms),
                &&crate::store::answer_sum(answer)[..],
            ],
        )?;
    }
    Ok(())
}

fn write_marks(
    transaction: &mut Transaction<'_>,
    stream: i64,
    batch: &Batch,
) -> Result<(), PostgresError> {
    let gone: Vec<&str> = batch.work.iter().filter_map(|work| work.unmark.as_deref()).collect();
    if !gone.is_empty() {
        transaction.execute(
            "DELETE FROM mintage.mark WHERE stream = $1 AND id = ANY($2)",
            &[&stream, &gone],
        )?;
    }
    if batch.marks.is_empty() {
        return Ok(());
    }
    let (mut ids, mut bodies, mut checks) = (Vec::new(), Vec::new(), Vec::new());
    for (id, mark) in &batch.marks {
        let body = serde_json::to_string(mark).map_err(damaged)?;
        checks.push(chain::row("mark", &[id.as_bytes(), body.as_bytes()], &[]).to_vec());
        ids.push(&**id);
        bodies.push(body);
    }
    transaction.execute(
        "INSERT INTO mintage.mark (stream, id, body, sum)
         SELECT $1, * FROM unnest($2::text[], $3::text[], $4::bytea[])
         ON CONFLICT (stream, id) DO UPDATE SET body = EXCLUDED.body, sum = EXCLUDED.sum",
        &[&stream, &ids, &bodies, &checks],
    )?;
    Ok(())
}

/// Once a batch, however many lines touched them.
pub(super) fn write_sums(
    transaction: &mut Transaction<'_>,
    stream: i64,
    touched: &HashMap<(Arc<str>, Arc<str>), Sums>,
) -> Result<(), PostgresError> {
    if touched.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = touched.keys().map(|(name, _)| &**name).collect();
    let assets: Vec<&str> = touched.keys().map(|(_, asset)| &**asset).collect();
    let debits: Vec<String> = touched.values().map(|sums| sums.debits.to_string()).collect();
    let credits: Vec<String> = touched.values().map(|sums| sums.credits.to_string()).collect();
    transaction.execute(
        "INSERT INTO mintage.sums (stream, name, asset, debits, credits)
         SELECT $1, name, asset, debits::numeric, credits::numeric
         FROM unnest($2::text[], $3::text[], $4::text[], $5::text[])
              AS new (name, asset, debits, credits)
         ON CONFLICT (stream, name, asset)
         DO UPDATE SET debits = EXCLUDED.debits, credits = EXCLUDED.credits",
        &[&stream, &names, &assets, &debits, &credits],
    )?;
    Ok(())
}

/// Tells the slices what was spent of them and what came in or went out. The database refuses what exceeds them.
fn write_slices(
    transaction: &mut Transaction<'_>,
    stream: i64,
    lines: &[LogLine],
) -> Result<(), PostgresError> {
    let mut changes: BTreeMap<(&str, &str), (i128, i128)> = BTreeMap::new();
    for LogLine { entry, .. } in lines.iter().filter(|line| line.entry.amount != 0) {
        let amount = i128::from(entry.amount);
        let (account, received, spent) = match entry.kind {
            EntryKind::Post | EntryKind::FreeUse => (&entry.debit, 0, amount),
            EntryKind::Lease => (&entry.credit, amount, 0),
            EntryKind::Return => (&entry.debit, -amount, 0),
            _ => continue,
        };
        let change = changes.entry((&**account, &*entry.asset)).or_default();
        change.0 += received;
        change.1 += spent;
    }
    if changes.is_empty() {
        return Ok(());
    }
    let accounts: Vec<&str> = changes.keys().map(|(account, _)| *account).collect();
    let assets: Vec<&str> = changes.keys().map(|(_, asset)| *asset).collect();
    let received: Vec<String> = changes.values().map(|change| change.0.to_string()).collect();
    let spent: Vec<String> = changes.values().map(|change| change.1.to_string()).collect();
    transaction.execute(
        "UPDATE mintage.slice s
         SET received = s.received + new.received::numeric, spent = s.spent + new.spent::numeric
         FROM unnest($2::text[], $3::text[], $4::text[], $5::text[])
              AS new (account, asset, received, spent)
         WHERE s.stream = $1 AND s.account = new.account AND s.asset = new.asset",
        &[&stream, &accounts, &assets, &received, &spent],
    )?;
    Ok(())
}

impl Store for PostgresStore {
    fn load(&mut self) -> Result<Restored, StoreError> {
        Ok(self.try_load()?)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let outcome = self.try_commit(batch);
        if outcome.as_ref().is_err_and(PostgresError::is_transient) {
            // The next attempt connects again and asks first whether this one happened.
            self.session = None;
        }
        Ok(outcome?)
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        let reader = PostgresReader::open(&self.url)?;
        Ok(Box::new(reader.for_gateway(self.tenure.stream)))
    }
}

impl Drop for PostgresStore {
    /// Lets the next one in at once, where nobody took over before.
    fn drop(&mut self) {
        if let Some(session) = &mut self.session {
            let _ = session.client().execute(
                "UPDATE mintage.stream SET expires = now() WHERE id = $1 AND epoch = $2",
                &[&self.tenure.stream, &self.tenure.epoch],
            );
        }
    }
}
