//! Organisations: who pays.

use mintage_ledger::directory::{Action, Organisation};
use serde_json::{Value, json};

use super::call::{Call, Reply, directory_error};
use super::paging::{PAGE, page};
use super::table::{Audience, Kind, Route, may, must, route};
use crate::error::ApiError;

pub(crate) const ROUTES: &[Route] = &[
    route(
        "GET",
        "/admin/v1/organizations",
        Audience::Role(Action::ReadDirectory),
        list,
        "Lists organizations: the operator sees all, others their own.",
    )
    .query(PAGE),
    route("POST", "/admin/v1/organizations", Audience::Operator, create, "Makes an organization.")
        .body(&[
            must("name", Kind::Text, "A name that no other organization has"),
            may(
                "weight",
                Kind::Integer,
                "Its share of the engine among others, 1 to 1000; 1 by default",
            ),
        ]),
    route(
        "GET",
        "/admin/v1/organizations/{organization}",
        Audience::Role(Action::ReadDirectory),
        get,
        "Shows an organization.",
    ),
    route(
        "PATCH",
        "/admin/v1/organizations/{organization}",
        Audience::Operator,
        change,
        "Renames or suspends an organization, or changes its share of the engine.",
    )
    .body(&[
        may("name", Kind::Text, "A name that no other organization has"),
        may("weight", Kind::Integer, "Its share of the engine among others, 1 to 1000"),
        may("suspended", Kind::Flag, "Its keys are refused while this is true"),
    ]),
];

pub(crate) fn show(organisation: &Organisation) -> Value {
    json!({
        "object": "organization",
        "id": organisation.id,
        "name": organisation.name,
        "created_at": organisation.created_unix,
        "weight": organisation.weight,
        "suspended": organisation.suspended,
    })
}

fn list(call: &Call<'_>) -> Result<Reply, ApiError> {
    let seen = call.directory.organisations().filter(|o| call.who.sees(&o.id));
    page(call, seen, show, |o| &o.id)
}

fn get(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(Reply::json(&show(call.organisation()?)))
}

fn create(call: &Call<'_>) -> Result<Reply, ApiError> {
    let store = &call.office.directory;
    let made = store.create_organisation(call.body.required("name"), call.now_unix);
    let mut organisation = made.map_err(directory_error)?;
    if call.body.has("weight") {
        organisation = changed(call, &organisation.id)?;
    }
    call.office.grant_free_quotas();
    Ok(Reply::created(&show(&organisation)))
}

fn change(call: &Call<'_>) -> Result<Reply, ApiError> {
    let id = &call.organisation()?.id;
    Ok(Reply::json(&show(&changed(call, id)?)))
}

fn changed(call: &Call<'_>, id: &str) -> Result<Organisation, ApiError> {
    let body = &call.body;
    let change = |directory: &mut mintage_ledger::directory::Directory| {
        let mut organisation = directory.organisation(id)?.clone();
        if let Some(name) = body.text("name") {
            name.clone_into(&mut organisation.name);
        }
        if let Some(weight) = body.integer("weight") {
            // Out of range is refused by the directory, in its words.
            organisation.weight = u32::try_from(weight).unwrap_or(u32::MAX);
        }
        organisation.suspended = body.flag("suspended").unwrap_or(organisation.suspended);
        directory.put_organisation(organisation.clone())?;
        Ok(organisation)
    };
    call.office.directory.change(change).map_err(directory_error)
}
