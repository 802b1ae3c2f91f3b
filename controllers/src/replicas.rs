//! Keeping a set of equal pods at a wanted number: what ReplicaSets and
//! ReplicationControllers have in common.
//!
//! Reads the set and pods of its namespace. Writes pods (create, delete, owner
//! references) and the set's status. Never touches a pod controlled by someone else;
//! changes at most [`BURST`] pods in a pass.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use k8s_openapi::{
    api::core::v1::{Pod, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::Time,
};
use parking_lot::Mutex;
use wasmk_api::{LabelSelector, Timestamp};

use crate::base::{
    Claim, Context, EventKind, Informer, Key, Names, Next, PodView, Queue, Result, Watched, active,
    container_restarts, controller_of, controller_ref, is_available, is_deleting, is_ready, on_change,
    on_child, on_orphan, pod_from_template, ready_since, time, time_of, uid,
};

/// Pods created or deleted in one pass.
const BURST: usize = 500;

/// A kind whose objects want a number of equal pods.
pub(crate) trait Replicated: Watched {
    /// The controller's name in events.
    const COMPONENT: &'static str;
    /// Whether the status has a count of pods on their way out.
    const COUNTS_TERMINATING: bool;
    /// Which pods count.
    fn selector(&self) -> Result<LabelSelector>;
    /// What to make pods from.
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// How many are wanted.
    fn wanted(&self) -> i32;
    /// Seconds a pod must be ready to be available.
    fn min_ready_seconds(&self) -> i32;
    /// The status as stored.
    fn counts(&self) -> Counts;
    /// Replaces the status.
    fn set_counts(&mut self, counts: Counts);
}

/// A set's status.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) replicas: i32,
    pub(crate) fully_labeled: i32,
    pub(crate) ready: i32,
    pub(crate) available: i32,
    pub(crate) terminating: Option<i32>,
    pub(crate) observed_generation: Option<i64>,
    /// The condition ReplicaFailure: since when, reason, message.
    pub(crate) failure: Option<(Option<Time>, String, String)>,
}

/// What a pass has to do.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// New pods.
    pub(crate) create: usize,
    /// Pods to delete, the most dispensable first.
    pub(crate) delete: Vec<Arc<Pod>>,
}

/// Decides how many pods to make or which to delete. `related` says how many active pods
/// of the same workload each node holds.
pub(crate) fn plan(wanted: i32, pods: &[Arc<Pod>], related: &HashMap<String, usize>, now: Timestamp) -> Plan {
    let mut live: Vec<&Arc<Pod>> = active(pods).collect();
    let wanted = usize::try_from(wanted).unwrap_or(0);
    if live.len() <= wanted {
        return Plan { create: (wanted - live.len()).min(BURST), ..Plan::default() };
    }
    let surplus = (live.len() - wanted).min(BURST);
    live.sort_by_cached_key(|pod| rank(pod, related, now));
    Plan { create: 0, delete: live.into_iter().take(surplus).cloned().collect() }
}

/// Smaller goes first. Times are compared by their logarithm, so that among pods of about
/// the same age the choice does not always fall on the newest.
fn rank(pod: &Pod, related: &HashMap<String, usize>, now: Timestamp) -> impl Ord + use<> {
    let view = PodView(pod);
    let phase = match view.phase() {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let on_node = related.get(view.node()).copied().unwrap_or(0);
    let age =
        |at: Option<Timestamp>| at.map(|at| now.since(at).as_secs().checked_ilog2().map_or(0, |n| n + 1));
    let created = time_of(pod.metadata.creation_timestamp.as_ref());
    (
        !view.node().is_empty(),
        phase,
        is_ready(pod),
        view.deletion_cost(),
        Reverse(on_node),
        age(ready_since(pod)),
        Reverse(container_restarts(pod)),
        age(created),
        pod.metadata.uid.clone(),
    )
}

/// The status that follows from the pods.
pub(crate) fn counts<S: Replicated>(
    set: &S,
    pods: &[Arc<Pod>],
    failure: Option<&str>,
    now: Timestamp,
) -> Counts {
    let old = set.counts();
    let template = set.template().and_then(|t| t.metadata.as_ref()?.labels.clone()).unwrap_or_default();
    let mut new = Counts { observed_generation: set.meta().generation, ..Counts::default() };
    for pod in active(pods) {
        new.replicas += 1;
        new.fully_labeled += i32::from(has_labels(pod, &template));
        new.ready += i32::from(is_ready(pod));
        new.available += i32::from(is_available(pod, set.min_ready_seconds(), now));
    }
    let going = pods.iter().filter(|p| is_deleting(&***p) && !crate::base::is_finished(p)).count();
    new.terminating = S::COUNTS_TERMINATING.then(|| i32::try_from(going).unwrap_or(i32::MAX));
    new.failure = failure.map(|message| {
        let more = usize::try_from(set.wanted()).unwrap_or(0) >= active(pods).count();
        let reason = if more { "FailedCreate" } else { "FailedDelete" };
        match old.failure.filter(|(_, r, _)| r == reason) {
            Some((since, ..)) => (since, reason.to_owned(), message.to_owned()),
            None => (Some(time(now)), reason.to_owned(), message.to_owned()),
        }
    });
    new
}

fn has_labels(pod: &Pod, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(k, v)| pod.metadata.labels.as_ref().is_some_and(|l| l.get(k) == Some(v)))
}

