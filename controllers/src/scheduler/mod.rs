//! Chooses a node for every pod that has none.
//!
//! Changes keep an account of nodes, their pods and what is left ([`snapshot`]). A pod is
//! tried against one snapshot: [`filter`] says where it may go, [`score`] where it should,
//! [`explain`] why it could not. The choice counts at once in the account; writing it (the
//! `binding`) goes on beside, many at a time, and is undone in the account if it fails.
//! A pod that fits nowhere waits in [`queue`] for a change that could help it; for one that
//! others have to make room for, [`preempt`] chooses them, and the room is kept for it.
//!
//! Reads pods, nodes, namespaces, runtime classes, volumes. Writes bindings, the pod
//! condition PodScheduled, `nominatedNodeName`; deletes pods of lower priority when that
//! makes room.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::{
    core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod},
    node::v1::RuntimeClass,
    policy::v1::PodDisruptionBudget,
    storage::v1::StorageClass,
};
use kube::Client;
use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::base::{Clock, Context, Error, Informer, Key, Result, Watched, is_deleting};

mod bind;
mod cycle;
mod explain;
mod filter;
mod planner;
mod preempt;
mod queue;
mod score;
mod snapshot;
pub(crate) mod volumes;

pub use planner::Planner;

use cycle::{Cycle, Given};
use explain::{Plugin, Plugins, Rejection};
use preempt::{Budget, Victims};
use queue::{Change, Queue};
use snapshot::{Cluster, DEFAULT_SCHEDULER, NodeInfo, PodInfo, Snapshot};

/// Nodes that are compared at least, if that many fit.
const MIN_COMPARED: usize = 100;
/// Of many nodes, one in this many is compared.
const COMPARED_PART: usize = 10;
/// Pods tried before other tasks get their turn.
const BATCH: usize = 32;
/// How long the loop sleeps when nothing waits for a time.
const LONG_WAIT: Duration = Duration::from_secs(3600);

/// How full nodes are to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Pods go where most is free.
    #[default]
    LeastAllocated,
    /// Nodes are filled one by one.
    MostAllocated,
}

/// A way of choosing, under a name that pods ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// `schedulerName` of its pods.
    pub name: String,
    /// How full nodes are to be.
    pub strategy: Strategy,
    /// Weights of scores by the name of their plugin, where they are not the usual ones; 0 for none.
    pub weights: BTreeMap<String, i64>,
}

impl Default for Profile {
    fn default() -> Self {
        Self { name: DEFAULT_SCHEDULER.into(), strategy: Strategy::default(), weights: BTreeMap::new() }
    }
}

/// How the scheduler runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its profiles. Pods of other names are somebody else's.
    pub profiles: Vec<Profile>,
    /// Bindings, and reports about pods that fit nowhere, under way at once.
    pub max_in_flight: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { profiles: vec![Profile::default()], max_in_flight: 256 }
    }
}

impl Settings {
    /// Checks names and weights.
    ///
    /// # Errors
    /// When there is no profile, two have the same name, or one weighs what is not there.
    pub fn check(&self) -> Result<()> {
        if self.profiles.is_empty() {
            return Err(Error::Invalid("the scheduler has no profile".into()));
        }
        for (i, profile) in self.profiles.iter().enumerate() {
            if self.profiles[..i].iter().any(|other| other.name == profile.name) {
                return Err(Error::Invalid(format!("two profiles are named {:?}", profile.name)));
            }
            if let Some((name, weight)) =
                profile.weights.iter().find(|(name, w)| !score::is_known(name) || **w < 0)
            {
                let message =
                    format!("profile {:?}: {weight} is no weight of a score plugin {name:?}", profile.name);
                return Err(Error::Invalid(message));
            }
        }
        Ok(())
    }

    fn profile_of(&self, pod: &Pod) -> Option<&Profile> {
        let name = snapshot::scheduler_of(pod);
        self.profiles.iter().find(|p| p.name == name)
    }
}

/// Runs the scheduler until `shutdown`.
///
/// # Errors
/// As [`Settings::check`]; it retries whatever else fails.
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
    settings.check()?;
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
    settings: Arc<Settings>,
    state: Arc<Mutex<State>>,
    wake: Arc<Notify>,
    pods: Arc<Informer<Pod>>,
    classes: Arc<Informer<RuntimeClass>>,
    budgets: Arc<Informer<PodDisruptionBudget>>,
    volumes: volumes::Caches,
}

