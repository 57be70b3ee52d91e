//! Batches: many requests in a file, answered when nobody else needs the machine, at the price of a batch.
//!
//! Each line runs as the request that it is: through the same handlers, on behalf of the key that made the batch, at the
//! engine's low priority. Its answer is kept in the ledger's transaction that bills it, under the name of the line; so a
//! line that a crash cut off is found there, or was never billed and runs again.
//!
//! Not here: what dialects say of batches. Invariants: each line of the input has exactly one result, in the output or
//! among the errors, and is billed at most once; batches never take the place of a request that somebody waits for.

mod input;
mod line;
mod pace;
mod run;
mod usage;

pub(crate) use input::ENDPOINTS;
pub(crate) use line::BatchLine;
pub(crate) use run::run;
