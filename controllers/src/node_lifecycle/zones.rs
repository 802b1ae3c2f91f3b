//! How fast nodes of a zone lose their pods when many of them fall silent.
//!
//! One silent node is a broken node; most of a zone silent is more likely a broken network,
//! and moving all their pods would make it worse. So the NoExecute taint is given out at a
//! rate that falls with the part of the zone that is gone, and not at all when every zone is.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::api::core::v1::Node;
use wasmk_api::Timestamp;

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Nodes per second that are given up in a zone that is well, and in a large one that is not.
const RATE: f64 = 0.1;
const SLOW_RATE: f64 = 0.01;
/// The part of a zone, and the number of its nodes, beyond which it counts as disrupted.
const UNHEALTHY_PART: f64 = 0.55;
const UNHEALTHY_NODES: usize = 2;
/// A disrupted zone of up to this many nodes gives none up.
const SMALL_ZONE: usize = 50;

/// How a zone is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// Most nodes are ready.
    Normal,
    /// Many are not.
    Partial,
    /// None is.
    Full,
}

#[derive(Debug, Default)]
struct Zone {
    nodes: usize,
    ready: usize,
    /// When the next node may be given up.
    next: Option<Timestamp>,
}

impl Zone {
    fn health(&self) -> Health {
        let gone = self.nodes - self.ready;
        if self.ready == 0 && gone > 0 {
            return Health::Full;
        }
        if gone > UNHEALTHY_NODES && gone as f64 >= UNHEALTHY_PART * self.nodes as f64 {
            return Health::Partial;
        }
        Health::Normal
    }

    /// Nodes per second; `None` for none at all.
    fn rate(&self) -> Option<f64> {
        match self.health() {
            Health::Normal | Health::Full => Some(RATE),
            Health::Partial if self.nodes > SMALL_ZONE => Some(SLOW_RATE),
            Health::Partial => None,
        }
    }
}

/// All zones, kept up to date node by node.
#[derive(Debug, Default)]
pub(super) struct Zones {
    zones: HashMap<String, Zone>,
    /// Each node's zone, and whether it is ready.
    nodes: HashMap<String, (String, bool)>,
    /// Zones with a ready node.
    alive: usize,
}

impl Zones {
    /// Takes a node in; `None` for one that is gone.
    pub(super) fn note(&mut self, name: &str, node: Option<&Node>) {
        let now = node.map(|n| (zone_of(n), super::ready(n).is_some_and(|c| c.status == "True")));
        if self.nodes.get(name) == now.as_ref() {
            return;
        }
        if let Some((zone, ready)) = self.nodes.remove(name) {
            self.count(&zone, ready, false);
        }
        if let Some((zone, ready)) = now {
            self.count(&zone, ready, true);
            self.nodes.insert(name.into(), (zone, ready));
        }
    }

    fn count(&mut self, zone: &str, ready: bool, comes: bool) {
        let entry = self.zones.entry(zone.into()).or_default();
        let alive = entry.ready > 0;
        let step = |n: &mut usize| *n = if comes { *n + 1 } else { n.saturating_sub(1) };
        step(&mut entry.nodes);
        if ready {
            step(&mut entry.ready);
        }
        let (empty, lives) = (entry.nodes == 0, entry.ready > 0);
        if empty {
            self.zones.remove(zone);
        }
        match (alive, lives) {
            (false, true) => self.alive += 1,
            (true, false) => self.alive = self.alive.saturating_sub(1),
            _ => {}
        }
    }

    /// Whether no node anywhere is ready: then the fault is more likely here than there.
    pub(super) fn all_gone(&self) -> bool {
        self.alive == 0
    }

    /// Whether a node may be given up now. True uses up the zone's turn.
    pub(super) fn may_give_up(&mut self, node: &Node, now: Timestamp) -> bool {
        if self.all_gone() {
            return false;
        }
        let Some(zone) = self.zones.get_mut(&zone_of(node)) else { return false };
        let Some(rate) = zone.rate() else { return false };
        if zone.next.is_some_and(|at| at > now) {
            return false;
        }
        zone.next = Some(now.after(Duration::from_secs_f64(1.0 / rate)));
        true
    }
}

fn zone_of(node: &Node) -> String {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key)).map_or("", String::as_str);
    format!("{}:{}", label(REGION), label(ZONE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(zone: &str, ready: bool) -> Node {
        let status = if ready { "True" } else { "Unknown" };
        serde_json::from_value(json!({"metadata": {"labels": {ZONE: zone}},
            "status": {"conditions": [{"type": "Ready", "status": status}]}}))
        .unwrap()
    }

    /// Zones as `READY/ALL`; how many nodes of the first are given up in a thousand seconds.
    fn check(zones: &[(usize, usize)], expect: usize) {
        let mut all = Zones::default();
        for (z, (ready, total)) in zones.iter().enumerate() {
            for i in 0..*total {
                all.note(&format!("{z}-{i}"), Some(&node(&z.to_string(), i < *ready)));
            }
        }
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let lost = node("0", false);
        let given =
            (0..1000).filter(|s| all.may_give_up(&lost, start.after(Duration::from_secs(*s)))).count();
        assert_eq!(given, expect, "{zones:?}");
    }

    #[test]
    fn the_more_is_gone_the_slower() {
        check(&[(9, 10)], 100);
        check(&[(0, 1), (1, 1)], 100);
        check(&[(1, 3)], 100);
        check(&[(1, 4)], 0);
        check(&[(40, 100)], 10);
        check(&[(0, 100), (100, 100)], 100);
        check(&[(0, 100), (0, 100)], 0);
    }

    #[test]
    fn counts_follow_the_nodes() {
        let mut all = Zones::default();
        assert!(all.all_gone());
        all.note("a", Some(&node("x", true)));
        all.note("a", Some(&node("y", true)));
        assert!(!all.all_gone() && all.zones.len() == 1);
        all.note("a", Some(&node("y", false)));
        assert!(all.all_gone());
        all.note("b", Some(&node("y", true)));
        all.note("b", None);
        all.note("a", None);
        assert!(all.all_gone() && all.zones.is_empty() && all.nodes.is_empty());
    }
}
