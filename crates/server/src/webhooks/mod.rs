//! Webhooks: what happens in the ledger, told to programs elsewhere.
//!
//! An event is a message of the ledger's outbox, written with what it tells of. It is split once, in one transaction,
//! into a message for each endpoint that wants it; each of those is sent until it is acknowledged, or given up and kept
//! as a dead letter. Signed as the Standard Webhooks specification (1.0) says.
//!
//! Not here: which events there are. Invariants: at least once, under the same `webhook-id` each time, whenever the
//! process dies; no request leaves for an address that the policy refuses, whatever a name resolves to.

mod dispatch;
mod endpoint;
mod sign;
mod target;

#[cfg(test)]
mod tests;

pub(crate) use dispatch::run;
pub(crate) use endpoint::{
    Alert, DeadLetter, Endpoint, alerts, dead_letters, endpoints, put, put_alert, revive, secret,
    send_test,
};
pub use target::WebhookPolicy;
pub(crate) use target::check_url;
