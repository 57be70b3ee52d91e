//! Usage summed up in spans of time, as OpenAI's usage and costs endpoints have it.
//!
//! Invariants: a record counts in exactly one bucket, the one it ended in; buckets begin at multiples of their width
//! since 1970, only the first and the last are cut by what was asked for.

use std::collections::BTreeMap;

use mintage_ledger::{Amount, UsageFilter, UsageRecord};
use serde_json::{Value, json};

use super::super::call::{Call, Reply};
use super::super::money::ledger_error;
use super::super::paging;
use crate::error::{ApiError, Fault};

/// Groups in one answer.
const MAX_GROUPS: usize = 100_000;

/// What is asked for, in seconds since 1970.
struct Span {
    width_s: u64,
    start_s: u64,
    end_s: u64,
    buckets: usize,
}

/// What a record adds to a group.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    pub(super) records: u64,
    pub(super) usage: mintage_ledger::TokenUsage,
    pub(super) amount: Amount,
    pub(super) quantity: u64,
}

impl Sums {
    pub(super) fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.usage = self.usage.saturating_add(&other.usage);
        self.amount = [self.amount, other.amount].into_iter().sum();
        self.quantity = self.quantity.saturating_add(other.quantity);
    }
}

/// The values of what is grouped by, in the order asked for.
pub(super) type Group = Vec<(&'static str, Value)>;
type GroupKey = Vec<String>;

fn span(call: &Call<'_>, only_days: bool) -> Result<Span, ApiError> {
    let (width_s, default, most) = match call.query.text("bucket_width") {
        Some("1m") => (60, 60, 1440),
        Some("1h") => (3600, 24, 168),
        _ if only_days => (86_400, 7, 180),
        _ => (86_400, 7, 31),
    };
    let end_s = call.query.integer("end_time").unwrap_or(call.now_unix + 1);
    let mut start_s = call.query.integer("start_time").unwrap_or(0);
    if let Some(page) = call.query.text("page") {
        let next = page.strip_prefix("page_").and_then(|n| n.parse::<u64>().ok());
        start_s = next.filter(|n| *n >= start_s).ok_or_else(|| {
            let message = "`page` must be the `next_page` of the answer before.";
            ApiError::field("page", "invalid_value", message)
        })?;
    }
    if start_s >= end_s {
        let message = format!("`start_time` ({start_s}) must be before `end_time` ({end_s}).");
        return Err(ApiError::field("start_time", "invalid_value", message));
    }
    let buckets = paging::limit(call, default, most)?;
    Ok(Span { width_s, start_s, end_s, buckets })
}

impl Span {
    /// Begin and end of the buckets of this page, and where the next page begins.
    fn page(&self) -> (Vec<(u64, u64)>, Option<u64>) {
        let mut all = Vec::with_capacity(self.buckets);
        let mut begin = self.start_s;
        while all.len() < self.buckets && begin < self.end_s {
            let next = (begin / self.width_s + 1).saturating_mul(self.width_s);
            all.push((begin, next.min(self.end_s)));
            begin = next;
        }
        (all, (begin < self.end_s).then_some(begin))
    }
}

/// Reads the records of the page's span, splits each into groups and shows the sums.
pub(super) fn summed(
    call: &Call<'_>,
    only_days: bool,
    split: impl Fn(&UsageRecord) -> Vec<(Group, Sums)>,
    show: impl Fn(Group, &Sums) -> Value,
) -> Result<Reply, ApiError> {
    let organisation = &call.implied_organisation()?.id;
    let span = span(call, only_days)?;
    let (buckets, next) = span.page();
    let mut sums: BTreeMap<(u64, GroupKey), (Group, Sums)> = BTreeMap::new();
    let mut filter = UsageFilter {
        org: Some(organisation.as_str().into()),
        from_ms: span.start_s.saturating_mul(1000),
        until_ms: buckets.last().map_or(0, |(_, end)| end.saturating_mul(1000)),
        ..UsageFilter::default()
    };
    loop {
        let records = call.books()?.ledger.usage(&filter).map_err(ledger_error)?;
        let Some((last, _)) = records.last() else { break };
        filter.after = *last;
        for (_, record) in &records {
            let end_s = record.outcome.end_ms / 1000;
            let at = buckets.partition_point(|(begin, _)| *begin <= end_s);
            let Some((begin, _)) = at.checked_sub(1).and_then(|at| buckets.get(at)) else {
                continue;
            };
            for (group, more) in split(record) {
                let key = group.iter().map(|(_, value)| value.to_string()).collect();
                sums.entry((*begin, key)).or_insert_with(|| (group, Sums::default())).1.add(&more);
            }
        }
        if sums.len() > MAX_GROUPS {
            let message = "That is too many groups for one answer; ask for fewer buckets.";
            return Err(ApiError::new(Fault::Invalid, "too_many_groups", message));
        }
    }
    let mut shown: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
    for ((begin, _), (group, sums)) in sums {
        shown.entry(begin).or_default().push(show(group, &sums));
    }
    let bucket = |(begin, end): &(u64, u64)| {
        let results = shown.remove(begin).unwrap_or_default();
        json!({"object": "bucket", "start_time": begin, "end_time": end, "results": results})
    };
    let data: Vec<Value> = buckets.iter().map(bucket).collect();
    Ok(Reply::json(&json!({
        "object": "page",
        "data": data,
        "has_more": next.is_some(),
        "next_page": next.map(|begin| format!("page_{begin}")),
    })))
}

/// Whether a record is of those that lists of ids in the query choose.
pub(super) fn is_chosen(call: &Call<'_>, record: &UsageRecord) -> bool {
    let facts = &record.facts;
    let chosen = |name, value: &str| {
        call.query.texts(name).is_none_or(|list| list.iter().any(|known| known == value))
    };
    chosen("project_ids", &facts.payer.project)
        && chosen("api_key_ids", &facts.payer.key)
        && chosen("models", &facts.model)
        // Keys belong to projects here, so no usage is a user's.
        && call.query.texts("user_ids").is_none_or(|users| users.is_empty())
        && call.query.flag("batch").is_none_or(|batch| batch == facts.batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cut_only_at_the_ends() {
        let check = |start_s, end_s, buckets, expected: (&[(u64, u64)], Option<u64>)| {
            let (all, next) = Span { width_s: 60, start_s, end_s, buckets }.page();
            assert_eq!((all.as_slice(), next), expected);
        };
        check(0, 120, 7, (&[(0, 60), (60, 120)], None));
        check(59, 121, 7, (&[(59, 60), (60, 120), (120, 121)], None));
        check(59, 121, 2, (&[(59, 60), (60, 120)], Some(120)));
        check(120, 121, 2, (&[(120, 121)], None));
        check(0, u64::MAX, 1, (&[(0, 60)], Some(60)));
    }
}
