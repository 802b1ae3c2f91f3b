//! Objects come, change and go, through a real client and through plain requests.

mod support;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::json;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"v": value}}, "data": {"v": value}}))
        .unwrap()
}

#[tokio::test]
async fn a_client_creates_reads_changes_lists_and_deletes() {
    let server = support::start().await;
    let api: Api<ConfigMap> = Api::namespaced(server.client.clone(), "default");
    let made = api.create(&PostParams::default(), &map("a", "1")).await.unwrap();
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
    assert_eq!(api.get("a").await.unwrap(), made);
    let conflict = api.create(&PostParams::default(), &map("a", "1")).await.unwrap_err();
    assert!(conflict.to_string().contains("configmaps \"a\" already exists"), "{conflict}");
    let patch = Patch::Merge(json!({"data": {"v": "2", "w": "3"}}));
    let patched = api.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(patched.data.unwrap()["w"], "3");
    let mut stale = made.clone();
    stale.data = None;
    assert!(
        api.replace("a", &PostParams::default(), &stale).await.unwrap_err().to_string().contains("modified")
    );
    api.create(&PostParams::default(), &map("b", "1")).await.unwrap();
    assert_eq!(api.list(&ListParams::default().labels("v=1")).await.unwrap().items.len(), 2);
    assert_eq!(api.list(&ListParams::default().fields("metadata.name=b")).await.unwrap().items.len(), 1);
    api.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(api.get_opt("a").await.unwrap().is_none());
}

#[tokio::test]
async fn a_watch_sees_every_change_once() {
    let server = support::start().await;
    let api: Api<ConfigMap> = Api::namespaced(server.client.clone(), "default");
    let first = api.create(&PostParams::default(), &map("a", "1")).await.unwrap();
    let from = first.metadata.resource_version.unwrap();
    let stream = api.watch(&WatchParams::default(), &from).await.unwrap();
    api.create(&PostParams::default(), &map("b", "1")).await.unwrap();
    api.patch("b", &PatchParams::default(), &Patch::Merge(json!({"data": {"v": "2"}}))).await.unwrap();
    api.delete("b", &DeleteParams::default()).await.unwrap();
    let events: Vec<String> = stream
        .take(3)
        .map_ok(|event| match event {
            WatchEvent::Added(o) => format!("added {}", o.metadata.name.unwrap()),
            WatchEvent::Modified(o) => format!("modified {}", o.data.unwrap()["v"]),
            WatchEvent::Deleted(o) => format!("deleted {}", o.metadata.name.unwrap()),
            other => format!("{other:?}"),
        })
        .try_collect()
        .await
        .unwrap();
    assert_eq!(events, ["added b", "modified 2", "deleted b"]);
}

#[tokio::test]
async fn every_cluster_starts_with_its_namespaces_and_roles() {
    let server = support::start().await;
    let namespaces: Api<Namespace> = Api::all(server.client.clone());
    let names: Vec<_> = namespaces.list(&ListParams::default()).await.unwrap().items;
    let names: Vec<_> = names.into_iter().map(|n| n.metadata.name.unwrap()).collect();
    assert_eq!(names, ["default", "kube-node-lease", "kube-public", "kube-system"]);
    let role = server.get("/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin").await;
    assert_eq!(role.body["rules"][0]["verbs"][0], "*");
    let service = server.get("/api/v1/namespaces/default/services/kubernetes").await;
    assert_eq!(service.body["spec"]["clusterIP"], "127.43.0.1");
}

#[tokio::test]
async fn pages_show_one_state() {
    let server = support::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        server.post(MAPS, json!({"metadata": {"name": name}})).await;
    }
    let first = server.get(&format!("{MAPS}?limit=2")).await.body;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    assert_eq!(server.delete(&format!("{MAPS}/c")).await.code, 200);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = server.get(&format!("{MAPS}?limit=2&continue={token}")).await.body;
    assert_eq!(second["items"][0]["metadata"]["name"], "c");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn a_finalizer_keeps_an_object_until_it_is_removed() {
    let server = support::start().await;
    server.post(MAPS, json!({"metadata": {"name": "a", "finalizers": ["example.com/x"]}})).await;
    let marked = server.delete(&format!("{MAPS}/a")).await;
    assert!(marked.body["metadata"]["deletionTimestamp"].is_string(), "{marked:?}");
    assert_eq!(server.get(&format!("{MAPS}/a")).await.code, 200);
    server.merge(&format!("{MAPS}/a"), json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(server.get(&format!("{MAPS}/a")).await.code, 404);
}

#[tokio::test]
async fn nothing_is_created_in_a_namespace_that_goes() {
    let server = support::start().await;
    server.post("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    assert_eq!(server.delete("/api/v1/namespaces/n").await.body["status"]["phase"], "Terminating");
    let refused = server.post("/api/v1/namespaces/n/configmaps", json!({"metadata": {"name": "a"}})).await;
    assert_eq!((refused.code, &refused.body["reason"]), (403, &json!("Forbidden")));
    let missing = server.post("/api/v1/namespaces/none/configmaps", json!({"metadata": {"name": "a"}})).await;
    assert_eq!(missing.code, 404);
}

#[tokio::test]
async fn two_writers_of_one_object_do_not_lose_a_change() {
    let server = support::start().await;
    server.post(MAPS, json!({"metadata": {"name": "a"}})).await;
    let path = format!("{MAPS}/a");
    let writes = (0..20).map(|i| {
        let (server, path) = (&server, &path);
        async move { server.merge(path, json!({"data": {format!("k{i}"): "x"}})).await.code }
    });
    let codes = futures::future::join_all(writes).await;
    assert!(codes.iter().all(|c| *c == 200), "{codes:?}");
    assert_eq!(server.get(&path).await.body["data"].as_object().unwrap().len(), 20);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let server = support::start().await;
    let answer = server.post(&format!("{MAPS}?dryRun=All"), json!({"metadata": {"name": "a"}})).await;
    assert_eq!(answer.code, 201);
    assert_eq!(server.get(&format!("{MAPS}/a")).await.code, 404);
}

#[tokio::test]
async fn events_end_and_nothing_else_does() {
    let server = support::start_with(|config| config.event_ttl = Duration::from_millis(600)).await;
    let events = "/api/v1/namespaces/default/events";
    let event = json!({
        "metadata": {"name": "e"}, "reason": "Test", "type": "Normal",
        "involvedObject": {"kind": "ConfigMap", "name": "a", "namespace": "default"},
    });
    assert_eq!(server.post(events, event).await.code, 201);
    assert_eq!(server.post(MAPS, json!({"metadata": {"name": "a"}})).await.code, 201);
    let gone = async {
        while server.get(&format!("{events}/e")).await.code != 404 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the event ends in time");
    assert_eq!(server.get(&format!("{MAPS}/a")).await.code, 200);
}

#[tokio::test]
async fn a_watch_ends_in_time_however_much_there_is_to_see() {
    let server = support::start().await;
    let (stop, path) = (AtomicBool::new(false), format!("{MAPS}?watch=true&timeoutSeconds=1"));
    let writing = async {
        let mut at = 0;
        while !stop.load(Ordering::Relaxed) {
            at += 1;
            server.post(MAPS, json!({"metadata": {"name": format!("m{at}")}})).await;
        }
        at
    };
    let watching = async {
        let ended = tokio::time::timeout(Duration::from_secs(20), server.get(&path)).await;
        stop.store(true, Ordering::Relaxed);
        ended
    };
    let (ended, written) = tokio::join!(watching, writing);
    assert_eq!(ended.expect("the watch ends").code, 200);
    assert!(written > 1);
}
