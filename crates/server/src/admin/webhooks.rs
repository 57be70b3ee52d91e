//! Webhook endpoints, their dead letters, and the balance below which one hears of it.

use std::sync::Arc;

use mintage_ledger::directory::Action;
use serde_json::{Value, json};

use super::call::{Call, Reply, deleted, no_such, sentence};
use super::money::{durable, ledger_error};
use super::paging;
use super::table::{Audience, Field, Kind, Route, may, must, route};
use super::usage::about;
use crate::error::{ApiError, Fault};
use crate::request_id::random_hex;
use crate::webhooks::{self, Alert, DeadLetter, Endpoint};

/// Endpoints of one installation.
const MAX_ENDPOINTS: usize = 1000;
const TOPICS: &[&str] = &["balance.low", "budget.reached", "invoice.issued"];
const TOPICS_FIELD: Field =
    may("topics", Kind::Choices(TOPICS), "Only these events; all by default");
const OF: &[Field] = &[may("organization", Kind::Text, "Of this organization")];

pub(crate) const ROUTES: &[Route] = &[
    route(
        "GET",
        "/admin/v1/webhooks",
        Audience::Role(Action::ManageProjects),
        list,
        "Lists webhook endpoints.",
    )
    .query(OF),
    route(
        "POST",
        "/admin/v1/webhooks",
        Audience::Role(Action::ManageProjects),
        create,
        "Makes an endpoint. Its secret is in the answer.",
    )
    .body(&[
        must("url", Kind::Text, "Where events are posted; https"),
        TOPICS_FIELD,
        may("organization", Kind::Text, "Whose events; the operator may leave it out for all"),
    ]),
    route(
        "GET",
        "/admin/v1/webhooks/{webhook}",
        Audience::Role(Action::ManageProjects),
        get,
        "Shows an endpoint.",
    ),
    route(
        "PATCH",
        "/admin/v1/webhooks/{webhook}",
        Audience::Role(Action::ManageProjects),
        change,
        "Changes an endpoint. While it is off, what would go to it is dropped.",
    )
    .body(&[
        may("url", Kind::Text, "Where events are posted; https"),
        TOPICS_FIELD,
        may("enabled", Kind::Flag, "Whether events are posted"),
    ]),
    route(
        "DELETE",
        "/admin/v1/webhooks/{webhook}",
        Audience::Role(Action::ManageProjects),
        remove,
        "Removes an endpoint.",
    ),
    route(
        "POST",
        "/admin/v1/webhooks/{webhook}/rotate",
        Audience::Role(Action::ManageProjects),
        rotate,
        "Gives an endpoint another secret, at once.",
    ),
    route(
        "POST",
        "/admin/v1/webhooks/{webhook}/test",
        Audience::Role(Action::ManageProjects),
        test,
        "Sends a test event, the way of all events.",
    ),
    route(
        "GET",
        "/admin/v1/webhook-dead-letters",
        Audience::Role(Action::ManageProjects),
        letters,
        "Lists events that were given up.",
    )
    .query(OF),
    route(
        "POST",
        "/admin/v1/webhook-dead-letters/{letter}/retry",
        Audience::Role(Action::ManageProjects),
        retry,
        "Sends an event that was given up again, under the id that it had.",
    ),
    route(
        "GET",
        "/admin/v1/organizations/{organization}/balance-alert",
        Audience::Role(Action::ReadBilling),
        alert,
        "Shows below which balance `balance.low` is told.",
    ),
    route(
        "PUT",
        "/admin/v1/organizations/{organization}/balance-alert",
        Audience::Role(Action::ManageBilling),
        put_alert,
        "Sets below which balance `balance.low` is told, once each time it falls.",
    )
    .body(&[may("below", Kind::Amount, "Of what can be spent; null: never")]),
];

fn show(endpoint: &Endpoint) -> Value {
    json!({
        "object": "webhook",
        "id": endpoint.id,
        "organization": endpoint.organisation,
        "url": endpoint.url,
        "topics": endpoint.topics,
        "enabled": endpoint.is_enabled,
        "created_at": endpoint.created_unix,
    })
}

