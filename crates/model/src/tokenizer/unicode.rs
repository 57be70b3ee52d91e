//! Which characters are letters, numbers and white space, as a two-stage table.
//!
//! Not a Unicode library: only the classes that the pre-tokenisers' patterns name. The general categories come from
//! `regex-syntax`, whose Unicode version is the one of the reference implementation's regex engine; "digit" is the
//! standard library's `char::is_numeric`, which the reference calls for its `Digits` step.
//!
//! Invariant: every character has exactly one of [`LETTER`], [`NUMBER`], [`SPACE`] or none of them.

use regex_syntax::hir::{Class, HirKind};

/// `\p{L}`
pub(super) const LETTER: u8 = 1;
/// `\p{N}`
pub(super) const NUMBER: u8 = 2;
/// `\s`, line breaks included
pub(super) const SPACE: u8 = 4;
/// `[\r\n]`
pub(super) const NEWLINE: u8 = 8;
/// `char::is_numeric`
pub(super) const DIGIT: u8 = 16;
/// Not assigned in Unicode 9, the version of the reference's normaliser, which leaves such characters where they are.
pub(super) const UNKNOWN_TO_NFC: u8 = 32;

const PAGE_SIZE: usize = 256;
const CODE_POINTS: usize = 0x11_0000;

/// Classes of every code point.
pub(super) struct CharClasses {
    /// One entry for each 256 code points: where their page starts in `pages`.
    starts: Vec<u32>,
    pages: Vec<u8>,
}

impl CharClasses {
    /// Builds the table; about a millisecond. `None` only if `regex-syntax` was built without its category tables.
    pub(super) fn new() -> Option<Self> {
        let mut flat = vec![0u8; CODE_POINTS];
        mark(&mut flat, r"\p{L}", LETTER)?;
        mark(&mut flat, r"\p{N}", NUMBER)?;
        mark(&mut flat, r"\p{age:9.0}", UNKNOWN_TO_NFC)?; // inverted below
        for (code_point, class) in flat.iter_mut().enumerate() {
            let Some(c) = u32::try_from(code_point).ok().and_then(char::from_u32) else { continue };
            *class ^= UNKNOWN_TO_NFC;
            if c.is_whitespace() {
                *class |= SPACE;
            }
            if c.is_numeric() {
                *class |= DIGIT;
            }
            if c == '\r' || c == '\n' {
                *class |= NEWLINE;
            }
        }
        let mut table = Self { starts: Vec::new(), pages: Vec::new() };
        for page in flat.chunks(PAGE_SIZE) {
            let known = table.pages.chunks(PAGE_SIZE).position(|p| p == page);
            let index = known.unwrap_or_else(|| {
                table.pages.extend_from_slice(page);
                table.pages.len() / PAGE_SIZE - 1
            });
            table.starts.push(u32::try_from(index * PAGE_SIZE).ok()?);
        }
        Some(table)
    }

    /// The classes of one character.
    #[inline]
    pub(super) fn of(&self, c: char) -> u8 {
        let code_point = c as usize;
        let start = self.starts.get(code_point / PAGE_SIZE).copied().unwrap_or(0) as usize;
        self.pages.get(start + code_point % PAGE_SIZE).copied().unwrap_or(0)
    }
}

fn mark(flat: &mut [u8], pattern: &str, bit: u8) -> Option<()> {
    let hir = regex_syntax::parse(pattern).ok()?;
    let HirKind::Class(Class::Unicode(class)) = hir.kind() else { return None };
    for range in class.ranges() {
        for entry in flat.get_mut(range.start() as usize..=range.end() as usize)? {
            *entry |= bit;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_those_of_unicode_16() {
        let classes = CharClasses::new().unwrap();
        let count = |bit| {
            (0..0x11_0000).filter_map(char::from_u32).filter(|c| classes.of(*c) & bit != 0).count()
        };
        // The counts that the reference's own regex engine gives for `\p{L}`, `\p{N}` and `\s`.
        assert_eq!(count(LETTER), 141_028);
        assert_eq!(count(NUMBER), 1_911);
        assert_eq!(count(SPACE), 25);
        assert_eq!(count(NEWLINE), 2);
        let both = |c: char| {
            [LETTER, NUMBER, SPACE].iter().filter(|bit| classes.of(c) & **bit != 0).count()
        };
        assert!((0..0x11_0000).filter_map(char::from_u32).all(|c| both(c) <= 1));
    }
}
