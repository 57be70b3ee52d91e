//! `Idempotency-Key`: a request that is sent again is answered again, not computed and not billed again.
//!
//! The key belongs to a project and a route. The answer is kept in the transaction that posts its cost, so there is no
//! moment at which one is there without the other. A keyed request runs on when its client goes away: the key says that
//! it will come back for the answer. Answers that are errors, or longer than [`MAX_KEPT_BYTES`], are not kept: then the
//! request runs again.
//!
//! Not here: what answers say. Invariant: while a keyed request runs, the same key runs no second one.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use mintage_ledger::{Answering, Begin, KeptAnswer, Ledger, LedgerError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use crate::app::App;
use crate::auth::Caller;
use crate::batch::BatchLine;
use crate::body::read_json;
use crate::error::{ApiError, Fault};
use crate::sse::{self, Framing};
use crate::till::{ledger_unavailable, unix_ms};

const HEADER: &str = "idempotency-key";
/// Says that an answer is a repetition.
const REPLAYED: &str = "idempotent-replayed";
const MAX_KEY_CHARS: usize = 255;
/// The longest answer that is kept.
pub(crate) const MAX_KEPT_BYTES: usize = 4 << 20;
/// How long answers are kept.
const KEPT_MS: u64 = 24 * 3_600_000;
/// Frames on their way to a client that may go away.
const FRAMES: usize = 16;

/// How an answer is sent: the first byte of what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Events,
    /// Lines of JSON.
    Lines,
}

/// Of streams of JSON, one value a line.
const LINES: &str = "application/x-ndjson";

impl Form {
    /// Of a stream.
    pub(crate) fn of(framing: &Framing) -> Self {
        if framing.content_type == LINES { Self::Lines } else { Self::Events }
    }

    fn tag(self) -> u8 {
        match self {
            Self::Json => b'j',
            Self::Events => b's',
            Self::Lines => b'n',
        }
    }
}

/// Where the answer of a keyed request goes. While one lives, the key is taken.
#[derive(Clone)]
pub(crate) struct Keeping(Arc<Place>);

struct Place {
    scope: Arc<str>,
    key: Arc<str>,
    body_digest: [u8; 32],
    expires_ms: u64,
    /// An answer that cannot be kept must not be given: it would be billed, and might be computed again.
    is_must: bool,
    #[expect(dead_code, reason = "held for its drop")]
    answering: Answering,
}

/// What a place of the server's own has.
pub(crate) enum Taken {
    /// The answer as it was sent.
    Answered(Vec<u8>),
    /// Nothing yet, and now it is taken.
    Free(Keeping),
}

/// Where an answer is kept, for who looks for it after a crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptPlace {
    scope: String,
    key: String,
    body_digest: [u8; 32],
}

impl KeptPlace {
    /// The place of the answer to a body under a name of the server's own: no route is called so, and no other answer has
    /// this key.
    pub(crate) fn own(project: &str, name: &str, key: &str, body: &[u8]) -> Self {
        Self {
            scope: format!("{project} {name}"),
            key: key.to_owned(),
            body_digest: Sha256::digest(body).into(),
        }
    }

    /// Finds the answer, or takes the place for one that is to come; where `is_must`, one that cannot be kept is not
    /// given. In one step: a place that was looked into and left is free again only a little later where gateways share
    /// the ledger.
    ///
    /// # Errors
    /// [`Fault::Overloaded`] where that cannot be told yet: the place is taken, or the ledger does not answer.
    pub(crate) async fn take(
        &self,
        ledger: &Arc<Ledger>,
        kept_s: u64,
        is_must: bool,
    ) -> Result<Taken, ApiError> {
        let (scope, key): (Arc<str>, Arc<str>) =
            (self.scope.as_str().into(), self.key.as_str().into());
        let body_digest = self.body_digest;
        match begin(ledger, &scope, &key, body_digest).await? {
            Begin::Again(answer) => Ok(Taken::Answered(sent(answer))),
            Begin::First(answering) => {
                let expires_ms = unix_ms().saturating_add(kept_s.saturating_mul(1000));
                let place = Place { scope, key, body_digest, expires_ms, is_must, answering };
                Ok(Taken::Free(Keeping(Arc::new(place))))
            }
            Begin::InFlight => Err(ledger_unavailable("the place of an answer is taken")),
            Begin::OtherBody => {
                Err(ApiError::internal("the answer to another body is kept in this place"))
            }
        }
    }

    /// Words that stand for the project and the key, and nothing else.
    pub(crate) fn digest(&self) -> [u8; 32] {
        Sha256::digest(format!("{} {}", self.scope, self.key)).into()
    }

    /// The answer as it was sent, if it was kept. Blocks.
    pub(crate) fn find(&self, ledger: &Ledger) -> Result<Option<Vec<u8>>, LedgerError> {
        let (scope, key) = (self.scope.as_str().into(), self.key.as_str().into());
        Ok(match ledger.begin(&scope, &key, self.body_digest, unix_ms())? {
            Begin::Again(answer) => Some(sent(answer)),
            _ => None,
        })
    }
}

