//! The paged store of keys and values, all layers of one model.
//!
//! Knows no sequences and no reference counts: whoever owns the block tables decides which page belongs to whom. Layout,
//! per layer, page and KV head: K dim-major (`head_dim` × [`PAGE_TOKENS`]), so that scores come out in lanes over tokens,
//! then V token-major ([`PAGE_TOKENS`] × `head_dim`), so that sums come out in lanes over dimensions. Where the instruction
//! set multiplies words (AVX-512 with VNNI), words are kept instead of binary16: a step a token comes first, for keys and
//! for values (2 × [`PAGE_TOKENS`] f32), then the keys' words, pairs of dimensions side by side (`head_dim` / 2 ×
//! [`PAGE_TOKENS`] × 2), then the values', pairs of tokens side by side ([`PAGE_TOKENS`] / 2 × `head_dim` × 2). Memory is
//! taken from the system zeroed and untouched, so a page costs nothing until it is written.

use crate::aligned::Aligned;
use crate::half::{f16_to_f32, narrow};
use crate::isa::Isa;

/// Tokens in a page.
pub const PAGE_TOKENS: usize = 32;

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvFormat {
    /// As computed.
    F32,
    /// Rounded to 16 bits: half the memory and half the traffic. Binary16, saturating at ±65504; where the instruction set
    /// multiplies words, to as many bits as sums of their products allow (13 and a sign for heads of 64).
    #[default]
    F16,
}

impl KvFormat {
    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// Elements of 16 bits that the steps of a page take: those of the keys, then those of the values.
pub(super) const STEPS_LEN: usize = 4 * PAGE_TOKENS;
/// The largest word of values, and of the probabilities that weigh them: a page's sum of products fits in 31 bits.
pub(super) const VALUE_MOST: i16 = 8191;
const _: () = assert!((VALUE_MOST as i64).pow(2) * PAGE_TOKENS as i64 <= i32::MAX as i64);

enum Layers {
    F32(Vec<Aligned<f32>>),
    F16(Vec<Aligned<u16>>),
}

/// One page and KV head of one layer, in one of the formats.
#[derive(Clone, Copy)]
pub(crate) enum Block<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
    /// As `F16`, in steps and words.
    Words(&'a [u16]),
}

#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only SIMD versions fetch ahead")
)]
impl Block<'_> {
    /// Dimension `d` of the key in slot `slot`.
    pub(crate) fn key(&self, slot: usize, d: usize) -> f32 {
        match self {
            Self::F32(block) => block[d * PAGE_TOKENS + slot],
            Self::F16(block) => f16_to_f32(block[d * PAGE_TOKENS + slot]),
            Self::Words(block) => {
                let word = block[STEPS_LEN + 2 * (d / 2 * PAGE_TOKENS + slot) + d % 2] as i16;
                f32::from(word) * step(block, slot)
            }
        }
    }

    /// Dimension `d` of the value in slot `slot`, for heads of `dim` dimensions.
    pub(crate) fn value(&self, slot: usize, d: usize, dim: usize) -> f32 {
        let at = (PAGE_TOKENS + slot) * dim + d;
        match self {
            Self::F32(block) => block[at],
            Self::F16(block) => f16_to_f32(block[at]),
            Self::Words(block) => {
                let words = &block[STEPS_LEN + PAGE_TOKENS * dim..];
                let word = words[2 * (slot / 2 * dim + d) + slot % 2] as i16;
                f32::from(word) * step(block, PAGE_TOKENS + slot)
            }
        }
    }

    /// The block's first byte.
    pub(crate) fn start(&self) -> *const u8 {
        match self {
            Self::F32(block) => block.as_ptr().cast(),
            Self::F16(block) | Self::Words(block) => block.as_ptr().cast(),
        }
    }

    /// The first byte of the values, for heads of `dim` dimensions.
    pub(crate) fn values(&self, dim: usize) -> *const u8 {
        match self {
            Self::F32(block) => block.as_ptr().wrapping_add(dim * PAGE_TOKENS).cast(),
            Self::F16(block) => block.as_ptr().wrapping_add(dim * PAGE_TOKENS).cast(),
            Self::Words(block) => block.as_ptr().wrapping_add(STEPS_LEN + dim * PAGE_TOKENS).cast(),
        }
    }
}

/// The `index`-th step of a block.
fn step(block: &[u16], index: usize) -> f32 {
    f32::from_bits(u32::from(block[2 * index]) | u32::from(block[2 * index + 1]) << 16)
}

