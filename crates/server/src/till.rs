//! Admission and settlement: limits, budgets and the ledger's hold as one step before a request, one posting after it.
//!
//! Invariants: limits, budgets and money admit together or not at all, under the ledger's lock; whatever was admitted
//! is settled or voided exactly once; what is settled is what was used, whatever was reserved.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use mintage_ledger::limits::{
    self, BudgetEffect, BudgetReached, Calendar, Level, LimitRefusal, Limiter, Now, Pass,
    Standings, Used,
};
use mintage_ledger::price::KeptPrices;
use mintage_ledger::{
    Admission, AdmitError, Amount, Ask, Currency, Hold, KeptAnswer, KeysOf, Ledger, LineageOf,
    Message, Outcome, Payer, Pending, Principal, Quote, Rating, Receipt, Refusal, RequestFacts,
    ShareAnswer, SharedLimits, Together, TokenUsage, UsageFilter,
};

use crate::admin::Books;
use crate::error::{ApiError, Fault};
use crate::webhooks::WebhookPolicy;

/// The price of a model, by name, for requests admitted at a time (ms since 1970); `None` where it has none.
pub type PriceSource = dyn Fn(&str, u64) -> Option<Arc<dyn Rating>> + Send + Sync;

/// How requests are paid for.
#[derive(Clone)]
pub struct Billing {
    /// Where it is written down.
    pub ledger: Arc<Ledger>,
    /// What it costs.
    pub prices: Arc<PriceSource>,
    /// The lists behind `prices`, where they are kept in the ledger: for who shows and imports them.
    pub lists: Option<Arc<KeptPrices>>,
    /// When days and months of budgets begin.
    pub calendar: Calendar,
    /// Usage records go away after so many days, at least [`mintage_ledger::MIN_RETENTION_DAYS`]; `None` keeps them.
    pub retention_days: Option<u64>,
}

/// What is known of a request when it asks to be let in.
pub(crate) struct Arrival {
    pub(crate) response_id: Arc<str>,
    pub(crate) model: Arc<str>,
    pub(crate) model_digest: Arc<str>,
    /// Who counts its tokens, should it not be said anew at its end; empty where they are sampled here.
    pub(crate) metered_by: &'static str,
    pub(crate) protocol: &'static str,
    /// The client program as it names itself, or empty.
    pub(crate) client: Arc<str>,
    pub(crate) prompt_tokens: u64,
    /// Of each choice, at most.
    pub(crate) max_output_tokens: u64,
    pub(crate) choices: u32,
    /// It is a line of a batch.
    pub(crate) batch: bool,
}

/// The counters and the ledger.
pub(crate) struct Till {
    billing: Option<Billing>,
    limiter: Arc<Mutex<Limiter>>,
    start: Instant,
}

/// A request that was let in; settle it or void it.
pub(crate) struct Admitted {
    hold: Option<Hold>,
    /// `None` once given back.
    pass: Option<Pass>,
    principal: Arc<Principal>,
    model: Arc<str>,
    limiter: Arc<Mutex<Limiter>>,
    start: Instant,
    ledger: Option<Arc<Ledger>>,
    /// How the tightest limits stand, for headers.
    pub(crate) standings: Standings,
}

/// What a request came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) usage: TokenUsage,
    /// What was posted; `None` where nothing is billed here.
    pub(crate) cost: Option<(Amount, Currency)>,
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn now(start: Instant) -> Now {
    let monotonic_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    Now { monotonic_ms, unix_ms: unix_ms() }
}

