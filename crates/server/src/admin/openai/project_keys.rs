//! `/v1/organization/projects/{project}/api_keys`.

use mintage_ledger::directory::{Action, ApiKey, Project};
use serde_json::{Value, json};

use super::super::call::{Call, Reply, deleted, no_such};
use super::super::keys::{of_project, revoked};
use super::super::paging::page;
use super::super::table::{Audience, Route, route};
use super::redacted;
use crate::error::ApiError;

pub(crate) const ROUTES: &[Route] = &[
    route(
        "GET",
        "/v1/organization/projects/{project}/api_keys",
        Audience::Role(Action::ReadDirectory),
        list,
        "Lists a project's keys.",
    )
    .query(super::super::paging::PAGE),
    route(
        "GET",
        "/v1/organization/projects/{project}/api_keys/{key}",
        Audience::Role(Action::ReadDirectory),
        get,
        "Shows what is kept of a project's key.",
    ),
    route(
        "DELETE",
        "/v1/organization/projects/{project}/api_keys/{key}",
        Audience::Role(Action::ManageKeys),
        revoke,
        "Revokes a project's key for good.",
    ),
];

/// Keys here belong to the project itself, which is what OpenAI calls a service account.
fn show(project: &Project, key: &ApiKey) -> Value {
    let access = if project.archived_unix.is_none() { "active" } else { "inactive" };
    json!({
        "object": "organization.project.api_key",
        "redacted_value": redacted(key),
        "name": key.name,
        "created_at": key.created_unix,
        "last_used_at": null,
        "id": key.id,
        "owner_project_access": access,
        "owner": {
            "type": "service_account",
            "service_account": {
                "id": key.lineage,
                "name": key.name,
                "created_at": key.created_unix,
                "role": "member",
            },
        },
    })
}

/// Revoked keys are gone, as OpenAI sees it.
fn list(call: &Call<'_>) -> Result<Reply, ApiError> {
    let project = call.project()?;
    let keys = of_project(&call.directory, &project.id).filter(|key| key.revoked_unix.is_none());
    page(call, keys, |key| show(project, key), |key| &key.id)
}

fn of_this_project(call: &Call<'_>) -> Result<(), ApiError> {
    let project = call.project()?;
    let id = call.name("key");
    let found = of_project(&call.directory, &project.id).find(|key| key.id == id);
    found.filter(|key| key.revoked_unix.is_none()).map(|_| ()).ok_or_else(|| no_such("key", id))
}

fn get(call: &Call<'_>) -> Result<Reply, ApiError> {
    of_this_project(call)?;
    Ok(Reply::json(&show(call.project()?, call.key()?)))
}

fn revoke(call: &Call<'_>) -> Result<Reply, ApiError> {
    of_this_project(call)?;
    Ok(deleted("organization.project.api_key.deleted", &revoked(call)?))
}
