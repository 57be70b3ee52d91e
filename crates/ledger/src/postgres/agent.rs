//! What a gateway does beside its requests to keep its slices right: gets more before they run dry, gives back what it
//! does not use or others claim, renews its lease, and takes over streams of gateways that died.
//!
//! It runs on a thread of its own with a connection of its own; requests meet it only when a slice does not suffice.
//! Not here: what the database says to all this (the pool), admission (memory). Invariants: money that comes in is in
//! the pool's log before it is in the book, money that goes out has left the gateway's log before it is back in the
//! pool, so a crash in between can only make less of it; nobody waits longer than [`PATIENCE`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::allowance::SHORT;
use super::connect::Session;
use super::dividing::{Dividing, ShareAnswer, SharedLimits};
use super::pool::{self, Claimed, Pool, PoolAccount, Purse, lease_account};
use super::read::Remote;
use super::slice::Spending;
use super::store::{PostgresStore, Tenure};
use super::{PostgresError, PostgresUrl};
use crate::book::{Operation, TOKENS};
use crate::ledger::{Ledger, now_ms};
use crate::limits::Missing;
use crate::money::Amount;
use crate::store::Work;
use crate::writer::{Shared, Unavailable};

/// The longest that a request waits for a larger slice.
const PATIENCE: Duration = Duration::from_millis(2500);
/// How often slices are looked after.
const TICK: Duration = Duration::from_millis(100);
/// ... and claims asked about again while requests wait.
const CLAIM_RETRY: Duration = Duration::from_millis(25);
/// How often the lease is renewed, dead gateways are looked for and grants read again.
const RENEW_EVERY: Duration = Duration::from_millis(2000);
/// How often more than is needed goes back.
const EXCESS_EVERY: Duration = Duration::from_secs(1);
/// How long money stays put for a request that was told that it is there.
const PROMISE: Duration = Duration::from_millis(50);
/// How long it is known that there is nothing.
const DRY: Duration = Duration::from_millis(100);
/// ... and that a free quota is used up.
const QUOTA_DRY: Duration = Duration::from_secs(2);
/// Without renewal for so long nothing is admitted any more: well before others may take the stream over.
const LEASE_SAFE: Duration = Duration::from_millis(8000);
/// Requests that may wait for larger slices.
const MAX_WAITING: usize = 65_536;

/// What the agent is asked.
enum Command {
    /// A request needs so much of a purse.
    Cover(Purse, Amount, oneshot::Sender<bool>),
    /// Operations and documents for the pool.
    Write(Box<Work>, mpsc::SyncSender<Result<(), PostgresError>>),
    /// A request lacks a share of a limit.
    Share(Missing, oneshot::Sender<ShareAnswer>),
    /// Limits are shared from now on.
    Limits(SharedLimits),
    /// A request with this scope and idempotency key has ended.
    Release(Arc<str>, Arc<str>),
    /// Another gateway said something.
    Heard(String),
    /// Give everything back and end.
    Close,
}

/// What listens to documents of a kind that other gateways change.
type Listener = Box<dyn Fn(&str) + Send + Sync>;

/// The thread's handle.
pub(crate) struct Agent {
    tenure: Tenure,
    commands: mpsc::Sender<Command>,
    reader: Remote,
    listeners: Arc<RwLock<Vec<Listener>>>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Begins to look after the slices of a book.
    pub(crate) fn start(
        url: &PostgresUrl,
        tenure: Tenure,
        shared: Arc<Shared>,
    ) -> Result<Self, PostgresError> {
        let (commands, queue) = mpsc::channel();
        let listeners: Arc<RwLock<Vec<Listener>>> = Arc::default();
        let mut work = Working::begin(url, tenure, shared, queue, listeners.clone())?;
        listen(url, commands.clone())?;
        let thread = std::thread::Builder::new()
            .name("ledger-slices".to_owned())
            .spawn(move || work.run())
            .map_err(|e| PostgresError::Unfit(format!("no thread: {e}")))?;
        let reader = Remote::open(url, "balances")?;
        Ok(Self { tenure, commands, reader, listeners, thread: Some(thread) })
    }

