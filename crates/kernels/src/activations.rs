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

/// A form of the activations that [`crate::matmul`] may want.
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
    let _ = isa;
    let count = rows.len();
    for (slot, row) in rows.enumerate() {
        let row = &x[row * cols..(row + 1) * cols];
        for (block, chunk) in row.chunks(BLOCK).enumerate() {
            let mut padded = [0.0; BLOCK];
            padded[..chunk.len()].copy_from_slice(chunk);
            values[block * count + slot] = quantise_block(&padded);
        }
    }
}

/// The scalar twin: scale = max|x| / 127, q = x / scale rounded to nearest, ties to even.
pub(crate) fn quantise_block(x: &[f32; BLOCK]) -> ActivationBlock {
    let largest = x.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        return ActivationBlock { scale: f32::NAN, scaled_sum: f32::NAN, ..ZERO_BLOCK };
    }
    if largest < SMALLEST {
        return ZERO_BLOCK;
    }
    let (scale, inverse) = (largest / 127.0, 127.0 / largest);
    with_sums(x.map(|v| (v * inverse).round_ties_even() as i8), scale)
}

/// Completes a block with the sums of `q`.
fn with_sums(q: [i8; BLOCK], scale: f32) -> ActivationBlock {
    let pair = |columns: Range<usize>, first: usize| -> i16 {
        columns.filter(|c| c % 4 / 2 == first).map(|c| -i16::from(q[c])).sum()
    };
    let pairs = |columns: Range<usize>| [pair(columns.clone(), 0), pair(columns, 1)];
    let neg_pairs = [pairs(0..16), pairs(16..32), pairs(0..32)];
    let neg_sum = |pair: [i16; 2]| i32::from(pair[0]) + i32::from(pair[1]);
    ActivationBlock {
        q,
        scale,
        scaled_sum: scale * -neg_sum(neg_pairs[2]) as f32,
        neg_sum_128: 128 * neg_sum(neg_pairs[2]),
        neg_half_128: [128 * neg_sum(neg_pairs[0]), 128 * neg_sum(neg_pairs[1])],
        neg_pairs,
    }
}
