//! The scheduler's dealings with pages: who may start, what comes from the cache, who must give way.
//!
//! Rank: online before batch, earlier arrivals before later ones. Who gives way is always of lower rank or paused, so
//! two sequences never take pages from each other in turn.

use mintage_model::Priority;

use super::{Draft, Scheduler, SequenceId};
use crate::paged_kv::PageCopy;

impl Scheduler {
    /// Lets a waiting sequence start if its prompt fits beside what the running ones still need.
    pub(super) fn admit(&mut self, id: SequenceId, draft: &Draft) -> bool {
        let Some(sequence) = self.sequences.get(&id) else { return false };
        if sequence.running {
            return true;
        }
        let class = sequence.priority;
        loop {
            if self.has_room(id) {
                break;
            }
            // An online prompt sends batch work and readers that sleep away, and nobody else.
            let gives_way = |other: &super::Sequence| other.paused || other.priority > class;
            let Some(victim) = self.victim(draft, |_, other| gives_way(other)) else {
                return false;
            };
            self.preempt(victim);
        }
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.running = true;
            if sequence.high_water == 0 && !sequence.prompt_logits {
                self.counters.prefix_cache_queries += sequence.prompt_len as u64;
            }
        }
        true
    }

    /// Whether a waiting sequence can start beside those that run.
    pub(super) fn has_room(&self, id: SequenceId) -> bool {
        let running = self.sequences.values().filter(|s| s.running).count();
        let Some(sequence) = self.sequences.get(&id) else { return false };
        let found = self.kv.probe(sequence.domain, sequence.cacheable());
        // Pages found in the cache that nobody uses count as available, but will be used.
        let needed = self.kv.pages_for(sequence.tokens.len() + 1) - found.pages_in_use;
        // What running prompts still lack, and a page for each to write its answer.
        let lacking = |s: &super::Sequence| {
            1 + self.kv.pages_for(s.tokens.len()).saturating_sub(s.table.pages.len())
        };
        let outstanding: usize = self.sequences.values().filter(|s| s.running).map(lacking).sum();
        let fits = needed + outstanding <= self.kv.available() as usize;
        running == 0 || (fits && running < self.config.max_running)
    }

    /// Takes over every full page that was computed since the last look, by whomever.
    pub(super) fn refresh_from_cache(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let domain = sequence.domain;
        let tokens = sequence.cacheable();
        let found = self.kv.probe(domain, tokens).tokens;
        if found <= sequence.num_computed {
            return;
        }
        let mut table = std::mem::take(&mut sequence.table);
        self.kv.drop_unpublished(&mut table);
        let covered = self.kv.extend_from_cache(domain, &mut table, sequence.cacheable());
        sequence.table = table;
        let saved = sequence.found_in_cache(covered);
        self.counters.prefix_cache_hits += saved as u64;
    }

    /// Starts the next page with a copy of a cached page that begins alike.
    pub(super) fn copy_from_cache(&mut self, id: SequenceId) -> Option<PageCopy> {
        let sequence = self.sequences.get_mut(&id)?;
        if sequence.num_computed % self.config.page_tokens != 0
            || sequence.table.pages.len() != sequence.table.published()
        {
            return None;
        }
        let mut table = std::mem::take(&mut sequence.table);
        let copy = self.kv.copy_from_cache(sequence.domain, &mut table, sequence.cacheable());
        sequence.table = table;
        let copy = copy?;
        let saved = sequence.found_in_cache(sequence.num_computed + copy.slots);
        self.counters.prefix_cache_hits += saved as u64;
        Some(copy)
    }

    /// Gets pages for the first `tokens` tokens of a sequence, from others of lower rank if need be.
    pub(super) fn ensure_pages(&mut self, id: SequenceId, tokens: usize, draft: &Draft) -> bool {
        loop {
            let Some(sequence) = self.sequences.get_mut(&id) else { return false };
            if self.kv.grow(&mut sequence.table, tokens) {
                return true;
            }
            let rank = (sequence.priority, id);
            let victim = self.victim(draft, |other_id, other| {
                other_id != id && (other.paused || (other.priority, other_id) > rank)
            });
            match victim {
                Some(victim) => self.preempt(victim),
                None => return false,
            }
        }
    }

    /// Of the sequences that `may` give way, hold pages and have no part in the step, the one that does: a paused one
    /// before others, then by lowest rank.
    fn victim(
        &self,
        draft: &Draft,
        may: impl Fn(SequenceId, &super::Sequence) -> bool,
    ) -> Option<SequenceId> {
        self.sequences
            .iter()
            .filter(|&(&id, sequence)| sequence.running && !draft.contains(id) && may(id, sequence))
            .max_by_key(|&(&id, sequence)| {
                (sequence.paused, sequence.priority == Priority::Batch, id)
            })
            .map(|(&id, _)| id)
    }

    /// Takes a sequence's pages away. They stay cached until somebody needs them, so it may find them again.
    pub(super) fn preempt(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.drop_drafts();
        self.kv.clear(&mut sequence.table);
        sequence.num_computed = 0;
        sequence.running = false;
        self.counters.preemptions += 1;
    }
}
