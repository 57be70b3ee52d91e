//! Activations made ready for products: int8 blocks of 32 for quantised weights, f32 for floating-point ones.
//!
//! Prepared once and shared by all matrices that read the same input. Rows are kept in groups of at most [`GROUP_ROWS`]
//! whose blocks stand side by side, so that a micro-tile reads them through one pointer. Invariant: what is stored for a
//! row depends on that row alone; its place is a pure function of (rows, row).

use std::ops::Range;

use crate::native::BLOCK;
use crate::{Isa, Pool};

/// Activation rows that a micro-tile takes at most.
pub(crate) const GROUP_ROWS: usize = 6;
/// Elements below which preparing is not worth waking another thread.
const PARALLEL_ELEMENTS: usize = 1 << 15;
/// A block whose largest magnitude is below this is zero: its reciprocal scale would overflow.
const SMALLEST: f32 = 1e-30;

/// A form of the activations that [`crate::matmul()`] may want.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationKind {
    /// f32, as given.
    Float,
    /// int8 with one f32 scale per 32 elements.
    Int8,
}

/// 32 activations: `value ≈ scale · q`. Its sums serve the offsets and minima of the weights.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ActivationBlock {
    /// −127 … 127.
    pub(crate) q: [i8; BLOCK],
    /// NaN if one of the values is not finite.
    pub(crate) scale: f32,
    /// `scale · Σ q`.
    pub(crate) scaled_sum: f32,
    /// `−128 · Σ q`: where an accumulator of codes with offset 128 starts.
    pub(crate) neg_sum_128: i32,
    /// The same of each 16.
    pub(crate) neg_half_128: [i32; 2],
    /// `−Σ q` over the columns with index mod 4 in {0, 1} and in {2, 3}: of the first 16, the last 16, and all 32.
    pub(crate) neg_pairs: [[i16; 2]; 3],
}

impl ActivationBlock {
    /// `scale · Σ q` of one half. The sum is a multiple of 128 in store, so the shift is exact.
    #[inline(always)]
    pub(crate) fn scaled_half_sum(&self, half: usize) -> f32 {
        self.scale * -(self.neg_half_128[half] >> 7) as f32
    }
}

const ZERO_BLOCK: ActivationBlock = ActivationBlock {
    q: [0; BLOCK],
    scale: 0.0,
    scaled_sum: 0.0,
    neg_sum_128: 0,
    neg_half_128: [0; 2],
    neg_pairs: [[0; 2]; 3],
};

/// How `rows` activation rows are grouped: as few groups as possible, sizes differing by at most 1.
pub(crate) fn group_count(rows: usize) -> usize {
    rows.div_ceil(GROUP_ROWS)
}

/// Rows of the `index`-th group of `rows`.
pub(crate) fn group(rows: usize, index: usize) -> Range<usize> {
    let groups = group_count(rows).max(1);
    let (size, larger) = (rows / groups, rows % groups);
    let start = index * size + index.min(larger);
    start..start + size + usize::from(index < larger)
}

/// A reusable buffer of prepared activations.
#[derive(Debug, Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    /// (group, column, row of the group), if prepared.
    float: Vec<f32>,
    /// (group, block, row of the group), if prepared.
    int8: Vec<ActivationBlock>,
    has_float: bool,
    has_int8: bool,
}

impl Activations {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Rows prepared.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns prepared.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Prepares every kind named from `x`: (rows, cols), row-major. What was in the buffer is gone.
    ///
    /// # Panics
    /// If `x` has another length than `rows × cols`.
    pub fn prepare(
        &mut self,
        pool: &Pool,
        x: &[f32],
        rows: usize,
        cols: usize,
        kinds: &[ActivationKind],
    ) {
        assert!(
            Some(x.len()) == rows.checked_mul(cols),
            "{} activations for {rows} × {cols}",
            x.len()
        );
        (self.rows, self.cols) = (rows, cols);
        self.has_float = kinds.contains(&ActivationKind::Float);
        self.has_int8 = kinds.contains(&ActivationKind::Int8);
        if self.has_float {
            self.float.resize(rows * cols, 0.0);
            each_group(pool, &mut self.float, rows, cols, &|rows, values| {
                interleave(x, cols, rows, values)
            });
        }
        if self.has_int8 {
            let blocks = cols.div_ceil(BLOCK);
            self.int8.resize(rows * blocks, ZERO_BLOCK);
            let isa = Isa::best();
            each_group(pool, &mut self.int8, rows, blocks, &|rows, values| {
                quantise(isa, x, cols, rows, values)
            });
        }
    }

