//! The ledger as the server uses it: admit, progress, settle, and what surrounds them.
//!
//! Memory is the authority while the process runs; every change is queued for the writer in the order in which memory
//! changed. Admission waits for no disk. A settlement resolves when it is durable, and only then may the client hear
//! of it. Not here: limits (they stand in the gate of [`Ledger::admit`]), prices (behind [`Rating`]), HTTP.
//!
//! Invariants: an open hold is a value that must be settled or voided; one that is dropped is voided, with a log line.
//! After a crash a hold with a journal mark is posted at its mark, all others bill nothing; none is left. When the store
//! fails, everything is refused.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions, TryLockError};
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use crate::book::{
    Balance, Book, GrantTerms, HoldNumber, HoldRequest, MAX_ID_BYTES, Operation, Refusal,
};
use crate::money::{Amount, Currency};
use crate::postgres::{Agent, KeyTaken, PostgresError, TakenKey};
use crate::rating::{Ask, Quote, Rating};
use crate::store::{
    Batch, Delivery, Document, KeptAnswer, LogLine, Mark, Message, Outgoing, Reader, Restored,
    SqliteStore, Store, StoreError, SumsFilter, Synchronous, UsageFilter, UsageSums, Verified,
    Work, chain,
};
use crate::usage::{Outcome, RequestFacts, TokenUsage, UsageRecord};
use crate::writer::{self, Shared, State, Unavailable, WriterCounts};

/// Requests that may be open at once.
pub const MAX_OPEN_HOLDS: usize = 65_536;
/// Changes that may wait for the writer, beside settlements (which open holds bound).
const MAX_QUEUED: usize = 2 * MAX_OPEN_HOLDS;
/// A hold's progress is journalled after so many sampled tokens ...
pub const TOKENS_PER_MARK: u64 = 32;
/// ... or so long after the last mark, whichever comes first.
pub const TIME_PER_MARK: Duration = Duration::from_millis(250);
/// Marks come with ticks of so long, the same for all holds, so that one commit takes them all ...
const TICK: Duration = Duration::from_millis(200);
/// ... but not sooner after the last one: both together are [`TIME_PER_MARK`].
const LEAST_TIME_PER_MARK: Duration = Duration::from_millis(50);
/// The longest body of a document, message or kept answer.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// Readers beside the writer.
const READERS: usize = 3;
/// Charges whose ids are known without asking the store, which may not have written them yet.
const CHARGES_REMEMBERED: usize = 4_096;
const LOCK_FILE: &str = "ledger.lock";

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Nothing is taken at the moment.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The book refuses; nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What was read, or could not be.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another process has the ledger.
    #[error(
        "the ledger in {0} is in use by another process: ask the running server, or stop it first"
    )]
    InUse(String),
    /// A file or folder.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody else wrote a version in between.
    #[error("{kind}/{id} is at version {current} already: read it again")]
    Conflict {
        /// The document's kind.
        kind: Arc<str>,
        /// Its id.
        id: Arc<str>,
        /// Its newest version.
        current: u64,
    },
    /// A name or body out of bounds.
    #[error("{0}")]
    TooLarge(String),
    /// The database that gateways share.
    #[error(transparent)]
    Postgres(PostgresError),
    /// No record has that id.
    #[error("there is no usage record `{0}`")]
    NoRecord(String),
}

/// Why a request is not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdmitError<G> {
    /// Money or free quota is missing; or the request's id is in use.
    Refused(Refusal),
    /// The price list has no price for it.
    NoPrice,
    /// The gate said no.
    Gate(G),
    /// The ledger takes nothing at the moment.
    Unavailable(Unavailable),
}

/// A request that wants to run.
#[derive(Clone)]
pub struct Admission {
    /// Becomes part of the record.
    pub facts: RequestFacts,
    /// What it may use at most.
    pub ask: Ask,
    /// What that costs.
    pub rating: Arc<dyn Rating>,
}

/// What is written together with a settlement.
#[derive(Debug, Default)]
pub struct Together {
    /// Messages that tell of it.
    pub messages: Vec<Message>,
    /// The answer, for repetitions with the same `Idempotency-Key`.
    pub answer: Option<KeptAnswer>,
}

