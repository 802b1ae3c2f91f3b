//! What is worked out once per pod before nodes are asked: where other pods are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::{core::v1::TopologySpreadConstraint, node::v1::RuntimeClass};
use wasmk_api::LabelSelector;

use crate::{base::is_deleting, taint_eviction::tolerates};

use super::{
    filter,
    node::NodeInfo,
    pod::{PodInfo, Term},
    snapshot::{Group, Snapshot},
    volumes::Place,
};

const HOSTNAME: &str = "kubernetes.io/hostname";

/// What is known of a pod besides itself and the nodes.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// Its runtime class.
    pub(super) class: Option<Arc<RuntimeClass>>,
    /// Where its volumes can be reached from.
    pub(super) volumes: Vec<Place>,
}

/// Facts about one pod's attempt.
#[derive(Debug, Default)]
pub(super) struct Cycle {
    /// The handler that the pod's runtime class names.
    pub(super) runtime_handler: Option<String>,
    /// The nodes that the runtime class is for.
    pub(super) class_selector: Option<BTreeMap<String, String>>,
    /// Where the pod's volumes can be reached from.
    pub(super) volume_places: Vec<Place>,
    /// Spread constraints that must hold, and those that had better.
    pub(super) spread: Vec<Spread>,
    pub(super) soft_spread: Vec<Spread>,
    /// Places where the pods are that the pod must be near.
    pub(super) near: Near,
    /// Places, as values of labels, that hold pods which the pod must not be near.
    pub(super) far: Places,
    /// Places whose pods forbid this one.
    pub(super) shunned: Places,
    /// Wishes about other pods: points by label and value.
    pub(super) wishes: HashMap<String, HashMap<String, i64>>,
}

/// Sets of values by label.
pub(super) type Places = HashMap<String, HashSet<String>>;

/// Whether a node is in any of these places.
pub(super) fn is_in(places: &Places, node: &NodeInfo) -> bool {
    places.iter().any(|(key, values)| node.label(key).is_some_and(|value| values.contains(value)))
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
    pub(super) fn new(pod: &PodInfo, snapshot: &Snapshot, given: &Given) -> Self {
        let class = given.class.as_deref();
        let mut cycle = Self {
            runtime_handler: class.map(|c| c.handler.clone()),
            class_selector: class.and_then(|c| c.scheduling.as_ref()?.node_selector.clone()),
            volume_places: given.volumes.clone(),
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
            cycle.far.entry(term.topology.clone()).or_default().extend(places(term, snapshot));
        }
        if snapshot.groups.forbidding > 0 {
            cycle.shunned = shunned(pod, snapshot);
        }
        if snapshot.groups.wishing > 0 || !pod.preferred.is_empty() {
            cycle.wishes = wishes(pod, snapshot);
        }
        cycle
    }
}

/// The values of a term's topology label where matching pods are.
fn places(term: &Term, snapshot: &Snapshot) -> HashSet<String> {
    let meant = snapshot.groups.all.values().filter(|g| term.matches(&g.sample, &snapshot.namespaces));
    let mut values: HashSet<&str> = HashSet::new();
    for group in meant {
        values.extend(labels(group, &term.topology, snapshot).map(|(value, _)| value));
    }
    values.into_iter().map(String::from).collect()
}

/// The values of a label on a group's nodes, and how many of its pods are on each.
fn labels<'a>(
    group: &'a Group,
    key: &'a str,
    snapshot: &'a Snapshot,
) -> impl Iterator<Item = (&'a str, i64)> {
    group
        .nodes
        .iter()
        .filter_map(move |(place, count)| Some((snapshot.nodes.get(*place)?.label(key)?, *count)))
}

fn near(pod: &PodInfo, snapshot: &Snapshot) -> Near {
    let terms: Vec<(String, HashSet<String>)> =
        pod.affinity.iter().map(|t| (t.topology.clone(), places(t, snapshot))).collect();
    let nobody = terms.iter().all(|(_, places)| places.is_empty());
    let first = nobody && pod.affinity.iter().all(|t| t.matches(pod, &snapshot.namespaces));
    Near { terms, first }
}

