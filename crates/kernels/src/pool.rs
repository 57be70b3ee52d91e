//! A persistent pool of threads for fork/join inside one token step.
//!
//! Not a task queue and not work stealing between jobs: one job runs at a time, the caller is thread 0, and `for_each`
//! returns when every item is done. Items are split statically (thread `t` starts on the `t`-th part, so that it meets
//! the same weights at each step) and whoever finishes early takes chunks from the others. A waiting thread spins for
//! [`SPIN`] and then sleeps, so that a core shared with another process is given up instead of burnt.
//!
//! Invariant: the borrowed job is reachable by a worker only between its entry (which succeeds only while the job is
//! open) and its exit, and the caller does not return before the job is closed and nobody is inside. A worker that the
//! system has not scheduled never enters, and never delays the join.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread looks for its next job, or the caller for the last worker, before it sleeps.
const SPIN: Duration = Duration::from_micros(60);
/// Turns of the spin loop between two looks at the clock.
const SPINS_PER_LOOK: u32 = 32;
/// No pool is larger, whatever is asked for.
pub const MAX_THREADS: usize = 1024;

/// `Shared::state`: low bits count the workers inside the job.
const INSIDE: u64 = 0xffff;
/// `Shared::state`: a job may be entered.
const OPEN: u64 = 1 << 16;
/// `Shared::state`: the caller sleeps until the last worker leaves.
const CALLER_SLEEPS: u64 = 1 << 17;
/// `Shared::state`: the job's number starts here.
const EPOCH: u64 = 1 << 18;

/// Threads worth starting: the processor's, less what affinity masks and cgroup quotas (v1 and v2) take away.
#[must_use]
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

type Job<'a> = dyn Fn(Range<usize>) + Sync + 'a;

/// What the workers see of the job that is open.
struct Posted {
    job: *const Job<'static>,
    items: usize,
    chunk: usize,
}

/// A thread's next chunk, on a cache line of its own.
#[repr(align(128))]
struct Cursor(AtomicUsize);

struct Worker {
    thread: Mutex<Option<Thread>>,
    asleep: AtomicBool,
}

struct Shared {
    state: AtomicU64,
    posted: UnsafeCell<Option<Posted>>,
    cursors: Vec<Cursor>,
    workers: Vec<Worker>,
    caller: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

// SAFETY: `posted` is the only field that is not `Sync` by itself. It is written by the one caller that holds
// `Pool::turn`, only while the job is closed and nobody is inside, and read by workers only between entering an open job
// (an acquiring read-modify-write of `state`, after the caller's releasing store) and leaving it (a releasing one, which
// the caller acquires before it writes again). The pointer inside is to a `Sync` closure that outlives the job.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only ever followed while its closure is alive, from whichever thread, and is `Sync`.
unsafe impl Send for Shared {}

/// Persistent threads that share one borrowed job at a time.
pub struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can be left half done, so a poisoned one is as good as any.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool in which `threads` (at least 1, at most [`MAX_THREADS`]) run a job, the caller counted. Where the system
    /// refuses to start that many, the pool is smaller; see [`Pool::threads`].
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let threads = threads.clamp(1, MAX_THREADS);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            posted: UnsafeCell::new(None),
            cursors: (0..threads).map(|_| Cursor(AtomicUsize::new(0))).collect(),
            workers: (1..threads)
                .map(|_| Worker { thread: Mutex::new(None), asleep: AtomicBool::new(false) })
                .collect(),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let mut handles = Vec::with_capacity(threads - 1);
        for index in 1..threads {
            let mine = Arc::clone(&shared);
            let spawned = std::thread::Builder::new()
                .name(format!("mintage-{index}"))
                .spawn(move || mine.work(index));
            let Ok(handle) = spawned else { break };
            *lock(&shared.workers[index - 1].thread) = Some(handle.thread().clone());
            handles.push(handle);
        }
        Self { shared, handles, turn: Mutex::new(()) }
    }

    /// How many threads run a job, the caller counted.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Runs `job(i)` once for each `i` below [`Pool::threads`], on thread `i` unless that thread is late: then whoever is
    /// free takes its turn. So no `job(i)` may wait for another.
    ///
    /// # Panics
    /// Resumes the first panic of a job, after all threads have left it.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        self.for_each(self.threads(), 1, &|range| range.for_each(job));
    }

    /// Runs `job` on ranges that cover `0..items` once, each of at most `chunk` items and starting at a multiple of
    /// `chunk` (at least 1). From inside a job, or while another thread has one running, the whole runs on the caller.
    ///
    /// # Panics
    /// Resumes the first panic of a job, after all threads have left it.
    pub fn for_each(&self, items: usize, chunk: usize, job: &(dyn Fn(Range<usize>) + Sync)) {
        let chunk = chunk.max(1);
        let chunks = items.div_ceil(chunk);
        let turn = if chunks > 1 && !self.handles.is_empty() {
            self.turn.try_lock()
        } else {
            return alone(items, chunk, job);
        };
        let _turn = match turn {
            Ok(turn) => turn,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return alone(items, chunk, job),
        };
        self.shared.open(job, items, chunk, self.threads());
        // SAFETY: `open` has posted this very job, which the borrow keeps alive beyond `close`.
        let mine = catch_unwind(AssertUnwindSafe(|| unsafe { self.shared.take_chunks(0) }));
        self.shared.close();
        let theirs = lock(&self.shared.panic).take();
        if let Some(payload) = mine.err().or(theirs) {
            resume_unwind(payload);
        }
    }
}

