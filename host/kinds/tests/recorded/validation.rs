//! What is wrong with objects, against recorded answers.

use crate::common::{arrived, behaviour, cases, created, id, report};
use serde_json::Value;
use wasmk_api::{Cause, GroupKind, Object, Status};

/// Applies the recorded patch: a list of additions, or a merge.
fn patched(old: &Object, patch: &Value) -> Value {
    let mut value = old.clone().into_value();
    match patch {
        Value::Array(steps) => steps.iter().for_each(|step| add(&mut value, step)),
        patch => merge(&mut value, patch),
    }
    value
}

fn add(value: &mut Value, step: &Value) {
    let path = step["path"].as_str().expect("a step has a path");
    let (parent, key) = path.rsplit_once('/').expect("a path has a parent");
    let slot = value.pointer_mut(parent).expect("the parent is there");
    match slot {
        Value::Object(map) => {
            map.insert(key.into(), step["value"].clone());
        }
        other => panic!("{path} leads into {other}"),
    }
}

fn merge(value: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = serde_json::json!({});
    }
    let map = value.as_object_mut().expect("made a map above");
    for (key, part) in patch {
        if part.is_null() {
            map.shift_remove(key);
        } else {
            merge(map.entry(key).or_insert(Value::Null), part);
        }
    }
}

/// The new object and what is wrong with it.
fn judge(case: &Value) -> (Object, Option<Object>, Vec<Cause>) {
    if case["method"] == "POST" {
        let obj = created(&case["input"]);
        let causes = behaviour(&obj).validate(&obj);
        return (obj, None, causes);
    }
    let old = created(&case["old"]);
    let body = match case["patch"].is_string() {
        true => patched(&old, &case["input"]),
        false => case["input"].clone(),
    };
    let mut new = arrived(&body);
    // The server takes what no client may set from the old object.
    new.set_meta("creationTimestamp", Value::Null);
    if let Some(uid) = body["metadata"]["uid"].as_str() {
        new.set_meta("uid", uid);
    }
    let kind = behaviour(&new);
    if case["sub"] == "status" {
        kind.prepare_status(&mut new, &old);
        let causes = kind.validate_status(&new, &old);
        return (new, Some(old), causes);
    }
    kind.prepare_update(&mut new, &old);
    let causes = kind.validate_update(&new, &old);
    (new, Some(old), causes)
}

fn rows(causes: &[Cause]) -> Vec<[String; 3]> {
    let mut rows: Vec<_> =
        causes.iter().map(|c| [c.field.clone(), c.message.clone(), c.reason.clone()]).collect();
    rows.sort();
    rows
}

#[test]
fn recorded_answers() {
    let mut failed = Vec::new();
    for case in cases(include_str!("../data/validation.jsonl")) {
        let (obj, old, causes) = judge(&case);
        let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
        let want: Vec<Cause> = case["causes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|c| Cause { reason: text(&c[0]), field: text(&c[1]), message: text(&c[2]) })
            .collect();
        let mut out = Vec::new();
        if rows(&want) != rows(&causes) {
            out.push(format!("  want {:#?}\n  got  {:#?}", rows(&want), rows(&causes)));
        } else if let Some(message) = case["message"].as_str() {
            // The server puts the name of the kind in front, which is its own matter.
            let kind = GroupKind { group: String::new(), kind: String::new() };
            let got = Status::invalid(&kind, obj.name(), &causes).message;
            if !message.ends_with(&got) {
                out.push(format!("  want {message}\n  got  {got}"));
            }
        }
        // What is refused is not warned of.
        let warnings: Value = behaviour(&obj).warnings(&obj, old.as_ref()).into();
        if want.is_empty() && case["warnings"] != warnings {
            out.push(format!("  want warnings {}\n  got  {warnings}", case["warnings"]));
        }
        if !out.is_empty() {
            failed.push((id(&case).to_owned(), out.join("\n")));
        }
    }
    report(failed, include_str!("../data/validation.known"));
}
