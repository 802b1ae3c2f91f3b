//! What a definition's schema must look like so that pruning and defaulting follow from it: every place has
//! one type, and combined schemas only restrict.

use serde_json::{Map, Value, json};
use wasmk_api::Cause;

use crate::field::{Path, forbidden, invalid, required};

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

const EXTENSIONS: [(&str, &str); 6] = [
    ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
];

/// The causes for a schema that is not structural, in the order of their texts.
pub(super) fn validate(schema: &Value, path: &Path) -> Vec<Cause> {
    let mut causes = Vec::new();
    invariants(schema, Level::Root, path, &mut causes);
    completeness(schema, path, &mut causes);
    causes.sort_by(|a, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
    causes
}

pub(super) fn text<'s>(schema: &'s Value, key: &str) -> &'s str {
    schema.get(key).and_then(Value::as_str).unwrap_or("")
}

pub(super) fn flag(schema: &Value, key: &str) -> bool {
    schema.get(key).and_then(Value::as_bool).unwrap_or(false)
}

pub(super) fn entries<'s>(schema: &'s Value, key: &str) -> impl Iterator<Item = (&'s String, &'s Value)> {
    schema.get(key).and_then(Value::as_object).into_iter().flatten()
}

pub(super) fn list<'s>(schema: &'s Value, key: &str) -> &'s [Value] {
    schema.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn object<'s>(schema: &'s Value, key: &str) -> Option<&'s Value> {
    schema.get(key).filter(|value| value.is_object())
}

fn invariants(schema: &Value, level: Level, path: &Path, causes: &mut Vec<Cause>) {
    let kind = text(schema, "type");
    if kind == "array" && object(schema, "items").is_none() {
        causes.push(required(&path.child("items"), "must be specified"));
    }
    if let Some(items) = object(schema, "items") {
        invariants(items, Level::Item, &path.child("items"), causes);
    }
    for (name, property) in entries(schema, "properties") {
        invariants(property, Level::Field, &path.child("properties").key(name), causes);
    }
    if schema.get("additionalProperties").is_some_and(|value| !value.is_null()) {
        let path = path.child("additionalProperties");
        if level == Level::Root {
            causes.push(forbidden(&path, "must not be used at the root"));
        }
        if let Some(values) = object(schema, "additionalProperties") {
            invariants(values, Level::Field, &path, causes);
        }
    }
    extensions(schema, path, causes);
    combinations(schema, level, path, causes, skipped(schema));
    kinds(schema, kind, level, path, causes);
    identity(schema, level, path, causes);
}

fn extensions(schema: &Value, path: &Path, causes: &mut Vec<Cause>) {
    if !flag(schema, "x-kubernetes-int-or-string") {
        return;
    }
    for name in ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"] {
        if flag(schema, name) {
            let says = "must be false if x-kubernetes-int-or-string is true";
            causes.push(invalid(&path.child(name), &true.into(), says));
        }
    }
}

fn kinds(schema: &Value, kind: &str, level: Level, path: &Path, causes: &mut Vec<Cause>) {
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let place = path.child("type");
    if embedded && kind != "object" {
        let says = "must be object if x-kubernetes-embedded-resource is true";
        causes.push(match kind {
            "" => required(&place, says),
            kind => invalid(&place, &kind.into(), says),
        });
    } else if kind.is_empty()
        && !flag(schema, "x-kubernetes-int-or-string")
        && !flag(schema, "x-kubernetes-preserve-unknown-fields")
    {
        let says = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        causes.push(required(&place, says));
    }
    if embedded && schema.get("additionalProperties").is_some_and(|value| !value.is_null()) {
        let says = "must not be used if x-kubernetes-embedded-resource is set";
        causes.push(forbidden(&path.child("additionalProperties"), says));
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        causes.push(invalid(&place, &kind.into(), "must be object at the root"));
    }
}

/// `apiVersion`, `kind` and `metadata` of whole resources.
fn identity(schema: &Value, level: Level, path: &Path, causes: &mut Vec<Cause>) {
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let properties = schema.get("properties").and_then(Value::as_object);
    if embedded
        && !flag(schema, "x-kubernetes-preserve-unknown-fields")
        && properties.is_none_or(Map::is_empty)
    {
        let says = "must not be empty if x-kubernetes-embedded-resource is true without \
                    x-kubernetes-preserve-unknown-fields";
        causes.push(required(&path.child("properties"), says));
    }
    if level != Level::Root && !embedded {
        return;
    }
    for (name, wanted) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
        let Some(property) = properties.and_then(|p| p.get(name)) else { continue };
        let place = path.child("properties").key(name);
        let kind = text(property, "type");
        if kind != wanted {
            causes.push(invalid(&place.child("type"), &kind.into(), &format!("must be {wanted}")));
        }
        if name == "metadata" && level == Level::Root && !restricts_names_only(property) {
            let says = "must not specify anything other than name and generateName, but metadata is implicitly \
                        specified";
            causes.push(forbidden(&place, says));
        }
    }
}

fn restricts_names_only(metadata: &Value) -> bool {
    let keys_allowed = metadata.as_object().is_some_and(|map| {
        map.keys().all(|key| matches!(&**key, "type" | "properties" | "default" | "description" | "required"))
    });
    keys_allowed
        && entries(metadata, "properties").all(|(name, _)| matches!(&**name, "name" | "generateName"))
}

