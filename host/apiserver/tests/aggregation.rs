//! APIs of other servers: passed on, listed, and never in the way.

#[path = "support/remote.rs"]
mod remote;
mod support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::ExtendedKeyUsagePurpose;
use remote::{Authority, serve};
use serde_json::{Value, json};
use support::{Server, start_with};
use wasmk_apiserver::{FrontProxy, LocalService};

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// A service in front of an address.
async fn expose(server: &Server, address: SocketAddr) {
    let service = json!({
        "kind": "Service", "apiVersion": "v1", "metadata": { "name": "metrics" }, "spec": { "ports": [{ "port": 443 }] },
    });
    assert_eq!(server.post("/api/v1/namespaces/default/services", service).await.code, 201);
    let slice = json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
        "metadata": { "name": "metrics-1", "labels": { "kubernetes.io/service-name": "metrics" } },
        "endpoints": [{ "addresses": [address.ip().to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "", "port": address.port(), "protocol": "TCP" }],
    });
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    assert_eq!(server.post(slices, slice).await.code, 201);
}

fn api_service(group: &str, service: &str, bundle: &str) -> Value {
    json!({
        "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1", "metadata": { "name": format!("v1.{group}") },
        "spec": {
            "group": group, "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
            "service": { "namespace": "default", "name": service }, "caBundle": bundle,
        },
    })
}

