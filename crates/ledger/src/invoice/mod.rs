//! Invoices: what an organisation used in a month, line by line, and what of it is to be paid.
//!
//! Not here: money that moved (the book) and where documents are kept (the store). Lines come from usage records, rated
//! again by the version each record names; what they sum up to is compared with the postings, exactly, or there is no
//! invoice.
//!
//! **The one rounding point of the ledger.** Amounts are exact to 10⁻¹² of the unit up to here. What is payable is the
//! exact total plus what the invoice before left over, rounded *down* to the currency's smallest coin; the rest, less
//! than one coin, is stated on the document and carried to the organisation's next invoice. So nobody pays for what was
//! not used, and no invoice after any number of months is more than one coin away from the postings.
//! Invariant: an issued invoice never changes (its digest says so); corrections are credit notes, which together never
//! exceed it.

mod kept;
mod month;
mod render;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use kept::{KeptInvoiceError, credit, get, issue, list};
pub use month::{Month, MonthError};
pub use render::Language;

use crate::price::{LineClass, PriceError, PriceVersion, RatedLine};
use crate::{Amount, Currency, UsageRecord};

/// Lines of one invoice.
const MAX_LINES: usize = 25_000;
/// Length of the reason on a credit note.
const MAX_REASON_CHARS: usize = 500;
/// Credit notes to one invoice.
const MAX_CREDIT_NOTES: usize = 100;
/// After a month's end, so long is waited for requests that began in it to be settled, ms.
const SETTLING_MS: u64 = 3_600_000;

/// Usage of one class under one price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvoiceLine {
    /// The project's id.
    pub project: Arc<str>,
    /// The API key's id.
    pub key: Arc<str>,
    /// The served model.
    pub model: Arc<str>,
    /// Whether it came in batches.
    pub batch: bool,
    /// `input`, `cached_input`, …, `minimum_charge`, `beyond_hold`, `training`, `deployment`.
    pub class: String,
    /// Tokens, or units of time.
    pub quantity: u64,
    /// Of these, free ones.
    pub free: u64,
    /// For each of the others; `None` where it differs from request to request.
    pub unit_price: Option<Amount>,
    /// Exact.
    pub amount: Amount,
}

/// An issued invoice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invoice {
    /// Unique: organisation and month.
    pub number: String,
    /// Whose.
    pub organisation: Arc<str>,
    /// For which usage: requests that ended in it.
    pub month: Month,
    /// When it was issued, ms since 1970.
    pub issued_ms: u64,
    /// Of all amounts.
    pub currency: Currency,
    /// By project, key, model, class and price.
    pub lines: Vec<InvoiceLine>,
    /// Usage records behind the lines.
    pub records: u64,
    /// Exact sum of the lines, equal to the sum of postings.
    pub total: Amount,
    /// What the invoice before left over.
    pub carried_in: Amount,
    /// `total` + `carried_in`, rounded down to the smallest coin.
    pub payable: Amount,
    /// What is left for the next invoice, less than a coin.
    pub carried_out: Amount,
    /// SHA-256 of all the above as JSON.
    pub digest: String,
}

/// A correction of an issued invoice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreditNote {
    /// The invoice's number and a running one.
    pub number: String,
    /// The invoice it corrects.
    pub invoice: String,
    /// Whose.
    pub organisation: Arc<str>,
    /// When it was issued, ms since 1970.
    pub issued_ms: u64,
    /// Of the amount.
    pub currency: Currency,
    /// Given back; whole coins.
    pub amount: Amount,
    /// Why.
    pub reason: String,
    /// SHA-256 of all the above as JSON.
    pub digest: String,
}

