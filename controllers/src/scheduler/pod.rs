//! A pod as the scheduler sees it.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Toleration};
use sha2::{Digest, Sha256};

use super::{
    resources::{Resources, requests},
    rules::Rules,
};
use crate::base::{Key, controller_of, is_deleting, uid};

/// The name of the scheduler of pods that name none.
pub(super) const DEFAULT_SCHEDULER: &str = "default-scheduler";
/// What a container without a request counts for when nodes are compared.
const ASSUMED_CPU: i64 = 100;
const ASSUMED_MEMORY: i64 = 200 << 20;

/// A pod as the scheduler sees it, read once.
#[derive(Clone, Debug)]
pub(super) struct PodInfo {
    pub(super) pod: Arc<Pod>,
    pub(super) key: Key,
    pub(super) uid: String,
    pub(super) owner: Option<String>,
    pub(super) requests: Resources,
    /// CPU and memory for comparing nodes.
    pub(super) weight: (i64, i64),
    pub(super) ports: BTreeSet<HostPort>,
    pub(super) priority: i32,
    pub(super) images: Vec<String>,
    /// The same for pods that look the same to others: namespace, labels, rules about others, and
    /// whether they are on their way out.
    pub(super) group: GroupId,
    /// What it says about others.
    pub(super) rules: Rules,
}

/// Names a group of pods, by a digest of what they have in common.
pub(super) type GroupId = u128;

fn group(pod: &Pod) -> GroupId {
    let spec = pod.spec.as_ref();
    let affinity = spec.and_then(|s| s.affinity.as_ref());
    let rules = affinity.map(|a| (&a.pod_affinity, &a.pod_anti_affinity));
    let face = (&pod.metadata.namespace, &pod.metadata.labels, rules, is_deleting(pod));
    let digest = Sha256::digest(serde_json::to_vec(&face).unwrap_or_default());
    digest[..16].iter().fold(0, |id, byte| id << 8 | GroupId::from(*byte))
}

/// Protocol, address and number of a port on the node itself.
pub(super) type HostPort = (String, String, i32);

impl PodInfo {
    pub(super) fn new(pod: Arc<Pod>) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let requests = requests(spec);
        Self {
            key: Key::of(&pod.metadata),
            uid: uid(&*pod).to_owned(),
            owner: controller_of(&*pod).map(|o| o.uid.clone()),
            weight: weight(spec, &requests),
            ports: host_ports(spec),
            priority: spec.priority.unwrap_or(0),
            group: group(&pod),
            images: spec.containers.iter().filter_map(|c| c.image.clone()).collect(),
            rules: Rules::of(&pod),
            requests,
            pod,
        }
    }

    pub(super) fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// Whether a pod takes the same place as another state of it.
    pub(super) fn occupies_like(&self, other: &Self) -> bool {
        self.group == other.group
            && self.requests == other.requests
            && self.ports == other.ports
            && self.priority == other.priority
            && self.owner == other.owner
    }

    /// The node that room is being made on for it.
    pub(super) fn nominated(&self) -> Option<&str> {
        let node = self.pod.status.as_ref()?.nominated_node_name.as_deref()?;
        (!node.is_empty()).then_some(node)
    }

    pub(super) fn tolerations(&self) -> &[Toleration] {
        self.spec().and_then(|s| s.tolerations.as_deref()).unwrap_or(&[])
    }
}

fn weight(spec: &PodSpec, requests: &Resources) -> (i64, i64) {
    let bare = |name: &str| {
        let without = |c: &&Container| {
            c.resources.as_ref().and_then(|r| r.requests.as_ref()).is_none_or(|r| !r.contains_key(name))
        };
        i64::try_from(spec.containers.iter().filter(without).count()).unwrap_or(0)
    };
    (requests.cpu + ASSUMED_CPU * bare("cpu"), requests.memory + ASSUMED_MEMORY * bare("memory"))
}

fn host_ports(spec: &PodSpec) -> BTreeSet<HostPort> {
    let text = |t: &Option<String>, default: &str| {
        t.clone().filter(|t| !t.is_empty()).unwrap_or_else(|| default.into())
    };
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            p.host_port.filter(|n| *n > 0).map(|n| (text(&p.protocol, "TCP"), text(&p.host_ip, "0.0.0.0"), n))
        })
        .collect()
}

/// Whether the pod still needs its resources.
pub(super) fn occupies(pod: &Pod) -> bool {
    !crate::base::is_finished(pod)
}

/// Whether two states of a pod are the same to the scheduler, but for the node: all that [`PodInfo`] is
/// made of.
pub(super) fn looks_like(one: &Pod, other: &Pod) -> bool {
    let (m, n) = (&one.metadata, &other.metadata);
    let specs = match (&one.spec, &other.spec) {
        (Some(a), Some(b)) => {
            a.priority == b.priority
                && a.containers == b.containers
                && a.init_containers == b.init_containers
                && a.overhead == b.overhead
                && a.resources == b.resources
                && a.affinity == b.affinity
                && a.topology_spread_constraints == b.topology_spread_constraints
        }
        (a, b) => a.is_none() == b.is_none(),
    };
    specs
        && m.labels == n.labels
        && m.owner_references == n.owner_references
        && is_deleting(one) == is_deleting(other)
}

/// The scheduler a pod is for.
pub(super) fn scheduler_of(pod: &Pod) -> &str {
    let name = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
    name.filter(|n| !n.is_empty()).unwrap_or(DEFAULT_SCHEDULER)
}

/// Whether a pod waits for a node.
pub(super) fn is_waiting(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.node_name.as_deref().unwrap_or("").is_empty()
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        && !is_deleting(pod)
        && occupies(pod)
}
