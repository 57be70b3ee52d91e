//! A gateway's part in dividing limits: asks for shares that requests lack, and gives back what nobody uses here.
//!
//! It runs on the agent's thread. Not here: how the database divides (`allowance`), what requests take (the limiter).
//! Invariants: nobody waits longer than [`PATIENCE`]; what is given back has left the limiter first.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::PostgresError;
use super::allowance::{Allowed, is_named};
use super::pool::Pool;
use crate::limits::{BudgetReached, Calendar, Limiter, Missing, ShareId, ShareLimit, Watch};
use crate::store::Message;

/// How long others may take to give back what a request here lacks of a total.
const PATIENCE: Duration = Duration::from_millis(800);
/// How long it is known that there is nothing.
const DRY: Duration = Duration::from_millis(100);
/// How often shares go back that were not touched since the last time.
const GIVE_BACK_EVERY: Duration = Duration::from_millis(700);
/// Who asks again within so long has appetite for more ...
const SOON: Duration = Duration::from_secs(1);
/// ... up to so many times what is needed, which the pool may still cut.
const MAX_TIMES: i128 = 64;
/// Requests that may wait for shares.
const MAX_WAITING: usize = 65_536;
/// Names remembered that others lack shares of; beyond them all that is idle goes back.
const MAX_WANTED: usize = 4_096;

/// Whose keys share a key's counters: the ids of its rotations.
pub type KeysOf = dyn Fn(&str) -> Vec<String> + Send + Sync;
/// Under which id a key's counters lie.
pub type LineageOf = dyn Fn(&Arc<str>) -> Arc<str> + Send + Sync;
/// The message that a budget of an organisation is used up.
pub type Notice = dyn Fn(&BudgetReached, &str) -> Message + Send + Sync;

/// The limits of a gateway that shares them with others.
pub struct SharedLimits {
    /// Its counters.
    pub limiter: Arc<Mutex<Limiter>>,
    /// When days and months begin: the same for all gateways.
    pub calendar: Calendar,
    /// For keys: under which ids their usage is recorded.
    pub keys_of: Box<KeysOf>,
    /// ... and the other way round.
    pub lineage_of: Box<LineageOf>,
    /// What is said of a budget that is used up.
    pub notice: Box<Notice>,
}

impl fmt::Debug for SharedLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedLimits").finish_non_exhaustive()
    }
}

/// What became of a wish for a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareAnswer {
    /// More is here: ask the limiter again.
    Again,
    /// There is no more; of a rate, for so many ms.
    Later(Option<u64>),
}

struct Asking {
    missing: Missing,
    done: oneshot::Sender<ShareAnswer>,
    since: Instant,
}

/// All that the agent knows of shares.
#[derive(Default)]
pub(super) struct Dividing {
    limits: Option<SharedLimits>,
    asking: HashMap<ShareId, VecDeque<Asking>>,
    waiting: usize,
    wanted: HashSet<String>,
    dry: HashMap<ShareId, (i128, Instant, Option<u64>)>,
    /// How many times as much as is needed was got the last time, and when.
    appetite: HashMap<ShareId, (i128, Instant)>,
    gave_back: Option<Instant>,
    /// Whether what an earlier process of this gateway had has come back.
    is_clean: bool,
    /// What has left the limiter and is not known to be back, with the number of the return.
    returning: VecDeque<(u32, Vec<(ShareId, i128)>)>,
    returns: u32,
    /// Budgets of which the database does not know yet who is to hear.
    watches: VecDeque<Watch>,
}