/// One kind's controller.
struct Keeper<S> {
    cx: Context,
    sets: Arc<Informer<S>>,
    pods: Arc<Informer<Pod>>,
    /// The place in the order of names that comes next, by the set's uid.
    next_slot: Mutex<HashMap<String, u64>>,
}

/// Runs the controller of a kind until shutdown.
pub(crate) async fn run<S: Replicated>(cx: Context) {
    let queue = Arc::new(Queue::default());
    let (sets, pods) = (cx.cache::<S>(), cx.cache::<Pod>());
    on_change(&sets, &queue);
    on_child::<S, Pod>(&pods, &queue);
    let known = sets.clone();
    on_orphan(&pods, &queue, move |pod| matching(&known, pod));
    sets.ready().await;
    pods.ready().await;
    let keeper = Keeper { cx: cx.clone(), sets, pods, next_slot: Mutex::default() };
    cx.work(S::COMPONENT, &queue, cx.settings.workers, |key| keeper.reconcile(key)).await;
}

fn matching<S: Replicated>(sets: &Informer<S>, pod: &Pod) -> Vec<Key> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    let wants =
        |set: &Arc<S>| set.selector().is_ok_and(|s| !s.is_empty() && s.matches(pod.metadata.labels.as_ref()));
    sets.in_namespace(namespace).iter().filter(|set| wants(set)).map(|set| Key::of(set.meta())).collect()
}

impl<S: Replicated> Keeper<S> {
    async fn reconcile(&self, key: Key) -> Result<Next> {
        let Some(set) = self.sets.get(&key) else { return Ok(Next::Change) };
        let selector = set.selector()?;
        let mut pods = Claim::apply(&self.cx, &*set, &selector, &self.pods).await?;
        let now = self.cx.clock.now();
        let mut outcome = Ok(());
        if is_deleting(&*set) {
            self.next_slot.lock().remove(uid(&*set));
        } else {
            let plan = plan(set.wanted(), &pods, &self.related(&set, &pods), now);
            outcome = self.apply(&set, &pods, plan).await;
            pods = self.pods.controlled_by(uid(&*set));
        }
        let failure =
            outcome.as_ref().err().filter(|e| !e.is_already_exists()).map(crate::base::Error::message);
        let status = counts(&*set, &pods, failure.as_deref(), now);
        let waits = status.ready > status.available && set.min_ready_seconds() > 0;
        self.write_status(&set, status).await?;
        outcome?;
        Ok(if waits {
            Next::After(until_available(&pods, set.min_ready_seconds(), now))
        } else {
            Next::Change
        })
    }

    /// Active pods per node, of this set and of its siblings under the same owner.
    fn related(&self, set: &S, pods: &[Arc<Pod>]) -> HashMap<String, usize> {
        let mut per_node = HashMap::new();
        let namespace = set.meta().namespace.as_deref().unwrap_or("");
        let siblings = match controller_of(set) {
            Some(owner) => self
                .sets
                .controlled_by(&owner.uid)
                .iter()
                .filter(|s| s.meta().namespace.as_deref() == Some(namespace))
                .flat_map(|s| self.pods.controlled_by(uid(&**s)))
                .collect(),
            None => pods.to_vec(),
        };
        for pod in active(&siblings) {
            *per_node.entry(PodView(pod).node().to_owned()).or_insert(0) += 1;
        }
        per_node
    }