/// Keys and values of all layers, in pages of [`PAGE_TOKENS`] tokens.
pub struct KvCache {
    layers: Layers,
    pages: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Elements of the steps before each block's keys; none where these are no words.
    steps: usize,
    /// Room for one head's row.
    row: Vec<u16>,
    isa: Isa,
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvCache")
            .field("format", &self.format())
            .field("pages", &self.pages)
            .field("kv_heads", &self.kv_heads)
            .field("head_dim", &self.head_dim)
            .finish_non_exhaustive()
    }
}

impl KvCache {
    /// Room for `pages` pages in each of `layers` layers.
    ///
    /// # Panics
    /// If the size in bytes overflows, or the system has no such address space: the caller bounds `pages` by its budget
    /// with [`KvCache::bytes_per_page`].
    #[must_use]
    pub fn new(
        format: KvFormat,
        pages: usize,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Self {
        Self::with_isa(Isa::best(), format, pages, layers, kv_heads, head_dim)
    }

    /// [`KvCache::new`] for attention with the instructions of `isa`, which the processor must have.
    pub(crate) fn with_isa(
        isa: Isa,
        format: KvFormat,
        pages: usize,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Self {
        let steps = steps_len(isa, format, head_dim);
        let len = pages.saturating_mul(kv_heads.saturating_mul(block_len(steps, head_dim)));
        let layers = match format {
            KvFormat::F32 => Layers::F32((0..layers).map(|_| Aligned::new(len)).collect()),
            KvFormat::F16 => Layers::F16((0..layers).map(|_| Aligned::new(len)).collect()),
        };
        Self { layers, pages, kv_heads, head_dim, steps, row: vec![0; head_dim], isa }
    }

    /// Bytes that one page takes over all layers, to size a cache before making it.
    #[must_use]
    pub fn bytes_per_page(
        format: KvFormat,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> usize {
        layers
            .saturating_mul(kv_heads)
            .saturating_mul(block_len(steps_len(Isa::best(), format, head_dim), head_dim))
            .saturating_mul(format.bytes())
    }

    /// Bytes that one page takes over all layers.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.layers() * self.kv_heads * self.block_len() * self.format().bytes()
    }

    /// How keys and values are stored.
    #[must_use]
    pub fn format(&self) -> KvFormat {
        match self.layers {
            Layers::F32(_) => KvFormat::F32,
            Layers::F16(_) => KvFormat::F16,
        }
    }

    /// Layers of the model.
    #[must_use]
    pub fn layers(&self) -> usize {
        match &self.layers {
            Layers::F32(layers) => layers.len(),
            Layers::F16(layers) => layers.len(),
        }
    }

    /// Pages in each layer.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Heads of keys and values.
    #[must_use]
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Dimensions of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Stores one token's keys and values, each (`kv_heads` × `head_dim`), in slot `slot` of a page.
    ///
    /// # Panics
    /// If `layer`, `page` or `slot` lies outside the cache, or `k` or `v` is too short.
    pub fn write(&mut self, layer: usize, page: u32, slot: usize, k: &[f32], v: &[f32]) {
        assert!(slot < PAGE_TOKENS, "slot {slot} of a page of {PAGE_TOKENS}");
        let (heads, dim, steps) = (self.kv_heads, self.head_dim, self.steps);
        let (start, len) = (self.block_start(page, 0), self.block_len());
        match &mut self.layers {
            Layers::F32(layers) => {
                let page = layers[layer].get_mut(start, heads * len);
                for (head, block) in page.chunks_exact_mut(len).enumerate() {
                    let range = head * dim..(head + 1) * dim;
                    scatter(&k[range.clone()], slot, block);
                    block[v_row(slot, dim)].copy_from_slice(&v[range]);
                }
            }
            Layers::F16(layers) => {
                let page = layers[layer].get_mut(start, heads * len);
                for (head, block) in page.chunks_exact_mut(len).enumerate() {
                    let range = head * dim..(head + 1) * dim;
                    let (k, v, row) = (&k[range.clone()], &v[range], &mut self.row);
                    let (step_places, block) = block.split_at_mut(steps);
                    let (keys, values) = block.split_at_mut(PAGE_TOKENS * dim);
                    let step_places = step_places.as_chunks_mut::<2>().0;
                    if step_places.is_empty() {
                        narrow(self.isa, k, row);
                        scatter(row, slot, keys);
                        narrow(self.isa, v, &mut values[slot * dim..][..dim]);
                        continue;
                    }
                    step_places[slot] = halves(words(self.isa, k, word_limits(dim).1, row));
                    scatter_pairs(row, slot, keys);
                    step_places[PAGE_TOKENS + slot] = halves(words(self.isa, v, VALUE_MOST, row));
                    let values = &mut values[slot / 2 * 2 * dim..][..2 * dim];
                    for (pair, &word) in values.as_chunks_mut::<2>().0.iter_mut().zip(&*row) {
                        pair[slot % 2] = word;
                    }
                }
            }
        }
    }

    /// Copies the first `slots` tokens of page `from` to page `to`, in all layers.
    ///
    /// # Panics
    /// If a page lies outside the cache.
    pub fn copy_page(&mut self, from: u32, to: u32, slots: usize) {
        let len = self.kv_heads * self.block_len();
        let (from, to) = (self.block_start(from, 0), self.block_start(to, 0));
        let (slots, dim, steps) = (slots.min(PAGE_TOKENS), self.head_dim, self.steps);
        if from == to {
            return;
        }
        match &mut self.layers {
            Layers::F32(layers) => {
                layers.iter_mut().for_each(|l| copy_blocks(l, from, to, len, slots, (steps, dim)))
            }
            Layers::F16(layers) => {
                layers.iter_mut().for_each(|l| copy_blocks(l, from, to, len, slots, (steps, dim)))
            }
        }
    }

    /// One token's keys and values as stored, each (`kv_heads` × `head_dim`); for tests and for moving a page elsewhere.
    ///
    /// # Panics
    /// If `layer`, `page` or `slot` lies outside the cache.
    #[must_use]
    pub fn read(&self, layer: usize, page: u32, slot: usize) -> (Vec<f32>, Vec<f32>) {
        let dim = self.head_dim;
        let (mut k, mut v) = (Vec::new(), Vec::new());
        for head in 0..self.kv_heads {
            let block = self.block(layer, page, head);
            k.extend((0..dim).map(|d| block.key(slot, d)));
            v.extend((0..dim).map(|d| block.value(slot, d, dim)));
        }
        (k, v)
    }

    /// Keys and values of one page and KV head.
    pub(crate) fn block(&self, layer: usize, page: u32, kv_head: usize) -> Block<'_> {
        let (start, len) = (self.block_start(page, kv_head), self.block_len());
        match &self.layers {
            Layers::F32(layers) => Block::F32(layers[layer].get(start, len)),
            Layers::F16(layers) if self.steps > 0 => Block::Words(layers[layer].get(start, len)),
            Layers::F16(layers) => Block::F16(layers[layer].get(start, len)),
        }
    }

    fn block_start(&self, page: u32, kv_head: usize) -> usize {
        let page = page as usize;
        assert!(page < self.pages && kv_head <= self.kv_heads, "page {page} of {}", self.pages);
        (page * self.kv_heads + kv_head) * self.block_len()
    }

    fn block_len(&self) -> usize {
        block_len(self.steps, self.head_dim)
    }

    pub(super) fn isa(&self) -> Isa {
        self.isa
    }
}

/// Elements of the steps of one page and head: none where no words are kept.
fn steps_len(isa: Isa, format: KvFormat, head_dim: usize) -> usize {
    match (isa, format) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, KvFormat::F16) if super::avx512::takes(head_dim) => STEPS_LEN,
        _ => 0,
    }
}

