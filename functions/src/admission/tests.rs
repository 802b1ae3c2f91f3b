use serde_json::{Value, json};
use wasmk_api::Object;

use super::Admission;
use crate::config::Live;

fn admission(maps: &[(&str, &str, &str)]) -> Admission {
    let live = Live::new("example.com");
    for (name, key, value) in maps {
        live.take(name, &[(key.to_string(), value.to_string())].into()).unwrap();
    }
    Admission::new(live)
}

fn object(kind: &str, metadata: Value, spec: Value) -> Object {
    let version = if kind == "DomainMapping" { "v1beta1" } else { "v1" };
    Object::from_value(json!({
        "apiVersion": format!("serving.knative.dev/{version}"), "kind": kind, "metadata": metadata, "spec": spec,
    }))
    .unwrap()
}

fn service(template_metadata: Value, spec: Value) -> Object {
    let template = json!({"metadata": template_metadata, "spec": spec});
    object("Service", json!({"name": "hello", "namespace": "default"}), json!({"template": template}))
}

/// A template of one container with these fields beside its image.
fn container(fields: Value) -> Object {
    let mut container = json!({"image": "hello:1"});
    container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    service(json!({}), json!({"containers": [container]}))
}

/// What is said of an object after its defaults; empty when it may enter.
fn verdict(admission: &Admission, mut object: Object) -> String {
    admission.mutate(&mut object, None, "alice");
    let text = admission.validate(&object, None).err().unwrap_or_default();
    text.strip_prefix(
        "admission webhook \"validation.webhook.serving.knative.dev\" denied the request: validation failed: ",
    )
    .unwrap_or(&text)
    .to_string()
}

fn check(object: Object, expected: &str) {
    assert_eq!(verdict(&admission(&[]), object.clone()), expected, "{object:?}");
}

#[test]
fn a_service_gets_what_knative_fills_in() {
    let mut made = container(json!({"volumeMounts": [{"name": "c", "mountPath": "/c"}]}));
    made.0["spec"]["template"]["spec"]["volumes"] = json!([{"name": "c", "configMap": {"name": "c"}}]);
    admission(&[]).mutate(&mut made, None, "alice");
    assert_eq!(
        made.0["spec"],
        json!({
            "template": {"metadata": {}, "spec": {
                "containers": [{
                    "image": "hello:1", "name": "user-container", "resources": {},
                    "readinessProbe": {"successThreshold": 1, "tcpSocket": {"port": 0}},
                    "volumeMounts": [{"name": "c", "mountPath": "/c", "readOnly": true}],
                }],
                "volumes": [{"name": "c", "configMap": {"name": "c"}}],
                "timeoutSeconds": 300, "containerConcurrency": 0, "enableServiceLinks": false,
            }},
            "traffic": [{"latestRevision": true, "percent": 100}],
        })
    );
    for key in ["creator", "lastModifier"] {
        assert_eq!(made.annotation(&format!("serving.knative.dev/{key}")), Some("alice"));
    }
}

#[test]
fn defaults_follow_the_settings() {
    let admission = admission(&[
        ("config-defaults", "revision-memory-limit", "64Mi"),
        ("config-defaults", "revision-timeout-seconds", "20"),
    ]);
    let mut made = container(json!({}));
    admission.mutate(&mut made, None, "alice");
    // The second map replaced the first.
    assert_eq!(made.0["spec"]["template"]["spec"]["timeoutSeconds"], 20);
    assert_eq!(made.0["spec"]["template"]["spec"]["containers"][0]["resources"], json!({}));
}

#[test]
fn several_containers_get_numbered_names() {
    let mut made = service(
        json!({}),
        json!({"containers": [{"image": "a", "ports": [{"containerPort": 1}]}, {"image": "b"}]}),
    );
    admission(&[]).mutate(&mut made, None, "alice");
    let containers = &made.0["spec"]["template"]["spec"]["containers"];
    assert_eq!(
        (&containers[0]["name"], &containers[1]["name"]),
        (&json!("user-container-0"), &json!("user-container-1"))
    );
    assert!(containers[1].get("readinessProbe").is_none());
}

