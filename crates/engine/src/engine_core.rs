//! Requests between events and steps: `schedule → forward → sample → emit`. It has no thread, no channel and no clock of
//! its own: time is an argument, events go to a callback, so that a test can drive it step by step.
//!
//! Invariants: a token is counted where it is sampled and nowhere else; every request that was taken ends with exactly
//! one `Finished`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mintage_model::{
    EngineFault, EngineLoad, Event, Finish, FinishReason, GenerateRequest, GrammarFault,
    GrammarState, SampledToken, Timings, TokenId, Usage,
};

use crate::forward::{Batch, BatchSequence, Forward, ForwardError, LogitsBuffer, LogitsFor};
use crate::sampler::{Sampler, logprobs};
use crate::scheduler::{NewSequence, PlannedRow, Scheduler, SchedulerConfig, SequenceId, StepPlan};
use crate::speculation::{DraftModel, MAX_DRAFTS, NgramDrafter};

/// Tokens that a grammar forces appended to a sequence in a step, at most.
pub(crate) const MAX_FORCED: usize = 32;

/// Tells the time since the engine's start.
pub type Clock<'a> = &'a dyn Fn() -> Duration;
/// Takes the events of a step.
pub type Emit<'a> = &'a mut dyn FnMut(SequenceId, Event);

/// Whether a step computed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// It did.
    Computed,
    /// Nobody could do anything: no requests, or all of them paused.
    Idle,
}

/// Where a sequence's guesses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GuessedBy {
    Ngrams,
    DraftModel,
}

/// A request being worked on.
#[derive(Debug)]
struct Active {
    request: GenerateRequest,
    deadline: Option<Duration>,
    sampler: Sampler,
    /// Where its answer stands in the grammar it follows. It knows the tokens said, whatever pages are taken away.
    grammar: Option<Box<dyn GrammarState>>,
    ngrams: NgramDrafter,
    /// Whom the guesses of this step are from.
    guessed_by: GuessedBy,
    output_tokens: u32,
    /// Entries for the prompt's tokens so far, where asked for.
    prompt_logprobs: Option<Vec<SampledToken>>,
    prefilled: bool,
    submitted: Duration,
    queued: Option<Duration>,
    first_token: Option<Duration>,
}

impl Active {
    /// The next token: what the grammar forces, or what the sampler chooses among what it allows.
    fn choose(&mut self, logits: &[f32], scratch: &mut Vec<f32>) -> Result<TokenId, FinishReason> {
        let position = self.request.prompt.len() as u64 + u64::from(self.output_tokens);
        let mask = match &mut self.grammar {
            None => None,
            Some(grammar) => match grammar.forced().map_err(broken_grammar)? {
                Some(token) => return Ok(token),
                None => Some(grammar.mask().map_err(broken_grammar)?),
            },
        };
        let sampled = self.sampler.sample(logits, position, mask, scratch);
        sampled.map_err(|error| FinishReason::Fault(EngineFault::Internal(error.to_string())))
    }

    /// How many of `tokens` its grammar lets follow.
    fn allowed(&mut self, tokens: &[TokenId]) -> usize {
        match &mut self.grammar {
            Some(grammar) => grammar.valid_prefix(tokens),
            None => tokens.len(),
        }
    }
}

fn broken_grammar(fault: GrammarFault) -> FinishReason {
    FinishReason::Fault(EngineFault::Grammar(fault))
}

fn unknown_row() -> FinishReason {
    FinishReason::Fault(EngineFault::Internal("a row without a request".to_owned()))
}

/// All requests of an engine, and the model they run on.
pub struct EngineCore {
    forward: Box<dyn Forward>,
    /// Guesses for it, until it fails.
    draft_model: Option<DraftModel>,
    /// Steps since any guess was verified.
    steps_unguessed: u32,
    scheduler: Scheduler,
    config: SchedulerConfig,
    context_length: u32,
    active: BTreeMap<SequenceId, Active>,
    logits: LogitsBuffer,
    scratch: Vec<f32>,
    totals: EngineLoad,
}

impl EngineCore {
    /// An engine without requests. `config.pages` is at most `forward.pages()`.
    #[must_use]
    pub fn new(forward: Box<dyn Forward>, config: SchedulerConfig, context_length: u32) -> Self {
        Self {
            scheduler: Scheduler::new(config.clone()),
            forward,
            draft_model: None,
            steps_unguessed: 0,
            config,
            context_length,
            active: BTreeMap::new(),
            logits: LogitsBuffer::new(),
            scratch: Vec::new(),
            totals: EngineLoad::default(),
        }
    }

    /// The same engine with a smaller model that guesses for its own.
    #[must_use]
    pub fn with_draft_model(mut self, draft_model: Option<DraftModel>) -> Self {
        self.draft_model = draft_model;
        self
    }

