//! The typed key-value pairs of a GGUF file, read in place from the mapped bytes.
//!
//! Invariant: values were walked once by [`check_value`] when the file was opened; reading them again cannot fail,
//! and where it would, a reader sees an absent value rather than a panic.

use std::collections::HashMap;

use super::Entry;
use super::cursor::Cursor;
use crate::error::ModelError;

/// Bytes of one string; a chat template is the longest there is.
pub(crate) const MAX_STRING_BYTES: u64 = 1 << 24;
/// Elements of one array; a vocabulary has 10⁵ to 10⁶ tokens and merges.
pub(crate) const MAX_ARRAY_LEN: u64 = 1 << 24;
/// Arrays within arrays.
pub(crate) const MAX_ARRAY_DEPTH: u32 = 4;

/// Type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "a flat catalogue of names defined elsewhere")]
pub enum GgufType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl GgufType {
    pub(crate) fn from_id(id: u32, what: &str) -> Result<Self, ModelError> {
        Ok(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return Err(ModelError::unsupported(what, id.to_string(), "0 to 12")),
        })
    }

    /// Fewest bytes a value of this type takes.
    fn min_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

/// A value, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "one variant a type of the format")]
pub enum GgufValue<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(&'a str),
    Array(GgufArray<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> GgufValue<'a> {
    /// A whole number that is not negative, whatever its width.
    #[must_use]
    pub fn as_unsigned(&self) -> Option<u64> {
        match *self {
            Self::U8(n) => Some(n.into()),
            Self::U16(n) => Some(n.into()),
            Self::U32(n) => Some(n.into()),
            Self::U64(n) => Some(n),
            Self::I8(n) => n.try_into().ok(),
            Self::I16(n) => n.try_into().ok(),
            Self::I32(n) => n.try_into().ok(),
            Self::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// A floating-point number of either width.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "the model computes in f32")]
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Self::F32(x) => Some(x),
            Self::F64(x) => Some(x as f32),
            _ => None,
        }
    }

    /// A truth value.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(b) = *self { Some(b) } else { None }
    }

    /// A string.
    #[must_use]
    pub fn as_str(&self) -> Option<&'a str> {
        if let Self::String(s) = *self { Some(s) } else { None }
    }

    /// An array.
    #[must_use]
    pub fn as_array(&self) -> Option<GgufArray<'a>> {
        if let Self::Array(a) = *self { Some(a) } else { None }
    }
}

/// Longest part of a string that is printed.
const SHOWN_CHARS: usize = 60;
/// Most elements of an array that are printed.
const SHOWN_ELEMENTS: usize = 6;

impl std::fmt::Display for GgufValue<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::U8(n) => n.fmt(f),
            Self::I8(n) => n.fmt(f),
            Self::U16(n) => n.fmt(f),
            Self::I16(n) => n.fmt(f),
            Self::U32(n) => n.fmt(f),
            Self::I32(n) => n.fmt(f),
            Self::F32(x) => x.fmt(f),
            Self::Bool(b) => b.fmt(f),
            Self::U64(n) => n.fmt(f),
            Self::I64(n) => n.fmt(f),
            Self::F64(x) => x.fmt(f),
            Self::String(s) => match s.char_indices().nth(SHOWN_CHARS) {
                None => write!(f, "{s:?}"),
                Some((end, _)) => write!(f, "{:?}…", s.get(..end).unwrap_or_default()),
            },
            Self::Array(array) => {
                f.write_str("[")?;
                for (at, value) in array.iter().take(SHOWN_ELEMENTS).enumerate() {
                    write!(f, "{}{value}", if at == 0 { "" } else { ", " })?;
                }
                let more = array.len().saturating_sub(SHOWN_ELEMENTS);
                if more > 0 { write!(f, ", … {more} more]") } else { f.write_str("]") }
            }
        }
    }
}

/// An array, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GgufArray<'a> {
    element: GgufType,
    len: usize,
    /// From the first element on; more than the array may follow.
    bytes: &'a [u8],
}

