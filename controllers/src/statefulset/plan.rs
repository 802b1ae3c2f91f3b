//! One pass over a StatefulSet: which numbers get a pod, which pods go, in order.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus},
    core::v1::Pod,
};
use wasmk_api::Timestamp;

use crate::base::{PodView, is_available, is_deleting, is_finished, is_ready};

/// What a pass looks at.
pub(super) struct View<'a> {
    pub(super) set: &'a StatefulSet,
    pub(super) pods: &'a [Arc<Pod>],
    /// Revision names: of pods that are not to be updated yet, and of the current template.
    pub(super) current: &'a str,
    pub(super) update: &'a str,
    pub(super) now: Timestamp,
}

/// What a pass does.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Numbers that get a pod, and of which revision.
    pub(super) create: Vec<(i32, String)>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: StatefulSetStatus,
}

/// A pod's number, if its name is one of the set's.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    let number = name.strip_prefix(set.metadata.name.as_deref()?)?.strip_prefix('-')?;
    let plain = number.bytes().all(|b| b.is_ascii_digit()) && (number == "0" || !number.starts_with('0'));
    plain.then(|| number.parse().ok())?
}

pub(super) fn revision_of(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|l| l.get(crate::history::HASH)).map_or("", String::as_str)
}

/// Decides on one pass.
pub(super) fn plan(view: &View) -> Plan {
    let empty = StatefulSetSpec::default();
    let spec = view.set.spec.as_ref().unwrap_or(&empty);
    let start = spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0);
    let wanted = start..start.saturating_add(spec.replicas.unwrap_or(1).max(0));
    let mut by_number: BTreeMap<i32, &Arc<Pod>> = BTreeMap::new();
    for pod in view.pods {
        if let Some(number) = ordinal(view.set, pod) {
            by_number.insert(number, pod);
        }
    }
    let mut plan = Plan::default();
    if !is_deleting(view.set) {
        let steps = Steps { view, spec, start, by_number: &by_number };
        if steps.fill(wanted.clone(), &mut plan) && steps.shrink(&wanted, &mut plan) {
            steps.update(wanted.clone(), &mut plan);
        }
    }
    plan.status = status(view, spec, wanted.len(), &by_number);
    plan
}

struct Steps<'a> {
    view: &'a View<'a>,
    spec: &'a StatefulSetSpec,
    start: i32,
    by_number: &'a BTreeMap<i32, &'a Arc<Pod>>,
}

