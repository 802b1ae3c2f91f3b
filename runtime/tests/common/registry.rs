//! A registry in memory that can misbehave on demand.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use wasmk_runtime::Reference;

use super::digest;

/// A body that breaks off.
type Broken = StreamBody<stream::BoxStream<'static, std::io::Result<Frame<Bytes>>>>;

/// A running registry; it ends with the test.
#[derive(Clone)]
pub struct Registry {
    address: SocketAddr,
    pub state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub struct State {
    blobs: HashMap<String, Bytes>,
    manifests: HashMap<String, (String, Bytes)>,
    uploads: HashMap<String, Vec<u8>>,
    /// Blobs sent so far.
    pub blobs_sent: usize,
    /// Blobs that are to break off, after so many bytes each.
    pub cut: Vec<usize>,
    /// Blobs are sent from the middle, too.
    pub ranges: bool,
    /// Where blobs were taken up again.
    pub resumed: Vec<usize>,
    /// Manifests sent so far.
    pub manifests_sent: usize,
    /// User and password that are asked for.
    pub credentials: Option<(String, String)>,
}

impl Registry {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        let served = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let registry = served.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let registry = registry.clone();
                        async move { Ok::<_, std::convert::Infallible>(registry.misbehave(request).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        registry
    }

    /// `name` (with a tag) in this registry.
    pub fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.address).parse().unwrap()
    }

    /// Adds a blob; its descriptor.
    pub fn blob(&self, media_type: &str, bytes: impl Into<Bytes>) -> Value {
        let bytes = bytes.into();
        let descriptor = json!({"mediaType": media_type, "digest": digest(&bytes), "size": bytes.len()});
        self.state.lock().blobs.insert(digest(&bytes), bytes);
        descriptor
    }

    /// Replaces a blob's content by something else under the same digest.
    pub fn corrupt(&self, descriptor: &Value, content: impl Into<Bytes>) {
        self.state.lock().blobs.insert(descriptor["digest"].as_str().unwrap().to_owned(), content.into());
    }

