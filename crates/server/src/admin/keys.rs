//! Keys: those of projects call models, those of members and of the operator administer. Shown once, when made.

use mintage_ledger::directory::{
    Action, ApiKey, CreatedKey, Directory, KeyOwner, KeyScopes, NewKey,
};
use serde_json::{Value, json};

use super::call::{Call, Reply, deleted, directory_error};
use super::paging::{PAGE, page};
use super::table::{Audience, Field, Kind, Route, may, must, route};
use super::who::organisation_of;
use crate::error::ApiError;

/// A rotated key opens for another day unless said otherwise.
const DEFAULT_OVERLAP_S: u64 = 86_400;
/// And at most for so long.
const MAX_OVERLAP_S: u64 = 90 * 86_400;

const NEW: &[Field] = &[
    must("name", Kind::Text, "What it is for"),
    may("expires_at", Kind::Integer, "Refused from then on, in seconds since 1970"),
    may("models", Kind::Texts, "Names of models it may call, `*` for any ending; all by default"),
    may("endpoints", Kind::Texts, "Routes it may use, `*` for any ending; all by default"),
    may("limits", Kind::Object, "Its own limits and budgets"),
];

pub(crate) const ROUTES: &[Route] = &[
    route(
        "GET",
        "/admin/v1/organizations/{organization}/keys",
        Audience::Role(Action::ReadDirectory),
        list,
        "Lists the keys of an organization's projects and members, revoked ones too.",
    )
    .query(PAGE),
    route(
        "GET",
        "/admin/v1/projects/{project}/keys",
        Audience::Role(Action::ReadDirectory),
        list_of_project,
        "Lists a project's keys, revoked ones too.",
    )
    .query(PAGE),
    route(
        "POST",
        "/admin/v1/projects/{project}/keys",
        Audience::Role(Action::ManageKeys),
        create_for_project,
        "Makes a key that calls models. The answer is the only place that ever shows it.",
    )
    .body(NEW),
    route(
        "POST",
        "/admin/v1/members/{member}/keys",
        Audience::Role(Action::ManageKeys),
        create_for_member,
        "Makes a key that administers as far as the member's role goes. Shown once.",
    )
    .body(NEW),
    route(
        "POST",
        "/admin/v1/operator-keys",
        Audience::Operator,
        create_for_operator,
        "Makes a key that administers the whole installation. Shown once.",
    )
    .body(NEW),
    route(
        "GET",
        "/admin/v1/keys/{key}",
        Audience::Role(Action::ReadDirectory),
        get,
        "Shows what is kept of a key.",
    ),
    route(
        "PATCH",
        "/admin/v1/keys/{key}",
        Audience::Role(Action::ManageKeys),
        change,
        "Renames a key, changes what it may be used for or until when.",
    )
    .body(&[
        may("name", Kind::Text, "What it is for"),
        may(
            "expires_at",
            Kind::Integer,
            "Refused from then on, in seconds since 1970; null: never",
        ),
        may("models", Kind::Texts, "Names of models it may call; empty: all"),
        may("endpoints", Kind::Texts, "Routes it may use; empty: all"),
    ]),
    route(
        "POST",
        "/admin/v1/keys/{key}/rotate",
        Audience::Role(Action::ManageKeys),
        rotate,
        "Makes a key in its place; the old one opens for `overlap_s` more. Shown once.",
    )
    .body(&[may(
        "overlap_s",
        Kind::Integer,
        "Seconds that both open, at most 90 days; a day by default",
    )]),
    route(
        "POST",
        "/admin/v1/keys/{key}/disable",
        Audience::Role(Action::ManageKeys),
        disable,
        "Switches a key off at once, until it is enabled.",
    ),
    route(
        "POST",
        "/admin/v1/keys/{key}/enable",
        Audience::Role(Action::ManageKeys),
        enable,
        "Switches a key on again.",
    ),
    route(
        "DELETE",
        "/admin/v1/keys/{key}",
        Audience::Role(Action::ManageKeys),
        revoke,
        "Revokes a key for good.",
    ),
];

/// Why it does or does not open.
fn state(directory: &Directory, key: &ApiKey, now_unix: u64) -> &'static str {
    use mintage_ledger::KeyRefusal::{Disabled, Expired, Revoked};
    match key.validity(now_unix) {
        Err(Revoked) => "revoked",
        Err(Disabled) => "disabled",
        Err(Expired) => "expired",
        Err(_) => "inactive",
        Ok(()) if key.owner == KeyOwner::Operator => "active",
        Ok(()) if organisation_of(directory, key).is_none() => "inactive",
        Ok(()) => "active",
    }
}

fn show(call: &Call<'_>, key: &ApiKey) -> Value {
    let (kind, of) = match &key.owner {
        KeyOwner::Project(id) => ("project", Some(id)),
        KeyOwner::Member(id) => ("member", Some(id)),
        KeyOwner::Operator => ("operator", None),
    };
    json!({
        "object": "key",
        "id": key.id,
        "name": key.name,
        "display": key.display,
        "organization": organisation_of(&call.directory, key),
        "owner": {"type": kind, "id": of},
        "state": state(&call.directory, key, call.now_unix),
        "created_at": key.created_unix,
        "expires_at": key.expires_unix,
        "disabled_at": key.disabled_unix,
        "revoked_at": key.revoked_unix,
        "models": key.scopes.models,
        "endpoints": key.scopes.endpoints,
        "lineage": key.lineage,
    })
}

