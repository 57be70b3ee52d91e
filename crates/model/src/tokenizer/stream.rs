//! Ids → text, one at a time.
//!
//! Invariants: what is handed out is whole characters; the pieces, concatenated, are [`Tokenizer::decode`] of all ids;
//! at most three bytes wait between two calls.

use super::Tokenizer;
use crate::TokenId;

/// Decodes a growing answer.
///
/// Bytes that can no longer become a character are replaced by U+FFFD as soon as that is certain, as
/// [`String::from_utf8_lossy`] does.
#[derive(Clone, Debug)]
pub struct DecodeStream<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    pending: PendingBytes,
}

impl<'t> DecodeStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, pending: PendingBytes::default() }
    }

    /// The text that a token completes; often one word, empty inside of a character.
    pub fn push(&mut self, id: TokenId) -> String {
        if self.skip_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        self.pending.push(self.tokenizer.token_bytes(id).unwrap_or(&[]))
    }

    /// What is left at the end: U+FFFD if the answer stopped inside of a character.
    pub fn finish(&mut self) -> String {
        self.pending.finish()
    }
}

/// Bytes → text, for those who own their bytes: at most three wait for the rest of their character.
#[derive(Clone, Debug, Default)]
pub struct PendingBytes(Vec<u8>);

impl PendingBytes {
    /// The characters that are complete now; impossible bytes become U+FFFD, as in [`String::from_utf8_lossy`].
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.0.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.0.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, tail) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    rest = tail;
                    let Some(bad) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = rest.get(bad..).unwrap_or(&[]);
                }
            }
        }
        self.0 = rest.to_vec();
        text
    }

    /// What is left of a text that ended inside of a character.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.0).into_owned();
        self.0.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(chunks: &[&[u8]], pieces: &[&str]) {
        let mut pending = PendingBytes::default();
        let mut found: Vec<String> = Vec::new();
        for chunk in chunks {
            found.push(pending.push(chunk));
            assert!(pending.0.len() <= 3, "{chunks:?}");
        }
        found.push(pending.finish());
        assert_eq!(found, pieces, "{chunks:?}");
        assert_eq!(found.concat(), String::from_utf8_lossy(&chunks.concat()), "{chunks:?}");
    }

    #[test]
    fn never_half_a_character() {
        check(&["ab".as_bytes(), "é".as_bytes()], &["ab", "é", ""]);
        check(&[b"\xe4", b"\xbd", b"\xa0!"], &["", "", "你!", ""]);
        check(&[b"\xf0\x9f\x98", b"\x80x"], &["", "😀x", ""]);
        check(&[b"\xe4\xbd"], &["", "\u{fffd}"]);
        check(&[b"\xe4", b"a"], &["", "\u{fffd}a", ""]);
        check(&[b"\xff\xfe", b"ok"], &["\u{fffd}\u{fffd}", "ok", ""]);
        check(&[b"\xed", b"\xa0", b"\x80"], &["", "\u{fffd}\u{fffd}", "\u{fffd}", ""]);
    }

    #[test]
    fn characters_come_whole_however_they_are_cut() {
        for text in ["naïve 你好 👩‍💻!", "\u{fffd}x", "abc"] {
            for size in 1..6 {
                let mut pending = PendingBytes::default();
                let cut: String = text.as_bytes().chunks(size).map(|b| pending.push(b)).collect();
                assert_eq!(cut + &pending.finish(), text, "by {size}");
            }
        }
        for bytes in [&b"\xff\xfe"[..], b"a\xe4\xbd", b"\xe4a", b"\xed\xa0\x80", b"\xf0\x9f\x98"] {
            let mut pending = PendingBytes::default();
            let cut: String = bytes.iter().map(|byte| pending.push(&[*byte])).collect();
            assert_eq!(cut + &pending.finish(), String::from_utf8_lossy(bytes), "{bytes:?}");
        }
    }
}
