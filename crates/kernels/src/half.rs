//! Conversion between `f32` and IEEE 754 binary16, kept as `u16`.
//!
//! And from bfloat16. Invariants: widening is exact; narrowing rounds to nearest, ties to even, and saturates at ±65504
//! instead of overflowing, so that a finite value stays finite. The SIMD forms agree with the scalar ones bit for bit.

use crate::isa::Isa;

/// The largest finite binary16.
const MAX_HALF: f32 = 65504.0;

/// The exact value of a binary16 (NaN payloads are kept).
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let mantissa = u32::from(bits) & 0x3ff;
    match exponent {
        // Zero and subnormals: mantissa · 2⁻²⁴, exact in f32.
        0 => f32::from_bits(sign | (mantissa as f32 * f32::from_bits(0x3380_0000)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | (mantissa << 13)),
        _ => f32::from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13)),
    }
}

/// bfloat16 to single: the missing half is zero.
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest binary16, ties to even, saturating; NaN stays NaN.
pub(crate) fn f32_to_f16(value: f32) -> u16 {
    let sign = ((value.to_bits() >> 16) & 0x8000) as u16;
    if value.is_nan() {
        return sign | 0x7e00 | ((value.to_bits() >> 13) & 0x3ff) as u16;
    }
    let magnitude = value.abs().min(MAX_HALF);
    let bits = magnitude.to_bits();
    if bits < 0x3880_0000 {
        // Subnormal in binary16: adding 0.5 leaves multiples of 2⁻²⁴ in the fraction, rounded by the hardware.
        return sign | ((magnitude + 0.5).to_bits() - 0.5f32.to_bits()) as u16;
    }
    let rounded = bits + 0x0fff + ((bits >> 13) & 1);
    sign | ((rounded >> 13) - (112 << 10)) as u16
}

/// Narrows `src` into `dst`, over the shorter of the two.
pub(crate) fn narrow(isa: Isa, src: &[f32], dst: &mut [u16]) {
    let len = src.len().min(dst.len());
    let (src, dst) = (&src[..len], &mut dst[..len]);
    let done = match isa {
        Isa::Scalar => 0,
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these levels exist only where AVX2 and F16C do.
        Isa::Avx2 | Isa::Avx512 => unsafe { narrow_f16c(src, dst) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => 0,
    };
    for (d, &s) in dst.iter_mut().zip(src).skip(done) {
        *d = f32_to_f16(s);
    }
}

/// Narrows groups of 8 and says how many elements that was.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn narrow_f16c(src: &[f32], dst: &mut [u16]) -> usize {
    use std::arch::x86_64::*;
    let groups = src.len() / 8;
    let (low, high) = (_mm256_set1_ps(-MAX_HALF), _mm256_set1_ps(MAX_HALF));
    for (s, d) in src.chunks_exact(8).zip(dst.chunks_exact_mut(8)) {
        // SAFETY: `s` and `d` have 8 elements.
        unsafe {
            // The value is the second operand, which min and max return for a NaN.
            let v = _mm256_max_ps(low, _mm256_min_ps(high, _mm256_loadu_ps(s.as_ptr())));
            _mm_storeu_si128(
                d.as_mut_ptr().cast(),
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v),
            );
        }
    }
    groups * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_goes_there_and_back() {
        for half in 0..=u16::MAX {
            let wide = f16_to_f32(half);
            match half & 0x7fff {
                0x7c00 => assert!(wide.is_infinite()),
                0x7c01.. => assert!(wide.is_nan() && f32_to_f16(wide) & 0x7c00 == 0x7c00),
                _ => assert_eq!(f32_to_f16(wide), half, "{wide}"),
            }
        }
        assert_eq!(f16_to_f32(0x3c01), 1.000_976_6);
        assert_eq!(f16_to_f32(0x8001), -5.960_464_5e-8);
    }

    #[test]
    fn narrowing_rounds_to_even_and_saturates() {
        for (value, half) in [
            (1.0 + 1.0 / 2048.0, 0x3c00),
            (1.0 + 3.0 / 2048.0, 0x3c02),
            (1e9, 0x7bff),
            (-1e9, 0xfbff),
            (f32::INFINITY, 0x7bff),
            (65519.0, 0x7bff),
            (2.0f32.powi(-25), 0),
            (-2.0f32.powi(-25) * 1.01, 0x8001),
            (6.097_5e-5, 0x03ff),
            (6.103_5e-5, 0x0400),
        ] {
            assert_eq!(f32_to_f16(value), half, "{value}");
        }
    }

    #[test]
    fn simd_equals_scalar() {
        if !Isa::Avx2.available() {
            eprintln!("skipped: no AVX2");
            return;
        }
        let values: Vec<f32> = (0..200_003u32)
            .map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b1)))
            .chain((0..70_000).map(|i| (i as f32 - 35_000.0) * 0.37e-6))
            .collect();
        let mut got = vec![0; values.len()];
        narrow(Isa::Avx2, &values, &mut got);
        for (&v, &g) in values.iter().zip(&got) {
            assert!(
                g == f32_to_f16(v) || (v.is_nan() && f16_to_f32(g).is_nan()),
                "{v} {g:#x} {:#x}",
                f32_to_f16(v)
            );
        }
    }
}
