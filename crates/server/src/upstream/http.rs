//! The one kind of upstream: a service that speaks OpenAI's API; chats are streamed, vectors come as a whole.

use std::collections::VecDeque;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use mintage_model::VectorTask;

use super::chunks::Chunks;
use super::config::{ApiKey, Flavour, UpstreamConfig, UpstreamError, UpstreamTask};
use super::failure::FailureKind;
use super::lines::{Lines, MAX_ANSWER_BYTES};
use super::{Ask, Failure, Heard, HeardVectors, Hearing, Kind, Upstream, VectorAsk, retry};
use crate::egress::{Answer, Client, EgressError};

/// Read of an answer that is an error.
const MAX_ERROR_BYTES: usize = 16 << 10;
/// Longer answers are read away from the threads that serve sockets.
const INLINE_JSON_BYTES: usize = 64 << 10;
const EVENTS: &str = "text/event-stream";
const JSON: &str = "application/json";
const DONE: &str = "[DONE]";

pub(super) struct HttpUpstream {
    client: Client,
    chat: Uri,
    text: Uri,
    embeddings: Uri,
    rerank: Uri,
    headers: HeaderMap,
    key: Option<ApiKey>,
    first_event_timeout: Duration,
    idle_timeout: Duration,
}

impl HttpUpstream {
    pub(super) fn new(config: &UpstreamConfig) -> Result<Self, UpstreamError> {
        let name = || config.name.clone();
        let policy = config.egress();
        let url = |path: &str| {
            let url = format!("{}{path}", config.base_url.trim_end_matches('/'));
            policy
                .check_url(&url, "upstreams")
                .and_then(|()| url.parse::<Uri>().map_err(|error| error.to_string()))
                .map_err(|why| UpstreamError::Url { name: name(), why })
        };
        let (chat, text) = (url("/chat/completions")?, url("/completions")?);
        // Model Studio's stands under `/compatible-api/v1`, in the plural.
        let is_plural = config.flavour == Flavour::Dashscope;
        let rerank = url(if is_plural { "/reranks" } else { "/rerank" })?;
        let embeddings = url("/embeddings")?;
        let accept = if config.task == UpstreamTask::Generate { EVENTS } else { JSON };
        let client = Client::new(policy, &config.client())
            .map_err(|why| UpstreamError::Tls { name: name(), why })?;
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("mintage/", env!("CARGO_PKG_VERSION"))),
        );
        if let Some(key) = &config.api_key {
            headers.insert(header::AUTHORIZATION, key.header());
        }
        Ok(Self {
            client,
            chat,
            text,
            embeddings,
            rerank,
            headers,
            key: config.api_key.clone(),
            first_event_timeout: config.first_event_timeout,
            idle_timeout: config.idle_timeout,
        })
    }

    /// The head of a good answer, whose content is of this type.
    async fn post(&self, url: &Uri, body: Bytes, expected: &str) -> Result<Answer, Failure> {
        let answer = self.client.post(url, &self.headers, body).await;
        let mut answer = answer.map_err(failed)?;
        let status = answer.status();
        if status != StatusCode::OK {
            let retry_after = retry::asked(answer.headers());
            let body = begin_of_body(&mut answer).await;
            return Err(Failure::of_status(status, retry_after, &body));
        }
        let kind = answer.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.to_ascii_lowercase().starts_with(expected) {
            let kind: String = kind.chars().take(80).collect();
            return Err(Failure::nonsense(format!("`{kind}` instead of `{expected}`")));
        }
        Ok(answer)
    }

    async fn begin(&self, ask: &Ask) -> Result<Hearing, Failure> {
        let url = match ask.kind {
            Kind::Chat => &self.chat,
            Kind::Text => &self.text,
        };
        let answer = self.post(url, ask.body.clone(), EVENTS).await?;
        let mut reading = Reading {
            answer: Some(answer),
            lines: Lines::default(),
            chunks: Chunks::new(ask),
            ready: VecDeque::new(),
            idle_timeout: self.idle_timeout,
            at_end: false,
        };
        let first = reading.next().await.transpose()?;
        let first = stream::iter(first.map(Ok));
        let rest = stream::unfold(Some(reading), |reading| async {
            let mut reading = reading?;
            match reading.next().await? {
                Ok(heard) => Some((Ok(heard), Some(reading))),
                Err(failure) => Some((Err(failure), None)),
            }
        });
        let key = self.key.clone();
        let rest = rest.map(move |heard| heard.map_err(|failure| failure.without(key.as_ref())));
        Ok(first.chain(rest).boxed())
    }
}

impl HttpUpstream {
    async fn all_vectors(&self, ask: &VectorAsk) -> Result<HeardVectors, Failure> {
        let expected = ask.expected;
        let url = match expected.task {
            VectorTask::Embed => &self.embeddings,
            VectorTask::Rerank => &self.rerank,
        };
        let limit = self.first_event_timeout;
        let head = tokio::time::timeout(limit, self.post(url, ask.body.clone(), JSON)).await;
        let answer = head.map_err(|_| Failure::timeout("no answer", limit))??;
        let body = whole_body(answer, self.idle_timeout).await?;
        let body = body.ok_or_else(|| ask.too_long(MAX_ANSWER_BYTES))?;
        if body.len() <= INLINE_JSON_BYTES {
            return expected.read(&body);
        }
        let read = tokio::task::spawn_blocking(move || expected.read(&body)).await;
        read.unwrap_or_else(|error| Err(Failure::nonsense(format!("an answer: {error}"))))
    }
}

