//! How tenants that want the engine at the same time share its places and its steps.
//!
//! A step takes a tenant no longer than if the machine were its own with its weight's part of the speed: whoever adds
//! work to a step keeps it within `total weight / own weight` times what each other tenant's part would take alone.
//! Places go to who has none before others get their second. With one tenant nothing of this applies.
//!
//! Not here: how much each has had (`fair_share`). Invariant: each tenant with something to decode has at least one row
//! in each step, so nobody stands still.

use std::collections::BTreeMap;
use std::time::Duration;

use mintage_model::Priority;

use super::fair_share::OUTPUT_TOKEN_WEIGHT;
use super::{Draft, Scheduler, Sequence, SequenceId};
use crate::cost_model::StepShape;

/// Of what others may add: predictions err, and a request also waits for the step that is under way when it comes.
const MARGIN: f64 = 0.85;

impl Scheduler {
    /// The sequences that decode in this step, in the order of their turns.
    pub(super) fn decodes_in_turn(&self, class: Priority) -> Vec<SequenceId> {
        let ready = |s: &Sequence| s.priority == class && !s.paused && s.is_decoding();
        let mut queues: BTreeMap<u64, Vec<SequenceId>> = BTreeMap::new();
        for (&id, sequence) in self.sequences.iter().filter(|(_, s)| ready(s)) {
            queues.entry(sequence.tenant).or_default().push(id);
        }
        let limit_ms = self.decode_limit_ms(&queues, class);
        let Some(limit_ms) = limit_ms else {
            let mut all: Vec<_> = queues.into_values().flatten().collect();
            all.sort_unstable();
            return all;
        };
        // Who waited longest stands last, to be taken first.
        for queue in queues.values_mut() {
            queue.sort_by_key(|id| {
                std::cmp::Reverse((self.sequences.get(id).map_or(0, |s| s.last_turn), *id))
            });
        }
        let mut picked: Vec<SequenceId> = queues.values_mut().filter_map(Vec::pop).collect();
        let mut shape = self.decode_shape_of(&picked);
        let mut shares = self.shares.clone();
        loop {
            let next = queues.iter().filter(|(_, queue)| !queue.is_empty());
            let Some(tenant) = next.map(|(&t, _)| t).min_by_key(|&t| (shares.served(t), t)) else {
                break;
            };
            let Some(id) = queues.get_mut(&tenant).and_then(Vec::pop) else { break };
            let grown = self.with_decode(shape, id);
            if self.cost.predict_ms(grown) > limit_ms {
                break;
            }
            shape = grown;
            shares.charge(tenant, OUTPUT_TOKEN_WEIGHT);
            picked.push(id);
        }
        picked.sort_unstable();
        picked
    }

    /// How long the decodes of a step may take; `None` where one tenant has the engine for itself.
    fn decode_limit_ms(
        &self,
        queues: &BTreeMap<u64, Vec<SequenceId>>,
        class: Priority,
    ) -> Option<f64> {
        let total = self.total_weight(class)?;
        let mut limit_ms = f64::INFINITY;
        for (&tenant, queue) in queues {
            let alone_ms = self.cost.predict_ms(self.decode_shape_of(queue));
            limit_ms = limit_ms.min(alone_ms * (1.0 + self.others(tenant, total)));
        }
        // Whoever has only prompts comes after the decodes of a step: room is left for one of them.
        for sequence in self.sequences.values() {
            let prompts_only = !queues.contains_key(&sequence.tenant);
            if sequence.priority != class || sequence.paused || !prompts_only {
                continue;
            }
            let tokens = sequence.remaining().min(self.config.max_step_tokens);
            let shape = StepShape::default().with(sequence.num_computed, tokens, true);
            let alone_ms = self.cost.predict_ms(shape).min(self.config.prompt_step_ms);
            limit_ms = limit_ms.min(alone_ms * self.others(sequence.tenant, total));
        }
        Some(limit_ms)
    }

