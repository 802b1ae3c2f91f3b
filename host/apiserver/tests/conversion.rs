//! Custom resources in several versions that a webhook converts.

#[path = "support/remote.rs"]
mod remote;
mod support;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use remote::{Asked, Authority, serve};
use serde_json::{Value, json};
use support::{Server, start};

const V1: &str = "/apis/example.com/v1/namespaces/default/tanks";
const V2: &str = "/apis/example.com/v2/namespaces/default/tanks";

fn version(name: &str, storage: bool, field: &str) -> Value {
    json!({
        "name": name, "served": true, "storage": storage, "subresources": { "status": {} },
        "schema": { "openAPIV3Schema": { "type": "object", "properties": {
            "spec": { "type": "object", "properties": { field: { "type": "integer" } } },
            "status": { "type": "object", "properties": { field: { "type": "integer" } } },
        } } },
    })
}

/// What version 1 calls litres is millilitres in version 2.
fn convert(asked: &Asked) -> (u16, Value) {
    let request = &asked.body["request"];
    let wanted = &request["desiredAPIVersion"];
    let objects: Vec<Value> = request["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let mut new = object.clone();
            new["apiVersion"] = wanted.clone();
            for part in ["spec", "status"] {
                let Some(map) = new.get_mut(part).and_then(Value::as_object_mut) else { continue };
                if let Some(litres) = map.remove("litres") {
                    map.insert("millilitres".into(), json!(litres.as_i64().unwrap() * 1000));
                } else if let Some(millilitres) = map.remove("millilitres") {
                    map.insert("litres".into(), json!(millilitres.as_i64().unwrap() / 1000));
                }
            }
            new["metadata"]["labels"]["converted"] = "yes".into();
            new
        })
        .collect();
    let response =
        json!({ "uid": request["uid"], "result": { "status": "Success" }, "convertedObjects": objects });
    (200, json!({ "kind": "ConversionReview", "apiVersion": asked.body["apiVersion"], "response": response }))
}

async fn define(server: &Server, url: &str, bundle: &str) {
    let definition = json!({
        "kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": { "name": "tanks.example.com" },
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": { "kind": "Tank", "plural": "tanks" },
            "versions": [version("v1", true, "litres"), version("v2", false, "millilitres")],
            "conversion": { "strategy": "Webhook", "webhook": {
                "conversionReviewVersions": ["v1"], "clientConfig": { "url": url, "caBundle": bundle },
            } },
        },
    });
    let answer = server.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    assert_eq!(answer.code, 201, "{answer:?}");
    for _ in 0..300 {
        if server.get(V2).await.code == 200 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the definition is not served");
}

fn tank(version: &str, name: &str, field: &str, amount: i64) -> Value {
    json!({
        "kind": "Tank", "apiVersion": format!("example.com/{version}"), "metadata": { "name": name }, "spec": { field: amount },
    })
}

#[tokio::test]
async fn objects_are_seen_in_every_version() {
    let server = start().await;
    let authority = Authority::new("converter");
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let address = serve(&authority, &["127.42.0.1"], None, move |asked| {
        counted.fetch_add(1, Ordering::Relaxed);
        convert(&asked)
    })
    .await;
    define(&server, &format!("https://{address}/convert"), &STANDARD.encode(authority.pem())).await;

    // Stored as it is sent: nobody is asked.
    assert_eq!(server.post(V1, tank("v1", "a", "litres", 2)).await.code, 201);
    assert_eq!(calls.load(Ordering::Relaxed), 0);
    let seen = server.get(&format!("{V2}/a")).await;
    assert_eq!(seen.body["spec"], json!({ "millilitres": 2000 }), "{seen:?}");
    assert_eq!(seen.body["apiVersion"], "example.com/v2");
    assert_eq!(seen.body["metadata"]["labels"], json!({ "converted": "yes" }));
    let before = calls.load(Ordering::Relaxed);
    assert_eq!(server.get(&format!("{V2}/a")).await.body, seen.body);
    assert_eq!(calls.load(Ordering::Relaxed), before, "a conversion is kept");

    let made = server.post(V2, tank("v2", "b", "millilitres", 5000)).await;
    assert_eq!((made.code, &made.body["spec"]), (201, &json!({ "millilitres": 5000 })), "{made:?}");
    assert_eq!(server.get(&format!("{V1}/b")).await.body["spec"], json!({ "litres": 5 }));
    let list = server.get(V2).await;
    let amounts: Vec<_> =
        list.body["items"].as_array().unwrap().iter().map(|i| i["spec"]["millilitres"].clone()).collect();
    assert_eq!(amounts, [json!(2000), json!(5000)]);

    let changed = server.merge(&format!("{V2}/a"), json!({ "spec": { "millilitres": 7000 } })).await;
    assert_eq!((changed.code, &changed.body["spec"]), (200, &json!({ "millilitres": 7000 })), "{changed:?}");
    assert_eq!(server.get(&format!("{V1}/a")).await.body["spec"], json!({ "litres": 7 }));
    let status = server.merge(&format!("{V2}/a/status"), json!({ "status": { "millilitres": 1000 } })).await;
    assert_eq!((status.code, &status.body["status"]), (200, &json!({ "millilitres": 1000 })), "{status:?}");
    assert_eq!(server.get(&format!("{V1}/a")).await.body["status"], json!({ "litres": 1 }));

    let watched = server.get(&format!("{V2}?watch=1&timeoutSeconds=1")).await;
    let text = watched.body.as_str().unwrap().to_owned();
    let events: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(events.len(), 2, "{text}");
    assert_eq!(events[0]["object"]["spec"], json!({ "millilitres": 7000 }));
    assert_eq!(server.delete(&format!("{V2}/a")).await.code, 200);
    assert_eq!(server.get(&format!("{V1}/a")).await.code, 404);
}

#[tokio::test]
async fn failures_are_told_and_metadata_is_protected() {
    let server = start().await;
    let authority = Authority::new("converter");
    let address = serve(&authority, &["127.42.0.1"], None, |asked| {
        let (code, mut value) = convert(&asked);
        let first = &value["response"]["convertedObjects"][0]["metadata"]["name"];
        match first.as_str().unwrap() {
            "renamed" => value["response"]["convertedObjects"][0]["metadata"]["name"] = "other".into(),
            "refused" => value["response"]["result"] = json!({ "status": "Failed", "message": "not today" }),
            _ => value["response"]["convertedObjects"][0]["metadata"]["finalizers"] = json!(["x/y"]),
        }
        (code, value)
    })
    .await;
    define(&server, &format!("https://{address}/convert"), &STANDARD.encode(authority.pem())).await;
    for (name, expect) in [
        ("renamed", "returned invalid metadata: must have the same name: \"renamed\" != \"other\""),
        ("refused", "not today"),
    ] {
        assert_eq!(server.post(V1, tank("v1", name, "litres", 1)).await.code, 201);
        let seen = server.get(&format!("{V2}/{name}")).await;
        assert_eq!(seen.code, 500, "{seen:?}");
        assert_eq!(
            seen.body["message"],
            format!(
                "Internal error occurred: conversion webhook for example.com/v2, Kind=Tank failed: {expect}"
            )
        );
        // The other version is not concerned.
        assert_eq!(server.delete(&format!("{V1}/{name}")).await.code, 200);
    }
    assert_eq!(server.post(V1, tank("v1", "tampered", "litres", 1)).await.code, 201);
    let seen = server.get(&format!("{V2}/tampered")).await;
    assert_eq!((seen.code, seen.body["metadata"].get("finalizers")), (200, None), "{seen:?}");
}
