//! Sampling mathematics over one row of logits.
//!
//! Chooses nothing at random and knows no temperature; that is the sampler's. Invariant: ties go to the lower index, and
//! a NaN never wins and never counts.

use std::cmp::Ordering;

/// Index of the largest value, the lowest among equals; 0 for an empty row or one of NaN only.
#[must_use]
pub fn argmax(x: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    let mut found = false;
    for (i, &v) in x.iter().enumerate() {
        if v > best.1 || (!found && !v.is_nan()) {
            best = (i, v);
            found = true;
        }
    }
    best.0
}

/// The largest value, NaN passed over; negative infinity for an empty row or one of NaN only.
#[must_use]
pub fn max(x: &[f32]) -> f32 {
    x.iter().fold(f32::NEG_INFINITY, |best, &v| if v > best { v } else { best })
}

/// `ln Σ exp(x)`, shifted by the maximum so that it cannot overflow; negative infinity for an empty row.
#[must_use]
pub fn log_sum_exp(x: &[f32]) -> f32 {
    let max = max(x);
    if max.is_infinite() {
        return max;
    }
    let sum: f64 = x.iter().filter(|v| !v.is_nan()).map(|&v| f64::from((v - max).exp())).sum();
    max + sum.ln() as f32
}

/// Replaces `x` by `exp(x - log_sum_exp(x))`; a row without a finite maximum is left alone.
pub fn softmax(x: &mut [f32]) {
    let total = log_sum_exp(x);
    if total.is_finite() {
        for v in x.iter_mut() {
            *v = (*v - total).exp();
        }
    }
}

/// The `k` largest values with their indices, best first, the lower index first among equals; fewer where `x` has fewer
/// that are not NaN.
#[must_use]
pub fn top_k(x: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> =
        x.iter().enumerate().filter(|(_, v)| !v.is_nan()).map(|(i, &v)| (i as u32, v)).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| {
        b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
    };
    if k < all.len() {
        if k > 0 {
            all.select_nth_unstable_by(k - 1, order);
        }
        all.truncate(k);
    }
    all.sort_unstable_by(order);
    all
}
