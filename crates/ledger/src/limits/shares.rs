//! This gateway's shares of limits that it keeps together with others: what of each limit it may still give away.
//!
//! A share comes from whoever divides the limit (the pool), a little at a time, and what is not needed goes back. With
//! shares a request is admitted only on what is here, so that all gateways together never admit more than the limit.
//! Not here: how a limit is divided. Invariant: whatever a request takes of a share it gives back when it ends, less
//! what it used.

use std::collections::HashMap;
use std::sync::Arc;

use super::{BudgetLimit, BudgetReached, Level, LimitKind, LimitRefusal, Period};
use crate::money::Amount;

/// Idle shares beyond which some are forgotten.
const MAX_SHARES: usize = 65_536;

/// One limit of one party.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShareId {
    /// Whose.
    pub level: Level,
    /// The party's id.
    pub party: Arc<str>,
    /// `None`: all models together.
    pub model: Option<Arc<str>>,
    /// Which limit.
    pub kind: LimitKind,
    /// Of budgets: which day or month; 0 otherwise.
    pub number: i64,
}

/// How much there is to divide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareLimit {
    /// So much flows in a minute, and so much at most waits to be used.
    Rate {
        /// A minute's.
        per_minute: u64,
        /// At most at once.
        capacity: u64,
    },
    /// So much in all: requests in flight; tokens or 10⁻¹² of the currency's unit in the period.
    Total(i128),
}

/// What is missing here for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Of which limit.
    pub share: ShareId,
    /// How much there is of it.
    pub limit: ShareLimit,
    /// Of budgets: from when to when, ms since 1970.
    pub period_ms: Option<(u64, u64)>,
    /// How much more is needed.
    pub need: i128,
}

/// A budget that something was spent of here, and who is to hear when gateways together have used it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Its share.
    pub share: ShareId,
    /// From when to when, ms since 1970.
    pub period_ms: (u64, u64),
    /// What is to be said.
    pub reached: BudgetReached,
    /// Whose budget it is in the end.
    pub organisation: Arc<str>,
}

/// What of a share a running request has.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    share: ShareId,
    amount: i128,
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    left: i128,
    /// Requests that have some of it.
    open: u32,
    touched: bool,
}

/// All shares.
#[derive(Debug, Default)]
pub(super) struct Shares {
    left: HashMap<ShareId, Share>,
    /// Limits of budgets as they were last told to whoever divides them.
    watched: HashMap<ShareId, BudgetLimit>,
    new: Vec<Watch>,
}

impl Shares {
    /// What is missing of `need`; `None` where nothing is.
    pub(super) fn missing(
        &self,
        share: &ShareId,
        limit: ShareLimit,
        need: i128,
    ) -> Option<Missing> {
        let left = self.left.get(share).map_or(0, |share| share.left);
        let need = need - left;
        (need > 0).then(|| Missing { share: share.clone(), limit, period_ms: None, need })
    }

    pub(super) fn take(&mut self, share: ShareId, amount: i128) -> Taken {
        let known = self.left.entry(share.clone()).or_default();
        known.left -= amount;
        known.open += 1;
        known.touched = true;
        Taken { share, amount }
    }

    /// The request has ended and used `tokens` and `pico`; `None`: it counts as if it had never been.
    pub(super) fn settle(&mut self, taken: Vec<Taken>, used: Option<(u64, Amount)>) {
        for Taken { share, amount } in taken {
            let used = match (share.kind, used) {
                (_, None) | (LimitKind::InFlight, _) => 0,
                (LimitKind::Requests | LimitKind::RequestBurst, Some(_)) => amount,
                (
                    LimitKind::Tokens | LimitKind::TokenBurst | LimitKind::TokenBudget(_),
                    Some((tokens, _)),
                ) => i128::from(tokens),
                (LimitKind::MoneyBudget(_), Some((_, amount))) => amount.pico(),
            };
            if let Some(known) = self.left.get_mut(&share) {
                known.left += amount - used;
                known.open = known.open.saturating_sub(1);
                known.touched = true;
            }
        }
    }

    pub(super) fn grant(&mut self, share: ShareId, amount: i128) {
        let known = self.left.entry(share).or_default();
        known.left += amount;
        known.touched = true;
    }

    /// Something was spent of this budget.
    pub(super) fn watch(&mut self, watch: Watch) {
        let limit = watch.reached.limit;
        if self.watched.get(&watch.share) == Some(&limit) || self.new.len() >= MAX_SHARES {
            return;
        }
        if self.watched.len() >= MAX_SHARES {
            // Whoever divides them has most of them; hearing of one again does no harm.
            self.watched.clear();
        }
        self.watched.insert(watch.share.clone(), limit);
        self.new.push(watch);
    }

