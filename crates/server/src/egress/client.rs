//! Requests of ours whose answers are read as they come, each on a connection of its own for so long; a connection is
//! checked against the policy as it is made, and kept for a while once its answer was read to the end.
//!
//! Not here: timeouts of an answer, and what is sent. Invariants: no redirect is followed, no proxy is asked; the address
//! that was checked is the address that is connected to; dropping an answer before its end closes its connection; a
//! request is sent again only where no byte of it was written.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::header::{CONTENT_LENGTH, HOST};
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::pool::{Connection, Pool, SendError};
use super::tls::{self, CaCertificates};
use super::{EgressPolicy, NO_ADDRESS};

/// What may be left of an answer of which nobody wants more: the end mark of a stream.
const MAX_REST_BYTES: usize = 4 << 10;
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// Why no answer came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EgressError {
    /// The policy does not let it go there.
    #[error("{0}")]
    Refused(String),
    /// Who is there cannot be trusted. Nothing was sent.
    #[error("{0}")]
    Untrusted(String),
    /// Nobody there. Nothing was sent.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke, or what came was no HTTP.
    #[error("the connection broke: {0}")]
    Broken(String),
}

/// How connections are made and kept.
#[derive(Clone, Debug)]
pub(crate) struct ClientConfig {
    /// Covers name, connection and TLS.
    pub(crate) connect_timeout: Duration,
    /// Connections that wait for their next request.
    pub(crate) max_idle_connections: usize,
    /// Trusted beside those that this machine trusts.
    pub(crate) ca: CaCertificates,
}

/// Makes requests to where the policy allows.
pub(crate) struct Client {
    policy: EgressPolicy,
    connect_timeout: Duration,
    tls: TlsConnector,
    pool: Arc<Pool>,
    opened: AtomicU64,
    reused: AtomicU64,
}

/// The head of an answer, and its body as it comes.
pub(crate) struct Answer {
    response: Response<Incoming>,
    /// `None` once it was given back.
    connection: Option<Connection>,
    origin: Arc<str>,
    pool: Arc<Pool>,
}

impl Client {
    /// # Errors
    /// This machine has no certificates to check others by.
    pub(crate) fn new(policy: EgressPolicy, config: &ClientConfig) -> Result<Self, String> {
        Ok(Self {
            policy,
            connect_timeout: config.connect_timeout,
            tls: tls::connector(&config.ca)?,
            pool: Pool::new(config.max_idle_connections),
            opened: AtomicU64::new(0),
            reused: AtomicU64::new(0),
        })
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
        let scheme = if is_tls { "https" } else { "http" };
        let origin: Arc<str> = format!("{scheme}://{host}:{port}").into();
        // One that was closed meanwhile has told nobody of the request.
        while let Some(mut connection) = self.pool.take(&origin).await {
            match connection.send(request(url, headers, body.clone())?).await {
                Ok(response) => {
                    self.reused.fetch_add(1, Ordering::Relaxed);
                    return Ok(self.answer(response, connection, origin));
                }
                Err(SendError::Unsent(_)) => {}
                Err(SendError::Broken(why)) => return Err(EgressError::Broken(why)),
            }
        }
        let connecting = self.connect(host, port, is_tls);
        let connected = tokio::time::timeout(self.connect_timeout, connecting).await;
        let mut connection = connected.map_err(|_| {
            EgressError::Connect(format!("none within {} ms", self.connect_timeout.as_millis()))
        })??;
        self.opened.fetch_add(1, Ordering::Relaxed);
        match connection.send(request(url, headers, body)?).await {
            Ok(response) => Ok(self.answer(response, connection, origin)),
            Err(SendError::Unsent(why) | SendError::Broken(why)) => Err(EgressError::Broken(why)),
        }
    }

    /// Connections that were made, and requests that needed none.
    pub(crate) fn connections(&self) -> [u64; 2] {
        [&self.opened, &self.reused].map(|count| count.load(Ordering::Relaxed))
    }

    fn answer(
        &self,
        response: Response<Incoming>,
        connection: Connection,
        origin: Arc<str>,
    ) -> Answer {
        Answer { response, connection: Some(connection), origin, pool: Arc::clone(&self.pool) }
    }

    async fn connect(
        &self,
        host: &str,
        port: u16,
        is_tls: bool,
    ) -> Result<Connection, EgressError> {
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
            return over(tcp).await;
        }
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|error| EgressError::Connect(error.to_string()))?;
        let stream = self.tls.connect(name, tcp).await.map_err(|error| {
            tls::distrust(&error, bare).map_or_else(|| failed(error), EgressError::Untrusted)
        })?;
        over(stream).await
    }
}

async fn over(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<Connection, EgressError> {
    Connection::over(stream).await.map_err(|error| EgressError::Connect(error.to_string()))
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next bytes of the body; `None` at its end, from where on the connection is another request's. Dropping the
    /// future loses nothing.
    pub(crate) async fn bytes(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        match self.response.body_mut().frame().await {
            Some(frame) => Some(frame.map(|frame| frame.into_data().unwrap_or_default())),
            None => {
                if let Some(connection) = self.connection.take() {
                    self.pool.put(Arc::clone(&self.origin), connection);
                }
                None
            }
        }
    }

    /// All that is wanted of it was read. What little may be left is read aside, so that the connection can be used again.
    pub(crate) fn finish(mut self) {
        let rest = async move {
            let mut length = 0;
            while let Some(Ok(bytes)) = self.bytes().await {
                length += bytes.len();
                if length > MAX_REST_BYTES {
                    return;
                }
            }
        };
        tokio::spawn(tokio::time::timeout(REST_TIMEOUT, rest));
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ClientConfig {
        let connect_timeout = Duration::from_secs(5);
        ClientConfig { connect_timeout, max_idle_connections: 1, ca: CaCertificates::default() }
    }

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
            let client = Client::new(policy, &config()).unwrap();
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
