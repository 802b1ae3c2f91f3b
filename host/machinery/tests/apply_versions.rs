//! Managers that wrote in different versions, repeated items, and the order of merged lists.

use serde_json::{Value, json};
use wasmk_api::{Gvk, Timestamp};
use wasmk_machinery::{
    apply::{FieldManager, Reset, Versions},
    schema::KindSchema,
};

fn schema(size: &str) -> KindSchema {
    let mut spec = json!({"other": {"type": "string"}});
    spec[size] = json!({"type": "integer"});
    let spec = json!({"type": "object", "properties": spec});
    KindSchema::custom(&json!({"type": "object", "properties": {"spec": spec}})).unwrap()
}

/// `v1` calls `size` what `v2` calls `count`; nothing else is served.
struct Renamed;

impl Versions for Renamed {
    fn convert(&self, object: &Value, api_version: &str) -> Option<(Value, KindSchema)> {
        let name = |version: &str| if version == "example.com/v1" { "size" } else { "count" };
        if !["example.com/v1", "example.com/v2"].contains(&api_version) {
            return None;
        }
        let mut object = object.clone();
        let from = name(object["apiVersion"].as_str()?);
        object["apiVersion"] = api_version.into();
        if let Some(spec) = object["spec"].as_object_mut()
            && let Some(value) = spec.remove(from)
        {
            spec.insert(name(api_version).into(), value);
        }
        Some((object, schema(name(api_version))))
    }
}

fn apply(version: &str, live: Option<&Value>, spec: Value, who: &str, force: bool) -> Result<Value, String> {
    let gvk = Gvk::new("example.com", version, "Thing");
    let kind = schema(if version == "v1" { "size" } else { "count" });
    let live = live.map(|live| Renamed.convert(live, &gvk.api_version()).unwrap().0);
    let now = "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap();
    let reset = Reset::Nothing;
    let manager = FieldManager {
        gvk: &gvk,
        kind: &kind,
        subresource: "",
        reset: &reset,
        versions: Some(&Renamed),
        now,
    };
    let object =
        json!({"apiVersion": gvk.api_version(), "kind": "Thing", "metadata": {"name": "t"}, "spec": spec});
    manager.apply(live.as_ref(), &object, who, force).map_err(|error| error.to_string())
}

fn owned(object: &Value) -> Vec<Value> {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    entries.iter().map(|e| json!([e["manager"], e["apiVersion"], e["fieldsV1"]["f:spec"]])).collect()
}

#[test]
fn fields_are_compared_in_the_version_of_their_manager() {
    let live = apply("v1", None, json!({"size": 1, "other": "a"}), "one", false).unwrap();
    assert_eq!(
        apply("v2", Some(&live), json!({"count": 2}), "two", false),
        Err("Apply failed with 1 conflict: conflict with \"one\": .spec.size".into())
    );
    let live = apply("v2", Some(&live), json!({"count": 2}), "two", true).unwrap();
    assert_eq!(
        owned(&live),
        [
            json!(["one", "example.com/v1", {"f:other": {}}]),
            json!(["two", "example.com/v2", {"f:count": {}}])
        ]
    );
    // The manager changes its version and no longer says anything about what it had renamed.
    let live = apply("v1", Some(&live), json!({"other": "b"}), "two", true).unwrap();
    assert_eq!(live["spec"], json!({"other": "b"}));
    assert_eq!(owned(&live), [json!(["two", "example.com/v1", {"f:other": {}}])]);
}

#[test]
fn managers_of_versions_no_longer_served_are_forgotten() {
    let mut live = apply("v1", None, json!({"size": 1}), "one", false).unwrap();
    live["metadata"]["managedFields"][0]["apiVersion"] = json!("example.com/v0");
    let live = apply("v1", Some(&live), json!({"size": 2}), "two", false).unwrap();
    assert_eq!(owned(&live), [json!(["two", "example.com/v1", {"f:size": {}}])]);
}

fn service(ports: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "uid": "1"}, "spec": {"ports": ports}})
}

fn services(check: impl FnOnce(FieldManager<'_>)) {
    let gvk = Gvk::new("", "v1", "Service");
    let kind = KindSchema::built_in(&gvk).unwrap();
    let reset = Reset::of(&gvk.group_kind(), "", true);
    let now = "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap();
    check(FieldManager { gvk: &gvk, kind: &kind, subresource: "", reset: &reset, versions: None, now });
}

#[test]
fn repeated_items_are_owned_as_one() {
    services(|manager| {
        let mut two = service(json!([{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]));
        manager.update(None, &mut two, "m");
        let fields = |object: &Value| object["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"].clone();
        let key = "k:{\"port\":1,\"protocol\":\"TCP\"}";
        assert_eq!(fields(&two), json!({"f:ports": {".": {}, key: {}}}));
        let mut one = service(json!([{"port": 1, "name": "a"}]));
        one["metadata"]["managedFields"] = two["metadata"]["managedFields"].clone();
        manager.update(Some(&two), &mut one, "m");
        assert_eq!(fields(&one), json!({"f:ports": {".": {}, key: {".": {}, "f:name": {}, "f:port": {}}}}));
        // An applied configuration may not repeat one.
        let refused =
            manager.apply(Some(&one), &service(two["spec"]["ports"].clone()), "n", true).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "failed to create typed patch object (/s; /v1, Kind=Service): .spec.ports: duplicate entries for key \
             [port=1,protocol=\"TCP\"]"
        );
    });
}

#[test]
fn merged_lists_keep_the_configurations_order() {
    let check = |live: &[i64], applied: &[i64], expect: &[i64]| {
        services(|manager| {
            let ports =
                |list: &[i64]| json!(list.iter().map(|port| json!({"port": port})).collect::<Vec<_>>());
            let mut before = service(ports(live));
            manager.update(None, &mut before, "m");
            let after = manager.apply(Some(&before), &service(ports(applied)), "n", true).unwrap();
            assert_eq!(after["spec"]["ports"], ports(expect), "{live:?} + {applied:?}");
        });
    };
    check(&[1, 2, 3], &[3, 1], &[2, 3, 1]);
    check(&[1, 2, 3], &[3, 4], &[1, 2, 3, 4]);
    check(&[1, 2, 3], &[4, 1], &[4, 1, 2, 3]);
    check(&[1, 2, 3], &[2], &[1, 2, 3]);
    check(&[1, 2], &[5, 6], &[1, 2, 5, 6]);
    check(&[], &[2, 1], &[2, 1]);
}
