//! Administration: tenants, keys, limits, money, usage, prices, invoices and webhooks, for programs and for the command
//! line.
//!
//! One table of routes (`table`) is the router, the source of the OpenAPI document and what tests walk. Handlers are
//! plain blocking functions: they run on threads of their own, a bounded number at a time, and the command line calls
//! them without a server between. [`Office`] is what they share.
//!
//! Not here: calls to models. Invariants: a handler runs only for an administrating key whose role may do what the
//! route's table entry says; what belongs to another organisation looks exactly like what does not exist.

mod call;
mod document;
mod http;
mod input;
mod invoices;
mod keys;
mod limits;
mod members;
mod money;
mod openai;
mod organisations;
mod paging;
mod prices;
mod projects;
mod table;
mod usage;
mod webhooks;
mod who;

use std::fmt;
use std::sync::Arc;

use mintage_ledger::price::KeptPrices;
use mintage_ledger::{Currency, DirectoryStore, Ledger, LedgerError};

use crate::till::unix_ms;
use crate::webhooks::WebhookPolicy;

pub(crate) use document::described;
pub(crate) use http::router;

/// What the handlers of administration share.
pub struct Office {
    pub(crate) directory: Arc<DirectoryStore>,
    pub(crate) books: Option<Books>,
}

/// What is kept of money.
#[derive(Clone)]
pub struct Books {
    /// Balances, usage, documents.
    pub ledger: Arc<Ledger>,
    /// The price lists kept in it.
    pub prices: Arc<KeptPrices>,
    /// When months begin, in minutes ahead of UTC.
    pub utc_offset_minutes: i16,
    /// Where webhooks may go.
    pub webhooks: WebhookPolicy,
}

impl fmt::Debug for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Books").finish_non_exhaustive()
    }
}

impl Books {
    /// Gives an organisation the free quota of the price list in force, once. Waits for the disk.
    pub(crate) fn grant_free_quota(
        &self,
        organisation: &str,
        opened_ms: u64,
    ) -> Result<(), LedgerError> {
        let book = self.prices.book();
        let Some(version) = book.in_force_at(unix_ms()) else { return Ok(()) };
        for (id, terms) in version.grants(organisation, opened_ms) {
            if !self.ledger.knows_grant(&id) {
                self.ledger.grant(&id, &id, terms)?.wait()?;
            }
        }
        Ok(())
    }

    /// Of all price lists; there is one currency.
    pub(crate) fn currency(&self) -> Currency {
        self.prices.book().currency().unwrap_or_default()
    }
}

impl fmt::Debug for Office {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Office").finish_non_exhaustive()
    }
}

/// What a call came to, whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Media type of the body.
    pub content_type: &'static str,
    /// Mostly JSON.
    pub body: String,
}

impl Office {
    /// Over a directory of tenants, and over what is kept of money where something is.
    #[must_use]
    pub fn new(directory: Arc<DirectoryStore>, books: Option<Books>) -> Self {
        Self { directory, books }
    }

    /// Gives every organisation the free quota of the price list in force that it does not have yet. What cannot be given
    /// now is given the next time. Waits for the disk.
    pub(crate) fn grant_free_quotas(&self) {
        let Some(books) = &self.books else { return };
        for organisation in self.directory.snapshot().organisations() {
            let opened_ms = organisation.created_unix.saturating_mul(1000);
            if let Err(error) = books.grant_free_quota(&organisation.id, opened_ms) {
                tracing::warn!(%error, organisation = %organisation.id, "no free quota for now");
                return;
            }
        }
    }

    /// Answers a request as the operator of the installation would be answered: for who has the data folder at hand.
    /// Blocks.
    #[must_use]
    pub fn call(&self, method: &str, path_and_query: &str, body: &[u8]) -> Answer {
        let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        let request = call::Request { method, path, query, body, organisation: None };
        http::answer(call::respond(self, &who::Who::operator(), &request))
    }
}
