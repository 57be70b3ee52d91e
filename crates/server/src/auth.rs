//! Who asks: decided on the matched route, before any of the body is read.
//!
//! With keys, a request to a protected route carries `Authorization: Bearer KEY`, or `x-api-key: KEY` as Anthropic's
//! clients send it. Without keys (loopback only), a
//! browser on the same machine must not be turned against us: the Host must name the loopback, and so must an Origin.
//!
//! Invariant: a handler on a protected route runs only with a [`Caller`] in its request's extensions.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use mintage_ledger::{DirectoryStore, Principal};

use crate::app::{App, PREFIXES};
use crate::error::{ApiError, Fault};

/// Where Anthropic's clients put the key.
const PLAIN_KEY: &str = "x-api-key";

/// Who may use the server.
#[derive(Clone, Debug)]
pub enum Access {
    /// Holders of a key.
    Keys(Arc<DirectoryStore>),
    /// Everyone who reaches it; loopback addresses only.
    Open,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) principal: Arc<Principal>,
}

impl Caller {
    /// The project on whose behalf the request runs.
    pub(crate) fn project(&self) -> &str {
        self.principal.project.as_deref().unwrap_or_default()
    }
}

/// The layer of protected routes.
pub(crate) async fn layer(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = identify(&app, request.headers());
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    match caller.and_then(|caller| within_scope(caller, route)) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

fn identify(app: &App, headers: &HeaderMap) -> Result<Caller, ApiError> {
    match &app.access {
        Access::Keys(keys) => with_key(keys, headers),
        Access::Open => {
            local_only(headers)?;
            Ok(Caller { principal: Arc::clone(&app.local) })
        }
    }
}

pub(crate) fn with_key(keys: &DirectoryStore, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let refuse = |message: &str, log: &str| ApiError {
        log: Some(log.to_owned()),
        ..ApiError::new(Fault::Unauthenticated, "invalid_api_key", message)
    };
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let mut plain = headers.get_all(PLAIN_KEY).iter();
    let (value, plain_value) = (values.next(), plain.next());
    if values.next().is_some() || plain.next().is_some() {
        return Err(refuse("More than one `Authorization` header.", "two authorization headers"));
    }
    let key = match (value.map(bearer), plain_value.map(|value| value.to_str().ok())) {
        (None, None) => {
            return Err(refuse(
                "You didn't provide an API key. Send it in the header `Authorization: Bearer YOUR_KEY`.",
                "no key",
            ));
        }
        (Some(None), _) => {
            return Err(refuse(
                "The `Authorization` header must read `Bearer YOUR_KEY`.",
                "no bearer token",
            ));
        }
        // Whom of the two they meant is not ours to guess.
        (Some(Some(key)), Some(other)) if other != Some(key) => {
            return Err(refuse(
                "The headers `Authorization` and `x-api-key` hold different keys; send one.",
                "two keys",
            ));
        }
        (Some(Some(key)), _) => key,
        (None, Some(key)) => key.unwrap_or_default().trim(),
    };
    let principal = keys
        .authenticate(key, now_unix())
        .map_err(|why| refuse("Incorrect API key provided.", &format!("key refused: {why}")))?;
    Ok(Caller { principal })
}

/// A key may be made for some routes only; keys that administer are not for these.
fn within_scope(caller: Caller, route: &str) -> Result<Caller, ApiError> {
    let refuse = |message: String| ApiError::new(Fault::Forbidden, "insufficient_scope", message);
    if caller.principal.project.is_none() {
        return Err(refuse(
            "This key administers and calls no models; use a key of a project.".to_owned(),
        ));
    }
    // A key made for a route is made for it under all of its prefixes.
    let plain = PREFIXES.iter().find_map(|prefix| route.strip_prefix(prefix));
    let scopes = &caller.principal.scopes;
    if !scopes.allows_endpoint(route) && !plain.is_some_and(|plain| scopes.allows_endpoint(plain)) {
        return Err(refuse(format!("This key is not made for `{route}`.")));
    }
    Ok(caller)
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// A web page that resolves its own name to 127.0.0.1 still sends that name as Host, and its address as Origin.
fn local_only(headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok());
    let origin = headers.get(header::ORIGIN).map(|v| v.to_str().unwrap_or("?"));
    let origin_host = origin.map(|o| o.split_once("://").map_or(o, |(_, rest)| rest));
    let named_loopback =
        host.is_some_and(names_loopback) && headers.get_all(header::HOST).iter().count() == 1;
    if named_loopback && origin_host.is_none_or(names_loopback) {
        return Ok(());
    }
    Err(ApiError::new(
        Fault::Forbidden,
        "host_not_allowed",
        "This server runs without API keys and answers only requests to localhost from localhost.",
    ))
}

/// `localhost`, `127.0.0.1` or `[::1]`, with or without a port.
fn names_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    matches!(host.to_ascii_lowercase().as_str(), "localhost" | "127.0.0.1" | "[::1]")
}

/// Seconds since 1970.
pub(crate) fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_keys_answers_only_to_its_own_name() {
        let check = |host: Option<&str>, origin: Option<&str>, allowed: bool| {
            let mut headers = HeaderMap::new();
            for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
                if let Some(value) = value {
                    headers.insert(name, HeaderValue::from_str(value).unwrap());
                }
            }
            assert_eq!(local_only(&headers).is_ok(), allowed, "{host:?} {origin:?}");
        };
        check(Some("localhost:8080"), None, true);
        check(Some("127.0.0.1"), Some("http://localhost:3000"), true);
        check(Some("[::1]:8080"), None, true);
        check(None, None, false);
        check(Some("evil.example"), None, false);
        check(Some("127.0.0.1.evil.example"), None, false);
        check(Some("localhost"), Some("https://evil.example"), false);
        check(Some("localhost"), Some("null"), false);
        check(Some("localhost/?"), None, false);
        check(Some("evil@localhost"), None, false);
    }
}