impl<'a> GgufArray<'a> {
    /// Type of every element.
    #[must_use]
    pub fn element_type(&self) -> GgufType {
        self.element
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order, in one pass over the bytes.
    pub fn iter(&self) -> impl Iterator<Item = GgufValue<'a>> + use<'a> {
        let (element, mut cursor) = (self.element, Cursor::new(self.bytes));
        (0..self.len).map_while(move |_| {
            let value = read_value(&mut cursor, element)?;
            if let GgufValue::Array(inner) = value {
                skip_elements(&mut cursor, inner.element, inner.len)?;
            }
            Some(value)
        })
    }
}

/// All key-value pairs of a file, in its order.
#[derive(Clone, Copy, Debug)]
pub struct GgufMetadata<'a> {
    entries: &'a [Entry],
    index: &'a HashMap<String, usize>,
    bytes: &'a [u8],
}

impl<'a> GgufMetadata<'a> {
    pub(crate) fn new(
        entries: &'a [Entry],
        index: &'a HashMap<String, usize>,
        bytes: &'a [u8],
    ) -> Self {
        Self { entries, index, bytes }
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<GgufValue<'a>> {
        let entry = self.entries.get(*self.index.get(key)?)?;
        read_value(&mut Cursor::starting_at(self.bytes, entry.offset), entry.kind)
    }

    /// Every key with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, GgufValue<'a>)> + use<'a> {
        let (entries, bytes) = (self.entries, self.bytes);
        entries.iter().filter_map(move |entry| {
            let value = read_value(&mut Cursor::starting_at(bytes, entry.offset), entry.kind)?;
            Some((entry.key.as_str(), value))
        })
    }

    /// The whole number of a key; `None` where the key is absent.
    ///
    /// # Errors
    /// [`ModelError::WrongType`] where it is anything but a non-negative whole number.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, ModelError> {
        self.typed(key, "a whole number that is not negative", |value| value.as_unsigned())
    }

    /// The floating-point number of a key; `None` where the key is absent.
    ///
    /// # Errors
    /// [`ModelError::WrongType`] where it is anything else.
    pub fn float(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.typed(key, "a floating-point number", |value| value.as_f32())
    }

    /// The truth value of a key; `None` where the key is absent.
    ///
    /// # Errors
    /// [`ModelError::WrongType`] where it is anything else.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "true or false", |value| value.as_bool())
    }

    /// The string of a key; `None` where the key is absent.
    ///
    /// # Errors
    /// [`ModelError::WrongType`] where it is anything else.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(key, "a string", |value| value.as_str())
    }

    /// The array of a key; `None` where the key is absent.
    ///
    /// # Errors
    /// [`ModelError::WrongType`] where it is anything else.
    pub fn array(&self, key: &str) -> Result<Option<GgufArray<'a>>, ModelError> {
        self.typed(key, "an array", |value| value.as_array())
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&GgufValue<'a>) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| {
            let kind = self.index.get(key).and_then(|&at| self.entries.get(at));
            let kind = kind.map_or("absent", |entry| entry.kind.name());
            ModelError::WrongType {
                key: key.to_owned(),
                expected: expected.to_owned(),
                given: format!("{value} ({kind})"),
            }
        })
    }
}

/// Walks one value, so that reading it later cannot fail.
pub(super) fn check_value(
    cursor: &mut Cursor<'_>,
    kind: GgufType,
    key: &str,
) -> Result<(), ModelError> {
    check_nested(cursor, kind, key, 0)
}

