//! The schema of a definition: keywords that are not allowed, lists and maps that contradict themselves,
//! defaults that break it, rules that do not compile.

use serde_json::{Value, json};
use wasmk_api::Cause;

use crate::{
    cel,
    field::{Path, forbidden, invalid, invalid_str, not_supported, required},
    schema::{KindSchema, Schema},
    validate::{
        rules::below,
        structural::{self, entries, flag, list, object, text},
        typecheck, values,
    },
};

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
const UNSUPPORTED: [&str; 6] =
    ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"];
/// What the root may say when there is a status subresource.
const ROOT_KEYWORDS: [&str; 23] = [
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
    "nullable",
];

/// Adds what is wrong with a version's schema.
pub(super) fn validate(schema: &Value, has_status: bool, path: &Path, causes: &mut Vec<Cause>) {
    let before = causes.len();
    if has_status {
        root_keywords(schema, path, causes);
    }
    if flag(schema, "nullable") {
        causes.push(forbidden(&path.child("nullable"), "nullable cannot be true at the root"));
    }
    if !uses_unsupported(schema) {
        causes.extend(structural::validate(schema, path));
    }
    walk(schema, path, causes);
    if causes.len() > before {
        return;
    }
    let Ok(kind) = KindSchema::custom(schema) else {
        return causes.push(invalid_str(path, "", "schema is nested too deep"));
    };
    defaults(schema, kind.schema(), path, causes);
    if causes.len() == before {
        rules(schema, kind.schema(), true, path, None, causes);
    }
}

fn root_keywords(schema: &Value, path: &Path, causes: &mut Vec<Cause>) {
    let kind = text(schema, "type");
    if !kind.is_empty() && kind != "object" {
        let says = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        causes.push(invalid_str(&path.child("type"), kind, says));
    }
    let odd = schema.as_object().is_some_and(|map| map.keys().any(|key| !ROOT_KEYWORDS.contains(&&**key)));
    if odd {
        let says = "only keywords about the object itself are allowed at the root of the schema if the status \
                    subresource is enabled";
        causes.push(invalid(path, schema, says));
    }
}

fn is_set(schema: &Value, key: &str) -> bool {
    match schema.get(key) {
        None | Some(Value::Null) => false,
        Some(Value::Object(map)) => key == "dependencies" || key == "additionalItems" || !map.is_empty(),
        Some(_) => true,
    }
}

/// Schemas directly below, with how to get there.
fn children<'s>(schema: &'s Value, path: &Path) -> Vec<(&'s Value, Path)> {
    let mut found = Vec::new();
    for key in ["properties", "definitions"] {
        found.extend(entries(schema, key).map(|(name, below)| (below, path.child(key).key(name))));
    }
    for key in ["items", "additionalProperties", "not"] {
        found.extend(object(schema, key).map(|below| (below, path.child(key))));
    }
    for key in ["allOf", "oneOf", "anyOf"] {
        let indexed = list(schema, key).iter().enumerate();
        found.extend(indexed.map(|(index, below)| (below, path.child(key).index(index))));
    }
    found
}

fn uses_unsupported(schema: &Value) -> bool {
    UNSUPPORTED.iter().any(|key| is_set(schema, key))
        || schema.get("items").is_some_and(Value::is_array)
        || children(schema, &Path::root()).iter().any(|(below, _)| uses_unsupported(below))
}

fn walk(schema: &Value, path: &Path, causes: &mut Vec<Cause>) {
    keywords(schema, path, causes);
    lists(schema, path, causes);
    list_keys(schema, path, causes);
    rule_texts(schema, path, causes);
    for (inner, path) in children(schema, path) {
        walk(inner, &path, causes);
    }
}

fn keywords(schema: &Value, path: &Path, causes: &mut Vec<Cause>) {
    match text(schema, "type") {
        "" => (),
        "null" => {
            let says = "type cannot be set to null, use nullable as an alternative";
            causes.push(not_supported(&path.child("type"), &"null".into(), &TYPES));
            causes.push(forbidden(&path.child("type"), says));
        }
        kind if !TYPES.contains(&kind) => {
            causes.push(not_supported(&path.child("type"), &kind.into(), &TYPES));
        }
        _ => (),
    }
    for key in UNSUPPORTED {
        if is_set(schema, key) {
            causes.push(forbidden(&path.child(key), &format!("{key} is not supported")));
        }
    }
    if schema.get("items").is_some_and(Value::is_array) {
        causes.push(forbidden(&path.child("items"), "items must be a schema object and not an array"));
    }
    if flag(schema, "uniqueItems") {
        let says = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        causes.push(forbidden(&path.child("uniqueItems"), says));
    }
    let closed_or_typed =
        matches!(schema.get("additionalProperties"), Some(Value::Object(_) | Value::Bool(false)));
    if closed_or_typed && entries(schema, "properties").next().is_some() {
        let says = "additionalProperties and properties are mutual exclusive";
        causes.push(forbidden(&path.child("additionalProperties"), says));
    }
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        let path = path.child("x-kubernetes-preserve-unknown-fields");
        causes.push(invalid(&path, &false.into(), "must be true or undefined"));
    }
}

