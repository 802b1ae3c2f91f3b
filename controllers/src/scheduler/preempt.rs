//! Making room for a pod by removing less important ones.

use std::sync::Arc;

use k8s_openapi::api::node::v1::RuntimeClass;

use super::{
    cycle::Cycle,
    explain::Rejection,
    filter,
    snapshot::{NodeInfo, PodInfo, Snapshot},
};
use k8s_openapi::api::core::v1::NodeSelector;

/// Nodes looked at for one pod.
const MAX_CANDIDATES: usize = 100;

/// A node and the pods that would have to leave it.
#[derive(Debug)]
pub(super) struct Victims {
    pub(super) node: String,
    pub(super) pods: Vec<Arc<PodInfo>>,
}

impl Victims {
    /// The fewer and the less important, the better.
    fn cost(&self) -> (i32, i64, usize, &str) {
        let highest = self.pods.iter().map(|p| p.priority).max().unwrap_or(i32::MIN);
        let sum = self.pods.iter().map(|p| i64::from(p.priority)).sum();
        (highest, sum, self.pods.len(), &self.node)
    }
}

/// The cheapest way to make room, if there is one. `rejections` stand in the order of the
/// snapshot's nodes.
pub(super) fn find(
    pod: &PodInfo,
    snapshot: &Snapshot,
    rejections: &[(usize, Rejection)],
    class: Option<&RuntimeClass>,
    volumes: &[NodeSelector],
) -> Option<Victims> {
    let never = pod.spec().and_then(|s| s.preemption_policy.as_deref()) == Some("Never");
    if never {
        return None;
    }
    let weaker = |node: &NodeInfo| node.pods.values().any(|p| p.priority < pod.priority);
    let hopeful = rejections.iter().filter(|(i, r)| r.resolvable && weaker(&snapshot.nodes[*i]));
    hopeful
        .take(MAX_CANDIDATES)
        .filter_map(|(i, _)| on_node(pod, snapshot, *i, class, volumes))
        .min_by(|a, b| a.cost().cmp(&b.cost()))
}

/// Removes all weaker pods from a node, and lets as many as possible come back, the most
/// important first.
fn on_node(
    pod: &PodInfo,
    snapshot: &Snapshot,
    index: usize,
    class: Option<&RuntimeClass>,
    volumes: &[NodeSelector],
) -> Option<Victims> {
    let mut node = (*snapshot.nodes[index]).clone();
    let mut weaker: Vec<Arc<PodInfo>> =
        node.pods.values().filter(|p| p.priority < pod.priority).cloned().collect();
    weaker.iter().for_each(|p| drop(node.remove(&p.uid)));
    let fits = |node: &NodeInfo| {
        let mut trial = snapshot.clone();
        trial.nodes[index] = Arc::new(node.clone());
        let cycle = Cycle::new(pod, &trial, class, volumes.to_vec());
        filter::admit(pod, node, &cycle).is_ok()
    };
    if !fits(&node) {
        return None;
    }
    weaker.sort_by_key(|p| std::cmp::Reverse(p.priority));
    let mut victims = Vec::new();
    for other in weaker {
        node.add(other.clone());
        if !fits(&node) {
            node.remove(&other.uid);
            victims.push(other);
        }
    }
    (!victims.is_empty()).then_some(Victims { node: node.name, pods: victims })
}
