//! Promise: at least 5,000 pods a second get their node on 1,000 nodes, and the choice itself is never what
//! bounds it: it takes at most a tenth of a millisecond, with rules about other pods about twice that.
//!
//! Measured: the choice alone (no API, one thread) on 100, 1,000 and 5,000 nodes, for pods without rules, with
//! topology spread over zones, with pod affinity to a zone and with anti-affinity by host; then end to end in one
//! process (API server on a store in memory, controllers, scheduler; no node agents): pods that wait when the
//! scheduler starts → all bound, and a Deployment of 1,000 → all created → all bound, with the processor time and
//! resident memory they cost; how long it takes from the end of one of its pods to the next one made and bound; and
//! how often threads wake when nothing happens.
//! `cargo bench -p wasmk-controllers --bench scheduler`
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wasmk_apiserver::{ApiServer, Config};
use wasmk_controllers::{
    Clock, Context, Settings,
    base::PodView,
    run_in,
    scheduler::{self, Planner},
};
use wasmk_store::Memory;

/// Longest wait for pods to be bound.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long an idle cluster is watched.
const IDLE: Duration = Duration::from_secs(10);
/// Requests under way at once while objects are made.
const PARALLEL: usize = 32;
const ZONES: usize = 10;
/// Pods deleted one by one to see how soon they are replaced.
const REPLACED: usize = 500;

fn main() {
    println!("| choice alone | nodes | pods/s | µs each |\n|---|---|---|---|");
    for nodes in [100, 1_000, 5_000] {
        for (name, rules) in rules() {
            choice(name, &rules, nodes);
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    println!(
        "\n| end to end | nodes | pods | pods/s | CPU s | resident MiB more |\n|---|---|---|---|---|---|"
    );
    for (nodes, pods) in [(100, 5_000), (1_000, 10_000), (5_000, 10_000)] {
        runtime.block_on(waiting_pods(nodes, pods));
    }
    runtime.block_on(a_deployment(1_000, 1_000));
}

/// Kinds of pods, by what they say about others.
fn rules() -> Vec<(&'static str, Value)> {
    let mine = json!({"matchLabels": {"app": "web"}});
    let near = |kind: &str, key: &str| {
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"labelSelector": mine, "topologyKey": key}]}}})
    };
    vec![
        ("no rules", json!({})),
        (
            "spread over zones",
            json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": mine}]}),
        ),
        ("affinity to a zone", near("podAffinity", "topology.kubernetes.io/zone")),
        ("anti-affinity by host", near("podAntiAffinity", "kubernetes.io/hostname")),
    ]
}

fn node(i: usize) -> Value {
    let amounts = json!({"cpu": "32", "memory": "256Gi", "pods": "500"});
    json!({
        "metadata": {"name": format!("n{i}"), "uid": format!("n{i}"), "labels": {"kubernetes.io/hostname": format!("n{i}"),
            "topology.kubernetes.io/zone": format!("z{}", i % ZONES)}},
        "spec": {},
        "status": {"allocatable": amounts, "capacity": amounts,
            "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn pod(i: usize, rules: &Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "img",
        "resources": {"requests": {"cpu": "10m", "memory": "10Mi"}}}]});
    spec.as_object_mut().expect("a map").extend(rules.as_object().expect("a map").clone());
    json!({"metadata": {"name": format!("p{i}"), "namespace": "default", "uid": format!("p{i}"),
        "labels": {"app": "web"}}, "spec": spec})
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of its kind")
}

fn choice(name: &str, rules: &Value, nodes: usize) {
    let mut planner = Planner::default();
    (0..nodes).for_each(|i| planner.put_node(read(node(i))));
    let apart = name.starts_with("anti");
    let count = if apart { nodes.min(2_000) } else { 5_000 };
    let pods: Vec<Pod> = (0..count).map(|i| read(pod(i, rules))).collect();
    let began = Instant::now();
    for pod in pods {
        planner.assign(pod).expect("a node for every pod");
    }
    let took = began.elapsed();
    let each = took.as_secs_f64() * 1e6 / count as f64;
    println!("| {name} | {nodes} | {:.0} | {each:.0} |", count as f64 / took.as_secs_f64());
}

/// A control plane in this process.
struct Plane {
    server: ApiServer,
    client: Client,
    stop: CancellationToken,
}

