//! Structural defaults: absent fields with a declared default get it.
//!
//! Custom resources take theirs from the definition; built-in types have the few that Kubernetes declares
//! in its types. Defaults that depend on other fields are the business of the kind.

use serde_json::Value;

use crate::schema::Schema;

/// Fills in defaults below `value`. A null that may not be null counts as absent.
pub fn apply(value: &mut Value, schema: Schema<'_>) {
    match value {
        Value::Object(map) => {
            for (name, field) in schema.fields() {
                let Some(default) = field.default() else { continue };
                let absent = map.get(name).is_none_or(|value| value.is_null() && !field.nullable());
                if absent {
                    map.insert(name.into(), default.clone());
                }
            }
            for (key, value) in map.iter_mut() {
                if let Some(field) = schema.field(key) {
                    apply(value, field);
                } else if let Some(values) = schema.values() {
                    fill(value, values);
                }
            }
        }
        Value::Array(items) => {
            if let Some(of) = schema.items() {
                items.iter_mut().for_each(|item| fill(item, of));
            }
        }
        _ => (),
    }
}

fn fill(value: &mut Value, schema: Schema<'_>) {
    if value.is_null()
        && !schema.nullable()
        && let Some(default) = schema.default()
    {
        *value = default.clone();
    }
    apply(value, schema);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::KindSchema;
    use serde_json::json;

    fn check(schema: Value, mut given: Value, wanted: Value) {
        let kind = KindSchema::custom(&schema).unwrap();
        apply(&mut given, kind.schema());
        assert_eq!(given, wanted);
    }

    #[test]
    fn absent_and_null_fields() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "string", "default": "x"},
            "n": {"type": "string", "nullable": true, "default": "x"},
            "o": {"type": "object", "default": {}, "properties": {"p": {"type": "integer", "default": 5}}},
            "m": {"type": "object", "additionalProperties": {"type": "integer", "default": 3}},
            "l": {"type": "array", "items": {"type": "object", "properties": {"q": {"type": "boolean", "default": true}}}},
        }});
        check(schema.clone(), json!({}), json!({"a": "x", "n": "x", "o": {"p": 5}}));
        check(
            schema,
            json!({"a": null, "n": null, "o": {"p": null}, "m": {"k": null}, "l": [{}, {"q": false}]}),
            json!({"a": "x", "n": null, "o": {"p": 5}, "m": {"k": 3}, "l": [{"q": true}, {"q": false}]}),
        );
    }

    #[test]
    fn built_in_defaults() {
        let service = KindSchema::of_type("io.k8s.api.core.v1.Service").unwrap();
        let mut value = json!({"spec": {"ports": [{"port": 80}]}});
        apply(&mut value, service.schema());
        assert_eq!(value, json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}]}}));
    }
}
