//! Says of each PodDisruptionBudget how many pods may be evicted now.
//!
//! Reads budgets, pods and the workloads that own them. Writes budgets' status only; the
//! eviction API takes its decisions from there.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, StatefulSet},
        core::v1::{Pod, ReplicationController},
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
};
use wasmk_api::{LabelSelector, Timestamp};

use crate::{
    base::{
        Context, Error, Informer, Key, Next, Queue, Result, controller_of, is_deleting, is_finished,
        is_ready, on_change, owner_key, time, time_of,
    },
    deployment::scaled,
};

const NAME: &str = "disruption-controller";
/// An evicted pod that is still there after that long was not deleted after all.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(120);

struct Keeper {
    cx: Context,
    budgets: Arc<Informer<PodDisruptionBudget>>,
    pods: Arc<Informer<Pod>>,
    sets: Arc<Informer<ReplicaSet>>,
    deployments: Arc<Informer<Deployment>>,
    stateful: Arc<Informer<StatefulSet>>,
    controllers: Arc<Informer<ReplicationController>>,
}

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let keeper = Keeper {
        budgets: cx.cache(),
        pods: cx.cache(),
        sets: cx.cache(),
        deployments: cx.cache(),
        stateful: cx.cache(),
        controllers: cx.cache(),
        cx: cx.clone(),
    };
    on_change(&keeper.budgets, &queue);
    let (known, sink) = (keeper.budgets.clone(), queue.clone());
    keeper.pods.subscribe(move |old, new| {
        let Some(pod) = new.or(old) else { return };
        for budget in known.in_namespace(pod.metadata.namespace.as_deref().unwrap_or("")) {
            let selector = selector(&budget);
            let covers = |p: &Arc<Pod>| {
                selector
                    .as_ref()
                    .is_ok_and(|s| s.as_ref().is_some_and(|s| s.matches(p.metadata.labels.as_ref())))
            };
            if [old, new].into_iter().flatten().any(covers) {
                sink.add(Key::of(&budget.metadata));
            }
        }
    });
    keeper.budgets.ready().await;
    keeper.pods.ready().await;
    keeper.sets.ready().await;
    keeper.deployments.ready().await;
    keeper.stateful.ready().await;
    keeper.controllers.ready().await;
    cx.work(NAME, &queue, cx.settings.workers, |key| keeper.reconcile(key)).await;
}

/// Which pods a budget covers; none when it has no selector.
fn selector(budget: &PodDisruptionBudget) -> Result<Option<LabelSelector>> {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.map(LabelSelector::from_api).transpose().map_err(|e| Error::Invalid(e.to_string()))
}

impl Keeper {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        let Some(budget) = self.budgets.get(&key) else { return Ok(Next::Change) };
        let selector = selector(&budget)?;
        let mut pods = self.pods.in_namespace(&key.namespace);
        pods.retain(|p| {
            !is_finished(p) && selector.as_ref().is_some_and(|s| s.matches(p.metadata.labels.as_ref()))
        });
        let now = self.cx.clock.now();
        let expected = self.expected(&pods);
        let (status, again) = plan(&budget, &pods, expected, now);
        if budget.status.as_ref() != Some(&status) {
            let mut next = (*budget).clone();
            next.status = Some(status);
            self.cx.replace_status(&next).await?;
        }
        Ok(Next::after(again))
    }

    /// How many pods the owners of these pods want; `None` when one has no known owner.
    fn expected(&self, pods: &[Arc<Pod>]) -> Option<i32> {
        let mut owners: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            let (uid, wanted) = self.workload(pod)?;
            owners.insert(uid, wanted);
        }
        Some(owners.values().sum())
    }

    /// The workload a pod belongs to in the end, and how many pods that wants. Two sets of one
    /// deployment are one workload.
    fn workload(&self, pod: &Pod) -> Option<(String, i32)> {
        let owner = controller_of(pod)?.uid.clone();
        if let Some(set) = owner_key::<ReplicaSet, Pod>(pod).and_then(|k| self.sets.get(&k)) {
            let deployment = owner_key::<Deployment, ReplicaSet>(&set).and_then(|k| self.deployments.get(&k));
            return match deployment {
                Some(d) => Some((crate::base::uid(&*d).to_owned(), d.spec.as_ref()?.replicas?)),
                None => Some((owner, set.spec.as_ref()?.replicas?)),
            };
        }
        if let Some(set) = owner_key::<StatefulSet, Pod>(pod).and_then(|k| self.stateful.get(&k)) {
            return Some((owner, set.spec.as_ref()?.replicas?));
        }
        let controller = owner_key::<ReplicationController, Pod>(pod).and_then(|k| self.controllers.get(&k));
        Some((owner, controller?.spec.as_ref()?.replicas?))
    }
}

