//! Objects as they are stored when they are created, against recorded ones.

use crate::common::{behaviour, cases, created, differences, id, report};
use serde_json::Value;
use wasmk_api::Object;

/// What the server sets or strips around the kind's own behaviour.
fn comparable(obj: Object) -> Value {
    let mut value = obj.into_value();
    if let Some(meta) = value["metadata"].as_object_mut() {
        let generated = meta.contains_key("generateName");
        meta.retain(|key, _| {
            !(matches!(key.as_str(), "uid" | "namespace" | "generation") || (generated && key == "name"))
        });
    }
    value
}

#[test]
fn recorded_objects() {
    let mut failed = Vec::new();
    for case in cases(include_str!("../data/defaulting.jsonl")) {
        let obj = created(&case["input"]);
        let kind = behaviour(&obj);
        let mut out = Vec::new();
        if kind.has_generation() == case["generation"].is_null() {
            out.push(format!("  has_generation: {}", kind.has_generation()));
        }
        let warnings: Value = kind.warnings(&obj, None).into();
        differences("warnings", &case["warnings"], &warnings, &mut out);
        let valid = kind.validate(&obj);
        if !valid.is_empty() {
            out.push(format!("  invalid: {valid:?}"));
        }
        differences("", &case["expect"], &comparable(obj), &mut out);
        if !out.is_empty() {
            failed.push((id(&case).to_owned(), out.join("\n")));
        }
    }
    report(failed, "");
}

#[test]
fn defaulting_twice_changes_nothing() {
    for case in cases(include_str!("../data/defaulting.jsonl")) {
        let once = created(&case["input"]);
        let mut twice = once.clone();
        behaviour(&twice).default(&mut twice);
        assert_eq!(twice, once, "{}", id(&case));
    }
}