#[test]
fn who_changed_it_is_noted_only_when_the_spec_changes() {
    let (admission, modifier) = (admission(&[]), "serving.knative.dev/lastModifier");
    let mut old = container(json!({}));
    admission.mutate(&mut old, None, "alice");
    let mut same = old.clone();
    same.set_meta("labels", json!({"a": "b"}));
    admission.mutate(&mut same, Some(&old), "bob");
    assert_eq!(same.annotation(modifier), Some("alice"));
    let mut other = container(json!({"env": [{"name": "A", "value": "b"}]}));
    admission.mutate(&mut other, Some(&old), "bob");
    assert_eq!(other.annotation(modifier), Some("bob"));
    assert_eq!(other.annotation("serving.knative.dev/creator"), Some("alice"));
    other.0["metadata"]["annotations"]["serving.knative.dev/creator"] = "mallory".into();
    let said = admission.validate(&other, Some(&old)).unwrap_err();
    assert!(
        said.ends_with("annotation value is immutable: metadata.annotations.serving.knative.dev/creator"),
        "{said}"
    );
}

#[test]
fn what_is_not_a_map_is_left_to_the_schema() {
    for spec in [
        json!("text"),
        json!({"template": 3}),
        json!({"template": {"spec": [1]}, "traffic": "x"}),
        json!(null),
    ] {
        let mut odd = object("Service", json!({"name": "odd"}), spec);
        admission(&[]).mutate(&mut odd, None, "alice");
        let _ = admission(&[]).validate(&odd, None);
    }
    let mut odd = service(
        json!(1),
        json!({"containers": ["x", {"env": "y", "ports": 3, "volumeMounts": [1]}], "volumes": [2]}),
    );
    admission(&[]).mutate(&mut odd, None, "alice");
    assert!(admission(&[]).validate(&odd, None).is_err());
}

#[test]
fn a_good_service_enters() {
    check(
        container(
            json!({"env": [{"name": "TARGET", "value": "x"}], "ports": [{"containerPort": 80, "name": "h2c"}]}),
        ),
        "",
    );
}

#[test]
fn containers_are_checked() {
    let at = "spec.template.spec.containers[0]";
    for (fields, expected) in [
        (json!({"image": ""}), format!("missing field(s): {at}.image")),
        (
            json!({"image": "Not An Image"}),
            format!(
                "Failed to parse image reference: {at}.image\nimage: \"Not An Image\", error: could not parse reference: Not An Image"
            ),
        ),
        (
            json!({"env": [{"name": "PORT", "value": "1"}]}),
            format!("\"PORT\" is a reserved environment variable: {at}.env[0].name"),
        ),
        (json!({"lifecycle": {"preStop": {}}, "tty": true}), format!("must not set the field(s): {at}.lifecycle, {at}.tty")),
        (
            json!({"ports": [{"containerPort": 8080, "name": "web"}]}),
            format!("Port name web is not allowed: {at}.ports\nName must be empty, or one of: 'h2c', 'http1'"),
        ),
        (
            json!({"ports": [{"containerPort": 9090}]}),
            format!(
                "invalid value: 9090 is a reserved port: {at}.ports.containerPort\n9090 is a reserved port, please use a different value"
            ),
        ),
        (
            json!({"ports": [{"containerPort": 1}, {"containerPort": 2}]}),
            "more than one container port is set: spec.template.spec.containers[*].ports\nOnly a single port is allowed across all containers".into(),
        ),
        (
            json!({"readinessProbe": {"failureThreshold": 3, "tcpSocket": {"port": 0}}}),
            format!("failureThreshold is disallowed when periodSeconds is zero: {at}.readinessProbe.failureThreshold"),
        ),
        (
            json!({"volumeMounts": [{"name": "none", "mountPath": "/dev"}]}),
            format!(
                "mountPath \"/dev\" is a reserved path: {at}.volumeMounts[0].mountPath\nvolumeMount has no matching volume: {at}.volumeMounts[0].name"
            ),
        ),
        (
            json!({"securityContext": {"privileged": true}}),
            format!("must not set the field(s): {at}.securityContext.privileged"),
        ),
    ] {
        check(container(fields), &expected);
    }
}

