//! Paths below a domain, for instance `acme.io/foo`.

use wasmk_machinery::names;

use crate::errors::{At, Errors};

/// Checks that a text is a domain, a slash and a path.
pub(crate) fn check(text: &str, at: &At<'_>, errors: &mut Errors) {
    if text.is_empty() {
        errors.required(at, "");
        return;
    }
    let Some((host, path)) = text.split_once('/').filter(|(host, path)| !host.is_empty() && !path.is_empty())
    else {
        errors.invalid_text(at, text, "must be a domain-prefixed path (such as \"acme.io/foo\")");
        return;
    };
    for why in names::dns1123_subdomain(host) {
        errors.invalid_text(at, host, &why);
    }
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&c);
    if !path.bytes().all(allowed) {
        let why = names::regex_error("Invalid path", r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+", &[]);
        errors.invalid_text(at, path, &why);
    }
}