/// Changes that are not usage, all written together or none.
#[derive(Debug, Default)]
pub struct Changes {
    /// Applied once, whoever repeats it under the same id.
    pub operation: Option<(Arc<str>, Operation)>,
    /// Each exactly one version above the newest.
    pub documents: Vec<Document>,
    /// Messages to go out.
    pub messages: Vec<Message>,
    /// What became of messages.
    pub deliveries: Vec<(u64, Delivery)>,
}

/// What was billed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The record as it is stored.
    pub record: UsageRecord,
}

/// The ledger.
pub struct Ledger {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    readers: Mutex<Vec<Box<dyn Reader>>>,
    reader_free: Condvar,
    answering: Arc<Mutex<TakenKeys>>,
    /// Ids of the latest charges.
    charged: Mutex<VecDeque<Arc<str>>>,
    /// Held until the ledger is dropped.
    _lock: Option<File>,
    /// Looks after slices, where several gateways share the accounts.
    pub(crate) agent: Option<Agent>,
}

impl Ledger {
    /// Opens the ledger of a folder, made where there is none, and recovers what a crash left.
    ///
    /// # Errors
    /// [`LedgerError::InUse`], [`LedgerError::Io`], [`LedgerError::Store`].
    pub fn open(folder: &Path) -> Result<Self, LedgerError> {
        Self::open_with(folder, Synchronous::Full)
    }

