//! Sampling mathematics over one row of logits.
//!
//! Chooses nothing at random and knows no temperature; that is the sampler's. Invariant: ties go to the lower index, and
//! a NaN never wins and never counts.

use crate::isa::{Isa, compiled_per_isa};
use std::cmp::Ordering;

/// Elements that are looked at together.
const BLOCK: usize = 64;
/// Elements whose exponentials are summed in single precision before the sum goes on in double.
const SUM_BLOCK: usize = 1024;

/// Index of the largest value, the lowest among equals; 0 for an empty row or one of NaN only.
#[must_use]
pub fn argmax(x: &[f32]) -> usize {
    let isa = Isa::best();
    find(isa, x, row_max(isa, x)).unwrap_or(0)
}

/// The largest value, NaN passed over; negative infinity for an empty row or one of NaN only.
#[must_use]
pub fn max(x: &[f32]) -> f32 {
    row_max(Isa::best(), x)
}

/// `ln Σ exp(x)`, shifted by the maximum so that it cannot overflow; negative infinity for an empty row.
#[must_use]
pub fn log_sum_exp(x: &[f32]) -> f32 {
    let isa = Isa::best();
    let max = row_max(isa, x);
    if max.is_infinite() {
        return max;
    }
    let sum: f64 = x.chunks(SUM_BLOCK).map(|block| f64::from(sum_exp(isa, block, max))).sum();
    max + sum.ln() as f32
}

/// Replaces `x` by `exp(x - log_sum_exp(x))`; a row without a finite maximum is left alone.
pub fn softmax(x: &mut [f32]) {
    let isa = Isa::best();
    let max = row_max(isa, x);
    if max.is_infinite() {
        return;
    }
    let sum: f64 = x.chunks(SUM_BLOCK).map(|block| f64::from(sum_exp(isa, block, max))).sum();
    exp_scaled(isa, x, max, (1.0 / sum) as f32);
}

/// The `k` largest values with their indices, best first, the lower index first among equals; fewer where `x` has fewer
/// that are not NaN.
#[must_use]
pub fn top_k(x: &[f32], k: usize) -> Vec<(u32, f32)> {
    if k == 0 {
        return Vec::new();
    }
    // At least k blocks reach the k-th largest block maximum, so the k-th largest value does too: whatever is below it
    // need not be sorted. With few blocks for k that would keep nearly all.
    let mut best = if x.len() / BLOCK > 2 * k {
        above_threshold(x, k)
    } else {
        candidates(0, x, f32::NEG_INFINITY)
    };
    let order = |a: &(u32, f32), b: &(u32, f32)| {
        b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
    };
    if k < best.len() {
        best.select_nth_unstable_by(k - 1, order);
        best.truncate(k);
    }
    best.sort_unstable_by(order);
    best
}

/// The elements that may be among the `k` largest, and few more.
fn above_threshold(x: &[f32], k: usize) -> Vec<(u32, f32)> {
    let isa = Isa::best();
    let maxima: Vec<f32> = x.chunks(BLOCK).map(|block| row_max(isa, block)).collect();
    let mut sorted = maxima.clone();
    let (_, threshold, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let threshold = *threshold;
    let mut kept = Vec::with_capacity(2 * k);
    for (i, (block, _)) in
        x.chunks(BLOCK).zip(&maxima).enumerate().filter(|(_, (_, max))| **max >= threshold)
    {
        kept.extend(candidates(i * BLOCK, block, threshold));
    }
    kept
}

fn candidates(start: usize, x: &[f32], threshold: f32) -> Vec<(u32, f32)> {
    // NaN is not at or above anything.
    x.iter()
        .enumerate()
        .filter(|(_, v)| **v >= threshold)
        .map(|(i, &v)| ((start + i) as u32, v))
        .collect()
}

/// Index of the first element that equals `value`.
fn find(isa: Isa, x: &[f32], value: f32) -> Option<usize> {
    let block = x.chunks(BLOCK).position(|block| contains(isa, block, value))? * BLOCK;
    x[block..].iter().position(|&v| v == value).map(|i| block + i)
}

compiled_per_isa! {
    fn contains(x: &[f32], value: f32) -> bool = contains_body
}

#[inline(always)]
fn contains_body<const FUSED: bool>(x: &[f32], value: f32) -> bool {
    // No early exit: the comparisons fill vectors.
    x.iter().fold(false, |found, &v| found | (v == value))
}

compiled_per_isa! {
    fn row_max(x: &[f32]) -> f32 = row_max_body
}

#[inline(always)]
fn row_max_body<const FUSED: bool>(x: &[f32]) -> f32 {
    const LANES: usize = 32;
    let larger = |best: f32, v: f32| if v > best { v } else { best };
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, v);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |best, &v| larger(best, v))
}

