//! The counters of all parties, and the decision over them.
//!
//! Invariant: [`Limiter::check`] changes nothing. Counters are bounded by parties times served models; those that stand
//! as if never used are forgotten.

use std::collections::HashMap;
use std::sync::Arc;

use crate::money::Amount;

use super::bucket::{Bucket, Rate};
use super::shares::{ShareId, ShareLimit, Shares, Taken, Watch};
use super::spend::{Numbers, Spend, Sum};
use super::{
    Budget, BudgetEffect, BudgetLimit, Calendar, Level, LimitKind, LimitRefusal, Missing, Party,
    Period, RateRule,
};

/// Counters of rates beyond which idle ones are looked for.
const SWEEP_AT: usize = 4096;
/// How soon to ask again for a place among the requests in flight.
const IN_FLIGHT_RETRY_MS: u64 = 1000;

/// How soon to ask again for more of a rate that gateways share.
const SHARE_RETRY_MS: u64 = 1000;

/// The moment of a decision, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never jumps: rates go by it.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970: days and months go by it.
    pub unix_ms: u64,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask<'a> {
    /// The served model.
    pub model: &'a str,
    /// The most tokens it can use, prompt and answers.
    pub tokens: u64,
    /// The most it can cost.
    pub amount: Amount,
    /// Nobody waits for it: budgets hold, rates neither hold nor count it.
    pub batch: bool,
}

/// What was used in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Tokens, prompt and answers.
    pub tokens: u64,
    /// What it cost.
    pub amount: Amount,
}

/// How one limit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What it allows a minute.
    pub limit: u64,
    /// What is left now.
    pub remaining: u64,
    /// Until all of it is there again.
    pub reset_ms: u64,
}

/// The tightest limits of a request's parties; `None` where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    /// Of requests.
    pub requests: Option<Standing>,
    /// Of tokens.
    pub tokens: Option<Standing>,
}

/// A budget that was used up by the request just settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetReached {
    /// Whose.
    pub level: Level,
    /// The party's id.
    pub party: Arc<str>,
    /// For one model, or all of them together.
    pub model: Option<String>,
    /// In how long.
    pub period: Period,
    /// How much.
    pub limit: BudgetLimit,
    /// What happens now.
    pub effect: BudgetEffect,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CounterId {
    level: Level,
    party: Arc<str>,
    /// `None`: all models together.
    model: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    requests: Bucket,
    request_burst: Bucket,
    tokens: Bucket,
    token_burst: Bucket,
    in_flight: u32,
    /// The rule they were last used with: decides when they are idle.
    rates: Rates,
}

/// A rule as buckets see it.
#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    requests: Option<Rate>,
    request_burst: Option<Rate>,
    tokens: Option<Rate>,
    token_burst: Option<Rate>,
    in_flight: Option<u32>,
}

impl Rates {
    fn of(rule: &RateRule) -> Self {
        let smooth = |limit: Option<u64>| limit.filter(|_| rule.smooth).map(Rate::second);
        Self {
            requests: rule.requests_per_minute.map(Rate::minute),
            request_burst: smooth(rule.requests_per_minute),
            tokens: rule.tokens_per_minute.map(Rate::minute),
            token_burst: smooth(rule.tokens_per_minute),
            in_flight: rule.requests_in_flight,
        }
    }
}

/// A request that was let in: what it reserved, and where.
#[derive(Debug)]
#[must_use = "what it reserved comes back only by settling or cancelling it"]
pub struct Pass {
    rates: Vec<(CounterId, Rates)>,
    spends: Vec<CounterId>,
    shares: Vec<Taken>,
    tokens: u64,
    amount: Amount,
    numbers: Numbers,
}

/// All counters.
#[derive(Debug, Default)]
pub struct Limiter {
    calendar: Calendar,
    rates: HashMap<CounterId, Counters>,
    spends: HashMap<CounterId, Spend>,
    models: HashMap<String, Arc<str>>,
    /// Where limits are kept together with other gateways.
    shares: Option<Shares>,
}

impl Limiter {
    /// Nothing used yet.
    #[must_use]
    pub fn new(calendar: Calendar) -> Self {
        Self { calendar, ..Self::default() }
    }

