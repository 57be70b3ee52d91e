//! A smaller model that guesses for a larger one (Leviathan et al. 2023; Chen et al. 2023). It runs on the engine's
//! thread between steps, over pages of its own, batched over the sequences that decode. It knows no request and samples
//! nothing that counts: its tokens are guesses, and each is verified by the large model.
//!
//! It draws as the request would, with the same seed at the same position, so that where both models think alike they
//! say the same also at temperatures above 0. How far a guess goes is decided token by token: by how often tokens it was
//! so sure of were right, and by what another costs in both models.
//!
//! The output matrix is a third of what a small model reads for a token. So a guess is chosen among the tokens that are
//! said often, the first of a BPE vocabulary, which is in the order in which merges paid (FR-Spec, Zhao et al. 2025, arXiv
//! 2502.14856, counts them in a corpus); where the sequences say rare ones (Chinese, in Qwen's), among all.
//!
//! Invariants: its pages hold, for each sequence, a prefix of that sequence's tokens (and behind it guesses that are
//! computed again); it never keeps a sequence from being decoded: where pages or time are short it guesses less.

use std::collections::BTreeMap;
use std::time::Duration;

use mintage_kernels::log_sum_exp;
use mintage_model::{CacheDomain, TokenId};

use super::{Guess, Outlook, Rate};
use crate::cost_model::{CostModel, StepShape};
use crate::forward::{Batch, BatchSequence, Forward, ForwardError, LogitsBuffer, LogitsFor};
use crate::paged_kv::{PageTable, PagedKv};
use crate::sampler::Sampler;
use crate::scheduler::SequenceId;

/// Tokens guessed for a sequence in one go, at most.
const MAX_ROUNDS: usize = 8;
/// Classes of how sure the model is of a token: tenths.
const SURENESS_CLASSES: usize = 10;
/// Of how many verifications the opinion that it is as often right as it is sure has the weight.
const PRIOR_WEIGHT: f64 = 4.0;
/// How often a token is expected to be right before any was verified.
const FIRST_ACCEPTANCE: f64 = 0.75;
/// What it is thought to cost before it has run, of what a model is thought to cost: little, so that it is tried.
const FIRST_COST: f64 = 0.1;
/// Guessing must promise this much more speed.
const LEAST_GAIN: f64 = 1.05;
/// How long it may compute what the sequences have said without it, a step, ms.
const CATCH_UP_MS: f64 = 60.0;
/// Tokens it may be behind and still guess in this step: so many are computed with the first guess.
const MAX_BEHIND: usize = 48;
/// A sequence is expected to get as many tokens as it has had, and this many; computing its prompt must pay until then.
const EXPECTED_TOKENS: usize = 96;
/// The tokens said often: so many of the vocabulary, its first. In Qwen's they are 98 of 100 tokens of Rust, Python and
/// English, 85 of Chinese; half as many would be 93.
const FREQUENT_TOKENS: usize = 65_536;
/// The last tokens of a sequence that tell what it is like.
const RECENT_TOKENS: usize = 64;
/// The share of rare tokens among them up to which guesses are chosen among the frequent ones. A rare token ends a guess;
/// with guesses of two or three tokens this many of them cost what the shorter product saves.
const MOST_RARE: f64 = 0.08;
/// Weight of the past in the rate of acceptance, a step in which guessing does not seem to pay.
const IDLE_FORGETTING: f64 = 0.995;

/// What the model is told of a sequence that decodes.
pub(crate) struct DraftRequest<'a> {
    pub(crate) id: SequenceId,
    pub(crate) domain: CacheDomain,
    /// Prompt and output so far; the large model has computed all but the last.
    pub(crate) tokens: &'a [TokenId],
    /// Tokens of the output so far.
    pub(crate) output: usize,
    /// Tokens of the output that may still come.
    pub(crate) left: usize,
    /// Tokens to be guessed, at most.
    pub(crate) most: usize,
    /// As the request's own; counts guesses as if they had been said.
    pub(crate) sampler: Sampler,
}

