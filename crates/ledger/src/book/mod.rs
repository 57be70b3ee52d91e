//! The double-entry book: a pure state machine of accounts, holds and operations.
//!
//! Money moves only by transfers that debit one account and credit another by the same amount of the same asset. An
//! organisation's account is what we owe it: credited by top-ups, debited by posted usage. A hold reserves without
//! moving anything; it is posted (at most what was held) or voided, once. Free quota is an asset of its own: tokens of
//! a grant, which expire.
//!
//! Not here: clocks (times are arguments), files, threads, prices. Invariants, all shown by [`Book::check`]: debits =
//! credits per asset; balance + credit line − held ≥ 0 in each account at each hold; what an account has held is the
//! sum of its open holds; each hold is resolved exactly once; the same id never acts twice.

mod accounts;
mod lease;
mod operation;
#[cfg(test)]
mod simulator;

use std::collections::HashMap;
use std::sync::Arc;

pub use accounts::{AccountSums, Kept, Sums};
use accounts::{Grant, Names, Organisation};
pub use lease::SliceStanding;
pub use operation::{Entry, EntryKind, GrantTerms, HoldNumber, HoldRequest, Operation, Refusal};

use crate::money::{Amount, Currency};

/// Names of organisations, grants and ids are no longer than this.
pub const MAX_ID_BYTES: usize = 256;
/// Grants of free quota an organisation may have.
pub const MAX_GRANTS_PER_ORG: usize = 1_024;
/// A credit line that nothing reaches.
pub const UNLIMITED: Amount = Amount::from_units(i64::MAX);
/// The asset in which free quota is counted.
pub const TOKENS: &str = "tokens";

/// What an organisation can spend in one currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Paid in and not used; negative where a credit line is drawn on.
    pub balance: Amount,
    /// Reserved by open holds.
    pub held: Amount,
    /// How far below zero the balance may go.
    pub credit_line: Amount,
}

impl Balance {
    /// What a further hold may take: never negative unless an adjustment or a lower credit line made it so.
    pub fn available(&self) -> Amount {
        Amount::from_pico(self.balance.pico() + self.credit_line.pico() - self.held.pico())
    }
}

/// An open hold: what is reserved for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    id: Arc<str>,
    org: Arc<str>,
    currency: Currency,
    money: i64,
    /// Tokens of each grant, the first to expire first.
    free: Vec<(Arc<str>, u64)>,
}

/// All accounts and open holds.
#[derive(Debug, Default)]
pub struct Book {
    names: Names,
    orgs: HashMap<Arc<str>, Organisation>,
    grants: HashMap<Arc<str>, Grant>,
    system: AccountSums,
    holds: HashMap<HoldNumber, Held>,
    /// Ids of open holds, so that two requests never share one.
    open_ids: HashMap<Arc<str>, HoldNumber>,
    next_hold: u64,
    /// Every operation but holds, by its id: rare, so all are remembered.
    applied: HashMap<Arc<str>, [u8; 32]>,
    /// Refunded so far, by the posting's number in the log.
    refunded: HashMap<u64, i64>,
}

impl Book {
    /// A book without accounts.
    pub fn new() -> Self {
        Self::default()
    }

    /// What `org` can spend in `currency`; zeros where it has no account.
    pub fn balance(&self, org: &str, currency: Currency) -> Balance {
        self.orgs.get(org).map_or_else(Balance::default, |org| org.balance(currency))
    }

    /// All organisations with an account and their balances.
    pub fn balances(&self) -> impl Iterator<Item = (&str, Currency, Balance)> {
        self.orgs.iter().flat_map(|(name, org)| {
            org.wallets.iter().map(move |w| (&**name, w.currency, org.balance(w.currency)))
        })
    }

    /// Free tokens that a new hold for `model` could reserve at `now_ms`.
    pub fn free_left(&self, org: &str, model: &str, now_ms: u64) -> u64 {
        self.usable_grants(org, model, now_ms)
            .map(|(_, grant)| grant.left())
            .fold(0, u64::saturating_add)
    }

    /// Open holds.
    pub fn open_holds(&self) -> usize {
        self.holds.len()
    }

    /// Whether an operation with this id was applied.
    pub fn knows(&self, id: &str) -> bool {
        self.applied.contains_key(id)
    }

    /// Whether this free quota was granted.
    pub fn knows_grant(&self, grant: &str) -> bool {
        self.grants.contains_key(grant)
    }

