//! What was spent in the latest days and months, and what is held at the moment.
//!
//! Invariant: a clock that jumps forth and back finds the sums of both times again; a few periods are kept.

use super::Period;

/// Periods kept of each kind.
const KEPT: usize = 4;

/// Money and tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    /// 10⁻¹² of the currency's unit.
    pub(super) pico: i128,
    pub(super) tokens: u64,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.pico = self.pico.saturating_add(other.pico);
        self.tokens = self.tokens.saturating_add(other.tokens);
    }

    fn sub(&mut self, other: Self) {
        self.pico = self.pico.saturating_sub(other.pico);
        self.tokens = self.tokens.saturating_sub(other.tokens);
    }
}

/// One period's sums.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    number: i64,
    pub(super) spent: Sum,
    pub(super) held: Sum,
}

/// Both kinds of periods.
#[derive(Clone, Debug, Default)]
pub(super) struct Spend {
    days: Vec<Slot>,
    months: Vec<Slot>,
}

impl Spend {
    fn slots(&self, period: Period) -> &Vec<Slot> {
        match period {
            Period::Day => &self.days,
            Period::Month => &self.months,
        }
    }

    fn slot_mut(&mut self, period: Period, number: i64) -> &mut Slot {
        let slots = match period {
            Period::Day => &mut self.days,
            Period::Month => &mut self.months,
        };
        let at = match slots.iter().position(|slot| slot.number == number) {
            Some(at) => at,
            None => {
                if slots.len() >= KEPT
                    && let Some(oldest) = (0..slots.len()).min_by_key(|i| slots[*i].number)
                {
                    slots.swap_remove(oldest);
                }
                slots.push(Slot { number, ..Slot::default() });
                slots.len() - 1
            }
        };
        &mut slots[at]
    }

    /// The sums of one period.
    pub(super) fn of(&self, period: Period, number: i64) -> Slot {
        self.slots(period).iter().find(|slot| slot.number == number).copied().unwrap_or_default()
    }

    pub(super) fn hold(&mut self, numbers: Numbers, held: Sum) {
        for (period, number) in numbers.each() {
            self.slot_mut(period, number).held.add(held);
        }
    }

    /// Ends a hold and adds what was spent instead.
    pub(super) fn settle(&mut self, numbers: Numbers, held: Sum, spent: Sum) {
        for (period, number) in numbers.each() {
            let slot = self.slot_mut(period, number);
            slot.held.sub(held);
            slot.spent.add(spent);
        }
    }
}

/// The day and the month of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) day: i64,
    pub(super) month: i64,
}

impl Numbers {
    pub(super) fn of(self, period: Period) -> i64 {
        match period {
            Period::Day => self.day,
            Period::Month => self.month,
        }
    }

    fn each(self) -> [(Period, i64); 2] {
        [(Period::Day, self.day), (Period::Month, self.month)]
    }
}
