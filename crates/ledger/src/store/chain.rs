//! The canonical bytes of stored things, and the hash chain over the log.
//!
//! Each field is written with its length before it, so no two different lines have the same bytes. Every store uses
//! this one encoding: a log moved from one to another keeps its chain. Invariant: it never changes; a new field means
//! a new tag.

use sha2::{Digest, Sha256};

use super::Document;
use crate::book::Entry;
use crate::usage::UsageRecord;

/// Before the first line.
pub(crate) const GENESIS: [u8; 32] = [0; 32];

struct Fields(Sha256);

impl Fields {
    fn new(tag: &[u8]) -> Self {
        let mut fields = Self(Sha256::new());
        fields.bytes(tag);
        fields
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn number(&mut self, number: i128) {
        self.0.update(number.to_le_bytes());
    }

    fn end(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// The link of a line, from the one before it.
pub(crate) fn link(previous: &[u8; 32], seq: u64, at_ms: u64, entry: &Entry) -> [u8; 32] {
    let mut fields = Fields::new(b"line/1");
    fields.bytes(previous);
    fields.number(seq.into());
    fields.number(at_ms.into());
    for text in [entry.kind.as_str(), &entry.id, &entry.debit, &entry.credit, &entry.asset] {
        fields.bytes(text.as_bytes());
    }
    fields.number(entry.amount.into());
    fields.number(entry.refers.map_or(-1, i128::from));
    fields.bytes(&entry.detail);
    fields.end()
}

/// Digest of a usage record. One that says who metered it has a tag of its own.
pub(crate) fn record(record: &UsageRecord) -> [u8; 32] {
    let (facts, outcome) = (&record.facts, &record.outcome);
    let mut fields = if facts.metered_by.is_empty() {
        Fields::new(b"record/1")
    } else {
        let mut fields = Fields::new(b"record/2");
        fields.bytes(facts.metered_by.as_bytes());
        fields
    };
    for text in [
        &facts.id,
        &facts.payer.org,
        &facts.payer.project,
        &facts.payer.key,
        &facts.model,
        &facts.model_digest,
        &facts.adapter,
        &facts.protocol,
        &facts.client,
        &outcome.finish,
        &outcome.label,
        &record.price_version,
    ] {
        fields.bytes(text.as_bytes());
    }
    fields.bytes(record.currency.code().as_bytes());
    let usage = &record.usage;
    for number in [
        u64::from(facts.batch),
        facts.arrival_ms,
        outcome.first_token_ms,
        outcome.end_ms,
        super::rows::quantity_code(record.quantity),
        usage.input,
        usage.cached_input,
        usage.explicit_cached,
        usage.cache_created,
        usage.output,
        usage.thinking,
        record.units,
        record.free_tokens,
    ] {
        fields.number(number.into());
    }
    fields.number(record.amount.pico());
    fields.end()
}

/// Whether a record is the one that a digest was made of, be it before `metered_by` was a field.
pub(crate) fn is_record(found: &UsageRecord, digest: &[u8; 32]) -> bool {
    if record(found) == *digest {
        return true;
    }
    let facts = &found.facts;
    if facts.metered_by.is_empty() {
        return false;
    }
    let older = UsageRecord { facts: facts.clone().with_meter_behind_digest(), ..found.clone() };
    record(&older) == *digest
}

/// Digest of a version of a document.
pub(crate) fn document(document: &Document) -> [u8; 32] {
    let mut fields = Fields::new(b"document/1");
    fields.bytes(document.kind.as_bytes());
    fields.bytes(document.id.as_bytes());
    fields.number(document.version.into());
    fields.bytes(&document.body);
    fields.end()
}

/// Sum of a row that is not part of the log: it changes or goes away in time.
pub(crate) fn row(table: &str, texts: &[&[u8]], numbers: &[u64]) -> [u8; 32] {
    let mut fields = Fields::new(b"row/1");
    fields.bytes(table.as_bytes());
    for text in texts {
        fields.bytes(text);
    }
    for number in numbers {
        fields.number((*number).into());
    }
    fields.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::EntryKind;

    #[test]
    fn every_field_of_a_line_changes_its_link() {
        let entry = Entry {
            kind: EntryKind::Post,
            id: "id".into(),
            debit: "org/a".into(),
            credit: "revenue".into(),
            asset: "CNY".into(),
            amount: 7,
            refers: None,
            detail: [0; 32],
        };
        let changed = [
            Entry { kind: EntryKind::Credit, ..entry.clone() },
            Entry { id: "ie".into(), ..entry.clone() },
            Entry { debit: "org/b".into(), ..entry.clone() },
            Entry { credit: "revenu".into(), asset: "eCNY".into(), ..entry.clone() },
            Entry { asset: "USD".into(), ..entry.clone() },
            Entry { amount: 8, ..entry.clone() },
            Entry { refers: Some(1), ..entry.clone() },
            Entry { detail: [1; 32], ..entry.clone() },
        ];
        let mut links: Vec<_> = changed.iter().map(|e| link(&GENESIS, 1, 2, e)).collect();
        links.push(link(&GENESIS, 1, 2, &entry));
        links.push(link(&GENESIS, 2, 2, &entry));
        links.push(link(&GENESIS, 1, 3, &entry));
        links.push(link(&[1; 32], 1, 2, &entry));
        let all = links.len();
        links.sort_unstable();
        links.dedup();
        assert_eq!(links.len(), all);
    }
}