    /// Limits hold over several gateways from now on: requests are admitted on shares of them, which begin at nothing.
    pub fn share(&mut self) {
        self.shares.get_or_insert_default();
    }

    /// More of a limit may be given away here.
    pub fn grant_share(&mut self, share: ShareId, amount: i128) {
        if let Some(shares) = &mut self.shares {
            shares.grant(share, amount);
        }
    }

    /// What goes back to be divided anew: shares that nobody used since the last call, those that are `wanted`
    /// elsewhere, and debts.
    pub fn give_back_shares(&mut self, wanted: impl Fn(&ShareId) -> bool) -> Vec<(ShareId, i128)> {
        self.shares.as_mut().map_or_else(Vec::new, |shares| shares.give_back(wanted))
    }

    /// Budgets that something was spent of here for the first time, or the first time since they were changed.
    pub fn new_watches(&mut self) -> Vec<Watch> {
        self.shares.as_mut().map_or_else(Vec::new, Shares::new_watches)
    }

    /// Whether all rules of all `parties` let the request in. Counts nothing.
    ///
    /// # Errors
    /// The limit that stands in the way; of several, the one that does so longest.
    pub fn check(
        &self,
        now: Now,
        parties: &[Party],
        ask: Ask<'_>,
    ) -> Result<(), Box<LimitRefusal>> {
        let mut worst: Option<LimitRefusal> = None;
        let mut note = |refusal: LimitRefusal| {
            let longest = |r: &LimitRefusal| r.retry_after_ms.unwrap_or(u64::MAX);
            if worst.as_ref().is_none_or(|known| longest(&refusal) > longest(known)) {
                worst = Some(refusal);
            }
        };
        for party in parties {
            for rule in party.policy.rates.iter().filter(|_| !ask.batch) {
                let Some(model) = rule.models.counted_under(ask.model) else { continue };
                self.check_rates(now, party, model, rule, ask, &mut note);
            }
            self.check_budgets(now, party, ask, &mut note);
        }
        match worst {
            None => Ok(()),
            Some(refusal) => {
                let standings = self.standings(now, parties, ask.model);
                Err(Box::new(LimitRefusal { standings, ..refusal }))
            }
        }
    }

    fn check_rates(
        &self,
        now: Now,
        party: &Party,
        model: Option<&str>,
        rule: &RateRule,
        ask: Ask<'_>,
        note: &mut impl FnMut(LimitRefusal),
    ) {
        let counters = self.rates.get(&self.counter_id(party, model)).copied().unwrap_or_default();
        let rates = Rates::of(rule);
        let refuse = |kind, allowed: u64, retry_after_ms| LimitRefusal {
            level: party.level,
            party: Arc::clone(&party.id),
            model: model.map(str::to_owned),
            kind,
            allowed: i128::from(allowed),
            retry_after_ms,
            standings: Standings::default(),
            missing: None,
        };
        if let Some(shares) = &self.shares {
            for (kind, limit, need) in shared_rates(rates, ask) {
                let id = self.share_id(party, model, kind, 0);
                if let Some(missing) = shares.missing(&id, limit, need) {
                    let (allowed, retry_ms) = match limit {
                        ShareLimit::Rate { per_minute, capacity } => {
                            (capacity, (per_minute > 0).then_some(SHARE_RETRY_MS))
                        }
                        ShareLimit::Total(most) => {
                            let most = u64::try_from(most).unwrap_or(u64::MAX);
                            (most, (most > 0).then_some(IN_FLIGHT_RETRY_MS))
                        }
                    };
                    note(refuse(kind, allowed, retry_ms).missing(missing));
                }
            }
            return;
        }
        let buckets = [
            (LimitKind::Requests, counters.requests, rates.requests, 1),
            (LimitKind::RequestBurst, counters.request_burst, rates.request_burst, 1),
            (LimitKind::Tokens, counters.tokens, rates.tokens, ask.tokens),
            (LimitKind::TokenBurst, counters.token_burst, rates.token_burst, ask.tokens),
        ];
        for (kind, bucket, rate, amount) in buckets {
            let Some(rate) = rate else { continue };
            let wait_ms = bucket.wait_ms(rate, amount, now.monotonic_ms);
            if wait_ms != Some(0) {
                note(refuse(kind, rate.capacity, wait_ms));
            }
        }
        if let Some(limit) = rates.in_flight.filter(|limit| counters.in_flight >= *limit) {
            let retry = (limit > 0).then_some(IN_FLIGHT_RETRY_MS);
            note(refuse(LimitKind::InFlight, u64::from(limit), retry));
        }
    }

