//! Money as integers of 10⁻¹² of a currency's unit ("pico").
//!
//! Not here: prices, and rounding to what a bank can move. The only rounding point is the invoice.
//! Invariants: no floats; arithmetic that could overflow says so; a single posted amount fits an `i64` (about nine
//! million units), sums are `i128` and cannot overflow within any number of postings that can be stored.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Pico in one unit of the currency.
pub const PICO_PER_UNIT: i128 = 1_000_000_000_000;
/// Decimal places of an [`Amount`].
const DECIMALS: usize = 12;
/// The longest text that can be an amount: sign, 27 digits, point, 12 decimals.
const MAX_TEXT_BYTES: usize = 41;

/// An amount of money in pico; which currency is told by its account or price list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(i128);

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So many 10⁻¹² of a unit.
    pub const fn from_pico(pico: i128) -> Self {
        Self(pico)
    }

    /// Whole units of the currency.
    pub const fn from_units(units: i64) -> Self {
        Self(units as i128 * PICO_PER_UNIT)
    }

    /// In 10⁻¹² of a unit.
    pub const fn pico(self) -> i128 {
        self.0
    }

    /// As a single posted amount: `None` where it does not fit an `i64` (±9,223,372 units).
    pub fn posted_pico(self) -> Option<i64> {
        i64::try_from(self.0).ok()
    }

    /// The sum, unless it overflows.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference, unless it overflows.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// The product, unless it overflows.
    pub fn checked_mul(self, times: u64) -> Option<Self> {
        self.0.checked_mul(i128::from(times)).map(Self)
    }

    /// Below zero.
    pub const fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// Exactly zero.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// Exact decimal units without trailing zeros: `12.5`, `-0.000000000001`, `0`.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let pico = self.0.unsigned_abs();
        let one = PICO_PER_UNIT.unsigned_abs();
        let (units, rest) = (pico / one, pico % one);
        if rest == 0 {
            return write!(f, "{sign}{units}");
        }
        let decimals = format!("{rest:0DECIMALS$}");
        write!(f, "{sign}{units}.{}", decimals.trim_end_matches('0'))
    }
}

/// Why a text is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not decimal digits with at most one point.
    #[error("`{0}` is not an amount: write it in digits, like `12.50`")]
    Malformed(String),
    /// More precise than what is counted.
    #[error("`{0}` has more than {DECIMALS} decimals, which is finer than what is counted")]
    TooFine(String),
    /// Does not fit.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let shown = || text.chars().take(MAX_TEXT_BYTES).collect::<String>();
        if text.len() > MAX_TEXT_BYTES {
            return Err(AmountError::TooLarge(shown()));
        }
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (units, decimals) = digits.split_once('.').unwrap_or((digits, ""));
        let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let empty_decimals = digits.ends_with('.');
        if units.is_empty() || empty_decimals || !all_digits(units) || !all_digits(decimals) {
            return Err(AmountError::Malformed(shown()));
        }
        let decimals = decimals.trim_end_matches('0');
        if decimals.len() > DECIMALS {
            return Err(AmountError::TooFine(shown()));
        }
        // Digits only, so the sole way to fail is to be too long.
        let whole: i128 = units.parse().map_err(|_| AmountError::TooLarge(shown()))?;
        let part: i128 = format!("{decimals:0<DECIMALS$}")
            .parse()
            .map_err(|_| AmountError::TooLarge(shown()))?;
        let pico = whole
            .checked_mul(PICO_PER_UNIT)
            .and_then(|pico| pico.checked_add(part))
            .ok_or_else(|| AmountError::TooLarge(shown()))?;
        Ok(Self(if negative { -pico } else { pico }))
    }
}

/// As exact decimal text, because a JSON number would pass through a float somewhere.
impl Serialize for Amount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Overflow would need 10²⁶ units of a currency; it saturates there.
impl std::iter::Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        Self(amounts.fold(0, |sum, amount| sum.saturating_add(amount.0)))
    }
}

/// A currency by its ISO 4217 code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency([u8; 3]);

impl Currency {
    /// Chinese yuan, the default.
    pub const CNY: Self = Self(*b"CNY");

    /// The three letters.
    pub fn code(&self) -> &str {
        // Only capital letters get in, so this cannot fail.
        std::str::from_utf8(&self.0).unwrap_or("XXX")
    }

    /// Digits after the point of its smallest coin, as ISO 4217 has them.
    pub fn decimals(&self) -> usize {
        match self.code() {
            "BIF" | "CLP" | "DJF" | "GNF" | "ISK" | "JPY" | "KMF" | "KRW" | "PYG" | "RWF"
            | "UGX" | "UYI" | "VND" | "VUV" | "XAF" | "XOF" | "XPF" => 0,
            "BHD" | "IQD" | "JOD" | "KWD" | "LYD" | "OMR" | "TND" => 3,
            "CLF" | "UYW" => 4,
            _ => 2,
        }
    }
}

impl Default for Currency {
    fn default() -> Self {
        Self::CNY
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A text that is not three capital letters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a currency is three capital letters, like `CNY`")]
pub struct CurrencyError;

impl FromStr for Currency {
    type Err = CurrencyError;

    fn from_str(text: &str) -> Result<Self, CurrencyError> {
        let code: [u8; 3] = text.as_bytes().try_into().map_err(|_| CurrencyError)?;
        code.iter().all(u8::is_ascii_uppercase).then_some(Self(code)).ok_or(CurrencyError)
    }
}

impl TryFrom<String> for Currency {
    type Error = CurrencyError;

    fn try_from(text: String) -> Result<Self, CurrencyError> {
        text.parse()
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> Self {
        currency.code().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_back_what_they_show() {
        for (text, pico) in [
            ("0", 0),
            ("1", PICO_PER_UNIT),
            ("0.5", PICO_PER_UNIT / 2),
            ("-0.000000000001", -1),
            ("12.345", 12_345_000_000_000),
            ("9223372.036854775807", i128::from(i64::MAX)),
        ] {
            let amount: Amount = text.parse().unwrap();
            assert_eq!((amount.pico(), amount.to_string().as_str()), (pico, text));
            let json = serde_json::to_string(&amount).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Amount>(&json).unwrap(), amount);
        }
        assert_eq!("007.500".parse::<Amount>().unwrap().to_string(), "7.5");
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in ["", "-", ".", "1.", ".5", "1e3", "+1", " 1", "1,5", "一", "--1", "1.-1"] {
            let error = text.parse::<Amount>().unwrap_err();
            assert!(matches!(error, AmountError::Malformed(_)), "{text}: {error}");
        }
        let fine = "0.0000000000001".parse::<Amount>();
        assert!(matches!(fine, Err(AmountError::TooFine(_))));
        for text in ["9".repeat(28), "1".repeat(4_000)] {
            assert!(matches!(text.parse::<Amount>(), Err(AmountError::TooLarge(_))), "{text}");
        }
    }

    #[test]
    fn a_posted_amount_fits() {
        assert_eq!(Amount::from_pico(i64::MAX.into()).posted_pico(), Some(i64::MAX));
        assert_eq!(Amount::from_pico(i128::from(i64::MAX) + 1).posted_pico(), None);
    }

    #[test]
    fn currencies_are_three_capitals() {
        assert_eq!("CNY".parse::<Currency>(), Ok(Currency::CNY));
        for text in ["", "cny", "CN", "CNYX", "C Y", "元"] {
            assert_eq!(text.parse::<Currency>(), Err(CurrencyError), "{text}");
        }
    }
}
