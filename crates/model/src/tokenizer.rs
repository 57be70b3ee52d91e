//! Text ↔ token ids: byte-level BPE for the vocabularies of Qwen2/2.5/3, Llama 3 and SmolLM2.
//!
//! Not a general tokenizer library: a vocabulary with another model, normaliser, pattern or post-processor is refused
//! with an error that names it, never approximated.
//!
//! Invariants: ids equal those of the reference package `tokenizers`; control tokens come from text only where the
//! caller allows them; time is O(n log n) in the text whatever it holds.

mod added;
mod bpe;
mod gguf;
mod json;
mod pretokenize;
mod stream;
mod unicode;
mod vocab;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

use hashbrown::HashMap;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

pub use self::gguf::GgufVocabulary;
pub use self::pretokenize::PreTokenizer;
pub use self::stream::{DecodeStream, PendingBytes};
pub use self::vocab::TokenKind;

use self::added::{AddedTokens, Found};
use self::bpe::{Merges, Scratch};
use self::unicode::{CharClasses, UNKNOWN_TO_NFC};
use self::vocab::Vocab;
use crate::TokenId;

/// Pieces remembered within one call of `encode`.
const CACHE_PIECES: usize = 8_192;
/// Longer pieces are not remembered: they hardly ever repeat.
const CACHE_PIECE_BYTES: usize = 128;

/// Why a vocabulary does not load. The model file's fault: another file is needed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A kind of tokenizer that is not one of the supported ones.
    #[error("the tokenizer's {what} is {found}, which is not supported; supported: {supported}")]
    Unsupported {
        /// The part of the tokenizer.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What would load.
        supported: &'static str,
    },
    /// A part is missing.
    #[error("the tokenizer has no {what}")]
    Missing {
        /// The part of the tokenizer.
        what: &'static str,
    },
    /// More than any real vocabulary has.
    #[error("the tokenizer has {count} {what}, the limit is {limit}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Not two tokens separated by a space.
    #[error("merge {rank} of the tokenizer is `{merge}`, not two tokens of the byte alphabet")]
    MalformedMerge {
        /// Its index.
        rank: usize,
        /// Its text.
        merge: String,
    },
    /// A merge whose parts or result the vocabulary does not have.
    #[error("merge {rank} of the tokenizer uses a token that the vocabulary does not have")]
    MergeOutOfVocabulary {
        /// Its index.
        rank: usize,
    },
    /// An id past the end of the vocabulary.
    #[error("the tokenizer's {what} is {id}, but the vocabulary has {vocab_size} tokens")]
    IdOutOfRange {
        /// Which id.
        what: &'static str,
        /// Its value.
        id: u64,
        /// Ids are below this.
        vocab_size: usize,
    },
    /// Not the JSON that a `tokenizer.json` is.
    #[error("`tokenizer.json` does not parse: {0}")]
    Json(String),
    /// The automaton that finds added tokens cannot be built.
    #[error("the added tokens cannot be searched for: {0}")]
    AddedTokens(String),
    /// The regex tables are missing from this build.
    #[error("this build has no Unicode tables")]
    NoUnicodeTables,
}

/// Whether the text of a control token stands for the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// `<|im_end|>` becomes the one control token: for text that the operator, not a user, wrote.
    Allow,
    /// `<|im_end|>` is ten characters like any others: for everything that a user typed.
    AsText,
}

/// A vocabulary with its merges: text → ids and back.
pub struct Tokenizer {
    vocab: Vocab,
    merges: Merges,
    added: AddedTokens,
    classes: CharClasses,
    pre: PreTokenizer,
    normalize_nfc: bool,
    /// Llama 3: a piece that is a token is that token, whatever the merges say.
    ignore_merges: bool,
    /// What is known of each token: whether merging its own bytes gives just the token. Filled as text is encoded.
    self_encoding: Box<[AtomicU8]>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    add_bos: bool,
    tail: Option<TokenId>,
}

