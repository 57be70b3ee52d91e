//! One decoder described by data: Qwen2, Qwen3 and Llama differ only in which optional weights are there and in how
//! their rope is laid out. It computes steps; which tokens make a step is decided elsewhere.
//!
//! Invariant: each row of each buffer depends only on its own token's sequence, so that a batch equals its parts.

use mintage_kernels::{
    Activations, AttentionSequence, GatedScratch, KvCache, KvFormat, PAGE_TOKENS, Pool, STRIP_ROWS,
    add_assign, add_bias, attention, matmul, matmul_each, matmul_first, matmul_gated, rms_norm,
    rope_halves, rope_pairs,
};
use mintage_model::{DecoderConfig, DecoderWeights, ModelFile, RopeLayout, RopeScaling};

use super::load::{LoadProgress, PackedLayer, PackedWeights, WeightStorage};
use super::rope::RopeFrequencies;
use super::{Batch, BatchSequence, Forward, ForwardError, LogitsBuffer};

/// Most tokens of one step: bounds the buffers (about 60 KB a token for a model of 0.5B parameters).
pub const MAX_STEP_TOKENS: usize = 8192;

/// Most threads a decoder takes.
const MAX_THREADS: usize = 1024;

/// How a decoder is set up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecoderOptions {
    /// Threads that compute, the caller's among them; at least 1.
    pub threads: usize,
    /// Element type of the KV cache.
    pub kv_format: KvFormat,
    /// Size of the KV cache.
    pub kv_size: KvSize,
    /// How weights are kept.
    pub weights: WeightStorage,
}

/// Size of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSize {
    /// This many pages of [`PAGE_TOKENS`] tokens.
    Pages(usize),
    /// As many pages as fit into this many bytes, at least one.
    Bytes(usize),
}

/// A loaded model with its KV cache and its threads.
pub struct Decoder {
    config: DecoderConfig,
    pages: usize,
    pool: Pool,
    weights: PackedWeights,
    rope: RopeFrequencies,
    cache: KvCache,
    buffers: Buffers,
    /// Tokens of the vocabulary, its first, that get logits.
    logit_tokens: usize,
}

/// Scratch of one step; grows to the largest step and is reused.
#[derive(Default)]
struct Buffers {
    activations: Activations,
    /// (rows, hidden): the residual stream
    x: Vec<f32>,
    /// (rows, hidden): what a norm or a projection gives
    hidden: Vec<f32>,
    /// (rows, heads × head_dim)
    q: Vec<f32>,
    /// (rows, kv_heads × head_dim)
    k: Vec<f32>,
    /// (rows, kv_heads × head_dim)
    v: Vec<f32>,
    /// (rows, heads × head_dim): heads before their norm, then attention's result
    heads: Vec<f32>,
    /// (rows, intermediate): the gated half of the feed-forward layer
    gated: Activations,
    scratch: GatedScratch,
    /// (rows, head_dim / 2)
    cos: Vec<f32>,
    /// (rows, head_dim / 2)
    sin: Vec<f32>,
}

impl Buffers {
    fn grow(&mut self, config: &DecoderConfig, rows: usize) {
        let q_size = config.num_heads * config.head_dim;
        let kv_size = config.num_kv_heads * config.head_dim;
        let wanted = [
            (&mut self.x, config.hidden_size),
            (&mut self.hidden, config.hidden_size),
            (&mut self.q, q_size),
            (&mut self.k, kv_size),
            (&mut self.v, kv_size),
            (&mut self.heads, q_size),
            (&mut self.cos, config.head_dim / 2),
            (&mut self.sin, config.head_dim / 2),
        ];
        for (buffer, width) in wanted {
            if buffer.len() < rows * width {
                buffer.resize(rows * width, 0.0);
            }
        }
    }
}

