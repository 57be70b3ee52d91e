//! Made-up weights and activations for tests and measurements: plausible, reproducible, no model file needed.

use crate::Format;

/// A small generator of reproducible noise (xorshift64*); not for sampling.
#[derive(Debug, Clone)]
pub struct Noise(u64);

impl Noise {
    /// The sequence that belongs to `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in −1 … 1.
    pub fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Activations with a few outliers, as hidden states have them.
#[must_use]
pub fn activations(len: usize, seed: u64) -> Vec<f32> {
    let mut noise = Noise::new(seed);
    (0..len).map(|i| noise.value() * if i % 97 == 0 { 20.0 } else { 1.0 }).collect()
}

/// `rows × cols` random weights in `format`; empty if `cols` is no whole number of blocks.
#[must_use]
pub fn weights(format: Format, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut noise = Noise::new(seed);
    let bytes = format.row_bytes(cols).and_then(|row| row.checked_mul(rows)).unwrap_or(0);
    let mut data = Vec::with_capacity(bytes + 8);
    while data.len() < bytes {
        data.extend_from_slice(&noise.bits().to_le_bytes());
    }
    data.truncate(bytes);
    for block in data.chunks_exact_mut(format.block_bytes()) {
        match format {
            Format::F32 => block.copy_from_slice(&noise.value().to_le_bytes()),
            Format::BF16 => block.copy_from_slice(&noise.value().to_le_bytes()[2..]),
            _ => {}
        }
        for &at in half_offsets(format) {
            // Magnitudes of 2⁻⁹ … 2⁻⁵, both signs.
            let bits = noise.bits();
            let half = (bits as u16 & 0x83ff) | (((bits >> 20) % 5 + 6) as u16) << 10;
            block[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
    }
    data
}

/// Where a block has f16 numbers.
fn half_offsets(format: Format) -> &'static [usize] {
    match format {
        Format::F32 | Format::BF16 => &[],
        Format::F16
        | Format::Q4_0
        | Format::Q5_0
        | Format::Q8_0
        | Format::IQ4_NL
        | Format::IQ4_XS => &[0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        Format::Q6_K => &[208],
    }
}
