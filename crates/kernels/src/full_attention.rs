//! Attention of every token to every token of its sequence, in both directions: what encoders compute (Vaswani et al.
//! 2017). No mask, no cache, no pages: those are decoders' (`attention`).
//!
//! Sequences stand one after the other without padding. Invariant: a token's result depends on its own sequence alone,
//! bit for bit, whatever else is computed beside it and on however many threads.

use std::ops::Range;

use crate::elementwise::SharedRows;
use crate::isa::{Isa, compiled_per_isa, multiply_add};
use crate::pool::Pool;
use crate::reduce;

/// Queries that a tile takes.
const QUERIES: usize = 4;
/// Columns of a tile: keys for scores, elements of a head for results.
const LANES: usize = 16;

/// Queries, keys and values of all sequences, each (rows, `heads × head_dim`) row-major.
#[derive(Clone, Copy, Debug)]
pub struct FullAttention<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// Heads, each with keys and values of its own.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Multiplies every score.
    pub scale: f32,
}

/// Scratch of one head of one sequence.
#[derive(Default)]
struct Scratch {
    /// Keys times the scale: (panel of [`LANES`] keys, element, key), zero beyond the last.
    keys: Vec<[f32; LANES]>,
    /// Values: (panel of [`LANES`] elements, key, element), zero beyond the last.
    values: Vec<[f32; LANES]>,
    /// ([`QUERIES`], keys): scores, then weights.
    weights: Vec<f32>,
    /// (token, element)
    out: Vec<f32>,
}

impl FullAttention<'_> {
    /// Writes softmax(q kᵀ · scale) v of each sequence into its rows of `out`: (rows, `heads × head_dim`).
    ///
    /// # Panics
    /// If the sizes do not fit, or `sequences` overlap or reach past the rows: errors of the caller, never of a file.
    pub fn compute(&self, pool: &Pool, sequences: &[Range<usize>], out: &mut [f32]) {
        let width = self.heads * self.head_dim;
        let len = out.len();
        assert!([self.q, self.k, self.v].iter().all(|x| x.len() == len), "sizes differ");
        assert!(
            sequences.windows(2).all(|pair| pair[0].end <= pair[1].start)
                && sequences.last().is_none_or(|last| last.end * width <= len),
            "sequences overlap or reach past the rows"
        );
        let isa = Isa::best();
        let out = SharedRows::new(out, self.head_dim.max(1));
        pool.for_each(sequences.len() * self.heads, 1, &|items| {
            let mut scratch = Scratch::default();
            for item in items {
                let (rows, head) = (sequences[item / self.heads].clone(), item % self.heads);
                self.pack(&rows, head, &mut scratch);
                self.attend(isa, &rows, head, &mut scratch);
                for (row, result) in rows.zip(scratch.out.chunks_exact(self.head_dim)) {
                    // SAFETY: `for_each` hands each pair of sequence and head to one call; sequences do not overlap.
                    unsafe { out.row(row * self.heads + head) }.copy_from_slice(result);
                }
            }
        });
    }

    /// One token's part of `x` for a head.
    fn head<'a>(&self, x: &'a [f32], row: usize, head: usize) -> &'a [f32] {
        &x[(row * self.heads + head) * self.head_dim..][..self.head_dim]
    }

    /// Brings keys and values of a head into panels.
    fn pack(&self, rows: &Range<usize>, head: usize, scratch: &mut Scratch) {
        let (len, dim) = (rows.len(), self.head_dim);
        let (key_panels, value_panels) = (len.div_ceil(LANES), dim.div_ceil(LANES));
        scratch.keys.clear();
        scratch.keys.resize(key_panels * dim, [0.0; LANES]);
        scratch.values.clear();
        scratch.values.resize(value_panels * len, [0.0; LANES]);
        scratch.weights.resize(QUERIES * key_panels * LANES, 0.0);
        scratch.out.resize(len * dim, 0.0);
        for (at, row) in rows.clone().enumerate() {
            let panel = &mut scratch.keys[at / LANES * dim..][..dim];
            for (element, &key) in panel.iter_mut().zip(self.head(self.k, row, head)) {
                element[at % LANES] = key * self.scale;
            }
            let value = self.head(self.v, row, head).chunks(LANES);
            for (panel, part) in scratch.values.chunks_exact_mut(len).zip(value) {
                panel[at][..part.len()].copy_from_slice(part);
            }
        }
    }

    /// Scores, their softmax and the weighted values, [`QUERIES`] tokens at a time.
    fn attend(&self, isa: Isa, rows: &Range<usize>, head: usize, scratch: &mut Scratch) {
        let (len, dim) = (rows.len(), self.head_dim);
        let stride = len.next_multiple_of(LANES);
        let Scratch { keys, values, weights, out } = scratch;
        for first in (0..len).step_by(QUERIES) {
            // The last tile repeats the last token.
            let queries = std::array::from_fn(|i| {
                self.head(self.q, rows.start + (first + i).min(len - 1), head)
            });
            let count = QUERIES.min(len - first);
            products(isa, &queries, keys, &mut weights[..], stride);
            for weights in weights.chunks_exact_mut(stride).take(count) {
                reduce::softmax(&mut weights[..len]);
            }
            let weights: [&[f32]; QUERIES] = std::array::from_fn(|i| &weights[i * stride..][..len]);
            let mut tile = [0.0; QUERIES * LANES];
            for (panel, values) in values.chunks_exact(len).enumerate() {
                products(isa, &weights, values, &mut tile, LANES);
                let columns = panel * LANES..dim.min((panel + 1) * LANES);
                for i in 0..count {
                    out[(first + i) * dim..][columns.clone()]
                        .copy_from_slice(&tile[i * LANES..][..columns.len()]);
                }
            }
        }
    }
}

