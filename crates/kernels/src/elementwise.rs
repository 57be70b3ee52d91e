//! Row-wise sums and the SwiGLU activation (Shazeer 2020).
//!
//! Not reductions: each output element depends on the inputs at its own index only.

use crate::pool::Pool;
use std::marker::PhantomData;

/// Below this many elements a second thread costs more than it saves.
pub(crate) const MIN_ITEMS_PER_THREAD: usize = 4096;

/// A mutable matrix whose rows are handed to threads one by one.
pub(crate) struct SharedRows<'a> {
    data: *mut f32,
    len: usize,
    cols: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: stands for an exclusive borrow of `f32`s; access goes through `row`, whose contract keeps threads apart.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    pub(crate) fn new(data: &'a mut [f32], cols: usize) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), cols, borrow: PhantomData }
    }

    /// Row `row`; shorter than `cols`, or empty, where the matrix ends.
    ///
    /// # Safety
    /// While the result lives, nobody else asks for the same row.
    #[allow(clippy::mut_from_ref, reason = "the rows are disjoint; see the contract")]
    pub(crate) unsafe fn row(&self, row: usize) -> &mut [f32] {
        // SAFETY: the caller keeps it to itself.
        unsafe { self.span(row.saturating_mul(self.cols), self.cols) }
    }

    /// `count` elements from `start`, cut off where the matrix ends.
    ///
    /// # Safety
    /// While the result lives, nobody else asks for any of these elements.
    #[allow(clippy::mut_from_ref, reason = "the spans are disjoint; see the contract")]
    pub(crate) unsafe fn span(&self, start: usize, count: usize) -> &mut [f32] {
        let start = start.min(self.len);
        let count = count.min(self.len - start);
        // SAFETY: in bounds by the two lines above; exclusive by this function's contract and the borrow in `self`.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), count) }
    }
}

/// `gate = silu(gate) * up`, element by element over the shorter of the two.
pub fn silu_mul(pool: &Pool, gate: &mut [f32], up: &[f32]) {
    zip_spans(pool, gate, up, &|gate, up| {
        for (g, &u) in gate.iter_mut().zip(up) {
            *g = *g / (1.0 + (-*g).exp()) * u;
        }
    });
}

/// `x += y`, element by element over the shorter of the two.
pub fn add_assign(pool: &Pool, x: &mut [f32], y: &[f32]) {
    zip_spans(pool, x, y, &|x, y| {
        for (x, &y) in x.iter_mut().zip(y) {
            *x += y;
        }
    });
}

/// Adds `bias` to each row of `x`: (rows, `bias.len()`).
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    if bias.is_empty() {
        return;
    }
    for row in x.chunks_exact_mut(bias.len()) {
        for (x, &b) in row.iter_mut().zip(bias) {
            *x += b;
        }
    }
}

fn zip_spans(pool: &Pool, x: &mut [f32], y: &[f32], job: &(dyn Fn(&mut [f32], &[f32]) + Sync)) {
    let items = x.len().min(y.len());
    let x = SharedRows::new(x, 1);
    pool.for_each(items, MIN_ITEMS_PER_THREAD, &|range| {
        // SAFETY: `for_each` hands each index to one call.
        let x = unsafe { x.span(range.start, range.len()) };
        job(x, &y[range]);
    });
}
