//! Compiled grammars, the latest used ones. Bounded by their number and by the bytes of what they were compiled from.

use std::sync::Arc;

use super::Grammar;

type Digest = [u8; 32];

#[derive(Debug)]
struct Entry {
    digest: Digest,
    grammar: Arc<dyn Grammar>,
    bytes: usize,
}

/// Grammars by digest, the latest used last.
#[derive(Debug)]
pub(super) struct GrammarCache {
    entries: Vec<Entry>,
    max_entries: usize,
    max_bytes: usize,
}

impl GrammarCache {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self { entries: Vec::new(), max_entries, max_bytes }
    }

    pub(super) fn get(&mut self, digest: &Digest) -> Option<Arc<dyn Grammar>> {
        let index = self.entries.iter().position(|entry| entry.digest == *digest)?;
        let entry = self.entries.remove(index);
        let grammar = Arc::clone(&entry.grammar);
        self.entries.push(entry);
        Some(grammar)
    }

    /// Keeps a grammar of `bytes` bytes of source; forgets those used longest ago until it fits.
    pub(super) fn insert(&mut self, digest: Digest, grammar: Arc<dyn Grammar>, bytes: usize) {
        if bytes > self.max_bytes || self.max_entries == 0 {
            return;
        }
        self.entries.retain(|entry| entry.digest != digest);
        let mut held: usize = self.entries.iter().map(|entry| entry.bytes).sum();
        let mut drop = 0;
        for entry in &self.entries {
            if held + bytes <= self.max_bytes && self.entries.len() - drop < self.max_entries {
                break;
            }
            held -= entry.bytes;
            drop += 1;
        }
        self.entries.drain(..drop);
        self.entries.push(Entry { digest, grammar, bytes });
    }
}
