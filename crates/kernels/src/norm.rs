//! RMS norm over rows (Zhang and Sennrich 2019): `out = x / sqrt(mean(x²) + eps) * weight`.
//!
//! Not layer norm: no mean is subtracted and there is no bias. Invariant: a row's result depends on that row alone.

use crate::elementwise::{MIN_ITEMS_PER_THREAD, SharedRows};
use crate::isa::{Isa, compiled_per_isa, multiply_add};
use crate::pool::Pool;

/// Partial sums of squares, so that the additions of a row do not wait for each other.
const LANES: usize = 32;

/// Normalises each row of `x`; a row has `weight.len()` columns. Rows beyond the shorter of `x` and `out` are left alone.
///
/// `x`, `out`: (rows, `weight.len()`) row-major.
pub fn rms_norm(pool: &Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let cols = weight.len();
    if cols == 0 {
        return;
    }
    let isa = Isa::best();
    let rows = x.len().min(out.len()) / cols;
    let chunk = (MIN_ITEMS_PER_THREAD / cols).max(1);
    let out = SharedRows::new(out, cols);
    pool.for_each(rows, chunk, &|range| {
        for row in range {
            // SAFETY: `for_each` hands each row to one call, and `row < rows` rows of `cols` lie inside `out`.
            let out = unsafe { out.row(row) };
            rms_norm_row(isa, &x[row * cols..][..cols], weight, eps, out);
        }
    });
}

compiled_per_isa! {
    fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_row_body
}

#[inline(always)]
fn rms_norm_row_body<const FUSED: bool>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mut lanes = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|v| v * v).sum();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = multiply_add::<FUSED>(v, v, *lane);
        }
    }
    let sum = lanes.iter().sum::<f32>() + rest;
    let scale = 1.0 / (sum / x.len() as f32 + eps).sqrt();
    for ((o, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *o = x * scale * w;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative to the largest output.
    const CEILING: f64 = 1e-6;

    fn check(isa: Isa, cols: usize) {
        if !isa.available() {
            eprintln!("skipped: {isa:?} is not available");
            return;
        }
        let x: Vec<f32> = (0..cols).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.3).collect();
        let weight: Vec<f32> = (0..cols).map(|i| 1.0 + (i % 7) as f32 * 0.1).collect();
        let mut out = vec![0.0; cols];
        rms_norm_row(isa, &x, &weight, 1e-6, &mut out);
        let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / cols as f64;
        for i in 0..cols {
            let want = f64::from(x[i]) / (mean + 1e-6).sqrt() * f64::from(weight[i]);
            assert!((f64::from(out[i]) - want).abs() <= CEILING * 4.0, "{isa:?} {cols} {i}");
        }
    }

    #[test]
    fn close_to_f64() {
        for isa in Isa::ALL {
            [1, 7, 31, 32, 33, 64, 576, 896, 1536, 1543]
                .into_iter()
                .for_each(|cols| check(isa, cols));
        }
    }

    #[test]
    fn each_row_as_if_alone() {
        let (rows, cols) = (70, 130);
        let x: Vec<f32> = (0..rows * cols).map(|i| (i % 89) as f32 - 40.0).collect();
        let weight = vec![0.5; cols];
        let mut want = vec![0.0; x.len()];
        rms_norm(&Pool::new(1), &x, &weight, 1e-5, &mut want);
        let mut got = vec![0.0; x.len()];
        rms_norm(&Pool::new(3), &x, &weight, 1e-5, &mut got);
        assert_eq!(got, want);
        let mut one = vec![0.0; cols];
        rms_norm(&Pool::new(2), &x[cols * 5..][..cols], &weight, 1e-5, &mut one);
        assert_eq!(one, want[cols * 5..][..cols]);
    }
}