    /// Applies an operation that is not part of a request. `Ok(vec![])` where the very same was applied before.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn apply(&mut self, id: &Arc<str>, operation: &Operation) -> Result<Vec<Entry>, Refusal> {
        checked_id(id)?;
        let fingerprint = operation.fingerprint();
        match self.applied.get(id) {
            Some(known) if *known == fingerprint => return Ok(Vec::new()),
            Some(_) => return Err(Refusal::IdReused(id.clone())),
            None => {}
        }
        let entries = self.entries_of(id, operation, fingerprint)?;
        for entry in &entries {
            self.transfer(entry)?;
        }
        match operation {
            Operation::CreditLine { org, currency, limit } => {
                self.org(org).wallet(*currency).credit_line = limit.pico();
            }
            Operation::Refund { posting, amount, .. } => {
                let amount = amount.posted_pico().unwrap_or(0);
                *self.refunded.entry(*posting).or_default() += amount;
            }
            _ => {}
        }
        self.applied.insert(id.clone(), fingerprint);
        Ok(entries)
    }

    /// The entries that `operation` would make, all of its checks passed; grants are opened here.
    fn entries_of(
        &mut self,
        id: &Arc<str>,
        operation: &Operation,
        detail: [u8; 32],
    ) -> Result<Vec<Entry>, Refusal> {
        let names = self.names.clone();
        let entry = |kind, debit: &Arc<str>, credit: &Arc<str>, asset, amount| Entry {
            kind,
            id: id.clone(),
            debit: debit.clone(),
            credit: credit.clone(),
            asset,
            amount,
            refers: None,
            detail,
        };
        Ok(match operation {
            Operation::TopUp { org, currency, amount } => {
                let (org, asset) = self.named(org, *currency)?;
                vec![entry(EntryKind::TopUp, &names.cash, &org, asset, positive(*amount)?)]
            }
            Operation::Credit { org, currency, amount } => {
                let (org, asset) = self.named(org, *currency)?;
                vec![entry(EntryKind::Credit, &names.promotion, &org, asset, positive(*amount)?)]
            }
            Operation::Adjustment { org, currency, amount } => {
                let (org, asset) = self.named(org, *currency)?;
                let size = Amount::from_pico(amount.pico().checked_abs().ok_or(Refusal::TooLarge)?);
                let size = positive(size)?;
                let (debit, credit) = match amount.is_negative() {
                    true => (&org, &names.adjustment),
                    false => (&names.adjustment, &org),
                };
                vec![entry(EntryKind::Adjustment, debit, credit, asset, size)]
            }
            Operation::Refund { org, currency, amount, posting, posted } => {
                let size = positive(*amount)?;
                let before = self.refunded.get(posting).copied().unwrap_or(0);
                let after = before.checked_add(size).ok_or(Refusal::TooLarge)?;
                if i128::from(after) > posted.pico() {
                    return Err(Refusal::RefundExceedsPosting { posting: *posting });
                }
                let (org, asset) = self.named(org, *currency)?;
                let refund = entry(EntryKind::Refund, &names.revenue, &org, asset, size);
                vec![Entry { refers: Some(*posting), ..refund }]
            }
            Operation::CreditLine { org, currency, limit } => {
                if limit.is_negative() || *limit > UNLIMITED {
                    return Err(Refusal::TooLarge);
                }
                let (_, asset) = self.named(org, *currency)?;
                vec![entry(EntryKind::CreditLine, &names.none, &names.none, asset, 0)]
            }
            Operation::Grant { grant, terms } => {
                let tokens = i64::try_from(terms.tokens).map_err(|_| Refusal::TooLarge)?;
                let account = self.open_grant(grant, terms)?;
                let asset = names.tokens.clone();
                vec![entry(EntryKind::Grant, &names.promotion, &account, asset, tokens)]
            }
        })
    }

    /// Reserves for a request. The hold is resolved by [`Self::post`] or [`Self::void`].
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn hold(&mut self, request: &HoldRequest) -> Result<HoldNumber, Refusal> {
        checked_id(&request.id)?;
        if self.open_ids.contains_key(&request.id) || self.applied.contains_key(&request.id) {
            return Err(Refusal::IdReused(request.id.clone()));
        }
        let money = request.money.posted_pico().filter(|m| *m >= 0).ok_or(Refusal::TooLarge)?;
        let balance = self.balance(&request.org, request.currency);
        if money > 0 && balance.available() < request.money {
            return Err(Refusal::InsufficientBalance {
                available: balance.available(),
                needed: request.money,
                currency: request.currency,
            });
        }
        let free = self.reserve_free(request)?;
        if money > 0 {
            self.org(&request.org).wallet(request.currency).held += i128::from(money);
        }
        let number = HoldNumber(self.next_hold);
        self.next_hold += 1;
        self.open_ids.insert(request.id.clone(), number);
        let held = Held {
            id: request.id.clone(),
            org: request.org.clone(),
            currency: request.currency,
            money,
            free,
        };
        self.holds.insert(number, held);
        Ok(number)
    }

    /// Which grants would pay `free` tokens of an open hold, the first to expire first.
    pub fn split_free(&self, number: HoldNumber, free: u64) -> Vec<(Arc<str>, u64)> {
        let mut left = free;
        let held = self.holds.get(&number).map_or(&[][..], |held| &held.free);
        let parts = held.iter().map_while(|(grant, tokens)| {
            let part = left.min(*tokens);
            left -= part;
            (part > 0).then(|| (grant.clone(), part))
        });
        parts.collect()
    }

    /// Posts at most what is held and releases the rest. The first entry is the money's, even of 0.
    ///
    /// # Errors
    /// [`Refusal`]; the hold stays open then.
    pub fn post(
        &mut self,
        number: HoldNumber,
        money: Amount,
        free: u64,
        detail: [u8; 32],
    ) -> Result<Vec<Entry>, Refusal> {
        let held = self.holds.get(&number).ok_or_else(|| self.not_open(number))?;
        let amount = money.posted_pico().filter(|m| *m >= 0).ok_or(Refusal::TooLarge)?;
        let free_held: u64 = held.free.iter().map(|(_, tokens)| tokens).sum();
        if amount > held.money || free > free_held {
            return Err(Refusal::ExceedsHold {
                held: Amount::from_pico(held.money.into()),
                posted: money,
            });
        }
        let parts = self.split_free(number, free);
        let Some(held) = self.release(number) else { return Err(self.not_open(number)) };
        let entries = self.posting(&held, amount, &parts, detail)?;
        for entry in &entries {
            self.transfer(entry)?;
        }
        Ok(entries)
    }

    /// Posts what a crash left journalled: the hold itself did not survive.
    ///
    /// # Errors
    /// [`Refusal`] where an amount is out of range or a grant is unknown.
    pub fn post_unheld(
        &mut self,
        request: &HoldRequest,
        parts: &[(Arc<str>, u64)],
        detail: [u8; 32],
    ) -> Result<Vec<Entry>, Refusal> {
        let amount = request.money.posted_pico().filter(|m| *m >= 0).ok_or(Refusal::TooLarge)?;
        if let Some((grant, _)) = parts.iter().find(|(grant, _)| !self.grants.contains_key(grant)) {
            return Err(Refusal::UnknownGrant(grant.clone()));
        }
        let held = Held {
            id: request.id.clone(),
            org: request.org.clone(),
            currency: request.currency,
            money: amount,
            free: parts.to_vec(),
        };
        let entries = self.posting(&held, amount, parts, detail)?;
        for entry in &entries {
            self.transfer(entry)?;
        }
        Ok(entries)
    }

    /// Gives all of a hold back.
    ///
    /// # Errors
    /// [`Refusal::AlreadyResolved`], [`Refusal::UnknownHold`].
    pub fn void(&mut self, number: HoldNumber) -> Result<(), Refusal> {
        match self.release(number) {
            Some(_) => Ok(()),
            None => Err(self.not_open(number)),
        }
    }

    fn posting(
        &mut self,
        held: &Held,
        amount: i64,
        parts: &[(Arc<str>, u64)],
        detail: [u8; 32],
    ) -> Result<Vec<Entry>, Refusal> {
        let (org, asset) = match amount {
            // A request for nothing opens no account.
            0 => (accounts::org_account(&held.org), accounts::asset(held.currency)),
            _ => self.named(&held.org, held.currency)?,
        };
        let mut entries = Vec::with_capacity(1 + parts.len());
        entries.push(Entry {
            kind: EntryKind::Post,
            id: held.id.clone(),
            debit: org,
            credit: self.names.revenue.clone(),
            asset,
            amount,
            refers: None,
            detail,
        });
        for (grant, tokens) in parts {
            let Some(account) = self.grants.get(grant) else { continue };
            entries.push(Entry {
                kind: EntryKind::FreeUse,
                id: held.id.clone(),
                debit: account.account.clone(),
                credit: self.names.free_use.clone(),
                asset: self.names.tokens.clone(),
                amount: i64::try_from(*tokens).map_err(|_| Refusal::TooLarge)?,
                refers: None,
                detail,
            });
        }
        Ok(entries)
    }

    /// Takes an open hold away and what it reserved.
    fn release(&mut self, number: HoldNumber) -> Option<Held> {
        let held = self.holds.remove(&number)?;
        self.open_ids.remove(&held.id);
        if held.money > 0 {
            self.org(&held.org).wallet(held.currency).held -= i128::from(held.money);
        }
        for (grant, tokens) in &held.free {
            if let Some(grant) = self.grants.get_mut(grant) {
                grant.held = grant.held.saturating_sub(*tokens);
            }
        }
        Some(held)
    }

    fn not_open(&self, number: HoldNumber) -> Refusal {
        if number.0 < self.next_hold {
            Refusal::AlreadyResolved(number)
        } else {
            Refusal::UnknownHold(number)
        }
    }
}

fn checked_id(id: &str) -> Result<(), Refusal> {
    let fits = !id.is_empty() && id.len() <= MAX_ID_BYTES;
    if fits { Ok(()) } else { Err(Refusal::BadId) }
}

fn positive(amount: Amount) -> Result<i64, Refusal> {
    amount.posted_pico().filter(|pico| *pico > 0).ok_or(Refusal::NotPositive(amount))
}