fn with_secret(call: &Call<'_>, endpoint: &Endpoint) -> Value {
    let mut shown = show(endpoint);
    shown["secret"] = webhooks::secret(&call.office.directory, endpoint).into();
    shown
}

/// Those without an organisation are the operator's.
fn sees(call: &Call<'_>, organisation: Option<&Arc<str>>) -> bool {
    match organisation {
        Some(id) => call.who.sees(id),
        None => call.who.is_operator(),
    }
}

fn known(call: &Call<'_>) -> Result<Vec<(u64, Endpoint)>, ApiError> {
    webhooks::endpoints(&call.books()?.ledger).map_err(ledger_error)
}

fn one(call: &Call<'_>) -> Result<(u64, Endpoint), ApiError> {
    let id = call.name("webhook");
    let found = known(call)?.into_iter().find(|(_, endpoint)| *endpoint.id == *id);
    let seen = found.filter(|(_, endpoint)| sees(call, endpoint.organisation.as_ref()));
    seen.ok_or_else(|| no_such("webhook", id))
}

fn check_url(call: &Call<'_>, url: &str) -> Result<(), ApiError> {
    webhooks::check_url(&call.books()?.webhooks, url).map_err(|why| {
        ApiError::field("url", "invalid_value", sentence(&format!("`url` cannot be used: {why}")))
    })
}

fn list(call: &Call<'_>) -> Result<Reply, ApiError> {
    let about = about(call)?;
    let shown = known(call)?
        .iter()
        .filter(|(_, e)| sees(call, e.organisation.as_ref()))
        .filter(|(_, e)| about.is_none() || e.organisation == about)
        .map(|(_, endpoint)| show(endpoint))
        .collect();
    Ok(paging::list(shown, false))
}

fn create(call: &Call<'_>) -> Result<Reply, ApiError> {
    let organisation = match (call.body.text("organization"), call.who.confined_to()) {
        (Some(id), _) => Some(call.organisation_with(id)?.id.as_str().into()),
        (None, own) => own.cloned(),
    };
    let url = call.body.required("url");
    check_url(call, url)?;
    if known(call)?.len() >= MAX_ENDPOINTS {
        let message = format!("There are {MAX_ENDPOINTS} webhooks already, the limit.");
        return Err(ApiError::new(Fault::Invalid, "too_many", message));
    }
    let endpoint = Endpoint {
        id: format!("wh_{}", random_hex()).into(),
        organisation,
        url: url.to_owned(),
        topics: call.body.texts("topics").unwrap_or_default(),
        secret_version: 1,
        is_enabled: true,
        created_unix: call.now_unix,
    };
    durable(webhooks::put(&call.books()?.ledger, 0, &endpoint, true))?;
    Ok(Reply::created(&with_secret(call, &endpoint)))
}

fn get(call: &Call<'_>) -> Result<Reply, ApiError> {
    Ok(Reply::json(&show(&one(call)?.1)))
}

fn change(call: &Call<'_>) -> Result<Reply, ApiError> {
    let (version, mut endpoint) = one(call)?;
    if let Some(url) = call.body.text("url") {
        check_url(call, url)?;
        url.clone_into(&mut endpoint.url);
    }
    if let Some(topics) = call.body.texts("topics") {
        endpoint.topics = topics;
    }
    endpoint.is_enabled = call.body.flag("enabled").unwrap_or(endpoint.is_enabled);
    durable(webhooks::put(&call.books()?.ledger, version, &endpoint, true))?;
    Ok(Reply::json(&show(&endpoint)))
}

fn remove(call: &Call<'_>) -> Result<Reply, ApiError> {
    let (version, endpoint) = one(call)?;
    durable(webhooks::put(&call.books()?.ledger, version, &endpoint, false))?;
    Ok(deleted("webhook.deleted", &endpoint.id))
}

