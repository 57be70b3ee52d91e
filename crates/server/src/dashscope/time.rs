//! Times as DashScope writes them: the operator's civil time, without a zone.

use mintage_ledger::price::{utc_ms, utc_text};

use crate::app::App;
use crate::error::ApiError;
use crate::fields::shortened;

/// `2026-11-30 16:00:00`
pub(super) fn seconds_text(app: &App, unix_ms: u64) -> String {
    written(unix_ms, app.till.utc_offset_minutes())
}

/// `2026-11-30 16:00:00.123`
pub(super) fn text(app: &App, unix_ms: u64) -> String {
    format!("{}.{:03}", seconds_text(app, unix_ms), unix_ms % 1000)
}

/// Ms since 1970 of `20261130160000`.
pub(super) fn parse(app: &App, name: &str, text: &str) -> Result<u64, ApiError> {
    read(text, app.till.utc_offset_minutes()).ok_or_else(|| {
        let message = format!(
            "`{name}` must be a time written as YYYYMMDDhhmmss, such as 20261130160000, not `{}`.",
            shortened(text)
        );
        ApiError::field(name, "invalid_value", message)
    })
}

fn written(unix_ms: u64, offset_minutes: i32) -> String {
    let local_ms = unix_ms.saturating_add_signed(i64::from(offset_minutes) * 60_000);
    utc_text(local_ms).replace('T', " ").replace('Z', "")
}

fn read(text: &str, offset_minutes: i32) -> Option<u64> {
    if text.len() != 14 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (date, clock) = text.split_at(8);
    let (year, day) = date.split_at(4);
    let (month, day) = day.split_at(2);
    let (hour, rest) = clock.split_at(2);
    let (minute, second) = rest.split_at(2);
    let local_ms = utc_ms(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z"))?;
    Some(local_ms.saturating_add_signed(-i64::from(offset_minutes) * 60_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_the_operators() {
        let check = |unix_ms: u64, offset: i32, expected: &str| {
            assert_eq!(written(unix_ms, offset), expected);
            let digits: String = expected.chars().filter(char::is_ascii_digit).collect();
            assert_eq!(read(&digits, offset), Some(unix_ms / 1000 * 1000), "{expected}");
        };
        check(1_796_054_400_123, 0, "2026-11-30 16:00:00");
        check(1_796_054_400_000, 480, "2026-12-01 00:00:00");
        check(1_796_054_400_000, -90, "2026-11-30 14:30:00");
        for bad in
            ["", "2026", "2026113016000", "202611301600001", "20261331000000", "2026113016000é"]
        {
            assert_eq!(read(bad, 480), None, "{bad}");
        }
    }
}
