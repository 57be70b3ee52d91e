//! What past usage would have brought under another list.
//!
//! Usage is taken as it was: who would have asked more at a lower price, nobody knows. Free tokens are those that were
//! used. Invariant: under the list that priced the usage, nothing changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::book::PriceVersion;
use crate::{Amount, UsageRecord};

/// Rows that a comparison keeps apart; what comes later is summed under [`OTHERS`].
const MAX_ROWS: usize = 100_000;
/// Name of the organisations and models beyond that.
pub const OTHERS: &str = "(others)";

/// Revenue of some usage, before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revenue {
    /// Usage records.
    pub records: u64,
    /// Their tokens, all classes.
    pub tokens: u64,
    /// As posted.
    pub before: Amount,
    /// Under the other list.
    pub after: Amount,
    /// Records that the other list cannot price; they count with nothing in `after`.
    pub unpriced: u64,
}

impl Revenue {
    fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.before = [self.before, other.before].into_iter().sum();
        self.after = [self.after, other.after].into_iter().sum();
        self.unpriced += other.unpriced;
    }
}

/// Usage rated by another list, summed up.
#[derive(Debug)]
pub struct WhatIf {
    list: Arc<PriceVersion>,
    /// (organisation, model) → revenue.
    rows: BTreeMap<(Arc<str>, Arc<str>), Revenue>,
}

impl WhatIf {
    /// Nothing yet.
    #[must_use]
    pub fn new(list: Arc<PriceVersion>) -> Self {
        Self { list, rows: BTreeMap::new() }
    }

    /// One more record.
    pub fn add(&mut self, record: &UsageRecord) {
        let rated = self.list.rate_record(record);
        let row = Revenue {
            records: 1,
            tokens: record.usage.total(),
            before: record.amount,
            after: rated.as_ref().map_or(Amount::ZERO, |rated| rated.total),
            unpriced: u64::from(rated.is_err()),
        };
        let mut key = (Arc::clone(&record.facts.payer.org), Arc::clone(&record.facts.model));
        if self.rows.len() >= MAX_ROWS && !self.rows.contains_key(&key) {
            key = (Arc::from(OTHERS), Arc::from(OTHERS));
        }
        self.rows.entry(key).or_default().add(&row);
    }

    /// By model.
    #[must_use]
    pub fn by_model(&self) -> BTreeMap<Arc<str>, Revenue> {
        self.by(|(_, model)| Arc::clone(model))
    }

    /// By organisation.
    #[must_use]
    pub fn by_organisation(&self) -> BTreeMap<Arc<str>, Revenue> {
        self.by(|(organisation, _)| Arc::clone(organisation))
    }

    /// Of everything.
    #[must_use]
    pub fn total(&self) -> Revenue {
        self.by(|_| Arc::from("")).into_values().next().unwrap_or_default()
    }

    fn by(&self, key: impl Fn(&(Arc<str>, Arc<str>)) -> Arc<str>) -> BTreeMap<Arc<str>, Revenue> {
        let mut sums = BTreeMap::<Arc<str>, Revenue>::new();
        for (row, revenue) in &self.rows {
            sums.entry(key(row)).or_default().add(revenue);
        }
        sums
    }
}
