//! Notices nodes that have fallen silent, and taints nodes by their conditions.
//!
//! Reads nodes, their Leases and pods. Writes nodes (taints, and conditions of silent
//! ones) and marks the pods of an unready node as not ready. Deletes nothing: the taint
//! eviction controller does.
//!
//! Silence is measured on this process's clock, from when a heartbeat was last seen to
//! change, so a node's clock does not matter. How fast nodes get the NoExecute taint when
//! many are lost is decided by [`zones`].

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, NodeCondition, Pod, Taint},
};
use parking_lot::Mutex;
use serde_json::json;
use wasmk_api::Timestamp;

use crate::base::{
    Context, EventKind, Informer, Key, Next, PodView, Queue, Result, condition, is_deleting, on_change, time,
};

mod zones;

use zones::Zones;

const NAME: &str = "node-lifecycle-controller";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that a silent node can no longer vouch for.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Conditions (type, status) and the NoSchedule taint that goes with them.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

/// A node's last sign of life.
struct Heartbeat {
    /// What it looked like: the lease's renewal and the Ready condition's heartbeat.
    mark: (Option<jiff::Timestamp>, Option<jiff::Timestamp>),
    /// When it was first seen so.
    seen: Timestamp,
}

struct Monitor {
    cx: Context,
    nodes: Arc<Informer<Node>>,
    leases: Arc<Informer<Lease>>,
    pods: Arc<Informer<Pod>>,
    beats: Mutex<HashMap<String, Heartbeat>>,
    zones: Arc<Mutex<Zones>>,
}

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let (nodes, leases, pods) = (cx.cache::<Node>(), cx.cache::<Lease>(), cx.cache::<Pod>());
    on_change(&nodes, &queue);
    let zones = Arc::new(Mutex::new(Zones::default()));
    let counts = zones.clone();
    nodes.subscribe(move |old, new| {
        let name = new.or(old).and_then(|n| n.metadata.name.as_deref()).unwrap_or("");
        counts.lock().note(name, new.map(|n| &**n));
    });
    nodes.ready().await;
    leases.ready().await;
    pods.ready().await;
    let monitor = Monitor { cx: cx.clone(), nodes, leases, pods, beats: Mutex::default(), zones };
    cx.work(NAME, &queue, cx.settings.workers, |key| monitor.reconcile(key)).await;
}

impl Monitor {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        let Some(mut node) = self.nodes.get(&key) else {
            self.beats.lock().remove(&key.name);
            return Ok(Next::Change);
        };
        let now = self.cx.clock.now();
        let silence = self.silence(&node, now);
        if silence > self.cx.settings.node_monitor_grace {
            node = self.mark_silent(&node, now).await?;
        }
        // One kind of NoExecute taint replaces the other at once: the pods' time has begun.
        let evict = is_lost(&node) && (is_given_up(&node) || self.zones.lock().may_give_up(&node, now));
        if let Some(taints) = plan_taints(&node, evict, now) {
            let patch = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"taints": taints},
            });
            node = self.cx.patch(&*node, patch).await?;
        }
        if ready(&node).is_some_and(|c| c.status != "True") {
            self.mark_pods(&node).await?;
        }
        Ok(Next::After(self.cx.settings.node_monitor_period))
    }

    /// How long the node has shown no sign of life.
    fn silence(&self, node: &Node, now: Timestamp) -> Duration {
        let name = node.metadata.name.clone().unwrap_or_default();
        let lease = self.leases.get(&Key::new("kube-node-lease", name.clone()));
        let renewed = lease.and_then(|l| l.spec.as_ref()?.renew_time.as_ref().map(|t| t.0));
        let beat = ready(node)
            .filter(|c| c.status != "Unknown")
            .and_then(|c| c.last_heartbeat_time.as_ref().map(|t| t.0));
        let mut beats = self.beats.lock();
        let last = beats.entry(name).or_insert(Heartbeat { mark: (renewed, beat), seen: now });
        // A condition that this controller has set to Unknown is no sign of life.
        let news = renewed > last.mark.0 || beat > last.mark.1;
        if news {
            *last = Heartbeat { mark: (renewed.max(last.mark.0), beat.max(last.mark.1)), seen: now };
        }
        now.since(last.seen)
    }

    async fn mark_silent(&self, node: &Arc<Node>, now: Timestamp) -> Result<Arc<Node>> {
        let Some(next) = plan_silent(node, now) else { return Ok(node.clone()) };
        let name = node.metadata.name.as_deref().unwrap_or("");
        let message = format!("Node {name} status is now: NodeNotReady");
        self.cx.events.record(NAME, &**node, EventKind::Normal, "NodeNotReady", message);
        self.cx.replace_status(&next).await
    }

    /// Pods of a node that is not ready receive no more connections.
    async fn mark_pods(&self, node: &Node) -> Result<()> {
        for pod in self.pods.on_node(node.metadata.name.as_deref().unwrap_or("")) {
            let Some(ready) = condition(&pod, "Ready").filter(|c| c.status == "True") else { continue };
            let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
            for c in conditions.iter_mut().filter(|c| c.type_ == ready.type_) {
                c.status = "False".into();
                c.last_transition_time = Some(time(self.cx.clock.now()));
            }
            let patch = json!({
                "metadata": {"resourceVersion": pod.metadata.resource_version},
                "status": {"conditions": conditions},
            });
            match self.cx.patch_sub(&*pod, "status", patch).await {
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                other => drop(other?),
            }
            if PodView(&pod).is_active() {
                self.cx.events.record(NAME, &*pod, EventKind::Warning, "NodeNotReady", "Node is not ready");
            }
        }
        Ok(())
    }
}

