//! How good a node is for a pod: a list of small functions from 0 to 100, each with a weight.

use super::{
    cycle::Cycle,
    filter,
    snapshot::{NodeInfo, PodInfo},
};
use crate::taint_eviction::tolerates;

/// The best that one function gives.
const MAX: i64 = 100;
/// Images smaller than this are as good as absent.
const SMALL_IMAGE: i64 = 23 << 20;
/// Image bytes per container that count fully.
const LARGE_IMAGE: i64 = 1000 << 20;

type Score = fn(&PodInfo, &[&NodeInfo], &Cycle) -> Vec<i64>;

/// All functions and their weights.
const SCORES: &[(i64, Score)] = &[
    (1, least_allocated),
    (1, balanced),
    (1, image_locality),
    (3, few_taints),
    (2, node_affinity),
    (2, topology_spread),
    (2, pod_affinity),
    (2, siblings),
];

/// Points of each node, higher is better.
pub(super) fn rate(pod: &PodInfo, nodes: &[&NodeInfo], cycle: &Cycle) -> Vec<i64> {
    let mut total = vec![0; nodes.len()];
    for (weight, score) in SCORES {
        for (sum, points) in total.iter_mut().zip(score(pod, nodes, cycle)) {
            *sum += weight * points.clamp(0, MAX);
        }
    }
    total
}

/// Stretches raw points so that the best gets 100.
fn normalize(raw: Vec<i64>, lower_is_better: bool) -> Vec<i64> {
    let (low, high) = (raw.iter().copied().min().unwrap_or(0), raw.iter().copied().max().unwrap_or(0));
    if low == high {
        return vec![if lower_is_better { MAX } else { 0 }; raw.len()];
    }
    let scale = |points: i64| {
        let part = (points - low) * MAX / (high - low);
        if lower_is_better { MAX - part } else { part }
    };
    raw.into_iter().map(scale).collect()
}

fn shares(pod: &PodInfo, node: &NodeInfo) -> [f64; 2] {
    let share = |used: i64, all: i64| if all <= 0 { 1.0 } else { (used as f64 / all as f64).min(1.0) };
    [
        share(node.weight.0 + pod.weight.0, node.allocatable.cpu),
        share(node.weight.1 + pod.weight.1, node.allocatable.memory),
    ]
}

/// The emptier, the better.
fn least_allocated(pod: &PodInfo, nodes: &[&NodeInfo], _: &Cycle) -> Vec<i64> {
    let free = |n: &&NodeInfo| {
        let [cpu, memory] = shares(pod, n);
        ((2.0 - cpu - memory) / 2.0 * MAX as f64) as i64
    };
    nodes.iter().map(free).collect()
}

/// CPU and memory used up evenly.
fn balanced(pod: &PodInfo, nodes: &[&NodeInfo], _: &Cycle) -> Vec<i64> {
    let even = |n: &&NodeInfo| {
        let [cpu, memory] = shares(pod, n);
        ((1.0 - (cpu - memory).abs() / 2.0) * MAX as f64) as i64
    };
    nodes.iter().map(even).collect()
}

/// The pod's images are there already, and few other nodes have them.
fn image_locality(pod: &PodInfo, nodes: &[&NodeInfo], _: &Cycle) -> Vec<i64> {
    let size = |node: &NodeInfo, image: &str| {
        let images = node.node.status.iter().flat_map(|s| s.images.iter().flatten());
        let same = |name: &String| name == image || name.strip_suffix(":latest") == Some(image);
        let found = images.into_iter().find(|i| i.names.iter().flatten().any(same));
        found.and_then(|i| i.size_bytes)
    };
    let count = i64::try_from(pod.images.len()).unwrap_or(1).max(1);
    let of = |node: &&NodeInfo| {
        let bytes: i64 = pod.images.iter().filter_map(|image| size(node, image)).sum();
        let bytes = bytes.clamp(SMALL_IMAGE, LARGE_IMAGE * count);
        MAX * (bytes - SMALL_IMAGE) / (LARGE_IMAGE * count - SMALL_IMAGE)
    };
    if nodes
        .iter()
        .all(|n| n.node.status.as_ref().is_none_or(|s| s.images.as_ref().is_none_or(Vec::is_empty)))
    {
        return vec![0; nodes.len()];
    }
    nodes.iter().map(of).collect()
}

/// Taints that only advise are heeded while other nodes fit.
fn few_taints(pod: &PodInfo, nodes: &[&NodeInfo], _: &Cycle) -> Vec<i64> {
    let untolerated = |n: &&NodeInfo| {
        let advice = n.taints().filter(|t| t.effect == "PreferNoSchedule");
        advice.filter(|t| !pod.tolerations().iter().any(|o| tolerates(o, t))).count() as i64
    };
    normalize(nodes.iter().map(untolerated).collect(), true)
}

fn node_affinity(pod: &PodInfo, nodes: &[&NodeInfo], _: &Cycle) -> Vec<i64> {
    let affinity = pod.spec().and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref());
    let Some(wishes) = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())
    else {
        return vec![0; nodes.len()];
    };
    let points = |n: &&NodeInfo| {
        let granted = wishes.iter().filter(|w| filter::term_matches(&w.preference, n));
        granted.map(|w| i64::from(w.weight)).sum()
    };
    normalize(nodes.iter().map(points).collect(), false)
}

fn topology_spread(_: &PodInfo, nodes: &[&NodeInfo], cycle: &Cycle) -> Vec<i64> {
    if cycle.soft_spread.is_empty() {
        return vec![0; nodes.len()];
    }
    let crowd = |n: &&NodeInfo| {
        let of = |s: &super::cycle::Spread| {
            n.label(&s.topology).map_or(i64::from(i16::MAX), |value| s.skew_with(value))
        };
        cycle.soft_spread.iter().map(of).sum()
    };
    normalize(nodes.iter().map(crowd).collect(), true)
}

fn pod_affinity(_: &PodInfo, nodes: &[&NodeInfo], cycle: &Cycle) -> Vec<i64> {
    if cycle.wishes.is_empty() {
        return vec![0; nodes.len()];
    }
    let points = |n: &&NodeInfo| {
        let here = |((key, value), _): &(&(String, String), &i64)| n.label(key) == Some(value);
        cycle.wishes.iter().filter(here).map(|(_, points)| points).sum()
    };
    normalize(nodes.iter().map(points).collect(), false)
}

/// Without wishes of its own about other pods, a pod keeps away from those of the same
/// controller.
fn siblings(pod: &PodInfo, nodes: &[&NodeInfo], cycle: &Cycle) -> Vec<i64> {
    let silent = cycle.spread.is_empty() && cycle.soft_spread.is_empty() && pod.preferred.is_empty();
    let (Some(owner), true) = (&pod.owner, silent) else {
        return vec![0; nodes.len()];
    };
    let count = |n: &&NodeInfo| i64::from(n.owners.get(owner).copied().unwrap_or(0));
    normalize(nodes.iter().map(count).collect(), true)
}