/// Why there is no invoice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvoiceError {
    /// Records may still come.
    #[error(
        "the month {month} is not over and settled yet; its invoice can be issued from {from} on"
    )]
    TooEarly {
        /// As asked for.
        month: Month,
        /// When.
        from: String,
    },
    /// A record does not belong here.
    #[error("the usage record `{id}` belongs to another organisation, month or currency")]
    Foreign {
        /// Of the record.
        id: Arc<str>,
    },
    /// The record's price version is not among the kept ones.
    #[error("the usage record `{id}` was priced by version `{version}`, which is not known")]
    NoVersion {
        /// Of the record.
        id: Arc<str>,
        /// As it says.
        version: Arc<str>,
    },
    /// The record cannot be rated again.
    #[error("the usage record `{id}` cannot be rated: {error}")]
    Unrated {
        /// Of the record.
        id: Arc<str>,
        /// Why.
        error: PriceError,
    },
    /// The record's amount is above what its version says.
    #[error(
        "the usage record `{id}` was posted at {posted}, but its price version says only {rated}"
    )]
    Deviates {
        /// Of the record.
        id: Arc<str>,
        /// As the record has it.
        posted: Amount,
        /// As the version has it.
        rated: Amount,
    },
    /// Records and postings differ.
    #[error(
        "the lines sum up to {lines} but the postings to {postings}; run `mintage ledger verify`"
    )]
    Unbalanced {
        /// Of the records.
        lines: Amount,
        /// Of the log.
        postings: Amount,
    },
    /// Too much for one document.
    #[error("the month has more than {MAX_LINES} lines, which is all that one invoice takes")]
    TooManyLines,
    /// A credit note of nothing, of fractions of a coin or of more than is left.
    #[error("a credit note is for whole coins between {least} and {most} {currency}")]
    CreditAmount {
        /// One coin.
        least: Amount,
        /// The invoice's payable less earlier notes.
        most: Amount,
        /// Of both.
        currency: Currency,
    },
    /// A credit note without a reason.
    #[error("a credit note says why, in 1 to {MAX_REASON_CHARS} characters")]
    Reason,
    /// Too many corrections.
    #[error("the invoice has {MAX_CREDIT_NOTES} credit notes, which is all it takes")]
    TooManyNotes,
}

/// What lines are kept apart by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LineKey {
    project: Arc<str>,
    key: Arc<str>,
    model: Arc<str>,
    batch: bool,
    class: LineClass,
    pico_per_unit: Option<u64>,
}

/// An invoice in the making: records go in one by one.
#[derive(Debug)]
pub struct InvoiceDraft {
    organisation: Arc<str>,
    month: Month,
    currency: Currency,
    carried_in: Amount,
    records: u64,
    lines: BTreeMap<LineKey, (u64, u64, Amount)>,
}

impl InvoiceDraft {
    /// Nothing yet; `carried_in` is the `carried_out` of the organisation's invoice before, or nothing.
    #[must_use]
    pub fn new(
        organisation: Arc<str>,
        month: Month,
        currency: Currency,
        carried_in: Amount,
    ) -> Self {
        Self { organisation, month, currency, carried_in, records: 0, lines: BTreeMap::new() }
    }

    /// One more record, with the version that it names; `None` where it names none (nothing had a price then).
    ///
    /// # Errors
    /// A record from elsewhere, or one whose amount its version does not confirm.
    pub fn add(
        &mut self,
        record: &UsageRecord,
        version: Option<&PriceVersion>,
    ) -> Result<(), InvoiceError> {
        let (facts, id) = (&record.facts, &record.facts.id);
        let period = self.month.from_ms()..self.month.until_ms();
        if facts.payer.org != self.organisation
            || record.currency != self.currency
            || !period.contains(&record.outcome.end_ms)
        {
            return Err(InvoiceError::Foreign { id: Arc::clone(id) });
        }
        let Some(version) = version else {
            let unpriced = record.price_version.is_empty() && record.amount.is_zero();
            let version = Arc::clone(&record.price_version);
            self.records += u64::from(unpriced);
            return if unpriced {
                Ok(())
            } else {
                Err(InvoiceError::NoVersion { id: Arc::clone(id), version })
            };
        };
        let rated = version
            .rate_record(record)
            .map_err(|error| InvoiceError::Unrated { id: Arc::clone(id), error })?;
        if rated.total < record.amount {
            let (posted, rated) = (record.amount, rated.total);
            return Err(InvoiceError::Deviates { id: Arc::clone(id), posted, rated });
        }
        // A posting never exceeds its hold; what that cut off is a line, so that the sums stay those of the postings.
        let cut = record.amount.pico() - rated.total.pico();
        let beyond_hold = (cut < 0).then_some(RatedLine {
            class: LineClass::BeyondHold,
            quantity: 1,
            free: 0,
            pico_per_unit: 0,
            amount: Amount::from_pico(cut),
        });
        for line in rated.lines.iter().chain(&beyond_hold) {
            let fixed = !matches!(line.class, LineClass::Minimum | LineClass::BeyondHold);
            let key = LineKey {
                project: Arc::clone(&facts.payer.project),
                key: Arc::clone(&facts.payer.key),
                model: Arc::clone(&facts.model),
                batch: facts.batch,
                class: line.class,
                pico_per_unit: fixed.then_some(line.pico_per_unit),
            };
            let (quantity, free, amount) = self.lines.entry(key).or_default();
            *quantity = quantity.saturating_add(line.quantity);
            *free = free.saturating_add(line.free);
            *amount = [*amount, line.amount].into_iter().sum();
        }
        if self.lines.len() > MAX_LINES {
            return Err(InvoiceError::TooManyLines);
        }
        self.records += 1;
        Ok(())
    }

