//! Where the ledger is kept: the trait, and what passes through it.
//!
//! A store is written by one thread, in batches: [`Store::commit`] returns when the whole batch is durable, or has
//! failed as a whole. Each entry of the log gets its number and its link of the hash chain there.
//! Not here: what operations mean (the book) and when to write (the writer). Invariant: a batch is all or nothing, and
//! after an error of [`StoreErrorKind::Full`] the very same batch may be committed again.

pub(crate) mod chain;
mod checkpoint;
mod pruned;
mod rows;
mod sqlite;
mod sums;
mod verify;

use std::sync::Arc;

pub(crate) use pruned::Pruned;
pub(crate) use rows::{quantity_code, quantity_of};
pub(crate) use sqlite::{FILE_NAME, SqliteReader, open_reader, owner_only, sqlite_error};
pub use sqlite::{SqliteStore, Synchronous};
pub(crate) use sums::amount as amount_of_parts;
pub use sums::{MAX_SUMS_PER_READ, SumsFilter, UsageSums};
pub use verify::Verified;
pub(crate) use verify::{answer_sum, of_table};

use crate::book::{Entry, Kept, Operation};
use crate::usage::UsageRecord;

/// An immutable version of something that others define: a key, a limit, a price list, an invoice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Which table it would be.
    pub kind: Arc<str>,
    /// Which row.
    pub id: Arc<str>,
    /// 1 for the first; one more each time.
    pub version: u64,
    /// What it says, mostly JSON; empty where it was deleted.
    pub body: Vec<u8>,
}

/// A message that must leave the house at least once (webhooks), written with what it tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is about.
    pub topic: Arc<str>,
    /// JSON.
    pub body: Vec<u8>,
    /// Not before, ms since 1970.
    pub due_ms: u64,
}

/// A message of the outbox with what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Its number.
    pub number: u64,
    /// The message; `due_ms` is the next attempt.
    pub message: Message,
    /// Attempts so far.
    pub attempts: u32,
}

/// What is to become of a message of the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Delivered or given up: it leaves the outbox.
    Done,
    /// Again, not before this time (ms since 1970).
    RetryAt(u64),
}

/// An answer kept for an `Idempotency-Key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAnswer {
    /// Whose key: the project's id or similar.
    pub scope: Arc<str>,
    /// The client's key.
    pub key: Arc<str>,
    /// Digest of the request's body.
    pub body_digest: [u8; 32],
    /// What to send again; the server's own form.
    pub answer: Vec<u8>,
    /// Until when, ms since 1970.
    pub expires_ms: u64,
}

/// How far an open hold has come: enough to post it after a crash without knowing prices.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// The record as it would be if the request ended here.
    pub record: UsageRecord,
    /// Free tokens by grant.
    pub free: Vec<(Arc<str>, u64)>,
}

/// What is written together.
#[derive(Debug, Default)]
pub struct Work {
    /// When it happened, ms since 1970.
    pub at_ms: u64,
    /// Lines of the log. With a record, the first is its posting.
    pub entries: Vec<Entry>,
    /// The usage record of the posting.
    pub record: Option<Box<UsageRecord>>,
    /// The operation behind the entries, where it was not a request.
    pub operation: Option<(Arc<str>, Operation)>,
    /// New versions; each also becomes a line of the log.
    pub documents: Vec<Document>,
    /// Messages to go out.
    pub messages: Vec<Message>,
    /// What became of messages.
    pub deliveries: Vec<(u64, Delivery)>,
    /// Answers to keep.
    pub answers: Vec<KeptAnswer>,
    /// The hold whose journal mark goes away, by its request's id.
    pub unmark: Option<Arc<str>>,
    /// Usage records that go away: up to these numbers, one for each log.
    pub prune: Vec<u64>,
}

/// What the writer commits at once.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order in which the state in memory changed.
    pub work: Vec<Work>,
    /// Marks of open holds, by the request's id; the newest only.
    pub marks: Vec<(Arc<str>, Mark)>,
}

/// Kind, id and newest version of a document.
pub type DocumentVersion = (Arc<str>, Arc<str>, u64);

/// What a store knows at start.
#[derive(Debug, Default)]
pub struct Restored {
    /// For the book.
    pub kept: Kept,
    /// Newest versions of documents, without bodies.
    pub documents: Vec<DocumentVersion>,
    /// Marks of holds that a crash left open.
    pub marks: Vec<Mark>,
}