impl Decoder {
    /// Checks the description, packs the weights with all threads and allocates the KV cache. The views are not needed
    /// afterwards.
    ///
    /// # Errors
    /// [`ForwardError::Model`] where the tensors do not fit the description, [`ForwardError::Option`] where an option
    /// is out of range.
    pub fn new(
        config: DecoderConfig,
        weights: &DecoderWeights<'_>,
        options: &DecoderOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, ForwardError> {
        check_config(&config)?;
        if !(1..=MAX_THREADS).contains(&options.threads) {
            let message = format!("1 to {MAX_THREADS} allowed, {} given", options.threads);
            return Err(ForwardError::Option { option: "threads", message });
        }
        let pages = resolve_pages(&config, options)?;
        let pool = Pool::new(options.threads);
        let weights = PackedWeights::load(&config, weights, options.weights, &pool, progress)?;
        let cache = KvCache::new(
            options.kv_format,
            pages,
            config.num_layers,
            config.num_kv_heads,
            config.head_dim,
        );
        let rope = RopeFrequencies::new(&config.rope, config.head_dim);
        let (logit_tokens, buffers) = (config.vocab_size, Buffers::default());
        Ok(Self { config, pages, pool, weights, rope, cache, buffers, logit_tokens })
    }

    /// Loads an opened file, then lets the system take back the memory its mapping used.
    ///
    /// # Errors
    /// As [`Decoder::new`], and [`ForwardError::File`].
    pub fn load(
        file: &ModelFile,
        options: &DecoderOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, ForwardError> {
        let weights = file.weights()?;
        let decoder = Self::new(file.config().clone(), &weights, options, progress)?;
        file.release();
        Ok(decoder)
    }

    /// Bytes of the packed matrices.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Bytes of them that each step reads.
    #[must_use]
    pub fn step_weight_bytes(&self) -> usize {
        self.weights.step_bytes()
    }

    /// Bytes of the KV cache.
    #[must_use]
    pub fn kv_bytes(&self) -> usize {
        self.cache.page_bytes() * self.pages
    }

    /// Threads that compute.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Refuses what would index outside of a buffer or a page.
    fn check(&self, batch: &Batch<'_>) -> Result<(), ForwardError> {
        let mut total = 0usize;
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let fail = |message| Err(ForwardError::Batch { sequence: index, message });
            if sequence.tokens.is_empty() {
                return fail("no tokens".to_owned());
            }
            total = total.saturating_add(sequence.tokens.len());
            if total > MAX_STEP_TOKENS {
                return fail(format!("a step takes {MAX_STEP_TOKENS} tokens, {total} given"));
            }
            let end = sequence.first_position.saturating_add(sequence.tokens.len());
            let covered = sequence.block_table.len().saturating_mul(PAGE_TOKENS);
            if covered < end {
                return fail(format!("pages for {covered} positions given, {end} needed"));
            }
            let vocab_size = self.config.vocab_size;
            if let Some(token) = sequence.tokens.iter().find(|t| **t as usize >= vocab_size) {
                return fail(format!("token {token} is not below the vocabulary's {vocab_size}"));
            }
            if let Some(page) = sequence.block_table.iter().find(|p| **p as usize >= self.pages) {
                return fail(format!("page {page} is not below the cache's {}", self.pages));
            }
        }
        Ok(())
    }

    /// Writes the residual stream's start and the rotations of every row.
    fn embed(&mut self, batch: &Batch<'_>) {
        let Self { config, weights, rope, buffers: b, .. } = self;
        let (hidden, half) = (config.hidden_size, config.head_dim / 2);
        let tokens = batch.sequences.iter().flat_map(|sequence| {
            sequence
                .tokens
                .iter()
                .enumerate()
                .map(|(i, token)| (*token, sequence.first_position + i))
        });
        for (row, (token, position)) in tokens.enumerate() {
            weights
                .embedding
                .dequantize_row(token as usize, &mut b.x[row * hidden..(row + 1) * hidden]);
            let span = row * half..(row + 1) * half;
            rope.write(position, &mut b.cos[span.clone()], &mut b.sin[span]);
        }
    }

    /// Norm, Q, K, V, rotation; K and V go to the cache, Q stays in `buffers.q`.
    fn project_qkv(&mut self, layer_index: usize, batch: &Batch<'_>, rows: usize) {
        let Self { config, pool, weights, cache, buffers: b, .. } = self;
        let layer = &weights.layers[layer_index];
        let eps = config.rms_norm_eps;
        let (hidden, head_dim) = (config.hidden_size, config.head_dim);
        let q_size = config.num_heads * head_dim;
        let kv_size = config.num_kv_heads * head_dim;

        let normed = &mut b.hidden[..rows * hidden];
        rms_norm(pool, &b.x[..rows * hidden], &layer.attention_norm, eps, normed);
        b.activations.prepare(pool, normed, rows, hidden, &layer.qkv_kinds);
        let q = &mut b.q[..rows * q_size];
        let k = &mut b.k[..rows * kv_size];
        let v = &mut b.v[..rows * kv_size];
        matmul_each(
            pool,
            &b.activations,
            [(&layer.q.matrix, &mut *q), (&layer.k.matrix, &mut *k), (&layer.v.matrix, &mut *v)],
        );
        for (x, linear) in [(&mut *q, &layer.q), (&mut *k, &layer.k), (&mut *v, &layer.v)] {
            if let Some(bias) = &linear.bias {
                add_bias(x, bias);
            }
        }
        if let Some(weight) = &layer.q_norm {
            let scratch = &mut b.heads[..q.len()];
            scratch.copy_from_slice(q);
            rms_norm(pool, scratch, weight, eps, q);
        }
        if let Some(weight) = &layer.k_norm {
            let scratch = &mut b.heads[..k.len()];
            scratch.copy_from_slice(k);
            rms_norm(pool, scratch, weight, eps, k);
        }
        let rotate = match config.rope.layout {
            RopeLayout::Halves => rope_halves,
            RopeLayout::Pairs => rope_pairs,
        };
        let angles = b.cos.chunks_exact(head_dim / 2).zip(b.sin.chunks_exact(head_dim / 2));
        let heads = q.chunks_exact_mut(q_size).zip(k.chunks_exact_mut(kv_size));
        for ((q, k), (cos, sin)) in heads.zip(angles) {
            rotate(q, head_dim, cos, sin);
            rotate(k, head_dim, cos, sin);
        }
        let mut keys_values = k.chunks_exact(kv_size).zip(v.chunks_exact(kv_size));
        for sequence in batch.sequences {
            let end = sequence.first_position + sequence.tokens.len();
            for (position, (k, v)) in (sequence.first_position..end).zip(&mut keys_values) {
                let page = sequence.block_table[position / PAGE_TOKENS];
                cache.write(layer_index, page, position % PAGE_TOKENS, k, v);
            }
        }
    }

    /// Attention over the cache, output projection, residual.
    fn attend(&mut self, layer_index: usize, sequences: &[AttentionSequence<'_>], rows: usize) {
        let Self { config, pool, weights, cache, buffers: b, .. } = self;
        let layer = &weights.layers[layer_index];
        let (hidden, q_size) = (config.hidden_size, config.num_heads * config.head_dim);
        let scale = 1.0 / (config.head_dim as f32).sqrt();
        let q = &b.q[..rows * q_size];
        let mixed = &mut b.heads[..rows * q_size];
        attention(pool, cache, layer_index, config.num_heads, q, sequences, scale, mixed);
        let kinds = [layer.attention_output.activation_kind()];
        b.activations.prepare(pool, mixed, rows, q_size, &kinds);
        let projected = &mut b.hidden[..rows * hidden];
        matmul(pool, &layer.attention_output, &b.activations, projected);
        add_assign(pool, &mut b.x[..rows * hidden], projected);
    }

    /// Norm, gated feed-forward, residual.
    fn feed_forward(&mut self, layer_index: usize, rows: usize) {
        let Self { config, pool, weights, buffers: b, .. } = self;
        let layer: &PackedLayer = &weights.layers[layer_index];
        let hidden = config.hidden_size;
        let x = &mut b.x[..rows * hidden];
        let normed = &mut b.hidden[..rows * hidden];
        rms_norm(pool, x, &layer.ffn_norm, config.rms_norm_eps, normed);
        b.activations.prepare(pool, normed, rows, hidden, &layer.gate_up_kinds);
        let (matrices, kind) = ([&layer.gate, &layer.up], layer.down.activation_kind());
        matmul_gated(pool, &b.activations, matrices, kind, &mut b.scratch, &mut b.gated);
        let projected = &mut b.hidden[..rows * hidden];
        matmul(pool, &layer.down, &b.gated, projected);
        add_assign(pool, x, projected);
    }

    /// Moves the rows that want logits to the front of `x` and `q`. After the last layer's keys and values are
    /// written, nobody needs the others.
    fn keep_logits_rows(&mut self, batch: &Batch<'_>) {
        let (hidden, q_size) =
            (self.config.hidden_size, self.config.num_heads * self.config.head_dim);
        let (mut from, mut to) = (0, 0);
        for sequence in batch.sequences {
            let kept = sequence.logits_rows();
            let end = from + sequence.tokens.len();
            let start = end - kept;
            self.buffers.x.copy_within(start * hidden..end * hidden, to * hidden);
            self.buffers.q.copy_within(start * q_size..end * q_size, to * q_size);
            (from, to) = (end, to + kept);
        }
    }

    /// As [`Forward::step`], with the hidden states behind the final norm in place of logits: (rows, hidden), row-major.
    ///
    /// # Errors
    /// As [`Forward::step`].
    pub fn hidden_step(
        &mut self,
        batch: &Batch<'_>,
        hidden: &mut Vec<f32>,
    ) -> Result<(), ForwardError> {
        self.check(batch)?;
        self.layers(batch);
        let Self { config, pool, weights, buffers: b, .. } = self;
        let len = batch.logits_rows() * config.hidden_size;
        hidden.resize(len, 0.0);
        rms_norm(pool, &b.x[..len], &weights.output_norm, config.rms_norm_eps, hidden);
        Ok(())
    }

    /// Row `token` of the output matrix, in f32. `token` is below the vocabulary's size.
    #[must_use]
    pub fn output_row(&self, token: usize) -> Vec<f32> {
        let mut row = vec![0.0; self.config.hidden_size];
        self.weights.output_matrix().dequantize_row(token, &mut row);
        row
    }

    /// All layers over a checked batch; the rows that are asked for end up at the front of `buffers.x`.
    fn layers(&mut self, batch: &Batch<'_>) {
        let (rows, kept_rows) = (batch.tokens(), batch.logits_rows());
        if rows == 0 {
            return;
        }
        self.buffers.grow(&self.config, rows);
        self.embed(batch);
        let sequences = attention_sequences(batch, |sequence| sequence.tokens.len());
        let last = self.config.num_layers - 1;
        for layer in 0..last {
            self.project_qkv(layer, batch, rows);
            self.attend(layer, &sequences, rows);
            self.feed_forward(layer, rows);
        }
        self.project_qkv(last, batch, rows);
        if kept_rows == 0 {
            return;
        }
        self.keep_logits_rows(batch);
        let sequences = attention_sequences(batch, BatchSequence::logits_rows);
        self.attend(last, &sequences, kept_rows);
        self.feed_forward(last, kept_rows);
    }

    /// Final norm and the output matrix over the first `rows` rows of `x`.
    fn write_logits(&mut self, rows: usize, logits: &mut LogitsBuffer) {
        let Self { config, pool, weights, buffers: b, .. } = self;
        let hidden = config.hidden_size;
        let normed = &mut b.hidden[..rows * hidden];
        let x = &b.x[..rows * hidden];
        rms_norm(pool, x, &weights.output_norm, config.rms_norm_eps, normed);
        let output = weights.output_matrix();
        b.activations.prepare(pool, normed, rows, hidden, &[output.activation_kind()]);
        let logits = logits.resize(rows, self.logit_tokens);
        matmul_first(pool, output, self.logit_tokens, &b.activations, logits);
    }
}

impl Forward for Decoder {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn pages(&self) -> usize {
        self.pages
    }

    fn step(&mut self, batch: &Batch<'_>, logits: &mut LogitsBuffer) -> Result<(), ForwardError> {
        self.check(batch)?;
        let rows = batch.logits_rows();
        logits.resize(rows, self.logit_tokens);
        self.layers(batch);
        if rows > 0 {
            self.write_logits(rows, logits);
        }
        Ok(())
    }

    fn limit_logits(&mut self, tokens: usize) {
        self.logit_tokens = tokens.next_multiple_of(STRIP_ROWS).min(self.config.vocab_size);
    }

    fn copy_page(&mut self, from: u32, to: u32, slots: usize) {
        self.cache.copy_page(from, to, slots);
    }
}

/// The last `rows_of` rows of each sequence, standing one after the other.
fn attention_sequences<'a>(
    batch: &Batch<'a>,
    rows_of: impl Fn(&BatchSequence<'a>) -> usize,
) -> Vec<AttentionSequence<'a>> {
    let mut start = 0;
    let mut sequences = Vec::with_capacity(batch.sequences.len());
    for sequence in batch.sequences {
        let rows = rows_of(sequence);
        if rows > 0 {
            sequences.push(AttentionSequence {
                block_table: sequence.block_table,
                first_position: sequence.first_position + sequence.tokens.len() - rows,
                rows: start..start + rows,
            });
        }
        start += rows;
    }
    sequences
}

/// What every later index computation relies on.
fn check_config(config: &DecoderConfig) -> Result<(), ForwardError> {
    let fail = |message: String| Err(ForwardError::Model { tensor: "config".into(), message });
    let sizes = [
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_layers", config.num_layers),
        ("num_heads", config.num_heads),
        ("num_kv_heads", config.num_kv_heads),
        ("head_dim", config.head_dim),
    ];
    for (name, size) in sizes {
        if size == 0 || size > u32::MAX as usize {
            return fail(format!("`{name}` is {size}"));
        }
    }
    if !config.num_heads.is_multiple_of(config.num_kv_heads) {
        let (heads, kv_heads) = (config.num_heads, config.num_kv_heads);
        return fail(format!("{kv_heads} KV heads do not divide {heads} heads"));
    }
    if !config.head_dim.is_multiple_of(2) {
        return fail(format!("rope needs an even `head_dim`, {} given", config.head_dim));
    }
    if let RopeScaling::Factors(factors) = &config.rope.scaling
        && factors.len() != config.head_dim / 2
    {
        let expected = config.head_dim / 2;
        return fail(format!("{expected} rope factors expected, {} found", factors.len()));
    }
    Ok(())
}

/// Pages of the cache, bounded so that block tables can name them and their bytes can be counted.
fn resolve_pages(config: &DecoderConfig, options: &DecoderOptions) -> Result<usize, ForwardError> {
    let page_bytes = KvCache::bytes_per_page(
        options.kv_format,
        config.num_layers,
        config.num_kv_heads,
        config.head_dim,
    );
    let page_bytes = (page_bytes < usize::MAX).then_some(page_bytes);
    let pages = match (options.kv_size, page_bytes) {
        (KvSize::Pages(pages), Some(page_bytes)) if pages.checked_mul(page_bytes).is_some() => {
            pages
        }
        (KvSize::Bytes(bytes), Some(page_bytes)) => bytes / page_bytes,
        _ => usize::MAX,
    };
    if pages == 0 || pages > u32::MAX as usize {
        let message = format!("{:?} is no KV cache that this model can use", options.kv_size);
        return Err(ForwardError::Option { option: "kv_size", message });
    }
    Ok(pages)
}
