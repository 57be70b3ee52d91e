//! Who computes what in the next step. Pure: no clock, no randomness, no I/O; it moves numbers, never keys or values.
//!
//! One rule (vLLM v1): each sequence lets `num_computed` catch up with its tokens. There is no prefill phase and no
//! decode phase; chunked prefill, prefix hits, preemption and drafts are all the same catching up. A step's budget is
//! milliseconds, by the [`CostModel`].
//!
//! Order of service: decode rows first; where tenants compete, each its share of the step (`turns`). Then prompts: the least served tenant's, within it the
//! one with the least left to compute (the longer it waits, the less that counts). [`Priority::Batch`] runs in steps
//! in which nothing online could.
//!
//! Equal prefixes are computed once: a sequence whose next page another one computes in this very step sits the step
//! out and finds the page in the tree at the next.
//!
//! Invariants ([`Scheduler::check`]): those of the pages; waiting sequences hold no page; the sequence of highest rank
//! that is not paused can always get its pages, so there is always progress.

pub(crate) mod fair_share;
mod pages;
mod sequence;
mod turns;

use std::collections::BTreeMap;
use std::time::Duration;

use mintage_model::{CacheDomain, Priority, TokenId};

use crate::cost_model::{CostModel, StepShape};
use crate::forward::LogitsFor;
use crate::paged_kv::{PageCopy, PageTable, PagedKv};
use crate::prefix_tree::NodeId;
use fair_share::{FairShare, OUTPUT_TOKEN_WEIGHT};
use sequence::Sequence;
pub use sequence::{NewSequence, SequenceId};

/// While anything decodes, a step may take this many times what the decodes alone take, or `target_gap_ms`.
const ALONE_FACTOR: f64 = 1.5;
/// Prompt tokens a step computes however slow the machine: prompts must get on.
const MIN_CHUNK_TOKENS: usize = 8;
/// Prompt tokens whose logits are wanted, a step: bounds the buffer of logits.
const PROMPT_LOGITS_CHUNK_TOKENS: usize = 16;
/// A prompt that waits this long counts as one token shorter.
const AGING_MS_PER_TOKEN: u128 = 10;

/// Limits and targets.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// Pages of the KV cache. Every request must fit them alone.
    pub pages: u32,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Sequences that hold pages at the same time.
    pub max_running: usize,
    /// Requests that wait for their first step.
    pub max_waiting: usize,
    /// Tokens of one step.
    pub max_step_tokens: usize,
    /// How long a step may take while an answer is being written, ms.
    pub target_gap_ms: f64,
    /// How long a step may take while only prompts are computed, ms.
    pub prompt_step_ms: f64,
    /// Guessed tokens verified for one sequence in a step, at most [`MAX_DRAFTS`](crate::MAX_DRAFTS); 0 turns
    /// speculation off.
    pub max_drafts: usize,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            pages: 0,
            page_tokens: mintage_kernels::PAGE_TOKENS,
            max_running: 64,
            max_waiting: 256,
            max_step_tokens: 512,
            target_gap_ms: 100.0,
            prompt_step_ms: 400.0,
            max_drafts: 0,
        }
    }
}

/// The part of one sequence in a step: `count` tokens from position `start`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedRow {
    /// Whose.
    pub id: SequenceId,
    /// Position of the first token.
    pub start: usize,
    /// Tokens, at least one.
    pub count: usize,
    /// Which of them need logits.
    pub logits_for: LogitsFor,
}

/// One step.
#[derive(Clone, Debug, Default)]
pub struct StepPlan {
    /// To be done in this order, before the forward pass.
    pub copies: Vec<PageCopy>,
    /// What the forward pass computes.
    pub rows: Vec<PlannedRow>,
    /// What the step's duration depends on.
    pub shape: StepShape,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerCounters {
    /// Prompt tokens looked up in the prefix tree.
    pub prefix_cache_queries: u64,
    /// Prompt tokens found there.
    pub prefix_cache_hits: u64,
    /// Sequences that lost their pages.
    pub preemptions: u64,
}

/// The state between steps.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    kv: PagedKv,
    cost: CostModel,
    sequences: BTreeMap<SequenceId, Sequence>,
    shares: FairShare,
    counters: SchedulerCounters,
    next_id: u64,
    /// Steps decided so far.
    turn: u64,
}

/// What one call of [`Scheduler::schedule`] has decided so far.
#[derive(Default)]
struct Draft {
    plan: StepPlan,
    /// Pages being computed in this step: what follows what.
    claims: Vec<(CacheDomain, Option<NodeId>, Vec<TokenId>)>,
    /// Prompts looked at already.
    tried: Vec<SequenceId>,
    /// No waiting sequence can start in this step any more.
    admission_closed: bool,
}

