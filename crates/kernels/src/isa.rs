//! Which instruction set a kernel uses, decided at run time.
//!
//! Not a registry of kernels: each module keeps its own scalar and SIMD versions side by side and picks by `Isa`.
//! Invariant: a value other than `Scalar` exists in a running kernel only after the processor said it has every feature
//! the level names, so that calling a function with the matching `target_feature` is sound.

/// A level of vector instructions; later levels include earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, on any machine: the reference.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C (2013 and later).
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI besides (Ice Lake, Zen 4 and later).
    Avx512,
}

impl Isa {
    /// All levels, lowest first; tests go through them.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// The highest level this processor has. The standard library caches the answer: this costs a few loads.
    #[inline]
    #[must_use]
    pub fn best() -> Self {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            if Self::has_avx512() {
                return Self::Avx512;
            }
            if Self::has_avx2() {
                return Self::Avx2;
            }
        }
        Self::Scalar
    }

    /// Whether this processor can run the level.
    #[must_use]
    pub fn available(self) -> bool {
        self <= Self::best()
    }

    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline]
    fn has_avx2() -> bool {
        std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c")
    }

    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline]
    fn has_avx512() -> bool {
        Self::has_avx2()
            && std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512vnni")
    }
}
