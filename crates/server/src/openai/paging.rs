//! What follows the question mark of a list: each name is known, each value checked.

use std::collections::BTreeMap;

use axum::http::Uri;

use crate::error::{ApiError, Fault};
use crate::fields::shortened;

/// The parameters of a query that were not taken yet.
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    pub(super) fn read(uri: &Uri) -> Result<Self, ApiError> {
        let mut all = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            if all.insert(name.to_string(), value.into_owned()).is_some() {
                let name = shortened(&name);
                let message = format!("`{name}` is given twice.");
                return Err(ApiError::field(name, "invalid_value", message));
            }
        }
        Ok(Self(all))
    }

    /// Empty means absent.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|value| !value.is_empty())
    }

    pub(super) fn choice(
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
    pub(super) fn limit(&mut self, default: u32, most: u32) -> Result<u32, ApiError> {
        let Some(text) = self.text("limit") else { return Ok(default) };
        text.parse().ok().filter(|limit| (1..=most).contains(limit)).ok_or_else(|| {
            let given = shortened(&text);
            let message = format!("`limit` must be an integer from 1 to {most}, not `{given}`.");
            ApiError::field("limit", "invalid_value", message)
        })
    }

    /// What is left is unknown.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        let Some(name) = self.0.keys().next() else { return Ok(()) };
        let message = format!("Unknown parameter: `{}`.", shortened(name));
        Err(ApiError::new(Fault::Invalid, "unknown_parameter", message))
    }
}
