//! Admission webhooks over TLS, and policies that change objects.

#[path = "support/remote.rs"]
mod remote;
mod support;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use remote::{Asked, Authority, serve};
use serde_json::{Value, json};
use support::{Server, start};
use wasmk_apiserver::audit::{self, FileSettings, Policy};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// An answer to a review.
fn allow(asked: &Asked, more: Value) -> (u16, Value) {
    let mut response = json!({ "uid": asked.body["request"]["uid"], "allowed": true });
    if let (Some(response), Value::Object(more)) = (response.as_object_mut(), more) {
        response.extend(more);
    }
    (200, json!({ "kind": "AdmissionReview", "apiVersion": asked.body["apiVersion"], "response": response }))
}

fn patch(changes: Value) -> Value {
    json!({ "patchType": "JSONPatch", "patch": STANDARD.encode(changes.to_string()) })
}

/// A hook about config maps, reached by URL.
fn hook(name: &str, address: SocketAddr, authority: &Authority, more: Value) -> Value {
    let mut hook = json!({
        "name": format!("{name}.example.com"),
        "clientConfig": {
            "url": format!("https://{address}/{name}"), "caBundle": STANDARD.encode(authority.pem()),
        },
        "rules": [{
            "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE", "DELETE"], "resources": ["configmaps"],
        }],
        "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "objectSelector": { "matchLabels": { "hooked": "yes" } },
    });
    if let (Some(hook), Value::Object(more)) = (hook.as_object_mut(), more) {
        hook.extend(more);
    }
    hook
}

async fn register(server: &Server, kind: &str, name: &str, hooks: Value) {
    let path = format!("/apis/admissionregistration.k8s.io/v1/{}s", kind.to_lowercase());
    let object = json!({
        "kind": kind, "apiVersion": "admissionregistration.k8s.io/v1", "metadata": { "name": name }, "webhooks": hooks,
    });
    let answer = server.post(&path, object).await;
    assert_eq!(answer.code, 201, "{answer:?}");
}

fn map(name: &str, data: Value) -> Value {
    json!({
        "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": name, "labels": { "hooked": "yes" } }, "data": data,
    })
}

const MUTATING: &str = "MutatingWebhookConfiguration";
const VALIDATING: &str = "ValidatingWebhookConfiguration";

#[tokio::test]
async fn hooks_change_objects_in_order_and_see_later_changes_once() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.log");
    let file = FileSettings { path: log.clone(), max_megabytes: 0, max_days: 0, max_backups: 0 };
    let policy =
        Policy::parse("{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata}]}").unwrap();
    let audit = audit::Settings { policy, file: Some(file), service: None };
    let server = support::start_with(|config| config.audit = Some(audit)).await;
    let authority = Authority::new("hooks");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let address = serve(&authority, &["127.42.0.1"], None, move |asked| {
        let request = &asked.body["request"];
        told.lock().unwrap().push(format!("{} {}", asked.target, request["object"]["data"]));
        assert_eq!(request["operation"], "CREATE");
        assert_eq!(request["userInfo"]["username"], "admin");
        assert_eq!(request["options"]["kind"], "CreateOptions");
        let change = match &asked.target {
            first if first.starts_with("/first") => {
                json!([{ "op": "add", "path": "/data/first", "value": "1" }])
            }
            _ => json!([{ "op": "add", "path": "/data/second", "value": "2" }]),
        };
        let notes = json!({ "place": asked.target.split('?').next() });
        allow(&asked, json!({ "warnings": ["careful"], "auditAnnotations": notes })).pipe(
            |(code, mut value)| {
                value["response"].as_object_mut().unwrap().extend(patch(change).as_object().unwrap().clone());
                (code, value)
            },
        )
    })
    .await;
    let again = json!({ "reinvocationPolicy": "IfNeeded" });
    register(&server, MUTATING, "a", json!([hook("first", address, &authority, again)])).await;
    register(&server, MUTATING, "b", json!([hook("second", address, &authority, json!({}))])).await;
    let made = server.post(MAPS, map("m", json!({ "own": "0" }))).await;
    assert_eq!(made.code, 201, "{made:?}");
    assert_eq!(made.body["data"], json!({ "own": "0", "first": "1", "second": "2" }));
    assert_eq!(made.warnings, ["299 - \"careful\""]);
    let owned = made.body["metadata"]["managedFields"][0]["fieldsV1"]["f:data"].to_string();
    assert_eq!(owned, r#"{".":{},"f:own":{}}"#, "what hooks add is owned by nobody");
    let seen = seen.lock().unwrap().clone();
    assert_eq!(
        seen,
        [
            r#"/first?timeout=10s {"own":"0"}"#,
            r#"/second?timeout=10s {"own":"0","first":"1"}"#,
            r#"/first?timeout=10s {"own":"0","first":"1","second":"2"}"#,
        ]
    );
    let notes = annotations(&log, "configmaps").await;
    assert_eq!(notes["first.example.com/place"], "/first");
    assert_eq!(notes["second.example.com/place"], "/second");
    assert_eq!(
        notes["mutation.webhook.admission.k8s.io/round_0_index_1"],
        r#"{"configuration":"b","webhook":"second.example.com","mutated":true}"#
    );
    // Without the label nobody is asked.
    let mut free = map("free", json!({}));
    free["metadata"]["labels"] = json!({});
    assert_eq!(server.post(MAPS, free).await.body.get("data"), None);
}