/// The status, and when to look again though nothing changes.
fn plan(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    by_owners: Option<i32>,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let spec = budget.spec.clone().unwrap_or_default();
    let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    let known = by_owners.unwrap_or(count);
    let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (known, (known - scaled(most, known, true)).max(0)),
        (None, Some(IntOrString::Int(least))) => (count, *least),
        (None, Some(least)) => (known, scaled(least, known, true)),
        (None, None) => (count, 0),
    };
    let old = budget.status.clone().unwrap_or_default();
    let (disrupted, again) = still_disrupted(&old, pods, now);
    let healthy = |p: &&Arc<Pod>| {
        let name = p.metadata.name.as_deref().unwrap_or("");
        is_ready(p) && !is_deleting(&***p) && !disrupted.contains_key(name)
    };
    let healthy = i32::try_from(pods.iter().filter(healthy).count()).unwrap_or(i32::MAX);
    let allowed = if expected == 0 { 0 } else { (healthy - desired).max(0) };
    let status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        observed_generation: budget.metadata.generation,
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        conditions: Some(vec![condition(&old, allowed > 0, budget.metadata.generation, now)]),
    };
    (status, again)
}

/// Evicted pods that are on their way out but not yet marked so.
fn still_disrupted(
    old: &PodDisruptionBudgetStatus,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let mut kept = BTreeMap::new();
    let mut again: Option<Duration> = None;
    for (name, at) in old.disrupted_pods.iter().flatten() {
        let there = pods.iter().any(|p| p.metadata.name.as_ref() == Some(name) && !is_deleting(&**p));
        let left = time_of(Some(at)).map(|at| at.after(EVICTION_TIMEOUT).since(now)).unwrap_or_default();
        if there && !left.is_zero() {
            kept.insert(name.clone(), at.clone());
            again = Some(again.map_or(left, |a| a.min(left)));
        }
    }
    (kept, again)
}

fn condition(
    old: &PodDisruptionBudgetStatus,
    allowed: bool,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let (status, reason) = if allowed { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let before =
        old.conditions.iter().flatten().find(|c| c.type_ == "DisruptionAllowed" && c.status == status);
    Condition {
        type_: "DisruptionAllowed".into(),
        status: status.into(),
        reason: reason.into(),
        message: String::new(),
        observed_generation: generation,
        last_transition_time: before.map_or_else(|| time(now), |c| c.last_transition_time.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replicas::tests::{NOW, pod};
    use serde_json::{Value, json};

    fn check(spec: Value, disrupted: &[&str], pods: &[&str], owners: Option<i32>, expect: [i32; 4]) {
        let at: BTreeMap<_, _> = disrupted.iter().map(|n| (*n, NOW)).collect();
        let status = json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0, "disruptedPods": at});
        let budget = serde_json::from_value(json!({"spec": spec, "status": status})).unwrap();
        let pods: Vec<_> = pods.iter().map(|p| pod(p)).collect();
        let now: Timestamp = NOW.parse().unwrap();
        let (s, again) = plan(&budget, &pods, owners, now.after(Duration::from_secs(20)));
        assert_eq!(
            [s.expected_pods, s.desired_healthy, s.current_healthy, s.disruptions_allowed],
            expect.map(Some),
            "{spec}"
        );
        assert_eq!(again.is_some(), s.disrupted_pods.is_some());
    }

    #[test]
    fn budgets_as_numbers_and_shares() {
        let three = ["a ready 1m", "b ready 1m", "c ready 1m"];
        check(json!({"minAvailable": 2}), &[], &three, None, [3, 2, 3, 1]);
        check(json!({"minAvailable": "50%"}), &[], &three, Some(3), [3, 2, 3, 1]);
        check(json!({"maxUnavailable": 1}), &[], &three, Some(3), [3, 2, 3, 1]);
        check(
            json!({"maxUnavailable": 1}),
            &[],
            &["a ready 1m", "b unready 1m", "c ready 1m"],
            Some(3),
            [3, 2, 2, 0],
        );
        check(json!({"maxUnavailable": "34%"}), &[], &three, Some(3), [3, 1, 3, 2]);
        check(json!({"maxUnavailable": 1}), &["a"], &three, Some(3), [3, 2, 2, 0]);
        check(json!({"maxUnavailable": 1}), &["z"], &three, Some(3), [3, 2, 3, 1]);
        check(json!({"minAvailable": 0}), &[], &[], None, [0, 0, 0, 0]);
    }
}
