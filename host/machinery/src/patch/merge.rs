//! JSON merge patch (RFC 7386).

use serde_json::{Map, Value};

/// The target with the patch merged in: null removes a field, maps merge, everything else replaces.
/// Nulls inside what is added are dropped, but not those that are items of lists.
pub fn merge(mut target: Value, patch: Value) -> Value {
    match (&mut target, patch) {
        (Value::Object(target), Value::Object(patch)) => merge_maps(target, patch),
        (_, patch) => return without_nulls(patch),
    }
    target
}

fn merge_maps(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, value) in patch {
        if value.is_null() {
            target.shift_remove(&key);
            continue;
        }
        match (target.get_mut(&key), value) {
            (Some(Value::Object(here)), Value::Object(patch)) => merge_maps(here, patch),
            // A list that replaces a map is taken as it is.
            (Some(Value::Object(_)), value) => {
                target.insert(key, value);
            }
            (_, value) => {
                target.insert(key, without_nulls(value));
            }
        }
    }
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        scalar => scalar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_examples_of_the_rfc() {
        for (target, patch, expect) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (
                json!({"a": [null, 1]}),
                json!({"b": [null, {"x": null}]}),
                json!({"a": [null, 1], "b": [null, {}]}),
            ),
        ] {
            assert_eq!(merge(target.clone(), patch.clone()), expect, "{target} + {patch}");
        }
    }
}
