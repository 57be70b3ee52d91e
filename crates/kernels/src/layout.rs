//! Where each weight stands in packed memory, in scalar form: the definition that the vector kernels are tested against.
//!
//! A matrix is cut into strips of [`STRIP_ROWS`] rows. A strip is its scale plane followed by its code plane, each
//! rounded up to whole cache lines, so that one strip after the other streams through memory:
//!
//! * **code plane**: for each 32 columns, eight vectors of 64 bytes in which byte `4·row + i` of vector `j` is the code of
//!   (`row`, column `4·j + i`), so that one 32-bit lane belongs to one row. Codes narrower than 8 bits share bytes: a
//!   *low* plane of 2, 4 or 8 bits and a *high* plane of 0, 1 or 2 bits (see [`field`]). The bits per weight are the file's.
//! * **scale plane**: for each scale group (32 or 256 columns), vectors over the 16 rows: f16 scale, f16 minimum, then
//!   sub-scales of 4, 6 or 8 bits.
//!
//! Floating-point formats keep their elements column by column, 16 rows each. Rows past the last are zero.

use crate::Format;
use crate::native::{BLOCK, CodeWords, RawScales, ScaleKind};

/// Rows that are interleaved: the 32-bit lanes of a 512-bit register.
pub const STRIP_ROWS: usize = 16;
/// Cache line, and the width of a code vector, in bytes.
pub(crate) const LINE: usize = 64;
/// Code vectors of 32 columns once unpacked.
pub(crate) const VECTORS: usize = 8;
/// Bytes of one f16 vector over the rows of a strip.
const HALF_VECTOR: usize = 2 * STRIP_ROWS;

/// Bits per code in the low plane and in the high plane.
pub(crate) const fn code_bits(format: Format) -> (usize, usize) {
    match format {
        Format::Q2_K => (2, 0),
        Format::Q3_K => (2, 1),
        Format::Q4_0 | Format::Q4_1 | Format::Q4_K | Format::IQ4_NL | Format::IQ4_XS => (4, 0),
        Format::Q5_0 | Format::Q5_1 | Format::Q5_K => (4, 1),
        Format::Q6_K => (4, 2),
        Format::Q8_0 => (8, 0),
        Format::F32 | Format::F16 | Format::BF16 => (0, 0),
    }
}

/// Bytes of the codes of 16 rows × 32 columns.
pub(crate) const fn code_block_bytes(format: Format) -> usize {
    let (low, high) = code_bits(format);
    LINE * (low + high)
}

/// Blocks of 32 columns that share one record of the scale plane.
pub(crate) const fn group_blocks(kind: ScaleKind) -> usize {
    match kind {
        ScaleKind::Plain | ScaleKind::PlainMin => 1,
        _ => 8,
    }
}

/// Bytes of one record of the scale plane: 16 rows × one scale group.
pub(crate) const fn group_bytes(kind: ScaleKind) -> usize {
    match kind {
        ScaleKind::Plain => HALF_VECTOR,
        ScaleKind::PlainMin => 2 * HALF_VECTOR,
        ScaleKind::SixBitMin => 2 * HALF_VECTOR + 2 * six_bit_bytes(8),
        ScaleKind::FourBitMin => 2 * HALF_VECTOR + 16 * STRIP_ROWS,
        ScaleKind::SignedByte => HALF_VECTOR + 16 * STRIP_ROWS,
        ScaleKind::SixBitSigned16 => HALF_VECTOR + six_bit_bytes(16),
        ScaleKind::SixBitSigned32 => HALF_VECTOR + six_bit_bytes(8),
    }
}

/// `count` six-bit numbers for each of 16 rows: nibbles first, then the upper two bits.
const fn six_bit_bytes(count: usize) -> usize {
    count / 2 * STRIP_ROWS + count / 4 * STRIP_ROWS
}

/// Sizes of one strip, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StripSizes {
    /// Offset of the code plane, a multiple of [`LINE`].
    pub(crate) codes_at: usize,
    /// The whole strip, a multiple of [`LINE`].
    pub(crate) strip: usize,
}