    /// The same with a choice of durability; anything but [`Synchronous::Full`] is for tests that show what is lost.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(folder: &Path, synchronous: Synchronous) -> Result<Self, LedgerError> {
        let io = |source| LedgerError::Io { path: folder.display().to_string(), source };
        make_folder(folder).map_err(io)?;
        let lock = lock(folder)?;
        let store = SqliteStore::open(folder, synchronous)?;
        Self::start(Box::new(store), Some(lock))
    }

    /// On any store. Recovery is durable when this returns.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn start(mut store: Box<dyn Store>, lock: Option<File>) -> Result<Self, LedgerError> {
        let Restored { kept, documents, marks } = store.load()?;
        let mut book = Book::restore(&kept).map_err(StoreError::damaged)?;
        let batch = recover(&mut book, marks)?;
        if !batch.work.is_empty() {
            tracing::warn!(holds = batch.work.len(), "posted at their marks after a crash");
            store.commit(&batch)?;
        }
        book.check().map_err(StoreError::damaged)?;
        let readers = (0..READERS).map(|_| store.reader()).collect::<Result<Vec<_>, _>>()?;
        let documents = documents.into_iter().map(|(kind, id, v)| ((kind, id), v)).collect();
        let shared = Arc::new(Shared::new(book, documents));
        let writing = shared.clone();
        let writer = std::thread::Builder::new()
            .name("ledger-writer".to_owned())
            .spawn(move || writer::run(&writing, &mut *store))
            .map_err(|source| LedgerError::Io { path: "ledger-writer".to_owned(), source })?;
        Ok(Self {
            shared,
            writer: Some(writer),
            readers: Mutex::new(readers),
            reader_free: Condvar::new(),
            answering: Arc::default(),
            charged: Mutex::default(),
            _lock: lock,
            agent: None,
        })
    }

    /// The authority while the process runs.
    pub(crate) fn memory(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Reserves the most that a request can cost, and lets `gate` (limits, budgets) have its say while nothing else
    /// moves: both succeed, or nothing has changed. Takes microseconds and waits for no disk.
    ///
    /// # Errors
    /// [`AdmitError`].
    pub fn admit<G>(
        &self,
        admission: Admission,
        gate: impl FnOnce(&Quote) -> Result<(), G>,
    ) -> Result<Hold, AdmitError<G>> {
        let Admission { facts, ask, rating } = admission;
        let currency = rating.currency();
        let mut state = self.shared.lock();
        available(&state).map_err(AdmitError::Unavailable)?;
        let org = &facts.payer.org;
        let free_left = state.book.free_left(org, &facts.model, ask.admitted_ms);
        let quote = rating.quote(&ask, free_left).ok_or(AdmitError::NoPrice)?;
        let request = HoldRequest {
            id: facts.id.clone(),
            org: org.clone(),
            currency,
            money: quote.amount,
            free_tokens: quote.free_tokens,
            model: facts.model.clone(),
            now_ms: ask.admitted_ms,
        };
        let number = state.book.hold(&request).map_err(AdmitError::Refused)?;
        if let Err(refusal) = gate(&quote) {
            // Nobody saw the hold: the lock is still ours.
            let _ = state.book.void(number);
            return Err(AdmitError::Gate(refusal));
        }
        drop(state);
        Ok(Hold {
            marked_at: Instant::now(),
            marked_tick: self.shared.tick(TICK),
            shared: self.shared.clone(),
            number,
            facts,
            ask,
            rating,
            quote,
            currency,
            is_marked: false,
            marked_tokens: 0,
            is_open: true,
        })
    }

    /// Posts what was used and releases the rest: usage record, posting, release and whatever is written `together`,
    /// in one transaction. The posting stands when this returns; what it returns resolves when it is durable.
    pub fn settle(
        &self,
        mut hold: Hold,
        usage: TokenUsage,
        outcome: Outcome,
        together: Together,
    ) -> Pending<Receipt> {
        let record = hold.record(usage, outcome);
        let detail = chain::record(&record);
        let (done, durable) = oneshot::channel();
        let mut state = self.shared.lock();
        hold.is_open = false;
        if let Some(failed) = stopped(&state) {
            return Pending::refused(failed);
        }
        let posted = state.book.post(hold.number, record.amount, record.free_tokens, detail);
        let entries = match posted {
            Ok(entries) => entries,
            Err(refusal) => {
                // `record` is capped at the hold, which is open: this cannot be, and must not pass in silence.
                tracing::error!(id = %hold.facts.id, %refusal, "a settlement was refused");
                let _ = state.book.void(hold.number);
                return Pending::refused(Unavailable::Failed(refusal.to_string().into()));
            }
        };
        state.marks.remove(&hold.facts.id);
        let work = Work {
            at_ms: now_ms(),
            entries,
            record: Some(Box::new(record.clone())),
            messages: together.messages,
            answers: together.answer.into_iter().collect(),
            unmark: hold.is_marked.then(|| hold.facts.id.clone()),
            ..Work::default()
        };
        state.work.push(work);
        state.waiting.push(done);
        self.shared.ring(state);
        Pending { value: Some(Receipt { record }), durable: Wait::For(durable) }
    }

    /// Gives everything back: the request never computed anything.
    pub fn void(&self, mut hold: Hold) {
        hold.resolve_unbilled();
    }

    /// Usage without a hold, priced already: training, deployment hours. One after the other; reads the disk.
    ///
    /// # Errors
    /// [`LedgerError::Refused`] where the balance does not cover it or a record has that id, [`LedgerError::Unavailable`].
    pub fn charge(&self, record: UsageRecord) -> Result<Pending<Receipt>, LedgerError> {
        let mut charged = self.charged.lock().unwrap_or_else(PoisonError::into_inner);
        let filter = UsageFilter { id: Some(record.facts.id.clone()), ..UsageFilter::default() };
        // The latest may not be readable yet.
        if charged.contains(&record.facts.id) || !self.usage(&filter)?.is_empty() {
            return Err(Refusal::IdReused(record.facts.id).into());
        }
        let detail = chain::record(&record);
        let request = HoldRequest {
            id: record.facts.id.clone(),
            org: record.facts.payer.org.clone(),
            currency: record.currency,
            money: record.amount,
            free_tokens: record.free_tokens,
            model: record.facts.model.clone(),
            now_ms: record.facts.arrival_ms,
        };
        let (done, durable) = oneshot::channel();
        let mut state = self.shared.lock();
        available(&state)?;
        let number = state.book.hold(&request)?;
        let entries = state.book.post(number, record.amount, record.free_tokens, detail)?;
        if charged.len() >= CHARGES_REMEMBERED {
            charged.pop_front();
        }
        charged.push_back(record.facts.id.clone());
        let record_kept = Some(Box::new(record.clone()));
        state.work.push(Work { at_ms: now_ms(), entries, record: record_kept, ..Work::default() });
        state.waiting.push(done);
        self.shared.ring(state);
        Ok(Pending { value: Some(Receipt { record }), durable: Wait::For(durable) })
    }

    /// Applies changes that are not usage: all or none. The same operation under the same id is applied once, and
    /// waits for the first to be durable.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing has changed then.
    pub fn write(&self, changes: Changes) -> Result<Pending<()>, LedgerError> {
        let Changes { operation, documents, messages, deliveries } = changes;
        bounded(&documents, &messages)?;
        let at_ms = now_ms();
        self.write_work(Work {
            at_ms,
            operation,
            documents,
            messages,
            deliveries,
            ..Work::default()
        })
    }

    /// Work that is no request's: its operation makes its lines here.
    pub(crate) fn write_work(&self, mut work: Work) -> Result<Pending<()>, LedgerError> {
        if let Some(agent) = &self.agent {
            return self.write_shared(agent, work);
        }
        let (done, durable) = oneshot::channel();
        let mut state = self.shared.lock();
        available(&state)?;
        if state.work.len() >= MAX_QUEUED {
            return Err(Unavailable::Busy(MAX_QUEUED).into());
        }
        let versions = next_versions(&state, &work.documents)?;
        if let Some((id, operation)) = work.operation.take() {
            work.entries = state.book.apply(&id, &operation)?;
            work.operation = (!work.entries.is_empty()).then_some((id, operation));
        }
        state.documents.extend(versions);
        state.work.push(work);
        state.waiting.push(done);
        self.shared.ring(state);
        Ok(Pending { value: Some(()), durable: Wait::For(durable) })
    }

    /// Where the oldest records stand, for [`Self::prune`]. Reads the disk.
    pub(crate) fn records_before(
        &self,
        before_ms: u64,
        limit: usize,
    ) -> Result<(Vec<u64>, u64), LedgerError> {
        self.read(|reader| reader.records_before(before_ms, limit))
    }

    fn apply(&self, id: &str, operation: Operation) -> Result<Pending<()>, LedgerError> {
        self.write(Changes { operation: Some((id.into(), operation)), ..Changes::default() })
    }

    /// Money came in.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing has changed then.
    pub fn topup(
        &self,
        id: &str,
        org: &str,
        currency: Currency,
        amount: Amount,
    ) -> Result<Pending<()>, LedgerError> {
        self.apply(id, Operation::TopUp { org: org.into(), currency, amount })
    }

    /// Money given away.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing has changed then.
    pub fn credit(
        &self,
        id: &str,
        org: &str,
        currency: Currency,
        amount: Amount,
    ) -> Result<Pending<()>, LedgerError> {
        self.apply(id, Operation::Credit { org: org.into(), currency, amount })
    }

    /// A correction by hand; negative takes.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing has changed then.
    pub fn adjust(
        &self,
        id: &str,
        org: &str,
        currency: Currency,
        amount: Amount,
    ) -> Result<Pending<()>, LedgerError> {
        self.apply(id, Operation::Adjustment { org: org.into(), currency, amount })
    }

    /// Sets how far below zero a balance may go.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing has changed then.
    pub fn credit_line(
        &self,
        id: &str,
        org: &str,
        currency: Currency,
        limit: Amount,
    ) -> Result<Pending<()>, LedgerError> {
        self.apply(id, Operation::CreditLine { org: org.into(), currency, limit })
    }

    /// Gives free quota.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing has changed then.
    pub fn grant(
        &self,
        id: &str,
        grant: &str,
        terms: GrantTerms,
    ) -> Result<Pending<()>, LedgerError> {
        self.apply(id, Operation::Grant { grant: grant.into(), terms })
    }

    /// Whether free quota of this id was granted, so far as memory knows.
    pub fn knows_grant(&self, grant: &str) -> bool {
        self.shared.lock().book.knows_grant(grant)
    }

    /// Gives back part or all of what `record_id` cost. Reads the disk.
    ///
    /// # Errors
    /// [`LedgerError`]; nothing has changed then.
    pub fn refund(
        &self,
        id: &str,
        record_id: &str,
        amount: Amount,
    ) -> Result<Pending<()>, LedgerError> {
        let filter = UsageFilter { id: Some(record_id.into()), ..UsageFilter::default() };
        let found = self.usage(&filter)?.into_iter().next();
        let (posting, record) = found.ok_or_else(|| LedgerError::NoRecord(record_id.to_owned()))?;
        let operation = Operation::Refund {
            org: record.facts.payer.org,
            currency: record.currency,
            amount,
            posting,
            posted: record.amount,
        };
        self.apply(id, operation)
    }

    /// What an organisation can spend: memory, so always up to date. Of accounts shared with other gateways, this
    /// one's slice; [`Self::whole_balance`] has all of it.
    pub fn balance(&self, org: &str, currency: Currency) -> Balance {
        self.shared.lock().book.balance(org, currency)
    }

    /// All balances.
    pub fn balances(&self) -> Vec<(Arc<str>, Currency, Balance)> {
        let state = self.shared.lock();
        state.book.balances().map(|(org, currency, b)| (org.into(), currency, b)).collect()
    }

    /// Free tokens that an organisation could use for a model at `now_ms`.
    pub fn free_left(&self, org: &str, model: &str, now_ms: u64) -> u64 {
        self.shared.lock().book.free_left(org, model, now_ms)
    }

    /// Open holds.
    pub fn open_holds(&self) -> usize {
        self.shared.lock().book.open_holds()
    }

    /// What the writer did so far.
    pub fn writer_counts(&self) -> WriterCounts {
        self.shared.lock().counts
    }

    /// Why nothing is taken at the moment, if so: what readiness asks.
    pub fn trouble(&self) -> Option<Unavailable> {
        self.shared.lock().trouble.clone()
    }

    /// Usage records that are durable, with the numbers of their postings; pages by [`UsageFilter::after`]. Reads the
    /// disk.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn usage(&self, filter: &UsageFilter) -> Result<Vec<(u64, UsageRecord)>, LedgerError> {
        self.read(|reader| reader.usage(filter))
    }

    /// What an organisation's durable usage adds up to. Reads the disk.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn usage_sums(&self, filter: &SumsFilter) -> Result<Vec<UsageSums>, LedgerError> {
        self.read(|reader| reader.sums(filter))
    }

    /// Lines of the log after number `after`. Reads the disk.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn log(&self, after: u64, limit: usize) -> Result<Vec<LogLine>, LedgerError> {
        self.read(|reader| reader.log(after, limit))
    }

    /// Newest versions of all documents of a kind. Reads the disk.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn documents(&self, kind: &str) -> Result<Vec<Document>, LedgerError> {
        self.read(|reader| reader.documents(kind))
    }

    /// All versions of a document. Reads the disk.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn history(&self, kind: &str, id: &str) -> Result<Vec<Document>, LedgerError> {
        self.read(|reader| reader.history(kind, id))
    }

    /// Messages that are due. Reads the disk.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn due_messages(&self, now_ms: u64, limit: usize) -> Result<Vec<Outgoing>, LedgerError> {
        self.read(|reader| reader.due_messages(now_ms, limit))
    }

    /// Reads everything durable and holds it to the chain and to the sums.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn verify(&self) -> Result<Verified, LedgerError> {
        self.read(|reader| reader.verify())
    }

    /// A request with an `Idempotency-Key` comes in: first, again, or once more while the first still runs. Reads the
    /// disk.
    ///
    /// # Errors
    /// [`LedgerError::TooLarge`], [`LedgerError::Store`].
    pub fn begin(
        &self,
        scope: &Arc<str>,
        key: &Arc<str>,
        body_digest: [u8; 32],
        now_ms: u64,
    ) -> Result<Begin, LedgerError> {
        if key.is_empty() || key.len() > MAX_ID_BYTES {
            let text = format!("an idempotency key has 1 to {MAX_ID_BYTES} bytes");
            return Err(LedgerError::TooLarge(text));
        }
        let slot = (scope.clone(), key.clone());
        {
            let mut answering = self.answering.lock().unwrap_or_else(PoisonError::into_inner);
            match answering.get(&slot) {
                Some(known) if *known == body_digest => return Ok(Begin::InFlight),
                Some(_) => return Ok(Begin::OtherBody),
                None => answering.insert(slot.clone(), body_digest),
            };
        }
        // From here the slot is ours; dropped on every other way out.
        let mut answering = Answering { shared: None, all: self.answering.clone(), slot };
        // Before the kept answer is looked for: who had the key keeps its answer before it gives the key back.
        let taken = match &self.agent {
            Some(agent) => Some(agent.take_key(scope, key, body_digest)?),
            None => None,
        };
        match (self.read(|reader| reader.answer(scope, key, now_ms))?, taken) {
            (Some(kept), _) if kept.body_digest == body_digest => Ok(Begin::Again(kept.answer)),
            (Some(_), _) | (None, Some(KeyTaken::OtherBody)) => Ok(Begin::OtherBody),
            (None, Some(KeyTaken::InFlight)) => Ok(Begin::InFlight),
            (None, Some(KeyTaken::Ours(taken))) => {
                answering.shared = Some(taken);
                Ok(Begin::First(answering))
            }
            (None, None) => Ok(Begin::First(answering)),
        }
    }

    fn read<T>(
        &self,
        with: impl FnOnce(&mut dyn Reader) -> Result<T, StoreError>,
    ) -> Result<T, LedgerError> {
        let mut free = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reader = loop {
            match free.pop() {
                Some(reader) => break reader,
                None => {
                    free = self.reader_free.wait(free).unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        drop(free);
        let result = with(&mut *reader);
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        self.reader_free.notify_one();
        Ok(result?)
    }
}

impl Drop for Ledger {
    /// Writes what has queued up.
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            agent.close();
        }
        self.shared.close();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// What an `Idempotency-Key` finds.
#[derive(Debug)]
pub enum Begin {
    /// Nothing: run it, and settle with a [`KeptAnswer`]. Keep the value until that is durable.
    First(Answering),
    /// The same request runs at this moment.
    InFlight,
    /// The key was used for another body.
    OtherBody,
    /// It was answered: the same again, without charge.
    Again(Vec<u8>),
}

/// Idempotency keys of running requests: (scope, key) → digest of the body.
type TakenKeys = HashMap<(Arc<str>, Arc<str>), [u8; 32]>;

/// While it lives, the key is taken.
#[derive(Debug)]
pub struct Answering {
    /// The same at the other gateways, where there are any; held for its drop.
    shared: Option<TakenKey>,
    all: Arc<Mutex<TakenKeys>>,
    slot: (Arc<str>, Arc<str>),
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.slot);
    }
}

