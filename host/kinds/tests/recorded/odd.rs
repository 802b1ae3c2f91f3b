//! Objects with values of the wrong type somewhere: judged like others, without a panic.

use serde_json::{Value, json};
use wasmk_api::{Object, Timestamp};

use crate::common::{behaviour, cases};

/// All places in a value, as JSON pointers.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
                out.push(at.clone());
                places(value, &at, out);
            }
        }
        Value::Array(items) => {
            for (i, value) in items.iter().enumerate() {
                let at = format!("{at}/{i}");
                out.push(at.clone());
                places(value, &at, out);
            }
        }
        _ => {}
    }
}

fn exercise(old: &Object, odd: Value) {
    let Some(mut obj) = Object::from_value(odd) else { return };
    let kind = behaviour(&obj);
    kind.default(&mut obj);
    let mut new = obj.clone();
    kind.prepare_create(&mut obj);
    let found = kind.validate(&obj).len() + kind.warnings(&obj, None).len();
    kind.prepare_update(&mut new, old);
    let mut status = new.clone();
    kind.prepare_status(&mut status, old);
    let found = found + kind.validate_update(&new, old).len() + kind.validate_status(&status, old).len();
    assert!(found < 10_000);
    assert_eq!(kind.row(&obj, Timestamp::now()).len(), kind.columns().len());
    assert_eq!(kind.fields(&obj).len(), kind.field_names().len());
}

#[test]
fn odd_values_are_survived() {
    for case in cases(include_str!("../data/defaulting.jsonl")) {
        let whole = &case["expect"];
        let old = Object::from_value(whole.clone()).expect("an object is a map");
        let mut all = Vec::new();
        places(whole, "", &mut all);
        for place in all.iter().filter(|place| !matches!(place.as_str(), "/apiVersion" | "/kind")) {
            for odd in [json!(null), json!(-5), json!("\u{e9}:%/"), json!([[{}]])] {
                let mut copy = whole.clone();
                *copy.pointer_mut(place).expect("the place is there") = odd;
                exercise(&old, copy);
            }
        }
    }
}