    /// Makes it final. `postings` is the sum of what the log posted for this usage.
    ///
    /// # Errors
    /// A month that is not over, a sum that is not that of the postings.
    pub fn issue(self, postings: Amount, now_ms: u64) -> Result<Invoice, InvoiceError> {
        let from_ms = self.month.until_ms().saturating_add(SETTLING_MS);
        if now_ms < from_ms {
            let from = crate::price::utc_text(from_ms);
            return Err(InvoiceError::TooEarly { month: self.month, from });
        }
        let line = |(key, (quantity, free, amount)): (LineKey, (u64, u64, Amount))| InvoiceLine {
            project: key.project,
            key: key.key,
            model: key.model,
            batch: key.batch,
            class: key.class.key().to_owned(),
            quantity,
            free,
            unit_price: key.pico_per_unit.map(|pico| Amount::from_pico(i128::from(pico))),
            amount,
        };
        let lines: Vec<InvoiceLine> = self.lines.into_iter().map(line).collect();
        let total: Amount = lines.iter().map(|line| line.amount).sum();
        if total != postings {
            return Err(InvoiceError::Unbalanced { lines: total, postings });
        }
        let exact = total.pico().saturating_add(self.carried_in.pico());
        let carried_out = exact.rem_euclid(coin_pico(self.currency));
        let mut invoice = Invoice {
            number: number(&self.organisation, self.month),
            organisation: self.organisation,
            month: self.month,
            issued_ms: now_ms,
            currency: self.currency,
            lines,
            records: self.records,
            total,
            carried_in: self.carried_in,
            payable: Amount::from_pico(exact - carried_out),
            carried_out: Amount::from_pico(carried_out),
            digest: String::new(),
        };
        invoice.digest = invoice.expected_digest();
        Ok(invoice)
    }
}

impl Invoice {
    /// Whether it is what was issued: digest, sums and rounding.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        let sum: Amount = self.lines.iter().map(|line| line.amount).sum();
        let exact = self.total.pico().saturating_add(self.carried_in.pico());
        sum == self.total
            && self.payable.pico().saturating_add(self.carried_out.pico()) == exact
            && self.digest == self.expected_digest()
    }

    fn expected_digest(&self) -> String {
        digest(&Self { digest: String::new(), ..self.clone() })
    }

    /// Of the next credit note.
    fn note_number(&self, earlier: &[CreditNote]) -> String {
        format!("{}-C{}", self.number, earlier.len() + 1)
    }

    /// A correction: gives `amount` back, of what earlier notes left.
    ///
    /// # Errors
    /// Nothing, fractions of a coin, more than is left, no reason.
    pub fn credit(
        &self,
        earlier: &[CreditNote],
        amount: Amount,
        reason: &str,
        now_ms: u64,
    ) -> Result<CreditNote, InvoiceError> {
        let credited: i128 = earlier.iter().map(|note| note.amount.pico()).sum();
        let (coin, most) = (coin_pico(self.currency), self.payable.pico() - credited);
        let pico = amount.pico();
        if pico < coin || pico > most || pico % coin != 0 {
            let (least, most) = (Amount::from_pico(coin), Amount::from_pico(most));
            return Err(InvoiceError::CreditAmount { least, most, currency: self.currency });
        }
        let reason = reason.trim();
        if reason.is_empty() || reason.chars().count() > MAX_REASON_CHARS {
            return Err(InvoiceError::Reason);
        }
        if earlier.len() >= MAX_CREDIT_NOTES {
            return Err(InvoiceError::TooManyNotes);
        }
        let mut note = CreditNote {
            number: self.note_number(earlier),
            invoice: self.number.clone(),
            organisation: Arc::clone(&self.organisation),
            issued_ms: now_ms,
            currency: self.currency,
            amount,
            reason: reason.to_owned(),
            digest: String::new(),
        };
        note.digest = note.expected_digest();
        Ok(note)
    }
}

impl CreditNote {
    /// Whether it is what was issued.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.digest == self.expected_digest()
    }

    fn expected_digest(&self) -> String {
        digest(&Self { digest: String::new(), ..self.clone() })
    }
}

/// Of the invoice for a month.
fn number(organisation: &str, month: Month) -> String {
    format!("{organisation}-{month}")
}

/// The smallest coin, pico.
fn coin_pico(currency: Currency) -> i128 {
    crate::PICO_PER_UNIT / 10_i128.pow(u32::try_from(currency.decimals()).unwrap_or(0))
}

/// Of the document's JSON; types without maps serialise in one order and cannot fail.
fn digest(document: &impl Serialize) -> String {
    let json = serde_json::to_vec(document).unwrap_or_default();
    Sha256::digest(&json).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
