//! A service as this server sees it: its settings, its health, and what is counted of it.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::breaker::{Breaker, State};
use super::config::{UpstreamConfig, UpstreamError};
use super::failure::FailureKind;
use super::http::HttpUpstream;
use super::{Ask, Failure, HeardVectors, Hearing, Upstream, VectorAsk, retry};

/// How attempts end, as metrics have it.
const OUTCOMES: [&str; 9] = [
    "answered",
    "invalid",
    "refused",
    "limited",
    "overloaded",
    "unreachable",
    "failed",
    "timeout",
    "abandoned",
];

/// A service that answers under a model's name.
pub(crate) struct RemoteModel {
    pub(crate) config: UpstreamConfig,
    /// For records of usage, where models of ours have the digest of their files.
    pub(crate) digest: Arc<str>,
    upstream: Box<dyn Upstream>,
    breaker: Mutex<Breaker>,
    places: Arc<Semaphore>,
    /// Numbers of a vector, as the last one had them that was asked for without saying how many; 0: not known yet.
    width: AtomicUsize,
    start: Instant,
    attempts: [AtomicU64; OUTCOMES.len()],
    retries: AtomicU64,
    /// Answers whose tokens had to be counted here.
    counted_here: AtomicU64,
    /// Answers whose reported usage was beyond what can be.
    contradictions: AtomicU64,
}

impl RemoteModel {
    pub(crate) fn new(config: UpstreamConfig) -> Result<Self, UpstreamError> {
        let zero = |field| UpstreamError::Zero { name: config.name.clone(), field };
        if config.context_length == 0 {
            return Err(zero("context_length"));
        }
        if config.max_in_flight == 0 {
            return Err(zero("max_in_flight"));
        }
        let upstream = Box::new(HttpUpstream::new(&config)?);
        let host = config.egress().allow_hosts.concat();
        Ok(Self {
            digest: format!("upstream:{host}/{}", config.model).into(),
            upstream,
            breaker: Mutex::new(Breaker::new(config.breaker())),
            places: Arc::new(Semaphore::new(config.max_in_flight.min(Semaphore::MAX_PERMITS))),
            width: AtomicUsize::new(0),
            start: Instant::now(),
            attempts: std::array::from_fn(|_| AtomicU64::new(0)),
            retries: AtomicU64::new(0),
            counted_here: AtomicU64::new(0),
            contradictions: AtomicU64::new(0),
            config,
        })
    }

    /// Whether it would be asked now.
    pub(crate) fn is_healthy(&self) -> bool {
        self.places.available_permits() > 0 && self.breaker().look(self.now_ms()).is_ok()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.config.max_in_flight.saturating_sub(self.places.available_permits())
    }

