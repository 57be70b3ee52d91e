//! Limits and budgets of organisations, projects and keys.
//!
//! An organisation's are the operator's to set: they bound what the tenant may do. Those of its projects and keys are
//! the tenant's own.

use mintage_ledger::directory::Action;
use mintage_ledger::limits::Policy;
use serde_json::{Value, json};

use super::call::{Call, Reply, directory_error};
use super::table::{Audience, Field, Kind, Route, may, route};
use crate::error::{ApiError, Fault};

const RULES: &[Field] = &[
    may(
        "rates",
        Kind::Rules,
        "Each with `models` (\"together\", \"each\" or {\"one\": NAME}), `requests_per_minute`, `tokens_per_minute`, \
         `requests_in_flight`, `smooth`",
    ),
    may(
        "budgets",
        Kind::Rules,
        "Each with `models`, `period` (\"day\" or \"month\"), `limit` ({\"money\": \"12.50\"} or {\"tokens\": 1000000}), \
         `effect` (\"hard\" or \"warn\")",
    ),
];

pub(crate) const ROUTES: &[Route] = &[
    route(
        "GET",
        "/admin/v1/organizations/{organization}/limits",
        Audience::Role(Action::ReadDirectory),
        get_organisation,
        "Shows an organization's limits and budgets.",
    ),
    route(
        "PUT",
        "/admin/v1/organizations/{organization}/limits",
        Audience::Operator,
        put_organisation,
        "Replaces an organization's limits and budgets; what is left out is unlimited.",
    )
    .body(RULES),
    route(
        "GET",
        "/admin/v1/projects/{project}/limits",
        Audience::Role(Action::ReadDirectory),
        get_project,
        "Shows a project's limits and budgets.",
    ),
    route(
        "PUT",
        "/admin/v1/projects/{project}/limits",
        Audience::Role(Action::ManageProjects),
        put_project,
        "Replaces a project's limits and budgets; what is left out is unlimited.",
    )
    .body(RULES),
    route(
        "GET",
        "/admin/v1/keys/{key}/limits",
        Audience::Role(Action::ReadDirectory),
        get_key,
        "Shows a key's limits and budgets.",
    ),
    route(
        "PUT",
        "/admin/v1/keys/{key}/limits",
        Audience::Role(Action::ManageProjects),
        put_key,
        "Replaces a key's limits and budgets; what is left out is unlimited.",
    )
    .body(RULES),
];

fn show(of: &str, policy: &Policy) -> Reply {
    Reply::json(&json!({
        "object": "limits", "of": of, "rates": policy.rates, "budgets": policy.budgets,
    }))
}

fn given(call: &Call<'_>) -> Result<Policy, ApiError> {
    let part = |name| call.body.value(name).cloned().unwrap_or_else(|| Value::Array(Vec::new()));
    let policy = json!({"rates": part("rates"), "budgets": part("budgets")});
    serde_json::from_value(policy).map_err(|error| {
        let message = format!("The limits cannot be used: {error}.");
        ApiError::new(Fault::Invalid, "invalid_value", message)
    })
}

fn get_organisation(call: &Call<'_>) -> Result<Reply, ApiError> {
    let organisation = call.organisation()?;
    Ok(show(&organisation.id, &organisation.policy))
}

fn put_organisation(call: &Call<'_>) -> Result<Reply, ApiError> {
    let (id, policy) = (&call.organisation()?.id, given(call)?);
    let done = call.office.directory.change(|directory| {
        let mut organisation = directory.organisation(id)?.clone();
        organisation.policy = policy;
        directory.put_organisation(organisation.clone())?;
        Ok(organisation.policy)
    });
    Ok(show(id, &done.map_err(directory_error)?))
}

fn get_project(call: &Call<'_>) -> Result<Reply, ApiError> {
    let project = call.project()?;
    Ok(show(&project.id, &project.policy))
}

fn put_project(call: &Call<'_>) -> Result<Reply, ApiError> {
    let policy = given(call)?;
    let id = &call.project()?.id;
    let project = super::projects::changed(call, id, |project| project.policy = policy)?;
    Ok(show(id, &project.policy))
}

fn get_key(call: &Call<'_>) -> Result<Reply, ApiError> {
    let key = call.key()?;
    Ok(show(&key.id, &key.policy))
}

fn put_key(call: &Call<'_>) -> Result<Reply, ApiError> {
    let (id, policy) = (&super::keys::managed(call)?.id, given(call)?);
    let done = call
        .office
        .directory
        .change(|directory| directory.change_key(id, |key| key.policy = policy));
    Ok(show(id, &done.map_err(directory_error)?.policy))
}
