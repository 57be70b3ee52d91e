//! RMS norm over rows (Zhang and Sennrich 2019): `out = x / sqrt(mean(x²) + eps) * weight`.
//!
//! Not layer norm: no mean is subtracted and there is no bias. Invariant: a row's result depends on that row alone.

use crate::elementwise::{MIN_ITEMS_PER_THREAD, SharedRows};
use crate::pool::Pool;

/// Normalises each row of `x`; a row has `weight.len()` columns. Rows beyond the shorter of `x` and `out` are left alone.
///
/// `x`, `out`: (rows, `weight.len()`) row-major.
pub fn rms_norm(pool: &Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let cols = weight.len();
    if cols == 0 {
        return;
    }
    let rows = x.len().min(out.len()) / cols;
    let chunk = (MIN_ITEMS_PER_THREAD / cols).max(1);
    let out = SharedRows::new(out, cols);
    pool.for_each(rows, chunk, &|range| {
        for row in range {
            // SAFETY: `for_each` hands each row to one call, and `row < rows` rows of `cols` lie inside `out`.
            let out = unsafe { out.row(row) };
            rms_norm_row(&x[row * cols..][..cols], weight, eps, out);
        }
    });
}

fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = inverse_rms(sum_of_squares(x), x.len(), eps);
    for ((o, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *o = x * scale * w;
    }
}

fn inverse_rms(sum: f32, cols: usize, eps: f32) -> f32 {
    1.0 / (sum / cols as f32 + eps).sqrt()
}

fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().map(|v| v * v).sum()
}
