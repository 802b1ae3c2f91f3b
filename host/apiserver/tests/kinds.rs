//! What is particular about pods, services, scales and the like.

mod support;

use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";

async fn with_account() -> support::Server {
    let server = support::start().await;
    server.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    server
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn service(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["ports"] = json!([{"port": 80}]);
    json!({"metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn a_bound_pod_goes_gracefully() {
    let server = with_account().await;
    let made = server.post(PODS, pod("p")).await;
    assert_eq!(made.code, 201, "{made:?}");
    assert_eq!(
        made.body["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["path"],
        "token"
    );
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(server.post(&format!("{PODS}/p/binding"), binding.clone()).await.code, 201);
    assert_eq!(server.post(&format!("{PODS}/p/binding"), binding).await.code, 409);
    let marked = server.delete(&format!("{PODS}/p")).await;
    assert_eq!(marked.body["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(server.get(&format!("{PODS}/p")).await.code, 200);
    server.delete(&format!("{PODS}/p?gracePeriodSeconds=0")).await;
    assert_eq!(server.get(&format!("{PODS}/p")).await.code, 404);
    server.post(PODS, pod("q")).await;
    server.delete(&format!("{PODS}/q")).await;
    assert_eq!(server.get(&format!("{PODS}/q")).await.code, 404, "an unbound pod has nobody to wait for");
}

#[tokio::test]
async fn services_get_addresses_and_ports_of_their_own_and_give_them_back() {
    let server = support::start().await;
    let made = server.post(SERVICES, service("a", json!({"type": "NodePort"}))).await;
    let address = made.body["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let port = made.body["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert!(address.starts_with("127.43.") && (30_000..=32_767).contains(&port), "{made:?}");
    let addresses = format!("/apis/networking.k8s.io/v1/ipaddresses/{address}");
    assert_eq!(server.get(&addresses).await.body["spec"]["parentRef"]["name"], "a");
    let taken = server.post(SERVICES, service("b", json!({"clusterIP": address}))).await;
    assert!(
        taken.body["message"].as_str().unwrap().ends_with("provided IP is already allocated"),
        "{taken:?}"
    );
    let mut same_port = service("b", json!({"type": "NodePort"}));
    same_port["spec"]["ports"][0]["nodePort"] = port.into();
    assert_eq!(server.post(SERVICES, same_port).await.code, 422);
    server.delete(&format!("{SERVICES}/a")).await;
    assert_eq!(server.get(&addresses).await.code, 404);
    assert_eq!(server.post(SERVICES, service("b", json!({"clusterIP": address}))).await.code, 201);
    let headless = server.post(SERVICES, service("h", json!({"clusterIP": "None"}))).await;
    assert_eq!(headless.body["spec"]["clusterIPs"], json!(["None"]));
}

#[tokio::test]
async fn an_address_stays_what_it_is() {
    let server = support::start().await;
    let made = server.post(SERVICES, service("a", json!({}))).await;
    let path = format!("{SERVICES}/a");
    let changed = server.merge(&path, json!({"spec": {"clusterIP": "127.43.9.9"}})).await;
    let message = changed.body["message"].as_str().unwrap();
    let expected = r#"spec.clusterIPs[0]: Invalid value: ["127.43.9.9"]: may not change once set"#;
    assert!(changed.code == 422 && message.contains(expected), "{changed:?}");
    assert_eq!(server.get(&path).await.body["spec"], made.body["spec"]);
    let outside = server.merge(&path, json!({"spec": {"externalIPs": ["127.99.0.1"]}})).await;
    assert_eq!((outside.code, &outside.body["spec"]["externalIPs"]), (200, &json!(["127.99.0.1"])));
    let own = server.merge(&path, json!({"spec": {"externalIPs": ["127.0.0.1"]}})).await;
    assert!(own.body["message"].as_str().unwrap().contains("may not be in the loopback range"), "{own:?}");
}

#[tokio::test]
async fn many_services_at_once_never_share_an_address() {
    let server = support::start_with(|config| {
        config.service_range = wasmk_apiserver::ServiceRange::parse("127.43.0.0/26").unwrap();
    })
    .await;
    let creates = (0..40).map(|i| {
        let server = &server;
        async move { server.post(SERVICES, service(&format!("s{i}"), json!({}))).await }
    });
    let answers = futures::future::join_all(creates).await;
    let addresses: std::collections::BTreeSet<_> =
        answers.iter().map(|a| a.body["spec"]["clusterIP"].as_str().expect("created").to_owned()).collect();
    assert_eq!(addresses.len(), 40);
}

#[tokio::test]
async fn scale_changes_the_number_and_its_owner() {
    let server = support::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"selector": {"matchLabels": {"a": "b"}}, "template": template});
    server.post(path, json!({"metadata": {"name": "d"}, "spec": spec})).await;
    let scale = server.get(&format!("{path}/d/scale")).await.body;
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(1), &json!("a=b")));
    server.merge(&format!("{path}/d/scale"), json!({"spec": {"replicas": 3}})).await;
    let deployment = server.get(&format!("{path}/d")).await.body;
    assert_eq!(
        (&deployment["spec"]["replicas"], &deployment["metadata"]["generation"]),
        (&json!(3), &json!(2))
    );
    let owners = deployment["metadata"]["managedFields"].to_string();
    assert!(owners.contains("\"subresource\":\"scale\""), "{owners}");
}

#[tokio::test]
async fn a_budget_refuses_the_eviction_it_has_no_room_for() {
    let server = with_account().await;
    server.post(PODS, pod("p")).await;
    server.merge(&format!("{PODS}/p/status"), json!({"status": {"phase": "Running"}})).await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let spec = json!({"minAvailable": 1, "selector": {"matchLabels": {"app": "p"}}});
    server.post(budgets, json!({"metadata": {"name": "b"}, "spec": spec})).await;
    let status = |left: i64| json!({"status": {"observedGeneration": 1, "disruptionsAllowed": left}});
    server.merge(&format!("{budgets}/b/status"), status(0)).await;
    let eviction = json!({"metadata": {"name": "p"}});
    assert_eq!(server.post(&format!("{PODS}/p/eviction"), eviction.clone()).await.code, 429);
    server.merge(&format!("{budgets}/b/status"), status(1)).await;
    assert_eq!(server.post(&format!("{PODS}/p/eviction"), eviction).await.code, 201);
    let budget = server.get(&format!("{budgets}/b")).await.body;
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert_eq!(server.get(&format!("{PODS}/p")).await.code, 404);
}

#[tokio::test]
async fn a_quota_is_charged_and_refuses_the_rest() {
    let server = support::start().await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    server.post(quotas, json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "1"}}})).await;
    let status = json!({"status": {"hard": {"configmaps": "1"}, "used": {"configmaps": "0"}}});
    server.merge(&format!("{quotas}/q/status"), status).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    assert_eq!(server.post(maps, json!({"metadata": {"name": "a"}})).await.code, 201);
    let refused = server.post(maps, json!({"metadata": {"name": "b"}})).await;
    assert_eq!(
        refused.body["message"],
        "configmaps \"b\" is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=1, limited: configmaps=1"
    );
}

