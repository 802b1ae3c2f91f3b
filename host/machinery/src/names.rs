//! The forms names may have, each with the sentences Kubernetes answers when one is wrong.
//!
//! Every validator returns what is wrong with the text; nothing means it is right.

const DNS_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS_SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_KEY_SAYS: &str = "must consist of alphanumeric characters, '-', '_' or '.', \
    and must start and end with an alphanumeric character";
/// Longest DNS label, label value and name part of a label key.
pub const LABEL_MAX: usize = 63;
/// Longest DNS subdomain and object name.
pub const SUBDOMAIN_MAX: usize = 253;

/// `… (e.g. 'a',  or 'b', regex used for validation is '…')`, spaced as Kubernetes spaces it.
pub fn regex_error(says: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{says} (regex used for validation is '{pattern}')");
    }
    let examples: Vec<String> = examples.iter().map(|text| format!("'{text}', ")).collect();
    format!("{says} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

fn too_long_characters(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn too_long_bytes(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn lower_or_digit(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// Whether all bytes satisfy `inner`, the first `first` and the last `last`.
fn framed(text: &str, first: fn(u8) -> bool, inner: fn(u8) -> bool, last: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(a), Some(z)) => first(*a) && last(*z) && bytes.iter().all(|c| inner(*c)),
        _ => false,
    }
}

fn label_shaped(text: &str) -> bool {
    framed(text, lower_or_digit, |c| lower_or_digit(c) || c == b'-', lower_or_digit)
}

fn subdomain_shaped(text: &str) -> bool {
    text.split('.').all(label_shaped)
}

fn subdomain_error() -> String {
    let says = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                and must start and end with an alphanumeric character";
    regex_error(says, DNS_SUBDOMAIN, &["example.com"])
}

/// RFC 1123 label: `web-1`.
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > LABEL_MAX {
        errors.push(too_long_characters(LABEL_MAX));
    }
    if !label_shaped(text) {
        if subdomain_shaped(text) {
            errors.push("must not contain dots".into());
        } else {
            let says = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
                        and must start and end with an alphanumeric character";
            errors.push(regex_error(says, DNS_LABEL, &["my-name", "123-abc"]));
        }
    }
    errors
}

/// RFC 1123 subdomain: `a.example.com`; what most object names must be.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        errors.push(too_long_characters(SUBDOMAIN_MAX));
    }
    if !subdomain_shaped(text) {
        errors.push(subdomain_error());
    }
    errors
}

/// RFC 1123 subdomain whose labels may hold underscores and begin with one.
pub fn dns1123_subdomain_with_underscore(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        errors.push(too_long_characters(SUBDOMAIN_MAX));
    }
    let inner = |c: u8| lower_or_digit(c) || matches!(c, b'-' | b'_');
    let label =
        |part: &str| framed(part.strip_prefix('_').unwrap_or(part), lower_or_digit, inner, lower_or_digit);
    if !text.split('.').all(label) {
        let says = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or \
                    '.', and must start and end with an alphanumeric character";
        let pattern = r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
        errors.push(regex_error(says, pattern, &["example.com"]));
    }
    errors
}

/// `*.` and an RFC 1123 subdomain.
pub fn wildcard_dns1123_subdomain(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        errors.push(too_long_characters(SUBDOMAIN_MAX));
    }
    if !text.strip_prefix("*.").is_some_and(subdomain_shaped) {
        let says = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which \
                    must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric \
                    character";
        errors.push(regex_error(says, &format!(r"\*\.{DNS_SUBDOMAIN}"), &["*.example.com"]));
    }
    errors
}

/// RFC 1035 label, which begins with a letter: names of Services.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > LABEL_MAX {
        errors.push(too_long_characters(LABEL_MAX));
    }
    let inner = |c: u8| lower_or_digit(c) || c == b'-';
    if !framed(text, |c| c.is_ascii_lowercase(), inner, lower_or_digit) {
        let says = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                    alphabetic character, and end with an alphanumeric character";
        errors.push(regex_error(says, "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"]));
    }
    errors
}

fn label_key_shaped(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    framed(text, |c| c.is_ascii_alphanumeric(), inner, |c| c.is_ascii_alphanumeric())
}

/// A key of a label, annotation, resource or condition: `name` or `prefix.io/name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    let examples = ["MyName", "my.name", "123-abc"];
    let mut errors = Vec::new();
    let mut parts = text.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".into());
            } else {
                if prefix.len() > SUBDOMAIN_MAX {
                    errors.push(format!("prefix part {}", too_long_bytes(SUBDOMAIN_MAX)));
                }
                if !subdomain_shaped(prefix) {
                    errors.push(format!("prefix part {}", subdomain_error()));
                }
            }
            name
        }
        _ => {
            let form = regex_error(LABEL_KEY_SAYS, LABEL_KEY, &examples);
            let rest = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return vec![format!("a valid label key {form} {rest}")];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX {
        errors.push(format!("name part {}", too_long_bytes(LABEL_MAX)));
    }
    if !label_key_shaped(name) {
        errors.push(format!("name part {}", regex_error(LABEL_KEY_SAYS, LABEL_KEY, &examples)));
    }
    errors
}

/// The value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > LABEL_MAX {
        errors.push(too_long_bytes(LABEL_MAX));
    }
    if !text.is_empty() && !label_key_shaped(text) {
        let says = format!("a valid label must be an empty string or {}", &LABEL_KEY_SAYS["must ".len()..]);
        errors.push(regex_error(&says, &format!("({LABEL_KEY})?"), &["MyValue", "my_value", "12345"]));
    }
    errors
}

