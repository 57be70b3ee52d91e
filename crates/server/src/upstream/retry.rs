//! When a request is sent again: pure, chance and time are arguments.

use std::time::Duration;

use axum::http::{HeaderMap, header};

/// The first retry comes about so late, each further one twice as late.
const FIRST: Duration = Duration::from_millis(200);
/// No retry comes later; a service that asks for more is left to others.
const LONGEST: Duration = Duration::from_secs(10);

/// How long to wait before the retry with this number (from 0); `None`: there is no use in it. What the service asks for
/// counts where it is longer. Half of the wait is by chance, so that many requests do not come back together.
pub(super) fn pause(retry: u32, asked: Option<Duration>, random: u64) -> Option<Duration> {
    let whole = FIRST.saturating_mul(2_u32.saturating_pow(retry)).min(LONGEST);
    let half_ms = u64::try_from(whole.as_millis() / 2).unwrap_or(0);
    let wait = Duration::from_millis(half_ms + random % (half_ms + 1));
    let wait = wait.max(asked.unwrap_or_default());
    (wait <= LONGEST).then_some(wait)
}

/// `retry-after-ms`, or `retry-after` in seconds. Dates are not read: their clock is not ours.
pub(super) fn asked(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let ms = number("retry-after-ms")
        .or_else(|| number(header::RETRY_AFTER.as_str()).map(|seconds| seconds * 1000.0))?;
    Duration::try_from_secs_f64(ms / 1000.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_are_bounded() {
        let check = |retry, asked: Option<u64>, random, expected: Option<u64>| {
            let wait = pause(retry, asked.map(Duration::from_millis), random);
            assert_eq!(wait.map(|wait| wait.as_millis() as u64), expected, "{retry} {asked:?}");
        };
        check(0, None, 0, Some(100));
        check(0, None, 100, Some(200));
        check(1, None, 0, Some(200));
        check(3, None, 800, Some(1600));
        check(60, None, u64::MAX, Some(5000 + u64::MAX % 5001));
        check(0, Some(50), 0, Some(100));
        check(0, Some(3000), 0, Some(3000));
        check(0, Some(10_001), 0, None);
    }

    #[test]
    fn what_a_service_asks_for_is_read() {
        let check = |name: &'static str, value: &'static str, expected: Option<u64>| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            let found = asked(&headers).map(|wait| wait.as_millis() as u64);
            assert_eq!(found, expected, "{name}: {value}");
        };
        check("retry-after", "2", Some(2000));
        check("retry-after", " 0.5 ", Some(500));
        check("retry-after-ms", "120", Some(120));
        check("retry-after", "-1", None);
        check("retry-after", "NaN", None);
        check("retry-after", "1e300", None);
        check("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT", None);
    }
}
