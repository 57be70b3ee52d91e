//! `/v1/organization/usage/completions`, `…/usage/embeddings` and `/v1/organization/costs`.
//!
//! Invariant: a record of tokens counts under exactly one of the two: its dialect's route tells which.

use mintage_ledger::directory::Action;
use mintage_ledger::{Quantity, UsageRecord, UsageSums};
use serde_json::{Map, Value, json};

use super::super::call::{Call, Reply};
use super::super::table::{Audience, Field, Kind, Route, may, must, route};
use super::buckets::{Group, Origin, PROTOCOL, Sums, split_and_summed, summed};
use crate::error::ApiError;
use crate::vectors;

const START: Field = must("start_time", Kind::Integer, "Seconds since 1970, inclusive");
const END: Field = may("end_time", Kind::Integer, "Seconds since 1970, exclusive; now by default");
const PROJECTS: Field = may("project_ids", Kind::Texts, "Only of these projects");
const KEYS: Field = may("api_key_ids", Kind::Texts, "Only of these keys");
const PAGE: Field = may("page", Kind::Text, "`next_page` of the answer before");
const WIDTH: Field = may("bucket_width", Kind::Choice(&["1m", "1h", "1d"]), "1d by default");
const USERS: Field = may("user_ids", Kind::Texts, "Keys belong to projects here: chooses nothing");
const MODELS: Field = may("models", Kind::Texts, "Only of these models");
const BUCKETS: Field =
    may("limit", Kind::Integer, "Buckets: at most 31 days, 168 hours, 1440 minutes");

pub(crate) const ROUTES: &[Route] = &[
    route(
        "GET",
        "/v1/organization/usage/completions",
        Audience::Role(Action::ReadUsage),
        completions,
        "Tokens and requests in buckets of time, but those of embeddings and reranking.",
    )
    .query(&[
        START,
        END,
        WIDTH,
        PROJECTS,
        KEYS,
        USERS,
        MODELS,
        may("batch", Kind::Flag, "Only what came in batches, or only what did not"),
        may(
            "group_by",
            Kind::Choices(&[
                "project_id",
                "user_id",
                "api_key_id",
                "model",
                "batch",
                "service_tier",
            ]),
            "Kept apart by these",
        ),
        BUCKETS,
        PAGE,
    ]),
    route(
        "GET",
        "/v1/organization/usage/embeddings",
        Audience::Role(Action::ReadUsage),
        embeddings,
        "Tokens and requests of embeddings and reranking in buckets of time.",
    )
    .query(&[
        START,
        END,
        WIDTH,
        PROJECTS,
        KEYS,
        USERS,
        MODELS,
        may(
            "group_by",
            Kind::Choices(&["project_id", "user_id", "api_key_id", "model"]),
            "Kept apart by these",
        ),
        BUCKETS,
        PAGE,
    ]),
    route(
        "GET",
        "/v1/organization/costs",
        Audience::Role(Action::ReadUsage),
        costs,
        "What was posted, in buckets of days.",
    )
    .query(&[
        START,
        END,
        may("bucket_width", Kind::Choice(&["1d"]), "Days"),
        PROJECTS,
        KEYS,
        may(
            "group_by",
            Kind::Choices(&["project_id", "line_item", "api_key_id"]),
            "Kept apart by these",
        ),
        may("limit", Kind::Integer, "Buckets, at most 180; 7 by default"),
        PAGE,
    ]),
];

/// The value of what is grouped by; a line item is not one.
fn value(name: &str, origin: Origin<'_>) -> Value {
    match name {
        "project_id" => origin.project.into(),
        "api_key_id" => origin.key.into(),
        "model" => origin.model.into(),
        "batch" => origin.batch.into(),
        _ => Value::Null,
    }
}

fn grouped_by(call: &Call<'_>, known: &[&'static str]) -> Vec<&'static str> {
    let asked = call.query.texts("group_by").unwrap_or_default();
    known.iter().copied().filter(|name| asked.iter().any(|asked| asked == name)).collect()
}

/// All fields that could be grouped by, `null` where they are not.
fn filled(known: &[&str], group: Group) -> Map<String, Value> {
    let mut map: Map<String, Value> =
        known.iter().map(|name| ((*name).to_owned(), Value::Null)).collect();
    map.extend(group.into_iter().map(|(name, value)| (name.to_owned(), value)));
    map
}

