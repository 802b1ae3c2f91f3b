//! `metrics.k8s.io`: what nodes and pods use, for `kubectl top` and autoscalers. An aggregated API like any
//! stranger's: the API server passes authorized requests on to a listener here, and proves by its certificate
//! that it is the one that asks. Figures are the nodes' own summaries, as rates between two looks at them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, api::ListParams};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use wasmk_api::Timestamp;
use wasmk_apiserver::{LocalService, NodeDialer};

use crate::{
    bootstrap,
    pki::{Leaf, Pair, Pki},
};

/// Group and version.
const VERSION: &str = "metrics.k8s.io/v1beta1";
/// Where the API server finds it.
const NAMESPACE: &str = "kube-system";
const SERVICE: &str = "metrics-server";
/// The port in the objects that announce it; each API server has its own behind that, on a port of its own.
const PORT: u16 = 443;
/// Time between two looks at a node, once there is something to compare with.
const PERIOD: Duration = Duration::from_secs(15);
/// Time between the first two looks.
const FIRST: Duration = Duration::from_secs(3);
/// Longest wait for a node's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nodes asked at a time.
const NODES: usize = 16;
/// Largest summary of a node, in bytes.
const SUMMARY: usize = 64 << 20;

/// What was counted at one look: processor time in nanoseconds, memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Count {
    at: Instant,
    cpu: u64,
    memory: u64,
}

/// What is used now: nanoseconds of processor time per second, bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rate {
    cpu: u64,
    memory: u64,
    window: Duration,
    time: Timestamp,
}

/// A node (its name alone), or a container: namespace, pod, container.
type Key = (String, String, String);

#[derive(Default)]
struct Figures {
    counts: HashMap<Key, Count>,
    rates: HashMap<Key, Rate>,
}

impl Figures {
    /// Takes a new look: what is not in it is forgotten.
    fn take(&mut self, look: HashMap<Key, Count>, now: Timestamp) {
        self.rates = look
            .iter()
            .filter_map(|(key, count)| {
                let before = self.counts.get(key)?;
                let window = count.at.duration_since(before.at);
                // A counter that has become smaller belongs to another run.
                let used = count.cpu.checked_sub(before.cpu)?;
                let nanos = u128::from(used) * 1_000_000_000 / window.as_nanos().max(1);
                let cpu = u64::try_from(nanos).unwrap_or(u64::MAX);
                Some((key.clone(), Rate { cpu, memory: count.memory, window, time: now }))
            })
            .collect();
        self.counts = look;
    }
}

/// What the handlers share.
#[derive(Clone)]
struct Shared {
    client: Client,
    figures: Arc<Mutex<Figures>>,
}

/// Where the API group will be served.
///
/// # Errors
/// When no port can be had.
pub(crate) async fn listen() -> Result<(TcpListener, LocalService)> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("metrics.k8s.io cannot listen")?;
    let address = listener.local_addr()?;
    Ok((listener, LocalService { namespace: NAMESPACE.into(), name: SERVICE.into(), address }))
}

/// The certificate of the server of the API group, made or renewed when needed.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn leaf(pki: &Pki) -> Result<Pair> {
    let name = format!("{SERVICE}.{NAMESPACE}.svc");
    pki.leaf(SERVICE, &Leaf { user: SERVICE, group: "", names: std::slice::from_ref(&name) })
}

/// The server of the API group, before it serves.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) listener: TcpListener,
    /// What it shows.
    pub(crate) leaf: Pair,
    /// The authority (PEM) that signed the certificate of whoever may ask.
    pub(crate) callers: String,
    /// The authority (PEM) that signed its own.
    pub(crate) trusted: String,
}

impl Server {
    /// Registers the API group; what is returned serves it until told to stop.
    ///
    /// # Errors
    /// When the API refuses the objects that announce it.
    pub(crate) async fn start(
        self,
        client: Client,
        dialer: Arc<dyn NodeDialer>,
        stop: CancellationToken,
    ) -> Result<impl Future<Output = ()> + Send + 'static> {
        let tls = wasmk_apiserver::tls_config_for(&self.leaf.cert, &self.leaf.key, &self.callers)?;
        bootstrap::apply_all(&client, objects(&self.trusted)).await?;
        let shared = Shared { client: client.clone(), figures: Arc::default() };
        let router = router(shared.clone());
        Ok(async move {
            let serving = wasmk_apiserver::serve_tls(self.listener, tls, router, stop.clone());
            tokio::select! {
                () = serving => {}
                () = keep(shared, dialer) => {}
            }
        })
    }
}