fn alone(items: usize, chunk: usize, job: &Job<'_>) {
    let mut start = 0;
    while start < items {
        let end = items.min(start.saturating_add(chunk));
        job(start..end);
        start = end;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // A worker catches its job's panics; there is nothing in the result.
            let _ = handle.join();
        }
    }
}

/// The chunks of thread `index`'s part, out of `chunks` split over `parts`.
fn part(index: usize, parts: usize, chunks: usize) -> Range<usize> {
    let start = |i: usize| (i as u128 * chunks as u128 / parts as u128) as usize;
    start(index)..start(index + 1)
}

impl Shared {
    /// Posts a job and wakes those who sleep, as many as there are chunks for.
    fn open(&self, job: &Job<'_>, items: usize, chunk: usize, threads: usize) {
        let chunks = items.div_ceil(chunk);
        for (index, cursor) in self.cursors.iter().enumerate() {
            cursor.0.store(part(index, self.cursors.len(), chunks).start, Ordering::Relaxed);
        }
        // SAFETY: only the lifetime changes. The pointer is followed by those inside the job only, and `close` waits for
        // them before the borrow ends.
        let job = unsafe {
            std::mem::transmute::<*const Job<'_>, *const Job<'static>>(std::ptr::from_ref(job))
        };
        // SAFETY: the job is closed and nobody is inside (the last `close` saw to it), and `Pool::turn` is held.
        unsafe { *self.posted.get() = Some(Posted { job, items, chunk }) };
        let state = self.state.load(Ordering::Relaxed);
        let epoch = (state & !(EPOCH - 1)).wrapping_add(EPOCH);
        // SeqCst here and at `asleep` and `state` in `wait_for_job`: either the worker sees the job or we see it sleep.
        self.state.store(epoch | OPEN, Ordering::SeqCst);
        for worker in self.workers.iter().take(threads.min(chunks) - 1) {
            if worker.asleep.load(Ordering::SeqCst)
                && let Some(thread) = lock(&worker.thread).as_ref()
            {
                thread.unpark();
            }
        }
    }

    /// Lets nobody in any more and waits until all are out.
    fn close(&self) {
        let state = self.state.fetch_and(!OPEN, Ordering::AcqRel);
        if state & INSIDE == 0 || spin_until(|| self.state.load(Ordering::Acquire) & INSIDE == 0) {
            return;
        }
        *lock(&self.caller) = Some(std::thread::current());
        self.state.fetch_or(CALLER_SLEEPS, Ordering::AcqRel);
        while self.state.load(Ordering::Acquire) & INSIDE != 0 {
            std::thread::park();
        }
    }