    /// Queues a valid request (`mintage_model::validate`); `None` where the queue is full. `grammar` is the state before
    /// the first token, where the request has a grammar: making it takes time, so whoever submits has made it.
    pub fn submit(
        &mut self,
        request: GenerateRequest,
        grammar: Option<Box<dyn GrammarState>>,
        deadline: Option<Duration>,
        now: Duration,
    ) -> Option<SequenceId> {
        let sequence = NewSequence {
            prompt: request.prompt.to_vec(),
            domain: request.cache_domain,
            tenant: request.tenant,
            weight: request.weight,
            priority: request.priority,
            prompt_logits: request.prompt_logprobs.is_some(),
            arrived: now,
        };
        let id = self.scheduler.submit(sequence)?;
        let active = Active {
            deadline,
            sampler: Sampler::new(request.sampling.clone(), &request.prompt),
            grammar,
            ngrams: NgramDrafter::with_prediction(&request.prediction),
            guessed_by: GuessedBy::Ngrams,
            output_tokens: 0,
            prompt_logprobs: request.prompt_logprobs.map(|_| Vec::new()),
            prefilled: false,
            submitted: now,
            queued: None,
            first_token: None,
            request,
        };
        self.active.insert(id, active);
        Some(id)
    }

    /// Requests that have not ended.
    pub fn ids(&self) -> impl Iterator<Item = SequenceId> {
        self.active.keys().copied()
    }

    /// Says whether the reader of a request has room for the events of one more step.
    pub fn set_paused(&mut self, id: SequenceId, paused: bool) {
        self.scheduler.set_paused(id, paused);
    }

    /// Tokens one request may get from one step.
    #[must_use]
    pub fn max_tokens_a_step(&self) -> usize {
        1 + self.config.max_drafts.min(MAX_DRAFTS) + MAX_FORCED
    }

    /// Ends a request between steps.
    pub fn end(&mut self, id: SequenceId, reason: FinishReason, now: Duration, emit: Emit<'_>) {
        let cached = self.scheduler.num_cached(id);
        self.scheduler.remove(id);
        if let Some(draft_model) = &mut self.draft_model {
            draft_model.retain(|other| other != id);
        }
        let Some(active) = self.active.remove(&id) else { return };
        let finish = Finish {
            reason,
            usage: Usage {
                prompt_tokens: active.request.prompt.len() as u32,
                cached_tokens: cached as u32,
                output_tokens: active.output_tokens,
            },
            timings: Timings {
                queued: active.queued.unwrap_or(now).saturating_sub(active.submitted),
                first_token: active.first_token.map(|at| at.saturating_sub(active.submitted)),
                total: now.saturating_sub(active.submitted),
            },
        };
        emit(id, Event::Finished(finish));
    }

    /// Ends the requests whose deadline has passed.
    pub fn end_overdue(&mut self, now: Duration, emit: Emit<'_>) {
        let overdue = |active: &Active| active.deadline.is_some_and(|deadline| deadline <= now);
        let ids: Vec<_> =
            self.active.iter().filter(|(_, a)| overdue(a)).map(|(&id, _)| id).collect();
        for id in ids {
            self.end(id, FinishReason::Deadline, now, emit);
        }
    }

    /// Ends all requests with a fault and forgets all cached pages: after a failure in a step nothing is trusted.
    pub fn reset(&mut self, fault: &EngineFault, now: Duration, emit: Emit<'_>) {
        for id in self.active.keys().copied().collect::<Vec<_>>() {
            self.end(id, FinishReason::Fault(fault.clone()), now, emit);
        }
        self.totals = self.load();
        self.scheduler = Scheduler::new(self.config.clone());
        if let Some(draft_model) = &mut self.draft_model {
            draft_model.reset();
        }
    }

    /// One step.
    ///
    /// # Errors
    /// What the forward pass refused; the caller resets.
    pub fn step(&mut self, clock: Clock<'_>, emit: Emit<'_>) -> Result<StepOutcome, ForwardError> {
        let start = clock();
        let guessing =
            if self.config.max_drafts > 0 { self.propose_drafts(clock) } else { Duration::ZERO };
        let plan = self.scheduler.schedule(start);
        if plan.rows.is_empty() {
            return Ok(StepOutcome::Idle);
        }
        for row in &plan.rows {
            if let Some(active) = self.active.get_mut(&row.id) {
                active.queued.get_or_insert(start);
            }
        }
        let before = clock();
        self.run(&plan)?;
        let after = clock();
        self.collect(&plan, after, emit);
        self.totals.steps += 1;
        self.totals.forward_time += after.saturating_sub(before) + guessing;
        let step_time = clock().saturating_sub(start);
        self.totals.step_time += step_time;
        let own = step_time.saturating_sub(guessing);
        self.scheduler.observe(plan.shape, own.as_secs_f64() * 1000.0);
        Ok(StepOutcome::Computed)
    }