/// What is reserved for a running request.
#[must_use = "a hold is settled or voided"]
pub struct Hold {
    shared: Arc<Shared>,
    number: HoldNumber,
    facts: RequestFacts,
    ask: Ask,
    rating: Arc<dyn Rating>,
    quote: Quote,
    currency: Currency,
    is_marked: bool,
    marked_tokens: u64,
    marked_at: Instant,
    /// The tick of the last mark, or of the hold's beginning.
    marked_tick: u128,
    is_open: bool,
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hold")
            .field("id", &self.facts.id)
            .field("quote", &self.quote)
            .finish_non_exhaustive()
    }
}

impl Hold {
    /// The request's facts.
    pub fn facts(&self) -> &RequestFacts {
        &self.facts
    }

    /// Says anew who counted the tokens, where that is known only at the end.
    pub fn metered_by(&mut self, by: Arc<str>) {
        self.facts.metered_by = by;
    }

    /// What is reserved.
    pub fn quote(&self) -> Quote {
        self.quote
    }

    /// Tells how far the request has come: what the client has been sent, so that a crash bills no more than that.
    /// Journalled every [`TOKENS_PER_MARK`] tokens or [`TIME_PER_MARK`], without waiting.
    pub fn progress(&mut self, usage: TokenUsage) {
        let tokens = usage.completion();
        if tokens == 0 || tokens == self.marked_tokens {
            return;
        }
        let is_due = tokens.saturating_sub(self.marked_tokens) >= TOKENS_PER_MARK
            || (self.marked_at.elapsed() >= LEAST_TIME_PER_MARK
                && self.marked_tick != self.shared.tick(TICK));
        if is_due {
            self.mark(usage, tokens);
        }
    }

