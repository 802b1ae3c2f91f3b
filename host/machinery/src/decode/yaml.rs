//! Reads YAML as kubectl's users write it: YAML 1.1 scalars (`yes`, `0777`), the first document only.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, ScanError};
use indexmap::IndexMap;

use super::doc::{Doc, MAX_DEPTH, MAX_STRICT_ERRORS};

/// Most nodes a document may have after its aliases are expanded; long texts count for several.
const MAX_NODES: usize = 1_000_000;
/// Bytes of text that count as one node.
const NODE_TEXT: usize = 32;

/// A parsed document with what only strict decoding minds.
pub(crate) struct Parsed {
    pub(crate) doc: Doc,
    /// Keys that appear twice in a map, in the words of Go's YAML library.
    pub(crate) repeated: Vec<String>,
}

/// Parses the first document; nothing reads as null.
///
/// # Errors
/// `yaml: line 1: …`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "yaml: invalid leading UTF-8 octet".to_string())?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader {
        events: Parser::new_from_str(text),
        anchors: HashMap::new(),
        repeated: Vec::new(),
        nodes: 0,
    };
    let mut doc = Doc::Null;
    loop {
        match reader.next()? {
            (Event::StreamStart | Event::DocumentStart(..), _) => (),
            (Event::StreamEnd | Event::DocumentEnd, _) => break,
            (event, line) => doc = reader.node(event, line, 0)?,
        }
    }
    Ok(Parsed { doc, repeated: reader.repeated })
}

struct Reader<'t> {
    events: Parser<'t, granit_parser::StrInput<'t>>,
    /// By the parser's anchor id: the node, and how many nodes it holds.
    anchors: HashMap<usize, (Doc, usize)>,
    repeated: Vec<String>,
    nodes: usize,
}

fn worded(error: &ScanError) -> String {
    let says = error.info();
    // The library has the sentence of libyaml but for these.
    let says = match &*says {
        "while parsing a flow sequence, expected ',' or ']'"
        | "unexpected EOF while parsing a flow sequence"
        | "unclosed bracket '['" => "did not find expected ',' or ']'",
        "unexpected EOF while parsing a flow mapping" | "unclosed bracket '{'" => {
            "did not find expected ',' or '}'"
        }
        says => says.split_once("did not find").map_or(says, |(head, _)| &says[head.len()..]),
    };
    format!("yaml: line {}: {says}", error.marker().line())
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<(Event<'t>, usize), String> {
        let event = self.events.by_ref().find(|event| !matches!(event, Ok((Event::Comment(..), _))));
        match event {
            None => Ok((Event::StreamEnd, 0)),
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => Err(worded(&error)),
        }
    }

    fn count(&mut self, nodes: usize) -> Result<(), String> {
        self.nodes += nodes;
        match self.nodes > MAX_NODES {
            true => Err("yaml: document contains excessive aliasing".into()),
            false => Ok(()),
        }
    }

    fn node(&mut self, event: Event<'t>, line: usize, depth: usize) -> Result<Doc, String> {
        if depth > MAX_DEPTH {
            return Err("yaml: exceeded max depth".into());
        }
        self.count(1)?;
        let before = self.nodes;
        let (doc, anchor) = match event {
            Event::Alias(id) => {
                let (doc, size) = self
                    .anchors
                    .get(&id)
                    .cloned()
                    .ok_or_else(|| format!("yaml: line {line}: unknown anchor"))?;
                self.count(size)?;
                if depth_of(&doc) + depth > MAX_DEPTH {
                    return Err("yaml: exceeded max depth".into());
                }
                return Ok(doc);
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count(text.len() / NODE_TEXT)?;
                let suffix = tag.as_ref().map(|tag| tag.to_string());
                (scalar(&text, style, suffix.as_deref()), anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, line) => items.push(self.node(event, line, depth + 1)?),
                    }
                }
                (Doc::Array(items), anchor)
            }
            Event::MappingStart(_, anchor, _) => (self.mapping(depth)?, anchor),
            _ => return Err(format!("yaml: line {line}: did not find expected node content")),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, (doc.clone(), 1 + self.nodes - before));
        }
        Ok(doc)
    }

    fn mapping(&mut self, depth: usize) -> Result<Doc, String> {
        let mut entries: IndexMap<String, Doc> = IndexMap::new();
        let mut merged: Vec<Doc> = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let merges = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, _) if text == "<<");
            let key = match self.node(event, line, depth + 1)? {
                Doc::String(text) => text,
                Doc::Number(literal) => literal.into(),
                Doc::Bool(flag) => flag.to_string(),
                Doc::Null => "null".into(),
                _ => return Err(format!("yaml: line {line}: invalid map key")),
            };
            let (event, value_line) = self.next()?;
            let value = self.node(event, value_line, depth + 1)?;
            if merges {
                merged.push(value);
                continue;
            }
            if entries.contains_key(&key) && self.repeated.len() < MAX_STRICT_ERRORS {
                self.repeated.push(format!("line {line}: key \"{key}\" already set in map"));
            }
            entries.insert(key, value);
        }
        for value in merged {
            merge(&mut entries, value)?;
        }
        Ok(Doc::Object(entries.into_iter().collect()))
    }
}

