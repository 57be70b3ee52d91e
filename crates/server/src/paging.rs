//! What follows the question mark of a list: each name is known, each value checked. And a list as it is told.

use std::collections::BTreeMap;

use axum::http::Uri;
use serde::Serialize;
use serde_json::Value;

use crate::error::{ApiError, Fault};
use crate::fields::shortened;

/// The parameters of a query that were not taken yet.
pub(crate) struct Query(BTreeMap<String, String>);

impl Query {
    pub(crate) fn read(uri: &Uri) -> Result<Self, ApiError> {
        Self::read_without(uri, &[])
    }

    /// The same where some may stand there, even more than once, and mean nothing.
    pub(crate) fn read_without(uri: &Uri, ignored: &[&str]) -> Result<Self, ApiError> {
        let mut all = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            if ignored.contains(&&*name) {
                continue;
            }
            if all.insert(name.to_string(), value.into_owned()).is_some() {
                let name = shortened(&name);
                let message = format!("`{name}` is given twice.");
                return Err(ApiError::field(name, "invalid_value", message));
            }
        }
        Ok(Self(all))
    }

    /// Empty means absent.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|value| !value.is_empty())
    }

    pub(crate) fn choice(
        &mut self,
        name: &str,
        choices: &[&str],
    ) -> Result<Option<String>, ApiError> {
        let Some(value) = self.text(name) else { return Ok(None) };
        if choices.contains(&value.as_str()) {
            return Ok(Some(value));
        }
        let message =
            format!("`{name}` must be one of {}, not `{}`.", choices.join(", "), shortened(&value));
        Err(ApiError::field(name, "invalid_value", message))
    }

    /// `limit`: from 1 to `most`.
    pub(crate) fn limit(&mut self, default: u32, most: u32) -> Result<u32, ApiError> {
        Ok(self.count("limit", most)?.unwrap_or(default))
    }

    /// An integer from 1 to `most`.
    pub(crate) fn count(&mut self, name: &str, most: u32) -> Result<Option<u32>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let count = text.parse().ok().filter(|count| (1..=most).contains(count));
        count.map(Some).ok_or_else(|| {
            let given = shortened(&text);
            let message = format!("`{name}` must be an integer from 1 to {most}, not `{given}`.");
            ApiError::field(name, "invalid_value", message)
        })
    }

    /// `name[key]=value`, all of them.
    pub(crate) fn pairs(&mut self, name: &str) -> Vec<(String, String)> {
        let key = |given: &str| {
            Some(given.strip_prefix(name)?.strip_prefix('[')?.strip_suffix(']')?.to_owned())
        };
        let names: Vec<String> = self.0.keys().filter(|n| key(n).is_some()).cloned().collect();
        let pairs = names.iter().filter_map(|name| Some((key(name)?, self.0.remove(name)?)));
        pairs.collect()
    }

    /// What is left is unknown.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        let Some(name) = self.0.keys().next() else { return Ok(()) };
        let message = format!("Unknown parameter: `{}`.", shortened(name));
        Err(ApiError::new(Fault::Invalid, "unknown_parameter", message))
    }
}

/// What is listed by its id.
pub(crate) trait HasId {
    fn id(&self) -> &str;
}

impl HasId for Value {
    fn id(&self) -> &str {
        self["id"].as_str().unwrap_or_default()
    }
}

/// A page of things with ids. Where there are none, `first_id` and `last_id` are empty.
#[derive(Serialize)]
pub(crate) struct List<T> {
    object: &'static str,
    data: Vec<T>,
    first_id: String,
    last_id: String,
    has_more: bool,
}

impl<T: HasId> List<T> {
    pub(crate) fn new(data: Vec<T>, has_more: bool) -> Self {
        let id = |thing: Option<&T>| thing.map(|thing| thing.id().to_owned()).unwrap_or_default();
        let (first_id, last_id) = (id(data.first()), id(data.last()));
        Self { object: "list", data, first_id, last_id, has_more }
    }

    /// The page behind the thing `after`; `None` where that is not among them.
    pub(crate) fn page(mut all: Vec<T>, after: Option<&str>, limit: usize) -> Option<Self> {
        if let Some(after) = after {
            let at = all.iter().position(|thing| thing.id() == after)?;
            all.drain(..=at);
        }
        let has_more = all.len() > limit;
        all.truncate(limit);
        Some(Self::new(all, has_more))
    }
}
