//! Texts with a form of their own: amounts, times, base64, in the form Kubernetes stores them.

use base64::{Engine, engine::general_purpose::STANDARD};

const QUANTITY_FORM: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const QUANTITY_SUFFIX: &str = "unable to parse quantity's suffix";
/// Most digits of an amount that are looked at.
const MAX_DIGITS: usize = 60;

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Decimal,
    Binary,
    Exponent,
}

/// The canonical text of an amount: `1000m` is `1`, `0.5Gi` is `512Mi`, `1e3` stays.
///
/// # Errors
/// Kubernetes' sentence about the form or suffix.
pub fn canonical_quantity(text: &str) -> Result<String, &'static str> {
    if text == "0" {
        return Ok("0".into());
    }
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.is_empty() || fraction.contains('.') || whole.len() + fraction.len() == 0 {
        return Err(QUANTITY_FORM);
    }
    let letters = suffix.find(|c: char| !"eEinumkKMGTP".contains(c)).unwrap_or(suffix.len());
    let tail = &suffix[letters..];
    let digits = tail.strip_prefix(['-', '+']).unwrap_or(tail);
    if !digits.bytes().all(|c| c.is_ascii_digit()) || whole.len() + fraction.len() > MAX_DIGITS {
        return Err(QUANTITY_FORM);
    }
    let (form, base2, base10) = suffix_scale(suffix)?;
    let nanos = nanos(whole, fraction, base2, base10);
    Ok(written(nanos, negative, form))
}

/// The form a suffix stands for, and its power of two and ten.
fn suffix_scale(suffix: &str) -> Result<(Form, u32, i32), &'static str> {
    let scale = match suffix {
        "" => (Form::Decimal, 0, 0),
        "n" => (Form::Decimal, 0, -9),
        "u" => (Form::Decimal, 0, -6),
        "m" => (Form::Decimal, 0, -3),
        "k" => (Form::Decimal, 0, 3),
        "M" => (Form::Decimal, 0, 6),
        "G" => (Form::Decimal, 0, 9),
        "T" => (Form::Decimal, 0, 12),
        "P" => (Form::Decimal, 0, 15),
        "E" => (Form::Decimal, 0, 18),
        "Ki" => (Form::Binary, 10, 0),
        "Mi" => (Form::Binary, 20, 0),
        "Gi" => (Form::Binary, 30, 0),
        "Ti" => (Form::Binary, 40, 0),
        "Pi" => (Form::Binary, 50, 0),
        "Ei" => (Form::Binary, 60, 0),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QUANTITY_SUFFIX)?;
            let exponent: i32 = exponent.parse().map_err(|_| QUANTITY_SUFFIX)?;
            (Form::Exponent, 0, exponent.clamp(-100, 100))
        }
    };
    Ok(scale)
}

/// The largest amount: 2⁶³-1 units.
const MAX_NANOS: i128 = (i64::MAX as i128) * 1_000_000_000;

/// Billionths, rounded up, at most [`MAX_NANOS`].
fn nanos(whole: &str, fraction: &str, base2: u32, base10: i32) -> i128 {
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    // More digits than this cannot matter, but for rounding; with them a multiplication could overflow.
    let kept = digits.len().min(if base2 > 0 { 20 } else { 30 });
    let (digits, cut) = digits.split_at(kept);
    let mut value: i128 = digits.parse().unwrap_or(0);
    let mut round_up = cut.bytes().any(|c| c != b'0');
    let exponent = base10 - fraction.len() as i32 + 9 + cut.len() as i32;
    for _ in 0..exponent.max(0) {
        value = value.saturating_mul(10);
    }
    value = value.saturating_mul(1 << base2);
    for _ in exponent..0 {
        round_up |= value % 10 != 0;
        value /= 10;
    }
    value.saturating_add(i128::from(round_up)).min(MAX_NANOS)
}

