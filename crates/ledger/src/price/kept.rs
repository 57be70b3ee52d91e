//! The price book as it is kept in a ledger's store, shared by all who price.
//!
//! Invariant: what is in memory is durable: an import shows only after its document is written.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::book::{ImportError, PriceBook, PriceImport, PriceVersion};
use super::document::{ModelPrices, PriceDocument};
use super::rate::{Bounds, Charge};
use crate::{
    Ask, Changes, Currency, Document, GrantTerms, Ledger, LedgerError, Quote, Rating, TokenUsage,
};

/// Kind of the documents in the store.
const KIND: &str = "price";

/// Why prices cannot be read or imported.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The list is refused.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The store.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The writer stopped before the list was durable.
    #[error("the price list was not written: {0}")]
    NotDurable(crate::Unavailable),
}

/// The book of a ledger.
#[derive(Debug)]
pub struct KeptPrices {
    book: RwLock<Arc<PriceBook>>,
    /// One import at a time, from reading the book to showing the new one.
    importing: Mutex<()>,
}

impl KeptPrices {
    /// Reads all imports.
    ///
    /// # Errors
    /// A store that cannot be read, a document that is damaged.
    pub fn open(ledger: &Ledger) -> Result<Self, KeptError> {
        Ok(Self { book: RwLock::new(Arc::new(read(ledger)?)), importing: Mutex::new(()) })
    }

    /// Reads the lists again, which another gateway of a shared ledger may have added to.
    ///
    /// # Errors
    /// As [`Self::open`]; the lists known so far stay.
    pub fn reload(&self, ledger: &Ledger) -> Result<(), KeptError> {
        let book = Arc::new(read(ledger)?);
        *self.book.write().unwrap_or_else(PoisonError::into_inner) = book;
        Ok(())
    }

    /// The book as it is now.
    #[must_use]
    pub fn book(&self) -> Arc<PriceBook> {
        Arc::clone(&self.book.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Imports a list, durably; `None` where it is in force already. Waits for the disk.
    ///
    /// # Errors
    /// A list that the book refuses, a store that does not write.
    pub fn import(
        &self,
        ledger: &Ledger,
        document: PriceDocument,
        now_ms: u64,
    ) -> Result<Option<PriceImport>, KeptError> {
        let _one = self.importing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut book = PriceBook::clone(&self.book());
        let Some(import) = book.import(document, now_ms)? else { return Ok(None) };
        let body = serde_json::to_vec(&import).unwrap_or_default();
        // Numbers with leading zeros, so that ids sort in the order of import.
        let id = format!("{:06}", book.schedule().len());
        let document = Document { kind: Arc::from(KIND), id: Arc::from(id), version: 1, body };
        let changes = Changes { documents: vec![document], ..Changes::default() };
        ledger.write(changes)?.wait().map_err(KeptError::NotDurable)?;
        *self.book.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(book);
        Ok(Some(import))
    }

    /// The prices in force at a time for a model, as the ledger asks for them. `None` where nothing is in force.
    #[must_use]
    pub fn rating(&self, model: &str, at_ms: u64, request: RequestKind) -> Option<Arc<dyn Rating>> {
        let version = Arc::clone(self.book().in_force_at(at_ms)?);
        Some(Arc::new(ModelRating { version, model: Arc::from(model), request }))
    }
}

impl PriceVersion {
    /// The free quota of this list as grants for an organisation that began at `opened_ms`, each with an id that makes
    /// granting it again a no-op.
    #[must_use]
    pub fn grants(&self, organisation: &str, opened_ms: u64) -> Vec<(Arc<str>, GrantTerms)> {
        let grant = |model: &ModelPrices| {
            let free = self.free_grant(&model.name, opened_ms)?;
            let models = match model.name.as_str() {
                "*" => Vec::new(),
                name => std::iter::once(name)
                    .chain(model.aliases.iter().map(String::as_str))
                    .map(Arc::from)
                    .collect(),
            };
            let terms = GrantTerms {
                org: Arc::from(organisation),
                models,
                tokens: free.tokens,
                expires_ms: free.expires_ms,
            };
            Some((Arc::from(format!("free:{organisation}:{}", model.name)), terms))
        };
        self.document().models.iter().filter_map(grant).collect()
    }
}

/// What of a request, beyond its length, bounds its price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestKind {
    /// Whether the client asked for a cache.
    pub explicit_cache: bool,
    /// Whether the model may think.
    pub thinking: bool,
}

/// One version's prices of one model.
#[derive(Debug)]
struct ModelRating {
    version: Arc<PriceVersion>,
    model: Arc<str>,
    request: RequestKind,
}

impl Rating for ModelRating {
    fn version(&self) -> Arc<str> {
        Arc::clone(self.version.id())
    }

    fn currency(&self) -> Currency {
        self.version.document().currency
    }

    fn quote(&self, ask: &Ask, free_left: u64) -> Option<Quote> {
        let bounds = Bounds {
            prompt_tokens: ask.prompt_tokens,
            output_tokens: ask.max_output_tokens.checked_mul(u64::from(ask.n))?,
            explicit_cache: self.request.explicit_cache,
            thinking: self.request.thinking,
            batch: ask.batch,
        };
        let ceiling =
            self.version.ceiling(&self.model, ask.admitted_ms, &bounds, free_left).ok()?;
        Some(Quote { amount: ceiling.amount, free_tokens: ceiling.free_tokens })
    }

    fn rate(&self, ask: &Ask, usage: &TokenUsage, free_reserved: u64) -> Option<Quote> {
        let charge = Charge::Tokens { usage: *usage, batch: ask.batch };
        let rated = self.version.rate(&self.model, ask.admitted_ms, &charge, free_reserved).ok()?;
        Some(Quote { amount: rated.total, free_tokens: rated.free_tokens })
    }
}

fn read(ledger: &Ledger) -> Result<PriceBook, KeptError> {
    let mut documents = ledger.documents(KIND)?;
    documents.sort_by(|a, b| a.id.cmp(&b.id));
    let imports = documents.iter().map(|document| {
        serde_json::from_slice::<PriceImport>(&document.body).map_err(|error| {
            ImportError::Damaged { id: Arc::clone(&document.id), why: error.to_string() }
        })
    });
    let imports = imports.collect::<Result<Vec<_>, _>>()?;
    Ok(PriceBook::restore(imports)?)
}
