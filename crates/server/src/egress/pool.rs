//! Connections kept for the next request: those whose last answer was read to its end.
//!
//! Not here: how they are made, and whether they may be. Invariants: at most so many wait, none for longer than
//! [`IDLE_TIMEOUT`], none that is older than [`MAX_AGE`]; one that has anything left to read, or is closed, is never given out; dropping one closes it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

/// Shorter than common services wait (uvicorn, so vLLM too, and Node: 5 s): a request that crosses their end on its way
/// may have been read, and is one that failed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Then a new one is made, however busy it is: the name may lead elsewhere by now.
const MAX_AGE: Duration = Duration::from_secs(600);
/// The end of the last answer was read: what is left to do is the work of microseconds.
const READY_TIMEOUT: Duration = Duration::from_millis(100);
/// Bytes of an answer's head, and of what is buffered of its body.
const MAX_BUFFER_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 100;

/// A connection to where requests go; one at a time.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    made: Instant,
    _driving: Closed,
}

/// Drives a connection; closes it when dropped.
struct Closed(JoinHandle<()>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why a request has no answer.
pub(super) enum SendError {
    /// The connection was closed before a byte of it was written.
    Unsent(String),
    /// It may have been read, whatever became of it.
    Broken(String),
}

impl Connection {
    /// Over a stream that nothing was sent through.
    pub(super) async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Self, hyper::Error> {
        let (sender, connection) = Builder::new()
            .max_buf_size(MAX_BUFFER_BYTES)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(stream))
            .await?;
        // Its end is told to whoever reads the answer.
        let driving = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { sender, made: Instant::now(), _driving: Closed(driving) })
    }

    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, SendError> {
        self.sender.try_send_request(request).await.map_err(|mut error| {
            let is_unsent = error.take_message().is_some();
            let why = error.into_error().to_string();
            if is_unsent { SendError::Unsent(why) } else { SendError::Broken(why) }
        })
    }
}

/// What waits.
pub(super) struct Pool {
    idle: Mutex<Idle>,
    most: usize,
}

#[derive(Default)]
struct Idle {
    /// The one that waits longest first.
    waiting: Vec<Waiting>,
    /// A task closes those that wait for too long.
    is_swept: bool,
}

struct Waiting {
    /// Scheme, host and port.
    origin: Arc<str>,
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// `most`: connections that wait at once.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { idle: Mutex::new(Idle::default()), most })
    }

    /// One to there, the latest first, if any can be used.
    pub(super) async fn take(&self, origin: &str) -> Option<Connection> {
        loop {
            let mut connection = self.pop(origin)?;
            let ready = tokio::time::timeout(READY_TIMEOUT, connection.sender.ready()).await;
            if let Ok(Ok(())) = ready {
                return Some(connection);
            }
        }
    }

    fn pop(&self, origin: &str) -> Option<Connection> {
        let mut idle = self.idle();
        idle.close_old(Instant::now());
        let at = idle.waiting.iter().rposition(|waiting| &*waiting.origin == origin)?;
        Some(idle.waiting.remove(at).connection)
    }

    /// Keeps one whose last answer was read to its end.
    pub(super) fn put(self: &Arc<Self>, origin: Arc<str>, connection: Connection) {
        if self.most == 0 || connection.sender.is_closed() {
            return;
        }
        let since = Instant::now();
        let mut idle = self.idle();
        idle.close_old(since);
        if idle.waiting.len() >= self.most {
            idle.waiting.remove(0);
        }
        idle.waiting.push(Waiting { origin, connection, since });
        if !std::mem::replace(&mut idle.is_swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn close_old(&mut self, now: Instant) {
        self.waiting.retain(|Waiting { connection, since, .. }| {
            let is_old = now.saturating_duration_since(*since) >= IDLE_TIMEOUT
                || now.saturating_duration_since(connection.made) >= MAX_AGE;
            !is_old && !connection.sender.is_closed()
        });
    }
}

/// Closes what nobody asks for, until nothing is left.
async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(IDLE_TIMEOUT / 2).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.idle();
        idle.close_old(Instant::now());
        if idle.waiting.is_empty() {
            idle.is_swept = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn connection() -> (Connection, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(64);
        (Connection::over(ours).await.ok().unwrap(), theirs)
    }

    #[tokio::test]
    async fn few_wait_and_none_for_long() {
        let pool = Pool::new(2);
        let mut others = Vec::new();
        for origin in ["a", "b", "b", "a"] {
            let (connection, other) = connection().await;
            others.push(other);
            pool.put(origin.into(), connection);
        }
        let waiting = |pool: &Pool| -> Vec<String> {
            pool.idle().waiting.iter().map(|waiting| waiting.origin.to_string()).collect()
        };
        assert_eq!(waiting(&pool), ["b", "a"], "those that waited longest were closed");
        assert!(pool.take("c").await.is_none());
        let kept = pool.take("b").await.unwrap();
        assert_eq!(waiting(&pool), ["a"]);
        pool.put("b".into(), kept);
        pool.idle().close_old(Instant::now() + IDLE_TIMEOUT / 2);
        assert_eq!(waiting(&pool), ["a", "b"]);
        pool.idle().close_old(Instant::now() + IDLE_TIMEOUT);
        assert!(waiting(&pool).is_empty());
    }

    /// uvicorn, and vLLM with it, and Node close what is idle for five seconds.
    #[tokio::test]
    async fn it_is_we_who_close_first() {
        let pool = Pool::new(2);
        let (connection, _other) = connection().await;
        pool.put("a".into(), connection);
        pool.idle().close_old(Instant::now() + Duration::from_millis(4500));
        assert!(pool.take("a").await.is_none());
    }

    #[tokio::test]
    async fn one_that_was_closed_is_not_given_out() {
        let pool = Pool::new(2);
        let (connection, other) = connection().await;
        drop(other);
        pool.put("a".into(), connection);
        assert!(pool.take("a").await.is_none());
    }
}
