//! A deterministic model for tests of everything but arithmetic. Its "keys and values" are numbers that depend on the
//! whole prefix, and its logits are read from the pages: a wrong block table, a stale page, a page shared by mistake or
//! a skipped copy changes the answer.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mintage_model::{DecoderConfig, Family, RopeConfig, RopeLayout, RopeScaling, TokenId};

use crate::forward::{Batch, BatchSequence, Forward, ForwardError, LogitsBuffer};

pub(crate) const VOCAB: usize = 97;
/// A prompt that begins with this token makes NaN logits.
pub(crate) const NAN_TOKEN: TokenId = 96;
/// A prompt that begins with this token panics.
pub(crate) const PANIC_TOKEN: TokenId = 95;

pub(crate) struct FakeForward {
    config: DecoderConfig,
    page_tokens: usize,
    /// (pages, page_tokens); 0 is never written.
    slots: Vec<u64>,
    /// A virtual clock in µs, moved by what a step costs.
    pub(crate) clock: Arc<AtomicU64>,
    /// Tokens computed since the start.
    pub(crate) computed: Arc<AtomicU64>,
    /// How long a step really sleeps, ms.
    pub(crate) sleep_ms: u64,
    /// What a step, and each token in it, adds to the clock, µs.
    pub(crate) cost_us: (u64, u64),
    /// Models of different salt agree about some tokens only.
    pub(crate) salt: u64,
    /// Steps after which it fails: with an error, or panicking.
    pub(crate) fails_after: Option<(u64, bool)>,
}

fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (x ^ (x >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB) ^ (x >> 32)
}

impl FakeForward {
    pub(crate) fn new(pages: usize, page_tokens: usize) -> Self {
        let config = DecoderConfig {
            family: Family::Llama,
            vocab_size: VOCAB,
            hidden_size: 1,
            intermediate_size: 1,
            num_layers: 1,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 1,
            rms_norm_eps: 1e-5,
            rope: RopeConfig { theta: 1e4, layout: RopeLayout::Halves, scaling: RopeScaling::None },
            context_length: 1 << 20,
        };
        Self {
            config,
            page_tokens,
            slots: vec![0; pages * page_tokens],
            clock: Arc::default(),
            computed: Arc::default(),
            sleep_ms: 0,
            cost_us: (10_000, 2_000),
            salt: 1,
            fails_after: None,
        }
    }

    fn slot(&self, sequence: &BatchSequence<'_>, position: usize) -> usize {
        let page = sequence.block_table[position / self.page_tokens] as usize;
        page * self.page_tokens + position % self.page_tokens
    }

    fn compute(&mut self, sequence: &BatchSequence<'_>, mut rows: impl FnMut(usize, u64, TokenId)) {
        // The whole prefix is read, as attention does.
        let mut state = self.salt;
        for position in 0..sequence.first_position {
            let value = self.slots[self.slot(sequence, position)];
            assert_ne!(value, 0, "position {position} reads a slot that was never written");
            state = mix(state, value);
        }
        for (index, &token) in sequence.tokens.iter().enumerate() {
            let position = sequence.first_position + index;
            let value = mix(mix(state, u64::from(token)), position as u64) | 1;
            let slot = self.slot(sequence, position);
            self.slots[slot] = value;
            state = mix(state, value);
            rows(index, state, token);
        }
    }
}

impl Forward for FakeForward {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn pages(&self) -> usize {
        self.slots.len() / self.page_tokens
    }

    fn step(&mut self, batch: &Batch<'_>, logits: &mut LogitsBuffer) -> Result<(), ForwardError> {
        if let Some((left, panics)) = &mut self.fails_after {
            if *left == 0 {
                assert!(!*panics, "the model fails");
                let message = "the model fails".to_owned();
                return Err(ForwardError::Batch { sequence: 0, message });
            }
            *left -= 1;
        }
        let mut written = HashSet::new();
        for sequence in batch.sequences {
            for index in 0..sequence.tokens.len() {
                let slot = self.slot(sequence, sequence.first_position + index);
                assert!(written.insert(slot), "two sequences write the same slot");
            }
        }
        let mut row = 0;
        let out = logits.resize(batch.logits_rows(), VOCAB);
        for sequence in batch.sequences {
            for position in 0..sequence.first_position {
                let slot = self.slot(sequence, position);
                assert!(!written.contains(&slot), "a slot is read while another writes it");
            }
            let skip = sequence.tokens.len() - sequence.logits_rows();
            let prompt_starts = |token| sequence.first_position == 0 && sequence.tokens[0] == token;
            assert!(!prompt_starts(PANIC_TOKEN), "the panic token");
            let nan = prompt_starts(NAN_TOKEN);
            self.compute(sequence, |index, state, token| {
                if index >= skip {
                    for (id, x) in out[row * VOCAB..(row + 1) * VOCAB].iter_mut().enumerate() {
                        let bits = mix(state, id as u64) >> 40;
                        *x = if nan { f32::NAN } else { bits as f32 / (1 << 22) as f32 };
                    }
                    // Three times of four the next token follows from the last: answers repeat themselves, as real ones do.
                    if !nan && state & 0xF00 != 0 && state & 0x300 != 0 {
                        out[row * VOCAB + (token as usize * 3 + 1) % 90] += 12.0;
                    }
                    row += 1;
                }
            });
        }
        let tokens = batch.tokens() as u64;
        self.computed.fetch_add(tokens, Ordering::Relaxed);
        let (step_us, token_us) = self.cost_us;
        self.clock.fetch_add(step_us + token_us * tokens, Ordering::Relaxed);
        if self.sleep_ms > 0 {
            std::thread::sleep(std::time::Duration::from_millis(self.sleep_ms));
        }
        Ok(())
    }

    fn copy_page(&mut self, from: u32, to: u32, slots: usize) {
        let (from, to) = (from as usize * self.page_tokens, to as usize * self.page_tokens);
        self.slots.copy_within(from..from + slots, to);
    }
}
