//! Exact numbers of price lists: decimals as written, and factors as ratios of integers. Not amounts of money (those
//! are `Amount`), and never floating point: a number is read from its digits.
//!
//! Invariant: what cannot be represented exactly is refused, not rounded.

use std::fmt;

/// Digits after the point that a price for one token may have: the ledger counts in 10⁻¹² of the currency unit.
pub(super) const PICO_DIGITS: u32 = 12;
/// Longest number that is read, in characters.
const MAX_CHARS: usize = 40;
/// Largest numerator and denominator of a factor.
pub(super) const MAX_RATIO_TERM: u64 = 1_000_000;
/// Largest factor: a surcharge beyond it is a slip of the pen.
pub(super) const MAX_FACTOR: u64 = 100;

/// `text` × 10^`digits` as an integer, where `text` is a plain decimal such as `0.15`.
pub(super) fn scaled_decimal(text: &str, digits: u32) -> Result<u128, String> {
    let shown = shown(text);
    if text.len() > MAX_CHARS {
        return Err(format!("`{shown}` is too long for a number"));
    }
    if text.starts_with('-') {
        return Err(format!("`{shown}` is negative; prices start at 0"));
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let dangling = text.contains('.') && fraction.is_empty();
    if whole.is_empty() || dangling || !all_digits(whole) || !all_digits(fraction) {
        return Err(format!(
            "`{shown}` is not a plain decimal number; write it like 0.15, without sign or exponent"
        ));
    }
    let fraction = fraction.trim_end_matches('0');
    let Some(padding) = (digits as usize).checked_sub(fraction.len()) else {
        return Err(format!(
            "`{shown}` has more than {digits} digits after the point, which is finer than the ledger counts (10⁻¹² \
             of the currency unit for one token)"
        ));
    };
    let mut value: u128 = 0;
    for byte in whole.bytes().chain(fraction.bytes()).chain(std::iter::repeat_n(b'0', padding)) {
        value = value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u128::from(byte - b'0')))
            .ok_or_else(|| format!("`{shown}` is too large"))?;
    }
    Ok(value)
}

/// `value` ÷ 10^`digits` in the shortest plain notation.
pub(super) fn decimal_text(value: u128, digits: u32) -> String {
    let text = format!("{value:0>width$}", width = digits as usize + 1);
    let (whole, fraction) = text.split_at(text.len() - digits as usize);
    match fraction.trim_end_matches('0') {
        "" => whole.to_owned(),
        fraction => format!("{whole}.{fraction}"),
    }
}

/// At most 40 characters of a text from outside, for messages.
pub(super) fn shown(text: &str) -> String {
    if text.chars().count() <= MAX_CHARS {
        return text.to_owned();
    }
    let head: String = text.chars().take(MAX_CHARS).collect();
    format!("{head}…")
}

/// A factor: numerator and denominator without a common divisor, the denominator above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    numerator: u64,
    denominator: u64,
}

impl Ratio {
    /// Times one.
    pub const ONE: Self = Self { numerator: 1, denominator: 1 };

    /// `1/2`, `0.5`, `50%` or `2`, read exactly.
    ///
    /// # Errors
    /// Anything else, a factor above 100, terms above a million.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (numerator, denominator) = if let Some((numerator, denominator)) = text.split_once('/')
        {
            (scaled_decimal(numerator.trim(), 0)?, scaled_decimal(denominator.trim(), 0)?)
        } else if let Some(percent) = text.strip_suffix('%') {
            (scaled_decimal(percent.trim(), 4)?, 1_000_000)
        } else {
            (scaled_decimal(text, 6)?, 1_000_000)
        };
        let shown = shown(text);
        if denominator == 0 {
            return Err(format!("`{shown}` divides by zero"));
        }
        let divisor = gcd(numerator, denominator);
        let term = |value: u128| u64::try_from(value / divisor).ok();
        let (Some(numerator), Some(denominator)) = (term(numerator), term(denominator)) else {
            return Err(format!("`{shown}` is too large for a factor"));
        };
        if u128::from(numerator) > u128::from(denominator) * u128::from(MAX_FACTOR) {
            return Err(format!("`{shown}` is above {MAX_FACTOR}; a factor of 1 changes nothing"));
        }
        if denominator > MAX_RATIO_TERM {
            return Err(format!("`{shown}` needs a denominator above {MAX_RATIO_TERM}"));
        }
        Ok(Self { numerator, denominator })
    }

    /// `value` × this, if that is a whole number.
    pub(super) fn of(self, value: u128) -> Option<u128> {
        let product = value.checked_mul(u128::from(self.numerator))?;
        let denominator = u128::from(self.denominator);
        product.is_multiple_of(denominator).then(|| product / denominator)
    }

    /// Both factors, one after the other; `None` where the terms leave 64 bits.
    pub(super) fn times(self, other: Self) -> Option<Self> {
        let numerator = u128::from(self.numerator) * u128::from(other.numerator);
        let denominator = u128::from(self.denominator) * u128::from(other.denominator);
        let divisor = gcd(numerator, denominator);
        Some(Self {
            numerator: u64::try_from(numerator / divisor).ok()?,
            denominator: u64::try_from(denominator / divisor).ok()?,
        })
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.denominator {
            1 => write!(f, "{}", self.numerator),
            denominator => write!(f, "{}/{denominator}", self.numerator),
        }
    }
}

/// Greatest common divisor; of 0 and n it is n, so the result is above 0 wherever one of the two is.
fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_read_from_their_digits() {
        let check = |text: &str, expected: Option<u128>| {
            assert_eq!(scaled_decimal(text, 6).ok(), expected, "{text}");
        };
        check("0.1875", Some(187_500));
        check("2", Some(2_000_000));
        check("0.000001", Some(1));
        check("0.10000000000", Some(100_000));
        check("0.0000001", None);
        for bad in [
            "", ".", ".5", "5.", "-1", "+1", "1e3", "nan", "NaN", "inf", "-inf", "0x10", "1_000",
            "1,5", "1 ", "½", "१", "1.2.3",
        ] {
            check(bad, None);
        }
        check("99999999999999999999999999999999999999999", None);
        check("340282366920938463463374607431768211455", None);
    }

    #[test]
    fn decimals_read_back() {
        for value in [0, 1, 187_500, 2_000_000, 123_456_789] {
            assert_eq!(scaled_decimal(&decimal_text(value, 6), 6), Ok(value));
        }
        assert_eq!(decimal_text(187_500, 6), "0.1875");
        assert_eq!(decimal_text(0, 12), "0");
    }

    #[test]
    fn factors_are_exact() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(
                Ratio::parse(text).ok().map(|r| r.to_string()).as_deref(),
                expected,
                "{text}"
            );
        };
        check("1/2", Some("1/2"));
        check("0.5", Some("1/2"));
        check("50%", Some("1/2"));
        check("12.5 %", Some("1/8"));
        check("3/9", Some("1/3"));
        check("0", Some("0"));
        check("100", Some("100"));
        check("101", None);
        check("1/0", None);
        check("0/0", None);
        check("1/1000001", None);
        check("-1/2", None);
        check("nan", None);
        let third = Ratio::parse("1/3").unwrap();
        assert_eq!(third.of(10), None);
        assert_eq!(third.of(9), Some(3));
        assert_eq!(third.times(Ratio::parse("3").unwrap()), Some(Ratio::ONE));
    }
}
