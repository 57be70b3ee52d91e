//! Exponentials in vector registers, and their scalar twin.
//!
//! Not correctly rounded: `2ˣ` is the nearest integer power times a polynomial of degree 5 on [-½, ½] (minimax for the
//! relative error, constant term exactly 1), within `EXP2_ERROR` of the true value. Invariants: `exp2(0)` is exactly 1,
//! results below 2⁻¹²⁶ are exactly 0 (as for -∞), NaN stays NaN, above the range comes +∞.

/// Ceiling of the relative error of `exp2` wherever its result is a normal number.
#[cfg(test)]
const EXP2_ERROR: f32 = 2.5e-7;
/// Ceiling of the relative error of `exp` for arguments in [-80, 80].
#[cfg(test)]
const EXP_ERROR: f32 = 3e-7;

#[allow(clippy::approx_constant, reason = "the minimax coefficient, which is not ln 2")]
const C1: f32 = 0.693_147;
const C2: f32 = 0.240_222_42;
const C3: f32 = 0.055_507_336;
const C4: f32 = 0.009_671_513;
const C5: f32 = 0.001_326_472_7;
/// log₂e in two parts: the second is what the first lacks.
#[cfg(target_arch = "x86_64")]
const LOG2_E: (f32, f32) = (std::f32::consts::LOG2_E, 1.925_963e-8);

/// 2ˣ, as the vectors compute it but for fused rounding.
#[must_use]
pub(crate) fn exp2(x: f32) -> f32 {
    if x < -126.0 {
        return 0.0;
    }
    if x >= 128.0 {
        return f32::INFINITY;
    }
    let n = x.round_ties_even();
    let f = x - n;
    let y = ((((C5 * f + C4) * f + C3) * f + C2) * f + C1) * f + 1.0;
    // 2¹²⁸ has no f32: two halves.
    let half = (n * 0.5).floor();
    y * power_of_two(half) * power_of_two(n - half)
}

fn power_of_two(n: f32) -> f32 {
    f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// The 8-lane forms.
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2 {
    use super::{C1, C2, C3, C4, C5, LOG2_E};
    use std::arch::x86_64::*;

    /// 2ⁿ⁺ᶠ for integer `n` in [-126, 128] and `f` in [-½, ½]; lanes where `n + f` is below -126 become 0.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn scaled(x: __m256, n: __m256, f: __m256) -> __m256 {
        let mut y = _mm256_fmadd_ps(_mm256_set1_ps(C5), f, _mm256_set1_ps(C4));
        y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(C3));
        y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(C2));
        y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(C1));
        y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(1.0));
        // y lies in [0.7, 1.42): adding n to its exponent is the multiplication, but for 2¹²⁸, which becomes +∞ below.
        let bits = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
        let y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), bits));
        let y = _mm256_blendv_ps(
            y,
            _mm256_set1_ps(f32::INFINITY),
            _mm256_cmp_ps::<_CMP_GE_OQ>(x, _mm256_set1_ps(128.0)),
        );
        let y = _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        _mm256_and_ps(y, _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(-126.0)))
    }

    /// 2ˣ.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn exp2(x: __m256) -> __m256 {
        let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        scaled(x, n, _mm256_sub_ps(x, n))
    }

    /// eˣ.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn exp(x: __m256) -> __m256 {
        let t = _mm256_mul_ps(x, _mm256_set1_ps(LOG2_E.0));
        let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(t);
        let f = _mm256_fmsub_ps(x, _mm256_set1_ps(LOG2_E.0), n);
        scaled(t, n, _mm256_fmadd_ps(x, _mm256_set1_ps(LOG2_E.1), f))
    }
}

