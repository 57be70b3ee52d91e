//! Accounts and their sums: how a transfer changes them, how they are restored, and what must hold of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{
    Balance, Book, Entry, GrantTerms, HoldNumber, HoldRequest, MAX_GRANTS_PER_ORG, Operation,
    Refusal, TOKENS, checked_id,
};
use crate::money::{Amount, Currency};

pub(super) const ORG: &str = "org/";
pub(super) const GRANT: &str = "grant/";

/// The accounts that belong to nobody else.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) none: Arc<str>,
    pub(super) cash: Arc<str>,
    pub(super) revenue: Arc<str>,
    pub(super) promotion: Arc<str>,
    pub(super) adjustment: Arc<str>,
    pub(super) free_use: Arc<str>,
    pub(super) tokens: Arc<str>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            none: "".into(),
            cash: "cash".into(),
            revenue: "revenue".into(),
            promotion: "promotion".into(),
            adjustment: "adjustment".into(),
            free_use: "free_use".into(),
            tokens: TOKENS.into(),
        }
    }
}

/// Everything that ever went through an account, in one asset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Pico or tokens.
    pub debits: i128,
    /// Pico or tokens.
    pub credits: i128,
}

#[derive(Debug)]
pub(super) struct Wallet {
    pub(super) currency: Currency,
    pub(super) asset: Arc<str>,
    pub(super) sums: Sums,
    pub(super) held: i128,
    pub(super) credit_line: i128,
}

#[derive(Debug)]
pub(super) struct Organisation {
    pub(super) account: Arc<str>,
    /// One a currency; nearly always one.
    pub(super) wallets: Vec<Wallet>,
    pub(super) grants: Vec<Arc<str>>,
}

impl Organisation {
    pub(super) fn wallet(&mut self, currency: Currency) -> &mut Wallet {
        let at = self.wallets.iter().position(|wallet| wallet.currency == currency);
        let at = at.unwrap_or_else(|| {
            self.wallets.push(Wallet {
                currency,
                asset: asset(currency),
                sums: Sums::default(),
                held: 0,
                credit_line: 0,
            });
            self.wallets.len() - 1
        });
        &mut self.wallets[at]
    }

    pub(super) fn balance(&self, currency: Currency) -> Balance {
        let wallet = self.wallets.iter().find(|wallet| wallet.currency == currency);
        wallet.map_or_else(Balance::default, |wallet| Balance {
            balance: Amount::from_pico(wallet.sums.credits - wallet.sums.debits),
            held: Amount::from_pico(wallet.held),
            credit_line: Amount::from_pico(wallet.credit_line),
        })
    }
}

#[derive(Debug)]
pub(super) struct Grant {
    pub(super) account: Arc<str>,
    pub(super) terms: GrantTerms,
    pub(super) sums: Sums,
    pub(super) held: u64,
}

impl Grant {
    /// Neither used nor reserved.
    pub(super) fn left(&self) -> u64 {
        let unused = u64::try_from(self.sums.credits - self.sums.debits).unwrap_or(0);
        unused.saturating_sub(self.held)
    }
}

pub(super) fn org_account(org: &str) -> Arc<str> {
    format!("{ORG}{org}").into()
}

pub(super) fn asset(currency: Currency) -> Arc<str> {
    currency.code().into()
}

/// Sums by account and asset.
pub type AccountSums = BTreeMap<(Arc<str>, Arc<str>), Sums>;

/// What a store kept of a book.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Sums by account and asset.
    pub accounts: AccountSums,
    /// Every operation that was not part of a request, in order, by id.
    pub operations: Vec<(Arc<str>, Operation)>,
}