fn rotate(call: &Call<'_>) -> Result<Reply, ApiError> {
    let (version, mut endpoint) = one(call)?;
    endpoint.secret_version = endpoint.secret_version.saturating_add(1);
    durable(webhooks::put(&call.books()?.ledger, version, &endpoint, true))?;
    Ok(Reply::json(&with_secret(call, &endpoint)))
}

fn test(call: &Call<'_>) -> Result<Reply, ApiError> {
    let endpoint = one(call)?.1;
    let id = format!("msg_test_{}", random_hex());
    let now_ms = call.now_unix.saturating_mul(1000);
    durable(webhooks::send_test(&call.books()?.ledger, &endpoint, id.clone(), now_ms))?;
    Ok(Reply::json(&json!({"object": "webhook.test", "webhook": endpoint.id, "message": id})))
}

fn kept(call: &Call<'_>) -> Result<Vec<(u64, DeadLetter)>, ApiError> {
    let all = webhooks::dead_letters(&call.books()?.ledger).map_err(ledger_error)?;
    Ok(all.into_iter().filter(|(_, l)| sees(call, l.organisation.as_ref())).collect())
}

fn letters(call: &Call<'_>) -> Result<Reply, ApiError> {
    let about = about(call)?;
    let show = |(_, letter): (u64, DeadLetter)| {
        json!({
            "object": "webhook.dead_letter",
            "id": letter.id,
            "organization": letter.organisation,
            "webhook": letter.endpoint,
            "topic": letter.topic,
            "message": letter.message,
            "attempts": letter.attempts,
            "last_error": letter.last_error,
            "given_up_ms": letter.given_up_ms,
        })
    };
    let of = |(_, letter): &(u64, DeadLetter)| about.is_none() || letter.organisation == about;
    Ok(paging::list(kept(call)?.into_iter().filter(of).map(show).collect(), false))
}

fn retry(call: &Call<'_>) -> Result<Reply, ApiError> {
    let id = call.name("letter");
    let found = kept(call)?.into_iter().find(|(_, letter)| *letter.id == *id);
    let (version, letter) = found.ok_or_else(|| no_such("dead letter", id))?;
    let now_ms = call.now_unix.saturating_mul(1000);
    durable(webhooks::revive(&call.books()?.ledger, version, &letter, now_ms))?;
    let shown = json!({"object": "webhook.retry", "id": letter.id, "message": letter.message});
    Ok(Reply::json(&shown))
}

fn show_alert(organisation: &str, alert: Option<&Alert>) -> Reply {
    Reply::json(&json!({
        "object": "balance_alert",
        "organization": organisation,
        "below": alert.map(|alert| alert.below),
        "told": alert.is_some_and(|alert| alert.is_told),
    }))
}

fn known_alert(call: &Call<'_>, organisation: &str) -> Result<Option<(u64, Alert)>, ApiError> {
    let all = webhooks::alerts(&call.books()?.ledger).map_err(ledger_error)?;
    Ok(all.into_iter().find(|(_, alert)| *alert.organisation == *organisation))
}

fn alert(call: &Call<'_>) -> Result<Reply, ApiError> {
    let organisation = &call.organisation()?.id;
    let known = known_alert(call, organisation)?;
    Ok(show_alert(organisation, known.as_ref().map(|(_, alert)| alert)))
}

fn put_alert(call: &Call<'_>) -> Result<Reply, ApiError> {
    let organisation = &call.organisation()?.id;
    let ledger = &call.books()?.ledger;
    // Removed ones count on: their versions are never used again.
    let history = ledger.history("balance_alert", organisation).map_err(ledger_error)?;
    let version = history.last().map_or(0, |document| document.version);
    let below = call.body.amount("below");
    let alert = Alert {
        organisation: organisation.as_str().into(),
        below: below.unwrap_or_default(),
        is_told: false,
    };
    durable(webhooks::put_alert(ledger, version, &alert, below.is_some(), Vec::new()))?;
    Ok(show_alert(organisation, below.map(|_| &alert)))
}
