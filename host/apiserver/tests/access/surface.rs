//! Every route there is, tried by those who may not: nothing answers without authentication and authorization.

use serde_json::{Value, json};
use wasmk_apiserver::User;

use crate::support::{self, Server};

/// Who tries, with the headers that make them so.
const STRANGERS: [(&str, &[(&str, &str)]); 4] = [
    ("anonymous", &[("authorization", "")]),
    ("a user without rights", &[("authorization", "Bearer nobody")]),
    ("a node", &[("authorization", "Bearer node")]),
    ("a foreign service account", &[("authorization", "Bearer robot")]),
];

/// What a stranger may ask for besides what everybody may: questions about oneself, and what nodes are for.
fn is_open(who: &str, method: &str, path: &str) -> bool {
    let own = ["selfsubjectreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"];
    if who != "anonymous" && method == "POST" && own.iter().any(|review| path.ends_with(review)) {
        return true;
    }
    let node = [
        ("GET", "/api/v1/services"),
        ("GET", "/api/v1/namespaces/secret/services"),
        ("GET", "/api/v1/namespaces/secret/services/x"),
        ("POST", "/api/v1/namespaces/secret/events"),
        ("PUT", "/api/v1/namespaces/secret/events/x"),
        ("PATCH", "/api/v1/namespaces/secret/events/x"),
        ("POST", "/apis/events.k8s.io/v1/namespaces/secret/events"),
        ("PUT", "/apis/events.k8s.io/v1/namespaces/secret/events/x"),
        ("PATCH", "/apis/events.k8s.io/v1/namespaces/secret/events/x"),
        ("POST", "/api/v1/nodes"),
        ("PUT", "/api/v1/nodes/x"),
        ("PATCH", "/api/v1/nodes/x"),
        ("PUT", "/api/v1/nodes/x/status"),
        ("PATCH", "/api/v1/nodes/x/status"),
        ("POST", "/api/v1/namespaces/secret/pods"),
        ("DELETE", "/api/v1/namespaces/secret/pods/x"),
        ("PUT", "/api/v1/namespaces/secret/pods/x/status"),
        ("PATCH", "/api/v1/namespaces/secret/pods/x/status"),
        ("POST", "/api/v1/namespaces/secret/pods/x/eviction"),
        ("GET", "/api/v1/namespaces/secret/endpoints/x"),
        ("POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests"),
        ("GET", "/apis/certificates.k8s.io/v1/certificatesigningrequests"),
        ("GET", "/apis/certificates.k8s.io/v1/certificatesigningrequests/x"),
        ("POST", "/apis/authentication.k8s.io/v1/tokenreviews"),
        ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews"),
        ("POST", "/apis/authorization.k8s.io/v1/namespaces/secret/localsubjectaccessreviews"),
        ("POST", "/apis/storage.k8s.io/v1/csinodes"),
        ("GET", "/apis/storage.k8s.io/v1/csidrivers"),
        ("GET", "/apis/storage.k8s.io/v1/csidrivers/x"),
        ("GET", "/apis/node.k8s.io/v1/runtimeclasses"),
        ("GET", "/apis/node.k8s.io/v1/runtimeclasses/x"),
        ("DELETE", "/apis/resource.k8s.io/v1/resourceslices"),
    ];
    who == "a node" && node.contains(&(method, path))
}

fn method_of(verb: &str) -> &'static str {
    match verb {
        "create" => "POST",
        "update" => "PUT",
        "patch" => "PATCH",
        "delete" | "deletecollection" => "DELETE",
        _ => "GET",
    }
}

/// Every route of every served version: method and path.
async fn routes(server: &Server) -> Vec<(&'static str, String)> {
    let mut bases = vec!["/api/v1".to_owned()];
    for group in server.get("/apis").await.body["groups"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            bases.push(format!("/apis/{}", version["groupVersion"].as_str().unwrap()));
        }
    }
    let mut all = Vec::new();
    for base in bases {
        let list = server.get(&base).await.body;
        for resource in list["resources"].as_array().unwrap() {
            let (plural, sub) = match resource["name"].as_str().unwrap().split_once('/') {
                Some((plural, sub)) => (plural.to_owned(), format!("/{sub}")),
                None => (resource["name"].as_str().unwrap().to_owned(), String::new()),
            };
            let space = if resource["namespaced"] == true { "/namespaces/secret" } else { "" };
            for verb in resource["verbs"].as_array().unwrap() {
                let verb = verb.as_str().unwrap();
                let single = !sub.is_empty() || matches!(verb, "get" | "update" | "patch" | "delete");
                let name = if single { "/x" } else { "" };
                all.push((method_of(verb), format!("{base}{space}/{plural}{name}{sub}")));
                if verb == "watch" {
                    all.push(("GET", format!("{base}{space}/{plural}?watch=1&timeoutSeconds=1")));
                    all.push(("GET", format!("{base}/watch{space}/{plural}")));
                }
                if verb == "list" && !space.is_empty() {
                    all.push(("GET", format!("{base}/{plural}")));
                }
            }
        }
    }
    all.sort();
    all.dedup();
    all
}

#[tokio::test]
async fn no_route_answers_to_who_has_no_right_to_it() {
    let server = support::start_with(|config| {
        config.static_tokens.push(("nobody".into(), User::new("nobody", ["x"])));
        config.static_tokens.push(("node".into(), User::new("system:node:edge", ["system:nodes"])));
        let groups = ["system:serviceaccounts", "system:serviceaccounts:other"];
        config.static_tokens.push(("robot".into(), User::new("system:serviceaccount:other:robot", groups)));
    })
    .await;
    server.post("/api/v1/namespaces", json!({"metadata": {"name": "secret"}})).await;
    let routes = routes(&server).await;
    assert!(routes.len() > 400, "only {} routes", routes.len());
    let mut wrong = Vec::new();
    for (method, path) in &routes {
        let plain = path.split('?').next().unwrap().replace("/watch/", "/");
        for (who, headers) in STRANGERS {
            let open = is_open(who, method, &plain);
            if open && (path.contains("watch=1") || path.contains("/watch/")) {
                // It would not end by itself.
                continue;
            }
            let mut headers = headers.to_vec();
            headers.push(("content-type", "application/json"));
            let answer = server.send(method, path, &headers, "{}").await;
            // What a node may ask for is looked at again when its change is admitted.
            let message = answer.body["message"].as_str().unwrap_or("");
            let admitted =
                answer.code != 403 || !(message.contains("User \"") && message.contains("cannot "));
            if (open && !admitted) || (!open && answer.code != 403) {
                wrong.push(format!("{who} {method} {path}: {} {message}", answer.code));
            }
        }
        let refused = server.send(method, path, &[("authorization", "Bearer wrong")], "").await.code;
        if refused != 401 {
            wrong.push(format!("wrong token {method} {path}: {refused}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), routes.len(), wrong.join("\n"));
}

#[tokio::test]
async fn paths_that_are_no_resources_are_open_only_where_roles_say_so() {
    let server = support::start().await;
    let paths = server.get("/").await.body;
    let open =
        ["/healthz", "/livez", "/readyz", "/version", "/.well-known/openid-configuration", "/openid/v1/jwks"];
    for path in paths["paths"].as_array().unwrap().iter().filter_map(Value::as_str).chain([
        "/metrics",
        "/logs",
        "/debug",
        "/nonsense",
    ]) {
        let answer = server.send("GET", path, &[("authorization", "")], "").await;
        let expect = if open[..4].contains(&path) { 200 } else { 403 };
        assert_eq!(answer.code, expect, "{path}");
    }
}