fn objects(ca: &str) -> [Value; 3] {
    let meta = json!({"name": SERVICE, "namespace": NAMESPACE});
    let labels = ["view", "edit", "admin"]
        .map(|role| (format!("rbac.authorization.k8s.io/aggregate-to-{role}"), "true".to_string()));
    let labels: HashMap<String, String> = labels.into();
    [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta,
            "spec": {"type": "ExternalName", "externalName": "localhost"}}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "system:aggregated-metrics-reader", "labels": labels},
            "rules": [{"apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"],
                "verbs": ["get", "list", "watch"]}]}),
        json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": "v1beta1.metrics.k8s.io"},
            "spec": {"group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100,
                "versionPriority": 100, "caBundle": STANDARD.encode(ca),
                "service": {"name": SERVICE, "namespace": NAMESPACE, "port": PORT}}}),
    ]
}

/// Looks at all nodes again and again; never ends.
async fn keep(shared: Shared, dialer: Arc<dyn NodeDialer>) {
    let mut rest = FIRST;
    loop {
        let nodes: Api<Node> = Api::all(shared.client.clone());
        let names: Vec<String> = match nodes.list(&ListParams::default()).await {
            Ok(list) => list.items.into_iter().filter_map(|n| n.metadata.name).collect(),
            Err(error) => {
                tracing::debug!(%error, "cannot list nodes for their figures");
                Vec::new()
            }
        };
        let asked = stream::iter(names).map(|name| summary(dialer.clone(), name)).buffer_unordered(NODES);
        let looks: Vec<HashMap<Key, Count>> = asked.filter_map(async |look| look).collect().await;
        let look: HashMap<Key, Count> = looks.into_iter().flatten().collect();
        let some = !look.is_empty();
        shared.figures.lock().take(look, Timestamp::now());
        tokio::time::sleep(rest).await;
        rest = if some { PERIOD } else { FIRST };
    }
}

/// What a node counts; `None` while it cannot be asked.
async fn summary(dialer: Arc<dyn NodeDialer>, node: String) -> Option<HashMap<Key, Count>> {
    let ask = async {
        let stream = dialer.dial(&node).await.ok()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        let request = http::Request::get("/stats/summary").header("host", "node").body(Empty::<Bytes>::new());
        let answer = sender.send_request(request.ok()?).await.ok()?;
        let body = Limited::new(answer.into_body(), SUMMARY).collect().await.ok()?.to_bytes();
        serde_json::from_slice::<Value>(&body).ok()
    };
    let summary = tokio::time::timeout(PATIENCE, ask).await.ok()??;
    Some(counts(&node, &summary, Instant::now()))
}

fn counts(node: &str, summary: &Value, at: Instant) -> HashMap<Key, Count> {
    let count = |of: &Value| {
        let number = |path: &str| of.pointer(path).and_then(Value::as_u64);
        Some(Count {
            at,
            cpu: number("/cpu/usageCoreNanoSeconds")?,
            memory: number("/memory/workingSetBytes")?,
        })
    };
    let text = |of: &Value, path: &str| of.pointer(path).and_then(Value::as_str).unwrap_or("").to_string();
    let list = |of: &Value, name: &str| of[name].as_array().cloned().unwrap_or_default();
    let mut all = HashMap::new();
    if let Some(own) = count(&summary["node"]) {
        all.insert((node.to_string(), String::new(), String::new()), own);
    }
    for pod in list(summary, "pods") {
        let (namespace, name) = (text(&pod, "/podRef/namespace"), text(&pod, "/podRef/name"));
        for container in list(&pod, "containers") {
            if let Some(used) = count(&container) {
                all.insert((namespace.clone(), name.clone(), text(&container, "/name")), used);
            }
        }
    }
    all
}

fn router(shared: Shared) -> Router {
    let base = format!("/apis/{VERSION}");
    Router::new()
        .route(&base, get(discovery))
        .route(&format!("{base}/nodes"), get(nodes))
        .route(&format!("{base}/nodes/{{name}}"), get(node))
        .route(&format!("{base}/pods"), get(all_pods))
        .route(&format!("{base}/namespaces/{{namespace}}/pods"), get(pods))
        .route(&format!("{base}/namespaces/{{namespace}}/pods/{{name}}"), get(pod))
        .with_state(shared)
}

async fn discovery() -> Json<Value> {
    let resource = |name: &str, kind: &str, namespaced: bool| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]});
    Json(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION,
        "resources": [resource("nodes", "NodeMetrics", false), resource("pods", "PodMetrics", true)],
    }))
}

/// The part of a list's query that means something here.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wanted {
    label_selector: String,
}

impl Wanted {
    fn params(&self) -> ListParams {
        ListParams::default().labels(&self.label_selector)
    }
}

fn usage(rate: &Rate) -> Value {
    json!({"cpu": format!("{}n", rate.cpu), "memory": format!("{}Ki", rate.memory / 1024)})
}

fn window(rate: &Rate) -> String {
    format!("{:.3}s", rate.window.as_secs_f64())
}

fn of_node(figures: &Figures, node: &Node) -> Option<Value> {
    let name = node.metadata.name.clone()?;
    let rate = figures.rates.get(&(name.clone(), String::new(), String::new()))?;
    Some(json!({
        "kind": "NodeMetrics", "apiVersion": VERSION,
        "metadata": {"name": name, "labels": node.metadata.labels, "creationTimestamp": Timestamp::now()},
        "timestamp": rate.time, "window": window(rate), "usage": usage(rate),
    }))
}

