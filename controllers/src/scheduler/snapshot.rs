//! What the scheduler knows: nodes, the pods on them and what is left of their resources.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Node;

use super::{groups::Groups, node::NodeInfo, pod::PodInfo, resources::Resources, rules::Namespaces};

/// All nodes at one moment. Costs nothing to make: everything is shared until it changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) nodes: Arc<Vec<Arc<NodeInfo>>>,
    pub(super) groups: Arc<Groups>,
    pub(super) namespaces: Arc<Namespaces>,
    /// Pods that room is being made for, by node.
    pub(super) nominated: Arc<Nominated>,
}

impl Snapshot {
    /// The pods that room on a node is kept for, if they are not less important than `pod`.
    pub(super) fn nominated_on<'a>(
        &'a self,
        node: &str,
        pod: &'a PodInfo,
    ) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        let here = self.nominated.get(node).into_iter().flat_map(BTreeMap::values);
        here.filter(|other| other.uid != pod.uid && other.priority >= pod.priority)
    }

    /// The place of a node.
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|n| n.name == name)
    }
}

/// Pods that room is being made for: by node, then by uid.
pub(super) type Nominated = HashMap<String, BTreeMap<String, Arc<PodInfo>>>;

/// Where a placed pod is.
#[derive(Clone, Debug)]
struct Spot {
    node: String,
    pod: Arc<PodInfo>,
}

/// The state that changes feed and snapshots are taken from.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    nodes: Arc<Vec<Arc<NodeInfo>>>,
    /// Each node's place in `nodes`.
    index: HashMap<String, usize>,
    groups: Arc<Groups>,
    /// Placed pods by uid.
    spots: HashMap<String, Spot>,
    /// Pods on nodes that are not known (yet), by node.
    strays: HashMap<String, BTreeMap<String, Arc<PodInfo>>>,
    nominated: Arc<Nominated>,
    namespaces: Arc<Namespaces>,
}

impl Cluster {
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            nodes: self.nodes.clone(),
            groups: self.groups.clone(),
            namespaces: self.namespaces.clone(),
            nominated: self.nominated.clone(),
        }
    }

    /// What a node has left.
    pub(super) fn room_on(&self, node: &str) -> Option<Resources> {
        let info = &self.nodes[*self.index.get(node)?];
        let mut left = info.allocatable.clone();
        left.subtract(&info.requested);
        Some(left)
    }

    pub(super) fn put_node(&mut self, node: Arc<Node>) {
        let mut info = NodeInfo::new(node);
        let place = self.index.get(&info.name).copied().unwrap_or(self.nodes.len());
        info.place = place;
        let nodes = Arc::make_mut(&mut self.nodes);
        if let Some(old) = nodes.get_mut(place) {
            old.pods.values().for_each(|pod| info.add(pod.clone()));
            if !old.is_where(&info) {
                Arc::make_mut(&mut self.groups).turn();
            }
            *old = Arc::new(info);
            return;
        }
        self.index.insert(info.name.clone(), place);
        let groups = Arc::make_mut(&mut self.groups);
        for pod in self.strays.remove(&info.name).unwrap_or_default().into_values() {
            groups.add(place, &pod);
            info.add(pod);
        }
        groups.turn();
        nodes.push(Arc::new(info));
    }

    /// Forgets a node; its pods become strays. The last node takes its place.
    pub(super) fn remove_node(&mut self, name: &str) {
        let Some(place) = self.index.remove(name) else { return };
        let nodes = Arc::make_mut(&mut self.nodes);
        let groups = Arc::make_mut(&mut self.groups);
        let gone = nodes.swap_remove(place);
        gone.pods.values().for_each(|pod| groups.remove(place, pod));
        let last = nodes.len();
        if let Some(moved) = nodes.get_mut(place) {
            Arc::make_mut(moved).place = place;
            for pod in moved.pods.values() {
                groups.remove(last, pod);
                groups.add(place, pod);
            }
            self.index.insert(moved.name.clone(), place);
        }
        groups.turn();
        if !gone.pods.is_empty() {
            self.strays.insert(name.into(), gone.pods.clone());
        }
        Arc::make_mut(&mut self.nominated).remove(name);
    }

    /// Takes in a namespace's labels; `None` if it is gone.
    pub(super) fn put_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) {
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        let all = Arc::make_mut(&mut self.namespaces);
        match labels {
            Some(labels) => drop(all.insert(name.into(), labels)),
            None => drop(all.remove(name)),
        }
        Arc::make_mut(&mut self.groups).turn();
    }

    /// Places a pod on a node, moving it there if it was thought to be elsewhere.
    pub(super) fn place(&mut self, node: &str, pod: Arc<PodInfo>) {
        if let Some(spot) = self.spots.get(&pod.uid) {
            if spot.node == node && spot.pod.occupies_like(&pod) {
                return;
            }
            let uid = pod.uid.clone();
            self.remove_pod(&uid);
        }
        self.unnominate(&pod.uid);
        self.spots.insert(pod.uid.clone(), Spot { node: node.into(), pod: pod.clone() });
        match self.index.get(node) {
            Some(place) => {
                Arc::make_mut(&mut self.groups).add(*place, &pod);
                Arc::make_mut(&mut Arc::make_mut(&mut self.nodes)[*place]).add(pod);
            }
            None => {
                self.strays.entry(node.into()).or_default().insert(pod.uid.clone(), pod);
            }
        }
    }

    /// Whether a pod is on that node, or about to be.
    pub(super) fn is_on(&self, uid: &str, node: &str) -> bool {
        self.spots.get(uid).is_some_and(|spot| spot.node == node)
    }

    /// Whether a pod is on a node, or about to be.
    pub(super) fn is_placed(&self, uid: &str) -> bool {
        self.spots.contains_key(uid)
    }

    /// Takes a pod off its node; the node's name.
    pub(super) fn remove_pod(&mut self, uid: &str) -> Option<String> {
        let Spot { node, pod } = self.spots.remove(uid)?;
        if let Some(place) = self.index.get(&node) {
            Arc::make_mut(&mut self.groups).remove(*place, &pod);
            Arc::make_mut(&mut Arc::make_mut(&mut self.nodes)[*place]).remove(uid);
        } else if let Some(pods) = self.strays.get_mut(&node) {
            pods.remove(uid);
            if pods.is_empty() {
                self.strays.remove(&node);
            }
        }
        Some(node)
    }

    /// Keeps room on a node for a pod. Less important pods that it was kept for lose it.
    pub(super) fn nominate(&mut self, node: &str, pod: Arc<PodInfo>) {
        if !self.index.contains_key(node) || self.is_nominated(node, &pod.uid) {
            return;
        }
        self.unnominate(&pod.uid);
        let here = Arc::make_mut(&mut self.nominated).entry(node.into()).or_default();
        here.retain(|_, other| other.priority >= pod.priority);
        here.insert(pod.uid.clone(), pod);
    }

    fn is_nominated(&self, node: &str, uid: &str) -> bool {
        self.nominated.get(node).is_some_and(|here| here.contains_key(uid))
    }

    /// Keeps no room for a pod any more.
    pub(super) fn unnominate(&mut self, uid: &str) {
        let Some(node) = self.nominated.iter().find(|(_, all)| all.contains_key(uid)).map(|(n, _)| n.clone())
        else {
            return;
        };
        let all = Arc::make_mut(&mut self.nominated);
        if let Some(here) = all.get_mut(&node) {
            here.remove(uid);
            if here.is_empty() {
                all.remove(&node);
            }
        }
    }
}
