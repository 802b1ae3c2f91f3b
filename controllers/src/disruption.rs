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
        apis::meta::v1::{Condition, OwnerReference, Time},
        util::intstr::IntOrString,
    },
};
use kube::{Api, api::DynamicObject};
use wasmk_api::{LabelSelector, Timestamp};

use crate::{
    base::{
        Context, Error, EventKind, Informer, Key, Next, Queue, Result, controller_of, is_deleting,
        is_finished, is_ready, on_change, owner_key, time, time_of,
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
        let expected = self.expected(&budget, &pods).await;
        let (mut status, again) = plan(&budget, &pods, expected.as_ref().copied().unwrap_or(0), now);
        if let Err(error) = &expected {
            // What is not known might not bear a disruption.
            self.cx.events.record(
                NAME,
                &*budget,
                EventKind::Warning,
                "CalculateExpectedPodCountFailed",
                format!("Failed to calculate the number of expected pods: {}", error.message()),
            );
            refuse(&mut status, budget.status.as_ref(), &error.message(), now);
        }
        if budget.status.as_ref() != Some(&status) {
            let mut next = (*budget).clone();
            next.status = Some(status);
            self.cx.replace_status(&next).await?;
        }
        expected?;
        Ok(Next::after(again))
    }

    /// How many pods the owners of these pods want. Pods that nobody controls do not count, which is told.
    async fn expected(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> Result<i32> {
        let counted =
            budget.spec.as_ref().is_some_and(|s| matches!(s.min_available, Some(IntOrString::Int(_))));
        if counted {
            return Ok(i32::try_from(pods.len()).unwrap_or(i32::MAX));
        }
        let mut owners: BTreeMap<String, i32> = BTreeMap::new();
        let mut unmanaged = Vec::new();
        for pod in pods {
            let Some(owner) = controller_of(&**pod) else {
                unmanaged.push(pod.metadata.name.as_deref().unwrap_or(""));
                continue;
            };
            if owners.contains_key(&owner.uid) {
                continue;
            }
            let (uid, wanted) = match self.workload(pod) {
                Some(found) => found,
                None => (owner.uid.clone(), self.scale_of(pod, owner).await?),
            };
            owners.insert(uid, wanted);
        }
        if !unmanaged.is_empty() {
            let message = format!(
                "Pods selected by this PodDisruptionBudget were found to be unmanaged: {}. As a result, the \
                 status of the PDB cannot be calculated correctly, which may result in undefined behavior. To \
                 account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                unmanaged.join(", ")
            );
            self.cx.events.record(NAME, budget, EventKind::Warning, "UnmanagedPods", message);
        }
        Ok(owners.values().fold(0, |sum, n| sum.saturating_add(*n)))
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

    /// What an owner of any other kind wants, by its `scale` subresource.
    async fn scale_of(&self, pod: &Pod, owner: &OwnerReference) -> Result<i32> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let resources = self.cx.discovery.resources().await?;
        let served = resources.iter().find(|s| s.resource.group == group && s.resource.kind == owner.kind);
        let key = Key::new(pod.metadata.namespace.clone().unwrap_or_default(), owner.name.clone());
        let Some(served) = served else {
            return Err(Error::Invalid(format!("{} {key} is of no kind that is served", owner.kind)));
        };
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.cx.client.clone(), &key.namespace, &served.resource);
        let scale = api.get_scale(&owner.name).await;
        let scale = scale.map_err(|e| Error::api("get the scale of", &owner.kind, key, e))?;
        Ok(scale.spec.and_then(|s| s.replicas).unwrap_or(0))
    }
}

/// A status that allows no disruption, because it could not be worked out.
fn refuse(
    status: &mut PodDisruptionBudgetStatus,
    old: Option<&PodDisruptionBudgetStatus>,
    message: &str,
    now: Timestamp,
) {
    status.disruptions_allowed = Some(0);
    let before = old.and_then(|o| {
        let mut all = o.conditions.iter().flatten();
        all.find(|c| c.type_ == "DisruptionAllowed" && c.status == "False").cloned()
    });
    for condition in status.conditions.iter_mut().flatten() {
        condition.status = "False".into();
        condition.reason = "SyncFailed".into();
        condition.message = message.into();
        condition.last_transition_time =
            before.as_ref().map_or_else(|| time(now), |c| c.last_transition_time.clone());
    }
}

/// The status, and when to look again though nothing changes.
fn plan(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    known: i32,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let spec = budget.spec.clone().unwrap_or_default();
    let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
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
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn check(spec: Value, disrupted: &[&str], pods: &[&str], owners: i32, expect: [i32; 4]) {
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
        check(json!({"minAvailable": 2}), &[], &three, 0, [3, 2, 3, 1]);
        check(json!({"minAvailable": "50%"}), &[], &three, 3, [3, 2, 3, 1]);
        check(json!({"maxUnavailable": 1}), &[], &three, 3, [3, 2, 3, 1]);
        check(
            json!({"maxUnavailable": 1}),
            &[],
            &["a ready 1m", "b unready 1m", "c ready 1m"],
            3,
            [3, 2, 2, 0],
        );
        check(json!({"maxUnavailable": "34%"}), &[], &three, 3, [3, 1, 3, 2]);
        check(json!({"maxUnavailable": 1}), &["a"], &three, 3, [3, 2, 2, 0]);
        check(json!({"maxUnavailable": 1}), &["z"], &three, 3, [3, 2, 3, 1]);
        check(json!({"minAvailable": 0}), &[], &[], 0, [0, 0, 0, 0]);
    }

    #[test]
    fn a_budget_that_cannot_be_worked_out_allows_nothing() {
        let budget = serde_json::from_value(json!({"spec": {"maxUnavailable": 1}})).unwrap();
        let pods = [pod("a ready 1m"), pod("b ready 1m")];
        let now: Timestamp = NOW.parse().unwrap();
        let (mut status, _) = plan(&budget, &pods, 2, now);
        assert_eq!(status.disruptions_allowed, Some(1));
        refuse(&mut status, None, "no such kind", now);
        let condition = &status.conditions.as_ref().unwrap()[0];
        assert_eq!(status.disruptions_allowed, Some(0));
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "SyncFailed"));
        // Bare pods are nobody's, and a share of nobody's is nothing.
        let (status, _) = plan(&budget, &pods, 0, now);
        assert_eq!(status.disruptions_allowed, Some(0));
    }

    proptest! {
        /// Evicting as many as are allowed leaves what the budget wants.
        #[test]
        fn what_is_allowed_keeps_the_budget(ready in 0..40usize, unready in 0..10usize, most in 0..50i32, share: bool, least: bool) {
            let pods: Vec<_> = (0..ready).map(|i| pod(&format!("r{i} ready 1m")))
                .chain((0..unready).map(|i| pod(&format!("u{i} unready 1m")))).collect();
            let total = i32::try_from(pods.len()).unwrap();
            let amount = if share { json!(format!("{most}%")) } else { json!(most) };
            let spec = if least { json!({"minAvailable": amount}) } else { json!({"maxUnavailable": amount}) };
            let budget = serde_json::from_value(json!({"spec": spec})).unwrap();
            let (status, _) = plan(&budget, &pods, total, NOW.parse().unwrap());
            let allowed = status.disruptions_allowed.unwrap();
            let left = i32::try_from(ready).unwrap() - allowed;
            prop_assert!(allowed >= 0 && allowed <= i32::try_from(ready).unwrap());
            prop_assert!(allowed == 0 || left >= status.desired_healthy.unwrap());
            if !share && !least {
                prop_assert!(allowed == 0 || total - left <= most);
            }
        }
    }
}
