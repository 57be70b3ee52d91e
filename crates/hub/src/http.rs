//! GET over HTTP with the redirect rule that a token needs: it goes to the endpoint it was given for and nowhere else.
//!
//! Not a general client: no cookies, no bodies sent, no content encodings (ranges count stored bytes).

use std::time::Duration;

use ureq::http::{HeaderMap, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, Timeout};

/// A source that cannot be reached is left for the next one this fast.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Until the headers of an answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Without a single byte.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// For the whole of one body; a longer download goes on with the next attempt.
const BODY_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
/// Redirects followed.
const REDIRECTS_MAX: u32 = 8;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum HttpError {
    /// No connection; the host is down, unknown or not allowed.
    Connect { host: String, message: String },
    /// The connection broke; worth another try.
    Transfer { message: String },
    /// The answer breaks the protocol; no use in trying again.
    Protocol { message: String },
}

/// An answer whose body has not been read.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// Headers of the endpoint's own answer, before any redirect: what it says about the file it links to.
    pub(crate) first_headers: HeaderMap,
    pub(crate) body: Body,
}

/// A client of one endpoint.
pub(crate) struct Http {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Http {
    /// `endpoint` is a URL without a query, such as `https://host` or `http://host:port/prefix`.
    pub(crate) fn new(endpoint: &str, token: Option<String>) -> Self {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("mintage/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(RESPONSE_TIMEOUT))
            .timeout_recv_body(Some(BODY_TIMEOUT))
            .timeout_per_read(Some(STALL_TIMEOUT))
            .build()
            .new_agent();
        Self { agent, endpoint: endpoint.trim_end_matches('/').to_owned(), token }
    }

    /// The endpoint's host, for messages.
    pub(crate) fn host(&self) -> String {
        self.endpoint
            .parse::<Uri>()
            .ok()
            .and_then(|uri| uri.host().map(str::to_owned))
            .unwrap_or_default()
    }

    /// GET `path` (beginning with `/`) of the endpoint, from byte `from` on, following redirects.
    pub(crate) fn get(
        &self,
        path: &str,
        from: u64,
        if_range: Option<&str>,
    ) -> Result<Answer, HttpError> {
        let first = parse(&format!("{}{path}", self.endpoint))?;
        let mut uri = first.clone();
        let mut first_headers = None;
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.agent.get(uri.clone());
            if let Some(token) = self.token.as_ref().filter(|_| same_origin(&uri, &first)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
                if let Some(etag) = if_range {
                    request = request.header("If-Range", etag);
                }
            }
            let response = request.call().map_err(|error| classify(error, &uri))?;
            let (parts, body) = response.into_parts();
            let first_headers = first_headers.get_or_insert_with(|| parts.headers.clone());
            let location = parts.headers.get("location").and_then(|value| value.to_str().ok());
            match (parts.status.as_u16(), location) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => uri = redirected(&uri, location)?,
                (status, _) => {
                    let first_headers = first_headers.clone();
                    return Ok(Answer { status, headers: parts.headers, first_headers, body });
                }
            }
        }
        Err(HttpError::Protocol { message: format!("more than {REDIRECTS_MAX} redirects") })
    }
}

fn parse(url: &str) -> Result<Uri, HttpError> {
    let uri = url
        .parse::<Uri>()
        .ok()
        .filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
    uri.ok_or_else(|| HttpError::Protocol { message: format!("`{url}` is not an http(s) URL") })
}

/// Where a redirect leads. Never from https to http: the bytes are checked by digest, but what is asked for, and the
/// names of private repositories, are not for everyone on the way.
fn redirected(from: &Uri, location: &str) -> Result<Uri, HttpError> {
    let scheme = from.scheme_str().unwrap_or("https");
    let authority = from.authority().map_or("", |authority| authority.as_str());
    let url = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        location.to_owned()
    };
    let to = parse(&url)?;
    if scheme == "https" && to.scheme_str() != Some("https") {
        let message = format!("refused to follow a redirect from https to `{to}`");
        return Err(HttpError::Protocol { message });
    }
    Ok(to)
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let origin = |uri: &Uri| {
        let https = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        (https, uri.host().map(str::to_ascii_lowercase), port)
    };
    origin(a) == origin(b)
}

fn classify(error: ureq::Error, uri: &Uri) -> HttpError {
    use std::io::ErrorKind;
    let connect = match &error {
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::ConnectProxyFailed(_)
        | ureq::Error::Tls(_)
        | ureq::Error::Rustls(_)
        | ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => true,
        // The system's resolver has no error kind of its own.
        ureq::Error::Io(io) => {
            io.to_string().contains("failed to lookup address")
                || matches!(
                    io.kind(),
                    ErrorKind::ConnectionRefused
                        | ErrorKind::HostUnreachable
                        | ErrorKind::NetworkUnreachable
                )
        }
        _ => false,
    };
    let message = error.to_string();
    if connect {
        let host = uri.host().unwrap_or_default().to_owned();
        return HttpError::Connect { host, message };
    }
    match error {
        ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => {
            HttpError::Transfer { message }
        }
        _ => HttpError::Protocol { message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_and_redirects() {
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        assert!(same_origin(&uri("https://Host/x"), &uri("https://host:443/y")));
        for other in ["http://host/x", "https://host:444/x", "https://host.evil/x"] {
            assert!(!same_origin(&uri("https://host/x"), &uri(other)), "{other}");
        }
        let check = |from: &str, location: &str, expected: Option<&str>| {
            let to = redirected(&uri(from), location).ok().map(|to| to.to_string());
            assert_eq!(to.as_deref(), expected, "{from} → {location}");
        };
        check("https://a/x", "/y?z=1", Some("https://a/y?z=1"));
        check("https://a/x", "//b/y", Some("https://b/y"));
        check("https://a/x", "https://b/y", Some("https://b/y"));
        check("https://a/x", "http://a/y", None);
        check("http://a:1/x", "/y", Some("http://a:1/y"));
        check("http://a/x", "ftp://b/y", None);
        check("http://a/x", "y", None);
    }
}
