//! Sockets: accepting, bounding heads and idle time, cutting off stalled readers, draining.
//!
//! Not here: routes and what they mean.
//! Invariants: connections are bounded; no connection waits for its client without a limit in time; after [`serve`]
//! returns, nothing that a client asked for is still running.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mintage_ledger::{DirectoryStore, KeysOf, Ledger, LedgerError, LineageOf};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep};
use tokio_util::task::TaskTracker;

use crate::admin::Office;
use crate::app::{App, Phase, router};
use crate::auth::{Access, now_unix};
use crate::config::{Limits, ServerConfig};
use crate::gateway::Gateway;
use crate::served::{ModelSet, ModelSetError, Models};
use crate::storage::{Storage, StorageError};
use crate::till::{Billing, Till, unix_ms};
use crate::{batch, dashscope, openai, webhooks};

const BACKLOG: u32 = 1024;
/// What the system may buffer for one reader, beyond our own `max_head_bytes`.
const SEND_BUFFER_BYTES: u32 = 256 << 10;
/// hyper's own minimum.
const MIN_HEAD_BYTES: usize = 8192;
/// A stalled reader is one that takes less than this in `stalled_reader_timeout`.
const MIN_PROGRESS_BYTES: usize = 1024;
/// After the drain, this long for error events and final bytes to leave.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often a draining server looks whether it is done.
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// How often keys are looked at for changes by another process.
const KEY_RELOAD_INTERVAL: Duration = Duration::from_secs(1);
/// When old usage records are looked for first after a start.
const RETENTION_BEGINS: Duration = Duration::from_secs(5);
/// How often old usage records are looked for.
const RETENTION_INTERVAL: Duration = Duration::from_secs(3600);
/// The time of day may differ so much from the start's and the time since, ms.
const CLOCK_TRUST_MS: u64 = 3_600_000;
/// After `accept` failed (out of file descriptors), let some connections end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the server cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another program has the address, or it is not ours.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The setting.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// Without keys the whole network could use the server.
    #[error(
        "refusing to listen on {address} without API keys: anyone who reaches it could use it; \
         create a key, or listen on a loopback address"
    )]
    Exposed {
        /// The setting.
        address: SocketAddr,
    },
    /// The models cannot be served together.
    #[error(transparent)]
    Models(#[from] ModelSetError),
    /// The folder of files and batches does not open.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// No random numbers for the server's secret.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

/// Refuses an address that others reach unless there is a valid key that keeps them out.
///
/// # Errors
/// [`ServerError::Exposed`].
pub fn check_exposure(address: SocketAddr, access: &Access) -> Result<(), ServerError> {
    let guarded = match access {
        Access::Keys(keys) => keys.has_valid_key(now_unix()),
        Access::Open => false,
    };
    if guarded || address.ip().to_canonical().is_loopback() {
        Ok(())
    } else {
        Err(ServerError::Exposed { address })
    }
}

/// Binds and serves until `shutdown` resolves and the drain is over.
///
/// # Errors
/// As [`Server::bind`].
pub async fn serve(
    config: ServerConfig,
    models: impl Into<Models>,
    access: Access,
    billing: Option<Billing>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    Server::bind(config, models, access, billing)?.run(shutdown).await;
    Ok(())
}

/// A server that listens and does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    drain_timeout: Duration,
    app: Arc<App>,
}

impl Server {
    /// Binds the address. Must be called within a tokio runtime. Without `billing` limits hold, and nothing costs.
    ///
    /// # Errors
    /// The address is taken, or open to others without keys; no models, or two of one name.
    pub fn bind(
        config: ServerConfig,
        models: impl Into<Models>,
        access: Access,
        billing: Option<Billing>,
    ) -> Result<Self, ServerError> {
        check_exposure(config.listen, &access)?;
        let secret = match &access {
            Access::Keys(keys) => keys.derived_secret("tenant"),
            Access::Open => {
                let mut secret = [0; 32];
                getrandom::fill(&mut secret).map_err(|e| ServerError::Random(e.to_string()))?;
                secret
            }
        };
        let gateway = Gateway::new(secret, config.share_prefix_cache);
        let models = ModelSet::new(models.into(), config.upstreams, config.routes)?;
        let bind_error = |source| ServerError::Bind { address: config.listen, source };
        let listener = listen(config.listen).map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        let till = Till::new(billing, lineage_of(&access), keys_of(&access));
        let storage = config.storage.map(Storage::open).transpose()?;
        let app = App::new(config.limits, access, models, gateway, till, config.webhooks, storage);
        openai::recover(&app)?;
        dashscope::recover(&app)?;
        let app = Arc::new(app);
        Ok(Self { listener, address, drain_timeout: config.drain_timeout, app })
    }

