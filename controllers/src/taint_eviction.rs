//! Deletes pods that do not tolerate their node's NoExecute taints, or not any longer.
//!
//! Reads nodes and pods. Deletes pods, after noting the reason in their conditions. How long a pod may stay
//! counts from when the taint came or the pod was bound, whichever was later; a taint that does not say when
//! it came counts from when it was first seen here.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint, Toleration};
use parking_lot::Mutex;
use serde_json::json;
use wasmk_api::Timestamp;

use crate::base::{
    Context, EventKind, Informer, Key, Next, PodView, Queue, Result, condition, is_deleting, on_change, time,
    time_of,
};

const NAME: &str = "taint-eviction-controller";

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let (nodes, pods) = (cx.cache::<Node>(), cx.cache::<Pod>());
    let known = pods.clone();
    let seen = Arc::new(Seen::default());
    let (sink, noted, clock) = (queue.clone(), seen.clone(), cx.clock);
    // A node's taints concern all its pods.
    nodes.subscribe(move |old, new| {
        let taints = |n: Option<&Arc<Node>>| n.map(|n| no_execute(n).cloned().collect::<Vec<_>>());
        if taints(old).unwrap_or_default() == taints(new).unwrap_or_default() {
            return;
        }
        let Some(node) = new else { return noted.forget(old) };
        noted.note(node, clock.now());
        for pod in known.on_node(node.metadata.name.as_deref().unwrap_or("")) {
            sink.add(Key::of(&pod.metadata));
        }
    });
    on_change(&pods, &queue);
    nodes.ready().await;
    pods.ready().await;
    cx.work(NAME, &queue, cx.settings.workers, |key| reconcile(&cx, &seen, &nodes, &pods, key)).await;
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.filter(|t| t.effect == "NoExecute")
}

/// Since when each node has the taints that do not say it themselves.
#[derive(Default)]
struct Seen(Mutex<HashMap<String, Vec<Sighting>>>);

/// A taint and when it was first seen.
struct Sighting {
    key: String,
    value: Option<String>,
    at: Timestamp,
}

impl Sighting {
    fn is_of(&self, taint: &Taint) -> bool {
        self.key == taint.key && self.value == taint.value
    }
}

impl Seen {
    /// Takes in a node's taints as they are at `now`.
    fn note(&self, node: &Node, now: Timestamp) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let mut nodes = self.0.lock();
        let mut before = nodes.remove(name).unwrap_or_default();
        let undated = no_execute(node).filter(|t| t.time_added.is_none());
        let after: Vec<Sighting> = undated
            .map(|taint| match before.iter().position(|s| s.is_of(taint)) {
                Some(at) => before.swap_remove(at),
                None => Sighting { key: taint.key.clone(), value: taint.value.clone(), at: now },
            })
            .collect();
        if !after.is_empty() {
            nodes.insert(name.to_owned(), after);
        }
    }

    fn forget(&self, node: Option<&Arc<Node>>) {
        if let Some(name) = node.and_then(|n| n.metadata.name.as_deref()) {
            self.0.lock().remove(name);
        }
    }

    /// Since when a node has a taint; `now` for one that has not been noted.
    fn since(&self, node: &str, taint: &Taint, now: Timestamp) -> Timestamp {
        time_of(taint.time_added.as_ref()).unwrap_or_else(|| {
            let nodes = self.0.lock();
            let sighting = nodes.get(node).and_then(|all| all.iter().find(|s| s.is_of(taint)));
            sighting.map_or(now, |s| s.at)
        })
    }
}

async fn reconcile(
    cx: &Context,
    seen: &Seen,
    nodes: &Informer<Node>,
    pods: &Informer<Pod>,
    key: Key,
) -> Result<Next> {
    let Some(pod) = pods.get(&key).filter(|p| PodView(p).is_active()) else { return Ok(Next::Change) };
    let Some(node) = nodes.get(&Key::new("", PodView(&pod).node())) else { return Ok(Next::Change) };
    let now = cx.clock.now();
    let bound = bound_at(&pod);
    let since = |taint| {
        let since = seen.since(PodView(&pod).node(), taint, now);
        bound.map_or(since, |bound| since.max(bound))
    };
    let taints: Vec<_> = no_execute(&node).map(|taint| (taint, since(taint))).collect();
    match plan(&taints, tolerations(&pod), now) {
        Stay::Forever => Ok(Next::Change),
        Stay::Until(at) => Ok(Next::After(at.since(now))),
        Stay::No => {
            evict(cx, &pod).await?;
            Ok(Next::Change)
        }
    }
}

/// When a pod got its node, as far as it says.
fn bound_at(pod: &Pod) -> Option<Timestamp> {
    let scheduled = condition(pod, "PodScheduled").filter(|c| c.status == "True");
    time_of(scheduled.and_then(|c| c.last_transition_time.as_ref()))
}

fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or(&[])
}

/// How long a pod may stay.
#[derive(Debug, PartialEq, Eq)]
enum Stay {
    Forever,
    Until(Timestamp),
    No,
}