    async fn apply(&self, set: &Arc<S>, pods: &[Arc<Pod>], plan: Plan) -> Result<()> {
        if plan.create > 0 {
            return self.create(set, pods, plan.create).await;
        }
        let deletions = plan.delete.iter().map(|pod| self.delete(set, pod));
        join_all(deletions).await.into_iter().collect()
    }

    /// Creates in growing batches, so that a refusal costs few requests.
    async fn create(&self, set: &Arc<S>, pods: &[Arc<Pod>], count: usize) -> Result<()> {
        let names = Names::new(set.meta().name.as_deref().unwrap_or(""), uid(&**set));
        let seen = names.next(pods.iter().filter_map(|p| p.metadata.name.as_deref()));
        let first = self.next_slot.lock().get(uid(&**set)).copied().unwrap_or(0).max(seen);
        let (mut made, mut batch) = (0, 1);
        while made < count {
            let size = batch.min(count - made);
            let slots = (made..made + size).map(|i| first + i as u64);
            let created = join_all(slots.map(|slot| self.create_one(set, &names, slot))).await;
            created.into_iter().collect::<Result<()>>()?;
            made += size;
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(&self, set: &Arc<S>, names: &Names, slot: u64) -> Result<()> {
        let Some(template) = set.template() else { return Ok(()) };
        let namespace = set.meta().namespace.as_deref().unwrap_or("");
        let name = names.name(slot);
        let pod = pod_from_template(template, namespace, name.clone(), controller_ref(&**set));
        match self.cx.create(&pod).await {
            Ok(_) => {
                self.used(set, slot);
                let message = format!("Created pod: {name}");
                self.cx.events.record(S::COMPONENT, &**set, EventKind::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) if error.is_already_exists() => {
                // Made by another controller, or a stranger: either way the cache must know.
                let there = self.cx.fetch::<Pod>(&Key::new(namespace, name)).await?;
                if there.is_none_or(|p| controller_of(&*p).is_none_or(|o| o.uid != uid(&**set))) {
                    self.used(set, slot);
                }
                Err(error)
            }
            Err(error) => {
                let message = format!("Error creating: {}", error.message());
                self.cx.events.record(S::COMPONENT, &**set, EventKind::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }

    fn used(&self, set: &S, slot: u64) {
        let mut slots = self.next_slot.lock();
        if slots.len() > self.sets.len() + 1024 {
            slots.retain(|owner, _| !self.pods.controlled_by(owner).is_empty());
        }
        let next = slots.entry(uid(set).to_owned()).or_insert(0);
        *next = (*next).max(slot + 1);
    }

    async fn delete(&self, set: &Arc<S>, pod: &Arc<Pod>) -> Result<()> {
        let name = pod.metadata.name.as_deref().unwrap_or("");
        match self.cx.delete(&**pod, Default::default()).await {
            Ok(()) => {
                let message = format!("Deleted pod: {name}");
                self.cx.events.record(S::COMPONENT, &**set, EventKind::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(error) => {
                let message = format!("Error deleting: {}", error.message());
                self.cx.events.record(S::COMPONENT, &**set, EventKind::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }

    async fn write_status(&self, set: &Arc<S>, status: Counts) -> Result<()> {
        if set.counts() == status {
            return Ok(());
        }
        let mut next = (**set).clone();
        next.set_counts(status);
        match self.cx.replace_status(&next).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }
}

/// How long until the next ready pod becomes available.
fn until_available(pods: &[Arc<Pod>], min_ready_seconds: i32, now: Timestamp) -> Duration {
    let wait = Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0));
    let left = active(pods)
        .filter_map(|p| ready_since(p))
        .map(|since| since.after(wait))
        .filter(|at| *at > now)
        .map(|at| at.since(now))
        .min();
    left.unwrap_or(Duration::from_secs(1)) + Duration::from_millis(10)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodSpec, PodStatus};
    use proptest::prelude::*;

    pub(crate) const NOW: &str = "2026-01-01T12:00:00Z";

    /// `name [ready|unready|pending|failed|done|going] [age] [on NODE] [cost N]`.
    pub(crate) fn pod(text: &str) -> Arc<Pod> {
        let now: Timestamp = NOW.parse().unwrap();
        let mut words = text.split_whitespace();
        let name = words.next().unwrap();
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(name.into());
        let mut status = PodStatus { phase: Some("Running".into()), ..Default::default() };
        let mut spec = PodSpec { node_name: Some(format!("node-{name}")), ..Default::default() };
        let mut ready = false;
        let mut since = now;
        while let Some(word) = words.next() {
            match word {
                "ready" => ready = true,
                "unready" => {}
                "pending" => status.phase = Some("Pending".into()),
                "failed" => status.phase = Some("Failed".into()),
                "done" => status.phase = Some("Succeeded".into()),
                "going" => pod.metadata.deletion_timestamp = Some(time(now)),
                "nowhere" => spec.node_name = None,
                "on" => spec.node_name = words.next().map(Into::into),
                "cost" => {
                    let cost = words.next().unwrap().to_owned();
                    let key = "controller.kubernetes.io/pod-deletion-cost".to_owned();
                    pod.metadata.annotations = Some([(key, cost)].into());
                }
                age => {
                    let (number, unit) = age.split_at(age.len() - 1);
                    let scale = match unit {
                        "s" => 1,
                        "m" => 60,
                        "h" => 3600,
                        other => panic!("{other} is no unit"),
                    };
                    let span = number.parse::<u64>().unwrap() * scale;
                    since = Timestamp(now.0 - Duration::from_secs(span));
                }
            }
        }
        pod.metadata.creation_timestamp = Some(time(since));
        status.conditions = Some(vec![PodCondition {
            type_: "Ready".into(),
            status: if ready { "True" } else { "False" }.into(),
            last_transition_time: Some(time(since)),
            ..Default::default()
        }]);
        pod.status = Some(status);
        pod.spec = Some(spec);
        Arc::new(pod)
    }

    fn related(pods: &[Arc<Pod>]) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for pod in active(pods) {
            *counts.entry(PodView(pod).node().to_owned()).or_insert(0) += 1;
        }
        counts
    }

    fn check(given: &str, expect: &str) {
        let mut parts = given.split('|');
        let wanted: i32 = parts.next().unwrap().trim().strip_prefix("wants ").unwrap().parse().unwrap();
        let pods: Vec<_> = parts.map(pod).collect();
        let plan = plan(wanted, &pods, &related(&pods), NOW.parse().unwrap());
        let mut done = Vec::new();
        if plan.create > 0 {
            done.push(format!("create {}", plan.create));
        }
        done.extend(plan.delete.iter().map(|p| format!("delete {}", p.metadata.name.as_deref().unwrap())));
        assert_eq!(done.join(", "), expect, "{given}");
    }

    #[test]
    fn makes_what_is_missing() {
        check("wants 3", "create 3");
        check("wants 2 | a ready 1m", "create 1");
        check("wants 2 | a ready 1m | b failed 1m | c done 1m | d going 1m", "create 1");
        check("wants 2 | a ready 1m | b pending 1s", "");
        check("wants 900", "create 500");
    }

    #[test]
    fn scale_down_prefers_the_dispensable() {
        check("wants 1 | a ready 10m | b unready 1m | c ready 1m", "delete b, delete c");
        check("wants 1 | a ready 10m | b pending 20m", "delete b");
        check("wants 1 | a pending 1m | b pending 1m nowhere", "delete b");
        check("wants 1 | a ready 10m cost 5 | b ready 20m cost -3", "delete b");
        check("wants 2 | a ready 1h on x | b ready 1h on x | c ready 1m on y", "delete a");
        check("wants 1 | a ready 1h | b ready 1s", "delete b");
        check("wants 0 | a ready 1m", "delete a");
        check("wants -1 | a ready 1m", "delete a");
    }

    proptest! {
        #[test]
        fn never_both_and_never_past_the_mark(wanted in 0..1200i32, states in prop::collection::vec(0..5usize, 0..800)) {
            let kinds = ["ready 1m", "pending 2m", "failed 3m", "going 4m", "unready 1h"];
            let pods: Vec<_> = states.iter().enumerate().map(|(i, s)| pod(&format!("p{i} {}", kinds[*s]))).collect();
            let plan = plan(wanted, &pods, &related(&pods), NOW.parse().unwrap());
            prop_assert!(plan.create == 0 || plan.delete.is_empty());
            prop_assert!(plan.create <= BURST && plan.delete.len() <= BURST);
            let live = active(&pods).count();
            let after = live + plan.create - plan.delete.len();
            let wanted = wanted as usize;
            let right_side = if live <= wanted { after <= wanted } else { after >= wanted };
            prop_assert!(right_side, "{live} live, {after} after, {wanted} wanted");
            prop_assert!(plan.delete.iter().all(|p| PodView(p).is_active()));
        }
    }
}
