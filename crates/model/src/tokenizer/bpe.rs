//! Byte-pair merging: the bytes of one piece → token ids.
//!
//! The rule is the reference's: of all adjacent pairs that have a merge, the one with the lowest rank merges first,
//! the leftmost among equals. Two algorithms give that same result: a scan over arrays for pieces of ordinary length,
//! a heap over a linked list, O(n log n), for long ones.
//!
//! Invariant: the ids' bytes, concatenated, are the piece (for vocabularies that have all 256 bytes).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashMap;

use super::TokenizerError;
use super::vocab::Vocab;
use crate::TokenId;

/// More merges than any published vocabulary has.
const MAX_MERGES: usize = 8_000_000;
/// Pieces up to this many bytes are merged by the scan, longer ones by the heap.
const MAX_SCAN_BYTES: usize = 256;
/// The rank of a pair that does not merge.
const NO_MERGE: Merge = Merge { rank: u32::MAX, id: u32::MAX };
/// The end of the linked list.
const NONE: u32 = u32::MAX;

/// What a pair becomes, and how early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Merge {
    rank: u32,
    id: TokenId,
}

/// The merges of a vocabulary.
pub(super) struct Merges {
    /// Single bytes' tokens; `None` for bytes the vocabulary lacks, which are dropped, as the reference does.
    byte_ids: [Option<TokenId>; 256],
    /// The merges of two single bytes, at `first * 256 + second`: most lookups.
    byte_pairs: Vec<Merge>,
    /// Keyed by the pair of ids. Seeded per process, as the ids come from outside.
    pairs: HashMap<u64, Merge>,
}

/// Space for merging one piece after the other.
#[derive(Default)]
pub(super) struct Scratch {
    ids: Vec<TokenId>,
    /// `merges[i]` joins `ids[i]` and `ids[i + 1]`.
    merges: Vec<Merge>,
    ranks: Vec<u32>,
    previous: Vec<u32>,
    next: Vec<u32>,
    queue: BinaryHeap<Reverse<(u32, u32, TokenId)>>,
}

impl Merges {
    /// `merges`: pairs of tokens' bytes, the earlier the lower their rank.
    pub(super) fn new<'m>(
        vocab: &Vocab,
        merges: impl ExactSizeIterator<Item = Result<(Vec<u8>, Vec<u8>), TokenizerError>> + 'm,
    ) -> Result<Self, TokenizerError> {
        if merges.len() > MAX_MERGES {
            return Err(TokenizerError::TooLarge {
                what: "merges",
                count: merges.len(),
                limit: MAX_MERGES,
            });
        }
        let mut pairs = HashMap::with_capacity(merges.len());
        for (rank, merge) in merges.enumerate() {
            let (mut left, right) = merge?;
            let unknown = || TokenizerError::MergeOutOfVocabulary { rank };
            let left_id = vocab.find(&left).ok_or_else(unknown)?;
            let right_id = vocab.find(&right).ok_or_else(unknown)?;
            left.extend_from_slice(&right);
            let id = vocab.find(&left).ok_or_else(unknown)?;
            let rank = u32::try_from(rank).unwrap_or(u32::MAX);
            pairs.insert(key(left_id, right_id), Merge { rank, id });
        }
        let mut byte_ids = [None; 256];
        for (byte, id) in (0..=255u8).zip(&mut byte_ids) {
            *id = vocab.find(&[byte]);
        }
        let mut byte_pairs = Vec::with_capacity(1 << 16);
        for first in &byte_ids {
            for second in &byte_ids {
                let merge = first.zip(*second).and_then(|(a, b)| pairs.get(&key(a, b)).copied());
                byte_pairs.push(merge.unwrap_or(NO_MERGE));
            }
        }
        Ok(Self { byte_ids, byte_pairs, pairs })
    }

    /// Appends the ids of one piece to `out`.
    pub(super) fn encode(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<TokenId>) {
        if piece.len() <= MAX_SCAN_BYTES {
            self.encode_by_scan(piece, scratch, out);
        } else {
            self.encode_by_heap(piece, scratch, out);
        }
    }

    #[inline]
    fn pair(&self, left: TokenId, right: TokenId) -> Merge {
        self.pairs.get(&key(left, right)).copied().unwrap_or(NO_MERGE)
    }

    fn encode_by_scan(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<TokenId>) {
        let Scratch { ids, merges, ranks, .. } = scratch;
        self.start(piece, ids, merges);
        // The ranks by themselves: their minimum is the inner loop, and vectorises.
        ranks.clear();
        ranks.extend(merges.iter().map(|merge| merge.rank));
        while let Some(lowest) = ranks.iter().copied().min().filter(|rank| *rank != u32::MAX) {
            let Some(at) = ranks.iter().position(|rank| *rank == lowest) else { break };
            let merged = merges.remove(at);
            ranks.remove(at);
            ids.remove(at + 1);
            if let Some(id) = ids.get_mut(at) {
                *id = merged.id;
            }
            let right = ids.get(at + 1).map(|right| (at, self.pair(merged.id, *right)));
            let left = at.checked_sub(1);
            let left = left.and_then(|left| Some((left, self.pair(*ids.get(left)?, merged.id))));
            for (position, merge) in [left, right].into_iter().flatten() {
                if let (Some(slot), Some(rank)) =
                    (merges.get_mut(position), ranks.get_mut(position))
                {
                    *slot = merge;
                    *rank = merge.rank;
                }
            }
        }
        out.extend_from_slice(ids);
    }

    /// The single bytes' tokens and the merges between them.
    fn start(&self, piece: &[u8], ids: &mut Vec<TokenId>, merges: &mut Vec<Merge>) {
        ids.clear();
        merges.clear();
        let mut previous = None;
        for &byte in piece {
            let Some(id) = self.byte_ids.get(usize::from(byte)).copied().flatten() else {
                continue;
            };
            if let Some(previous) = previous {
                let pair = usize::from(previous) << 8 | usize::from(byte);
                merges.push(self.byte_pairs.get(pair).copied().unwrap_or(NO_MERGE));
            }
            ids.push(id);
            previous = Some(byte);
        }
    }

    fn encode_by_heap(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<TokenId>) {
        let Scratch { ids, merges, previous, next, queue, .. } = scratch;
        self.start(piece, ids, merges);
        let Ok(len) = u32::try_from(ids.len()) else { return };
        previous.clear();
        previous.extend((0..len).map(|i| i.wrapping_sub(1)));
        next.clear();
        next.extend((1..=len).map(|i| if i < len { i } else { NONE }));
        queue.clear();
        for (at, merge) in (0..len).zip(merges.iter()) {
            if merge.rank != u32::MAX {
                queue.push(Reverse((merge.rank, at, merge.id)));
            }
        }
        // A merged symbol's right half leaves the list and gets the id NONE.
        let get = |list: &[u32], at: u32| list.get(at as usize).copied().unwrap_or(NONE);
        let set = |list: &mut [u32], at: u32, value: u32| {
            if let Some(slot) = list.get_mut(at as usize) {
                *slot = value;
            }
        };
        while let Some(Reverse((rank, at, id))) = queue.pop() {
            let right = get(next, at);
            let (left_id, right_id) = (get(ids, at), get(ids, right));
            // An entry is stale when either half has merged with something else since.
            if left_id == NONE
                || right_id == NONE
                || self.pair(left_id, right_id) != (Merge { rank, id })
            {
                continue;
            }
            let after = get(next, right);
            set(ids, at, id);
            set(ids, right, NONE);
            set(next, at, after);
            set(previous, after, at);
            let before = get(previous, at);
            for (position, pair) in [(before, (get(ids, before), id)), (at, (id, get(ids, after)))]
            {
                if pair.0 != NONE && pair.1 != NONE {
                    let merge = self.pair(pair.0, pair.1);
                    if merge.rank != u32::MAX {
                        queue.push(Reverse((merge.rank, position, merge.id)));
                    }
                }
            }
        }
        out.extend(ids.iter().filter(|id| **id != NONE));
    }
}

