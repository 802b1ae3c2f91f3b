//! Lists that are sets or maps must not repeat an item or key.

use std::collections::HashSet;

use serde_json::{Map, Value};
use wasmk_api::Cause;

use crate::{
    field::{Path, duplicate},
    schema::{ListType, Schema},
};

/// A cause for each repetition.
pub(super) fn validate(value: &Value, schema: Schema<'_>) -> Vec<Cause> {
    let mut causes = Vec::new();
    walk(value, schema, &Path::root(), &mut causes);
    causes
}

fn walk(value: &Value, schema: Schema<'_>, path: &Path, causes: &mut Vec<Cause>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if let Some(field) = schema.field(key) {
                    walk(value, field, &path.child(key), causes);
                } else if let Some(values) = schema.values() {
                    walk(value, values, &path.key(key), causes);
                }
            }
        }
        Value::Array(items) => {
            // Built-in types inside (metadata) are validated by their own code.
            if schema.rules().is_some() {
                repetitions(items, schema, path, causes);
            }
            let Some(of) = schema.items() else { return };
            items.iter().enumerate().for_each(|(index, item)| walk(item, of, &path.index(index), causes));
        }
        _ => (),
    }
}

fn repetitions(items: &[Value], schema: Schema<'_>, path: &Path, causes: &mut Vec<Cause>) {
    let identity = |item: &Value| match schema.list_type() {
        ListType::Atomic => None,
        ListType::Set => Some(item.clone()),
        ListType::Map => {
            let map = item.as_object()?;
            let keys = schema.list_keys().iter();
            let pairs = keys.filter_map(|key| Some((key.to_string(), map.get(&**key)?.clone())));
            Some(Value::Object(pairs.collect::<Map<_, _>>()))
        }
    };
    let mut seen = HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let Some(identity) = identity(item) else { continue };
        if !seen.insert(identity.to_string()) {
            causes.push(duplicate(&path.index(index), &identity));
        }
    }
}