impl Upstream for HttpUpstream {
    fn connections(&self) -> [u64; 2] {
        self.client.connections()
    }

    fn open<'a>(&'a self, ask: &'a Ask) -> BoxFuture<'a, Result<Hearing, Failure>> {
        async {
            let limit = self.first_event_timeout;
            match tokio::time::timeout(limit, self.begin(ask)).await {
                Ok(begun) => begun.map_err(|failure| failure.without(self.key.as_ref())),
                Err(_) => Err(Failure::timeout("no event", limit)),
            }
        }
        .boxed()
    }

    fn vectors<'a>(&'a self, ask: &'a VectorAsk) -> BoxFuture<'a, Result<HeardVectors, Failure>> {
        async {
            let heard = self.all_vectors(ask).await;
            heard.map_err(|failure| failure.without(self.key.as_ref()))
        }
        .boxed()
    }
}

fn failed(error: EgressError) -> Failure {
    let kind = match error {
        // It was checked when it was set up: the name leads elsewhere now.
        EgressError::Refused(_) | EgressError::Untrusted(_) => FailureKind::Refused,
        EgressError::Connect(_) => FailureKind::Unreachable,
        EgressError::Broken(_) => FailureKind::Failed,
    };
    Failure::new(kind, error.to_string())
}

async fn begin_of_body(answer: &mut Answer) -> Vec<u8> {
    let mut begin = Vec::new();
    while let Some(Ok(bytes)) = answer.bytes().await {
        begin.extend_from_slice(bytes.get(..bytes.len().min(MAX_ERROR_BYTES)).unwrap_or(&[]));
        if begin.len() >= MAX_ERROR_BYTES {
            break;
        }
    }
    begin.truncate(MAX_ERROR_BYTES);
    begin
}

/// All of a body, which pauses no longer than this; `None`: it is longer than may be read.
async fn whole_body(
    mut answer: Answer,
    idle_timeout: Duration,
) -> Result<Option<Vec<u8>>, Failure> {
    let mut body = Vec::new();
    loop {
        let bytes = tokio::time::timeout(idle_timeout, answer.bytes()).await;
        let Some(bytes) = bytes.map_err(|_| Failure::timeout("nothing more", idle_timeout))? else {
            return Ok(Some(body));
        };
        let data = bytes.map_err(broken_off)?;
        if body.len() + data.len() > MAX_ANSWER_BYTES {
            return Ok(None);
        }
        body.extend_from_slice(&data);
    }
}

fn broken_off(error: hyper::Error) -> Failure {
    Failure::nonsense(format!("the answer broke off: {error}"))
}

/// An answer that is being read.
struct Reading {
    /// `None` once all that is wanted of it was read.
    answer: Option<Answer>,
    lines: Lines,
    chunks: Chunks,
    ready: VecDeque<Heard>,
    idle_timeout: Duration,
    at_end: bool,
}

impl Reading {
    /// `None` once it was complete.
    async fn next(&mut self) -> Option<Result<Heard, Failure>> {
        loop {
            if let Some(heard) = self.ready.pop_front() {
                return Some(Ok(heard));
            }
            if self.at_end {
                return None;
            }
            if let Err(failure) = self.more().await {
                self.at_end = true;
                return Some(Err(failure));
            }
        }
    }

    /// Reads what comes next, if it says something or not.
    async fn more(&mut self) -> Result<(), Failure> {
        while let Some(data) = self.lines.next()? {
            if self.data(&data)? {
                return Ok(());
            }
        }
        let limit = self.idle_timeout;
        match tokio::time::timeout(limit, self.bytes()).await {
            Err(_) => Err(Failure::timeout("nothing more", limit)),
            Ok(Err(failure)) => Err(failure),
            Ok(Ok(Some(bytes))) => self.lines.push(&bytes),
            // Services that forget `[DONE]` close the connection when all is said.
            Ok(Ok(None)) => {
                if let Some(data) = self.lines.last()?
                    && self.data(&data)?
                {
                    return Ok(());
                }
                self.end()
            }
        }
    }

    /// The data of an event; whether it was the last, or said something.
    fn data(&mut self, data: &str) -> Result<bool, Failure> {
        if data == DONE {
            self.end()?;
            if let Some(answer) = self.answer.take() {
                answer.finish();
            }
            return Ok(true);
        }
        self.chunks.data(data, &mut self.ready)?;
        Ok(!self.ready.is_empty())
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.at_end = true;
        self.chunks.end()
    }

    async fn bytes(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(answer) = &mut self.answer else { return Ok(None) };
        answer.bytes().await.transpose().map_err(broken_off)
    }
}