/// Waits until an API service's condition has that status and reason.
async fn until(server: &Server, name: &str, status: &str, reason: &str) -> Value {
    let mut last = Value::Null;
    for _ in 0..300 {
        last = server.get(&format!("{SERVICES}/{name}")).await.body["status"]["conditions"][0].clone();
        if last["status"] == status && last["reason"] == reason {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{name} is {last}, not {status} for {reason}");
}

async fn with_front_proxy(authority: &Authority) -> Server {
    let (cert, key) = authority.issue("front", &[], ExtendedKeyUsagePurpose::ClientAuth);
    let ca = authority.pem();
    start_with(|config| config.front_proxy = FrontProxy { cert, key, name: "front".into(), ca }).await
}

#[tokio::test]
async fn requests_are_passed_on_with_who_makes_them() {
    let (front, serving) = (Authority::new("front-proxy"), Authority::new("serving"));
    let front = Arc::new(front);
    let server = with_front_proxy(&front).await;
    let address = serve(&serving, &["metrics.default.svc"], Some(&front), |asked| {
        if !asked.proven {
            return (401, json!("no certificate"));
        }
        let header = |name: &str| asked.headers.get(name).map(|v| v.to_str().unwrap().to_owned());
        match &*asked.target {
            "/apis/metrics.example.com/v1" => (
                200,
                json!({
                    "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "metrics.example.com/v1",
                    "resources": [
                        { "name": "meters", "singularName": "meter", "namespaced": true, "kind": "Meter", "verbs": ["get", "list"] },
                        { "name": "meters/scale", "singularName": "", "namespaced": true, "kind": "Scale", "group": "autoscaling", "version": "v1", "verbs": ["get"] },
                    ],
                }),
            ),
            target => (
                200,
                json!({
                    "target": target, "user": header("x-remote-user"), "group": header("x-remote-group"),
                    "authorization": header("authorization"), "sent": asked.body, "host": header("host"),
                }),
            ),
        }
    })
    .await;
    expose(&server, address).await;
    let bundle = STANDARD.encode(serving.pem());
    assert_eq!(server.post(SERVICES, api_service("metrics.example.com", "metrics", &bundle)).await.code, 201);
    until(&server, "v1.metrics.example.com", "True", "Passed").await;

    let path = "/apis/metrics.example.com/v1/namespaces/default/meters/a?x=1";
    let answer = server
        .send("POST", path, &[("x-remote-user", "root"), ("content-type", "application/json")], "[1]")
        .await;
    assert_eq!(answer.body["target"], path);
    assert_eq!((&answer.body["user"], &answer.body["group"]), (&json!("admin"), &json!("system:masters")));
    assert_eq!((&answer.body["authorization"], &answer.body["sent"]), (&Value::Null, &json!([1])));
    assert_eq!(answer.body["host"], "metrics.default.svc:443");

    let list = server.get("/apis/metrics.example.com/v1").await;
    assert_eq!(list.body["resources"][0]["kind"], "Meter");
    let group = server.get("/apis/metrics.example.com").await;
    assert_eq!(group.body["preferredVersion"]["groupVersion"], "metrics.example.com/v1");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let all = server.send("GET", "/apis", &[("accept", accept)], "").await;
    let items = all.body["items"].as_array().unwrap();
    let group = items.iter().find(|i| i["metadata"]["name"] == "metrics.example.com").unwrap();
    assert_eq!(group["versions"][0]["resources"][0]["resource"], "meters");
    assert_eq!(group["versions"][0]["resources"][0]["subresources"][0]["subresource"], "scale");

    let nobody = server.send("GET", path, &[("authorization", "Bearer wrong")], "").await;
    assert_eq!(nobody.code, 401, "the server decides who may ask before it passes anything on");
    let map = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let data = server.get(map).await.body["data"].clone();
    assert_eq!(data["requestheader-client-ca-file"], front.pem());
    assert_eq!(data["requestheader-allowed-names"], r#"["front"]"#);

    assert_eq!(server.delete(&format!("{SERVICES}/v1.metrics.example.com")).await.code, 200);
    for _ in 0..300 {
        if server.get("/apis/metrics.example.com/v1").await.code == 404 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the group stays after its API service is gone");
}

#[tokio::test]
async fn a_service_in_this_process_is_found_there() {
    let serving = Authority::new("serving");
    let address = serve(&serving, &["metrics.default.svc"], None, |_| {
        (200, json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "metrics.example.com/v1", "resources": [] }))
    })
    .await;
    let local = LocalService { namespace: "default".into(), name: "metrics".into(), address };
    let server = start_with(|config| config.local_services.push(local)).await;
    let service = json!({
        "kind": "Service", "apiVersion": "v1", "metadata": { "name": "metrics" },
        "spec": { "type": "ExternalName", "externalName": "nowhere.invalid" },
    });
    assert_eq!(server.post("/api/v1/namespaces/default/services", service).await.code, 201);
    let bundle = STANDARD.encode(serving.pem());
    assert_eq!(server.post(SERVICES, api_service("metrics.example.com", "metrics", &bundle)).await.code, 201);
    until(&server, "v1.metrics.example.com", "True", "Passed").await;
}

#[tokio::test]
async fn a_proxied_service_may_want_tls_and_learns_nothing_of_who_asks() {
    let (front, serving) = (Authority::new("front-proxy"), Authority::new("serving"));
    let server = with_front_proxy(&front).await;
    let address =
        serve(&serving, &["else"], Some(&front), |asked| (200, json!([asked.target, asked.proven]))).await;
    expose(&server, address).await;
    let proxy = |name: &str| format!("/api/v1/namespaces/default/services/{name}/proxy/a?b=c");
    for name in ["https:metrics:443", "https:metrics:"] {
        assert_eq!(server.get(&proxy(name)).await.body, json!(["/a?b=c", false]), "{name}");
    }
    assert_ne!(server.get(&proxy("metrics:443")).await.code, 200, "it does not speak plain HTTP");
    let odd = server.get(&proxy("ftp:metrics:443")).await;
    assert_eq!(
        (odd.code, &odd.body["message"]),
        (400, &json!("invalid service request \"ftp:metrics:443\""))
    );
    for (name, why) in [
        ("https:metrics:80", "no service port \"80\" found for service \"metrics\""),
        ("gone", "services \"gone\" not found"),
    ] {
        assert_eq!(server.get(&proxy(name)).await.body["message"], why);
    }
}

#[tokio::test]
async fn an_unreachable_server_takes_nothing_else_along() {
    let front = Authority::new("front-proxy");
    let server = with_front_proxy(&front).await;
    let missing = api_service("missing.example.com", "nowhere", "");
    assert_eq!(server.post(SERVICES, missing).await.code, 201);
    let found = until(&server, "v1.missing.example.com", "False", "ServiceNotFound").await;
    assert_eq!(found["message"], "service/nowhere in \"default\" is not present");
    let nobody = tokio::net::TcpListener::bind("127.42.0.1:0").await.unwrap().local_addr().unwrap();
    expose(&server, nobody).await;
    let dead = api_service("dead.example.com", "metrics", &STANDARD.encode(front.pem()));
    assert_eq!(server.post(SERVICES, dead).await.code, 201);
    until(&server, "v1.dead.example.com", "False", "FailedDiscoveryCheck").await;

    for path in ["/apis/missing.example.com/v1", "/apis/dead.example.com/v1/things"] {
        let answer = server.get(path).await;
        assert_eq!((answer.code, answer.body), (503, json!("service unavailable\n")), "{path}");
    }
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let all = server.send("GET", "/apis", &[("accept", accept)], "").await;
    let items = all.body["items"].as_array().unwrap();
    let group = items.iter().find(|i| i["metadata"]["name"] == "dead.example.com").unwrap();
    assert_eq!(group["versions"], json!([{ "version": "v1", "resources": [], "freshness": "Stale" }]));
    assert!(items.iter().any(|i| i["metadata"]["name"] == "apps"));
    assert_eq!(server.get("/apis/apps/v1/deployments").await.code, 200);
}

#[tokio::test]
async fn own_groups_are_registered_and_custom_ones_come_and_go() {
    let server = start_with(|_| {}).await;
    until(&server, "v1.", "True", "Local").await;
    let apps = server.get(&format!("{SERVICES}/v1.apps")).await;
    assert_eq!(apps.body["spec"]["groupPriorityMinimum"], 17_800);
    assert_eq!(apps.body["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    let definition = json!({
        "kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": { "name": "toys.example.com" },
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": { "kind": "Toy", "plural": "toys" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": { "type": "object" } } }],
        },
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(server.post(definitions, definition).await.code, 201);
    until(&server, "v1.example.com", "True", "Local").await;
    assert_eq!(server.delete(&format!("{definitions}/toys.example.com")).await.code, 200);
    for _ in 0..300 {
        if server.get(&format!("{SERVICES}/v1.example.com")).await.code == 404 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the API service stays after its definition is gone");
}