    fn check_budgets(
        &self,
        now: Now,
        party: &Party,
        ask: Ask<'_>,
        note: &mut impl FnMut(LimitRefusal),
    ) {
        for budget in hard(party) {
            let Some(model) = budget.models.counted_under(ask.model) else { continue };
            let number = self.calendar.number(budget.period, now.unix_ms);
            let slot = self
                .spends
                .get(&self.counter_id(party, model))
                .map(|spend| spend.of(budget.period, number))
                .unwrap_or_default();
            let (kind, allowed, asked) = shared_budget(budget, ask);
            let missing = self.shares.as_ref().map(|shares| {
                let id = self.share_id(party, model, kind, number);
                let missing = shares.missing(&id, ShareLimit::Total(allowed), asked)?;
                let from_ms = self.calendar.begins_ms(budget.period, now.unix_ms);
                let left_ms = self.calendar.ends_in_ms(budget.period, now.unix_ms);
                let period_ms = Some((from_ms, now.unix_ms.saturating_add(left_ms)));
                Some(Missing { period_ms, ..missing })
            });
            let after = match budget.limit {
                BudgetLimit::Tokens(_) => {
                    i128::from(slot.spent.tokens) + i128::from(slot.held.tokens) + asked
                }
                BudgetLimit::Money(_) => slot.spent.pico + slot.held.pico + asked,
            };
            let is_refused = match &missing {
                None => after > allowed,
                Some(missing) => missing.is_some(),
            };
            if is_refused {
                note(LimitRefusal {
                    missing: missing.flatten(),
                    level: party.level,
                    party: Arc::clone(&party.id),
                    model: model.map(str::to_owned),
                    kind,
                    allowed,
                    retry_after_ms: Some(self.calendar.ends_in_ms(budget.period, now.unix_ms)),
                    standings: Standings::default(),
                });
            }
        }
    }

    /// Counts a request that [`Limiter::check`] let in.
    pub fn take(&mut self, now: Now, parties: &[Party], ask: Ask<'_>) -> Pass {
        if self.rates.len() >= SWEEP_AT {
            self.sweep(now);
        }
        let mut pass = Pass {
            rates: Vec::new(),
            spends: Vec::with_capacity(2 * parties.len()),
            shares: self.take_shares(now, parties, ask),
            tokens: ask.tokens,
            amount: ask.amount,
            numbers: self.numbers(now.unix_ms),
        };
        let name = self.model_name(ask.model);
        for party in parties {
            for rule in party.policy.rates.iter().filter(|_| !ask.batch) {
                let Some(model) = rule.models.counted_under(ask.model) else { continue };
                let id = CounterId {
                    level: party.level,
                    party: Arc::clone(&party.id),
                    model: model.map(|_| Arc::clone(&name)),
                };
                let rates = Rates::of(rule);
                let counters = self.rates.entry(id.clone()).or_default();
                counters.rates = rates;
                counters.in_flight += 1;
                counters.charge(rates, now, 1, reserved(ask.tokens));
                pass.rates.push((id, rates));
            }
            for model in [None, Some(Arc::clone(&name))] {
                let id = CounterId { level: party.level, party: Arc::clone(&party.id), model };
                let held = Sum { pico: ask.amount.pico(), tokens: ask.tokens };
                self.spends.entry(id.clone()).or_default().hold(pass.numbers, held);
                pass.spends.push(id);
            }
        }
        pass
    }