/// States of [`Tokenizer::self_encoding`].
const UNKNOWN: u8 = 0;
const WHOLE: u8 = 1;
const SPLIT: u8 = 2;

/// Everything a [`Tokenizer`] is built from, whichever container it came from.
struct Parts {
    vocab: Vocab,
    merges: Merges,
    added: Vec<(TokenId, String)>,
    pre: PreTokenizer,
    normalize_nfc: bool,
    ignore_merges: bool,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    add_bos: bool,
    /// Behind every text that becomes a vector.
    tail: Option<TokenId>,
}

impl Tokenizer {
    fn from_parts(parts: Parts) -> Result<Self, TokenizerError> {
        let Parts { vocab, merges, added, pre, normalize_nfc, ignore_merges, .. } = parts;
        let Parts { bos, eos, add_bos, tail, .. } = parts;
        for (what, id) in [("bos token id", bos), ("eos token id", eos), ("last token's id", tail)]
        {
            if let Some(id) = id.filter(|id| *id as usize >= vocab.len()) {
                return Err(TokenizerError::IdOutOfRange {
                    what,
                    id: id.into(),
                    vocab_size: vocab.len(),
                });
            }
        }
        Ok(Self {
            self_encoding: (0..vocab.len()).map(|_| AtomicU8::new(UNKNOWN)).collect(),
            added: AddedTokens::new(added)?,
            classes: CharClasses::new().ok_or(TokenizerError::NoUnicodeTables)?,
            add_bos: add_bos && bos.is_some(),
            vocab,
            merges,
            pre,
            normalize_nfc,
            ignore_merges,
            bos,
            eos,
            tail,
        })
    }

    /// The ids of a text. No begin-of-sequence token is added; see [`Tokenizer::leading_bos`].
    #[must_use]
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Vec<TokenId> {
        match special {
            SpecialTokens::Allow => self.encode_where(text, |_| true),
            SpecialTokens::AsText => self.encode_where(text, |_| false),
        }
    }

    /// The ids of a text in which a control token's text is just text if `protected` holds a byte offset inside of it
    /// (after its start, before its end). `protected` is sorted.
    #[must_use]
    pub fn encode_protected(&self, text: &str, protected: &[usize]) -> Vec<TokenId> {
        self.encode_where(text, |Range { start, end }| {
            let first = protected.partition_point(|offset| *offset <= start);
            protected.get(first).is_none_or(|offset| *offset >= end)
        })
    }

    fn encode_where(&self, text: &str, allow: impl Fn(Range<usize>) -> bool) -> Vec<TokenId> {
        let mut out = Vec::with_capacity(text.len() / 4 + 1);
        let mut scratch = Scratch::default();
        let mut from = 0;
        let admit = |found: Found| allow(found.start..found.end);
        while let Some(found) = self.added.find(text, from, admit) {
            self.encode_text(text.get(from..found.start).unwrap_or(""), &mut scratch, &mut out);
            out.push(found.id);
            from = found.end;
        }
        self.encode_text(text.get(from..).unwrap_or(""), &mut scratch, &mut out);
        out
    }

    /// Ordinary text: normalise, cut, merge.
    fn encode_text(&self, text: &str, scratch: &mut Scratch, out: &mut Vec<TokenId>) {
        let text = if self.normalize_nfc { self.nfc(text) } else { Cow::Borrowed(text) };
        let mut cache: HashMap<&str, Range<usize>> = HashMap::new();
        self.pre.split(&self.classes, &text, |piece| {
            if let Some(id) = self.whole_piece(piece, scratch) {
                out.push(id);
                return;
            }
            // `out` only grows, so a repeated piece is copied from where it stands.
            if let Some(seen) = cache.get(piece) {
                out.extend_from_within(seen.clone());
                return;
            }
            let start = out.len();
            self.merges.encode(piece.as_bytes(), scratch, out);
            if piece.len() <= CACHE_PIECE_BYTES && cache.len() < CACHE_PIECES {
                cache.insert(piece, start..out.len());
            }
        });
    }

