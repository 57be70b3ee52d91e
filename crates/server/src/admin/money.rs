//! Money: top-ups, credits, adjustments, refunds, credit lines, balances.
//!
//! Each movement has an idempotency id: sent twice it happens once. Money comes in by the operator's word only.

use mintage_ledger::directory::Action;
use mintage_ledger::{
    Amount, Balance, Currency, LedgerError, Pending, Refusal, UNLIMITED, Unavailable,
};
use serde_json::{Value, json};

use super::Books;
use super::call::{Call, Reply, no_such, sentence};
use super::paging::list;
use super::table::{Audience, Field, Kind, Route, may, must, route};
use crate::error::{ApiError, Fault};

const ID: Field =
    must("id", Kind::Text, "Of this movement, chosen by you; the same again moves nothing twice");
const MOVE: &[Field] = &[
    ID,
    must("amount", Kind::Amount, "How much, above zero"),
    may("currency", Kind::Text, "Three letters; that of the price list by default"),
];
const CORRECT: &[Field] = &[
    ID,
    must("amount", Kind::Amount, "Positive gives, negative takes"),
    may("currency", Kind::Text, "Three letters; that of the price list by default"),
];

pub(crate) const ROUTES: &[Route] = &[
    route("GET", "/admin/v1/balances", Audience::Operator, balances, "Lists all balances."),
    route(
        "GET",
        "/admin/v1/organizations/{organization}/balance",
        Audience::Role(Action::ReadBilling),
        balance,
        "Shows what an organization has, what is held for running requests, and what it can spend.",
    ),
    route(
        "POST",
        "/admin/v1/organizations/{organization}/topups",
        Audience::Operator,
        topup,
        "Money came in.",
    )
    .body(MOVE),
    route(
        "POST",
        "/admin/v1/organizations/{organization}/credits",
        Audience::Operator,
        credit,
        "Money given away.",
    )
    .body(MOVE),
    route(
        "POST",
        "/admin/v1/organizations/{organization}/adjustments",
        Audience::Operator,
        adjust,
        "A correction by hand.",
    )
    .body(CORRECT),
    route(
        "PUT",
        "/admin/v1/organizations/{organization}/credit-line",
        Audience::Operator,
        credit_line,
        "Sets how far below zero the balance may go.",
    )
    .body(&[
        ID,
        must("limit", Kind::Text, "An amount, or `unlimited`"),
        may("currency", Kind::Text, "Three letters; that of the price list by default"),
    ]),
    route(
        "POST",
        "/admin/v1/usage/{record}/refunds",
        Audience::Operator,
        refund,
        "Gives back part or all of what a request cost.",
    )
    .body(&[
        ID,
        must("amount", Kind::Amount, "How much; all refunds together never exceed the charge"),
    ]),
];

/// Whose fault an error of the ledger is.
pub(crate) fn ledger_error(error: LedgerError) -> ApiError {
    let (fault, code) = match &error {
        LedgerError::Unavailable(trouble) => return unavailable(trouble),
        LedgerError::NoRecord(id) => return no_such("usage record", id),
        LedgerError::Refused(Refusal::IdReused(_)) => (Fault::Conflict, "id_reused"),
        LedgerError::Refused(_) => (Fault::Invalid, "refused"),
        LedgerError::Conflict { .. } => (Fault::Conflict, "conflict"),
        LedgerError::TooLarge(_) => (Fault::Invalid, "invalid_value"),
        _ => return ApiError::internal(error.to_string()),
    };
    ApiError::new(fault, code, sentence(&error.to_string()))
}

fn unavailable(trouble: &Unavailable) -> ApiError {
    let message = "The ledger takes nothing at the moment. Please try again.";
    ApiError {
        log: Some(trouble.to_string()),
        ..ApiError::new(Fault::Overloaded, "ledger_unavailable", message)
    }
}

