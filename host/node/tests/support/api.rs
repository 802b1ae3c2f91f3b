//! A small API in memory: enough of create, read, list, watch, patch and delete for a node.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

/// The API. Clones are the same one.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Mutex<Inner>>,
    version: Arc<watch::Sender<u64>>,
    /// Methods and paths of all that was asked, but for watches.
    requests: Arc<Mutex<Vec<(Method, String)>>>,
}

#[derive(Default)]
struct Inner {
    /// By path.
    objects: BTreeMap<String, Value>,
    /// Every change: kind of event, collection, object.
    log: Vec<(&'static str, String, Value)>,
}

impl Api {
    pub fn new() -> Self {
        let version = Arc::new(watch::Sender::new(0));
        Self { inner: Arc::default(), version, requests: Arc::default() }
    }

    /// How many requests of that method were for a path that contains the text.
    pub fn asked(&self, method: &Method, part: &str) -> usize {
        self.requests.lock().iter().filter(|(m, path)| m == method && path.contains(part)).count()
    }

    pub fn client(&self) -> kube::Client {
        let router = Router::new().fallback(handle).with_state(self.clone());
        kube::Client::new(router, "default")
    }

    /// Puts an object; the path is that of the object itself.
    pub fn put(&self, path: &str, mut object: Value) {
        let uid = format!("uid-{}", path.rsplit('/').next().unwrap());
        let name = path.rsplit('/').next().unwrap();
        let meta = &mut object["metadata"];
        meta["name"] = json!(name);
        if meta["uid"].is_null() {
            meta["uid"] = json!(uid);
        }
        if let Some(namespace) = path.split("/namespaces/").nth(1).and_then(|r| r.split('/').next()) {
            meta["namespace"] = json!(namespace);
        }
        let event = if self.inner.lock().objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        self.change(event, path, object);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.inner.lock().objects.get(path).cloned()
    }

    /// All that was written of a pod, in order.
    pub fn written(&self, pod: &str) -> Vec<Value> {
        let inner = self.inner.lock();
        let of = inner.log.iter().filter(|(_, c, o)| c.ends_with("/pods") && o["metadata"]["name"] == pod);
        of.map(|(_, _, object)| object.clone()).collect()
    }

    /// All objects whose path contains the text.
    pub fn all(&self, part: &str) -> Vec<Value> {
        let inner = self.inner.lock();
        inner.objects.iter().filter(|(p, _)| p.contains(part)).map(|(_, o)| o.clone()).collect()
    }

    /// Marks an object for deletion as the API does when a grace period is given.
    pub fn delete_gracefully(&self, path: &str, seconds: u64) {
        let mut object = self.get(path).unwrap();
        let deadline = wasmk_api::Timestamp::now().after(std::time::Duration::from_secs(seconds));
        object["metadata"]["deletionTimestamp"] = json!(deadline.to_string());
        object["metadata"]["deletionGracePeriodSeconds"] = json!(seconds);
        self.change("MODIFIED", path, object);
    }

    fn change(&self, event: &'static str, path: &str, mut object: Value) {
        let mut inner = self.inner.lock();
        let version = inner.log.len() as u64 + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        match event {
            "DELETED" => drop(inner.objects.remove(path)),
            _ => drop(inner.objects.insert(path.into(), object.clone())),
        }
        inner.log.push((event, collection_of(path), object));
        drop(inner);
        self.version.send_replace(version);
    }

