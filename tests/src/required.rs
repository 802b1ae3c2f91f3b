//! What a test may be left out for, and where it may not.

use std::io::Write;

/// The variable that names what must be there, with commas between: `etcd,containers`.
const REQUIRED: &str = "WASMK_TESTS_REQUIRE";

/// Says that a test is left out, because `what` (`containers`, `etcd`) is not to be had on this machine.
///
/// # Panics
/// Where `WASMK_TESTS_REQUIRE` names it: a machine that is meant to have it must not pass without.
pub fn skip(what: &str, why: &str) {
    let why = why.trim();
    let required = std::env::var(REQUIRED).unwrap_or_default();
    assert!(!names(&required, what), "{REQUIRED} asks for {what}, which cannot be had here: {why}");
    // Past the test harness, which keeps what passing tests print.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

fn names(list: &str, what: &str) -> bool {
    list.split(',').any(|name| name.trim() == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_commas() {
        for (list, expected) in [
            ("", false),
            ("etcd", false),
            ("containers", true),
            ("etcd, containers", true),
            ("contain", false),
        ] {
            assert_eq!(names(list, "containers"), expected, "{list}");
        }
    }
}