    /// Whether it is worth asking the book again: a larger slice came in.
    pub(crate) fn cover(&self, purse: Purse, need: Amount) -> oneshot::Receiver<bool> {
        let (done, answer) = oneshot::channel();
        // An agent that has ended drops the question, which is an answer.
        let _ = self.commands.send(Command::Cover(purse, need, done));
        answer
    }

    /// Writes to the pool, and waits until that is durable.
    pub(crate) fn write(&self, work: Work) -> Result<(), PostgresError> {
        let (done, answer) = mpsc::sync_channel(1);
        let ended = || PostgresError::Unreachable("the gateway is ending".to_owned());
        let command = Command::Write(Box::new(work), done);
        self.commands.send(command).map_err(|_| ended())?;
        answer.recv().map_err(|_| ended())?
    }

    /// More of a limit, or why not.
    pub(crate) fn share(&self, missing: Missing) -> oneshot::Receiver<ShareAnswer> {
        let (done, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Share(missing, done));
        answer
    }

    /// Limits are divided among gateways from now on.
    pub(crate) fn share_limits(&self, limits: SharedLimits) {
        let _ = self.commands.send(Command::Limits(limits));
    }

    /// Takes an idempotency key for a request, unless one that runs at any gateway has it.
    pub(crate) fn take_key(
        &self,
        scope: &Arc<str>,
        key: &Arc<str>,
        body_digest: [u8; 32],
    ) -> Result<KeyTaken, PostgresError> {
        let (scope, key, tenure) = (scope.clone(), key.clone(), self.tenure);
        let place = (scope.clone(), key.clone());
        let known = self
            .reader
            .run(move |session| take_key(session, tenure, &place.0, &place.1, body_digest))?;
        Ok(match known {
            None => KeyTaken::Ours(TakenKey { commands: self.commands.clone(), scope, key }),
            Some(known) if known == body_digest => KeyTaken::InFlight,
            Some(_) => KeyTaken::OtherBody,
        })
    }

    /// The account over all gateways.
    pub(crate) fn account(&self, purse: Purse) -> Result<PoolAccount, PostgresError> {
        self.reader.run(move |session| pool::account(session, &purse))
    }

    /// All accounts of the pool.
    pub(crate) fn purses(&self) -> Result<Vec<Purse>, PostgresError> {
        self.reader.run(pool::purses)
    }

    /// Calls `listener` with the kind of each document that another gateway changes.
    pub(crate) fn on_document(&self, listener: Listener) {
        self.listeners.write().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    /// Gives all slices back and waits until that is done. The writer must still run.
    pub(crate) fn close(&mut self) {
        let _ = self.commands.send(Command::Close);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What taking an idempotency key came to.
pub(crate) enum KeyTaken {
    /// No request that runs has it.
    Ours(TakenKey),
    /// One with the same body has it.
    InFlight,
    /// One with another body has it.
    OtherBody,
}

/// An idempotency key that this gateway has; given back when dropped.
pub(crate) struct TakenKey {
    commands: mpsc::Sender<Command>,
    scope: Arc<str>,
    key: Arc<str>,
}

impl std::fmt::Debug for TakenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TakenKey").finish_non_exhaustive()
    }
}

impl Drop for TakenKey {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Release(self.scope.clone(), self.key.clone()));
    }
}

