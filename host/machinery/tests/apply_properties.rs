//! What holds for every server-side apply.

use proptest::prelude::*;
use serde_json::{Value, json};
use wasmk_api::{GroupKind, Gvk, Status, Timestamp};
use wasmk_machinery::{
    apply::{ApplyError, FieldManager, Reset},
    schema::KindSchema,
};

struct Fixture {
    gvk: Gvk,
    kind: KindSchema,
    reset: Reset,
}

impl Fixture {
    fn new(group: &str, kind: &str, schema: Option<Value>) -> Self {
        let gvk = Gvk::new(group, "v1", kind);
        let group_kind = GroupKind { group: group.into(), kind: kind.into() };
        let kind = match schema {
            Some(schema) => KindSchema::custom(&schema).unwrap(),
            None => KindSchema::built_in(&gvk).unwrap(),
        };
        Self { reset: Reset::of(&group_kind, "", true), gvk, kind }
    }

    fn manager(&self) -> FieldManager<'_> {
        let (gvk, kind, reset) = (&self.gvk, &self.kind, &self.reset);
        let now = "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap();
        FieldManager { gvk, kind, subresource: "", reset, versions: None, now }
    }

    fn object(&self, spec: Value) -> Value {
        json!({"apiVersion": self.gvk.api_version(), "kind": self.gvk.kind, "metadata": {"name": "x"}, "spec": spec})
    }

    fn apply(&self, live: Option<&Value>, spec: Value, who: &str, force: bool) -> Result<Value, ApplyError> {
        let mut object = self.manager().apply(live, &self.object(spec), who, force)?;
        object["metadata"]["uid"] = json!("1");
        Ok(object)
    }
}

fn thing() -> Fixture {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "n": {"type": "integer"},
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "list": {"type": "array", "items": {"type": "string"}},
        "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "string"}}}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }}}});
    Fixture::new("example.com", "Thing", Some(schema))
}

fn owners(object: &Value) -> Vec<(String, Value)> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries.into_iter().map(|e| (e["manager"].as_str().unwrap_or("").into(), e["fieldsV1"].clone())).collect()
}

#[test]
fn conflicts_name_manager_and_field() {
    let things = thing();
    let live = things.apply(None, json!({"n": 1, "items": [{"k": "a", "v": "1"}]}), "one", false).unwrap();
    let wanted = json!({"n": 2, "items": [{"k": "a", "v": "2"}]});
    let error = things.apply(Some(&live), wanted.clone(), "two", false).unwrap_err();
    let status = Status::from(error).to_value();
    assert_eq!(
        status["message"],
        "Apply failed with 2 conflicts: conflicts with \"one\":\n- .spec.n\n- .spec.items[k=\"a\"].v"
    );
    assert_eq!((&status["code"], &status["reason"]), (&json!(409), &json!("Conflict")));
    let cause =
        json!({"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".spec.n"});
    assert_eq!(status["details"]["causes"][0], cause);
    let forced = things.apply(Some(&live), wanted.clone(), "two", true).unwrap();
    assert_eq!(forced["spec"], wanted);
    assert_eq!(
        owners(&forced)[0].1,
        json!({"f:spec": {"f:items": {"k:{\"k\":\"a\"}": {".": {}, "f:k": {}}}}})
    );
}

#[test]
fn configurations_that_do_not_fit() {
    let things = thing();
    let message = |spec: Value| things.apply(None, spec, "m", false).unwrap_err().to_string();
    let prefix = "failed to create typed patch object (/x; example.com/v1, Kind=Thing): ";
    for (spec, expect) in [
        (json!({"nothing": 1}), ".spec.nothing: field not declared in schema"),
        (json!({"set": ["a", "a"]}), ".spec.set: duplicate entries for key [=\"a\"]"),
        (json!({"items": [{"k": "a"}, {"k": "a"}]}), ".spec.items: duplicate entries for key [k=\"a\"]"),
        (
            json!({"items": [{"v": "a"}]}),
            ".spec.items: element 0: associative list with keys has an element that omits all key fields [\"k\"] \
             (and doesn't have default values for any key fields)",
        ),
        (json!({"n": "x"}), ".spec.n: expected numeric (int or float), got string"),
        (json!({"map": [1]}), ".spec.map: expected map, got &{[1]}"),
        (json!({"list": {"a": 1}}), ".spec.list: expected list, got &{map[a:1]}"),
        (json!({"map": {"a": 1}}), ".spec.map.a: expected string, got &value.valueUnstructured{Value:1}"),
    ] {
        assert_eq!(message(spec), format!("{prefix}{expect}"));
    }
    let mut other = things.object(json!({}));
    other["kind"] = json!("Other");
    let refused = things.manager().apply(None, &other, "m", false).unwrap_err();
    assert_eq!(refused.to_string(), "invalid object type: example.com/v1, Kind=Other");
    assert_eq!(Status::from(refused).code, 400);
}

#[test]
fn updates_move_ownership() {
    let things = thing();
    let live = things.apply(None, json!({"n": 1, "map": {"a": "1", "b": "1"}}), "one", false).unwrap();
    let mut new = live.clone();
    new["spec"]["map"]["a"] = json!("2");
    things.manager().update(Some(&live), &mut new, "two");
    assert_eq!(
        owners(&new),
        [
            ("one".into(), json!({"f:spec": {"f:map": {"f:b": {}}, "f:n": {}}})),
            ("two".into(), json!({"f:spec": {"f:map": {"f:a": {}}}})),
        ]
    );
    let mut same = new.clone();
    things.manager().update(Some(&new), &mut same, "three");
    assert_eq!(same, new);
    let mut reset = new.clone();
    reset["metadata"]["managedFields"] = json!([]);
    things.manager().update(Some(&new), &mut reset, "three");
    assert_eq!(reset["metadata"].get("managedFields"), None);
    // Once tracking was reset, the next apply finds an owner for what is there.
    let applied = things.apply(Some(&reset), json!({"n": 1}), "four", false).unwrap();
    assert_eq!(
        owners(&applied).iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["four", "before-first-apply"]
    );
}

#[test]
fn built_in_objects_start_from_their_zero_value() {
    let deployments = Fixture::new("apps", "Deployment", None);
    let mut new = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "strategy": {"type": "Recreate"},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}}, "status": {}});
    deployments.manager().update(None, &mut new, "m");
    assert_eq!(
        owners(&new)[0].1,
        json!({"f:spec": {"f:replicas": {}, "f:selector": {}, "f:strategy": {"f:type": {}},
            "f:template": {"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:containers": {}}}}})
    );
}