/// The annotations of the first write of such objects in the audit log.
async fn annotations(log: &std::path::Path, resource: &str) -> Value {
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let mut events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found = events.find(|e| {
            e["objectRef"]["resource"] == resource && e["stage"] == "ResponseComplete" && e["verb"] != "list"
        });
        if let Some(event) = found {
            return event["annotations"].clone();
        }
        assert!(tokio::time::Instant::now() < until, "{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn hooks_change_scales() {
    let server = start().await;
    let authority = Authority::new("hooks");
    let address = serve(&authority, &["127.42.0.1"], None, move |asked| {
        let request = &asked.body["request"];
        assert_eq!((&request["kind"]["kind"], &request["subResource"]), (&json!("Scale"), &json!("scale")));
        assert_eq!(request["oldObject"]["spec"]["replicas"], 1);
        let change = json!([{ "op": "replace", "path": "/spec/replicas", "value": 7 }]);
        allow(&asked, patch(change))
    })
    .await;
    let rules = json!([{
        "apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["deployments/scale"],
    }]);
    let more = json!({ "rules": rules, "objectSelector": {} });
    register(&server, MUTATING, "scales", json!([hook("scales", address, &authority, more)])).await;
    const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
    let labels = json!({ "app": "web" });
    let deployment = json!({
        "metadata": { "name": "web" },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "c", "image": "i" }] } },
        },
    });
    assert_eq!(server.post(DEPLOYMENTS, deployment).await.code, 201);
    let scaled =
        server.merge(&format!("{DEPLOYMENTS}/web/scale"), json!({ "spec": { "replicas": 3 } })).await;
    assert_eq!((scaled.code, &scaled.body["spec"]["replicas"]), (200, &json!(7)), "{scaled:?}");
    assert_eq!(server.get(&format!("{DEPLOYMENTS}/web")).await.body["spec"]["replicas"], 7);
}

trait Pipe: Sized {
    fn pipe<T>(self, then: impl FnOnce(Self) -> T) -> T {
        then(self)
    }
}

impl<T> Pipe for T {}

