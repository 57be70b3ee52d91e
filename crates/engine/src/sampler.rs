//! Chooses the next token from a row of logits. No state but counts of the request's own tokens, no randomness but what
//! seed and position give.
//!
//! The order of the steps, each on what the one before left, probabilities renormalised:
//!
//! 0. the grammar's mask: what it does not allow is gone;
//! 1. logit bias, added;
//! 2. repetition penalty (tokens of prompt and output), then frequency and presence penalty (tokens of the output);
//! 3. temperature: 0 takes the highest logit, the lowest id among equals, and ends here;
//! 4. top-k; 5. top-p; 6. min-p; 7. typical;
//! 8. draw: the tokens in order of probability (lower id first among equals), at a point that is a function of seed and
//!    position only.
//!
//! Invariant: the token is a function of logits, parameters, the request's own tokens, and the position. So the same
//! seed gives the same tokens whoever shares the batch, after preemption, and with speculation on or off.
//!
//! Candidates are sorted only as far as the draw needs: usually the best 64 of a vocabulary of 150,000.

use std::collections::HashMap;

use mintage_kernels::{argmax, log_sum_exp, max, top_k};
use mintage_model::{SampledToken, SamplingParams, TokenId, TokenLogprob, TokenMask};

/// Candidates sorted at first.
const FIRST_CANDIDATES: usize = 64;
/// How many times more are sorted where those were not enough.
const CANDIDATES_GROWTH: usize = 16;

/// Logits from which nothing can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// A logit is not a number.
    #[error("the model computed NaN logits")]
    NotANumber,
    /// The largest logit, after bias and penalties, is infinite (or there is none).
    #[error("the largest logit is not finite")]
    NotFinite,
}

/// Chooses the tokens of one request.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    /// Occurrences in the output of each token of prompt and output; kept only where a penalty needs them.
    counts: HashMap<TokenId, u32>,
    has_penalties: bool,
}

impl Sampler {
    /// A sampler for a request with this prompt. The parameters are in range (`mintage_model::validate`).
    #[must_use]
    pub fn new(params: SamplingParams, prompt: &[TokenId]) -> Self {
        let has_penalties = params.repetition_penalty != 1.0
            || params.frequency_penalty != 0.0
            || params.presence_penalty != 0.0;
        let counts =
            if has_penalties { prompt.iter().map(|&id| (id, 0)).collect() } else { HashMap::new() };
        Self { params, counts, has_penalties }
    }

    /// Counts a token of the output.
    pub fn accept(&mut self, id: TokenId) {
        if self.has_penalties {
            *self.counts.entry(id).or_insert(0) += 1;
        }
    }

    /// Chooses the token at `position` of the sequence, among those of `mask` where there is one. `logits` (vocab) stays
    /// as it is; `scratch` is overwritten.
    ///
    /// # Errors
    /// [`SampleError`] where the logits are broken; the request fails, its neighbours do not.
    pub fn sample(
        &self,
        logits: &[f32],
        position: u64,
        mask: Option<&TokenMask>,
        scratch: &mut Vec<f32>,
    ) -> Result<TokenId, SampleError> {
        if has_nan(logits) {
            return Err(SampleError::NotANumber);
        }
        let greedy = self.params.temperature == 0.0;
        let plain = self.params.logit_bias.is_empty() && !self.has_penalties;
        if greedy && plain && mask.is_none() {
            return finite_argmax(logits);
        }
        scratch.clear();
        match mask {
            None => scratch.extend_from_slice(logits),
            Some(mask) => masked(logits, mask, scratch),
        }
        self.adjust(scratch);
        if greedy {
            return finite_argmax(scratch);
        }
        let highest = max(scratch);
        if !highest.is_finite() {
            return Err(SampleError::NotFinite);
        }
        // Shifted first, so that a tiny temperature cannot overflow: the best is 0, all others are below.
        let temperature = self.params.temperature;
        for x in scratch.iter_mut() {
            *x = (*x - highest) / temperature;
        }
        let point = uniform(self.params.seed, position);
        Ok(draw(scratch, &self.params, point, FIRST_CANDIDATES))
    }

    /// Steps 1 and 2.
    fn adjust(&self, logits: &mut [f32]) {
        for &(id, bias) in &self.params.logit_bias {
            if let Some(x) = logits.get_mut(id as usize) {
                *x += bias;
            }
        }
        if !self.has_penalties {
            return;
        }
        let params = &self.params;
        for (&id, &count) in &self.counts {
            let Some(x) = logits.get_mut(id as usize) else { continue };
            if *x > 0.0 {
                *x /= params.repetition_penalty;
            } else {
                *x *= params.repetition_penalty;
            }
            if count > 0 {
                *x -= params.frequency_penalty * count as f32 + params.presence_penalty;
            }
        }
    }
}

/// A token's log-probability under the model's own distribution, with the `top` likeliest alternatives.
#[must_use]
pub fn logprobs(logits: &[f32], id: TokenId, top: u8) -> SampledToken {
    let total = log_sum_exp(logits);
    let of = |x: f32| x - total;
    let best = if top == 0 { Vec::new() } else { top_k(logits, usize::from(top)) };
    SampledToken {
        id,
        logprob: logits.get(id as usize).map(|&x| of(x)),
        top: best.into_iter().map(|(id, x)| TokenLogprob { id, logprob: of(x) }).collect(),
    }
}

/// Fills `out`, which is empty, with the logits of the tokens in `mask`; those of all others are negative infinity.
fn masked(logits: &[f32], mask: &TokenMask, out: &mut Vec<f32>) {
    const WORD: usize = u32::BITS as usize;
    let words = mask.words().iter().copied().chain(std::iter::repeat(0));
    for (logits, bits) in logits.chunks(WORD).zip(words) {
        match bits {
            0 => out.resize(out.len() + logits.len(), f32::NEG_INFINITY),
            u32::MAX => out.extend_from_slice(logits),
            bits => out.extend(
                logits
                    .iter()
                    .enumerate()
                    .map(|(bit, &x)| if bits >> bit & 1 == 1 { x } else { f32::NEG_INFINITY }),
            ),
        }
    }
}

