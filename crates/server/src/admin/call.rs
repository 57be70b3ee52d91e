//! One call: found in the table, held to it, answered. Blocking; not HTTP.

use std::sync::Arc;

use mintage_ledger::DirectoryError;
use mintage_ledger::directory::Directory;
use serde_json::{Value, json};

use super::input::Input;
use super::table::{Audience, Names, ROUTES, Route, match_path};
use super::who::Who;
use super::{Books, Office};
use crate::auth::now_unix;
use crate::error::{ApiError, Fault};

/// As it came in.
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: &'a str,
    pub(crate) body: &'a [u8],
    /// The header `openai-organization`: which organisation the operator means on OpenAI's routes.
    pub(crate) organisation: Option<&'a str>,
}

/// As handlers see it.
pub(crate) struct Call<'a> {
    pub(crate) office: &'a Office,
    pub(crate) who: &'a Who,
    /// The directory when the call came; changes check again.
    pub(crate) directory: Arc<Directory>,
    names: Names,
    pub(crate) query: Input,
    pub(crate) body: Input,
    pub(crate) organisation: Option<&'a str>,
    pub(crate) now_unix: u64,
}

/// What a handler gives back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(value: &Value) -> Self {
        Self { status: 200, content_type: "application/json", body: value.to_string() }
    }

    /// Something new came to be.
    pub(crate) fn created(value: &Value) -> Self {
        Self { status: 201, ..Self::json(value) }
    }
}

impl Call<'_> {
    /// What is kept of money.
    pub(crate) fn books(&self) -> Result<&Books, ApiError> {
        self.office.books.as_ref().ok_or_else(|| {
            let message = "Nothing is kept of money here (`ledger.enabled` is false, or another process has it).";
            ApiError::new(Fault::Invalid, "no_ledger", message)
        })
    }

    /// What stands for `{name}` in the route's path.
    pub(crate) fn name(&self, name: &str) -> &str {
        self.names.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }
}

/// Finds the route, checks what the caller may and what was given, and runs it.
pub(crate) fn respond(
    office: &Office,
    who: &Who,
    request: &Request<'_>,
) -> Result<Reply, ApiError> {
    let (route, names) = find(request)?;
    who.within_scope(route.path)?;
    match route.audience {
        Audience::Operator if !who.is_operator() => {
            let message = "Only the operator of this installation may do this.";
            return Err(ApiError::new(Fault::Forbidden, "operator_only", message));
        }
        Audience::Role(action) if !who.may(action) => {
            return Err(ApiError::new(
                Fault::Forbidden,
                "insufficient_role",
                format!("The role of this key's owner may not do this ({}).", who.role_name()),
            ));
        }
        _ => {}
    }
    (route.run)(&Call {
        office,
        who,
        directory: office.directory.snapshot(),
        names,
        query: Input::of_query(request.query, route.query)?,
        body: Input::of_body(request.body, route.body)?,
        organisation: request.organisation,
        now_unix: now_unix(),
    })
}

fn find(request: &Request<'_>) -> Result<(&'static Route, Names), ApiError> {
    let mut others = Vec::new();
    for route in ROUTES.iter().copied().flatten() {
        match match_path(route.path, request.path) {
            Some(names) if route.method == request.method => return Ok((route, names)),
            Some(_) => others.push(route.method),
            None => {}
        }
    }
    if others.is_empty() {
        let message =
            "Unknown request URL. Please check it for typos; `GET /openapi.json` lists all.";
        return Err(ApiError::new(Fault::NotFound, "unknown_url", message));
    }
    let message = format!("This URL exists, but only for {}.", others.join(", "));
    Err(ApiError::new(Fault::MethodNotAllowed, "method_not_allowed", message))
}

/// Whose fault an error of the directory is.
pub(crate) fn directory_error(error: DirectoryError) -> ApiError {
    match error {
        DirectoryError::Invalid(_) | DirectoryError::Policy(_) => {
            ApiError::new(Fault::Invalid, "invalid_value", sentence(&error.to_string()))
        }
        DirectoryError::NoSuch { kind, id } => no_such(kind, &id),
        other => ApiError::internal(other.to_string()),
    }
}

/// The same for what is missing and for what is another's.
pub(crate) fn no_such(kind: &str, id: &str) -> ApiError {
    let id: String = id.chars().take(80).collect();
    ApiError::new(Fault::NotFound, "not_found", format!("There is no {kind} `{id}`."))
}

/// With a capital and a full stop.
pub(crate) fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(char::to_uppercase);
    let mut out: String = first.into_iter().flatten().chain(chars).collect();
    if !out.ends_with('.') {
        out.push('.');
    }
    out
}

/// `{"object":…,"id":…,"deleted":true}`.
pub(crate) fn deleted(object: &str, id: &str) -> Reply {
    Reply::json(&json!({"object": object, "id": id, "deleted": true}))
}
