//! What the node tells about itself: its pods and its figures.

use std::{collections::HashMap, fmt::Write};

use axum::{Json, extract::State};
use serde_json::{Value, json};
use wasmk_api::{
    Timestamp,
    k8s_openapi::api::core::v1::{ContainerStatus, Pod},
};

use super::Shared;
use crate::{containers::ContainerUsage, engine::Usage, machine, running::Running};

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
    // The engine's lines of the same family follow.
    let family = crate::functions::PHASES;
    let _ = write!(
        out,
        "# HELP {family} Time from an image's name to an answer's first byte, by step.\n# TYPE {family} histogram\n"
    );
    shared.cx.functions.metrics(&mut out);
    out.push_str(&shared.cx.started.text());
    out.push_str(&shared.cx.engine.metrics());
    shared.volumes.read(&shared.cx, &shared.pods.list()).await.metrics(&mut out);
    if let Some(containers) = &shared.cx.containers {
        out.push_str(&containers.metrics());
    }
    out
}

pub(super) async fn summary(State(shared): State<Shared>) -> Json<Value> {
    let now = Timestamp::now();
    let usage = Usages::read(&shared).await;
    let pods = shared.pods.list();
    let volumes = shared.volumes.read(&shared.cx, &pods).await;
    let summary = |pod: &std::sync::Arc<Pod>| {
        let mut summary = pod_summary(&usage, pod, now);
        let volumes = volumes.of_pod(pod.metadata.uid.as_deref().unwrap_or_default(), now);
        if !volumes.is_empty() {
            summary["volume"] = volumes.into();
        }
        summary
    };
    let pods: Vec<Value> = pods.iter().map(summary).collect();
    let node = machine::usage();
    Json(json!({
        "node": {
            "nodeName": shared.cx.node,
            "startTime": shared.cx.began,
            "cpu": {"time": now, "usageCoreNanoSeconds": node.cpu_nanos},
            "memory": {"time": now, "availableBytes": machine::memory_available(), "workingSetBytes": node.memory,
                "usageBytes": node.memory},
        },
        "pods": pods,
    }))
}

/// What containers use, of both kinds.
struct Usages<'a> {
    shared: &'a Shared,
    /// Of the container runtime, by uid of the pod and name.
    theirs: HashMap<(String, String), Usage>,
    /// Bytes of their own files, likewise.
    disks: HashMap<(String, String), u64>,
}

impl<'a> Usages<'a> {
    async fn read(shared: &'a Shared) -> Self {
        let theirs = match &shared.cx.containers {
            Some(containers) => containers.usage().await,
            None => Vec::new(),
        };
        let key = |u: &ContainerUsage| (u.uid.clone(), u.container.clone());
        let disks = theirs.iter().map(|u| (key(u), u.disk)).collect();
        let theirs = theirs.into_iter().map(|u| (key(&u), u.usage)).collect();
        Self { shared, theirs, disks }
    }

    /// Bytes that a container wrote into its own files; guests have none.
    fn disk(&self, pod: &Pod, container: &str) -> u64 {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.disks.get(&(uid, container.to_string())).copied().unwrap_or(0)
    }

    /// `None` of a container that does not run.
    fn of(&self, pod: &Pod, container: &str) -> Option<Usage> {
        let part = |s: &Option<String>| s.clone().unwrap_or_default();
        let meta = &pod.metadata;
        let uid = part(&meta.uid);
        match self.shared.cx.running.find(&uid, container)? {
            Running::Container(_) => self.theirs.get(&(uid, container.to_string())).copied(),
            Running::Wasm(_) => {
                let name = format!("{}/{}/{container}", part(&meta.namespace), part(&meta.name));
                self.shared.cx.engine.usage(&name).or(Some(Usage::default()))
            }
        }
    }
}

/// All containers of a pod that run, with what they use.
fn containers<'p>(usage: &Usages<'_>, pod: &'p Pod) -> Vec<(&'p str, Usage)> {
    let spec = pod.spec.as_ref();
    let all = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    all.filter_map(|c| Some((c.name.as_str(), usage.of(pod, &c.name)?))).collect()
}

fn pod_summary(usage: &Usages<'_>, pod: &Pod, now: Timestamp) -> Value {
    let meta = &pod.metadata;
    let figures = |used: Usage| {
        let cpu = json!({"time": now, "usageCoreNanoSeconds": used.cpu_nanos});
        (cpu, json!({"time": now, "workingSetBytes": used.memory, "usageBytes": used.memory}))
    };
    let running = containers(usage, pod);
    let mut sum = Usage::default();
    for (_, used) in &running {
        sum.cpu_nanos += used.cpu_nanos;
        sum.memory += used.memory;
    }
    let list = running.into_iter().map(|(name, used)| {
        let (cpu, memory) = figures(used);
        json!({"name": name, "cpu": cpu, "memory": memory})
    });
    let list: Vec<Value> = list.collect();
    let (cpu, memory) = figures(sum);
    json!({
        "podRef": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
        "startTime": pod.status.as_ref().and_then(|s| s.start_time.clone()),
        "containers": list,
        "cpu": cpu,
        "memory": memory,
    })
}

