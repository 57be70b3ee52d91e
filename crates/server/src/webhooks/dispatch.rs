//! Sends what is due, a bounded number at a time, and writes down what became of it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mintage_ledger::{Changes, Delivery, Ledger, LedgerError, Message, Outgoing, Pending};
use serde_json::{Value, json};

use super::endpoint::{
    DELIVER, DeadLetter, Endpoint, Parcel, alerts, dead_letter, endpoints, parcel_message, payload,
    put_alert, signing_key,
};
use super::sign::signature;
use super::target::{WebhookPolicy, client};
use crate::admin::{Books, Office};

/// How often the outbox is looked at.
const TICK: Duration = Duration::from_millis(500);
/// Messages looked at in one go.
const MAX_DUE: usize = 4096;
/// Requests at once, over all endpoints.
const MAX_SENDING: usize = 16;
/// Requests at once to one endpoint: a slow one does not take all.
const MAX_SENDING_TO_ONE: usize = 2;
/// No retry comes later than so.
const LAST_RETRY_MS: u64 = 8 * 3_600_000;
/// Kept of an error.
const MAX_ERROR_CHARS: usize = 300;

/// What is on its way: number of the message → endpoint.
type Sending = Arc<Mutex<HashMap<u64, Arc<str>>>>;

/// Runs until dropped; attempts that began end by themselves.
pub(crate) async fn run(office: Arc<Office>) {
    let Some(books) = office.books.clone() else { return std::future::pending().await };
    let sending = Sending::default();
    let agent = client(&books.webhooks);
    loop {
        let (office, books, sending, agent) =
            (Arc::clone(&office), books.clone(), Arc::clone(&sending), agent.clone());
        let turn = tokio::task::spawn_blocking(move || turn(&office, &books, &sending, &agent));
        match turn.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "webhooks wait: the ledger cannot be read"),
            Err(error) => tracing::error!(%error, "webhooks stopped for a turn"),
        }
        tokio::time::sleep(TICK).await;
    }
}

fn turn(
    office: &Arc<Office>,
    books: &Books,
    sending: &Sending,
    agent: &ureq::Agent,
) -> Result<(), LedgerError> {
    watch_balances(books)?;
    let now_ms = crate::till::unix_ms();
    let due = books.ledger.due_messages(now_ms, MAX_DUE)?;
    if due.is_empty() {
        return Ok(());
    }
    let endpoints: HashMap<Arc<str>, Endpoint> =
        endpoints(&books.ledger)?.into_iter().map(|(_, e)| (Arc::clone(&e.id), e)).collect();
    for outgoing in due {
        match outgoing.message.topic.strip_prefix(DELIVER) {
            None => split(&books.ledger, &outgoing, endpoints.values())?,
            Some(id) => match endpoints.get(id).filter(|endpoint| endpoint.is_enabled) {
                Some(endpoint) => send_soon(office, books, sending, agent, endpoint, outgoing),
                // It was removed or switched off: nobody waits for it.
                None => done(&books.ledger, outgoing.number)?,
            },
        }
    }
    Ok(())
}

fn done(ledger: &Ledger, number: u64) -> Result<(), LedgerError> {
    let deliveries = vec![(number, Delivery::Done)];
    written(ledger.write(Changes { deliveries, ..Changes::default() }))
}

/// A message that another gateway has seen to since is no trouble.
fn written(outcome: Result<Pending<()>, LedgerError>) -> Result<(), LedgerError> {
    match outcome {
        Err(LedgerError::Conflict { .. }) => Ok(()),
        outcome => Ok(outcome?.wait()?),
    }
}

/// An event becomes a message for each endpoint that wants it; all in one transaction, so once.
fn split<'a>(
    ledger: &Ledger,
    outgoing: &Outgoing,
    endpoints: impl Iterator<Item = &'a Endpoint>,
) -> Result<(), LedgerError> {
    let Message { topic, body, due_ms } = &outgoing.message;
    let data: Value = serde_json::from_slice(body).unwrap_or_default();
    let organisation = data["organisation"].as_str();
    let parcel = Parcel {
        id: format!("msg_{}", outgoing.number),
        topic: topic.to_string(),
        payload: payload(topic, *due_ms, &data),
    };
    let wanting = endpoints.filter(|endpoint| endpoint.wants(topic, organisation));
    let messages = wanting.map(|e| parcel_message(&e.id, &parcel, *due_ms)).collect();
    let deliveries = vec![(outgoing.number, Delivery::Done)];
    written(ledger.write(Changes { messages, deliveries, ..Changes::default() }))
}

/// Begins an attempt where there is room; else a later turn does.
fn send_soon(
    office: &Arc<Office>,
    books: &Books,
    sending: &Sending,
    agent: &ureq::Agent,
    endpoint: &Endpoint,
    outgoing: Outgoing,
) {
    {
        let mut sending = sending.lock().unwrap_or_else(PoisonError::into_inner);
        let to_this = sending.values().filter(|id| **id == endpoint.id).count();
        let is_full = sending.len() >= MAX_SENDING || to_this >= MAX_SENDING_TO_ONE;
        if is_full || sending.contains_key(&outgoing.number) {
            return;
        }
        sending.insert(outgoing.number, Arc::clone(&endpoint.id));
    }
    let place = Place { number: outgoing.number, sending: Arc::clone(sending) };
    let (office, books, agent) = (Arc::clone(office), books.clone(), agent.clone());
    let endpoint = endpoint.clone();
    // Within the runtime: this runs on one of its blocking threads.
    tokio::runtime::Handle::current().spawn_blocking(move || {
        let _place = place;
        let key = signing_key(&office.directory, &endpoint);
        let outcome = attempt(&agent, &endpoint, &key, &outgoing);
        if let Err(error) = settle(&books, &endpoint, &outgoing, outcome) {
            // It is still in the outbox, so it will be sent again: at least once.
            tracing::warn!(webhook = %endpoint.id, %error, "what became of a webhook was not written");
        }
    });
}

