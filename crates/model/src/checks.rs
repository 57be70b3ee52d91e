//! Limits and consistency of a decoder's shape, whichever container it came from.

use crate::decoder::DecoderConfig;
use crate::error::ModelError;

/// Layers.
pub(crate) const MAX_LAYERS: u64 = 1024;
/// Width of the residual stream and of all heads together.
pub(crate) const MAX_HIDDEN: u64 = 1 << 18;
/// Width of the feed-forward layer.
pub(crate) const MAX_INTERMEDIATE: u64 = 1 << 20;
/// Rows of the embedding.
pub(crate) const MAX_VOCAB: u64 = 1 << 24;
/// Width of one head.
pub(crate) const MAX_HEAD_DIM: u64 = 1 << 12;
/// Tokens of context.
pub(crate) const MAX_CONTEXT: u64 = 1 << 30;

/// `n` if it is within `1..=limit`.
pub(crate) fn count(key: &str, n: u64, limit: u64) -> Result<usize, ModelError> {
    usize::try_from(n).ok().filter(|_| (1..=limit).contains(&n)).ok_or_else(|| {
        ModelError::OutOfRange {
            key: key.to_owned(),
            expected: format!("between 1 and {limit}"),
            given: n.to_string(),
        }
    })
}

/// Checks what holds between the fields of a configuration.
pub(crate) fn check_config(config: &DecoderConfig) -> Result<(), ModelError> {
    let wrong = |key: &str, expected: String, given: usize| {
        Err(ModelError::OutOfRange { key: key.to_owned(), expected, given: given.to_string() })
    };
    if !config.num_heads.is_multiple_of(config.num_kv_heads) {
        let expected = format!("a divisor of the {} query heads", config.num_heads);
        return wrong("the number of key/value heads", expected, config.num_kv_heads);
    }
    if !config.head_dim.is_multiple_of(2) {
        let expected = "even, for rotary embedding".to_owned();
        return wrong("the width of a head", expected, config.head_dim);
    }
    let attention = config.num_heads.saturating_mul(config.head_dim);
    if attention as u64 > MAX_HIDDEN {
        return wrong("the width of all heads", format!("at most {MAX_HIDDEN}"), attention);
    }
    Ok(())
}
