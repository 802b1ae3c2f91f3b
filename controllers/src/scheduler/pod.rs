//! A pod as the scheduler sees it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{
    Affinity, Container, Pod, PodAffinityTerm, PodSpec, Toleration, TopologySpreadConstraint,
    WeightedPodAffinityTerm,
};
use sha2::{Digest, Sha256};
use wasmk_api::LabelSelector;

use super::resources::{Resources, requests};
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
    /// Pods that must be, must not be, and had better be or not be nearby.
    pub(super) affinity: Vec<Term>,
    pub(super) anti_affinity: Vec<Term>,
    pub(super) preferred: Vec<(i64, Term)>,
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

/// A term of pod affinity, with its selector read.
#[derive(Clone, Debug)]
pub(super) struct Term {
    pub(super) topology: String,
    selector: Option<LabelSelector>,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelSelector>,
}

impl Term {
    fn of(term: &PodAffinityTerm, pod: &Pod) -> Self {
        let mut selector = term.label_selector.as_ref().and_then(|s| LabelSelector::from_api(s).ok());
        let label = |key: &String| Some((key.clone(), pod.metadata.labels.as_ref()?.get(key)?.clone()));
        if let Some(selector) = &mut selector {
            let same = term.match_label_keys.iter().flatten().filter_map(label);
            selector.requirements.extend(LabelSelector::equals(same).requirements);
        }
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.extend(pod.metadata.namespace.clone());
        }
        let by_label = term.namespace_selector.as_ref().and_then(|s| LabelSelector::from_api(s).ok());
        Self { topology: term.topology_key.clone(), selector, namespaces, namespace_selector: by_label }
    }

    /// Whether a pod is meant. `namespace_labels` finds the labels of a namespace.
    pub(super) fn matches(&self, pod: &PodInfo, namespaces: &Namespaces) -> bool {
        let Some(selector) = &self.selector else { return false };
        let here = self.namespaces.contains(&pod.key.namespace)
            || self
                .namespace_selector
                .as_ref()
                .is_some_and(|s| s.is_empty() || s.matches(namespaces.get(&pod.key.namespace)));
        here && selector.matches(pod.pod.metadata.labels.as_ref())
    }
}

/// Labels of namespaces.
pub(super) type Namespaces = HashMap<String, BTreeMap<String, String>>;

impl PodInfo {
    pub(super) fn new(pod: Arc<Pod>) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let requests = requests(spec);
        let affinity = spec.affinity.as_ref();
        let required = |a: Option<&Vec<PodAffinityTerm>>| -> Vec<Term> {
            a.into_iter().flatten().map(|t| Term::of(t, &pod)).collect()
        };
        let near = affinity.and_then(|a| a.pod_affinity.as_ref());
        let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        Self {
            key: Key::of(&pod.metadata),
            uid: uid(&*pod).to_owned(),
            owner: controller_of(&*pod).map(|o| o.uid.clone()),
            weight: weight(spec, &requests),
            ports: host_ports(spec),
            priority: spec.priority.unwrap_or(0),
            group: group(&pod),
            images: spec.containers.iter().filter_map(|c| c.image.clone()).collect(),
            affinity: required(
                near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            anti_affinity: required(
                far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred: preferred(affinity, &pod),
            requests,
            pod,
        }
    }

    pub(super) fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// Whether it says something about pods near it.
    pub(super) fn has_rules(&self) -> bool {
        !self.affinity.is_empty() || !self.preferred.is_empty()
    }

    /// Whether where it may go does not depend on where other pods are.
    pub(super) fn has_no_rules(&self) -> bool {
        self.affinity.is_empty() && self.anti_affinity.is_empty() && self.spread().is_empty()
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

    pub(super) fn spread(&self) -> &[TopologySpreadConstraint] {
        self.spec().and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or(&[])
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

fn preferred(affinity: Option<&Affinity>, pod: &Pod) -> Vec<(i64, Term)> {
    let near = affinity.and_then(|a| a.pod_affinity.as_ref());
    let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    let near = near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let far = far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let read = |list: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| -> Vec<(i64, Term)> {
        let all = list.into_iter().flatten();
        all.map(|t| (sign * i64::from(t.weight), Term::of(&t.pod_affinity_term, pod))).collect()
    };
    let mut all = read(near, 1);
    all.extend(read(far, -1));
    all
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