impl Steps<'_> {
    fn parallel(&self) -> bool {
        self.spec.pod_management_policy.as_deref() == Some("Parallel")
    }

    fn available(&self, pod: &Pod) -> bool {
        is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.view.now)
    }

    /// Running, ready for long enough and not on its way out.
    fn serves(&self, pod: &Pod) -> bool {
        !is_deleting(pod) && PodView(pod).phase() == "Running" && self.available(pod)
    }

    fn partition(&self) -> i32 {
        let strategy = self.spec.update_strategy.as_ref();
        strategy.and_then(|s| s.rolling_update.as_ref()?.partition).unwrap_or(0)
    }

    fn on_delete(&self) -> bool {
        self.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("OnDelete")
    }

    /// A new pod below the partition, or while an update is on its way down to it, is still
    /// of the old revision.
    fn revision_for(&self, number: i32) -> String {
        let old = !self.on_delete()
            && self.view.current != self.view.update
            && number < self.start + self.partition();
        if old { self.view.current } else { self.view.update }.to_owned()
    }

    /// Makes missing pods from the lowest number up; true when none stands in the way of what
    /// comes after.
    fn fill(&self, wanted: std::ops::Range<i32>, plan: &mut Plan) -> bool {
        let mut clear = true;
        for number in wanted {
            match self.by_number.get(&number) {
                None => {
                    plan.create.push((number, self.revision_for(number)));
                    clear = false;
                }
                // A finished pod is made anew.
                Some(pod) if is_finished(pod) && !is_deleting(&***pod) => {
                    plan.delete.push((*pod).clone());
                    clear = false;
                }
                Some(pod) if !self.available(pod) || is_deleting(&***pod) => {
                    clear &= self.parallel();
                    if !self.parallel() {
                        return false;
                    }
                }
                Some(_) => {}
            }
            if !clear && !self.parallel() {
                return false;
            }
        }
        clear || self.parallel()
    }

    /// Removes surplus pods from the highest number down, one after the other. In order, an
    /// unhealthy one is waited for as long as one with a lower number is unhealthy too.
    fn shrink(&self, wanted: &std::ops::Range<i32>, plan: &mut Plan) -> bool {
        let surplus: Vec<_> = self.by_number.iter().rev().filter(|(n, _)| !wanted.contains(n)).collect();
        let lowest_unhealthy = surplus.iter().rev().find(|(_, p)| !self.serves(p)).map(|(n, _)| **n);
        for (number, pod) in &surplus {
            if is_deleting(&****pod) {
                if self.parallel() {
                    continue;
                }
                return false;
            }
            let waits = !self.serves(pod) && lowest_unhealthy != Some(**number);
            if waits && !self.parallel() {
                return false;
            }
            plan.delete.push((**pod).clone());
            if !self.parallel() {
                return false;
            }
        }
        surplus.is_empty()
    }

    /// Replaces pods of the old revision from the highest number down, as many as may be missing. One
    /// that does not serve is missing already: replacing it costs nothing.
    fn update(&self, wanted: std::ops::Range<i32>, plan: &mut Plan) {
        if self.on_delete() || !plan.create.is_empty() || !plan.delete.is_empty() {
            return;
        }
        let there = || wanted.clone().rev().filter_map(|n| Some((n, *self.by_number.get(&n)?)));
        let missing = there().filter(|(_, p)| !self.serves(p)).count();
        let mut budget = self.max_unavailable(wanted.len()).saturating_sub(missing);
        let first = self.start.saturating_add(self.partition());
        for (_, pod) in there().filter(|(n, _)| *n >= first) {
            if revision_of(pod) == self.view.update || is_deleting(&**pod) {
                continue;
            }
            if self.serves(pod) {
                if budget == 0 {
                    continue;
                }
                budget -= 1;
            }
            plan.delete.push(pod.clone());
        }
    }

    /// How many pods may be missing during an update: percentages are rounded down, at least one.
    fn max_unavailable(&self, total: usize) -> usize {
        let strategy = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let most = strategy.and_then(|r| r.max_unavailable.as_ref());
        let total = i32::try_from(total).unwrap_or(i32::MAX);
        let most = most.map_or(1, |m| crate::deployment::scaled(m, total, false));
        usize::try_from(most).unwrap_or(1).max(1)
    }
}