#[derive(Debug)]
struct DraftSequence {
    table: PageTable,
    /// Tokens whose keys and values are in the pages.
    computed: usize,
    /// How sure the last guess was of each of its tokens.
    sureness: Vec<f64>,
    /// How often tokens guessed for this sequence were right.
    acceptance: Rate,
}

impl DraftSequence {
    fn new(acceptance: f64) -> Self {
        let acceptance = Rate::new(acceptance, PRIOR_WEIGHT);
        Self { table: PageTable::default(), computed: 0, sureness: Vec::new(), acceptance }
    }
}

/// A guess being made.
struct Growing<'a> {
    request: DraftRequest<'a>,
    guess: Guess,
    /// Goes on in the next round.
    alive: bool,
}

/// A small model, its pages, and what it has learned about itself.
pub struct DraftModel {
    forward: Box<dyn Forward>,
    kv: PagedKv,
    cost: CostModel,
    logits: LogitsBuffer,
    scratch: Vec<f32>,
    sequences: BTreeMap<SequenceId, DraftSequence>,
    /// How often tokens it was so sure of were right.
    by_sureness: [Rate; SURENESS_CLASSES],
    /// How often its tokens were right.
    acceptance: Rate,
}

impl DraftModel {
    /// `forward` with `pages` pages of `page_tokens` tokens; its vocabulary is the large model's.
    #[must_use]
    pub fn new(forward: Box<dyn Forward>, pages: u32, page_tokens: usize) -> Self {
        let prior = |class: usize| (class as f64 + 0.5) / SURENESS_CLASSES as f64;
        Self {
            forward,
            kv: PagedKv::new(pages, page_tokens),
            cost: CostModel::guessed(FIRST_COST),
            logits: LogitsBuffer::new(),
            scratch: Vec::new(),
            sequences: BTreeMap::new(),
            by_sureness: std::array::from_fn(|class| Rate::new(prior(class), PRIOR_WEIGHT)),
            acceptance: Rate::new(FIRST_ACCEPTANCE, PRIOR_WEIGHT),
        }
    }

    fn vocab_size(&self) -> usize {
        self.forward.config().vocab_size
    }

    /// How often its tokens are right, of a sequence.
    pub(crate) fn acceptance(&self, id: SequenceId) -> f64 {
        self.sequences.get(&id).map_or(self.acceptance.value(), |s| s.acceptance.value())
    }

    /// Forgets the sequences that are not to be kept. What was computed of them stays cached until its pages are needed.
    pub(crate) fn retain(&mut self, keep: impl Fn(SequenceId) -> bool) {
        for id in self.sequences.keys().copied().filter(|&id| !keep(id)).collect::<Vec<_>>() {
            if let Some(mut sequence) = self.sequences.remove(&id) {
                self.kv.clear(&mut sequence.table);
            }
        }
    }

    /// Forgets all sequences and all cached pages.
    pub(crate) fn reset(&mut self) {
        self.sequences.clear();
        self.kv = PagedKv::new(self.kv.total(), self.kv.page_tokens());
    }

    /// Guesses for `requests` beside `plain`, the step as planned without them, in the requests' order.
    ///
    /// # Errors
    /// What the forward pass refused.
    pub(crate) fn guess(
        &mut self,
        requests: Vec<DraftRequest<'_>>,
        target: &CostModel,
        plain: Outlook,
        clock: &dyn Fn() -> Duration,
    ) -> Result<Vec<Guess>, ForwardError> {
        let gain = self.promised_gain(&requests, target, plain);
        let mut growing: Vec<Growing<'_>> = requests
            .into_iter()
            .map(|request| Growing { request, guess: Guess::default(), alive: false })
            .collect();
        let growing_tokens = growing.iter().map(|growing| growing.request.tokens);
        self.forward.limit_logits(tokens_to_choose_from(growing_tokens, self.vocab_size()));
        if gain >= LEAST_GAIN {
            let saved_ms = target.predict_ms(plain.shape) * (1.0 - 1.0 / gain);
            self.catch_up(&mut growing, saved_ms, clock)?;
        } else {
            // Bad luck is not remembered for ever.
            self.acceptance.forget(IDLE_FORGETTING);
            for growing in &growing {
                if let Some(sequence) = self.sequences.get_mut(&growing.request.id) {
                    sequence.acceptance.forget(IDLE_FORGETTING);
                }
            }
        }
        let mut outlook = plain;
        for round in 0..MAX_ROUNDS {
            if !self.another_round_pays(&growing, target, outlook, round) {
                break;
            }
            self.round(&mut growing, target, &mut outlook, clock)?;
        }
        Ok(growing.into_iter().map(|growing| growing.guess).collect())
    }

