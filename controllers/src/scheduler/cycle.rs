//! What is worked out once per pod before nodes are asked: where other pods are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{NodeSelector, TopologySpreadConstraint},
    node::v1::RuntimeClass,
};
use wasmk_api::LabelSelector;

use crate::{base::is_deleting, taint_eviction::tolerates};

use super::{
    filter,
    snapshot::{NodeInfo, PodInfo, Snapshot, Term},
};

const HOSTNAME: &str = "kubernetes.io/hostname";

/// Facts about one pod's attempt.
#[derive(Debug, Default)]
pub(super) struct Cycle {
    /// The handler that the pod's runtime class names.
    pub(super) runtime_handler: Option<String>,
    /// The nodes that the runtime class is for.
    pub(super) class_selector: Option<BTreeMap<String, String>>,
    /// Where the pod's volumes can be reached from.
    pub(super) volume_nodes: Vec<NodeSelector>,
    /// Spread constraints that must hold, and those that had better.
    pub(super) spread: Vec<Spread>,
    pub(super) soft_spread: Vec<Spread>,
    /// Places where the pods are that the pod must be near.
    pub(super) near: Near,
    /// Places (label, value) that hold pods which the pod must not be near.
    pub(super) far: HashSet<(String, String)>,
    /// Places whose pods forbid this one.
    pub(super) shunned: HashSet<(String, String)>,
    /// Wishes about other pods: points by place.
    pub(super) wishes: HashMap<(String, String), i64>,
}

/// A spread constraint with its counts.
#[derive(Debug)]
pub(super) struct Spread {
    pub(super) topology: String,
    pub(super) max_skew: i64,
    pub(super) counts: HashMap<String, i64>,
    minimum: i64,
    /// Whether the pod itself counts where it goes.
    own: i64,
}

impl Spread {
    /// The skew if the pod went to that place.
    pub(super) fn skew_with(&self, value: &str) -> i64 {
        self.counts.get(value).copied().unwrap_or(0) + self.own - self.minimum
    }
}

/// Required affinity.
#[derive(Debug, Default)]
pub(super) struct Near {
    terms: Vec<(String, HashSet<String>)>,
    /// Nobody matches any term yet, and the pod matches its own: it may be the first.
    first: bool,
}

impl Near {
    pub(super) fn is_satisfied(&self, node: &NodeInfo) -> bool {
        let labelled = self.terms.iter().all(|(topology, _)| node.label(topology).is_some());
        let near = |(topology, places): &(String, HashSet<String>)| {
            node.label(topology).is_some_and(|value| places.contains(value))
        };
        labelled && (self.first || self.terms.iter().all(near))
    }
}

impl Cycle {
    /// Looks at all nodes' pods as far as the pod's rules (or theirs about it) need.
    pub(super) fn new(
        pod: &PodInfo,
        snapshot: &Snapshot,
        class: Option<&RuntimeClass>,
        volumes: Vec<NodeSelector>,
    ) -> Self {
        let mut cycle = Self {
            runtime_handler: class.map(|c| c.handler.clone()),
            class_selector: class.and_then(|c| c.scheduling.as_ref()?.node_selector.clone()),
            volume_nodes: volumes,
            ..Self::default()
        };
        for constraint in pod.spread() {
            let hard = constraint.when_unsatisfiable == "DoNotSchedule";
            let spread = spread(pod, constraint, snapshot, hard);
            if hard { cycle.spread.push(spread) } else { cycle.soft_spread.push(spread) }
        }
        if !pod.affinity.is_empty() {
            cycle.near = near(pod, snapshot);
        }
        for term in &pod.anti_affinity {
            cycle.far.extend(places(term, snapshot).map(|value| (term.topology.clone(), value)));
        }
        if snapshot.anti_affinity {
            cycle.shunned = shunned(pod, snapshot);
        }
        if snapshot.preferences || !pod.preferred.is_empty() {
            cycle.wishes = wishes(pod, snapshot);
        }
        cycle
    }
}

/// The values of a term's topology label where matching pods are.
fn places(term: &Term, snapshot: &Snapshot) -> impl Iterator<Item = String> {
    let here = |node: &&Arc<NodeInfo>| {
        node.label(&term.topology).is_some()
            && node.pods.values().any(|p| term.matches(p, &snapshot.namespaces))
    };
    let values = snapshot.nodes.iter().filter(here).filter_map(|n| n.label(&term.topology).map(String::from));
    values.collect::<HashSet<_>>().into_iter()
}

fn near(pod: &PodInfo, snapshot: &Snapshot) -> Near {
    let terms: Vec<(String, HashSet<String>)> =
        pod.affinity.iter().map(|t| (t.topology.clone(), places(t, snapshot).collect())).collect();
    let nobody = terms.iter().all(|(_, places)| places.is_empty());
    let first = nobody && pod.affinity.iter().all(|t| t.matches(pod, &snapshot.namespaces));
    Near { terms, first }
}

