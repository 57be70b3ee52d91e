//! `/v1/organization/users`: members, whose roles go beyond OpenAI's two (`owner`, `reader`).

use mintage_ledger::directory::{Action, Member};
use serde_json::{Value, json};

use super::super::call::{Call, Reply, deleted};
use super::super::members::{changed, of_organisation, removed};
use super::super::paging::{AFTER, LIMIT, page};
use super::super::table::{Audience, Kind, Route, may, must, route};
use super::super::who::role_name;
use crate::error::ApiError;

pub(crate) const ROUTES: &[Route] = &[
    route(
        "GET",
        "/v1/organization/users",
        Audience::Role(Action::ReadDirectory),
        list,
        "Lists the organization's members.",
    )
    .query(&[LIMIT, AFTER, may("emails", Kind::Texts, "Only members of these names")]),
    route(
        "GET",
        "/v1/organization/users/{member}",
        Audience::Role(Action::ReadDirectory),
        get,
        "Shows a member.",
    ),
    route(
        "POST",
        "/v1/organization/users/{member}",
        Audience::Role(Action::ManageMembers),
        change,
        "Changes a member's role.",
    )
    .body(&[must("role", Kind::Text, "owner, admin, developer, billing or viewer (`reader`)")]),
    route(
        "DELETE",
        "/v1/organization/users/{member}",
        Audience::Role(Action::ManageMembers),
        remove,
        "Removes a member.",
    ),
];

fn show(member: &Member) -> Value {
    let email = member.name.contains('@').then_some(&member.name);
    json!({
        "object": "organization.user",
        "id": member.id,
        "name": member.name,
        "email": email,
        "role": role_name(member.role),
        "added_at": member.created_unix,
    })
}

fn list(call: &Call<'_>) -> Result<Reply, ApiError> {
    let organisation = call.implied_organisation()?;
    let names = call.query.texts("emails");
    let members = of_organisation(&call.directory, &organisation.id)
        .filter(|member| names.as_ref().is_none_or(|names| names.contains(&member.name)));
    page(call, members, show, |m| &m.id)
}

fn get(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(Reply::json(&show(call.member()?)))
}

fn change(call: &Call<'_>) -> Result<Reply, ApiError> {
    let role = match call.body.required("role") {
        "reader" => "viewer",
        other => other,
    };
    Ok(Reply::json(&show(&changed(call, role)?)))
}

fn remove(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(deleted("organization.user.deleted", &removed(call)?))
}
