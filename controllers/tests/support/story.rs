//! A bad day in the life of a large cluster, on paused time: nodes join, Deployments fill them, one node in
//! twenty falls silent at once, the controllers and the scheduler are stopped in the middle of moving its pods and
//! started anew, the nodes come back, and everything is scaled up while two sets of controllers run by mistake.
//! After each part every Deployment must have exactly its pods, all ready, and no node more than it can hold.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod, ServiceAccount},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use wasmk_controllers::{
    Context, Settings,
    base::{PodView, is_deleting, is_ready},
    run_in, scheduler,
};

use super::{Cluster, deployment, hollow};

/// One node in this many is lost.
const LOST_PART: usize = 20;
/// Requests under way at once while objects are made.
const PARALLEL: usize = 32;
/// Longest wait for a part to be over, in simulated time.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);
/// Pods of a node.
const ROOM: usize = 110;

/// How large it all is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) nodes: usize,
    pub(crate) zones: usize,
    pub(crate) deployments: usize,
    pub(crate) replicas: usize,
}

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Pods in the end.
    pub(crate) pods: usize,
    /// Pods that were on lost nodes.
    pub(crate) moved: usize,
    /// Each part: its name, simulated and real time it took.
    pub(crate) parts: Vec<(&'static str, Duration, Duration)>,
}

struct Stage {
    cluster: Cluster,
    /// Sees everything, beside the controllers.
    watching: Context,
    size: Size,
    report: Report,
    began: (tokio::time::Instant, Instant),
}

/// A set of controllers and a scheduler that can be stopped.
struct Control {
    stop: CancellationToken,
}

/// Plays it all.
pub(crate) async fn play(size: Size) -> Report {
    let cluster = Cluster::bare_without_nodes().await;
    let cx =
        Context::new(cluster.client.clone(), Settings::default(), cluster.clock, cluster.shutdown.clone());
    let began = (tokio::time::Instant::now(), Instant::now());
    let mut stage = Stage { cluster, watching: cx, size, report: Report::default(), began };
    tokio::spawn(hollow::run(stage.watching.clone()));

    stage.join_nodes().await;
    let control = stage.control(true);
    stage.part("nodes joined");
    stage.cluster.until::<ServiceAccount>("default", |_| true).await;
    stage.deploy().await;
    stage.settled(size.replicas).await;
    stage.part("pods ready");

    let lost = stage.lose_nodes().await;
    stage.until_given_up(&lost).await;
    control.stop.cancel();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let control = stage.control(true);
    stage.settled(size.replicas).await;
    stage.part("nodes lost, controllers restarted, pods moved");

    stage.label_dead(&lost, Value::Null).await;
    stage.until_recovered(&lost).await;
    stage.part("nodes recovered");

    let second = stage.control(false);
    let more = size.replicas + size.replicas / 10;
    stage.scale(more).await;
    stage.settled(more).await;
    // Nothing more happens.
    tokio::time::sleep(Duration::from_secs(120)).await;
    stage.settled(more).await;
    stage.part("scaled up by two sets of controllers");
    control.stop.cancel();
    second.stop.cancel();
    stage.report.pods = stage.watching.cache::<Pod>().len();
    stage.report
}

impl Stage {
    fn control(&self, scheduling: bool) -> Control {
        let stop = self.cluster.shutdown.child_token();
        let client = self.cluster.server.client("system:kube-controller-manager", &["system:masters"]);
        // Events, quotas and the like are not what this is about.
        let enabled = ["deployment", "replicaset", "node-lifecycle", "taint-eviction", "serviceaccount"];
        let enabled = enabled.iter().map(|name| format!("{name}-controller")).collect();
        let cx = Context::new(
            client,
            Settings { enabled, ..Settings::default() },
            self.cluster.clock,
            stop.clone(),
        );
        tokio::spawn(run_in(cx.clone()));
        if scheduling {
            tokio::spawn(scheduler::run_in(cx, scheduler::Settings::default()));
        }
        Control { stop }
    }

    fn part(&mut self, name: &'static str) {
        let (simulated, real) = self.began;
        self.report.parts.push((name, simulated.elapsed(), real.elapsed()));
        self.began = (tokio::time::Instant::now(), Instant::now());
    }

    async fn join_nodes(&self) {
        let join = |i: usize| async move {
            let zone = json!({"topology.kubernetes.io/zone": format!("z{}", i % self.size.zones)});
            self.cluster.add_node(&format!("n{i}"), zone).await;
            Ok::<_, kube::Error>(())
        };
        self.each(self.size.nodes, join).await;
    }

    async fn each<F, Fut>(&self, count: usize, work: F)
    where
        F: Fn(usize) -> Fut,
        Fut: Future<Output = kube::Result<()>>,
    {
        let all = stream::iter((0..count).map(work)).buffer_unordered(PARALLEL);
        all.try_collect::<Vec<()>>().await.expect("requests that are granted");
    }

