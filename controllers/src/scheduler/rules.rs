//! What a pod says about others near it, read once. Equal rules of different pods are equal here, so that what
//! is counted for one is good for all.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{
    Affinity, Pod, PodAffinityTerm, PodSpec, TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use serde_json::json;
use wasmk_api::{LabelSelector, Operator, Requirement};

use super::{filter, node::NodeInfo, pod::PodInfo};
use crate::{base::is_deleting, taint_eviction::tolerates};

const HOSTNAME: &str = "kubernetes.io/hostname";

/// Labels of namespaces.
pub(super) type Namespaces = HashMap<String, BTreeMap<String, String>>;

/// A term of pod affinity, with its selector read.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Term {
    pub(super) topology: String,
    selector: Option<LabelSelector>,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelSelector>,
}

impl Term {
    fn of(term: &PodAffinityTerm, pod: &Pod) -> Arc<Self> {
        let mut selector = term.label_selector.as_ref().and_then(|s| LabelSelector::from_api(s).ok());
        if let Some(selector) = &mut selector {
            require(selector, term.match_label_keys.as_deref(), pod, Operator::In);
            require(selector, term.mismatch_label_keys.as_deref(), pod, Operator::NotIn);
        }
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.extend(pod.metadata.namespace.clone());
        }
        let by_label = term.namespace_selector.as_ref().and_then(|s| LabelSelector::from_api(s).ok());
        let topology = term.topology_key.clone();
        Arc::new(Self { topology, selector, namespaces, namespace_selector: by_label })
    }

    /// Whether a pod is meant.
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

/// Adds that the values of these labels are, or are not, those of the pod itself.
fn require(
    selector: &mut LabelSelector,
    keys: Option<&[String]>,
    pod: &Pod,
    how: fn(Vec<String>) -> Operator,
) {
    let labels = pod.metadata.labels.as_ref();
    let own = |key: &String| {
        let value = labels?.get(key)?.clone();
        Some(Requirement { key: key.clone(), operator: how(vec![value]) })
    };
    selector.requirements.extend(keys.into_iter().flatten().filter_map(own));
}

/// What a pod says about pods near it.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    /// Pods that must be, must not be, and had better be or not be nearby.
    pub(super) affinity: Vec<Arc<Term>>,
    pub(super) anti_affinity: Vec<Arc<Term>>,
    pub(super) preferred: Vec<(i64, Arc<Term>)>,
    /// How pods like it are to be spread.
    pub(super) spread: Vec<Constraint>,
}

impl Rules {
    pub(super) fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Self::default() };
        let affinity = spec.affinity.as_ref();
        let read = |terms: Option<&Vec<PodAffinityTerm>>| {
            terms.into_iter().flatten().map(|t| Term::of(t, pod)).collect()
        };
        let near = affinity.and_then(|a| a.pod_affinity.as_ref());
        let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        let constraints = spec.topology_spread_constraints.iter().flatten();
        Self {
            affinity: read(near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())),
            anti_affinity: read(
                far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred: preferred(affinity, pod),
            spread: constraints.map(|c| Constraint::of(c, pod, spec)).collect(),
        }
    }

    /// Whether it says nothing that decides where the pod may go.
    pub(super) fn forbid_nothing(&self) -> bool {
        self.affinity.is_empty() && self.anti_affinity.is_empty() && self.spread.iter().all(|c| !c.hard)
    }

    /// Whether it says nothing at all.
    pub(super) fn is_empty(&self) -> bool {
        self.forbid_nothing() && self.preferred.is_empty() && self.spread.is_empty()
    }
}

fn preferred(affinity: Option<&Affinity>, pod: &Pod) -> Vec<(i64, Arc<Term>)> {
    let near = affinity.and_then(|a| a.pod_affinity.as_ref());
    let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    let near = near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let far = far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let read = |list: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| -> Vec<(i64, Arc<Term>)> {
        let all = list.into_iter().flatten();
        all.map(|t| (sign * i64::from(t.weight), Term::of(&t.pod_affinity_term, pod))).collect()
    };
    let mut all = read(near, 1);
    all.extend(read(far, -1));
    all
}

