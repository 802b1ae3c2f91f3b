//! One pass over a DaemonSet: which nodes get a pod, which pods go.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, DaemonSetStatus},
        core::v1::{Node, Pod},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use wasmk_api::Timestamp;

use crate::base::{PodView, is_available, is_deleting, is_finished, is_ready};

/// Pods created or deleted in a pass.
const BURST: usize = 250;

/// What a node is to the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    /// A new pod may start there.
    pub(super) run: bool,
    /// A pod that is there may stay.
    pub(super) stay: bool,
}

/// What a pass does.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes that get a pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: DaemonSetStatus,
}

/// What a pass looks at.
pub(super) struct View<'a> {
    pub(super) set: &'a DaemonSet,
    pub(super) nodes: &'a [(Arc<Node>, Fit)],
    pub(super) pods: &'a [Arc<Pod>],
    /// The hash of the current template.
    pub(super) hash: &'a str,
    pub(super) now: Timestamp,
}

/// The node a pod is on or meant for.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    let placed = PodView(pod).node();
    if !placed.is_empty() {
        return Some(placed);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let mut fields = required.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let field = fields.find(|f| f.key == "metadata.name")?;
    field.values.as_ref()?.first().map(String::as_str)
}

/// Decides on one pass.
pub(super) fn plan(view: &View) -> Plan {
    let mut by_node: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in view.pods {
        if let Some(node) = node_of(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    for pods in by_node.values_mut() {
        // The one that is furthest along stays.
        pods.sort_by_key(|p| {
            (
                PodView(p).node().is_empty(),
                !is_ready(p),
                p.metadata.creation_timestamp.as_ref().map(|t| t.0),
                p.metadata.name.clone(),
            )
        });
    }
    let mut plan = Plan::default();
    if !is_deleting(view.set) {
        for (node, fit) in view.nodes {
            let name = node.metadata.name.as_deref().unwrap_or("");
            let pods = by_node.get(name).map_or(&[][..], Vec::as_slice);
            on_node(view, name, *fit, pods, &mut plan);
        }
        if plan.create.is_empty() && plan.delete.is_empty() {
            update(view, &by_node, &mut plan);
        }
        plan.create.truncate(BURST);
        plan.delete.truncate(BURST);
    }
    plan.status = status(view, &by_node);
    plan
}

/// Exactly one pod where one belongs, none elsewhere. Finished ones make way for new ones.
fn on_node(view: &View, node: &str, fit: Fit, pods: &[&Arc<Pod>], plan: &mut Plan) {
    let live: Vec<&Arc<Pod>> =
        pods.iter().copied().filter(|p| !is_deleting(&***p) && !is_finished(p)).collect();
    let ended = pods.iter().filter(|p| !is_deleting(&****p) && is_finished(p));
    if !fit.stay {
        plan.delete.extend(pods.iter().filter(|p| !is_deleting(&****p)).map(|p| (*p).clone()));
        return;
    }
    plan.delete.extend(ended.map(|p| (*p).clone()));
    if live.is_empty() {
        if fit.run && !pods.iter().any(|p| is_deleting(&***p)) {
            plan.create.push(node.to_owned());
        }
        return;
    }
    // During a surge an old and a new pod share the node.
    let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) = live.into_iter().partition(|p| is_new(view, p));
    let allowed_old = usize::from(surge(view) > 0 || new.is_empty());
    plan.delete.extend(new.into_iter().skip(1).cloned());
    plan.delete.extend(old.into_iter().skip(allowed_old).cloned());
}

fn is_new(view: &View, pod: &Pod) -> bool {
    pod.metadata.labels.as_ref().and_then(|l| l.get(crate::history::HASH)).is_some_and(|h| h == view.hash)
}

fn available(view: &View, pod: &Pod) -> bool {
    let wait = view.set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    is_available(pod, wait, view.now)
}

fn bound(view: &View, surge: bool, default: i32) -> i32 {
    let spec = view.set.spec.as_ref();
    let rolling = spec.and_then(|s| s.update_strategy.as_ref()?.rolling_update.as_ref());
    let value = rolling.and_then(|r| if surge { r.max_surge.as_ref() } else { r.max_unavailable.as_ref() });
    let total = view.nodes.iter().filter(|(_, fit)| fit.run).count();
    let total = i32::try_from(total).unwrap_or(i32::MAX);
    crate::deployment::scaled(value.unwrap_or(&IntOrString::Int(default)), total, true)
}

fn surge(view: &View) -> i32 {
    bound(view, true, 0)
}

/// Replaces pods of old templates, as many at once as the strategy allows.
fn update(view: &View, by_node: &BTreeMap<&str, Vec<&Arc<Pod>>>, plan: &mut Plan) {
    let strategy = view.set.spec.as_ref().and_then(|s| s.update_strategy.as_ref()?.type_.as_deref());
    if strategy == Some("OnDelete") {
        return;
    }
    let surge = surge(view);
    let mut budget = if surge > 0 { surge } else { bound(view, false, 1).max(1) };
    let mut candidates = Vec::new();
    for (node, _) in view.nodes.iter().filter(|(_, fit)| fit.run) {
        let name = node.metadata.name.as_deref().unwrap_or("");
        let pods = by_node.get(name).map_or(&[][..], Vec::as_slice);
        let live = || pods.iter().filter(|p| !is_deleting(&****p));
        let new = live().find(|p| is_new(view, p));
        let old = live().find(|p| !is_new(view, p));
        match (new, old) {
            (Some(new), Some(old)) if available(view, new) => plan.delete.push((*old).clone()),
            (Some(_), Some(_)) => budget -= 1,
            (Some(new), None) if surge == 0 && !available(view, new) => budget -= 1,
            (Some(_), None) => {}
            // A pod that does not serve anyway costs nothing to replace.
            (None, Some(old)) if !available(view, old) => {
                if surge > 0 {
                    plan.create.push(name.to_owned());
                } else {
                    budget -= 1;
                    plan.delete.push((*old).clone());
                }
            }
            (None, Some(old)) => candidates.push((name, *old)),
            (None, None) => budget -= i32::from(surge == 0),
        }
    }
    for (node, old) in candidates.into_iter().take(usize::try_from(budget).unwrap_or(0)) {
        if surge > 0 {
            plan.create.push(node.to_owned());
        } else {
            plan.delete.push((*old).clone());
        }
    }
}

fn status(view: &View, by_node: &BTreeMap<&str, Vec<&Arc<Pod>>>) -> DaemonSetStatus {
    let mut status = DaemonSetStatus {
        observed_generation: view.set.metadata.generation,
        collision_count: view.set.status.as_ref().and_then(|s| s.collision_count),
        conditions: view.set.status.as_ref().and_then(|s| s.conditions.clone()),
        ..Default::default()
    };
    let (mut updated, mut serving) = (0, 0);
    for (node, fit) in view.nodes {
        let pods = by_node.get(node.metadata.name.as_deref().unwrap_or("")).map_or(&[][..], Vec::as_slice);
        if !fit.run {
            status.number_misscheduled += i32::from(!pods.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        status.current_number_scheduled += i32::from(!pods.is_empty());
        // The newest pod speaks for the node.
        let Some(pod) = pods.iter().max_by_key(|p| (is_new(view, p), is_ready(p))) else { continue };
        status.number_ready += i32::from(pods.iter().any(|p| is_ready(p)));
        serving += i32::from(pods.iter().any(|p| available(view, p)));
        updated += i32::from(is_new(view, pod));
    }
    let some = |n: i32| (n != 0).then_some(n);
    status.number_available = some(serving);
    status.number_unavailable = some(status.desired_number_scheduled - serving);
    status.updated_number_scheduled = some(updated);
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replicas::tests::{NOW, pod};
    use serde_json::{Value, json};

    /// Nodes as `name[:no|:stay]`, pods as in `replicas`, with `new` for the current template.
    fn check(strategy: Value, nodes: &str, pods: &[&str], expect: &str) {
        check_after(0, strategy, nodes, pods, expect);
    }

    /// The same with `minReadySeconds`.
    fn check_after(min_ready: i32, strategy: Value, nodes: &str, pods: &[&str], expect: &str) {
        let set: DaemonSet = serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": {
            "selector": {}, "template": {}, "minReadySeconds": min_ready, "updateStrategy": strategy}}))
        .unwrap();
        let nodes: Vec<_> = nodes
            .split_whitespace()
            .map(|text| {
                let (name, fit) = text.split_once(':').unwrap_or((text, ""));
                let mut node = Node::default();
                node.metadata.name = Some(name.into());
                (Arc::new(node), Fit { run: fit.is_empty(), stay: fit != "no" })
            })
            .collect();
        let pods: Vec<_> = pods
            .iter()
            .map(|text| {
                let (text, new) = text.strip_suffix(" new").map_or((*text, false), |t| (t, true));
                let mut pod = (*pod(text)).clone();
                let hash = if new { "h2" } else { "h1" };
                pod.metadata.labels = Some([(crate::history::HASH.to_owned(), hash.to_owned())].into());
                Arc::new(pod)
            })
            .collect();
        let view = View { set: &set, nodes: &nodes, pods: &pods, hash: "h2", now: NOW.parse().unwrap() };
        let plan = plan(&view);
        let mut shown: Vec<String> = plan.create.iter().map(|n| format!("create on {n}")).collect();
        shown.extend(plan.delete.iter().map(|p| format!("delete {}", p.metadata.name.as_deref().unwrap())));
        let s = &plan.status;
        shown.push(format!(
            "{}/{}/{}",
            s.current_number_scheduled, s.desired_number_scheduled, s.number_misscheduled
        ));
        assert_eq!(shown.join(", "), expect);
    }

    #[test]
    fn one_pod_per_fitting_node() {
        let s = || json!({"type": "RollingUpdate"});
        check(s(), "a b:no c:stay", &[], "create on a, 0/1/0");
        check(
            s(),
            "a b:no c:stay",
            &["p ready 1m on b new", "q ready 1m on c new"],
            "create on a, delete p, 0/1/2",
        );
        check(s(), "a", &["p ready 2m on a new", "q ready 1m on a new"], "delete q, 1/1/0");
        check(s(), "a", &["p failed 2m on a new"], "create on a, delete p, 1/1/0");
        check(s(), "a", &["p going on a new"], "1/1/0");
    }

    #[test]
    fn updates_within_bounds() {
        let max = |n: i32| json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": n}});
        let old = ["p ready 2m on a", "q ready 2m on b", "r ready 2m on c"];
        check(max(1), "a b c", &old, "delete p, 3/3/0");
        check(max(2), "a b c", &old, "delete p, delete q, 3/3/0");
        check(max(1), "a b c", &["p ready 2m on a new", old[1], old[2]], "delete q, 3/3/0");
        check(max(1), "a b c", &["p pending 2m on a new", old[1], old[2]], "3/3/0");
        check(max(1), "a b c", &["p unready 2m on a", old[1], old[2]], "delete p, 3/3/0");
        // One that is ready has to stay so for a while before it counts.
        let fresh = ["p ready 10s on a new", old[1], old[2]];
        check_after(5, max(1), "a b c", &fresh, "delete q, 3/3/0");
        check_after(30, max(1), "a b c", &fresh, "3/3/0");
        check(json!({"type": "OnDelete"}), "a b c", &old, "3/3/0");
        let surge = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
        check(surge.clone(), "a b", &old[..2], "create on a, 2/2/0");
        check(surge.clone(), "a b", &[old[0], "n pending 1s on a new", old[1]], "2/2/0");
        check(surge, "a b", &[old[0], "n ready 1m on a new", old[1]], "create on b, delete p, 2/2/0");
    }

    use proptest::prelude::*;

    /// A set that is played: what nodes allow, and each node's pods as (new, serving).
    #[derive(Clone, Debug)]
    struct World {
        set: DaemonSet,
        fits: Vec<Fit>,
        pods: BTreeMap<(usize, usize), (bool, bool)>,
        made: usize,
    }

    impl World {
        fn plan(&self) -> Plan {
            let node = |i: usize| {
                let mut node = Node::default();
                node.metadata.name = Some(format!("n{i}"));
                Arc::new(node)
            };
            let nodes: Vec<_> = self.fits.iter().enumerate().map(|(i, fit)| (node(i), *fit)).collect();
            let pods: Vec<_> = self
                .pods
                .iter()
                .map(|((n, id), (new, serving))| {
                    let state = if *serving { "ready" } else { "unready" };
                    let mut pod = (*pod(&format!("{n}-{id} {state} 1m on n{n}"))).clone();
                    let hash = if *new { "h2" } else { "h1" };
                    pod.metadata.labels = Some([(crate::history::HASH.to_owned(), hash.to_owned())].into());
                    Arc::new(pod)
                })
                .collect();
            plan(&View { set: &self.set, nodes: &nodes, pods: &pods, hash: "h2", now: NOW.parse().unwrap() })
        }

        fn apply(&mut self, plan: &Plan) {
            for pod in &plan.delete {
                let (n, id) = pod.metadata.name.as_ref().unwrap().split_once('-').unwrap();
                self.pods.remove(&(n.parse().unwrap(), id.parse().unwrap()));
            }
            for node in &plan.create {
                self.made += 1;
                self.pods.insert((node[1..].parse().unwrap(), self.made), (true, false));
            }
        }

        /// Nodes of the set that are served now.
        fn served(&self) -> usize {
            let fits = |n: &usize| self.fits[*n].run;
            let nodes: std::collections::BTreeSet<usize> =
                self.pods.iter().filter(|(_, p)| p.1).map(|((n, _), _)| *n).filter(fits).collect();
            nodes.len()
        }
    }

    proptest! {
        /// From any state: no more nodes go without a serving pod than the strategy allows, and it ends
        /// with one new pod on every node that fits and none elsewhere.
        #[test]
        fn updates_converge_within_their_bounds(
            fits in prop::collection::vec(0..4u8, 1..8), most in 1..4i32, surge in 0..3i32,
            pods in prop::collection::btree_map((0..8usize, 0..3usize), (any::<bool>(), any::<bool>()), 0..14),
        ) {
            let rolling = if surge > 0 {
                json!({"maxSurge": surge, "maxUnavailable": 0})
            } else {
                json!({"maxUnavailable": most})
            };
            let strategy = json!({"type": "RollingUpdate", "rollingUpdate": rolling});
            let spec = json!({"selector": {}, "template": {}, "updateStrategy": strategy});
            let set = serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": spec})).unwrap();
            let fits: Vec<Fit> = fits.iter().map(|f| Fit { run: *f > 1, stay: *f > 0 }).collect();
            let count = fits.len();
            let mut world = World { set, fits, pods, made: 100 };
            world.pods.retain(|(n, _), _| *n < count);
            let wanted = world.fits.iter().filter(|f| f.run).count();
            let mut steps = 0;
            loop {
                let plan = world.plan();
                prop_assert_eq!(&world.plan().create, &plan.create, "a second look sees the same");
                let (before, old) = (world.served(), world.clone());
                world.apply(&plan);
                let allowed = if surge > 0 { 0 } else { usize::try_from(most).unwrap() };
                // Surplus pods of a node may go before the update proper begins.
                let tidy = (0..count).all(|n| old.pods.range((n, 0)..(n, usize::MAX)).count() <= 1 + usize::from(surge > 0));
                prop_assert!(!tidy || world.served() >= before.min(wanted.saturating_sub(allowed)), "{:?}", old);
                if plan.create.is_empty() && plan.delete.is_empty() && world.pods.values().all(|p| p.1) {
                    break;
                }
                world.pods.values_mut().for_each(|p| p.1 = true);
                steps += 1;
                prop_assert!(steps < 80, "no end: {:?}", world);
            }
            for (n, fit) in world.fits.iter().enumerate() {
                let here: Vec<bool> = world.pods.range((n, 0)..(n, usize::MAX)).map(|(_, p)| p.0).collect();
                match (fit.run, fit.stay) {
                    (true, true) => prop_assert_eq!(here, vec![true]),
                    (_, false) => prop_assert!(here.is_empty()),
                    // What runs there may stay, and nothing new comes.
                    (false, true) => prop_assert!(here.len() <= 2),
                }
            }
        }
    }
}