/// A sidecar gets into new pods before anybody sees them, with all that a container has by default.
#[tokio::test]
async fn hooks_add_containers_to_new_pods() {
    let server = start().await;
    let authority = Authority::new("hooks");
    let address = serve(&authority, &["127.42.0.1"], None, move |asked| {
        let sidecar = json!({ "name": "sidecar", "image": "example.org/proxy:1" });
        allow(&asked, patch(json!([{ "op": "add", "path": "/spec/containers/-", "value": sidecar }])))
    })
    .await;
    let rules = json!([{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"] }]);
    let more = json!({ "rules": rules, "objectSelector": {} });
    register(&server, MUTATING, "sidecars", json!([hook("sidecars", address, &authority, more)])).await;
    let account = json!({ "metadata": { "name": "default" } });
    server.post("/api/v1/namespaces/default/serviceaccounts", account).await;
    let pod = json!({ "metadata": { "name": "web" }, "spec": { "containers": [{ "name": "main", "image": "i" }] } });
    let made = server.post("/api/v1/namespaces/default/pods", pod).await;
    assert_eq!(made.code, 201, "{made:?}");
    let containers = made.body["spec"]["containers"].as_array().unwrap();
    let names: Vec<_> = containers.iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["main", "sidecar"]);
    assert_eq!(containers[1]["imagePullPolicy"], "IfNotPresent");
    assert_eq!(containers[1]["terminationMessagePath"], "/dev/termination-log");
}

#[tokio::test]
async fn hooks_refuse_writes_and_deletes() {
    let server = start().await;
    let authority = Authority::new("hooks");
    let calls = Arc::new(Mutex::new(0));
    let counted = calls.clone();
    let address = serve(&authority, &["127.42.0.1"], None, move |asked| {
        *counted.lock().unwrap() += 1;
        let request = &asked.body["request"];
        let about = if request["operation"] == "DELETE" { "oldObject" } else { "object" };
        let refuse = request[about]["data"]["bad"].is_string() || request["operation"] == "DELETE";
        let status = json!({ "message": "no", "code": 418, "reason": "Forbidden" });
        allow(&asked, if refuse { json!({ "allowed": false, "status": status }) } else { json!({}) })
    })
    .await;
    register(&server, VALIDATING, "v", json!([hook("check", address, &authority, json!({}))])).await;
    let refused = server.post(MAPS, map("bad", json!({ "bad": "1" }))).await;
    assert_eq!((refused.code, &refused.body["reason"]), (418, &json!("Forbidden")));
    assert_eq!(refused.body["message"], "admission webhook \"check.example.com\" denied the request: no");
    assert_eq!(server.post(MAPS, map("good", json!({}))).await.code, 201);
    // Who is not known, or may not do it, does not get as far.
    let before = *calls.lock().unwrap();
    assert_eq!(before, 2);
    for (header, code) in [(("impersonate-user", "nobody"), 403), (("authorization", "Bearer wrong"), 401)] {
        let headers = [("content-type", "application/json"), header];
        let refused = server.send("POST", MAPS, &headers, &map("other", json!({})).to_string()).await;
        assert_eq!(refused.code, code, "{refused:?}");
    }
    assert_eq!(*calls.lock().unwrap(), before);
    let path = format!("{MAPS}/good");
    assert_eq!(server.merge(&path, json!({ "data": { "bad": "1" } })).await.code, 418);
    assert_eq!(server.merge(&path, json!({ "data": { "fine": "1" } })).await.code, 200);
    assert_eq!(server.delete(&path).await.code, 418);
    // Nobody can lock out those who would remove the hook.
    let hooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/v";
    assert_eq!(server.delete(hooks).await.code, 200);
    assert_eq!(server.delete(&path).await.code, 200);
}

#[tokio::test]
async fn failures_count_as_the_policy_says() {
    let server = start().await;
    let authority = Authority::new("hooks");
    let nobody = tokio::net::TcpListener::bind("127.42.0.1:0").await.unwrap().local_addr().unwrap();
    let open = json!({ "failurePolicy": "Ignore" });
    register(&server, VALIDATING, "open", json!([hook("open", nobody, &authority, open)])).await;
    assert_eq!(server.post(MAPS, map("a", json!({}))).await.code, 201);
    register(&server, VALIDATING, "shut", json!([hook("shut", nobody, &authority, json!({}))])).await;
    let refused = server.post(MAPS, map("b", json!({}))).await;
    assert_eq!(refused.code, 500);
    assert_eq!(
        refused.body["message"],
        format!(
            "Internal error occurred: failed calling webhook \"shut.example.com\": failed to call webhook: \
             Post \"https://{nobody}/shut?timeout=10s\": dial tcp {nobody}: connect: connection refused"
        )
    );
}

#[tokio::test]
async fn answers_are_checked_and_certificates_too() {
    let server = start().await;
    let (authority, stranger) = (Authority::new("hooks"), Authority::new("stranger"));
    let address = serve(&authority, &["127.42.0.1"], None, |asked| match &asked.target {
        t if t.starts_with("/uid") => {
            let (code, mut value) = allow(&asked, json!({}));
            value["response"]["uid"] = "other".into();
            (code, value)
        }
        t if t.starts_with("/code") => (503, json!("overloaded")),
        _ => allow(&asked, json!({})),
    })
    .await;
    for (name, authority, expect) in [
        ("uid", &authority, "received invalid webhook response: expected response.uid="),
        ("code", &authority, "an error on the server"),
        ("cert", &stranger, "tls: failed to verify certificate"),
    ] {
        register(&server, VALIDATING, name, json!([hook(name, address, authority, json!({}))])).await;
        let refused = server.post(MAPS, map("x", json!({}))).await;
        assert_eq!(refused.code, 500, "{name}");
        assert!(refused.body["message"].as_str().unwrap().contains(expect), "{name}: {refused:?}");
        let path = format!("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{name}");
        assert_eq!(server.delete(&path).await.code, 200);
    }
}

#[tokio::test]
async fn match_conditions_dry_runs_and_services() {
    let server = start().await;
    let authority = Authority::new("hooks");
    let address = serve(&authority, &["hook.default.svc"], None, |asked| {
        allow(&asked, json!({ "allowed": false, "status": { "message": "asked" } }))
    })
    .await;
    let service = json!({
        "kind": "Service", "apiVersion": "v1", "metadata": { "name": "hook" }, "spec": { "ports": [{ "port": 443 }] },
    });
    assert_eq!(server.post("/api/v1/namespaces/default/services", service).await.code, 201);
    let slice = json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
        "metadata": { "name": "hook-1", "labels": { "kubernetes.io/service-name": "hook" } },
        "endpoints": [{ "addresses": [address.ip().to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "", "port": address.port(), "protocol": "TCP" }],
    });
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let answer = server.post(slices, slice).await;
    assert_eq!(answer.code, 201, "{answer:?}");
    let more = json!({
        "clientConfig": {
            "service": { "namespace": "default", "name": "hook", "path": "/check" },
            "caBundle": STANDARD.encode(authority.pem()),
        },
        "matchConditions": [{ "name": "only-x", "expression": "object.metadata.name == 'x'" }],
        "sideEffects": "NoneOnDryRun",
    });
    register(&server, VALIDATING, "v", json!([hook("v", address, &authority, more)])).await;
    assert_eq!(server.post(MAPS, map("y", json!({}))).await.code, 201);
    let refused = server.post(MAPS, map("x", json!({}))).await;
    assert_eq!(refused.code, 400, "{refused:?}");
    assert_eq!(refused.body["message"], "admission webhook \"v.example.com\" denied the request: asked");
    assert_eq!(server.post(&format!("{MAPS}?dryRun=All"), map("x", json!({}))).await.code, 400);
}

#[tokio::test]
async fn other_versions_of_a_resource_are_converted() {
    let server = start().await;
    let authority = Authority::new("hooks");
    let address = serve(&authority, &["127.42.0.1"], None, |asked| {
        let request = &asked.body["request"];
        assert_eq!(request["object"]["apiVersion"], "autoscaling/v1", "{request}");
        assert_eq!(request["resource"]["version"], "v1");
        assert_eq!(request["requestResource"]["version"], "v2");
        let change =
            json!([{ "op": "replace", "path": "/spec/targetCPUUtilizationPercentage", "value": 33 }]);
        allow(&asked, patch(change))
    })
    .await;
    let rules = json!([{
        "apiGroups": ["autoscaling"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["horizontalpodautoscalers"],
    }]);
    let more = json!({ "rules": rules, "objectSelector": {} });
    register(&server, MUTATING, "m", json!([hook("m", address, &authority, more)])).await;
    let scaler = json!({
        "kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v2", "metadata": { "name": "h" },
        "spec": {
            "scaleTargetRef": { "kind": "Deployment", "name": "d", "apiVersion": "apps/v1" }, "maxReplicas": 3,
            "metrics": [{ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 50 } } }],
        },
    });
    let made = server.post("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers", scaler).await;
    assert_eq!(made.code, 201, "{made:?}");
    assert_eq!(made.body["apiVersion"], "autoscaling/v2");
    assert_eq!(made.body["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 33);
}

#[tokio::test]
async fn policies_change_objects() {
    let server = start().await;
    let base = "/apis/admissionregistration.k8s.io/v1";
    let policy = json!({
        "kind": "MutatingAdmissionPolicy", "apiVersion": "admissionregistration.k8s.io/v1", "metadata": { "name": "p" },
        "spec": {
            "matchConstraints": { "resourceRules": [{
                "apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"],
            }] },
            "failurePolicy": "Fail", "reinvocationPolicy": "Never",
            "matchConditions": [{ "name": "few", "expression": "object.spec.replicas < 5" }],
            "variables": [{ "name": "team", "expression": "'a/' + object.metadata.name" }],
            "mutations": [
                { "patchType": "ApplyConfiguration", "applyConfiguration": { "expression":
                    "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: 'c', image: 'changed'}]}}}}" } },
                { "patchType": "JSONPatch", "jsonPatch": { "expression":
                    "[JSONPatch{op: 'add', path: '/metadata/annotations/' + jsonpatch.escapeKey('example.com/team'), value: variables.team}]" } },
            ],
        },
    });
    let answer = server.post(&format!("{base}/mutatingadmissionpolicies"), policy).await;
    assert_eq!(answer.code, 201, "{answer:?}");
    let binding = json!({
        "kind": "MutatingAdmissionPolicyBinding", "apiVersion": "admissionregistration.k8s.io/v1",
        "metadata": { "name": "b" }, "spec": { "policyName": "p" },
    });
    let answer = server.post(&format!("{base}/mutatingadmissionpolicybindings"), binding).await;
    assert_eq!(answer.code, 201, "{answer:?}");
    let deployment = |name: &str, replicas: u32| {
        json!({
            "kind": "Deployment", "apiVersion": "apps/v1",
            "metadata": { "name": name, "annotations": { "own": "1" } },
            "spec": {
                "replicas": replicas, "selector": { "matchLabels": { "a": "b" } },
                "template": {
                    "metadata": { "labels": { "a": "b" } },
                    "spec": { "containers": [{ "name": "c", "image": "i", "args": ["x"] }, { "name": "d", "image": "j" }] },
                },
            },
        })
    };
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let made = server.post(path, deployment("few", 2)).await;
    assert_eq!(made.code, 201, "{made:?}");
    let containers = &made.body["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers[0]["image"], "changed");
    assert_eq!((&containers[0]["args"], &containers[1]["image"]), (&json!(["x"]), &json!("j")));
    assert_eq!(made.body["metadata"]["annotations"]["example.com/team"], "a/few");
    let many = server.post(path, deployment("many", 7)).await;
    assert_eq!(many.body["spec"]["template"]["spec"]["containers"][0]["image"], "i");
}