    /// The forward pass of a plan.
    fn run(&mut self, plan: &StepPlan) -> Result<(), ForwardError> {
        for copy in &plan.copies {
            if copy.from != copy.to {
                self.forward.copy_page(copy.from, copy.to, copy.slots);
            }
        }
        let scheduler = &self.scheduler;
        let sequences: Vec<BatchSequence<'_>> = plan
            .rows
            .iter()
            .map(|row| BatchSequence {
                tokens: &scheduler.tokens(row.id)[row.start..row.start + row.count],
                first_position: row.start,
                block_table: scheduler.block_table(row.id),
                logits_for: row.logits_for,
            })
            .collect();
        self.forward.step(&Batch { sequences: &sequences }, &mut self.logits)
    }

    /// Hands each row of the plan its logits.
    fn collect(&mut self, plan: &StepPlan, now: Duration, emit: Emit<'_>) {
        let mut first = 0;
        for row in &plan.rows {
            let rows = match row.logits_for {
                LogitsFor::None => 0,
                LogitsFor::Last => 1,
                LogitsFor::Tail(n) => n.min(row.count),
                LogitsFor::All => row.count,
            };
            self.collect_row(row, first, first + rows, now, emit);
            first += rows;
        }
    }

    /// `first..end`: the row's logits.
    fn collect_row(
        &mut self,
        row: &PlannedRow,
        first: usize,
        end: usize,
        now: Duration,
        emit: Emit<'_>,
    ) {
        let id = row.id;
        if row.logits_for == LogitsFor::All {
            self.collect_prompt_logprobs(row, first);
        }
        if row.start + row.count < self.scheduler.tokens(id).len() {
            self.scheduler.commit(row, 0);
            return;
        }
        let cached_tokens = self.scheduler.num_cached(id) as u32;
        let Some(active) = self.active.get_mut(&id) else { return };
        if !active.prefilled {
            active.prefilled = true;
            let prompt_logprobs = active.prompt_logprobs.take();
            emit(id, Event::Prefilled { cached_tokens, prompt_logprobs });
        }
        if active.request.max_new_tokens == 0 {
            self.scheduler.commit(row, 0);
            self.end(id, FinishReason::Length, now, emit);
            return;
        }
        self.sample_row(row, first, end, now, emit);
    }

    /// Samples after the last confirmed token and on along the drafts for as long as they guess right.
    fn sample_row(
        &mut self,
        row: &PlannedRow,
        first: usize,
        end: usize,
        now: Duration,
        emit: Emit<'_>,
    ) {
        let id = row.id;
        let drafts = self.scheduler.num_drafts(id);
        let tokens = self.scheduler.tokens(id);
        let drafted: Vec<TokenId> = tokens[tokens.len() - drafts..].to_vec();
        self.totals.draft_tokens += drafts as u64;
        let first = first.max(end.saturating_sub(drafts + 1));
        for accepted in 0..=drafts {
            let ending = self.sample_token(id, first + accepted, now, emit);
            let token = match ending {
                Ok(token) => token,
                Err(reason) => {
                    self.scheduler.commit(row, drafts - accepted);
                    self.end(id, reason, now, emit);
                    return;
                }
            };
            if drafted.get(accepted) != Some(&token) {
                self.totals.accepted_draft_tokens += accepted as u64;
                self.learn_from_drafts(id, drafts, accepted);
                self.scheduler.commit(row, drafts - accepted);
                self.scheduler.push_token(id, token);
                self.append_forced(id, now, emit);
                return;
            }
        }
    }

    /// Samples one token and reports it; `Err` is the reason why it was the last.
    fn sample_token(
        &mut self,
        id: SequenceId,
        logits_row: usize,
        now: Duration,
        emit: Emit<'_>,
    ) -> Result<TokenId, FinishReason> {
        let Some(active) = self.active.get_mut(&id) else { return Err(unknown_row()) };
        let logits = self.logits.row(logits_row);
        let token = active.choose(logits, &mut self.scratch)?;
        let sampled = match active.request.logprobs {
            Some(top) => logprobs(logits, token, top),
            None => SampledToken { id: token, logprob: None, top: Vec::new() },
        };
        self.take_token(id, sampled, now, emit)
    }

