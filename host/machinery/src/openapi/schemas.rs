//! Schemas as OpenAPI writes them.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Form, descriptions};
use crate::{
    resources::Resource,
    schema::{Kind, KindSchema, ListType, MapType, Rules, Schema, kinds_of_type},
};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// Adds built-in types and all they refer to.
pub(super) fn add_built_in(out: &mut Map<String, Value>, wanted: BTreeSet<String>, form: Form) {
    let mut queue: Vec<String> = wanted.into_iter().collect();
    while let Some(name) = queue.pop() {
        if out.contains_key(&name) {
            continue;
        }
        let Some(kind) = KindSchema::of_type(&name) else { continue };
        let mut found = BTreeSet::new();
        let mut body = type_body(kind.schema(), &name, form, &mut found);
        let kinds = kinds_of_type(&name);
        if !kinds.is_empty() {
            body.insert("x-kubernetes-group-version-kind".into(), json!(kinds));
        }
        out.insert(name, Value::Object(body));
        queue.extend(found);
    }
}

/// The body of a built-in type's schema; the types it refers to go to `found`.
fn type_body(schema: Schema<'_>, name: &str, form: Form, found: &mut BTreeSet<String>) -> Map<String, Value> {
    let mut map = Map::new();
    if let Some(text) = descriptions::of_type(name) {
        map.insert("description".into(), text.into());
    }
    map.extend(special(schema.kind(), form));
    if !schema.has_fields() {
        return map;
    }
    map.insert("type".into(), "object".into());
    let mut properties = Map::new();
    for (field, below) in schema.fields() {
        properties
            .insert(field.into(), field_schema(below, descriptions::of_field(name, field), form, found));
    }
    properties.sort_keys();
    map.insert("properties".into(), properties.into());
    if !schema.required().is_empty() {
        map.insert("required".into(), json!(schema.required()));
    }
    if schema.map_type() == MapType::Atomic {
        map.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    map
}

/// What a scalar's or special type's schema says of the value.
fn special(kind: Kind, form: Form) -> Map<String, Value> {
    let value = match (kind, form) {
        (Kind::String, _) => json!({"type": "string"}),
        (Kind::Integer32, _) => json!({"type": "integer", "format": "int32"}),
        (Kind::Integer64, _) => json!({"type": "integer", "format": "int64"}),
        (Kind::Number, _) => json!({"type": "number", "format": "double"}),
        (Kind::Boolean, _) => json!({"type": "boolean"}),
        (Kind::Bytes, _) => json!({"type": "string", "format": "byte"}),
        (Kind::Time | Kind::MicroTime, _) => json!({"type": "string", "format": "date-time"}),
        (Kind::Quantity, Form::V2) => json!({"type": "string"}),
        (Kind::Quantity, Form::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        (Kind::IntOrString, Form::V2) => json!({"type": "string", "format": "int-or-string"}),
        (Kind::IntOrString, Form::V3) => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        (Kind::Raw | Kind::Object, _) => json!({"type": "object"}),
        _ => json!({}),
    };
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn field_schema(
    schema: Schema<'_>,
    description: Option<&'static str>,
    form: Form,
    found: &mut BTreeSet<String>,
) -> Value {
    let mut map = Map::new();
    if let Some(text) = description {
        map.insert("description".into(), text.into());
    }
    match value_schema(schema, form, found) {
        // Beside a reference nothing may stand in version 3.
        reference if form == Form::V3 && reference.contains_key("$ref") => {
            map.insert("allOf".into(), json!([reference]));
        }
        body => map.extend(body),
    }
    if let Some(default) = schema.default() {
        map.insert("default".into(), default.clone());
    }
    merge_attributes(&mut map, schema);
    Value::Object(map)
}

/// The extensions that say how a field merges.
fn merge_attributes(map: &mut Map<String, Value>, schema: Schema<'_>) {
    if schema.kind() == Kind::Array {
        match schema.list_type() {
            ListType::Map => {
                map.insert("x-kubernetes-list-map-keys".into(), json!(schema.list_keys()));
                map.insert("x-kubernetes-list-type".into(), "map".into());
            }
            ListType::Set => drop(map.insert("x-kubernetes-list-type".into(), "set".into())),
            ListType::Atomic => drop(map.insert("x-kubernetes-list-type".into(), "atomic".into())),
        }
    }
    if schema.type_name().is_none() && schema.map_type() == MapType::Atomic {
        map.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    if let Some(key) = schema.patch_key() {
        map.insert("x-kubernetes-patch-merge-key".into(), key.into());
    }
    if !schema.patch_strategy().is_empty() {
        map.insert("x-kubernetes-patch-strategy".into(), schema.patch_strategy().into());
    }
}

fn value_schema(schema: Schema<'_>, form: Form, found: &mut BTreeSet<String>) -> Map<String, Value> {
    if let Some(name) = schema.type_name() {
        found.insert(name.into());
        return reference(name, form);
    }
    let mut map = special(schema.kind(), form);
    if let Some(items) = schema.items() {
        map.insert("type".into(), "array".into());
        map.insert("items".into(), value_schema(items, form, found).into());
    }
    if let Some(values) = schema.values() {
        map.insert("additionalProperties".into(), value_schema(values, form, found).into());
    }
    map
}

fn reference(name: &str, form: Form) -> Map<String, Value> {
    match form.reference(name) {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The component's name of a custom kind: `com.example.v1.Thing`.
pub(super) fn custom_name(resource: &Resource, kind: &str) -> String {
    let group: Vec<&str> = resource.group.split('.').rev().collect();
    format!("{}.{}.{kind}", group.join("."), resource.version)
}

/// The schema of a custom kind.
pub(super) fn custom(resource: &Resource, form: Form) -> Option<Value> {
    let schema = resource.custom.as_ref()?.schema();
    let mut body = custom_body(schema, form, true);
    body.insert("x-kubernetes-group-version-kind".into(), json!([resource.gvk()]));
    Some(Value::Object(body))
}

/// Adds a custom kind and its list.
pub(super) fn add_custom(
    out: &mut Map<String, Value>,
    resource: &Resource,
    form: Form,
    wanted: &mut BTreeSet<String>,
) {
    let Some(body) = custom(resource, form) else { return };
    wanted.extend([OBJECT_META.into(), LIST_META.into()]);
    let name = custom_name(resource, &resource.kind);
    let mut list_kind = resource.gvk();
    list_kind.kind = resource.list_kind.clone();
    let list = json!({
        "description": format!("{} is a list of {}", resource.list_kind, resource.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "items": {"type": "array", "items": form.reference(&name)},
            "kind": {"type": "string"},
            "metadata": metadata_reference(LIST_META, form),
        },
        "x-kubernetes-group-version-kind": [list_kind],
    });
    out.insert(custom_name(resource, &resource.list_kind), list);
    out.insert(name, body);
}

fn metadata_reference(name: &str, form: Form) -> Value {
    match form {
        Form::V2 => form.reference(name),
        Form::V3 => json!({"allOf": [form.reference(name)]}),
    }
}

fn custom_body(schema: Schema<'_>, form: Form, root: bool) -> Map<String, Value> {
    let mut map = Map::new();
    if let Some(rules) = schema.rules() {
        keywords(&mut map, rules, form);
    }
    // Version 2 cannot say what these hold.
    let open = schema.preserve_unknown() && form == Form::V2;
    let mut properties = Map::new();
    for (name, field) in schema.fields() {
        let body = match field.type_name() {
            Some(of) => metadata_reference(of, form),
            None => Value::Object(custom_body(field, form, false)),
        };
        properties.insert(name.into(), body);
    }
    if !properties.is_empty() && (!open || root) {
        map.insert("properties".into(), properties.into());
    }
    if !schema.required().is_empty() {
        map.insert("required".into(), json!(schema.required()));
    }
    if let Some(items) = schema.items() {
        map.insert("items".into(), custom_body(items, form, false).into());
    }
    if let Some(values) = schema.values() {
        map.insert("additionalProperties".into(), custom_body(values, form, false).into());
    }
    if let Some(default) = schema.default() {
        map.insert("default".into(), default.clone());
    }
    custom_attributes(&mut map, schema, form);
    map
}

fn custom_attributes(map: &mut Map<String, Value>, schema: Schema<'_>, form: Form) {
    if schema.int_or_string() {
        map.insert("x-kubernetes-int-or-string".into(), true.into());
    }
    if schema.preserve_unknown() {
        map.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
    }
    if schema.embedded_resource() {
        map.insert("x-kubernetes-embedded-resource".into(), true.into());
    }
    if schema.nullable() && form == Form::V3 {
        map.insert("nullable".into(), true.into());
    }
    if schema.list_type() != ListType::Atomic {
        merge_attributes(map, schema);
    }
    if schema.map_type() == MapType::Atomic {
        map.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    if !schema.validations().is_empty() && form == Form::V3 {
        let rule = |rule: &crate::schema::Rule| json!({"rule": rule.rule, "message": rule.message});
        map.insert("x-kubernetes-validations".into(), schema.validations().iter().map(rule).collect());
    }
}

fn keywords(map: &mut Map<String, Value>, rules: &Rules, form: Form) {
    let texts = [
        ("description", &rules.description),
        ("type", &rules.declared_type),
        ("format", &rules.format),
        ("title", &rules.title),
        ("pattern", &rules.pattern),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            map.insert(key.into(), (&**text).into());
        }
    }
    let numbers = [("minimum", rules.minimum), ("maximum", rules.maximum), ("multipleOf", rules.multiple_of)];
    for (key, number) in numbers {
        if let Some(number) = number {
            map.insert(key.into(), crate::field::number(number));
        }
    }
    let counts = [
        ("minLength", rules.min_length),
        ("maxLength", rules.max_length),
        ("minItems", rules.min_items),
        ("maxItems", rules.max_items),
        ("minProperties", rules.min_properties),
        ("maxProperties", rules.max_properties),
    ];
    for (key, count) in counts {
        if let Some(count) = count {
            map.insert(key.into(), count.into());
        }
    }
    for (key, set) in
        [("exclusiveMinimum", rules.exclusive_minimum), ("exclusiveMaximum", rules.exclusive_maximum)]
    {
        if set {
            map.insert(key.into(), true.into());
        }
    }
    if let Some(values) = &rules.enumeration {
        map.insert("enum".into(), values.clone().into());
    }
    if form == Form::V3 {
        combined(map, rules);
    }
}

/// `allOf` and its like, which version 2 lacks.
fn combined(map: &mut Map<String, Value>, rules: &Rules) {
    let list = |schemas: Vec<Schema<'_>>| -> Value {
        schemas.into_iter().map(|schema| Value::Object(custom_body(schema, Form::V3, false))).collect()
    };
    let lists = [
        ("allOf", rules.all_of().collect::<Vec<_>>()),
        ("anyOf", rules.any_of().collect()),
        ("oneOf", rules.one_of().collect()),
    ];
    for (key, schemas) in lists {
        if !schemas.is_empty() {
            map.insert(key.into(), list(schemas));
        }
    }
    if let Some(not) = rules.not() {
        map.insert("not".into(), custom_body(not, Form::V3, false).into());
    }
}
