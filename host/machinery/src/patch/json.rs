//! JSON patch (RFC 6902), with the liberties Kubernetes takes: replacing or copying a missing field of a
//! map is allowed, negative positions count from the end, and a missing value is null.

use serde_json::{Map, Value};

use super::{PatchError, gofmt};
use crate::decode::MAX_DEPTH;

/// Most operations of one patch.
pub const MAX_OPERATIONS: usize = 10_000;
/// Most bytes of JSON that the `copy` operations of one patch may make.
pub const MAX_COPIED_BYTES: usize = 3 << 20;

/// Checks what a strict decoder of operations would.
pub(super) fn check_operations(operations: &[Value]) -> Result<(), String> {
    for operation in operations {
        let map = match operation {
            Value::Object(map) => map,
            Value::Null => continue,
            other => {
                let found = gofmt::json_kind(other);
                return Err(format!(
                    "json: cannot unmarshal {found} into Go value of type handlers.jsonPatchOp"
                ));
            }
        };
        for field in ["op", "path", "from"] {
            match map.get(field) {
                None | Some(Value::Null | Value::String(_)) => (),
                Some(other) => {
                    let found = gofmt::json_kind(other);
                    return Err(format!(
                        "json: cannot unmarshal {found} into Go struct field jsonPatchOp.{field} of type string"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Fields that operations do not have, as a strict decoder names them.
pub(super) fn unknown_fields(operations: &[Value]) -> impl Iterator<Item = String> {
    let known = ["op", "path", "from", "value"];
    operations.iter().enumerate().flat_map(move |(i, operation)| {
        let keys = operation.as_object().into_iter().flat_map(Map::keys);
        let unknown = keys.filter(move |key| !known.contains(&key.as_str()));
        unknown.map(move |key| format!("unknown field \"[{i}].{key}\""))
    })
}

/// Applies a JSON patch, all of it or nothing.
///
/// # Errors
/// When there are too many operations, one does not apply, or the result grows beyond the bounds.
pub fn json(mut target: Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Array(operations) = patch else {
        return Err(PatchError::BadRequest("Invalid JSON Patch".into()));
    };
    if operations.len() > MAX_OPERATIONS {
        let count = operations.len();
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}"
        )));
    }
    let mut copied = 0;
    for operation in operations {
        apply(&mut target, operation, &mut copied).map_err(PatchError::Unprocessable)?;
    }
    Ok(target)
}

fn apply(target: &mut Value, operation: &Value, copied: &mut usize) -> Result<(), String> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str);
    let kind = text("op").unwrap_or("unknown");
    let path =
        || text("path").ok_or_else(|| format!("{kind} operation failed to decode path: missing value"));
    let from =
        || text("from").ok_or_else(|| format!("{kind} operation failed to decode from: missing value"));
    let value = || operation.get("value").cloned().unwrap_or(Value::Null);
    match kind {
        "add" => add(target, path()?, value()),
        "remove" => remove(target, path()?).map(drop),
        "replace" => replace(target, path()?, value()),
        "move" => {
            let value = remove(target, from()?)?;
            add(target, path()?, value)
        }
        "copy" => {
            let value = get(target, from()?)?.cloned().unwrap_or(Value::Null);
            *copied += size(&value);
            if *copied > MAX_COPIED_BYTES {
                return Err(format!(
                    "Unable to complete the copy, more than {MAX_COPIED_BYTES} bytes were copied"
                ));
            }
            add(target, path()?, value)
        }
        "test" => {
            let path = path()?;
            let wanted = operation.get("value").unwrap_or(&Value::Null);
            let found = if path.is_empty() { Some(&*target) } else { get(target, path)? };
            match found.unwrap_or(&Value::Null) == wanted {
                true => Ok(()),
                false => Err(format!("testing value {path} failed: test failed")),
            }
        }
        other => Err(format!("Unexpected kind: {other}")),
    }
}

/// The steps of a JSON pointer; the last is apart.
fn steps(path: &str) -> Option<(Vec<String>, String)> {
    let mut steps: Vec<String> =
        path.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
    let last = steps.pop()?;
    Some((steps, last))
}

fn missing(path: &str) -> String {
    format!("doc is missing path: \"{path}\": missing value")
}

/// What a pointer's last step is taken from.
fn container<'v>(target: &'v mut Value, path: &str) -> Result<(&'v mut Value, String, usize), String> {
    let (steps, last) = steps(path).ok_or_else(|| missing(path))?;
    let mut here = target;
    for step in &steps {
        here = match here {
            Value::Object(map) => map.get_mut(step),
            Value::Array(items) => position(step, items.len()).ok().and_then(|at| items.get_mut(at)),
            _ => None,
        }
        .ok_or_else(|| missing(path))?;
    }
    match here {
        Value::Object(_) | Value::Array(_) => Ok((here, last, steps.len())),
        _ => Err(missing(path)),
    }
}