    fn mark(&mut self, usage: TokenUsage, tokens: u64) {
        let outcome =
            Outcome { end_ms: now_ms(), finish: Arc::from("crash"), ..Outcome::default() };
        let record = self.record(usage, outcome);
        let mut state = self.shared.lock();
        if state.trouble.is_some() {
            return;
        }
        let free = state.book.split_free(self.number, record.free_tokens);
        state.marks.insert(self.facts.id.clone(), Mark { record, free });
        self.shared.ring_for_mark(state);
        self.is_marked = true;
        self.marked_tokens = tokens;
        self.marked_at = Instant::now();
        self.marked_tick = self.shared.tick(TICK);
    }

    /// What this usage costs, never more than what is held: that would be a fault of the price list, and ours.
    fn rated(&self, usage: &TokenUsage) -> Quote {
        let rated = self.rating.rate(&self.ask, usage, self.quote.free_tokens);
        let rated = rated.unwrap_or(self.quote);
        let amount = rated.amount.min(self.quote.amount).max(Amount::ZERO);
        let free_tokens = rated.free_tokens.min(self.quote.free_tokens);
        if amount != rated.amount || free_tokens != rated.free_tokens {
            tracing::error!(
                id = %self.facts.id, ?rated, held = ?self.quote, ?usage,
                "the price of a request exceeds its hold: billed at the hold"
            );
        }
        Quote { amount, free_tokens }
    }

