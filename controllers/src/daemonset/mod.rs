//! Keeps one pod of each DaemonSet on every node that fits it.
//!
//! Reads daemon sets, nodes, pods and controller revisions. Writes pods (bound to their node
//! by affinity; the scheduler does the rest), revisions and the set's status.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::future::join_all;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{
        Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
        Toleration,
    },
};
use parking_lot::Mutex;
use wasmk_api::LabelSelector;

use crate::{
    base::{
        Claim, Context, Error, EventKind, Informer, Key, Names, Next, Queue, Result, controller_of,
        controller_ref, is_available, is_deleting, is_ready, on_change, on_child, on_orphan,
        pod_from_template, uid,
    },
    history, scheduler,
};

mod plan;

use plan::{Fit, Plan, View, node_of};

const NAME: &str = "daemonset-controller";
const DEFAULT_HISTORY: i32 = 10;
/// Taints (key, effect) that every daemon puts up with: it is there to look after the node.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// How soon a finished daemon is replaced: not at once, so that one that always fails
/// does not keep the cluster busy.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

struct Keeper {
    cx: Context,
    sets: Arc<Informer<DaemonSet>>,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    /// Names that turned out to be taken, per set and node.
    next_slot: Mutex<HashMap<String, u64>>,
}

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let (sets, nodes, pods) = (cx.cache::<DaemonSet>(), cx.cache::<Node>(), cx.cache::<Pod>());
    on_change(&sets, &queue);
    on_child::<DaemonSet, Pod>(&pods, &queue);
    let known = sets.clone();
    on_orphan(&pods, &queue, move |pod| {
        let all = known.in_namespace(pod.metadata.namespace.as_deref().unwrap_or(""));
        let wants = |s: &&Arc<DaemonSet>| {
            selector(s).is_ok_and(|sel| !sel.is_empty() && sel.matches(pod.metadata.labels.as_ref()))
        };
        all.iter().filter(wants).map(|s| Key::of(&s.metadata)).collect()
    });
    let (known, sink) = (sets.clone(), queue.clone());
    nodes.subscribe(move |old, new| {
        let face = |n: &Arc<Node>| (n.metadata.labels.clone(), n.spec.clone());
        if old.map(face) != new.map(face) {
            known.keys().into_iter().for_each(|key| sink.add(key));
        }
    });
    sets.ready().await;
    nodes.ready().await;
    pods.ready().await;
    let keeper = Keeper { cx: cx.clone(), sets, nodes, pods, next_slot: Mutex::default() };
    cx.work(NAME, &queue, cx.settings.workers, |key| keeper.reconcile(key)).await;
}

fn selector(set: &DaemonSet) -> Result<LabelSelector> {
    let Some(spec) = &set.spec else { return Ok(LabelSelector::default()) };
    LabelSelector::from_api(&spec.selector).map_err(|e| Error::Invalid(e.to_string()))
}

