//! Chooses a node for every pod that has none.
//!
//! Changes keep an account of nodes, their pods and what is left ([`snapshot`]). A pod is
//! tried against one snapshot: [`filter`] says where it may go, [`score`] where it should,
//! [`explain`] why it could not. The choice counts at once in the account; writing it (the
//! `binding`) goes on beside, many at a time, and is undone in the account if it fails.
//! A pod that fits nowhere waits in [`queue`] for a change that could help it.
//!
//! Reads pods, nodes, namespaces, runtime classes, volumes. Writes bindings, the pod
//! condition PodScheduled, `nominatedNodeName`; deletes pods of lower priority when that
//! makes room.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::{
    core::v1::{
        Binding, Namespace, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition,
    },
    node::v1::RuntimeClass,
    storage::v1::StorageClass,
};
use kube::{Client, api::ObjectMeta};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::base::{Clock, Context, Error, EventKind, Informer, Key, Result, condition, is_deleting, time};

mod cycle;
mod explain;
mod filter;
mod preempt;
mod queue;
mod score;
mod snapshot;
pub(crate) mod volumes;

use cycle::Cycle;
use explain::Rejection;
use preempt::Victims;
use queue::{Change, Queue};
use snapshot::{Cluster, NodeInfo, PodInfo, Snapshot};

/// Nodes that are compared at least, if that many fit.
const MIN_COMPARED: usize = 100;
/// Of many nodes, one in this many is compared.
const COMPARED_PART: usize = 10;
/// Pods tried before other tasks get their turn.
const BATCH: usize = 32;
/// How long the loop sleeps when nothing waits for a time.
const LONG_WAIT: Duration = Duration::from_secs(3600);

/// How the scheduler runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The pods that name this scheduler are its own.
    pub scheduler_name: String,
    /// Bindings, and reports about pods that fit nowhere, under way at once.
    pub max_in_flight: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { scheduler_name: "default-scheduler".into(), max_in_flight: 256 }
    }
}

/// Runs the scheduler until `shutdown`.
///
/// # Errors
/// None at present; it retries what fails.
pub async fn run(client: Client, settings: Settings, shutdown: CancellationToken) -> Result<()> {
    let cx = Context::new(client, crate::Settings::default(), Clock::System, shutdown);
    run_in(cx, settings).await
}

/// Runs the scheduler on a context that may be shared with the controllers, which saves a
/// second set of caches.
///
/// # Errors
/// As [`run`].
pub async fn run_in(cx: Context, settings: Settings) -> Result<()> {
    let scheduler = Arc::new(Scheduler::new(cx, settings));
    scheduler.subscribe().await;
    scheduler.schedule().await;
    Ok(())
}

/// What changes feed: the account and the queue, under one lock that is never held long.
#[derive(Default)]
struct State {
    cluster: Cluster,
    queue: Queue,
    /// Where the next search begins, so that all nodes get their turn.
    start: usize,
}

struct Scheduler {
    cx: Context,
    settings: Settings,
    state: Arc<Mutex<State>>,
    wake: Arc<Notify>,
    pods: Arc<Informer<Pod>>,
    classes: Arc<Informer<RuntimeClass>>,
    volumes: volumes::Caches,
}

/// How a task that ran beside the loop ended.
enum Done {
    Bound(Arc<PodInfo>),
    /// The choice does not stand; which filters to wait for, none: try again after the back-off.
    Undo(Arc<PodInfo>, BTreeSet<&'static str>),
    Reported,
}

impl Scheduler {
    fn new(cx: Context, settings: Settings) -> Self {
        Self {
            state: Arc::default(),
            wake: Arc::default(),
            pods: cx.cache(),
            classes: cx.cache(),
            volumes: volumes::Caches { claims: cx.cache(), volumes: cx.cache(), classes: cx.cache() },
            cx,
            settings,
        }
    }