fn spec() -> impl Strategy<Value = Value> {
    let text = || "[a-c]";
    let map = || prop::collection::btree_map(text(), text(), 0..3);
    let set = || prop::collection::btree_set(text(), 0..3);
    (prop::option::of(0..3i64), map(), map(), set(), prop::collection::vec(text(), 0..3), map(), map())
        .prop_map(|(n, granular, whole, set, list, items, free)| {
            let items: Vec<Value> = items.into_iter().map(|(k, v)| json!({"k": k, "v": v})).collect();
            let mut spec = json!({"map": granular, "whole": whole, "set": set, "list": list, "items": items});
            if !free.is_empty() {
                spec["free"] = json!({"deep": free});
            }
            if let Some(n) = n {
                spec["n"] = n.into();
            }
            // An absent field instead of an empty one: the one says nothing, the other sets it.
            let empty = |v: &Value| *v == json!({}) || *v == json!([]);
            spec.as_object_mut().unwrap().retain(|_, v| !empty(v));
            spec
        })
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3..3i64).prop_map(Value::from),
        "[ab]{0,2}".prop_map(Value::from),
    ];
    let key = "(spec|map|whole|set|items|free|k|v|metadata|managedFields|labels|status|n)";
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(key, inner, 0..5).prop_map(|map| json!(map)),
        ]
    })
}

/// The object as decoding leaves it: what became null is gone.
fn settled(mut object: Value) -> Value {
    fn clean(value: &mut Value) {
        if let Value::Object(map) = value {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(clean);
        }
    }
    clean(&mut object);
    object
}

fn without_times(mut object: Value) -> Value {
    for entry in object["metadata"]["managedFields"].as_array_mut().into_iter().flatten() {
        entry.as_object_mut().map(|entry| entry.remove("time"));
    }
    object
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn applying_again_changes_nothing(first in spec(), second in spec()) {
        let things = thing();
        let one = things.apply(None, first, "one", false).unwrap();
        let two = settled(things.apply(Some(&one), second.clone(), "two", true).unwrap());
        let again = things.apply(Some(&two), second, "two", false).unwrap();
        prop_assert_eq!(without_times(again), without_times(two));
    }

    #[test]
    fn a_lone_manager_gets_what_it_says(first in spec(), second in spec()) {
        let things = thing();
        let live = things.apply(None, first, "one", false).unwrap();
        let live = things.apply(Some(&live), second.clone(), "one", false).unwrap();
        let mut expect = settled(live)["spec"].clone();
        // The order of sets and keyed lists is kept from before.
        let mut second = second;
        for spec in [&mut expect, &mut second] {
            for list in ["set", "items"] {
                if let Some(Value::Array(list)) = spec.get_mut(list) {
                    list.sort_by_key(Value::to_string);
                }
            }
        }
        prop_assert_eq!(if expect.is_null() { json!({}) } else { expect }, second);
    }

    #[test]
    fn what_others_own_survives(mine in spec(), theirs in spec()) {
        // A map that becomes empty is gone, whoever said it was there.
        prop_assume!(mine != json!({}));
        let things = thing();
        let live = things.apply(None, mine.clone(), "one", false).unwrap();
        let Ok(both) = things.apply(Some(&live), theirs, "two", false) else { return Ok(()) };
        let back = settled(things.apply(Some(&settled(both)), json!({}), "two", false).unwrap());
        prop_assert_eq!(&back["spec"], &settled(things.object(mine))["spec"]);
    }

    #[test]
    fn nothing_panics(live in any_json(), applied in any_json(), entries in any_json()) {
        let things = thing();
        for fixture in [things, Fixture::new("apps", "Deployment", None)] {
            let mut object = fixture.object(live.clone());
            object["metadata"]["managedFields"] = entries.clone();
            let _ = fixture.apply(Some(&object), applied.clone(), "kubectl", true);
            let mut new = fixture.object(applied.clone());
            fixture.manager().update(Some(&object), &mut new, "m");
            fixture.manager().update(None, &mut new, "m");
            let mut odd = applied.clone();
            fixture.manager().update(Some(&live), &mut odd, "m");
            let _ = fixture.manager().apply(Some(&live), &odd, "m", false);
        }
    }
}
