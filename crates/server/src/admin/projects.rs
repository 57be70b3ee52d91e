//! Projects: everything that has an id belongs to one.

use mintage_ledger::directory::{Action, Project};
use serde_json::{Value, json};

use super::call::{Call, Reply, directory_error};
use super::paging::{AFTER, LIMIT, page};
use super::table::{Audience, Field, Kind, Route, may, must, route};
use crate::error::ApiError;

/// Lists of projects leave out archived ones unless asked.
pub(crate) const LIST_QUERY: &[Field] =
    &[LIMIT, AFTER, may("include_archived", Kind::Flag, "Archived projects too")];

pub(crate) const ROUTES: &[Route] = &[
    route(
        "GET",
        "/admin/v1/organizations/{organization}/projects",
        Audience::Role(Action::ReadDirectory),
        list,
        "Lists an organization's projects.",
    )
    .query(LIST_QUERY),
    route(
        "POST",
        "/admin/v1/organizations/{organization}/projects",
        Audience::Role(Action::ManageProjects),
        create,
        "Makes a project.",
    )
    .body(&[must("name", Kind::Text, "A name that no other project of the organization has")]),
    route(
        "GET",
        "/admin/v1/projects/{project}",
        Audience::Role(Action::ReadDirectory),
        get,
        "Shows a project.",
    ),
    route(
        "PATCH",
        "/admin/v1/projects/{project}",
        Audience::Role(Action::ManageProjects),
        change,
        "Renames a project.",
    )
    .body(&[must("name", Kind::Text, "A name that no other project of the organization has")]),
    route(
        "POST",
        "/admin/v1/projects/{project}/archive",
        Audience::Role(Action::ManageProjects),
        archive,
        "Archives a project: its keys are refused from then on.",
    ),
];

fn show(project: &Project) -> Value {
    json!({
        "object": "project",
        "id": project.id,
        "organization": project.organisation,
        "name": project.name,
        "created_at": project.created_unix,
        "archived_at": project.archived_unix,
    })
}

/// The projects of an organisation that a list shows.
pub(crate) fn listed<'a>(
    call: &'a Call<'_>,
    organisation: &'a str,
) -> impl Iterator<Item = &'a Project> {
    let archived = call.query.flag("include_archived").unwrap_or(false);
    let of = move |p: &&Project| {
        p.organisation == organisation && (archived || p.archived_unix.is_none())
    };
    call.directory.projects().filter(of)
}

fn list(call: &Call<'_>) -> Result<Reply, ApiError> {
    let organisation = call.organisation()?;
    page(call, listed(call, &organisation.id), show, |p| &p.id)
}

fn get(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(Reply::json(&show(call.project()?)))
}

pub(crate) fn created(call: &Call<'_>, organisation: &str) -> Result<Project, ApiError> {
    let store = &call.office.directory;
    let made = store.create_project(organisation, call.body.required("name"), call.now_unix);
    made.map_err(directory_error)
}

fn create(call: &Call<'_>) -> Result<Reply, ApiError> {
    let organisation = call.organisation()?;
    Ok(Reply::created(&show(&created(call, &organisation.id)?)))
}

/// Changes a project that the caller sees.
pub(crate) fn changed(
    call: &Call<'_>,
    id: &str,
    change: impl FnOnce(&mut Project),
) -> Result<Project, ApiError> {
    let done = call.office.directory.change(|directory| {
        let mut project = directory.project(id)?.clone();
        change(&mut project);
        directory.put_project(project.clone())?;
        Ok(project)
    });
    done.map_err(directory_error)
}

fn change(call: &Call<'_>) -> Result<Reply, ApiError> {
    let name = call.body.required("name").to_owned();
    let project = changed(call, &call.project()?.id, |project| project.name = name)?;
    Ok(Reply::json(&show(&project)))
}

/// Archiving twice keeps the first time.
pub(crate) fn archived(call: &Call<'_>) -> Result<Project, ApiError> {
    changed(call, &call.project()?.id, |project| {
        project.archived_unix.get_or_insert(call.now_unix);
    })
}

fn archive(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(Reply::json(&show(&archived(call)?)))
}
