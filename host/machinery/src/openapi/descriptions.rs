//! What types and fields are for (`data/descriptions.z`), unpacked when first asked for.

use std::{collections::HashMap, io::Read, sync::LazyLock};

use flate2::read::ZlibDecoder;

const PACKED: &[u8] = include_bytes!("../../data/descriptions.z");

/// Type name to its description and its fields'.
static TEXTS: LazyLock<HashMap<&'static str, Type>> = LazyLock::new(|| {
    let mut text = String::new();
    // The data is the program's own; if it were broken, there would be no descriptions.
    if ZlibDecoder::new(PACKED).read_to_string(&mut text).is_err() {
        return HashMap::new();
    }
    // Kept for the program's life, so the table can borrow from it.
    let text: &'static str = Box::leak(unescaped(&text).into_boxed_str());
    let mut types = HashMap::new();
    for block in text.split("\u{1}=") {
        let block = block.strip_prefix('=').unwrap_or(block);
        let mut lines = block.split('\u{1}').filter_map(|line| line.split_once('\t'));
        if let Some((name, own)) = lines.next() {
            types.insert(name, Type { own, fields: lines.collect() });
        }
    }
    types
});

struct Type {
    own: &'static str,
    fields: Vec<(&'static str, &'static str)>,
}

/// Line ends become U+0001, escapes what they stand for.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\n' => out.push('\u{1}'),
            '\\' => out.push(if chars.next() == Some('n') { '\n' } else { '\\' }),
            c => out.push(c),
        }
    }
    out
}

/// The description of a built-in type.
pub(super) fn of_type(name: &str) -> Option<&'static str> {
    TEXTS.get(name).map(|t| t.own).filter(|text| !text.is_empty())
}

/// The description of a field of a built-in type.
pub(super) fn of_field(name: &str, field: &str) -> Option<&'static str> {
    let found = TEXTS.get(name)?.fields.iter().find(|(f, _)| *f == field).map(|(_, text)| *text);
    found.or(match field {
        "apiVersion" => Some("The group and version of the API that the object is written in."),
        "kind" => Some("What the object is, in CamelCase; it cannot change."),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        assert_eq!(
            of_type("io.k8s.api.core.v1.Affinity"),
            Some("Affinity is a group of affinity scheduling rules.")
        );
        let node = of_field("io.k8s.api.core.v1.Affinity", "nodeAffinity").unwrap();
        assert!(node.starts_with("Describes node affinity"));
        assert!(of_field("io.k8s.api.core.v1.Probe", "timeoutSeconds").is_some());
        assert_eq!(of_field("io.k8s.api.core.v1.Affinity", "none"), None);
    }
}