    /// Feeds changes into the state. Nodes come before pods, so that few pods are strays.
    async fn subscribe(&self) {
        let nodes = self.cx.cache::<Node>();
        nodes.ready().await;
        self.feed(&nodes, |state, old: Option<&Arc<Node>>, new| {
            match new {
                Some(node) => state.cluster.put_node(node.clone()),
                None => state.cluster.remove_node(old.and_then(|n| n.metadata.name.as_deref()).unwrap_or("")),
            }
            let matters = new.is_some_and(|new| old.is_none_or(|old| node_differs(old, new)));
            matters.then_some(Change::Node)
        });
        let namespaces = self.cx.cache::<Namespace>();
        namespaces.ready().await;
        self.feed(&namespaces, |state, old: Option<&Arc<Namespace>>, new| {
            let name = |n: &Arc<Namespace>| n.metadata.name.clone().unwrap_or_default();
            let all = Arc::make_mut(&mut state.cluster.namespaces);
            match (old, new) {
                (_, Some(new)) => {
                    drop(all.insert(name(new), new.metadata.labels.clone().unwrap_or_default()))
                }
                (Some(old), None) => drop(all.remove(&name(old))),
                (None, None) => {}
            }
            Some(Change::Other)
        });
        self.classes.ready().await;
        self.feed(&self.classes, |_, _, _: Option<&Arc<RuntimeClass>>| Some(Change::Other));
        self.volumes.claims.ready().await;
        self.volumes.volumes.ready().await;
        self.volumes.classes.ready().await;
        self.feed(&self.volumes.claims, |_, _, _: Option<&Arc<PersistentVolumeClaim>>| Some(Change::Volume));
        self.feed(&self.volumes.volumes, |_, _, _: Option<&Arc<PersistentVolume>>| Some(Change::Volume));
        self.feed(&self.volumes.classes, |_, _, _: Option<&Arc<StorageClass>>| Some(Change::Volume));
        self.pods.ready().await;
        let name = self.settings.scheduler_name.clone();
        self.feed(&self.pods, move |state, old, new| on_pod(state, &name, old, new));
    }

    fn feed<K: crate::base::Watched>(
        &self,
        cache: &Informer<K>,
        take_in: impl Fn(&mut State, Option<&Arc<K>>, Option<&Arc<K>>) -> Option<Change> + Send + Sync + 'static,
    ) {
        let (state, wake) = (self.state.clone(), self.wake.clone());
        cache.subscribe(move |old, new| {
            let mut state = state.lock();
            if let Some(change) = take_in(&mut state, old, new) {
                state.queue.wake(change);
            }
            drop(state);
            wake.notify_one();
        });
    }

