//! Pre-tokenisation: cutting text into the pieces within which byte pairs merge.
//!
//! Hand-written scanners for the patterns that the supported vocabularies use; no regex engine runs, no other pattern
//! is accepted. Each scanner gives exactly the leftmost-first matches of its pattern, and looks at each character a
//! bounded number of times, so that cutting is linear in the text whatever it holds.
//!
//! Invariant: the pieces are non-empty and their concatenation is the text.

use super::unicode::{CharClasses, DIGIT, LETTER, NEWLINE, NUMBER, SPACE};

/// The patterns that are known, by the vocabulary they came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreTokenizer {
    /// Qwen2, Qwen2.5, Qwen3: each number alone.
    Qwen2,
    /// Llama 3: up to three numbers together.
    Llama3,
    /// GPT-2: any number of numbers together, contractions in lower case only.
    Gpt2,
    /// SmolLM: every digit cut out first, then GPT-2.
    SmolLm,
}

impl PreTokenizer {
    /// The pattern behind a value of GGUF's `tokenizer.ggml.pre`.
    #[must_use]
    pub fn from_gguf_name(name: &str) -> Option<Self> {
        match name {
            "qwen2" | "deepseek-r1-qwen" => Some(Self::Qwen2),
            "llama-bpe" | "llama3" | "llama-v3" => Some(Self::Llama3),
            "gpt-2" => Some(Self::Gpt2),
            "smollm" => Some(Self::SmolLm),
            _ => None,
        }
    }

    /// Hands each piece of `text` to `emit`, in order.
    pub(super) fn split<'t>(
        self,
        classes: &CharClasses,
        text: &'t str,
        mut emit: impl FnMut(&'t str),
    ) {
        match self {
            Self::Qwen2 => {
                split_with(text, |rest| Cursor::new(classes, rest).tiktoken_piece(1), emit)
            }
            Self::Llama3 => {
                split_with(text, |rest| Cursor::new(classes, rest).tiktoken_piece(3), emit)
            }
            Self::Gpt2 => split_with(text, |rest| Cursor::new(classes, rest).gpt2_piece(), emit),
            Self::SmolLm => {
                let mut rest = text;
                while !rest.is_empty() {
                    let end = Cursor::new(classes, rest).run(0, |class| class & DIGIT == 0);
                    let (words, tail) = rest.split_at(end);
                    split_with(words, |rest| Cursor::new(classes, rest).gpt2_piece(), &mut emit);
                    let digit = tail.chars().next().map_or(0, char::len_utf8);
                    let (digit, tail) = tail.split_at(digit);
                    if !digit.is_empty() {
                        emit(digit);
                    }
                    rest = tail;
                }
            }
        }
    }
}

fn split_with<'t>(text: &'t str, piece_len: impl Fn(&str) -> usize, mut emit: impl FnMut(&'t str)) {
    let mut rest = text;
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at(piece_len(rest));
        emit(piece);
        rest = tail;
    }
}

/// Matches at the start of `text`, which is never empty here.
#[derive(Clone, Copy)]
struct Cursor<'c, 't> {
    classes: &'c CharClasses,
    text: &'t str,
}

impl<'c, 't> Cursor<'c, 't> {
    fn new(classes: &'c CharClasses, text: &'t str) -> Self {
        Self { classes, text }
    }

    /// The character at a byte offset and its classes.
    #[inline]
    fn at(self, offset: usize) -> Option<(char, u8)> {
        let c = self.text.get(offset..)?.chars().next()?;
        Some((c, self.classes.of(c)))
    }

