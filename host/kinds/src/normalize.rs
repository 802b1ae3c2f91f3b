//! The stored form of a decoded object: empty optional values go, values that are always written come,
//! quantities and times are written the one way.

use serde_json::{Map, Value};
use wasmk_api::{Object, Timestamp};
use wasmk_machinery::decode::canonical_quantity;

use crate::types::{Field, Scalar, Type, types};

/// How deep objects are walked; deeper parts stay as they are (only `JSONSchemaProps` nests that far).
const MAX_DEPTH: usize = 128;

/// Brings a built-in object into its stored form; objects of other kinds stay as they are.
pub(crate) fn normalize(obj: &mut Object) {
    let Some(root) = types().of(obj.api_version(), obj.kind()) else { return };
    normalize_struct(&mut obj.0, root, 0);
}

/// The same for a value of the named type, for instance `v1.PodTemplateSpec`.
pub(crate) fn normalize_as(value: &mut Value, name: &str) {
    if let (Some(root), Some(map)) = (types().index(name), value.as_object_mut()) {
        normalize_struct(map, root, 0);
    }
}

/// The value a field of a built-in object has when nobody set it; `None` when the kind has no such field.
pub(crate) fn zero_of(obj: &Object, field: &str) -> Option<Value> {
    let root = types().of(obj.api_version(), obj.kind())?;
    Some(zero(&types().structs[root].field(field)?.kind, 0))
}

fn normalize_struct(map: &mut Map<String, Value>, index: usize, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    let shape = &types().structs[index];
    map.retain(|key, value| match shape.field(key) {
        Some(field) => {
            normalize_value(value, &field.kind, depth + 1);
            is_empty_slice(value, field) || !is_left_out(value, field)
        }
        None => true,
    });
    for field in shape.always.iter().map(|i| &shape.fields[*i]) {
        if !map.contains_key(field.json) {
            map.insert(field.json.into(), zero(&field.kind, depth + 1));
        }
    }
}

fn normalize_value(value: &mut Value, kind: &Type, depth: usize) {
    match (kind, value) {
        (Type::Optional(inner), value) if !value.is_null() => normalize_value(value, inner, depth),
        (Type::Struct(index), Value::Object(map)) => normalize_struct(map, *index, depth),
        (Type::List(inner), Value::Array(items)) if !is_plain(inner) => {
            items.iter_mut().for_each(|item| normalize_value(item, inner, depth));
        }
        (Type::Map(inner), Value::Object(map)) if !is_plain(inner) => {
            map.values_mut().for_each(|item| normalize_value(item, inner, depth));
        }
        (Type::Scalar(scalar), value) => normalize_scalar(value, *scalar),
        _ => {}
    }
}

/// Whether values of that type are stored as they were sent.
fn is_plain(kind: &Type) -> bool {
    matches!(
        kind,
        Type::Scalar(
            Scalar::Text | Scalar::Bool | Scalar::Int | Scalar::Bytes | Scalar::Raw | Scalar::IntOrText
        )
    )
}

fn normalize_scalar(value: &mut Value, scalar: Scalar) {
    let written = match (scalar, &*value) {
        (Scalar::Quantity, Value::String(text)) => canonical_quantity(text).ok(),
        (Scalar::Quantity, Value::Number(number)) => canonical_quantity(&number.to_string()).ok(),
        (Scalar::Time, Value::String(text)) => text.parse::<Timestamp>().ok().map(|t| t.to_string()),
        (Scalar::MicroTime, Value::String(text)) => text.parse::<Timestamp>().ok().map(Timestamp::micros),
        _ => None,
    };
    if let Some(written) = written
        && value.as_str() != Some(&*written)
    {
        *value = written.into();
    }
}

/// Makes the empty lists and maps null that are always written: storage does not tell them from none. Whoever sent
/// them owns them, so this comes after the owners were settled.
pub fn forget_empty(obj: &mut Object) {
    if let Some(root) = types().of(obj.api_version(), obj.kind()) {
        forget(&mut obj.0, root, 0);
    }
}

fn forget(map: &mut Map<String, Value>, index: usize, depth: usize) {
    let shape = &types().structs[index];
    for (key, value) in map.iter_mut().filter(|_| depth <= MAX_DEPTH) {
        let Some(field) = shape.field(key) else { continue };
        if is_empty_slice(value, field) {
            *value = Value::Null;
        } else {
            forget_in(value, &field.kind, depth + 1);
        }
    }
}

fn forget_in(value: &mut Value, kind: &Type, depth: usize) {
    match (kind, value) {
        (Type::Optional(inner), value) => forget_in(value, inner, depth),
        (Type::Struct(index), Value::Object(map)) => forget(map, *index, depth),
        (Type::List(inner), Value::Array(items)) if !is_plain(inner) => {
            items.iter_mut().for_each(|item| forget_in(item, inner, depth));
        }
        (Type::Map(inner), Value::Object(map)) if !is_plain(inner) => {
            map.values_mut().for_each(|item| forget_in(item, inner, depth));
        }
        _ => {}
    }
}

/// Storage does not tell an empty list or map that is always written from none.
fn is_empty_slice(value: &Value, field: &Field) -> bool {
    let empty = match value {
        Value::Array(items) => items.is_empty() && matches!(field.kind, Type::List(_)),
        Value::Object(map) => map.is_empty() && matches!(field.kind, Type::Map(_)),
        _ => false,
    };
    empty && !field.omit_empty
}

fn is_left_out(value: &Value, field: &Field) -> bool {
    match value {
        // Null says "unset": an always written field gets its zero instead.
        Value::Null => !matches!(field.kind, Type::Scalar(Scalar::Raw)) || field.omit_empty,
        _ if !field.omit_empty => false,
        Value::String(text) => {
            text.is_empty() && matches!(field.kind, Type::Scalar(Scalar::Text | Scalar::Bytes))
        }
        Value::Bool(flag) => !flag && matches!(field.kind, Type::Scalar(Scalar::Bool)),
        Value::Number(number) => {
            number.as_f64() == Some(0.0) && matches!(field.kind, Type::Scalar(Scalar::Int | Scalar::Float))
        }
        Value::Array(items) => items.is_empty() && matches!(field.kind, Type::List(_)),
        Value::Object(map) => map.is_empty() && matches!(field.kind, Type::Map(_)),
    }
}

fn zero(kind: &Type, depth: usize) -> Value {
    match kind {
        Type::Scalar(Scalar::Text | Scalar::Bytes) => "".into(),
        Type::Scalar(Scalar::Bool) => false.into(),
        Type::Scalar(Scalar::Int | Scalar::Float | Scalar::IntOrText) => 0.into(),
        Type::Scalar(Scalar::Quantity) => "0".into(),
        Type::Scalar(Scalar::Duration) => "0s".into(),
        Type::Struct(index) => {
            let mut map = Map::new();
            normalize_struct(&mut map, *index, depth);
            Value::Object(map)
        }
        _ => Value::Null,
    }
}
