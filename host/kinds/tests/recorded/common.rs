//! What the tests over recorded cases share.

use std::collections::BTreeSet;

use serde_json::Value;
use wasmk_api::Object;
use wasmk_kinds::{Kind, kind};

/// The uid every object of the cases has.
pub(crate) const UID: &str = "11111111-1111-1111-1111-111111111111";

/// The namespace every object of the cases is in.
pub(crate) const NAMESPACE: &str = "t-qbcdfghj";

/// The cases of a file, one JSON value a line.
pub(crate) fn cases(text: &str) -> impl Iterator<Item = Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a case is JSON"))
}

/// A case's `id`.
pub(crate) fn id(case: &Value) -> &str {
    case["id"].as_str().expect("a case has an id")
}

/// The behaviour of an object's kind.
pub(crate) fn behaviour(obj: &Object) -> &'static dyn Kind {
    kind(&obj.gvk().expect("a case names its version").group, obj.kind())
}

/// A defaulted object of a case, as it would arrive from a client, with the fields the server sets first.
pub(crate) fn arrived(body: &Value) -> Object {
    let mut obj = Object::from_value(body.clone()).expect("a body is a map");
    let generated = obj.meta("generateName").to_owned();
    if obj.name().is_empty() && !generated.is_empty() {
        obj.set_meta("name", format!("{generated}bcdfg"));
    }
    obj.set_meta("uid", UID);
    obj.set_meta("namespace", NAMESPACE);
    behaviour(&obj).default(&mut obj);
    wasmk_kinds::forget_empty(&mut obj);
    obj
}

/// An object as it is stored when it is created from a body.
pub(crate) fn created(body: &Value) -> Object {
    let mut obj = arrived(body);
    behaviour(&obj).prepare_create(&mut obj);
    obj
}

/// Compares what went wrong with the cases that are known to.
pub(crate) fn report(failed: Vec<(String, String)>, known: &str) {
    let known: BTreeSet<&str> = known
        .lines()
        .map(|line| line.split('#').next().unwrap_or("").trim())
        .filter(|line| !line.is_empty())
        .collect();
    let new: Vec<_> = failed.iter().filter(|(id, _)| !known.contains(&**id)).collect();
    let fixed: Vec<_> = known.iter().filter(|id| !failed.iter().any(|(f, _)| f == *id)).collect();
    let listed: Vec<String> = new.iter().map(|(id, why)| format!("{id}\n{why}")).collect();
    assert!(listed.is_empty(), "{} cases differ:\n{}", listed.len(), listed.join("\n"));
    assert!(fixed.is_empty(), "no longer different, take off the list: {fixed:?}");
}

/// Where two values differ, a line each.
pub(crate) fn differences(path: &str, want: &Value, got: &Value, out: &mut Vec<String>) {
    match (want, got) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                match (a.get(key), b.get(key)) {
                    (Some(x), Some(y)) => differences(&format!("{path}.{key}"), x, y, out),
                    (Some(x), None) => out.push(format!("  {path}.{key}: missing, want {x}")),
                    (None, y) => {
                        out.push(format!("  {path}.{key}: got {}, want none", y.unwrap_or(&Value::Null)))
                    }
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (x, y)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{i}]"), x, y, out);
            }
        }
        (Value::String(want), Value::String(_)) if want == "<time>" => {}
        (want, got) if want != got => out.push(format!("  {path}: want {want}\n  {path}: got  {got}")),
        _ => {}
    }
}