fn written(nanos: i128, negative: bool, form: Form) -> String {
    let sign = if negative && nanos != 0 { "-" } else { "" };
    let units = nanos / 1_000_000_000;
    let is_whole = nanos % 1_000_000_000 == 0;
    if nanos == 0 {
        return "0".into();
    }
    if form == Form::Binary && is_whole && units >= 1024 {
        let (mut value, mut at) = (units, 0);
        while value % 1024 == 0 && at < 6 {
            value /= 1024;
            at += 1;
        }
        return format!("{sign}{value}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][at]);
    }
    let (mut value, mut exponent) = (nanos, -9);
    while value % 1000 == 0 && exponent < 18 {
        value /= 1000;
        exponent += 3;
    }
    match (form, exponent) {
        (Form::Exponent, 0) => format!("{sign}{value}"),
        (Form::Exponent, exponent) => format!("{sign}{value}e{exponent}"),
        (_, exponent) => {
            let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][(exponent / 3 + 3) as usize];
            format!("{sign}{value}{suffix}")
        }
    }
}

/// A time as stored: UTC, whole seconds, or six digits of them when `micro`.
///
/// # Errors
/// Go's sentence about the first part that does not fit the layout.
pub fn canonical_time(text: &str, micro: bool) -> Result<String, String> {
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let refuse = |rest: &str, part: &str| {
        format!("parsing time \"{text}\" as \"{layout}\": cannot parse \"{rest}\" as \"{part}\"")
    };
    let mut rest = text;
    for part in ["2006", "-", "01", "-", "02", "T", "15", ":", "04", ":", "05"] {
        let fits = match part.as_bytes()[0].is_ascii_digit() {
            true => rest.len() >= part.len() && rest.as_bytes()[..part.len()].iter().all(u8::is_ascii_digit),
            false => rest.starts_with(part),
        };
        if !fits {
            return Err(refuse(rest, part));
        }
        rest = &rest[part.len()..];
    }
    let digits = rest.strip_prefix('.').map_or(0, |r| r.bytes().take_while(u8::is_ascii_digit).count());
    if micro && digits != 6 {
        return Err(refuse(rest, ".000000"));
    }
    let zone = if digits > 0 { &rest[digits + 1..] } else { rest };
    let offset = zone.len() == 6
        && matches!(zone.as_bytes()[0], b'+' | b'-')
        && zone.as_bytes()[3] == b':'
        && zone.bytes().enumerate().all(|(i, c)| i == 0 || i == 3 || c.is_ascii_digit());
    if zone != "Z" && !offset {
        if let Some(extra) = zone.strip_prefix('Z') {
            return Err(format!("parsing time \"{text}\": extra text: \"{extra}\""));
        }
        return Err(refuse(zone, "Z07:00"));
    }
    let time: jiff::Timestamp =
        text.parse().map_err(|_| format!("parsing time \"{text}\": {}", out_of_range(text)))?;
    Ok(if micro { format!("{time:.6}") } else { format!("{:.0}", floor(time)) })
}

/// Whole seconds, downwards.
fn floor(time: jiff::Timestamp) -> jiff::Timestamp {
    let seconds = time.as_second() - i64::from(time.subsec_nanosecond() < 0);
    jiff::Timestamp::from_second(seconds).unwrap_or(time)
}

fn out_of_range(text: &str) -> &'static str {
    let two = |at: usize| text.get(at..at + 2).and_then(|t| t.parse::<u8>().ok()).unwrap_or(0);
    match (two(5), two(11), two(14), two(17)) {
        (0 | 13.., ..) => "month out of range",
        (_, 24.., ..) => "hour out of range",
        (_, _, 60.., _) => "minute out of range",
        (_, _, _, 60..) => "second out of range",
        _ => "day out of range",
    }
}

