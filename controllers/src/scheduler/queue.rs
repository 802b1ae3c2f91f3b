//! Pods that wait for a node: ready to be tried, backing off, or waiting for a change that
//! could help them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::snapshot::PodInfo;

/// Wait after a pod's first failure; doubles up to [`MAX_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A pod that no change has helped is tried again after that long.
const MAX_PARKED: Duration = Duration::from_secs(300);

/// Something that may make room for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A node came, or its labels, taints, resources or runtimes changed.
    Node,
    /// A pod left a node.
    PodGone,
    /// A pod got a node, or its labels changed.
    PodPlaced,
    /// Volumes or claims changed.
    Volume,
    /// A namespace's labels or a runtime class changed.
    Other,
}

impl Change {
    /// Whether a pod rejected by that filter may pass now.
    fn may_help(self, filter: &str) -> bool {
        match self {
            Self::Node | Self::Other => true,
            Self::PodGone => {
                matches!(filter, "NodeResourcesFit" | "NodePorts" | "InterPodAffinity" | "PodTopologySpread")
            }
            Self::PodPlaced => matches!(filter, "InterPodAffinity" | "PodTopologySpread"),
            Self::Volume => filter == "VolumeBinding",
        }
    }
}

/// Highest priority first, then oldest.
type Rank = (Reverse<i32>, u64);

#[derive(Debug)]
enum Place {
    Ready(Rank),
    Later(Instant),
    Parked,
    Taken,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    attempts: u32,
    last: Instant,
    rejected_by: BTreeSet<&'static str>,
    /// Changes seen while the pod was being tried.
    missed: Vec<Change>,
}

/// The queue. Holds each pod once, by uid.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: HashMap<String, Entry>,
    ready: BTreeMap<Rank, String>,
    later: BTreeSet<(Instant, String)>,
    parked: BTreeSet<String>,
    arrivals: u64,
}

impl Queue {
    /// Adds a pod, or takes in its newer state. A changed pod is tried again.
    pub(super) fn put(&mut self, pod: Arc<PodInfo>) {
        let uid = pod.uid.clone();
        if let Some(entry) = self.entries.get_mut(&uid) {
            let changed = entry.pod.pod.spec != pod.pod.spec
                || entry.pod.pod.metadata.labels != pod.pod.metadata.labels;
            entry.pod = pod;
            if changed && matches!(entry.place, Place::Parked) {
                self.leave(&uid);
                self.make_ready(uid);
            }
            return;
        }
        let entry = Entry {
            pod,
            place: Place::Parked,
            attempts: 0,
            last: Instant::now(),
            rejected_by: BTreeSet::new(),
            missed: Vec::new(),
        };
        self.entries.insert(uid.clone(), entry);
        self.make_ready(uid);
    }

    /// Forgets a pod.
    pub(super) fn remove(&mut self, uid: &str) {
        self.leave(uid);
        self.entries.remove(uid);
    }

    /// The next pod to try. It stays known until [`Queue::remove`] or [`Queue::reject`].
    pub(super) fn take(&mut self) -> Option<Arc<PodInfo>> {
        self.ripen(Instant::now());
        let (_, uid) = self.ready.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::Taken;
        entry.attempts += 1;
        entry.missed.clear();
        Some(entry.pod.clone())
    }

    /// Puts a pod back that did not fit. No filter named means that something else failed:
    /// it is tried again after its back-off.
    pub(super) fn reject(&mut self, uid: &str, filters: BTreeSet<&'static str>) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.last = Instant::now();
        let helped = entry.missed.iter().any(|change| filters.iter().any(|f| change.may_help(f)));
        entry.rejected_by = filters;
        if helped || entry.rejected_by.is_empty() {
            self.back_off(uid);
        } else {
            entry.place = Place::Parked;
            self.parked.insert(uid.into());
        }
    }