fn lock(limiter: &Mutex<Limiter>) -> MutexGuard<'_, Limiter> {
    limiter.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Till {
    /// With `billing`, budgets go on where the records of this month stand.
    /// `lineage_of` tells under which id a key's counters lie, `keys_of` which keys have theirs under an id.
    pub(crate) fn new(
        billing: Option<Billing>,
        lineage_of: Box<LineageOf>,
        keys_of: Box<KeysOf>,
    ) -> Self {
        let calendar = billing.as_ref().map(|billing| billing.calendar).unwrap_or_default();
        let mut limiter = Limiter::new(calendar);
        if let Some(billing) = &billing {
            remember(&mut limiter, billing, &lineage_of);
        }
        let limiter = Arc::new(Mutex::new(limiter));
        if let Some(billing) = &billing {
            let (limiter, notice) = (Arc::clone(&limiter), Box::new(message));
            let limits = SharedLimits { limiter, calendar, keys_of, lineage_of, notice };
            billing.ledger.share_limits(limits);
        }
        Self { billing, limiter, start: Instant::now() }
    }

    /// Whether other gateways may share the ledger.
    pub(crate) fn is_shared(&self) -> bool {
        self.ledger().is_some_and(|ledger| ledger.is_shared())
    }

    pub(crate) fn ledger(&self) -> Option<&Arc<Ledger>> {
        self.billing.as_ref().map(|billing| &billing.ledger)
    }

    /// The operator's time, as days of budgets and invoices have it.
    pub(crate) fn utc_offset_minutes(&self) -> i32 {
        self.billing.as_ref().map_or(0, |billing| billing.calendar.utc_offset_minutes)
    }

    /// The ledger, and after how many days its records go away, where they do.
    pub(crate) fn retention(&self) -> Option<(Arc<Ledger>, u64)> {
        let billing = self.billing.as_ref()?;
        Some((Arc::clone(&billing.ledger), billing.retention_days?))
    }

    /// What administration needs of it.
    pub(crate) fn books(&self, webhooks: WebhookPolicy) -> Option<Books> {
        let billing = self.billing.as_ref()?;
        Some(Books {
            ledger: Arc::clone(&billing.ledger),
            prices: Arc::clone(billing.lists.as_ref()?),
            utc_offset_minutes: i16::try_from(billing.calendar.utc_offset_minutes).unwrap_or(0),
            webhooks,
        })
    }

    /// Before a request is admitted where gateways share a ledger: free quota that lies elsewhere comes here.
    pub(crate) async fn prepare(&self, principal: &Principal, model: &str, tokens: u64) {
        if let Some(ledger) = self.ledger() {
            ledger.cover_free(&principal.organisation, model, tokens, unix_ms()).await;
        }
    }

    /// Whether a request that was refused is worth admitting again: gateways that share a ledger have only slices of its
    /// money and of limits, and a larger one came in. Where not, the refusal says when it will be.
    pub(crate) async fn cover(&self, principal: &Principal, error: &mut ApiError) -> bool {
        let Some(ledger) = self.ledger() else { return false };
        if let Some(refusal) = &error.short {
            return ledger.cover(&principal.organisation, refusal).await;
        }
        let Some(missing) = &error.missing else { return false };
        match ledger.cover_share(missing).await {
            ShareAnswer::Again => true,
            ShareAnswer::Later(later_ms) => {
                if let (Some(later_ms), Some(facts)) = (later_ms, &mut error.limit) {
                    facts.retry_after_ms = Some(later_ms);
                }
                false
            }
        }
    }

    /// Lets a request in, or says why not. Takes microseconds; waits for nothing.
    pub(crate) fn admit(
        &self,
        principal: &Arc<Principal>,
        arrival: &Arrival,
    ) -> Result<Admitted, ApiError> {
        let now = now(self.start);
        let output = arrival.max_output_tokens.saturating_mul(arrival.choices.into());
        let mut passed = None;
        let mut gate = |quote: &Quote| -> Result<(), Box<LimitRefusal>> {
            let ask = limits::Ask {
                model: &arrival.model,
                tokens: arrival.prompt_tokens.saturating_add(output),
                amount: quote.amount,
                batch: arrival.batch,
            };
            let mut limiter = lock(&self.limiter);
            limiter.check(now, &principal.parties, ask)?;
            let pass = limiter.take(now, &principal.parties, ask);
            let standings = limiter.standings(now, &principal.parties, &arrival.model);
            passed = Some((pass, standings));
            Ok(())
        };
        let hold = match &self.billing {
            None => gate(&Quote::default()).map(|()| None).map_err(AdmitError::Gate),
            Some(billing) => {
                let rating = (billing.prices)(&arrival.model, now.unix_ms)
                    .ok_or_else(|| no_price(&arrival.model))?;
                let admission = admission(principal, arrival, rating, now.unix_ms);
                billing.ledger.admit(admission, gate).map(Some)
            }
        };
        let hold = hold.map_err(|error| refused(error, &arrival.model))?;
        let (pass, standings) =
            passed.ok_or_else(|| ApiError::internal("admitted without passing the gate"))?;
        Ok(Admitted {
            hold,
            pass: Some(pass),
            principal: Arc::clone(principal),
            model: Arc::clone(&arrival.model),
            limiter: Arc::clone(&self.limiter),
            start: self.start,
            ledger: self.ledger().cloned(),
            standings,
        })
    }
}

