//! How long usage records are kept: as long as the law wants at least, forever unless the operator says otherwise.
//!
//! Postings are never removed, so balances and the chain stay recomputable; only records, which name projects, keys and
//! clients, go away. Not here: when it is time. Invariants: a record goes only after all before it in its log; what goes
//! is told in the log itself, in the same transaction.

use crate::ledger::{Ledger, LedgerError, now_ms};
use crate::postgres::log_of;
use crate::store::{Document, Pruned, Work};

/// The least that records are kept, days: six months.
pub const MIN_RETENTION_DAYS: u64 = 183;
/// Records that go away in one transaction, of each log.
const RECORDS_AT_ONCE: usize = 2_000;
const DAY_MS: u64 = 86_400_000;

impl Ledger {
    /// Removes the oldest usage records that were kept for `days`, a bounded number; says how many. 0: none are left.
    /// Reads and writes the disk.
    ///
    /// # Errors
    /// [`LedgerError::TooLarge`] for less than [`MIN_RETENTION_DAYS`]; [`LedgerError::Conflict`] where another gateway
    /// does the same at this moment.
    pub fn prune(&self, days: u64, now_unix_ms: u64) -> Result<u64, LedgerError> {
        if days < MIN_RETENTION_DAYS {
            let text = format!("usage records are kept for at least {MIN_RETENTION_DAYS} days");
            return Err(LedgerError::TooLarge(text));
        }
        let before_ms = now_unix_ms.saturating_sub(days.saturating_mul(DAY_MS));
        let (upto, count) = self.records_before(before_ms, RECORDS_AT_ONCE)?;
        if count == 0 {
            return Ok(0);
        }
        let known = self.history(Pruned::KIND, Pruned::ID)?.pop();
        let version = known.as_ref().map_or(0, |known| known.version) + 1;
        let pruned = known.map(|known| Pruned::parse(&known.body)).transpose()?.unwrap_or_default();
        let pruned = pruned.and(&upto, before_ms, log_of);
        let document = Document {
            kind: Pruned::KIND.into(),
            id: Pruned::ID.into(),
            version,
            body: serde_json::to_vec(&pruned).unwrap_or_default(),
        };
        let work =
            Work { at_ms: now_ms(), documents: vec![document], prune: upto, ..Work::default() };
        self.write_work(work)?.wait()?;
        Ok(count)
    }
}
