//! Days and months of the operator's calendar, by number. Pure arithmetic on the proleptic Gregorian calendar.

use serde::{Deserialize, Serialize};

const DAY_MS: i64 = 86_400_000;
const MINUTE_MS: i64 = 60_000;

/// How long a budget lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// A calendar day.
    Day,
    /// A calendar month.
    Month,
}

impl Period {
    /// For messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

/// Where days begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calendar {
    /// Minutes that local time is ahead of UTC: 480 in China.
    pub utc_offset_minutes: i32,
}

impl Calendar {
    fn days(self, unix_ms: u64) -> i64 {
        let local = i64::try_from(unix_ms)
            .unwrap_or(i64::MAX)
            .saturating_add(i64::from(self.utc_offset_minutes) * MINUTE_MS);
        local.div_euclid(DAY_MS)
    }

    /// The number of the period that holds this moment; later periods have greater numbers.
    #[must_use]
    pub fn number(self, period: Period, unix_ms: u64) -> i64 {
        let days = self.days(unix_ms);
        match period {
            Period::Day => days,
            Period::Month => {
                let (year, month) = year_and_month(days);
                year * 12 + i64::from(month) - 1
            }
        }
    }

    /// When the period that holds this moment began, ms since 1970.
    #[must_use]
    pub fn begins_ms(self, period: Period, unix_ms: u64) -> u64 {
        let first = match period {
            Period::Day => self.days(unix_ms),
            Period::Month => {
                let number = self.number(Period::Month, unix_ms);
                first_day(number.div_euclid(12), number.rem_euclid(12) + 1)
            }
        };
        let begin = first
            .saturating_mul(DAY_MS)
            .saturating_sub(i64::from(self.utc_offset_minutes) * MINUTE_MS);
        u64::try_from(begin).unwrap_or(0)
    }

    /// Milliseconds until the period that holds this moment ends.
    #[must_use]
    pub fn ends_in_ms(self, period: Period, unix_ms: u64) -> u64 {
        let next_day = match period {
            Period::Day => self.days(unix_ms) + 1,
            Period::Month => {
                let next = self.number(Period::Month, unix_ms) + 1;
                first_day(next.div_euclid(12), next.rem_euclid(12) + 1)
            }
        };
        let end = next_day
            .saturating_mul(DAY_MS)
            .saturating_sub(i64::from(self.utc_offset_minutes) * MINUTE_MS);
        u64::try_from(end).unwrap_or(0).saturating_sub(unix_ms)
    }
}

/// Year and month (1 to 12) of a day counted from 1970-01-01.
fn year_and_month(days: i64) -> (i64, u8) {
    // Years that begin in March end with the leap day; 400 of them have 146,097 days.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day = shifted.rem_euclid(146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    (year, u8::try_from(month).unwrap_or(1))
}

/// The first day of a month (1 to 12), counted from 1970-01-01.
fn first_day(year: i64, month: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let march_month = (month + 9) % 12;
    let day_of_year = (153 * march_month + 2) / 5;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_begin_where_they_should() {
        let china = Calendar { utc_offset_minutes: 480 };
        let utc = Calendar::default();
        // 2024-02-29T15:59:59.999Z, the last millisecond of that day in China.
        let leap = 1_709_222_399_999;
        let check = |calendar: Calendar, unix_ms: u64, month: i64, day: i64| {
            assert_eq!(calendar.number(Period::Month, unix_ms), month, "{unix_ms}");
            assert_eq!(calendar.number(Period::Day, unix_ms), day, "{unix_ms}");
            for period in [Period::Day, Period::Month] {
                let begin = calendar.begins_ms(period, unix_ms);
                let number = calendar.number(period, unix_ms);
                assert_eq!(calendar.number(period, begin.max(1)), number, "{unix_ms}");
                assert!(begin == 0 || calendar.number(period, begin - 1) == number - 1);
                assert_eq!(
                    calendar.ends_in_ms(period, begin.max(1)),
                    calendar.ends_in_ms(period, unix_ms) + unix_ms - begin.max(1)
                );
            }
        };
        check(utc, 0, 1970 * 12, 0);
        check(china, leap, 2024 * 12 + 1, 19_782);
        check(china, leap + 1, 2024 * 12 + 2, 19_783);
        check(utc, leap + 1, 2024 * 12 + 1, 19_782);
        assert_eq!(china.ends_in_ms(Period::Month, leap), 1);
        assert_eq!(china.ends_in_ms(Period::Day, leap), 1);
        assert_eq!(utc.ends_in_ms(Period::Month, leap + 1), 8 * 3_600_000);
    }

    /// Walks 400 years day by day.
    #[test]
    fn every_day_lies_in_its_month() {
        let (mut year, mut month, mut first) = (1970, 1, 0_i64);
        for day in 0..146_097_i64 {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + i64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            if day == first + length {
                first = day;
                (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
            }
            assert_eq!(year_and_month(day), (year, u8::try_from(month).unwrap()), "day {day}");
            assert_eq!(first_day(year, month), first);
        }
    }
}
