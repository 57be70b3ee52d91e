//! Civil time of price lists: dates with an offset, offsets, times of day. Proleptic Gregorian, no leap seconds, no
//! zone names: an offset never changes under a price.
//!
//! Invariant: everything here is arithmetic; nobody reads a clock.

/// Seconds of a day.
pub(crate) const DAY_S: i64 = 86_400;
/// Years that a date may have.
const YEARS: std::ops::RangeInclusive<i64> = 1970..=9999;
/// Offsets from UTC reach this far, minutes.
const MAX_OFFSET_MINUTES: i64 = 14 * 60;

/// Seconds since 1970 of `2026-12-01T00:00:00+08:00`; a zone is required.
pub(super) fn parse_instant(text: &str) -> Result<i64, String> {
    instant(text).ok_or_else(|| {
        format!(
            "`{}` is not a date and time with an offset; write it like 2026-12-01T00:00:00+08:00",
            super::exact::shown(text)
        )
    })
}

fn instant(text: &str) -> Option<i64> {
    if !text.is_ascii() || text.len() < 20 {
        return None;
    }
    let (date, rest) = text.split_at(10);
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, zone) = rest.split_at_checked(8)?;
    let offset_s = match zone {
        "Z" | "z" => 0,
        zone => offset(zone)? * 60,
    };
    let (year, month, day) =
        (number(date.get(0..4)?)?, number(date.get(5..7)?)?, number(date.get(8..10)?)?);
    let separators = [date.as_bytes()[4], date.as_bytes()[7]] == *b"--";
    let day_exists = (1..=12).contains(&month) && (1..=month_days(year, month)).contains(&day);
    if !separators || !YEARS.contains(&year) || !day_exists {
        return None;
    }
    let (hours_minutes, seconds) = clock.split_at(5);
    let seconds = number(seconds.strip_prefix(':')?)?;
    let of_day = time_of_day(hours_minutes).filter(|&s| s < DAY_S)? + seconds;
    (seconds < 60).then(|| days_from_civil(year, month, day) * DAY_S + of_day - offset_s)
}

/// Minutes from UTC of `+08:00`.
pub(super) fn parse_offset(text: &str) -> Result<i64, String> {
    offset(text).ok_or_else(|| {
        format!(
            "`{}` is not an offset from UTC; write it like +08:00 or -05:00",
            super::exact::shown(text)
        )
    })
}

fn offset(text: &str) -> Option<i64> {
    let (sign, rest) = match text.as_bytes().first()? {
        b'+' => (1, text.get(1..)?),
        b'-' => (-1, text.get(1..)?),
        _ => return None,
    };
    let minutes = time_of_day(rest)? / 60;
    (minutes <= MAX_OFFSET_MINUTES).then_some(sign * minutes)
}

/// Seconds from midnight of `00:30` to `24:00`.
pub(super) fn parse_time_of_day(text: &str) -> Result<i64, String> {
    time_of_day(text).ok_or_else(|| {
        format!(
            "`{}` is not a time of day; write it like 08:30 (to 24:00)",
            super::exact::shown(text)
        )
    })
}

fn time_of_day(text: &str) -> Option<i64> {
    let (hours, minutes) = text.split_once(':')?;
    let (hours, minutes) = match (hours.len(), minutes.len()) {
        (2, 2) => (number(hours)?, number(minutes)?),
        _ => return None,
    };
    let seconds = hours * 3600 + minutes * 60;
    (minutes < 60 && seconds <= DAY_S).then_some(seconds)
}

/// Digits only.
fn number(text: &str) -> Option<i64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// `2026-11-30T16:00:00Z`.
pub(crate) fn instant_text(unix_s: i64) -> String {
    let (year, month, day) = civil_from_days(unix_s.div_euclid(DAY_S));
    let of_day = unix_s.rem_euclid(DAY_S);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

/// `2026-11-30T16:00:00Z` of ms since 1970; what is below a second is left out.
#[must_use]
pub fn utc_text(unix_ms: u64) -> String {
    instant_text(i64::try_from(unix_ms / 1000).unwrap_or(0))
}

/// Ms since 1970 of what [`utc_text`] writes.
#[must_use]
pub fn utc_ms(text: &str) -> Option<u64> {
    u64::try_from(instant(text)?).ok()?.checked_mul(1000)
}

/// `+08:00`.
pub(crate) fn offset_text(minutes: i64) -> String {
    let sign = if minutes < 0 { '-' } else { '+' };
    let minutes = minutes.abs();
    format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
}

/// `08:30`.
pub(super) fn time_of_day_text(seconds: i64) -> String {
    format!("{:02}:{:02}", seconds / 3600, seconds / 60 % 60)
}

/// Days since 1970-01-01; month 1 to 12.
pub(crate) fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that the leap day is a year's last; 400 years have 146,097 days.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - 719_468
}

/// Year, month, day of a day since 1970-01-01.
pub(crate) fn civil_from_days(days: i64) -> (i64, i64, i64) {
    // The mean length of a year finds it but for one; months are tried.
    let mut year = 1970 + days * 400 / 146_097;
    while days_from_civil(year + 1, 1, 1) <= days {
        year += 1;
    }
    while days_from_civil(year, 1, 1) > days {
        year -= 1;
    }
    let month = (1..=12).rev().find(|&m| days_from_civil(year, m, 1) <= days).unwrap_or(1);
    (year, month, days - days_from_civil(year, month, 1) + 1)
}

fn month_days(year: i64, month: i64) -> i64 {
    let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    days_from_civil(next.0, next.1, 1) - days_from_civil(year, month, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(utc_ms(&utc_text(1_796_054_400_123)), Some(1_796_054_400_000));
        assert_eq!(utc_ms("2026-11-30"), None);
    }

    #[test]
    fn instants_are_read() {
        let check =
            |text: &str, expected: Option<i64>| assert_eq!(instant(text), expected, "{text}");
        check("1970-01-01T00:00:00Z", Some(0));
        check("2026-12-01T00:00:00+08:00", Some(1_796_054_400));
        check("2024-02-29T23:59:59Z", Some(1_709_251_199));
        check("2026-11-30 16:00:00z", Some(1_796_054_400));
        for bad in [
            "2026-12-01T00:00:00",
            "2026-12-01",
            "2025-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:60Z",
            "2026-01-01T00:00:00.5Z",
            "1969-12-31T23:59:59Z",
            "2026-01-01T00:00:00+15:00",
            "2026-01-01T00:00:00 08:00",
            "+026-01-01T00:00:00Z",
            "२०२६-01-01T00:00:00Z",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn every_day_of_five_centuries_reads_back() {
        for days in -100_000..100_000 {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
            assert!((1..=12).contains(&month) && (1..=31).contains(&day));
        }
        assert_eq!(instant_text(1_709_251_199), "2024-02-29T23:59:59Z");
    }

    #[test]
    fn offsets_and_times_of_day() {
        assert_eq!(offset("+08:00"), Some(480));
        assert_eq!(offset("-05:30"), Some(-330));
        assert_eq!(offset_text(-330), "-05:30");
        assert_eq!((offset("08:00"), offset("+8:00"), offset("+14:01")), (None, None, None));
        assert_eq!(time_of_day("24:00"), Some(86_400));
        assert_eq!(
            (time_of_day("24:01"), time_of_day("12:60"), time_of_day("-1:00")),
            (None, None, None)
        );
        assert_eq!(time_of_day_text(30_600), "08:30");
    }
}
