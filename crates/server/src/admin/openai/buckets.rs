//! Usage summed up in spans of time, as OpenAI's usage and costs endpoints have it.
//!
//! Invariants: a record counts in exactly one bucket, the one it ended in; buckets begin at multiples of their width
//! since 1970, only the first and the last are cut by what was asked for.

use std::collections::BTreeMap;

use mintage_ledger::{Amount, MAX_SUMS_PER_READ, SumsFilter, UsageFilter, UsageRecord, UsageSums};
use serde_json::{Value, json};

use super::super::call::{Call, Reply};
use super::super::money::ledger_error;
use super::super::paging;
use crate::error::{ApiError, Fault};

/// Groups in one answer.
const MAX_GROUPS: usize = 100_000;
/// Keeps sums apart by dialect and route, which are in no answer.
pub(super) const PROTOCOL: &str = "protocol";

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

/// Where usage comes from: what lists of ids in the query choose by, and what it is grouped by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    pub(super) project: &'a str,
    pub(super) key: &'a str,
    pub(super) model: &'a str,
    pub(super) batch: bool,
}

impl<'a> From<&'a UsageRecord> for Origin<'a> {
    fn from(record: &'a UsageRecord) -> Self {
        let facts = &record.facts;
        let (project, key) = (&*facts.payer.project, &*facts.payer.key);
        Self { project, key, model: &facts.model, batch: facts.batch }
    }
}

impl<'a> From<&'a UsageSums> for Origin<'a> {
    fn from(sums: &'a UsageSums) -> Self {
        Self { project: &sums.project, key: &sums.key, model: &sums.model, batch: sums.batch }
    }
}

/// The buckets of one page, filling up.
struct Buckets {
    /// Begin and end, seconds since 1970.
    all: Vec<(u64, u64)>,
    next: Option<u64>,
    sums: BTreeMap<(u64, GroupKey), (Group, Sums)>,
}

impl Buckets {
    fn new(span: &Span) -> Self {
        let (all, next) = span.page();
        Self { all, next, sums: BTreeMap::new() }
    }

    /// Where the last of them ends, ms since 1970.
    fn end_ms(&self) -> u64 {
        self.all.last().map_or(0, |(_, end)| end.saturating_mul(1000))
    }

    /// Adds what ended at this second.
    fn add(&mut self, end_s: u64, group: Group, more: &Sums) -> Result<(), ApiError> {
        let at = self.all.partition_point(|(begin, _)| *begin <= end_s);
        let Some((begin, _)) = at.checked_sub(1).and_then(|at| self.all.get(at)) else {
            return Ok(());
        };
        let key = group.iter().map(|(_, value)| value.to_string()).collect();
        let sums = &mut self.sums;
        sums.entry((*begin, key)).or_insert_with(|| (group, Sums::default())).1.add(more);
        if sums.len() > MAX_GROUPS { Err(too_many()) } else { Ok(()) }
    }

    fn shown(self, show: impl Fn(Group, &Sums) -> Value) -> Reply {
        let mut shown: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
        for ((begin, _), (group, sums)) in self.sums {
            shown.entry(begin).or_default().push(show(group, &sums));
        }
        let bucket = |(begin, end): &(u64, u64)| {
            let results = shown.remove(begin).unwrap_or_default();
            json!({"object": "bucket", "start_time": begin, "end_time": end, "results": results})
        };
        let data: Vec<Value> = self.all.iter().map(bucket).collect();
        Reply::json(&json!({
            "object": "page",
            "data": data,
            "has_more": self.next.is_some(),
            "next_page": self.next.map(|begin| format!("page_{begin}")),
        }))
    }
}

fn too_many() -> ApiError {
    let message = "That is too many groups for one answer; ask for fewer buckets.";
    ApiError::new(Fault::Invalid, "too_many_groups", message)
}

/// Asks the ledger for the sums of the page's span, as far apart as `by` and the query's lists need them, puts each into
/// a group (or leaves it out) and shows those.
pub(super) fn summed(
    call: &Call<'_>,
    only_days: bool,
    by: &[&str],
    group: impl Fn(&UsageSums) -> Option<Group>,
    show: impl Fn(Group, &Sums) -> Value,
) -> Result<Reply, ApiError> {
    let span = span(call, only_days)?;
    let mut buckets = Buckets::new(&span);
    let apart = |name: &str, list: &str| by.contains(&name) || call.query.texts(list).is_some();
    let filter = SumsFilter {
        org: call.implied_organisation()?.id.as_str().into(),
        from_ms: span.start_s.saturating_mul(1000),
        until_ms: buckets.end_ms(),
        span_ms: span.width_s.saturating_mul(1000),
        by_project: apart("project_id", "project_ids"),
        by_key: apart("api_key_id", "api_key_ids"),
        by_model: apart("model", "models"),
        by_batch: by.contains(&"batch") || call.query.flag("batch").is_some(),
        by_protocol: by.contains(&PROTOCOL),
    };
    let all = call.books()?.ledger.usage_sums(&filter).map_err(ledger_error)?;
    if all.len() > MAX_SUMS_PER_READ {
        return Err(too_many());
    }
    for sums in all.iter().filter(|sums| is_chosen(call, Origin::from(*sums))) {
        let Some(group) = group(sums) else { continue };
        let more = Sums {
            records: sums.records,
            usage: sums.usage,
            amount: sums.amount,
            ..Sums::default()
        };
        // The first bucket may begin within a span of the ledger's.
        buckets.add((sums.span_start_ms / 1000).max(span.start_s), group, &more)?;
    }
    Ok(buckets.shown(show))
}

/// Reads each record of the page's span that the query's lists choose, splits it into groups and shows their sums.
pub(super) fn split_and_summed(
    call: &Call<'_>,
    only_days: bool,
    split: impl Fn(&UsageRecord) -> Vec<(Group, Sums)>,
    show: impl Fn(Group, &Sums) -> Value,
) -> Result<Reply, ApiError> {
    let span = span(call, only_days)?;
    let mut buckets = Buckets::new(&span);
    let mut filter = UsageFilter {
        org: Some(call.implied_organisation()?.id.as_str().into()),
        from_ms: span.start_s.saturating_mul(1000),
        until_ms: buckets.end_ms(),
        ..UsageFilter::default()
    };
    loop {
        let records = call.books()?.ledger.usage(&filter).map_err(ledger_error)?;
        let Some((last, _)) = records.last() else { return Ok(buckets.shown(show)) };
        filter.after = *last;
        for (_, record) in &records {
            if is_chosen(call, record.into()) {
                for (group, more) in split(record) {
                    buckets.add(record.outcome.end_ms / 1000, group, &more)?;
                }
            }
        }
    }
}

/// Whether usage is of what lists of ids in the query choose.
fn is_chosen(call: &Call<'_>, origin: Origin<'_>) -> bool {
    let chosen = |name, value: &str| {
        call.query.texts(name).is_none_or(|list| list.iter().any(|known| known == value))
    };
    chosen("project_ids", origin.project)
        && chosen("api_key_ids", origin.key)
        && chosen("models", origin.model)
        // Keys belong to projects here, so no usage is a user's.
        && call.query.texts("user_ids").is_none_or(|users| users.is_empty())
        && call.query.flag("batch").is_none_or(|batch| batch == origin.batch)
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