impl Keeping {
    pub(crate) fn place(&self) -> KeptPlace {
        KeptPlace {
            scope: self.0.scope.to_string(),
            key: self.0.key.to_string(),
            body_digest: self.0.body_digest,
        }
    }

    /// The longest answer that is given; `None`: any is.
    pub(crate) fn max_bytes(&self) -> Option<usize> {
        self.0.is_must.then_some(MAX_KEPT_BYTES)
    }

    /// What is kept of an answer; `None` where it is too long.
    pub(crate) fn answer(&self, form: Form, body: &[u8]) -> Option<KeptAnswer> {
        if body.len() > MAX_KEPT_BYTES {
            return None;
        }
        let mut answer = Vec::with_capacity(body.len() + 1);
        answer.push(form.tag());
        answer.extend_from_slice(body);
        Some(KeptAnswer {
            scope: Arc::clone(&self.0.scope),
            key: Arc::clone(&self.0.key),
            body_digest: self.0.body_digest,
            answer,
            expires_ms: self.0.expires_ms,
        })
    }

    /// What is kept of an answer that is sent as a whole.
    ///
    /// # Errors
    /// It is too long, and must be kept.
    pub(crate) fn whole(&self, body: &[u8]) -> Result<Option<KeptAnswer>, ApiError> {
        let kept = self.answer(Form::Json, body);
        if kept.is_none() && self.0.is_must {
            let message = format!(
                "The answer has {} bytes; an answer of a task or in a batch has at most {MAX_KEPT_BYTES}.",
                body.len()
            );
            return Err(ApiError::new(Fault::Invalid, "answer_too_long", message));
        }
        Ok(kept)
    }
}

/// The frames of a stream as they are sent, where they are to be kept.
pub(crate) struct Transcript {
    keeping: Option<Keeping>,
    form: Form,
    bytes: Vec<u8>,
}

impl Transcript {
    pub(crate) fn new(keeping: Option<Keeping>, form: Form) -> Self {
        Self { keeping, form, bytes: Vec::new() }
    }

    /// Another frame is sent.
    pub(crate) fn frame(&mut self, frame: &[u8]) {
        // A little beyond the limit tells that it was exceeded.
        if self.keeping.is_some() && self.bytes.len() <= MAX_KEPT_BYTES {
            self.bytes.extend_from_slice(frame);
        }
    }

    /// All that was and will be sent, `last` being the frames to come.
    pub(crate) fn answer<'a>(
        &self,
        last: impl IntoIterator<Item = &'a Bytes>,
    ) -> Option<KeptAnswer> {
        let keeping = self.keeping.as_ref()?;
        let mut bytes = self.bytes.clone();
        for frame in last {
            bytes.extend_from_slice(frame);
        }
        keeping.answer(self.form, &bytes)
    }
}

/// The layer of routes that compute. It stands inside of authentication.
pub(crate) async fn layer(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(ledger) = app.till.ledger().cloned() else { return next.run(request).await };
    if let Some(line) = request.extensions().get::<BatchLine>().cloned() {
        let answered = keyed(&app, &ledger, request, next, Repeated::of_line(&line)).await;
        return answered.unwrap_or_else(IntoResponse::into_response);
    }
    if request.method() != Method::POST || !request.headers().contains_key(HEADER) {
        return next.run(request).await;
    }
    let repeated = match Repeated::of_header(&request) {
        Ok(repeated) => repeated,
        Err(error) => return error.into_response(),
    };
    let answered = keyed(&app, &ledger, request, next, repeated).await;
    answered.unwrap_or_else(IntoResponse::into_response)
}

/// Under which name an answer is kept, and how long.
struct Repeated {
    /// Within the project.
    scope: String,
    key: Arc<str>,
    expires_ms: u64,
    is_must: bool,
}

impl Repeated {
    /// As the client says.
    fn of_header(request: &Request) -> Result<Self, ApiError> {
        let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        Ok(Self {
            scope: route.to_owned(),
            key: read_key(request)?,
            expires_ms: unix_ms().saturating_add(KEPT_MS),
            is_must: false,
        })
    }

    /// A line of a batch is billed once, whenever the process dies. No route is called `batch`.
    fn of_line(line: &BatchLine) -> Self {
        Self {
            scope: format!("batch {}", line.batch),
            key: line.number.to_string().into(),
            expires_ms: line.keep_until_ms,
            is_must: true,
        }
    }
}

