//! The server's settings, resolved once by the program and passed by value. Not here: files and environment.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::routes::RouteConfig;
use crate::storage::StorageConfig;
use crate::upstream::UpstreamConfig;
use crate::webhooks::WebhookPolicy;

/// Everything the server is told at its start.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Bounds on what comes in and how long it may take.
    pub limits: Limits,
    /// How long running requests may go on after the shutdown signal; then they end with an error.
    pub drain_timeout: Duration,
    /// Tenants may reuse each other's cached prefixes. Off unless the operator says so: a hit's timing tells one tenant
    /// what another asked.
    pub share_prefix_cache: bool,
    /// Where webhooks may go.
    pub webhooks: WebhookPolicy,
    /// Where files and batches are kept; `None`: there are none.
    pub storage: Option<StorageConfig>,
    /// Other services that answer under a model's name.
    pub upstreams: Vec<UpstreamConfig>,
    /// Names that lead to several models or services.
    pub routes: Vec<RouteConfig>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            limits: Limits::default(),
            drain_timeout: Duration::from_secs(30),
            share_prefix_cache: false,
            webhooks: WebhookPolicy::default(),
            storage: None,
            upstreams: Vec::new(),
            routes: Vec::new(),
        }
    }
}

/// Bounds on what comes in and how long it may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections; more wait in the system's backlog.
    pub max_connections: usize,
    /// Requests for tokens that are in the house at once, bodies included; one more gets a 503.
    pub max_concurrent_requests: usize,
    /// Bytes of a request's body; more gets a 413.
    pub max_body_bytes: usize,
    /// Bytes of a request's head, and of what is buffered for one connection's answer. At least 8192.
    pub max_head_bytes: usize,
    /// Header fields of a request.
    pub max_headers: usize,
    /// From the first byte of a request (or the end of the one before) to the end of its head.
    pub header_timeout: Duration,
    /// From the head to the end of the body.
    pub body_timeout: Duration,
    /// From the head to the last token.
    pub request_timeout: Duration,
    /// A reader that takes nearly nothing for so long is cut off.
    pub stalled_reader_timeout: Duration,
    /// A stream that has nothing to say sends a comment this often, so that proxies keep it open.
    pub keep_alive_interval: Duration,
    /// Choices of one request (`n` times prompts).
    pub max_choices: usize,
    /// Tokens of one answer, whatever the context would hold; `None` leaves it to the context.
    pub max_output_tokens: Option<u32>,
    /// Threads that parse, render templates and tokenise at once.
    pub text_threads: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_concurrent_requests: 256,
            max_body_bytes: 4 << 20,
            max_head_bytes: 64 << 10,
            max_headers: 64,
            header_timeout: Duration::from_secs(20),
            body_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(600),
            stalled_reader_timeout: Duration::from_secs(30),
            keep_alive_interval: Duration::from_secs(15),
            max_choices: 16,
            max_output_tokens: None,
            text_threads: 2,
        }
    }
}
