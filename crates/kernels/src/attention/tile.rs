//! The state of one tile of attention: some rows of one sequence times the query heads that share one KV head.
//!
//! Holds buffers and the rule by which segments are put together; the arithmetic over a page is the instruction set's
//! (`scalar`, `avx2`, `avx512`). A *pair* is one row and one query head, numbered row by row. Invariant: what is computed
//! for a pair does not depend on which other pairs are in the tile.

use super::cache::{Block, PAGE_TOKENS};
use crate::aligned::Aligned;
use crate::isa::Isa;
use crate::vexp::exp2;

/// Lanes of the running sums of probabilities: one AVX-512 register.
pub(super) const SUM_LANES: usize = 16;
/// Elements of a pair's partial result before its weighted sum: maximum and sum, padded to a cache line.
const PARTIAL_HEAD: usize = 16;

/// Buffers of one thread, and the tile that they hold.
pub(super) struct Tile {
    pub(super) dim: usize,
    /// Query heads per KV head.
    pub(super) group: usize,
    /// Rows × `group`.
    pub(super) pairs: usize,
    /// Position of the first row.
    pub(super) first_position: usize,
    /// (pairs × dim), times scale × log₂e.
    pub(super) q: Aligned<f32>,
    /// (pairs × dim) as signed words, where the instruction set takes them: `q ≈ word · step`.
    pub(super) q_words: Aligned<u16>,
    /// The steps of `q_words`, one a pair.
    pub(super) q_steps: Aligned<f32>,
    /// (pairs × [`PAGE_TOKENS`]): scores, then probabilities, of one page.
    pub(super) p: Aligned<f32>,
    /// `p` times the steps of the values, as words (pairs × [`PAGE_TOKENS`]), where the instruction set takes them,
    pub(super) p_words: Aligned<u16>,
    /// and their steps, one a pair.
    pub(super) p_steps: Aligned<f32>,
    /// A page's K or V widened to f32.
    pub(super) wide: Aligned<f32>,
    /// Per pair, of the segment so far: the maximum of the scores,
    pub(super) max: Aligned<f32>,
    /// the sum of the probabilities by lanes (pairs × [`SUM_LANES`]),
    pub(super) sum: Aligned<f32>,
    /// and the weighted sum of the values (pairs × dim).
    pub(super) acc: Aligned<f32>,
    /// Of all segments so far: partial results (pairs × `partial_len(dim)`).
    total: Aligned<f32>,
}

/// Elements of a pair's partial result: (maximum, sum, padding; weighted sum of the values).
pub(super) fn partial_len(dim: usize) -> usize {
    PARTIAL_HEAD + dim.next_multiple_of(SUM_LANES)
}

/// The page at hand, for pairs that see at least one of its tokens.
pub(super) struct Page<'a> {
    pub(super) block: Block<'a>,
    /// Position of the page's first token.
    pub(super) start: usize,
    /// The first pair that sees any of it; the later ones do too.
    pub(super) first_pair: usize,
    /// Where the page that comes next begins, to be fetched ahead; anywhere if there is none.
    pub(super) next: *const u8,
}

impl Tile {
    pub(super) fn new(max_pairs: usize, group: usize, dim: usize) -> Self {
        Self {
            dim,
            group,
            pairs: 0,
            first_position: 0,
            q: Aligned::new(max_pairs * dim),
            q_words: Aligned::new(max_pairs * dim),
            q_steps: Aligned::new(max_pairs),
            p: Aligned::new(max_pairs * PAGE_TOKENS),
            p_words: Aligned::new(max_pairs * PAGE_TOKENS),
            p_steps: Aligned::new(max_pairs),
            wide: Aligned::new(dim * PAGE_TOKENS),
            max: Aligned::new(max_pairs),
            sum: Aligned::new(max_pairs * SUM_LANES),
            acc: Aligned::new(max_pairs * dim),
            total: Aligned::new(max_pairs * partial_len(dim)),
        }
    }