    /// Runs chunks until none is left: first this thread's part, then what is left of the others'.
    ///
    /// # Safety
    /// The caller is the one who posted the job, or has entered it and not left it.
    unsafe fn take_chunks(&self, index: usize) {
        // SAFETY: the caller is inside the job, so nobody writes `posted` and the closure is alive.
        let Some((job, items, chunk)) =
            (unsafe { (*self.posted.get()).as_ref().map(|p| (&*p.job, p.items, p.chunk)) })
        else {
            return;
        };
        let chunks = items.div_ceil(chunk);
        let parts = self.cursors.len();
        for other in 0..parts {
            let victim = (index + other) % parts;
            let end = part(victim, parts, chunks).end;
            // The load first: a finished part is passed over without taking its cache line.
            while self.cursors[victim].0.load(Ordering::Relaxed) < end {
                let taken = self.cursors[victim].0.fetch_add(1, Ordering::Relaxed);
                if taken >= end {
                    break;
                }
                let start = taken * chunk;
                job(start..items.min(start.saturating_add(chunk)));
            }
        }
    }

    /// The life of a worker.
    fn work(&self, index: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.wait_for_job(index, seen) {
            seen = epoch;
            if !self.enter(epoch) {
                continue;
            }
            // SAFETY: entered above, left below.
            let result = catch_unwind(AssertUnwindSafe(|| unsafe { self.take_chunks(index) }));
            if let Err(payload) = result {
                lock(&self.panic).get_or_insert(payload);
            }
            self.leave();
        }
    }

