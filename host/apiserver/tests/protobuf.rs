//! Answers in protobuf: objects, lists, watches and failures of the kinds of Kubernetes, metadata of all.

mod support;

use serde_json::{Value, json};
use wasmk_machinery::decode::from_protobuf;

const BINARY: &str = "application/vnd.kubernetes.protobuf";
const PODS: &str = "/api/v1/namespaces/default/pods";
const THINGS: &str = "/apis/example.com/v1/namespaces/default/things";

fn pod() -> Value {
    json!({
        "metadata": {"name": "a", "labels": {"app": "web"}},
        "spec": {
            "containers": [{
                "name": "c", "image": "i", "resources": {"limits": {"memory": "64Mi", "cpu": "0.5"}},
                "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 3},
                "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": false}}}],
            }],
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "p", "projected": {"sources": [
                {"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}},
            ]}}],
            "terminationGracePeriodSeconds": 0,
        },
    })
}

async fn get(server: &support::Server, path: &str, accept: &str) -> support::Answer {
    server.send("GET", path, &[("accept", accept)], "").await
}

#[tokio::test]
async fn objects_say_the_same_as_in_json() {
    let server = support::start().await;
    server.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let path = format!("{PODS}/a");
    let headers = [("accept", BINARY), ("content-type", "application/json")];
    let made = server.send("POST", PODS, &headers, &pod().to_string()).await;
    assert_eq!((made.code, &*made.media), (201, BINARY), "{made:?}");
    assert!(made.bytes.starts_with(b"k8s\0\n\x09\n\x02v1\x12\x03Pod"));
    let plain = server.get(&path).await.body;
    assert_eq!(made.body, plain);
    assert_eq!(get(&server, &path, BINARY).await.body, plain);
    // What was read is what can be written.
    let written = server.api.router();
    let put = http::Request::put(&path)
        .header("authorization", format!("Bearer {}", support::TOKEN))
        .header("content-type", BINARY)
        .body(axum::body::Body::from(made.bytes))
        .unwrap();
    assert_eq!(tower::ServiceExt::oneshot(written, put).await.unwrap().status(), 200);
    let list = get(&server, &format!("{PODS}?limit=1"), BINARY).await;
    assert_eq!((&list.body["kind"], &list.body["apiVersion"]), (&json!("PodList"), &json!("v1")));
    let mut item = plain.clone();
    item.as_object_mut().unwrap().retain(|key, _| key != "kind" && key != "apiVersion");
    assert_eq!(list.body["items"], json!([item]));
    assert_eq!(
        list.body["metadata"]["resourceVersion"],
        server.get(PODS).await.body["metadata"]["resourceVersion"]
    );
    let gone = server.send("DELETE", &path, &[("accept", BINARY)], "").await;
    assert_eq!((gone.code, &*gone.media, &gone.body["kind"]), (200, BINARY, &json!("Pod")));
}

/// The items of a list without what is null in JSON and absent in protobuf.
fn items_of(list: &support::Answer) -> Vec<Value> {
    let mut items = list.body["items"].clone();
    without_nulls(&mut items);
    items.as_array().cloned().unwrap_or_default()
}

fn without_nulls(value: &mut Value) {
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, value| !value.is_null());
        map.values_mut().for_each(without_nulls);
    }
    value.as_array_mut().into_iter().flatten().for_each(without_nulls);
}

#[tokio::test]
async fn lists_of_every_resource() {
    let server = support::start().await;
    let mut roots = vec!["/api/v1".to_owned()];
    for group in server.get("/apis").await.body["groups"].as_array().unwrap() {
        let versions = group["versions"].as_array().unwrap().iter();
        roots.extend(versions.map(|version| format!("/apis/{}", version["groupVersion"].as_str().unwrap())));
    }
    let (mut lists, mut items) = (0, 0);
    for root in roots {
        for resource in server.get(&root).await.body["resources"].as_array().unwrap() {
            if !resource["verbs"].as_array().unwrap().contains(&json!("list")) {
                continue;
            }
            let path = format!("{root}/{}", resource["name"].as_str().unwrap());
            let (plain, binary) = (server.get(&path).await, get(&server, &path, BINARY).await);
            assert_eq!((binary.code, &*binary.media), (200, BINARY), "{path}");
            assert_eq!(items_of(&binary), items_of(&plain), "{path}");
            (lists, items) = (lists + 1, items + items_of(&plain).len());
        }
    }
    assert!(lists > 60 && items > 100, "{lists} lists of {items} objects");
}

