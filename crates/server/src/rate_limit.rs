//! How limits are told to clients: the `x-ratelimit-*` headers, as OpenAI writes them.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use mintage_ledger::limits::{Standing, Standings};

/// Of an answer with all of its limits.
const HEADERS: usize = 10;

/// `120ms`, `1s`, `6m0s`, `2h5m0s`: the way Go writes durations, which OpenAI does.
fn duration(ms: u64) -> String {
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let (hours, minutes) = (ms / 3_600_000, ms / 60_000 % 60);
    let (seconds, rest) = (ms / 1000 % 60, ms % 1000);
    let seconds = if rest == 0 { seconds.to_string() } else { format!("{seconds}.{rest:03}") };
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// Adds the headers of those limits that exist.
pub(crate) fn add_to(headers: &mut HeaderMap, standings: &Standings) {
    // Once, instead of growing on the way: with these an answer has a dozen.
    headers.reserve(HEADERS);
    let mut add = |names: [&'static str; 3], standing: Option<Standing>| {
        let Some(Standing { limit, remaining, reset_ms }) = standing else { return };
        let values = [
            Some(HeaderValue::from(limit)),
            Some(HeaderValue::from(remaining)),
            HeaderValue::from_str(&duration(reset_ms)).ok(),
        ];
        for (name, value) in names.into_iter().zip(values) {
            if let Some(value) = value {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    };
    add(
        [
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-requests",
            "x-ratelimit-reset-requests",
        ],
        standings.requests,
    );
    add(
        ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
        standings.tokens,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_openai_writes_them() {
        for (ms, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1020, "1.020s"),
            (360_000, "6m0s"),
            (7_500_000, "2h5m0s"),
        ] {
            assert_eq!(duration(ms), text);
        }
    }
}
