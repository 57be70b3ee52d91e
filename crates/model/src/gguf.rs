//! GGUF version 2 and 3, little endian: the header of one file, checked.
//!
//! Not here: split files (`model_file.rs`) and what the keys mean (`config_gguf.rs`).
//! Invariant: a [`GgufHeader`] exists only for bytes whose every value, name and tensor was checked, so the typed
//! accessors of [`GgufMetadata`] cannot fail afterwards. Format: `docs/gguf.md` of the ggml project.

mod cursor;
mod metadata;

pub use metadata::{GgufArray, GgufMetadata, GgufType, GgufValue};

use std::collections::HashMap;

use crate::container::{
    MAX_DIMENSIONS, MAX_TENSOR_NAME_BYTES, MAX_TENSORS, StoredTensor, check_tensors, tensor_bytes,
};
use crate::decoder::DType;
use crate::error::ModelError;
use cursor::Cursor;

/// The first four bytes.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// Key-value pairs of one file; published files have about 30.
pub(crate) const MAX_ENTRIES: u64 = 1 << 14;
/// Bytes of a key, as in the format's document.
pub(crate) const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// Largest alignment; 32 is what everyone writes.
pub(crate) const MAX_ALIGNMENT: u64 = 1 << 16;
/// Where tensors begin unless the file says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Smallest possible key-value pair: an empty key (8), a type (4), one byte.
const MIN_ENTRY_BYTES: u64 = 13;
/// Smallest possible tensor description: an empty name (8), dimensions (4), type (4), offset (8).
const MIN_TENSOR_BYTES: u64 = 24;

/// The checked header of one GGUF file.
#[derive(Debug)]
pub(crate) struct GgufHeader {
    pub(crate) version: u32,
    pub(crate) entries: Vec<Entry>,
    pub(crate) index: HashMap<String, usize>,
    pub(crate) tensors: Vec<StoredTensor>,
}

/// A key and where its value lies.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) kind: GgufType,
    /// Of the value, from the start of the file.
    pub(crate) offset: usize,
}

/// Checks and indexes the header of a GGUF file.
///
/// # Errors
/// Everything that breaks the format's rules or this reader's limits.
pub(crate) fn parse(bytes: &[u8]) -> Result<GgufHeader, ModelError> {
    let mut cursor = Cursor::new(bytes);
    let version = read_version(&mut cursor)?;
    let tensor_count = read_count(&mut cursor, "the tensor count", MAX_TENSORS)?;
    let entry_count = read_count(&mut cursor, "the metadata count", MAX_ENTRIES)?;
    cursor.require("the metadata", entry_count.saturating_mul(MIN_ENTRY_BYTES))?;

    let (entries, index) = read_entries(&mut cursor, entry_count)?;
    let alignment = alignment(&GgufMetadata::new(&entries, &index, bytes))?;

    cursor.require("the tensor list", tensor_count.saturating_mul(MIN_TENSOR_BYTES))?;
    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        tensors.push(read_tensor(&mut cursor)?);
    }
    let data_start = (cursor.position() as u64)
        .checked_next_multiple_of(alignment)
        .ok_or_else(|| ModelError::malformed("the tensor data", "starts past 2^64"))?;
    for tensor in &mut tensors {
        place_tensor(tensor, data_start, alignment)?;
    }
    check_tensors(&tensors, bytes.len())?;
    Ok(GgufHeader { version, entries, index, tensors })
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, ModelError> {
    let magic = cursor.take("the magic number", 4)?;
    if magic != MAGIC {
        return Err(ModelError::NotAModel {
            found: format!("the file begins with {magic:02x?} instead of `GGUF`"),
        });
    }
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => Ok(version),
        _ if matches!(version.swap_bytes(), 1..=3) => Err(ModelError::unsupported(
            "the byte order of the GGUF file",
            "big endian",
            "little endian (convert the model again)",
        )),
        _ => Err(ModelError::unsupported("the GGUF version", version.to_string(), "2 and 3")),
    }
}

fn read_count(cursor: &mut Cursor<'_>, what: &str, limit: u64) -> Result<u64, ModelError> {
    let given = cursor.u64(what)?;
    if given > limit { Err(ModelError::too_large(what, limit, given)) } else { Ok(given) }
}

type Entries = (Vec<Entry>, HashMap<String, usize>);

