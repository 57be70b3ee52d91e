//! Invoices as they are issued from, and kept in, a ledger's store.
//!
//! Reads the disk and waits for it. Invariant: an invoice, the remainder it carries on and the message that tells of it
//! are written together; a number is issued once, and issuing it again gives what was issued.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{CreditNote, Invoice, InvoiceDraft, InvoiceError, Month};
use crate::price::PriceBook;
use crate::{
    Amount, Changes, Document, EntryKind, Ledger, LedgerError, Message, Operation, UsageFilter,
};

const INVOICE: &str = "invoice";
const CREDIT_NOTE: &str = "credit_note";
const CARRY: &str = "invoice_carry";
/// What webhooks hear.
const TOPIC: &str = "invoice.issued";
/// Lines of the log, and records, read at once.
const PAGE: usize = 5_000;

/// Why there is no invoice.
#[derive(Debug, thiserror::Error)]
pub enum KeptInvoiceError {
    /// What the invoice itself says.
    #[error(transparent)]
    Invoice(#[from] InvoiceError),
    /// The store.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The writer stopped before the document was durable.
    #[error("it was not written: {0}")]
    NotDurable(crate::Unavailable),
    /// Months are issued in their order, because each carries a remainder on.
    #[error("{organisation} has an invoice for {last} already; months are issued in their order")]
    OutOfOrder {
        /// Whose.
        organisation: Arc<str>,
        /// The last one issued.
        last: Month,
    },
    /// A record without its posting, or the other way round.
    #[error("the usage record `{id}` is not what the log posted; run `mintage ledger verify`")]
    NoPosting {
        /// Of the record.
        id: Arc<str>,
    },
    /// A document that is not what was issued.
    #[error("the kept document `{0}` is damaged; run `mintage ledger verify`")]
    Damaged(String),
    /// There is none.
    #[error("there is no invoice `{0}`; `mintage invoice list` shows all")]
    Unknown(String),
}

/// What the last invoice of an organisation left over.
#[derive(Serialize, Deserialize)]
struct Carry {
    month: Month,
    carried_out: Amount,
}

/// Issues the invoice of an organisation for a month, or gives the one that was issued.
///
/// # Errors
/// A month that is not over, records that do not agree with prices or postings, the store.
pub fn issue(
    ledger: &Ledger,
    prices: &PriceBook,
    organisation: &str,
    month: Month,
    now_ms: u64,
) -> Result<Invoice, KeptInvoiceError> {
    if let Some(issued) = find(ledger, &super::number(organisation, month))? {
        return Ok(issued);
    }
    let organisation: Arc<str> = Arc::from(organisation);
    let before = ledger.history(CARRY, &organisation)?.into_iter().next_back();
    let carry = before.as_ref().map(read::<Carry>).transpose()?;
    if let Some(last) = carry.as_ref().map(|carry| carry.month).filter(|last| *last >= month) {
        return Err(KeptInvoiceError::OutOfOrder { organisation, last });
    }
    let carried_in = carry.map_or(Amount::ZERO, |carry| carry.carried_out);
    let currency = prices.currency().unwrap_or_default();
    let mut draft = InvoiceDraft::new(Arc::clone(&organisation), month, currency, carried_in);
    let postings = add_records(ledger, prices, &mut draft, &organisation, month)?;
    let invoice = draft.issue(postings, now_ms)?;
    let carry = Carry { month, carried_out: invoice.carried_out };
    let news = json!({
        "organisation": organisation,
        "invoice": invoice.number,
        "month": month.to_string(),
        "payable": invoice.payable,
        "currency": invoice.currency,
    });
    let changes = Changes {
        documents: vec![
            document(INVOICE, &invoice.number, 1, &invoice),
            document(CARRY, &organisation, before.map_or(1, |before| before.version + 1), &carry),
        ],
        messages: vec![Message {
            topic: Arc::from(TOPIC),
            body: news.to_string().into_bytes(),
            due_ms: now_ms,
        }],
        ..Changes::default()
    };
    ledger.write(changes)?.wait().map_err(KeptInvoiceError::NotDurable)?;
    Ok(invoice)
}

/// Adds the month's records, each compared with its line of the log; the sum of those lines.
fn add_records(
    ledger: &Ledger,
    prices: &PriceBook,
    draft: &mut InvoiceDraft,
    organisation: &Arc<str>,
    month: Month,
) -> Result<Amount, KeptInvoiceError> {
    let mut filter = UsageFilter {
        org: Some(Arc::clone(organisation)),
        from_ms: month.from_ms(),
        until_ms: month.until_ms(),
        limit: PAGE,
        ..UsageFilter::default()
    };
    let mut postings = 0_i128;
    loop {
        let records = ledger.usage(&filter)?;
        let (Some((first, _)), Some((last, _))) = (records.first(), records.last()) else {
            return Ok(Amount::from_pico(postings));
        };
        let posted = posted_between(ledger, *first, *last)?;
        for (number, record) in &records {
            let posted = posted.get(number).filter(|(id, _)| *id == record.facts.id);
            let Some((_, pico)) = posted else {
                return Err(KeptInvoiceError::NoPosting { id: Arc::clone(&record.facts.id) });
            };
            postings += i128::from(*pico);
            draft.add(record, prices.version(&record.price_version).map(AsRef::as_ref))?;
        }
        filter.after = *last;
    }
}

/// Number of the line → request and amount, of the postings from line `first` to line `last`.
fn posted_between(
    ledger: &Ledger,
    first: u64,
    last: u64,
) -> Result<HashMap<u64, (Arc<str>, i64)>, LedgerError> {
    let (mut found, mut after) = (HashMap::new(), first.saturating_sub(1));
    while after < last {
        let lines = ledger.log(after, PAGE)?;
        let Some(end) = lines.last().map(|line| line.seq) else { break };
        after = end;
        let posts = lines.into_iter().filter(|line| line.entry.kind == EntryKind::Post);
        found.extend(posts.map(|line| (line.seq, (line.entry.id, line.entry.amount))));
    }
    Ok(found)
}

/// All invoices, or those of an organisation, by number.
///
/// # Errors
/// The store, a damaged document.
pub fn list(ledger: &Ledger, organisation: Option<&str>) -> Result<Vec<Invoice>, KeptInvoiceError> {
    let invoices = ledger.documents(INVOICE)?.iter().map(intact).collect::<Result<Vec<_>, _>>()?;
    let of = |invoice: &Invoice| organisation.is_none_or(|org| *invoice.organisation == *org);
    Ok(invoices.into_iter().filter(of).collect())
}

/// An invoice and the credit notes to it.
///
/// # Errors
/// An unknown number, the store, a damaged document.
pub fn get(ledger: &Ledger, number: &str) -> Result<(Invoice, Vec<CreditNote>), KeptInvoiceError> {
    let invoice = find(ledger, number)?;
    let invoice = invoice.ok_or_else(|| KeptInvoiceError::Unknown(number.to_owned()))?;
    let mut notes = Vec::new();
    // Notes are numbered without gaps.
    while let Some(note) = ledger.history(CREDIT_NOTE, &invoice.note_number(&notes))?.first() {
        let kept: CreditNote = read(note)?;
        if !kept.is_intact() {
            return Err(KeptInvoiceError::Damaged(note.id.to_string()));
        }
        notes.push(kept);
    }
    Ok((invoice, notes))
}

/// Corrects an invoice: a credit note, and the money back on the balance, together or not at all.
///
/// # Errors
/// More than is left of the invoice, the store.
pub fn credit(
    ledger: &Ledger,
    number: &str,
    amount: Amount,
    reason: &str,
    now_ms: u64,
) -> Result<CreditNote, KeptInvoiceError> {
    let (invoice, earlier) = get(ledger, number)?;
    let note = invoice.credit(&earlier, amount, reason, now_ms)?;
    let org = Arc::clone(&invoice.organisation);
    let operation = Operation::Adjustment { org, currency: note.currency, amount };
    let changes = Changes {
        operation: Some((Arc::from(note.number.as_str()), operation)),
        documents: vec![document(CREDIT_NOTE, &note.number, 1, &note)],
        ..Changes::default()
    };
    ledger.write(changes)?.wait().map_err(KeptInvoiceError::NotDurable)?;
    Ok(note)
}

fn find(ledger: &Ledger, number: &str) -> Result<Option<Invoice>, KeptInvoiceError> {
    ledger.history(INVOICE, number)?.first().map(intact).transpose()
}

fn intact(document: &Document) -> Result<Invoice, KeptInvoiceError> {
    let invoice: Invoice = read(document)?;
    if invoice.is_intact() {
        return Ok(invoice);
    }
    Err(KeptInvoiceError::Damaged(document.id.to_string()))
}

fn read<T: DeserializeOwned>(document: &Document) -> Result<T, KeptInvoiceError> {
    serde_json::from_slice(&document.body)
        .map_err(|error| KeptInvoiceError::Damaged(format!("{}: {error}", document.id)))
}

/// These types have no maps and no keys that JSON cannot hold, so serialising does not fail.
fn document(kind: &str, id: &str, version: u64, body: &impl Serialize) -> Document {
    let body = serde_json::to_vec(body).unwrap_or_default();
    Document { kind: Arc::from(kind), id: Arc::from(id), version, body }
}
