//! Takes changes of the cluster into the scheduler's account and queue.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod},
    node::v1::RuntimeClass,
    storage::v1::{CSINode, StorageClass},
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    Scheduler, Settings, State,
    explain::{Plugin, Plugins},
    pod::{PodInfo, is_waiting, looks_like, occupies},
    queue::Change,
};
use crate::base::{Informer, Watched};

impl Scheduler {
    /// Feeds changes into the state. Nodes come before pods, so that few pods are strays.
    pub(super) async fn subscribe(&self) {
        let nodes = self.cx.cache::<Node>();
        nodes.ready().await;
        self.feed(&nodes, on_node);
        let namespaces = self.cx.cache::<Namespace>();
        namespaces.ready().await;
        self.feed(&namespaces, |state, old: Option<&Arc<Namespace>>, new| {
            if let Some(name) = new.or(old).and_then(|n| n.metadata.name.as_deref()) {
                let labels = new.map(|n| n.metadata.labels.clone().unwrap_or_default());
                state.cluster.put_namespace(name, labels);
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
        self.drivers.ready().await;
        self.feed(&self.drivers, |_, _, _: Option<&Arc<CSINode>>| Some(Change::VOLUME));
        self.budgets.ready().await;
        self.pods.ready().await;
        let (state, wake, settings) = (self.state.clone(), self.wake.clone(), self.settings.clone());
        self.pods.subscribe(move |old, new| {
            let waiting = new.and_then(|pod| waiting(&settings, pod));
            tell(&state, &wake, |state| on_pod(state, waiting, old, new));
        });
    }

    fn feed<K: Watched>(
        &self,
        cache: &Informer<K>,
        take_in: impl Fn(&mut State, Option<&Arc<K>>, Option<&Arc<K>>) -> Option<Change> + Send + Sync + 'static,
    ) {
        let (state, wake) = (self.state.clone(), self.wake.clone());
        cache.subscribe(move |old, new| tell(&state, &wake, |state| take_in(state, old, new)));
    }
}

/// Takes something into the state, and lets the pods try again that it may help.
fn tell(state: &Mutex<State>, wake: &Notify, take_in: impl FnOnce(&mut State) -> Option<Change>) {
    let mut state = state.lock();
    if let Some(change) = take_in(&mut state) {
        state.queue.wake(&change);
    }
    drop(state);
    wake.notify_one();
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
pub(super) fn changed_for(old: &Node, new: &Node) -> Plugins {
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

/// A pod that waits for a node, as the queue is to have it. Takes a while: nothing to be done under the lock.
pub(super) fn waiting(settings: &Settings, pod: &Arc<Pod>) -> Option<Arc<PodInfo>> {
    let ours = is_waiting(pod) && settings.profile_of(pod).is_some();
    ours.then(|| Arc::new(PodInfo::new(pod.clone())))
}

/// Takes a change of a pod into account and queue; `waiting` if it is one that waits for a node.
pub(super) fn on_pod(
    state: &mut State,
    waiting: Option<Arc<PodInfo>>,
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
        if !occupies(pod) {
            return gone(state, &uid(pod));
        }
        // Most news are of no interest here, and a binding of our own is in the account already.
        let known = old.is_some_and(|o| looks_like(o, pod)) && state.cluster.is_on(&uid(pod), node);
        if !known {
            state.cluster.place(node, Arc::new(PodInfo::new(pod.clone())));
        }
        let moved = old.is_none_or(|o| {
            o.metadata.labels != pod.metadata.labels
                || o.spec.as_ref().and_then(|s| s.node_name.as_deref()) != Some(node)
        });
        return moved.then_some(Change::POD_PLACED);
    }
    if let Some(info) = waiting {
        if !state.cluster.is_placed(&uid(pod)) {
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