    fn record(&self, usage: TokenUsage, outcome: Outcome) -> UsageRecord {
        let Quote { amount, free_tokens } = self.rated(&usage);
        UsageRecord {
            facts: self.facts.clone(),
            outcome,
            usage,
            price_version: self.rating.version(),
            amount,
            currency: self.currency,
            free_tokens,
            ..UsageRecord::default()
        }
    }

    /// What this usage costs, were it settled now: exactly what [`Ledger::settle`] will post.
    pub fn preview(&self, usage: &TokenUsage) -> (Amount, Currency) {
        (self.rated(usage).amount, self.currency)
    }

    fn resolve_unbilled(&mut self) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        let mut state = self.shared.lock();
        if let Err(refusal) = state.book.void(self.number) {
            tracing::error!(id = %self.facts.id, %refusal, "a hold could not be voided");
        }
        state.marks.remove(&self.facts.id);
        if self.is_marked && stopped(&state).is_none() {
            let unmark = Some(self.facts.id.clone());
            state.work.push(Work { at_ms: now_ms(), unmark, ..Work::default() });
        }
        self.shared.ring(state);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.is_open {
            tracing::error!(id = %self.facts.id, "a hold was dropped unsettled: voided");
            self.resolve_unbilled();
        }
    }
}

/// Something that has happened in memory and resolves when it is durable. Dropping it does not undo it.
#[must_use = "it is durable only once this has resolved"]
#[derive(Debug)]
pub struct Pending<T> {
    value: Option<T>,
    durable: Wait,
}

