//! What the server warns of, told to the person.

use std::collections::BTreeSet;

use http::{Response, header};
use parking_lot::Mutex;

use super::output::Output;

/// Most different warnings of one command; the rest are dropped.
const MAX_TOLD: usize = 64;

/// Those that were told already.
static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The same answer; its warnings go to standard error, each once.
pub(super) fn tell<B>(answer: Response<B>) -> Response<B> {
    let values = answer.headers().get_all(header::WARNING).into_iter();
    for text in values.filter_map(|value| text(value.to_str().ok()?)) {
        let mut told = TOLD.lock();
        if told.len() < MAX_TOLD && told.insert(text.clone()) {
            Output::default().note(format!("Warning: {text}"));
        }
    }
    answer
}

/// The text of a warning of the server itself: `299 - "text"`.
fn text(value: &str) -> Option<String> {
    let quoted = value.strip_prefix("299 ")?.split_once('"')?.1;
    let (mut out, mut chars) = (String::new(), quoted.chars());
    loop {
        match chars.next()? {
            '"' => return Some(out),
            '\\' => out.push(chars.next()?),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_taken_out_of_their_quotes() {
        for (value, expected) in [
            (r#"299 - "careful""#, Some("careful")),
            (r#"299 - "say \"please\" \\o/" "Sat, 21 Nov 2026 20:00:00 GMT""#, Some(r#"say "please" \o/"#)),
            (r#"299 - "endless"#, None),
            (r#"110 - "stale""#, None),
            ("299", None),
        ] {
            assert_eq!(text(value).as_deref(), expected, "{value}");
        }
    }
}