/// How a task that ran beside the loop ended.
enum Done {
    Bound(Arc<PodInfo>),
    /// The choice does not stand; which filters to wait for, none: try again after the back-off.
    Undo(Arc<PodInfo>, Plugins),
    Reported,
}

impl Scheduler {
    fn new(cx: Context, settings: Settings) -> Self {
        Self {
            state: Arc::default(),
            wake: Arc::default(),
            pods: cx.cache(),
            classes: cx.cache(),
            budgets: cx.cache(),
            volumes: volumes::Caches {
                claims: cx.cache(),
                volumes: cx.cache(),
                classes: cx.cache(),
                pods: cx.cache(),
            },
            cx,
            settings: Arc::new(settings),
        }
    }

    /// Feeds changes into the state. Nodes come before pods, so that few pods are strays.
    async fn subscribe(&self) {
        let nodes = self.cx.cache::<Node>();
        nodes.ready().await;
        self.feed(&nodes, on_node);
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
            Some(Change::NAMESPACE)
        });
        self.classes.ready().await;
        self.feed(&self.classes, |_, _, _: Option<&Arc<RuntimeClass>>| Some(Change::RUNTIME));
        self.volumes.claims.ready().await;
        self.volumes.volumes.ready().await;
        self.volumes.classes.ready().await;
        self.feed(&self.volumes.claims, |_, _, _: Option<&Arc<PersistentVolumeClaim>>| Some(Change::VOLUME));
        self.feed(&self.volumes.volumes, |_, _, _: Option<&Arc<PersistentVolume>>| Some(Change::VOLUME));
        self.feed(&self.volumes.classes, |_, _, _: Option<&Arc<StorageClass>>| Some(Change::VOLUME));
        self.budgets.ready().await;
        self.pods.ready().await;
        let settings = self.settings.clone();
        self.feed(&self.pods, move |state, old, new| on_pod(state, &settings, old, new));
    }

    fn feed<K: Watched>(
        &self,
        cache: &Informer<K>,
        take_in: impl Fn(&mut State, Option<&Arc<K>>, Option<&Arc<K>>) -> Option<Change> + Send + Sync + 'static,
    ) {
        let (state, wake) = (self.state.clone(), self.wake.clone());
        cache.subscribe(move |old, new| {
            let mut state = state.lock();
            if let Some(change) = take_in(&mut state, old, new) {
                state.queue.wake(&change);
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
                if self.cx.shutdown.is_cancelled() {
                    return;
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
                let room = state.cluster.remove_pod(&pod.uid).and_then(|node| state.cluster.room_on(&node));
                state.queue.reject(&pod.uid, filters);
                state.queue.wake(&Change::pod_gone(room));
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
        let Some(profile) = self.settings.profile_of(&pod.pod).filter(|_| self.still_waits(&pod)) else {
            let mut state = self.state.lock();
            state.queue.remove(&pod.uid);
            state.cluster.unnominate(&pod.uid);
            return true;
        };
        let class = pod.spec().and_then(|s| s.runtime_class_name.as_deref());
        let class = class.and_then(|name| self.classes.get(&Key::new("", name)));
        let volumes = match self.volumes.examine(&pod.pod) {
            Ok(volumes) => volumes,
            Err((filter, reason)) => {
                let why = Rejection::by_node(filter, reason);
                let all = vec![why; snapshot.nodes.len().max(1)];
                let note = explain::preemption(snapshot.nodes.len(), &all);
                self.give_up(tasks, &pod, snapshot.nodes.len(), &all, Outcome::Nothing(note));
                return true;
            }
        };
        let given = Given { class, volumes: volumes.nodes.clone() };
        let cycle = Cycle::new(&pod, &snapshot, &given);
        match choose(&pod, &snapshot, &cycle, profile, start) {
            Ok((index, next_start)) => {
                let node = snapshot.nodes[index].name.clone();
                drop(snapshot);
                let mut state = self.state.lock();
                state.start = next_start;
                state.cluster.place(&node, pod.clone());
                drop(state);
                tasks.spawn(self.clone().bind(pod, node, volumes));
            }
            Err(rejections) => {
                let outcome = self.make_room(&pod, &snapshot, &rejections, &given);
                let all: Vec<Rejection> = rejections.into_iter().map(|(_, r)| r).collect();
                self.give_up(tasks, &pod, snapshot.nodes.len(), &all, outcome);
            }
        }
        true
    }

    fn still_waits(&self, pod: &PodInfo) -> bool {
        let current = self.pods.get(&pod.key).filter(|p| crate::base::uid(&**p) == pod.uid);
        current.is_some_and(|p| snapshot::is_waiting(&p))
    }

    /// Looks for pods that could make room for one that fits nowhere.
    fn make_room(
        &self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        rejections: &[(usize, Rejection)],
        given: &Given,
    ) -> Outcome {
        if snapshot.nodes.is_empty() {
            return Outcome::Nothing(String::new());
        }
        if let Some(why) = preempt::ineligible(pod, snapshot) {
            return Outcome::Nothing(explain::no_preemption(why));
        }
        let budgets: Vec<Budget> = self.budgets.list().iter().filter_map(|b| Budget::of(b)).collect();
        match preempt::find(pod, snapshot, rejections, given, &budgets) {
            Some(victims) => Outcome::Room(victims),
            None => {
                let all: Vec<Rejection> = rejections.iter().map(|(_, r)| r.clone()).collect();
                Outcome::Nothing(explain::preemption(snapshot.nodes.len(), &all))
            }
        }
    }

    fn give_up(
        self: &Arc<Self>,
        tasks: &mut JoinSet<Done>,
        pod: &Arc<PodInfo>,
        nodes: usize,
        rejections: &[Rejection],
        outcome: Outcome,
    ) {
        let mut filters = explain::filters(rejections);
        if filters.is_empty() {
            // Without any node, the first one may help.
            filters = Plugins::of(&[Plugin::NodeName]);
        }
        let mut message = explain::message(nodes, rejections);
        let mut state = self.state.lock();
        let victims = match outcome {
            Outcome::Room(victims) => {
                state.cluster.nominate(&victims.node, pod.clone());
                Some(victims)
            }
            Outcome::Nothing(note) => {
                message.push_str(&note);
                None
            }
        };
        state.queue.reject(&pod.uid, filters);
        drop(state);
        tasks.spawn(self.clone().report(pod.clone(), message, victims));
    }
}

/// What came of looking for room.
enum Outcome {
    Room(Victims),
    /// None, and what to say about it.
    Nothing(String),
}

/// Takes a change of a node into the account.
fn on_node(state: &mut State, old: Option<&Arc<Node>>, new: Option<&Arc<Node>>) -> Option<Change> {
    let Some(node) = new else {
        state.cluster.remove_node(old.and_then(|n| n.metadata.name.as_deref()).unwrap_or(""));
        return None;
    };
    state.cluster.put_node(node.clone());
    let Some(old) = old else { return Some(Change::NODE_CAME) };
    let room = state.cluster.room_on(node.metadata.name.as_deref().unwrap_or(""));
    Change::of_node(changed_for(old, node), room)
}

/// The filters to which a change of a node matters.
fn changed_for(old: &Node, new: &Node) -> Plugins {
    let (spec, status) = ((&old.spec, &new.spec), (old.status.as_ref(), new.status.as_ref()));
    let mut all = Plugins::default();
    let mut note = |differs: bool, names: &[Plugin]| {
        if differs {
            all = all.with(Plugins::of(names));
        }
    };
    note(
        old.metadata.labels != new.metadata.labels,
        &[
            Plugin::NodeAffinity,
            Plugin::VolumeBinding,
            Plugin::VolumeZone,
            Plugin::PodTopologySpread,
            Plugin::InterPodAffinity,
        ],
    );
    note(
        spec.0.as_ref().and_then(|s| s.taints.as_ref()) != spec.1.as_ref().and_then(|s| s.taints.as_ref()),
        &[Plugin::TaintToleration, Plugin::PodTopologySpread],
    );
    let closed = |spec: &Option<_>| -> bool {
        let spec: &Option<k8s_openapi::api::core::v1::NodeSpec> = spec;
        spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false)
    };
    note(closed(spec.0) != closed(spec.1), &[Plugin::NodeUnschedulable]);
    note(
        status.0.map(|s| (&s.allocatable, &s.capacity)) != status.1.map(|s| (&s.allocatable, &s.capacity)),
        &[Plugin::NodeResourcesFit],
    );
    note(
        status.0.map(|s| &s.runtime_handlers) != status.1.map(|s| &s.runtime_handlers),
        &[Plugin::RuntimeHandler],
    );
    all
}

/// Takes a change of a pod into account and queue.
fn on_pod(
    state: &mut State,
    settings: &Settings,
    old: Option<&Arc<Pod>>,
    new: Option<&Arc<Pod>>,
) -> Option<Change> {
    let uid = |p: &Arc<Pod>| crate::base::uid(&**p).to_owned();
    let gone = |state: &mut State, uid: &str| {
        let node = state.cluster.remove_pod(uid)?;
        Some(Change::pod_gone(state.cluster.room_on(&node)))
    };
    let Some(pod) = new else {
        let old = uid(old?);
        state.queue.remove(&old);
        state.cluster.unnominate(&old);
        return gone(state, &old);
    };
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("");
    if !node.is_empty() {
        state.queue.remove(&uid(pod));
        if !snapshot::occupies(pod) {
            return gone(state, &uid(pod));
        }
        let same = old.is_some_and(|o| {
            o.spec == pod.spec
                && o.metadata.labels == pod.metadata.labels
                && is_deleting(&**o) == is_deleting(&**pod)
        });
        if same && state.cluster.is_placed(&uid(pod)) {
            return None;
        }
        state.cluster.place(node, Arc::new(PodInfo::new(pod.clone())));
        let moved = old.is_none_or(|o| {
            o.metadata.labels != pod.metadata.labels
                || o.spec.as_ref().and_then(|s| s.node_name.as_deref()) != Some(node)
        });
        return moved.then_some(Change::POD_PLACED);
    }
    if snapshot::is_waiting(pod) && settings.profile_of(pod).is_some() {
        if !state.cluster.is_placed(&uid(pod)) {
            let info = Arc::new(PodInfo::new(pod.clone()));
            if let Some(node) = info.nominated() {
                state.cluster.nominate(node, info.clone());
            }
            state.queue.put(info);
        }
    } else {
        state.queue.remove(&uid(pod));
        state.cluster.unnominate(&uid(pod));
    }
    None
}

/// The best node, by its place in the snapshot, and where the next search should begin. A
/// node that room has been made on is taken if it fits.
///
/// # Errors
/// Why each node was rejected, with its place, when none fits.
fn choose(
    pod: &PodInfo,
    snapshot: &Snapshot,
    cycle: &Cycle,
    profile: &Profile,
    start: usize,
) -> std::result::Result<(usize, usize), Vec<(usize, Rejection)>> {
    if let Some(place) = pod.nominated().and_then(|name| snapshot.position(name))
        && admit(pod, snapshot, cycle, place).is_ok()
    {
        return Ok((place, start));
    }
    let total = snapshot.nodes.len();
    let enough = MIN_COMPARED.max(total / COMPARED_PART);
    let mut rejections = Vec::new();
    let mut fitting: Vec<usize> = Vec::new();
    let mut looked = 0;
    while looked < total && fitting.len() < enough {
        let index = (start + looked) % total;
        looked += 1;
        match admit(pod, snapshot, cycle, index) {
            Ok(()) => fitting.push(index),
            Err(rejection) => rejections.push((index, rejection)),
        }
    }
    if let [only] = *fitting {
        return Ok((only, (start + looked) % total));
    }
    let nodes: Vec<&NodeInfo> = fitting.iter().map(|i| &*snapshot.nodes[*i]).collect();
    let points = score::rate(pod, &nodes, cycle, profile);
    // The first of the best: the rotating start spreads ties.
    let best = points.iter().copied().enumerate().max_by_key(|(i, points)| (*points, std::cmp::Reverse(*i)));
    match best {
        Some((i, _)) => Ok((fitting[i], (start + looked) % total)),
        None => Err(rejections),
    }
}

/// Whether a node may take the pod, as it is and with those on it that room is kept for.
fn admit(
    pod: &PodInfo,
    snapshot: &Snapshot,
    cycle: &Cycle,
    place: usize,
) -> std::result::Result<(), Rejection> {
    let node = &snapshot.nodes[place];
    filter::admit(pod, node, cycle)?;
    if snapshot.nominated.is_empty() {
        return Ok(());
    }
    let mut others = snapshot.nominated_on(&node.name, pod).peekable();
    if others.peek().is_none() {
        return Ok(());
    }
    let mut crowded = (**node).clone();
    others.for_each(|other| crowded.add(other.clone()));
    filter::admit(pod, &crowded, cycle)
}

/// Whether a daemon's pod may start on a node, and whether one that runs there may stay.
/// Resources do not count: the scheduler looks at them when it comes to that.
pub(crate) fn suits_daemon(pod: Pod, node: Arc<Node>) -> (bool, bool) {
    filter::suits_daemon(&PodInfo::new(Arc::new(pod)), &NodeInfo::new(node))
}

#[cfg(test)]
mod tests;
