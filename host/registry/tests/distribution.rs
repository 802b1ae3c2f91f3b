//! The distribution API, request by request.

use std::{convert::Infallible, time::Duration};

use axum::{Router, body::Body};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use wasmk_registry::{Digest, Limits, Storage, router};

struct Registry {
    router: Router,
    storage: Storage,
    dir: tempfile::TempDir,
}

impl Registry {
    async fn new() -> Self {
        Self::with_idle(Duration::from_secs(3600)).await
    }

    async fn with_idle(idle: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { blob: 1000, manifest: 1000, uploads: 2, idle };
        let storage = Storage::open(dir.path().join("registry"), limits).await.unwrap();
        Self { router: router(storage.clone()), storage, dir }
    }

    /// Waits until so many uploads have a file.
    async fn uploads(&self, expect: usize) {
        let files = || std::fs::read_dir(self.dir.path().join("registry/uploads")).unwrap().count();
        let settled = async {
            while files() != expect {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let outcome = tokio::time::timeout(Duration::from_secs(10), settled).await;
        assert!(outcome.is_ok(), "{} files instead of {expect}", files());
    }

    async fn send(&self, method: Method, path: &str, body: impl Into<Body>) -> Response<Body> {
        let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn put_blob(&self, name: &str, bytes: &'static [u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        assert_eq!(self.send(Method::POST, &path, bytes).await.status(), StatusCode::CREATED);
        digest
    }

    async fn put_manifest(&self, name: &str, reference: &str, config: &Digest) -> Response<Body> {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"digest": config.to_string(), "mediaType": "application/vnd.wasm.config.v0+json", "size": 2},
            "layers": [],
        });
        self.send(Method::PUT, &format!("/v2/{name}/manifests/{reference}"), manifest.to_string()).await
    }
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn code(response: Response<Body>) -> String {
    let body: Value = serde_json::from_str(&text(response).await).unwrap();
    body["errors"][0]["code"].as_str().unwrap().into()
}

#[tokio::test]
async fn a_blob_comes_in_pieces_and_goes_out_whole() {
    let registry = Registry::new().await;
    let begun = registry.send(Method::POST, "/v2/a/b/blobs/uploads/", "").await;
    assert_eq!(begun.status(), StatusCode::ACCEPTED);
    let place = begun.headers()[header::LOCATION].to_str().unwrap().to_string();
    let first = registry.send(Method::PATCH, &place, "hello ").await;
    assert_eq!(first.headers()[header::RANGE], "0-5");
    let digest = Digest::of(b"hello wasm");
    let done = registry.send(Method::PUT, &format!("{place}?digest={digest}"), "wasm").await;
    assert_eq!(done.status(), StatusCode::CREATED);
    let got = registry.send(Method::GET, &format!("/v2/a/b/blobs/{digest}"), "").await;
    assert_eq!(got.headers()["docker-content-digest"], digest.to_string());
    assert_eq!(text(got).await, "hello wasm");
    let head = registry.send(Method::HEAD, &format!("/v2/a/b/blobs/{digest}"), "").await;
    assert_eq!(head.headers()[header::CONTENT_LENGTH], "10");
    assert_eq!(text(head).await, "");
}

#[tokio::test]
async fn a_wrong_digest_leaves_nothing() {
    let registry = Registry::new().await;
    let wrong = Digest::of(b"other");
    let refused = registry.send(Method::POST, &format!("/v2/a/blobs/uploads/?digest={wrong}"), "bytes").await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert_eq!(code(refused).await, "DIGEST_INVALID");
    for digest in [wrong, Digest::of(b"bytes")] {
        let got = registry.send(Method::GET, &format!("/v2/a/blobs/{digest}"), "").await;
        assert_eq!(got.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn an_upload_whose_client_leaves_is_gone() {
    let registry = Registry::new().await;
    for _ in 0..4 {
        let id = registry.storage.begin().await.unwrap();
        let mut chunks = stream::iter([Ok::<_, Infallible>(Bytes::from("half"))]).chain(stream::pending());
        let mut append = Box::pin(registry.storage.append(id, None, &mut chunks));
        assert!((&mut append).now_or_never().is_none());
        drop(append);
        assert!(registry.storage.progress(id).is_err());
    }
    registry.uploads(0).await;
}

#[tokio::test]
async fn uploads_that_nobody_goes_on_with_make_room() {
    let busy = Registry::new().await;
    let idle = Registry::with_idle(Duration::ZERO).await;
    for (registry, status) in [(&busy, StatusCode::TOO_MANY_REQUESTS), (&idle, StatusCode::ACCEPTED)] {
        for _ in 0..2 {
            registry.send(Method::POST, "/v2/a/blobs/uploads/", "").await;
        }
        let third = registry.send(Method::POST, "/v2/a/blobs/uploads/", "").await;
        assert_eq!(third.status(), status);
    }
    busy.uploads(2).await;
    idle.uploads(1).await;
}

#[tokio::test]
async fn manifests_by_tag_and_digest() {
    let registry = Registry::new().await;
    let config = registry.put_blob("default/hello", b"{}").await;
    let put = registry.put_manifest("default/hello", "1", &config).await;
    assert_eq!(put.status(), StatusCode::CREATED);
    let digest = put.headers()["docker-content-digest"].to_str().unwrap().to_string();
    for reference in ["1", &digest] {
        let got = registry.send(Method::GET, &format!("/v2/default/hello/manifests/{reference}"), "").await;
        assert_eq!(got.headers()[header::CONTENT_TYPE], "application/vnd.oci.image.manifest.v1+json");
        assert!(text(got).await.contains(&config.to_string()));
    }
    let tags = text(registry.send(Method::GET, "/v2/default/hello/tags/list", "").await).await;
    assert_eq!(tags, r#"{"name":"default/hello","tags":["1"]}"#);
    let all = text(registry.send(Method::GET, "/v2/_catalog", "").await).await;
    assert_eq!(all, r#"{"repositories":["default/hello"]}"#);
    let path = format!("/v2/default/hello/manifests/{digest}");
    assert_eq!(registry.send(Method::DELETE, &path, "").await.status(), StatusCode::ACCEPTED);
    let gone = registry.send(Method::GET, "/v2/default/hello/manifests/1", "").await;
    assert_eq!(code(gone).await, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn bad_input_is_named() {
    let registry = Registry::new().await;
    let missing = registry.put_manifest("a", "1", &Digest::of(b"nowhere")).await;
    assert_eq!(code(missing).await, "MANIFEST_BLOB_UNKNOWN");
    let no_json = registry.send(Method::PUT, "/v2/a/manifests/1", "{").await;
    assert_eq!(code(no_json).await, "MANIFEST_INVALID");
    let escape = registry.send(Method::GET, "/v2/../../etc/manifests/1", "").await;
    assert_eq!(code(escape).await, "NAME_INVALID");
    let path = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(b""));
    let big = registry.send(Method::POST, &path, vec![0; 2000]).await;
    assert_eq!(code(big).await, "SIZE_INVALID");
    let begun = registry.send(Method::POST, "/v2/a/blobs/uploads/", "").await;
    let place = begun.headers()[header::LOCATION].to_str().unwrap().to_string();
    let request = Request::patch(place).header(header::CONTENT_RANGE, "5-9").body(Body::from("x")).unwrap();
    let ahead = registry.router.clone().oneshot(request).await.unwrap();
    assert_eq!(ahead.status(), StatusCode::RANGE_NOT_SATISFIABLE);
}

#[tokio::test]
async fn uploads_are_bounded_and_lists_are_paged() {
    let registry = Registry::new().await;
    for status in [StatusCode::ACCEPTED, StatusCode::ACCEPTED, StatusCode::TOO_MANY_REQUESTS] {
        assert_eq!(registry.send(Method::POST, "/v2/a/blobs/uploads/", "").await.status(), status);
    }
    let registry = Registry::new().await;
    let config = registry.put_blob("a", b"{}").await;
    for tag in ["1", "2", "3"] {
        registry.put_manifest("a", tag, &config).await;
    }
    let page = registry.send(Method::GET, "/v2/a/tags/list?n=2", "").await;
    assert_eq!(page.headers()[header::LINK], r#"</v2/a/tags/list?n=2&last=2>; rel="next""#);
    let rest = registry.send(Method::GET, "/v2/a/tags/list?n=2&last=2", "").await;
    assert!(text(rest).await.contains(r#"["3"]"#));
}
