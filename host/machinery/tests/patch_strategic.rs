//! Strategic merge patches, and the patches that clients compute.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use wasmk_api::{Gvk, Status};
use wasmk_machinery::{patch, schema::KindSchema};

fn deployment() -> KindSchema {
    KindSchema::built_in(&Gvk::new("apps", "v1", "Deployment")).unwrap()
}

fn pod() -> KindSchema {
    KindSchema::built_in(&Gvk::new("", "v1", "Pod")).unwrap()
}

fn check(spec: Value, patch: Value, expect: Result<Value, &str>) {
    let kind = pod();
    let result = patch::strategic(kind.schema(), json!({"spec": spec}), json!({"spec": patch}));
    let expect = expect.map(|spec| json!({"spec": spec})).map_err(str::to_owned);
    assert_eq!(result.map_err(|error| error.to_string()), expect, "{patch}");
}

#[test]
fn directives() {
    let env = |items: Value| json!({"containers": [{"name": "c", "env": items}]});
    let abc = || env(json!([{"name": "A", "value": "1"}, {"name": "B"}, {"name": "C"}]));
    check(
        abc(),
        env(json!([{"name": "B", "$patch": "delete"}, {"name": "A", "value": "2"}])),
        Ok(env(json!([{"name": "A", "value": "2"}, {"name": "C"}]))),
    );
    check(abc(), env(json!([{"$patch": "replace"}, {"name": "Z"}])), Ok(env(json!([{"name": "Z"}]))));
    check(
        abc(),
        json!({"containers": [{"name": "c", "$setElementOrder/env": [{"name": "C"}, {"name": "N"}, {"name": "A"}],
            "env": [{"name": "N"}]}]}),
        Ok(env(json!([{"name": "B"}, {"name": "C"}, {"name": "N"}, {"name": "A", "value": "1"}]))),
    );
    check(
        abc(),
        json!({"containers": [{"$patch": "merge", "name": "c"}]}),
        Err("merging lists cannot yet be specified in the patch"),
    );
    check(
        abc(),
        json!({"containers": [{"image": "x"}]}),
        Err("map: map[image:x] does not contain declared merge key: name"),
    );
    check(
        json!({"volumes": [{"name": "v", "emptyDir": {}, "x": 1}]}),
        json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}),
        Ok(json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})),
    );
    check(
        json!({"volumes": [{"name": "v"}]}),
        json!({"volumes": [{"name": "v", "$retainKeys": ["name"], "hostPath": {"path": "/"}}]}),
        Err("invalid patch format of retainKeys"),
    );
    check(
        json!({"nodeSelector": {"a": "b"}}),
        json!({"nodeSelector": {"$patch": "delete"}}),
        Ok(json!({"nodeSelector": {}})),
    );
    check(
        json!({"tolerations": [{"key": "a"}]}),
        json!({"tolerations": [{"key": "b", "effect": null}]}),
        Ok(json!({"tolerations": [{"key": "b", "effect": null}]})),
    );
    check(json!({"hostname": "a"}), json!({"hostname": null, "subdomain": null}), Ok(json!({})));
}

#[test]
fn primitive_lists_merge() {
    let kind = pod();
    let object = |list: Value| json!({"metadata": {"finalizers": list}});
    for (patch, expect) in [
        (json!({"finalizers": ["c", "a"]}), json!(["c", "a", "b"])),
        (json!({"$deleteFromPrimitiveList/finalizers": ["a"]}), json!(["b"])),
        (json!({"$setElementOrder/finalizers": ["b", "a"], "finalizers": []}), json!(["b", "a"])),
    ] {
        let result = patch::strategic(kind.schema(), object(json!(["a", "b"])), json!({"metadata": patch}));
        assert_eq!(result, Ok(object(expect)), "{patch}");
    }
}

#[test]
fn refusals_as_statuses() {
    let kind = pod();
    let status = |patch: Value| -> Value {
        let error = patch::strategic(kind.schema(), json!({"metadata": {"labels": {"a": "b"}}}), patch);
        Status::from(error.unwrap_err()).to_value()
    };
    let unknown = status(json!({"metadata": {"labels": {"$patch": "explode"}}}));
    assert_eq!(unknown["message"], "unknown patch type: explode in map: map[$patch:explode]");
    assert_eq!((&unknown["code"], unknown.get("reason")), (&json!(500), None));
    let json_patch = patch::json(json!({}), &json!([{"op": "remove", "path": "/a"}])).unwrap_err();
    let status = Status::from(json_patch).to_value();
    assert_eq!(
        (&status["code"], &status["reason"], &status["details"]),
        (&json!(422), &json!("Invalid"), &json!({}))
    );
    assert_eq!(status["message"], "the server rejected our request due to an error in our request");
}

