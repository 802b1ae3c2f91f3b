//! What the node tells about itself: its pods and its figures.

use std::fmt::Write;

use axum::{Json, extract::State};
use serde_json::{Value, json};
use wasmk_api::{Timestamp, k8s_openapi::api::core::v1::Pod};

use super::Shared;
use crate::machine;

pub(super) async fn pods(State(shared): State<Shared>) -> Json<Value> {
    let pods = shared.pods.list();
    let items: Vec<&Pod> = pods.iter().map(|p| &**p).collect();
    Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

pub(super) async fn metrics(State(shared): State<Shared>) -> String {
    let addresses = shared.cx.addresses.borrow().as_ref().map(|p| (p.used(), p.size()));
    let (used, size) = addresses.unwrap_or_default();
    let mut out = String::new();
    for (name, help, value) in [
        ("wasmk_node_pods", "Pods on this node.", shared.pods.list().len()),
        ("wasmk_node_functions", "Functions this node answers for.", shared.cx.functions.len()),
        ("wasmk_node_addresses_used", "Pod addresses in use.", used),
        ("wasmk_node_addresses_total", "Pod addresses of this node.", size),
        (
            "wasmk_node_starts_free",
            "Images that may begin to be prepared now.",
            shared.cx.starts.available_permits(),
        ),
    ] {
        // Writing to a string cannot fail.
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
    }
    out.push_str(&shared.cx.engine.metrics());
    out
}

pub(super) async fn summary(State(shared): State<Shared>) -> Json<Value> {
    let now = Timestamp::now();
    let pods: Vec<Value> = shared.pods.list().iter().map(|pod| pod_summary(&shared, pod, now)).collect();
    let available = machine::memory_available();
    Json(json!({
        "node": {
            "nodeName": shared.cx.node,
            "memory": {"time": now, "availableBytes": available},
        },
        "pods": pods,
    }))
}

fn pod_summary(shared: &Shared, pod: &Pod, now: Timestamp) -> Value {
    let meta = &pod.metadata;
    let part = |s: &Option<String>| s.clone().unwrap_or_default();
    let container = |c: &wasmk_api::k8s_openapi::api::core::v1::Container| {
        let name = format!("{}/{}/{}", part(&meta.namespace), part(&meta.name), c.name);
        let usage = shared.cx.engine.usage(&name).unwrap_or_default();
        json!({
            "name": c.name,
            "cpu": {"time": now, "usageCoreNanoSeconds": usage.cpu_nanos},
            "memory": {"time": now, "workingSetBytes": usage.memory, "usageBytes": usage.memory},
        })
    };
    let containers: Vec<Value> = pod.spec.iter().flat_map(|s| &s.containers).map(container).collect();
    json!({
        "podRef": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
        "containers": containers,
    })
}
