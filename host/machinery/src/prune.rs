//! Removes from custom resources what their schema does not declare, and puts metadata into shape.

use serde_json::{Map, Value};
use wasmk_api::Cause;

use crate::{
    decode::read_metadata,
    field::{Path, invalid},
    schema::Schema,
};

const IDENTITY: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Removes undeclared fields of a custom resource; the paths removed, sorted.
pub fn prune(object: &mut Map<String, Value>, schema: Schema<'_>) -> Vec<String> {
    let mut pruner = Pruner { path: String::new(), removed: Vec::new() };
    pruner.object(object, schema, true, schema.preserve_unknown());
    pruner.removed.sort();
    pruner.removed
}

struct Pruner {
    path: String,
    removed: Vec<String>,
}

impl Pruner {
    fn below(&mut self, part: &str, then: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if length > 0 && !part.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(part);
        then(self);
        self.path.truncate(length);
    }

    /// `schema` is `None` where nothing is declared; `keep` where undeclared fields stay.
    fn value(&mut self, value: &mut Value, schema: Option<Schema<'_>>, keep: bool) {
        let keep = keep || schema.is_some_and(Schema::preserve_unknown);
        match (value, schema) {
            (Value::Object(map), Some(schema)) => self.object(map, schema, schema.embedded_resource(), keep),
            (Value::Object(map), None) if !keep => {
                for (key, _) in std::mem::take(map) {
                    self.below(&key, |this| this.removed.push(this.path.clone()));
                }
            }
            (Value::Array(items), schema) => {
                let of = schema.and_then(Schema::items);
                if keep && of.is_none() {
                    return;
                }
                for (index, item) in items.iter_mut().enumerate() {
                    self.below(&format!("[{index}]"), |this| this.value(item, of, keep));
                }
            }
            _ => (),
        }
    }

    fn object(&mut self, map: &mut Map<String, Value>, schema: Schema<'_>, identity: bool, keep: bool) {
        let mut unknown = Vec::new();
        for (key, value) in map.iter_mut() {
            if identity && IDENTITY.contains(&&**key) {
                continue;
            }
            // Fields that are declared are pruned even below one that keeps what it does not know.
            if let Some(field) = schema.field(key) {
                self.below(key, |this| this.value(value, Some(field), false));
            } else if let Some(values) = schema.values() {
                let declared = values.rules().is_some().then_some(values);
                self.below(key, |this| this.value(value, declared, false));
            } else if !keep {
                unknown.push(key.clone());
            }
        }
        for key in unknown {
            map.shift_remove(&key);
            self.below(&key, |this| this.removed.push(this.path.clone()));
        }
    }
}

/// Removes nulls from fields that are not nullable and have no default to take their place.
pub fn prune_nulls(value: &mut Value, schema: Schema<'_>) {
    let null_without_default = |value: &Value, schema: Schema<'_>| {
        value.is_null() && !schema.nullable() && schema.default().is_none()
    };
    match value {
        Value::Object(map) => {
            map.retain(|key, value| {
                let declared = schema.field(key).or_else(|| schema.values());
                let Some(schema) = declared else { return true };
                if null_without_default(value, schema) && schema.rules().is_some() {
                    return false;
                }
                prune_nulls(value, schema);
                true
            });
        }
        Value::Array(items) => {
            if let Some(of) = schema.items() {
                items.iter_mut().for_each(|item| prune_nulls(item, of));
            }
        }
        _ => (),
    }
}