/// Tokens of one kind of requests, grouped by what of `groups` is asked for.
fn tokens(
    call: &Call<'_>,
    groups: &[&'static str],
    of_vectors: bool,
    show: impl Fn(&Sums) -> Value,
) -> Result<Reply, ApiError> {
    let by = grouped_by(call, groups);
    let group = |sums: &UsageSums| {
        let is_counted =
            sums.quantity == Quantity::Tokens && vectors::is_protocol(&sums.protocol) == of_vectors;
        let group = by.iter().map(|name| (*name, value(name, sums.into())));
        is_counted.then(|| group.collect())
    };
    let show = |group, sums: &Sums| {
        let mut shown = show(sums);
        if let Some(map) = shown.as_object_mut() {
            map.extend(filled(groups, group));
        }
        shown
    };
    summed(call, false, &[&by[..], &[PROTOCOL]].concat(), group, show)
}

fn completions(call: &Call<'_>) -> Result<Reply, ApiError> {
    const GROUPS: [&str; 6] =
        ["project_id", "user_id", "api_key_id", "model", "batch", "service_tier"];
    tokens(call, &GROUPS, false, |sums| {
        let usage = &sums.usage;
        json!({
            "object": "organization.usage.completions.result",
            "input_tokens": usage.prompt(),
            "input_cached_tokens": usage.cached_input.saturating_add(usage.explicit_cached),
            "input_cache_write_tokens": usage.cache_created,
            "input_uncached_tokens": usage.input,
            "output_tokens": usage.completion(),
            "num_model_requests": sums.records,
        })
    })
}

fn embeddings(call: &Call<'_>) -> Result<Reply, ApiError> {
    const GROUPS: [&str; 4] = ["project_id", "user_id", "api_key_id", "model"];
    tokens(call, &GROUPS, true, |sums| {
        json!({
            "object": "organization.usage.embeddings.result",
            "input_tokens": sums.usage.prompt(),
            "num_model_requests": sums.records,
        })
    })
}

fn costs(call: &Call<'_>) -> Result<Reply, ApiError> {
    const GROUPS: [&str; 3] = ["project_id", "line_item", "api_key_id"];
    let by = grouped_by(call, &GROUPS);
    let books = call.books()?;
    let book = books.prices.book();
    let currency = books.currency().code().to_ascii_lowercase();
    let group = |origin: Origin<'_>, item: Value| -> Group {
        let value = |name: &&'static str| match *name {
            "line_item" => (*name, item.clone()),
            name => (name, value(name, origin)),
        };
        by.iter().map(value).collect()
    };
    let show = |group: Group, sums: &Sums| {
        let quantity = (sums.quantity > 0).then_some(sums.quantity);
        let mut shown = json!({
            "object": "organization.costs.result",
            // `value` is a number in OpenAI's document; `exact` loses nothing.
            "amount": {
                "value": sums.amount.pico() as f64 / 1e12,
                "currency": currency,
                "exact": sums.amount,
            },
            "quantity": quantity,
        });
        if let Some(map) = shown.as_object_mut() {
            map.extend(filled(&GROUPS, group));
        }
        shown
    };
    if !by.contains(&"line_item") {
        let is_ours = |sums: &UsageSums| sums.currency == books.currency();
        let group = |sums: &UsageSums| is_ours(sums).then(|| group(sums.into(), Value::Null));
        return summed(call, true, &by, group, show);
    }
    let split = |record: &UsageRecord| {
        if record.currency != books.currency() {
            return Vec::new();
        }
        let whole = Sums { records: 1, amount: record.amount, ..Sums::default() };
        let model = &record.facts.model;
        let rated = book.version(&record.price_version).map(|v| v.rate_record(record));
        match rated {
            // The lines of the record's own version; should they not sum up to the posting, the posting stands.
            Some(Ok(rated)) if rated.total == record.amount => {
                let line = |line: &mintage_ledger::price::RatedLine| {
                    let item = format!("{model}, {}", line.class.key());
                    let sums =
                        Sums { amount: line.amount, quantity: line.quantity, ..Sums::default() };
                    (group(record.into(), item.into()), sums)
                };
                rated.lines.iter().map(line).collect()
            }
            _ => vec![(group(record.into(), Value::from(&**model)), whole)],
        }
    };
    split_and_summed(call, true, split, show)
}
