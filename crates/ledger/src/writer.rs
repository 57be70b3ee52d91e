//! The one thread that writes: takes everything that has queued up since the last commit, commits it as one, tells
//! who waits. While one commit is on its way to the disk the next one gathers.
//!
//! Not here: what is written. Invariants: the order in the store is the order in which memory changed; nobody is told
//! before the commit is durable; after a fatal error nothing is written any more and nobody is told that it was; where
//! only room is missing, the same batch is tried until there is some, and nothing new is admitted meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::book::Book;
use crate::store::{Batch, Mark, Store, StoreErrorKind, Work};

/// How often a batch that found no room is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(250);
/// How long marks wait for others.
const MARKS_GATHER: Duration = Duration::from_millis(15);
/// How long callers wait for room before they hear that there is none; what they settled is written all the same.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the ledger takes nothing at the moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// No room on the disk, or the file is locked: goes on by itself once that is mended.
    #[error("the ledger cannot write for now and admits nothing: {0}")]
    Stalled(Arc<str>),
    /// A write or sync failed for good: the process must be started again, which recovers.
    #[error(
        "the ledger has stopped, because it cannot know what is on the disk: {0}; start the server again"
    )]
    Failed(Arc<str>),
    /// The process is ending.
    #[error("the ledger is closed")]
    Closed,
    /// As many requests as can be held at once.
    #[error("{0} requests are open, which is the most")]
    Busy(usize),
}

/// What callers wait for.
pub(crate) type Done = oneshot::Sender<Result<(), Unavailable>>;

/// Memory: the authority while the process runs.
pub(crate) struct State {
    pub(crate) book: Book,
    /// Newest versions: (kind, id) → version.
    pub(crate) documents: HashMap<(Arc<str>, Arc<str>), u64>,
    pub(crate) work: Vec<Work>,
    pub(crate) waiting: Vec<Done>,
    /// The newest mark of each open hold that is not written yet.
    pub(crate) marks: HashMap<Arc<str>, Mark>,
    /// `None`: running.
    pub(crate) trouble: Option<Unavailable>,
    pub(crate) counts: WriterCounts,
    /// Where slices are leased: until when they are surely ours.
    pub(crate) lease_until: Option<Instant>,
    writer_sleeps: bool,
    /// It sleeps for marks to come together.
    writer_gathers: bool,
}

/// What the writer did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterCounts {
    /// Durable commits.
    pub commits: u64,
    /// Units of work in them.
    pub works: u64,
    /// Time spent committing.
    pub commit_time: Duration,
    /// The longest commit.
    pub longest_commit: Duration,
}

/// Memory and the writer's bell.
pub(crate) struct Shared {
    state: Mutex<State>,
    bell: Condvar,
    start: Instant,
}

impl Shared {
    pub(crate) fn new(book: Book, documents: HashMap<(Arc<str>, Arc<str>), u64>) -> Self {
        let state = State {
            book,
            documents,
            work: Vec::new(),
            waiting: Vec::new(),
            marks: HashMap::new(),
            trouble: None,
            counts: WriterCounts::default(),
            lease_until: None,
            writer_sleeps: false,
            writer_gathers: false,
        };
        Self { state: Mutex::new(state), bell: Condvar::new(), start: Instant::now() }
    }

    /// Held for microseconds: nothing under it waits for anything.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which span of this length it is, counted from the start.
    pub(crate) fn tick(&self, span: Duration) -> u128 {
        self.start.elapsed().as_nanos() / span.as_nanos().max(1)
    }

    /// Lets go of the state and wakes the writer if it sleeps.
    pub(crate) fn ring(&self, mut state: MutexGuard<'_, State>) {
        let sleeps = std::mem::take(&mut state.writer_sleeps);
        drop(state);
        if sleeps {
            self.bell.notify_one();
        }
    }

    /// The same for a mark, which nobody waits for.
    pub(crate) fn ring_for_mark(&self, state: MutexGuard<'_, State>) {
        if !state.writer_gathers {
            self.ring(state);
        }
    }

