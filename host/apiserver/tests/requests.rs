//! What a client sees of authentication, authorization, negotiation, limits and discovery.

mod support;

use futures::StreamExt;
use serde_json::{Value, json};
use wasmk_apiserver::{Component, LogFile};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn who_may_do_what() {
    let server = support::start().await;
    let anonymous = [("authorization", "")];
    let code = |a: support::Answer| a.code;
    assert_eq!(code(server.send("GET", "/healthz", &anonymous, "").await), 200);
    let refused = server.send("GET", "/api/v1/pods", &anonymous, "").await;
    assert_eq!(refused.code, 403);
    let why = "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" at the cluster scope";
    assert_eq!(refused.body["message"], why);
    assert_eq!(code(server.send("GET", "/api", &[("authorization", "Bearer wrong")], "").await), 401);
    let jane = [("impersonate-user", "jane")];
    assert_eq!(code(server.send("GET", MAPS, &jane, "").await), 403);
    server
        .post(
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            json!({
                "metadata": {"name": "jane"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:aggregate-to-view"},
                "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}],
            }),
        )
        .await;
    assert_eq!(code(server.send("GET", MAPS, &jane, "").await), 200);
    assert_eq!(code(server.send("DELETE", &format!("{MAPS}/x"), &jane, "").await), 403);
}

#[tokio::test]
async fn tokens_of_service_accounts_are_users_until_what_they_are_bound_to_is_gone() {
    let server = support::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    server.post(accounts, json!({"metadata": {"name": "robot"}})).await;
    let asked =
        server.post(&format!("{accounts}/robot/token"), json!({"spec": {"expirationSeconds": 600}})).await;
    let token = format!("Bearer {}", asked.body["status"]["token"].as_str().unwrap());
    let who = |token: String| {
        let server = &server;
        async move {
            let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
            let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
            server.send("POST", path, &headers, "{}").await
        }
    };
    let review = who(token.clone()).await;
    assert_eq!(review.body["status"]["userInfo"]["username"], "system:serviceaccount:default:robot");
    server.delete(&format!("{accounts}/robot")).await;
    assert_eq!(who(token).await.code, 401);
}

#[tokio::test]
async fn answers_come_in_the_form_that_is_wanted() {
    let server = support::start().await;
    server.post(MAPS, json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).await;
    let get = |accept: &'static str| {
        let server = &server;
        async move { server.send("GET", MAPS, &[("accept", accept)], "").await }
    };
    let table = get("application/json;as=Table;v=v1;g=meta.k8s.io,application/json").await.body;
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    let partial = get("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await.body;
    assert_eq!(partial["items"][0].get("data"), None);
    let yaml = get("application/yaml").await.body;
    assert!(yaml.as_str().unwrap().contains("k: v"), "{yaml}");
    assert_eq!(get("application/xml").await.code, 406);
    assert_eq!(get("application/vnd.kubernetes.protobuf").await.media, "application/vnd.kubernetes.protobuf");
}

#[tokio::test]
async fn bad_input_is_answered_not_survived() {
    let server = support::start().await;
    let big = format!("{{\"metadata\":{{\"name\":\"a\"}},\"data\":{{\"k\":\"{}\"}}}}", "x".repeat(4 << 20));
    for (method, path, kind, body, code) in [
        ("POST", MAPS, "application/json", "{", 400),
        ("POST", MAPS, "application/json", "[]", 400),
        (
            "POST",
            MAPS,
            "application/json",
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"}}"#,
            400,
        ),
        ("POST", MAPS, "application/json", r#"{"metadata":{"name":"A_B"}}"#, 422),
        ("POST", MAPS, "application/json", r#"{"metadata":{"name":"a","namespace":"other"}}"#, 400),
        ("POST", MAPS, "text/plain", "{}", 415),
        ("POST", MAPS, "application/vnd.kubernetes.protobuf", "k8s", 400),
        ("POST", MAPS, "application/json", &big, 413),
        ("PATCH", &format!("{MAPS}/none"), "application/json-patch+json", "[{}]", 404),
        ("PUT", MAPS, "application/json", "{}", 405),
        ("GET", "/apis/none.example.com/v1/things", "", "", 404),
        ("GET", &format!("{MAPS}?limit=x"), "", "", 400),
        ("GET", &format!("{MAPS}?fieldSelector=spec.x%3D1"), "", "", 400),
        ("GET", &format!("{MAPS}?continue=%%%"), "", "", 400),
        ("GET", "/%ff%fe", "", "", 404),
    ] {
        let answer = server.send(method, path, &[("content-type", kind)], body).await;
        assert_eq!(answer.code, code, "{method} {path} {kind}: {:?}", answer.body.to_string().get(..200));
    }
    let unknown = server
        .post(&format!("{MAPS}?fieldValidation=Strict"), json!({"metadata": {"name": "a"}, "x": 1}))
        .await;
    assert!(unknown.body["message"].as_str().unwrap().contains("unknown field \"x\""), "{unknown:?}");
    let warned = server.post(MAPS, json!({"metadata": {"name": "a"}, "x": 1})).await;
    assert!(warned.warnings[0].contains("unknown field"), "{warned:?}");
}

#[tokio::test]
async fn removed_versions_name_their_successor() {
    let server = support::start().await;
    let answer = server.get("/apis/policy/v1beta1/namespaces/default/poddisruptionbudgets").await;
    assert_eq!(answer.code, 404);
    assert!(answer.body["message"].as_str().unwrap().contains("use policy/v1"), "{answer:?}");
}

#[tokio::test]
async fn parts_of_the_control_plane_say_how_they_are() {
    let problem = std::sync::Arc::new(std::sync::Mutex::new(None));
    let told = problem.clone();
    let server = support::start_with(move |config| {
        let problem = move || told.lock().unwrap().clone();
        config.components.push(Component { name: "scheduler", problem: std::sync::Arc::new(problem) });
    })
    .await;
    const PARTS: &str = "/api/v1/componentstatuses";
    let list = server.get(PARTS).await;
    assert_eq!(list.warnings.len(), 1, "{list:?}");
    let names: Vec<_> =
        list.body["items"].as_array().unwrap().iter().map(|i| &i["metadata"]["name"]).collect();
    assert_eq!(names, ["etcd-0", "scheduler"]);
    let of = |answer: support::Answer| answer.body["conditions"].clone();
    let good = json!([{"type": "Healthy", "status": "True", "message": "ok"}]);
    assert_eq!(of(server.get(&format!("{PARTS}/etcd-0")).await), good);
    assert_eq!(of(server.get(&format!("{PARTS}/scheduler")).await), good);
    *problem.lock().unwrap() = Some("out of breath".to_owned());
    let bad = json!([{"type": "Healthy", "status": "False", "message": "out of breath"}]);
    assert_eq!(of(server.get(&format!("{PARTS}/scheduler")).await), bad);
    assert_eq!(server.get(&format!("{PARTS}/other")).await.code, 404);
    let one = server.get(&format!("{PARTS}?fieldSelector=metadata.name%3Dscheduler")).await;
    assert_eq!(one.body["items"].as_array().unwrap().len(), 1);
    assert_eq!(server.post(PARTS, json!({"metadata": {"name": "x"}})).await.code, 405);
}

#[tokio::test]
async fn log_files_are_for_those_who_may() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wasmk.log");
    std::fs::write(&path, "all is well\n").unwrap();
    let files = [("wasmk.log", path), ("audit.log", dir.path().join("none"))];
    let server = support::start_with(|config| {
        config.logs.extend(files.map(|(name, path)| LogFile { name: name.into(), path }));
    })
    .await;
    let list = server.get("/logs").await;
    let text = list.body.as_str().unwrap();
    assert!(text.contains(r#"<a href="/logs/wasmk.log">"#) && !text.contains("audit.log"), "{text}");
    assert_eq!(server.get("/logs/wasmk.log").await.body, "all is well\n");
    for path in ["/logs/audit.log", "/logs/..%2fetc%2fpasswd", "/logs/wasmk.log/x", "/logs/none"] {
        assert_eq!(server.get(path).await.code, 404, "{path}");
    }
    let stranger = [("authorization", "")];
    assert_eq!(server.send("GET", "/logs/wasmk.log", &stranger, "").await.code, 403);
}

/// Walks every served resource and verb: each answers, and none with a fault of the server.
#[tokio::test]
async fn every_resource_answers_every_verb() {
    let server = support::start().await;
    let mut lists = vec![server.get("/api/v1").await.body];
    for group in server.get("/apis").await.body["groups"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            lists
                .push(server.get(&format!("/apis/{}", version["groupVersion"].as_str().unwrap())).await.body);
        }
    }
    let mut checks = Vec::new();
    for list in &lists {
        let gv = list["groupVersion"].as_str().unwrap();
        let root = if gv.contains('/') { format!("/apis/{gv}") } else { format!("/api/{gv}") };
        for resource in list["resources"].as_array().unwrap() {
            for verb in resource["verbs"].as_array().unwrap() {
                checks.push(check_verb(&server, root.clone(), resource, verb.as_str().unwrap()));
            }
        }
    }
    assert!(checks.len() > 500, "only {} verbs", checks.len());
    futures::stream::iter(checks).buffer_unordered(64).collect::<Vec<()>>().await;
}

async fn check_verb(server: &support::Server, root: String, resource: &Value, verb: &str) {
    let name = resource["name"].as_str().unwrap();
    let base =
        if resource["namespaced"] == true { format!("{root}/namespaces/default") } else { root.clone() };
    let (plural, sub) = name.split_once('/').map_or((name, ""), |(p, s)| (p, s));
    let object = if sub.is_empty() {
        format!("{base}/{plural}/nothing")
    } else {
        format!("{base}/{plural}/nothing/{sub}")
    };
    let collection = format!("{base}/{plural}");
    let json = [("content-type", "application/json")];
    let merge = [("content-type", "application/merge-patch+json")];
    let answer = match verb {
        "list" => in_every_encoding(server, &collection).await,
        "watch" => server.get(&format!("{collection}?watch=1&timeoutSeconds=1&resourceVersion=0&fieldSelector=metadata.name%3Dnothing")).await,
        "get" => server.get(&object).await,
        "create" if sub.is_empty() => server.send("POST", &collection, &json, "{}").await,
        "create" => server.send("POST", &object, &json, "{}").await,
        "update" => server.send("PUT", &object, &json, r#"{"metadata":{"name":"nothing"}}"#).await,
        "patch" => server.send("PATCH", &object, &merge, "{}").await,
        "delete" => server.delete(&object).await,
        "deletecollection" => server.delete(&format!("{collection}?labelSelector=none%3Dsuch&dryRun=All")).await,
        other => panic!("{name}: a verb nobody knows: {other}"),
    };
    assert!(answer.code < 500 && answer.code != 405, "{verb} {root} {name}: {answer:?}");
}

/// A list in every encoding and form it can be had in; the answer in the plain one.
async fn in_every_encoding(server: &support::Server, path: &str) -> support::Answer {
    let plain = server.get(path).await;
    let kind = plain.body["kind"].as_str().unwrap_or("").to_owned();
    assert!(kind.ends_with("List"), "{path}: {plain:?}");
    for (accept, expect) in [
        ("application/yaml", format!("kind: {kind}\n")),
        ("application/json;as=Table;v=v1;g=meta.k8s.io", "\"Table\"".into()),
        (
            "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
            "\"PartialObjectMetadataList\"".into(),
        ),
        ("application/vnd.kubernetes.protobuf,application/json", format!("\"{kind}\"")),
    ] {
        let answer = server.send("GET", path, &[("accept", accept)], "").await;
        let text = answer.body.as_str().map_or_else(|| answer.body.to_string(), Into::into);
        assert!(answer.code == 200 && text.contains(&expect), "{path} as {accept}: {answer:?}");
    }
    for odd in ["application/cbor", "application/xml"] {
        assert_eq!(server.send("GET", path, &[("accept", odd)], "").await.code, 406, "{path} as {odd}");
    }
    plain
}

#[tokio::test]
async fn the_api_describes_itself() {
    let server = support::start().await;
    let index = server.get("/openapi/v3").await.body;
    let path = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = server.get(path).await.body;
    assert!(document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"].is_object());
    assert_eq!(server.get("/openapi/v2").await.body["swagger"], "2.0");
    assert_eq!(server.get("/version").await.body["major"], "1");
    assert!(server.get("/metrics").await.body.as_str().unwrap().contains("apiserver_request_total"));
    assert!(server.get("/readyz?verbose").await.body.as_str().unwrap().contains("readyz check passed"));
}

#[tokio::test]
async fn what_is_counted_cannot_be_made_up() {
    let server = support::start().await;
    let anonymous = [("authorization", "")];
    for path in ["/api/v1/x%22%0Ax", "/api/v1/namespaces/default/pods/a/x%22%0Ax", "/apis/made.up/v1/things"]
    {
        let answer = server.send("GET", path, &anonymous, "").await;
        assert!(matches!(answer.code, 401 | 403), "{answer:?}");
    }
    server.get("/api/v1/namespaces/default/pods/a/log").await;
    let text = server.get("/metrics").await.body;
    let text = text.as_str().unwrap();
    for word in ["x\\\"", "x\"\n", "things"] {
        assert!(!text.contains(word), "{text}");
    }
    assert!(text.contains("resource=\"pods/log\""), "{text}");
    assert!(text.lines().all(|line| line.starts_with('#') || line.matches('"').count() % 2 == 0), "{text}");
}

#[tokio::test]
async fn a_request_whose_client_left_is_not_worked_on() {
    use tower::ServiceExt;
    let server = support::start().await;
    let endless = futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
    let request = http::Request::post(MAPS)
        .header("authorization", format!("Bearer {}", support::TOKEN))
        .header("content-type", "application/json")
        .body(axum::body::Body::from_stream(endless))
        .unwrap();
    let answer = server.api.router().oneshot(request);
    let left = tokio::time::timeout(std::time::Duration::from_millis(200), answer).await;
    assert!(left.is_err(), "its body never comes");
    let text = server.get("/metrics").await.body;
    assert!(text.as_str().unwrap().contains("\napiserver_current_inflight_requests 1\n"), "{text}");
}