    /// The number of an open job other than `seen`, or nothing when the pool is dropped.
    fn wait_for_job(&self, index: usize, seen: u64) -> Option<u64> {
        let news = |order| {
            let state = self.state.load(order);
            let epoch = state & !(EPOCH - 1);
            (state & OPEN != 0 && epoch != seen).then_some(epoch)
        };
        let stopped = || self.stop.load(Ordering::SeqCst);
        loop {
            if spin_until(|| news(Ordering::Relaxed).is_some() || self.stop.load(Ordering::Relaxed))
            {
                return if stopped() { None } else { news(Ordering::Relaxed).or(Some(seen)) };
            }
            let asleep = &self.workers[index - 1].asleep;
            asleep.store(true, Ordering::SeqCst);
            while news(Ordering::SeqCst).is_none() && !stopped() {
                std::thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
        }
    }

    /// Counts this worker in, if job `epoch` is still open.
    fn enter(&self, epoch: u64) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        while state & OPEN != 0 && state & !(EPOCH - 1) == epoch {
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    /// Counts this worker out, and wakes the caller if it was the last that it waited for.
    fn leave(&self) {
        let state = self.state.fetch_sub(1, Ordering::AcqRel);
        if state & INSIDE == 1
            && state & CALLER_SLEEPS != 0
            && let Some(caller) = lock(&self.caller).as_ref()
        {
            caller.unpark();
        }
    }
}

/// Spins for [`SPIN`] at most; whether `done` came true.
fn spin_until(done: impl Fn() -> bool) -> bool {
    if done() {
        return true;
    }
    let start = Instant::now();
    loop {
        for _ in 0..SPINS_PER_LOOK {
            std::hint::spin_loop();
            if done() {
                return true;
            }
        }
        if start.elapsed() > SPIN {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDS: usize = if cfg!(miri) { 5 } else { 2000 };

    fn check_covers(threads: usize, items: usize, chunk: usize) {
        let pool = Pool::new(threads);
        for _ in 0..ROUNDS / 100 + 1 {
            let hits: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            pool.for_each(items, chunk, &|range| {
                assert!(range.len() <= chunk.max(1) && range.start % chunk.max(1) == 0);
                for i in range {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(
                hits.iter().all(|h| h.load(Ordering::Relaxed) == 1),
                "{threads} {items} {chunk}"
            );
        }
    }

    #[test]
    fn each_item_once() {
        for threads in [1, 2, 3, 4] {
            for (items, chunk) in [(0, 1), (1, 1), (2, 1), (7, 2), (64, 3), (100, 1000), (5, 0)] {
                check_covers(threads, items, chunk);
            }
        }
    }

    #[test]
    fn run_reaches_each_index_once() {
        let pool = Pool::new(3);
        for _ in 0..ROUNDS {
            let hits: [AtomicUsize; 3] = std::array::from_fn(|_| AtomicUsize::new(0));
            pool.run(&|i| {
                hits[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn works_after_sleep() {
        let pool = Pool::new(2);
        for _ in 0..5 {
            std::thread::sleep(SPIN * 20);
            let sum = AtomicUsize::new(0);
            pool.for_each(10, 1, &|r| {
                std::thread::sleep(Duration::from_micros(200));
                sum.fetch_add(r.start, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 45);
        }
    }

    #[test]
    fn both_threads_take_part() {
        let pool = Pool::new(2);
        let names = Mutex::new(std::collections::HashSet::new());
        pool.for_each(20, 1, &|_| {
            std::thread::sleep(Duration::from_millis(1));
            lock(&names).insert(std::thread::current().id());
        });
        assert_eq!(lock(&names).len(), 2);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for bad in 0..9 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.for_each(9, 1, &|r| {
                    std::thread::sleep(Duration::from_micros(50));
                    assert_ne!(r.start, bad, "planned");
                });
            }));
            assert!(caught.is_err(), "{bad}");
            let sum = AtomicUsize::new(0);
            pool.for_each(9, 1, &|r| {
                sum.fetch_add(r.start, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 36);
        }
    }

    #[test]
    fn nested_and_concurrent_calls_complete() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        let add = |r: Range<usize>| {
            sum.fetch_add(r.len(), Ordering::Relaxed);
        };
        pool.for_each(4, 1, &|_| pool.for_each(10, 3, &add));
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| pool.for_each(20, 1, &add));
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn asks_for_sane_sizes() {
        assert_eq!(Pool::new(0).threads(), 1);
        assert!(available_threads() >= 1);
    }

    /// Not a test by itself: what this process is granted, for [`threads_granted`].
    #[test]
    fn prints_what_it_is_granted() {
        println!("granted {}", available_threads());
    }

    /// What a process that `wrapper` (a shell script that ends with `exec "$@"`) starts is granted.
    #[cfg(all(target_os = "linux", not(miri)))]
    fn threads_granted(wrapper: &str) -> Option<usize> {
        let name = "pool::tests::prints_what_it_is_granted";
        let out = std::process::Command::new("sh")
            .args(["-c", wrapper, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .output()
            .unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let number = text.split("granted ").nth(1)?;
        number.split_whitespace().next()?.parse().ok()
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    #[test]
    fn affinity_and_cgroup_quotas_are_honoured() {
        match threads_granted(r#"exec taskset -c 0 "$@""#) {
            Some(threads) => assert_eq!(threads, 1, "pinned to one core"),
            None => eprintln!("skipped: no `taskset` here"),
        }
        // A group of our own with one core's time: version 2, or version 1, wherever we may make one.
        let folders = [
            ("/sys/fs/cgroup", "cpu.max", "100000 100000"),
            ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "100000"),
        ];
        let mut tried = 0;
        for (root, limit, value) in folders {
            let group = format!("{root}/mintage-test-{}", std::process::id());
            let script = format!(
                r#"echo {value} > {group}/{limit} && echo $$ > {group}/cgroup.procs && exec "$@""#
            );
            if std::fs::create_dir(&group).is_err() {
                continue;
            }
            // A folder that is no group has no list of processes, a controller that is off no limit.
            let is_group = ["cgroup.procs", limit]
                .iter()
                .all(|file| std::path::Path::new(&format!("{group}/{file}")).exists());
            let threads = if is_group { threads_granted(&script) } else { None };
            let removed = std::fs::remove_dir(&group);
            if let Some(threads) = threads {
                assert_eq!(threads, 1, "{group}/{limit}");
                tried += 1;
            }
            assert!(removed.is_ok(), "{group} is still there: {removed:?}");
        }
        if tried == 0 {
            eprintln!("skipped: no cgroup can be made here");
        }
    }
}
