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

/// Compiles a portable kernel twice: `$body::<false>` as plain Rust, `$body::<true>` (which may fuse multiply and add) for
/// AVX2 + FMA, where the compiler fills the vectors. `$name` takes the level first. `$body` must be `#[inline(always)]`.
macro_rules! compiled_per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                $body::<true>($($arg),*)
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: these levels exist only where AVX2 and FMA do.
                $crate::isa::Isa::Avx2 | $crate::isa::Isa::Avx512 => unsafe { avx2($($arg),*) },
                _ => $body::<false>($($arg),*),
            }
        }
    };
}
pub(crate) use compiled_per_isa;

/// `a * b + c`, in one rounding where `FUSED`.
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}
