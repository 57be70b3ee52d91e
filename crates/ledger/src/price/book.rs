//! Versions of price lists and from when each holds. Append only: what was in force at a time in the past never
//! changes.
//!
//! Not here: where versions are kept (the store), and who may import one. Invariant: a version's id names its content;
//! the version in force at a time is the one whose time began last, and of two that begin together the one imported
//! later.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::document::PriceDocument;
use super::tree::Problem;
use crate::Currency;
use crate::price::time::instant_text;

/// Imports that one book keeps.
const MAX_IMPORTS: usize = 10_000;
/// Digits of the digest that make an id.
const ID_DIGITS: usize = 16;

/// A price list that requests can be priced by.
#[derive(Debug)]
pub struct PriceVersion {
    id: Arc<str>,
    digest: String,
    document: PriceDocument,
}

impl PriceVersion {
    /// Of a checked document.
    #[must_use]
    pub fn new(document: PriceDocument) -> Self {
        let digest = document.digest();
        Self { id: Arc::from(digest.get(..ID_DIGITS).unwrap_or(&digest)), digest, document }
    }

    /// What records keep: the first 16 hexadecimal digits of the digest.
    #[must_use]
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// SHA-256 of the canonical JSON.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The prices.
    #[must_use]
    pub fn document(&self) -> &PriceDocument {
        &self.document
    }
}

/// One import, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceImport {
    /// The version's id.
    pub id: Arc<str>,
    /// Its digest, checked when it is read back.
    pub digest: String,
    /// When it begins to hold, ms since 1970.
    pub in_force_from_ms: u64,
    /// When it was imported, ms since 1970.
    pub imported_ms: u64,
    /// Its canonical JSON.
    pub document: serde_json::Value,
}

/// Why a list was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// It would change the price of what was sold already.
    #[error(
        "the list is to hold from {from} on, which is in the past: what was sold keeps its price; leave \
         `in_force_from` out or set it to the future"
    )]
    Retroactive {
        /// As the list says.
        from: String,
    },
    /// Amounts of one ledger are of one currency.
    #[error("the list is in {given}, the lists before it in {known}; one ledger has one currency")]
    OtherCurrency {
        /// Of this list.
        given: String,
        /// Of those before.
        known: String,
    },
    /// There are too many.
    #[error("the book holds {MAX_IMPORTS} imports, which is all it takes")]
    Full,
    /// A kept version is not what it was.
    #[error("the kept price version `{id}` is damaged: {why}")]
    Damaged {
        /// Its id.
        id: Arc<str>,
        /// What is wrong with it.
        why: String,
    },
}

/// A time from which a version holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// First ms, since 1970.
    pub from_ms: u64,
    /// When this was decided, ms since 1970.
    pub imported_ms: u64,
    /// The version.
    pub id: Arc<str>,
}

/// All versions.
#[derive(Clone, Debug, Default)]
pub struct PriceBook {
    versions: BTreeMap<Arc<str>, Arc<PriceVersion>>,
    /// By `from_ms`; equal ones in the order of import.
    schedule: Vec<InForce>,
}

impl PriceBook {
    /// The book that was kept, in the order of import.
    ///
    /// # Errors
    /// [`ImportError::Damaged`] where a digest does not match.
    pub fn restore(imports: impl IntoIterator<Item = PriceImport>) -> Result<Self, ImportError> {
        let mut book = Self::default();
        for import in imports {
            let damaged = |why: String| ImportError::Damaged { id: Arc::clone(&import.id), why };
            let document = PriceDocument::from_json(&import.document.to_string())
                .map_err(|problems| damaged(all(&problems)))?;
            let version = PriceVersion::new(document);
            if version.digest != import.digest || version.id != import.id {
                return Err(damaged(format!("its digest is {}", version.digest)));
            }
            book.insert(version, import.in_force_from_ms, import.imported_ms)?;
        }
        Ok(book)
    }

    /// Takes a list. It holds from the time it names, else from now on; the first list of a book may name the past.
    /// `None` says that it is in force already and nothing comes after it, so nothing is to be kept.
    ///
    /// # Errors
    /// A time in the past, another currency, a full book.
    pub fn import(
        &mut self,
        document: PriceDocument,
        now_ms: u64,
    ) -> Result<Option<PriceImport>, ImportError> {
        let wanted_ms = document
            .in_force_from_s
            .map(|seconds| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000));
        if let Some(known) = self.currency()
            && known != document.currency
        {
            let (given, known) = (document.currency.to_string(), known.to_string());
            return Err(ImportError::OtherCurrency { given, known });
        }
        let version = PriceVersion::new(document);
        let last = self.schedule.last();
        if last.is_some_and(|last| last.id == version.id && last.from_ms <= now_ms) {
            return Ok(None);
        }
        let from_ms = wanted_ms.unwrap_or(now_ms);
        if from_ms < now_ms && !self.schedule.is_empty() {
            let from = instant_text(version.document.in_force_from_s.unwrap_or(0));
            return Err(ImportError::Retroactive { from });
        }
        let import = PriceImport {
            id: Arc::clone(&version.id),
            digest: version.digest.clone(),
            in_force_from_ms: from_ms,
            imported_ms: now_ms,
            document: version.document.to_json(),
        };
        self.insert(version, from_ms, now_ms)?;
        Ok(Some(import))
    }

    fn insert(
        &mut self,
        version: PriceVersion,
        from_ms: u64,
        imported_ms: u64,
    ) -> Result<(), ImportError> {
        if self.schedule.len() >= MAX_IMPORTS {
            return Err(ImportError::Full);
        }
        let id = Arc::clone(&version.id);
        let known = self.versions.entry(Arc::clone(&id)).or_insert_with(|| Arc::new(version));
        debug_assert!(known.id == id);
        let index = self.schedule.partition_point(|entry| entry.from_ms <= from_ms);
        self.schedule.insert(index, InForce { from_ms, imported_ms, id });
        Ok(())
    }

    /// The version that holds at a time.
    #[must_use]
    pub fn in_force_at(&self, at_ms: u64) -> Option<&Arc<PriceVersion>> {
        let index = self.schedule.partition_point(|entry| entry.from_ms <= at_ms);
        let entry = self.schedule.get(index.checked_sub(1)?)?;
        self.versions.get(&entry.id)
    }

    /// Of all its lists, once there is one.
    #[must_use]
    pub fn currency(&self) -> Option<Currency> {
        self.versions.values().next().map(|version| version.document.currency)
    }

    /// A version by its id.
    #[must_use]
    pub fn version(&self, id: &str) -> Option<&Arc<PriceVersion>> {
        self.versions.get(id)
    }

    /// Versions whose id begins so.
    pub fn versions_like<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = &'a Arc<PriceVersion>> {
        self.versions.values().filter(move |version| version.id.starts_with(prefix))
    }

    /// What holds from when, oldest first.
    #[must_use]
    pub fn schedule(&self) -> &[InForce] {
        &self.schedule
    }
}

/// Problems in one line.
fn all(problems: &[Problem]) -> String {
    problems.iter().map(|problem| problem.message.as_str()).collect::<Vec<_>>().join("; ")
}