#[inline]
fn key(left: TokenId, right: TokenId) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

#[cfg(test)]
mod tests {
    use super::super::vocab::TokenKind;
    use super::*;

    /// A vocabulary over `a`, `b`, `c` in which merge order and leftmost order matter.
    fn merges() -> (Vocab, Merges) {
        let tokens = ["a", "b", "c", "aa", "ab", "bc", "aab", "abc", "aaaa", "abab"];
        let pairs = [
            ("a", "a"),
            ("b", "c"),
            ("a", "b"),
            ("aa", "b"),
            ("ab", "c"),
            ("aa", "aa"),
            ("ab", "ab"),
        ];
        let mut vocab = Vocab::new(tokens.len()).unwrap();
        for token in tokens {
            vocab.push(token.as_bytes(), TokenKind::Normal, true).unwrap();
        }
        let merges = Merges::new(
            &vocab,
            pairs.iter().map(|(a, b)| Ok((a.as_bytes().to_vec(), b.as_bytes().to_vec()))),
        );
        (vocab, merges.unwrap())
    }

    #[test]
    fn scan_and_heap_agree() {
        let (vocab, merges) = merges();
        let (mut scratch, mut seed) = (Scratch::default(), 1u64);
        for _ in 0..5_000 {
            let mut piece = Vec::new();
            for _ in 0..seed % 40 {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                piece.push(b"abca"[(seed >> 60) as usize % 4]);
            }
            seed = seed.wrapping_add(12_345);
            let (mut scan, mut heap) = (Vec::new(), Vec::new());
            merges.encode_by_scan(&piece, &mut scratch, &mut scan);
            merges.encode_by_heap(&piece, &mut scratch, &mut heap);
            assert_eq!(scan, heap, "{piece:?}");
            let bytes: Vec<u8> =
                scan.iter().flat_map(|id| vocab.bytes(*id).unwrap().to_vec()).collect();
            assert_eq!(bytes, piece);
        }
    }

    #[test]
    fn the_lowest_rank_merges_first_and_the_leftmost_among_equals() {
        let (vocab, merges) = merges();
        let check = |piece: &str, expected: &[&str]| {
            let mut ids = Vec::new();
            merges.encode(piece.as_bytes(), &mut Scratch::default(), &mut ids);
            let found: Vec<&[u8]> = ids.iter().map(|id| vocab.bytes(*id).unwrap()).collect();
            assert_eq!(found, expected.iter().map(|s| s.as_bytes()).collect::<Vec<_>>(), "{piece}");
        };
        check("aaa", &["aa", "a"]);
        check("abc", &["a", "bc"]);
        check("aab", &["aab"]);
        check("abab", &["abab"]);
        check("axa", &["aa"]); // a byte without a token is dropped
    }
}
