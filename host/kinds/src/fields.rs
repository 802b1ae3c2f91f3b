//! Values of selectable fields.

use serde_json::Value;
use wasmk_api::Object;

use crate::value::{at, or_null};

/// The text of the value at a dotted path; absent values read as empty.
pub(crate) fn value(obj: &Object, path: &str) -> String {
    let mut keys = path.split('.');
    let first = keys.next().and_then(|key| obj.0.get(key));
    let found = keys.try_fold(first.unwrap_or(&crate::value::NULL), |value, key| value.get(key));
    text(found.unwrap_or(&crate::value::NULL))
}

/// A number or flag that reads as `0` or `false` when absent.
pub(crate) fn value_or(obj: &Object, path: &str, absent: &str) -> String {
    match value(obj, path) {
        text if text.is_empty() => absent.into(),
        text => text,
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        _ => String::new(),
    }
}

/// `spec`, or null.
pub(crate) fn spec(obj: &Object) -> &Value {
    top(obj, "spec")
}

/// `status`, or null.
pub(crate) fn status(obj: &Object) -> &Value {
    top(obj, "status")
}

/// A field of the object itself, or null.
pub(crate) fn top<'a>(obj: &'a Object, key: &str) -> &'a Value {
    obj.0.get(key).unwrap_or(&crate::value::NULL)
}

/// A value below `spec`, or null.
pub(crate) fn in_spec<'a>(obj: &'a Object, path: &[&str]) -> &'a Value {
    at(spec(obj), path).unwrap_or(&crate::value::NULL)
}

/// A value below `metadata`, or null.
pub(crate) fn in_meta<'a>(obj: &'a Object, key: &str) -> &'a Value {
    or_null(top(obj, "metadata"), key)
}
