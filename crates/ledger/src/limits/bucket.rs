//! A bucket that fills evenly with time. Not here: what is counted.
//!
//! Invariant: exact in integers. The level is kept in 1/60,000 of what is counted, so that a rate of so many a minute
//! adds exactly that many units a millisecond.

/// Units of one counted thing: the milliseconds of a minute.
const UNITS: i128 = 60_000;

/// How a bucket fills and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) per_minute: u64,
    pub(super) capacity: u64,
}

impl Rate {
    /// A minute's allowance at once.
    pub(super) fn minute(per_minute: u64) -> Self {
        Self { per_minute, capacity: per_minute }
    }

    /// A second's allowance at once, at least 1 (of something).
    pub(super) fn second(per_minute: u64) -> Self {
        Self { per_minute, capacity: per_minute.div_ceil(60) }
    }

    /// What a request for `amount` has to find: never more than the bucket can hold, or it would never be served.
    pub(super) fn wanted(self, amount: u64) -> u64 {
        amount.min(self.capacity)
    }
}

/// How full; may be in debt where more was used than reserved.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    /// `None`: full, never used.
    level: Option<(i128, u64)>,
}

impl Bucket {
    fn level(&self, rate: Rate, now_ms: u64) -> i128 {
        let full = i128::from(rate.capacity) * UNITS;
        match self.level {
            None => full,
            Some((level, at_ms)) => {
                let gained = i128::from(rate.per_minute) * i128::from(now_ms.saturating_sub(at_ms));
                level.saturating_add(gained).min(full)
            }
        }
    }

    /// Whole things in it; 0 in debt.
    pub(super) fn remaining(&self, rate: Rate, now_ms: u64) -> u64 {
        u64::try_from(self.level(rate, now_ms).div_euclid(UNITS)).unwrap_or(0)
    }

    /// Until `amount` (at most the capacity counts) is in it, ms; 0: now; `None`: never.
    pub(super) fn wait_ms(&self, rate: Rate, amount: u64, now_ms: u64) -> Option<u64> {
        if amount > 0 && rate.per_minute == 0 {
            return None;
        }
        let wanted = i128::from(rate.wanted(amount)) * UNITS;
        let missing = wanted - self.level(rate, now_ms);
        if missing <= 0 {
            return Some(0);
        }
        // Rounded up, so that whoever waits so long is served.
        let per_ms = i128::from(rate.per_minute.max(1));
        u64::try_from((missing + per_ms - 1) / per_ms).ok()
    }

    /// Until it is full, ms.
    pub(super) fn full_in_ms(&self, rate: Rate, now_ms: u64) -> u64 {
        self.wait_ms(rate, rate.capacity, now_ms).unwrap_or(0)
    }

    /// Takes `amount` out (puts in, where it is negative), whether it is there or not.
    pub(super) fn take(&mut self, rate: Rate, amount: i128, now_ms: u64) {
        let level = self.level(rate, now_ms).saturating_sub(amount.saturating_mul(UNITS));
        // A clock that goes back must not fill the bucket twice for the same time.
        let at_ms = self.level.map_or(now_ms, |(_, at)| at.max(now_ms));
        self.level = Some((level, at_ms));
    }

    pub(super) fn is_full(&self, rate: Rate, now_ms: u64) -> bool {
        self.level(rate, now_ms) >= i128::from(rate.capacity) * UNITS
    }
}
