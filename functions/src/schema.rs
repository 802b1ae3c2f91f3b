//! Structural schemas from indented tables: a field a line, deeper lines are its fields.
//!
//! A line is `name[!] [shape] [=default]`; `!` makes the field required. Shapes are `string`, `boolean`,
//! `int32`, `int64`, `intstr`, `quantity`, `duration` (of ISO 8601), `any` (an object of unknown fields),
//! `map SHAPE`, `[] SHAPE` or `[key]` (a list, by that key), and `@part` for a part defined elsewhere. A line
//! with deeper lines is an object, or a list of objects where its shape is a list.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// The form of Kubernetes quantities.
const QUANTITY: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// The form of ISO 8601 durations, but for those with years and months.
const DURATION: &str =
    r"^P(([0-9]{1,9}(\.[0-9]+)?[WD])+(T([0-9]{1,9}(\.[0-9]+)?[HMS])+)?|T([0-9]{1,9}(\.[0-9]+)?[HMS])+)$";

/// Schemas by name, from a table whose outermost lines are names.
pub(crate) fn named(table: &str, parts: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let lines: Vec<Line> = table.lines().filter_map(Line::read).collect();
    let mut all = BTreeMap::new();
    let mut known = parts.clone();
    for (line, below) in blocks(&lines) {
        let schema = schema(line, below, &known);
        known.insert(line.name.into(), schema.clone());
        all.insert(line.name.into(), schema);
    }
    all
}

/// The schema of an object whose fields are the outermost lines.
pub(crate) fn object(table: &str, parts: &BTreeMap<String, Value>) -> Value {
    let lines: Vec<Line> = table.lines().filter_map(Line::read).collect();
    fields(&lines, parts)
}

struct Line<'a> {
    depth: usize,
    name: &'a str,
    required: bool,
    shape: &'a str,
    default: Option<Value>,
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let text = line.trim_start();
        if text.is_empty() {
            return None;
        }
        let depth = (line.len() - text.len()) / 2;
        let (rest, default) = match text.split_once(" =") {
            Some((rest, default)) => (rest, serde_json::from_str(default).ok()),
            None => (text, None),
        };
        let (name, shape) = rest.split_once(' ').unwrap_or((rest, ""));
        let required = name.ends_with('!');
        Some(Self { depth, name: name.trim_end_matches('!'), required, shape: shape.trim(), default })
    }
}

/// The outermost lines, each with the deeper ones below it.
fn blocks<'a, 'b>(lines: &'b [Line<'a>]) -> Vec<(&'b Line<'a>, &'b [Line<'a>])> {
    let Some(depth) = lines.first().map(|line| line.depth) else { return Vec::new() };
    let starts: Vec<usize> = (0..lines.len()).filter(|i| lines[*i].depth == depth).collect();
    let ends = starts.iter().skip(1).copied().chain([lines.len()]);
    starts.iter().zip(ends).map(|(start, end)| (&lines[*start], &lines[start + 1..end])).collect()
}

fn fields(lines: &[Line<'_>], parts: &BTreeMap<String, Value>) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for (line, below) in blocks(lines) {
        let mut schema = schema(line, below, parts);
        if let Some(default) = &line.default {
            schema["default"] = default.clone();
        }
        properties.insert(line.name.into(), schema);
        if line.required {
            required.push(Value::from(line.name));
        }
    }
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    schema
}

fn schema(line: &Line<'_>, below: &[Line<'_>], parts: &BTreeMap<String, Value>) -> Value {
    let Some((keys, item)) = line.shape.strip_prefix('[').and_then(|s| s.split_once(']')) else {
        return if below.is_empty() { shape(line.shape, parts) } else { fields(below, parts) };
    };
    let item = if below.is_empty() { shape(item.trim(), parts) } else { fields(below, parts) };
    let mut list = json!({"type": "array", "items": item});
    if !keys.is_empty() {
        list["x-kubernetes-list-type"] = "map".into();
        list["x-kubernetes-list-map-keys"] = keys.split(',').collect();
    }
    list
}

fn shape(shape: &str, parts: &BTreeMap<String, Value>) -> Value {
    if let Some(part) = shape.strip_prefix('@') {
        return parts.get(part).cloned().unwrap_or(Value::Null);
    }
    if let Some(values) = shape.strip_prefix("map ") {
        return json!({"type": "object", "additionalProperties": self::shape(values, parts)});
    }
    let either = json!([{"type": "integer"}, {"type": "string"}]);
    match shape {
        "int32" | "int64" => json!({"type": "integer", "format": shape}),
        "intstr" => json!({"anyOf": either, "x-kubernetes-int-or-string": true}),
        "quantity" => json!({"anyOf": either, "pattern": QUANTITY, "x-kubernetes-int-or-string": true}),
        "duration" => json!({"type": "string", "pattern": DURATION}),
        "any" => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        "" => json!({"type": "object"}),
        simple => json!({"type": simple}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_schemas() {
        let parts = named("pair\n  left! string\n  right int32 =3", &BTreeMap::new());
        let table = "one @pair\nmany [name]\n  name! string\nwords [] string\nlabels map string\nopen any";
        assert_eq!(
            object(table, &parts),
            json!({"type": "object", "properties": {
                "one": {"type": "object", "required": ["left"], "properties": {
                    "left": {"type": "string"},
                    "right": {"type": "integer", "format": "int32", "default": 3}}},
                "many": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}},
                "words": {"type": "array", "items": {"type": "string"}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            }})
        );
    }
}