/// `<<: *base`: entries of the base that are not set here.
fn merge(entries: &mut IndexMap<String, Doc>, value: Doc) -> Result<(), String> {
    match value {
        Doc::Object(base) => {
            for (key, doc) in base {
                entries.entry(key).or_insert(doc);
            }
            Ok(())
        }
        Doc::Array(bases) => bases.into_iter().try_for_each(|base| merge(entries, base)),
        _ => Err("yaml: map merge requires map or sequence of maps as the value".into()),
    }
}

fn depth_of(doc: &Doc) -> usize {
    match doc {
        Doc::Array(items) => 1 + items.iter().map(depth_of).max().unwrap_or(0),
        Doc::Object(entries) => 1 + entries.iter().map(|(_, doc)| depth_of(doc)).max().unwrap_or(0),
        _ => 0,
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&str>) -> Doc {
    if tag.is_some_and(|tag| tag.ends_with("str") || tag.ends_with("binary")) {
        return Doc::String(text.into());
    }
    if style != ScalarStyle::Plain && tag.is_none() {
        return Doc::String(text.into());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Doc::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Doc::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Doc::Bool(false)
        }
        text => number(text).map_or_else(|| Doc::String(text.into()), |literal| Doc::Number(literal.into())),
    }
}

/// The JSON literal of a plain scalar that YAML 1.1 reads as a number.
fn number(text: &str) -> Option<String> {
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return None;
    }
    let plain = text.replace('_', "");
    let (negative, digits) = match plain.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let whole = |digits: &str, radix: u32| {
        let valid = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
        let value = valid.then(|| u64::from_str_radix(digits, radix).ok()).flatten()?;
        Some(if negative { format!("-{value}") } else { value.to_string() })
    };
    let lower = digits.to_ascii_lowercase();
    let prefixed = match lower.split_at_checked(2) {
        Some(("0x", rest)) => return whole(rest, 16),
        Some(("0b", rest)) => return whole(rest, 2),
        Some(("0o", rest)) => return whole(rest, 8),
        _ => lower.strip_prefix('0').filter(|rest| !rest.is_empty()),
    };
    if let Some(literal) = prefixed.and_then(|rest| whole(rest, 8)) {
        return Some(literal);
    }
    if prefixed.is_none()
        && let Some(literal) = whole(digits, 10)
    {
        return Some(literal);
    }
    // A float needs a digit, and nothing but digits, one dot and an exponent.
    let shaped = digits.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    let float: f64 =
        plain.parse().ok().filter(|_| shaped && digits.contains(|c: char| c.is_ascii_digit()))?;
    float.is_finite().then(|| super::doc::number(&plain).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::doc::Strict;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn value(text: &str) -> Value {
        let parsed = parse(text.as_bytes()).unwrap();
        parsed.doc.into_value(&mut String::new(), &mut Strict::default()).ok().unwrap()
    }

    #[test]
    fn scalars_of_yaml_1_1() {
        let text = "a: yes\nb: 'yes'\nc: 0777\nd: 1_000\ne: 1.50\nf: ~\ng:\nh: 0x1F\ni: 2024-01-01\nj: 1e3\nk: .5\nl: 1.2.3\nm: 08\no:\n-\n";
        assert_eq!(
            value(text),
            json!({"a": true, "b": "yes", "c": 511, "d": 1000, "e": 1.5, "f": null, "g": null, "h": 31,
                   "i": "2024-01-01", "j": 1000, "k": 0.5, "l": "1.2.3", "m": 8, "o": [null]})
        );
        assert_eq!(value("1: a\ntrue: b"), json!({"1": "a", "true": "b"}));
        assert_eq!(
            value("a: |\n  x\n  y\nb: >-\n  x\n  y\nc: !!str 5"),
            json!({"a": "x\ny\n", "b": "x y", "c": "5"})
        );
    }

    #[test]
    fn anchors_merges_and_documents() {
        assert_eq!(
            value("base: &b {x: 1, z: 2}\nuse:\n  <<: *b\n  z: 3\n---\nother: 1"),
            json!({"base": {"x": 1, "z": 2}, "use": {"z": 3, "x": 1}})
        );
        assert_eq!(value(""), Value::Null);
        assert_eq!(value("# nothing\n"), Value::Null);
    }

    #[test]
    fn aliases_do_not_explode() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..12 {
            let aliases = vec![format!("*a{}", i - 1); 10].join(",");
            text.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
        }
        assert_eq!(parse(text.as_bytes()).err().unwrap(), "yaml: document contains excessive aliasing");
        let long = format!("a: &a {}\nb: [{}]", "x".repeat(100_000), vec!["*a"; 1000].join(","));
        assert_eq!(parse(long.as_bytes()).err().unwrap(), "yaml: document contains excessive aliasing");
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn errors_name_the_line() {
        assert_eq!(parse(b"a: [b").err().unwrap(), "yaml: line 1: did not find expected ',' or ']'");
        let repeated = parse(b"a: 1\nb: 2\na: 3").unwrap().repeated;
        assert_eq!(repeated, ["line 3: key \"a\" already set in map"]);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,80}|[ \\n:\\-&*{}\\[\\],a-c\"'|>#!?<]{0,60}") {
            let _ = parse(text.as_bytes());
        }
    }
}