    /// What a request has of each share, where limits are shared.
    fn take_shares(&mut self, now: Now, parties: &[Party], ask: Ask<'_>) -> Vec<Taken> {
        if self.shares.is_none() {
            return Vec::new();
        }
        let mut wanted = Vec::new();
        for party in parties {
            for rule in party.policy.rates.iter().filter(|_| !ask.batch) {
                let Some(model) = rule.models.counted_under(ask.model) else { continue };
                for (kind, _, need) in shared_rates(Rates::of(rule), ask) {
                    wanted.push((self.share_id(party, model, kind, 0), need));
                }
            }
            for budget in hard(party) {
                let Some(model) = budget.models.counted_under(ask.model) else { continue };
                let number = self.calendar.number(budget.period, now.unix_ms);
                let (kind, _, need) = shared_budget(budget, ask);
                wanted.push((self.share_id(party, model, kind, number), need));
            }
        }
        let Some(shares) = &mut self.shares else { return Vec::new() };
        wanted.into_iter().map(|(id, need)| shares.take(id, need)).collect()
    }

    fn share_id(
        &self,
        party: &Party,
        model: Option<&str>,
        kind: LimitKind,
        number: i64,
    ) -> ShareId {
        let CounterId { level, party, model } = self.counter_id(party, model);
        ShareId { level, party, model, kind, number }
    }

    /// Counts what a request really used instead of what it reserved. Tells which budgets of `parties` that used up; of
    /// budgets that gateways share nobody knows that here, and they are watched.
    pub fn settle(
        &mut self,
        now: Now,
        parties: &[Party],
        model: &str,
        mut pass: Pass,
        used: Used,
    ) -> Vec<BudgetReached> {
        if let Some(shares) = &mut self.shares {
            let taken = std::mem::take(&mut pass.shares);
            shares.settle(taken, Some((used.tokens, used.amount)));
        }
        self.give_back(now, &pass, used, 0);
        let mut reached = Vec::new();
        for party in parties {
            for budget in &party.policy.budgets {
                let Some(counted) = budget.models.counted_under(model) else { continue };
                let added = match budget.limit {
                    BudgetLimit::Tokens(_) => i128::from(used.tokens),
                    BudgetLimit::Money(_) => used.amount.pico(),
                };
                if added <= 0 {
                    continue;
                }
                let said = BudgetReached {
                    level: party.level,
                    party: Arc::clone(&party.id),
                    model: counted.map(str::to_owned),
                    period: budget.period,
                    limit: budget.limit,
                    effect: budget.effect,
                };
                let number = pass.numbers.of(budget.period);
                if self.shares.is_some() {
                    self.watch(now, parties, party, budget, (number, said));
                } else if self.is_crossed(party, budget, (number, added), counted) {
                    reached.push(said);
                }
            }
        }
        reached
    }

    /// Whether `added`, which is counted already, was what used the budget up.
    fn is_crossed(
        &self,
        party: &Party,
        budget: &Budget,
        (number, added): (i64, i128),
        counted: Option<&str>,
    ) -> bool {
        let spend = self.spends.get(&self.counter_id(party, counted));
        let slot = spend.map(|spend| spend.of(budget.period, number)).unwrap_or_default();
        let after = match budget.limit {
            BudgetLimit::Tokens(_) => i128::from(slot.spent.tokens),
            BudgetLimit::Money(_) => slot.spent.pico,
        };
        let limit = budget.limit.count();
        after >= limit && after - added < limit
    }

    fn watch(
        &mut self,
        now: Now,
        parties: &[Party],
        party: &Party,
        budget: &Budget,
        (number, reached): (i64, BudgetReached),
    ) {
        if number != self.calendar.number(budget.period, now.unix_ms) {
            // Spent of a period that has ended meanwhile: its bounds are not those of now, and nobody waits for it.
            return;
        }
        let kind = match budget.limit {
            BudgetLimit::Tokens(_) => LimitKind::TokenBudget(budget.period),
            BudgetLimit::Money(_) => LimitKind::MoneyBudget(budget.period),
        };
        let share = self.share_id(party, reached.model.as_deref(), kind, number);
        let organisation = parties.iter().find(|party| party.level == Level::Organisation);
        let organisation = organisation.map_or_else(|| Arc::from(""), |party| party.id.clone());
        let from_ms = self.calendar.begins_ms(budget.period, now.unix_ms);
        let left_ms = self.calendar.ends_in_ms(budget.period, now.unix_ms);
        let period_ms = (from_ms, now.unix_ms.saturating_add(left_ms));
        if let Some(shares) = &mut self.shares {
            shares.watch(Watch { share, period_ms, reached, organisation });
        }
    }