fn shunned(pod: &PodInfo, snapshot: &Snapshot) -> Places {
    let mut all = Places::new();
    for group in snapshot.groups.all.values() {
        let terms = group.sample.anti_affinity.iter();
        for term in terms.filter(|t| t.matches(pod, &snapshot.namespaces)) {
            let values = labels(group, &term.topology, snapshot).map(|(value, _)| value.to_owned());
            all.entry(term.topology.clone()).or_default().extend(values);
        }
    }
    all
}

/// The pod's own wishes, those of others about it, and that of pods which must be near it.
fn wishes(pod: &PodInfo, snapshot: &Snapshot) -> HashMap<String, HashMap<String, i64>> {
    let mut points: HashMap<&str, HashMap<&str, i64>> = HashMap::new();
    for group in snapshot.groups.all.values() {
        let other = &group.sample;
        let own = pod.preferred.iter().filter(|(_, t)| t.matches(other, &snapshot.namespaces));
        let theirs = other.preferred.iter().filter(|(_, t)| t.matches(pod, &snapshot.namespaces));
        let needed = other.affinity.iter().filter(|t| t.matches(pod, &snapshot.namespaces)).map(|t| (1, t));
        for (weight, term) in own.chain(theirs).map(|(w, t)| (*w, t)).chain(needed) {
            let by_value = points.entry(term.topology.as_str()).or_default();
            for (value, count) in labels(group, &term.topology, snapshot) {
                *by_value.entry(value).or_insert(0) += weight * count;
            }
        }
    }
    let owned =
        |all: HashMap<&str, i64>| all.into_iter().map(|(value, sum)| (value.to_owned(), sum)).collect();
    points.into_iter().map(|(key, all)| (key.to_owned(), owned(all))).collect()
}

fn spread(pod: &PodInfo, constraint: &TopologySpreadConstraint, snapshot: &Snapshot, hard: bool) -> Spread {
    let mut selector = constraint.label_selector.as_ref().and_then(|s| LabelSelector::from_api(s).ok());
    let labels = pod.pod.metadata.labels.as_ref();
    let label = |key: &String| Some((key.clone(), labels?.get(key)?.clone()));
    if let Some(selector) = &mut selector {
        let same = constraint.match_label_keys.iter().flatten().filter_map(label);
        selector.requirements.extend(LabelSelector::equals(same).requirements);
    }
    // Which nodes take part, and the place each counts for.
    let keys = spread_keys(pod, hard);
    let key = constraint.topology_key.as_str();
    let mut sums: HashMap<&str, i64> = HashMap::new();
    let taking: Vec<Option<&str>> = snapshot
        .nodes
        .iter()
        .map(|node| counts_in(pod, constraint, node, &keys).then(|| node.label(key)).flatten())
        .collect();
    sums.extend(taking.iter().flatten().map(|value| (*value, 0)));
    for group in snapshot.groups.all.values() {
        let other = &group.sample;
        let same = other.key.namespace == pod.key.namespace
            && !is_deleting(&*other.pod)
            && selector.as_ref().is_some_and(|s| s.matches(other.pod.metadata.labels.as_ref()));
        if !same {
            continue;
        }
        for (place, count) in &group.nodes {
            if let Some(Some(value)) = taking.get(*place) {
                *sums.entry(value).or_insert(0) += count;
            }
        }
    }
    let counts: HashMap<String, i64> = sums.into_iter().map(|(value, sum)| (value.to_owned(), sum)).collect();
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

/// The labels that a node must have to be in any place: those of all constraints of a kind.
fn spread_keys(pod: &PodInfo, hard: bool) -> BTreeSet<&str> {
    let wanted = pod.spread().iter().filter(|c| !hard || c.when_unsatisfiable == "DoNotSchedule");
    wanted.map(|c| c.topology_key.as_str()).filter(|key| *key != HOSTNAME).collect()
}

/// Whether a node takes part in a constraint: by default one that the pod's affinity
/// allows, tainted or not.
fn counts_in(
    pod: &PodInfo,
    constraint: &TopologySpreadConstraint,
    node: &NodeInfo,
    keys: &BTreeSet<&str>,
) -> bool {
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
    keys.iter().all(|key| node.label(key).is_some())
}
