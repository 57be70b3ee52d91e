//! Price lists: which holds when, and importing the next. They are the same for all tenants.

use std::sync::Arc;

use mintage_ledger::directory::Action;
use mintage_ledger::price::{InForce, KeptError, PriceDocument, PriceVersion, Problem};
use serde_json::{Value, json};

use super::call::{Call, Reply, no_such, sentence};
use super::money::ledger_error;
use super::paging;
use super::table::{Audience, Kind, Route, may, route};
use crate::error::{ApiError, Fault};

pub(crate) const ROUTES: &[Route] = &[
    route(
        "GET",
        "/admin/v1/prices",
        Audience::Role(Action::ReadUsage),
        history,
        "Lists which version of the prices holds from when, oldest first.",
    ),
    route(
        "POST",
        "/admin/v1/prices",
        Audience::Operator,
        import,
        "Imports a price list: it holds from the time it names, else from now on.",
    )
    .body(&[
        may("toml", Kind::Text, "The list as TOML"),
        may("document", Kind::Object, "Or as JSON, as another answer here shows it"),
    ]),
    route(
        "GET",
        "/admin/v1/prices/in-force",
        Audience::Role(Action::ReadUsage),
        in_force,
        "Shows the prices in force.",
    )
    .query(&[may("at", Kind::Integer, "At this time, seconds since 1970; now by default")]),
    route(
        "GET",
        "/admin/v1/prices/{version}",
        Audience::Role(Action::ReadUsage),
        get,
        "Shows a version of the prices, as usage records name it.",
    ),
];

fn show(version: &PriceVersion) -> Value {
    json!({
        "object": "prices",
        "id": **version.id(),
        "digest": version.digest(),
        "document": version.document().to_json(),
    })
}

fn show_from(entry: &InForce) -> Value {
    json!({
        "object": "prices.in_force",
        "id": &*entry.id,
        "from_ms": entry.from_ms,
        "imported_ms": entry.imported_ms,
    })
}

fn history(call: &Call<'_>) -> Result<Reply, ApiError> {
    let book = call.books()?.prices.book();
    Ok(paging::list(book.schedule().iter().map(show_from).collect(), false))
}

fn in_force(call: &Call<'_>) -> Result<Reply, ApiError> {
    let at_s = call.query.integer("at").unwrap_or(call.now_unix);
    let book = call.books()?.prices.book();
    let version: Option<&Arc<PriceVersion>> = book.in_force_at(at_s.saturating_mul(1000));
    let version = version.ok_or_else(|| {
        let message =
            "No prices are in force at that time; `POST /admin/v1/prices` imports a list.";
        ApiError::new(Fault::NotFound, "not_found", message)
    })?;
    Ok(Reply::json(&show(version)))
}

fn get(call: &Call<'_>) -> Result<Reply, ApiError> {
    let id = call.name("version");
    let book = call.books()?.prices.book();
    let version = book.version(id).ok_or_else(|| no_such("price version", id))?;
    Ok(Reply::json(&show(version)))
}

fn problems(problems: &[Problem]) -> ApiError {
    let line = |problem: &Problem| match problem.line {
        0 => problem.message.clone(),
        line => format!("line {line}: {}", problem.message),
    };
    let lines: Vec<String> = problems.iter().map(line).collect();
    ApiError::new(Fault::Invalid, "invalid_prices", lines.join("\n"))
}

fn import(call: &Call<'_>) -> Result<Reply, ApiError> {
    let document = match (call.body.text("toml"), call.body.value("document")) {
        (Some(toml), None) => PriceDocument::from_toml(toml),
        (None, Some(json)) => PriceDocument::from_json(&json.to_string()),
        _ => {
            let message = "Give the list as `toml` or as `document`, one of them.";
            return Err(ApiError::new(Fault::Invalid, "missing_required_parameter", message));
        }
    };
    let document = document.map_err(|found| problems(&found))?;
    let books = call.books()?;
    let now_ms = call.now_unix.saturating_mul(1000);
    match books.prices.import(&books.ledger, document, now_ms) {
        Ok(Some(import)) => {
            call.office.grant_free_quotas();
            Ok(Reply::created(&json!({
            "object": "prices.in_force",
            "id": &*import.id,
            "from_ms": import.in_force_from_ms,
            "imported_ms": import.imported_ms,
            })))
        }
        Ok(None) => Ok(Reply::json(&json!({"object": "prices.in_force", "unchanged": true}))),
        Err(KeptError::Import(error)) => {
            let message = sentence(&error.to_string());
            Err(ApiError::new(Fault::Invalid, "invalid_prices", message))
        }
        Err(KeptError::Ledger(error)) => Err(ledger_error(error)),
        Err(other) => Err(ApiError::internal(other.to_string())),
    }
}