/// Leaving makes room.
struct Place {
    number: u64,
    sending: Sending,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

/// One request; any 2xx acknowledges.
fn attempt(
    agent: &ureq::Agent,
    endpoint: &Endpoint,
    key: &[u8; 32],
    outgoing: &Outgoing,
) -> Result<(), String> {
    let parcel: Parcel = serde_json::from_slice(&outgoing.message.body)
        .map_err(|error| format!("the message is damaged: {error}"))?;
    let timestamp_s = crate::auth::now_unix();
    let signed = signature(key, &parcel.id, timestamp_s, parcel.payload.as_bytes());
    let response = agent
        .post(&endpoint.url)
        .header("content-type", "application/json")
        .header("webhook-id", &parcel.id)
        .header("webhook-timestamp", timestamp_s.to_string())
        .header("webhook-signature", signed)
        .send(parcel.payload.as_bytes())
        .map_err(|error| error.to_string())?;
    match response.status().as_u16() {
        200..300 => Ok(()),
        status => Err(format!("answered with status {status}")),
    }
}

/// Acknowledged, later again, or given up.
fn settle(
    books: &Books,
    endpoint: &Endpoint,
    outgoing: &Outgoing,
    outcome: Result<(), String>,
) -> Result<(), LedgerError> {
    let WebhookPolicy { max_attempts, first_retry, .. } = &books.webhooks;
    let first_ms = u64::try_from(first_retry.as_millis()).unwrap_or(LAST_RETRY_MS);
    let attempts = outgoing.attempts.saturating_add(1);
    let now_ms = crate::till::unix_ms();
    let mut changes = Changes::default();
    let delivery = match outcome {
        Ok(()) => Delivery::Done,
        Err(error) if attempts < *max_attempts => {
            tracing::info!(webhook = %endpoint.id, attempts, %error, "a webhook is sent again later");
            Delivery::RetryAt(now_ms.saturating_add(backoff_ms(first_ms, attempts, random())))
        }
        Err(error) => {
            tracing::warn!(webhook = %endpoint.id, attempts, %error, "a webhook is given up");
            changes.documents.push(dead_letter(&given_up(endpoint, outgoing, attempts, &error)));
            Delivery::Done
        }
    };
    changes.deliveries.push((outgoing.number, delivery));
    books.ledger.write(changes)?.wait()?;
    Ok(())
}

fn given_up(endpoint: &Endpoint, outgoing: &Outgoing, attempts: u32, error: &str) -> DeadLetter {
    let parcel: Option<Parcel> = serde_json::from_slice(&outgoing.message.body).ok();
    let parcel = parcel.unwrap_or_else(|| Parcel {
        id: String::new(),
        topic: String::new(),
        payload: String::new(),
    });
    DeadLetter {
        id: format!("dl_{}", outgoing.number).into(),
        endpoint: Arc::clone(&endpoint.id),
        organisation: endpoint.organisation.clone(),
        topic: parcel.topic,
        message: parcel.id,
        payload: parcel.payload,
        attempts,
        last_error: error.chars().take(MAX_ERROR_CHARS).collect(),
        given_up_ms: crate::till::unix_ms(),
    }
}

/// Threefold each time, half of it by chance, so that many endpoints' retries do not come together.
fn backoff_ms(first_ms: u64, attempts: u32, random: u64) -> u64 {
    let whole = 3_u64.saturating_pow(attempts.saturating_sub(1)).saturating_mul(first_ms);
    let half = whole.min(LAST_RETRY_MS) / 2;
    half + random % (half + 1)
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without random numbers retries are merely less spread out.
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Tells once when what an organisation can spend falls below its threshold.
fn watch_balances(books: &Books) -> Result<(), LedgerError> {
    let mut seen = HashSet::new();
    for (version, mut alert) in alerts(&books.ledger)? {
        if !seen.insert(Arc::clone(&alert.organisation)) {
            continue;
        }
        let currency = books.currency();
        let available = books.ledger.whole_balance(&alert.organisation, currency)?.available();
        let is_low = available < alert.below;
        if is_low == alert.is_told {
            continue;
        }
        alert.is_told = is_low;
        let data = json!({
            "organisation": alert.organisation,
            "available": available,
            "below": alert.below,
            "currency": currency,
        });
        let message = Message {
            topic: "balance.low".into(),
            body: data.to_string().into_bytes(),
            due_ms: crate::till::unix_ms(),
        };
        let messages = if is_low { vec![message] } else { Vec::new() };
        match put_alert(&books.ledger, version, &alert, true, messages) {
            Ok(pending) => pending.wait()?,
            // Somebody changed the threshold meanwhile: the next turn sees the new one.
            Err(LedgerError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_come_later_and_later() {
        let least: Vec<u64> = (1..=12).map(|n| backoff_ms(5000, n, 0) / 1000).collect();
        assert_eq!(least, [2, 7, 22, 67, 202, 607, 1822, 5467, 14_400, 14_400, 14_400, 14_400]);
        for attempts in 1..200 {
            for random in [0, 1, u64::MAX] {
                let (wait, least) =
                    (backoff_ms(5000, attempts, random), backoff_ms(5000, attempts, 0));
                assert!(wait >= least && wait <= (2 * least).max(LAST_RETRY_MS), "{attempts}");
            }
        }
    }
}