/// Elements of K and V of one page and head, with the steps.
fn block_len(steps: usize, head_dim: usize) -> usize {
    head_dim.saturating_mul(2 * PAGE_TOKENS).saturating_add(steps)
}

fn halves(step: f32) -> [u16; 2] {
    [step.to_bits() as u16, (step.to_bits() >> 16) as u16]
}

/// Rounds a head's row to words of at most `most` and returns their step.
fn words(isa: Isa, row: &[f32], most: i16, to: &mut [u16]) -> f32 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level exists only where its features do.
        Isa::Avx512 => unsafe { super::avx512::row_words(row, most, to) },
        // No other level keeps words.
        _ => 0.0,
    }
}

/// The largest words of queries and of keys for heads of `dim` dimensions: a sum of `dim` products fits in 31 bits.
pub(super) fn word_limits(dim: usize) -> (i16, i16) {
    let bits = 31 - dim.next_power_of_two().ilog2().min(29);
    let q = (bits / 2).min(15);
    let k = (bits - q).min(15);
    (((1_u32 << q) - 1) as i16, ((1_u32 << k) - 1) as i16)
}

fn scatter_pairs(key: &[u16], slot: usize, keys: &mut [u16]) {
    for (columns, pair) in keys.chunks_exact_mut(2 * PAGE_TOKENS).zip(key.chunks_exact(2)) {
        columns[2 * slot..][..2].copy_from_slice(pair);
    }
}