impl Book {
    /// The book as it stood: operations tell grants, credit lines and refunds, the sums tell the rest.
    ///
    /// # Errors
    /// What does not fit together, in words.
    pub fn restore(kept: &Kept) -> Result<Self, String> {
        let mut book = Self::new();
        for (id, operation) in &kept.operations {
            book.apply(id, operation).map_err(|e| format!("operation `{id}` of the log: {e}"))?;
        }
        // Now the sums of those operations stand; the stored ones contain them and all postings.
        book.system.clear();
        for ((account, asset), sums) in &kept.accounts {
            let slot = book.sums_of(account, asset);
            *slot.ok_or_else(|| format!("account `{account}` in `{asset}` has no owner"))? = *sums;
        }
        Ok(book)
    }

    /// The account's sums; `None` where it is a grant's that does not exist, or a currency that is none.
    pub(super) fn sums_of(&mut self, account: &Arc<str>, asset: &Arc<str>) -> Option<&mut Sums> {
        if let Some(org) = account.strip_prefix(ORG) {
            let currency = asset.parse().ok()?;
            return Some(&mut self.org_named(org).wallet(currency).sums);
        }
        if let Some(grant) = account.strip_prefix(GRANT) {
            return self.grants.get_mut(grant).map(|grant| &mut grant.sums);
        }
        Some(self.system.entry((account.clone(), asset.clone())).or_default())
    }

    /// Moves an entry's amount. Both accounts exist: whoever made the entry named them.
    pub(super) fn transfer(&mut self, entry: &Entry) -> Result<(), Refusal> {
        if entry.amount == 0 {
            return Ok(());
        }
        let amount = i128::from(entry.amount);
        let unknown = || Refusal::UnknownGrant(entry.id.clone());
        self.sums_of(&entry.debit, &entry.asset).ok_or_else(unknown)?.debits += amount;
        self.sums_of(&entry.credit, &entry.asset).ok_or_else(unknown)?.credits += amount;
        Ok(())
    }

    pub(super) fn org(&mut self, org: &Arc<str>) -> &mut Organisation {
        if !self.orgs.contains_key(org) {
            return self.org_named(org);
        }
        // Found above; `entry` only so that no path can panic.
        self.orgs.entry(org.clone()).or_insert_with(|| new_org(org))
    }

    fn org_named(&mut self, org: &str) -> &mut Organisation {
        self.orgs.entry(Arc::from(org)).or_insert_with(|| new_org(org))
    }

    /// The names of an organisation's account and of the asset; opens the account.
    pub(super) fn named(
        &mut self,
        org: &Arc<str>,
        currency: Currency,
    ) -> Result<(Arc<str>, Arc<str>), Refusal> {
        checked_id(org)?;
        let org = self.org(org);
        let account = org.account.clone();
        Ok((account, org.wallet(currency).asset.clone()))
    }

    pub(super) fn open_grant(
        &mut self,
        grant: &Arc<str>,
        terms: &GrantTerms,
    ) -> Result<Arc<str>, Refusal> {
        checked_id(grant)?;
        checked_id(&terms.org)?;
        if terms.tokens == 0 {
            return Err(Refusal::NotPositive(Amount::ZERO));
        }
        if self.grants.contains_key(grant) {
            return Err(Refusal::GrantExists(grant.clone()));
        }
        let known = self.org(&terms.org).grants.len();
        if known >= MAX_GRANTS_PER_ORG {
            return Err(Refusal::TooManyGrants);
        }
        self.org(&terms.org).grants.push(grant.clone());
        let account: Arc<str> = format!("{GRANT}{grant}").into();
        let opened = Grant {
            account: account.clone(),
            terms: terms.clone(),
            sums: Sums::default(),
            held: 0,
        };
        self.grants.insert(grant.clone(), opened);
        Ok(account)
    }

    /// Grants that a request for `model` may use now, as the organisation got them.
    pub(super) fn usable_grants(
        &self,
        org: &str,
        model: &str,
        now_ms: u64,
    ) -> impl Iterator<Item = (&Arc<str>, &Grant)> {
        let ids = self.orgs.get(org).map_or(&[][..], |org| &org.grants);
        ids.iter().filter_map(move |id| {
            let grant = self.grants.get(id)?;
            let models = &grant.terms.models;
            let fits = models.is_empty() || models.iter().any(|known| **known == *model);
            (fits && grant.terms.expires_ms > now_ms && grant.left() > 0).then_some((id, grant))
        })
    }

