//! How tokens are chosen and when a choice ends, as data: what a request may say, whatever its dialect calls it.
//!
//! Not here: names on the wire and their ranges (the dialects), how sampling works (the engine).
//! Invariant: what a request does not say, the model's own defaults do.

use std::sync::Arc;

use mintage_model::{GenerationDefaults, SamplingParams, TokenId};

/// What all requests for tokens share.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Choices of each prompt, at least 1.
    pub(crate) n: u32,
    /// Texts that end a choice and are no part of it.
    pub(crate) stops: Vec<String>,
    pub(crate) stop_token_ids: Vec<TokenId>,
    /// The model's own ends do not end a choice.
    pub(crate) ignore_eos: bool,
    /// Report the ids of tokens.
    pub(crate) return_token_ids: bool,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<u32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) typical_p: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) logit_bias: Vec<(TokenId, f32)>,
    pub(crate) seed: Option<i64>,
    /// Tokens that the answer probably repeats.
    pub(crate) prediction: Arc<[TokenId]>,
}

impl Default for Options {
    /// One choice, and the model's own defaults.
    fn default() -> Self {
        Self {
            n: 1,
            stops: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            return_token_ids: false,
            temperature: None,
            top_p: None,
            top_k: None,
            min_p: None,
            typical_p: None,
            repetition_penalty: None,
            frequency_penalty: None,
            presence_penalty: None,
            logit_bias: Vec::new(),
            seed: None,
            prediction: Arc::from([]),
        }
    }
}

impl Options {
    /// The request's word, else the model's, else the neutral one. `random` is the seed of a request without one.
    pub(crate) fn sampling(&self, defaults: &GenerationDefaults, random: u64) -> SamplingParams {
        let neutral = SamplingParams::default();
        let or = |given: Option<f32>, default: Option<f32>, neutral: f32| {
            given.or(default).unwrap_or(neutral)
        };
        SamplingParams {
            temperature: or(self.temperature, defaults.temperature, neutral.temperature),
            top_k: self.top_k.or(defaults.top_k).unwrap_or(neutral.top_k),
            top_p: or(self.top_p, defaults.top_p, neutral.top_p),
            min_p: or(self.min_p, defaults.min_p, neutral.min_p),
            typical_p: or(self.typical_p, None, neutral.typical_p),
            repetition_penalty: or(
                self.repetition_penalty,
                defaults.repetition_penalty,
                neutral.repetition_penalty,
            ),
            frequency_penalty: or(self.frequency_penalty, None, neutral.frequency_penalty),
            presence_penalty: or(self.presence_penalty, None, neutral.presence_penalty),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.map_or(random, i64::cast_unsigned),
        }
    }
}

/// The seed of the choice with this index; the first keeps the request's, so that `n: 1` is its first choice.
pub(crate) fn choice_seed(seed: u64, index: u32) -> u64 {
    if index == 0 {
        return seed;
    }
    // splitmix64: neighbouring inputs give unrelated outputs.
    let mut z = seed.wrapping_add(u64::from(index).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_differ_and_the_first_keeps_the_seed() {
        let seeds: std::collections::HashSet<u64> = (0..100).map(|i| choice_seed(7, i)).collect();
        assert_eq!(seeds.len(), 100);
        assert_eq!(choice_seed(7, 0), 7);
    }
}