/// Where in a block the values of a slot lie.
fn v_row(slot: usize, dim: usize) -> std::ops::Range<usize> {
    (PAGE_TOKENS + slot) * dim..(PAGE_TOKENS + slot + 1) * dim
}

fn scatter<T: Copy>(key: &[T], slot: usize, keys: &mut [T]) {
    for (column, &value) in keys.chunks_exact_mut(PAGE_TOKENS).zip(key) {
        column[slot] = value;
    }
}

fn copy_blocks<T: Copy>(
    layer: &mut Aligned<T>,
    from: usize,
    to: usize,
    len: usize,
    slots: usize,
    (steps, dim): (usize, usize),
) {
    let low = from.min(to);
    let span = layer.get_mut(low, from.abs_diff(to) + len);
    let (head, tail) = span.split_at_mut(from.abs_diff(to));
    let (source, target) =
        if from < to { (&head[..len], tail) } else { (&*tail, &mut head[..len]) };
    for (source, target) in source
        .chunks_exact(block_len(steps, dim))
        .zip(target.chunks_exact_mut(block_len(steps, dim)))
    {
        // Steps and words are two elements wide.
        let width = if steps > 0 { 2 } else { 1 };
        let ((source_steps, source), (target_steps, target)) =
            (source.split_at(steps), target.split_at_mut(steps));
        for (from, to) in source_steps
            .chunks_exact(2 * PAGE_TOKENS)
            .zip(target_steps.chunks_exact_mut(2 * PAGE_TOKENS))
        {
            to[..2 * slots].copy_from_slice(&from[..2 * slots]);
        }
        let (k, v) = source.split_at(PAGE_TOKENS * dim);
        let (k_to, v_to) = target.split_at_mut(PAGE_TOKENS * dim);
        let columns = width * PAGE_TOKENS;
        for (k, k_to) in k.chunks_exact(columns).zip(k_to.chunks_exact_mut(columns)) {
            k_to[..width * slots].copy_from_slice(&k[..width * slots]);
        }
        // Tokens side by side: who shares a row with the last one may come along, nobody sees it.
        let copied = slots.next_multiple_of(width) * dim;
        v_to[..copied].copy_from_slice(&v[..copied]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(seed: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| ((seed * 31 + i * 7) % 64) as f32 * 0.25 - 8.0).collect()
    }

    fn check(isa: Isa, format: KvFormat, kv_heads: usize, head_dim: usize) {
        let mut cache = KvCache::with_isa(isa, format, 5, 2, kv_heads, head_dim);
        let len = kv_heads * head_dim;
        for layer in 0..2 {
            for slot in 0..PAGE_TOKENS {
                let seed = layer * 100 + slot;
                cache.write(layer, 3, slot, &token(seed, len), &token(seed + 50, len));
            }
        }
        cache.copy_page(3, 1, 7);
        cache.copy_page(1, 4, 5);
        for (page, slots) in [(3, PAGE_TOKENS), (1, 7), (4, 5)] {
            for slot in 0..slots {
                let (k, v) = cache.read(1, page, slot);
                // Words are not exact: half a step of the largest one, which is 8.
                let error = if cache.steps > 0 { 8.0 / 8190.0 } else { 0.0 };
                for (got, seed) in [(k, 100 + slot), (v, 150 + slot)] {
                    for (got, want) in got.iter().zip(token(seed, len)) {
                        assert!((got - want).abs() <= error, "{page}: {got} for {want}");
                    }
                }
            }
            if slots < PAGE_TOKENS {
                assert_eq!(cache.read(1, page, slots).0, vec![0.0; len]);
            }
        }
        let elements = 2 * PAGE_TOKENS * head_dim + cache.steps;
        assert_eq!(cache.page_bytes(), 2 * kv_heads * elements * format.bytes());
    }

    #[test]
    fn write_read_copy() {
        for format in [KvFormat::F32, KvFormat::F16] {
            for (kv_heads, head_dim) in [(1, 8), (2, 64), (3, 40)] {
                for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                    check(isa, format, kv_heads, head_dim);
                }
            }
        }
    }

    #[test]
    fn f16_keys_saturate() {
        let mut cache = KvCache::new(KvFormat::F16, 1, 1, 1, 8);
        cache.write(0, 0, 0, &[1e30; 8], &[-1e30; 8]);
        assert_eq!(cache.read(0, 0, 0), (vec![65504.0; 8], vec![-65504.0; 8]));
    }
}