impl Draft {
    fn contains(&self, id: SequenceId) -> bool {
        self.plan.rows.iter().any(|row| row.id == id)
    }
}

impl Scheduler {
    /// An empty scheduler.
    #[must_use]
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            kv: PagedKv::new(config.pages, config.page_tokens),
            cost: CostModel::default(),
            sequences: BTreeMap::new(),
            shares: FairShare::default(),
            counters: SchedulerCounters::default(),
            next_id: 0,
            turn: 0,
            config,
        }
    }

    /// Queues a sequence, or says that the queue is full.
    pub fn submit(&mut self, new: NewSequence) -> Option<SequenceId> {
        // Those that lost their pages were taken once already and do not count.
        let fresh = self.sequences.values().filter(|s| !s.running && s.high_water == 0).count();
        if fresh >= self.config.max_waiting {
            return None;
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.shares.enter(new.tenant, new.weight);
        self.sequences.insert(id, Sequence::new(new));
        Some(id)
    }

    /// Forgets a sequence. What it computed stays cached until its pages are needed.
    pub fn remove(&mut self, id: SequenceId) {
        let Some(mut sequence) = self.sequences.remove(&id) else { return };
        sequence.drop_drafts();
        let Sequence { domain, tokens, num_computed, table, .. } = &mut sequence;
        self.kv.publish_tail(*domain, table, tokens, *num_computed);
        self.kv.clear(table);
        self.shares.leave(sequence.tenant);
    }

    /// Says whether the sequence's reader keeps up.
    pub fn set_paused(&mut self, id: SequenceId, paused: bool) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.paused = paused;
        }
    }

    /// Guesses that follow the sampled tokens of a decoding sequence; they enter the next step as tokens.
    pub fn set_drafts(&mut self, id: SequenceId, drafts: &[TokenId]) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.drop_drafts();
        if sequence.is_decoding() && !sequence.paused {
            sequence.tokens.extend_from_slice(drafts);
            sequence.num_drafts = drafts.len();
        }
    }

    /// Decides the next step. `now` is the time since the engine's start.
    pub fn schedule(&mut self, now: Duration) -> StepPlan {
        let mut draft = Draft::default();
        self.yield_places(now);
        for class in [Priority::Online, Priority::Batch] {
            self.plan_decodes(&mut draft, class);
            self.plan_prompts(&mut draft, class, now);
            if !draft.plan.rows.is_empty() {
                break;
            }
        }
        draft.plan
    }

    /// Gives a row to each sequence that only has its last token (and drafts) to compute.
    fn plan_decodes(&mut self, draft: &mut Draft, class: Priority) {
        let ready = |s: &Sequence| s.priority == class && !s.paused && s.is_decoding();
        self.turn += 1;
        for id in self.decodes_in_turn(class) {
            // An earlier row may have taken this one's pages.
            let Some(sequence) = self.sequences.get(&id).filter(|s| ready(s)) else { continue };
            let wanted = sequence.tokens.len();
            if !self.ensure_pages(id, wanted, draft) {
                self.preempt(id);
                continue;
            }
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            sequence.last_turn = self.turn;
            let (start, count) = (sequence.num_computed, sequence.remaining());
            let logits_for = LogitsFor::Tail(sequence.num_drafts + 1);
            self.shares.charge(sequence.tenant, OUTPUT_TOKEN_WEIGHT);
            draft.plan.shape = draft.plan.shape.with(start, count, false);
            draft.plan.rows.push(PlannedRow { id, start, count, logits_for });
        }
    }

    /// Fills what is left of the step's time with chunks of prompts.
    fn plan_prompts(&mut self, draft: &mut Draft, class: Priority, now: Duration) {
        let decodes = draft.plan.shape.decode_rows > 0;
        let decodes_ms = self.cost.predict_ms(draft.plan.shape);
        let target_ms = match (class, decodes) {
            (_, true) => {
                let alone_ms = self.cost.predict_ms(draft.plan.shape);
                self.config.target_gap_ms.max(ALONE_FACTOR * alone_ms)
            }
            // Whoever comes online meanwhile waits no longer than this.
            (Priority::Batch, false) => self.config.target_gap_ms,
            (Priority::Online, false) => self.config.prompt_step_ms,
        };
        while let Some(id) = self.next_prompt(draft, class, now) {
            draft.tried.push(id);
            let Some(tenant) = self.sequences.get(&id).map(|s| s.tenant) else { continue };
            let limit_ms = self.prompt_limit_ms(draft, tenant, class);
            let target_ms = match class {
                // Nobody here has had less: its part is as large as that of those who decode.
                Priority::Online if decodes && limit_ms.is_infinite() => {
                    target_ms.max(self.prompt_part_ms(decodes_ms, tenant))
                }
                _ => target_ms,
            };
            if !self.plan_prompt(draft, id, target_ms.min(limit_ms), limit_ms <= target_ms) {
                break;
            }
        }
    }

    /// The next prompt to be served, of those not looked at in this step.
    fn next_prompt(&self, draft: &Draft, class: Priority, now: Duration) -> Option<SequenceId> {
        let candidates = self.sequences.iter().filter(|&(id, sequence)| {
            sequence.priority == class
                && !sequence.paused
                && !sequence.is_decoding()
                && (sequence.running || !draft.admission_closed)
                && !draft.tried.contains(id)
        });
        let key = |(&id, sequence): (&SequenceId, &Sequence)| {
            let waited_ms = now.saturating_sub(sequence.arrived).as_millis();
            let credit = i64::try_from(waited_ms / AGING_MS_PER_TOKEN).unwrap_or(i64::MAX);
            let left = (sequence.remaining() as i64).saturating_sub(credit);
            (self.shares.served(sequence.tenant), left, id)
        };
        candidates.map(key).min().map(|(_, _, id)| id)
    }

    /// Gives a prompt as much of the step as fits; false once the step is full.
    /// `is_guest`: the step is others', so a prompt for which there is no room waits.
    fn plan_prompt(
        &mut self,
        draft: &mut Draft,
        id: SequenceId,
        target_ms: f64,
        is_guest: bool,
    ) -> bool {
        if !self.admit(id, draft) {
            draft.admission_closed = true;
            return true;
        }
        self.refresh_from_cache(id);
        let Some(sequence) = self.sequences.get(&id) else { return true };
        let claim = self.kv.claim(&sequence.table, &sequence.tokens);
        let claim = claim.map(|(tip, page)| (sequence.domain, tip, page.to_vec()));
        if claim.as_ref().is_some_and(|claim| draft.claims.contains(claim)) {
            return true;
        }
        let copy = self.copy_from_cache(id);
        draft.plan.copies.extend(copy);
        let Some(count) = self.chunk_tokens(draft, id, target_ms, is_guest) else {
            return is_guest;
        };
        let Some(sequence) = self.sequences.get(&id) else { return true };
        let start = sequence.num_computed;
        if !self.ensure_pages(id, start + count, draft) {
            return true;
        }
        let Some(sequence) = self.sequences.get(&id) else { return true };
        let logits_for = match start + count == sequence.tokens.len() {
            _ if sequence.prompt_logits => LogitsFor::All,
            true => LogitsFor::Last,
            false => LogitsFor::None,
        };
        self.shares.charge(sequence.tenant, count as u64);
        draft.claims.extend(claim);
        draft.plan.shape = draft.plan.shape.with(start, count, true);
        draft.plan.rows.push(PlannedRow { id, start, count, logits_for });
        true
    }

    /// How many tokens of a prompt this step can still take; `None` where it is full.
    fn chunk_tokens(
        &self,
        draft: &Draft,
        id: SequenceId,
        target_ms: f64,
        is_guest: bool,
    ) -> Option<usize> {
        let sequence = self.sequences.get(&id)?;
        let shape = draft.plan.shape;
        let planned = shape.prompt_tokens + shape.decode_rows;
        let mut limit = self.config.max_step_tokens.saturating_sub(planned);
        if sequence.prompt_logits {
            let all = draft.plan.rows.iter().filter(|row| row.logits_for == LogitsFor::All);
            let planned: usize = all.map(|row| row.count).sum();
            limit = limit.min(PROMPT_LOGITS_CHUNK_TOKENS.saturating_sub(planned));
        }
        let limit = limit.min(sequence.remaining());
        let fits = self.cost.prompt_tokens_within(shape, sequence.num_computed, limit, target_ms);
        let least = if is_guest { 0 } else { MIN_CHUNK_TOKENS.min(limit) };
        if fits < least && shape.prompt_tokens > 0 {
            return None;
        }
        let count = fits.max(least);
        if count == sequence.remaining() {
            return (count > 0).then_some(count);
        }
        // End with a page where that is not far: a page is shared once it is full.
        let beyond = (sequence.num_computed + count) % self.config.page_tokens;
        let count = if beyond < count { count - beyond } else { count };
        (count > 0).then_some(count)
    }

    /// Tells what happened to a planned row: its tokens are computed, except the last `rejected`, drafts that turned
    /// out wrong and are forgotten.
    pub fn commit(&mut self, row: &PlannedRow, rejected: usize) {
        let Some(sequence) = self.sequences.get_mut(&row.id) else { return };
        let rejected = rejected.min(sequence.num_drafts);
        sequence.tokens.truncate(sequence.tokens.len() - rejected);
        sequence.num_drafts = 0;
        sequence.num_forced = 0;
        sequence.num_computed = row.start + row.count - rejected;
        sequence.high_water = sequence.high_water.max(sequence.num_computed);
        let Sequence { domain, tokens, num_computed, table, .. } = sequence;
        self.kv.publish(*domain, table, tokens, *num_computed);
    }

    /// Appends the token sampled from a row that reached the sequence's end.
    pub fn push_token(&mut self, id: SequenceId, token: TokenId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.tokens.push(token);
            // Its prompt's logits have been read; from here on it may use the cache, should it be preempted.
            sequence.prompt_logits = false;
        }
    }

    /// Appends a token that had to follow the one appended before: both are computed in one step.
    pub fn push_forced(&mut self, id: SequenceId, token: TokenId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.tokens.push(token);
            sequence.num_forced += 1;
        }
    }

    /// Tells how long a step took.
    pub fn observe(&mut self, shape: StepShape, duration_ms: f64) {
        self.cost.observe(shape, duration_ms);
    }

    /// All tokens of a sequence, drafts included.
    #[must_use]
    pub fn tokens(&self, id: SequenceId) -> &[TokenId] {
        self.sequences.get(&id).map_or(&[], |sequence| &sequence.tokens)
    }

    /// The block table of a sequence.
    #[must_use]
    pub fn block_table(&self, id: SequenceId) -> &[u32] {
        self.sequences.get(&id).map_or(&[], |sequence| &sequence.table.pages)
    }

    /// Whether of a sequence only the last sampled token is to be computed, in the next step: the time for drafts.
    #[must_use]
    pub fn is_decoding(&self, id: SequenceId) -> bool {
        let due = self.due();
        self.sequences.get(&id).is_some_and(|s| s.is_decoding() && !s.paused && s.priority == due)
    }

    /// Whether a sequence holds pages.
    #[must_use]
    pub fn is_running(&self, id: SequenceId) -> bool {
        self.sequences.get(&id).is_some_and(|sequence| sequence.running)
    }

    /// Whether the next step has prompts to compute.
    #[must_use]
    pub fn prompts_wait(&self) -> bool {
        let due = self.due();
        self.sequences.values().any(|s| s.priority == due && !s.paused && !s.is_decoding())
    }

    /// The class that the next step belongs to.
    fn due(&self) -> Priority {
        let online = |s: &Sequence| s.priority == Priority::Online && !s.paused;
        match self.sequences.values().any(online) {
            true => Priority::Online,
            false => Priority::Batch,
        }
    }

    /// Guesses at the end of a sequence's tokens.
    #[must_use]
    pub fn num_drafts(&self, id: SequenceId) -> usize {
        self.sequences.get(&id).map_or(0, |sequence| sequence.num_drafts)
    }

    /// Prompt tokens of a sequence that the cache saved.
    #[must_use]
    pub fn num_cached(&self, id: SequenceId) -> usize {
        self.sequences.get(&id).map_or(0, |sequence| sequence.num_cached)
    }

    /// Sequences that hold pages, and sequences that wait.
    #[must_use]
    pub fn running_and_waiting(&self) -> (usize, usize) {
        let running = self.sequences.values().filter(|sequence| sequence.running).count();
        (running, self.sequences.len() - running)
    }

    /// Pages that no running sequence needs, and all pages.
    #[must_use]
    pub fn pages_free_and_total(&self) -> (u32, u32) {
        (self.kv.available(), self.kv.total())
    }

    /// Counters since the start.
    #[must_use]
    pub fn counters(&self) -> SchedulerCounters {
        self.counters
    }

    /// The cost model, for drafts that must pay.
    #[must_use]
    pub fn cost(&self) -> &CostModel {
        &self.cost
    }

    /// Verifies all invariants; the text names what is broken.
    ///
    /// # Errors
    /// The first breach found.
    pub fn check(&self) -> Result<(), String> {
        let tables: Vec<&PageTable> = self.sequences.values().map(|s| &s.table).collect();
        self.kv.check(tables.into_iter())?;
        if self.shares.sequences() != self.sequences.len() {
            return Err("the fair shares count other sequences than there are".to_owned());
        }
        for (id, sequence) in &self.sequences {
            let pages = sequence.table.pages.len();
            if !sequence.running && (pages > 0 || sequence.num_computed > 0) {
                return Err(format!("{id:?} waits, but holds {pages} pages"));
            }
            if sequence.num_computed > sequence.tokens.len() {
                return Err(format!("{id:?} has computed more tokens than it has"));
            }
            if pages < self.kv.pages_for(sequence.num_computed) {
                return Err(format!("{id:?} holds {pages} pages, too few"));
            }
            if sequence.table.published() != sequence.num_computed / self.config.page_tokens {
                return Err(format!("{id:?} has full pages that are not in the tree"));
            }
        }
        let (running, _) = self.running_and_waiting();
        if running > self.config.max_running {
            return Err(format!(
                "{running} sequences run, the limit is {}",
                self.config.max_running
            ));
        }
        Ok(())
    }
}