fn admission(
    principal: &Principal,
    arrival: &Arrival,
    rating: Arc<dyn Rating>,
    admitted_ms: u64,
) -> Admission {
    Admission {
        facts: RequestFacts {
            id: Arc::clone(&arrival.response_id),
            payer: Payer {
                org: Arc::clone(&principal.organisation),
                project: principal.project.clone().unwrap_or_default(),
                key: Arc::clone(&principal.key),
            },
            model: Arc::clone(&arrival.model),
            model_digest: Arc::clone(&arrival.model_digest),
            metered_by: arrival.metered_by.into(),
            protocol: Arc::from(arrival.protocol),
            client: Arc::clone(&arrival.client),
            batch: arrival.batch,
            arrival_ms: admitted_ms,
            ..RequestFacts::default()
        },
        ask: Ask {
            prompt_tokens: arrival.prompt_tokens,
            max_output_tokens: arrival.max_output_tokens,
            n: arrival.choices,
            batch: arrival.batch,
            admitted_ms,
        },
        rating,
    }
}

fn no_price(model: &str) -> ApiError {
    ApiError::new(
        Fault::Overloaded,
        "no_price",
        format!("The model `{model}` has no price in force, so it is not sold for now."),
    )
}

fn refused(error: AdmitError<Box<LimitRefusal>>, model: &str) -> ApiError {
    match error {
        AdmitError::Gate(refusal) => ApiError::limited(&refusal),
        AdmitError::NoPrice => no_price(model),
        AdmitError::Refused(
            refusal @ (Refusal::InsufficientBalance { .. } | Refusal::InsufficientQuota),
        ) => ApiError {
            short: Some(Box::new(refusal.clone())),
            ..ApiError::no_money(sentence(&refusal.to_string()))
        },
        AdmitError::Refused(refusal) => {
            ApiError::internal(format!("the ledger refused: {refusal}"))
        }
        AdmitError::Unavailable(trouble) => unavailable(&trouble),
    }
}

/// Our capacity: the ledger takes nothing for now.
pub(crate) fn unavailable(trouble: &mintage_ledger::Unavailable) -> ApiError {
    ledger_unavailable(trouble.to_string())
}

/// The same, for a reason that only the log tells.
pub(crate) fn ledger_unavailable(why: impl Into<String>) -> ApiError {
    ApiError {
        log: Some(why.into()),
        ..ApiError::new(
            Fault::Overloaded,
            "ledger_unavailable",
            "The server cannot account for requests at the moment. Please try again.",
        )
    }
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).chain(std::iter::once('.')).collect()
    })
}