    /// Unicode's composed form, as of the version that the reference knows: a character assigned later is to it one
    /// that combines with nothing, so the text before and the text after it are composed apart.
    fn nfc<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
            return Cow::Borrowed(text);
        }
        let mut composed = String::with_capacity(text.len());
        for part in text.split_inclusive(|c| self.classes.of(c) & UNKNOWN_TO_NFC != 0) {
            let last = part.chars().next_back();
            let unknown = last.filter(|c| self.classes.of(*c) & UNKNOWN_TO_NFC != 0);
            let known = part.len() - unknown.map_or(0, char::len_utf8);
            composed.extend(part.get(..known).unwrap_or(part).nfc());
            composed.extend(unknown);
        }
        Cow::Owned(composed)
    }

    /// The token that is the whole piece, where there is one and merging gives it.
    #[inline]
    fn whole_piece(&self, piece: &str, scratch: &mut Scratch) -> Option<TokenId> {
        let id = self.vocab.find(piece.as_bytes())?;
        if self.ignore_merges {
            return Some(id);
        }
        let state = self.self_encoding.get(id as usize)?;
        // Whoever computes it first, the value is the same: no ordering is needed.
        match state.load(Ordering::Relaxed) {
            WHOLE => Some(id),
            SPLIT => None,
            _ => {
                let mut ids = Vec::new();
                self.merges.encode(piece.as_bytes(), scratch, &mut ids);
                let whole = ids == [id];
                state.store(if whole { WHOLE } else { SPLIT }, Ordering::Relaxed);
                whole.then_some(id)
            }
        }
    }

    /// The text of ids. Bytes that are not UTF-8 become U+FFFD; ids past the vocabulary are left out, and so are
    /// control tokens with `skip_special`.
    #[must_use]
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for id in ids {
            if !(skip_special && self.is_special(*id)) {
                bytes.extend_from_slice(self.token_bytes(*id).unwrap_or(&[]));
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Decodes ids one by one; see [`DecodeStream`].
    #[must_use]
    pub fn stream(&self, skip_special: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special)
    }

    /// The bytes a token stands for (for a control token, its text); `None` past the vocabulary.
    #[must_use]
    pub fn token_bytes(&self, id: TokenId) -> Option<&[u8]> {
        self.vocab.bytes(id)
    }

    /// What a token is for; `None` past the vocabulary.
    #[must_use]
    pub fn token_kind(&self, id: TokenId) -> Option<TokenKind> {
        self.vocab.kind(id)
    }

    /// Whether a token is a control token, and so no part of an answer's text.
    #[must_use]
    pub fn is_special(&self, id: TokenId) -> bool {
        self.vocab.kind(id) == Some(TokenKind::Control)
    }

    /// Ids are below this.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// Begin-of-sequence token.
    #[must_use]
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// End-of-sequence token.
    #[must_use]
    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// The token that a prompt given as text starts with, where the model was trained so (Llama 3). A rendered chat
    /// template brings its own.
    #[must_use]
    pub fn leading_bos(&self) -> Option<TokenId> {
        self.bos.filter(|_| self.add_bos)
    }

    /// The token that ends a text that becomes a vector, where the model was trained so (Qwen3-Embedding). Prompts that
    /// are continued never have it.
    #[must_use]
    pub fn trailing(&self) -> Option<TokenId> {
        self.tail
    }

    /// The control and added tokens with their texts.
    pub fn added_tokens(&self) -> impl Iterator<Item = (TokenId, &str)> {
        self.added.iter()
    }

    /// The id of the control or added token with this text.
    #[must_use]
    pub fn added_token(&self, text: &str) -> Option<TokenId> {
        self.added.iter().find(|(_, literal)| *literal == text).map(|(id, _)| id)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("pre", &self.pre)
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}