/// Base64 text as Go writes it again.
///
/// # Errors
/// Go's sentence about the first byte that does not fit.
pub fn canonical_base64(text: &str) -> Result<String, String> {
    let clean: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    if STANDARD.decode(&clean).is_ok() {
        return Ok(clean);
    }
    let data = clean.trim_end_matches('=');
    let alphabet = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/');
    let at = clean.bytes().position(|c| !alphabet(c) && c != b'=');
    let at = at.or_else(|| data.find('=')).unwrap_or(match data.len() % 4 {
        1 => data.len() - 1,
        _ if clean.len() > data.len() => data.len(),
        _ => clean.len() / 4 * 4,
    });
    Err(format!("illegal base64 data at input byte {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities() {
        for (text, canonical) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1023Mi", "1023Mi"),
            ("0.5Gi", "512Mi"),
            ("1.5Ki", "1536"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1e3", "1e3"),
            ("1e0", "1"),
            ("0Gi", "0"),
            ("1.3Ki", "1331200m"),
            ("1E", "1E"),
            ("12e6", "12e6"),
            ("100e-3", "100e-3"),
            ("0.0000000001", "1n"),
            ("0", "0"),
            ("-0", "0"),
            ("+5", "5"),
            ("-1500m", "-1500m"),
            ("00.10", "100m"),
            ("5.", "5"),
            ("20Gi", "20Gi"),
            ("2000Mi", "2000Mi"),
            ("99999999999E", "9223372036854775807"),
        ] {
            assert_eq!(canonical_quantity(text).as_deref(), Ok(canonical), "{text}");
        }
        for (text, error) in [
            ("", QUANTITY_FORM),
            ("abc", QUANTITY_FORM),
            ("1.2.3", QUANTITY_FORM),
            ("1 Gi", QUANTITY_FORM),
            ("1ki", QUANTITY_SUFFIX),
            ("1Kim", QUANTITY_SUFFIX),
            ("1GB", QUANTITY_FORM),
        ] {
            assert_eq!(canonical_quantity(text), Err(error), "{text}");
        }
    }

    #[test]
    fn times() {
        for (text, micro, result) in [
            ("2024-01-02T03:04:05Z", false, Ok("2024-01-02T03:04:05Z")),
            ("2024-01-02T03:04:05.9Z", false, Ok("2024-01-02T03:04:05Z")),
            ("2024-01-02T03:04:05+02:00", false, Ok("2024-01-02T01:04:05Z")),
            ("2024-01-02T03:04:05.123456Z", true, Ok("2024-01-02T03:04:05.123456Z")),
            (
                "2024",
                true,
                Err(r#"parsing time "2024" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "" as "-""#),
            ),
            (
                "x",
                false,
                Err(r#"parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006""#),
            ),
            (
                "2024-13-02T03:04:05Z",
                false,
                Err(r#"parsing time "2024-13-02T03:04:05Z": month out of range"#),
            ),
        ] {
            assert_eq!(canonical_time(text, micro).as_deref().map_err(|e| &**e), result, "{text}");
        }
    }

    #[test]
    fn base64() {
        assert_eq!(canonical_base64("YQ==\n").as_deref(), Ok("YQ=="));
        assert_eq!(canonical_base64("a b").unwrap_err(), "illegal base64 data at input byte 1");
        assert!(canonical_base64("YQ=").is_err() && canonical_base64("YQ===").is_err());
    }

    proptest! {
        #[test]
        fn never_panic(text in "[-+0-9.eEinumkKMGTP]{0,60}|\\PC{0,40}") {
            if let Ok(canonical) = canonical_quantity(&text) {
                prop_assert_eq!(canonical_quantity(&canonical), Ok(canonical.clone()));
            }
            let _ = canonical_time(&text, true);
            let _ = canonical_time(&text, false);
            let _ = canonical_base64(&text);
        }

        #[test]
        fn times_never_panic(text in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,12})?(Z|[+-][0-9]{2}:[0-9]{2})") {
            let _ = canonical_time(&text, false);
        }
    }
}
