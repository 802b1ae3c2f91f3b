//! A server in this process, on a store in memory.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::sync::Arc;

use serde_json::Value;
use wasmk_apiserver::{ApiServer, Config, User};
use wasmk_store::Memory;

/// A running server with its scratch folder.
pub(crate) struct Server {
    pub(crate) api: ApiServer,
    pub(crate) client: kube::Client,
    _folder: tempfile::TempDir,
}

/// The token of the administrator.
pub(crate) const TOKEN: &str = "administrator-of-tests";

/// Starts a server.
pub(crate) async fn start() -> Server {
    start_with(|_| {}).await
}

/// Starts a server with other settings.
pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let mut config = Config::new(Arc::new(Memory::new()), key, String::new());
    config.static_tokens = vec![(TOKEN.into(), User::new("admin", ["system:masters"]))];
    change(&mut config);
    let api = ApiServer::start(config).await.unwrap();
    let client = api.client("admin", &["system:masters"]);
    Server { api, client, _folder: folder }
}

/// An answer: its code and its JSON (or text).
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Value,
    pub(crate) warnings: Vec<String>,
    /// The media type of the body, and the body as it came.
    pub(crate) media: String,
    pub(crate) bytes: bytes::Bytes,
}

impl Server {
    /// Makes a request as a user of the router, like a client on the network would.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        use tower::ServiceExt;
        let mut request = http::Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")) {
            request = request.header("authorization", format!("Bearer {TOKEN}"));
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        let request = request.body(axum::body::Body::from(body.to_owned())).unwrap();
        let response = self.api.router().oneshot(request).await.unwrap();
        let code = response.status().as_u16();
        let warnings =
            response.headers().get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect();
        let media = response.headers().get("content-type").map_or("", |media| media.to_str().unwrap()).into();
        let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .or_else(|_| wasmk_machinery::decode::from_protobuf(&bytes).map(wasmk_api::Object::into_value))
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { code, body, warnings, media, bytes }
    }

    /// GET.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    /// POST of JSON.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], &body.to_string()).await
    }

    /// PUT of JSON.
    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], &body.to_string()).await
    }

    /// A JSON merge patch.
    pub(crate) async fn merge(&self, path: &str, body: Value) -> Answer {
        self.send("PATCH", path, &[("content-type", "application/merge-patch+json")], &body.to_string()).await
    }

    /// DELETE.
    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], "").await
    }
}
