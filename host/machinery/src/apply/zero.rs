//! The empty object of a kind, against which a created object is compared.

use serde_json::{Map, Value, json};
use wasmk_api::Gvk;

use crate::schema::{Kind, KindSchema, Presence, Schema};

/// What Kubernetes compares a new object with: for built-in kinds the fields that are always written,
/// with their zero values; for custom resources nothing.
pub(super) fn zero(kind: &KindSchema, gvk: &Gvk) -> Value {
    let mut map = if kind.is_built_in() { fields(kind.schema()) } else { Map::new() };
    map.insert("apiVersion".into(), gvk.api_version().into());
    map.insert("kind".into(), gvk.kind.clone().into());
    Value::Object(map)
}

fn fields(schema: Schema<'_>) -> Map<String, Value> {
    let always = |(name, field): (&str, Schema<'_>)| match field.presence() {
        Presence::Always => Some((name.to_owned(), value(field))),
        Presence::Null => Some((name.to_owned(), Value::Null)),
        Presence::Omit | Presence::Pointer => None,
    };
    schema.fields().filter_map(always).collect()
}

fn value(schema: Schema<'_>) -> Value {
    match schema.kind() {
        Kind::Object if schema.values().is_none() => Value::Object(fields(schema)),
        Kind::String => json!(""),
        Kind::Integer32 | Kind::Integer64 | Kind::Number | Kind::IntOrString => json!(0),
        Kind::Boolean => json!(false),
        Kind::Quantity => json!("0"),
        _ => Value::Null,
    }
}