    /// Waits until `read` gives a value, at most ten seconds.
    pub async fn until<T>(&self, what: &str, mut read: impl FnMut(&Self) -> Option<T>) -> T {
        let mut news = self.version.subscribe();
        let wait = async {
            loop {
                if let Some(value) = read(self) {
                    return value;
                }
                news.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(std::time::Duration::from_secs(10), wait).await {
            Ok(value) => value,
            Err(_) => panic!("no {what}; pods: {:#?}", self.all("/pods/")),
        }
    }
}

/// `…/pods/a` is in `…/pods`.
fn collection_of(path: &str) -> String {
    path.rsplit_once('/').map_or(path, |(c, _)| c).to_string()
}

fn failure(code: StatusCode, reason: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code.as_u16()});
    (code, Json(status)).into_response()
}

/// Whether a collection's path is asked for by a request's path (all namespaces or one).
fn asked(request: &str, collection: &str) -> bool {
    let plural = request.rsplit('/').next().unwrap_or("");
    request == collection
        || (!request.contains("/namespaces/") && collection.ends_with(&format!("/{plural}")))
}

async fn handle(
    State(api): State<Api>,
    method: Method,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
    body: Bytes,
) -> Response {
    let path = uri.path().to_string();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    if !query.contains_key("watch") {
        api.requests.lock().push((method.clone(), path.clone()));
    }
    match method {
        Method::GET if query.get("watch").is_some_and(|w| w == "true" || w == "1") => {
            watch_from(&api, path, &query)
        }
        Method::GET => match api.get(&path) {
            Some(object) => Json(object).into_response(),
            None if is_collection(&path) => list(&api, &path),
            None => failure(StatusCode::NOT_FOUND, "NotFound"),
        },
        Method::POST if path.ends_with("/token") => (
            StatusCode::CREATED,
            Json(json!({"metadata": {}, "spec": {"audiences": []}, "status": {
                "token": "a-token", "expirationTimestamp": "2030-01-01T00:00:00Z"}})),
        )
            .into_response(),
        Method::POST => {
            let name = body["metadata"]["name"].as_str().unwrap_or("x").to_string();
            let target = format!("{path}/{name}");
            if api.get(&target).is_some() {
                return failure(StatusCode::CONFLICT, "AlreadyExists");
            }
            api.put(&target, body);
            (StatusCode::CREATED, Json(api.get(&target))).into_response()
        }
        Method::PATCH => {
            let path = path.strip_suffix("/status").unwrap_or(&path).to_string();
            let Some(mut object) = api.get(&path) else { return failure(StatusCode::NOT_FOUND, "NotFound") };
            merge(&mut object, body);
            api.change("MODIFIED", &path, object.clone());
            Json(object).into_response()
        }
        Method::DELETE => {
            let Some(object) = api.get(&path) else { return failure(StatusCode::NOT_FOUND, "NotFound") };
            api.change("DELETED", &path, object.clone());
            Json(object).into_response()
        }
        _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}

fn is_collection(path: &str) -> bool {
    ["pods", "services", "endpointslices", "nodes"].iter().any(|p| path.ends_with(&format!("/{p}")))
}

fn list(api: &Api, path: &str) -> Response {
    let inner = api.inner.lock();
    let items: Vec<Value> = inner
        .objects
        .iter()
        .filter(|(p, _)| asked(path, &collection_of(p)))
        .map(|(_, o)| o.clone())
        .collect();
    let version = inner.log.len().to_string();
    Json(
        json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
    )
    .into_response()
}

fn watch_from(api: &Api, path: String, query: &BTreeMap<String, String>) -> Response {
    let from: usize = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
    let start = (api.clone(), api.version.subscribe(), from, path);
    let stream = futures::stream::unfold(start, |(api, mut news, from, path)| async move {
        loop {
            let (lines, next) = {
                let inner = api.inner.lock();
                let changes = inner.log[from..].iter().filter(|(_, c, _)| asked(&path, c));
                let lines: String = changes
                    .map(|(event, _, object)| format!("{}\n", json!({"type": event, "object": object})))
                    .collect();
                (lines, inner.log.len())
            };
            if !lines.is_empty() {
                return Some((Ok::<_, std::convert::Infallible>(lines), (api, news, next, path)));
            }
            news.changed().await.ok()?;
        }
    });
    Body::from_stream(stream).into_response()
}

fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else { return *target = patch };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(&key);
        } else {
            merge(&mut target[&key], value);
        }
    }
}