fn status(
    view: &View,
    spec: &StatefulSetSpec,
    wanted: usize,
    by_number: &BTreeMap<i32, &Arc<Pod>>,
) -> StatefulSetStatus {
    let live = || by_number.values().filter(|p| !is_finished(p));
    let count =
        |test: &dyn Fn(&Pod) -> bool| i32::try_from(live().filter(|p| test(p)).count()).unwrap_or(i32::MAX);
    let of = |name: &str| count(&|p| revision_of(p) == name && !is_deleting(p));
    let some = |n: i32| (n != 0).then_some(n);
    let wait = spec.min_ready_seconds.unwrap_or(0);
    let ready = count(&|p| is_ready(p) && PodView(p).phase() == "Running");
    let updated = of(view.update);
    let all = i32::try_from(wanted).unwrap_or(i32::MAX);
    let rolling = spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete");
    // The update is over when every pod is of the new revision and ready.
    let complete = rolling && updated == all && ready == all && live().count() == wanted;
    let current = if complete { view.update } else { view.current };
    StatefulSetStatus {
        observed_generation: view.set.metadata.generation,
        replicas: count(&|_| true),
        ready_replicas: some(ready),
        available_replicas: Some(count(&|p| is_available(p, wait, view.now) && !is_deleting(p))),
        current_replicas: some(of(current)),
        updated_replicas: some(updated),
        current_revision: Some(current.into()),
        update_revision: Some(view.update.into()),
        collision_count: view.set.status.as_ref().and_then(|s| s.collision_count).or(Some(0)),
        conditions: view.set.status.as_ref().and_then(|s| s.conditions.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replicas::tests::{NOW, pod};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// Pods as in `replicas`, with `new` for the new revision.
    fn check(spec: Value, pods: &[&str], expect: &str) {
        let mut whole =
            json!({"metadata": {"name": "db"}, "spec": {"selector": {}, "template": {}, "replicas": 3}});
        for (key, value) in spec.as_object().unwrap() {
            whole["spec"][key] = value.clone();
        }
        let set: StatefulSet = serde_json::from_value(whole).unwrap();
        let pods: Vec<_> = pods
            .iter()
            .map(|text| {
                let (text, new) = text.strip_suffix(" new").map_or((*text, false), |t| (t, true));
                let mut pod = (*pod(text)).clone();
                let revision = if new { "r2" } else { "r1" };
                pod.metadata.labels = Some([(crate::history::HASH.to_owned(), revision.to_owned())].into());
                Arc::new(pod)
            })
            .collect();
        let plan =
            plan(&View { set: &set, pods: &pods, current: "r1", update: "r2", now: NOW.parse().unwrap() });
        let mut shown: Vec<String> = plan.create.iter().map(|(n, r)| format!("create {n} {r}")).collect();
        shown.extend(plan.delete.iter().map(|p| format!("delete {}", p.metadata.name.as_deref().unwrap())));
        assert_eq!(shown.join(", "), expect, "{spec} {pods:?}");
    }

    #[test]
    fn starts_in_order() {
        check(json!({}), &[], "create 0 r2");
        check(json!({}), &["db-0 pending 1s new"], "");
        check(json!({}), &["db-0 ready 1m new"], "create 1 r2");
        check(json!({}), &["db-0 ready 1m new", "db-2 ready 1m new"], "create 1 r2");
        check(
            json!({"podManagementPolicy": "Parallel"}),
            &["db-1 pending 1s new"],
            "create 0 r2, create 2 r2",
        );
        check(json!({}), &["db-0 failed 1m new"], "delete db-0");
        check(json!({"minReadySeconds": 30}), &["db-0 ready 10s new"], "");
        check(json!({"ordinals": {"start": 5}}), &["db-5 ready 1m new"], "create 6 r2");
        check(
            json!({"updateStrategy": {"rollingUpdate": {"partition": 2}}}),
            &["db-0 ready 1m"],
            "create 1 r1",
        );
    }

    #[test]
    fn stops_in_reverse_order() {
        let all = ["db-0 ready 1m new", "db-1 ready 1m new", "db-2 ready 1m new"];
        check(json!({"replicas": 1}), &all, "delete db-2");
        check(
            json!({"replicas": 1}),
            &["db-0 ready 1m new", "db-1 ready 1m new", "db-2 ready 1m going new"],
            "",
        );
        check(
            json!({"replicas": 0, "podManagementPolicy": "Parallel"}),
            &all,
            "delete db-2, delete db-1, delete db-0",
        );
        // A healthy one goes though one below it is not; of two unhealthy ones the lower has to recover first.
        check(json!({"replicas": 1}), &[all[0], "db-1 pending 1m new", all[2]], "delete db-2");
        check(json!({"replicas": 1}), &[all[0], "db-1 pending 1m new", "db-2 pending 1m new"], "");
        check(json!({"replicas": 1}), &[all[0], "db-1 pending 1m new"], "delete db-1");
        check(json!({"replicas": 1}), &["db-0 pending 1m new", all[1], all[2]], "");
    }

    #[test]
    fn updates_from_the_top_one_at_a_time() {
        let old = ["db-0 ready 1m", "db-1 ready 1m", "db-2 ready 1m"];
        check(json!({}), &old, "delete db-2");
        check(json!({}), &[old[0], old[1], "db-2 ready 1m new"], "delete db-1");
        check(json!({}), &[old[0], old[1], "db-2 pending 1s new"], "");
        check(
            json!({"updateStrategy": {"rollingUpdate": {"partition": 2}}}),
            &[old[0], old[1], "db-2 ready 1m new"],
            "",
        );
        check(json!({"updateStrategy": {"type": "OnDelete"}}), &old, "");
        check(
            json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 2}}}),
            &old,
            "delete db-2, delete db-1",
        );
        let share = |percent: &str| json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": percent}}});
        check(share("67%"), &old, "delete db-2, delete db-1");
        check(share("66%"), &old, "delete db-2");
        check(share("1%"), &old, "delete db-2");
        let parallel = json!({"podManagementPolicy": "Parallel"});
        check(parallel.clone(), &["db-0 pending 1m new", old[1], old[2]], "");
        check(parallel, &["db-0 pending 1m", old[1], old[2]], "delete db-0");
    }

    #[test]
    fn only_plain_numbers_are_ordinals() {
        let set: StatefulSet = serde_json::from_value(json!({"metadata": {"name": "db"}})).unwrap();
        let of = |name: &str| ordinal(&set, &pod(name));
        assert_eq!(
            [of("db-0"), of("db-12"), of("db-01"), of("db-x"), of("db-+1"), of("web-1")],
            [Some(0), Some(12), None, None, None, None]
        );
    }

    /// A set that is played: what each number's pod is (revision new, serving), one step of the world at a time.
    #[derive(Clone, Debug)]
    struct World {
        set: StatefulSet,
        pods: BTreeMap<i32, (bool, bool)>,
    }

    impl World {
        fn new(replicas: i32, partition: i32, most: i32, parallel: bool) -> Self {
            let policy = if parallel { "Parallel" } else { "OrderedReady" };
            let strategy = json!({"rollingUpdate": {"partition": partition, "maxUnavailable": most}});
            let spec = json!({"selector": {}, "template": {}, "replicas": replicas,
                "podManagementPolicy": policy, "updateStrategy": strategy});
            let set = serde_json::from_value(json!({"metadata": {"name": "db"}, "spec": spec})).unwrap();
            Self { set, pods: BTreeMap::new() }
        }

        fn plan(&self) -> Plan {
            let pods: Vec<Arc<Pod>> = self
                .pods
                .iter()
                .map(|(n, (new, serving))| {
                    let mut pod =
                        (*pod(&format!("db-{n} {} 1m", if *serving { "ready" } else { "unready" }))).clone();
                    let revision = if *new { "r2" } else { "r1" };
                    pod.metadata.labels =
                        Some([(crate::history::HASH.to_owned(), revision.to_owned())].into());
                    Arc::new(pod)
                })
                .collect();
            let now = NOW.parse().unwrap();
            plan(&View { set: &self.set, pods: &pods, current: "r1", update: "r2", now })
        }

        /// What the API and the node make of a plan.
        fn apply(&mut self, plan: &Plan) {
            for pod in &plan.delete {
                self.pods.remove(&ordinal(&self.set, pod).unwrap());
            }
            for (number, revision) in &plan.create {
                assert!(
                    self.pods.insert(*number, (revision == "r2", false)).is_none(),
                    "{number} made twice"
                );
            }
        }
    }

    proptest! {
        /// From any state, pods that serve are missing by no more than is allowed, the order is kept,
        /// and it all ends with every number there and of the right revision.
        #[test]
        fn updates_converge_within_bounds(
            replicas in 0..7i32, partition in 0..8i32, most in 1..4i32, parallel: bool,
            pods in prop::collection::btree_map(0..9i32, (any::<bool>(), any::<bool>()), 0..9),
        ) {
            let mut world = World::new(replicas, partition, most, parallel);
            world.pods = pods;
            let mut steps = 0;
            loop {
                let plan = world.plan();
                let serving = |w: &World| w.pods.range(0..replicas).filter(|(_, p)| p.1).count();
                let (before, old) = (serving(&world), world.clone());
                let same = world.plan();
                prop_assert_eq!(&same.create, &plan.create, "a second look sees the same");
                world.apply(&plan);
                let lost = before - serving(&world);
                prop_assert!(lost == 0 || serving(&world) >= (replicas - most).max(0) as usize, "{:?}", old);
                if !parallel {
                    prop_assert!(plan.create.len() <= 1, "{:?}", old);
                    for (number, _) in &plan.create {
                        prop_assert!((0..*number).all(|n| old.pods.get(&n).is_some_and(|p| p.1)), "{:?}", old);
                    }
                }
                let idle = plan.create.is_empty() && plan.delete.is_empty();
                if idle && world.pods.values().all(|p| p.1) {
                    break;
                }
                world.pods.values_mut().for_each(|p| p.1 = true);
                steps += 1;
                prop_assert!(steps < 60, "no end: {:?}", world);
            }
            prop_assert_eq!(world.pods.keys().copied().collect::<Vec<_>>(), (0..replicas).collect::<Vec<_>>());
            prop_assert!(world.pods.iter().all(|(n, p)| p.0 || *n < partition));
        }
    }
}