compiled_per_isa! {
    /// For each panel of `b`, as long as a row of `a`: `out[i][panel] = Σ a[i][k] b[k]`, in the order of k.
    fn products(
        a: &[&[f32]; QUERIES], b: &[[f32; LANES]], out: &mut [f32], stride: usize
    ) = products_body
}

#[inline(always)]
fn products_body<const FUSED: bool>(
    a: &[&[f32]; QUERIES],
    b: &[[f32; LANES]],
    out: &mut [f32],
    stride: usize,
) {
    let depth = a[0].len();
    let [a0, a1, a2, a3] = a.map(|a| &a[..depth]);
    for (panel, b) in b.chunks_exact(depth).enumerate() {
        let mut sums = [[0.0f32; LANES]; QUERIES];
        for ((((b, &x0), &x1), &x2), &x3) in b.iter().zip(a0).zip(a1).zip(a2).zip(a3) {
            for (sums, x) in sums.iter_mut().zip([x0, x1, x2, x3]) {
                for (sum, &b) in sums.iter_mut().zip(b) {
                    *sum = multiply_add::<FUSED>(x, b, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            out[i * stride + panel * LANES..][..LANES].copy_from_slice(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 252.0 - 2.0).collect()
    }

    fn run(
        threads: usize,
        heads: usize,
        dim: usize,
        lengths: &[usize],
    ) -> (Vec<f32>, [Vec<f32>; 3]) {
        let rows: usize = lengths.iter().sum();
        let inputs = [1, 2, 3].map(|seed| numbers(rows * heads * dim, seed));
        let mut start = 0;
        let sequences: Vec<_> = lengths
            .iter()
            .map(|len| {
                start += len;
                start - len..start
            })
            .collect();
        let mut out = vec![f32::NAN; rows * heads * dim];
        let [q, k, v] = &inputs;
        let attention = FullAttention { q, k, v, heads, head_dim: dim, scale: 0.25 };
        attention.compute(&Pool::new(threads), &sequences, &mut out);
        (out, inputs)
    }

    fn check(heads: usize, dim: usize, lengths: &[usize]) {
        let (got, [q, k, v]) = run(2, heads, dim, lengths);
        let at = |x: &[f32], row: usize, head: usize, i: usize| {
            f64::from(x[(row * heads + head) * dim + i])
        };
        let mut start = 0;
        for &len in lengths {
            for (row, head) in (start..start + len).flat_map(|r| (0..heads).map(move |h| (r, h))) {
                let keys = start..start + len;
                let score = |key| {
                    (0..dim).map(|i| at(&q, row, head, i) * at(&k, key, head, i)).sum::<f64>()
                        * 0.25
                };
                let weights: Vec<f64> = keys.clone().map(|key| score(key).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..dim {
                    let mixed: f64 =
                        keys.clone().zip(&weights).map(|(key, w)| w * at(&v, key, head, i)).sum();
                    let (got, want) = (at(&got, row, head, i), mixed / total);
                    assert!((got - want).abs() < 1e-5, "{heads} {dim} {lengths:?}: {got} {want}");
                }
            }
            start += len;
        }
    }

    #[test]
    fn close_to_f64() {
        check(1, 16, &[1]);
        check(3, 32, &[5, 17, 1, 40]);
        check(2, 20, &[16, 33]);
        check(2, 7, &[3]);
    }

    #[test]
    fn a_sequence_as_if_alone() {
        let lengths = [9, 30, 4];
        let (want, [q, k, v]) = run(1, 2, 16, &lengths);
        assert_eq!(run(3, 2, 16, &lengths).0, want);
        let part = 9 * 32..39 * 32;
        let [q, k, v] = [&q, &k, &v].map(|x| &x[part.clone()]);
        let mut alone = vec![0.0; 30 * 32];
        let one = 0..30;
        FullAttention { q, k, v, heads: 2, head_dim: 16, scale: 0.25 }.compute(
            &Pool::new(2),
            std::slice::from_ref(&one),
            &mut alone,
        );
        assert_eq!(alone, want[part]);
    }
}
