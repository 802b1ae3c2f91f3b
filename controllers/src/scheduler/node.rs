//! A node as the scheduler sees it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, Taint};

use super::{
    pod::{HostPort, PodInfo},
    resources::Resources,
};

fn images(node: &Node) -> HashMap<String, i64> {
    let all = node.status.iter().flat_map(|s| s.images.iter().flatten());
    let named = all.flat_map(|i| i.names.iter().flatten().map(|n| (n.clone(), i.size_bytes.unwrap_or(0))));
    named.collect()
}

/// A node and the pods that are, or are about to be, on it.
#[derive(Clone, Debug)]
pub(super) struct NodeInfo {
    pub(super) name: String,
    /// Its place in the account.
    pub(super) place: usize,
    pub(super) node: Arc<Node>,
    pub(super) allocatable: Resources,
    pub(super) requested: Resources,
    /// CPU and memory for comparing nodes.
    pub(super) weight: (i64, i64),
    pub(super) ports: BTreeSet<HostPort>,
    /// Sizes of the images it has, by name.
    pub(super) images: Arc<HashMap<String, i64>>,
    /// Pods by uid.
    pub(super) pods: BTreeMap<String, Arc<PodInfo>>,
    /// Pods per controller.
    pub(super) owners: HashMap<String, u32>,
}

impl NodeInfo {
    pub(super) fn new(node: Arc<Node>) -> Self {
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            place: 0,
            allocatable: Resources::of(allocatable),
            images: Arc::new(images(&node)),
            node,
            requested: Resources::default(),
            weight: (0, 0),
            ports: BTreeSet::new(),
            pods: BTreeMap::new(),
            owners: HashMap::new(),
        }
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.node.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    pub(super) fn taints(&self) -> impl Iterator<Item = &Taint> {
        self.node.spec.iter().flat_map(|s| s.taints.iter().flatten())
    }

    /// Whether another state of it is the same to rules about where pods are.
    pub(super) fn is_where(&self, other: &Self) -> bool {
        let taints = |info: &Self| info.node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        self.node.metadata.labels == other.node.metadata.labels && taints(self) == taints(other)
    }

    pub(super) fn add(&mut self, pod: Arc<PodInfo>) {
        self.remove(&pod.uid);
        self.requested.add(&pod.requests);
        self.weight.0 += pod.weight.0;
        self.weight.1 += pod.weight.1;
        self.ports.extend(pod.ports.iter().cloned());
        if let Some(owner) = &pod.owner {
            *self.owners.entry(owner.clone()).or_insert(0) += 1;
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    pub(super) fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(uid)?;
        self.requested.subtract(&pod.requests);
        self.weight.0 -= pod.weight.0;
        self.weight.1 -= pod.weight.1;
        for port in &pod.ports {
            if !self.pods.values().any(|p| p.ports.contains(port)) {
                self.ports.remove(port);
            }
        }
        if let Some(count) = pod.owner.as_ref().and_then(|o| self.owners.get_mut(o)) {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(pod.owner.as_deref().unwrap_or(""));
            }
        }
        Some(pod)
    }
}
