//! The ledger of a gateway that shares accounts with others: what differs from a ledger of its own.
//!
//! Requests are admitted in memory as always, on this gateway's slices; only where those do not suffice
//! [`Ledger::cover`] asks the pool. Top-ups and documents go to the pool, whoever serves them.

use std::sync::{Arc, PoisonError};

use super::agent::Agent;
use super::dividing::{ShareAnswer, SharedLimits};
use super::pool::Purse;
use super::store::PostgresStore;
use super::{PostgresError, PostgresUrl};
use crate::book::{Balance, Refusal, TOKENS};
use crate::ledger::{Ledger, LedgerError, Pending};
use crate::limits::Missing;
use crate::money::{Amount, Currency};
use crate::store::Work;

impl From<PostgresError> for LedgerError {
    fn from(error: PostgresError) -> Self {
        match error {
            PostgresError::Book(refusal) => Self::Refused(refusal),
            PostgresError::IdReused(id) => Self::Refused(Refusal::IdReused(id.into())),
            PostgresError::Conflict { kind, id, current } => Self::Conflict { kind, id, current },
            other => Self::Postgres(other),
        }
    }
}

impl Ledger {
    /// Opens the part of a shared ledger that belongs to the gateway called `name`. Where one of that name died, this
    /// waits until its lease has expired, and recovers what it left.
    ///
    /// # Errors
    /// The database cannot be reached, is not fit, or the name is in use.
    pub fn open_shared(url: &PostgresUrl, name: &str) -> Result<Self, LedgerError> {
        let store = PostgresStore::open(url, name)?;
        let tenure = store.tenure();
        let mut ledger = Self::start(Box::new(store), None)?;
        ledger.agent = Some(Agent::start(url, tenure, Arc::clone(ledger.memory()))?);
        Ok(ledger)
    }

    /// Whether it is worth admitting again what was refused for want of money: in a shared ledger the money may be in
    /// the pool or in another gateway's slice. Waits, bounded, for a larger slice; a ledger of its own says no at once.
    pub async fn cover(&self, org: &str, refusal: &Refusal) -> bool {
        let Refusal::InsufficientBalance { needed, currency, .. } = refusal else { return false };
        let Some(agent) = &self.agent else { return false };
        agent.cover(purse(org, *currency), *needed).await.unwrap_or(false)
    }

    /// Whether other gateways may share it.
    pub fn is_shared(&self) -> bool {
        self.agent.is_some()
    }

    /// Divides limits among the gateways of a shared ledger from now on; with a ledger of its own nothing changes.
    pub fn share_limits(&self, limits: SharedLimits) {
        let Some(agent) = &self.agent else { return };
        limits.limiter.lock().unwrap_or_else(PoisonError::into_inner).share();
        agent.share_limits(limits);
    }

    /// Asks for more of a limit than is here. Waits, bounded; a ledger of its own says at once that there is no more.
    pub async fn cover_share(&self, missing: &Missing) -> ShareAnswer {
        let Some(agent) = &self.agent else { return ShareAnswer::Later(None) };
        agent.share(missing.clone()).await.unwrap_or(ShareAnswer::Later(None))
    }

    /// Gets free quota for `tokens` of a model from the pool, where there is any and too little is here. Waits, bounded.
    pub async fn cover_free(&self, org: &str, model: &str, tokens: u64, now_ms: u64) {
        let Some(agent) = &self.agent else { return };
        let grants = self.memory().lock().book.grant_accounts(org, model, now_ms);
        let here: u64 = grants.iter().map(|(_, left)| *left).fold(0, u64::saturating_add);
        let missing = tokens.saturating_sub(here);
        for (account, left) in grants {
            if missing == 0 {
                return;
            }
            let purse = Purse { account, asset: TOKENS.into() };
            let need = Amount::from_pico(i128::from(left) + i128::from(missing));
            if agent.cover(purse, need).await.unwrap_or(false) {
                return;
            }
        }
    }

    /// What an organisation can spend over all gateways; `held` is what requests of this gateway reserve. Asks the
    /// database where the ledger is shared: not for asynchronous code.
    ///
    /// # Errors
    /// [`LedgerError::Postgres`].
    pub fn whole_balance(&self, org: &str, currency: Currency) -> Result<Balance, LedgerError> {
        let here = self.balance(org, currency);
        let Some(agent) = &self.agent else { return Ok(here) };
        let all = agent.account(purse(org, currency))?;
        let balance = all.unleased.checked_add(all.leased).unwrap_or(all.unleased);
        Ok(Balance { balance, held: here.held, credit_line: all.credit })
    }

    /// All balances, as [`Self::whole_balance`] says.
    ///
    /// # Errors
    /// [`LedgerError::Postgres`].
    pub fn whole_balances(&self) -> Result<Vec<(Arc<str>, Currency, Balance)>, LedgerError> {
        let Some(agent) = &self.agent else { return Ok(self.balances()) };
        let mut all = Vec::new();
        for purse in agent.purses()? {
            let org = purse.account.strip_prefix("org/").map(Arc::<str>::from);
            if let (Some(org), Ok(currency)) = (org, purse.asset.parse()) {
                let balance = self.whole_balance(&org, currency)?;
                all.push((org, currency, balance));
            }
        }
        Ok(all)
    }

    /// Calls `listener` with a document's kind whenever a gateway, this one included, has written one in a shared
    /// ledger. Words can be lost with a connection: look yourself once in a while too.
    pub fn on_document(&self, listener: impl Fn(&str) + Send + Sync + 'static) {
        if let Some(agent) = &self.agent {
            agent.on_document(Box::new(listener));
        }
    }

    /// To the pool: durable when it returns.
    pub(crate) fn write_shared(
        &self,
        agent: &Agent,
        work: Work,
    ) -> Result<Pending<()>, LedgerError> {
        agent.write(work)?;
        Ok(Pending::durable(()))
    }
}

fn purse(org: &str, currency: Currency) -> Purse {
    Purse { account: format!("org/{org}").into(), asset: currency.code().into() }
}
