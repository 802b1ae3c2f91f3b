//! YAML as Kubernetes writes it: maps in the order of their keys, lists not indented below theirs, text quoted only
//! where it would be read as something else.

use serde_json::{Map, Value};

/// Words that older readers of YAML take for booleans or null.
const WORDS: [&str; 12] = ["", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", "<<"];

/// Writes a value as a document.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => write_map(&mut out, map, 0),
        Value::Array(items) if !items.is_empty() => write_list(&mut out, items, 0),
        other => {
            scalar(&mut out, other, 0);
            out.push('\n');
        }
    }
    out
}

fn pad(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

fn write_map(out: &mut String, map: &Map<String, Value>, depth: usize) {
    let mut pairs: Vec<_> = map.iter().collect();
    pairs.sort_by_key(|(key, _)| key.as_str());
    for (i, (key, value)) in pairs.into_iter().enumerate() {
        if i > 0 || !out.ends_with("- ") {
            pad(out, depth);
        }
        text(out, key, None);
        out.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                write_map(out, map, depth + 1);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                write_list(out, items, depth);
            }
            other => {
                out.push(' ');
                scalar(out, other, depth + 1);
                out.push('\n');
            }
        }
    }
}

fn write_list(out: &mut String, items: &[Value], depth: usize) {
    for (i, item) in items.iter().enumerate() {
        if i > 0 || !out.ends_with("- ") {
            pad(out, depth);
        }
        out.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => write_map(out, map, depth + 1),
            Value::Array(items) if !items.is_empty() => write_list(out, items, depth + 1),
            other => {
                scalar(out, other, depth + 1);
                out.push('\n');
            }
        }
    }
}

fn scalar(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::String(string) => text(out, string, Some(depth)),
        // Numbers, booleans, null and what is empty are written as in JSON.
        other => out.push_str(&other.to_string()),
    }
}

/// Text; where `block` says how deep it stands, several lines are written as such.
fn text(out: &mut String, string: &str, block: Option<usize>) {
    let strange = string.chars().any(|c| c.is_control() && c != '\n' || c == '\u{feff}' || c == '\u{85}');
    match block {
        Some(depth) if string.contains('\n') && !strange && block_fits(string) => lines(out, string, depth),
        _ if strange || string.contains('\n') || is_other(string) => quoted(out, string),
        _ if is_plain(string) => out.push_str(string),
        _ => {
            out.push('\'');
            out.push_str(&string.replace('\'', "''"));
            out.push('\'');
        }
    }
}

/// Whether lines can be written as a block: blanks at their ends, or before the first, would be lost or confused.
fn block_fits(string: &str) -> bool {
    !string.starts_with([' ', '\n']) && !string.lines().any(|line| line.ends_with([' ', '\t']))
}

fn lines(out: &mut String, string: &str, depth: usize) {
    let kept = string.len() - string.trim_end_matches('\n').len();
    out.push_str(match kept {
        0 => "|-",
        1 => "|",
        _ => "|+",
    });
    for line in string.strip_suffix('\n').unwrap_or(string).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(out, depth);
            out.push_str(line);
        }
    }
}

fn quoted(out: &mut String, string: &str) {
    out.push('"');
    for c in string.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() || c == '\u{feff}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Whether it would be read as something else than text: a number, a time, a boolean, nothing.
fn is_other(string: &str) -> bool {
    if WORDS.contains(&string.to_lowercase().as_str()) {
        return true;
    }
    let Some(first) = string.bytes().next() else { return true };
    if !first.is_ascii_digit() && !matches!(first, b'-' | b'+' | b'.') {
        return false;
    }
    let digits = string.replace('_', "");
    let body = digits.trim_start_matches(['-', '+']);
    let based = ["0x", "0o", "0b"].iter().any(|p| {
        body.strip_prefix(p)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_hexdigit()))
    });
    let sexagesimal =
        body.contains(':') && body.bytes().all(|b| b.is_ascii_digit() || matches!(b, b':' | b'.'));
    let special = matches!(body.to_lowercase().as_str(), ".inf" | ".nan");
    let number = body.starts_with(|c: char| c.is_ascii_digit() || c == '.') && body.parse::<f64>().is_ok();
    based || sexagesimal || special || number || is_time(string)
}

/// Whether it begins as a date: four digits, two, two.
fn is_time(string: &str) -> bool {
    let bytes = string.as_bytes();
    let digits = |from: usize, to: usize| bytes[from..to].iter().all(u8::is_ascii_digit);
    bytes.len() >= 10
        && digits(0, 4)
        && bytes[4] == b'-'
        && digits(5, 7)
        && bytes[7] == b'-'
        && digits(8, 10)
        && (bytes.len() == 10 || matches!(bytes[10], b'T' | b't' | b' '))
}

/// Whether it can stand without quotes.
fn is_plain(string: &str) -> bool {
    let bytes = string.as_bytes();
    let Some(first) = bytes.first() else { return false };
    let indicator = b",[]{}#&*!|>'\"%@`".contains(first)
        || matches!(first, b'-' | b'?' | b':') && bytes.get(1).is_none_or(|b| *b == b' ');
    !indicator
        && !string.starts_with(' ')
        && !string.ends_with([' ', ':'])
        && !string.contains(": ")
        && !string.contains(" #")
        && !matches!(string, "---" | "...")
        && !string.starts_with("--- ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_is_quoted_where_it_must_be() {
        for (string, expect) in [
            ("plain text", "plain text"),
            ("12", "\"12\""),
            ("1e3", "\"1e3\""),
            ("0x1f", "\"0x1f\""),
            ("2024-01-01T00:00:00Z", "\"2024-01-01T00:00:00Z\""),
            ("yes", "\"yes\""),
            ("", "\"\""),
            ("1Gi", "1Gi"),
            ("-", "'-'"),
            ("-x", "-x"),
            ("*", "'*'"),
            ("a: b", "'a: b'"),
            ("it's: so", "'it''s: so'"),
            ("a:b", "a:b"),
            ("tab\there", "\"tab\\there\""),
            ("{}", "'{}'"),
        ] {
            let mut out = String::new();
            text(&mut out, string, Some(1));
            assert_eq!(out, expect, "{string:?}");
        }
    }

    #[test]
    fn documents_are_read_back_as_they_were() {
        let value = json!({
            "b": [{ "x": 1, "a": { "deep": [[1, 2], [], {}] } }, "two", null], "a": { "empty": {}, "none": [] },
            "text": "one\ntwo\n", "cut": "one\n  two", "more": "one\n\n", "odd": " one\ntwo", "12": true,
        });
        let written = write(&value);
        assert!(
            written
                .starts_with("\"12\": true\na:\n  empty: {}\n  none: []\nb:\n- a:\n    deep:\n    - - 1\n"),
            "{written}"
        );
        assert!(written.contains("text: |\n  one\n  two\n"), "{written}");
        let (read, _) = crate::decode::plain(written.as_bytes(), crate::decode::Format::Yaml).unwrap();
        assert_eq!(read, value, "{written}");
    }
}