#[tokio::test]
async fn a_namespace_stays_until_it_is_finalized() {
    let server = support::start().await;
    server.post("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    server.delete("/api/v1/namespaces/n").await;
    assert_eq!(server.get("/api/v1/namespaces/n").await.code, 200);
    let empty = json!({"metadata": {"name": "n"}, "spec": {"finalizers": []}});
    server.put("/api/v1/namespaces/n/finalize", empty).await;
    assert_eq!(server.get("/api/v1/namespaces/n").await.code, 404);
    assert_eq!(server.delete("/api/v1/namespaces/default").await.code, 403);
}

#[tokio::test]
async fn what_is_stored_in_one_version_is_read_in_others() {
    let server = support::start().await;
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = json!({
        "metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.000000Z", "note": "hello", "type": "Normal",
        "reason": "R", "action": "A", "reportingController": "c", "reportingInstance": "i",
        "regarding": {"kind": "Pod", "namespace": "default", "name": "p"},
    });
    let made = server.post(events, event).await;
    assert_eq!(made.code, 201, "{made:?}");
    let core = server.get("/api/v1/namespaces/default/events/e").await.body;
    assert_eq!((&core["message"], &core["involvedObject"]["name"]), (&json!("hello"), &json!("p")));
    assert_eq!(server.get(&format!("{events}/e")).await.body["note"], "hello");
}

#[tokio::test]
async fn an_eviction_is_deleted_as_its_options_say() {
    let server = with_account().await;
    server.post(PODS, pod("p")).await;
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(server.post(&format!("{PODS}/p/binding"), binding).await.code, 201);
    let running =
        json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(server.merge(&format!("{PODS}/p/status"), running).await.code, 200);
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 0, "selector": {"matchLabels": {"app": "p"}}}});
    assert_eq!(server.post(budgets, budget).await.code, 201);
    let status = json!({"status": {
        "observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 1, "desiredHealthy": 0, "expectedPods": 1,
    }});
    assert_eq!(server.merge(&format!("{budgets}/b/status"), status).await.code, 200);
    let evict = |options: Value| {
        let server = &server;
        let eviction = json!({"metadata": {"name": "p"}, "deleteOptions": options});
        async move { server.post(&format!("{PODS}/p/eviction"), eviction).await }
    };
    for (options, code, word) in [
        (json!({"dryRun": ["All"]}), 201, "Success"),
        (json!({"dryRun": ["Some"]}), 422, "supported values: \"All\""),
        (json!({"propagationPolicy": "Never"}), 422, "Unsupported value: \"Never\""),
    ] {
        let answer = evict(options).await;
        assert!(
            answer.code == code && answer.body.to_string().replace("\\\"", "\"").contains(word),
            "{answer:?}"
        );
        let pod = server.get(&format!("{PODS}/p")).await.body;
        assert_eq!(pod["metadata"].get("deletionTimestamp"), None, "{word}");
        let budget = server.get(&format!("{budgets}/b")).await.body;
        assert_eq!(budget["status"]["disruptionsAllowed"], 1, "{word}");
    }
    assert_eq!(evict(json!({})).await.code, 201);
    let pod = server.get(&format!("{PODS}/p")).await.body;
    assert!(pod["metadata"]["deletionTimestamp"].is_string(), "{pod}");
    let budget = server.get(&format!("{budgets}/b")).await.body;
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
}
