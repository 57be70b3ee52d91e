//! Lists in pages, as OpenAI's administration has them: `limit`, `after`, `has_more`.

use serde_json::{Value, json};

use super::call::{Call, Reply};
use super::table::{Field, Kind, may};
use crate::error::ApiError;

const DEFAULT_LIMIT: u64 = 20;
const MAX_LIMIT: u64 = 100;

/// What every list takes.
pub(crate) const LIMIT: Field =
    may("limit", Kind::Integer, "At most so many, 1 to 100; 20 by default");
/// What every list takes.
pub(crate) const AFTER: Field =
    may("after", Kind::Text, "The id of the last one of the page before");
/// A list that takes nothing else.
pub(crate) const PAGE: &[Field] = &[LIMIT, AFTER];

/// How many are asked for.
pub(crate) fn limit(call: &Call<'_>, default: u64, most: u64) -> Result<usize, ApiError> {
    let limit = call.query.integer("limit").unwrap_or(default);
    if (1..=most).contains(&limit) {
        return Ok(usize::try_from(limit).unwrap_or(usize::MAX));
    }
    let message = format!("`limit` must be from 1 to {most}, not {limit}.");
    Err(ApiError::field("limit", "invalid_value", message))
}

/// One page of things that come in the order of their ids.
pub(crate) fn page<T>(
    call: &Call<'_>,
    all: impl Iterator<Item = T>,
    show: impl Fn(T) -> Value,
    id: impl Fn(&T) -> &str,
) -> Result<Reply, ApiError> {
    let limit = limit(call, DEFAULT_LIMIT, MAX_LIMIT)?;
    let after = call.query.text("after").unwrap_or_default();
    let mut rest = all.filter(|item| id(item) > after);
    let data: Vec<Value> = rest.by_ref().take(limit).map(&show).collect();
    let has_more = rest.next().is_some();
    Ok(list(data, has_more))
}

/// The list around its items.
pub(crate) fn list(data: Vec<Value>, has_more: bool) -> Reply {
    let id =
        |value: Option<&Value>| value.and_then(|v| v.get("id")).cloned().unwrap_or(Value::Null);
    let (first_id, last_id) = (id(data.first()), id(data.last()));
    Reply::json(&json!({
        "object": "list", "data": data, "first_id": first_id, "last_id": last_id, "has_more": has_more,
    }))
}