    /// How long a step may take with a prompt of `tenant` in it, for the sake of the less served that have a part in it.
    pub(super) fn prompt_limit_ms(&self, draft: &Draft, tenant: u64, class: Priority) -> f64 {
        let Some(total) = self.total_weight(class) else { return f64::INFINITY };
        let mut parts: BTreeMap<u64, StepShape> = BTreeMap::new();
        for row in &draft.plan.rows {
            let Some(sequence) = self.sequences.get(&row.id) else { continue };
            let part = parts.entry(sequence.tenant).or_default();
            let is_prompt = !sequence.is_decoding();
            *part = part.with(row.start, row.count, is_prompt);
        }
        // Who has had more than this tenant need not be spared by it.
        let served = self.shares.served(tenant);
        let others = parts
            .into_iter()
            .filter(|(other, _)| *other != tenant && self.shares.served(*other) <= served);
        others
            .map(|(other, part)| self.cost.predict_ms(part) * (1.0 + self.others(other, total)))
            .fold(f64::INFINITY, f64::min)
    }

    /// How long a step may take with a prompt of a tenant that had less than those whose decodes take `decodes_ms`.
    pub(super) fn prompt_part_ms(&self, decodes_ms: f64, tenant: u64) -> f64 {
        match self.total_weight(Priority::Online) {
            Some(total) => decodes_ms * (1.0 + 1.0 / self.others(tenant, total)),
            None => 0.0,
        }
    }

    /// A tenant that waits takes a place from the one that has most for its weight, if that has more than it will have.
    pub(super) fn yield_places(&mut self, now: Duration) {
        let next = self.next_prompt(&Draft::default(), Priority::Online, now);
        let Some(id) = next else { return };
        let Some(sequence) = self.sequences.get(&id).filter(|s| !s.running) else { return };
        let tenant = sequence.tenant;
        while !self.has_room(id) {
            let Some(victim) = self.too_many_places(tenant) else { return };
            self.preempt(victim);
        }
    }

    /// The latest of the running sequences of the tenant that has most places for its weight, more than `tenant` would
    /// have with another one.
    fn too_many_places(&self, tenant: u64) -> Option<SequenceId> {
        let mut places: BTreeMap<u64, (u32, SequenceId)> = BTreeMap::new();
        for (&id, sequence) in self.sequences.iter().filter(|(_, s)| s.running) {
            let entry = places.entry(sequence.tenant).or_insert((0, id));
            *entry = (entry.0 + 1, id);
        }
        let own = places.get(&tenant).map_or(0, |(count, _)| *count) + 1;
        let per_weight = |tenant: u64, count: u32| f64::from(count) / self.shares.weight(tenant);
        let own_part = per_weight(tenant, own);
        places
            .into_iter()
            .map(|(other, (count, latest))| (per_weight(other, count), count, latest))
            .filter(|(part, count, _)| *part > own_part && *count > 1)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, _, latest)| latest)
    }

    /// What others may add to a step of `tenant`, as a multiple of what its own part takes.
    fn others(&self, tenant: u64, total: f64) -> f64 {
        MARGIN * (total / self.shares.weight(tenant) - 1.0)
    }

    /// Weights of the tenants with something of this class, if there are several.
    fn total_weight(&self, class: Priority) -> Option<f64> {
        let of_class = self.sequences.values().filter(|s| s.priority == class && !s.paused);
        let mut tenants: Vec<u64> = of_class.map(|s| s.tenant).collect();
        tenants.sort_unstable();
        tenants.dedup();
        (tenants.len() > 1).then(|| tenants.iter().map(|&t| self.shares.weight(t)).sum())
    }

    fn decode_shape_of(&self, ids: &[SequenceId]) -> StepShape {
        ids.iter().fold(StepShape::default(), |shape, &id| self.with_decode(shape, id))
    }

    fn with_decode(&self, shape: StepShape, id: SequenceId) -> StepShape {
        self.sequences.get(&id).map_or(shape, |s| shape.with(s.num_computed, s.remaining(), false))
    }
}
