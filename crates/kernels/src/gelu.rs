//! GELU (Hendrycks and Gimpel 2016), the exact one: `x · Φ(x)`, with the bias of the layer before it.
//!
//! Not the tanh approximation. The tail of the normal distribution is Abramowitz and Stegun's 7.1.26, within 1.5e-7 of
//! it. Invariant: an element's result depends on it and its bias alone, wherever it lies in a row.

use crate::elementwise::{MIN_ITEMS_PER_THREAD, SharedRows};
use crate::isa::Isa;
use crate::pool::Pool;

/// 7.1.26: `erfc(z) = (a1 t + … + a5 t⁵) exp(-z²)`, `t = 1 / (1 + p z)`, for z ≥ 0.
const P: f32 = 0.327_591_1;
const A: [f32; 5] = [0.254_829_6, -0.284_496_74, 1.421_413_7, -1.453_152, 1.061_405_4];

/// `x = gelu(x + bias)`, row by row. `x`: (rows, `bias.len()`) row-major; an incomplete last row is left alone.
pub fn gelu_bias(pool: &Pool, x: &mut [f32], bias: &[f32]) {
    let cols = bias.len();
    if cols == 0 {
        return;
    }
    let isa = Isa::best();
    let rows = x.len() / cols;
    let chunk = (MIN_ITEMS_PER_THREAD / cols).max(1);
    let x = SharedRows::new(x, cols);
    pool.for_each(rows, chunk, &|range| {
        for row in range {
            // SAFETY: `for_each` hands each row to one call, and `row < rows` rows of `cols` lie inside `x`.
            gelu_row(isa, unsafe { x.row(row) }, bias);
        }
    });
}

fn gelu_row(isa: Isa, x: &mut [f32], bias: &[f32]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these levels exist only where AVX2 and FMA do.
        Isa::Avx2 | Isa::Avx512 => unsafe { gelu_row_avx2(x, bias) },
        _ => x.iter_mut().zip(bias).for_each(|(x, &bias)| *x = gelu(*x + bias)),
    }
}

fn gelu(x: f32) -> f32 {
    // Beyond 20 the tail is 0, and squares could overflow.
    let size = x.abs().min(20.0);
    let z = size * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + P * z);
    let [a1, a2, a3, a4, a5] = A;
    let tail = ((((a5 * t + a4) * t + a3) * t + a2) * t + a1) * t * (-z * z).exp();
    // x Φ(x) is x less the upper tail for positive x, and minus the tail for negative ones; NaN stays.
    let positive = if x < 0.0 { 0.0 } else { x };
    positive - 0.5 * size * tail
}