/// `None` where the key is taken now; else the digest of the body of the request that has it.
fn take_key(
    session: &mut Session,
    tenure: Tenure,
    scope: &str,
    key: &str,
    body_digest: [u8; 32],
) -> Result<Option<[u8; 32]>, PostgresError> {
    let mut transaction = session.client().transaction()?;
    // Rows of gateways that have ended or begun anew stand in nobody's way.
    let taken = transaction.execute(
        "INSERT INTO mintage.answering (scope, key, body_digest, stream, epoch)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (scope, key) DO UPDATE
         SET body_digest = EXCLUDED.body_digest, stream = EXCLUDED.stream, epoch = EXCLUDED.epoch
         WHERE NOT EXISTS (SELECT 1 FROM mintage.stream s WHERE s.id = mintage.answering.stream
             AND s.epoch = mintage.answering.epoch AND s.live AND s.expires > now())",
        &[&scope, &key, &&body_digest[..], &tenure.stream, &tenure.epoch],
    )?;
    let known = match taken {
        0 => {
            let row = transaction.query_opt(
                "SELECT body_digest FROM mintage.answering WHERE scope = $1 AND key = $2",
                &[&scope, &key],
            )?;
            // Given back just now: as good as in flight, for who asks again finds the answer.
            Some(row.map_or(Ok(body_digest), |row| super::rows::digest(&row, 0))?)
        }
        _ => None,
    };
    transaction.commit()?;
    Ok(known)
}

