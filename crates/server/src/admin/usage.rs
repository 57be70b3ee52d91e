//! Usage records: what each request used and cost.

use std::sync::Arc;

use mintage_ledger::directory::Action;
use mintage_ledger::{UsageFilter, UsageRecord};
use serde_json::{Value, json};

use super::call::{Call, Reply, no_such};
use super::money::ledger_error;
use super::paging::limit;
use super::table::{Audience, Field, Kind, Route, may, route};
use crate::error::ApiError;

const DEFAULT_LIMIT: u64 = 100;
const MAX_LIMIT: u64 = 1000;

const FILTER: &[Field] = &[
    may("organization", Kind::Text, "Of this organization"),
    may("project", Kind::Text, "Of this project"),
    may("key", Kind::Text, "Of this key"),
    may("model", Kind::Text, "Of this model"),
    may("from", Kind::Integer, "Ended at or after, seconds since 1970"),
    may("until", Kind::Integer, "Ended before, seconds since 1970"),
    may("limit", Kind::Integer, "At most so many, 1 to 1000; 100 by default"),
    may("after", Kind::Integer, "`next` of the page before"),
];

pub(crate) const ROUTES: &[Route] = &[
    route(
        "GET",
        "/admin/v1/usage",
        Audience::Role(Action::ReadUsage),
        list,
        "Lists usage records in the order in which they were posted.",
    )
    .query(FILTER),
    route(
        "GET",
        "/admin/v1/usage/{record}",
        Audience::Role(Action::ReadUsage),
        get,
        "Shows the usage record of a request by the id that its client saw.",
    ),
];

fn show(record: &UsageRecord) -> Value {
    // Plain data: this cannot fail.
    let mut shown = serde_json::to_value(record).unwrap_or_default();
    shown["object"] = "usage".into();
    shown
}

/// The organisation that a list is about: the caller's own, or the one the operator names, or all.
pub(crate) fn about(call: &Call<'_>) -> Result<Option<Arc<str>>, ApiError> {
    match (call.query.text("organization"), call.who.confined_to()) {
        (Some(id), _) => Ok(Some(call.organisation_with(id)?.id.as_str().into())),
        (None, own) => Ok(own.cloned()),
    }
}

fn list(call: &Call<'_>) -> Result<Reply, ApiError> {
    let text = |name| call.query.text(name).map(Arc::from);
    let ms = |name| call.query.integer(name).map_or(0, |s: u64| s.saturating_mul(1000));
    let limit = limit(call, DEFAULT_LIMIT, MAX_LIMIT)?;
    let filter = UsageFilter {
        org: about(call)?,
        project: text("project"),
        key: text("key"),
        model: text("model"),
        id: None,
        from_ms: ms("from"),
        until_ms: ms("until"),
        after: call.query.integer("after").unwrap_or(0),
        limit: limit + 1,
    };
    let mut records = call.books()?.ledger.usage(&filter).map_err(ledger_error)?;
    let has_more = records.len() > limit;
    records.truncate(limit);
    let next = records.last().filter(|_| has_more).map(|(number, _)| *number);
    let data: Vec<Value> = records.iter().map(|(_, record)| show(record)).collect();
    Ok(Reply::json(&json!({"object": "list", "data": data, "has_more": has_more, "next": next})))
}

/// A record that the caller sees.
pub(crate) fn one(call: &Call<'_>, id: &str) -> Result<UsageRecord, ApiError> {
    let filter = UsageFilter {
        org: call.who.confined_to().cloned(),
        id: Some(id.into()),
        ..UsageFilter::default()
    };
    let found = call.books()?.ledger.usage(&filter).map_err(ledger_error)?;
    found.into_iter().next().map(|(_, record)| record).ok_or_else(|| no_such("usage record", id))
}

fn get(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(Reply::json(&show(&one(call, call.name("record"))?)))
}