/// The name of a container's or service's port: up to 15 of `a-z`, `0-9`, `-`, one letter at least.
pub fn port_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 15 {
        errors.push(too_long_characters(15));
    }
    if text.is_empty() || !text.bytes().all(|c| lower_or_digit(c) || c == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|c| c.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        errors.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        errors.push("must not begin or end with a hyphen".into());
    }
    errors
}

/// A TCP or UDP port.
pub fn port_number(port: i64) -> Vec<String> {
    in_range(port, 1, 65_535)
}

/// A number between two bounds, both allowed.
pub fn in_range(number: i64, low: i64, high: i64) -> Vec<String> {
    match (low..=high).contains(&number) {
        true => Vec::new(),
        false => vec![format!("must be between {low} and {high}, inclusive")],
    }
}

/// `50%`.
pub fn percent(text: &str) -> Vec<String> {
    let digits = text.strip_suffix('%').unwrap_or("");
    if !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()) {
        return Vec::new();
    }
    let says = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![regex_error(says, "[0-9]+%", &["1%", "93%"])]
}

/// The name of an HTTP header.
pub fn http_header_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
        return Vec::new();
    }
    let says = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_error(says, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

fn directory_errors(text: &str, errors: &mut Vec<String>) {
    match text {
        "." => errors.push("must not be '.'".into()),
        ".." => errors.push("must not be '..'".into()),
        text if text.starts_with("..") => errors.push("must not start with '..'".into()),
        _ => (),
    }
}

/// The name of an environment variable: printable ASCII without `=`.
pub fn env_var_name(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec!["environment variable name must be non-empty".into()];
    }
    if text.bytes().all(|c| (b' '..=b'~').contains(&c) && c != b'=') {
        return Vec::new();
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .into(),
    ]
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        errors.push(too_long_characters(SUBDOMAIN_MAX));
    }
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if text.is_empty() || !text.bytes().all(allowed) {
        let says = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        errors.push(regex_error(says, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    directory_errors(text, &mut errors);
    errors
}

/// A name that is one segment of a URL path: names of roles and other objects without a DNS form.
pub fn path_segment(text: &str) -> Vec<String> {
    if matches!(text, "." | "..") {
        return vec![format!("may not be '{text}'")];
    }
    let mut errors = Vec::new();
    for part in ["/", "%"] {
        if text.contains(part) {
            errors.push(format!("may not contain '{part}'"));
        }
    }
    errors
}

/// `generateName` as a name to validate: a trailing dash stands for characters to come.
pub fn mask_trailing_dash(prefix: &str) -> String {
    // As Kubernetes does it: the last two characters give way to one.
    match prefix.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => {
            let cut = rest.char_indices().next_back().map_or(0, |(at, _)| at);
            format!("{}a", &rest[..cut])
        }
        _ => prefix.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(validate: fn(&str) -> Vec<String>, good: &[&str], bad: &[(&str, &str)]) {
        for text in good {
            assert_eq!(validate(text), Vec::<String>::new(), "{text}");
        }
        for (text, says) in bad {
            assert!(validate(text).iter().any(|e| e.contains(says)), "{text}: {:?}", validate(text));
        }
    }

    #[test]
    fn forms() {
        check(
            dns1123_label,
            &["a", "1-a"],
            &[("A", "RFC 1123 label"), ("a.b", "must not contain dots"), ("", "RFC")],
        );
        check(dns1123_subdomain, &["a.b-c", "1"], &[("a..b", "RFC 1123 subdomain"), ("a_", "subdomain")]);
        check(dns1123_subdomain_with_underscore, &["_a.b_c"], &[("__a", "'_', '-'"), ("a.", "'_'")]);
        check(wildcard_dns1123_subdomain, &["*.a.b"], &[("a.b", "wildcard"), ("*.", "wildcard")]);
        check(dns1035_label, &["a1"], &[("1a", "DNS-1035"), (&"a".repeat(64), "no more than 63 characters")]);
        check(
            qualified_name,
            &["a", "A_b", "x.io/y"],
            &[
                ("", "name part must be non-empty"),
                ("/a", "prefix part must be non-empty"),
                ("a/b/c", "a valid label key must consist"),
                ("A/b", "prefix part a lowercase"),
                (&"k".repeat(64), "name part must be no more than 63 bytes"),
            ],
        );
        check(label_value, &["", "a.b"], &[("-a", "a valid label must be an empty string or consist of")]);
        check(
            port_name,
            &["http", "a-1"],
            &[("80", "at least one letter"), ("a--b", "consecutive"), ("-a", "begin or end")],
        );
        check(
            config_map_key,
            &["a.b", "_"],
            &[("..a", "must not start"), ("a/b", "valid config key"), (".", "'.'")],
        );
        check(env_var_name, &["A b"], &[("", "non-empty"), ("a=b", "printable")]);
        check(percent, &["5%"], &[("5", "percent"), ("%", "percent")]);
        check(path_segment, &["a:b"], &[(".", "may not be '.'"), ("a/b", "may not contain '/'")]);
        check(http_header_name, &["X-A"], &[("a b", "HTTP header")]);
        assert_eq!(port_number(0), ["must be between 1 and 65535, inclusive"]);
    }

    #[test]
    fn generated_names() {
        for (prefix, name) in [("web-", "wea"), ("-", "-"), ("a-", "a"), ("é-", "a"), ("x", "x")] {
            assert_eq!(mask_trailing_dash(prefix), name);
        }
    }
}
