//! Slices: what this book has of accounts that it shares with other books.
//!
//! A slice comes in and goes out by transfers against an account that names the lease, so that the logs of all books
//! together balance. Invariant: only what no hold reserves can go out.

use std::sync::Arc;

use super::accounts::{GRANT, ORG};
use super::{Book, Entry, EntryKind, GrantTerms, Refusal};
use crate::money::{Amount, Currency};

/// What of an account is in this book, and not reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceStanding {
    /// The account's name in the log.
    pub account: Arc<str>,
    /// A currency's code, or [`super::TOKENS`].
    pub asset: Arc<str>,
    /// Neither spent nor reserved; pico or tokens.
    pub unused: i128,
    /// Everything that was ever spent or is reserved; its growth is the rate of spending.
    pub taken: i128,
}

impl Book {
    /// Takes in a slice (`amount` above zero) or gives it out (below zero), against the account `lease`.
    ///
    /// # Errors
    /// [`Refusal`]: more would go out than is unused.
    pub fn lease(
        &mut self,
        lease: &Arc<str>,
        account: &Arc<str>,
        asset: &Arc<str>,
        amount: i64,
    ) -> Result<Entry, Refusal> {
        if amount < 0 {
            let unused = self.unused(account, asset);
            if unused < -i128::from(amount) {
                return Err(Refusal::ExceedsHold {
                    held: Amount::from_pico(unused),
                    posted: Amount::from_pico(-i128::from(amount)),
                });
            }
        }
        let (kind, debit, credit) = match amount < 0 {
            true => (EntryKind::Return, account, lease),
            false => (EntryKind::Lease, lease, account),
        };
        let entry = Entry {
            kind,
            id: lease.clone(),
            debit: debit.clone(),
            credit: credit.clone(),
            asset: asset.clone(),
            amount: amount.checked_abs().ok_or(Refusal::TooLarge)?,
            refers: None,
            detail: [0; 32],
        };
        self.transfer(&entry)?;
        Ok(entry)
    }

    /// Learns of a grant whose tokens are in the pool; `false` where it is known.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn learn_grant(&mut self, grant: &Arc<str>, terms: &GrantTerms) -> Result<bool, Refusal> {
        if self.grants.contains_key(grant) {
            return Ok(false);
        }
        self.open_grant(grant, terms).map(|_| true)
    }

    /// Neither spent nor reserved of an organisation's or a grant's account; 0 of others.
    pub fn unused(&self, account: &str, asset: &str) -> i128 {
        if let Some(org) = account.strip_prefix(ORG) {
            let currency = asset.parse::<Currency>();
            return currency.map_or(0, |currency| self.balance(org, currency).available().pico());
        }
        let grant = account.strip_prefix(GRANT).and_then(|grant| self.grants.get(grant));
        grant.map_or(0, |grant| i128::from(grant.left()))
    }

    /// All accounts that can be slices.
    pub fn slices(&self) -> Vec<SliceStanding> {
        let mut all = Vec::new();
        for org in self.orgs.values() {
            for wallet in &org.wallets {
                let balance = wallet.sums.credits - wallet.sums.debits;
                all.push(SliceStanding {
                    account: org.account.clone(),
                    asset: wallet.asset.clone(),
                    unused: balance - wallet.held,
                    taken: wallet.held - balance,
                });
            }
        }
        for grant in self.grants.values() {
            all.push(SliceStanding {
                account: grant.account.clone(),
                asset: self.names.tokens.clone(),
                unused: grant.left().into(),
                taken: -i128::from(grant.left()),
            });
        }
        all
    }

    /// Accounts of grants that a request for `model` may use at `now_ms`, with what of them is here.
    pub fn grant_accounts(&self, org: &str, model: &str, now_ms: u64) -> Vec<(Arc<str>, u64)> {
        let ids = self.orgs.get(org).map_or(&[][..], |org| &org.grants);
        let usable = ids.iter().filter_map(|id| self.grants.get(id)).filter(|grant| {
            let models = &grant.terms.models;
            let fits = models.is_empty() || models.iter().any(|known| **known == *model);
            fits && grant.terms.expires_ms > now_ms
        });
        usable.map(|grant| (grant.account.clone(), grant.left())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::HoldRequest;

    #[test]
    fn only_what_is_unused_goes_out() {
        let mut book = Book::new();
        let (lease, org, asset): (Arc<str>, Arc<str>, Arc<str>) =
            ("lease/1".into(), "org/acme".into(), "CNY".into());
        book.lease(&lease, &org, &asset, 100).unwrap();
        let request = HoldRequest {
            id: "r".into(),
            org: "acme".into(),
            money: Amount::from_pico(60),
            ..HoldRequest::default()
        };
        let hold = book.hold(&request).unwrap();
        assert_eq!(book.unused("org/acme", "CNY"), 40);
        assert!(book.lease(&lease, &org, &asset, -41).is_err());
        book.post(hold, Amount::from_pico(50), 0, [0; 32]).unwrap();
        let out = book.lease(&lease, &org, &asset, -50).unwrap();
        assert_eq!((out.kind, out.amount), (EntryKind::Return, 50));
        assert_eq!(book.unused("org/acme", "CNY"), 0);
        book.check().unwrap();
    }
}
