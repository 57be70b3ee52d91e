//! Guesses of the next tokens from a sequence's own text, to be verified by the model in one step.
//!
//! Where the last tokens have occurred before, what followed them then is likely to follow now: code that is edited,
//! a document that is quoted, a list (prompt lookup, Saxena 2023; longest match and length-dependent trust as in
//! SuffixDecoding, Oliaro et al. 2024, arXiv 2411.04975). Guessing is free, computing guesses is not: how many are
//! worth their time is decided by [`best_count`] from how often such guesses came true and from what a wider step
//! costs on this machine. Guesses that are not computed are scored all the same, so that trust can grow again.
//!
//! It is not the verification: that a token is sampled as without drafts is the business of the step. Pure.

use std::collections::HashMap;

use mintage_model::TokenId;

/// Tokens that must agree before anything is guessed.
const KEY_TOKENS: usize = 3;
/// Earlier occurrences that are compared; the latest ones.
const MAX_CANDIDATES: usize = 16;
/// Longer matches count as this long.
const MAX_MATCH_TOKENS: usize = 64;
/// Most tokens guessed in one step.
pub(crate) const MAX_DRAFT_TOKENS: usize = 15;
/// What older evidence weighs, a guess.
const FORGETTING: f64 = 0.97;
/// A match of a class must have come true so often, in observations, before the prior fades.
const PRIOR_WEIGHT: f64 = 3.0;
/// First guess of how often the next token of a match is right: by class, short matches first.
const PRIORS: [f64; CLASSES] = [0.35, 0.5, 0.7, 0.85];
const CLASSES: usize = 4;
/// A wider step must promise this much more, or it isn't worth the risk.
const MIN_GAIN: f64 = 1.05;
const NOWHERE: u32 = u32::MAX;

/// Which matches share their record: 3–4, 5–8, 9–16, more tokens.
fn class_of(match_tokens: usize) -> usize {
    match match_tokens {
        0..=4 => 0,
        5..=8 => 1,
        9..=16 => 2,
        _ => 3,
    }
}

/// How often guesses of one class came true.
#[derive(Clone, Copy, Debug)]
struct Record {
    right: f64,
    tried: f64,
}

/// An earlier occurrence of the last tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    /// Position of the token that followed it.
    pub(crate) next: usize,
    /// Tokens that agree.
    pub(crate) tokens: usize,
}

/// What one sequence's text says about its continuation.
#[derive(Clone, Debug)]
pub(crate) struct Drafter {
    /// The latest position that follows a key.
    latest: HashMap<[TokenId; KEY_TOKENS], u32>,
    /// For each position, the one before it that follows the same key.
    earlier: Vec<u32>,
    records: [Record; CLASSES],
    /// What the last match promised, to be compared with what was sampled.
    promised: Option<(usize, TokenId)>,
}

impl Default for Drafter {
    fn default() -> Self {
        let prior = |right: f64| Record { right: right * PRIOR_WEIGHT, tried: PRIOR_WEIGHT };
        Self {
            latest: HashMap::new(),
            earlier: Vec::new(),
            records: PRIORS.map(prior),
            promised: None,
        }
    }
}

impl Drafter {
    /// Takes in the sequence's confirmed tokens, of which it knows a beginning, and looks for the longest match of
    /// their end. The match is remembered as a promise until [`Self::learn`].
    pub(crate) fn find(&mut self, tokens: &[TokenId]) -> Option<Match> {
        let found = self.longest(tokens);
        self.index(tokens);
        self.promised = found.map(|found| (class_of(found.tokens), tokens[found.next]));
        found
    }

    /// Enters each position whose preceding key is not entered yet.
    fn index(&mut self, tokens: &[TokenId]) {
        for position in self.earlier.len()..tokens.len() {
            let before = match position.checked_sub(KEY_TOKENS).map(|start| &tokens[start..position]) {
                Some(&[a, b, c]) => {
                    u32::try_from(position).ok().and_then(|here| self.latest.insert([a, b, c], here))
                }
                _ => None,
            };
            self.earlier.push(before.unwrap_or(NOWHERE));
        }
    }

    fn longest(&self, tokens: &[TokenId]) -> Option<Match> {
        let &[.., a, b, c] = tokens else { return None };
        let mut candidate = self.latest.get(&[a, b, c]).copied();
        let mut best: Option<Match> = None;
        for _ in 0..MAX_CANDIDATES {
            let Some(next) = candidate.filter(|&next| next != NOWHERE).map(|next| next as usize) else { break };
            let agreeing = tokens[..next].iter().rev().zip(tokens.iter().rev());
            let length = agreeing.take(MAX_MATCH_TOKENS).take_while(|(then, now)| then == now).count();
            if best.is_none_or(|best| length > best.tokens) {
                best = Some(Match { next, tokens: length });
            }
            candidate = self.earlier.get(next).copied();
        }
        best
    }

    /// How likely each further token of such a match is right.
    pub(crate) fn trust(&self, found: Match) -> f64 {
        let record = self.records[class_of(found.tokens)];
        record.right / record.tried
    }