    /// (column, row of the group) of group `index`; `None` if not prepared.
    pub(crate) fn float_group(&self, index: usize) -> Option<&[f32]> {
        let rows = group(self.rows, index);
        self.has_float.then(|| &self.float[rows.start * self.cols..rows.end * self.cols])
    }

    /// (block, row of the group) of group `index`; `None` if not prepared.
    pub(crate) fn int8_group(&self, index: usize) -> Option<&[ActivationBlock]> {
        let rows = group(self.rows, index);
        let blocks = self.cols.div_ceil(BLOCK);
        self.has_int8.then(|| &self.int8[rows.start * blocks..rows.end * blocks])
    }

    pub(crate) fn has(&self, kind: ActivationKind) -> bool {
        match kind {
            ActivationKind::Float => self.has_float,
            ActivationKind::Int8 => self.has_int8,
        }
    }
}

/// Calls `fill(rows, values)` for each group with its part of `all` (`width` values a row), on all threads if it is much.
fn each_group<T: Send>(
    pool: &Pool,
    all: &mut [T],
    rows: usize,
    width: usize,
    fill: &(dyn Fn(Range<usize>, &mut [T]) + Sync),
) {
    let groups = group_count(rows);
    let parts = SharedSlice::new(all);
    let job = |indices: Range<usize>| {
        for index in indices {
            let rows = group(rows, index);
            // SAFETY: the groups' rows partition `0..rows`, and each index is visited once.
            let part = unsafe { parts.part(rows.start * width..rows.end * width) };
            fill(rows, part);
        }
    };
    if rows * width * std::mem::size_of::<T>() < PARALLEL_ELEMENTS {
        job(0..groups)
    } else {
        pool.for_each(groups, 1, &job)
    }
}

/// A slice of which threads take parts that do not overlap.
pub(crate) struct SharedSlice<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: parts handed out do not overlap (the contract of `part`), so this is a `&mut [T]` cut into pieces.
unsafe impl<T: Send> Sync for SharedSlice<T> {}

impl<T> SharedSlice<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// # Safety
    /// Parts that are alive at the same time must not overlap, nor outlive the slice.
    #[allow(clippy::mut_from_ref, reason = "that is what the contract is about")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the slice (asserted); exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.start
    }
}

/// x: (rows, cols) → values: (cols, rows of the group).
fn interleave(x: &[f32], cols: usize, rows: Range<usize>, values: &mut [f32]) {
    let count = rows.len();
    for (slot, row) in rows.enumerate() {
        for (column, &value) in x[row * cols..(row + 1) * cols].iter().enumerate() {
            values[column * count + slot] = value;
        }
    }
}

/// Quantises the rows of one group: x: (rows, cols) → values: (blocks, rows of the group).
fn quantise(isa: Isa, x: &[f32], cols: usize, rows: Range<usize>, values: &mut [ActivationBlock]) {
    let count = rows.len();
    for (slot, row) in rows.enumerate() {
        let (whole, rest) = x[row * cols..(row + 1) * cols].as_chunks::<BLOCK>();
        let mut blocks = values.iter_mut().skip(slot).step_by(count);
        for (chunk, block) in whole.iter().zip(&mut blocks) {
            *block = quantise_block(isa, chunk);
        }
        if let (false, Some(block)) = (rest.is_empty(), blocks.next()) {
            let mut padded = [0.0; BLOCK];
            padded[..rest.len()].copy_from_slice(rest);
            *block = quantise_block(isa, &padded);
        }
    }
}