    /// Adds a manifest under `name` and under its digest, which it gives.
    pub fn manifest(&self, name: &str, manifest: &Value) -> String {
        let bytes = Bytes::from(manifest.to_string());
        let kind = manifest["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
        let (repository, _) = name.rsplit_once(':').unwrap();
        let mut state = self.state.lock();
        for key in [name.to_owned(), format!("{repository}:{}", digest(&bytes))] {
            state.manifests.insert(key, (kind.to_owned(), bytes.clone()));
        }
        digest(&bytes)
    }

    /// Adds an image of these parts under `name`; the digest of its manifest.
    pub fn image(&self, name: &str, config: &Value, layers: &[Value]) -> String {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        self.manifest(
            name,
            &json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}),
        )
    }

    pub fn stored_manifest(&self, name: &str) -> Value {
        serde_json::from_slice(&self.state.lock().manifests[name].1).unwrap()
    }

    pub fn stored_blob(&self, digest: &str) -> Bytes {
        self.state.lock().blobs[digest].clone()
    }

    async fn misbehave(&self, request: Request<Incoming>) -> Response<Either<Full<Bytes>, Broken>> {
        let of_blob = request.method() == Method::GET && request.uri().path().contains("/blobs/sha256");
        let range = request.headers().get(RANGE).and_then(|r| r.to_str().ok()).map(str::to_owned);
        let answer = self.answer(request).await;
        if !of_blob || answer.status() != StatusCode::OK {
            return answer.map(Either::Left);
        }
        let (mut parts, body) = answer.into_parts();
        let mut bytes = body.collect().await.unwrap().to_bytes();
        let mut state = self.state.lock();
        if let Some(range) = range.filter(|_| state.ranges) {
            let from = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
            state.resumed.push(from);
            bytes = bytes.slice(from..);
            parts.status = StatusCode::PARTIAL_CONTENT;
        }
        if state.cut.is_empty() {
            return Response::from_parts(parts, Either::Left(Full::new(bytes)));
        }
        let part = bytes.slice(..state.cut.remove(0));
        parts.headers.insert(CONTENT_LENGTH, bytes.len().into());
        let end = async {
            // What is there leaves first.
            tokio::task::yield_now().await;
            Err(std::io::Error::other("cut"))
        };
        let frames = stream::iter([Ok(Frame::data(part))]).chain(stream::once(end)).boxed();
        Response::from_parts(parts, Either::Right(StreamBody::new(frames)))
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if !self.allowed(&request) {
            let mut response = plain(StatusCode::UNAUTHORIZED, "{\"errors\":[{\"code\":\"UNAUTHORIZED\"}]}");
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"test\""));
            return response;
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let path = parts.uri.path().trim_start_matches("/v2/").to_owned();
        let query = parts.uri.query().unwrap_or_default();
        if let Some((repository, reference)) = path.split_once("/manifests/") {
            return self.manifests(&parts, &format!("{repository}:{reference}"), body);
        }
        match path.split_once("/blobs/") {
            Some((repository, "uploads/")) => start_upload(&mut self.state.lock(), repository),
            Some((_, upload)) if upload.starts_with("uploads/") => {
                continue_upload(&mut self.state.lock(), &parts.method, &path, upload, query, &body)
            }
            Some((_, digest)) => self.blobs(&parts.method, digest),
            None => plain(StatusCode::OK, "{}"),
        }
    }

    fn allowed(&self, request: &Request<Incoming>) -> bool {
        let state = self.state.lock();
        let Some((user, password)) = &state.credentials else {
            return true;
        };
        let wanted = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        request.headers().get(AUTHORIZATION).is_some_and(|found| found == &format!("Basic {wanted}"))
    }

    fn manifests(&self, parts: &http::request::Parts, key: &str, body: Bytes) -> Response<Full<Bytes>> {
        let mut state = self.state.lock();
        if parts.method == Method::PUT {
            let kind = parts.headers[CONTENT_TYPE].to_str().unwrap().to_owned();
            state.manifests.insert(key.to_owned(), (kind, body));
            let mut response = plain(StatusCode::CREATED, "");
            response.headers_mut().insert(LOCATION, HeaderValue::from_static("/v2/done"));
            return response;
        }
        state.manifests_sent += usize::from(parts.method == Method::GET);
        match state.manifests.get(key) {
            Some((kind, bytes)) => {
                let kind = HeaderValue::from_str(kind).unwrap();
                Response::builder().header(CONTENT_TYPE, kind).body(Full::new(bytes.clone())).unwrap()
            }
            None => plain(StatusCode::NOT_FOUND, "{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\"}]}"),
        }
    }

    fn blobs(&self, method: &Method, digest: &str) -> Response<Full<Bytes>> {
        let mut state = self.state.lock();
        state.blobs_sent += usize::from(method == Method::GET);
        match state.blobs.get(digest) {
            Some(bytes) => Response::new(Full::new(bytes.clone())),
            None => plain(StatusCode::NOT_FOUND, "{\"errors\":[{\"code\":\"BLOB_UNKNOWN\"}]}"),
        }
    }
}

fn start_upload(state: &mut State, repository: &str) -> Response<Full<Bytes>> {
    let id = format!("uploads/{}", state.uploads.len());
    let location = format!("/v2/{repository}/blobs/{id}");
    state.uploads.insert(id, Vec::new());
    let mut response = plain(StatusCode::ACCEPTED, "");
    response.headers_mut().insert(LOCATION, HeaderValue::from_str(&location).unwrap());
    response
}

fn continue_upload(
    state: &mut State,
    method: &Method,
    path: &str,
    upload: &str,
    query: &str,
    body: &[u8],
) -> Response<Full<Bytes>> {
    let Some(content) = state.uploads.get_mut(upload) else {
        return plain(StatusCode::NOT_FOUND, "");
    };
    content.extend_from_slice(body);
    let mut response = plain(StatusCode::ACCEPTED, "");
    if method == Method::PUT {
        let content = Bytes::from(state.uploads.remove(upload).unwrap());
        let wanted =
            query.split('&').find_map(|pair| pair.strip_prefix("digest=")).unwrap().replace("%3A", ":");
        if digest(&content) != wanted {
            return plain(StatusCode::BAD_REQUEST, "{\"errors\":[{\"code\":\"DIGEST_INVALID\"}]}");
        }
        state.blobs.insert(wanted, content);
        *response.status_mut() = StatusCode::CREATED;
    }
    response.headers_mut().insert(LOCATION, HeaderValue::from_str(&format!("/v2/{path}")).unwrap());
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}
