//! A checked reader over little-endian bytes. Nothing is allocated and nothing is read past the end.

use crate::error::ModelError;

pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// A reader that starts at `at`; past the end it has nothing to give.
    pub(crate) fn starting_at(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at: at.min(bytes.len()) }
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// Checks that this many bytes are left.
    pub(crate) fn require(&self, what: &str, needed: u64) -> Result<(), ModelError> {
        let available = self.rest().len() as u64;
        if needed > available {
            return Err(ModelError::Truncated { what: what.to_owned(), needed, available });
        }
        Ok(())
    }

    pub(crate) fn take(&mut self, what: &str, count: u64) -> Result<&'a [u8], ModelError> {
        self.require(what, count)?;
        // `require` bounds `count` by a length, so the conversion and the split below hold.
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let taken = self.rest().get(..count).unwrap_or_default();
        self.at = self.at.saturating_add(taken.len());
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ModelError> {
        let taken = self.take(what, N as u64)?;
        taken.try_into().map_err(|_| ModelError::malformed(what, "is incomplete"))
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, ModelError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, ModelError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A 64-bit length and that many bytes of UTF-8.
    pub(crate) fn string(&mut self, what: &str, limit: u64) -> Result<&'a str, ModelError> {
        let length = self.u64(what)?;
        if length > limit {
            return Err(ModelError::too_large(format!("the length of {what}"), limit, length));
        }
        let bytes = self.take(what, length)?;
        std::str::from_utf8(bytes).map_err(|_| ModelError::malformed(what, "is not UTF-8"))
    }
}
