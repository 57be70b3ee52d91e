//! Activations → int8 blocks, four blocks at a time: what a block does once (its scale, its sums) is done for four in the
//! lanes of one register, reached by transposing.
//!
//! Same bits as the scalar twin in `activations`.

use std::arch::x86_64::*;
use std::mem::offset_of;

use crate::activations::{
    ActivationBlock, LARGEST_SCALE, LEVELS, LOWER_LEVEL, ONE_BITS, SIX_EXPONENTS, SMALLEST_SCALE,
};
use crate::native::BLOCK;

// The second half of a block is written as two registers of four numbers.
const _: () = assert!(
    offset_of!(ActivationBlock, exponent) == 32
        && offset_of!(ActivationBlock, level) == 36
        && offset_of!(ActivationBlock, scaled_sum) == 40
        && offset_of!(ActivationBlock, neg_sum_128) == 44
        && offset_of!(ActivationBlock, neg_half_128) == 48
        && offset_of!(ActivationBlock, neg_pairs) == 56
);

/// Blocks of 32 activations as int8 blocks, every `stride`-th of `values`; whether all are finite.
///
/// # Safety
/// AVX-512 F, BW, DQ, VL; AVX2 and FMA.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(crate) unsafe fn blocks(
    x: &[[f32; BLOCK]],
    values: &mut [ActivationBlock],
    stride: usize,
) -> bool {
    let (fours, rest) = x.as_chunks::<4>();
    let mut is_sound = true;
    let mut values = values;
    for four in fours {
        if values.len() <= 3 * stride || !four_blocks(four, values, stride) {
            // SAFETY: these levels include AVX2.
            is_sound &= unsafe { crate::avx2::quantise_blocks(four, values, stride) };
        }
        let done = values.len().min(4 * stride);
        values = &mut values[done..];
    }
    // SAFETY: as above.
    is_sound & unsafe { crate::avx2::quantise_blocks(rest, values, stride) }
}

/// Scales of four blocks.
struct Scales {
    power_bits: __m128i,
    level: __m128i,
    /// `power · LEVELS[level]`
    scale: __m128,
    inverse: [f32; 4],
}

/// The largest magnitude of each of four blocks, as bits.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn largest(x: &[[__m512; 2]; 4]) -> __m128i {
    // Magnitudes as integers are ordered as they are, and NaN is above them all.
    let size = |x: __m512| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
    let m = [0, 1, 2, 3].map(|i: usize| _mm512_max_epu32(size(x[i][0]), size(x[i][1])));
    let join = |a: __m512i, b: __m512i| {
        _mm512_max_epu32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
    };
    let (a, b) = (join(m[0], m[1]), join(m[2], m[3]));
    let all = _mm512_max_epu32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let all = _mm256_max_epu32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
    _mm_max_epu32(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all))
}

/// `activations::block_scale` of four blocks; `None` if one is no usable number.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn scales(largest: __m128i) -> Option<Scales> {
    let set = |bits: u32| _mm_set1_epi32(bits as i32);
    let above = _mm_and_si128(_mm_add_epi32(largest, set(0x0001_ffff)), set(0xff80_0000));
    let least = set(SMALLEST_SCALE.to_bits() + SIX_EXPONENTS);
    let scale = _mm_sub_epi32(_mm_max_epu32(above, least), set(SIX_EXPONENTS));
    if _mm_cmpgt_epu32_mask(scale, set(LARGEST_SCALE.to_bits())) != 0 {
        return None;
    }
    let inverse = _mm_castsi128_ps(_mm_sub_epi32(set(2 * ONE_BITS), scale));
    let fits = _mm_cmp_ps_mask::<_CMP_LE_OQ>(
        _mm_mul_ps(_mm_castsi128_ps(largest), inverse),
        _mm_set1_ps(LOWER_LEVEL),
    );
    let lower = fits & _mm_cmpgt_epu32_mask(scale, set(SMALLEST_SCALE.to_bits()));
    let inverse = _mm_mask_mul_ps(inverse, lower, inverse, _mm_set1_ps(LEVELS[1]));
    let power = _mm_castsi128_ps(scale);
    let power = _mm_mask_mul_ps(power, lower, power, _mm_set1_ps(0.5));
    let mut inverses = [0.0; 4];
    // SAFETY: four numbers.
    unsafe { _mm_storeu_ps(inverses.as_mut_ptr(), inverse) };
    Some(Scales {
        power_bits: _mm_castps_si128(power),
        level: _mm_maskz_set1_epi32(lower, 1),
        scale: _mm_mask_mul_ps(power, lower, power, _mm_set1_ps(LEVELS[1])),
        inverse: inverses,
    })
}