    /// Takes the queries of `rows` rows. `q`: from the tile's first row and head on, one row every `stride`.
    pub(super) fn load(
        &mut self,
        q: &[f32],
        stride: usize,
        rows: usize,
        first_position: usize,
        scale: f32,
    ) {
        let width = self.group * self.dim;
        (self.pairs, self.first_position) = (rows * self.group, first_position);
        let tile = self.q.get_mut(0, rows * width);
        for (to, from) in tile.chunks_exact_mut(width).zip(q.chunks(stride)) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = from * (scale * std::f32::consts::LOG2_E);
            }
        }
        let len = partial_len(self.dim);
        for total in self.total.get_mut(0, self.pairs * len).chunks_exact_mut(len) {
            total.fill(0.0);
            total[0] = f32::NEG_INFINITY;
        }
    }

    /// The first pair whose row is at `position` or later.
    pub(super) fn first_pair_at(&self, position: usize) -> usize {
        (position.saturating_sub(self.first_position) * self.group).min(self.pairs)
    }

    /// How many tokens of the page that starts at `page_start` a pair sees.
    pub(super) fn visible(&self, pair: usize, page_start: usize) -> usize {
        (self.first_position + pair / self.group + 1).saturating_sub(page_start).min(PAGE_TOKENS)
    }

    /// Forgets the last segment.
    pub(super) fn start_segment(&mut self) {
        self.max.get_mut(0, self.pairs).fill(f32::NEG_INFINITY);
        self.sum.get_mut(0, self.pairs * SUM_LANES).fill(0.0);
        self.acc.get_mut(0, self.pairs * self.dim).fill(0.0);
    }

    /// A pair's maximum, sum and weighted sum over the segment.
    fn segment(&self, pair: usize) -> (f32, f32, &[f32]) {
        let lanes = self.sum.get(pair * SUM_LANES, SUM_LANES);
        let mut sum = [0.0; SUM_LANES / 2];
        for (i, sum) in sum.iter_mut().enumerate() {
            *sum = lanes[i] + lanes[i + SUM_LANES / 2];
        }
        let sum = ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
        (self.max.get(pair, 1)[0], sum, self.acc.get(pair * self.dim, self.dim))
    }

    /// Stores the segment's result of the pairs from `first_pair` on; `to`: (pairs × `partial_len`).
    pub(super) fn store_segment(&self, first_pair: usize, to: &mut [f32]) {
        for (pair, to) in
            to.chunks_exact_mut(partial_len(self.dim)).enumerate().take(self.pairs).skip(first_pair)
        {
            let (max, sum, acc) = self.segment(pair);
            (to[0], to[1]) = (max, sum);
            to[PARTIAL_HEAD..][..self.dim].copy_from_slice(acc);
        }
    }

    /// Adds the segment's result of the pairs from `first_pair` on to the totals.
    pub(super) fn add_segment(&mut self, isa: Isa, first_pair: usize) {
        let len = partial_len(self.dim);
        for pair in first_pair..self.pairs {
            let (max, sum, _) = self.segment(pair);
            let acc = self.acc.get(pair * self.dim, self.dim);
            add(isa, self.total.get_mut(pair * len, len), max, sum, acc);
        }
    }

    /// Adds a stored segment's result of the pairs from `first_pair` on to the totals.
    pub(super) fn add_stored(&mut self, isa: Isa, first_pair: usize, from: &[f32]) {
        let len = partial_len(self.dim);
        let totals = self.total.get_mut(0, self.pairs * len).chunks_exact_mut(len);
        for (total, from) in totals.zip(from.chunks_exact(len)).skip(first_pair) {
            add(isa, total, from[0], from[1], &from[PARTIAL_HEAD..][..self.dim]);
        }
    }

    /// The result of row `row`; `out`: (group × dim).
    pub(super) fn finish(&self, row: usize, out: &mut [f32]) {
        let len = partial_len(self.dim);
        for (g, out) in out.chunks_exact_mut(self.dim).enumerate() {
            let total = self.total.get((row * self.group + g) * len, len);
            let inverse = 1.0 / total[1];
            for (out, acc) in out.iter_mut().zip(&total[PARTIAL_HEAD..]) {
                *out = acc * inverse;
            }
        }
    }
}

/// The one rule by which two results over different tokens become one: both are brought to the larger maximum.
fn add(isa: Isa, total: &mut [f32], max: f32, sum: f32, acc: &[f32]) {
    let together = total[0].max(max);
    let (old, new) = (exp2(total[0] - together), exp2(max - together));
    total[0] = together;
    total[1] = total[1] * old + sum * new;
    let total = &mut total[PARTIAL_HEAD..];
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these levels exist only where AVX2 and FMA do.
        Isa::Avx2 | Isa::Avx512 => unsafe { weigh_avx2(total, old, acc, new) },
        _ => weigh(total, old, acc, new),
    }
}

#[inline(always)]
fn weigh(total: &mut [f32], old: f32, acc: &[f32], new: f32) {
    for (total, acc) in total.iter_mut().zip(acc) {
        *total = *total * old + acc * new;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn weigh_avx2(total: &mut [f32], old: f32, acc: &[f32], new: f32) {
    weigh(total, old, acc, new);
}
