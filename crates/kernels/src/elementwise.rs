//! Row-wise sums and the SwiGLU activation (Shazeer 2020).
//!
//! Not reductions: each output element depends on the inputs at its own index only.

use crate::isa::{Isa, compiled_per_isa};
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
    let isa = Isa::best();
    zip_spans(pool, gate, up, &|gate, up| silu_mul_span(isa, gate, up));
}

/// `x += y`, element by element over the shorter of the two.
pub fn add_assign(pool: &Pool, x: &mut [f32], y: &[f32]) {
    let isa = Isa::best();
    zip_spans(pool, x, y, &|x, y| add_span(isa, x, y));
}

/// Adds `bias` to each row of `x`: (rows, `bias.len()`).
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    if bias.is_empty() {
        return;
    }
    let isa = Isa::best();
    for row in x.chunks_exact_mut(bias.len()) {
        add_span(isa, row, bias);
    }
}

/// The same with all threads.
pub fn add_bias_rows(pool: &Pool, x: &mut [f32], bias: &[f32]) {
    let cols = bias.len();
    if cols == 0 {
        return;
    }
    let isa = Isa::best();
    let rows = x.len() / cols;
    let x = SharedRows::new(x, cols);
    pool.for_each(rows, (MIN_ITEMS_PER_THREAD / cols).max(1), &|range| {
        for row in range {
            // SAFETY: `for_each` hands each row to one call.
            add_span(isa, unsafe { x.row(row) }, bias);
        }
    });
}

compiled_per_isa! {
    fn add_span(x: &mut [f32], y: &[f32]) = add_body
}

#[inline(always)]
fn add_body<const FUSED: bool>(x: &mut [f32], y: &[f32]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// The same bits for an element wherever it lies in a span: whole vectors even at the end.
pub(crate) fn silu_mul_span(isa: Isa, gate: &mut [f32], up: &[f32]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level exists only where AVX2 and FMA do.
        Isa::Avx2 => unsafe { silu_mul_avx2(gate, up) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level exists only where AVX-512 F does.
        Isa::Avx512 => unsafe { silu_mul_avx512(gate, up) },
        _ => {
            for (g, &u) in gate.iter_mut().zip(up) {
                *g = *g / (1.0 + (-*g).exp()) * u;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn silu_mul_avx2(gate: &mut [f32], up: &[f32]) {
    use std::arch::x86_64::*;
    let one = _mm256_set1_ps(1.0);
    let silu_mul = |g: &mut [f32; 8], u: &[f32; 8]| {
        // SAFETY: 8 elements each.
        unsafe {
            let x = _mm256_loadu_ps(g.as_ptr());
            let exp = crate::vexp::avx2::exp(_mm256_sub_ps(_mm256_setzero_ps(), x));
            let silu = _mm256_div_ps(x, _mm256_add_ps(one, exp));
            _mm256_storeu_ps(g.as_mut_ptr(), _mm256_mul_ps(silu, _mm256_loadu_ps(u.as_ptr())));
        }
    };
    let len = gate.len().min(up.len());
    let (gates, gate_rest) = gate[..len].as_chunks_mut::<8>();
    let (ups, up_rest) = up[..len].as_chunks::<8>();
    for (g, u) in gates.iter_mut().zip(ups) {
        silu_mul(g, u);
    }
    let (mut g, mut u) = ([0.0; 8], [0.0; 8]);
    g[..gate_rest.len()].copy_from_slice(gate_rest);
    u[..up_rest.len()].copy_from_slice(up_rest);
    silu_mul(&mut g, &u);
    gate_rest.copy_from_slice(&g[..gate_rest.len()]);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn silu_mul_avx512(gate: &mut [f32], up: &[f32]) {
    use std::arch::x86_64::*;
    let one = _mm512_set1_ps(1.0);
    let len = gate.len().min(up.len());
    for start in (0..len).step_by(16) {
        let lanes = u16::MAX >> (16 - (len - start).min(16));
        // SAFETY: the lanes inside of both slices.
        unsafe {
            let at = gate.as_mut_ptr().add(start);
            let x = _mm512_maskz_loadu_ps(lanes, at);
            let exp = crate::vexp::avx512::exp(_mm512_sub_ps(_mm512_setzero_ps(), x));
            let silu = _mm512_div_ps(x, _mm512_add_ps(one, exp));
            let up = _mm512_maskz_loadu_ps(lanes, up.as_ptr().add(start));
            _mm512_mask_storeu_ps(at, lanes, _mm512_mul_ps(silu, up));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silu_is_close_to_f64_at_each_length() {
        for isa in Isa::ALL {
            if !isa.available() {
                eprintln!("skipped: {isa:?} is not available");
                continue;
            }
            for len in (0..40).chain([896, 4864, 5003]) {
                let mut gate: Vec<f32> =
                    (0..len).map(|i| ((i * 61) % 397) as f32 * 0.1 - 19.85).collect();
                let up: Vec<f32> = (0..len).map(|i| (i % 13) as f32 - 6.0).collect();
                let want: Vec<f64> = gate
                    .iter()
                    .zip(&up)
                    .map(|(&g, &u)| f64::from(g) / (1.0 + (-f64::from(g)).exp()) * f64::from(u))
                    .collect();
                silu_mul_span(isa, &mut gate, &up);
                for (&got, want) in gate.iter().zip(want) {
                    let error = (f64::from(got) - want).abs();
                    assert!(error <= 1e-6 * want.abs() + 1e-12, "{isa:?} {len}: {got} {want}");
                }
            }
            let mut ends = [f32::NEG_INFINITY, -200.0, 200.0, f32::NAN];
            silu_mul_span(isa, &mut ends, &[1.0; 4]);
            assert!(
                ends[1].abs() < 1e-30 && ends[2] == 200.0 && ends[3].is_nan(),
                "{isa:?} {ends:?}"
            );
        }
    }

    #[test]
    fn sums_over_threads_and_rows() {
        let y: Vec<f32> = (0..20_011).map(|i| i as f32).collect();
        let mut x = vec![1.0; y.len()];
        add_assign(&Pool::new(3), &mut x, &y);
        assert!(x.iter().enumerate().all(|(i, &v)| v == i as f32 + 1.0));
        let mut rows = vec![1.0; 21];
        add_bias(&mut rows, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(rows[14..], [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let mut rows = vec![1.0; 7 * 3000];
        add_bias_rows(&Pool::new(3), &mut rows, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert!(rows.chunks(7).all(|row| row == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]));
    }

    #[test]
    fn spans_stay_inside() {
        let mut data = vec![0.0; 10];
        let rows = SharedRows::new(&mut data, 4);
        // SAFETY: one span at a time.
        let lengths = [0, 1, 2, 3, usize::MAX].map(|row| unsafe { rows.row(row).len() });
        assert_eq!(lengths, [4, 4, 2, 0, 0]);
    }
}