    /// Forgets a request that used nothing: it does not count as a request either.
    pub fn cancel(&mut self, now: Now, mut pass: Pass) {
        if let Some(shares) = &mut self.shares {
            shares.settle(std::mem::take(&mut pass.shares), None);
        }
        self.give_back(now, &pass, Used::default(), 1);
    }

    fn give_back(&mut self, now: Now, pass: &Pass, used: Used, requests: i128) {
        for (id, rates) in &pass.rates {
            let Some(counters) = self.rates.get_mut(id) else { continue };
            counters.in_flight = counters.in_flight.saturating_sub(1);
            let difference =
                |rate: Rate| i128::from(used.tokens) - i128::from(rate.wanted(pass.tokens));
            counters.charge(*rates, now, -requests, difference);
        }
        let held = Sum { pico: pass.amount.pico(), tokens: pass.tokens };
        let spent = Sum { pico: used.amount.pico(), tokens: used.tokens };
        for id in &pass.spends {
            if let Some(spend) = self.spends.get_mut(id) {
                spend.settle(pass.numbers, held, spent);
            }
        }
    }

    /// Counts a request of the past, at start: budgets go on where they stood.
    pub fn remember(
        &mut self,
        unix_ms: u64,
        parties: &[(Level, Arc<str>)],
        model: &str,
        used: Used,
    ) {
        let numbers = self.numbers(unix_ms);
        let name = self.model_name(model);
        let spent = Sum { pico: used.amount.pico(), tokens: used.tokens };
        for (level, party) in parties {
            for model in [None, Some(Arc::clone(&name))] {
                let id = CounterId { level: *level, party: Arc::clone(party), model };
                self.spends.entry(id).or_default().settle(numbers, Sum::default(), spent);
            }
        }
    }

    /// The tightest limits of requests and tokens as they stand now.
    #[must_use]
    pub fn standings(&self, now: Now, parties: &[Party], model: &str) -> Standings {
        let mut standings = Standings::default();
        for party in parties {
            for rule in &party.policy.rates {
                let Some(counted) = rule.models.counted_under(model) else { continue };
                let id = self.counter_id(party, counted);
                let counters = self.rates.get(&id).copied().unwrap_or_default();
                let rates = Rates::of(rule);
                tighten(&mut standings.requests, counters.requests, rates.requests, now);
                tighten(&mut standings.tokens, counters.tokens, rates.tokens, now);
            }
        }
        standings
    }

    /// What a party spent in the period of `unix_ms`: tokens, and money.
    #[must_use]
    pub fn spent(
        &self,
        level: Level,
        party: &str,
        model: Option<&str>,
        period: Period,
        unix_ms: u64,
    ) -> (u64, Amount) {
        let id = CounterId { level, party: party.into(), model: model.map(Into::into) };
        let number = self.calendar.number(period, unix_ms);
        let slot = self.spends.get(&id).map(|s| s.of(period, number)).unwrap_or_default();
        (slot.spent.tokens, Amount::from_pico(slot.spent.pico))
    }

    /// Whether nothing is in flight and nothing held: so it must be when no request runs.
    #[must_use]
    pub fn is_idle(&self, unix_ms: u64) -> bool {
        let numbers = self.numbers(unix_ms);
        self.rates.values().all(|counters| counters.in_flight == 0)
            && self.spends.values().all(|spend| {
                [Period::Day, Period::Month]
                    .iter()
                    .all(|period| spend.of(*period, numbers.of(*period)).held == Sum::default())
            })
    }

    fn numbers(&self, unix_ms: u64) -> Numbers {
        Numbers {
            day: self.calendar.number(Period::Day, unix_ms),
            month: self.calendar.number(Period::Month, unix_ms),
        }
    }

    fn counter_id(&self, party: &Party, model: Option<&str>) -> CounterId {
        let model = model.map(|name| self.models.get(name).cloned().unwrap_or_else(|| name.into()));
        CounterId { level: party.level, party: Arc::clone(&party.id), model }
    }