/// Whether a node is not ready and lacks the NoExecute taint that goes with it.
fn is_lost(node: &Node) -> bool {
    let taint = match ready(node).map(|c| c.status.as_str()) {
        Some("False") => NOT_READY,
        Some("Unknown") => UNREACHABLE,
        _ => return false,
    };
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or(&[]);
    !is_deleting(node) && !has(taints, taint, "NoExecute")
}

/// Whether a node has one of this controller's NoExecute taints.
fn is_given_up(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or(&[]);
    [NOT_READY, UNREACHABLE].iter().any(|taint| has(taints, taint, "NoExecute"))
}

fn ready(node: &Node) -> Option<&NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "Ready")
}

/// A silent node's status, unless it says so already.
fn plan_silent(node: &Node, now: Timestamp) -> Option<Node> {
    let mut next = node.clone();
    let conditions = next.status.get_or_insert_default().conditions.get_or_insert_default();
    let mut changed = false;
    for kind in REPORTED {
        let unknown = |reason: &str, message: &str| {
            (Some(reason.to_owned()), Some(message.to_owned()), Some(time(now)))
        };
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(c) if c.status == "Unknown" => {}
            Some(c) => {
                c.status = "Unknown".into();
                (c.reason, c.message, c.last_transition_time) =
                    unknown("NodeStatusUnknown", "Kubelet stopped posting node status.");
                changed = true;
            }
            None => {
                let (reason, message, at) =
                    unknown("NodeStatusNeverUpdated", "Kubelet never posted node status.");
                conditions.push(NodeCondition {
                    type_: kind.into(),
                    status: "Unknown".into(),
                    reason,
                    message,
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: at,
                });
                changed = true;
            }
        }
    }
    changed.then_some(next)
}

/// The node's taints as they have to be, unless they are so already. Taints of others stay.
fn plan_taints(node: &Node, evict: bool, now: Timestamp) -> Option<Vec<Taint>> {
    if is_deleting(node) {
        return None;
    }
    let spec = node.spec.as_ref();
    let old = spec.and_then(|s| s.taints.clone()).unwrap_or_default();
    let status = |kind: &str| {
        let conditions = node.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|c| c.type_ == kind).map(|c| c.status.as_str())
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    if spec.and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    for (kind, value, taint) in CONDITION_TAINTS {
        if status(kind) == Some(value) {
            wanted.push((taint, "NoSchedule"));
            if kind == "Ready" && (evict || has(&old, taint, "NoExecute")) {
                wanted.push((taint, "NoExecute"));
            }
        }
    }
    let mut new: Vec<Taint> = old.clone();
    new.retain(|t| !is_managed(t) || wanted.contains(&(t.key.as_str(), t.effect.as_str())));
    for (key, effect) in wanted {
        if !has(&new, key, effect) {
            new.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: Some(time(now)),
                value: None,
            });
        }
    }
    (new != old).then_some(new)
}

fn has(taints: &[Taint], key: &str, effect: &str) -> bool {
    taints.iter().any(|t| t.key == key && t.effect == effect)
}

fn is_managed(taint: &Taint) -> bool {
    let of_condition = CONDITION_TAINTS.iter().any(|(_, _, key)| *key == taint.key);
    match &*taint.effect {
        "NoSchedule" => of_condition || taint.key == UNSCHEDULABLE,
        "NoExecute" => taint.key == NOT_READY || taint.key == UNREACHABLE,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: serde_json::Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    fn check(node_json: serde_json::Value, evict: bool, expect: Option<&str>) {
        let taints = plan_taints(&node(node_json.clone()), evict, "2026-01-01T00:00:00Z".parse().unwrap());
        let shown = taints.map(|all| {
            let each = all.iter().map(|t| format!("{}:{}", t.key.rsplit('/').next().unwrap(), t.effect));
            each.collect::<Vec<_>>().join(" ")
        });
        assert_eq!(shown.as_deref(), expect, "{node_json}");
    }

    #[test]
    fn taints_follow_conditions() {
        let with = |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        check(with("True"), true, None);
        check(with("False"), true, Some("not-ready:NoSchedule not-ready:NoExecute"));
        check(with("Unknown"), true, Some("unreachable:NoSchedule unreachable:NoExecute"));
        check(with("Unknown"), false, Some("unreachable:NoSchedule"));
        check(json!({"spec": {"unschedulable": true}}), true, Some("unschedulable:NoSchedule"));
        let full = json!({"status": {"conditions": [
            {"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True"}]}});
        check(full, true, Some("disk-pressure:NoSchedule"));
        check(
            json!({"spec": {"taints": [{"key": "mine", "effect": "NoSchedule"},
                {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
            true,
            Some("mine:NoSchedule"),
        );
    }

    #[test]
    fn a_silent_node_is_marked_once() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let quiet = node(json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
        let marked = plan_silent(&quiet, now).unwrap();
        let reasons: Vec<_> = marked
            .status
            .as_ref()
            .unwrap()
            .conditions
            .as_ref()
            .unwrap()
            .iter()
            .map(|c| (c.status.as_str(), c.reason.as_deref().unwrap()))
            .collect();
        assert_eq!(reasons[0], ("Unknown", "NodeStatusUnknown"));
        assert_eq!(reasons[1], ("Unknown", "NodeStatusNeverUpdated"));
        assert!(plan_silent(&marked, now).is_none());
    }
}
