//! Blocks as model files store them, read 32 elements at a time.
//!
//! Every quantised format is seen as unsigned codes of 2–8 bits and, per 16 or 32 elements, a scale and perhaps a
//! minimum: `value = D · (code − offset) + M`. Dequantisation, packing and the kernels all stand on this one reading.
//! Not here: any arithmetic on activations. Layouts follow ggml's block structs; results equal those of the `gguf` Python
//! package bit for bit.

use crate::Format;
use crate::half::f16_to_f32;

/// Elements that share a code vector here, whatever the format's own block is.
pub(crate) const BLOCK: usize = 32;

/// The 16 values of the `IQ4` formats.
pub(crate) const IQ4_VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The scale of 32 elements as the file stores it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RawScales {
    /// f16 bits of the (super-)scale.
    pub(crate) d: u16,
    /// f16 bits of the minimum, or of the scale of the minima.
    pub(crate) m: u16,
    /// Sub-scale codes of the two halves (16 elements each); equal where a format has one per 32.
    pub(crate) sub_scale: [u8; 2],
    /// Sub-minimum codes of the two halves.
    pub(crate) sub_min: [u8; 2],
}

/// How a format turns [`RawScales`] into numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScaleKind {
    /// `D = d`.
    Plain,
    /// `D = d`, `M = m`.
    PlainMin,
    /// `D = d · sub_scale`, `M = −m · sub_min`, per 32 (6 bits each).
    SixBitMin,
    /// `D = d · sub_scale`, `M = −m · sub_min`, per 16 (4 bits each).
    FourBitMin,
    /// `D = d · (sub_scale as i8)`, per 16.
    SignedByte,
    /// `D = d · (sub_scale − 32)`, per 16.
    SixBitSigned16,
    /// `D = d · (sub_scale − 32)`, per 32.
    SixBitSigned32,
}

impl ScaleKind {
    pub(crate) const fn of(format: Format) -> Self {
        match format {
            Format::Q4_1 | Format::Q5_1 => Self::PlainMin,
            Format::Q2_K => Self::FourBitMin,
            Format::Q3_K => Self::SixBitSigned16,
            Format::Q4_K | Format::Q5_K => Self::SixBitMin,
            Format::Q6_K => Self::SignedByte,
            Format::IQ4_XS => Self::SixBitSigned32,
            _ => Self::Plain,
        }
    }

    /// True if there is a minimum to add.
    pub(crate) const fn has_min(self) -> bool {
        matches!(self, Self::PlainMin | Self::SixBitMin | Self::FourBitMin)
    }

    /// True if the two halves of a block of 32 have scales of their own.
    pub(crate) const fn is_halved(self) -> bool {
        matches!(self, Self::FourBitMin | Self::SignedByte | Self::SixBitSigned16)
    }

    /// `(D, M)` of one half. The products are exact in f32: 11 significant bits times at most 8.
    pub(crate) fn resolve(self, raw: &RawScales, half: usize) -> (f32, f32) {
        let d = f16_to_f32(raw.d);
        let (scale, min) = (raw.sub_scale[half], raw.sub_min[half]);
        match self {
            Self::Plain => (d, 0.0),
            Self::PlainMin => (d, f16_to_f32(raw.m)),
            Self::SixBitMin | Self::FourBitMin => {
                (d * f32::from(scale), -(f16_to_f32(raw.m) * f32::from(min)))
            }
            Self::SignedByte => (d * f32::from(scale as i8), 0.0),
            Self::SixBitSigned16 | Self::SixBitSigned32 => (d * (f32::from(scale) - 32.0), 0.0),
        }
    }
}

/// What is subtracted from a code; for the `IQ4` formats the table replaces it.
pub(crate) const fn code_offset(format: Format) -> i32 {
    match format {
        Format::Q4_0 => 8,
        Format::Q5_0 => 16,
        Format::Q8_0 => 128,
        Format::Q3_K => 4,
        Format::Q6_K => 32,
        _ => 0,
    }
}

/// The signed integer that a code stands for.
pub(crate) fn code_value(format: Format, code: u8) -> i32 {
    match format {
        Format::IQ4_NL | Format::IQ4_XS => i32::from(IQ4_VALUES[usize::from(code & 15)]),
        _ => i32::from(code) - code_offset(format),
    }
}

/// 32 codes, four in a word: byte `i` of word `j` is the code of element `4·j + i`.
///
/// Words, because packing moves four codes at a time, and because plain loops over them compile to straight code wherever
/// they are inlined.
pub(crate) type CodeWords = [u32; BLOCK / 4];

/// The same codes one by one.
#[inline(always)]
pub(crate) fn code_bytes(words: CodeWords) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    for (four, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *four = word.to_le_bytes();
    }
    bytes
}

#[inline(always)]
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

#[inline(always)]
fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// `byte` in each byte of a word.
const fn every_byte(byte: u8) -> u32 {
    u32::from_ne_bytes([byte; 4])
}