/// Waits until it is durable.
pub(crate) fn durable<T>(pending: Result<Pending<T>, LedgerError>) -> Result<T, ApiError> {
    pending.map_err(ledger_error)?.wait().map_err(|trouble| unavailable(&trouble))
}

fn show(organisation: &str, currency: Currency, balance: &Balance) -> Value {
    let or_unlimited = |amount: Amount| match amount {
        UNLIMITED => "unlimited".to_owned(),
        amount => amount.to_string(),
    };
    let available = match balance.credit_line {
        UNLIMITED => "unlimited".to_owned(),
        _ => balance.available().to_string(),
    };
    json!({
        "object": "balance",
        "organization": organisation,
        "currency": currency,
        "balance": balance.balance,
        "held": balance.held,
        "credit_line": or_unlimited(balance.credit_line),
        "available": available,
    })
}

fn currency(call: &Call<'_>, books: &Books) -> Result<Currency, ApiError> {
    let Some(text) = call.body.text("currency") else { return Ok(books.currency()) };
    text.parse().map_err(|error| {
        ApiError::field("currency", "invalid_value", sentence(&format!("{error}")))
    })
}

fn balances(call: &Call<'_>) -> Result<Reply, ApiError> {
    let all = call.books()?.ledger.whole_balances().map_err(ledger_error)?;
    Ok(list(all.iter().map(|(org, currency, b)| show(org, *currency, b)).collect(), false))
}

fn balance(call: &Call<'_>) -> Result<Reply, ApiError> {
    let (organisation, books) = (call.organisation()?, call.books()?);
    shown(books, &organisation.id, books.currency())
}

fn shown(books: &Books, organisation: &str, currency: Currency) -> Result<Reply, ApiError> {
    let balance = books.ledger.whole_balance(organisation, currency);
    let balance = balance.map_err(ledger_error)?;
    Ok(Reply::json(&show(organisation, currency, &balance)))
}

fn amount(call: &Call<'_>) -> Amount {
    call.body.amount("amount").unwrap_or_default()
}

fn topup(call: &Call<'_>) -> Result<Reply, ApiError> {
    let (organisation, books) = (&call.organisation()?.id, call.books()?);
    let currency = currency(call, books)?;
    durable(books.ledger.topup(call.body.required("id"), organisation, currency, amount(call)))?;
    shown(books, organisation, currency)
}

fn credit(call: &Call<'_>) -> Result<Reply, ApiError> {
    let (organisation, books) = (&call.organisation()?.id, call.books()?);
    let currency = currency(call, books)?;
    durable(books.ledger.credit(call.body.required("id"), organisation, currency, amount(call)))?;
    shown(books, organisation, currency)
}

fn adjust(call: &Call<'_>) -> Result<Reply, ApiError> {
    let (organisation, books) = (&call.organisation()?.id, call.books()?);
    let currency = currency(call, books)?;
    durable(books.ledger.adjust(call.body.required("id"), organisation, currency, amount(call)))?;
    shown(books, organisation, currency)
}

fn credit_line(call: &Call<'_>) -> Result<Reply, ApiError> {
    let (organisation, books) = (&call.organisation()?.id, call.books()?);
    let currency = currency(call, books)?;
    let limit = match call.body.required("limit") {
        "unlimited" => UNLIMITED,
        text => text.parse().map_err(|error: mintage_ledger::AmountError| {
            ApiError::field("limit", "invalid_value", sentence(&error.to_string()))
        })?,
    };
    durable(books.ledger.credit_line(call.body.required("id"), organisation, currency, limit))?;
    shown(books, organisation, currency)
}

fn refund(call: &Call<'_>) -> Result<Reply, ApiError> {
    let books = call.books()?;
    let record = super::usage::one(call, call.name("record"))?;
    durable(books.ledger.refund(call.body.required("id"), &record.facts.id, amount(call)))?;
    shown(books, &record.facts.payer.org, record.currency)
}