    /// Served models are few; their names are kept once.
    fn model_name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.models.get(name) {
            return Arc::clone(known);
        }
        let shared: Arc<str> = name.into();
        self.models.insert(name.to_owned(), Arc::clone(&shared));
        shared
    }

    fn sweep(&mut self, now: Now) {
        self.rates.retain(|_, counters| !counters.is_idle(now));
    }
}

/// Budgets that refuse.
fn hard(party: &Party) -> impl Iterator<Item = &Budget> {
    party.policy.budgets.iter().filter(|budget| budget.effect == BudgetEffect::Hard)
}

/// What a request takes of the shares of a rule.
fn shared_rates(rates: Rates, ask: Ask<'_>) -> impl Iterator<Item = (LimitKind, ShareLimit, i128)> {
    let flow = |kind, rate: Option<Rate>, amount: u64| {
        let rate = rate?;
        let limit = ShareLimit::Rate { per_minute: rate.per_minute, capacity: rate.capacity };
        // At least one, so that a rate of nothing admits nothing.
        let need = rate.wanted(amount).max(u64::from(amount > 0));
        Some((kind, limit, i128::from(need)))
    };
    let in_flight =
        rates.in_flight.map(|most| (LimitKind::InFlight, ShareLimit::Total(i128::from(most)), 1));
    let all = [
        flow(LimitKind::Requests, rates.requests, 1),
        flow(LimitKind::RequestBurst, rates.request_burst, 1),
        flow(LimitKind::Tokens, rates.tokens, ask.tokens),
        flow(LimitKind::TokenBurst, rates.token_burst, ask.tokens),
        in_flight,
    ];
    all.into_iter().flatten()
}

/// What a request takes of the share of a budget: which, of how much, how much.
fn shared_budget(budget: &Budget, ask: Ask<'_>) -> (LimitKind, i128, i128) {
    let period = budget.period;
    match budget.limit {
        BudgetLimit::Tokens(limit) => {
            (LimitKind::TokenBudget(period), i128::from(limit), i128::from(ask.tokens))
        }
        BudgetLimit::Money(limit) => {
            (LimitKind::MoneyBudget(period), limit.pico(), ask.amount.pico())
        }
    }
}

/// How much of a reservation each bucket takes.
fn reserved(tokens: u64) -> impl Fn(Rate) -> i128 {
    move |rate| i128::from(rate.wanted(tokens))
}

fn tighten(known: &mut Option<Standing>, bucket: Bucket, rate: Option<Rate>, now: Now) {
    let Some(rate) = rate else { return };
    let remaining = bucket.remaining(rate, now.monotonic_ms);
    if known.is_none_or(|known| remaining < known.remaining) {
        let reset_ms = bucket.full_in_ms(rate, now.monotonic_ms);
        *known = Some(Standing { limit: rate.per_minute, remaining, reset_ms });
    }
}

impl Counters {
    fn charge(&mut self, rates: Rates, now: Now, requests: i128, tokens: impl Fn(Rate) -> i128) {
        let now_ms = now.monotonic_ms;
        for (bucket, rate) in
            [(&mut self.requests, rates.requests), (&mut self.request_burst, rates.request_burst)]
        {
            if let Some(rate) = rate {
                bucket.take(rate, requests, now_ms);
            }
        }
        for (bucket, rate) in
            [(&mut self.tokens, rates.tokens), (&mut self.token_burst, rates.token_burst)]
        {
            if let Some(rate) = rate {
                bucket.take(rate, tokens(rate), now_ms);
            }
        }
    }

    /// As if never used.
    fn is_idle(&self, now: Now) -> bool {
        let full = |bucket: Bucket, rate: Option<Rate>| {
            rate.is_none_or(|rate| bucket.is_full(rate, now.monotonic_ms))
        };
        self.in_flight == 0
            && full(self.requests, self.rates.requests)
            && full(self.request_burst, self.rates.request_burst)
            && full(self.tokens, self.rates.tokens)
            && full(self.token_burst, self.rates.token_burst)
    }
}