/// Which usage records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageFilter {
    /// Of this organisation.
    pub org: Option<Arc<str>>,
    /// Of this project.
    pub project: Option<Arc<str>>,
    /// Of this key.
    pub key: Option<Arc<str>>,
    /// Of this model.
    pub model: Option<Arc<str>>,
    /// With this id.
    pub id: Option<Arc<str>>,
    /// Ended at or after, ms since 1970.
    pub from_ms: u64,
    /// Ended before, ms since 1970; 0 for no end.
    pub until_ms: u64,
    /// Of the log after this number: the next page.
    pub after: u64,
    /// At most so many; 0 for [`MAX_RECORDS_PER_READ`].
    pub limit: usize,
}

/// The most records that one read returns.
pub const MAX_RECORDS_PER_READ: usize = 10_000;

/// A line of the log as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Its number; the first is 1.
    pub seq: u64,
    /// When, ms since 1970.
    pub at_ms: u64,
    /// What.
    pub entry: Entry,
    /// Link of the chain: SHA-256 of the previous link and this line.
    pub link: [u8; 32],
}

/// Writes; owned by one thread.
pub trait Store: Send {
    /// Everything that the state in memory starts from.
    ///
    /// # Errors
    /// [`StoreError`].
    fn load(&mut self) -> Result<Restored, StoreError>;
    /// All of the batch, durable at return, or none of it.
    ///
    /// # Errors
    /// [`StoreError`]; its kind says whether the same batch may be tried again.
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError>;
    /// A further view for reading, for other threads.
    ///
    /// # Errors
    /// [`StoreError`].
    fn reader(&self) -> Result<Box<dyn Reader>, StoreError>;
}

/// Reads what is durable.
pub trait Reader: Send {
    /// Records in the order of the log, with the numbers of their postings.
    ///
    /// # Errors
    /// [`StoreError`].
    fn usage(&mut self, filter: &UsageFilter) -> Result<Vec<(u64, UsageRecord)>, StoreError>;
    /// What records add up to, in no order; at most [`MAX_SUMS_PER_READ`] and one more.
    ///
    /// # Errors
    /// [`StoreError`].
    fn sums(&mut self, filter: &SumsFilter) -> Result<Vec<UsageSums>, StoreError>;
    /// Up to which number each log's records were posted before `before_ms` (by the log's own times, in its order), so
    /// far as `limit` records of each tell; and how many that are.
    ///
    /// # Errors
    /// [`StoreError`].
    fn records_before(
        &mut self,
        before_ms: u64,
        limit: usize,
    ) -> Result<(Vec<u64>, u64), StoreError>;
    /// Lines of the log after number `after`, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`].
    fn log(&mut self, after: u64, limit: usize) -> Result<Vec<LogLine>, StoreError>;
    /// Newest versions of all documents of a kind that are not deleted, by id.
    ///
    /// # Errors
    /// [`StoreError`].
    fn documents(&mut self, kind: &str) -> Result<Vec<Document>, StoreError>;
    /// All versions of a document, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    fn history(&mut self, kind: &str, id: &str) -> Result<Vec<Document>, StoreError>;
    /// Messages that are due, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    fn due_messages(&mut self, now_ms: u64, limit: usize) -> Result<Vec<Outgoing>, StoreError>;
    /// The answer kept for a key, unless it has expired.
    ///
    /// # Errors
    /// [`StoreError`].
    fn answer(
        &mut self,
        scope: &str,
        key: &str,
        now_ms: u64,
    ) -> Result<Option<KeptAnswer>, StoreError>;
    /// Reads everything and holds it to the chain and to the sums.
    ///
    /// # Errors
    /// [`StoreError`]: damage is of kind [`StoreErrorKind::Damaged`] and says where.
    fn verify(&mut self) -> Result<Verified, StoreError>;
}

/// What can be done about a store's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// No room, or a write failed before anything was to be synced: the same batch may be tried again.
    Full,
    /// What is stored is not what was written.
    Damaged,
    /// Everything else, a failed sync above all: nothing may be written by this process any more.
    Fatal,
}

/// A store's error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    /// What can be done.
    pub kind: StoreErrorKind,
    /// In words.
    pub message: String,
}

impl StoreError {
    pub(crate) fn damaged(message: impl Into<String>) -> Self {
        Self { kind: StoreErrorKind::Damaged, message: message.into() }
    }

    pub(crate) fn fatal(message: impl Into<String>) -> Self {
        Self { kind: StoreErrorKind::Fatal, message: message.into() }
    }
}
