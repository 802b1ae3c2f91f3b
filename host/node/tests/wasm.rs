//! Pods of real WebAssembly, pulled from a registry on loopback.

mod support;

use axum::{
    Router,
    http::{StatusCode, Uri, header},
    response::IntoResponse,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use support::Cluster;
use wasmk_node::WasmEngine;

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// A registry with one Wasm image `guest:1` and one image of a container, `box:1`.
async fn registry(wasm: Vec<u8>) -> String {
    let config = br#"{"architecture":"wasm","os":"wasip1","layerDigests":[]}"#.to_vec();
    let blob =
        |media: &str, bytes: &[u8]| json!({"mediaType": media, "digest": digest(bytes), "size": bytes.len()});
    let manifest = |config: serde_json::Value, layer: serde_json::Value| {
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": [layer]})
        .to_string()
    };
    let guest =
        manifest(blob("application/vnd.wasm.config.v0+json", &config), blob("application/wasm", &wasm));
    let container = manifest(
        blob("application/vnd.oci.image.config.v1+json", b"{}"),
        blob("application/vnd.oci.image.layer.v1.tar+gzip", b"x"),
    );
    let answer = move |uri: Uri| {
        let path = uri.path().to_string();
        let found = match path.as_str() {
            "/v2/" => Some(Vec::new()),
            p if p.contains("guest/manifests") => Some(guest.clone().into_bytes()),
            p if p.contains("box/manifests") => Some(container.clone().into_bytes()),
            p if p.ends_with(&digest(&wasm)) => Some(wasm.clone()),
            p if p.ends_with(&digest(&config)) => Some(config.clone()),
            p if p.ends_with(&digest(b"{}")) => Some(b"{}".to_vec()),
            _ => None,
        };
        let media = if path.contains("/manifests/") {
            "application/vnd.oci.image.manifest.v1+json"
        } else {
            "application/octet-stream"
        };
        async move {
            match found {
                Some(bytes) => ([(header::CONTENT_TYPE, media)], bytes).into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await });
    address.to_string()
}

/// Prints a line, then exits with status 3 or, with an argument, never.
const GUEST: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\10\00\00\00\06\00\00\00")
    (data (i32.const 16) "hello\n")
    (func (export "_start")
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (drop (call $args (i32.const 32) (i32.const 36)))
        (if (i32.gt_u (i32.load (i32.const 32)) (i32.const 1)) (then (loop $l (br $l))))
        (call $exit (i32.const 3))))"#;

#[tokio::test(flavor = "multi_thread")]
async fn modules_run_end_and_are_stopped() {
    let registry = registry(wat::parse_str(GUEST).unwrap()).await;
    let data = tempfile::tempdir().unwrap();
    let mut settings = wasmk_runtime::Settings::new(data.path());
    settings.max_instances = 16;
    let runtime = wasmk_runtime::Runtime::new(settings).unwrap();
    let cluster = Cluster::with(211, WasmEngine::new(runtime)).await;
    let image = format!("{registry}/guest:1");

    cluster.pod("ends", json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": image}]}));
    let pod = cluster.until("ends", "Failed Error").await;
    let end = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(end["exitCode"], 3);
    assert_eq!(cluster.get("/containerLogs/default/ends/c").await, (200, "hello\n".into()));

    let container = json!({"name": "c", "image": image, "args": ["forever"]});
    cluster.pod("loops", json!({"containers": [container]}));
    cluster.until("loops", "Running running").await;
    cluster.api.delete_gracefully(&support::path("loops"), 30);
    let gone = |api: &support::api::Api| api.get(&support::path("loops")).is_none().then_some(());
    cluster.api.until("deletion of a loop", gone).await;

    let container = json!({"name": "c", "image": format!("{registry}/box:1")});
    cluster.pod("box", json!({"containers": [container]}));
    let pod = cluster.until("box", "Pending CreateContainerError").await;
    let message =
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap().to_string();
    assert!(message.contains("vnd.oci.image.layer.v1.tar+gzip"), "{message}");
}