/// Feeds this month's records into the budgets.
fn remember(limiter: &mut Limiter, billing: &Billing, lineage: &LineageOf) {
    let now_ms = unix_ms();
    let month = limits::Period::Month;
    let begin =
        |ms: u64| billing.calendar.number(month, ms) == billing.calendar.number(month, now_ms);
    // A month has at most 31 days.
    let from_ms = now_ms.saturating_sub(31 * 86_400_000);
    let mut filter = UsageFilter { from_ms, ..UsageFilter::default() };
    loop {
        let page = match billing.ledger.usage(&filter) {
            Ok(page) => page,
            Err(error) => {
                tracing::error!(%error, "budgets begin anew: past usage cannot be read");
                return;
            }
        };
        let Some((last, _)) = page.last() else { return };
        filter.after = *last;
        for (_, record) in &page {
            let facts = &record.facts;
            if !begin(facts.arrival_ms) {
                continue;
            }
            let parties = [
                (Level::Organisation, Arc::clone(&facts.payer.org)),
                (Level::Project, Arc::clone(&facts.payer.project)),
                (Level::Key, lineage(&facts.payer.key)),
            ];
            let used = Used { tokens: record.usage.total(), amount: record.amount };
            limiter.remember(facts.arrival_ms, &parties, &facts.model, used);
        }
    }
}

impl Admitted {
    /// What the client has been sent so far, for the journal.
    pub(crate) fn progress(&mut self, usage: TokenUsage) {
        if let Some(hold) = &mut self.hold {
            hold.progress(usage);
        }
    }

    /// Says anew, for the record, who counted the tokens.
    pub(crate) fn metered_by(&mut self, by: &'static str) {
        if let Some(hold) = &mut self.hold {
            hold.metered_by(by.into());
        }
    }

    /// What `usage` costs, were it settled now.
    pub(crate) fn preview(&self, usage: TokenUsage) -> Settled {
        let cost = self.hold.as_ref().map(|hold| hold.preview(&usage));
        Settled { usage, cost }
    }

    /// Posts `usage`. It stands when this returns; durable when what it returns resolves.
    pub(crate) fn settle(
        mut self,
        usage: TokenUsage,
        outcome: Outcome,
        answer: Option<KeptAnswer>,
    ) -> Option<Pending<Receipt>> {
        let settled = self.preview(usage);
        let amount = settled.cost.map_or(Amount::ZERO, |(amount, _)| amount);
        let used = Used { tokens: usage.total(), amount };
        let mut messages = Vec::new();
        if let Some(pass) = self.pass.take() {
            let parties = &self.principal.parties;
            let reached =
                lock(&self.limiter).settle(now(self.start), parties, &self.model, pass, used);
            messages.extend(reached.iter().map(|r| message(r, &self.principal.organisation)));
        }
        let (Some(hold), Some(ledger)) = (self.hold.take(), &self.ledger) else {
            return None;
        };
        let together = Together { messages, answer };
        Some(ledger.settle(hold, usage, outcome, together))
    }

    /// Bills nothing, and counts nothing.
    pub(crate) fn void(mut self) {
        self.give_back();
    }

    fn give_back(&mut self) {
        if let Some(pass) = self.pass.take() {
            lock(&self.limiter).cancel(now(self.start), pass);
        }
        if let (Some(hold), Some(ledger)) = (self.hold.take(), &self.ledger) {
            ledger.void(hold);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Tells of a budget that was used up.
fn message(reached: &BudgetReached, organisation: &str) -> Message {
    let limit = match reached.limit {
        limits::BudgetLimit::Money(amount) => serde_json::json!({"money": amount.to_string()}),
        limits::BudgetLimit::Tokens(tokens) => serde_json::json!({"tokens": tokens}),
    };
    let body = serde_json::json!({
        "organisation": organisation,
        "level": reached.level.as_str(),
        "party": &*reached.party,
        "model": reached.model,
        "period": reached.period.as_str(),
        "limit": limit,
        "hard": reached.effect == BudgetEffect::Hard,
    });
    Message {
        topic: Arc::from("budget.reached"),
        body: body.to_string().into_bytes(),
        due_ms: unix_ms(),
    }
}
