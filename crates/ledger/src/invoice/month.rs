//! Months as periods of an invoice, in an offset from UTC.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::price::time::{DAY_S, civil_from_days, days_from_civil, offset_text};

/// A calendar month.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Month {
    year: u16,
    month: u8,
    /// Minutes from UTC.
    offset_minutes: i16,
}

/// A text that is not a month.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a month; write it like 2026-11")]
pub struct MonthError(String);

impl Month {
    /// `2026-11`, in an offset from UTC (minutes, at most a day).
    ///
    /// # Errors
    /// Other texts, years outside of 1970 to 9999.
    pub fn parse(text: &str, offset_minutes: i16) -> Result<Self, MonthError> {
        let error = || MonthError(text.chars().take(40).collect());
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let (year, month) = text.split_once('-').ok_or_else(error)?;
        if year.len() != 4 || month.len() != 2 || !digits(year) || !digits(month) {
            return Err(error());
        }
        let (year, month) =
            (year.parse().map_err(|_| error())?, month.parse().map_err(|_| error())?);
        if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) {
            return Err(error());
        }
        Ok(Self { year, month, offset_minutes: offset_minutes.clamp(-1440, 1440) })
    }

    /// The month before that of a time.
    #[must_use]
    pub fn before(at_ms: u64, offset_minutes: i16) -> Self {
        let offset_minutes = offset_minutes.clamp(-1440, 1440);
        let seconds = i64::try_from(at_ms / 1000).unwrap_or(0) + i64::from(offset_minutes) * 60;
        let (year, month, day) = civil_from_days(seconds.div_euclid(DAY_S));
        let last_of_before = days_from_civil(year, month, day) - day;
        let (year, month, _) = civil_from_days(last_of_before);
        let year = u16::try_from(year).unwrap_or(1970);
        Self { year, month: u8::try_from(month).unwrap_or(1), offset_minutes }
    }

    /// First ms since 1970.
    #[must_use]
    pub fn from_ms(&self) -> u64 {
        self.start_ms(i64::from(self.year), i64::from(self.month))
    }

    /// The ms after the last.
    #[must_use]
    pub fn until_ms(&self) -> u64 {
        match self.month {
            12 => self.start_ms(i64::from(self.year) + 1, 1),
            month => self.start_ms(i64::from(self.year), i64::from(month) + 1),
        }
    }

    fn start_ms(&self, year: i64, month: i64) -> u64 {
        let seconds = days_from_civil(year, month, 1) * DAY_S - i64::from(self.offset_minutes) * 60;
        u64::try_from(seconds).unwrap_or(0) * 1000
    }

    /// `+08:00`.
    #[must_use]
    pub fn time_zone(&self) -> String {
        offset_text(i64::from(self.offset_minutes))
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}