/// `None` until all that runs in the pod has been looked at twice.
fn of_pod(figures: &Figures, pod: &Pod) -> Option<Value> {
    let (namespace, name) = (pod.metadata.namespace.clone()?, pod.metadata.name.clone()?);
    let names = pod.spec.iter().flat_map(|s| &s.containers).map(|c| &c.name);
    let found: Vec<(&String, &Rate)> = names
        .filter_map(|c| Some((c, figures.rates.get(&(namespace.clone(), name.clone(), c.clone()))?)))
        .collect();
    let (_, first) = found.first()?;
    let containers: Vec<Value> =
        found.iter().map(|(name, rate)| json!({"name": name, "usage": usage(rate)})).collect();
    Some(json!({
        "kind": "PodMetrics", "apiVersion": VERSION,
        "metadata": {"name": name, "namespace": namespace, "labels": pod.metadata.labels,
            "creationTimestamp": Timestamp::now()},
        "timestamp": first.time, "window": window(first), "containers": containers,
    }))
}

fn list(kind: &str, items: Vec<Value>) -> Response {
    Json(json!({"kind": kind, "apiVersion": VERSION, "metadata": {}, "items": items})).into_response()
}

/// A `Status` that says why not.
fn refusal(code: u16, reason: &str, message: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code});
    (StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(status)).into_response()
}

fn failed(error: &kube::Error) -> Response {
    match error {
        kube::Error::Api(status) => refusal(status.code, &status.reason, &status.message),
        other => refusal(500, "InternalError", &other.to_string()),
    }
}

async fn nodes(State(shared): State<Shared>, Query(wanted): Query<Wanted>) -> Response {
    match Api::<Node>::all(shared.client.clone()).list(&wanted.params()).await {
        Ok(all) => {
            let figures = shared.figures.lock();
            list("NodeMetricsList", all.items.iter().filter_map(|n| of_node(&figures, n)).collect())
        }
        Err(error) => failed(&error),
    }
}

async fn node(State(shared): State<Shared>, Path(name): Path<String>) -> Response {
    match Api::<Node>::all(shared.client.clone()).get(&name).await {
        Ok(node) => one(of_node(&shared.figures.lock(), &node), "nodes", &name),
        Err(error) => failed(&error),
    }
}

fn one(found: Option<Value>, resource: &str, name: &str) -> Response {
    let missing = || refusal(404, "NotFound", &format!("{resource}.metrics.k8s.io \"{name}\" not found"));
    found.map_or_else(missing, |value| Json(value).into_response())
}

async fn all_pods(State(shared): State<Shared>, Query(wanted): Query<Wanted>) -> Response {
    list_pods(&shared, Api::all(shared.client.clone()), &wanted).await
}

async fn pods(
    State(shared): State<Shared>,
    Path(namespace): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Response {
    list_pods(&shared, Api::namespaced(shared.client.clone(), &namespace), &wanted).await
}

async fn list_pods(shared: &Shared, api: Api<Pod>, wanted: &Wanted) -> Response {
    match api.list(&wanted.params()).await {
        Ok(all) => {
            let figures = shared.figures.lock();
            list("PodMetricsList", all.items.iter().filter_map(|p| of_pod(&figures, p)).collect())
        }
        Err(error) => failed(&error),
    }
}

async fn pod(State(shared): State<Shared>, Path((namespace, name)): Path<(String, String)>) -> Response {
    match Api::<Pod>::namespaced(shared.client.clone(), &namespace).get(&name).await {
        Ok(pod) => one(of_pod(&shared.figures.lock(), &pod), "pods", &name),
        Err(error) => failed(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(cpu: u64) -> Value {
        let used = json!({"cpu": {"usageCoreNanoSeconds": cpu}, "memory": {"workingSetBytes": 4096}});
        let mut container = used.clone();
        container["name"] = json!("c");
        json!({"node": used, "pods": [{"podRef": {"namespace": "n", "name": "p"}, "containers": [container]}]})
    }

    #[test]
    fn rates_are_between_two_looks() {
        let (mut figures, start) = (Figures::default(), Instant::now());
        let key = ("n".to_string(), "p".to_string(), "c".to_string());
        let now = Timestamp::now();
        let mut look = |cpu, seconds| {
            figures.take(counts("node", &summary(cpu), start + Duration::from_secs(seconds)), now);
            figures.rates.get(&key).map(|r| (r.cpu, r.memory))
        };
        assert_eq!(look(1_000, 0), None);
        assert_eq!(look(1_000 + 5_000_000_000, 10), Some((500_000_000, 4096)));
        // Started again: there is nothing to compare with.
        assert_eq!(look(7, 20), None);
        assert_eq!(look(7, 30), Some((0, 4096)));
    }
}