    /// Tells what was sampled after [`Self::find`]: the tokens of one step, of which the first came with or without
    /// having been guessed. `guessed` of them were computed as drafts.
    pub(crate) fn learn(&mut self, sampled: &[TokenId], guessed: usize) {
        let (Some((class, promise)), Some(&first)) = (self.promised.take(), sampled.first()) else { return };
        let record = &mut self.records[class];
        let outcomes = match guessed {
            0 => vec![promise == first],
            _ => {
                let right = (sampled.len() - 1).min(guessed);
                let mut outcomes = vec![true; right];
                outcomes.extend((right < guessed).then_some(false));
                outcomes
            }
        };
        for right in outcomes {
            record.right = record.right * FORGETTING + f64::from(u8::from(right));
            record.tried = record.tried * FORGETTING + 1.0;
        }
    }
}

/// How many drafts make the step worth most: the tokens it is expected to yield over the time it takes.
///
/// `trust`: probability that each further draft is right. `others`: tokens the step yields besides this sequence.
/// `cost_ms(k)`: what the step takes with `k` drafts of this sequence.
pub(crate) fn best_count(trust: f64, most: usize, others: f64, cost_ms: impl Fn(usize) -> f64) -> usize {
    let plain = (others + 1.0) / cost_ms(0).max(1e-6);
    let (mut best, mut best_rate) = (0, plain * MIN_GAIN);
    let (mut expected, mut chance) = (others + 1.0, 1.0);
    for count in 1..=most.min(MAX_DRAFT_TOKENS) {
        chance *= trust;
        expected += chance;
        let rate = expected / cost_ms(count).max(1e-6);
        if rate > best_rate {
            (best, best_rate) = (count, rate);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::{Drafter, Match, best_count};

    /// Feeds a text token by token and returns the match at its end.
    fn check(tokens: &[u32], expected: Option<Match>) {
        let mut drafter = Drafter::default();
        let mut found = None;
        for end in 1..=tokens.len() {
            found = drafter.find(&tokens[..end]);
        }
        assert_eq!(found, expected, "{tokens:?} token by token");
        let mut drafter = Drafter::default();
        drafter.find(&tokens[..tokens.len() - 1]);
        assert_eq!(drafter.find(tokens), expected, "{tokens:?} in two parts");
    }

    #[test]
    fn the_longest_match_wins_and_the_latest_among_equals() {
        check(&[1, 2, 3], None);
        check(&[1, 2, 3, 9, 1, 2], None);
        check(&[1, 2, 3, 9, 1, 2, 3], Some(Match { next: 3, tokens: 3 }));
        check(&[7, 1, 2, 3, 8, 6, 1, 2, 3, 9, 7, 1, 2, 3], Some(Match { next: 4, tokens: 4 }));
        check(&[1, 2, 3, 8, 1, 2, 3, 9, 1, 2, 3], Some(Match { next: 7, tokens: 3 }));
        check(&[5, 5, 5, 5, 5], Some(Match { next: 4, tokens: 4 }));
    }

    #[test]
    fn trust_follows_what_came_true() {
        let text = [1, 2, 3, 4, 5, 1, 2, 3];
        for (sampled, guessed, rises) in
            [(&[4_u32, 5, 1][..], 2, true), (&[9][..], 2, false), (&[4][..], 0, true), (&[9][..], 0, false)]
        {
            let mut drafter = Drafter::default();
            let found = drafter.find(&text).unwrap();
            let before = drafter.trust(found);
            drafter.learn(sampled, guessed);
            assert_eq!(drafter.trust(found) > before, rises, "{sampled:?} with {guessed} guesses");
        }
    }

    #[test]
    fn trust_is_regained_without_computing_a_guess() {
        let text = [1, 2, 3, 4, 5, 1, 2, 3];
        let mut drafter = Drafter::default();
        let found = drafter.find(&text).unwrap();
        for _ in 0..200 {
            drafter.find(&text);
            drafter.learn(&[9], 0);
        }
        assert!(drafter.trust(found) < 0.05);
        for _ in 0..200 {
            drafter.find(&text);
            drafter.learn(&[4], 0);
        }
        assert!(drafter.trust(found) > 0.9);
    }

    #[test]
    fn guesses_must_pay() {
        let flat = |count: usize| 20.0 + 0.5 * count as f64;
        let steep = |count: usize| 20.0 + 20.0 * count as f64;
        assert_eq!(best_count(0.0, 15, 0.0, flat), 0);
        assert_eq!(best_count(0.02, 15, 0.0, flat), 0);
        assert!(best_count(0.95, 15, 0.0, flat) > 8);
        assert_eq!(best_count(0.95, 3, 0.0, flat), 3);
        assert_eq!(best_count(0.9, 15, 0.0, steep), 0);
        let shared = best_count(0.9, 15, 7.0, |count| 60.0 + 5.0 * count as f64);
        assert!(shared < best_count(0.9, 15, 0.0, flat), "a full batch leaves less room: {shared}");
    }
}