impl Plane {
    async fn start(nodes: usize) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        let config = Config::new(Arc::new(Memory::new()), key, String::new());
        let server = ApiServer::start(config).await.expect("an API server");
        let client = server.client("admin", &["system:masters"]);
        let plane = Self { server, client, stop: CancellationToken::new() };
        let api: Api<Node> = Api::all(plane.client.clone());
        plane
            .each(nodes, |i| {
                let api = api.clone();
                async move {
                    let object: Node = read(node(i));
                    api.create(&PostParams::default(), &object).await?;
                    let (name, params) = (format!("n{i}"), PatchParams::default());
                    let status = json!({"status": node(i)["status"]});
                    api.patch_status(&name, &params, &Patch::Merge(status)).await?;
                    // New nodes are tainted until a controller, which does not run here, has seen that they are ready.
                    let free = json!({"spec": {"taints": null}});
                    api.patch(&name, &params, &Patch::Merge(free)).await?;
                    Ok(())
                }
            })
            .await;
        plane
    }

    async fn each<F, Fut>(&self, count: usize, work: F)
    where
        F: Fn(usize) -> Fut,
        Fut: Future<Output = kube::Result<()>>,
    {
        use futures::{StreamExt, TryStreamExt};
        let all = futures::stream::iter((0..count).map(work)).buffer_unordered(PARALLEL);
        all.try_collect::<Vec<()>>().await.expect("objects");
    }

    fn context(&self, controllers: &[&str]) -> Context {
        let client = self.server.client("system:kube-scheduler", &["system:masters"]);
        let enabled = controllers.iter().map(|c| (*c).to_owned()).collect();
        Context::new(client, Settings { enabled, ..Settings::default() }, Clock::System, self.stop.clone())
    }

    async fn end(self) {
        self.stop.cancel();
        self.server.shutdown().await;
    }
}

/// How many pods are there, and how many of them are bound; followed, since looking at all of them costs more than
/// what is measured.
#[derive(Default)]
struct Counts {
    there: AtomicUsize,
    bound: AtomicUsize,
}

impl Counts {
    fn follow(cx: &Context) -> Arc<Self> {
        let counts = Arc::new(Self::default());
        let sink = counts.clone();
        cx.cache::<Pod>().subscribe(move |old, new| {
            let is_bound = |p: &Arc<Pod>| !PodView(p).node().is_empty();
            if old.is_none() {
                sink.there.fetch_add(1, Relaxed);
            }
            if new.is_some_and(is_bound) && !old.is_some_and(is_bound) {
                sink.bound.fetch_add(1, Relaxed);
            }
        });
        counts
    }

