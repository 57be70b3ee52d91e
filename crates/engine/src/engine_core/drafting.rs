//! Guesses between steps: who may be given some, from whom, and what is learned when they have been verified.
//!
//! Guesses from the sequence's own words go first, for they cost nothing to make; the draft model guesses for whom they
//! promise less. Whatever happens in it ends the draft model, never a request.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::{Active, Clock, EngineCore, GuessedBy};
use crate::scheduler::SequenceId;
use crate::speculation::{DraftRequest, Guess, MAX_DRAFTS, MAX_STEP_DRAFTS, Outlook, allocate};

/// After so many steps without guesses, what rows cost is tried again: a belief that nothing tests cannot mend.
const STEPS_UNTIL_TRIAL: u32 = 48;
/// Guesses of a trial, and how likely the last of them must be.
const TRIAL_DRAFTS: usize = 4;
const TRIAL_LIKELY: f64 = 0.6;

impl EngineCore {
    /// Guesses tokens for sequences that decode, as far as verifying them pays; returns what the draft model took.
    pub(super) fn propose_drafts(&mut self, clock: Clock<'_>) -> Duration {
        let mut ids = Vec::new();
        let mut plain = Outlook { shape: Default::default(), tokens: 0.0, spent_ms: 0.0 };
        for &id in self.active.keys() {
            self.scheduler.set_drafts(id, &[]);
            if self.scheduler.is_decoding(id) {
                ids.push(id);
                plain = plain.with_row(self.scheduler.tokens(id).len() - 1, 1.0);
            }
        }
        if ids.is_empty() {
            return Duration::ZERO;
        }
        let prompts_wait = self.scheduler.prompts_wait();
        let mut guesses: Vec<Guess> = ids.iter().map(|&id| self.guess_from_ngrams(id)).collect();
        if let Some(draft_model) = self.draft_model.as_ref().filter(|_| !prompts_wait) {
            for (guess, &id) in guesses.iter_mut().zip(&ids) {
                if guess.likely.first().is_some_and(|&likely| likely < draft_model.acceptance(id)) {
                    *guess = Guess::default();
                }
            }
        }
        let cost = self.scheduler.cost();
        let (mut counts, mut outlook) =
            allocate(cost, plain, &guesses, MAX_STEP_DRAFTS, prompts_wait);
        self.steps_unguessed = self.steps_unguessed.saturating_add(1);
        if counts.iter().any(|&count| count > 0) {
            self.steps_unguessed = 0;
        } else if self.steps_unguessed >= STEPS_UNTIL_TRIAL
            && !prompts_wait
            && let Some(index) = guesses
                .iter()
                .position(|g| g.likely.get(TRIAL_DRAFTS - 1).is_some_and(|&l| l > TRIAL_LIKELY))
        {
            self.steps_unguessed = 0;
            counts[index] = TRIAL_DRAFTS;
            for &likely in &guesses[index].likely[..TRIAL_DRAFTS] {
                outlook = outlook.with_row(guesses[index].computed, likely);
            }
        }
        let mut without = Vec::new();
        for ((&id, guess), &count) in ids.iter().zip(&guesses).zip(&counts) {
            self.set_drafts(id, GuessedBy::Ngrams, &guess.tokens[..count]);
            if count == 0 {
                without.push(id);
            }
        }
        let room = MAX_STEP_DRAFTS - counts.iter().sum::<usize>();
        if prompts_wait || without.is_empty() {
            return Duration::ZERO;
        }
        let start = clock();
        self.guess_with_model(&without, outlook, room / without.len(), clock);
        clock().saturating_sub(start)
    }

    /// Tokens that a step may verify for a sequence: the last token allowed is sampled without a guess.
    fn most_drafts(&self, id: SequenceId, active: &Active) -> usize {
        let left = active.request.max_new_tokens.saturating_sub(active.output_tokens) as usize;
        let length = self.scheduler.tokens(id).len();
        let context = (self.context_length as usize).saturating_sub(length);
        let most = self.config.max_drafts.min(MAX_DRAFTS);
        most.min(left.saturating_sub(1)).min(context.saturating_sub(1))
    }

    fn guess_from_ngrams(&mut self, id: SequenceId) -> Guess {
        let Some(active) = self.active.get(&id) else { return Guess::default() };
        let most = self.most_drafts(id, active);
        let tokens = self.scheduler.tokens(id);
        let Some(active) = self.active.get_mut(&id) else { return Guess::default() };
        let mut guess = active.ngrams.guess(tokens, most);
        let allowed = active.allowed(&guess.tokens);
        guess.tokens.truncate(allowed);
        guess.likely.truncate(allowed);
        guess
    }

    fn set_drafts(&mut self, id: SequenceId, guessed_by: GuessedBy, tokens: &[u32]) {
        if let Some(active) = self.active.get_mut(&id) {
            active.guessed_by = guessed_by;
        }
        self.scheduler.set_drafts(id, tokens);
    }

    /// Lets the draft model guess at most `most` tokens for each of `ids`, beside `outlook`.
    fn guess_with_model(
        &mut self,
        ids: &[SequenceId],
        outlook: Outlook,
        most: usize,
        clock: Clock<'_>,
    ) {
        let Some(mut draft_model) = self.draft_model.take() else { return };
        draft_model.retain(|id| self.scheduler.is_running(id));
        let requests = ids.iter().filter_map(|&id| {
            let active = self.active.get(&id)?;
            Some(DraftRequest {
                id,
                domain: active.request.cache_domain,
                tokens: self.scheduler.tokens(id),
                output: active.output_tokens as usize,
                left: active.request.max_new_tokens.saturating_sub(active.output_tokens) as usize,
                most: self.most_drafts(id, active).min(most),
                sampler: active.sampler.clone(),
            })
        });
        let requests: Vec<_> = requests.collect();
        let cost = self.scheduler.cost();
        let guessed =
            catch_unwind(AssertUnwindSafe(|| draft_model.guess(requests, cost, outlook, clock)));
        let guesses = match guessed {
            Ok(Ok(guesses)) => guesses,
            Ok(Err(error)) => {
                tracing::error!(%error, "the draft model failed; the engine goes on without it");
                return;
            }
            Err(_) => {
                tracing::error!("the draft model panicked; the engine goes on without it");
                return;
            }
        };
        self.draft_model = Some(draft_model);
        for (&id, guess) in ids.iter().zip(&guesses) {
            let allowed = self.active.get_mut(&id).map_or(0, |a| a.allowed(&guess.tokens));
            self.set_drafts(id, GuessedBy::DraftModel, &guess.tokens[..allowed]);
        }
    }

    /// Learns from a row whose first `right` of `guessed` guesses were right.
    pub(super) fn learn_from_drafts(&mut self, id: SequenceId, guessed: usize, right: usize) {
        if guessed == 0 {
            return;
        }
        let Some(active) = self.active.get_mut(&id) else { return };
        match (active.guessed_by, &mut self.draft_model) {
            (GuessedBy::Ngrams, _) => active.ngrams.verified(guessed, right),
            (GuessedBy::DraftModel, Some(draft_model)) => {
                draft_model.verified(id, guessed, right);
            }
            (GuessedBy::DraftModel, None) => {}
        }
    }
}