/// Brings the `metadata` of resources inside a custom resource into shape; unknown metadata fields go and
/// are named in `removed`.
///
/// # Errors
/// A cause when `apiVersion`, `kind` or `metadata` of one has the wrong type.
pub fn coerce_embedded(
    value: &mut Value,
    schema: Schema<'_>,
    path: &Path,
    removed: &mut Vec<String>,
) -> Result<(), Cause> {
    match value {
        Value::Object(map) => {
            if schema.embedded_resource() {
                coerce_one(map, path, removed)?;
            }
            for (key, value) in map.iter_mut() {
                if schema.embedded_resource() && IDENTITY.contains(&&**key)
                    || path.is_root() && key == "metadata"
                {
                    continue;
                }
                if let Some(below) = schema.field(key).or_else(|| schema.values()) {
                    coerce_embedded(value, below, &path.child(key), removed)?;
                }
            }
            Ok(())
        }
        Value::Array(items) => {
            let Some(of) = schema.items() else { return Ok(()) };
            items
                .iter_mut()
                .enumerate()
                .try_for_each(|(i, item)| coerce_embedded(item, of, &path.index(i), removed))
        }
        _ => Ok(()),
    }
}

fn coerce_one(map: &mut Map<String, Value>, path: &Path, removed: &mut Vec<String>) -> Result<(), Cause> {
    for name in ["apiVersion", "kind"] {
        if let Some(value) = map.get(name)
            && !value.is_string()
        {
            return Err(invalid(&path.child(name), value, "must be string"));
        }
    }
    let Some(given) = map.get("metadata") else { return Ok(()) };
    let path = path.child("metadata");
    let (metadata, unknown) = read_metadata(given.clone()).map_err(|error| invalid(&path, given, &error))?;
    removed.extend(unknown.into_iter().map(|field| format!("{path}.{field}")));
    map.insert("metadata".into(), Value::Object(metadata));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::KindSchema;
    use serde_json::json;

    fn check(spec: Value, given: Value, left: Value, removed: &[&str]) {
        let kind = KindSchema::custom(&json!({"type": "object", "properties": {"spec": spec}})).unwrap();
        let Value::Object(mut map) = json!({"metadata": {"x": 1}, "spec": given}) else { unreachable!() };
        assert_eq!(prune(&mut map, kind.schema()), removed);
        assert_eq!(Value::Object(map), json!({"metadata": {"x": 1}, "spec": left}));
    }

    #[test]
    fn undeclared_fields_go() {
        check(
            json!({"type": "object", "properties": {"a": {"type": "object"}, "l": {"type": "array",
                "items": {"type": "object", "properties": {"x": {"type": "string"}}}}}}),
            json!({"a": {"b": 1}, "c": 2, "l": [{"x": "1", "y": "2"}]}),
            json!({"a": {}, "l": [{"x": "1"}]}),
            &["spec.a.b", "spec.c", "spec.l[0].y"],
        );
        check(
            json!({"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string"}}}}),
            json!({"k": {"a": "1", "b": "2"}}),
            json!({"k": {"a": "1"}}),
            &["spec.k.b"],
        );
    }

    #[test]
    fn preserved_fields_stay_but_declared_ones_below_are_pruned() {
        check(
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                   "properties": {"known": {"type": "object"}}}),
            json!({"free": {"a": [1]}, "known": {"b": 1}}),
            json!({"free": {"a": [1]}, "known": {}}),
            &["spec.known.b"],
        );
    }

    #[test]
    fn embedded_resources_keep_their_identity() {
        let embedded = json!({"type": "object", "x-kubernetes-embedded-resource": true,
                              "properties": {"spec": {"type": "object"}}});
        check(
            json!({"type": "object", "properties": {"e": embedded}}),
            json!({"e": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"x": 1}, "status": {}}}),
            json!({"e": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}}}),
            &["spec.e.spec.x", "spec.e.status"],
        );
        let kind = KindSchema::custom(&json!({"type": "object", "properties": {"e": embedded}})).unwrap();
        let mut value = json!({"e": {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": 5}}}});
        let cause = coerce_embedded(&mut value, kind.schema(), &Path::root(), &mut Vec::new()).unwrap_err();
        assert_eq!(cause.field, "e.metadata");
        assert_eq!(
            cause.message,
            r#"Invalid value: {"labels":{"a":5}}: json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string"#
        );
    }
}