    /// Where it really listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` resolves; then drains: not ready, new requests refused, running ones finished within
    /// the drain timeout or ended with an error.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (close, closing) = watch::channel(false);
        let connections = TaskTracker::new();
        let accepting = accept(self.listener, Arc::clone(&self.app), connections.clone(), closing);
        let keys = watch_keys(self.app.access.clone(), self.app.office.clone());
        let webhooks = send_webhooks(self.app.office.clone());
        let retention = forget_records(self.app.till.retention());
        let batches = batch::run(Arc::clone(&self.app));
        let tasks = dashscope::run_tasks(Arc::clone(&self.app));
        let app = Arc::clone(&self.app);
        let life = async {
            shutdown.await;
            drain(&app, self.drain_timeout).await;
        };
        tokio::select! {
            () = accepting => {}
            () = keys => {}
            () = webhooks => {}
            () = retention => {}
            () = batches => {}
            () = tasks => {}
            () = life => {}
        }
        // Nobody accepts any more; connections finish the answer they are writing.
        close.send_replace(true);
        connections.close();
        app.settling.close();
        let all = async {
            connections.wait().await;
            app.settling.wait().await;
        };
        if tokio::time::timeout(LAST_WORDS, all).await.is_err() {
            tracing::warn!(
                connections = connections.len(),
                unsettled = app.settling.len(),
                "stopped before all connections were closed"
            );
        }
    }
}

/// Removes usage records that were kept long enough. Never resolves.
async fn forget_records(retention: Option<(Arc<Ledger>, u64)>) {
    let Some((ledger, days)) = retention else { return std::future::pending().await };
    let (start, start_ms) = (Instant::now(), unix_ms());
    let mut pause = RETENTION_BEGINS;
    loop {
        tokio::time::sleep(std::mem::replace(&mut pause, RETENTION_INTERVAL)).await;
        let now_ms = unix_ms();
        let elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        if now_ms.abs_diff(start_ms.saturating_add(elapsed_ms)) > CLOCK_TRUST_MS {
            // Six months must not pass in a second because somebody set the clock.
            tracing::warn!("the clock jumped since the start: no usage records are removed");
            continue;
        }
        let ledger = Arc::clone(&ledger);
        let prune = move || -> Result<u64, LedgerError> {
            let mut all = 0;
            loop {
                let count = ledger.prune(days, now_ms)?;
                all += count;
                if count == 0 {
                    return Ok(all);
                }
            }
        };
        match tokio::task::spawn_blocking(prune).await {
            Ok(Ok(0)) => {}
            Ok(Ok(count)) => tracing::info!(count, days, "old usage records removed"),
            Ok(Err(error)) => tracing::warn!(%error, "old usage records not removed for now"),
            Err(error) => tracing::warn!(%error, "old usage records not removed for now"),
        }
    }
}

