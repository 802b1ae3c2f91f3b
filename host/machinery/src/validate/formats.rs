//! The formats a text may be declared to have. Formats nobody knows are not checked.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use regex::Regex;

use crate::{decode::canonical_time, names};

macro_rules! patterns {
    ($($name:ident = $pattern:literal;)*) => {
        $(static $name: LazyLock<Regex> = LazyLock::new(|| Regex::new($pattern).expect("a valid pattern"));)*
    };
}

patterns! {
    UUID = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID3 = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID4 = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    UUID5 = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    MAC = "(?i)^([0-9a-f]{2}[:-]){5}([0-9a-f]{2}[:-][0-9a-f]{2}[:-])?[0-9a-f]{2}$";
    EMAIL = r#"^[^@\s<>,]+@[A-Za-z0-9\[\]:.-]+$"#;
    HOSTNAME = r"^([a-zA-Z0-9¡-\u{ffff}]([a-zA-Z0-9¡-\u{ffff}-]{0,61}[a-zA-Z0-9¡-\u{ffff}])?\.)*[a-zA-Z0-9¡-\u{ffff}]([a-zA-Z0-9¡-\u{ffff}-]{0,61}[a-zA-Z0-9¡-\u{ffff}])?\.?$";
    HEX_COLOUR = "(?i)^#?([0-9a-f]{3}|[0-9a-f]{6})$";
    RGB_COLOUR = r"^rgb\(\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*\)$";
    SSN = r"^\d{3}[- ]?\d{2}[- ]?\d{4}$";
    OBJECT_ID = "(?i)^[0-9a-f]{24}$";
    SCHEME = "^[A-Za-z][A-Za-z0-9+.-]*:";
}

/// Whether the text has that format.
pub(super) fn holds(format: &str, text: &str) -> bool {
    match format {
        // Names of formats are compared without dashes.
        "date-time" | "datetime" => canonical_time(&text.to_ascii_uppercase(), false).is_ok(),
        "date" => text.len() == 10 && canonical_time(&format!("{text}T00:00:00Z"), false).is_ok(),
        "duration" => duration(text).is_some(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => MAC.is_match(text),
        "uuid" => UUID.is_match(text),
        "uuid3" => UUID3.is_match(text),
        "uuid4" => UUID4.is_match(text),
        "uuid5" => UUID5.is_match(text),
        "email" => EMAIL.is_match(text),
        "hostname" => text.len() <= 255 && HOSTNAME.is_match(text),
        "uri" => SCHEME.is_match(text) || text.starts_with('/'),
        "byte" => base64(text),
        "hexcolor" => HEX_COLOUR.is_match(text),
        "rgbcolor" => RGB_COLOUR.is_match(text),
        "ssn" => SSN.is_match(text),
        "bsonobjectid" => OBJECT_ID.is_match(text),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "creditcard" => luhn(text),
        "k8s-short-name" => names::dns1123_label(text).is_empty(),
        "k8s-long-name" => names::dns1123_subdomain(text).is_empty(),
        _ => true,
    }
}

fn cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let plain = !bits.is_empty()
        && bits.bytes().all(|c| c.is_ascii_digit())
        && (bits == "0" || !bits.starts_with('0'));
    let max = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    plain && bits.parse::<u32>().is_ok_and(|bits| bits <= max)
}

fn base64(text: &str) -> bool {
    text.len().is_multiple_of(4) && crate::decode::canonical_base64(text).is_ok_and(|clean| clean == text)
}

/// Nanoseconds of `1h30m`, `-2.5s`, or of `3 days`; `None` when it is none.
pub(super) fn duration(text: &str) -> Option<i64> {
    let go = wasmk_api::parse_duration(text).and_then(|span| i64::try_from(span.as_nanos()).ok());
    go.or_else(|| worded_duration(text))
}

fn worded_duration(text: &str) -> Option<i64> {
    let (mut nanos, mut rest) = (0f64, text.trim());
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0)?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = rest[end..].trim_start();
        let end = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
        nanos += number * worded_unit(&rest[..end].to_lowercase())?;
        rest = rest[end..].trim_start();
    }
    (nanos < 9.2e18).then_some(nanos as i64)
}

fn worded_unit(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" | "nano" | "nanos" | "nanosecond" | "nanoseconds" => 1.0,
        "us" | "µs" | "micro" | "micros" | "microsecond" | "microseconds" => 1e3,
        "ms" | "milli" | "millis" | "millisecond" | "milliseconds" => 1e6,
        "s" | "sec" | "secs" | "second" | "seconds" => 1e9,
        "m" | "min" | "mins" | "minute" | "minutes" => 6e10,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3.6e12,
        "d" | "day" | "days" => 8.64e13,
        "w" | "wk" | "wks" | "week" | "weeks" => 6.048e14,
        _ => return None,
    })
}

fn digits(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, ' ' | '-')).collect()
}

fn isbn10(text: &str) -> bool {
    let text = digits(text);
    let digit = |(at, c): (usize, char)| match c {
        'X' | 'x' if at == 9 => Some(10),
        c => c.to_digit(10),
    };
    let values: Option<Vec<u32>> = text.chars().enumerate().map(digit).collect();
    values.is_some_and(|v| v.len() == 10 && (1..).zip(&v).map(|(i, d)| i * d).sum::<u32>() % 11 == 0)
}

fn isbn13(text: &str) -> bool {
    let values: Option<Vec<u32>> = digits(text).chars().map(|c| c.to_digit(10)).collect();
    let weighted = |v: &[u32]| v.iter().zip([1, 3].into_iter().cycle()).map(|(d, w)| d * w).sum::<u32>();
    values.is_some_and(|v| v.len() == 13 && weighted(&v) % 10 == 0)
}

fn luhn(text: &str) -> bool {
    let values: Option<Vec<u32>> = digits(text).chars().map(|c| c.to_digit(10)).collect();
    let doubled = |(at, d): (usize, &u32)| if at % 2 == 1 { d * 2 / 10 + d * 2 % 10 } else { *d };
    values.is_some_and(|v| {
        (13..=19).contains(&v.len()) && v.iter().rev().enumerate().map(doubled).sum::<u32>() % 10 == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("date-time", "2024-01-01T00:00:00Z", "noon"),
            ("date", "2024-02-29", "2023-02-29"),
            ("duration", "1h30m", "long"),
            ("duration", "3 days", "3 blinks"),
            ("ipv4", "10.0.0.1", "10.0.0"),
            ("ipv6", "::1", "1.2.3.4"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "01:23:45:67:89:ab", "01:23"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123"),
            ("email", "a@b.c", "nobody"),
            ("hostname", "a.example.com", "a_b"),
            ("uri", "http://a.b/c", "::"),
            ("byte", "YQ==", "a b"),
            ("isbn", "0-306-40615-2", "0-306-40615-3"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("hexcolor", "#fff", "#ffff"),
            ("unheard-of", "anything", "\u{0}"),
        ] {
            assert!(holds(format, good), "{format}: {good}");
            assert!(format == "unheard-of" || !holds(format, bad), "{format}: {bad}");
        }
        assert_eq!(duration("-1.5s"), Some(-1_500_000_000));
    }
}