    /// Budgets that were not told yet.
    pub(super) fn new_watches(&mut self) -> Vec<Watch> {
        std::mem::take(&mut self.new)
    }

    /// Takes out what goes back to be divided anew: of those named, or of all that nobody has touched since the last
    /// time; also debts, which others' shares then pay.
    pub(super) fn give_back(&mut self, wanted: impl Fn(&ShareId) -> bool) -> Vec<(ShareId, i128)> {
        let mut back = Vec::new();
        let is_full = self.left.len() > MAX_SHARES;
        self.left.retain(|id, share| {
            let idle = !std::mem::take(&mut share.touched);
            if (idle || share.left < 0 || wanted(id)) && share.left != 0 {
                back.push((id.clone(), std::mem::take(&mut share.left)));
            }
            share.left != 0 || share.open > 0 || !(idle || is_full)
        });
        back
    }
}

impl ShareId {
    /// As a text: the same for all gateways, different for different limits.
    #[must_use]
    pub fn text(&self) -> String {
        let kind = match self.kind {
            LimitKind::Requests => "requests",
            LimitKind::RequestBurst => "request_burst",
            LimitKind::Tokens => "tokens",
            LimitKind::TokenBurst => "token_burst",
            LimitKind::InFlight => "in_flight",
            LimitKind::TokenBudget(Period::Day) => "tokens_a_day",
            LimitKind::TokenBudget(Period::Month) => "tokens_a_month",
            LimitKind::MoneyBudget(Period::Day) => "money_a_day",
            LimitKind::MoneyBudget(Period::Month) => "money_a_month",
        };
        // Ids of parties hold no spaces; the model comes last and may.
        let model = self.model.as_deref().map_or(String::new(), |model| format!(" {model}"));
        format!("{kind} {} {} {}{model}", self.number, self.level.as_str(), self.party)
    }
}

impl LimitRefusal {
    /// The same with what is missing of a share.
    pub(super) fn missing(self, missing: Missing) -> Self {
        Self { missing: Some(missing), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_used_comes_back() {
        let share =
            |kind| ShareId { level: Level::Key, party: "k".into(), model: None, kind, number: 0 };
        let limit = ShareLimit::Total(100);
        let used = Some((30, Amount::from_pico(7)));
        for (kind, used, left) in [
            (LimitKind::Requests, used, 60),
            (LimitKind::Requests, None, 100),
            (LimitKind::InFlight, used, 100),
            (LimitKind::Tokens, used, 70),
            (LimitKind::TokenBudget(Period::Day), used, 70),
            (LimitKind::MoneyBudget(Period::Month), used, 93),
            (LimitKind::MoneyBudget(Period::Month), None, 100),
        ] {
            let mut shares = Shares::default();
            let id = share(kind);
            assert_eq!(shares.missing(&id, limit, 40).map(|m| m.need), Some(40));
            shares.grant(id.clone(), 100);
            assert_eq!(shares.missing(&id, limit, 40), None);
            let taken = shares.take(id.clone(), 40);
            assert_eq!(shares.missing(&id, limit, 70).map(|m| m.need), Some(10));
            shares.settle(vec![taken], used);
            assert_eq!(shares.missing(&id, limit, left), None, "{kind:?}");
            assert_eq!(shares.missing(&id, limit, left + 1).map(|m| m.need), Some(1), "{kind:?}");
            // Touched a moment ago: it stays, unless somebody wants it.
            assert!(shares.give_back(|_| false).is_empty());
            assert_eq!(shares.give_back(|_| false), [(id.clone(), left)]);
            shares.grant(id.clone(), 5);
            assert_eq!(shares.give_back(|wanted| *wanted == id), [(id.clone(), 5)]);
        }
    }

    #[test]
    fn debts_are_told_at_once() {
        let mut shares = Shares::default();
        let id = ShareId {
            level: Level::Organisation,
            party: "o".into(),
            model: Some("m".into()),
            kind: LimitKind::Tokens,
            number: 0,
        };
        shares.grant(id.clone(), 10);
        let taken = shares.take(id.clone(), 10);
        shares.settle(vec![taken], Some((25, Amount::ZERO)));
        assert_eq!(shares.give_back(|_| false), [(id.clone(), -15)]);
        assert_eq!(id.text(), "tokens 0 organisation o m");
    }
}
