//! Deletes pods that do not tolerate their node's NoExecute taints, or not any longer.
//!
//! Reads nodes and pods. Deletes pods, after noting the reason in their conditions.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint, Toleration};
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
    let sink = queue.clone();
    // A node's taints concern all its pods.
    nodes.subscribe(move |old, new| {
        let taints = |n: Option<&Arc<Node>>| n.map(|n| no_execute(n).cloned().collect::<Vec<_>>());
        let Some(node) = new.filter(|_| taints(old).unwrap_or_default() != taints(new).unwrap_or_default())
        else {
            return;
        };
        for pod in known.on_node(node.metadata.name.as_deref().unwrap_or("")) {
            sink.add(Key::of(&pod.metadata));
        }
    });
    on_change(&pods, &queue);
    nodes.ready().await;
    pods.ready().await;
    cx.work(NAME, &queue, cx.settings.workers, |key| reconcile(&cx, &nodes, &pods, key)).await;
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.filter(|t| t.effect == "NoExecute")
}

async fn reconcile(cx: &Context, nodes: &Informer<Node>, pods: &Informer<Pod>, key: Key) -> Result<Next> {
    let Some(pod) = pods.get(&key).filter(|p| PodView(p).is_active()) else { return Ok(Next::Change) };
    let Some(node) = nodes.get(&Key::new("", PodView(&pod).node())) else { return Ok(Next::Change) };
    let taints: Vec<&Taint> = no_execute(&node).collect();
    let now = cx.clock.now();
    match plan(&taints, tolerations(&pod), now) {
        Stay::Forever => Ok(Next::Change),
        Stay::Until(at) => Ok(Next::After(at.since(now))),
        Stay::No => {
            evict(cx, &pod).await?;
            Ok(Next::Change)
        }
    }
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

fn plan(taints: &[&Taint], tolerations: &[Toleration], now: Timestamp) -> Stay {
    let mut end: Option<Timestamp> = None;
    for taint in taints {
        let matching: Vec<&Toleration> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if matching.is_empty() {
            return Stay::No;
        }
        let since = time_of(taint.time_added.as_ref()).unwrap_or(now);
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

    fn check(taints: &str, tolerations: &str, expect: &str) {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let added = time("2026-01-01T00:00:00Z".parse().unwrap());
        let taint = |text: &str| {
            let (key, value) = text.split_once('=').map_or((text, None), |(k, v)| (k, Some(v)));
            Taint {
                key: key.into(),
                value: value.map(Into::into),
                effect: "NoExecute".into(),
                time_added: Some(added.clone()),
            }
        };
        let taints: Vec<_> = taints.split_whitespace().map(taint).collect();
        let tolerations: Vec<_> = tolerations.split_whitespace().map(toleration).collect();
        let shown = match plan(&taints.iter().collect::<Vec<_>>(), &tolerations, now) {
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
}
