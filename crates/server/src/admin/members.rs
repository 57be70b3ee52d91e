//! Members: people in an organisation, with roles.

use mintage_ledger::directory::{Action, Directory, Member, Role};
use serde_json::{Value, json};

use super::call::{Call, Reply, deleted, directory_error};
use super::paging::{PAGE, page};
use super::table::{Audience, Kind, Route, must, route};
use super::who::role_name;
use crate::error::{ApiError, Fault};
use crate::request_id::random_hex;

pub(crate) const ROLES: &[&str] = &["owner", "admin", "developer", "billing", "viewer"];

pub(crate) const ROUTES: &[Route] = &[
    route(
        "GET",
        "/admin/v1/organizations/{organization}/members",
        Audience::Role(Action::ReadDirectory),
        list,
        "Lists an organization's members.",
    )
    .query(PAGE),
    route(
        "POST",
        "/admin/v1/organizations/{organization}/members",
        Audience::Role(Action::ManageMembers),
        create,
        "Adds a member.",
    )
    .body(&[
        must("name", Kind::Text, "An address or name that no other member of the organization has"),
        must("role", Kind::Choice(ROLES), "What the member may do"),
    ]),
    route(
        "GET",
        "/admin/v1/members/{member}",
        Audience::Role(Action::ReadDirectory),
        get,
        "Shows a member.",
    ),
    route(
        "PATCH",
        "/admin/v1/members/{member}",
        Audience::Role(Action::ManageMembers),
        change,
        "Changes a member's role.",
    )
    .body(&[must("role", Kind::Choice(ROLES), "What the member may do")]),
    route(
        "DELETE",
        "/admin/v1/members/{member}",
        Audience::Role(Action::ManageMembers),
        remove,
        "Removes a member; its keys open nothing from then on.",
    ),
];

fn show(member: &Member) -> Value {
    json!({
        "object": "member",
        "id": member.id,
        "organization": member.organisation,
        "name": member.name,
        "role": role_name(member.role),
        "created_at": member.created_unix,
    })
}

fn role(text: &str) -> Option<Role> {
    Role::ALL.into_iter().find(|role| role_name(*role) == text)
}

/// Owners are made, changed and removed by owners only.
fn check_owner(call: &Call<'_>, roles: &[Option<Role>]) -> Result<(), ApiError> {
    if !roles.contains(&Some(Role::Owner)) || call.who.may(Action::ManageOwners) {
        return Ok(());
    }
    let message = "Only an owner may name, change or remove owners.";
    Err(ApiError::new(Fault::Forbidden, "insufficient_role", message))
}

pub(crate) fn of_organisation<'a>(
    directory: &'a Directory,
    organisation: &'a str,
) -> impl Iterator<Item = &'a Member> {
    directory.members().filter(move |m| m.organisation == organisation)
}

fn list(call: &Call<'_>) -> Result<Reply, ApiError> {
    let organisation = call.organisation()?;
    page(call, of_organisation(&call.directory, &organisation.id), show, |m| &m.id)
}

fn get(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(Reply::json(&show(call.member()?)))
}

fn create(call: &Call<'_>) -> Result<Reply, ApiError> {
    let organisation = call.organisation()?;
    let role = role(call.body.required("role"));
    check_owner(call, &[role])?;
    let member = Member {
        id: format!("user-{}", random_hex()),
        organisation: organisation.id.clone(),
        name: call.body.required("name").to_owned(),
        role: role.unwrap_or(Role::Viewer),
        created_unix: call.now_unix,
    };
    let put = call.office.directory.change(|directory| directory.put_member(member.clone()));
    put.map_err(directory_error)?;
    Ok(Reply::created(&show(&member)))
}

/// Gives a member another role.
pub(crate) fn changed(call: &Call<'_>, to: &str) -> Result<Member, ApiError> {
    let member = call.member()?;
    let Some(role) = role(to) else {
        let message = format!("`role` must be one of {}.", ROLES.join(", "));
        return Err(ApiError::field("role", "invalid_value", message));
    };
    check_owner(call, &[Some(role), Some(member.role)])?;
    let done = call.office.directory.change(|directory| {
        let mut fresh = directory.member(&member.id)?.clone();
        // It became an owner since the check: whoever may not touch owners comes too late.
        if fresh.role == Role::Owner && member.role != Role::Owner {
            return Err(mintage_ledger::DirectoryError::Invalid("try again".to_owned()));
        }
        fresh.role = role;
        directory.put_member(fresh.clone())?;
        Ok(fresh)
    });
    done.map_err(directory_error)
}

fn change(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(Reply::json(&show(&changed(call, call.body.required("role"))?)))
}

/// Removes a member that the caller may remove.
pub(crate) fn removed(call: &Call<'_>) -> Result<String, ApiError> {
    let member = call.member()?;
    check_owner(call, &[Some(member.role)])?;
    let done = call.office.directory.change(|directory| directory.remove_member(&member.id));
    done.map(|member| member.id).map_err(directory_error)
}

fn remove(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(deleted("member.deleted", &removed(call)?))
}
