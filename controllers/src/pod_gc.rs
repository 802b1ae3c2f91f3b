//! Deletes pods that nobody will: those bound to nodes that are gone, those deleted before
//! they were scheduled, and the oldest finished ones beyond a number.
//!
//! Reads pods and nodes. Deletes pods at once (no grace: there is nobody to wait for), after
//! marking unfinished ones Failed.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use kube::api::DeleteParams;
use serde_json::json;
use wasmk_api::Timestamp;

use crate::base::{Context, Informer, Key, PodView, Result, condition, is_deleting, is_finished, time};

const NAME: &str = "pod-garbage-collector-controller";
const PERIOD: Duration = Duration::from_secs(20);
/// How long a node must be missing before its pods count as lost.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

pub(crate) async fn run(cx: Context) {
    let (nodes, pods) = (cx.cache::<Node>(), cx.cache::<Pod>());
    nodes.ready().await;
    pods.ready().await;
    let mut missing = HashMap::new();
    loop {
        for removal in
            plan(&pods.list(), &nodes, &mut missing, cx.settings.terminated_pod_threshold, cx.clock.now())
        {
            if let Err(error) = remove(&cx, removal).await {
                tracing::warn!(controller = NAME, error = &error as &dyn std::error::Error, "pass failed");
            }
        }
        tokio::select! {
            () = cx.shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Why a pod goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Finished, and there are too many of those.
    Surplus,
    /// Its node is gone.
    Orphaned,
    /// Deleted before it was given a node.
    NeverScheduled,
    /// Deleted, and its node is declared out of service.
    OutOfService,
}

struct Removal {
    pod: Arc<Pod>,
    why: Why,
}

/// Decides which pods go. `missing` remembers since when a node has not been seen.
fn plan(
    pods: &[Arc<Pod>],
    nodes: &Informer<Node>,
    missing: &mut HashMap<String, Timestamp>,
    threshold: usize,
    now: Timestamp,
) -> Vec<Removal> {
    let mut all = Vec::new();
    let mut finished: Vec<&Arc<Pod>> = Vec::new();
    missing.retain(|node, _| nodes.get(&Key::new("", node.as_str())).is_none());
    for pod in pods {
        let name = PodView(pod).node();
        let node = nodes.get(&Key::new("", name));
        let why = match &node {
            _ if name.is_empty() => is_deleting(&**pod).then_some(Why::NeverScheduled),
            None => {
                let since = *missing.entry(name.to_owned()).or_insert(now);
                (now.since(since) >= QUARANTINE).then_some(Why::Orphaned)
            }
            Some(node) => (is_deleting(&**pod) && is_out_of_service(node)).then_some(Why::OutOfService),
        };
        match why {
            Some(why) => all.push(Removal { pod: pod.clone(), why }),
            None if is_finished(pod) && !is_deleting(&**pod) => finished.push(pod),
            None => {}
        }
    }
    if threshold > 0 && finished.len() > threshold {
        finished
            .sort_by_key(|p| (p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.metadata.name.clone()));
        let surplus = finished.len() - threshold;
        all.extend(
            finished.into_iter().take(surplus).map(|pod| Removal { pod: pod.clone(), why: Why::Surplus }),
        );
    }
    all
}

pub(crate) fn is_out_of_service(node: &Node) -> bool {
    let unready = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let unready = unready.into_iter().any(|c| c.type_ == "Ready" && c.status != "True");
    unready && node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == OUT_OF_SERVICE)
}

async fn remove(cx: &Context, removal: Removal) -> Result<()> {
    let Removal { pod, why } = removal;
    // The cache may lag: a node that has just come keeps its pods.
    if why == Why::Orphaned && cx.fetch::<Node>(&Key::new("", PodView(&pod).node())).await?.is_some() {
        return Ok(());
    }
    if why != Why::Surplus && !is_finished(&pod) {
        match cx.patch_sub(&*pod, "status", failed(&pod, why, cx.clock.now())).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => drop(other?),
        }
    }
    cx.delete(&*pod, DeleteParams::default().grace_period(0)).await
}

/// The status of a pod that will never run on.
fn failed(pod: &Pod, why: Why, now: Timestamp) -> serde_json::Value {
    let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    if why == Why::Orphaned && condition(pod, "DisruptionTarget").is_none() {
        conditions.push(PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            reason: Some("DeletionByPodGC".into()),
            message: Some("PodGC: node no longer exists".into()),
            last_transition_time: Some(time(now)),
            ..Default::default()
        });
    }
    json!({"status": {"phase": "Failed", "conditions": conditions}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replicas::tests::{NOW, pod};

    fn check(pods: &[&str], nodes: &[&str], threshold: usize, after: u64, expect: &str) {
        let known = Informer::<Node>::default();
        for name in nodes {
            let mut node = Node::default();
            node.metadata.name = Some((*name).into());
            node.metadata.uid = Some((*name).into());
            known.assume(node);
        }
        let pods: Vec<_> = pods.iter().map(|p| pod(p)).collect();
        let now: Timestamp = NOW.parse().unwrap();
        let mut missing = HashMap::new();
        plan(&pods, &known, &mut missing, threshold, now);
        let removals = plan(&pods, &known, &mut missing, threshold, now.after(Duration::from_secs(after)));
        let shown: Vec<_> = removals
            .iter()
            .map(|r| format!("{} {:?}", r.pod.metadata.name.as_deref().unwrap(), r.why))
            .collect();
        assert_eq!(shown.join(", "), expect);
    }

    #[test]
    fn collects_what_nobody_else_will() {
        check(&["a ready on n", "b ready on gone"], &["n"], 0, 41, "b Orphaned");
        check(&["b ready on gone"], &["n"], 0, 20, "");
        check(&["a going nowhere", "b nowhere"], &[], 0, 0, "a NeverScheduled");
        check(
            &["a done 3m on n", "b failed 9m on n", "c done 1m on n"],
            &["n"],
            1,
            0,
            "b Surplus, a Surplus",
        );
        check(&["a done 3m on n", "b failed 9m on n"], &["n"], 0, 0, "");
    }
}
