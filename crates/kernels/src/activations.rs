//! Activations made ready for products: int8 blocks of 32 for quantised weights, f32 for floating-point ones.
//!
//! Prepared once and shared by all matrices that read the same input. Rows are kept in groups of at most [`GROUP_ROWS`]
//! whose blocks stand side by side, so that a micro-tile reads them through one pointer. Invariant: what is stored for a
//! row depends on that row alone; its place is a pure function of (rows, row).
//!
//! The scale of an int8 block is a power of two times one of [`LEVELS`], so that joining it to a weight's scale, of which a
//! multiple for each level is at hand, is one integer addition of exponents ([`join_scales`]) beside the multipliers instead
//! of one more multiplication in them: they are what limits products of many rows. It costs a quarter of a bit on average.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::native::BLOCK;
use crate::{Isa, Pool};

/// Activation rows that a micro-tile takes at most.
pub(crate) const GROUP_ROWS: usize = 6;
/// Elements below which preparing is not worth waking another thread.
const PARALLEL_ELEMENTS: usize = 1 << 15;
/// The smallest scale of activations, 2⁻⁶⁰, and what stands for a weight's scale of zero: joined they are still normal.
pub(crate) const SMALLEST_SCALE: f32 = f32::from_bits((127 - 60) << 23);
/// The largest, 2¹⁰⁰: joined with the largest scale of a weight it does not overflow. What needs more is not finite.
pub(crate) const LARGEST_SCALE: f32 = f32::from_bits((127 + 100) << 23);
/// What a block's power of two is multiplied with: steps of half an octave.
pub(crate) const LEVELS: [f32; 2] = [1.0, std::f32::consts::SQRT_2];
/// The largest magnitude, in units of the power of two above it, that the level below holds: 127 / √2, less a little for
/// the rounding of the two products on the way.
pub(crate) const LOWER_LEVEL: f32 = 89.8;
/// The bits of 1.0.
pub(crate) const ONE_BITS: u32 = 0x3f80_0000;
/// 2⁶ in the exponent's place.
pub(crate) const SIX_EXPONENTS: u32 = 6 << 23;

/// A form of the activations that [`crate::matmul()`] may want.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationKind {
    /// f32, as given.
    Float,
    /// int8 with one scale, a power of √2, per 32 elements.
    Int8,
}

/// 32 activations: `value ≈ scale · q`. Its sums serve the offsets and minima of the weights.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ActivationBlock {
    /// −127 … 127.
    pub(crate) q: [i8; BLOCK],
    /// The bits of the scale's power of two (NaN if one of the values is not finite), less those of 1.0: what
    /// [`join_scales`] adds.
    pub(crate) exponent: u32,
    /// Which of [`LEVELS`] it is times.
    pub(crate) level: u32,
    /// `scale · Σ q`.
    pub(crate) scaled_sum: f32,
    /// `−128 · Σ q`: where an accumulator of codes with offset 128 starts.
    pub(crate) neg_sum_128: i32,
    /// The same of each 16.
    pub(crate) neg_half_128: [i32; 2],
    /// `−Σ q` over the columns with index mod 4 in {0, 1} and in {2, 3}: of the first 16 and the last 16.
    pub(crate) neg_pairs: [[i16; 2]; 2],
}

impl ActivationBlock {
    /// `scale · Σ q` of one half. The sum is a multiple of 128 in store, so the shift is exact.
    #[inline(always)]
    pub(crate) fn scaled_half_sum(&self, half: usize) -> f32 {
        self.scale() * -(self.neg_half_128[half] >> 7) as f32
    }

    /// NaN if one of the values is not finite.
    #[inline(always)]
    pub(crate) fn scale(&self) -> f32 {
        f32::from_bits(self.exponent.wrapping_add(ONE_BITS)) * LEVELS[self.level as usize % 2]
    }
}

/// The product of a weight's scale and an activation block's by adding exponents: exact for what [`nonzero_scale`] and
/// [`block_scale`] let through, and the same nonsense on every instruction set for scales that are not finite.
#[inline(always)]
pub(crate) fn join_scales(weight: f32, exponent: u32) -> f32 {
    f32::from_bits(weight.to_bits().wrapping_add(exponent))
}