/// `x-kubernetes-list-type` and `x-kubernetes-map-type` against the type they stand at.
fn lists(schema: &Value, path: &Path, causes: &mut Vec<Cause>) {
    let kind = text(schema, "type");
    for (key, wanted, allowed) in [
        ("x-kubernetes-map-type", "object", &["atomic", "granular"][..]),
        ("x-kubernetes-list-type", "array", &["atomic", "set", "map"]),
    ] {
        let given = text(schema, key);
        if given.is_empty() {
            continue;
        }
        let says = format!("must be {wanted} if {key} is specified");
        match kind {
            kind if kind == wanted => (),
            "" => causes.push(required(&path.child("type"), &says)),
            kind => causes.push(invalid_str(&path.child("type"), kind, &says)),
        }
        if !allowed.contains(&given) {
            causes.push(not_supported(&path.child(key), &given.into(), allowed));
        }
    }
    let Some(items) = object(schema, "items").filter(|_| text(schema, "x-kubernetes-list-type") == "set")
    else {
        return;
    };
    let (key, loose) = match text(items, "type") {
        "array" => {
            let given = text(items, "x-kubernetes-list-type");
            ("x-kubernetes-list-type", !matches!(given, "" | "atomic"))
        }
        "object" => ("x-kubernetes-map-type", text(items, "x-kubernetes-map-type") != "atomic"),
        _ => return,
    };
    if loose {
        let shown = items.get("x-kubernetes-list-type").cloned().unwrap_or_default();
        let says = "must be atomic as item of a list with x-kubernetes-list-type=set";
        causes.push(invalid(&path.child("items").child(key), &shown, says));
    }
}

fn list_keys(schema: &Value, path: &Path, causes: &mut Vec<Cause>) {
    let keys = list(schema, "x-kubernetes-list-map-keys");
    let kind = text(schema, "x-kubernetes-list-type");
    let items = object(schema, "items");
    if !keys.is_empty() && kind != "map" {
        let (place, says) =
            (path.child("x-kubernetes-list-type"), "must be map if x-kubernetes-list-map-keys is non-empty");
        causes.push(if kind.is_empty() { required(&place, says) } else { invalid_str(&place, kind, says) });
    }
    if matches!(kind, "map" | "set") && items.is_some_and(|items| flag(items, "nullable")) {
        let says = format!("cannot be nullable when x-kubernetes-list-type is {kind}");
        causes.push(forbidden(&path.child("items").child("nullable"), &says));
    }
    if kind != "map" {
        return;
    }
    let place = path.child("x-kubernetes-list-map-keys");
    if keys.is_empty() {
        causes.push(required(&place, "must not be empty if x-kubernetes-list-type is map"));
    }
    let Some(items) = items else {
        let says = "must have a schema if x-kubernetes-list-type is map";
        return causes.push(required(&path.child("items"), says));
    };
    let kind = text(items, "type");
    if kind != "object" {
        let says = "must be object if parent array's x-kubernetes-list-type is map";
        return causes.push(invalid_str(&path.child("items").child("type"), kind, says));
    }
    for (index, key) in keys.iter().enumerate() {
        let name = key.as_str().unwrap_or("");
        if keys[..index].contains(key) {
            causes.push(invalid(&place, &keys.into(), "must not contain duplicate entries"));
        }
        let Some(property) = items.get("properties").and_then(|properties| properties.get(name)) else {
            causes.push(invalid(&place, &keys.into(), "entries must all be names of item properties"));
            continue;
        };
        list_key(items, name, property, &path.child("items").child("properties").key(name), causes);
    }
}

fn list_key(items: &Value, name: &str, property: &Value, path: &Path, causes: &mut Vec<Cause>) {
    if matches!(text(property, "type"), "array" | "object") {
        let says = "must be a scalar type if parent array's x-kubernetes-list-type is map";
        causes.push(invalid_str(&path.child("type"), text(items, "type"), says));
    }
    let needed = list(items, "required").iter().any(|required| required == name);
    if !needed && property.get("default").is_none_or(Value::is_null) {
        let says = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
        causes.push(required(&path.child("default"), says));
    }
    if flag(property, "nullable") {
        let says = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
        causes.push(forbidden(&path.child("nullable"), says));
    }
}