/// Sizes of a strip of `cols` columns (a whole number of the format's blocks); `None` if they overflow.
pub(crate) fn strip_sizes(format: Format, cols: usize) -> Option<StripSizes> {
    if !format.is_quantised() {
        let strip = cols.checked_mul(format.block_bytes() * STRIP_ROWS)?;
        return Some(StripSizes { codes_at: 0, strip: strip.checked_next_multiple_of(LINE)? });
    }
    let kind = ScaleKind::of(format);
    let blocks = cols / BLOCK;
    let scales = (blocks / group_blocks(kind)).checked_mul(group_bytes(kind))?;
    let codes_at = scales.checked_next_multiple_of(LINE)?;
    let strip = blocks.checked_mul(code_block_bytes(format))?.checked_add(codes_at)?;
    Some(StripSizes { codes_at, strip })
}

/// Where vector `j` of a plane with `bits` per code stands: (stored vector, shift). With 4 bits, vectors 0–3 are the low
/// nibbles and 4–7 the high ones; with 2 bits, four vectors share a stored one; with 1 bit, all eight.
#[inline(always)]
pub(crate) const fn field(bits: usize, j: usize) -> (usize, usize) {
    match bits {
        8 => (j, 0),
        4 => (j % 4, 4 * (j / 4)),
        2 => (j / 4, 2 * (j % 4)),
        _ => (0, j),
    }
}

/// Writes 32 codes of one row into a code block: the row's lane of each vector, four columns at a time. Inlined, so that
/// a caller that knows the format at compile time gets straight code.
#[inline(always)]
pub(crate) fn put_codes(format: Format, block: &mut [u8], row: usize, codes: &CodeWords) {
    let (low_bits, high_bits) = code_bits(format);
    let (low, high) = block.split_at_mut(LINE * low_bits);
    put_plane(low, row, codes, low_bits, 0);
    if high_bits > 0 {
        put_plane(high, row, codes, high_bits, low_bits);
    }
}

/// The `bits` bits from `shift` of each code into one plane, in registers first: no byte is written twice.
#[inline(always)]
fn put_plane(plane: &mut [u8], row: usize, codes: &CodeWords, bits: usize, shift: usize) {
    let every_byte = u32::from_ne_bytes([((1_u32 << bits) - 1) as u8; 4]);
    let mut vectors = [0_u32; VECTORS];
    for (j, four) in codes.iter().enumerate() {
        let (vector, left) = field(bits, j);
        vectors[vector] |= ((four >> shift) & every_byte) << left;
    }
    for (vector, lanes) in vectors.iter().zip(plane[..LINE * bits].chunks_exact_mut(LINE)) {
        lanes[4 * row..][..4].copy_from_slice(&vector.to_le_bytes());
    }
}

/// Reads 32 codes of one row back.
pub(crate) fn get_codes(format: Format, block: &[u8], row: usize) -> [u8; BLOCK] {
    let (low_bits, high_bits) = code_bits(format);
    let (low, high) = block.split_at(LINE * low_bits);
    let bits_at = |plane: &[u8], bits: usize, j: usize, lane: usize| {
        let (vector, shift) = field(bits, j);
        u32::from(plane[LINE * vector + lane] >> shift) & ((1 << bits) - 1)
    };
    std::array::from_fn(|column| {
        let (j, lane) = (column / 4, 4 * row + column % 4);
        let top = if high_bits > 0 { bits_at(high, high_bits, j, lane) } else { 0 };
        (bits_at(low, low_bits, j, lane) | (top << low_bits)) as u8
    })
}

