//! A circuit breaker: a service that fails again and again is left alone for a while, then tried with one request.
//!
//! Pure: time is an argument (milliseconds of any steady clock). Invariant: while it is not closed, at most one request
//! is on its way.

/// The longest pause is so many times the first.
const MAX_PAUSES: u64 = 8;

/// When it opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BreakerPolicy {
    /// Failures in a row.
    pub(super) failures: u32,
    /// Twice as long after each trial that fails, up to [`MAX_PAUSES`] times.
    pub(super) pause_ms: u64,
}

/// As metrics show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Closed,
    HalfOpen,
    Open,
}

#[derive(Debug)]
pub(super) struct Breaker {
    policy: BreakerPolicy,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Closed {
        failures: u32,
    },
    Open {
        until_ms: u64,
        pause_ms: u64,
    },
    /// One request is on its way, and decides.
    Trying {
        pause_ms: u64,
    },
}

impl Breaker {
    pub(super) fn new(policy: BreakerPolicy) -> Self {
        Self { policy, inner: Inner::Closed { failures: 0 } }
    }

    /// Whether a request would be let through; else in how many milliseconds one may be.
    pub(super) fn look(&self, now_ms: u64) -> Result<(), u64> {
        match self.inner {
            Inner::Closed { .. } => Ok(()),
            Inner::Open { until_ms, .. } if now_ms >= until_ms => Ok(()),
            Inner::Open { until_ms, .. } => Err(until_ms - now_ms),
            Inner::Trying { pause_ms } => Err(pause_ms),
        }
    }

    /// Lets a request through: its end is told by [`Breaker::succeeded`], [`Breaker::failed`] or
    /// [`Breaker::abandoned`].
    pub(super) fn admit(&mut self, now_ms: u64) -> Result<(), u64> {
        self.look(now_ms)?;
        if let Inner::Open { pause_ms, .. } = self.inner {
            self.inner = Inner::Trying { pause_ms };
        }
        Ok(())
    }

    pub(super) fn succeeded(&mut self) {
        // One that began before it opened proves nothing of now.
        if !matches!(self.inner, Inner::Open { .. }) {
            self.inner = Inner::Closed { failures: 0 };
        }
    }

    pub(super) fn failed(&mut self, now_ms: u64) {
        let pause_ms = match &mut self.inner {
            Inner::Closed { failures } => {
                *failures = failures.saturating_add(1);
                if *failures < self.policy.failures {
                    return;
                }
                self.policy.pause_ms
            }
            Inner::Trying { pause_ms } => {
                pause_ms.saturating_mul(2).min(self.policy.pause_ms.saturating_mul(MAX_PAUSES))
            }
            Inner::Open { .. } => return,
        };
        self.inner = Inner::Open { until_ms: now_ms.saturating_add(pause_ms), pause_ms };
    }

    /// It ended without telling anything of the service: the next one may try.
    pub(super) fn abandoned(&mut self, now_ms: u64) {
        if let Inner::Trying { pause_ms } = self.inner {
            self.inner = Inner::Open { until_ms: now_ms, pause_ms };
        }
    }

    pub(super) fn state(&self, now_ms: u64) -> State {
        match self.inner {
            Inner::Closed { .. } => State::Closed,
            Inner::Open { until_ms, .. } if now_ms < until_ms => State::Open,
            Inner::Open { .. } | Inner::Trying { .. } => State::HalfOpen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One step a word: `+` succeeded, `-` failed, `~` abandoned, `?` admitted, `!N` refused for N ms; `@N` sets the time.
    fn check(steps: &str, expected: State) {
        let mut breaker = Breaker::new(BreakerPolicy { failures: 3, pause_ms: 100 });
        let mut now_ms = 0;
        for step in steps.split(' ') {
            match step.split_at(1) {
                ("@", at) => now_ms = at.parse().unwrap(),
                ("+", _) => breaker.succeeded(),
                ("-", _) => breaker.failed(now_ms),
                ("~", _) => breaker.abandoned(now_ms),
                ("?", _) => assert_eq!(breaker.admit(now_ms), Ok(()), "{steps}"),
                (_, wait) => {
                    assert_eq!(breaker.admit(now_ms), Err(wait.parse().unwrap()), "{steps}");
                }
            }
        }
        assert_eq!(breaker.state(now_ms), expected, "{steps}");
    }

    #[test]
    fn it_opens_tries_and_closes() {
        check("? - ? -", State::Closed);
        check("? - ? - ? + ? - ? -", State::Closed);
        check("? - ? - ? - !100", State::Open);
        check("- - - @40 !60 @99 !1", State::Open);
        check("- - - @100 ? !100 @150 !100", State::HalfOpen);
        check("- - - @100 ? + ? ?", State::Closed);
        // Each trial that fails doubles the pause, up to a bound.
        check("- - - @100 ? - !200 @299 !1", State::Open);
        check("- - - @100 ? - @300 ? - !400", State::Open);
        check("- - - @1000 ? - @2000 ? - @3000 ? - @4000 ? - @5000 ? - !800", State::Open);
        // After one that succeeds it begins anew.
        check("- - - @100 ? - @300 ? + - - - !100", State::Open);
        // A trial that tells nothing makes room for the next.
        check("- - - @100 ? ~ ? !100", State::HalfOpen);
        // Late ends of requests that began before it opened change nothing.
        check("? ? ? ? ? - - - - + !100", State::Open);
    }
}
