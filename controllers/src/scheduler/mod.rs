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

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    core::v1::Pod, node::v1::RuntimeClass, policy::v1::PodDisruptionBudget, storage::v1::CSINode,
};
use kube::Client;
use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::base::{Clock, Context, Informer, Key, Result};

mod bind;
mod choose;
mod cycle;
mod explain;
mod feed;
mod filter;
mod groups;
mod limits;
mod node;
mod planner;
mod pod;
mod preempt;
mod queue;
mod resources;
mod rules;
mod score;
mod settings;
mod snapshot;
mod tally;
pub(crate) mod volumes;

pub(crate) use filter::suits_daemon;
pub use planner::Planner;
pub use settings::{Profile, Settings, Strategy};

use choose::choose;
use cycle::{Cycle, Given};
use explain::{Plugin, Plugins, Rejection};
use limits::Limits;
use pod::{PodInfo, is_waiting};
use preempt::{Budget, Victims};
use queue::{Change, Queue};
use snapshot::{Cluster, Snapshot};
use tally::Tallies;

/// Pods tried before other tasks get their turn.
const BATCH: usize = 32;
/// How long the loop sleeps when nothing waits for a time.
const LONG_WAIT: Duration = Duration::from_secs(3600);

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
    /// What has been counted of other pods; only the loop asks.
    tallies: Mutex<Tallies>,
    wake: Arc<Notify>,
    pods: Arc<Informer<Pod>>,
    classes: Arc<Informer<RuntimeClass>>,
    budgets: Arc<Informer<PodDisruptionBudget>>,
    volumes: volumes::Caches,
    drivers: Arc<Informer<CSINode>>,
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
            tallies: Mutex::default(),
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
            drivers: cx.cache(),
            cx,
            settings: Arc::new(settings),
        }
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
        let limits = Limits::of(&pod.pod, &snapshot, &self.volumes, &self.drivers);
        let given = Given { class, volumes: volumes.nodes.clone(), limits };
        let cycle = Cycle::new(&pod, &snapshot, &given, &mut self.tallies.lock());
        match choose(&pod, &snapshot, &cycle, profile, start) {
            Ok((index, next_start)) => {
                let node = snapshot.nodes[index].name.clone();
                drop((snapshot, cycle));
                let mut state = self.state.lock();
                state.start = next_start;
                state.cluster.place(&node, pod.clone());
                drop(state);
                tasks.spawn(self.clone().bind(pod, node, volumes));
            }
            Err(rejections) => {
                let outcome = self.make_room(&pod, &snapshot, &rejections, &cycle);
                let all: Vec<Rejection> = rejections.into_iter().map(|(_, r)| r).collect();
                self.give_up(tasks, &pod, snapshot.nodes.len(), &all, outcome);
            }
        }
        true
    }

    fn still_waits(&self, pod: &PodInfo) -> bool {
        let current = self.pods.get(&pod.key).filter(|p| crate::base::uid(&**p) == pod.uid);
        current.is_some_and(|p| is_waiting(&p))
    }

    /// Looks for pods that could make room for one that fits nowhere.
    fn make_room(
        &self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        rejections: &[(usize, Rejection)],
        cycle: &Cycle,
    ) -> Outcome {
        if snapshot.nodes.is_empty() {
            return Outcome::Nothing(String::new());
        }
        if let Some(why) = preempt::ineligible(pod, snapshot) {
            return Outcome::Nothing(explain::no_preemption(why));
        }
        let budgets: Vec<Budget> = self.budgets.list().iter().filter_map(|b| Budget::of(b)).collect();
        match preempt::find(pod, snapshot, rejections, cycle, &budgets) {
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

#[cfg(test)]
mod tests;
