//! `/v1/organization/admin_api_keys`: keys of members. A new one is the caller's own: a member cannot be named there.

use mintage_ledger::directory::{Action, ApiKey, KeyOwner, KeyScopes, NewKey};
use serde_json::{Value, json};

use super::super::call::{Call, Reply, deleted, directory_error, no_such};
use super::super::keys::revoked;
use super::super::paging::{AFTER, LIMIT, page};
use super::super::table::{Audience, Kind, Route, may, must, route};
use super::super::who::role_name;
use super::redacted;
use crate::error::{ApiError, Fault};

pub(crate) const ROUTES: &[Route] = &[
    route(
        "GET",
        "/v1/organization/admin_api_keys",
        Audience::Role(Action::ReadDirectory),
        list,
        "Lists the keys of the organization's members.",
    )
    .query(&[LIMIT, AFTER, may("order", Kind::Choice(&["asc"]), "By id; only `asc`")]),
    route(
        "POST",
        "/v1/organization/admin_api_keys",
        Audience::Role(Action::ManageKeys),
        create,
        "Makes another key of the member whose key calls. Shown once.",
    )
    .body(&[
        must("name", Kind::Text, "What it is for"),
        may("expires_in_seconds", Kind::Integer, "Refused after so many seconds"),
    ]),
    route(
        "GET",
        "/v1/organization/admin_api_keys/{key}",
        Audience::Role(Action::ReadDirectory),
        get,
        "Shows what is kept of a member's key.",
    ),
    route(
        "DELETE",
        "/v1/organization/admin_api_keys/{key}",
        Audience::Role(Action::ManageKeys),
        revoke,
        "Revokes a member's key for good.",
    ),
];

fn show(call: &Call<'_>, key: &ApiKey) -> Value {
    let member = match &key.owner {
        KeyOwner::Member(id) => call.directory.member(id).ok(),
        _ => None,
    };
    let owner = member.map(|member| {
        json!({
            "type": "user",
            "object": "organization.user",
            "id": member.id,
            "name": member.name,
            "created_at": member.created_unix,
            "role": role_name(member.role),
        })
    });
    json!({
        "object": "organization.admin_api_key",
        "id": key.id,
        "name": key.name,
        "redacted_value": redacted(key),
        "created_at": key.created_unix,
        "expires_at": key.expires_unix,
        "last_used_at": null,
        "owner": owner.unwrap_or_else(|| json!({})),
    })
}

/// Whether it is a key of a member of this organisation that was not revoked.
fn is_listed(call: &Call<'_>, organisation: &str, key: &ApiKey) -> bool {
    key.revoked_unix.is_none()
        && matches!(&key.owner, KeyOwner::Member(id)
            if call.directory.member(id).is_ok_and(|m| m.organisation == organisation))
}

fn list(call: &Call<'_>) -> Result<Reply, ApiError> {
    let organisation = &call.implied_organisation()?.id;
    let keys = call.directory.keys().filter(|key| is_listed(call, organisation, key));
    page(call, keys, |key| show(call, key), |key| &key.id)
}

fn create(call: &Call<'_>) -> Result<Reply, ApiError> {
    let Some(owner) = call.who.own_key_owner(&call.directory) else {
        let message = "The operator's key has no member to make a key for; use \
                       `POST /admin/v1/members/{member}/keys` or `/admin/v1/operator-keys`.";
        return Err(ApiError::new(Fault::Invalid, "member_needed", message));
    };
    call.who.may_hand_out(&owner, &call.directory)?;
    let lasts_s = call.body.integer("expires_in_seconds");
    let new = NewKey {
        name: call.body.required("name").to_owned(),
        owner,
        expires_unix: lasts_s.map(|s| call.now_unix.saturating_add(s)),
        scopes: KeyScopes::default(),
        policy: Default::default(),
    };
    let made = call.office.directory.create_key(new, call.now_unix).map_err(directory_error)?;
    let mut shown = show(call, &made.info);
    shown["value"] = made.secret.expose().into();
    Ok(Reply::json(&shown))
}

fn one<'a>(call: &'a Call<'_>) -> Result<&'a ApiKey, ApiError> {
    let organisation = &call.implied_organisation()?.id;
    let key = call.key()?;
    let listed = is_listed(call, organisation, key).then_some(key);
    listed.ok_or_else(|| no_such("key", call.name("key")))
}

fn get(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(Reply::json(&show(call, one(call)?)))
}

fn revoke(call: &Call<'_>) -> Result<Reply, ApiError> {
    one(call)?;
    Ok(deleted("organization.admin_api_key.deleted", &revoked(call)?))
}