/// Hears what gateways tell each other, on a connection of its own.
fn listen(url: &PostgresUrl, commands: mpsc::Sender<Command>) -> Result<(), PostgresError> {
    use postgres::fallible_iterator::FallibleIterator;
    let url = url.clone();
    let run = move || {
        let mut session: Option<Session> = None;
        loop {
            let heard = (|| {
                let open = match session.take() {
                    Some(open) => open,
                    None => {
                        let mut open = Session::open(&url, "listener")?;
                        open.client().batch_execute(&format!("LISTEN {}", pool::CHANNEL))?;
                        open
                    }
                };
                let open = session.insert(open);
                let mut notifications = open.client().notifications();
                let heard = notifications.timeout_iter(TICK * 5).next()?;
                Ok::<_, PostgresError>(heard.map(|n| n.payload().to_owned()))
            })();
            let word = match heard {
                Ok(Some(word)) => word,
                // Once in a while without a word, so that the end is noticed.
                Ok(None) => String::new(),
                Err(_) => {
                    session = None;
                    std::thread::sleep(RENEW_EVERY / 4);
                    String::new()
                }
            };
            if commands.send(Command::Heard(word)).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("ledger-listener".to_owned());
    thread.spawn(run).map_err(|e| PostgresError::Unfit(format!("no thread: {e}")))?;
    Ok(())
}

struct Waiter {
    need: Amount,
    done: oneshot::Sender<bool>,
    until: Instant,
}

/// One purse as the agent sees it.
#[derive(Default)]
struct Slice {
    /// In the pool's books, so far as is known here.
    leased: i128,
    waiters: VecDeque<Waiter>,
    spending: Spending,
    taken: Option<i128>,
    /// Until when what was promised stays here.
    promised_until: Option<Instant>,
    /// So much was refused, until then.
    dry: Option<(Amount, Instant)>,
    excess_at: Option<Instant>,
}

struct Working {
    url: PostgresUrl,
    tenure: Tenure,
    lease: Arc<str>,
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Command>,
    listeners: Arc<RwLock<Vec<Listener>>>,
    pool: Option<Pool>,
    slices: HashMap<Purse, Slice>,
    start: Instant,
    renewed: Instant,
    waiting: usize,
    dividing: Dividing,
    /// Idempotency keys of requests that have ended.
    released: Vec<(Arc<str>, Arc<str>)>,
}

impl Working {
    fn begin(
        url: &PostgresUrl,
        tenure: Tenure,
        shared: Arc<Shared>,
        queue: mpsc::Receiver<Command>,
        listeners: Arc<RwLock<Vec<Listener>>>,
    ) -> Result<Self, PostgresError> {
        let now = Instant::now();
        let mut work = Self {
            url: url.clone(),
            tenure,
            lease: lease_account(tenure.stream),
            shared,
            queue,
            listeners,
            pool: None,
            slices: HashMap::new(),
            start: now,
            renewed: now,
            waiting: 0,
            dividing: Dividing::default(),
            released: Vec::new(),
        };
        let mut pool = Pool::open(url, tenure)?;
        pool.tidy()?;
        // What was leased by an earlier process and never came into its log.
        for (purse, leased, received) in pool.leased()? {
            let lost = leased.checked_sub(received).unwrap_or_default();
            pool.give_back(&purse, lost, 0)?;
            work.slices.entry(purse).or_default().leased = received.pico();
        }
        work.pool = Some(pool);
        work.look_after(now)?;
        Ok(work)
    }

    fn run(&mut self) {
        let mut looked = Instant::now();
        loop {
            let is_waited_for = self.waiting > 0 || self.dividing.is_waiting();
            let pause = if is_waited_for { CLAIM_RETRY } else { TICK };
            let closing = match self.queue.recv_timeout(pause) {
                Ok(Command::Close) | Err(mpsc::RecvTimeoutError::Disconnected) => true,
                Ok(command) => {
                    self.take(command);
                    // What came together is done together.
                    let mut more: Vec<Command> = self.queue.try_iter().collect();
                    let closing = more.iter().any(|command| matches!(command, Command::Close));
                    more.drain(..).for_each(|command| self.take(command));
                    closing
                }
                Err(mpsc::RecvTimeoutError::Timeout) => false,
            };
            let now = Instant::now();
            let outcome = if closing {
                self.give_all_back()
            } else {
                self.serve_all(now).and_then(|()| self.divide(now)).and_then(|()| {
                    if now.duration_since(looked) < TICK {
                        return Ok(());
                    }
                    looked = now;
                    self.look_after(now)
                })
            };
            match outcome {
                Ok(()) => {}
                Err(PostgresError::Fenced) => {
                    self.stop("its lease expired, and another gateway took its slices over");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "slices cannot be looked after for now");
                    self.pool = None;
                }
            }
            if closing {
                return;
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Cover(purse, need, done) => {
                let now = Instant::now();
                let slice = self.slices.entry(purse).or_default();
                let is_dry = slice.dry.is_some_and(|(least, until)| need >= least && now < until);
                if is_dry || self.waiting >= MAX_WAITING {
                    let _ = done.send(false);
                    return;
                }
                self.waiting += 1;
                slice.waiters.push_back(Waiter { need, done, until: now + PATIENCE });
            }
            Command::Write(work, done) => {
                let outcome = self.pool().and_then(|pool| pool.write(&work));
                if outcome.as_ref().is_err_and(PostgresError::is_transient) {
                    self.pool = None;
                }
                let _ = done.send(outcome);
            }
            Command::Share(missing, done) => self.dividing.ask(missing, done),
            Command::Limits(limits) => self.dividing.begin(limits),
            Command::Release(scope, key) => self.released.push((scope, key)),
            Command::Heard(word) => self.hear(&word),
            Command::Close => {}
        }
    }

    fn hear(&mut self, word: &str) {
        match word.split_once(' ') {
            Some(("freed", account)) => {
                for (purse, slice) in &mut self.slices {
                    if *purse.account == *account {
                        slice.dry = None;
                    }
                }
                if account.starts_with("grant/") {
                    let _ = self.learn_grants();
                }
            }
            Some((SHORT, name)) => self.dividing.heard_of_want(name),
            Some(("document", kind)) => {
                let listeners = self.listeners.read().unwrap_or_else(PoisonError::into_inner);
                listeners.iter().for_each(|listener| listener(kind));
            }
            _ => {}
        }
    }

    /// The connection, opened anew after a loss; then what the database did without our hearing of it is taken in.
    fn pool(&mut self) -> Result<&mut Pool, PostgresError> {
        if self.pool.is_none() {
            let mut pool = Pool::open(&self.url, self.tenure)?;
            for (purse, leased, _) in pool.leased()? {
                let slice = self.slices.entry(purse.clone()).or_default();
                let unknown = leased.pico().saturating_sub(slice.leased);
                slice.leased = leased.pico();
                if unknown > 0 {
                    move_in(&self.shared, &self.lease, &purse, unknown)?;
                }
            }
            self.pool = Some(pool);
        }
        self.pool.as_mut().ok_or(PostgresError::Fenced)
    }

    fn serve_all(&mut self, now: Instant) -> Result<(), PostgresError> {
        if self.waiting == 0 {
            return Ok(());
        }
        let waiting = self.slices.iter().filter(|(_, slice)| !slice.waiters.is_empty());
        let purses: Vec<Purse> = waiting.map(|(purse, _)| purse.clone()).collect();
        for purse in purses {
            self.serve(&purse, now)?;
        }
        Ok(())
    }

    /// Shares of limits, and idempotency keys that are free again.
    fn divide(&mut self, now: Instant) -> Result<(), PostgresError> {
        self.dividing.expire(now);
        let mut dividing = std::mem::take(&mut self.dividing);
        let released = std::mem::take(&mut self.released);
        let outcome = self.pool().and_then(|pool| {
            for (scope, key) in &released {
                pool.release_key(scope, key)?;
            }
            dividing.look_after(pool, now)?;
            dividing.serve(pool, now)
        });
        self.dividing = dividing;
        if outcome.is_err() {
            // Twice does no harm.
            self.released.extend(released);
        }
        outcome
    }

    /// Gets the first that waits what it needs, and with it whoever else it suffices for.
    fn serve(&mut self, purse: &Purse, now: Instant) -> Result<(), PostgresError> {
        self.expire(purse, now);
        let Some((need, all)) = self.needs(purse) else { return Ok(()) };
        let unused = self.unused(purse);
        if unused >= need.pico() {
            self.tell(purse, unused, now);
            return Ok(());
        }
        let missing = Amount::from_pico(need.pico() - unused.max(0));
        let ms = self.ms(now);
        let soon = self.slices.entry(purse.clone()).or_default().spending.wanted(ms);
        let want = Amount::from_pico(all.pico().saturating_add(soon.pico()));
        match self.lease(purse, missing, want)? {
            Claimed::Granted(_) => {
                let unused = self.unused(purse);
                self.tell(purse, unused, now);
            }
            Claimed::Waiting if unused > 0 => {
                // Two gateways must not each keep a half of what one of them needs.
                self.give_back(purse, unused, 0)?;
                self.lease(purse, need, need).map(|_| ())?;
            }
            Claimed::Waiting => {}
            Claimed::Insufficient { .. } => {
                let is_quota = *purse.asset == *TOKENS;
                if is_quota {
                    // Free tokens that do not suffice are used all the same: money pays for the others.
                    let rest = self.pool()?.account(purse)?.unleased;
                    if rest.pico() > 0 {
                        self.lease(purse, rest, rest)?;
                    }
                }
                let slice = self.slices.entry(purse.clone()).or_default();
                slice.dry = Some((need, now + if is_quota { QUOTA_DRY } else { DRY }));
                let before = slice.waiters.len();
                let (refused, kept) =
                    slice.waiters.drain(..).partition(|waiter| waiter.need >= need);
                slice.waiters = kept;
                self.waiting -= before - slice.waiters.len();
                let refused: VecDeque<Waiter> = refused;
                for waiter in refused {
                    let _ = waiter.done.send(false);
                }
            }
        }
        Ok(())
    }

    /// What the first needs, and all together.
    fn needs(&self, purse: &Purse) -> Option<(Amount, Amount)> {
        let waiters = &self.slices.get(purse)?.waiters;
        let all = waiters.iter().map(|waiter| waiter.need).sum();
        Some((waiters.front()?.need, all))
    }

    /// Those that nobody waits for any more, or that waited long enough.
    fn expire(&mut self, purse: &Purse, now: Instant) {
        let Some(slice) = self.slices.get_mut(purse) else { return };
        let before = slice.waiters.len();
        slice.waiters.retain(|waiter| !waiter.done.is_closed() && waiter.until > now);
        self.waiting -= before - slice.waiters.len();
        if slice.waiters.is_empty()
            && before > 0
            && let Some(pool) = &mut self.pool
        {
            // A claim that is not withdrawn ends by itself.
            let _ = pool.cancel_claim(purse);
        }
    }

    /// Tells those for whom `unused` suffices, and keeps it here for a moment.
    fn tell(&mut self, purse: &Purse, mut unused: i128, now: Instant) {
        let slice = self.slices.entry(purse.clone()).or_default();
        while let Some(waiter) = slice.waiters.pop_front() {
            if waiter.need.pico() > unused {
                slice.waiters.push_front(waiter);
                break;
            }
            self.waiting -= 1;
            if waiter.done.send(true).is_ok() {
                unused -= waiter.need.pico();
                slice.promised_until = Some(now + PROMISE);
            }
        }
    }

    fn lease(
        &mut self,
        purse: &Purse,
        need: Amount,
        want: Amount,
    ) -> Result<Claimed, PostgresError> {
        let claimed = self.pool()?.lease(purse, need, want)?;
        if let Claimed::Granted(amount) = claimed
            && !amount.is_zero()
        {
            self.slices.entry(purse.clone()).or_default().leased += amount.pico();
            move_in(&self.shared, &self.lease, purse, amount.pico())?;
        }
        Ok(claimed)
    }

    /// Out of the book and its log, then into the pool.
    fn give_back(&mut self, purse: &Purse, most: i128, ticket: i64) -> Result<(), PostgresError> {
        let out = move_out(&self.shared, &self.lease, purse, most)?;
        self.slices.entry(purse.clone()).or_default().leased -= out;
        self.pool()?.give_back(purse, Amount::from_pico(out), ticket)
    }

    fn unused(&self, purse: &Purse) -> i128 {
        self.shared.lock().book.unused(&purse.account, &purse.asset)
    }

    fn ms(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    /// Everything that has no request behind it.
    fn look_after(&mut self, now: Instant) -> Result<(), PostgresError> {
        if now.duration_since(self.renewed) >= RENEW_EVERY || self.renewed == self.start {
            self.pool()?.renew()?;
            self.renewed = now;
            self.shared.lock().lease_until = Some(now + LEASE_SAFE);
            self.learn_grants()?;
            for stream in self.pool()?.expired()? {
                take_over(&self.url, stream)?;
            }
        }
        for (purse, ticket) in self.pool()?.recalls()? {
            let slice = self.slices.entry(purse.clone()).or_default();
            if slice.promised_until.is_some_and(|until| until > now) {
                continue;
            }
            self.give_back(&purse, i128::MAX, ticket)?;
        }
        let standings = self.shared.lock().book.slices();
        let ms = self.ms(now);
        for standing in standings {
            let purse = Purse { account: standing.account, asset: standing.asset };
            let slice = self.slices.entry(purse.clone()).or_default();
            // What came in or went out is no spending: only what was taken of it is.
            let taken = standing.taken.saturating_add(slice.leased);
            let before = slice.taken.replace(taken).unwrap_or(taken);
            slice.spending.count(Amount::from_pico(taken.saturating_sub(before)), ms);
            let unused = Amount::from_pico(standing.unused);
            let quiet =
                slice.waiters.is_empty() && slice.promised_until.is_none_or(|until| until <= now);
            if quiet && slice.spending.is_low(unused, ms) {
                let want = slice.spending.wanted(ms);
                let missing = want.checked_sub(unused).unwrap_or_default();
                self.lease(&purse, Amount::ZERO, missing)?;
            } else if quiet
                && slice.excess_at.is_none_or(|at| now.duration_since(at) >= EXCESS_EVERY)
            {
                slice.excess_at = Some(now);
                let excess = slice.spending.excess(unused, ms);
                if excess.pico() > 0 {
                    self.give_back(&purse, excess.pico(), 0)?;
                }
            }
        }
        Ok(())
    }

    fn learn_grants(&mut self) -> Result<(), PostgresError> {
        let grants = self.pool()?.grants()?;
        let mut state = self.shared.lock();
        for operation in grants {
            if let Operation::Grant { grant, terms } = operation {
                state.book.learn_grant(&grant, &terms).map_err(PostgresError::Book)?;
            }
        }
        Ok(())
    }

    fn give_all_back(&mut self) -> Result<(), PostgresError> {
        let mut dividing = std::mem::take(&mut self.dividing);
        dividing.end(self.pool()?)?;
        let (shared, lease) = (self.shared.clone(), self.lease.clone());
        drain(&shared, &lease, self.pool()?)
    }

    /// Nothing is admitted or written any more.
    fn stop(&self, why: &str) {
        let mut state = self.shared.lock();
        let trouble = Unavailable::Failed(why.into());
        tracing::error!(error = %trouble, "the ledger has stopped");
        state.trouble = Some(trouble);
    }
}

/// What the pool has leased comes into the book, and into the queue of the gateway's log.
fn move_in(
    shared: &Shared,
    lease: &Arc<str>,
    purse: &Purse,
    amount: i128,
) -> Result<(), PostgresError> {
    let amount = i64::try_from(amount)
        .map_err(|_| PostgresError::Refused("a lease is too large".to_owned()))?;
    let mut state = shared.lock();
    let entry = state.book.lease(lease, &purse.account, &purse.asset, amount);
    let entry = entry.map_err(PostgresError::Book)?;
    state.work.push(Work { at_ms: now_ms(), entries: vec![entry], ..Work::default() });
    shared.ring(state);
    Ok(())
}

/// What is unused, at most `most`, leaves the book and, durably, the gateway's log. Returns how much that was.
fn move_out(
    shared: &Shared,
    lease: &Arc<str>,
    purse: &Purse,
    most: i128,
) -> Result<i128, PostgresError> {
    let (done, durable) = oneshot::channel();
    let mut state = shared.lock();
    if let Some(trouble @ (Unavailable::Failed(_) | Unavailable::Closed)) = &state.trouble {
        // Nobody writes any more.
        return Err(PostgresError::Unreachable(trouble.to_string()));
    }
    let unused = state.book.unused(&purse.account, &purse.asset);
    let out = unused.min(most).min(i128::from(i64::MAX)).max(i128::from(-i64::MAX));
    if out == 0 || (out < 0 && most != i128::MAX) {
        return Ok(0);
    }
    let amount = i64::try_from(-out).unwrap_or(0);
    let entry = state.book.lease(lease, &purse.account, &purse.asset, amount);
    let entry = entry.map_err(PostgresError::Book)?;
    state.work.push(Work { at_ms: now_ms(), entries: vec![entry], ..Work::default() });
    state.waiting.push(done);
    shared.ring(state);
    match durable.blocking_recv() {
        Ok(Ok(())) => Ok(out),
        Ok(Err(trouble)) => Err(PostgresError::Unreachable(trouble.to_string())),
        Err(_) => Err(PostgresError::Unreachable("the writer has ended".to_owned())),
    }
}

/// Everything that is in no open hold goes back; where no hold is open the stream ends in good order.
fn drain(shared: &Shared, lease: &Arc<str>, pool: &mut Pool) -> Result<(), PostgresError> {
    let standings = shared.lock().book.slices();
    for standing in standings {
        let purse = Purse { account: standing.account, asset: standing.asset };
        move_out(shared, lease, &purse, i128::MAX)?;
    }
    for (purse, leased, received) in pool.leased()? {
        let out = leased.checked_sub(received).unwrap_or_default();
        pool.give_back(&purse, out, 0)?;
    }
    if shared.lock().book.open_holds() > 0 {
        tracing::warn!("requests are still open: their slice is settled when the lease expires");
        return Ok(());
    }
    pool.close()
}

/// Settles what a gateway that died left open at its marks, and gives the rest of its slices back.
fn take_over(url: &PostgresUrl, stream: i64) -> Result<(), PostgresError> {
    let Some(store) = PostgresStore::take_over(url, stream)? else { return Ok(()) };
    let tenure = store.tenure();
    tracing::warn!(stream, "taking over what a gateway left whose lease expired");
    let ledger = Ledger::start(Box::new(store), None)
        .map_err(|e| PostgresError::Damaged(format!("stream {stream}: {e}")))?;
    let mut pool = Pool::open(url, tenure)?;
    drain(ledger.memory(), &lease_account(stream), &mut pool)
}