/// Whether any value is NaN; without an early end, so that it runs at the speed of memory.
fn has_nan(x: &[f32]) -> bool {
    x.chunks(4096).any(|chunk| chunk.iter().fold(false, |nan, v| nan | v.is_nan()))
}

fn finite_argmax(x: &[f32]) -> Result<TokenId, SampleError> {
    let best = argmax(x);
    match x.get(best) {
        Some(value) if value.is_finite() => Ok(best as TokenId),
        _ => Err(SampleError::NotFinite),
    }
}

/// A number in [0, 1) from seed and position: two rounds of SplitMix64's finaliser (Steele et al. 2014), the position
/// as its counter.
fn uniform(seed: u64, position: u64) -> f64 {
    let mix = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    };
    let counter = position.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let bits = mix(mix(seed ^ 0x6D69_6E74_6167_6521).wrapping_add(counter));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Steps 4 to 8 on logits whose maximum is 0.
fn draw(z: &[f32], params: &SamplingParams, point: f64, first_candidates: usize) -> TokenId {
    let limit = match params.top_k as usize {
        0 => z.len(),
        k => k.min(z.len()),
    };
    // The mass of all tokens, where no top-k cuts them. Not needed where min-p alone decides.
    let whole = (limit == z.len()).then(|| f64::from(log_sum_exp(z)).exp());
    let mut count = first_candidates.clamp(1, limit.max(1));
    loop {
        let candidates = Candidates::new(top_k(z, count), count >= limit, whole);
        if let Some(id) = candidates.draw(params, point) {
            return id;
        }
        count = count.saturating_mul(CANDIDATES_GROWTH).min(limit);
    }
}

/// The likeliest tokens, best first.
struct Candidates {
    ids: Vec<TokenId>,
    /// exp(z): the best has 1.
    weights: Vec<f64>,
    /// There are no others.
    complete: bool,
    /// The weight of all tokens, these and others; `None` where it takes all candidates to know.
    mass: Option<f64>,
}

impl Candidates {
    fn new(best: Vec<(u32, f32)>, complete: bool, whole: Option<f64>) -> Self {
        let weights: Vec<f64> = best.iter().map(|&(_, z)| f64::from(z).exp()).collect();
        let mass = if complete { Some(weights.iter().sum()) } else { whole };
        Self { ids: best.into_iter().map(|(id, _)| id).collect(), weights, complete, mass }
    }

    /// The token at `point`, or `None` where that takes more candidates.
    fn draw(&self, params: &SamplingParams, point: f64) -> Option<TokenId> {
        let nucleus = match params.top_p {
            top_p if top_p < 1.0 => self.reaching(f64::from(top_p) * self.mass?),
            _ => None,
        };
        let likely = self.weights.iter().position(|&w| w < f64::from(params.min_p));
        let cut = match (nucleus, likely) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let truncates = params.top_p < 1.0 || params.min_p > 0.0 || params.typical_p < 1.0;
        let kept = match cut {
            Some(cut) => cut.max(1),
            None if self.complete => self.weights.len(),
            None if truncates => return None,
            None => return self.at(point * self.mass?, &self.weights),
        };
        let mut weights = self.weights[..kept].to_vec();
        if params.typical_p < 1.0 {
            keep_typical(&mut weights, f64::from(params.typical_p));
        }
        let mass: f64 = weights.iter().sum();
        self.at(point * mass, &weights).or_else(|| {
            // Rounding may leave the point just past the end.
            let last = weights.iter().rposition(|&w| w > 0.0)?;
            self.ids.get(last).copied()
        })
    }

    /// How many candidates it takes to reach `mass`.
    fn reaching(&self, mass: f64) -> Option<usize> {
        let mut sum = 0.0;
        let reached = self.weights.iter().position(|&w| {
            sum += w;
            sum >= mass
        });
        reached.map(|index| index + 1)
    }

    /// The token under the point `mass` on the line of weights.
    fn at(&self, mass: f64, weights: &[f64]) -> Option<TokenId> {
        let mut sum = 0.0;
        let index = weights.iter().position(|&w| {
            sum += w;
            sum > mass
        });
        match index {
            Some(index) => self.ids.get(index).copied(),
            // Rounding may leave the point past the end. A token without weight is never drawn: a mask forbids it.
            None if self.complete => {
                weights.iter().rposition(|&w| w > 0.0).and_then(|last| self.ids.get(last)).copied()
            }
            None => None,
        }
    }
}

/// Locally typical sampling (Meister et al. 2022, arXiv 2202.00666): zeroes the weights whose surprise is farthest from
/// the expected one, keeping the smallest set that reaches `typical_p` of the mass.
fn keep_typical(weights: &mut [f64], typical_p: f64) {
    let mass: f64 = weights.iter().sum();
    let surprise = |w: f64| -(w / mass).ln();
    let entropy: f64 = weights.iter().filter(|&&w| w > 0.0).map(|&w| w / mass * surprise(w)).sum();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    let distance = |&i: &usize| (surprise(weights[i]) - entropy).abs();
    order.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.cmp(b)));
    let mut sum = 0.0;
    let kept = order.iter().position(|&i| {
        sum += weights[i];
        sum >= typical_p * mass
    });
    for &i in order.iter().skip(kept.map_or(order.len(), |index| index + 1)) {
        weights[i] = 0.0;
    }
}

#[cfg(test)]
mod tests;