/// Writes the scales of one row and the `sub`-th 32 columns of a scale group into its zeroed record.
#[inline(always)]
pub(crate) fn put_scales(
    kind: ScaleKind,
    record: &mut [u8],
    sub: usize,
    row: usize,
    raw: &RawScales,
) {
    record[2 * row..2 * row + 2].copy_from_slice(&raw.d.to_le_bytes());
    if kind.has_min() {
        record[HALF_VECTOR + 2 * row..][..2].copy_from_slice(&raw.m.to_le_bytes());
    }
    let subs = &mut record[if kind.has_min() { 2 * HALF_VECTOR } else { HALF_VECTOR }..];
    match kind {
        ScaleKind::Plain | ScaleKind::PlainMin => {}
        ScaleKind::SixBitMin => {
            let (scales, mins) = subs.split_at_mut(six_bit_bytes(8));
            put_six_bits(scales, 8, sub, row, raw.sub_scale[0]);
            put_six_bits(mins, 8, sub, row, raw.sub_min[0]);
        }
        ScaleKind::SixBitSigned32 => put_six_bits(subs, 8, sub, row, raw.sub_scale[0]),
        ScaleKind::FourBitMin | ScaleKind::SignedByte | ScaleKind::SixBitSigned16 => {
            for half in 0..2 {
                let (index, scale) = (2 * sub + half, raw.sub_scale[half]);
                match kind {
                    ScaleKind::SixBitSigned16 => put_six_bits(subs, 16, index, row, scale),
                    ScaleKind::FourBitMin => {
                        subs[STRIP_ROWS * index + row] = scale | (raw.sub_min[half] << 4)
                    }
                    _ => subs[STRIP_ROWS * index + row] = scale,
                }
            }
        }
    }
}

/// Reads scales back.
pub(crate) fn get_scales(kind: ScaleKind, record: &[u8], sub: usize, row: usize) -> RawScales {
    let half_at = |at: usize| u16::from_le_bytes([record[at], record[at + 1]]);
    let mut raw = RawScales { d: half_at(2 * row), ..RawScales::default() };
    if kind.has_min() {
        raw.m = half_at(HALF_VECTOR + 2 * row);
    }
    let subs = &record[if kind.has_min() { 2 * HALF_VECTOR } else { HALF_VECTOR }..];
    let byte = |half: usize| subs[STRIP_ROWS * (2 * sub + half) + row];
    match kind {
        ScaleKind::Plain | ScaleKind::PlainMin => {}
        ScaleKind::SixBitMin => {
            raw.sub_scale = [get_six_bits(subs, 8, sub, row); 2];
            raw.sub_min = [get_six_bits(&subs[six_bit_bytes(8)..], 8, sub, row); 2];
        }
        ScaleKind::SixBitSigned32 => raw.sub_scale = [get_six_bits(subs, 8, sub, row); 2],
        ScaleKind::SixBitSigned16 => {
            raw.sub_scale = [0, 1].map(|half| get_six_bits(subs, 16, 2 * sub + half, row))
        }
        ScaleKind::SignedByte => raw.sub_scale = [byte(0), byte(1)],
        ScaleKind::FourBitMin => {
            raw.sub_scale = [byte(0) & 15, byte(1) & 15];
            raw.sub_min = [byte(0) >> 4, byte(1) >> 4];
        }
    }
    raw
}

/// Six-bit number `index` of `count`: its nibble stands in vector `index mod count/2`, its upper bits in vector
/// `index / 4` behind the nibbles.
#[inline(always)]
fn put_six_bits(plane: &mut [u8], count: usize, index: usize, row: usize, value: u8) {
    let half = count / 2;
    plane[STRIP_ROWS * (index % half) + row] |= (value & 15) << (4 * (index / half));
    plane[STRIP_ROWS * (half + index / 4) + row] |= (value >> 4) << (2 * (index % 4));
}

fn get_six_bits(plane: &[u8], count: usize, index: usize, row: usize) -> u8 {
    let half = count / 2;
    let low = (plane[STRIP_ROWS * (index % half) + row] >> (4 * (index / half))) & 15;
    let high = (plane[STRIP_ROWS * (half + index / 4) + row] >> (2 * (index % 4))) & 3;
    low | (high << 4)
}
