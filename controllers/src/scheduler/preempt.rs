//! Making room for a pod by removing less important ones.

use std::{cmp::Reverse, sync::Arc};

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use wasmk_api::LabelSelector;

use crate::base::is_deleting;

use super::{cycle::Cycle, explain::Rejection, filter, node::NodeInfo, pod::PodInfo, snapshot::Snapshot};

/// Nodes looked at for one pod.
const MAX_CANDIDATES: usize = 100;

/// A node and the pods that would have to leave it.
#[derive(Debug)]
pub(super) struct Victims {
    pub(super) node: String,
    /// The most important first.
    pub(super) pods: Vec<Arc<PodInfo>>,
    /// How many of them a disruption budget would rather keep.
    violations: usize,
}

impl Victims {
    /// What breaks fewer promises, and the fewer and the less important, the better.
    fn cost(&self) -> (usize, i32, i64, usize, &str) {
        let highest = self.pods.iter().map(|p| p.priority).max().unwrap_or(i32::MIN);
        let sum = self.pods.iter().map(|p| i64::from(p.priority)).sum();
        (self.violations, highest, sum, self.pods.len(), &self.node)
    }
}

/// What a disruption budget allows.
#[derive(Debug)]
pub(super) struct Budget {
    namespace: String,
    selector: LabelSelector,
    allowed: i32,
    /// Pods whose disruption has been counted already.
    counted: Vec<String>,
}

impl Budget {
    /// `None` for a budget that covers nothing.
    pub(super) fn of(budget: &PodDisruptionBudget) -> Option<Self> {
        let selector = LabelSelector::from_api(budget.spec.as_ref()?.selector.as_ref()?).ok()?;
        let status = budget.status.as_ref();
        Some(Self {
            namespace: budget.metadata.namespace.clone().unwrap_or_default(),
            selector,
            allowed: status.and_then(|s| s.disruptions_allowed).unwrap_or(0),
            counted: status
                .iter()
                .flat_map(|s| s.disrupted_pods.iter().flatten())
                .map(|(n, _)| n.clone())
                .collect(),
        })
    }

    fn covers(&self, pod: &PodInfo) -> bool {
        self.namespace == pod.key.namespace
            && !self.selector.is_empty()
            && self.selector.matches(pod.pod.metadata.labels.as_ref())
            && !self.counted.contains(&pod.key.name)
    }
}

/// Why no room may be made for a pod at all, if so.
pub(super) fn ineligible(pod: &PodInfo, snapshot: &Snapshot) -> Option<&'static str> {
    if pod.spec().and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return Some("preemptionPolicy=Never");
    }
    // Room is being made already: it is waited for.
    let node = pod.nominated().and_then(|name| Some(&snapshot.nodes[snapshot.position(name)?]))?;
    let going = node.pods.values().any(|p| p.priority < pod.priority && is_deleting(&*p.pod));
    going.then_some("a terminating pod on the nominated node")
}

/// The cheapest way to make room, if there is one. `rejections` stand in the order of the
/// snapshot's nodes.
pub(super) fn find(
    pod: &PodInfo,
    snapshot: &Snapshot,
    rejections: &[(usize, Rejection)],
    cycle: &Cycle,
    budgets: &[Budget],
) -> Option<Victims> {
    let weaker = |node: &NodeInfo| node.pods.values().any(|p| p.priority < pod.priority);
    let hopeful = rejections.iter().filter(|(i, r)| r.resolvable && weaker(&snapshot.nodes[*i]));
    let search = Search { pod, snapshot, budgets, cycle };
    hopeful
        .take(MAX_CANDIDATES)
        .filter_map(|(i, _)| search.on_node(*i))
        .min_by(|a, b| a.cost().cmp(&b.cost()))
}

struct Search<'a> {
    pod: &'a PodInfo,
    snapshot: &'a Snapshot,
    budgets: &'a [Budget],
    /// Of the snapshot as it is.
    cycle: &'a Cycle,
}

impl Search<'_> {
    /// Removes all weaker pods from a node, and lets as many as possible come back: first those that
    /// budgets want to keep, of these and of the others the most important first.
    fn on_node(&self, index: usize) -> Option<Victims> {
        let mut node = (*self.snapshot.nodes[index]).clone();
        let mut weaker: Vec<Arc<PodInfo>> =
            node.pods.values().filter(|p| p.priority < self.pod.priority).cloned().collect();
        weaker.iter().for_each(|p| drop(node.remove(&p.uid)));
        for other in self.snapshot.nominated_on(&self.snapshot.nodes[index].name, self.pod) {
            node.add(other.clone());
        }
        if !self.fits(index, &node, &weaker) {
            return None;
        }
        weaker
            .sort_by_key(|p| (Reverse(p.priority), p.pod.metadata.creation_timestamp.as_ref().map(|t| t.0)));
        let (kept_by_budget, others) = self.split(&weaker);
        let violating = kept_by_budget.len();
        let (mut victims, mut violations): (Vec<Arc<PodInfo>>, usize) = (Vec::new(), 0);
        let mut gone = weaker;
        for (i, other) in kept_by_budget.into_iter().chain(others).enumerate() {
            node.add(other.clone());
            gone.retain(|p| p.uid != other.uid);
            if !self.fits(index, &node, &gone) {
                node.remove(&other.uid);
                gone.push(other.clone());
                violations += usize::from(i < violating);
                victims.push(other);
            }
        }
        victims.sort_by_key(|p| Reverse(p.priority));
        (!victims.is_empty()).then_some(Victims { node: node.name, pods: victims, violations })
    }

    /// Those whose going would break a budget, and the others; each in the order given.
    fn split(&self, pods: &[Arc<PodInfo>]) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
        let mut left: Vec<i32> = self.budgets.iter().map(|b| b.allowed).collect();
        pods.iter().cloned().partition(|pod| {
            let mut breaks = false;
            for (_, left) in self.budgets.iter().zip(&mut left).filter(|(b, _)| b.covers(pod)) {
                *left -= 1;
                breaks |= *left < 0;
            }
            breaks
        })
    }

    /// Whether the pod fits on a node as it would be without `gone`.
    fn fits(&self, index: usize, node: &NodeInfo, gone: &[Arc<PodInfo>]) -> bool {
        if self.cycle.others.is_empty() {
            return filter::admit(self.pod, node, self.cycle).is_ok();
        }
        let others = self.cycle.others.without(index, gone, &self.snapshot.namespaces);
        filter::admit(self.pod, node, &self.cycle.among(others)).is_ok()
    }
}
