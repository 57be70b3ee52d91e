//! Invoices and the credit notes to them.

use mintage_ledger::directory::Action;
use mintage_ledger::invoice::{self, CreditNote, Invoice, KeptInvoiceError, Language, Month};
use serde_json::{Value, json};

use super::call::{Call, Reply, no_such, sentence};
use super::money::ledger_error;
use super::paging;
use super::table::{Audience, Kind, Route, may, must, route};
use super::usage::about;
use crate::error::{ApiError, Fault};

pub(crate) const ROUTES: &[Route] = &[
    route(
        "GET",
        "/admin/v1/invoices",
        Audience::Role(Action::ReadBilling),
        list,
        "Lists invoices by number, without their lines.",
    )
    .query(&[may("organization", Kind::Text, "Of this organization")]),
    route(
        "POST",
        "/admin/v1/organizations/{organization}/invoices",
        Audience::Operator,
        issue,
        "Issues the invoice of a month that is over, or gives the one that was issued.",
    )
    .body(&[must("month", Kind::Text, "Like 2026-11")]),
    route(
        "GET",
        "/admin/v1/invoices/{invoice}",
        Audience::Role(Action::ReadBilling),
        get,
        "Shows an invoice with its credit notes.",
    )
    .query(&[
        may("format", Kind::Choice(&["json", "csv", "html"]), "json by default"),
        may("language", Kind::Choice(&["zh", "en"]), "Of the HTML page; zh by default"),
    ]),
    route(
        "POST",
        "/admin/v1/invoices/{invoice}/credit-notes",
        Audience::Operator,
        credit,
        "Corrects an invoice: a credit note, and the money back on the balance.",
    )
    .body(&[
        must("amount", Kind::Amount, "How much is given back, in whole coins"),
        must("reason", Kind::Text, "Stands on the credit note"),
    ]),
];

fn invoice_error(error: KeptInvoiceError) -> ApiError {
    match error {
        KeptInvoiceError::Unknown(number) => no_such("invoice", &number),
        KeptInvoiceError::Ledger(error) => ledger_error(error),
        error @ (KeptInvoiceError::Invoice(_) | KeptInvoiceError::OutOfOrder { .. }) => {
            ApiError::new(Fault::Invalid, "no_invoice", sentence(&error.to_string()))
        }
        other => ApiError::internal(other.to_string()),
    }
}

fn show(invoice: &Invoice, notes: &[CreditNote]) -> Value {
    // Plain data: this cannot fail.
    let mut shown = serde_json::to_value(invoice).unwrap_or_default();
    shown["object"] = "invoice".into();
    shown["credit_notes"] = serde_json::to_value(notes).unwrap_or_default();
    shown
}

fn list(call: &Call<'_>) -> Result<Reply, ApiError> {
    let about = about(call)?;
    let all = invoice::list(&call.books()?.ledger, about.as_deref()).map_err(invoice_error)?;
    let show = |invoice: &Invoice| {
        json!({
            "object": "invoice",
            "id": invoice.number,
            "organization": &*invoice.organisation,
            "month": invoice.month.to_string(),
            "issued_ms": invoice.issued_ms,
            "payable": invoice.payable,
            "currency": invoice.currency,
        })
    };
    Ok(paging::list(all.iter().map(show).collect(), false))
}

fn one(call: &Call<'_>) -> Result<(Invoice, Vec<CreditNote>), ApiError> {
    let number = call.name("invoice");
    let found = invoice::get(&call.books()?.ledger, number).map_err(invoice_error)?;
    let seen = call.who.sees(&found.0.organisation).then_some(found);
    seen.ok_or_else(|| no_such("invoice", number))
}

fn get(call: &Call<'_>) -> Result<Reply, ApiError> {
    let (invoice, notes) = one(call)?;
    let language = match call.query.text("language") {
        Some("en") => Language::English,
        _ => Language::Chinese,
    };
    let reply = |content_type, body| Reply { status: 200, content_type, body };
    Ok(match call.query.text("format") {
        Some("csv") => reply("text/csv; charset=utf-8", invoice.to_csv()),
        Some("html") => reply("text/html; charset=utf-8", invoice.to_html(language, &notes)),
        _ => Reply::json(&show(&invoice, &notes)),
    })
}

fn issue(call: &Call<'_>) -> Result<Reply, ApiError> {
    let (organisation, books) = (&call.organisation()?.id, call.books()?);
    let month = Month::parse(call.body.required("month"), books.utc_offset_minutes);
    let month = month
        .map_err(|error| ApiError::field("month", "invalid_value", sentence(&error.to_string())))?;
    let now_ms = call.now_unix.saturating_mul(1000);
    let issued = invoice::issue(&books.ledger, &books.prices.book(), organisation, month, now_ms);
    Ok(Reply::json(&show(&issued.map_err(invoice_error)?, &[])))
}

fn credit(call: &Call<'_>) -> Result<Reply, ApiError> {
    let number = one(call)?.0.number;
    let amount = call.body.amount("amount").unwrap_or_default();
    let (books, now_ms) = (call.books()?, call.now_unix.saturating_mul(1000));
    let note =
        invoice::credit(&books.ledger, &number, amount, call.body.required("reason"), now_ms);
    let note = note.map_err(invoice_error)?;
    Ok(Reply::created(&serde_json::to_value(&note).unwrap_or_default()))
}