/// A weight's scale with a number too small to matter in place of zero, which has no exponent to add to. Any other scale
/// is at least 2⁻²⁴ and stays as it is.
#[inline(always)]
pub(crate) fn nonzero_scale(scale: f32) -> f32 {
    scale + SMALLEST_SCALE
}

const ZERO_BLOCK: ActivationBlock = ActivationBlock {
    q: [0; BLOCK],
    exponent: SMALLEST_SCALE.to_bits().wrapping_sub(ONE_BITS),
    level: 0,
    scaled_sum: 0.0,
    neg_sum_128: 0,
    neg_half_128: [0; 2],
    neg_pairs: [[0; 2]; 2],
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
    /// Some int8 row has a value that is not finite.
    has_broken: bool,
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
        self.has_broken = false;
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
            let broken = AtomicBool::new(false);
            each_group(pool, &mut self.int8, rows, blocks, &|rows, values| {
                if !quantise(isa, x, cols, rows, values) {
                    broken.store(true, Ordering::Relaxed);
                }
            });
            self.has_broken = broken.into_inner();
        }
    }

    /// Makes room for `rows × cols` of one kind, which [`Self::parts`] then fills; what was in the buffer is gone.
    pub(crate) fn reserve(&mut self, rows: usize, cols: usize, kind: ActivationKind) {
        (self.rows, self.cols) = (rows, cols);
        self.has_float = kind == ActivationKind::Float;
        self.has_int8 = kind == ActivationKind::Int8;
        self.has_broken = false;
        match kind {
            ActivationKind::Float => self.float.resize(rows * cols, 0.0),
            ActivationKind::Int8 => self.int8.resize(rows * cols.div_ceil(BLOCK), ZERO_BLOCK),
        }
    }

    /// What threads fill, block of columns by block of columns.
    pub(crate) fn parts(&mut self) -> Parts<'_> {
        Parts {
            rows: self.rows,
            cols: self.cols,
            float: self.has_float.then(|| SharedSlice::new(&mut self.float)),
            int8: self.has_int8.then(|| SharedSlice::new(&mut self.int8)),
            has_broken: AtomicBool::new(false),
            owner: PhantomData,
        }
    }

    /// Takes over what [`Parts::has_broken`] said at the end.
    pub(crate) fn set_broken(&mut self, has_broken: bool) {
        self.has_broken = has_broken;
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

    /// Rows whose int8 form is no number: their products are to be NaN.
    pub(crate) fn broken_rows(&self) -> Vec<usize> {
        let mut broken = Vec::new();
        for index in 0..if self.has_broken { group_count(self.rows) } else { 0 } {
            let rows = group(self.rows, index);
            let blocks = self.int8_group(index).unwrap_or_default();
            broken.extend(rows.clone().filter(|row| {
                blocks.iter().skip(row - rows.start).step_by(rows.len()).any(|b| b.scale().is_nan())
            }));
        }
        broken
    }

    pub(crate) fn has(&self, kind: ActivationKind) -> bool {
        match kind {
            ActivationKind::Float => self.has_float,
            ActivationKind::Int8 => self.has_int8,
        }
    }
}

/// Activations being filled by several threads.
pub(crate) struct Parts<'a> {
    rows: usize,
    cols: usize,
    float: Option<SharedSlice<f32>>,
    int8: Option<SharedSlice<ActivationBlock>>,
    has_broken: AtomicBool,
    owner: PhantomData<&'a mut Activations>,
}