/// The `anyOf` that says "integer or text" and nothing else.
fn int_or_string_any_of(schema: &Value) -> bool {
    *list(schema, "anyOf") == [json!({"type": "integer"}), json!({"type": "string"})]
}

/// Whether the schema's own `anyOf`, and that of its first `allOf`, say "integer or text".
fn skipped(schema: &Value) -> (bool, bool) {
    (int_or_string_any_of(schema), list(schema, "allOf").first().is_some_and(int_or_string_any_of))
}

fn combinations(schema: &Value, level: Level, path: &Path, causes: &mut Vec<Cause>, skip: (bool, bool)) {
    let lists: [(&str, bool); 3] = [("anyOf", skip.0), ("allOf", false), ("oneOf", false)];
    for (name, skip_list) in lists {
        if skip_list {
            continue;
        }
        for (index, nested_schema) in list(schema, name).iter().enumerate() {
            let skip = (name == "allOf" && index == 0 && skip.1, false);
            nested(nested_schema, level, &path.child(name).index(index), causes, skip, name == "allOf");
        }
    }
    if let Some(not) = object(schema, "not") {
        nested(not, level, &path.child("not"), causes, (false, false), false);
    }
    let pattern = text(schema, "pattern");
    if let Err(error) = regex::Regex::new(pattern) {
        let says = format!("must be a valid regular expression, but isn't: {error}");
        causes.push(invalid(&path.child("pattern"), &pattern.into(), &says));
    }
}

/// A schema inside `anyOf` and its like, which must only restrict values.
fn nested(
    schema: &Value,
    level: Level,
    path: &Path,
    causes: &mut Vec<Cause>,
    skip: (bool, bool),
    rules: bool,
) {
    combinations(schema, level, path, causes, skip);
    if let Some(items) = object(schema, "items") {
        nested(items, level, &path.child("items"), causes, (false, false), rules);
    }
    for (name, property) in entries(schema, "properties") {
        nested(property, Level::Field, &path.child("properties").key(name), causes, (false, false), rules);
    }
    let mut refuse = |name: &str, says: &str| causes.push(forbidden(&path.child(name), says));
    for name in ["type", "title", "description"] {
        if !text(schema, name).is_empty() {
            refuse(name, "must be empty to be structural");
        }
    }
    for name in ["additionalProperties", "default"] {
        if schema.get(name).is_some_and(|value| !value.is_null()) {
            refuse(name, "must be undefined to be structural");
        }
    }
    if flag(schema, "nullable") {
        refuse("nullable", "must be false to be structural");
    }
    for (name, says) in EXTENSIONS {
        let set = match schema.get(name) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Array(items)) => !items.is_empty(),
            Some(_) => true,
        };
        if set {
            refuse(name, says);
        }
    }
    if !rules && !list(schema, "x-kubernetes-validations").is_empty() {
        refuse("x-kubernetes-validations", "must be empty to be structural");
    }
    if entries(schema, "properties").any(|(name, _)| name == "metadata") {
        causes.push(forbidden(
            &path.child("properties").key("metadata"),
            "must not be specified in a nested context",
        ));
    }
}

/// Fields that combined schemas speak of must be declared outside of them.
fn completeness(schema: &Value, path: &Path, causes: &mut Vec<Cause>) {
    for (keyword, schemas) in ["anyOf", "allOf", "oneOf"].map(|keyword| (keyword, list(schema, keyword))) {
        for (index, nested) in schemas.iter().enumerate() {
            declared(nested, schema, &path.child(keyword).index(index), path, causes);
        }
    }
    if let Some(not) = object(schema, "not") {
        declared(not, schema, &path.child("not"), path, causes);
    }
    for (name, property) in entries(schema, "properties") {
        completeness(property, &path.child("properties").key(name), causes);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(below) = object(schema, name) {
            completeness(below, &path.child(name), causes);
        }
    }
}

fn declared(nested: &Value, schema: &Value, from: &Path, at: &Path, causes: &mut Vec<Cause>) {
    let missing = |at: &Path, from: &Path| required(at, &format!("because it is defined in {from}"));
    for (name, property) in entries(nested, "properties") {
        let (from, at) = (from.child("properties").key(name), at.child("properties").key(name));
        match schema.get("properties").and_then(|properties| properties.get(name)) {
            Some(below) => declared(property, below, &from, &at, causes),
            None => causes.push(missing(&at, &from)),
        }
    }
    if let Some(items) = object(nested, "items") {
        let (from, at) = (from.child("items"), at.child("items"));
        match object(schema, "items") {
            Some(below) => declared(items, below, &from, &at, causes),
            None => causes.push(missing(&at, &from)),
        }
    }
    for keyword in ["anyOf", "allOf", "oneOf"] {
        for (index, deeper) in list(nested, keyword).iter().enumerate() {
            declared(deeper, schema, &from.child(keyword).index(index), at, causes);
        }
    }
    if let Some(not) = object(nested, "not") {
        declared(not, schema, &from.child("not"), at, causes);
    }
}