/// Rows of four numbers → columns.
#[target_feature(enable = "avx512f,avx512vl")]
#[inline]
fn transposed(rows: [__m128i; 4]) -> [__m128i; 4] {
    let [a, b, c, d] = rows;
    let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
    [
        _mm_unpacklo_epi64(ab, cd),
        _mm_unpackhi_epi64(ab, cd),
        _mm_unpacklo_epi64(ab_high, cd_high),
        _mm_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// Four blocks; false, with nothing written, if one is not finite. `values` has the fourth's place.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn four_blocks(x: &[[f32; BLOCK]; 4], values: &mut [ActivationBlock], stride: usize) -> bool {
    assert!(values.len() > 3 * stride, "{} blocks, every {stride}th of 4", values.len());
    // SAFETY: two vectors of sixteen each.
    let x: [[__m512; 2]; 4] = std::array::from_fn(|i| unsafe {
        [_mm512_loadu_ps(x[i].as_ptr()), _mm512_loadu_ps(x[i].as_ptr().add(16))]
    });
    let Some(scales) = scales(largest(&x)) else { return false };
    let q: [__m256i; 4] = std::array::from_fn(|i| {
        let inverse = _mm512_set1_ps(scales.inverse[i]);
        let [low, high] =
            x[i].map(|x| _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x, inverse))));
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
    });
    // q₀ + q₁, q₂ + q₃ of each group of four, summed over the four groups of each 128-bit lane: of block i in lane i.
    let pairs = q.map(|q| _mm256_maddubs_epi16(_mm256_set1_epi8(1), q));
    let join = |a: __m256i, b: __m256i| {
        _mm256_add_epi16(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b))
    };
    let (a, b) = (join(pairs[0], pairs[1]), join(pairs[2], pairs[3]));
    let pairs = _mm256_add_epi16(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let pairs = _mm256_sub_epi16(_mm256_setzero_si256(), pairs);
    let halves = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    let split = |x: __m256i| [_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x)];
    let ([first, last], [first_pairs, last_pairs]) = (split(halves), split(pairs));
    let neg_sum = _mm_add_epi32(first, last);
    let sum = _mm_cvtepi32_ps(_mm_sub_epi32(_mm_setzero_si128(), neg_sum));
    let heads = transposed([
        _mm_sub_epi32(scales.power_bits, _mm_set1_epi32(ONE_BITS as i32)),
        scales.level,
        _mm_castps_si128(_mm_mul_ps(scales.scale, sum)),
        _mm_slli_epi32::<7>(neg_sum),
    ]);
    let tails = transposed([
        _mm_slli_epi32::<7>(first),
        _mm_slli_epi32::<7>(last),
        first_pairs,
        last_pairs,
    ]);
    for (i, ((q, head), tail)) in q.into_iter().zip(heads).zip(tails).enumerate() {
        // SAFETY: a block has 64 bytes, laid out as asserted above; the fourth is inside (asserted).
        unsafe {
            let at = values.as_mut_ptr().add(i * stride).cast::<u8>();
            _mm256_storeu_si256(at.cast(), q);
            _mm_storeu_si128(at.add(32).cast(), head);
            _mm_storeu_si128(at.add(48).cast(), tail);
        }
    }
    true
}