/// The same bits for an element wherever it lies in a row: whole vectors even at the end.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn gelu_row_avx2(x: &mut [f32], bias: &[f32]) {
    let len = x.len().min(bias.len());
    let (vectors, rest) = x[..len].as_chunks_mut::<8>();
    let (biases, bias_rest) = bias[..len].as_chunks::<8>();
    for (x, bias) in vectors.iter_mut().zip(biases) {
        gelu_vector(x, bias);
    }
    let (mut last, mut last_bias) = ([0.0; 8], [0.0; 8]);
    last[..rest.len()].copy_from_slice(rest);
    last_bias[..rest.len()].copy_from_slice(bias_rest);
    gelu_vector(&mut last, &last_bias);
    rest.copy_from_slice(&last[..rest.len()]);
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
fn gelu_vector(x: &mut [f32; 8], bias: &[f32; 8]) {
    use std::arch::x86_64::*;
    let all = |v: f32| _mm256_set1_ps(v);
    // SAFETY: 8 elements each.
    let (v, bias) = unsafe { (_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(bias.as_ptr())) };
    let v = _mm256_add_ps(v, bias);
    // Beyond 20 the tail is 0, and squares could overflow.
    let size = _mm256_min_ps(_mm256_andnot_ps(all(-0.0), v), all(20.0));
    let z = _mm256_mul_ps(size, all(std::f32::consts::FRAC_1_SQRT_2));
    let t = _mm256_div_ps(all(1.0), _mm256_fmadd_ps(z, all(P), all(1.0)));
    let [a1, a2, a3, a4, a5] = A;
    let mut tail = _mm256_fmadd_ps(all(a5), t, all(a4));
    for a in [a3, a2, a1] {
        tail = _mm256_fmadd_ps(tail, t, all(a));
    }
    let exp = crate::vexp::avx2::exp(_mm256_fnmadd_ps(z, z, _mm256_setzero_ps()));
    let tail =
        _mm256_mul_ps(_mm256_mul_ps(tail, t), _mm256_mul_ps(exp, _mm256_mul_ps(size, all(0.5))));
    // `max` gives its second operand where one is NaN.
    let positive = _mm256_max_ps(_mm256_setzero_ps(), v);
    // SAFETY: 8 elements.
    unsafe { _mm256_storeu_ps(x.as_mut_ptr(), _mm256_sub_ps(positive, tail)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erfc in double precision: a continued fraction far out, a series near zero.
    fn normal_cdf(x: f64) -> f64 {
        let z = x.abs() / std::f64::consts::SQRT_2;
        let erfc = if z < 2.5 {
            let (mut term, mut sum) = (z, z);
            for n in 1..80 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            1.0 - 2.0 / std::f64::consts::PI.sqrt() * sum
        } else {
            let fraction = (1..60).rev().fold(z, |f, n| z + f64::from(n) / 2.0 / f);
            (-z * z).exp() / std::f64::consts::PI.sqrt() / fraction
        };
        if x > 0.0 { 1.0 - erfc / 2.0 } else { erfc / 2.0 }
    }

    #[test]
    fn close_to_f64_at_each_length() {
        for isa in Isa::ALL {
            if !isa.available() {
                eprintln!("skipped: {isa:?} is not available");
                continue;
            }
            for len in (1..20).chain([1536, 4001]) {
                let bias: Vec<f32> = (0..len).map(|i| (i % 5) as f32 * 0.5 - 1.0).collect();
                let mut got: Vec<f32> =
                    (0..len).map(|i| ((i * 61) % 397) as f32 * 0.05 - 9.9).collect();
                let want: Vec<f64> = got
                    .iter()
                    .zip(&bias)
                    .map(|(&x, &b)| f64::from(x + b) * normal_cdf(f64::from(x + b)))
                    .collect();
                gelu_row(isa, &mut got, &bias);
                for (&got, want) in got.iter().zip(want) {
                    let error = (f64::from(got) - want).abs();
                    assert!(error <= 6e-7 * (1.0 + want.abs()), "{isa:?} {len}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn ends_and_broken_numbers() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let mut x = [f32::INFINITY, 1e30, -1e30, 0.0, -200.0, f32::NAN];
            gelu_row(isa, &mut x, &[0.0; 6]);
            assert_eq!(x[0], f32::INFINITY, "{isa:?}");
            assert_eq!(x[1], 1e30, "{isa:?}");
            assert!(x[2..5].iter().all(|v| *v == 0.0), "{isa:?} {x:?}");
            assert!(x[5].is_nan(), "{isa:?} {x:?}");
        }
    }

    #[test]
    fn threads_make_no_difference() {
        let bias: Vec<f32> = (0..137).map(|i| i as f32 * 0.01).collect();
        let x: Vec<f32> = (0..137 * 200).map(|i| (i % 91) as f32 * 0.1 - 4.0).collect();
        let run = |threads, x: &[f32]| {
            let mut x = x.to_vec();
            gelu_bias(&Pool::new(threads), &mut x, &bias);
            x
        };
        let want = run(1, &x);
        assert_eq!(run(3, &x), want);
        assert_eq!(run(2, &x[137..274]), want[137..274]);
    }
}