fn shunned(pod: &PodInfo, snapshot: &Snapshot) -> HashSet<(String, String)> {
    let mut all = HashSet::new();
    for node in snapshot.nodes.iter().filter(|n| n.with_anti_affinity > 0) {
        for term in node.pods.values().flat_map(|p| &p.anti_affinity) {
            if let Some(value) = node.label(&term.topology)
                && term.matches(pod, &snapshot.namespaces)
            {
                all.insert((term.topology.clone(), value.to_owned()));
            }
        }
    }
    all
}

/// The pod's own wishes, those of others about it, and that of pods which must be near it.
fn wishes(pod: &PodInfo, snapshot: &Snapshot) -> HashMap<(String, String), i64> {
    let mut points: HashMap<(String, String), i64> = HashMap::new();
    let mut give = |node: &NodeInfo, term: &Term, weight: i64| {
        if let Some(value) = node.label(&term.topology) {
            *points.entry((term.topology.clone(), value.to_owned())).or_insert(0) += weight;
        }
    };
    for node in &snapshot.nodes {
        for other in node.pods.values() {
            for (weight, term) in pod.preferred.iter().filter(|(_, t)| t.matches(other, &snapshot.namespaces))
            {
                give(node, term, *weight);
            }
            for (weight, term) in other.preferred.iter().filter(|(_, t)| t.matches(pod, &snapshot.namespaces))
            {
                give(node, term, *weight);
            }
            for term in other.affinity.iter().filter(|t| t.matches(pod, &snapshot.namespaces)) {
                give(node, term, 1);
            }
        }
    }
    points
}

fn spread(pod: &PodInfo, constraint: &TopologySpreadConstraint, snapshot: &Snapshot, hard: bool) -> Spread {
    let mut selector = constraint.label_selector.as_ref().and_then(|s| LabelSelector::from_api(s).ok());
    let labels = pod.pod.metadata.labels.as_ref();
    let label = |key: &String| Some((key.clone(), labels?.get(key)?.clone()));
    if let Some(selector) = &mut selector {
        let same = constraint.match_label_keys.iter().flatten().filter_map(label);
        selector.requirements.extend(LabelSelector::equals(same).requirements);
    }
    let mut counts: HashMap<String, i64> = HashMap::new();
    for node in snapshot.nodes.iter().filter(|n| counts_in(pod, constraint, n, hard)) {
        let Some(value) = node.label(&constraint.topology_key) else { continue };
        let same = |p: &&Arc<PodInfo>| {
            p.key.namespace == pod.key.namespace
                && !is_deleting(&*p.pod)
                && selector.as_ref().is_some_and(|s| s.matches(p.pod.metadata.labels.as_ref()))
        };
        let here = node.pods.values().filter(same).count();
        *counts.entry(value.to_owned()).or_insert(0) += i64::try_from(here).unwrap_or(i64::MAX);
    }
    let domains = i32::try_from(counts.len()).unwrap_or(i32::MAX);
    let too_few = constraint.min_domains.is_some_and(|min| domains < min);
    let minimum = if too_few { 0 } else { counts.values().copied().min().unwrap_or(0) };
    let own = i64::from(selector.is_some_and(|s| s.matches(labels)));
    Spread {
        topology: constraint.topology_key.clone(),
        max_skew: i64::from(constraint.max_skew),
        counts,
        minimum,
        own,
    }
}

/// Whether a node takes part in a constraint: by default one that the pod's affinity
/// allows, tainted or not.
fn counts_in(pod: &PodInfo, constraint: &TopologySpreadConstraint, node: &NodeInfo, hard: bool) -> bool {
    let honours = |policy: Option<&String>, default: bool| policy.map_or(default, |p| p == "Honor");
    if honours(constraint.node_affinity_policy.as_ref(), true) && !filter::fits_affinity(pod, node) {
        return false;
    }
    if honours(constraint.node_taints_policy.as_ref(), false) {
        let repels = node.taints().any(|t| {
            matches!(&*t.effect, "NoSchedule" | "NoExecute")
                && !pod.tolerations().iter().any(|o| tolerates(o, t))
        });
        if repels {
            return false;
        }
    }
    // A node without the labels of all hard constraints is in no domain.
    let wanted = pod.spread().iter().filter(|c| !hard || c.when_unsatisfiable == "DoNotSchedule");
    let keys: BTreeSet<&str> = wanted.map(|c| c.topology_key.as_str()).collect();
    keys.into_iter().all(|key| key == HOSTNAME || node.label(key).is_some())
}
