//! Objects as some messages show them: in the form of the server's own structs, with every field in order,
//! unset ones included, and as the difference of two such forms.

use std::fmt::Write;

use serde_json::{Map, Value};

use crate::types::{Scalar, Struct, Type, types};

/// Fields that stand elsewhere in the server's own structs than in the API: they are shown as the first ones
/// of `SecurityContext`, in this order.
const POD_HOST_FIELDS: [&str; 5] =
    ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "hostUsers"];

/// Fields that are not shown where the API has them: one mirrors another, one stands elsewhere.
const POD_ELSEWHERE: [&str; 2] = ["serviceAccount", "setHostnameAsFQDN"];

/// A map with sorted keys, which is how maps are shown; `None` when the value has no map in it.
pub(crate) fn sorted(value: &Value) -> Option<Value> {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| *key);
            let copy = |v: &Value| sorted(v).unwrap_or_else(|| v.clone());
            Some(Value::Object(pairs.into_iter().map(|(k, v)| (k.clone(), copy(v))).collect()))
        }
        Value::Array(items) if items.iter().any(|i| i.is_object() || i.is_array()) => {
            Some(Value::Array(items.iter().map(|v| sorted(v).unwrap_or_else(|| v.clone())).collect()))
        }
        _ => None,
    }
}

/// The form of a value of the named type, for instance `v1.PodSpec`.
pub(crate) fn form(value: &Value, type_name: &str) -> Value {
    match types().index(type_name) {
        Some(index) => struct_form(value, index),
        None => value.clone(),
    }
}

/// The same as one line of JSON.
pub(crate) fn line(value: &Value, type_name: &str) -> String {
    form(value, type_name).to_string()
}

fn struct_form(value: &Value, index: usize) -> Value {
    let shape = &types().structs[index];
    let Some(map) = value.as_object() else { return Value::Null };
    if shape.tagged {
        return sorted_as_declared(map, shape);
    }
    let is_pod_spec = shape.field("hostPID").is_some() && shape.field("containers").is_some();
    let mut out = Map::new();
    for field in &shape.fields {
        if is_pod_spec && (POD_HOST_FIELDS.contains(&field.json) || POD_ELSEWHERE.contains(&field.json)) {
            continue;
        }
        let inner = map.get(field.json).unwrap_or(&Value::Null);
        let mut shown = type_form(inner, &field.kind);
        if is_pod_spec && field.json == "securityContext" {
            shown = with_host_fields(map, shape, shown);
        }
        out.insert(go_name(field.go, field.json), shown);
        if is_pod_spec && field.json == "subdomain" {
            let fqdn = map.get("setHostnameAsFQDN").cloned().unwrap_or(Value::Null);
            out.insert("SetHostnameAsFQDN".into(), fqdn);
        }
    }
    Value::Object(out)
}

fn with_host_fields(spec: &Map<String, Value>, shape: &Struct, context: Value) -> Value {
    let Value::Object(rest) = context else { return context };
    let mut out = Map::new();
    for field in POD_HOST_FIELDS.iter().filter_map(|name| shape.field(name)) {
        let value = spec.get(field.json).unwrap_or(&Value::Null);
        out.insert(go_name(field.go.or(host_name(field.json)), field.json), type_form(value, &field.kind));
    }
    out.extend(rest);
    Value::Object(out)
}

fn host_name(json: &str) -> Option<&'static str> {
    match json {
        "hostPID" => Some("HostPID"),
        "hostIPC" => Some("HostIPC"),
        _ => None,
    }
}

/// Types with JSON names of their own keep them, and leave empty fields out.
fn sorted_as_declared(map: &Map<String, Value>, shape: &Struct) -> Value {
    let mut out = Map::new();
    for field in &shape.fields {
        if let Some(value) = map.get(field.json) {
            out.insert(field.json.into(), type_form(value, &field.kind));
        }
    }
    Value::Object(out)
}

fn go_name(go: Option<&'static str>, json: &str) -> String {
    if let Some(go) = go {
        return go.into();
    }
    let mut chars = json.chars();
    chars.next().map(|c| c.to_ascii_uppercase().to_string() + chars.as_str()).unwrap_or_default()
}

fn type_form(value: &Value, kind: &Type) -> Value {
    match (kind, value) {
        (Type::Optional(_), Value::Null) => Value::Null,
        (Type::Optional(inner), value) => type_form(value, inner),
        (Type::Struct(index), Value::Null) => struct_form(&Value::Object(Map::new()), *index),
        (Type::Struct(index), value) => struct_form(value, *index),
        (Type::List(inner), Value::Array(items)) => items.iter().map(|i| type_form(i, inner)).collect(),
        (Type::Map(inner), Value::Object(map)) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| *key);
            Value::Object(pairs.into_iter().map(|(k, v)| (k.clone(), type_form(v, inner))).collect())
        }
        (Type::Scalar(scalar), Value::Null) => match scalar {
            Scalar::Text => "".into(),
            Scalar::Bool => false.into(),
            Scalar::Int | Scalar::Float | Scalar::IntOrText => 0.into(),
            Scalar::Quantity => "0".into(),
            _ => Value::Null,
        },
        _ => value.clone(),
    }
}

