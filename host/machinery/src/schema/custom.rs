//! Reads the schemas of custom resource definitions.

use std::sync::OnceLock;

use serde_json::{Map, Value};
use thiserror::Error;

use super::{
    builtin,
    node::{Kind, ListType, MapType, Node, Presence, Rule, Rules},
};

/// Deepest nesting of a custom schema.
const MAX_DEPTH: usize = 120;
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// A value that is no schema.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum SchemaError {
    #[error("schema is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("{keyword}: expected {expected}")]
    Keyword { keyword: String, expected: &'static str },
}

/// The root of a custom resource: metadata is Kubernetes' own type whatever the schema says of it.
pub(super) fn root(schema: &Value) -> Result<Node, SchemaError> {
    let mut node = read(schema, 0)?;
    node.embedded = false;
    node.kind = Kind::Object;
    add_identity(&mut node);
    Ok(node)
}

pub(super) fn any_root() -> Node {
    let mut node = Node { kind: Kind::Object, preserve_unknown: true, ..Node::default() };
    add_identity(&mut node);
    node
}

/// Declares `apiVersion`, `kind` and `metadata`, keeping restrictions on the metadata's name.
fn add_identity(node: &mut Node) {
    for name in ["apiVersion", "kind"] {
        if !node.fields.contains_key(name) {
            node.fields.insert(name.into(), Node { kind: Kind::String, ..Node::default() });
        }
    }
    let declared = node.fields.shift_remove("metadata");
    let mut metadata = builtin::reference(OBJECT_META);
    if let Some(declared) = declared {
        metadata.kind = declared.kind;
        metadata.fields = declared.fields;
        metadata.required = declared.required;
        metadata.rules = declared.rules;
    }
    node.fields.insert("metadata".into(), metadata);
}

fn read(schema: &Value, depth: usize) -> Result<Node, SchemaError> {
    if depth > MAX_DEPTH {
        return Err(SchemaError::TooDeep);
    }
    let Value::Object(map) = schema else {
        return Err(SchemaError::Keyword { keyword: "schema".into(), expected: "an object" });
    };
    let mut node = Node { presence: Presence::Pointer, ..Node::default() };
    let flag = |key: &str| map.get(key).and_then(Value::as_bool).unwrap_or(false);
    let declared = text(map, "type");
    node.kind = match declared.as_deref() {
        _ if flag("x-kubernetes-int-or-string") => Kind::IntOrString,
        Some("object") => Kind::Object,
        Some("array") => Kind::Array,
        Some("string") => Kind::String,
        Some("integer") => Kind::Integer64,
        Some("number") => Kind::Number,
        Some("boolean") => Kind::Boolean,
        _ => Kind::Any,
    };
    node.preserve_unknown = flag("x-kubernetes-preserve-unknown-fields");
    node.embedded = flag("x-kubernetes-embedded-resource");
    node.nullable = flag("nullable");
    node.default = map.get("default").filter(|value| !value.is_null()).cloned().map(Box::new);
    node.list_type = match map.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => ListType::Set,
        Some("map") => ListType::Map,
        _ => ListType::Atomic,
    };
    if map.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic") {
        node.map_type = Some(MapType::Atomic);
    }
    node.list_keys = texts(map, "x-kubernetes-list-map-keys");
    node.required = texts(map, "required");
    children(&mut node, map, depth)?;
    node.rules = Some(Box::new(rules(map, declared, depth)?));
    if node.embedded {
        add_identity(&mut node);
    }
    Ok(node)
}

fn children(node: &mut Node, map: &Map<String, Value>, depth: usize) -> Result<(), SchemaError> {
    if let Some(properties) = map.get("properties").filter(|value| !value.is_null()) {
        let Value::Object(properties) = properties else {
            return Err(SchemaError::Keyword { keyword: "properties".into(), expected: "an object" });
        };
        for (name, schema) in properties {
            node.fields.insert(name.as_str().into(), read(schema, depth + 1)?);
        }
    }
    match map.get("items") {
        Some(items @ Value::Object(_)) => node.items = Some(Box::new(read(items, depth + 1)?)),
        Some(Value::Null) | None => (),
        Some(_) => return Err(SchemaError::Keyword { keyword: "items".into(), expected: "a schema" }),
    }
    match map.get("additionalProperties") {
        Some(values @ Value::Object(_)) => node.values = Some(Box::new(read(values, depth + 1)?)),
        Some(Value::Bool(true)) => node.values = Some(Box::default()),
        _ => (),
    }
    Ok(())
}

fn rules(map: &Map<String, Value>, declared: Option<Box<str>>, depth: usize) -> Result<Rules, SchemaError> {
    let number = |key: &str| map.get(key).and_then(Value::as_f64);
    let count = |key: &str| map.get(key).and_then(Value::as_u64);
    let flag = |key: &str| map.get(key).and_then(Value::as_bool).unwrap_or(false);
    let schemas = |key: &str| -> Result<Vec<Node>, SchemaError> {
        let list = map.get(key).and_then(Value::as_array).into_iter().flatten();
        list.map(|schema| read(schema, depth + 1)).collect()
    };
    Ok(Rules {
        declared_type: declared,
        format: text(map, "format"),
        title: text(map, "title"),
        description: text(map, "description"),
        enumeration: map.get("enum").and_then(Value::as_array).cloned(),
        minimum: number("minimum"),
        maximum: number("maximum"),
        exclusive_minimum: flag("exclusiveMinimum"),
        exclusive_maximum: flag("exclusiveMaximum"),
        multiple_of: number("multipleOf"),
        min_length: count("minLength"),
        max_length: count("maxLength"),
        pattern: text(map, "pattern"),
        min_items: count("minItems"),
        max_items: count("maxItems"),
        unique_items: flag("uniqueItems"),
        min_properties: count("minProperties"),
        max_properties: count("maxProperties"),
        closed: map.get("additionalProperties") == Some(&Value::Bool(false)),
        validations: validations(map),
        regex: OnceLock::new(),
        programs: OnceLock::new(),
        all_of: schemas("allOf")?,
        any_of: schemas("anyOf")?,
        one_of: schemas("oneOf")?,
        not: map
            .get("not")
            .filter(|not| not.is_object())
            .map(|not| read(not, depth + 1))
            .transpose()?
            .map(Box::new),
    })
}

fn validations(map: &Map<String, Value>) -> Vec<Rule> {
    let list = map.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten();
    let rule = |rule: &Value| {
        let text =
            |key: &str| rule.get(key).and_then(Value::as_str).filter(|t| !t.is_empty()).map(Into::into);
        Rule {
            rule: text("rule").unwrap_or_default(),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: rule.get("optionalOldSelf").and_then(Value::as_bool).unwrap_or(false),
        }
    };
    list.map(rule).collect()
}

fn text(map: &Map<String, Value>, key: &str) -> Option<Box<str>> {
    map.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(Into::into)
}

fn texts(map: &Map<String, Value>, key: &str) -> Vec<Box<str>> {
    let list = map.get(key).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(Into::into).collect()
}
