//! Products of prepared activations with packed weights.
//!
//! Threads take strips of 16 weight rows; within a strip the instruction set's kernels run (`scalar` is the reference).
//! Invariant: one output is the sum, in increasing order of columns, of one term per 32 columns, each rounded the same
//! way, whatever the number of activation rows, the tile, the thread count and, for quantised weights, the instruction set:
//!
//! ```text
//! quantised:  acc = fma(I, D · scale, acc)      I = Σ (code − offset) · q, exact in int32, per half if D is
//!                                               scale = 2ⁿ of the activation block, times 1 or √2: D · √2 is rounded,
//!                                               and so is nothing else before the sum
//!             acc = fma(M, scale · Σ q, acc)    only formats with minima, per half if halved
//! float:      chain = fma over 64 columns from 0; acc = acc + chain
//! ```

use std::ops::Range;

use crate::activations::SharedSlice;
use crate::layout::STRIP_ROWS;
use crate::{Activations, Isa, PackedMatrix, Pool, scalar};

/// Chunks that a thread's share is cut into: small enough to balance, large enough to stream.
const CHUNKS_PER_THREAD: usize = 8;
/// Strips of the largest chunk.
const MAX_CHUNK_STRIPS: usize = 64;
/// Multiply-adds that make a chunk long enough, some tens of microseconds: with many rows smaller chunks balance better.
const CHUNK_WORK: usize = 1 << 22;

/// Where results go: (activation rows, weight rows) row-major. Strips write disjoint columns.
pub(crate) struct Output {
    slice: SharedSlice<f32>,
    row_len: usize,
    /// The weight row of the first column.
    first_row: usize,
}

impl Output {
    /// `slice`: (activation rows, `row_len`), for the weight rows from `first_row` on.
    pub(crate) fn new(slice: &mut [f32], row_len: usize, first_row: usize) -> Self {
        Self { slice: SharedSlice::new(slice), row_len, first_row }
    }

    /// Element (activation row, weight row) as a pointer.
    ///
    /// # Safety
    /// Both must be inside the matrix; the caller writes only weight rows of strips that it owns.
    #[inline(always)]
    pub(crate) unsafe fn at(&self, activation_row: usize, weight_row: usize) -> *mut f32 {
        let column = weight_row - self.first_row;
        // SAFETY: inside the slice by the caller's promise.
        unsafe { self.slice.as_ptr().add(activation_row * self.row_len + column) }
    }
}

pub(crate) type Strips = fn(&PackedMatrix, &Activations, &Output, Range<usize>);

/// out: (a.rows, w.rows) row-major = activations (a.rows, w.cols) × weightsᵀ.
///
/// # Panics
/// If `a` was not prepared as `w.activation_kind()`, or the sizes do not fit: errors of the caller, never of a file.
pub fn matmul(pool: &Pool, w: &PackedMatrix, a: &Activations, out: &mut [f32]) {
    products(pool, a, [(w, w.rows(), out)]);
}

/// The first `rows` outputs of [`matmul`], at the price of as many: out is (a.rows, rows) row-major, each element bit for
/// bit as there. `rows` is a multiple of 16 or all there are.
///
/// # Panics
/// As [`matmul`], and for another number of rows.
pub fn matmul_first(pool: &Pool, w: &PackedMatrix, rows: usize, a: &Activations, out: &mut [f32]) {
    let whole_strips = rows.is_multiple_of(STRIP_ROWS) && rows < w.rows();
    assert!(whole_strips || rows == w.rows(), "{rows} of {} rows", w.rows());
    products(pool, a, [(w, rows, out)]);
}

/// As many times [`matmul`] of the same activations, joined once: small matrices share one division of labour.
///
/// # Panics
/// As [`matmul`].
pub fn matmul_each<const N: usize>(
    pool: &Pool,
    a: &Activations,
    each: [(&PackedMatrix, &mut [f32]); N],
) {
    products(pool, a, each.map(|(w, out)| (w, w.rows(), out)));
}

/// Of each matrix the first so many rows: whole strips, or all.
fn products<const N: usize>(
    pool: &Pool,
    a: &Activations,
    products: [(&PackedMatrix, usize, &mut [f32]); N],
) {
    let all_strips = products.iter().map(|(_, rows, _)| rows.div_ceil(STRIP_ROWS)).sum();
    let cols = products.first().map_or(0, |(w, ..)| w.cols());
    let size = chunk_strips(all_strips, pool.threads(), a.rows() * cols);
    let mut chunks = 0;
    let broken = a.broken_rows();
    let parts = products.map(|(w, rows, out)| {
        check_activations(w, a);
        let (given, wanted) = (out.len(), a.rows() * rows);
        assert!(given == wanted, "{given} outputs for {} × {rows}", a.rows());
        let (first, strips) = (chunks, rows.div_ceil(STRIP_ROWS));
        if w.cols() == 0 {
            out.fill(0.0);
        } else {
            chunks += strips.div_ceil(size);
        }
        let output = Output::new(out, rows, 0);
        (w, strips, output, strips_of(w.isa()), first..chunks)
    });
    pool.for_each(chunks, 1, &|range| {
        for (w, strips, output, kernel, own) in &parts {
            for chunk in range.start.max(own.start)..range.end.min(own.end) {
                let start = (chunk - own.start) * size;
                kernel(w, a, output, start..(start + size).min(*strips));
            }
        }
    });
    for (_, _, output, ..) in parts.iter().filter(|(w, ..)| w.format().is_quantised()) {
        for &row in &broken {
            // SAFETY: all threads are done; the row exists, and it has an output a weight row.
            unsafe { output.slice.part(row * output.row_len..(row + 1) * output.row_len) }
                .fill(f32::NAN);
        }
    }
}

pub(crate) fn check_activations(w: &PackedMatrix, a: &Activations) {
    assert!(
        a.has(w.activation_kind()),
        "activations are not prepared as {:?}",
        w.activation_kind()
    );
    assert!(
        a.cols() == w.cols(),
        "activations of {} columns for weights of {}",
        a.cols(),
        w.cols()
    );
}

pub(crate) fn strips_of(isa: Isa) -> Strips {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => crate::avx512::strips,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => crate::avx2::strips,
        _ => scalar::strips,
    }
}

/// Strips that a thread takes at a time, of which one is 16 × `row_work` multiply-adds; even, because tiles take two.
pub(crate) fn chunk_strips(strips: usize, threads: usize, row_work: usize) -> usize {
    let enough = CHUNK_WORK / (STRIP_ROWS * row_work).max(1);
    let share = strips / (CHUNKS_PER_THREAD * threads);
    share.min(enough).next_multiple_of(2).clamp(2, MAX_CHUNK_STRIPS)
}

#[cfg(test)]
mod tests;
