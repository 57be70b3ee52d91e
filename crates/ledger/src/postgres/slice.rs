//! How large a slice should be: pure, the clock is passed in.
//!
//! Invariants: a gateway asks for what it will spend soon and keeps little more; the pool hands out a part that shrinks
//! with what is left, so that the last yuan is not locked in slices where nobody needs it.

use crate::money::Amount;

/// A slice lasts about so long at the rate of spending.
const HORIZON_MS: i128 = 2000;
/// More is asked for in advance when what is unused lasts less than this.
const LOW_MS: i128 = 700;
/// What lasts longer than this is given back.
const HIGH_MS: i128 = 10_000;
/// Over which time the rate of spending is averaged.
const AVERAGE_MS: i128 = 3000;

/// How fast one gateway spends one account's money.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spending {
    /// Pico in 1,000 s, so that slow spending has a rate.
    rate: i128,
    spent: i128,
    since_ms: u64,
}

impl Spending {
    /// Counts money held for a request.
    pub fn count(&mut self, amount: Amount, now_ms: u64) {
        self.decay(now_ms);
        self.spent = self.spent.saturating_add(amount.pico().max(0));
    }

    fn decay(&mut self, now_ms: u64) {
        let elapsed = i128::from(now_ms.saturating_sub(self.since_ms));
        if elapsed < AVERAGE_MS / 10 {
            return;
        }
        let recent = self.spent.saturating_mul(1_000_000) / elapsed;
        let weight = elapsed.min(AVERAGE_MS);
        let old = self.rate.saturating_mul(AVERAGE_MS - weight);
        self.rate = old.saturating_add(recent.saturating_mul(weight)) / AVERAGE_MS;
        (self.spent, self.since_ms) = (0, now_ms);
    }

    fn in_ms(&self, span_ms: i128) -> Amount {
        // What was spent since the last average counts at once: a burst must not wait for the average to notice.
        let soon = self.rate.saturating_mul(span_ms) / 1_000_000;
        Amount::from_pico(soon.max(self.spent))
    }

    /// What to ask for.
    pub fn wanted(&mut self, now_ms: u64) -> Amount {
        self.decay(now_ms);
        self.in_ms(HORIZON_MS)
    }

    /// Whether more should be asked for before `unused` is gone.
    pub fn is_low(&mut self, unused: Amount, now_ms: u64) -> bool {
        self.decay(now_ms);
        let low = self.rate.saturating_mul(LOW_MS) / 1_000_000;
        self.rate > 0 && unused.pico() < low
    }

    /// What of `unused` to give back.
    pub fn excess(&mut self, unused: Amount, now_ms: u64) -> Amount {
        self.decay(now_ms);
        let keep = self.rate.saturating_mul(HIGH_MS) / 1_000_000;
        if unused.pico() <= keep {
            return Amount::ZERO;
        }
        Amount::from_pico(unused.pico() - self.in_ms(HORIZON_MS).pico().min(unused.pico()))
    }
}

/// What the pool hands out beyond the need: half of an even share of what is left.
pub(super) fn spare(available: Amount, need: Amount, want: Amount, gateways: i64) -> Amount {
    let left = available.pico().saturating_sub(need.pico()).max(0);
    let share = left / (2 * i128::from(gateways.max(1)));
    let extra = want.pico().saturating_sub(need.pico()).max(0);
    Amount::from_pico(extra.min(share))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pico(n: i128) -> Amount {
        Amount::from_pico(n)
    }

    #[test]
    fn the_size_follows_the_rate() {
        let mut spending = Spending::default();
        for ms in 0..10_000 {
            spending.count(pico(1000), ms);
        }
        let wanted = spending.wanted(10_000).pico();
        assert!((1_900_000..2_100_000).contains(&wanted), "{wanted}");
        assert!(spending.is_low(pico(600_000), 10_000) && !spending.is_low(pico(800_000), 10_000));
        assert_eq!(spending.excess(pico(9_000_000), 10_000), Amount::ZERO);
        // It stops: soon nothing is wanted and all is given back.
        assert!(spending.wanted(40_000).pico() < 10_000);
        assert!(spending.excess(pico(9_000_000), 40_000).pico() > 8_900_000);
        assert!(!spending.is_low(Amount::ZERO, 80_000));
    }

    #[test]
    fn the_spare_shrinks_with_the_pool() {
        for (available, need, want, gateways, expected) in [
            (1_000_000, 10, 100, 3, 90),
            (610, 10, 1000, 3, 100),
            (12, 10, 1000, 3, 0),
            (10, 10, 1000, 1, 0),
            (5, 10, 1000, 1, 0),
            (100, 0, 1000, 0, 50),
        ] {
            let got = spare(pico(available), pico(need), pico(want), gateways);
            assert_eq!(got.pico(), expected, "{available} {need} {want} {gateways}");
        }
    }
}
