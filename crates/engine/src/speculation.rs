//! Guesses at what a sequence says next, from what it has said: prompt lookup (Saxena 2023) that stays in
//! the copied passage after a small edit. Guesses cost nothing but the rows that verify them; whether they are right
//! never changes an answer, only its speed.
//!
//! Invariant: a guess is a piece of the sequence's own tokens; state is bounded by their number.

use std::collections::HashMap;

use mintage_model::TokenId;

use crate::cost_model::{CostModel, StepShape};

/// Guesses verified for one sequence in a step.
pub(crate) const MAX_DRAFTS: usize = 8;
/// Guesses verified in a step for all sequences: bounds the buffer of logits.
pub(crate) const MAX_STEP_DRAFTS: usize = 16;
/// Tokens that must agree before what followed them is guessed.
const NGRAM: usize = 3;
/// Guessing must promise this much more speed.
const LEAST_GAIN: f64 = 1.03;
/// Weight of the past in the rate of acceptance, a verification and a step without.
const VERIFIED_FORGETTING: f64 = 0.9;
const IDLE_FORGETTING: f64 = 0.98;

/// What guesses of one sequence are made from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drafter {
    /// The position after the latest occurrence of each n-gram.
    after: HashMap<[TokenId; NGRAM], u32>,
    /// Tokens in the index.
    indexed: usize,
    /// How far behind the sequence's end the passage lies that it repeats.
    distance: Option<usize>,
    /// Weighted counts of guesses that were right, and of guesses that were looked at.
    right: f64,
    tried: f64,
}

impl Drafter {
    /// How likely the next guess is right: half, before anything is known.
    fn acceptance(&self) -> f64 {
        (self.right + 1.0) / (self.tried + 2.0)
    }

    /// At most `most` tokens that may follow `tokens`.
    pub(crate) fn guess(&mut self, tokens: &[TokenId], most: usize) -> Vec<TokenId> {
        self.index(tokens);
        self.right *= IDLE_FORGETTING;
        self.tried *= IDLE_FORGETTING;
        let end = tokens.len();
        let found = tokens.last_chunk::<NGRAM>().and_then(|key| self.after.get(key));
        let found = found.map(|&at| at as usize);
        // The same passage as before, if it agrees as well as a new one would; or, behind a replaced word, at all.
        let aligned = self.distance.and_then(|distance| end.checked_sub(distance));
        let agrees = |at: usize, length: usize| {
            at >= length && tokens[at - length..at] == tokens[end - length..]
        };
        let source = match (aligned, found) {
            (Some(at), _) if agrees(at, NGRAM) => at,
            (_, Some(at)) => at,
            (Some(at), None) if agrees(at, 1) => at,
            _ => return Vec::new(),
        };
        self.distance = Some(end - source);
        tokens[source..end.min(source + most)].to_vec()
    }

    /// Learns from the verification of the last guess.
    pub(crate) fn verified(&mut self, guessed: usize, right: usize) {
        if guessed == 0 {
            return;
        }
        let looked_at = right + usize::from(right < guessed);
        self.right = self.right * VERIFIED_FORGETTING + right as f64;
        self.tried = self.tried * VERIFIED_FORGETTING + looked_at as f64;
    }

    /// Indexes every n-gram that something follows.
    fn index(&mut self, tokens: &[TokenId]) {
        for end in self.indexed.max(NGRAM)..tokens.len() {
            if let Some(&ngram) = tokens[..end].last_chunk::<NGRAM>() {
                self.after.insert(ngram, end as u32);
            }
        }
        self.indexed = tokens.len();
    }

    /// How many of `available` guesses pay beside `shape`, a step of decodes that gives `tokens` tokens: the number
    /// with the most tokens per millisecond, 0 where that gains too little.
    pub(crate) fn worthwhile(
        &self,
        cost: &CostModel,
        shape: StepShape,
        tokens: f64,
        computed: usize,
        available: usize,
    ) -> (usize, f64) {
        let rate = |count: usize, gained: f64| {
            (tokens + gained) / cost.predict_ms(shape.with(computed, count, false)).max(1e-6)
        };
        let plain = rate(0, 0.0);
        let (mut best, mut best_rate, mut best_gain) = (0, plain * LEAST_GAIN, 0.0);
        let (mut gained, mut likely) = (0.0, 1.0);
        for count in 1..=available {
            likely *= self.acceptance();
            gained += likely;
            if rate(count, gained) > best_rate {
                (best, best_rate, best_gain) = (count, rate(count, gained), gained);
            }
        }
        (best, best_gain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_behind_a_replaced_token() {
        let mut drafter = Drafter::default();
        let mut tokens = vec![1, 2, 3, 4, 5, 6, 7, 8, 50, 1, 2, 3];
        assert_eq!(drafter.guess(&tokens, 4), [4, 5, 6, 7]);
        // 5 became 60; the model then goes on with 6.
        tokens.extend([4, 60]);
        assert!(drafter.guess(&tokens, 4).is_empty());
        tokens.push(6);
        assert_eq!(drafter.guess(&tokens, 2), [7, 8]);
    }

    #[test]
    fn wrong_guesses_become_rare_and_right_ones_long() {
        let mut cost = CostModel::default();
        for rows in [1, 2, 4, 8, 1, 2, 4, 8] {
            let shape = (0..rows).fold(StepShape::default(), |s, _| s.with(100, 1, false));
            cost.observe(shape, 16.0 + 4.0 * f64::from(rows));
        }
        let alone = StepShape::default().with(100, 1, false);
        let count = |drafter: &Drafter| drafter.worthwhile(&cost, alone, 1.0, 100, MAX_DRAFTS).0;
        let mut drafter = Drafter::default();
        assert!(count(&drafter) > 0, "without experience it tries");
        (0..20).for_each(|_| drafter.verified(4, 0));
        assert_eq!(count(&drafter), 0);
        (0..20).for_each(|_| drafter.verified(8, 8));
        assert_eq!(count(&drafter), MAX_DRAFTS);
    }
}