/// A position in a list of that length; negative ones count from the end.
fn position(step: &str, length: usize) -> Result<usize, String> {
    let number: i64 = step.parse().map_err(|_| format!("value was not a proper array index: '{step}'"))?;
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let at = if number < 0 { number + length } else { number };
    usize::try_from(at)
        .map_err(|_| format!("Unable to access invalid index: {number}: invalid index referenced"))
}

fn get<'v>(target: &'v mut Value, path: &str) -> Result<Option<&'v Value>, String> {
    let (here, last, _) = container(target, path)?;
    match here {
        Value::Object(map) => Ok(map.get(&last)),
        Value::Array(items) => {
            let at = position(&last, items.len())?;
            match items.get(at) {
                Some(item) => Ok(Some(item)),
                None => Err(format!("Unable to access invalid index: {last}: invalid index referenced")),
            }
        }
        _ => Ok(None),
    }
}

fn add(target: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let (here, last, depth) = container(target, path)?;
    check_depth(depth, &value)?;
    match here {
        Value::Object(map) => {
            map.insert(last, value);
        }
        Value::Array(items) => {
            let at = if last == "-" { items.len() } else { position(&last, items.len() + 1)? };
            if at > items.len() {
                return Err(format!("Unable to access invalid index: {last}: invalid index referenced"));
            }
            items.insert(at, value);
        }
        _ => (),
    }
    Ok(())
}

fn replace(target: &mut Value, path: &str, value: Value) -> Result<(), String> {
    if path.is_empty() {
        if !value.is_object() {
            return Err("replace operation value must be object or array".into());
        }
        check_depth(0, &value)?;
        *target = value;
        return Ok(());
    }
    let (here, last, depth) = container(target, path)?;
    check_depth(depth, &value)?;
    match here {
        Value::Object(map) => {
            map.insert(last, value);
            Ok(())
        }
        Value::Array(items) => {
            let at = position(&last, items.len())?;
            match items.get_mut(at) {
                Some(slot) => {
                    *slot = value;
                    Ok(())
                }
                None => Err(format!(
                    "replace operation does not apply: doc is missing key: {path}: missing value"
                )),
            }
        }
        _ => Ok(()),
    }
}

fn remove(target: &mut Value, path: &str) -> Result<Value, String> {
    let (here, last, _) = container(target, path)?;
    match here {
        Value::Object(map) => map
            .shift_remove(&last)
            .ok_or_else(|| format!("Unable to remove nonexistent key: {last}: missing value")),
        Value::Array(items) => {
            let at = position(&last, items.len())?;
            if at >= items.len() {
                return Err(format!("Unable to access invalid index: {last}: invalid index referenced"));
            }
            Ok(items.remove(at))
        }
        _ => Err(missing(path)),
    }
}

fn check_depth(depth: usize, value: &Value) -> Result<(), String> {
    match depth + 1 + nesting(value) <= MAX_DEPTH {
        true => Ok(()),
        false => Err(format!("exceeded max depth of {MAX_DEPTH}")),
    }
}