async fn keyed(
    app: &Arc<App>,
    ledger: &Arc<Ledger>,
    request: Request,
    next: Next,
    repeated: Repeated,
) -> Result<Response, ApiError> {
    let Repeated { scope, key, expires_ms, is_must } = repeated;
    let (mut parts, body) = request.into_parts();
    let caller = parts.extensions.get::<Caller>();
    let project = caller.map(|caller| caller.project().to_owned()).unwrap_or_default();
    let limits = &app.limits;
    let body = read_json(&parts.headers, body, limits.max_body_bytes, limits.body_timeout).await?;
    let scope: Arc<str> = format!("{project} {scope}").into();
    let body_digest: [u8; 32] = Sha256::digest(&body).into();
    match begin(ledger, &scope, &key, body_digest).await? {
        Begin::Again(answer) => Ok(replay(answer)),
        Begin::InFlight => Err(ApiError::new(
            Fault::Conflict,
            "idempotency_key_in_use",
            "A request with this Idempotency-Key is being answered. Please try again.",
        )),
        Begin::OtherBody => Err(ApiError::new(
            Fault::Unprocessable,
            "idempotency_key_reused",
            "This Idempotency-Key was used for a request with another body. Use a new key.",
        )),
        Begin::First(answering) => {
            let place = Place { scope, key, body_digest, expires_ms, is_must, answering };
            let keeping = Keeping(Arc::new(place));
            parts.extensions.insert(keeping.clone());
            let request = Request::from_parts(parts, Body::from(body));
            run_on(app, request, next, keeping).await
        }
    }
}

fn read_key(request: &Request) -> Result<Arc<str>, ApiError> {
    let mut values = request.headers().get_all(HEADER).iter();
    let key = values.next().and_then(|value| value.to_str().ok()).unwrap_or_default();
    let well_formed = (1..=MAX_KEY_CHARS).contains(&key.len()) && values.next().is_none();
    if well_formed {
        return Ok(key.into());
    }
    Err(ApiError::new(
        Fault::Invalid,
        "invalid_idempotency_key",
        format!("An Idempotency-Key has 1 to {MAX_KEY_CHARS} visible ASCII characters."),
    ))
}

/// The answer of a line of a batch that was billed before. Blocks.
pub(crate) fn kept_line(
    ledger: &Ledger,
    project: &str,
    batch: &str,
    line: u32,
    body: &str,
) -> Result<Option<Vec<u8>>, LedgerError> {
    let name = format!("batch {batch}");
    KeptPlace::own(project, &name, &line.to_string(), body.as_bytes()).find(ledger)
}

/// The store is asked, which may read the disk.
async fn begin(
    ledger: &Arc<Ledger>,
    scope: &Arc<str>,
    key: &Arc<str>,
    body_digest: [u8; 32],
) -> Result<Begin, ApiError> {
    let (ledger, scope, key) = (Arc::clone(ledger), Arc::clone(scope), Arc::clone(key));
    let begin = move || ledger.begin(&scope, &key, body_digest, unix_ms());
    let begun = tokio::task::spawn_blocking(begin).await;
    let begun = begun.map_err(|e| ApiError::internal(format!("looking up a key failed: {e}")))?;
    begun.map_err(|error| match error {
        LedgerError::TooLarge(_) => ApiError::internal(error.to_string()),
        // A database that gateways share comes back.
        error => ledger_unavailable(error.to_string()),
    })
}

/// An answer without what tells its form.
fn sent(mut answer: Vec<u8>) -> Vec<u8> {
    answer.drain(..answer.len().min(1));
    answer
}

/// Runs the request in a task of its own, so that it ends whoever still listens.
async fn run_on(
    app: &Arc<App>,
    request: Request,
    next: Next,
    keeping: Keeping,
) -> Result<Response, ApiError> {
    let (answered, answer) = oneshot::channel();
    let run = async move {
        let (parts, body) = next.run(request).await.into_parts();
        let (frames, received) = mpsc::channel::<Result<Bytes, axum::Error>>(FRAMES);
        let received = stream::unfold(received, |mut received| async move {
            received.recv().await.map(|frame| (frame, received))
        });
        let mut listening =
            answered.send(Response::from_parts(parts, Body::from_stream(received))).is_ok();
        let mut body = body.into_data_stream();
        while let Some(frame) = body.next().await {
            listening = listening && frames.send(frame).await.is_ok();
        }
        drop(keeping);
    };
    app.settling.spawn(run.instrument(tracing::Span::current()));
    answer.await.map_err(|_| ApiError::internal("a keyed request ended without an answer"))
}

/// The same answer again.
fn replay(mut answer: Vec<u8>) -> Response {
    let tag = if answer.is_empty() { Form::Json.tag() } else { answer.remove(0) };
    let mut response = if tag == Form::Events.tag() {
        (sse::headers(Framing::EVENTS.content_type), Body::from(answer)).into_response()
    } else if tag == Form::Lines.tag() {
        (sse::headers(LINES), Body::from(answer)).into_response()
    } else {
        let json = HeaderValue::from_static("application/json");
        (StatusCode::OK, [(header::CONTENT_TYPE, json)], answer).into_response()
    };
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}