fn read_entries(cursor: &mut Cursor<'_>, count: u64) -> Result<Entries, ModelError> {
    let mut entries = Vec::new();
    let mut index = HashMap::new();
    for number in 0..count {
        let key = cursor.string(&format!("metadata key {number}"), MAX_KEY_BYTES)?.to_owned();
        let what = format!("the type of `{key}`");
        let kind = GgufType::from_id(cursor.u32(&what)?, &what)?;
        let offset = cursor.position();
        metadata::check_value(cursor, kind, &key)?;
        if index.insert(key.clone(), entries.len()).is_some() {
            return Err(ModelError::malformed(format!("the key `{key}`"), "occurs twice"));
        }
        entries.push(Entry { key, kind, offset });
    }
    Ok((entries, index))
}

fn alignment(metadata: &GgufMetadata<'_>) -> Result<u64, ModelError> {
    let key = "general.alignment";
    let alignment = metadata.unsigned(key)?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(ModelError::OutOfRange {
            key: key.to_owned(),
            expected: format!("a power of two up to {MAX_ALIGNMENT}"),
            given: alignment.to_string(),
        });
    }
    Ok(alignment)
}

/// Reads one description; its `offset` is still relative to the data.
fn read_tensor(cursor: &mut Cursor<'_>) -> Result<StoredTensor, ModelError> {
    let name = cursor.string("a tensor's name", MAX_TENSOR_NAME_BYTES)?.to_owned();
    let what = format!("the description of the tensor `{name}`");
    let dimensions = u64::from(cursor.u32(&what)?);
    if dimensions == 0 || dimensions > MAX_DIMENSIONS {
        return Err(ModelError::OutOfRange {
            key: format!("the number of dimensions of the tensor `{name}`"),
            expected: format!("1 to {MAX_DIMENSIONS}"),
            given: dimensions.to_string(),
        });
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let n = cursor.u64(&what)?;
        let n = usize::try_from(n)
            .map_err(|_| ModelError::too_large(what.as_str(), usize::MAX as u64, n))?;
        shape.push(n);
    }
    // The file lists the contiguous dimension first; everything here has it last.
    shape.reverse();
    let dtype = dtype_from_id(cursor.u32(&what)?, &name)?;
    let offset = cursor.u64(&what)?;
    let offset = usize::try_from(offset)
        .map_err(|_| ModelError::too_large(what.as_str(), usize::MAX as u64, offset))?;
    let bytes = tensor_bytes(&name, dtype, &shape)?;
    Ok(StoredTensor { name, dtype, shape, offset, bytes })
}

fn place_tensor(
    tensor: &mut StoredTensor,
    data_start: u64,
    alignment: u64,
) -> Result<(), ModelError> {
    let what = || format!("the offset {} of the tensor `{}`", tensor.offset, tensor.name);
    if !(tensor.offset as u64).is_multiple_of(alignment) {
        let problem = format!("is no multiple of the alignment {alignment}");
        return Err(ModelError::malformed(what(), problem));
    }
    tensor.offset = (tensor.offset as u64)
        .checked_add(data_start)
        .and_then(|offset| usize::try_from(offset).ok())
        .ok_or_else(|| ModelError::malformed(what(), "lies past 2^64"))?;
    Ok(())
}

/// The types of GGML by number. Those without a [`DType`] are known by name only, for the message.
fn dtype_from_id(id: u32, tensor: &str) -> Result<DType, ModelError> {
    let other = match id {
        0 => return Ok(DType::F32),
        1 => return Ok(DType::F16),
        2 => return Ok(DType::Q4_0),
        3 => return Ok(DType::Q4_1),
        6 => return Ok(DType::Q5_0),
        7 => return Ok(DType::Q5_1),
        8 => return Ok(DType::Q8_0),
        10 => return Ok(DType::Q2_K),
        11 => return Ok(DType::Q3_K),
        12 => return Ok(DType::Q4_K),
        13 => return Ok(DType::Q5_K),
        14 => return Ok(DType::Q6_K),
        20 => return Ok(DType::IQ4_NL),
        23 => return Ok(DType::IQ4_XS),
        30 => return Ok(DType::BF16),
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => "unknown",
    };
    Err(ModelError::unsupported(
        format!("the type of the tensor `{tensor}`"),
        format!("number {id} ({other})"),
        DType::ALL.map(DType::name).join(", "),
    ))
}
