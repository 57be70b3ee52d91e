//! Requests of ours whose answers are read as they come: one connection each, checked against the policy as it is made.
//!
//! Not here: timeouts of an answer, and what is sent. Invariants: no redirect is followed, no proxy is asked; the address
//! that was checked is the address that is connected to; dropping an answer closes its connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::header::{CONTENT_LENGTH, HOST};
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::ConfigVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::{EgressPolicy, NO_ADDRESS};

/// Bytes of an answer's head, and of what is buffered of its body.
const MAX_BUFFER_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 100;

/// Why no answer came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EgressError {
    /// The policy does not let it go there.
    #[error("{0}")]
    Refused(String),
    /// Nobody there, or nobody who can be trusted. Nothing was sent.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke, or what came was no HTTP.
    #[error("the connection broke: {0}")]
    Broken(String),
}

/// Makes requests to where the policy allows.
#[derive(Clone)]
pub(crate) struct Client {
    policy: EgressPolicy,
    connect_timeout: Duration,
    tls: TlsConnector,
}

/// The head of an answer, and its body as it comes.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    _connection: Closed,
}

/// Drives a connection; closes it when dropped.
struct Closed(JoinHandle<()>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// `connect_timeout` covers name, connection and TLS.
    ///
    /// # Errors
    /// This machine has no certificates to check others by.
    pub(crate) fn new(policy: EgressPolicy, connect_timeout: Duration) -> Result<Self, String> {
        let tls = rustls::ClientConfig::with_platform_verifier()
            .map_err(|error| format!("no TLS on this machine: {error}"))?;
        Ok(Self { policy, connect_timeout, tls: TlsConnector::from(Arc::new(tls)) })
    }

    /// Sends a body and resolves with the head of the answer.
    pub(crate) async fn post(
        &self,
        url: &Uri,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Answer, EgressError> {
        self.policy
            .check_url(&url.to_string(), "the hosts of upstreams")
            .map_err(EgressError::Refused)?;
        let host = url.host().unwrap_or_default();
        let is_tls = url.scheme_str() != Some("http");
        let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let connecting = self.connect(host, port, is_tls);
        let stream = tokio::time::timeout(self.connect_timeout, connecting).await;
        let stream = stream.map_err(|_| {
            EgressError::Connect(format!("none within {} ms", self.connect_timeout.as_millis()))
        })??;
        send(stream, request(url, headers, body)?).await
    }

    async fn connect(&self, host: &str, port: u16, is_tls: bool) -> Result<Stream, EgressError> {
        let failed = |error: std::io::Error| EgressError::Connect(error.to_string());
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let found = tokio::net::lookup_host((bare, port)).await.map_err(failed)?;
        let allowed: Vec<SocketAddr> =
            found.filter(|address| self.policy.allows(address.ip())).collect();
        if allowed.is_empty() {
            return Err(EgressError::Refused(NO_ADDRESS.to_owned()));
        }
        let tcp = TcpStream::connect(&*allowed).await.map_err(failed)?;
        // Requests are small and answers are waited for.
        tcp.set_nodelay(true).map_err(failed)?;
        if !is_tls {
            return Ok(Box::new(tcp));
        }
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|error| EgressError::Connect(error.to_string()))?;
        Ok(Box::new(self.tls.connect(name, tcp).await.map_err(failed)?))
    }
}

type Stream = Box<dyn Transport>;

trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

fn request(
    url: &Uri,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, EgressError> {
    let refused = |error: String| EgressError::Refused(error);
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let host = HeaderValue::from_str(authority).map_err(|e| refused(e.to_string()))?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let length = HeaderValue::from(body.len());
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .body(Full::new(body))
        .map_err(|e| refused(e.to_string()))?;
    request.headers_mut().extend(headers.clone());
    request.headers_mut().insert(HOST, host);
    request.headers_mut().insert(CONTENT_LENGTH, length);
    Ok(request)
}

async fn send(stream: Stream, request: Request<Full<Bytes>>) -> Result<Answer, EgressError> {
    let broken = |error: hyper::Error| EgressError::Broken(error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_BUFFER_BYTES)
        .max_headers(MAX_HEADERS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    // Its end is told to whoever reads the answer.
    let driving = Closed(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let response = sender.send_request(request).await.map_err(broken)?;
    Ok(Answer { response, _connection: driving })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_checked_addresses_are_connected_to() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let check = async |allow_hosts: &[&str], private: bool, url: String, expected: &str| {
            let policy = EgressPolicy {
                allow_hosts: allow_hosts.iter().map(|&host| host.to_owned()).collect(),
                allow_private_addresses: private,
            };
            let client = Client::new(policy, Duration::from_secs(5)).unwrap();
            let uri: Uri = url.parse().unwrap();
            let sent = client.post(&uri, &HeaderMap::new(), Bytes::from_static(b"{}")).await;
            let error = sent.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(expected), "{url}: {error}");
        };
        check(&[], false, format!("https://localhost:{port}/"), NO_ADDRESS).await;
        check(&[], false, format!("http://localhost:{port}/"), "https://").await;
        check(&["a.example"], true, format!("http://localhost:{port}/"), "not among").await;
        check(&[], false, format!("https://127.0.0.1:{port}/"), "not a public address").await;
        assert!(listener.accept().is_err(), "somebody connected");
    }
}