/// The 16-lane forms.
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512 {
    use super::{C1, C2, C3, C4, C5, LOG2_E};
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn scaled(x: __m512, n: __m512, f: __m512) -> __m512 {
        let mut y = _mm512_fmadd_ps(_mm512_set1_ps(C5), f, _mm512_set1_ps(C4));
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(C3));
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(C2));
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(C1));
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0));
        let normal = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(-126.0));
        _mm512_maskz_scalef_ps(normal, y, n)
    }

    /// 2ˣ.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn exp2(x: __m512) -> __m512 {
        // Beyond 2¹²⁸ the fraction of +∞ would be NaN; scalef turns the cap into +∞.
        let x = _mm512_min_ps(_mm512_set1_ps(200.0), x);
        let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        scaled(x, n, _mm512_sub_ps(x, n))
    }

    /// eˣ.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn exp(x: __m512) -> __m512 {
        // As above; NaN, the second of the two, stays.
        let x = _mm512_min_ps(_mm512_set1_ps(120.0), x);
        let t = _mm512_mul_ps(x, _mm512_set1_ps(LOG2_E.0));
        let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(t);
        let f = _mm512_fmsub_ps(x, _mm512_set1_ps(LOG2_E.0), n);
        scaled(t, n, _mm512_fmadd_ps(x, _mm512_set1_ps(LOG2_E.1), f))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;

    /// Applies a level's `exp2` or `exp` to each element; the length is a multiple of 16.
    fn apply(isa: Isa, natural: bool, x: &mut [f32]) {
        match isa {
            Isa::Scalar if natural => x.iter_mut().for_each(|v| *v = v.exp()),
            Isa::Scalar => x.iter_mut().for_each(|v| *v = exp2(*v)),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: only called for available levels, on whole vectors.
            Isa::Avx2 => unsafe { apply_avx2(natural, x) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { apply_avx512(natural, x) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => {}
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn apply_avx2(natural: bool, x: &mut [f32]) {
        use std::arch::x86_64::*;
        for x in x.chunks_exact_mut(8) {
            // SAFETY: 8 elements.
            unsafe {
                let v = _mm256_loadu_ps(x.as_ptr());
                _mm256_storeu_ps(
                    x.as_mut_ptr(),
                    if natural { avx2::exp(v) } else { avx2::exp2(v) },
                );
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn apply_avx512(natural: bool, x: &mut [f32]) {
        use std::arch::x86_64::*;
        for x in x.chunks_exact_mut(16) {
            // SAFETY: 16 elements.
            unsafe {
                let v = _mm512_loadu_ps(x.as_ptr());
                let exp = if natural { avx512::exp(v) } else { avx512::exp2(v) };
                _mm512_storeu_ps(x.as_mut_ptr(), exp);
            }
        }
    }

    fn check(isa: Isa) {
        if !isa.available() {
            eprintln!("skipped: {isa:?} is not available");
            return;
        }
        for natural in [false, true] {
            let (limit, ceiling) = if natural { (80.0, EXP_ERROR) } else { (125.9, EXP2_ERROR) };
            let inputs: Vec<f32> =
                (0..160_000).map(|i| (i as f32 / 80_000.0 - 1.0) * limit).collect();
            let mut got = inputs.clone();
            apply(isa, natural, &mut got);
            for (&x, &y) in inputs.iter().zip(&got) {
                let x = f64::from(x);
                let truth = if natural { x.exp() } else { x.exp2() };
                let error = (f64::from(y) / truth - 1.0).abs();
                assert!(error <= f64::from(ceiling), "{isa:?} {natural} {x}: {error:e}");
            }
            let mut special = [0.0; 16];
            special[..6].copy_from_slice(&[
                0.0,
                f32::NEG_INFINITY,
                -200.0,
                f32::INFINITY,
                150.0,
                f32::NAN,
            ]);
            apply(isa, natural, &mut special);
            assert_eq!(
                special[..5],
                [1.0, 0.0, special[2], f32::INFINITY, f32::INFINITY],
                "{isa:?} {natural}"
            );
            assert!(special[2] <= 1e-38 && special[5].is_nan(), "{isa:?} {natural} {special:?}");
        }
    }

    #[test]
    fn within_the_ceiling() {
        Isa::ALL.into_iter().for_each(check);
    }
}