    /// Reserves free tokens, from the grants that expire first.
    pub(super) fn reserve_free(
        &mut self,
        request: &HoldRequest,
    ) -> Result<Vec<(Arc<str>, u64)>, Refusal> {
        if request.free_tokens == 0 {
            return Ok(Vec::new());
        }
        let mut grants: Vec<_> = self
            .usable_grants(&request.org, &request.model, request.now_ms)
            .map(|(id, grant)| (grant.terms.expires_ms, id.clone(), grant.left()))
            .collect();
        grants.sort();
        let mut missing = request.free_tokens;
        let mut parts = Vec::new();
        for (_, id, left) in grants {
            let part = missing.min(left);
            missing -= part;
            if part > 0 {
                parts.push((id, part));
            }
        }
        if missing > 0 {
            return Err(Refusal::InsufficientQuota);
        }
        for (id, tokens) in &parts {
            if let Some(grant) = self.grants.get_mut(id) {
                grant.held += tokens;
            }
        }
        Ok(parts)
    }

    /// Every account's sums, as a store keeps them.
    pub fn sums(&self) -> AccountSums {
        let mut all = self.system.clone();
        for org in self.orgs.values() {
            for wallet in &org.wallets {
                all.insert((org.account.clone(), wallet.asset.clone()), wallet.sums);
            }
        }
        for grant in self.grants.values() {
            all.insert((grant.account.clone(), self.names.tokens.clone()), grant.sums);
        }
        all.retain(|_, sums| *sums != Sums::default());
        all
    }

    /// Whether all that must hold does. Walks everything: for tests, recovery and `verify`.
    ///
    /// # Errors
    /// The first thing that does not hold, in words.
    pub fn check(&self) -> Result<(), String> {
        let mut per_asset: HashMap<Arc<str>, i128> = HashMap::new();
        for ((_, asset), sums) in self.sums() {
            *per_asset.entry(asset).or_default() += sums.debits - sums.credits;
        }
        if let Some((asset, off)) = per_asset.iter().find(|(_, off)| **off != 0) {
            return Err(format!("debits and credits of {asset} differ by {off}"));
        }
        let mut held: HashMap<(Arc<str>, Currency), i128> = HashMap::new();
        let mut free: HashMap<Arc<str>, u64> = HashMap::new();
        for hold in self.holds.values() {
            *held.entry((hold.org.clone(), hold.currency)).or_default() += i128::from(hold.money);
            for (grant, tokens) in &hold.free {
                *free.entry(grant.clone()).or_default() += tokens;
            }
        }
        for (name, org) in &self.orgs {
            for wallet in &org.wallets {
                let open = held.get(&(name.clone(), wallet.currency)).copied().unwrap_or(0);
                if open != wallet.held {
                    return Err(format!("{name} has {} held, its holds are {open}", wallet.held));
                }
            }
        }
        for (id, grant) in &self.grants {
            let open = free.get(id).copied().unwrap_or(0);
            let unused = grant.sums.credits - grant.sums.debits;
            if open != grant.held || i128::from(open) > unused {
                return Err(format!("grant {id}: {} held, {open} open of {unused}", grant.held));
            }
        }
        let ids_match = self.open_ids.len() == self.holds.len()
            && self.holds.iter().all(|(n, held)| self.open_ids.get(&held.id) == Some(n));
        if ids_match { Ok(()) } else { Err("ids of open holds are off".to_owned()) }
    }

    /// The open holds' numbers, in order.
    pub fn hold_numbers(&self) -> Vec<HoldNumber> {
        let mut numbers: Vec<_> = self.holds.keys().copied().collect();
        numbers.sort();
        numbers
    }
}

fn new_org(org: &str) -> Organisation {
    Organisation { account: org_account(org), wallets: Vec::new(), grants: Vec::new() }
}