    /// Appends what must follow by the grammar: it needs no logits, and is computed together with the token before it.
    /// Whether a token comes from here or from a mask of one token, the answer is the same.
    fn append_forced(&mut self, id: SequenceId, now: Duration, emit: Emit<'_>) {
        for _ in 0..MAX_FORCED {
            let Some(active) = self.active.get_mut(&id) else { return };
            // Who wants log-probabilities needs each token's logits.
            let grammar = active.grammar.as_mut().filter(|_| active.request.logprobs.is_none());
            let Some(grammar) = grammar else { return };
            let taken = match grammar.forced() {
                Ok(None) => return,
                Ok(Some(token)) => {
                    let sampled = SampledToken { id: token, logprob: None, top: Vec::new() };
                    self.totals.forced_tokens += 1;
                    self.take_token(id, sampled, now, emit)
                }
                Err(fault) => Err(broken_grammar(fault)),
            };
            match taken {
                Ok(token) => self.scheduler.push_forced(id, token),
                Err(reason) => return self.end(id, reason, now, emit),
            }
        }
    }

    /// Counts and reports a token; `Err` is the reason why it was the last.
    fn take_token(
        &mut self,
        id: SequenceId,
        sampled: SampledToken,
        now: Duration,
        emit: Emit<'_>,
    ) -> Result<TokenId, FinishReason> {
        let Some(active) = self.active.get_mut(&id) else { return Err(unknown_row()) };
        let token = sampled.id;
        if let Some(grammar) = &mut active.grammar {
            grammar.accept(token).map_err(broken_grammar)?;
        }
        active.sampler.accept(token);
        active.output_tokens += 1;
        active.first_token.get_or_insert(now);
        emit(id, Event::Token(sampled));
        let ends = active.grammar.as_ref().is_some_and(|grammar| grammar.has_ended());
        if ends || active.request.stop_token_ids.contains(&token) {
            return Err(FinishReason::Stop(token));
        }
        let prompt_tokens = active.request.prompt.len() as u32;
        if active.output_tokens >= active.request.max_new_tokens
            || prompt_tokens + active.output_tokens >= self.context_length
        {
            return Err(FinishReason::Length);
        }
        Ok(token)
    }

    /// Notes what the model thought of the prompt's own tokens; `first`: the logits of the row's first token.
    fn collect_prompt_logprobs(&mut self, row: &PlannedRow, first: usize) {
        let Some(active) = self.active.get_mut(&row.id) else { return };
        let prompt = Arc::clone(&active.request.prompt);
        let top = active.request.prompt_logprobs.unwrap_or(0);
        let Some(entries) = &mut active.prompt_logprobs else { return };
        if entries.is_empty() {
            entries.push(SampledToken { id: prompt[0], logprob: None, top: Vec::new() });
        }
        for index in 0..row.count {
            // Logits at a position speak of the next one. After preemption some have been noted already.
            let next = row.start + index + 1;
            if next == entries.len()
                && let Some(&token) = prompt.get(next)
            {
                entries.push(logprobs(self.logits.row(first + index), token, top));
            }
        }
    }

    /// How busy the engine is.
    #[must_use]
    pub fn load(&self) -> EngineLoad {
        let (running, waiting) = self.scheduler.running_and_waiting();
        let (free, total) = self.scheduler.pages_free_and_total();
        let counters = self.scheduler.counters();
        EngineLoad {
            running: running as u32,
            waiting: waiting as u32,
            kv_pages_free: free,
            kv_pages_total: total,
            prefix_cache_queries: self.totals.prefix_cache_queries + counters.prefix_cache_queries,
            prefix_cache_hits: self.totals.prefix_cache_hits + counters.prefix_cache_hits,
            preemptions: self.totals.preemptions + counters.preemptions,
            ..self.totals
        }
    }

    /// Verifies all invariants and counts that it did.
    ///
    /// # Errors
    /// The first breach found.
    pub fn verify(&mut self) -> Result<(), String> {
        let outcome = self.check();
        self.totals.integrity_checks += 1;
        self.totals.integrity_failures += u64::from(outcome.is_err());
        outcome
    }

    /// Verifies all invariants; the text names what is broken.
    ///
    /// # Errors
    /// The first breach found.
    pub fn check(&self) -> Result<(), String> {
        self.scheduler.check()?;
        if let Some(draft_model) = &self.draft_model {
            draft_model.check(|id| self.active.contains_key(&id))?;
        }
        let (running, waiting) = self.scheduler.running_and_waiting();
        if running + waiting != self.active.len() {
            return Err(format!(
                "{} sequences are scheduled for {} requests",
                running + waiting,
                self.active.len()
            ));
        }
        let (free, total) = self.scheduler.pages_free_and_total();
        if self.active.is_empty() && free != total {
            return Err(format!("no request is left, but {} pages are not free", total - free));
        }
        Ok(())
    }
}

mod drafting;
#[cfg(test)]
mod tests;