#[derive(Debug)]
enum Wait {
    For(oneshot::Receiver<Result<(), Unavailable>>),
    Refused(Unavailable),
}

impl<T> Pending<T> {
    fn refused(trouble: Unavailable) -> Self {
        Self { value: None, durable: Wait::Refused(trouble) }
    }

    /// It is durable already.
    pub(crate) fn durable(value: T) -> Self {
        let (done, durable) = oneshot::channel();
        let _ = done.send(Ok(()));
        Self { value: Some(value), durable: Wait::For(durable) }
    }

    /// Blocks until it is durable; not for asynchronous code.
    ///
    /// # Errors
    /// [`Unavailable`]: it is not known to be durable.
    pub fn wait(mut self) -> Result<T, Unavailable> {
        let durable = match self.durable {
            Wait::Refused(trouble) => return Err(trouble),
            Wait::For(durable) => durable.blocking_recv(),
        };
        durable.unwrap_or(Err(Unavailable::Closed))?;
        self.value.take().ok_or(Unavailable::Closed)
    }
}

impl<T: Unpin> Future for Pending<T> {
    type Output = Result<T, Unavailable>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let durable = match &mut self.durable {
            Wait::Refused(trouble) => return Poll::Ready(Err(trouble.clone())),
            Wait::For(durable) => ready!(Pin::new(durable).poll(cx)),
        };
        let durable = durable.unwrap_or(Err(Unavailable::Closed));
        Poll::Ready(durable.and_then(|()| self.value.take().ok_or(Unavailable::Closed)))
    }
}