/// `taints` with the time from which each counts for the pod.
fn plan(taints: &[(&Taint, Timestamp)], tolerations: &[Toleration], now: Timestamp) -> Stay {
    let mut end: Option<Timestamp> = None;
    for (taint, since) in taints {
        let matching: Vec<&Toleration> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if matching.is_empty() {
            return Stay::No;
        }
        let limits = matching.iter().filter_map(|t| t.toleration_seconds);
        if let Some(seconds) = limits.min() {
            let until = since.after(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
            end = Some(end.map_or(until, |e| e.min(until)));
        }
    }
    match end {
        None => Stay::Forever,
        Some(end) if end <= now => Stay::No,
        Some(end) => Stay::Until(end),
    }
}

/// Whether a toleration puts up with a taint, for however long.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    let (mine, theirs) = (text(&toleration.value), text(&taint.value));
    let number = |t: &str| t.parse::<i64>().ok();
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => !key.is_empty() && mine == theirs,
        Some("Lt") => number(&theirs).zip(number(&mine)).is_some_and(|(t, m)| t < m),
        Some("Gt") => number(&theirs).zip(number(&mine)).is_some_and(|(t, m)| t > m),
        Some(_) => false,
    }
}

async fn evict(cx: &Context, pod: &Arc<Pod>) -> Result<()> {
    if is_deleting(&**pod) {
        return Ok(());
    }
    let message = format!("Marking for deletion Pod {}", Key::of(&pod.metadata));
    cx.events.record(NAME, &**pod, EventKind::Normal, "TaintManagerEviction", message);
    if condition(pod, "DisruptionTarget").is_none() {
        let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        conditions.push(PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            reason: Some("DeletionByTaintManager".into()),
            message: Some("Taint manager: deleting due to NoExecute taint".into()),
            last_transition_time: Some(time(cx.clock.now())),
            ..Default::default()
        });
        let patch = json!({
            "metadata": {"resourceVersion": pod.metadata.resource_version},
            "status": {"conditions": conditions},
        });
        match cx.patch_sub(&**pod, "status", patch).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => drop(other?),
        }
    }
    cx.delete(&**pod, Default::default()).await
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NodeSpec;

    use super::*;

    fn toleration(text: &str) -> Toleration {
        let (what, seconds) = text.split_once('@').map_or((text, None), |(w, s)| (w, s.parse().ok()));
        let (key, value) = what.split_once('=').map_or((what, None), |(k, v)| (k, Some(v)));
        Toleration {
            key: (key != "*").then(|| key.to_owned()),
            operator: Some(if value.is_some() { "Equal" } else { "Exists" }.into()),
            value: value.map(Into::into),
            effect: None,
            toleration_seconds: seconds,
        }
    }

    fn taint(text: &str) -> Taint {
        let (key, value) = text.split_once('=').map_or((text, None), |(k, v)| (k, Some(v)));
        Taint { key: key.into(), value: value.map(Into::into), effect: "NoExecute".into(), time_added: None }
    }

    fn check(taints: &str, tolerations: &str, expect: &str) {
        let (now, added) = (at(60), at(0));
        let taints: Vec<_> = taints.split_whitespace().map(taint).collect();
        let tolerations: Vec<_> = tolerations.split_whitespace().map(toleration).collect();
        let dated: Vec<_> = taints.iter().map(|t| (t, added)).collect();
        let shown = match plan(&dated, &tolerations, now) {
            Stay::Forever => "stays".to_owned(),
            Stay::No => "goes".to_owned(),
            Stay::Until(at) => format!("{}s", at.since(now).as_secs()),
        };
        assert_eq!(shown, expect, "{taints:?} {tolerations:?}");
    }

    #[test]
    fn stays_as_long_as_every_taint_is_tolerated() {
        check("", "", "stays");
        check("a", "", "goes");
        check("a", "a", "stays");
        check("a b", "a", "goes");
        check("a", "*", "stays");
        check("a=1", "a=1", "stays");
        check("a=1", "a=2", "goes");
        check("a", "a@300", "240s");
        check("a", "a@30", "goes");
        check("a b", "a@300 b@200", "140s");
        check("a", "a@300 a@100", "40s");
        check("a", "a@-5", "goes");
    }

    fn at(second: u64) -> Timestamp {
        "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap().after(Duration::from_secs(second))
    }

    /// Which second each of the node's taints counts from, after it had `taints` at second `now`.
    fn note(seen: &Seen, now: u64, taints: &str) -> Vec<u64> {
        let mut node = Node::default();
        node.metadata.name = Some("n".into());
        let taints: Vec<_> = taints.split_whitespace().map(taint).collect();
        node.spec = Some(NodeSpec { taints: Some(taints.clone()), ..Default::default() });
        seen.note(&node, at(now));
        taints.iter().map(|t| seen.since("n", t, at(1000)).since(at(0)).as_secs()).collect()
    }

    #[test]
    fn a_taint_without_a_time_counts_from_when_it_was_first_seen() {
        let seen = Seen::default();
        assert_eq!(note(&seen, 10, "a b=1"), [10, 10]);
        assert_eq!(note(&seen, 20, "a b=2 c"), [10, 20, 20], "another value is another taint");
        assert_eq!(note(&seen, 30, ""), [0; 0]);
        assert_eq!(note(&seen, 40, "a"), [40], "it had gone in between");
        let dated = Taint { time_added: Some(time(at(5))), ..taint("a") };
        assert_eq!(seen.since("n", &dated, at(1000)), at(5), "its own word counts");
    }
}
