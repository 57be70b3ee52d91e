//! Loops that do nothing but multiply and add in registers: the processor's own limits.
//!
//! The operands are opaque to the compiler and the sums are used, so nothing is optimised away. Callers have checked the
//! instruction set.

use std::arch::x86_64::*;
use std::hint::black_box;

/// Independent accumulators: enough to hide four cycles of latency on two ports.
const CHAINS: usize = 12;

/// Operations of one turn of the AVX-512 loops.
pub(crate) const fn avx512_operations(int8: bool) -> usize {
    CHAINS * if int8 { 2 * 64 } else { 2 * 16 }
}

/// Operations of one turn of the AVX2 loops.
pub(crate) const fn avx2_operations(int8: bool) -> usize {
    CHAINS * if int8 { 2 * 32 } else { 2 * 8 }
}

macro_rules! peak {
    ($(#[$doc:meta])* $name:ident, $inner:ident, $features:literal, $zero:expr, $operand:expr, $step:expr) => {
        $(#[$doc])*
        pub(crate) fn $name(turns: usize) {
            // SAFETY: `bench` calls this only at an `Isa` level that the processor has.
            unsafe { $inner(turns) }
        }

        #[target_feature(enable = $features)]
        fn $inner(turns: usize) {
            let (a, b) = (black_box($operand), black_box($operand));
            let mut sums = [$zero; CHAINS];
            for _ in 0..turns {
                for sum in &mut sums {
                    *sum = $step(*sum, a, b);
                }
                // Keeps the compiler from merging turns.
                // SAFETY: an empty instruction.
                unsafe { std::arch::asm!("", options(nomem, nostack, preserves_flags)) };
            }
            black_box(sums);
        }
    };
}

peak!(
    /// `vfmadd` on 16 lanes.
    avx512_float, avx512_float_loop, "avx512f", _mm512_setzero_ps(), _mm512_set1_ps(1.0),
    |sum, a, b| _mm512_fmadd_ps(a, b, sum)
);
peak!(
    /// `vpdpbusd` on 64 bytes.
    avx512_int8, avx512_int8_loop, "avx512f,avx512vnni", _mm512_setzero_si512(), _mm512_set1_epi8(1),
    |sum, a, b| _mm512_dpbusd_epi32(sum, a, b)
);
peak!(
    /// `vfmadd` on 8 lanes.
    avx2_float, avx2_float_loop, "avx2,fma", _mm256_setzero_ps(), _mm256_set1_ps(1.0),
    |sum, a, b| _mm256_fmadd_ps(a, b, sum)
);
peak!(
    /// `vpmaddubsw` and a 16-bit addition on 32 bytes: the shortest sequence that AVX2 has.
    avx2_int8, avx2_int8_loop, "avx2", _mm256_setzero_si256(), _mm256_set1_epi8(1),
    |sum: __m256i, a, b: __m256i| {
        // The operand depends on the sum's register only by name, so that the product is not hoisted.
        let mut b = b;
        // SAFETY: an empty instruction.
        unsafe { std::arch::asm!("/* {} */", inout(ymm_reg) b, options(nomem, nostack, preserves_flags)) };
        _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b))
    }
);