    /// Tells of a change; pods it may help are tried again.
    pub(super) fn wake(&mut self, change: Change) {
        for entry in self.entries.values_mut().filter(|e| matches!(e.place, Place::Taken)) {
            if !entry.missed.contains(&change) {
                entry.missed.push(change);
            }
        }
        let helped = |uid: &&String| {
            self.entries.get(*uid).is_some_and(|e| e.rejected_by.iter().any(|f| change.may_help(f)))
        };
        let uids: Vec<String> = self.parked.iter().filter(helped).cloned().collect();
        for uid in uids {
            self.parked.remove(&uid);
            self.back_off(&uid);
        }
    }

    /// When the next pod becomes ready by itself.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let parked =
            self.parked.iter().filter_map(|uid| Some(self.entries.get(uid)?.last + MAX_PARKED)).min();
        let later = self.later.first().map(|(at, _)| *at);
        parked.into_iter().chain(later).min()
    }

    fn ripen(&mut self, now: Instant) {
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, uid)) = self.later.pop_first() else { break };
            self.make_ready(uid);
        }
        let old = |uid: &&String| self.entries.get(*uid).is_some_and(|e| e.last + MAX_PARKED <= now);
        let stale: Vec<String> = self.parked.iter().filter(old).cloned().collect();
        for uid in stale {
            self.parked.remove(&uid);
            self.make_ready(uid);
        }
    }

    /// Ready when the back-off since its last attempt is over.
    fn back_off(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let wait =
            FIRST_BACKOFF.saturating_mul(1 << entry.attempts.saturating_sub(1).min(10)).min(MAX_BACKOFF);
        let at = entry.last + wait;
        entry.place = Place::Later(at);
        self.later.insert((at, uid.into()));
    }

    fn make_ready(&mut self, uid: String) {
        let Some(entry) = self.entries.get_mut(&uid) else { return };
        self.arrivals += 1;
        let rank = (Reverse(entry.pod.priority), self.arrivals);
        entry.place = Place::Ready(rank);
        self.ready.insert(rank, uid);
    }

    fn leave(&mut self, uid: &str) {
        match self.entries.get(uid).map(|e| &e.place) {
            Some(Place::Ready(rank)) => {
                self.ready.remove(rank);
            }
            Some(Place::Later(at)) => {
                self.later.remove(&(*at, uid.to_owned()));
            }
            Some(Place::Parked) => {
                self.parked.remove(uid);
            }
            Some(Place::Taken) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Pod, PodSpec};

    fn pod(name: &str, priority: i32) -> Arc<PodInfo> {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(name.into());
        pod.metadata.name = Some(name.into());
        pod.spec = Some(PodSpec { priority: Some(priority), ..Default::default() });
        Arc::new(PodInfo::new(Arc::new(pod)))
    }

    fn take(queue: &mut Queue) -> String {
        queue.take().map_or_else(|| "-".into(), |p| p.uid.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn priority_before_age() {
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 5), ("c", 0)] {
            queue.put(pod(name, priority));
        }
        queue.put(pod("c", 0));
        let order: Vec<_> = (0..4).map(|_| take(&mut queue)).collect();
        assert_eq!(order, ["b", "a", "c", "-"]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_change_that_may_help_wakes_a_pod() {
        let mut queue = Queue::default();
        queue.put(pod("a", 0));
        take(&mut queue);
        queue.reject("a", BTreeSet::from(["NodeResourcesFit"]));
        queue.wake(Change::Volume);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(take(&mut queue), "-");
        queue.wake(Change::PodGone);
        assert_eq!(take(&mut queue), "a", "its back-off is over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_during_the_attempt_is_not_lost() {
        let mut queue = Queue::default();
        queue.put(pod("a", 0));
        take(&mut queue);
        queue.wake(Change::Node);
        queue.reject("a", BTreeSet::from(["NodeAffinity"]));
        assert_eq!(take(&mut queue), "-");
        tokio::time::advance(FIRST_BACKOFF).await;
        assert_eq!(take(&mut queue), "a");
        queue.reject("a", BTreeSet::from(["NodeAffinity"]));
        tokio::time::advance(MAX_PARKED).await;
        assert_eq!(take(&mut queue), "a", "tried again in the end");
        queue.remove("a");
        assert_eq!(queue.next_due(), None);
    }
}