/// 32 activations as an int8 block.
#[inline]
fn quantise_block(isa: Isa, x: &[f32; BLOCK]) -> ActivationBlock {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: both levels include AVX2, and `Isa` is above `Scalar` only where the processor has it.
        Isa::Avx2 | Isa::Avx512 => unsafe { crate::avx2::quantise_block(x) },
        _ => quantise_block_scalar(x),
    }
}

/// `(scale, 1 / scale)` of a block whose largest magnitude is `largest`; the finished block if that is no usable number.
#[inline]
pub(crate) fn block_scale(largest: f32) -> Result<(f32, f32), ActivationBlock> {
    if !largest.is_finite() {
        return Err(ActivationBlock { scale: f32::NAN, scaled_sum: f32::NAN, ..ZERO_BLOCK });
    }
    if largest < SMALLEST {
        return Err(ZERO_BLOCK);
    }
    Ok((largest / 127.0, 127.0 / largest))
}

/// The scalar twin: scale = max|x| / 127, q = x / scale rounded to nearest, ties to even.
fn quantise_block_scalar(x: &[f32; BLOCK]) -> ActivationBlock {
    let largest = x.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    let (scale, inverse) = match block_scale(f32::from_bits(largest)) {
        Ok(pair) => pair,
        Err(block) => return block,
    };
    let q = x.map(|v| (v * inverse).round_ties_even() as i8);
    let pair = |half: usize, first: usize| -> i16 {
        (16 * half..16 * half + 16).filter(|c| c % 4 / 2 == first).map(|c| -i16::from(q[c])).sum()
    };
    with_pairs(q, scale, [0, 1].map(|half| [pair(half, 0), pair(half, 1)]))
}

/// Completes a block from the sums of its halves (see [`ActivationBlock::neg_pairs`]).
#[inline]
pub(crate) fn with_pairs(q: [i8; BLOCK], scale: f32, halves: [[i16; 2]; 2]) -> ActivationBlock {
    let whole = [halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]];
    let neg_sum = |pair: [i16; 2]| i32::from(pair[0]) + i32::from(pair[1]);
    ActivationBlock {
        q,
        scale,
        scaled_sum: scale * -neg_sum(whole) as f32,
        neg_sum_128: 128 * neg_sum(whole),
        neg_half_128: halves.map(|half| 128 * neg_sum(half)),
        neg_pairs: [halves[0], halves[1], whole],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;

    fn check(x: &[f32; BLOCK]) {
        let scalar = quantise_block_scalar(x);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let block = quantise_block(isa, x);
            // NaN is unlike itself: compare bits.
            assert_eq!(block.scale.to_bits(), scalar.scale.to_bits(), "{isa:?} {x:?}");
            assert_eq!(block.scaled_sum.to_bits(), scalar.scaled_sum.to_bits(), "{isa:?} {x:?}");
            let rest = |b: ActivationBlock| (b.q, b.neg_sum_128, b.neg_half_128, b.neg_pairs);
            assert_eq!(rest(block), rest(scalar), "{isa:?} {x:?}");
        }
    }

    #[test]
    fn every_instruction_set_quantises_alike() {
        for seed in 0..200 {
            let x = synthetic::activations(BLOCK, seed);
            let mut x: [f32; BLOCK] = std::array::from_fn(|i| x[i]);
            check(&x);
            x[7] = [0.0, -0.0, 1e-31, 1e30, 3e38, f32::INFINITY, f32::NAN][seed as usize % 7];
            check(&x);
            // Ties: halves of the scale.
            check(&std::array::from_fn(|i| if i == 0 { 127.0 } else { i as f32 - 16.5 }));
        }
        check(&[0.0; BLOCK]);
        check(&[-5.0; BLOCK]);
    }

    #[test]
    fn groups_partition_the_rows() {
        for rows in 1..100 {
            let groups: Vec<_> = (0..group_count(rows)).map(|index| group(rows, index)).collect();
            assert_eq!(
                groups.iter().flat_map(Clone::clone).collect::<Vec<_>>(),
                (0..rows).collect::<Vec<_>>()
            );
            assert!(groups.iter().all(|g| (1..=GROUP_ROWS).contains(&g.len())), "{groups:?}");
        }
    }
}
