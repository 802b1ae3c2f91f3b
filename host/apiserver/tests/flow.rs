//! Fairness: who is served when there is too much to do.

mod support;

use serde_json::json;
use support::{Server, start};

const BASE: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

async fn header(
    server: &Server,
    user: &str,
    group: &str,
    path: &str,
) -> (u16, Option<String>, Option<String>) {
    use tower::ServiceExt;
    let request = http::Request::builder()
        .uri(path)
        .header("authorization", format!("Bearer {}", support::TOKEN))
        .header("impersonate-user", user)
        .header("impersonate-group", group)
        .body(axum::body::Body::empty())
        .unwrap();
    let response = server.api.router().oneshot(request).await.unwrap();
    let text = |name: &str| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    let level = text("x-kubernetes-pf-prioritylevel-uid");
    (response.status().as_u16(), level, text("retry-after"))
}

#[tokio::test]
async fn every_cluster_has_the_levels_and_answers_name_them() {
    let server = start().await;
    let levels = server.get(&format!("{BASE}/prioritylevelconfigurations")).await;
    let names: Vec<_> =
        levels.body["items"].as_array().unwrap().iter().map(|l| l["metadata"]["name"].clone()).collect();
    assert_eq!(
        names,
        [
            "catch-all",
            "exempt",
            "global-default",
            "leader-election",
            "node-high",
            "system",
            "workload-high",
            "workload-low"
        ]
    );
    let uid = |name: &str| {
        let levels = levels.body["items"].as_array().unwrap();
        let level = levels.iter().find(|l| l["metadata"]["name"] == name).unwrap();
        level["metadata"]["uid"].as_str().unwrap().to_owned()
    };
    let (_, level, _) = header(&server, "jane", "system:masters", "/api/v1/pods").await;
    assert_eq!(level, Some(uid("exempt")), "masters are not limited");
    for _ in 0..200 {
        let schema = server.get(&format!("{BASE}/flowschemas/service-accounts")).await;
        if schema.body["status"]["conditions"][0]["status"] == "False" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("schemas are not told that their level exists");
}

#[tokio::test]
async fn a_level_without_seats_turns_its_users_away_and_no_others() {
    let server = start().await;
    let level = json!({
        "kind": "PriorityLevelConfiguration", "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "metadata": { "name": "none" },
        "spec": { "type": "Limited", "limited": { "nominalConcurrencyShares": 0, "limitResponse": { "type": "Reject" } } },
    });
    assert_eq!(server.post(&format!("{BASE}/prioritylevelconfigurations"), level).await.code, 201);
    let schema = json!({
        "kind": "FlowSchema", "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "metadata": { "name": "aaa" },
        "spec": {
            "priorityLevelConfiguration": { "name": "none" }, "matchingPrecedence": 2,
            "rules": [{
                "subjects": [{ "kind": "User", "user": { "name": "greedy" } }],
                "resourceRules": [{ "verbs": ["list"], "apiGroups": [""], "resources": ["pods"], "clusterScope": true, "namespaces": ["*"] }],
            }],
        },
    });
    let answer = server.post(&format!("{BASE}/flowschemas"), schema).await;
    assert_eq!(answer.code, 201, "{answer:?}");
    // No seats of its own, and idle levels lend theirs: take that away too.
    let levels = server.get(&format!("{BASE}/prioritylevelconfigurations")).await;
    for level in levels.body["items"].as_array().unwrap() {
        let name = level["metadata"]["name"].as_str().unwrap();
        if level["spec"]["type"] == "Limited" {
            let path = format!("{BASE}/prioritylevelconfigurations/{name}");
            let answer =
                server.merge(&path, json!({ "spec": { "limited": { "lendablePercent": 0 } } })).await;
            assert_eq!(answer.code, 200);
        }
    }
    let mut last = (0, None, None);
    for _ in 0..200 {
        last = header(&server, "greedy", "some", "/api/v1/pods").await;
        if last.0 == 429 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!((last.0, last.2.as_deref()), (429, Some("1")));
    // These get as far as to be told that they may not.
    assert_eq!(header(&server, "modest", "some", "/api/v1/pods").await.0, 403);
    assert_eq!(header(&server, "greedy", "some", "/api/v1/nodes").await.0, 403);
    let metrics = server.get("/metrics").await;
    let text = metrics.body.as_str().unwrap();
    assert!(
        text.contains("apiserver_flowcontrol_rejected_requests_total{priority_level=\"none\"}"),
        "{text}"
    );
}