/// Rules as texts, before they are compiled.
fn rule_texts(schema: &Value, path: &Path, causes: &mut Vec<Cause>) {
    for (index, rule) in list(schema, "x-kubernetes-validations").iter().enumerate() {
        let path = path.child("x-kubernetes-validations").index(index);
        let (source, message) = (text(rule, "rule").trim(), text(rule, "message"));
        let breaks = |text: &str| text.contains(['\n', '\r']);
        if source.is_empty() {
            causes.push(required(&path.child("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            causes.push(invalid_str(&path.child("message"), message, "must be non-empty if specified"));
        } else if breaks(message.trim()) {
            causes.push(invalid_str(&path.child("message"), message, "must not contain line breaks"));
        } else if breaks(source) && message.trim().is_empty() {
            let says = "message must be specified if rule contains line breaks";
            causes.push(required(&path.child("message"), says));
        }
        let expression = text(rule, "messageExpression");
        if !expression.is_empty() && expression.trim().is_empty() {
            let says = "messageExpression must be non-empty if specified";
            causes.push(required(&path.child("messageExpression"), says));
        }
        let reason = text(rule, "reason");
        if !reason.is_empty() && !REASONS.contains(&reason) {
            causes.push(not_supported(&path.child("reason"), &reason.into(), &REASONS));
        }
        let field = text(rule, "fieldPath");
        if field.is_empty() {
            continue;
        }
        let known =
            KindSchema::custom(schema).is_ok_and(|kind| below(&Path::root(), field, kind.schema()).is_some());
        if !known {
            causes.push(invalid_str(&path.child("fieldPath"), field, "must be a valid path"));
        }
    }
}

/// Defaults must satisfy the schema they stand in.
fn defaults(schema: &Value, place: Schema<'_>, path: &Path, causes: &mut Vec<Cause>) {
    if let Some(default) = schema.get("default").filter(|default| !default.is_null()) {
        let path = path.child("default");
        for mut cause in values::validate_value(default, place) {
            cause.field = match &*cause.field {
                "<nil>" => path.to_string(),
                below => format!("{path}.{below}"),
            };
            causes.push(cause);
        }
    }
    for (name, property) in entries(schema, "properties") {
        if let Some(field) = place.field(name).filter(|field| field.rules().is_some()) {
            defaults(property, field, &path.child("properties").key(name), causes);
        }
    }
    for (key, below) in [("items", place.items()), ("additionalProperties", place.values())] {
        if let (Some(schema), Some(below)) = (object(schema, key), below) {
            defaults(schema, below, &path.child(key), causes);
        }
    }
}

/// Compiles rules. `loose` is the nearest place above whose parts have no counterpart in an older object.
fn rules(
    schema: &Value,
    place: Schema<'_>,
    root: bool,
    path: &Path,
    loose: Option<&Path>,
    causes: &mut Vec<Cause>,
) {
    for (index, rule) in list(schema, "x-kubernetes-validations").iter().enumerate() {
        let path = path.child("x-kubernetes-validations").index(index);
        compile(rule, place, root, &path, loose, causes);
    }
    for (name, property) in entries(schema, "properties") {
        if let Some(field) = place.field(name).filter(|field| field.rules().is_some()) {
            rules(property, field, false, &path.child("properties").key(name), loose, causes);
        }
    }
    if let (Some(values), Some(below)) = (object(schema, "additionalProperties"), place.values()) {
        rules(values, below, false, &path.child("additionalProperties"), loose, causes);
    }
    if let (Some(items), Some(below)) = (object(schema, "items"), place.items()) {
        let uncorrelated = (text(schema, "x-kubernetes-list-type") != "map").then_some(path);
        rules(items, below, false, &path.child("items"), loose.or(uncorrelated), causes);
    }
}

fn compile(
    rule: &Value,
    place: Schema<'_>,
    root: bool,
    path: &Path,
    loose: Option<&Path>,
    causes: &mut Vec<Cause>,
) {
    // The rule as Kubernetes' internal type shows it.
    let shown = json!({
        "Rule": text(rule, "rule"), "Message": text(rule, "message"),
        "MessageExpression": text(rule, "messageExpression"), "Reason": rule.get("reason"),
        "FieldPath": text(rule, "fieldPath"), "OptionalOldSelf": rule.get("optionalOldSelf"),
    });
    let source = text(rule, "rule");
    let place_of = path.child("rule");
    match cel::compile(source) {
        Err(error) => causes.push(invalid(&place_of, &shown, &format!("compilation failed: {error}"))),
        Ok(checked) => {
            if let Some(problem) = typecheck::check(source, &checked, place, root) {
                causes.push(invalid(&place_of, &shown, &problem));
            }
            match (checked.mentions("oldSelf"), loose, rule.get("optionalOldSelf")) {
                (true, Some(above), _) => {
                    let says = format!(
                        "oldSelf cannot be used on the uncorrelatable portion of the schema within {above}"
                    );
                    causes.push(invalid_str(&place_of, source, &says));
                }
                (false, _, Some(given)) if !given.is_null() => {
                    let says = "may not be set if oldSelf is not used in rule";
                    causes.push(invalid(&path.child("optionalOldSelf"), given, says));
                }
                _ => (),
            }
        }
    }
    let message = text(rule, "messageExpression");
    if !message.trim().is_empty()
        && let Err(error) = cel::compile(message)
    {
        let says = format!("messageExpression compilation failed: {error}");
        causes.push(invalid(&path.child("messageExpression"), &shown, &says));
    }
}
