//! A ledger shared by several gateways, in PostgreSQL.
//!
//! The database keeps each organisation's balance in a *pool*. A gateway leases a *slice* of it, an entry of its own in
//! the double entry (account → lease), admits requests against its slice in memory, and gives back what it does not
//! use. So no request waits for a row that others want, and all gateways together cannot spend more than the pool had.
//!
//! A gateway's life from start to end is a *stream*: a log with a hash chain of its own, fenced as a whole. When a
//! gateway does not renew its lease in time another one takes its stream over, settles what it left open at what it had
//! journalled, and gives the rest of its slices back; whatever the late one still sends is refused.
//!
//! Invariants: for every account, pool + slices = top-ups − postings; a slice is never below zero, which the database
//! itself checks; nothing is written to a stream that is not live.

mod agent;
mod allowance;
mod backup;
mod budgets;
mod connect;
mod directory;
mod dividing;
mod facade;
mod migrate;
mod pool;
mod read;
mod rows;
mod schema;
mod slice;
mod store;
mod verify;

pub(crate) use agent::{Agent, KeyTaken, TakenKey};
pub use backup::{backup_shared, restore_shared};
pub use connect::{PostgresError, PostgresUrl};
pub(crate) use directory::SharedDirectory;
pub use dividing::{KeysOf, LineageOf, Notice, ShareAnswer, SharedLimits};
pub use migrate::{export_shared, migrate_file, verify_shared};
pub use pool::{Claimed, Pool, PoolAccount, Purse};
pub use read::PostgresReader;
pub(crate) use rows::log_of;
pub use slice::Spending;
pub use store::{LEASE_TTL, PostgresStore, Tenure};
