//! How much of the engine each tenant has had: virtual token counters (Sheng et al. 2024, arXiv 2401.00588).
//!
//! Invariant: a counter exists exactly as long as its tenant has a sequence, so there are never more than sequences.

use std::collections::BTreeMap;

/// What a sampled token costs, in prompt tokens.
pub(crate) const OUTPUT_TOKEN_WEIGHT: u64 = 2;

/// What a prompt token costs a tenant of weight 1: divides evenly by most weights.
const TOKEN_UNITS: u64 = 720_720;

/// How far a newcomer is ahead: the prompt tokens that most single requests have.
const NEWCOMER_UNITS: u64 = 256 * TOKEN_UNITS;

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    /// In prompt tokens times `TOKEN_UNITS`, divided by the weight.
    served: u64,
    weight: u32,
    sequences: u32,
}

/// A counter per tenant.
#[derive(Clone, Debug, Default)]
pub(crate) struct FairShare {
    shares: BTreeMap<u64, Share>,
}

impl FairShare {
    /// A sequence of `tenant` arrived. A tenant that had none starts a little before the least served one:
    /// idleness is not saved up, and a single request of a newcomer does not queue behind a crowd.
    pub(crate) fn enter(&mut self, tenant: u64, weight: u32) {
        let least = self.shares.values().map(|share| share.served).min();
        let least = least.unwrap_or(2 * NEWCOMER_UNITS);
        let fresh = Share { served: least.saturating_sub(NEWCOMER_UNITS), ..Share::default() };
        let share = self.shares.entry(tenant).or_insert(fresh);
        // A weight that the operator changed holds from the next request on.
        share.weight = weight.max(1);
        share.sequences += 1;
    }

    /// A sequence of `tenant` left.
    pub(crate) fn leave(&mut self, tenant: u64) {
        if let Some(share) = self.shares.get_mut(&tenant) {
            share.sequences = share.sequences.saturating_sub(1);
            if share.sequences == 0 {
                self.shares.remove(&tenant);
            }
        }
    }

    /// `tenant` was served `tokens` prompt tokens or their equivalent.
    pub(crate) fn charge(&mut self, tenant: u64, tokens: u64) {
        if let Some(share) = self.shares.get_mut(&tenant) {
            let units = tokens.saturating_mul(TOKEN_UNITS) / u64::from(share.weight);
            share.served = share.served.saturating_add(units);
        }
    }

    /// What `tenant` has had for its weight; the least served comes first.
    pub(crate) fn served(&self, tenant: u64) -> u64 {
        self.shares.get(&tenant).map_or(0, |share| share.served)
    }

    /// How large its share is among others.
    pub(crate) fn weight(&self, tenant: u64) -> f64 {
        self.shares.get(&tenant).map_or(1.0, |share| f64::from(share.weight))
    }

    /// Sequences counted, for `check()`.
    pub(crate) fn sequences(&self) -> usize {
        self.shares.values().map(|share| share.sequences as usize).sum()
    }
}