/// Whether something new is taken.
fn available(state: &State) -> Result<(), Unavailable> {
    if let Some(trouble) = &state.trouble {
        return Err(trouble.clone());
    }
    if state.lease_until.is_some_and(|until| Instant::now() > until) {
        let why =
            "the shared ledger was not heard of in time, and this gateway's lease may be over";
        return Err(Unavailable::Stalled(why.into()));
    }
    if state.book.open_holds() >= MAX_OPEN_HOLDS {
        return Err(Unavailable::Busy(MAX_OPEN_HOLDS));
    }
    Ok(())
}

/// Why not even a running request can be settled. One without room for now can: its settlement queues.
fn stopped(state: &State) -> Option<Unavailable> {
    state.trouble.clone().filter(|t| matches!(t, Unavailable::Failed(_) | Unavailable::Closed))
}

fn bounded(documents: &[Document], messages: &[Message]) -> Result<(), LedgerError> {
    let bodies = documents.iter().map(|d| &d.body).chain(messages.iter().map(|m| &m.body));
    if bodies.into_iter().any(|body| body.len() > MAX_BODY_BYTES) {
        return Err(LedgerError::TooLarge(format!("longer than {MAX_BODY_BYTES} bytes")));
    }
    let names = documents.iter().flat_map(|d| [&d.kind, &d.id]);
    let mut names = names.chain(messages.iter().map(|m| &m.topic));
    if names.any(|name| name.is_empty() || name.len() > MAX_ID_BYTES) {
        return Err(LedgerError::TooLarge(format!("a name has 1 to {MAX_ID_BYTES} bytes")));
    }
    Ok(())
}

type Versions = HashMap<(Arc<str>, Arc<str>), u64>;

fn next_versions(state: &State, documents: &[Document]) -> Result<Versions, LedgerError> {
    let mut versions = Versions::new();
    for document in documents {
        let slot = (document.kind.clone(), document.id.clone());
        let newest = versions.get(&slot).or_else(|| state.documents.get(&slot));
        let current = newest.copied().unwrap_or(0);
        if document.version != current + 1 {
            let (kind, id) = slot;
            return Err(LedgerError::Conflict { kind, id, current });
        }
        versions.insert(slot, document.version);
    }
    Ok(versions)
}

/// Holds that a crash left: posted at their marks, all in one batch.
fn recover(book: &mut Book, marks: Vec<Mark>) -> Result<Batch, LedgerError> {
    let mut batch = Batch::default();
    for Mark { record, free } in marks {
        let request = HoldRequest {
            id: record.facts.id.clone(),
            org: record.facts.payer.org.clone(),
            currency: record.currency,
            money: record.amount,
            ..HoldRequest::default()
        };
        let entries = book.post_unheld(&request, &free, chain::record(&record))?;
        batch.work.push(Work {
            at_ms: now_ms(),
            entries,
            unmark: Some(request.id),
            record: Some(Box::new(record)),
            ..Work::default()
        });
    }
    Ok(batch)
}

/// For its owner only.
pub(crate) fn make_folder(folder: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// One process at a time: memory is the authority, and two memories would not agree.
pub(crate) fn lock(folder: &Path) -> Result<File, LedgerError> {
    let path = folder.join(LOCK_FILE);
    let io = |source| LedgerError::Io { path: path.display().to_string(), source };
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LedgerError::InUse(folder.display().to_string())),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