async fn send_webhooks(office: Option<Arc<Office>>) {
    match office {
        Some(office) => webhooks::run(office).await,
        None => std::future::pending().await,
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Refuses new requests, waits for running ones, then ends those that are left.
async fn drain(app: &App, timeout: Duration) {
    app.phase.send_replace(Phase::Draining);
    tracing::info!(running = app.requests_in_flight(), "draining");
    if !emptied(app, timeout).await {
        tracing::warn!(running = app.requests_in_flight(), "drain timeout: ending the rest");
        app.phase.send_replace(Phase::Ending);
        emptied(app, LAST_WORDS).await;
    }
}

/// Whether all requests ended within `timeout`.
async fn emptied(app: &App, timeout: Duration) -> bool {
    let empty = async {
        while app.requests_in_flight() > 0 {
            tokio::time::sleep(DRAIN_POLL).await;
        }
    };
    tokio::time::timeout(timeout, empty).await.is_ok()
}

/// Never resolves.
async fn watch_keys(access: Access, office: Option<Arc<Office>>) {
    let Access::Keys(keys) = access else { return std::future::pending().await };
    loop {
        if let Some(office) = office.clone() {
            // Of organisations that another process made too.
            let _ = tokio::task::spawn_blocking(move || office.grant_free_quotas()).await;
        }
        reloaded(&keys).await;
    }
}

/// Waits until keys have changed.
async fn reloaded(keys: &Arc<DirectoryStore>) {
    loop {
        tokio::time::sleep(KEY_RELOAD_INTERVAL).await;
        let store = Arc::clone(keys);
        match tokio::task::spawn_blocking(move || store.reload_if_changed()).await {
            Ok(Ok(true)) => {
                tracing::info!("API keys reloaded");
                return;
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "API keys not reloaded"),
            Err(error) => tracing::warn!(%error, "API keys not reloaded"),
        }
    }
}

/// Under which id a key counts.
fn lineage_of(access: &Access) -> Box<LineageOf> {
    let keys = match access {
        Access::Keys(keys) => Some(Arc::clone(keys)),
        Access::Open => None,
    };
    Box::new(move |key| {
        let directory = keys.as_ref().map(|keys| keys.snapshot());
        let known = directory.as_ref().and_then(|directory| directory.key(key).ok());
        known.map_or_else(|| Arc::clone(key), |key| key.lineage.as_str().into())
    })
}

/// Which keys count under an id: a key and its rotations.
fn keys_of(access: &Access) -> Box<KeysOf> {
    let keys = match access {
        Access::Keys(keys) => Some(Arc::clone(keys)),
        Access::Open => None,
    };
    Box::new(move |lineage| {
        let Some(keys) = &keys else { return Vec::new() };
        let directory = keys.snapshot();
        let all = directory.keys().filter(|key| key.lineage == lineage);
        all.map(|key| key.id.clone()).collect()
    })
}

/// Never resolves.
async fn accept(
    listener: TcpListener,
    app: Arc<App>,
    connections: TaskTracker,
    closing: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(app.limits.max_connections));
    let routes = router(Arc::clone(&app));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _peer)) => {
                let (routes, limits, closing) =
                    (routes.clone(), app.limits.clone(), closing.clone());
                connections.spawn(connection(socket, routes, limits, closing, place));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    socket: TcpStream,
    routes: Router,
    limits: Limits,
    mut closing: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
) {
    // Tokens are small and should leave at once; without it they only leave later.
    let _ = socket.set_nodelay(true);
    let io = TokioIo::new(StallGuard::new(socket, limits.stalled_reader_timeout));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.max_head_bytes.max(MIN_HEAD_BYTES))
        .max_headers(limits.max_headers)
        .serve_connection(io, TowerToHyperService::new(routes));
    tokio::pin!(connection);
    let closed = async {
        // An error means the server is gone, which is the same to us.
        let _ = closing.wait_for(|closing| *closing).await;
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closed => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// A socket that fails once its reader has taken less than [`MIN_PROGRESS_BYTES`] during `patience` while there was
/// something to take.
struct StallGuard {
    socket: TcpStream,
    patience: Duration,
    /// Bytes taken since the timer was set; the timer runs only while a write waits.
    taken: usize,
    waiting: bool,
    timer: Pin<Box<Sleep>>,
}

impl StallGuard {
    fn new(socket: TcpStream, patience: Duration) -> Self {
        let timer = Box::pin(tokio::time::sleep(patience));
        Self { socket, patience, taken: 0, waiting: false, timer }
    }

    /// Books the outcome of a write and decides whether to go on waiting.
    fn judge(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = written {
            if let Ok(bytes) = written {
                self.taken = self.taken.saturating_add(bytes);
            }
            return Poll::Ready(written);
        }
        if !self.waiting {
            self.restart();
        }
        // Polled until it is pending, so that it wakes us.
        while self.timer.as_mut().poll(cx).is_ready() {
            if self.taken < MIN_PROGRESS_BYTES {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the client stopped reading",
                )));
            }
            self.restart();
        }
        Poll::Pending
    }

    fn restart(&mut self) {
        self.waiting = true;
        self.taken = 0;
        self.timer.as_mut().reset(Instant::now() + self.patience);
    }
}

impl AsyncRead for StallGuard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for StallGuard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    /// Called when everything was handed over: the reader is not stalled.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        self.waiting = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
