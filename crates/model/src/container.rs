//! What GGUF and safetensors have in common: named, typed, shaped runs of bytes.
//!
//! Invariant of a checked list of tensors: every run lies inside its file, no two share a byte, no name occurs twice.

use std::collections::HashMap;

use crate::decoder::DType;
use crate::error::ModelError;

/// Tensors of one model; a 1000-layer decoder has about 12,000.
pub(crate) const MAX_TENSORS: u64 = 1 << 16;
/// Bytes of a tensor's name; GGML itself stops at 64.
pub(crate) const MAX_TENSOR_NAME_BYTES: u64 = 256;
/// Dimensions of a tensor, as in GGML.
pub(crate) const MAX_DIMENSIONS: u64 = 4;

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    /// Outermost dimension first; the last one is contiguous.
    pub(crate) shape: Vec<usize>,
    /// From the start of the file.
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
}

/// Bytes of a tensor of this shape (outermost first).
///
/// # Errors
/// A dimension of 0, a row that is no whole number of blocks, or a size above 2⁶³.
pub(crate) fn tensor_bytes(name: &str, dtype: DType, shape: &[usize]) -> Result<usize, ModelError> {
    let what = || format!("the shape {shape:?} of the tensor `{name}`");
    if shape.contains(&0) {
        return Err(ModelError::malformed(what(), "has a dimension of 0"));
    }
    let cols = shape.last().copied().unwrap_or(1);
    if !cols.is_multiple_of(dtype.block_len()) {
        let problem = format!("has rows that are no multiple of {dtype}'s {}", dtype.block_len());
        return Err(ModelError::malformed(what(), problem));
    }
    let outer = shape.iter().rev().skip(1).try_fold(1_usize, |product, &n| product.checked_mul(n));
    outer
        .zip(dtype.row_bytes(cols))
        .and_then(|(rows, row_bytes)| rows.checked_mul(row_bytes))
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or_else(|| ModelError::malformed(what(), "has more than 2^63 bytes"))
}

/// Checks the invariant of the module; `file_bytes` is the length of the file.
pub(crate) fn check_tensors(tensors: &[StoredTensor], file_bytes: usize) -> Result<(), ModelError> {
    let mut seen = HashMap::with_capacity(tensors.len());
    for (at, tensor) in tensors.iter().enumerate() {
        if seen.insert(tensor.name.as_str(), at).is_some() {
            let what = format!("the tensor `{}`", tensor.name);
            return Err(ModelError::malformed(what, "occurs twice"));
        }
        let fits = tensor.offset.checked_add(tensor.bytes).is_some_and(|end| end <= file_bytes);
        if !fits {
            return Err(ModelError::Truncated {
                what: format!("the tensor `{}` at byte {}", tensor.name, tensor.offset),
                needed: tensor.bytes as u64,
                available: file_bytes.saturating_sub(tensor.offset) as u64,
            });
        }
    }
    let mut by_offset: Vec<&StoredTensor> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        if let [first, second] = pair
            && first.offset.saturating_add(first.bytes) > second.offset
        {
            return Err(ModelError::Overlap {
                first: first.name.clone(),
                second: second.name.clone(),
            });
        }
    }
    Ok(())
}