#[test]
fn templates_are_checked() {
    let one = json!([{"image": "hello:1"}]);
    let spec = "spec.template.spec";
    for (fields, expected) in [
        (json!({"containers": []}), format!("missing field(s): {spec}.containers")),
        (
            json!({"containers": one, "containerConcurrency": 1001}),
            format!("expected 0 <= 1001 <= 1000: {spec}.containerConcurrency"),
        ),
        (
            json!({"containers": one, "timeoutSeconds": 601}),
            format!("expected 0 <= 601 <= 600: {spec}.timeoutSeconds"),
        ),
        (
            json!({"containers": one, "timeoutSeconds": 9, "idleTimeoutSeconds": 10}),
            format!("expected 0 <= 10 <= 9: {spec}.idleTimeoutSeconds"),
        ),
        (
            json!({"containers": one, "nodeSelector": {"a": "b"}, "hostNetwork": true}),
            format!("must not set the field(s): {spec}.hostNetwork, {spec}.nodeSelector"),
        ),
        (
            json!({"containers": one, "volumes": [{"name": "v", "emptyDir": {}}]}),
            format!("volume with name \"v\" not mounted: {spec}.volumes[0].name"),
        ),
        (
            json!({"containers": [{"image": "a"}, {"image": "b"}]}),
            format!("missing field(s): {spec}.containers[*].ports"),
        ),
    ] {
        check(service(json!({}), fields), &expected);
    }
    let maps = [("config-features", "kubernetes.podspec-nodeselector", "enabled")];
    let free = service(json!({}), json!({"containers": one, "nodeSelector": {"a": "b"}}));
    assert_eq!(verdict(&admission(&maps), free), "");
}

#[test]
fn revisions_may_be_named_after_their_service() {
    let named = |name: &str| service(json!({"name": name}), json!({"containers": [{"image": "hello:1"}]}));
    check(named("hello-one"), "");
    check(named("one"), "invalid value: \"one\" must have prefix \"hello-\": spec.template.metadata.name");
    let admission = admission(&[]);
    let (mut old, mut new) = (named("hello-one"), named("hello-one"));
    admission.mutate(&mut old, None, "alice");
    new.0["spec"]["template"]["spec"]["containers"][0]["image"] = "hello:2".into();
    admission.mutate(&mut new, Some(&old), "alice");
    let said = admission.validate(&new, Some(&old)).unwrap_err();
    assert!(
        said.contains(
            "Saw the following changes without a name change (-old +new): spec.template.metadata.name\n"
        ) && said.contains("\t-: \"hello:1\"\n\t+: \"hello:2\""),
        "{said}"
    );
}

#[test]
fn a_revision_does_not_change() {
    let revision = |image: &str| {
        object(
            "Revision",
            json!({"name": "hello-00001"}),
            json!({"containers": [{"image": image, "name": "c"}]}),
        )
    };
    let said = admission(&[]).validate(&revision("b"), Some(&revision("a"))).unwrap_err();
    assert!(said.contains("Immutable fields changed (-old +new): spec\n"), "{said}");
    assert_eq!(admission(&[]).validate(&revision("a"), Some(&revision("a"))), Ok(()));
}

#[test]
fn traffic_is_checked() {
    let with = |traffic: Value| {
        let mut made = container(json!({}));
        made.0["spec"]["traffic"] = traffic;
        made
    };
    for (traffic, expected) in [
        (json!([{"percent": 90}]), "Traffic targets sum to 90, want 100: spec.traffic"),
        (
            json!([{"percent": 100, "tag": "a"}, {"revisionName": "hello-1", "tag": "a"}]),
            "Multiple definitions for \"a\": spec.traffic[0].tag, spec.traffic[1].tag",
        ),
        (
            json!([{"percent": 100, "revisionName": "hello-1", "latestRevision": true}]),
            "may not set revisionName \"hello-1\" when latestRevision is true: spec.traffic[0].latestRevision",
        ),
        (
            json!([{"percent": 100, "configurationName": "hello"}]),
            "must not set the field(s): spec.traffic[0].configurationName",
        ),
        (
            json!([{"percent": 101}, {"percent": -1, "revisionName": "hello-1"}]),
            "expected 0 <= -1 <= 100: spec.traffic[1].percent\nexpected 0 <= 101 <= 100: spec.traffic[0].percent",
        ),
        (json!([{"percent": 100, "url": "http://x"}]), "must not set the field(s): spec.traffic[0].url"),
    ] {
        check(with(traffic), expected);
    }
    let route = object("Route", json!({"name": "r"}), json!({"traffic": [{"percent": 100}]}));
    check(
        route,
        "expected exactly one, got neither: spec.traffic[0].configurationName, spec.traffic[0].revisionName",
    );
}