impl Parts<'_> {
    /// Fills the columns of block `block` for all rows of group `index` from `x`: (rows of the group, [`BLOCK`]); columns
    /// beyond the last are zero there.
    ///
    /// # Safety
    /// Nobody else fills the same block of the same group.
    pub(crate) unsafe fn fill(&self, isa: Isa, index: usize, block: usize, x: &[[f32; BLOCK]]) {
        let rows = group(self.rows, index);
        let count = rows.len();
        if let Some(int8) = &self.int8 {
            let start = rows.start * self.cols.div_ceil(BLOCK) + block * count;
            // SAFETY: the blocks of this group and column stand side by side; the contract keeps others away.
            let values = unsafe { int8.part(start..start + count) };
            if !quantise_blocks(isa, x, values, 1) {
                self.has_broken.store(true, Ordering::Relaxed);
            }
        }
        if let Some(float) = &self.float {
            let columns = block * BLOCK..self.cols.min((block + 1) * BLOCK);
            let base = rows.start * self.cols;
            // SAFETY: as above, for the columns.
            let values =
                unsafe { float.part(base + columns.start * count..base + columns.end * count) };
            for (column, values) in values.chunks_exact_mut(count).enumerate() {
                for (value, x) in values.iter_mut().zip(x) {
                    *value = x[column];
                }
            }
        }
    }

    /// Whether some row turned out to be no number.
    pub(crate) fn has_broken(self) -> bool {
        self.has_broken.into_inner()
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

/// Quantises the rows of one group: x: (rows, cols) → values: (blocks, rows of the group); whether all are finite.
fn quantise(
    isa: Isa,
    x: &[f32],
    cols: usize,
    rows: Range<usize>,
    values: &mut [ActivationBlock],
) -> bool {
    let (count, mut is_sound) = (rows.len(), true);
    for (slot, row) in rows.enumerate() {
        let (whole, rest) = x[row * cols..(row + 1) * cols].as_chunks::<BLOCK>();
        // Without columns there are no blocks.
        let Some(values) = values.get_mut(slot..) else { continue };
        is_sound &= quantise_blocks(isa, whole, values, count);
        if let (false, Some(block)) = (rest.is_empty(), values.get_mut(whole.len() * count)) {
            let mut padded = [0.0; BLOCK];
            padded[..rest.len()].copy_from_slice(rest);
            is_sound &= quantise_blocks(isa, &[padded], std::slice::from_mut(block), 1);
        }
    }
    is_sound
}

/// Activations in blocks of 32 → int8 blocks, every `stride`-th of `values`; whether all are finite.
fn quantise_blocks(
    isa: Isa,
    x: &[[f32; BLOCK]],
    values: &mut [ActivationBlock],
    stride: usize,
) -> bool {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa` names a level only where the processor has it.
        Isa::Avx2 => unsafe { crate::avx2::quantise_blocks(x, values, stride) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { crate::quantise_avx512::blocks(x, values, stride) },
        _ => {
            let mut is_sound = true;
            for (x, value) in x.iter().zip(values.iter_mut().step_by(stride)) {
                *value = quantise_block_scalar(x);
                is_sound &= !value.scale().is_nan();
            }
            is_sound
        }
    }
}

/// The scale of a block.
#[derive(Clone, Copy)]
pub(crate) struct BlockScale {
    /// The power of two, and which of [`LEVELS`] it is multiplied with.
    power: f32,
    level: u32,
    /// 1 / scale.
    pub(crate) inverse: f32,
}

/// The scale of a block whose largest magnitude has the bits `largest`; `None` if that is no usable number.
#[inline(always)]
pub(crate) fn block_scale(largest: u32) -> Option<BlockScale> {
    // The power of two next above largest / 127: 2⁻⁶ of the one next below `largest`, twice that if the mantissa is above
    // 127 / 64, which the sum carries into the exponent.
    let above = (largest + 0x0001_ffff) & 0xff80_0000;
    let scale = above.max(SMALLEST_SCALE.to_bits() + SIX_EXPONENTS) - SIX_EXPONENTS;
    if scale > LARGEST_SCALE.to_bits() {
        return None;
    }
    let inverse = f32::from_bits(2 * ONE_BITS - scale);
    let is_lower =
        f32::from_bits(largest) * inverse <= LOWER_LEVEL && scale > SMALLEST_SCALE.to_bits();
    Some(if is_lower {
        BlockScale { power: f32::from_bits(scale) * 0.5, level: 1, inverse: inverse * LEVELS[1] }
    } else {
        BlockScale { power: f32::from_bits(scale), level: 0, inverse }
    })
}

/// What stands for 32 activations that are not all finite.
#[cold]
pub(crate) fn broken_block() -> ActivationBlock {
    ActivationBlock {
        exponent: f32::NAN.to_bits().wrapping_sub(ONE_BITS),
        scaled_sum: f32::NAN,
        ..ZERO_BLOCK
    }
}

/// The scalar twin: scale = max|x| / 127 and up to a power of √2, q = x / scale rounded to nearest, ties to even.
fn quantise_block_scalar(x: &[f32; BLOCK]) -> ActivationBlock {
    let largest = x.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    let Some(scale) = block_scale(largest) else { return broken_block() };
    let q = x.map(|v| (v * scale.inverse).round_ties_even() as i8);
    let pair = |half: usize, first: usize| -> i16 {
        (16 * half..16 * half + 16).filter(|c| c % 4 / 2 == first).map(|c| -i16::from(q[c])).sum()
    };
    with_pairs(q, scale, [0, 1].map(|half| [pair(half, 0), pair(half, 1)]))
}

/// Completes a block from the sums of its halves (see [`ActivationBlock::neg_pairs`]).
#[inline(always)]
pub(crate) fn with_pairs(
    q: [i8; BLOCK],
    scale: BlockScale,
    halves: [[i16; 2]; 2],
) -> ActivationBlock {
    let whole = [halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]];
    let neg_sum = |pair: [i16; 2]| i32::from(pair[0]) + i32::from(pair[1]);
    ActivationBlock {
        q,
        exponent: scale.power.to_bits().wrapping_sub(ONE_BITS),
        level: scale.level,
        scaled_sum: scale.power * LEVELS[scale.level as usize % 2] * -neg_sum(whole) as f32,
        neg_sum_128: 128 * neg_sum(whole),
        neg_half_128: halves.map(|half| 128 * neg_sum(half)),
        neg_pairs: halves,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;

    fn check(x: &[f32; BLOCK]) {
        let scalar = quantise_block_scalar(x);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let mut block = ZERO_BLOCK;
            let is_sound =
                quantise_blocks(isa, std::slice::from_ref(x), std::slice::from_mut(&mut block), 1);
            assert_eq!(is_sound, !scalar.scale().is_nan(), "{isa:?} {x:?}");
            // NaN is unlike itself: compare bits.
            assert_eq!(
                (block.exponent, block.level),
                (scalar.exponent, scalar.level),
                "{isa:?} {x:?}"
            );
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

    /// Whatever stands beside a block, and however many there are.
    #[test]
    fn blocks_do_not_touch_each_other() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            for (count, stride, seed) in
                (1..14).flat_map(|count| [(count, 1, 7), (count, 3, 8), (count, 6, 9)])
            {
                let noise = synthetic::activations(BLOCK * count, seed);
                let mut x: Vec<[f32; BLOCK]> = noise.as_chunks().0.to_vec();
                for (i, x) in x.iter_mut().enumerate() {
                    // Blocks of every size, among them zero; sometimes one that is no number.
                    let size = [1.0, 1e-3, 0.0, 1e4, 0.7, 1e-33, 1e20][(i + stride) % 7];
                    x.iter_mut().for_each(|x| *x *= size);
                }
                if count % 5 == 4 {
                    x[count / 2][3] = f32::NAN;
                }
                let mark = ActivationBlock { level: 77, ..ZERO_BLOCK };
                let mut got = vec![mark; (count - 1) * stride + 1];
                let is_sound = quantise_blocks(isa, &x, &mut got, stride);
                assert_eq!(is_sound, count % 5 != 4, "{isa:?} {count} every {stride}");
                for (i, block) in got.iter().enumerate() {
                    let want =
                        if i % stride == 0 { quantise_block_scalar(&x[i / stride]) } else { mark };
                    assert_eq!(
                        format!("{block:?}"),
                        format!("{want:?}"),
                        "{isa:?} block {i} of {count}"
                    );
                }
            }
        }
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
