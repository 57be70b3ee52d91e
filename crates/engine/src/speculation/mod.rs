//! Guesses at what sequences say next, verified by the model in the step that they ride on. Where they come from:
//! [`ngram`], the sequence's own words, for nothing; [`draft_model`], a smaller model. How many pay is decided here, by
//! what each is likely to gain and what a row costs in the step at hand ([`CostModel`]): the fuller the batch, the fewer.
//!
//! Invariant: guesses never change an answer, only its speed. They are chosen without a clock and without randomness of
//! their own, and what is learned from their verification decides about their number only.

mod draft_model;
mod ngram;

pub use draft_model::DraftModel;
pub(crate) use draft_model::DraftRequest;
pub(crate) use ngram::NgramDrafter;

use mintage_model::TokenId;

use crate::cost_model::{CostModel, StepShape};

/// Guesses verified for one sequence in a step, at most.
pub const MAX_DRAFTS: usize = 32;
/// Guesses verified in a step for all sequences: bounds the buffer of logits.
pub(crate) const MAX_STEP_DRAFTS: usize = 32;
/// Guessing must promise this much more speed.
const LEAST_GAIN: f64 = 1.02;
/// Beside prompts that wait to be computed a guess takes a prompt token's place: it must be about as useful.
const LEAST_LIKELY_BESIDE_PROMPTS: f64 = 0.75;
/// Weight of the past in a rate, a verification.
const FORGETTING: f64 = 0.95;

/// How often something came true, with an opinion to start from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    prior: f64,
    /// Of how many observations the prior has the weight.
    prior_weight: f64,
    right: f64,
    tried: f64,
}

impl Rate {
    pub(crate) fn new(prior: f64, prior_weight: f64) -> Self {
        Self { prior, prior_weight, right: 0.0, tried: 0.0 }
    }

    pub(crate) fn value(&self) -> f64 {
        (self.right + self.prior * self.prior_weight) / (self.tried + self.prior_weight)
    }

    pub(crate) fn observe(&mut self, right: bool) {
        self.forget(FORGETTING);
        self.right += f64::from(u8::from(right));
        self.tried += 1.0;
    }

    /// Gives the past `share` of its weight.
    pub(crate) fn forget(&mut self, share: f64) {
        self.right *= share;
        self.tried *= share;
    }
}

/// What may follow a sequence's last token.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Guess {
    /// Guessed tokens, in order.
    pub(crate) tokens: Vec<TokenId>,
    /// How likely each is right together with all before it: descending.
    pub(crate) likely: Vec<f64>,
    /// Tokens of the sequence that are computed before the step.
    pub(crate) computed: usize,
}

/// A step of decodes so far: what it computes, how many tokens it is expected to give, and what it costs besides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outlook {
    pub(crate) shape: StepShape,
    pub(crate) tokens: f64,
    /// Time spent on the step outside of it, ms.
    pub(crate) spent_ms: f64,
}

impl Outlook {
    /// Tokens per millisecond.
    pub(crate) fn rate(&self, cost: &CostModel) -> f64 {
        self.tokens / (cost.predict_ms(self.shape) + self.spent_ms).max(1e-6)
    }

    /// With one more row after `computed` tokens, which gives `likely` tokens.
    pub(crate) fn with_row(&self, computed: usize, likely: f64) -> Self {
        let shape = self.shape.with(computed, 1, false);
        Self { shape, tokens: self.tokens + likely, ..*self }
    }
}

/// How many tokens of each guess to verify, at most `room` in all, such that the step gives the most tokens per
/// millisecond; and the step that comes out. The likeliest guess of any sequence goes first.
pub(crate) fn allocate(
    cost: &CostModel,
    plain: Outlook,
    guesses: &[Guess],
    room: usize,
    prompts_wait: bool,
) -> (Vec<usize>, Outlook) {
    let mut counts = vec![0; guesses.len()];
    let (mut best, mut outlook) = ((counts.clone(), plain), plain);
    let mut best_rate = plain.rate(cost) * LEAST_GAIN;
    for _ in 0..room {
        let next =
            guesses.iter().zip(&counts).enumerate().filter_map(|(index, (guess, &count))| {
                guess.likely.get(count).map(|&likely| (likely, index))
            });
        let Some((likely, index)) = next.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))
        else {
            break;
        };
        if prompts_wait && likely < LEAST_LIKELY_BESIDE_PROMPTS {
            break;
        }
        outlook = outlook.with_row(guesses[index].computed + 1 + counts[index], likely);
        counts[index] += 1;
        let rate = outlook.rate(cost);
        if rate > best_rate {
            best_rate = rate;
            best = (counts.clone(), outlook);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose step takes `base` and `row` for each row, ms.
    fn machine(base: f64, row: f64) -> CostModel {
        let mut cost = CostModel::default();
        for rows in (1..=32).cycle().take(128) {
            let shape = (0..rows).fold(StepShape::default(), |s, _| s.with(100, 1, false));
            cost.observe(shape, base + row * f64::from(rows));
        }
        cost
    }

    fn guess(likely: f64, count: usize) -> Guess {
        let likely: Vec<f64> = (1..=count as i32).map(|n| likely.powi(n)).collect();
        Guess { tokens: vec![1; count], likely, computed: 100 }
    }

    fn check(cost: &CostModel, users: usize, guesses: &[Guess], prompts: bool, wanted: &[usize]) {
        let shape = (0..users).fold(StepShape::default(), |s, _| s.with(100, 1, false));
        let plain = Outlook { shape, tokens: users as f64, spent_ms: 0.0 };
        let (counts, outlook) = allocate(cost, plain, guesses, MAX_STEP_DRAFTS, prompts);
        assert_eq!(counts, wanted, "{users} users, {guesses:?}");
        assert_eq!(outlook.shape.decode_rows, users + wanted.iter().sum::<usize>());
    }

    #[test]
    fn guesses_are_verified_where_that_pays() {
        let cost = machine(16.0, 2.0);
        check(&cost, 1, &[guess(0.99, 20)], false, &[20]);
        check(&cost, 1, &[guess(0.05, 20)], false, &[0]);
        check(&cost, 1, &[guess(0.5, 20)], false, &[2]);
        // The likelier guesses get the room.
        check(&cost, 2, &[guess(0.3, 8), guess(0.99, 40)], false, &[0, 32]);
        // With many users rows are what a step costs, and a guess must be nearly certain.
        check(&cost, 32, &[guess(0.6, 8)], false, &[0]);
        check(&cost, 32, &[guess(0.99, 8)], false, &[8]);
        // Where a row costs nearly as much as a step, never.
        check(&machine(1.0, 20.0), 1, &[guess(0.9, 8)], false, &[0]);
    }

    #[test]
    fn beside_prompts_only_what_is_nearly_certain_is_verified() {
        let cost = machine(16.0, 2.0);
        check(&cost, 1, &[guess(0.9, 20)], true, &[2]);
        check(&cost, 1, &[guess(0.7, 20)], true, &[0]);
    }
}