    /// A place among the requests that it has.
    pub(super) fn place(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let log = format!("{} requests are under way, the limit", self.config.max_in_flight);
            Failure::new(FailureKind::Overloaded, log)
        })
    }

    /// Asks until an answer begins.
    pub(super) async fn open(
        &self,
        ask: &Ask,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Hearing, Failure> {
        self.repeatedly(|| self.upstream.open(ask), is_wanted).await
    }

    /// Asks until all vectors came.
    pub(super) async fn vectors(
        &self,
        ask: &VectorAsk,
        is_wanted: impl Fn() -> bool,
    ) -> Result<HeardVectors, Failure> {
        self.repeatedly(|| self.upstream.vectors(ask), is_wanted).await
    }

    /// Numbers of a vector, as it made the last one by itself.
    pub(super) fn width(&self) -> Option<usize> {
        Some(self.width.load(Ordering::Relaxed)).filter(|width| *width > 0)
    }

    pub(super) fn made(&self, width: usize) {
        self.width.store(width, Ordering::Relaxed);
    }

    /// Asks until there is an answer, or no use in asking more: it is not repeated for nobody. Dropping the future gives
    /// up.
    async fn repeatedly<'a, T>(
        &self,
        ask: impl Fn() -> BoxFuture<'a, Result<T, Failure>>,
        is_wanted: impl Fn() -> bool,
    ) -> Result<T, Failure> {
        let mut retries = 0;
        loop {
            let failure = match self.attempt(ask()).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if !failure.is_retryable() || retries >= self.config.max_retries {
                return Err(failure);
            }
            let Some(pause) = retry::pause(retries, failure.retry_after, random()) else {
                return Err(failure);
            };
            tokio::time::sleep(pause).await;
            if !is_wanted() {
                return Err(failure);
            }
            retries += 1;
            tracing::info!(upstream = %self.config.name, why = %failure.log, "asked again");
            self.retries.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `asking` does nothing before it is polled.
    async fn attempt<T>(&self, asking: BoxFuture<'_, Result<T, Failure>>) -> Result<T, Failure> {
        self.breaker().admit(self.now_ms()).map_err(|wait_ms| Failure {
            retry_after: Some(Duration::from_millis(wait_ms)),
            ..Failure::new(FailureKind::Overloaded, "left alone after it failed too often")
        })?;
        let trial = Trial { remote: self, is_over: false };
        match asking.await {
            Ok(answer) => {
                trial.answered();
                Ok(answer)
            }
            Err(failure) => {
                trial.failed(&failure);
                Err(failure)
            }
        }
    }

    /// An answer that had begun broke.
    pub(super) fn broke(&self, failure: &Failure) {
        self.count(kind_of(failure));
        if failure.is_illness() {
            self.breaker().failed(self.now_ms());
        }
    }

    pub(super) fn counted_here(&self) {
        self.counted_here.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn contradicted(&self) {
        self.contradictions.fetch_add(1, Ordering::Relaxed);
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn count(&self, outcome: &str) {
        if let Some(at) = OUTCOMES.iter().position(|known| *known == outcome) {
            self.attempts[at].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An attempt on its way: its end is told to the breaker, also when nobody waits for it any more.
struct Trial<'a> {
    remote: &'a RemoteModel,
    is_over: bool,
}

impl Trial<'_> {
    fn answered(mut self) {
        self.is_over = true;
        self.remote.count("answered");
        self.remote.breaker().succeeded();
    }

    fn failed(mut self, failure: &Failure) {
        self.is_over = true;
        self.remote.count(kind_of(failure));
        let mut breaker = self.remote.breaker();
        if failure.is_illness() {
            breaker.failed(self.remote.now_ms());
        } else {
            // It answers, whatever it says.
            breaker.succeeded();
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.remote.count("abandoned");
            self.remote.breaker().abandoned(self.remote.now_ms());
        }
    }
}

fn kind_of(failure: &Failure) -> &'static str {
    match failure.kind {
        FailureKind::Invalid => "invalid",
        FailureKind::Refused => "refused",
        FailureKind::Limited => "limited",
        FailureKind::Overloaded => "overloaded",
        FailureKind::Unreachable => "unreachable",
        FailureKind::Failed => "failed",
        FailureKind::Timeout => "timeout",
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without random numbers retries are merely less spread out.
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// What is counted of all services, in Prometheus' text format; empty where there are none.
pub(crate) fn render(remotes: &[Arc<RemoteModel>]) -> String {
    let mut out = String::new();
    if remotes.is_empty() {
        return out;
    }
    type Read = fn(&RemoteModel) -> u64;
    let families: [(&str, &str, &str, Read); 5] = [
        ("mintage_upstream_in_flight", "gauge", "Requests that the service has.", |r| {
            r.in_flight() as u64
        }),
        ("mintage_upstream_breaker_state", "gauge", "0 closed, 1 half open, 2 open.", |r| match r
            .breaker()
            .state(r.now_ms())
        {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open => 2,
        }),
        ("mintage_upstream_retries_total", "counter", "Attempts after the first.", |r| {
            r.retries.load(Ordering::Relaxed)
        }),
        (
            "mintage_upstream_counted_here_total",
            "counter",
            "Answers whose tokens the service did not report.",
            |r| r.counted_here.load(Ordering::Relaxed),
        ),
        (
            "mintage_upstream_contradictions_total",
            "counter",
            "Answers whose reported tokens were more than can be.",
            |r| r.contradictions.load(Ordering::Relaxed),
        ),
    ];
    // Writing to a String does not fail.
    for (name, kind, help, read) in families {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for remote in remotes {
            let label = label(remote);
            let _ = writeln!(out, "{name}{{upstream=\"{label}\"}} {}", read(remote));
        }
    }
    let name = "mintage_upstream_attempts_total";
    let _ = writeln!(out, "# HELP {name} Requests sent, by how they ended.\n# TYPE {name} counter");
    for remote in remotes {
        for (outcome, count) in OUTCOMES.iter().zip(&remote.attempts) {
            let (label, count) = (label(remote), count.load(Ordering::Relaxed));
            let _ = writeln!(out, "{name}{{upstream=\"{label}\",outcome=\"{outcome}\"}} {count}");
        }
    }
    render_connections(&mut out, remotes);
    out
}

fn render_connections(out: &mut String, remotes: &[Arc<RemoteModel>]) {
    let name = "mintage_upstream_connections_total";
    let help = "Connections made, and requests that found one open.";
    // Writing to a String does not fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
    for remote in remotes {
        for (how, count) in ["opened", "reused"].iter().zip(remote.upstream.connections()) {
            let label = label(remote);
            let _ = writeln!(out, "{name}{{upstream=\"{label}\",how=\"{how}\"}} {count}");
        }
    }
}

fn label(remote: &RemoteModel) -> String {
    crate::metrics::escaped(&remote.config.name)
}
