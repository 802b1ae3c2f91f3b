//! Nodes: what they read and write.

use serde_json::{Value, json};

use crate::support::{self, Server};

async fn as_node(server: &Server, method: &str, path: &str, body: Value) -> support::Answer {
    let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let headers = [
        ("impersonate-user", "system:node:a"),
        ("impersonate-group", "system:nodes"),
        ("content-type", media),
    ];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    server.send(method, path, &headers, &body).await
}

const CORE: &str = "/api/v1/namespaces/default";

async fn cluster() -> Server {
    let server = support::start().await;
    let made = async |path: &str, body: Value| {
        let answer = server.post(path, body).await;
        assert_eq!(answer.code, 201, "{path}: {:?}", answer.body);
        answer.body
    };
    for name in ["a", "b"] {
        made("/api/v1/nodes", json!({"metadata": {"name": name}})).await;
    }
    for name in ["default", "other"] {
        made(&format!("{CORE}/serviceaccounts"), json!({"metadata": {"name": name}})).await;
    }
    for name in ["used", "unused"] {
        made(&format!("{CORE}/secrets"), json!({"metadata": {"name": name}})).await;
        made(&format!("{CORE}/configmaps"), json!({"metadata": {"name": name}})).await;
    }
    for (name, node) in [("mine", "a"), ("theirs", "b")] {
        let volumes = match name {
            "mine" => json!([
                {"name": "s", "secret": {"secretName": "used"}},
                {"name": "c", "configMap": {"name": "used"}},
                {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": "vault"}}]}},
            ]),
            _ => json!([]),
        };
        made(
            &format!("{CORE}/pods"),
            json!({"metadata": {"name": name}, "spec": {
                "nodeName": node, "containers": [{"name": "c", "image": "i"}], "volumes": volumes,
            }}),
        )
        .await;
    }
    server
}

#[tokio::test]
async fn a_node_reads_what_its_pods_use() {
    let server = cluster().await;
    for (path, expect) in [
        (format!("{CORE}/secrets/used"), 200),
        (format!("{CORE}/secrets/unused"), 403),
        (format!("{CORE}/configmaps/used"), 200),
        (format!("{CORE}/configmaps/unused"), 403),
        (format!("{CORE}/secrets"), 403),
        (format!("{CORE}/secrets?fieldSelector=metadata.name%3Dused"), 200),
        (format!("{CORE}/secrets?fieldSelector=metadata.name%3Dunused"), 403),
        ("/api/v1/secrets?fieldSelector=metadata.name%3Dused".into(), 403),
        (format!("{CORE}/pods/mine"), 200),
        (format!("{CORE}/pods/theirs"), 403),
        ("/api/v1/pods".into(), 403),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Da".into(), 200),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Db".into(), 403),
        ("/api/v1/nodes/a".into(), 200),
        ("/api/v1/nodes/b".into(), 403),
        (format!("{CORE}/serviceaccounts/default"), 200),
        (format!("{CORE}/serviceaccounts/other"), 403),
        ("/api/v1/services".into(), 200),
        ("/apis/apps/v1/deployments".into(), 403),
        ("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/a".into(), 403),
        ("/apis/rbac.authorization.k8s.io/v1/clusterroles".into(), 403),
    ] {
        let answer = as_node(&server, "GET", &path, Value::Null).await;
        assert_eq!(answer.code, expect, "{path}: {:?}", answer.body["message"]);
    }
    let refused = as_node(&server, "GET", &format!("{CORE}/secrets/unused"), Value::Null).await;
    let why = "secrets \"unused\" is forbidden: User \"system:node:a\" cannot get resource \"secrets\" in API group \"\" in the namespace \"default\": no relationship found between node 'a' and this object";
    assert_eq!(refused.body["message"], why);
    // The pod goes, and with it, soon, the right.
    assert_eq!(server.delete(&format!("{CORE}/pods/mine?gracePeriodSeconds=0")).await.code, 200);
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while as_node(&server, "GET", &format!("{CORE}/secrets/used"), Value::Null).await.code != 403 {
        assert!(tokio::time::Instant::now() < until, "the node still reads the secret");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_node_writes_itself_and_its_pods() {
    let server = cluster().await;
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let status = json!({"status": {"phase": "Running"}});
    for (method, path, body, expect) in [
        ("PATCH", "/api/v1/nodes/a".to_owned(), json!({"metadata": {"labels": {"zone": "x"}}}), 200),
        (
            "PATCH",
            "/api/v1/nodes/a".into(),
            json!({"metadata": {"labels": {"node-role.kubernetes.io/x": ""}}}),
            403,
        ),
        ("PATCH", "/api/v1/nodes/a".into(), json!({"spec": {"taints": []}}), 403),
        ("PATCH", "/api/v1/nodes/b".into(), json!({"metadata": {"labels": {"zone": "x"}}}), 403),
        ("PATCH", "/api/v1/nodes/a/status".into(), json!({"status": {"nodeInfo": {}}}), 200),
        ("DELETE", "/api/v1/nodes/a".into(), Value::Null, 403),
        ("POST", "/api/v1/nodes".into(), json!({"metadata": {"name": "c"}}), 403),
        ("POST", leases.into(), lease("a"), 201),
        ("POST", leases.into(), lease("b"), 403),
        ("DELETE", format!("{leases}/b"), Value::Null, 403),
        ("PATCH", format!("{CORE}/pods/mine/status"), status.clone(), 200),
        ("PATCH", format!("{CORE}/pods/theirs/status"), status, 403),
        ("PATCH", format!("{CORE}/pods/mine"), json!({"metadata": {"labels": {"a": "b"}}}), 403),
        (
            "POST",
            format!("{CORE}/pods"),
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
            403,
        ),
        ("DELETE", format!("{CORE}/pods/theirs"), Value::Null, 403),
        (
            "POST",
            format!("{CORE}/pods/theirs/eviction"),
            json!({"metadata": {"name": "theirs"}, "apiVersion": "policy/v1", "kind": "Eviction"}),
            403,
        ),
        ("DELETE", format!("{CORE}/pods/mine?gracePeriodSeconds=0"), Value::Null, 200),
        ("POST", "/api/v1/namespaces".into(), json!({"metadata": {"name": "x"}}), 403),
    ] {
        let answer = as_node(&server, method, &path, body).await;
        assert_eq!(answer.code, expect, "{method} {path}: {:?}", answer.body["message"]);
    }
}

#[tokio::test]
async fn a_node_gets_tokens_for_its_pods_only() {
    let server = cluster().await;
    let pod = |name: &'static str| {
        let server = &server;
        async move { server.get(&format!("{CORE}/pods/{name}")).await.body["metadata"]["uid"].clone() }
    };
    let request = |kind: &str, name: &str, uid: Value, audiences: Value| {
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
            "audiences": audiences,
            "boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid},
        }})
    };
    let (mine, theirs) = (pod("mine").await, pod("theirs").await);
    let path = format!("{CORE}/serviceaccounts/default/token");
    for (body, expect) in [
        (request("Pod", "mine", mine.clone(), json!(null)), 201),
        (request("Pod", "mine", mine.clone(), json!(["vault"])), 201),
        (request("Pod", "mine", mine.clone(), json!(["elsewhere"])), 403),
        (request("Pod", "mine", json!(null), json!(null)), 403),
        (request("Pod", "theirs", theirs, json!(null)), 403),
        (request("Secret", "used", json!(null), json!(null)), 403),
        (json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}), 403),
    ] {
        let answer = as_node(&server, "POST", &path, body.clone()).await;
        assert_eq!(answer.code, expect, "{body}: {:?}", answer.body["message"]);
    }
    let other = format!("{CORE}/serviceaccounts/other/token");
    assert_eq!(as_node(&server, "POST", &other, request("Pod", "mine", mine, json!(null))).await.code, 403);
}