    async fn deploy(&self) {
        let api: Api<Deployment> = self.cluster.api();
        let tolerations = |key: &str| {
            json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": 30})
        };
        self.each(self.size.deployments, |i| {
            let mut object =
                deployment(&format!("d{i}"), i32::try_from(self.size.replicas).expect("a number"), "v1");
            object["spec"]["template"]["spec"]["tolerations"] =
                json!([tolerations("not-ready"), tolerations("unreachable")]);
            object["spec"]["template"]["spec"]["containers"][0]["resources"] =
                json!({"requests": {"cpu": "10m", "memory": "10Mi"}});
            let (api, object) = (api.clone(), serde_json::from_value(object).expect("a deployment"));
            async move { api.create(&PostParams::default(), &object).await.map(drop) }
        })
        .await;
    }

    async fn scale(&self, replicas: usize) {
        let api: Api<Deployment> = self.cluster.api();
        self.each(self.size.deployments, |i| {
            let api = api.clone();
            let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
            async move { api.patch(&format!("d{i}"), &PatchParams::default(), &patch).await.map(drop) }
        })
        .await;
    }

    /// Waits until every Deployment has exactly its pods on living nodes, and checks the nodes.
    async fn settled(&self, replicas: usize) {
        let (pods, nodes) = (self.watching.cache::<Pod>(), self.watching.cache::<Node>());
        let began = tokio::time::Instant::now();
        loop {
            let dead: Vec<String> = nodes
                .list()
                .iter()
                .filter(|n| hollow::is_dead(n))
                .filter_map(|n| n.metadata.name.clone())
                .collect();
            let dead: std::collections::HashSet<&str> = dead.iter().map(String::as_str).collect();
            let mut per_app: HashMap<&str, (usize, usize)> = HashMap::new();
            let mut per_node: HashMap<&str, usize> = HashMap::new();
            let all = pods.list();
            for pod in &all {
                // What is on a lost node is on its way out, and nobody is there to see it out.
                if dead.contains(PodView(pod).node()) && is_deleting(&**pod) {
                    continue;
                }
                let app = pod.metadata.labels.as_ref().and_then(|l| l.get("app"));
                let counts = per_app.entry(app.map_or("", String::as_str)).or_default();
                counts.0 += 1;
                counts.1 += usize::from(is_ready(pod) && !is_deleting(&**pod));
                *per_node.entry(PodView(pod).node()).or_default() += 1;
            }
            let full = per_node.iter().find(|(node, count)| !node.is_empty() && **count > ROOM);
            assert!(full.is_none(), "a node has more than it can hold: {full:?}");
            let exact = |counts: &(usize, usize)| *counts == (replicas, replicas);
            if per_app.len() == self.size.deployments && per_app.values().all(exact) {
                return;
            }
            let wrong: Vec<_> = per_app.iter().filter(|(_, c)| !exact(c)).take(5).collect();
            assert!(
                began.elapsed() < PATIENCE,
                "{} of {} deployments, {wrong:?}",
                per_app.len(),
                self.size.deployments
            );
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }

    async fn lose_nodes(&mut self) -> Vec<String> {
        let lost: Vec<String> = (0..self.size.nodes).step_by(LOST_PART).map(|i| format!("n{i}")).collect();
        let pods = self.watching.cache::<Pod>();
        self.report.moved = lost.iter().map(|node| pods.on_node(node).len()).sum();
        self.label_dead(&lost, json!("")).await;
        lost
    }

    async fn label_dead(&self, nodes: &[String], value: Value) {
        let api: Api<Node> = Api::all(self.cluster.client.clone());
        let patch = Arc::new(Patch::Merge(json!({"metadata": {"labels": {"dead": value}}})));
        self.each(nodes.len(), |i| {
            let (api, patch, name) = (api.clone(), patch.clone(), nodes[i].clone());
            async move { api.patch(&name, &PatchParams::default(), &patch).await.map(drop) }
        })
        .await;
    }

    /// Waits until half of these nodes are to lose their pods.
    async fn until_given_up(&self, lost: &[String]) {
        let given_up =
            |n: &Node| n.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.effect == "NoExecute");
        self.until_half(lost, given_up).await;
    }

    async fn until_recovered(&self, lost: &[String]) {
        let untainted =
            |n: &Node| n.spec.as_ref().is_none_or(|s| s.taints.as_ref().is_none_or(Vec::is_empty));
        let pods = self.watching.cache::<Pod>();
        let began = tokio::time::Instant::now();
        let nodes = self.watching.cache::<Node>();
        let well = |name: &String| {
            let node = nodes.get(&wasmk_controllers::base::Key::new("", name.as_str()));
            node.is_some_and(|n| untainted(&n)) && pods.on_node(name).iter().all(|p| !is_deleting(&**p))
        };
        while !lost.iter().all(well) {
            assert!(began.elapsed() < PATIENCE, "nodes do not recover");
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }

    async fn until_half(&self, names: &[String], good: impl Fn(&Node) -> bool) {
        let (nodes, began) = (self.watching.cache::<Node>(), tokio::time::Instant::now());
        let count = || {
            let found =
                names.iter().filter_map(|n| nodes.get(&wasmk_controllers::base::Key::new("", n.as_str())));
            found.filter(|n| good(n)).count()
        };
        while count() * 2 < names.len() {
            assert!(began.elapsed() < PATIENCE, "{} of {} nodes", count(), names.len());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