/// The same figures in the text format of Prometheus, with the kubelet's names.
pub(super) async fn resource(State(shared): State<Shared>) -> String {
    let usage = Usages::read(&shared).await;
    let node = machine::usage();
    let mut out = format!(
        "# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total {}\n\
         # TYPE node_memory_working_set_bytes gauge\nnode_memory_working_set_bytes {}\n",
        seconds(node.cpu_nanos),
        node.memory
    );
    let (mut cpu, mut memory) = (String::new(), String::new());
    for pod in shared.pods.list() {
        let part = |s: &Option<String>| s.clone().unwrap_or_default();
        let (namespace, name) = (part(&pod.metadata.namespace), part(&pod.metadata.name));
        for (container, used) in containers(&usage, &pod) {
            let labels = format!("{{container=\"{container}\",namespace=\"{namespace}\",pod=\"{name}\"}}");
            // Writing to a string cannot fail.
            let _ = writeln!(cpu, "container_cpu_usage_seconds_total{labels} {}", seconds(used.cpu_nanos));
            let _ = writeln!(memory, "container_memory_working_set_bytes{labels} {}", used.memory);
        }
    }
    let _ = write!(out, "# TYPE container_cpu_usage_seconds_total counter\n{cpu}");
    let _ = write!(out, "# TYPE container_memory_working_set_bytes gauge\n{memory}");
    out
}

/// The figures of containers with the names and labels that cAdvisor gives them.
pub(super) async fn cadvisor(State(shared): State<Shared>) -> String {
    let usage = Usages::read(&shared).await;
    let rows = [
        ("container_cpu_usage_seconds_total", "counter"),
        ("container_memory_working_set_bytes", "gauge"),
        ("container_memory_usage_bytes", "gauge"),
        ("container_spec_memory_limit_bytes", "gauge"),
        ("container_fs_usage_bytes", "gauge"),
        ("container_start_time_seconds", "gauge"),
        ("container_last_seen", "gauge"),
    ];
    let mut text = rows.map(|_| String::new());
    let now = Timestamp::now().0.as_second();
    for pod in shared.pods.list() {
        let status = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
        for (name, used) in containers(&usage, &pod) {
            let known = status.iter().find(|s| s.name == name);
            let started = known
                .and_then(|s| Some(s.state.as_ref()?.running.as_ref()?.started_at.clone()?.0.as_second()));
            let labels = labels(&pod, name, known);
            let values = [
                seconds(used.cpu_nanos).to_string(),
                used.memory.to_string(),
                used.memory.to_string(),
                memory_limit(&pod, name).to_string(),
                usage.disk(&pod, name).to_string(),
                started.unwrap_or(0).to_string(),
                now.to_string(),
            ];
            for ((out, (metric, _)), value) in text.iter_mut().zip(rows).zip(values) {
                // Writing to a string cannot fail.
                let _ = writeln!(out, "{metric}{labels} {value}");
            }
        }
    }
    rows.iter().zip(text).map(|((metric, kind), lines)| format!("# TYPE {metric} {kind}\n{lines}")).collect()
}

fn labels(pod: &Pod, container: &str, status: Option<&ContainerStatus>) -> String {
    let part = |s: &Option<String>| s.clone().unwrap_or_default();
    let id = status.and_then(|s| s.container_id.clone()).unwrap_or_default();
    let name = id.split_once("://").map_or(id.as_str(), |(_, id)| id);
    let image = status.map(|s| s.image.clone()).unwrap_or_default();
    let meta = &pod.metadata;
    format!(
        "{{container=\"{container}\",id=\"/kubepods/pod{}/{name}\",image=\"{image}\",name=\"{name}\",namespace=\"{}\",pod=\"{}\"}}",
        part(&meta.uid),
        part(&meta.namespace),
        part(&meta.name)
    )
}

/// 0 when there is none.
fn memory_limit(pod: &Pod, container: &str) -> u64 {
    let containers =
        pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let of = containers.into_iter().find(|c| c.name == container);
    of.and_then(crate::pod::memory_limit).unwrap_or(0)
}

fn seconds(nanos: u64) -> f64 {
    std::time::Duration::from_nanos(nanos).as_secs_f64()
}