/// Codes of the `sub`-th 32 elements of one block of a quantised format. `block` has the format's `block_bytes`.
#[inline(always)]
pub(crate) fn codes(format: Format, block: &[u8], sub: usize) -> CodeWords {
    match format {
        Format::Q4_0 | Format::IQ4_NL => nibbles(&block[2..18]),
        Format::Q4_1 => nibbles(&block[4..20]),
        Format::Q5_0 => with_bits(nibbles(&block[6..22]), u32_at(block, 2)),
        Format::Q5_1 => with_bits(nibbles(&block[8..24]), u32_at(block, 4)),
        Format::Q8_0 => {
            let mut words = bit_field(&block[2..34], 0, 8);
            for word in &mut words {
                *word ^= every_byte(0x80);
            }
            words
        }
        Format::Q2_K => bit_field(&block[16 + sub / 4 * 32..], 2 * (sub % 4), 2),
        Format::Q3_K => {
            let low = bit_field(&block[32 + sub / 4 * 32..], 2 * (sub % 4), 2);
            stacked(low, 2, bit_field(block, sub, 1))
        }
        Format::Q4_K => bit_field(&block[16 + sub / 2 * 32..], 4 * (sub % 2), 4),
        Format::Q5_K => {
            let low = bit_field(&block[48 + sub / 2 * 32..], 4 * (sub % 2), 4);
            stacked(low, 4, bit_field(&block[16..], sub, 1))
        }
        Format::Q6_K => {
            let low = bit_field(&block[64 * (sub / 4) + 32 * (sub % 2)..], 4 * ((sub % 4) / 2), 4);
            stacked(low, 4, bit_field(&block[128 + 32 * (sub / 4)..], 2 * (sub % 4), 2))
        }
        Format::IQ4_XS => nibbles(&block[8 + 16 * sub..][..16]),
        Format::F32 | Format::F16 | Format::BF16 => [0; BLOCK / 4],
    }
}

/// The `bits` bits from `shift` of each of 32 bytes; four bytes at a time, since processors shift no single bytes.
#[inline(always)]
fn bit_field(bytes: &[u8], shift: usize, bits: usize) -> CodeWords {
    let mask = every_byte(((1_u32 << bits) - 1) as u8);
    let mut words = [0; BLOCK / 4];
    for (word, four) in words.iter_mut().zip(bytes[..BLOCK].as_chunks::<4>().0) {
        *word = (u32::from_le_bytes(*four) >> shift) & mask;
    }
    words
}

#[inline(always)]
fn stacked(mut low: CodeWords, bits: usize, high: CodeWords) -> CodeWords {
    for (low, high) in low.iter_mut().zip(high) {
        *low |= high << bits;
    }
    low
}

/// Low nibbles of 16 bytes are the first 16 elements, high nibbles the last.
#[inline(always)]
fn nibbles(qs: &[u8]) -> CodeWords {
    let mut words = [0; BLOCK / 4];
    let (first, last) = words.split_at_mut(BLOCK / 8);
    for ((first, last), four) in first.iter_mut().zip(last).zip(qs[..16].as_chunks::<4>().0) {
        let four = u32::from_le_bytes(*four);
        *first = four & every_byte(15);
        *last = (four >> 4) & every_byte(15);
    }
    words
}

/// Bit `i` of `bits` becomes bit 4 of element `i`.
#[inline(always)]
fn with_bits(mut low: CodeWords, bits: u32) -> CodeWords {
    for (j, word) in low.iter_mut().enumerate() {
        // Four copies seven places apart bring bit `i` of a nibble to place `8·i`; no two bits meet.
        let spread = (((bits >> (4 * j)) & 15) * 0x0020_4081) & every_byte(1);
        *word |= spread << 4;
    }
    low
}

/// Scales of the `sub`-th 32 elements of one block of a quantised format.
#[inline(always)]
pub(crate) fn scales(format: Format, block: &[u8], sub: usize) -> RawScales {
    let plain = |d| RawScales { d, ..RawScales::default() };
    match format {
        Format::Q4_0 | Format::IQ4_NL | Format::Q5_0 | Format::Q8_0 => plain(u16_at(block, 0)),
        Format::Q4_1 | Format::Q5_1 => RawScales { m: u16_at(block, 2), ..plain(u16_at(block, 0)) },
        Format::Q2_K => {
            let (a, b) = (block[2 * sub], block[2 * sub + 1]);
            RawScales {
                d: u16_at(block, 80),
                m: u16_at(block, 82),
                sub_scale: [a & 15, b & 15],
                sub_min: [a >> 4, b >> 4],
            }
        }
        Format::Q3_K => {
            let packed = &block[96..108];
            RawScales {
                sub_scale: [q3k_scale(packed, 2 * sub), q3k_scale(packed, 2 * sub + 1)],
                ..plain(u16_at(block, 108))
            }
        }
        Format::Q4_K | Format::Q5_K => {
            let (scale, min) = q4k_scale_min(&block[4..16], sub);
            RawScales {
                d: u16_at(block, 0),
                m: u16_at(block, 2),
                sub_scale: [scale; 2],
                sub_min: [min; 2],
            }
        }
        Format::Q6_K => RawScales {
            sub_scale: [block[192 + 2 * sub], block[193 + 2 * sub]],
            ..plain(u16_at(block, 208))
        },
        Format::IQ4_XS => {
            let low = (block[4 + sub / 2] >> (4 * (sub % 2))) & 15;
            let high = (u16_at(block, 2) >> (2 * sub)) as u8 & 3;
            RawScales { sub_scale: [low | (high << 4); 2], ..plain(u16_at(block, 0)) }
        }
        Format::F32 | Format::F16 | Format::BF16 => RawScales::default(),
    }
}

/// 16 six-bit scales in 12 bytes: low nibbles in the first 8, the upper two bits in the last 4.
#[inline(always)]
fn q3k_scale(packed: &[u8], index: usize) -> u8 {
    let low = if index < 8 { packed[index] & 15 } else { packed[index - 8] >> 4 };
    let high = (packed[8 + index % 4] >> (2 * (index / 4))) & 3;
    low | (high << 4)
}

/// 8 six-bit scales and 8 six-bit minima in 12 bytes.
#[inline(always)]
fn q4k_scale_min(packed: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        return (packed[index] & 63, packed[index + 4] & 63);
    }
    let (scale_top, min_top, low) = (packed[index - 4], packed[index], packed[index + 4]);
    ((low & 15) | ((scale_top >> 2) & 0x30), (low >> 4) | ((min_top >> 2) & 0x30))
}