fn check_nested(
    cursor: &mut Cursor<'_>,
    kind: GgufType,
    key: &str,
    depth: u32,
) -> Result<(), ModelError> {
    match kind {
        GgufType::String => cursor.string(key, MAX_STRING_BYTES).map(|_| ()),
        GgufType::Bool => match cursor.array::<1>(key)? {
            [0 | 1] => Ok(()),
            [other] => Err(ModelError::malformed(
                format!("the truth value of `{key}`"),
                format!("is {other}, neither 0 nor 1"),
            )),
        },
        GgufType::Array => {
            if depth >= MAX_ARRAY_DEPTH {
                let what = format!("the depth of the arrays in `{key}`");
                let (limit, given) = (MAX_ARRAY_DEPTH.into(), u64::from(depth) + 1);
                return Err(ModelError::too_large(what, limit, given));
            }
            let (element, len) = array_head(cursor, key)?;
            if len > MAX_ARRAY_LEN {
                let what = format!("the array length of `{key}`");
                return Err(ModelError::too_large(what, MAX_ARRAY_LEN, len));
            }
            // No product of the two bounded numbers overflows.
            cursor.require(key, len * element.min_bytes())?;
            if matches!(element, GgufType::String | GgufType::Array | GgufType::Bool) {
                (0..len).try_for_each(|_| check_nested(cursor, element, key, depth + 1))
            } else {
                cursor.take(key, len * element.min_bytes()).map(|_| ())
            }
        }
        _ => cursor.take(key, kind.min_bytes()).map(|_| ()),
    }
}

fn array_head(cursor: &mut Cursor<'_>, key: &str) -> Result<(GgufType, u64), ModelError> {
    let element = GgufType::from_id(cursor.u32(key)?, &format!("the element type of `{key}`"))?;
    Ok((element, cursor.u64(key)?))
}

/// Reads a value that was checked before; of an array only its head, so that finding a vocabulary costs nothing.
fn read_value<'a>(cursor: &mut Cursor<'a>, kind: GgufType) -> Option<GgufValue<'a>> {
    let what = "a value";
    Some(match kind {
        GgufType::U8 => GgufValue::U8(u8::from_le_bytes(cursor.array(what).ok()?)),
        GgufType::I8 => GgufValue::I8(i8::from_le_bytes(cursor.array(what).ok()?)),
        GgufType::U16 => GgufValue::U16(u16::from_le_bytes(cursor.array(what).ok()?)),
        GgufType::I16 => GgufValue::I16(i16::from_le_bytes(cursor.array(what).ok()?)),
        GgufType::U32 => GgufValue::U32(u32::from_le_bytes(cursor.array(what).ok()?)),
        GgufType::I32 => GgufValue::I32(i32::from_le_bytes(cursor.array(what).ok()?)),
        GgufType::F32 => GgufValue::F32(f32::from_le_bytes(cursor.array(what).ok()?)),
        GgufType::U64 => GgufValue::U64(u64::from_le_bytes(cursor.array(what).ok()?)),
        GgufType::I64 => GgufValue::I64(i64::from_le_bytes(cursor.array(what).ok()?)),
        GgufType::F64 => GgufValue::F64(f64::from_le_bytes(cursor.array(what).ok()?)),
        GgufType::Bool => GgufValue::Bool(cursor.array::<1>(what).ok()? == [1]),
        GgufType::String => GgufValue::String(cursor.string(what, MAX_STRING_BYTES).ok()?),
        GgufType::Array => {
            let (element, len) = array_head(cursor, what).ok()?;
            GgufValue::Array(GgufArray {
                element,
                len: usize::try_from(len).ok()?,
                bytes: cursor.rest(),
            })
        }
    })
}

/// Moves past the elements of an array, where another value follows it.
fn skip_elements(cursor: &mut Cursor<'_>, element: GgufType, len: usize) -> Option<()> {
    match element {
        GgufType::String | GgufType::Array => (0..len).try_for_each(|_| {
            let value = read_value(cursor, element)?;
            let GgufValue::Array(inner) = value else { return Some(()) };
            skip_elements(cursor, inner.element, inner.len)
        }),
        _ => {
            let bytes = (len as u64).checked_mul(element.min_bytes())?;
            cursor.take("an array", bytes).ok().map(|_| ())
        }
    }
}
