//! `/v1/organization/projects`.

use mintage_ledger::directory::{Action, Project};
use serde_json::{Value, json};

use super::super::call::{Call, Reply};
use super::super::paging::page;
use super::super::projects::{LIST_QUERY, archived, changed, created, listed};
use super::super::table::{Audience, Field, Kind, Route, may, must, route};
use crate::error::{ApiError, Fault};

const NEW: &[Field] = &[
    must("name", Kind::Text, "A name that no other project of the organization has"),
    may("residency", Kind::Object, "Not to be had here"),
    may("external_key_id", Kind::Text, "Not to be had here"),
];

pub(crate) const ROUTES: &[Route] = &[
    route(
        "GET",
        "/v1/organization/projects",
        Audience::Role(Action::ReadDirectory),
        list,
        "Lists the organization's projects.",
    )
    .query(LIST_QUERY),
    route(
        "POST",
        "/v1/organization/projects",
        Audience::Role(Action::ManageProjects),
        create,
        "Makes a project.",
    )
    .body(NEW),
    route(
        "GET",
        "/v1/organization/projects/{project}",
        Audience::Role(Action::ReadDirectory),
        get,
        "Shows a project.",
    ),
    route(
        "POST",
        "/v1/organization/projects/{project}",
        Audience::Role(Action::ManageProjects),
        change,
        "Renames a project.",
    )
    .body(NEW),
    route(
        "POST",
        "/v1/organization/projects/{project}/archive",
        Audience::Role(Action::ManageProjects),
        archive,
        "Archives a project: its keys are refused from then on.",
    ),
];

fn show(project: &Project) -> Value {
    json!({
        "id": project.id,
        "object": "organization.project",
        "name": project.name,
        "created_at": project.created_unix,
        "archived_at": project.archived_unix,
        "status": if project.archived_unix.is_some() { "archived" } else { "active" },
    })
}

fn list(call: &Call<'_>) -> Result<Reply, ApiError> {
    let organisation = call.implied_organisation()?;
    page(call, listed(call, &organisation.id), show, |p| &p.id)
}

fn get(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(Reply::json(&show(call.project()?)))
}

/// What OpenAI has and we have not is refused by name.
fn refuse_extras(call: &Call<'_>) -> Result<(), ApiError> {
    for name in ["residency", "external_key_id"] {
        if call.body.value(name).is_some() {
            let message = format!("`{name}`: this installation keeps all projects alike.");
            return Err(ApiError {
                param: Some(name.to_owned()),
                ..ApiError::new(Fault::Invalid, "unsupported_parameter", message)
            });
        }
    }
    Ok(())
}

fn create(call: &Call<'_>) -> Result<Reply, ApiError> {
    refuse_extras(call)?;
    let organisation = call.implied_organisation()?;
    Ok(Reply::json(&show(&created(call, &organisation.id)?)))
}

fn change(call: &Call<'_>) -> Result<Reply, ApiError> {
    refuse_extras(call)?;
    let name = call.body.required("name").to_owned();
    let project = changed(call, &call.project()?.id, |project| project.name = name)?;
    Ok(Reply::json(&show(&project)))
}

fn archive(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(Reply::json(&show(&archived(call)?)))
}
