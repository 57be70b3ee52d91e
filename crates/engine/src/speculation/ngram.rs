//! Prompt lookup (Saxena 2023): what followed the last words when they stood in the sequence before. The longest match
//! among the latest ones wins, as in LZ77; after a small edit the passage that was being copied is taken up again where
//! a single word agrees.
//!
//! A text that the answer probably repeats (a predicted output) stands before the sequence, as far as guesses go.
//!
//! Invariant: a guess is a piece of the sequence's own tokens or of that text; state is bounded by their number.

use std::collections::HashMap;

use mintage_model::TokenId;

use super::{Guess, Rate};

/// Tokens that must agree before what followed them is found by itself.
const NGRAM: usize = 3;
/// Earlier places looked at.
const MAX_CANDIDATES: usize = 16;
/// Agreeing tokens beyond this count as this many.
const MAX_AGREEING: usize = 32;
/// How far from the passage that was copied its continuation may lie, tokens.
const NEARBY: usize = 24;
/// Least agreeing tokens of each class, and how likely the next token is right before anything is known.
const CLASSES: [(usize, f64); 8] =
    [(1, 0.3), (2, 0.35), (3, 0.4), (4, 0.5), (6, 0.65), (9, 0.8), (16, 0.9), (32, 0.95)];
/// Of how many verifications these opinions have the weight.
const PRIOR_WEIGHT: f64 = 2.0;
/// Weight of the past in the rate of a class that had a guess, a step: bad luck is not remembered for ever.
const IDLE_FORGETTING: f64 = 0.99;

/// What guesses of one sequence are made from.
#[derive(Clone, Debug)]
pub(crate) struct NgramDrafter {
    /// The position after the latest occurrence of each n-gram.
    latest: HashMap<[TokenId; NGRAM], u32>,
    /// By position: the position after the occurrence before, of the n-gram that ends there; 0 where there is none.
    earlier: Vec<u32>,
    /// How far behind the sequence's end the passage lies that it repeats.
    distance: Option<usize>,
    /// How often guesses were right, by class.
    rates: [Rate; CLASSES.len()],
    /// Agreeing tokens of the last guess.
    agreeing: usize,
    /// Tokens of the text that stands before the sequence.
    predicted: usize,
    /// That text and the sequence; empty where there is no such text.
    history: Vec<TokenId>,
}

impl Default for NgramDrafter {
    fn default() -> Self {
        Self {
            latest: HashMap::new(),
            earlier: Vec::new(),
            distance: None,
            rates: CLASSES.map(|(_, prior)| Rate::new(prior, PRIOR_WEIGHT)),
            agreeing: 0,
            predicted: 0,
            history: Vec::new(),
        }
    }
}

/// The class of a token that follows so many agreeing ones.
fn class(agreeing: usize) -> usize {
    CLASSES.iter().rposition(|&(least, _)| agreeing >= least).unwrap_or(0)
}

/// How many tokens before `at` and before the end are the same.
fn agreeing(tokens: &[TokenId], at: usize) -> usize {
    let pairs = tokens[..at].iter().rev().zip(tokens.iter().rev());
    pairs.take(MAX_AGREEING).take_while(|(a, b)| a == b).count()
}

impl NgramDrafter {
    /// Of an answer that probably repeats `prediction`.
    pub(crate) fn with_prediction(prediction: &[TokenId]) -> Self {
        Self { predicted: prediction.len(), history: prediction.to_vec(), ..Self::default() }
    }

    /// At most `most` tokens that may follow `tokens`, of which all but the last are computed.
    pub(crate) fn guess(&mut self, tokens: &[TokenId], most: usize) -> Guess {
        if self.predicted == 0 {
            return self.guess_behind(tokens, most);
        }
        let mut history = std::mem::take(&mut self.history);
        let known = history.len() - self.predicted;
        history.extend_from_slice(tokens.get(known..).unwrap_or_default());
        let guess = self.guess_behind(&history, most);
        self.history = history;
        Guess { computed: tokens.len().saturating_sub(1), ..guess }
    }

    fn guess_behind(&mut self, tokens: &[TokenId], most: usize) -> Guess {
        self.index(tokens);
        let Some((source, agreeing)) = self.source(tokens) else {
            self.agreeing = 0;
            return Guess::default();
        };
        self.agreeing = agreeing;
        self.rates[class(agreeing)].forget(IDLE_FORGETTING);
        let guessed = &tokens[source..tokens.len().min(source + most)];
        let mut likely = 1.0;
        let likelihoods = (0..guessed.len()).map(|index| {
            likely *= self.rates[class(agreeing + index)].value();
            likely
        });
        Guess {
            likely: likelihoods.collect(),
            tokens: guessed.to_vec(),
            computed: tokens.len().saturating_sub(1),
        }
    }

    /// Learns from the verification of the last guess: the first `guessed` tokens of it were verified, the first
    /// `right` of them were right.
    pub(crate) fn verified(&mut self, guessed: usize, right: usize) {
        for index in 0..guessed.min(right + 1) {
            self.rates[class(self.agreeing + index)].observe(index < right);
        }
    }

