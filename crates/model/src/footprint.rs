//! How large a model is: parameters, bytes by type, memory of its context. Sums only; nothing is read.

use crate::decoder::{DType, DecoderConfig};
use crate::encoder::EncoderFile;
use crate::model_file::ModelFile;

/// Sizes of an opened model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Tensors, elements and bytes of each type that occurs, most bytes first.
    pub by_dtype: Vec<DTypeFootprint>,
}

/// What is stored in one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DTypeFootprint {
    /// The type.
    pub dtype: DType,
    /// Tensors of the type.
    pub tensors: u64,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl ModelFile {
    /// Adds up its tensors.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        Footprint::of(self.tensors().map(|tensor| {
            let elements = tensor.shape.iter().map(|&n| n as u64).product();
            (tensor.dtype, elements, tensor.data.len() as u64)
        }))
    }
}

impl EncoderFile {
    /// Adds up its tensors.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        Footprint::of(self.stored().iter().map(|tensor| {
            let elements = tensor.shape.iter().map(|&n| n as u64).product();
            (tensor.dtype, elements, tensor.bytes as u64)
        }))
    }
}

impl Footprint {
    /// Adds up types, elements and bytes of tensors.
    fn of(tensors: impl Iterator<Item = (DType, u64, u64)>) -> Self {
        let mut by_dtype: Vec<DTypeFootprint> = DType::ALL
            .map(|dtype| DTypeFootprint { dtype, tensors: 0, parameters: 0, bytes: 0 })
            .into();
        for (dtype, elements, bytes) in tensors {
            if let Some(sum) = by_dtype.iter_mut().find(|sum| sum.dtype == dtype) {
                sum.tensors += 1;
                sum.parameters += elements;
                sum.bytes += bytes;
            }
        }
        by_dtype.retain(|sum| sum.tensors > 0);
        by_dtype.sort_by_key(|sum| std::cmp::Reverse(sum.bytes));
        Self {
            parameters: by_dtype.iter().map(|sum| sum.parameters).sum(),
            weight_bytes: by_dtype.iter().map(|sum| sum.bytes).sum(),
            by_dtype,
        }
    }
}

impl DecoderConfig {
    /// Bytes that one token takes in the KV cache, over all layers, with elements of `element_bytes`.
    #[must_use]
    pub fn kv_bytes_per_token(&self, element_bytes: usize) -> u64 {
        // Every factor is bounded when the configuration is read: at most 2^1 · 2^10 · 2^18 · element.
        2 * (self.num_layers * self.num_kv_heads * self.head_dim * element_bytes) as u64
    }
}