    async fn schedule(self: Arc<Self>) {
        let mut tasks = JoinSet::new();
        loop {
            let mut tried = 0;
            while tasks.len() < self.settings.max_in_flight && self.try_one(&mut tasks) {
                tried += 1;
                if tried % BATCH == 0 {
                    tokio::task::yield_now().await;
                }
                while let Some(done) = tasks.try_join_next() {
                    self.settle(done);
                }
            }
            let due = self.state.lock().queue.next_due().unwrap_or_else(|| Instant::now() + LONG_WAIT);
            tokio::select! {
                () = self.cx.shutdown.cancelled() => return,
                () = self.wake.notified(), if tasks.len() < self.settings.max_in_flight => {}
                Some(done) = tasks.join_next() => self.settle(done),
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    fn settle(&self, done: std::result::Result<Done, tokio::task::JoinError>) {
        let mut state = self.state.lock();
        match done {
            Ok(Done::Bound(pod)) => state.queue.remove(&pod.uid),
            Ok(Done::Undo(pod, filters)) => {
                state.cluster.remove_pod(&pod.uid);
                state.queue.reject(&pod.uid, filters);
                state.queue.wake(Change::PodGone);
            }
            Ok(Done::Reported) => {}
            Err(error) => tracing::error!(%error, "a scheduling task stopped"),
        }
    }

    /// Tries the next pod; false when none is ready.
    fn try_one(self: &Arc<Self>, tasks: &mut JoinSet<Done>) -> bool {
        let (pod, snapshot, start) = {
            let mut state = self.state.lock();
            let Some(pod) = state.queue.take() else { return false };
            (pod, state.cluster.snapshot(), state.start)
        };
        if !self.still_waits(&pod) {
            self.state.lock().queue.remove(&pod.uid);
            return true;
        }
        let class = pod.spec().and_then(|s| s.runtime_class_name.as_deref());
        let class = class.and_then(|name| self.classes.get(&Key::new("", name)));
        let volumes = match self.volumes.examine(&pod.pod) {
            Ok(volumes) => volumes,
            Err(reason) => {
                let all = vec![Rejection::by_node("VolumeBinding", reason); snapshot.nodes.len().max(1)];
                self.give_up(tasks, &pod, snapshot.nodes.len(), &all, None);
                return true;
            }
        };
        let cycle = Cycle::new(&pod, &snapshot, class.as_deref(), volumes.nodes.clone());
        match choose(&pod, &snapshot, &cycle, start) {
            Ok((index, next_start)) => {
                let node = snapshot.nodes[index].name.clone();
                drop(snapshot);
                let mut state = self.state.lock();
                state.start = next_start;
                state.cluster.place(&node, pod.clone());
                drop(state);
                let bind = self.clone().bind(pod, node, volumes);
                tasks.spawn(bind);
            }
            Err(rejections) => {
                let victims = preempt::find(&pod, &snapshot, &rejections, class.as_deref(), &volumes.nodes);
                let all: Vec<Rejection> = rejections.into_iter().map(|(_, r)| r).collect();
                self.give_up(tasks, &pod, snapshot.nodes.len(), &all, victims);
            }
        }
        true
    }

    fn still_waits(&self, pod: &PodInfo) -> bool {
        let current = self.pods.get(&pod.key).filter(|p| crate::base::uid(&**p) == pod.uid);
        current.is_some_and(|p| snapshot::is_waiting(&p, &self.settings.scheduler_name))
    }

    fn give_up(
        self: &Arc<Self>,
        tasks: &mut JoinSet<Done>,
        pod: &Arc<PodInfo>,
        nodes: usize,
        rejections: &[Rejection],
        victims: Option<Victims>,
    ) {
        let mut filters = explain::filters(rejections);
        if filters.is_empty() {
            // Without any node, the first one may help.
            filters.insert("NodeName");
        }
        let mut message = explain::message(nodes, rejections);
        if nodes > 0 && victims.is_none() {
            message.push_str(&explain::preemption(nodes, rejections));
        }
        self.state.lock().queue.reject(&pod.uid, filters);
        tasks.spawn(self.clone().report(pod.clone(), message, victims));
    }

    async fn bind(self: Arc<Self>, pod: Arc<PodInfo>, node: String, volumes: volumes::Volumes) -> Done {
        let waits_for_volume = volumes.pending || !volumes.to_select.is_empty();
        for claim in &volumes.to_select {
            let patch = json!({
                "metadata": {
                    "resourceVersion": claim.metadata.resource_version,
                    "annotations": {volumes::SELECTED_NODE: node},
                },
            });
            if let Err(error) = self.cx.patch(&**claim, patch).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "claim not given its node");
                return Done::Undo(pod, BTreeSet::new());
            }
        }
        if waits_for_volume {
            return Done::Undo(pod, BTreeSet::from(["VolumeBinding"]));
        }
        let target =
            ObjectReference { kind: Some("Node".into()), name: Some(node.clone()), ..Default::default() };
        let metadata = ObjectMeta {
            name: Some(pod.key.name.clone()),
            namespace: Some(pod.key.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..Default::default()
        };
        let outcome = self
            .cx
            .post_sub::<Pod, _, serde_json::Value>(&pod.key, "binding", &Binding { metadata, target })
            .await;
        match outcome {
            Ok(_) => {
                let message = format!("Successfully assigned {} to {node}", pod.key);
                self.tell(&pod.pod, EventKind::Normal, "Scheduled", message);
                Done::Bound(pod)
            }
            Err(error) => {
                if !error.is_not_found() && !error.is_conflict() {
                    self.tell(&pod.pod, EventKind::Warning, "FailedScheduling", binding_error(&error));
                }
                Done::Undo(pod, BTreeSet::new())
            }
        }
    }

    fn tell(&self, pod: &Pod, kind: EventKind, reason: &str, message: String) {
        self.cx.events.record("default-scheduler", pod, kind, reason, message);
    }

    /// Says why the pod got no node, and removes those that are in its way.
    async fn report(self: Arc<Self>, pod: Arc<PodInfo>, message: String, victims: Option<Victims>) -> Done {
        self.tell(&pod.pod, EventKind::Warning, "FailedScheduling", message.clone());
        let nominated = victims.as_ref().map(|v| v.node.clone());
        for victim in victims.iter().flat_map(|v| &v.pods) {
            if let Err(error) = self.preempt(&pod, victim).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "a pod was not preempted");
            }
        }
        if let Err(error) = self.write_unscheduled(&pod, &message, nominated.as_deref()).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "condition not written");
        }
        Done::Reported
    }

    async fn write_unscheduled(&self, pod: &PodInfo, message: &str, nominated: Option<&str>) -> Result<()> {
        let Some(current) = self.pods.get(&pod.key).filter(|p| crate::base::uid(&**p) == pod.uid) else {
            return Ok(());
        };
        let says = |c: &PodCondition| c.status == "False" && c.message.as_deref() == Some(message);
        if condition(&current, "PodScheduled").is_some_and(says) && nominated.is_none() {
            return Ok(());
        }
        let new = PodCondition {
            type_: "PodScheduled".into(),
            status: "False".into(),
            reason: Some("Unschedulable".into()),
            message: Some(message.into()),
            last_transition_time: Some(time(self.cx.clock.now())),
            ..Default::default()
        };
        let mut status = json!({"conditions": with_condition(&current, new)});
        if let Some(node) = nominated {
            status["nominatedNodeName"] = json!(node);
        }
        let version = &current.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
        self.cx.patch_sub(&*current, "status", patch).await.map(drop)
    }

    async fn preempt(&self, pod: &PodInfo, victim: &PodInfo) -> Result<()> {
        let Some(current) = self.pods.get(&victim.key).filter(|p| crate::base::uid(&**p) == victim.uid)
        else {
            return Ok(());
        };
        if is_deleting(&*current) {
            return Ok(());
        }
        let reason = PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            reason: Some("PreemptionByScheduler".into()),
            message: Some(format!(
                "{}: preempting to accommodate a higher priority pod",
                self.settings.scheduler_name
            )),
            last_transition_time: Some(time(self.cx.clock.now())),
            ..Default::default()
        };
        let version = &current.metadata.resource_version;
        let status = json!({"conditions": with_condition(&current, reason)});
        let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
        self.cx.patch_sub(&*current, "status", patch).await?;
        self.cx.delete(&*current, Default::default()).await?;
        self.tell(&current, EventKind::Normal, "Preempted", format!("Preempted by pod {} on node", pod.uid));
        Ok(())
    }
}

