//! How good a node is for a pod: a list of small functions from 0 to 100, each with a weight.

use std::borrow::Cow;

use super::{Profile, Strategy, cycle::Cycle, filter, node::NodeInfo, pod::PodInfo};
use crate::taint_eviction::tolerates;

/// The best that one function gives.
const MAX: i64 = 100;
/// Images smaller than this are as good as absent.
const SMALL_IMAGE: i64 = 23 << 20;
/// Image bytes per container that count fully.
const LARGE_IMAGE: i64 = 1000 << 20;

/// What nodes are compared for.
struct Subject<'a> {
    pod: &'a PodInfo,
    cycle: &'a Cycle,
    profile: &'a Profile,
}

/// Points of each node; `None` when all are alike.
type Score = fn(&Subject, &[&NodeInfo]) -> Option<Vec<i64>>;

/// All functions, with the names that a profile weighs them by and their usual weights.
const SCORES: &[(&str, i64, Score)] = &[
    ("NodeResourcesFit", 1, allocated),
    ("NodeResourcesBalancedAllocation", 1, balanced),
    ("ImageLocality", 1, image_locality),
    ("TaintToleration", 3, few_taints),
    ("NodeAffinity", 2, node_affinity),
    ("PodTopologySpread", 2, topology_spread),
    ("PodTopologySpread", 2, siblings),
    ("InterPodAffinity", 2, pod_affinity),
];

/// Whether a profile can weigh something of that name.
pub(super) fn is_known(name: &str) -> bool {
    SCORES.iter().any(|(known, ..)| *known == name)
}

/// Points of each node, higher is better.
pub(super) fn rate(pod: &PodInfo, nodes: &[&NodeInfo], cycle: &Cycle, profile: &Profile) -> Vec<i64> {
    let mut total = vec![0; nodes.len()];
    let what = Subject { pod, cycle, profile };
    for (name, usual, score) in SCORES {
        let weight = profile.weights.get(*name).copied().unwrap_or(*usual);
        if weight == 0 {
            continue;
        }
        if let Some(all) = score(&what, nodes) {
            for (sum, points) in total.iter_mut().zip(all) {
                *sum += weight * points.clamp(0, MAX);
            }
        }
    }
    total
}

/// Stretches raw points so that the best gets 100.
fn normalize(raw: Vec<i64>, lower_is_better: bool) -> Option<Vec<i64>> {
    let (low, high) = (raw.iter().copied().min()?, raw.iter().copied().max()?);
    if low == high {
        return None;
    }
    let scale = |points: i64| {
        let part = (points - low) * MAX / (high - low);
        if lower_is_better { MAX - part } else { part }
    };
    Some(raw.into_iter().map(scale).collect())
}

fn shares(pod: &PodInfo, node: &NodeInfo) -> [f64; 2] {
    let share = |used: i64, all: i64| if all <= 0 { 1.0 } else { (used as f64 / all as f64).min(1.0) };
    [
        share(node.weight.0 + pod.weight.0, node.allocatable.cpu),
        share(node.weight.1 + pod.weight.1, node.allocatable.memory),
    ]
}

/// The emptier, the better; or the fuller, if the profile wants nodes filled one by one.
fn allocated(what: &Subject, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
    let points = |n: &&NodeInfo| {
        let [cpu, memory] = shares(what.pod, n);
        let used = (cpu + memory) / 2.0;
        let good = if what.profile.strategy == Strategy::MostAllocated { used } else { 1.0 - used };
        (good * MAX as f64) as i64
    };
    Some(nodes.iter().map(points).collect())
}

/// CPU and memory used up evenly.
fn balanced(what: &Subject, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
    let even = |n: &&NodeInfo| {
        let [cpu, memory] = shares(what.pod, n);
        ((1.0 - (cpu - memory).abs() / 2.0) * MAX as f64) as i64
    };
    Some(nodes.iter().map(even).collect())
}

/// The pod's images are there already, and few other nodes have them.
fn image_locality(what: &Subject, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
    let pod = what.pod;
    let held = |node: &NodeInfo, image: &str| node.images.get(normal(image).as_ref()).copied();
    if nodes.iter().all(|n| n.images.is_empty()) {
        return None;
    }
    // An image that few nodes have counts less, lest they get all its pods.
    let spread = |image: &String| {
        let count = nodes.iter().filter(|n| held(n, image).is_some()).count();
        count as f64 / nodes.len() as f64
    };
    let spreads: Vec<f64> = pod.images.iter().map(spread).collect();
    let count = i64::try_from(pod.images.len()).unwrap_or(1).max(1);
    let of = |node: &&NodeInfo| {
        let sizes = pod.images.iter().zip(&spreads);
        let sizes = sizes.filter_map(|(image, part)| Some((held(node, image)? as f64 * part) as i64));
        let bytes = sizes.sum::<i64>().clamp(SMALL_IMAGE, LARGE_IMAGE * count);
        MAX * (bytes - SMALL_IMAGE) / (LARGE_IMAGE * count - SMALL_IMAGE)
    };
    Some(nodes.iter().map(of).collect())
}

/// An image's name as nodes list it: with a tag.
pub(super) fn normal(image: &str) -> Cow<'_, str> {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains(':') || name.contains('@') { image.into() } else { format!("{image}:latest").into() }
}

/// Taints that only advise are heeded while other nodes fit.
fn few_taints(what: &Subject, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
    let pod = what.pod;
    let untolerated = |n: &&NodeInfo| {
        let advice = n.taints().filter(|t| t.effect == "PreferNoSchedule");
        advice.filter(|t| !pod.tolerations().iter().any(|o| tolerates(o, t))).count() as i64
    };
    normalize(nodes.iter().map(untolerated).collect(), true)
}

fn node_affinity(what: &Subject, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
    let affinity = what.pod.spec().and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref());
    let wishes = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())?;
    let points = |n: &&NodeInfo| {
        let granted = wishes.iter().filter(|w| filter::term_matches(&w.preference, &n.node));
        granted.map(|w| i64::from(w.weight)).sum()
    };
    normalize(nodes.iter().map(points).collect(), false)
}

fn topology_spread(what: &Subject, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
    let cycle = what.cycle;
    if cycle.soft_spread.is_empty() {
        return None;
    }
    let crowd = |n: &&NodeInfo| {
        let of = |s: &super::cycle::Spread| s.skew_at(n.place).unwrap_or(i64::from(i16::MAX));
        cycle.soft_spread.iter().map(of).sum()
    };
    normalize(nodes.iter().map(crowd).collect(), true)
}

fn pod_affinity(what: &Subject, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
    let wishes = &what.cycle.wishes;
    if wishes.is_empty() {
        return None;
    }
    let points =
        |n: &&NodeInfo| wishes.iter().filter_map(|(weight, tally)| Some(weight * tally.at(n.place)?)).sum();
    normalize(nodes.iter().map(points).collect(), false)
}

/// Without wishes of its own about other pods, a pod keeps away from those of the same
/// controller.
fn siblings(what: &Subject, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
    let pod = what.pod;
    let silent = pod.rules.spread.is_empty() && pod.rules.preferred.is_empty();
    let owner = pod.owner.as_ref().filter(|_| silent)?;
    let count = |n: &&NodeInfo| i64::from(n.owners.get(owner).copied().unwrap_or(0));
    normalize(nodes.iter().map(count).collect(), true)
}
