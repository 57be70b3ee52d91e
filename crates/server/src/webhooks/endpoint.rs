//! Endpoints, dead letters and thresholds, as documents of the ledger.

use std::sync::Arc;

use mintage_ledger::{
    Amount, Changes, DirectoryStore, Document, Ledger, LedgerError, Message, Pending,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;

use super::sign;

const ENDPOINT: &str = "webhook";
const DEAD_LETTER: &str = "dead_letter";
const ALERT: &str = "balance_alert";
/// Topics that begin so are messages to one endpoint; the rest of the topic is its id.
pub(super) const DELIVER: &str = "deliver/";

/// Where events go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) id: Arc<str>,
    /// Whose events; `None`: the operator's, of all organisations.
    pub(crate) organisation: Option<Arc<str>>,
    pub(crate) url: String,
    /// Empty: all.
    pub(crate) topics: Vec<String>,
    /// Counts rotations of its secret.
    pub(crate) secret_version: u32,
    pub(crate) is_enabled: bool,
    pub(crate) created_unix: u64,
}

impl Endpoint {
    pub(super) fn wants(&self, topic: &str, organisation: Option<&str>) -> bool {
        let of = self.organisation.as_deref().is_none_or(|own| organisation == Some(own));
        let topics = self.topics.is_empty() || self.topics.iter().any(|known| known == topic);
        self.is_enabled && of && topics
    }
}

/// A message to one endpoint, as the outbox holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parcel {
    /// The header `webhook-id`: the same for each attempt.
    pub(super) id: String,
    pub(super) topic: String,
    /// The body, byte for byte.
    pub(super) payload: String,
}

/// A message that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeadLetter {
    pub(crate) id: Arc<str>,
    pub(crate) endpoint: Arc<str>,
    pub(crate) organisation: Option<Arc<str>>,
    pub(crate) topic: String,
    pub(crate) message: String,
    pub(crate) payload: String,
    pub(crate) attempts: u32,
    pub(crate) last_error: String,
    pub(crate) given_up_ms: u64,
}

/// When to tell that money runs out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Alert {
    pub(crate) organisation: Arc<str>,
    /// Of what can be spent.
    pub(crate) below: Amount,
    /// It was told since the balance was last above.
    pub(crate) is_told: bool,
}

/// With the versions that the next ones follow.
fn all<T: DeserializeOwned>(ledger: &Ledger, kind: &str) -> Result<Vec<(u64, T)>, LedgerError> {
    let documents = ledger.documents(kind)?;
    let read = |document: &Document| match serde_json::from_slice(&document.body) {
        Ok(value) => Some((document.version, value)),
        Err(error) => {
            tracing::error!(kind = %document.kind, id = %document.id, %error, "a document is damaged");
            None
        }
    };
    Ok(documents.iter().filter_map(read).collect())
}

/// Plain data: serialising does not fail.
fn document(kind: &str, id: &Arc<str>, version: u64, body: Option<&impl Serialize>) -> Document {
    let body = body.map(|body| serde_json::to_vec(body).unwrap_or_default()).unwrap_or_default();
    Document { kind: Arc::from(kind), id: Arc::clone(id), version, body }
}

/// All endpoints with their versions.
pub(crate) fn endpoints(ledger: &Ledger) -> Result<Vec<(u64, Endpoint)>, LedgerError> {
    all(ledger, ENDPOINT)
}

/// Writes an endpoint after the version known; `remains` false removes it.
pub(crate) fn put(
    ledger: &Ledger,
    known: u64,
    endpoint: &Endpoint,
    remains: bool,
) -> Result<Pending<()>, LedgerError> {
    let body = remains.then_some(endpoint);
    let documents = vec![document(ENDPOINT, &endpoint.id, known + 1, body)];
    ledger.write(Changes { documents, ..Changes::default() })
}

pub(crate) fn dead_letters(ledger: &Ledger) -> Result<Vec<(u64, DeadLetter)>, LedgerError> {
    all(ledger, DEAD_LETTER)
}

pub(super) fn dead_letter(letter: &DeadLetter) -> Document {
    document(DEAD_LETTER, &letter.id, 1, Some(letter))
}

/// Puts a dead letter back into the outbox, under the id that it had.
pub(crate) fn revive(
    ledger: &Ledger,
    known: u64,
    letter: &DeadLetter,
    now_ms: u64,
) -> Result<Pending<()>, LedgerError> {
    let parcel = Parcel {
        id: letter.message.clone(),
        topic: letter.topic.clone(),
        payload: letter.payload.clone(),
    };
    ledger.write(Changes {
        documents: vec![document(DEAD_LETTER, &letter.id, known + 1, None::<&DeadLetter>)],
        messages: vec![parcel_message(&letter.endpoint, &parcel, now_ms)],
        ..Changes::default()
    })
}

pub(super) fn parcel_message(endpoint: &str, parcel: &Parcel, due_ms: u64) -> Message {
    let body = serde_json::to_vec(parcel).unwrap_or_default();
    Message { topic: format!("{DELIVER}{endpoint}").into(), body, due_ms }
}

/// What receivers read.
pub(super) fn payload(topic: &str, at_ms: u64, data: &serde_json::Value) -> String {
    let timestamp = mintage_ledger::price::utc_text(at_ms);
    json!({"type": topic, "timestamp": timestamp, "data": data}).to_string()
}

/// Sends a test event to one endpoint, the way of all events.
pub(crate) fn send_test(
    ledger: &Ledger,
    endpoint: &Endpoint,
    id: String,
    now_ms: u64,
) -> Result<Pending<()>, LedgerError> {
    let topic = "webhook.test".to_owned();
    let data = json!({"webhook": endpoint.id, "organisation": endpoint.organisation});
    let parcel = Parcel { id, payload: payload(&topic, now_ms, &data), topic };
    let messages = vec![parcel_message(&endpoint.id, &parcel, now_ms)];
    ledger.write(Changes { messages, ..Changes::default() })
}

pub(crate) fn alerts(ledger: &Ledger) -> Result<Vec<(u64, Alert)>, LedgerError> {
    all(ledger, ALERT)
}

/// Writes a threshold after the version known, with what it has to tell; `remains` false removes it.
pub(crate) fn put_alert(
    ledger: &Ledger,
    known: u64,
    alert: &Alert,
    remains: bool,
    messages: Vec<Message>,
) -> Result<Pending<()>, LedgerError> {
    let documents = vec![document(ALERT, &alert.organisation, known + 1, remains.then_some(alert))];
    ledger.write(Changes { documents, messages, ..Changes::default() })
}

/// Nothing of it is stored: it derives from the installation's own secret.
pub(crate) fn signing_key(directory: &DirectoryStore, endpoint: &Endpoint) -> [u8; 32] {
    directory.derived_secret(&format!("webhook/{}/{}", endpoint.id, endpoint.secret_version))
}

/// The secret as its receiver needs it.
pub(crate) fn secret(directory: &DirectoryStore, endpoint: &Endpoint) -> String {
    sign::shown(&signing_key(directory, endpoint))
}