/// `Σ exp(x - max)`, NaN passed over.
fn sum_exp(isa: Isa, x: &[f32], max: f32) -> f32 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these levels exist only where AVX2 and FMA do.
        Isa::Avx2 | Isa::Avx512 => unsafe { sum_exp_avx2(x, max) },
        _ => x.iter().filter(|v| !v.is_nan()).map(|&v| (v - max).exp()).sum(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn sum_exp_avx2(x: &[f32], max: f32) -> f32 {
    use std::arch::x86_64::*;
    let exp = |v: &[f32; 8]| {
        // SAFETY: 8 elements.
        let v = unsafe { _mm256_loadu_ps(v.as_ptr()) };
        let exp = crate::vexp::avx2::exp(_mm256_sub_ps(v, _mm256_set1_ps(max)));
        _mm256_and_ps(exp, _mm256_cmp_ps::<_CMP_ORD_Q>(v, v))
    };
    let (chunks, rest) = x.as_chunks::<8>();
    let mut last = [f32::NEG_INFINITY; 8];
    last[..rest.len()].copy_from_slice(rest);
    let mut sums = [_mm256_setzero_ps(); 2];
    for (i, chunk) in chunks.iter().chain([&last]).enumerate() {
        sums[i % 2] = _mm256_add_ps(sums[i % 2], exp(chunk));
    }
    let mut lanes = [0.0; 8];
    // SAFETY: 8 elements.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(sums[0], sums[1])) };
    lanes.iter().sum()
}

/// `x = exp(x - max) * scale`.
fn exp_scaled(isa: Isa, x: &mut [f32], max: f32, scale: f32) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these levels exist only where AVX2 and FMA do.
        Isa::Avx2 | Isa::Avx512 => unsafe { exp_scaled_avx2(x, max, scale) },
        _ => x.iter_mut().for_each(|v| *v = (*v - max).exp() * scale),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn exp_scaled_avx2(x: &mut [f32], max: f32, scale: f32) {
    use std::arch::x86_64::*;
    let (chunks, rest) = x.as_chunks_mut::<8>();
    let mut last = [0.0; 8];
    last[..rest.len()].copy_from_slice(rest);
    for chunk in chunks.iter_mut().chain([&mut last]) {
        // SAFETY: 8 elements.
        unsafe {
            let v = _mm256_sub_ps(_mm256_loadu_ps(chunk.as_ptr()), _mm256_set1_ps(max));
            _mm256_storeu_ps(
                chunk.as_mut_ptr(),
                _mm256_mul_ps(crate::vexp::avx2::exp(v), _mm256_set1_ps(scale)),
            );
        }
    }
    rest.copy_from_slice(&last[..rest.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize, distinct: u64) -> Vec<f32> {
        let mut state = len as u64 + 1;
        (0..len)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((state >> 33) % distinct) as f32 / distinct as f32 * 40.0 - 30.0
            })
            .collect()
    }

    /// By sorting everything.
    fn slow_top_k(x: &[f32], k: usize) -> Vec<(u32, f32)> {
        let mut all: Vec<(u32, f32)> =
            (0..).zip(x.iter().copied()).filter(|(_, v)| !v.is_nan()).collect();
        all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
        all.truncate(k);
        all
    }

    #[test]
    fn top_k_equals_sorting() {
        for len in [0, 1, 5, 64, 1000, 8191, 40_000] {
            for distinct in [1, 3, 50, 1 << 30] {
                let mut x = row(len, distinct);
                for k in [0, 1, 2, 20, 100, 1000, 50_000] {
                    assert_eq!(top_k(&x, k), slow_top_k(&x, k), "{len} {distinct} {k}");
                }
                x.iter_mut().step_by(3).for_each(|v| *v = f32::NAN);
                x.iter_mut().skip(1).step_by(7).for_each(|v| *v = f32::NEG_INFINITY);
                assert_eq!(top_k(&x, 30), slow_top_k(&x, 30), "{len} {distinct} with NaN");
            }
        }
        assert_eq!(top_k(&[-0.0, 0.0, 1.0], 3), [(2, 1.0), (0, -0.0), (1, 0.0)]);
    }

    #[test]
    fn argmax_takes_the_lowest_of_equals_and_no_nan() {
        for (x, want) in [
            (vec![], 0),
            (vec![f32::NAN, f32::NAN], 0),
            (vec![f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY], 1),
            (vec![1.0, 3.0, 3.0, 2.0], 1),
            (vec![1.0, f32::NAN, 2.0], 2),
            (vec![-0.0, 0.0], 0),
        ] {
            assert_eq!(argmax(&x), want, "{x:?}");
        }
        for len in [1, 63, 64, 65, 151_936] {
            let x = row(len, 1 << 20);
            assert_eq!(argmax(&x), slow_top_k(&x, 1)[0].0 as usize, "{len}");
            assert_eq!(max(&x), slow_top_k(&x, 1)[0].1);
        }
    }

    #[test]
    fn sums_are_close_to_f64_on_each_level() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            for len in [1, 7, 8, 9, 1023, 1024, 1025] {
                let x = row(len, 1 << 30);
                let truth: f64 = x.iter().map(|&v| f64::from(v).exp()).sum();
                let got = f64::from(sum_exp(isa, &x, 0.0));
                assert!((got / truth - 1.0).abs() < 2e-6, "{isa:?} {len}");
            }
        }
        let x = row(151_936, 1 << 30);
        let truth = x.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
        assert!((f64::from(log_sum_exp(&x)) - truth).abs() < 2e-6);
        let mut p = x.clone();
        softmax(&mut p);
        for (p, x) in p.iter().zip(&x) {
            assert!((f64::from(*p) / (f64::from(*x) - truth).exp() - 1.0).abs() < 3e-6);
        }
    }

    #[test]
    fn odd_rows() {
        assert_eq!(log_sum_exp(&[]), f32::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[f32::NAN, 2.0]), 2.0);
        assert_eq!(log_sum_exp(&[f32::INFINITY, 2.0]), f32::INFINITY);
        let mut none = [f32::NEG_INFINITY; 3];
        softmax(&mut none);
        assert_eq!(none, [f32::NEG_INFINITY; 3]);
    }
}
