//! What the scheduler knows of one request: its tokens, how many are computed, which pages hold them.
//!
//! Invariant: `num_computed` never exceeds the tokens; pages cover what is computed; a waiting sequence holds none.

use std::time::Duration;

use mintage_model::{CacheDomain, Priority, TokenId};

use crate::paged_kv::PageTable;

/// Names a sequence; later arrivals have larger numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// What the scheduler needs to know of a request.
#[derive(Clone, Debug)]
pub struct NewSequence {
    /// The prompt; at least one token, and with `max_new_tokens` within the context.
    pub prompt: Vec<TokenId>,
    /// Where its pages are shared.
    pub domain: CacheDomain,
    /// Whose share it draws on.
    pub tenant: u64,
    /// How large that share is among others, at least 1.
    pub weight: u32,
    /// Online or batch.
    pub priority: Priority,
    /// Every prompt token's logits are wanted, so none may come from the cache.
    pub prompt_logits: bool,
    /// When it arrived, from the engine's start.
    pub arrived: Duration,
}

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) domain: CacheDomain,
    pub(crate) tenant: u64,
    pub(crate) priority: Priority,
    pub(crate) arrived: Duration,
    /// Prompt, then output, then `num_drafts` tokens that are only guessed.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) prompt_len: usize,
    pub(crate) num_drafts: usize,
    /// Tokens that were appended behind the last sampled one since the last step, without a step of their own.
    pub(crate) num_forced: usize,
    /// Tokens whose keys and values are in the pages.
    pub(crate) num_computed: usize,
    /// The most `num_computed` has been: a sequence that was preempted computes up to here for the second time.
    pub(crate) high_water: usize,
    /// Prompt tokens the cache saved.
    pub(crate) num_cached: usize,
    pub(crate) table: PageTable,
    /// Has pages and takes part in steps; otherwise it waits.
    pub(crate) running: bool,
    /// Its reader is slow: no new tokens until it catches up.
    pub(crate) paused: bool,
    pub(crate) prompt_logits: bool,
    /// The step it last decoded in.
    pub(crate) last_turn: u64,
}

impl Sequence {
    pub(crate) fn new(new: NewSequence) -> Self {
        Self {
            domain: new.domain,
            tenant: new.tenant,
            priority: new.priority,
            arrived: new.arrived,
            prompt_len: new.prompt.len(),
            tokens: new.prompt,
            num_drafts: 0,
            num_forced: 0,
            num_computed: 0,
            high_water: 0,
            num_cached: 0,
            table: PageTable::default(),
            running: false,
            paused: false,
            prompt_logits: new.prompt_logits,
            last_turn: 0,
        }
    }

    /// Tokens that `num_computed` has yet to catch up with, drafts included.
    pub(crate) fn remaining(&self) -> usize {
        self.tokens.len() - self.num_computed
    }

    /// Whether only the token sampled last (with what was forced behind it, and drafts) is to be computed.
    pub(crate) fn is_decoding(&self) -> bool {
        let confirmed = self.tokens.len() - self.num_drafts;
        self.running
            && confirmed > self.prompt_len + self.num_forced
            && self.num_computed + 1 + self.num_forced == confirmed
    }

    /// The tokens whose pages may come from the cache: at least the last one is always computed, for its logits.
    pub(crate) fn cacheable(&self) -> &[TokenId] {
        if self.prompt_logits {
            return &[];
        }
        let confirmed = self.tokens.len() - self.num_drafts;
        &self.tokens[..confirmed.saturating_sub(1)]
    }

    /// Forgets guesses.
    pub(crate) fn drop_drafts(&mut self) {
        self.tokens.truncate(self.tokens.len() - self.num_drafts);
        self.num_drafts = 0;
    }

    /// Notes what `num_computed` has become; returns how many prompt tokens the cache saved just now.
    pub(crate) fn found_in_cache(&mut self, num_computed: usize) -> usize {
        self.num_computed = num_computed;
        let saved =
            num_computed.min(self.prompt_len).saturating_sub(self.high_water.min(self.prompt_len));
        self.num_cached += saved;
        self.high_water = self.high_water.max(num_computed);
        saved
    }
}