    /// How many times as fast as `plain` the best step with guesses for all of `requests` would be.
    fn promised_gain(
        &self,
        requests: &[DraftRequest<'_>],
        target: &CostModel,
        plain: Outlook,
    ) -> f64 {
        let rows = |shape: StepShape| {
            requests.iter().fold(shape, |shape, r| shape.with(r.tokens.len(), 1, false))
        };
        let round_ms = self.cost.predict_ms(rows(StepShape::default()));
        let mut likely: Vec<f64> = vec![1.0; requests.len()];
        let (mut outlook, mut best) = (plain, 0.0f64);
        for _ in 0..MAX_ROUNDS {
            for (likely, request) in likely.iter_mut().zip(requests) {
                *likely *= self.acceptance(request.id);
                outlook.tokens += *likely;
            }
            outlook.shape = rows(outlook.shape);
            outlook.spent_ms += round_ms;
            best = best.max(outlook.rate(target));
        }
        best / plain.rate(target)
    }

    /// Computes what sequences have said without the model, in chunks, where that pays when each token to come saves
    /// `saved_ms`; those that are level may guess.
    fn catch_up(
        &mut self,
        growing: &mut [Growing<'_>],
        saved_ms: f64,
        clock: &dyn Fn() -> Duration,
    ) -> Result<(), ForwardError> {
        let mut left_ms = CATCH_UP_MS;
        for growing in growing {
            let request = &growing.request;
            if request.most == 0 {
                continue;
            }
            let Self { kv, sequences, acceptance, .. } = self;
            let first = || DraftSequence::new(acceptance.value());
            let sequence = sequences.entry(request.id).or_insert_with(first);
            let confirmed = request.tokens.len() - 1;
            sequence.computed = sequence.computed.min(confirmed);
            if sequence.computed == 0 && sequence.table.pages.is_empty() {
                let cacheable = &request.tokens[..confirmed];
                sequence.computed =
                    kv.extend_from_cache(request.domain, &mut sequence.table, cacheable);
            }
            let (computed, behind) = (sequence.computed, confirmed - sequence.computed);
            if behind > MAX_BEHIND {
                let shape = StepShape::default().with(computed, behind, true);
                let expected = request.left.min(EXPECTED_TOKENS + request.output) as f64;
                if self.cost.predict_ms(shape) > saved_ms * expected || left_ms <= 0.0 {
                    continue;
                }
                let none = StepShape::default();
                let count = self.cost.prompt_tokens_within(none, computed, behind, left_ms);
                let count = count.max(MAX_BEHIND);
                left_ms -= self.prefill(request, count, clock)?;
            }
            growing.alive = self.behind(&growing.request) <= MAX_BEHIND;
        }
        Ok(())
    }

    /// Confirmed tokens but the last that are not computed.
    fn behind(&self, request: &DraftRequest<'_>) -> usize {
        let computed = self.sequences.get(&request.id).map_or(0, |sequence| sequence.computed);
        (request.tokens.len() - 1).saturating_sub(computed)
    }

    /// Computes the next `count` tokens of a sequence without looking at them; returns what it took, ms.
    fn prefill(
        &mut self,
        request: &DraftRequest<'_>,
        count: usize,
        clock: &dyn Fn() -> Duration,
    ) -> Result<f64, ForwardError> {
        let Self { forward, kv, cost, logits, sequences, .. } = self;
        let Some(sequence) = sequences.get_mut(&request.id) else { return Ok(0.0) };
        let start = sequence.computed;
        let end = (start + count).min(request.tokens.len() - 1);
        if !kv.grow(&mut sequence.table, end) || !knows(&**forward, &request.tokens[start..end]) {
            return Ok(0.0);
        }
        let batch = [BatchSequence {
            tokens: &request.tokens[start..end],
            first_position: start,
            block_table: &sequence.table.pages,
            logits_for: LogitsFor::None,
        }];
        let before = clock();
        forward.step(&Batch { sequences: &batch }, logits)?;
        let took_ms = clock().saturating_sub(before).as_secs_f64() * 1000.0;
        cost.observe(StepShape::default().with(start, end - start, true), took_ms);
        sequence.computed = end;
        kv.publish(request.domain, &mut sequence.table, request.tokens, end);
        Ok(took_ms)
    }

    /// Whether the next token of those that go on gains more than it costs.
    fn another_round_pays(
        &self,
        growing: &[Growing<'_>],
        target: &CostModel,
        outlook: Outlook,
        round: usize,
    ) -> bool {
        let mut after = outlook;
        let mut shape = StepShape::default();
        for growing in growing.iter().filter(|growing| growing.alive) {
            let position = growing.request.tokens.len() + growing.guess.tokens.len();
            let behind = if round == 0 { self.behind(&growing.request) } else { 0 };
            shape = shape.with(position - behind, 1 + behind, false);
            let before = growing.guess.likely.last().copied().unwrap_or(1.0);
            let likely = before * self.acceptance(growing.request.id);
            after = after.with_row(position, likely);
        }
        after.spent_ms += self.cost.predict_ms(shape);
        shape.decode_rows > 0 && after.rate(target) > outlook.rate(target)
    }

    /// One token more for each sequence that goes on.
    fn round(
        &mut self,
        growing: &mut [Growing<'_>],
        target: &CostModel,
        outlook: &mut Outlook,
        clock: &dyn Fn() -> Duration,
    ) -> Result<(), ForwardError> {
        // What is confirmed and not computed, then guesses.
        let mut inputs: Vec<(usize, usize, Vec<TokenId>)> = Vec::new();
        for (index, growing) in growing.iter_mut().enumerate().filter(|(_, g)| g.alive) {
            let (request, guess) = (&growing.request, &growing.guess);
            let end = request.tokens.len() + guess.tokens.len();
            let Some(sequence) = self.sequences.get_mut(&request.id) else { continue };
            let start = sequence.computed;
            let tokens: Vec<TokenId> =
                request.tokens.iter().chain(&guess.tokens).skip(start).copied().collect();
            growing.alive =
                self.kv.grow(&mut sequence.table, end) && knows(&*self.forward, &tokens);
            if growing.alive {
                inputs.push((index, start, tokens));
            }
        }
        let Self { forward, cost, logits, sequences, .. } = self;
        let mut batch = Vec::new();
        let mut shape = StepShape::default();
        for (index, start, tokens) in &inputs {
            let Some(sequence) = sequences.get(&growing[*index].request.id) else { continue };
            shape = shape.with(*start, tokens.len(), false);
            batch.push(BatchSequence {
                tokens,
                first_position: *start,
                block_table: &sequence.table.pages,
                logits_for: LogitsFor::Last,
            });
        }
        if batch.is_empty() {
            return Ok(());
        }
        let before = clock();
        forward.step(&Batch { sequences: &batch }, logits)?;
        let took_ms = clock().saturating_sub(before).as_secs_f64() * 1000.0;
        cost.observe(shape, took_ms);
        outlook.spent_ms += took_ms;
        for (row, (index, start, tokens)) in inputs.into_iter().enumerate() {
            self.take_token(&mut growing[index], row, start + tokens.len(), target, outlook);
        }
        Ok(())
    }

    /// Adds the token that row `row` of the logits gives to a guess, if it is likely enough to be verified.
    fn take_token(
        &mut self,
        growing: &mut Growing<'_>,
        row: usize,
        computed: usize,
        target: &CostModel,
        outlook: &mut Outlook,
    ) {
        let Growing { request, guess, alive } = growing;
        *alive = false;
        let Some(sequence) = self.sequences.get_mut(&request.id) else { return };
        sequence.computed = computed;
        if guess.tokens.is_empty() {
            sequence.sureness.clear();
            guess.computed = request.tokens.len() - 1;
            let Self { kv, .. } = self;
            kv.publish(request.domain, &mut sequence.table, request.tokens, computed);
        }
        let logits = self.logits.row(row);
        let position = computed as u64;
        let Ok(token) = request.sampler.sample(logits, position, None, &mut self.scratch) else {
            return;
        };
        let sureness =
            f64::from((logits[token as usize] - log_sum_exp(logits)).exp()).clamp(0.0, 1.0);
        let before = guess.likely.last().copied().unwrap_or(1.0);
        let likely = before * self.by_sureness[class(sureness)].value();
        let with = outlook.with_row(request.tokens.len() + guess.tokens.len(), likely);
        // The time is spent; what is left to decide is whether the row pays in the large model.
        if with.rate(target) <= outlook.rate(target) {
            return;
        }
        *outlook = with;
        guess.tokens.push(token);
        guess.likely.push(likely);
        sequence.sureness.push(sureness);
        request.sampler.accept(token);
        *alive = guess.tokens.len() < request.most;
    }

    /// Learns from the verification of a sequence's last guess: its first `guessed` tokens were verified, the first
    /// `right` of them were right.
    pub(crate) fn verified(&mut self, id: SequenceId, guessed: usize, right: usize) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        for (index, &sureness) in sequence.sureness.iter().enumerate().take(guessed.min(right + 1))
        {
            self.by_sureness[class(sureness)].observe(index < right);
            self.acceptance.observe(index < right);
            sequence.acceptance.observe(index < right);
        }
        sequence.sureness.clear();
    }

    /// Verifies the invariants of its pages; the text names what is broken.
    ///
    /// # Errors
    /// The first breach found.
    pub(crate) fn check(&self, is_known: impl Fn(SequenceId) -> bool) -> Result<(), String> {
        self.kv.check(self.sequences.values().map(|sequence| &sequence.table))?;
        match self.sequences.keys().find(|&&id| !is_known(id)) {
            Some(id) => Err(format!("the draft model holds pages for {id:?}, which has ended")),
            None => Ok(()),
        }
    }
}

/// How many tokens, the first of `vocab_size`, guesses for `sequences` are chosen among.
fn tokens_to_choose_from<'a>(
    sequences: impl Iterator<Item = &'a [TokenId]>,
    vocab_size: usize,
) -> usize {
    let (mut recent, mut rare) = (0usize, 0usize);
    for tokens in sequences {
        let tokens = &tokens[tokens.len().saturating_sub(RECENT_TOKENS)..];
        recent += tokens.len();
        rare += tokens.iter().filter(|&&token| token as usize >= FREQUENT_TOKENS).count();
    }
    if rare as f64 <= MOST_RARE * recent as f64 {
        FREQUENT_TOKENS.min(vocab_size)
    } else {
        vocab_size
    }
}

/// The class of a probability.
fn class(sureness: f64) -> usize {
    ((sureness * SURENESS_CLASSES as f64) as usize).min(SURENESS_CLASSES - 1)
}

/// Whether a model has all of `tokens` in its vocabulary.
fn knows(forward: &dyn Forward, tokens: &[TokenId]) -> bool {
    let vocab_size = forward.config().vocab_size;
    tokens.iter().all(|&token| (token as usize) < vocab_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_chosen_among_frequent_tokens_unless_rare_ones_are_said() {
        const VOCAB: usize = 150_000;
        let check = |rare: &[usize], wanted: usize| {
            let said: Vec<Vec<TokenId>> = rare
                .iter()
                .map(|&rare| {
                    let long_ago = std::iter::repeat_n(99_999, 1000);
                    let lately = (0..RECENT_TOKENS).map(|n| if n < rare { 99_999 } else { 7 });
                    long_ago.chain(lately).collect()
                })
                .collect();
            let found = tokens_to_choose_from(said.iter().map(Vec::as_slice), VOCAB);
            assert_eq!(found, wanted, "{rare:?}");
        };
        check(&[0], FREQUENT_TOKENS);
        check(&[5], FREQUENT_TOKENS);
        check(&[6], VOCAB);
        check(&[0, 10], FREQUENT_TOKENS);
        check(&[6, 6], VOCAB);
        let few = [3; 10];
        assert_eq!(tokens_to_choose_from([few.as_slice()].into_iter(), 90), 90);
    }
}
