//! A deterministic model for tests of everything but arithmetic. Its "keys and values" are numbers that depend on the
//! whole prefix, and its logits are read from the pages: a wrong block table, a stale page, a page shared by mistake or
//! a skipped copy changes the answer.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mintage_model::{
    DecoderConfig, Family, Grammar, GrammarFault, GrammarState, RopeConfig, RopeLayout,
    RopeScaling, TokenId, TokenMask,
};

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

/// A random grammar: what may follow is a function of the seed and of all that was said. A third of its tokens are
/// forced; after some tokens it may end with [`END_TOKEN`], or must.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FakeGrammar {
    pub(crate) seed: u64,
    /// After this many tokens nothing may follow, not even an end.
    pub(crate) dead_after: Option<u32>,
}

pub(crate) const END_TOKEN: TokenId = 94;

impl Grammar for FakeGrammar {
    fn start(&self) -> Result<Box<dyn GrammarState>, GrammarFault> {
        let mask = TokenMask::default();
        Ok(Box::new(FakeGrammarState {
            grammar: *self,
            said: mix(7, self.seed),
            count: 0,
            ended: false,
            mask,
        }))
    }
}

#[derive(Clone, Debug)]
struct FakeGrammarState {
    grammar: FakeGrammar,
    said: u64,
    count: u32,
    ended: bool,
    mask: TokenMask,
}

impl FakeGrammarState {
    fn allowed(&self) -> Vec<TokenId> {
        let rolled = mix(self.said, 1) >> 8;
        if self.grammar.dead_after.is_some_and(|after| self.count >= after) {
            return Vec::new();
        }
        if rolled.is_multiple_of(3) {
            let end = self.count > 12 && rolled.is_multiple_of(5);
            return vec![if end { END_TOKEN } else { (rolled % 90) as TokenId }];
        }
        let fits = |&token: &TokenId| {
            let end = token == END_TOKEN;
            mix(self.said, u64::from(token) + 2) & 0x300 == 0 && (!end || self.count > 8)
        };
        let mut allowed: Vec<TokenId> = (0..VOCAB as TokenId).filter(fits).collect();
        // Never one alone: that would be forced.
        allowed.extend([(rolled % 40) as TokenId, 40 + (rolled % 40) as TokenId]);
        allowed
    }
}

impl GrammarState for FakeGrammarState {
    fn forced(&mut self) -> Result<Option<TokenId>, GrammarFault> {
        let allowed = self.allowed();
        if allowed.is_empty() {
            return Err(GrammarFault::DeadEnd);
        }
        Ok(allowed.first().copied().filter(|_| allowed.len() == 1))
    }

    fn mask(&mut self) -> Result<&TokenMask, GrammarFault> {
        self.mask.set_to(&self.allowed());
        Ok(&self.mask)
    }

    fn valid_prefix(&mut self, tokens: &[TokenId]) -> usize {
        let mut ahead = self.clone();
        tokens.iter().take_while(|&&token| ahead.accept(token).is_ok()).count()
    }

    fn accept(&mut self, token: TokenId) -> Result<(), GrammarFault> {
        if self.ended || !self.allowed().contains(&token) {
            return Err(GrammarFault::NotAllowed(token));
        }
        self.said = mix(self.said, u64::from(token) + 1000);
        self.count += 1;
        self.ended = token == END_TOKEN;
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.ended
    }
}