#[tokio::test]
async fn failures_and_forms() {
    let server = support::start().await;
    let none = get(&server, &format!("{PODS}/none"), BINARY).await;
    assert_eq!((none.code, &*none.media), (404, BINARY));
    assert_eq!((&none.body["kind"], &none.body["reason"]), (&json!("Status"), &json!("NotFound")));
    assert_eq!(none.body["details"], json!({"name": "none", "kind": "pods"}));
    let stranger = [("accept", BINARY), ("authorization", "")];
    let refused = server.send("GET", PODS, &stranger, "").await;
    assert_eq!((&*refused.media, &refused.body["kind"]), (BINARY, &json!("Status")), "{refused:?}");
    // There are no tables in protobuf: the next that is wanted, or nothing.
    let table = format!("{BINARY};as=Table;v=v1;g=meta.k8s.io");
    assert_eq!(get(&server, PODS, &table).await.code, 406);
    let either = format!("{table},application/json;as=Table;v=v1;g=meta.k8s.io");
    assert_eq!(get(&server, PODS, &either).await.body["kind"], "Table");
    // Documents that are no objects are JSON.
    assert_eq!(get(&server, "/version", BINARY).await.media, "application/json");
    assert_eq!(get(&server, "/apis", BINARY).await.body["kind"], "APIGroupList");
}

#[tokio::test]
async fn of_custom_resources_only_their_metadata() {
    let server = support::start().await;
    let definition = json!({
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            }}}],
        },
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(server.post(definitions, definition).await.code, 201);
    let kind = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": 1});
    while server.get(THINGS).await.code != 200 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(server.post(THINGS, kind).await.code, 201);
    for path in [THINGS.to_owned(), format!("{THINGS}/t"), format!("{THINGS}?watch=1")] {
        let refused = get(&server, &path, BINARY).await;
        assert_eq!((refused.code, &*refused.media), (406, BINARY), "{path}");
        assert_eq!(refused.body["reason"], "NotAcceptable");
        assert_eq!(
            get(&server, &format!("{THINGS}/t"), &format!("{BINARY},application/json")).await.media,
            "application/json"
        );
    }
    let partial = format!("{BINARY};as=PartialObjectMetadataList;v=v1;g=meta.k8s.io");
    let list = get(&server, THINGS, &partial).await;
    assert_eq!(
        (list.code, &*list.media, &list.body["kind"]),
        (200, BINARY, &json!("PartialObjectMetadataList"))
    );
    assert_eq!(list.body["items"][0]["metadata"]["name"], "t");
    // The definition itself is of a kind of Kubernetes.
    let found = get(&server, &format!("{definitions}/things.example.com"), BINARY).await.body;
    assert_eq!(found, server.get(&format!("{definitions}/things.example.com")).await.body);
}

/// The changes of a watch: what happened and the object.
fn changes(mut stream: &[u8]) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    while let Some((length, rest)) = stream.split_first_chunk::<4>() {
        let (event, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        stream = rest;
        // `type` is text of less than 128 bytes, `object` a message around the object's bytes.
        assert_eq!(event[0], 0x0a);
        let (word, object) = event[2..].split_at(event[1].into());
        let start = object.windows(4).position(|window| window == b"k8s\0").unwrap();
        let object = from_protobuf(&object[start..]).unwrap().into_value();
        all.push((String::from_utf8(word.to_vec()).unwrap(), object));
    }
    all
}

#[tokio::test]
async fn watches_are_streams_of_messages() {
    let server = support::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let list = server.get(maps).await;
    let begin = list.body["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    server.post(maps, json!({"metadata": {"name": "m"}, "data": {"k": "1"}})).await;
    server.merge(&format!("{maps}/m"), json!({"data": {"k": "2"}})).await;
    let last = server.get(&format!("{maps}/m")).await.body;
    server.delete(&format!("{maps}/m")).await;
    let path = format!("{maps}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion={begin}");
    let two = tokio::join!(get(&server, &path, BINARY), get(&server, &path, BINARY));
    for answer in [two.0, two.1] {
        assert_eq!((answer.code, &*answer.media), (200, "application/vnd.kubernetes.protobuf;stream=watch"));
        let changes = changes(&answer.bytes);
        let words: Vec<&str> = changes.iter().map(|(word, _)| &**word).collect();
        assert_eq!(words[..3], ["ADDED", "MODIFIED", "DELETED"], "{changes:?}");
        assert_eq!(changes[1].1, last);
    }
    let old = format!("{maps}?watch=1&timeoutSeconds=1&resourceVersion=999999999");
    assert_eq!(get(&server, &old, BINARY).await.body["kind"], "Status");
    let initial = format!(
        "{maps}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    );
    let answer = get(&server, &initial, BINARY).await;
    let all = changes(&answer.bytes);
    let end = all.iter().find(|(word, _)| word == "BOOKMARK").unwrap();
    assert_eq!(end.1["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(get(&server, &path, "application/yaml").await.code, 406);
}
