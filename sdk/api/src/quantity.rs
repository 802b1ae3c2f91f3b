//! Amounts of resources: `100m`, `64Mi`, `1e3`.

use std::{cmp::Ordering, fmt, str::FromStr};

use thiserror::Error;

/// Text that is not a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct QuantityError;

/// An exact amount, kept in billionths. Finer parts are rounded up, amounts beyond
/// ±170 × 10²⁷ are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Quantity {
    nanos: i128,
}

const NANO: i128 = 1_000_000_000;

impl Quantity {
    /// A whole number of units (bytes, cores, pods).
    pub const fn units(units: i64) -> Self {
        Self { nanos: units as i128 * NANO }
    }

    /// Thousandths of a unit (millicores).
    pub const fn millis(millis: i64) -> Self {
        Self { nanos: millis as i128 * 1_000_000 }
    }

    /// Whole units, rounded up, at most `i64::MAX`.
    pub fn value(self) -> i64 {
        saturate(ceil_div(self.nanos, NANO))
    }

    /// Thousandths, rounded up, at most `i64::MAX`.
    pub fn milli_value(self) -> i64 {
        saturate(ceil_div(self.nanos, 1_000_000))
    }

    /// Whether it is below zero.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it has no fraction of a unit.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }
}

fn ceil_div(n: i128, d: i128) -> i128 {
    n.div_euclid(d) + i128::from(n.rem_euclid(d) != 0)
}

fn saturate(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

impl std::ops::Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_add(other.nanos) }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_sub(other.nanos) }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), |a, b| a + b)
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// In decimal form: whole units with `k`, `M`, … where that is exact, else `m`, `u` or `n`.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let mut amount = self.nanos;
        let mut step = 0;
        while step < SUFFIXES.len() - 1 && amount % 1000 == 0 {
            amount /= 1000;
            step += 1;
        }
        write!(f, "{amount}{}", SUFFIXES[step])
    }
}

const SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let negative = text.starts_with('-');
        let body = text.strip_prefix(['+', '-']).unwrap_or(text);
        let end = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
        let (number, suffix) = body.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(QuantityError);
        }
        let digits = format!("{whole}{fraction}");
        let mantissa: i128 = digits.parse().map_err(|_| QuantityError)?;
        let nanos = scale(mantissa, fraction.len(), suffix)?;
        Ok(Self { nanos: if negative { -nanos } else { nanos } })
    }
}

/// `mantissa × 10^-decimals × suffix` in billionths, rounded up.
fn scale(mantissa: i128, decimals: usize, suffix: &str) -> Result<i128, QuantityError> {
    let decimals = i32::try_from(decimals).map_err(|_| QuantityError)?;
    let (binary, exponent) = match suffix {
        "Ki" => (1, 0),
        "Mi" => (2, 0),
        "Gi" => (3, 0),
        "Ti" => (4, 0),
        "Pi" => (5, 0),
        "Ei" => (6, 0),
        _ => match SUFFIXES.iter().position(|s| *s == suffix) {
            Some(step) => (0, 3 * (step as i32 - 3)),
            None => (0, exponent(suffix)?),
        },
    };
    let value = mantissa.checked_mul(1024_i128.pow(binary)).ok_or(QuantityError)?;
    let power = 9 + exponent - decimals;
    let ten = |n: u32| 10_i128.checked_pow(n);
    if power >= 0 {
        let factor = ten(power.unsigned_abs());
        return match value {
            0 => Ok(0),
            value => factor.and_then(|f| value.checked_mul(f)).ok_or(QuantityError),
        };
    }
    Ok(ten(power.unsigned_abs()).map_or(i128::from(value != 0), |f| ceil_div(value, f)))
}

fn exponent(suffix: &str) -> Result<i32, QuantityError> {
    let digits = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError)?;
    let exponent: i32 = digits.parse().map_err(|_| QuantityError)?;
    if exponent.abs() > 64 { Err(QuantityError) } else { Ok(exponent) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_rounds_up() {
        for (text, millis) in [
            ("100m", 100),
            ("1", 1000),
            ("0.5", 500),
            ("1.5Gi", 1_610_612_736_000),
            ("2k", 2_000_000),
            ("1e3", 1_000_000),
            ("1u", 1),
            ("-1", -1000),
            (".5", 500),
            ("5.", 5000),
        ] {
            assert_eq!(text.parse::<Quantity>().unwrap().milli_value(), millis, "{text}");
        }
        for text in ["", "x", "1.2.3", "1Zi", "--1", "1e", "1 ", "m", "9e99"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn prints_shortest() {
        for (text, shown) in [("1000m", "1"), ("1500m", "1500m"), ("2000", "2k"), ("0", "0")] {
            assert_eq!(text.parse::<Quantity>().unwrap().to_string(), shown);
        }
    }
}