/// What a client that keeps its last configuration sends, and what comes of it.
#[test]
fn three_way() {
    let kind = deployment();
    let container = |extra: Value| {
        let mut container = json!({"name": "c", "image": "i:1"});
        container.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap());
        container
    };
    let spec = |containers: Value| json!({"spec": {"template": {"spec": {"containers": containers}}}});
    let original = spec(json!([container(json!({"command": ["x"]})), {"name": "old", "image": "o"}]));
    let modified = spec(json!([{"name": "new", "image": "n"}, container(json!({"image": "i:2"}))]));
    let mut current = spec(json!([
        container(json!({"command": ["x"], "imagePullPolicy": "Always"})),
        {"name": "old", "image": "o"},
        {"name": "injected", "image": "s"}
    ]));
    current["spec"]["replicas"] = json!(5);
    let patch = patch::three_way_strategic(kind.schema(), &original, &modified, &current).unwrap();
    assert_eq!(
        patch["spec"]["template"]["spec"],
        json!({
            "$setElementOrder/containers": [{"name": "new"}, {"name": "c"}],
            "containers": [
                {"name": "new", "image": "n"},
                {"name": "c", "image": "i:2", "command": null},
                {"name": "old", "$patch": "delete"},
            ],
        })
    );
    let result = patch::strategic(kind.schema(), current, patch).unwrap();
    let mut expect = spec(json!([
        {"name": "new", "image": "n"},
        container(json!({"image": "i:2", "imagePullPolicy": "Always"})),
        {"name": "injected", "image": "s"}
    ]));
    expect["spec"]["replicas"] = json!(5);
    assert_eq!(result, expect);
}

#[test]
fn three_way_for_custom_resources() {
    let patch = patch::three_way_merge(
        &json!({"spec": {"a": 1, "gone": {"x": 1}}}),
        &json!({"spec": {"a": 2, "list": [1]}}),
        &json!({"spec": {"a": 1, "gone": {"x": 1}, "theirs": 3}}),
    );
    assert_eq!(patch, json!({"spec": {"a": 2, "gone": null, "list": [1]}}));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3..3i64).prop_map(Value::from),
        "[ab]{0,2}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("spec"),
        Just("containers"),
        Just("name"),
        Just("ports"),
        Just("finalizers"),
        Just("metadata"),
        Just("labels"),
        Just("volumes"),
        Just("$patch"),
        Just("$retainKeys"),
        Just("$setElementOrder/containers"),
        Just("$deleteFromPrimitiveList/finalizers"),
    ];
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((key.clone(), inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(k, v)| (k.into(), v)).collect())),
        ]
    })
}

/// Maps of the fields of a config map, without nulls.
fn simple_object() -> impl Strategy<Value = Value> {
    let texts = || prop::collection::btree_map("[a-d]", "[a-c]", 0..4);
    (texts(), texts(), prop::collection::btree_set("[a-e]", 0..4)).prop_map(|(data, labels, finalizers)| {
        json!({"data": data, "metadata": {"labels": labels, "finalizers": finalizers}})
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics(target in any_json(), patch in any_json(), other in any_json()) {
        let kind = pod();
        let _ = patch::strategic(kind.schema(), target.clone(), patch.clone());
        let _ = patch::json(target.clone(), &patch);
        let _ = patch::merge(target.clone(), patch.clone());
        let _ = patch::two_way_strategic(kind.schema(), &target, &patch);
        let _ = patch::three_way_strategic(kind.schema(), &target, &patch, &other);
        let _ = patch::three_way_merge(&target, &patch, &other);
    }

    #[test]
    fn operations_never_panic(ops in prop::collection::vec(("(add|remove|replace|move|copy|test)",
        "(/[a-b0-2-]{0,2}){0,3}", "(/[a-b0-2-]{0,2}){0,3}", any_json()), 0..6), target in any_json()) {
        let ops: Vec<Value> = ops.into_iter()
            .map(|(op, path, from, value)| json!({"op": op, "path": path, "from": from, "value": value}))
            .collect();
        let _ = patch::json(json!({"a": target, "b": [1, 2]}), &Value::Array(ops));
    }

    #[test]
    fn a_two_way_patch_yields_the_target(from in simple_object(), to in simple_object()) {
        let kind = KindSchema::built_in(&Gvk::new("", "v1", "ConfigMap")).unwrap();
        let patch = patch::two_way_strategic(kind.schema(), &from, &to).unwrap();
        prop_assert_eq!(from == to, patch == Value::Object(Map::new()));
        prop_assert_eq!(patch::strategic(kind.schema(), from.clone(), patch).unwrap(), to.clone());
        prop_assert_eq!(patch::merge(from.clone(), patch::diff(&from, &to)), to);
    }
}