    /// No more work is taken; what has queued up is still written.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        if !matches!(state.trouble, Some(Unavailable::Failed(_))) {
            state.trouble = Some(Unavailable::Closed);
        }
        drop(state);
        self.bell.notify_one();
    }

    /// The next batch and who waits for it; `None` at the end.
    fn next(&self) -> Option<(Batch, Vec<Done>)> {
        let mut state = self.lock();
        let mut gather_until = None;
        loop {
            let is_urgent = !state.work.is_empty() || !state.waiting.is_empty();
            let is_running = state.trouble.is_none();
            if !is_urgent && !state.marks.is_empty() && is_running {
                // Nobody waits for marks: those of the other holds come along.
                let end = *gather_until.get_or_insert_with(|| Instant::now() + MARKS_GATHER);
                if let Some(left) = end.checked_duration_since(Instant::now()) {
                    (state.writer_sleeps, state.writer_gathers) = (true, true);
                    let waited = self.bell.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    (state.writer_sleeps, state.writer_gathers) = (false, false);
                    continue;
                }
            }
            if !state.work.is_empty() || !state.marks.is_empty() || !state.waiting.is_empty() {
                let work = std::mem::take(&mut state.work);
                let waiting = std::mem::take(&mut state.waiting);
                let marks = std::mem::take(&mut state.marks);
                drop(state);
                return Some((Batch { work, marks: marks.into_iter().collect() }, waiting));
            }
            if state.trouble == Some(Unavailable::Closed) {
                return None;
            }
            state.writer_sleeps = true;
            state = self.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The writer's life.
pub(crate) fn run(shared: &Shared, store: &mut dyn Store) {
    while let Some((batch, waiting)) = shared.next() {
        let Some(waiting) = commit(shared, store, &batch, waiting) else { return };
        for done in waiting {
            // Whoever does not wait any more does not want to know.
            let _ = done.send(Ok(()));
        }
    }
}

/// Commits one batch, however long room is missing. `None`: nothing can be written any more.
fn commit(
    shared: &Shared,
    store: &mut dyn Store,
    batch: &Batch,
    mut waiting: Vec<Done>,
) -> Option<Vec<Done>> {
    let first = Instant::now();
    let mut stalled = false;
    loop {
        let started = Instant::now();
        let error = match store.commit(batch) {
            Ok(()) => {
                committed(shared, batch, started.elapsed(), stalled);
                return Some(waiting);
            }
            Err(error) => error,
        };
        if error.kind != StoreErrorKind::Full {
            fail(shared, &error.message, waiting);
            return None;
        }
        let trouble = Unavailable::Stalled(error.message.into());
        if !stalled {
            tracing::error!(error = %trouble, "the ledger stalls");
        }
        stalled = true;
        if !stall(shared, &trouble) {
            // Closing without room: what was not written stays unsaid.
            tell(waiting, &trouble);
            return None;
        }
        if first.elapsed() >= PATIENCE {
            tell(std::mem::take(&mut waiting), &trouble);
            let late = std::mem::take(&mut shared.lock().waiting);
            tell(late, &trouble);
        }
    }
}

fn committed(shared: &Shared, batch: &Batch, took: Duration, stalled: bool) {
    let mut state = shared.lock();
    let counts = &mut state.counts;
    counts.commits += 1;
    counts.works += batch.work.len() as u64;
    counts.commit_time += took;
    counts.longest_commit = counts.longest_commit.max(took);
    if stalled && matches!(state.trouble, Some(Unavailable::Stalled(_))) {
        state.trouble = None;
        tracing::warn!("the ledger writes again");
    }
}

/// Waits until the next attempt; false where the process is ending.
fn stall(shared: &Shared, trouble: &Unavailable) -> bool {
    let mut state = shared.lock();
    if state.trouble == Some(Unavailable::Closed) {
        return false;
    }
    state.trouble = Some(trouble.clone());
    let end = Instant::now() + RETRY_EVERY;
    // The bell may ring for other reasons meanwhile.
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
        let waited = shared.bell.wait_timeout(state, left);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        if state.trouble == Some(Unavailable::Closed) {
            // One last attempt follows.
            return false;
        }
    }
    true
}

/// Nothing is written any more, and nothing is admitted.
fn fail(shared: &Shared, message: &str, waiting: Vec<Done>) {
    let trouble = Unavailable::Failed(message.into());
    tracing::error!(error = %trouble, "the ledger has stopped");
    let mut state = shared.lock();
    state.trouble = Some(trouble.clone());
    state.work.clear();
    state.marks.clear();
    let late = std::mem::take(&mut state.waiting);
    drop(state);
    tell(waiting, &trouble);
    tell(late, &trouble);
}

fn tell(waiting: Vec<Done>, trouble: &Unavailable) {
    for done in waiting {
        let _ = done.send(Err(trouble.clone()));
    }
}
