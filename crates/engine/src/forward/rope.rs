//! Frequencies of the rotary embedding under each scaling, and cos/sin of given positions. Not the rotation itself,
//! which is a kernel.
//!
//! Invariant: a position's cos and sin depend on nothing but the position and the configuration.

use std::f64::consts::PI;

use mintage_model::{RopeConfig, RopeScaling};

/// Frequencies and the factor on cos and sin.
#[derive(Clone, Debug)]
pub(crate) struct RopeFrequencies {
    /// Radians a position, head_dim / 2 of them.
    inverse: Vec<f32>,
    /// YaRN's attention factor; 1 elsewhere.
    magnitude: f32,
}

impl RopeFrequencies {
    /// `head_dim` is even and at least 2; factor lists have `head_dim / 2` entries (the decoder checks both).
    pub(crate) fn new(rope: &RopeConfig, head_dim: usize) -> Self {
        let base = f64::from(rope.theta);
        let plain: Vec<f64> =
            (0..head_dim / 2).map(|i| 1.0 / base.powf(2.0 * i as f64 / head_dim as f64)).collect();
        let (inverse, magnitude) = match &rope.scaling {
            RopeScaling::None => (plain, 1.0),
            RopeScaling::Linear { factor } => {
                (plain.iter().map(|f| f / f64::from(*factor)).collect(), 1.0)
            }
            RopeScaling::Factors(factors) => {
                (plain.iter().zip(factors).map(|(f, by)| f / f64::from(*by)).collect(), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                original_context,
                attention_factor,
                beta_fast,
                beta_slow,
            } => {
                let factor = f64::from(*factor);
                let range = YarnRange::new(
                    f64::from(*beta_fast),
                    f64::from(*beta_slow),
                    head_dim,
                    base,
                    f64::from(*original_context),
                );
                let scaled = plain
                    .iter()
                    .enumerate()
                    .map(|(i, f)| {
                        let interpolated = range.ramp(i);
                        f / factor * interpolated + f * (1.0 - interpolated)
                    })
                    .collect();
                let default = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
                (scaled, attention_factor.map_or(default, f64::from))
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
                let rule = Llama3Rule {
                    factor: f64::from(*factor),
                    low,
                    high,
                    context: f64::from(*original_context),
                };
                (plain.iter().map(|f| rule.scale(*f)).collect(), 1.0)
            }
        };
        Self { inverse: inverse.iter().map(|f| *f as f32).collect(), magnitude: magnitude as f32 }
    }

    /// Writes cos and sin of `position`, head_dim / 2 each.
    ///
    /// The angle is an f32 product because the reference implementations take it so, and far positions are sensitive
    /// to it; cosine and sine of that angle are then taken exactly.
    pub(crate) fn write(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        let position = position as f32;
        for ((frequency, cos), sin) in self.inverse.iter().zip(cos).zip(sin) {
            let angle = f64::from(position * frequency);
            *cos = angle.cos() as f32 * self.magnitude;
            *sin = angle.sin() as f32 * self.magnitude;
        }
    }
}

/// The dimensions between which YaRN goes over from extrapolation to interpolation (section 3.2 of the paper).
struct YarnRange {
    low: f64,
    high: f64,
}

impl YarnRange {
    fn new(beta_fast: f64, beta_slow: f64, head_dim: usize, base: f64, context: f64) -> Self {
        let dim = head_dim as f64;
        // The dimension that turns `rotations` times over the trained context.
        let dimension_of =
            |rotations: f64| dim * (context / (rotations * 2.0 * PI)).ln() / (2.0 * base.ln());
        let low = dimension_of(beta_fast).floor().max(0.0);
        let high = dimension_of(beta_slow).ceil().min(dim - 1.0);
        // Equal ends would divide by zero; the small step is the reference implementation's.
        Self { low, high: if low == high { high + 0.001 } else { high } }
    }

    /// 0 where dimension `i` keeps its frequency, 1 where it is interpolated fully.
    fn ramp(&self, i: usize) -> f64 {
        ((i as f64 - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

/// Llama 3.1's rule: long wavelengths are divided, short ones kept, a linear passage between.
struct Llama3Rule {
    factor: f64,
    low: f64,
    high: f64,
    context: f64,
}

impl Llama3Rule {
    fn scale(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * PI / frequency;
        if wavelength > self.context / self.low {
            frequency / self.factor
        } else if wavelength < self.context / self.high {
            frequency
        } else {
            let smooth = (self.context / wavelength - self.low) / (self.high - self.low);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

#[cfg(test)]
mod tests {
    use mintage_model::RopeLayout;

    use super::*;

    fn frequencies(theta: f32, head_dim: usize, scaling: RopeScaling) -> RopeFrequencies {
        RopeFrequencies::new(&RopeConfig { theta, layout: RopeLayout::Halves, scaling }, head_dim)
    }

    #[test]
    fn unscaled_frequencies_fall_from_one_geometrically() {
        let rope = frequencies(10_000.0, 8, RopeScaling::None);
        for (found, expected) in rope.inverse.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((found - expected).abs() < 1e-7, "{found} {expected}");
        }
    }

    #[test]
    fn yarn_keeps_fast_dimensions_divides_slow_ones_and_raises_the_magnitude() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_context: 32_768,
            attention_factor: None,
            beta_fast: 32.0,
            beta_slow: 1.0,
        };
        let plain = frequencies(1e6, 128, RopeScaling::None);
        let yarn = frequencies(1e6, 128, scaling);
        assert_eq!(yarn.inverse[0], plain.inverse[0]);
        assert!((yarn.inverse[63] - plain.inverse[63] / 4.0).abs() < 1e-12);
        assert!((yarn.magnitude - (0.1 * 4f32.ln() + 1.0)).abs() < 1e-6);
    }

    #[test]
    fn llama3_keeps_short_wavelengths_and_divides_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let plain = frequencies(5e5, 128, RopeScaling::None);
        let scaled = frequencies(5e5, 128, scaling);
        assert_eq!(scaled.inverse[0], plain.inverse[0]);
        assert!((scaled.inverse[63] - plain.inverse[63] / 8.0).abs() < 1e-12);
        assert!(scaled.inverse.windows(2).all(|pair| pair[0] > pair[1]));
    }
}
