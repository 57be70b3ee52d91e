//! Who may spend what: tenants with their keys, limits, money; accounts, prices, holds and postings build on them.
//! Never hears of HTTP or of text.
//!
//! Invariant: a key's secret exists in clear text only in the hands of its owner. Here lies its keyed hash.

mod book;
pub mod directory;
mod files;
pub mod invoice;
mod ledger;
pub mod limits;
mod money;
mod postgres;
pub mod price;
mod rating;
mod retention;
mod store;
mod usage;
mod writer;

pub use book::{
    AccountSums, Balance, Book, Entry, EntryKind, GrantTerms, HoldNumber, HoldRequest, Kept,
    MAX_GRANTS_PER_ORG, MAX_ID_BYTES, Operation, Refusal, SliceStanding, Sums, TOKENS, UNLIMITED,
};
pub use directory::{DirectoryError, DirectoryStore, KeyRefusal, NewKey, Principal, Secret};
pub use files::{backup_file, export_file, restore_file, verify_file};
pub use ledger::{
    Admission, AdmitError, Answering, Begin, Changes, Hold, Ledger, LedgerError, MAX_BODY_BYTES,
    MAX_OPEN_HOLDS, Pending, Receipt, TIME_PER_MARK, TOKENS_PER_MARK, Together,
};
pub use money::{Amount, AmountError, Currency, CurrencyError, PICO_PER_UNIT};
pub use postgres::{
    Claimed, KeysOf, LEASE_TTL, LineageOf, Notice, Pool, PoolAccount, PostgresError,
    PostgresReader, PostgresStore, PostgresUrl, Purse, ShareAnswer, SharedLimits, Spending, Tenure,
    backup_shared, export_shared, migrate_file, restore_shared, verify_shared,
};
pub use rating::{Ask, Quote, Rating, Unpriced};
pub use retention::MIN_RETENTION_DAYS;
pub use store::{
    Batch, Delivery, Document, DocumentVersion, KeptAnswer, LogLine, MAX_RECORDS_PER_READ,
    MAX_SUMS_PER_READ, Mark, Message, Outgoing, Reader, Restored, SqliteStore, Store, StoreError,
    StoreErrorKind, SumsFilter, Synchronous, UsageFilter, UsageSums, Verified, Work,
};
pub use usage::{Outcome, Payer, Quantity, RequestFacts, TokenUsage, UsageRecord};
pub use writer::{Unavailable, WriterCounts};
