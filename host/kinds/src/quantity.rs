//! The one way of writing a quantity: `1500m` for `1.5`, `512Mi` for `0.5Gi`.

/// The form a quantity was written in, which its canonical text keeps.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Binary,
    Decimal,
    Exponent,
}

const NANO: i128 = 1_000_000_000;
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// The canonical text of a quantity; `None` when it is none, or too large to be rewritten exactly.
pub(crate) fn canonical(text: &str) -> Option<String> {
    let (nanos, form) = parse(text)?;
    Some(write(nanos, form))
}

fn parse(text: &str) -> Option<(i128, Form)> {
    let negative = text.starts_with('-');
    let body = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
    let (number, suffix) = body.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') {
        return None;
    }
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (factor, exponent, form) = unit(suffix)?;
    let value = mantissa.checked_mul(factor)?;
    let power = 9 + exponent - i32::try_from(fraction.len()).ok()?;
    let scale = 10_i128.checked_pow(power.unsigned_abs())?;
    let nanos = if power >= 0 {
        value.checked_mul(scale)?
    } else {
        value.div_euclid(scale) + i128::from(value.rem_euclid(scale) != 0)
    };
    Some((if negative { -nanos } else { nanos }, form))
}

/// The binary factor, the decimal exponent and the form a suffix stands for.
fn unit(suffix: &str) -> Option<(i128, i32, Form)> {
    if let Some(step) = BINARY.iter().skip(1).position(|s| *s == suffix) {
        return Some((1024_i128.pow(step as u32 + 1), 0, Form::Binary));
    }
    if let Some(step) = DECIMAL.iter().position(|s| *s == suffix) {
        return Some((1, 3 * (step as i32 - 3), Form::Decimal));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (exponent.abs() <= 30).then_some((1, exponent, Form::Exponent))
}

fn write(nanos: i128, form: Form) -> String {
    if nanos == 0 {
        return "0".into();
    }
    let small = nanos.unsigned_abs() < 1024 * NANO.unsigned_abs();
    if form == Form::Binary && !small {
        let mut amount = nanos.div_euclid(NANO) + i128::from(nanos.rem_euclid(NANO) != 0);
        let mut step = 0;
        while step < BINARY.len() - 1 && amount % 1024 == 0 {
            amount /= 1024;
            step += 1;
        }
        return format!("{amount}{}", BINARY[step]);
    }
    let mut amount = nanos;
    let mut step = 0;
    while step < DECIMAL.len() - 1 && amount % 1000 == 0 {
        amount /= 1000;
        step += 1;
    }
    match form {
        Form::Exponent if step != 3 => format!("{amount}e{}", 3 * (step as i32 - 3)),
        Form::Exponent => amount.to_string(),
        _ => format!("{amount}{}", DECIMAL[step]),
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn keeps_the_form_and_drops_fractions() {
        for (text, want) in [
            ("1", "1"),
            ("1000m", "1"),
            ("1.5", "1500m"),
            ("0.5Gi", "512Mi"),
            ("1024Ki", "1Mi"),
            ("1000Ki", "1000Ki"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("100", "100"),
            ("2000", "2k"),
            ("1e0", "1"),
            ("-1", "-1"),
            ("0", "0"),
            ("0Gi", "0"),
            ("1.3Ki", "1332"),
            ("64Mi", "64Mi"),
        ] {
            assert_eq!(canonical(text).as_deref(), Some(want), "{text}");
        }
        assert_eq!(canonical("x"), None);
    }
}