    /// Where to go on reading, and how many tokens agree before that place.
    fn source(&mut self, tokens: &[TokenId]) -> Option<(usize, usize)> {
        let end = tokens.len();
        let aligned = self.distance.and_then(|distance| end.checked_sub(distance));
        let mut best = aligned.map(|at| (at, agreeing(tokens, at))).filter(|&(_, n)| n > 0);
        let longest = |best: Option<(usize, usize)>| best.map_or(0, |(_, n)| n);
        let mut at = tokens.last_chunk::<NGRAM>().and_then(|key| self.latest.get(key)).copied();
        for _ in 0..MAX_CANDIDATES {
            let Some(candidate) = at.filter(|&at| at > 0) else { break };
            let agrees = agreeing(tokens, candidate as usize);
            if agrees > longest(best) {
                best = Some((candidate as usize, agrees));
            }
            at = self.earlier.get(candidate as usize).copied();
        }
        if best.is_none()
            && let Some(aligned) = aligned
        {
            // Words were put in or left out: the passage goes on nearby, the nearer the likelier.
            let near = (1..=NEARBY).flat_map(|by| [aligned + by, aligned.saturating_sub(by)]);
            best = near
                .filter(|&at| at > 0 && at < end)
                .map(|at| (at, agreeing(tokens, at)))
                .find(|&(_, n)| n > 0);
        }
        if let Some((source, agrees)) = best
            && agrees >= NGRAM
        {
            self.distance = Some(end - source);
        }
        best
    }

    /// Indexes every n-gram that something follows.
    fn index(&mut self, tokens: &[TokenId]) {
        for end in self.earlier.len()..tokens.len() {
            let before = match tokens[..end].last_chunk::<NGRAM>() {
                Some(&ngram) => self.latest.insert(ngram, end as u32),
                None => None,
            };
            self.earlier.push(before.unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(drafter: &mut NgramDrafter, tokens: &[TokenId], most: usize, wanted: &[TokenId]) {
        assert_eq!(drafter.guess(tokens, most).tokens, wanted, "after {tokens:?}");
    }

    #[test]
    fn it_goes_on_behind_a_replaced_token() {
        let mut drafter = NgramDrafter::default();
        let mut tokens = vec![1, 2, 3, 4, 5, 6, 7, 8, 50, 1, 2, 3];
        check(&mut drafter, &tokens, 4, &[4, 5, 6, 7]);
        // 5 became 60; the model then goes on with 6.
        tokens.extend([4, 60]);
        check(&mut drafter, &tokens, 4, &[]);
        tokens.push(6);
        check(&mut drafter, &tokens, 2, &[7, 8]);
    }

    #[test]
    fn it_goes_on_behind_added_and_omitted_tokens() {
        let mut drafter = NgramDrafter::default();
        let original: Vec<TokenId> = (1..=12).collect();
        let mut added = [&original[..], &[50, 1, 2, 3]].concat();
        check(&mut drafter, &added, 2, &[4, 5]);
        added.extend([60, 61, 62, 4]);
        check(&mut drafter, &added, 2, &[5, 6]);
        let mut drafter = NgramDrafter::default();
        let mut omitted = [&original[..], &[50, 1, 2, 3]].concat();
        check(&mut drafter, &omitted, 2, &[4, 5]);
        omitted.push(9);
        check(&mut drafter, &omitted, 2, &[10, 11]);
    }

    #[test]
    fn a_predicted_output_is_guessed_from() {
        let prediction: Vec<TokenId> = (1..=9).collect();
        let mut drafter = NgramDrafter::with_prediction(&prediction);
        let mut tokens = vec![40, 41];
        check(&mut drafter, &tokens, 3, &[]);
        tokens.extend([1, 2, 3]);
        check(&mut drafter, &tokens, 3, &[4, 5, 6]);
        assert_eq!(drafter.guess(&tokens, 3).computed, tokens.len() - 1);
        // The sequence's own words count as before.
        tokens.extend([60, 61, 40, 41, 1, 2]);
        check(&mut drafter, &tokens, 2, &[3, 60]);
    }

    #[test]
    fn the_longest_match_wins() {
        let mut drafter = NgramDrafter::default();
        // 1 2 3 stands twice; what the end agrees with further back is the first.
        let tokens = [7, 8, 1, 2, 3, 4, 9, 1, 2, 3, 5, 7, 8, 1, 2, 3];
        check(&mut drafter, &tokens, 1, &[4]);
    }

    #[test]
    fn wrong_guesses_become_unlikely_and_right_ones_likely() {
        let tokens = [1, 2, 3, 4, 5, 6, 1, 2, 3];
        let mut drafter = NgramDrafter::default();
        let first = |drafter: &mut NgramDrafter| drafter.guess(&tokens, 4).likely[0];
        let unknown = first(&mut drafter);
        (0..20).for_each(|_| drafter.verified(4, 0));
        assert!(first(&mut drafter) < 0.1 && unknown > 0.3);
        (0..20).for_each(|_| drafter.verified(4, 4));
        assert!(first(&mut drafter) > 0.6);
        let guess = drafter.guess(&tokens, 4);
        assert!(guess.likely.is_sorted_by(|a, b| a >= b) && guess.computed == 8, "{guess:?}");
    }
}
