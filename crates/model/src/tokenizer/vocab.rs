//! The vocabulary: token id ↔ bytes.
//!
//! Not the merges, not the special tokens' recognition in text.
//!
//! Invariants: ids are dense from 0; only ordinary tokens are found by their bytes, so that no lookup of text yields a
//! control token.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::TokenizerError;
use crate::TokenId;

/// More tokens than any published vocabulary has.
pub(super) const MAX_TOKENS: usize = 4_000_000;
/// All tokens' bytes together.
const MAX_VOCAB_BYTES: usize = 256 << 20;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Produced by merging bytes.
    Normal,
    /// Steers the model (`<|im_end|>`); not part of the decoded text unless asked for.
    Control,
    /// Added as a whole (`<think>`), recognised like a control token but part of the decoded text.
    Added,
    /// An id without meaning: padding of the embedding.
    Unused,
}

/// Token id ↔ bytes.
pub(super) struct Vocab {
    bytes: Vec<u8>,
    /// `bytes[ends[id - 1]..ends[id]]` are the bytes of `id`.
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
    /// Ids of ordinary tokens, hashed by their bytes. Seeded per process, as the bytes come from outside.
    index: HashTable<TokenId>,
    hasher: DefaultHashBuilder,
}

impl Vocab {
    pub(super) fn new(len: usize) -> Result<Self, TokenizerError> {
        if len > MAX_TOKENS {
            return Err(TokenizerError::TooLarge { what: "tokens", count: len, limit: MAX_TOKENS });
        }
        Ok(Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(len),
            kinds: Vec::with_capacity(len),
            index: HashTable::with_capacity(len),
            hasher: DefaultHashBuilder::default(),
        })
    }

    /// Appends the next id. `indexed` is whether text can turn into it by merging.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        kind: TokenKind,
        indexed: bool,
    ) -> Result<(), TokenizerError> {
        let too_large = |what, count, limit| TokenizerError::TooLarge { what, count, limit };
        let id = u32::try_from(self.ends.len()).unwrap_or(u32::MAX);
        if self.ends.len() >= MAX_TOKENS {
            return Err(too_large("tokens", self.ends.len() + 1, MAX_TOKENS));
        }
        let total = self.bytes.len().saturating_add(bytes.len());
        let end = u32::try_from(total).ok().filter(|_| total <= MAX_VOCAB_BYTES);
        let end = end.ok_or_else(|| too_large("bytes of tokens", total, MAX_VOCAB_BYTES))?;
        self.bytes.extend_from_slice(bytes);
        self.ends.push(end);
        self.kinds.push(kind);
        if indexed && !bytes.is_empty() && self.find(bytes).is_none() {
            let Self { bytes: all, ends, index, hasher, .. } = self;
            let hash = hasher.hash_one(bytes);
            index.insert_unique(hash, id, |id| {
                hasher.hash_one(slice(all, ends, *id).unwrap_or(&[]))
            });
        }
        Ok(())
    }

    /// The ordinary token with exactly these bytes.
    #[inline]
    pub(super) fn find(&self, bytes: &[u8]) -> Option<TokenId> {
        let hash = self.hasher.hash_one(bytes);
        self.index.find(hash, |id| slice(&self.bytes, &self.ends, *id) == Some(bytes)).copied()
    }

    /// The bytes of a token; `None` past the end of the vocabulary.
    #[inline]
    pub(super) fn bytes(&self, id: TokenId) -> Option<&[u8]> {
        slice(&self.bytes, &self.ends, id)
    }

    pub(super) fn kind(&self, id: TokenId) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

#[inline]
fn slice<'b>(bytes: &'b [u8], ends: &[u32], id: TokenId) -> Option<&'b [u8]> {
    let id = id as usize;
    let end = *ends.get(id)? as usize;
    let start = match id.checked_sub(1) {
        Some(previous) => *ends.get(previous)? as usize,
        None => 0,
    };
    bytes.get(start..end)
}

/// The 256 characters that stand for bytes in a byte-level vocabulary: GPT-2's `bytes_to_unicode`. Printable Latin-1
/// stands for itself, the 68 other bytes for the characters from U+0100 on, in order.
pub(super) struct ByteAlphabet {
    /// By code point below U+0144: the byte, or -1.
    bytes: [i16; 0x144],
}

impl ByteAlphabet {
    pub(super) fn new() -> Self {
        let mut bytes = [-1i16; 0x144];
        let mut next = 0x100;
        for byte in 0..=255u8 {
            let itself = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let slot = if itself { usize::from(byte) } else { next };
            if !itself {
                next += 1;
            }
            if let Some(entry) = bytes.get_mut(slot) {
                *entry = i16::from(byte);
            }
        }
        Self { bytes }
    }

    /// The bytes a token's text stands for; `None` if a character is not of the alphabet.
    pub(super) fn decode(&self, text: &str) -> Option<Vec<u8>> {
        // One allocation: a model has some 300,000 of these texts to decode while it loads.
        let mut bytes = Vec::with_capacity(text.len());
        for character in text.chars() {
            bytes.push(u8::try_from(*self.bytes.get(character as usize)?).ok()?);
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection() {
        let alphabet = ByteAlphabet::new();
        let mut decoded: Vec<u8> = (0..0x400)
            .filter_map(char::from_u32)
            .filter_map(|c| alphabet.decode(&c.to_string()))
            .flatten()
            .collect();
        decoded.sort_unstable();
        assert_eq!(decoded, (0..=255).collect::<Vec<u8>>());
        assert_eq!(alphabet.decode("Ġa").as_deref(), Some(&b" a"[..]));
        assert_eq!(alphabet.decode("Ċ").as_deref(), Some(&b"\n"[..]));
        assert_eq!(alphabet.decode("｜"), None);
    }

    #[test]
    fn only_ordinary_tokens_are_found() {
        let mut vocab = Vocab::new(3).unwrap();
        vocab.push(b"a", TokenKind::Normal, true).unwrap();
        vocab.push(b"<s>", TokenKind::Control, false).unwrap();
        vocab.push(b"a", TokenKind::Normal, true).unwrap();
        assert_eq!((vocab.find(b"a"), vocab.find(b"<s>"), vocab.find(b"")), (Some(0), None, None));
        assert_eq!((vocab.bytes(1), vocab.bytes(3)), (Some(&b"<s>"[..]), None));
    }
}