    /// The end of the run of characters from `offset` whose classes satisfy `keep`.
    #[inline]
    fn run(self, offset: usize, keep: impl Fn(u8) -> bool) -> usize {
        let rest = self.text.get(offset..).unwrap_or("");
        let stop = rest.char_indices().find(|(_, c)| !keep(self.classes.of(*c)));
        stop.map_or(self.text.len(), |(end, _)| offset + end)
    }

    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max_numbers}| ?[^\s\p{L}\p{N}]+[\r\n]*|`
    /// `\s*[\r\n]+|\s+(?!\S)|\s+`
    fn tiktoken_piece(self, max_numbers: usize) -> usize {
        let Some((first, class)) = self.at(0) else { return 0 };
        let letter = |class: u8| class & LETTER != 0;
        if letter(class) {
            return self.run(0, letter);
        }
        if class & NUMBER != 0 {
            let numbers = self.text.chars().take_while(|c| self.classes.of(*c) & NUMBER != 0);
            return numbers.take(max_numbers).map(char::len_utf8).sum();
        }
        if first == '\''
            && let Some(end) = self.contraction(true)
        {
            return end;
        }
        let second = first.len_utf8();
        if class & NEWLINE == 0 && self.at(second).is_some_and(|(_, class)| letter(class)) {
            return self.run(second, letter);
        }
        if let Some(end) = self.symbols(first, class) {
            return self.run(end, |class| class & NEWLINE != 0);
        }
        self.spaces(true)
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    fn gpt2_piece(self) -> usize {
        let Some((first, class)) = self.at(0) else { return 0 };
        if first == '\''
            && let Some(end) = self.contraction(false)
        {
            return end;
        }
        let after_space = if first == ' ' { 1 } else { 0 };
        for kind in [LETTER, NUMBER] {
            let end = self.run(after_space, |class| class & kind != 0);
            if end > after_space {
                return end;
            }
        }
        self.symbols(first, class).unwrap_or_else(|| self.spaces(false))
    }

    /// ` ?[^\s\p{L}\p{N}]+`
    fn symbols(self, first: char, class: u8) -> Option<usize> {
        let symbol = |class: u8| class & (LETTER | NUMBER | SPACE) == 0;
        if symbol(class) {
            return Some(self.run(0, symbol));
        }
        if first != ' ' {
            return None;
        }
        let end = self.run(1, symbol);
        (end > 1).then_some(end)
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d`. Ignoring case, `s` is also matched by U+017F, whose simple case folding it is.
    fn contraction(self, ignore_case: bool) -> Option<usize> {
        let fold = |c: char| match c {
            '\u{17f}' if ignore_case => 's',
            c if ignore_case => c.to_ascii_lowercase(),
            c => c,
        };
        let mut rest = self.text.chars().skip(1);
        let second = rest.next()?;
        if matches!(fold(second), 's' | 't' | 'm' | 'd') {
            return Some(1 + second.len_utf8());
        }
        let pair = (fold(second), fold(rest.next()?));
        matches!(pair, ('r' | 'v', 'e') | ('l', 'l')).then_some(3)
    }

    /// `\s*[\r\n]+` where `newlines`, then `\s+(?!\S)|\s+`. The text starts with white space.
    fn spaces(self, newlines: bool) -> usize {
        let end = self.run(0, |class| class & SPACE != 0);
        let run = self.text.get(..end).unwrap_or("");
        if newlines && let Some(last) = run.rfind(['\r', '\n']) {
            return last + 1;
        }
        let last_len = run.chars().next_back().map_or(0, char::len_utf8);
        if end == self.text.len() || end == last_len { end } else { end - last_len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pre: PreTokenizer, text: &str, pieces: &[&str]) {
        let classes = CharClasses::new().unwrap();
        let mut found = Vec::new();
        pre.split(&classes, text, |piece| found.push(piece));
        assert_eq!(found, pieces, "{pre:?} on {text:?}");
    }

    #[test]
    fn pieces() {
        use PreTokenizer::{Gpt2, Llama3, Qwen2, SmolLm};
        check(Qwen2, "", &[]);
        check(Qwen2, "I'VE it'ſ 'sab", &["I", "'VE", " it", "'ſ", " '", "sab"]);
        check(Qwen2, "'sab", &["'s", "ab"]);
        check(Qwen2, "'hello", &["'hello"]);
        check(Qwen2, "a  b", &["a", " ", " b"]);
        check(Qwen2, "a\t\t(b", &["a", "\t", "\t", "(b"]);
        check(Qwen2, "((b)\r\n\n x", &["((", "b", ")\r\n\n", " x"]);
        check(Qwen2, "  \n \n  x", &["  \n \n", " ", " x"]);
        check(Qwen2, "1234", &["1", "2", "3", "4"]);
        check(Qwen2, "a   ", &["a", "   "]);
        check(Qwen2, " \u{3000}x", &[" ", "\u{3000}x"]);
        check(Llama3, "1234 5", &["123", "4", " ", "5"]);
        check(Gpt2, "I'VE it's 12 \n x", &["I", "'", "VE", " it", "'s", " 12", " \n", " x"]);
        check(SmolLm, "a 12  3\n", &["a", " ", "1", "2", "  ", "3", "\n"]);
        check(SmolLm, "x²y", &["x", "²", "y"]);
    }
}