fn binding_error(error: &Error) -> String {
    format!("binding rejected: {}", error.message())
}

fn with_condition(pod: &Pod, new: PodCondition) -> Vec<PodCondition> {
    let mut all = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    all.retain(|c| c.type_ != new.type_);
    all.push(new);
    all
}

/// Takes a change of a pod into account and queue.
fn on_pod(
    state: &mut State,
    scheduler: &str,
    old: Option<&Arc<Pod>>,
    new: Option<&Arc<Pod>>,
) -> Option<Change> {
    let uid = |p: &Arc<Pod>| crate::base::uid(&**p).to_owned();
    let Some(pod) = new else {
        let gone = uid(old?);
        state.queue.remove(&gone);
        return state.cluster.remove_pod(&gone).then_some(Change::PodGone);
    };
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("");
    if !node.is_empty() {
        state.queue.remove(&uid(pod));
        if !snapshot::occupies(pod) {
            return state.cluster.remove_pod(&uid(pod)).then_some(Change::PodGone);
        }
        let moved = old.is_none_or(|o| {
            o.metadata.labels != pod.metadata.labels
                || o.spec.as_ref().and_then(|s| s.node_name.as_deref()) != Some(node)
        });
        let differs = old.is_none_or(|o| o.spec != pod.spec || o.metadata.labels != pod.metadata.labels);
        if differs || !state.cluster.is_placed(&uid(pod)) || is_deleting(&**pod) {
            state.cluster.place(node, Arc::new(PodInfo::new(pod.clone())));
        }
        return moved.then_some(Change::PodPlaced);
    }
    if snapshot::is_waiting(pod, scheduler) {
        if !state.cluster.is_placed(&uid(pod)) {
            state.queue.put(Arc::new(PodInfo::new(pod.clone())));
        }
    } else {
        state.queue.remove(&uid(pod));
    }
    None
}

/// Whether a node changed in a way that could let another pod in.
fn node_differs(old: &Node, new: &Node) -> bool {
    let status = |n: &Node| {
        let status = n.status.clone().unwrap_or_default();
        (status.allocatable, status.runtime_handlers)
    };
    old.metadata.labels != new.metadata.labels || old.spec != new.spec || status(old) != status(new)
}

/// The best node, by its place in the snapshot, and where the next search should begin.
///
/// # Errors
/// Why each node was rejected, with its place, when none fits.
fn choose(
    pod: &PodInfo,
    snapshot: &Snapshot,
    cycle: &Cycle,
    start: usize,
) -> std::result::Result<(usize, usize), Vec<(usize, Rejection)>> {
    let total = snapshot.nodes.len();
    let enough = MIN_COMPARED.max(total / COMPARED_PART);
    let mut rejections = Vec::new();
    let mut fitting: Vec<usize> = Vec::new();
    let mut looked = 0;
    while looked < total && fitting.len() < enough {
        let index = (start + looked) % total;
        looked += 1;
        match filter::admit(pod, &snapshot.nodes[index], cycle) {
            Ok(()) => fitting.push(index),
            Err(rejection) => rejections.push((index, rejection)),
        }
    }
    let nodes: Vec<&NodeInfo> = fitting.iter().map(|i| &*snapshot.nodes[*i]).collect();
    let points = score::rate(pod, &nodes, cycle);
    // The first of the best: the rotating start spreads ties.
    let best = points.iter().copied().enumerate().max_by_key(|(i, points)| (*points, std::cmp::Reverse(*i)));
    match best {
        Some((i, _)) => Ok((fitting[i], (start + looked) % total)),
        None => Err(rejections),
    }
}

/// Whether a daemon's pod may start on a node, and whether one that runs there may stay.
/// Resources do not count: the scheduler looks at them when it comes to that.
pub(crate) fn suits_daemon(pod: Pod, node: Arc<Node>) -> (bool, bool) {
    filter::suits_daemon(&PodInfo::new(Arc::new(pod)), &NodeInfo::new(node))
}

#[cfg(test)]
mod tests;
