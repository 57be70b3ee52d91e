//! Checks and assembly of rotary embeddings, shared by both containers.

use crate::decoder::RopeScaling;
use crate::error::ModelError;

/// Base of the frequencies where a file names none, as in the original Llama.
pub(crate) const DEFAULT_THETA: f32 = 10_000.0;
/// YaRN's published `beta_fast`.
pub(crate) const DEFAULT_BETA_FAST: f32 = 32.0;
/// YaRN's published `beta_slow`.
pub(crate) const DEFAULT_BETA_SLOW: f32 = 1.0;
/// Largest context extension that loads.
const MAX_FACTOR: f32 = 65_536.0;

/// `x` if it is a number within `from..=to`.
pub(crate) fn in_range(key: &str, x: f32, from: f32, to: f32) -> Result<f32, ModelError> {
    if x.is_finite() && (from..=to).contains(&x) {
        return Ok(x);
    }
    Err(ModelError::OutOfRange {
        key: key.to_owned(),
        expected: format!("between {from} and {to}"),
        given: x.to_string(),
    })
}

/// A context extension.
pub(crate) fn factor(key: &str, x: f32) -> Result<f32, ModelError> {
    in_range(key, x, 1.0, MAX_FACTOR)
}

/// The scale that YaRN gives attention when extending the context `factor` times.
pub(crate) fn yarn_attention_factor(factor: f32, mscale: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// Tokens of context once the scaling is applied to a model that states `stated` of them.
///
/// YaRN files state the trained context in one publisher's hands and the extended one in another's; the longer of the
/// two is what the file promises.
pub(crate) fn extended_context(stated: usize, scaling: &RopeScaling) -> usize {
    match scaling {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "factors are within 1..=65536 and the product saturates"
        )]
        RopeScaling::Yarn { factor, original_context, .. } => {
            stated.max((f64::from(*original_context) * f64::from(*factor)) as usize)
        }
        _ => stated,
    }
}