/// A pod's topology spread constraint.
#[derive(Clone, Debug)]
pub(super) struct Constraint {
    /// Whether it must hold.
    pub(super) hard: bool,
    pub(super) max_skew: i64,
    pub(super) min_domains: Option<i32>,
    /// Whether the pod itself counts where it goes.
    pub(super) counts_itself: bool,
    pub(super) crowd: Arc<Crowd>,
}

impl Constraint {
    fn of(constraint: &TopologySpreadConstraint, pod: &Pod, spec: &PodSpec) -> Self {
        let hard = constraint.when_unsatisfiable == "DoNotSchedule";
        let crowd = Crowd::of(constraint, pod, spec, hard);
        Self {
            hard,
            max_skew: i64::from(constraint.max_skew),
            min_domains: constraint.min_domains,
            counts_itself: crowd.selector.as_ref().is_some_and(|s| s.matches(pod.metadata.labels.as_ref())),
            crowd: Arc::new(crowd),
        }
    }
}

/// The pods that a spread constraint counts, and where it counts them.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Crowd {
    pub(super) topology: String,
    namespace: String,
    selector: Option<LabelSelector>,
    /// Labels that a node must have to be in any place: those of all constraints of a kind.
    keys: BTreeSet<String>,
    /// Whether nodes count that the pod's affinity does not allow, and those with taints it does not tolerate.
    by_affinity: bool,
    by_taints: bool,
    /// What of the pod decides about nodes, as text.
    nodes: String,
}

impl Crowd {
    fn of(constraint: &TopologySpreadConstraint, pod: &Pod, spec: &PodSpec, hard: bool) -> Self {
        let mut selector = constraint.label_selector.as_ref().and_then(|s| LabelSelector::from_api(s).ok());
        if let Some(selector) = &mut selector {
            require(selector, constraint.match_label_keys.as_deref(), pod, Operator::In);
        }
        let kind = spec.topology_spread_constraints.iter().flatten();
        let kind = kind.filter(|c| !hard || c.when_unsatisfiable == "DoNotSchedule");
        let honours = |policy: Option<&String>, default: bool| policy.map_or(default, |p| p == "Honor");
        let by_affinity = honours(constraint.node_affinity_policy.as_ref(), true);
        let by_taints = honours(constraint.node_taints_policy.as_ref(), false);
        let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let asked = by_affinity.then_some((&spec.node_selector, required));
        let tolerated = by_taints.then_some(&spec.tolerations);
        Self {
            topology: constraint.topology_key.clone(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            selector,
            keys: kind.map(|c| c.topology_key.clone()).filter(|key| key != HOSTNAME).collect(),
            by_affinity,
            by_taints,
            nodes: json!([asked, tolerated]).to_string(),
        }
    }

    /// Whether a pod counts.
    pub(super) fn counts(&self, pod: &PodInfo) -> bool {
        pod.key.namespace == self.namespace
            && !is_deleting(&*pod.pod)
            && self.selector.as_ref().is_some_and(|s| s.matches(pod.pod.metadata.labels.as_ref()))
    }

    /// Whether a node takes part: by default one that the affinity of `pod`, whose rule it is, allows, tainted or
    /// not.
    pub(super) fn takes_in(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        let repels = || {
            node.taints().any(|t| {
                matches!(&*t.effect, "NoSchedule" | "NoExecute")
                    && !pod.tolerations().iter().any(|o| tolerates(o, t))
            })
        };
        let labelled = self.keys.iter().all(|key| node.label(key).is_some());
        labelled && (!self.by_affinity || filter::fits_affinity(pod, node)) && !(self.by_taints && repels())
    }
}