impl Dividing {
    pub(super) fn begin(&mut self, limits: SharedLimits) {
        self.limits = Some(limits);
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    pub(super) fn ask(&mut self, missing: Missing, done: oneshot::Sender<ShareAnswer>) {
        let since = Instant::now();
        let known = self
            .dry
            .get(&missing.share)
            .filter(|(need, until, _)| missing.need >= *need && since < *until);
        if let Some((_, _, later_ms)) = known {
            let _ = done.send(ShareAnswer::Later(*later_ms));
        } else if self.waiting >= MAX_WAITING {
            let _ = done.send(ShareAnswer::Later(None));
        } else {
            self.waiting += 1;
            let share = missing.share.clone();
            self.asking.entry(share).or_default().push_back(Asking { missing, done, since });
        }
    }

    /// Another gateway lacks some of this.
    pub(super) fn heard_of_want(&mut self, name: &str) {
        if self.wanted.len() < MAX_WANTED {
            self.wanted.insert(name.to_owned());
        }
    }

    /// Nobody waits longer, whether the database answers or not.
    pub(super) fn expire(&mut self, now: Instant) {
        for asking in self.asking.values_mut() {
            let before = asking.len();
            asking.retain_mut(|one| {
                !one.done.is_closed() && now.duration_since(one.since) < 2 * PATIENCE
            });
            // Who is dropped hears so.
            self.waiting -= before - asking.len();
        }
        self.asking.retain(|_, asking| !asking.is_empty());
    }

    /// Asks for what is lacked.
    pub(super) fn serve(&mut self, pool: &mut Pool, now: Instant) -> Result<(), PostgresError> {
        let shares: Vec<ShareId> = self.asking.keys().cloned().collect();
        for share in shares {
            self.serve_share(pool, &share, now)?;
        }
        self.asking.retain(|_, asking| !asking.is_empty());
        Ok(())
    }

    fn serve_share(
        &mut self,
        pool: &mut Pool,
        share: &ShareId,
        now: Instant,
    ) -> Result<(), PostgresError> {
        let Some(limits) = &self.limits else { return Ok(()) };
        let Some(asking) = self.asking.get_mut(share) else { return Ok(()) };
        while let Some(first) = asking.front() {
            let want: i128 = asking.iter().map(|one| one.missing.need).sum();
            // Asked again soon: twice as much, so that most requests find what they need here.
            let grown = self.appetite.get(share).filter(|(_, at)| now.duration_since(*at) < SOON);
            let times = grown.map_or(1, |(times, _)| (times * 2).min(MAX_TIMES));
            let want = want.saturating_mul(times);
            match pool.allow(&first.missing, want, limits)? {
                Allowed::Granted(granted) => {
                    let mut limiter = limits.limiter.lock().unwrap_or_else(PoisonError::into_inner);
                    limiter.grant_share(share.clone(), granted);
                    drop(limiter);
                    self.appetite.insert(share.clone(), (times, now));
                    let mut left = granted;
                    while let Some(one) = asking.pop_front_if(|one| one.missing.need <= left) {
                        left -= one.missing.need;
                        self.waiting -= 1;
                        let _ = one.done.send(ShareAnswer::Again);
                    }
                }
                Allowed::Later(later_ms) => {
                    let is_rate = matches!(first.missing.limit, ShareLimit::Rate { .. });
                    if !is_rate && now.duration_since(first.since) < PATIENCE {
                        return Ok(());
                    }
                    let need = first.missing.need;
                    self.dry.insert(share.clone(), (need, now + DRY, later_ms));
                    self.waiting -= asking.len();
                    for one in asking.drain(..) {
                        let _ = one.done.send(ShareAnswer::Later(later_ms));
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives back what is idle, what others want, and what was used too much; counts what was spent of budgets.
    pub(super) fn look_after(
        &mut self,
        pool: &mut Pool,
        now: Instant,
    ) -> Result<(), PostgresError> {
        self.dry.retain(|_, (_, until, _)| *until > now);
        self.appetite.retain(|_, (_, at)| now.duration_since(*at) < SOON);
        let Some(limits) = &self.limits else { return Ok(()) };
        if !self.is_clean {
            pool.free_own_shares(limits)?;
            self.is_clean = true;
        }
        let is_time = self.gave_back.is_none_or(|at| now.duration_since(at) >= GIVE_BACK_EVERY);
        if !is_time && self.wanted.is_empty() {
            return Ok(());
        }
        let wanted = std::mem::take(&mut self.wanted);
        let mut limiter = limits.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let back = limiter.give_back_shares(|share| is_named(share, &wanted));
        self.watches.extend(limiter.new_watches());
        drop(limiter);
        self.give_back(pool, back)?;
        if is_time {
            self.gave_back = Some(now);
            self.count(pool)?;
        }
        Ok(())
    }

    fn give_back(
        &mut self,
        pool: &mut Pool,
        mut back: Vec<(ShareId, i128)>,
    ) -> Result<(), PostgresError> {
        if !back.is_empty() {
            // Rows are locked in one order by all.
            back.sort_by_cached_key(|(share, _)| share.text());
            self.returns += 1;
            self.returning.push_back((self.returns, back));
        }
        while let Some((number, back)) = self.returning.front() {
            pool.restore(*number, back)?;
            self.returning.pop_front();
        }
        Ok(())
    }

    fn count(&mut self, pool: &mut Pool) -> Result<(), PostgresError> {
        let Some(limits) = &self.limits else { return Ok(()) };
        while let Some(watch) = self.watches.front() {
            pool.watch_budget(watch, limits)?;
            self.watches.pop_front();
        }
        pool.count_budgets(limits).map(|_| ())
    }

    /// The gateway ends: everything that no request has goes back, and what was spent is counted.
    pub(super) fn end(&mut self, pool: &mut Pool) -> Result<(), PostgresError> {
        let Some(limits) = &self.limits else { return Ok(()) };
        let mut limiter = limits.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let back = limiter.give_back_shares(|_| true);
        self.watches.extend(limiter.new_watches());
        drop(limiter);
        self.give_back(pool, back)?;
        self.count(pool)?;
        self.limits = None;
        Ok(())
    }
}