/// How many unchanged lines stand around a change.
const CONTEXT: usize = 3;
/// Differences are shown for forms of at most that many lines; beyond, nothing is shown.
const MAX_LINES: usize = 20_000;

/// The unified difference of two values of the named type, as indented JSON; empty when there is none.
pub(crate) fn difference(old: &Value, new: &Value, type_name: &str) -> String {
    let (old, new) = (pretty(&form(old, type_name)), pretty(&form(new, type_name)));
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    if old.len().max(new.len()) > MAX_LINES {
        return String::new();
    }
    unified(&old, &new)
}

fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    let written = serde::Serialize::serialize(value, &mut serializer);
    written.ok().and_then(|()| String::from_utf8(out).ok()).unwrap_or_default()
}

/// One stretch of changed lines: positions in the old and the new text.
struct Change {
    old: std::ops::Range<usize>,
    new: std::ops::Range<usize>,
}

fn unified(old: &[&str], new: &[&str]) -> String {
    let changes = changes(old, new);
    let mut out = String::new();
    let mut at = 0;
    while at < changes.len() {
        let mut end = at + 1;
        while end < changes.len() && changes[end].old.start - changes[end - 1].old.end <= 2 * CONTEXT {
            end += 1;
        }
        hunk(&mut out, old, new, &changes[at..end]);
        at = end;
    }
    out
}

fn hunk(out: &mut String, old: &[&str], new: &[&str], changes: &[Change]) {
    let (Some(first), Some(last)) = (changes.first(), changes.last()) else { return };
    let before = first.old.start.min(CONTEXT);
    let after = (old.len() - last.old.end).min(CONTEXT);
    let (old_start, new_start) = (first.old.start - before, first.new.start - before);
    let (old_len, new_len) = (last.old.end + after - old_start, last.new.end + after - new_start);
    let _ = writeln!(out, "@@ -{},{old_len} +{},{new_len} @@", old_start + 1, new_start + 1);
    let mut line = old_start;
    for change in changes {
        old[line..change.old.start].iter().for_each(|l| put(out, ' ', l));
        old[change.old.clone()].iter().for_each(|l| put(out, '-', l));
        new[change.new.clone()].iter().for_each(|l| put(out, '+', l));
        line = change.old.end;
    }
    old[line..last.old.end + after].iter().for_each(|l| put(out, ' ', l));
}

fn put(out: &mut String, mark: char, line: &str) {
    out.push(mark);
    out.push_str(line);
    out.push('\n');
}

/// The longest-common-subsequence difference, after equal ends are cut off.
fn changes(old: &[&str], new: &[&str]) -> Vec<Change> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&old[head..old.len() - tail], &new[head..new.len() - tail]);
    if a.is_empty() && b.is_empty() {
        return Vec::new();
    }
    const MAX_CELLS: usize = 4_000_000;
    if a.len().saturating_mul(b.len()) > MAX_CELLS {
        return vec![Change { old: head..head + a.len(), new: head..head + b.len() }];
    }
    let width = b.len() + 1;
    let mut longest = vec![0_u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i * width + j] = if a[i] == b[j] {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let mut out: Vec<Change> = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
            continue;
        }
        let (from_i, from_j) = (i, j);
        while (i < a.len() || j < b.len()) && !(i < a.len() && j < b.len() && a[i] == b[j]) {
            if j == b.len() || (i < a.len() && longest[(i + 1) * width + j] >= longest[i * width + j + 1]) {
                i += 1;
            } else {
                j += 1;
            }
        }
        out.push(Change { old: head + from_i..head + i, new: head + from_j..head + j });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shows_every_field_in_order() {
        assert_eq!(
            line(
                &json!({"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}),
                "policy/v1.PodDisruptionBudgetSpec"
            ),
            r#"{"MinAvailable":1,"Selector":{"matchLabels":{"a":"b"}},"MaxUnavailable":null,"UnhealthyPodEvictionPolicy":null}"#
        );
    }

    #[test]
    fn differences_have_three_lines_around() {
        let old: Vec<&str> = "a b c d e f g h".split(' ').collect();
        let new: Vec<&str> = "a b c d X f g h".split(' ').collect();
        assert_eq!(unified(&old, &new), "@@ -2,7 +2,7 @@\n b\n c\n d\n-e\n+X\n f\n g\n h\n");
        assert_eq!(unified(&old, &old), "");
    }
}