impl Keeper {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        let Some(set) = self.sets.get(&key) else { return Ok(Next::Change) };
        let (selector, Some(spec)) = (selector(&set)?, &set.spec) else { return Ok(Next::Change) };
        if selector.is_empty() || is_deleting(&*set) {
            return Ok(Next::Change);
        }
        let collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
        let history = history::sync(&self.cx, &*set, &selector, &spec.template, collisions).await?;
        let pods = Claim::apply(&self.cx, &*set, &selector, &self.pods).await?;
        let hash = history::hash_of(&history.current).to_owned();
        let nodes = fits(&set, &hash, self.nodes.list());
        let now = self.cx.clock.now();
        let mut plan = plan::plan(&View { set: &set, nodes: &nodes, pods: &pods, hash: &hash, now });
        if history.collisions != collisions {
            plan.status.collision_count = Some(history.collisions);
        }
        let replaced_failed = plan.delete.iter().any(|p| crate::base::is_finished(p));
        self.apply(&set, &pods, &hash, &plan).await?;
        let in_use = |r: &k8s_openapi::api::apps::v1::ControllerRevision| {
            pods.iter().any(|p| {
                p.metadata
                    .labels
                    .as_ref()
                    .and_then(|l| l.get(history::HASH))
                    .is_some_and(|h| h == history::hash_of(r))
            })
        };
        history::trim(&self.cx, &history, in_use, spec.revision_history_limit.unwrap_or(DEFAULT_HISTORY))
            .await?;
        let wait = spec.min_ready_seconds.unwrap_or(0);
        if wait > 0 && pods.iter().any(|p| is_ready(p) && !is_available(p, wait, now)) {
            return Ok(Next::After(Duration::from_secs(1)));
        }
        Ok(if replaced_failed { Next::After(AFTER_FAILURE) } else { Next::Change })
    }

    async fn apply(&self, set: &Arc<DaemonSet>, pods: &[Arc<Pod>], hash: &str, plan: &Plan) -> Result<()> {
        for pod in &plan.delete {
            self.cx.delete(&**pod, Default::default()).await?;
            let message = format!("Deleted pod: {}", pod.metadata.name.as_deref().unwrap_or(""));
            self.cx.events.record(NAME, &**set, EventKind::Normal, "SuccessfulDelete", message);
        }
        let (mut made, mut batch) = (0, 1);
        while made < plan.create.len() {
            let size = batch.min(plan.create.len() - made);
            let some = plan.create[made..made + size].iter().map(|node| self.create(set, pods, hash, node));
            join_all(some).await.into_iter().collect::<Result<()>>()?;
            made += size;
            batch *= 2;
        }
        if set.status.as_ref() != Some(&plan.status) {
            let mut next = (**set).clone();
            next.status = Some(plan.status.clone());
            self.cx.replace_status(&next).await?;
        }
        Ok(())
    }

    async fn create(&self, set: &Arc<DaemonSet>, pods: &[Arc<Pod>], hash: &str, node: &str) -> Result<()> {
        let place = format!("{}/{node}", uid(&**set));
        let names = Names::new(set.metadata.name.as_deref().unwrap_or(""), &place);
        let here =
            pods.iter().filter(|p| node_of(p) == Some(node)).filter_map(|p| p.metadata.name.as_deref());
        let slot = names.next(here).max(self.next_slot.lock().get(&place).copied().unwrap_or(0));
        let Some(pod) = pod(set, hash, node, names.name(slot)) else { return Ok(()) };
        match self.cx.create(&pod).await {
            Ok(_) => {
                self.used(place, slot);
                let message = format!("Created pod: {}", pod.metadata.name.as_deref().unwrap_or(""));
                self.cx.events.record(NAME, &**set, EventKind::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) if error.is_already_exists() => {
                let there = self.cx.fetch::<Pod>(&Key::of(&pod.metadata)).await?;
                let ours = there.is_some_and(|p| {
                    controller_of(&*p).is_some_and(|o| o.uid == uid(&**set)) && node_of(&p) == Some(node)
                });
                if !ours {
                    self.used(place, slot);
                }
                Err(error)
            }
            Err(error) => {
                let message = format!("Error creating: {}", error.message());
                self.cx.events.record(NAME, &**set, EventKind::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }

    fn used(&self, place: String, slot: u64) {
        let mut slots = self.next_slot.lock();
        if slots.len() > (self.sets.len() + 1) * (self.nodes.len() + 1) + 1024 {
            slots.clear();
        }
        slots.insert(place, slot + 1);
    }
}

/// Which nodes are the set's.
fn fits(set: &DaemonSet, hash: &str, nodes: Vec<Arc<Node>>) -> Vec<(Arc<Node>, Fit)> {
    // What the template says decides; that a pod is bound to its node later excludes none.
    let spec = anywhere(set, hash, String::new()).and_then(|pod| pod.spec);
    let fit = |node: &Node| {
        let (run, stay) = spec.as_ref().map_or((false, false), |s| scheduler::suits_daemon(s, node));
        Fit { run, stay }
    };
    nodes.into_iter().map(|node| (node.clone(), fit(&node))).collect()
}

/// The set's pod for a node.
fn pod(set: &DaemonSet, hash: &str, node: &str, name: String) -> Option<Pod> {
    let mut pod = anywhere(set, hash, name)?;
    pin(pod.spec.get_or_insert_default(), node);
    Some(pod)
}

/// The set's pod before it is bound to a node.
fn anywhere(set: &DaemonSet, hash: &str, name: String) -> Option<Pod> {
    let spec = set.spec.as_ref()?;
    let namespace = set.metadata.namespace.as_deref().unwrap_or("");
    let mut pod = pod_from_template(&spec.template, namespace, name, controller_ref(set));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(history::HASH.into(), hash.into());
    labels.insert("pod-template-generation".into(), set.metadata.generation.unwrap_or(1).to_string());
    let spec = pod.spec.get_or_insert_default();
    let network = ("node.kubernetes.io/network-unavailable", "NoSchedule");
    let more = (spec.host_network == Some(true)).then_some(network);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(more) {
        let wanted = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Default::default()
        };
        if !tolerations.contains(&wanted) {
            tolerations.push(wanted);
        }
    }
    Some(pod)
}

/// Binds a pod to a node by affinity, on top of what the template says about nodes.
fn pin(spec: &mut PodSpec, node: &str) {
    let field = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.into()]),
    };
    let affinity = spec.affinity.get_or_insert_with(Affinity::default);
    let affinity = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector { node_selector_terms: vec![NodeSelectorTerm::default()] });
    for term in &mut required.node_selector_terms {
        term.match_fields = Some(vec![field.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_template_says_which_nodes_are_the_sets() {
        let node = |name: &str, taint: Option<&str>| -> Arc<Node> {
            let taints: Vec<Value> = taint.map(|t| json!({"key": "k", "effect": t})).into_iter().collect();
            let node =
                json!({"metadata": {"name": name, "labels": {"on": name}}, "spec": {"taints": taints}});
            Arc::new(serde_json::from_value(node).unwrap())
        };
        let nodes = vec![
            node("a", None),
            node("b", None),
            node("c", Some("NoSchedule")),
            node("d", Some("NoExecute")),
        ];
        let check = |spec: Value, run: &[&str], stay: &[&str]| {
            let set: DaemonSet = serde_json::from_value(
                json!({"metadata": {"name": "s"}, "spec": {"selector": {}, "template": {"spec": spec}}}),
            )
            .unwrap();
            let fits = fits(&set, "hash", nodes.clone());
            let names = |which: fn(&Fit) -> bool| -> Vec<&str> {
                let chosen = fits.iter().filter(|(_, fit)| which(fit));
                chosen.filter_map(|(node, _)| node.metadata.name.as_deref()).collect()
            };
            assert_eq!((&*names(|f| f.run), &*names(|f| f.stay)), (run, stay), "{spec}");
        };
        let term = |term: Value| {
            let required =
                json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}});
            json!({"containers": [], "affinity": {"nodeAffinity": required}})
        };
        check(json!({"containers": []}), &["a", "b"], &["a", "b", "c"]);
        check(json!({"containers": [], "nodeSelector": {"on": "b"}}), &["b"], &["b"]);
        check(json!({"containers": [], "nodeName": "a"}), &["a"], &["a"]);
        let by = |key: &str| json!([{"key": key, "operator": "In", "values": ["a", "c"]}]);
        check(term(json!({"matchExpressions": by("on")})), &["a"], &["a", "c"]);
        check(term(json!({"matchFields": by("metadata.name")})), &["a"], &["a", "c"]);
    }
}