fn nesting(value: &Value) -> usize {
    let deepest = |values: &mut dyn Iterator<Item = &Value>| 1 + values.map(nesting).max().unwrap_or(0);
    match value {
        Value::Array(items) => deepest(&mut items.iter()),
        Value::Object(map) => deepest(&mut map.values()),
        _ => 0,
    }
}

/// Roughly the bytes of its JSON.
fn size(value: &Value) -> usize {
    let of_map = |map: &Map<String, Value>| map.iter().map(|(k, v)| k.len() + 4 + size(v)).sum::<usize>();
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| 1 + size(item)).sum::<usize>(),
        Value::Object(map) => 2 + of_map(map),
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(patch: Value, expect: Option<Value>) {
        let target = json!({"a": {"b": [1, 2]}, "x/y": 1, "m~n": 2});
        let result = json(target, &json!([patch.clone()]));
        match (result, expect) {
            (Ok(found), Some(expect)) => assert_eq!(found, expect, "{patch}"),
            (Err(PatchError::Unprocessable(_)), None) => (),
            (found, expect) => panic!("{patch}: {found:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn operations() {
        let with = |path: &str, value: Value| {
            let mut object = json!({"a": {"b": [1, 2]}, "x/y": 1, "m~n": 2});
            *object.pointer_mut(path).unwrap() = value;
            Some(object)
        };
        check(json!({"op": "add", "path": "/a/b/-", "value": 3}), with("/a/b", json!([1, 2, 3])));
        check(json!({"op": "add", "path": "/a/b/0", "value": 0}), with("/a/b", json!([0, 1, 2])));
        check(json!({"op": "add", "path": "/a/b/-1", "value": 3}), with("/a/b", json!([1, 2, 3])));
        check(json!({"op": "add", "path": "/a/b/4", "value": 0}), None);
        check(json!({"op": "add", "path": "/a/c"}), with("/a", json!({"b": [1, 2], "c": null})));
        check(json!({"op": "add", "value": 1}), None);
        check(json!({"op": "replace", "path": "/x~1y", "value": 9}), with("/x~1y", json!(9)));
        check(json!({"op": "replace", "path": "/m~0n", "value": 9}), with("/m~0n", json!(9)));
        check(json!({"op": "replace", "path": "/a/c", "value": 9}), with("/a", json!({"b": [1, 2], "c": 9})));
        check(json!({"op": "replace", "path": "/a/b/x", "value": 9}), None);
        check(json!({"op": "remove", "path": "/a/b/-2"}), with("/a/b", json!([2])));
        check(json!({"op": "remove", "path": "/z"}), None);
        check(json!({"op": "copy", "from": "/z", "path": "/a"}), with("/a", Value::Null));
        check(json!({"op": "move", "from": "/a/b", "path": "/a"}), with("/a", json!([1, 2])));
        check(json!({"op": "move", "from": "/z", "path": "/a"}), None);
        check(json!({"op": "test", "path": "/a", "value": {"b": [1, 2]}}), with("/x~1y", json!(1)));
        check(json!({"op": "test", "path": "/a/b/0", "value": "1"}), None);
        check(json!({"op": "test", "path": "/z"}), with("/x~1y", json!(1)));
        check(json!({"op": "jump", "path": "/a"}), None);
    }

    #[test]
    fn bounds() {
        let many: Vec<Value> = vec![json!({"op": "test", "path": "/a", "value": 1}); MAX_OPERATIONS + 1];
        assert_eq!(
            json(json!({"a": 1}), &Value::Array(many)).unwrap_err().to_string(),
            "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001"
        );
        let bomb: Vec<Value> = vec![json!({"op": "copy", "from": "/a", "path": "/a/-"}); 64];
        assert!(json(json!({"a": [1, 2, 3]}), &Value::Array(bomb)).is_err());
        let mut path = String::new();
        let mut deep = Vec::new();
        for _ in 0..MAX_DEPTH + 1 {
            path.push_str("/a");
            deep.push(json!({"op": "add", "path": path, "value": {}}));
        }
        assert!(json(json!({}), &Value::Array(deep)).is_err());
    }
}
