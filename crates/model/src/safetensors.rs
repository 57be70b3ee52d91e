//! The header of one safetensors file, checked.
//!
//! Not here: shards and `config.json` (`model_file.rs`, `config_json.rs`).
//! The format: eight bytes of header length, that many bytes of JSON, then the data, of which every byte belongs to
//! exactly one tensor.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::container::{
    MAX_DIMENSIONS, MAX_TENSOR_NAME_BYTES, MAX_TENSORS, StoredTensor, check_tensors, tensor_bytes,
};
use crate::decoder::DType;
use crate::error::ModelError;

/// Bytes of the JSON header. A shard of 1000 tensors has 10⁵; the format's own reader stops at 10⁸.
pub(crate) const MAX_HEADER_BYTES: u64 = 1 << 25;

/// One tensor as the JSON has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The tensors in the order of the header. A map would keep only the last of two equal names.
struct JsonHeader(Vec<(String, JsonTensor)>);

impl<'de> Deserialize<'de> for JsonHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = JsonHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one entry per tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else if tensors.len() as u64 >= MAX_TENSORS {
                        let message = format!("more than {MAX_TENSORS} tensors");
                        return Err(serde::de::Error::custom(message));
                    } else {
                        tensors.push((name, map.next_value()?));
                    }
                }
                Ok(JsonHeader(tensors))
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Checks and lists the tensors of a safetensors file.
///
/// # Errors
/// Everything that breaks the format's rules or this reader's limits.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<StoredTensor>, ModelError> {
    let truncated = |what: &str, needed: u64, available: usize| ModelError::Truncated {
        what: what.to_owned(),
        needed,
        available: available as u64,
    };
    let (length, rest) = bytes
        .split_first_chunk::<8>()
        .ok_or_else(|| truncated("the header's length", 8, bytes.len()))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(ModelError::too_large("the header's length", MAX_HEADER_BYTES, length));
    }
    let header = usize::try_from(length)
        .ok()
        .and_then(|length| rest.get(..length))
        .ok_or_else(|| truncated("the header", length, rest.len()))?;
    let JsonHeader(listed) =
        serde_json::from_slice(header).map_err(|error| ModelError::json(&error))?;

    // Both numbers are lengths of parts of `bytes`.
    let data_start = 8 + header.len();
    let mut tensors = listed
        .into_iter()
        .map(|(name, tensor)| stored_tensor(name, &tensor, data_start))
        .collect::<Result<Vec<_>, _>>()?;
    check_tensors(&tensors, bytes.len())?;
    let described = tensors.iter().map(|tensor| tensor.bytes as u64).sum::<u64>();
    let data = (bytes.len() - data_start) as u64;
    if described != data {
        let problem = format!("has {data} bytes, of which the header describes {described}");
        return Err(ModelError::malformed("the data", problem));
    }
    tensors.retain(|tensor| !is_counting(&tensor.name));
    Ok(tensors)
}

/// Whether a tensor holds nothing but 0, 1, 2, …: positions that old files store as integers.
fn is_counting(name: &str) -> bool {
    name.ends_with("embeddings.position_ids")
}

fn stored_tensor(
    name: String,
    tensor: &JsonTensor,
    data_start: usize,
) -> Result<StoredTensor, ModelError> {
    let what = |part: &str| format!("{part} of the tensor `{name}`");
    if name.len() as u64 > MAX_TENSOR_NAME_BYTES {
        let given = name.len() as u64;
        return Err(ModelError::too_large("a tensor's name", MAX_TENSOR_NAME_BYTES, given));
    }
    let dtype = match tensor.dtype.as_str() {
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        // Only counted from 0, and left out below; as bytes two halves.
        "I64" if is_counting(&name) => DType::F32,
        other => {
            let given = format!("`{other}`");
            return Err(ModelError::unsupported(what("the type"), given, "F32, F16, BF16"));
        }
    };
    if tensor.shape.len() as u64 > MAX_DIMENSIONS {
        let given = tensor.shape.len() as u64;
        return Err(ModelError::too_large(what("the dimensions"), MAX_DIMENSIONS, given));
    }
    let shape = tensor
        .shape
        .iter()
        .map(|&n| usize::try_from(n))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| ModelError::malformed(what("the shape"), "has a dimension above 2^64"))?;
    let mut bytes = tensor_bytes(&name, dtype, &shape)?;
    if tensor.dtype == "I64" {
        bytes = bytes.saturating_mul(2);
    }
    let (begin, end) = tensor.data_offsets;
    if end.checked_sub(begin) != Some(bytes as u64) {
        let problem = format!("are {begin}..{end}, but its shape needs {bytes} bytes");
        return Err(ModelError::malformed(what("the offsets"), problem));
    }
    let offset = usize::try_from(begin)
        .ok()
        .and_then(|begin| begin.checked_add(data_start))
        .ok_or_else(|| ModelError::malformed(what("the offsets"), "lie past 2^64"))?;
    Ok(StoredTensor { name, dtype, shape, offset, bytes })
}
