//! Norms over rows: RMS norm (Zhang and Sennrich 2019), `x / sqrt(mean(x²) + eps) * weight`, and layer norm (Ba et al.
//! 2016), `(x - mean) / sqrt(variance + eps) * weight + bias`.
//!
//! Invariant: a row's result depends on that row alone.

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

/// `x = layer_norm(x + y + y_bias)`, row by row: what ends each half of an encoder's layer.
///
/// `x`, `y`: (rows, `weight.len()`) row-major; `weight`, `bias`, `y_bias`: one row. Rows beyond the shorter of `x` and `y`
/// are left alone.
///
/// # Panics
/// If `bias` or `y_bias` has another length than `weight`: an error of the caller, never of a file.
pub fn add_layer_norm(
    pool: &Pool,
    x: &mut [f32],
    y: &[f32],
    y_bias: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
) {
    let cols = weight.len();
    assert!(bias.len() == cols && y_bias.len() == cols, "vectors of different lengths");
    if cols == 0 {
        return;
    }
    let isa = Isa::best();
    let rows = x.len().min(y.len()) / cols;
    let chunk = (MIN_ITEMS_PER_THREAD / cols).max(1);
    let x = SharedRows::new(x, cols);
    pool.for_each(rows, chunk, &|range| {
        for row in range {
            // SAFETY: `for_each` hands each row to one call, and `row < rows` rows of `cols` lie inside `x`.
            let x = unsafe { x.row(row) };
            add_layer_norm_row(isa, x, &y[row * cols..][..cols], y_bias, weight, bias, eps);
        }
    });
}

compiled_per_isa! {
    fn add_layer_norm_row(
        x: &mut [f32], y: &[f32], y_bias: &[f32], weight: &[f32], bias: &[f32], eps: f32
    ) = add_layer_norm_body
}

#[inline(always)]
fn add_layer_norm_body<const FUSED: bool>(
    x: &mut [f32],
    y: &[f32],
    y_bias: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
) {
    for ((x, &y), &b) in x.iter_mut().zip(y).zip(y_bias) {
        *x += y + b;
    }
    let count = x.len() as f32;
    let mean = sum_in_lanes(x, |lane, v| lane + v) / count;
    // Around the mean: sums of squares lose what the mean is large against.
    let squares = sum_in_lanes(x, |lane, v| multiply_add::<FUSED>(v - mean, v - mean, lane));
    let scale = 1.0 / (squares / count + eps).sqrt();
    for ((x, &w), &b) in x.iter_mut().zip(weight).zip(bias) {
        *x = multiply_add::<FUSED>((*x - mean) * scale, w, b);
    }
}

/// Folds a row into [`LANES`] partial sums, then adds those in order.
#[inline(always)]
fn sum_in_lanes(x: &[f32], add: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = add(*lane, v);
        }
    }
    let rest = rest.iter().fold(0.0, |sum, &v| add(sum, v));
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_layer_norm(isa: Isa, cols: usize) {
        if !isa.available() {
            eprintln!("skipped: {isa:?} is not available");
            return;
        }
        // A mean far from zero: what a one-pass variance would lose.
        let x: Vec<f32> = (0..cols).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.3 + 90.0).collect();
        let y: Vec<f32> = (0..cols).map(|i| (i * 13 % 17) as f32 * 0.25).collect();
        let y_bias: Vec<f32> = (0..cols).map(|i| (i % 3) as f32).collect();
        let weight: Vec<f32> = (0..cols).map(|i| 1.0 + (i % 7) as f32 * 0.1).collect();
        let bias: Vec<f32> = (0..cols).map(|i| (i % 5) as f32 * 0.2 - 0.4).collect();
        let mut got = x.clone();
        add_layer_norm_row(isa, &mut got, &y, &y_bias, &weight, &bias, 1e-12);
        let sums: Vec<f64> =
            (0..cols).map(|i| f64::from(x[i]) + f64::from(y[i]) + f64::from(y_bias[i])).collect();
        let mean = sums.iter().sum::<f64>() / cols as f64;
        let variance = sums.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / cols as f64;
        for i in 0..cols {
            let normed = (sums[i] - mean) / (variance + 1e-12).sqrt();
            let want = normed * f64::from(weight[i]) + f64::from(bias[i]);
            assert!((f64::from(got[i]) - want).abs() <= 2e-5, "{isa:?} {cols} {i}: {want}");
        }
    }

    #[test]
    fn layer_norm_is_close_to_f64() {
        for isa in Isa::ALL {
            [2, 7, 31, 32, 33, 64, 384, 768, 1543]
                .into_iter()
                .for_each(|cols| check_layer_norm(isa, cols));
        }
    }

    #[test]
    fn each_layer_norm_row_as_if_alone() {
        let (rows, cols) = (70, 130);
        let x: Vec<f32> = (0..rows * cols).map(|i| (i % 89) as f32 - 40.0).collect();
        let y: Vec<f32> = (0..rows * cols).map(|i| (i % 53) as f32).collect();
        let (ones, zeros) = (vec![1.0; cols], vec![0.5; cols]);
        let run = |threads, x: &[f32], y: &[f32]| {
            let mut x = x.to_vec();
            add_layer_norm(&Pool::new(threads), &mut x, y, &zeros, &ones, &zeros, 1e-5);
            x
        };
        let want = run(1, &x, &y);
        assert_eq!(run(3, &x, &y), want);
        let row = cols * 5..cols * 6;
        assert_eq!(run(2, &x[row.clone()], &y[row.clone()]), want[row]);
    }

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
