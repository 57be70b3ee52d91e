//! Stored elements to f32, bit-exact with the `gguf` Python package.
//!
//! Not on the hot path: products work on packed integers (see `matmul`); this serves embeddings, norms and tests.

use crate::half::{bf16_to_f32, f16_to_f32};
use crate::native::{self, BLOCK, ScaleKind};
use crate::{Format, KernelError};

/// Dequantises one row: `src` holds `dst.len()` elements in `format`.
///
/// # Errors
/// If `dst.len()` is no whole number of blocks or `src` has another size than those blocks.
pub fn dequantize_row(format: Format, src: &[u8], dst: &mut [f32]) -> Result<(), KernelError> {
    let Some(expected) = format.row_bytes(dst.len()) else {
        return Err(KernelError::PartialBlock {
            format,
            cols: dst.len(),
            block: format.block_len(),
        });
    };
    if src.len() != expected {
        return Err(KernelError::Size { what: "src", expected, got: src.len() });
    }
    match format {
        Format::F32 => {
            for (value, bytes) in dst.iter_mut().zip(src.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        Format::F16 => each_half(src, dst, f16_to_f32),
        Format::BF16 => each_half(src, dst, bf16_to_f32),
        _ => quantised(format, src, dst),
    }
    Ok(())
}

fn each_half(src: &[u8], dst: &mut [f32], convert: fn(u16) -> f32) {
    for (value, bytes) in dst.iter_mut().zip(src.chunks_exact(2)) {
        *value = convert(u16::from_le_bytes([bytes[0], bytes[1]]));
    }
}

fn quantised(format: Format, src: &[u8], dst: &mut [f32]) {
    let kind = ScaleKind::of(format);
    let blocks =
        src.chunks_exact(format.block_bytes()).zip(dst.chunks_exact_mut(format.block_len()));
    for (block, values) in blocks {
        for (sub, values) in values.chunks_exact_mut(BLOCK).enumerate() {
            let codes = native::code_bytes(native::codes(format, block, sub));
            let raw = native::scales(format, block, sub);
            values_of(format, kind, &codes, &raw, values);
        }
    }
}

/// `value = D · (code − offset) [+ M]`, the multiplication rounded before the addition, as numpy does.
pub(crate) fn values_of(
    format: Format,
    kind: ScaleKind,
    codes: &[u8; BLOCK],
    raw: &native::RawScales,
    values: &mut [f32],
) {
    for half in 0..2 {
        let (scale, min) = kind.resolve(raw, half);
        for i in 16 * half..16 * half + 16 {
            let product = scale * native::code_value(format, codes[i]) as f32;
            // Without a minimum nothing is added: −0 + 0 would change the sign.
            values[i] = if kind.has_min() { product + min } else { product };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each golden is blocks of the format, then the f32 that `gguf` makes of them (see `tests/goldens/dequantise.py`).
    fn check(format: Format) {
        let path = format!("{}/tests/goldens/{format:?}.bin", env!("CARGO_MANIFEST_DIR"));
        let golden = std::fs::read(&path).expect("the golden is committed");
        let blocks = golden.len() / (format.block_bytes() + 4 * format.block_len());
        let (stored, expected) = golden.split_at(blocks * format.block_bytes());
        let mut values = vec![0.0; blocks * format.block_len()];
        dequantize_row(format, stored, &mut values).expect("sizes fit");
        for (index, (value, bytes)) in values.iter().zip(expected.chunks_exact(4)).enumerate() {
            let expected = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            assert_eq!(
                value.to_bits(),
                expected.to_bits(),
                "{format:?} element {index}: {value} for {expected}"
            );
        }
    }

    #[test]
    fn every_format_equals_the_gguf_package_bit_for_bit() {
        for format in Format::ALL.into_iter().filter(|&format| format != Format::F32) {
            check(format);
        }
    }

    #[test]
    fn single_precision_is_copied() {
        let mut values = [0.0; 2];
        dequantize_row(Format::F32, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0x80], &mut values)
            .expect("sizes fit");
        assert_eq!(values.map(f32::to_bits), [1.0_f32.to_bits(), (-0.0_f32).to_bits()]);
    }

    #[test]
    fn wrong_sizes_are_refused() {
        let refused = dequantize_row(Format::Q4_0, &[0; 18], &mut [0.0; 31]);
        assert_eq!(
            refused,
            Err(KernelError::PartialBlock { format: Format::Q4_0, cols: 31, block: 32 })
        );
        let refused = dequantize_row(Format::Q6_K, &[0; 209], &mut [0.0; 256]);
        assert_eq!(refused, Err(KernelError::Size { what: "src", expected: 210, got: 209 }));
    }
}