    /// Waits until so many pods have come, and so many of them have been bound.
    async fn until(&self, pods: usize, bound: usize) {
        let began = Instant::now();
        while self.there.load(Relaxed) < pods || self.bound.load(Relaxed) < bound {
            let (there, placed) = (self.there.load(Relaxed), self.bound.load(Relaxed));
            assert!(began.elapsed() < PATIENCE, "{there} of {pods} pods are there, {placed} are bound");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Pods wait when the scheduler starts.
async fn waiting_pods(nodes: usize, pods: usize) {
    let plane = Plane::start(nodes).await;
    let api: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::default_namespaced(plane.client.clone());
    let account = read(json!({"metadata": {"name": "default"}}));
    // The API server may have made it already.
    let _ = api.create(&PostParams::default(), &account).await;
    let api: Api<Pod> = Api::default_namespaced(plane.client.clone());
    let before = (cpu(), resident());
    plane
        .each(pods, |i| {
            let (api, object) = (api.clone(), read::<Pod>(pod(i, &json!({}))));
            async move { api.create(&PostParams::default(), &object).await.map(drop) }
        })
        .await;
    let made = cpu();
    let cx = plane.context(&[]);
    cx.cache::<Pod>().ready().await;
    cx.cache::<Node>().ready().await;
    let counts = Counts::follow(&cx);
    let began = Instant::now();
    tokio::spawn(scheduler::run_in(cx.clone(), scheduler::Settings::default()));
    counts.until(pods, pods).await;
    let took = began.elapsed().as_secs_f64();
    println!(
        "| waiting pods | {nodes} | {pods} | {:.0} | {:.1} to make, {:.1} to bind | {:.0} |",
        pods as f64 / took,
        made - before.0,
        cpu() - made,
        resident() - before.1
    );
    plane.end().await;
}

/// A Deployment is made: its pods are created and bound.
async fn a_deployment(nodes: usize, replicas: usize) {
    let plane = Plane::start(nodes).await;
    let cx = plane.context(&["deployment-controller", "replicaset-controller", "serviceaccount-controller"]);
    tokio::spawn(run_in(cx.clone()));
    tokio::spawn(scheduler::run_in(cx.clone(), scheduler::Settings::default()));
    let counts = Counts::follow(&cx);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let template = pod(0, &json!({}));
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": template["spec"]}}});
    let api: Api<Deployment> = Api::default_namespaced(plane.client.clone());
    let (began, used) = (Instant::now(), cpu());
    api.create(&PostParams::default(), &read(deployment)).await.expect("a deployment");
    counts.until(replicas, 0).await;
    let created = began.elapsed();
    counts.until(replicas, replicas).await;
    let bound = began.elapsed();
    let used = cpu() - used;
    println!(
        "\nDeployment of {replicas} on {nodes} nodes: created in {:.2} s, bound in {:.2} s, {used:.1} s of CPU",
        created.as_secs_f64(),
        bound.as_secs_f64(),
    );
    let listed =
        Api::<Pod>::default_namespaced(plane.client.clone()).list_metadata(&ListParams::default()).await;
    assert_eq!(listed.expect("pods").items.len(), replicas);
    replacements(&plane, &cx).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (wakes, used) = (switches(), cpu());
    tokio::time::sleep(IDLE).await;
    println!(
        "idle with {nodes} nodes and {replicas} pods: {:.1} wake-ups/s, {:.2} % of a core",
        (switches() - wakes) / IDLE.as_secs_f64(),
        (cpu() - used) / IDLE.as_secs_f64() * 100.0
    );
    plane.end().await;
}

/// Pods of the Deployment are deleted, one after the other: how long until the next is made, and bound.
async fn replacements(plane: &Plane, cx: &Context) {
    let (sink, mut news) = mpsc::unbounded_channel();
    let mut victims = cx.cache::<Pod>().list();
    victims.truncate(REPLACED);
    cx.cache::<Pod>().subscribe(move |old, new| {
        let is_bound = |p: &Arc<Pod>| !PodView(p).node().is_empty();
        let Some(pod) = new else { return };
        if old.is_none_or(|o| is_bound(o) != is_bound(pod)) {
            // Nobody listens any more in the end.
            let _ = sink.send((pod.metadata.uid.clone(), is_bound(pod), Instant::now()));
        }
    });
    while news.try_recv().is_ok() {}
    let api: Api<Pod> = Api::default_namespaced(plane.client.clone());
    let (mut made, mut bound) = (Vec::new(), Vec::new());
    for victim in &victims {
        let began = Instant::now();
        let name = victim.metadata.name.as_deref().unwrap_or_default();
        api.delete(name, &DeleteParams::default().grace_period(0)).await.expect("a pod of the Deployment");
        let mut replacement = None;
        loop {
            let (uid, placed, at) = news.recv().await.expect("a cache that lives");
            match &replacement {
                None if !placed => {
                    made.push(at - began);
                    replacement = Some(uid);
                }
                Some(waited_for) if placed && *waited_for == uid => {
                    bound.push(at - began);
                    break;
                }
                _ => {}
            }
        }
    }
    for (what, mut times) in [("made", made), ("bound", bound)] {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        println!(
            "{} pods deleted, the next {what} after: p50 {:.2} ms, p99 {:.2} ms",
            times.len(),
            at(0.5),
            at(0.99)
        );
    }
}

/// Seconds of processor time of this process.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// Resident memory in MiB.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    pages * 4096.0 / f64::from(1 << 20)
}

/// How often threads of this process have gone to sleep.
fn switches() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |text: String| {
        let line = text.lines().find(|l| l.starts_with("voluntary_ctxt_switches"))?.to_owned();
        line.split_whitespace().nth(1)?.parse::<f64>().ok()
    };
    tasks.filter_map(|t| of(std::fs::read_to_string(t.path().join("status")).ok()?)).sum()
}
