//! The paged store of keys and values, all layers of one model.
//!
//! Knows no sequences and no reference counts: whoever owns the block tables decides which page belongs to whom. Layout,
//! per layer, page and KV head: K dim-major (`head_dim` × [`PAGE_TOKENS`]), so that scores come out in lanes over tokens,
//! then V token-major ([`PAGE_TOKENS`] × `head_dim`), so that sums come out in lanes over dimensions. Memory is taken from
//! the system zeroed and untouched, so a page costs nothing until it is written.

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
    /// Rounded to binary16, saturating at ±65504: half the memory and half the traffic.
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

enum Layers {
    F32(Vec<Aligned<f32>>),
    F16(Vec<Aligned<u16>>),
}

/// One page and KV head of one layer, in one of the formats.
#[derive(Clone, Copy)]
pub(crate) enum Block<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
}

#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only SIMD versions fetch ahead")
)]
impl Block<'_> {
    /// The block's first byte.
    pub(crate) fn start(&self) -> *const u8 {
        match self {
            Self::F32(block) => block.as_ptr().cast(),
            Self::F16(block) => block.as_ptr().cast(),
        }
    }

    /// The first byte of the values, for heads of `dim` dimensions.
    pub(crate) fn values(&self, dim: usize) -> *const u8 {
        match self {
            Self::F32(block) => block.as_ptr().wrapping_add(dim * PAGE_TOKENS).cast(),
            Self::F16(block) => block.as_ptr().wrapping_add(dim * PAGE_TOKENS).cast(),
        }
    }
}

/// Keys and values of all layers, in pages of [`PAGE_TOKENS`] tokens.
pub struct KvCache {
    layers: Layers,
    pages: usize,
    kv_heads: usize,
    head_dim: usize,
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
        let len = pages.saturating_mul(kv_heads.saturating_mul(block_len(head_dim)));
        let layers = match format {
            KvFormat::F32 => Layers::F32((0..layers).map(|_| Aligned::new(len)).collect()),
            KvFormat::F16 => Layers::F16((0..layers).map(|_| Aligned::new(len)).collect()),
        };
        Self { layers, pages, kv_heads, head_dim, isa: Isa::best() }
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
            .saturating_mul(block_len(head_dim))
            .saturating_mul(format.bytes())
    }

    /// Bytes that one page takes over all layers.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        Self::bytes_per_page(self.format(), self.layers(), self.kv_heads, self.head_dim)
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
        let (heads, dim) = (self.kv_heads, self.head_dim);
        let start = self.block_start(page, 0);
        match &mut self.layers {
            Layers::F32(layers) => {
                let page = layers[layer].get_mut(start, heads * block_len(dim));
                for (head, block) in page.chunks_exact_mut(block_len(dim)).enumerate() {
                    let range = head * dim..(head + 1) * dim;
                    scatter(&k[range.clone()], slot, block);
                    block[v_row(slot, dim)].copy_from_slice(&v[range]);
                }
            }
            Layers::F16(layers) => {
                let page = layers[layer].get_mut(start, heads * block_len(dim));
                for (head, block) in page.chunks_exact_mut(block_len(dim)).enumerate() {
                    let range = head * dim..(head + 1) * dim;
                    let values = v_row(slot, dim);
                    // The value row's place serves to narrow the keys first.
                    narrow(self.isa, &k[range.clone()], &mut block[values.clone()]);
                    let (keys, rows) = block.split_at_mut(PAGE_TOKENS * dim);
                    let row = &mut rows[slot * dim..][..dim];
                    scatter(row, slot, keys);
                    narrow(self.isa, &v[range], row);
                }
            }
        }
    }

    /// Copies the first `slots` tokens of page `from` to page `to`, in all layers.
    ///
    /// # Panics
    /// If a page lies outside the cache.
    pub fn copy_page(&mut self, from: u32, to: u32, slots: usize) {
        let len = self.kv_heads * block_len(self.head_dim);
        let (from, to) = (self.block_start(from, 0), self.block_start(to, 0));
        let (slots, dim) = (slots.min(PAGE_TOKENS), self.head_dim);
        if from == to {
            return;
        }
        match &mut self.layers {
            Layers::F32(layers) => {
                layers.iter_mut().for_each(|l| copy_blocks(l, from, to, len, slots, dim))
            }
            Layers::F16(layers) => {
                layers.iter_mut().for_each(|l| copy_blocks(l, from, to, len, slots, dim))
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
            let at = |i: usize| match self.block(layer, page, head) {
                Block::F32(block) => block[i],
                Block::F16(block) => f16_to_f32(block[i]),
            };
            k.extend((0..dim).map(|d| at(d * PAGE_TOKENS + slot)));
            v.extend(v_row(slot, dim).map(at));
        }
        (k, v)
    }

    /// Keys and values of one page and KV head.
    pub(crate) fn block(&self, layer: usize, page: u32, kv_head: usize) -> Block<'_> {
        let (start, len) = (self.block_start(page, kv_head), block_len(self.head_dim));
        match &self.layers {
            Layers::F32(layers) => Block::F32(layers[layer].get(start, len)),
            Layers::F16(layers) => Block::F16(layers[layer].get(start, len)),
        }
    }

    fn block_start(&self, page: u32, kv_head: usize) -> usize {
        let page = page as usize;
        assert!(page < self.pages && kv_head <= self.kv_heads, "page {page} of {}", self.pages);
        (page * self.kv_heads + kv_head) * block_len(self.head_dim)
    }
}

/// Elements of K and V of one page and head.
fn block_len(head_dim: usize) -> usize {
    head_dim.saturating_mul(2 * PAGE_TOKENS)
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
    dim: usize,
) {
    let low = from.min(to);
    let span = layer.get_mut(low, from.abs_diff(to) + len);
    let (head, tail) = span.split_at_mut(from.abs_diff(to));
    let (source, target) =
        if from < to { (&head[..len], tail) } else { (&*tail, &mut head[..len]) };
    for (source, target) in
        source.chunks_exact(block_len(dim)).zip(target.chunks_exact_mut(block_len(dim)))
    {
        let (k, v) = source.split_at(PAGE_TOKENS * dim);
        let (k_to, v_to) = target.split_at_mut(PAGE_TOKENS * dim);
        for (k, k_to) in k.chunks_exact(PAGE_TOKENS).zip(k_to.chunks_exact_mut(PAGE_TOKENS)) {
            k_to[..slots].copy_from_slice(&k[..slots]);
        }
        v_to[..slots * dim].copy_from_slice(&v[..slots * dim]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(seed: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| ((seed * 31 + i * 7) % 64) as f32 * 0.25 - 8.0).collect()
    }

    fn check(format: KvFormat, kv_heads: usize, head_dim: usize) {
        let mut cache = KvCache::new(format, 5, 2, kv_heads, head_dim);
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
                assert_eq!(
                    cache.read(1, page, slot),
                    (token(100 + slot, len), token(150 + slot, len)),
                    "{page}"
                );
            }
            if slots < PAGE_TOKENS {
                assert_eq!(cache.read(1, page, slots).0, vec![0.0; len]);
            }
        }
        assert_eq!(cache.page_bytes(), 2 * kv_heads * head_dim * 2 * PAGE_TOKENS * format.bytes());
    }

    #[test]
    fn write_read_copy() {
        for format in [KvFormat::F32, KvFormat::F16] {
            for (kv_heads, head_dim) in [(1, 8), (2, 64), (3, 40)] {
                check(format, kv_heads, head_dim);
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