/// The one time that a secret is shown.
fn show_created(call: &Call<'_>, created: &CreatedKey) -> Reply {
    let mut shown = show(call, &created.info);
    shown["value"] = created.secret.expose().into();
    Reply::created(&shown)
}

fn list(call: &Call<'_>) -> Result<Reply, ApiError> {
    let organisation = call.organisation()?;
    let of = |key: &&ApiKey| organisation_of(&call.directory, key) == Some(&organisation.id);
    page(call, call.directory.keys().filter(of), |key| show(call, key), |key| &key.id)
}

/// The keys of one project.
pub(crate) fn of_project<'a>(
    directory: &'a Directory,
    project: &'a str,
) -> impl Iterator<Item = &'a ApiKey> {
    directory.keys().filter(move |key| matches!(&key.owner, KeyOwner::Project(id) if id == project))
}

fn list_of_project(call: &Call<'_>) -> Result<Reply, ApiError> {
    let project = call.project()?;
    let keys = of_project(&call.directory, &project.id);
    page(call, keys, |key| show(call, key), |key| &key.id)
}

fn get(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(Reply::json(&show(call, call.key()?)))
}

fn create(call: &Call<'_>, owner: KeyOwner) -> Result<Reply, ApiError> {
    call.who.may_hand_out(&owner, &call.directory)?;
    let new = NewKey {
        name: call.body.required("name").to_owned(),
        owner,
        expires_unix: call.body.integer("expires_at"),
        scopes: KeyScopes {
            models: call.body.texts("models").unwrap_or_default(),
            endpoints: call.body.texts("endpoints").unwrap_or_default(),
        },
        policy: call.body.object("limits")?.unwrap_or_default(),
    };
    made(call, new)
}

fn made(call: &Call<'_>, new: NewKey) -> Result<Reply, ApiError> {
    let created = call.office.directory.create_key(new, call.now_unix).map_err(directory_error)?;
    Ok(show_created(call, &created))
}

fn create_for_project(call: &Call<'_>) -> Result<Reply, ApiError> {
    create(call, KeyOwner::Project(call.project()?.id.clone()))
}

fn create_for_member(call: &Call<'_>) -> Result<Reply, ApiError> {
    create(call, KeyOwner::Member(call.member()?.id.clone()))
}

fn create_for_operator(call: &Call<'_>) -> Result<Reply, ApiError> {
    create(call, KeyOwner::Operator)
}

/// A key that the caller sees and could have made.
pub(crate) fn managed<'a>(call: &'a Call<'_>) -> Result<&'a ApiKey, ApiError> {
    let key = call.key()?;
    call.who.may_hand_out(&key.owner, &call.directory)?;
    Ok(key)
}

fn change(call: &Call<'_>) -> Result<Reply, ApiError> {
    let id = &managed(call)?.id;
    let body = &call.body;
    let done = call.office.directory.change(|directory| {
        directory.change_key(id, |key| {
            if let Some(name) = body.text("name") {
                name.clone_into(&mut key.name);
            }
            if body.has("expires_at") {
                key.expires_unix = body.integer("expires_at");
            }
            if let Some(models) = body.texts("models") {
                key.scopes.models = models;
            }
            if let Some(endpoints) = body.texts("endpoints") {
                key.scopes.endpoints = endpoints;
            }
        })
    });
    Ok(Reply::json(&show(call, &done.map_err(directory_error)?)))
}

fn rotate(call: &Call<'_>) -> Result<Reply, ApiError> {
    let id = &managed(call)?.id;
    let overlap_s = call.body.integer("overlap_s").unwrap_or(DEFAULT_OVERLAP_S);
    if overlap_s > MAX_OVERLAP_S {
        let message = format!("`overlap_s` must be from 0 to {MAX_OVERLAP_S}, not {overlap_s}.");
        return Err(ApiError::field("overlap_s", "invalid_value", message));
    }
    let store = &call.office.directory;
    let created = store.rotate_key(id, overlap_s, call.now_unix).map_err(directory_error)?;
    Ok(show_created(call, &created))
}

fn enabled(call: &Call<'_>, enabled: bool) -> Result<Reply, ApiError> {
    let id = &managed(call)?.id;
    let store = &call.office.directory;
    store.set_key_enabled(id, enabled, call.now_unix).map_err(directory_error)?;
    let fresh = store.snapshot();
    Ok(Reply::json(&show(call, fresh.key(id).map_err(directory_error)?)))
}

fn disable(call: &Call<'_>) -> Result<Reply, ApiError> {
    enabled(call, false)
}

fn enable(call: &Call<'_>) -> Result<Reply, ApiError> {
    enabled(call, true)
}

/// Revokes the key named in the path.
pub(crate) fn revoked(call: &Call<'_>) -> Result<String, ApiError> {
    let id = managed(call)?.id.clone();
    call.office.directory.revoke_key(&id, call.now_unix).map_err(directory_error)?;
    Ok(id)
}

fn revoke(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(deleted("key.deleted", &revoked(call)?))
}
