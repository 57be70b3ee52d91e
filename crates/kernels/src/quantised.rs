//! The quantised formats as types, so that one kernel is compiled for each with its bit widths known.
//!
//! No code of its own beyond constants derived from `layout` and `native`.

use crate::Format;
use crate::layout::{code_bits, code_block_bytes, group_blocks, group_bytes};
use crate::native::ScaleKind;

/// A quantised format at compile time.
pub(crate) trait Quantised {
    const FORMAT: Format;
    const LOW_BITS: usize = code_bits(Self::FORMAT).0;
    const HIGH_BITS: usize = code_bits(Self::FORMAT).1;
    const KIND: ScaleKind = ScaleKind::of(Self::FORMAT);
    const HALVED: bool = Self::KIND.is_halved();
    const HAS_MIN: bool = Self::KIND.has_min();
    /// Codes are indices into the table of the `IQ4` formats.
    const TABLE: bool = matches!(Self::FORMAT, Format::IQ4_NL | Format::IQ4_XS);
    const CODE_BYTES: usize = code_block_bytes(Self::FORMAT);
    const GROUP_BLOCKS: usize = group_blocks(Self::KIND);
    const GROUP_BYTES: usize = group_bytes(Self::KIND);
}

macro_rules! formats {
    ($($name:ident => $format:ident),*) => {
        $(
            #[doc = concat!("[`Format::", stringify!($format), "`]")]
            pub(crate) struct $name;
            impl Quantised for $name {
                const FORMAT: Format = Format::$format;
            }
        )*
    };
}
formats!(
    Q4Zero => Q4_0, Q4One => Q4_1, Q5Zero => Q5_0, Q5One => Q5_1, Q8Zero => Q8_0,
    Q2K => Q2_K, Q3K => Q3_K, Q4K => Q4_K, Q5K => Q5_K, Q6K => Q6_K, Iq4Nl => IQ4_NL, Iq4Xs => IQ4_XS
);

/// Calls `function::<Marker>(arguments…)` for the marker type of a format; floating-point formats do nothing.
macro_rules! for_quantised {
    ($format:expr, $function:ident $arguments:tt) => {{
        use $crate::quantised as q;
        match $format {
            Format::Q4_0 => $function::<q::Q4Zero> $arguments,
            Format::Q4_1 => $function::<q::Q4One> $arguments,
            Format::Q5_0 => $function::<q::Q5Zero> $arguments,
            Format::Q5_1 => $function::<q::Q5One> $arguments,
            Format::Q8_0 => $function::<q::Q8Zero> $arguments,
            Format::Q2_K => $function::<q::Q2K> $arguments,
            Format::Q3_K => $function::<q::Q3K> $arguments,
            Format::Q4_K => $function::<q::Q4K> $arguments,
            Format::Q5_K => $function::<q::Q5K> $arguments,
            Format::Q6_K => $function::<q::Q6K> $arguments,
            Format::IQ4_NL => $function::<q::Iq4Nl> $arguments,
            Format::IQ4_XS => $function::<q::Iq4Xs> $arguments,
            Format::F32 | Format::F16 | Format::BF16 => {}
        }
    }};
}
pub(crate) use for_quantised;