#[test]
fn scaling_annotations_are_checked() {
    let at = "spec.template.metadata.annotations.autoscaling.knative.dev";
    for (annotations, expected) in [
        (json!({"min-scale": "-1"}), format!("expected 0 <= -1 <= 2147483647: {at}/min-scale")),
        (json!({"maxScale": "many"}), format!("invalid value: many: {at}/maxScale")),
        (
            json!({"min-scale": "5", "max-scale": "2"}),
            format!("max-scale=2 is less than min-scale=5: {at}/max-scale, {at}/min-scale"),
        ),
        (json!({"window": "1s"}), format!("expected 6s <= 1s <= 1h0m0s: {at}/window")),
        (json!({"window": "soon"}), format!("invalid value: soon: {at}/window")),
        (
            json!({"scale-down-delay": "1500ms"}),
            format!("must be specified with at most second precision: {at}/scale-down-delay"),
        ),
        (json!({"target": "0"}), format!("target 0 should be at least 0.01: {at}/target")),
        (json!({"metric": "cpu"}), format!("invalid value: cpu: {at}/metric")),
        (json!({"metric": "cpu", "class": "hpa.autoscaling.knative.dev"}), String::new()),
        (json!({"class": "x.knative.dev"}), format!("invalid value: x.knative.dev: {at}/class")),
        (
            json!({"activation-scale": "1"}),
            format!("activation-scale=1 must be greater than 1: {at}/activation-scale"),
        ),
        (
            json!({"initial-scale": "0"}),
            format!("invalid value: 0: {at}/initial-scale=0 not allowed by cluster"),
        ),
        (
            json!({"panic-window-percentage": "0.5"}),
            format!("expected 1 <= 0.5 <= 100: {at}/panic-window-percentage"),
        ),
        (json!({"target-burst-capacity": "-2"}), format!("invalid value: -2: {at}/target-burst-capacity")),
    ] {
        let annotations: serde_json::Map<String, Value> = annotations
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, value)| (format!("autoscaling.knative.dev/{key}"), value.clone()))
            .collect();
        let made =
            service(json!({"annotations": annotations}), json!({"containers": [{"image": "hello:1"}]}));
        check(made, &expected);
    }
}

#[test]
fn metadata_is_checked() {
    let with = |metadata: Value| {
        let mut made = container(json!({}));
        made.0["metadata"] = metadata;
        made
    };
    for (metadata, expected) in [
        (json!({"name": "Hello"}), "invalid value: not a DNS 1035 label: [a DNS-1035 label must consist of"),
        (
            json!({"name": "h", "annotations": {"autoscaling.knative.dev/min-scale": "1"}}),
            "invalid key name \"autoscaling.knative.dev/min-scale\": metadata.annotations\nautoscaling annotations must be put under",
        ),
        (
            json!({"name": "h", "labels": {"networking.knative.dev/visibility": "all"}}),
            "invalid value: all: metadata.labels.networking.knative.dev/visibility",
        ),
        (
            json!({"name": "h", "annotations": {"serving.knative.dev/rollout-duration": "-3s"}}),
            "rollout-duration=-3s must be positive: metadata.annotations.serving.knative.dev/rollout-duration",
        ),
    ] {
        let said = verdict(&admission(&[]), with(metadata));
        assert!(said.starts_with(expected), "{said}");
    }
    let mapping = |name: &str, reference: Value| {
        object("DomainMapping", json!({"name": name, "namespace": "default"}), json!({"ref": reference}))
    };
    let good = json!({"kind": "Service", "name": "hello", "apiVersion": "serving.knative.dev/v1"});
    check(mapping("hello.example.org", good.clone()), "");
    assert!(verdict(&admission(&[]), mapping("hello", good)).starts_with("invalid name \"hello\""));
    check(
        mapping("a.example.org", json!({"name": "x", "apiVersion": "v1"})),
        "missing field(s): spec.ref.kind",
    );
}

#[test]
fn settings_that_cannot_be_read_do_not_enter() {
    let map = |namespace: &str, value: &str| {
        Object::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "config-autoscaler", "namespace": namespace}, "data": {"stable-window": value}}))
        .unwrap()
    };
    let admission = admission(&[]);
    assert_eq!(admission.validate(&map("knative-serving", "10s"), None), Ok(()));
    assert_eq!(admission.validate(&map("default", "soon"), None), Ok(()));
    let said = admission.validate(&map("knative-serving", "soon"), None).unwrap_err();
    assert!(said.contains("config.webhook.serving.knative.dev") && said.contains("stable-window"), "{said}");
}
