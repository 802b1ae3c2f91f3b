//! What Go does to an object of a built-in type when it is read and written once: zero values that are not
//! stored go, those that always are come, fields are in Kubernetes' order.

use serde_json::{Map, Value};

use crate::schema::{Kind, Presence, Schema};

/// Normalizes the fields of an object; run it after defaulting and before the object is stored or its
/// fields are managed. Running it twice changes nothing more. Undeclared fields are dropped.
pub fn normalize(object: &mut Map<String, Value>, schema: Schema<'_>) {
    let mut old = std::mem::take(object);
    for (name, field) in schema.fields() {
        let value = old.shift_remove(name).unwrap_or(Value::Null);
        if let Some(value) = stored(value, field) {
            object.insert(name.into(), value);
        }
    }
}

/// The value to store for a field, `Null` meaning it was absent.
fn stored(mut value: Value, schema: Schema<'_>) -> Option<Value> {
    descend(&mut value, schema);
    match schema.presence() {
        Presence::Pointer if value.is_null() => None,
        Presence::Pointer | Presence::Null => Some(value),
        Presence::Omit if is_zero(&value) => None,
        Presence::Omit => Some(value),
        Presence::Always => Some(always(value, schema)),
    }
}

/// Whether `omitempty` leaves it out; lists and maps when empty.
pub(crate) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn always(value: Value, schema: Schema<'_>) -> Value {
    match (&value, schema.kind()) {
        (Value::Null, Kind::Object) if schema.values().is_some() => Value::Null,
        (Value::Null, Kind::Object) => {
            let mut map = Map::new();
            normalize(&mut map, schema);
            Value::Object(map)
        }
        (Value::Null, Kind::String) => "".into(),
        (Value::Null, Kind::Integer32 | Kind::Integer64 | Kind::Number | Kind::IntOrString) => 0.into(),
        (Value::Null, Kind::Boolean) => false.into(),
        (Value::Null, Kind::Quantity) => "0".into(),
        // A nil slice or map is null, and storage does not tell an empty one from it.
        (Value::Array(items), _) if items.is_empty() => Value::Null,
        (Value::Object(map), Kind::Object) if map.is_empty() && schema.values().is_some() => Value::Null,
        _ => value,
    }
}

fn descend(value: &mut Value, schema: Schema<'_>) {
    match value {
        Value::Object(map) if schema.has_fields() => normalize(map, schema),
        Value::Object(map) => {
            let Some(values) = schema.values() else { return };
            map.values_mut().for_each(|value| descend(value, values));
        }
        Value::Array(items) => {
            let schema = match (schema.kind(), schema.items()) {
                (_, Some(items)) => items,
                // A list where one schema or several may stand.
                (_, None) => return,
            };
            items.iter_mut().for_each(|item| descend(item, schema));
        }
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::KindSchema;
    use serde_json::json;
    use wasmk_api::Gvk;

    fn check(gvk: Gvk, given: Value, wanted: Value) {
        let kind = KindSchema::built_in(&gvk).unwrap();
        let Value::Object(mut map) = given else { panic!("not an object") };
        for _ in 0..2 {
            normalize(&mut map, kind.schema());
            assert_eq!(Value::Object(map.clone()), wanted);
        }
    }

    #[test]
    fn zero_values() {
        check(
            Gvk::new("", "v1", "Pod"),
            json!({"spec": {"hostNetwork": false, "terminationGracePeriodSeconds": 0, "nodeSelector": {},
                            "containers": [{"image": "i", "name": "c", "odd": 1}]},
                   "metadata": {"labels": {}, "name": "p"}, "kind": "Pod", "apiVersion": "v1"}),
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"},
                   "spec": {"containers": [{"name": "c", "image": "i", "resources": {}}],
                            "terminationGracePeriodSeconds": 0},
                   "status": {}}),
        );
        check(
            Gvk::new("rbac.authorization.k8s.io", "v1", "Role"),
            json!({"metadata": {"name": "r"}, "rules": []}),
            json!({"metadata": {"name": "r"}, "rules": null}),
        );
        check(
            Gvk::new("apps", "v1", "Deployment"),
            json!({}),
            json!({"metadata": {}, "spec": {"selector": null, "template": {"metadata": {}, "spec": {"containers": null}},
                                            "strategy": {}}, "status": {}}),
        );
    }

    #[test]
    fn order_is_kubernetes() {
        let kind = KindSchema::built_in(&Gvk::new("", "v1", "ConfigMap")).unwrap();
        let Value::Object(mut map) =
            json!({"data": {"a": "b"}, "metadata": {"uid": "u", "name": "n"}, "kind": "ConfigMap"})
        else {
            unreachable!()
        };
        normalize(&mut map, kind.schema());
        assert_eq!(
            Value::Object(map).to_string(),
            r#"{"kind":"ConfigMap","metadata":{"name":"n","uid":"u"},"data":{"a":"b"}}"#
        );
    }
}
