//! Pods that wait for a node: ready to be tried, backing off, or waiting for a change that
//! could help them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    explain::{Plugin, Plugins},
    pod::PodInfo,
    resources::Resources,
};

/// Wait after a pod's first failure; doubles up to [`MAX_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A pod that no change has helped is tried again after that long.
const MAX_PARKED: Duration = Duration::from_secs(300);

/// Filters whose word may change when pods come or go.
const ABOUT_PODS: Plugins = Plugins::of(&[Plugin::InterPodAffinity, Plugin::PodTopologySpread]);

/// Something that may make room for a pod.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    /// The filters that may say something else now.
    filters: Plugins,
    /// What a node has left, when that is all that changed for [`Plugin::NodeResourcesFit`].
    room: Option<Resources>,
}

impl Change {
    /// A node came: any filter may have waited for it.
    pub(super) const NODE_CAME: Self = Self { filters: Plugins::ALL, room: None };
    /// A pod got a node, or its labels changed.
    pub(super) const POD_PLACED: Self = Self { filters: ABOUT_PODS, room: None };
    /// Volumes or claims changed.
    pub(super) const VOLUME: Self = Self {
        filters: Plugins::of(&[
            Plugin::VolumeBinding,
            Plugin::VolumeZone,
            Plugin::VolumeRestrictions,
            Plugin::NodeVolumeLimits,
        ]),
        room: None,
    };
    /// A namespace's labels changed.
    pub(super) const NAMESPACE: Self = Self { filters: Plugins::of(&[Plugin::InterPodAffinity]), room: None };
    /// A runtime class changed.
    pub(super) const RUNTIME: Self =
        Self { filters: Plugins::of(&[Plugin::RuntimeHandler, Plugin::NodeAffinity]), room: None };

    /// Something about a node changed that these filters look at.
    pub(super) fn of_node(filters: Plugins, room: Option<Resources>) -> Option<Self> {
        (!filters.is_empty()).then_some(Self { filters, room })
    }

    /// A pod left a node, which has so much left now.
    pub(super) fn pod_gone(room: Option<Resources>) -> Self {
        let filters = Plugins::of(&[
            Plugin::NodeResourcesFit,
            Plugin::NodePorts,
            Plugin::VolumeRestrictions,
            Plugin::NodeVolumeLimits,
            Plugin::InterPodAffinity,
            Plugin::PodTopologySpread,
        ]);
        Self { filters, room }
    }

    /// Whether a pod rejected by those filters may pass now.
    fn may_help(&self, pod: &PodInfo, rejected_by: Plugins) -> bool {
        const FIT: Plugins = Plugins::of(&[Plugin::NodeResourcesFit]);
        if !self.filters.meets(rejected_by) {
            return false;
        }
        // What is left on that node decides, if nothing but resources stood in the way.
        match &self.room {
            Some(room) if rejected_by == FIT => room.holds(&pod.requests),
            _ => true,
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
    /// Being tried, since that change.
    Taken(u64),
}

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    attempts: u32,
    last: Instant,
    rejected_by: Plugins,
}

/// Changes remembered for the pods that are being tried; who has missed more is tried again in any case.
const MAX_MISSED: usize = 1024;

/// What has changed while pods were being tried, numbered, once for all of them.
#[derive(Debug, Default)]
struct Missed {
    /// Number of the first that is remembered.
    first: u64,
    changes: VecDeque<Change>,
}

impl Missed {
    /// Number of the change that comes next.
    fn next(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    fn add(&mut self, change: &Change) {
        if self.changes.len() >= MAX_MISSED {
            self.forget_before(self.first + 1);
        }
        self.changes.push_back(change.clone());
    }

    fn forget_before(&mut self, number: u64) {
        while self.first < number && self.changes.pop_front().is_some() {
            self.first += 1;
        }
    }

    /// What came from that number on; `None` if not all of it is remembered.
    fn since(&self, number: u64) -> Option<impl Iterator<Item = &Change>> {
        let skipped = usize::try_from(number.checked_sub(self.first)?).ok()?;
        Some(self.changes.iter().skip(skipped))
    }
}

/// The queue. Holds each pod once, by uid.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: HashMap<String, Entry>,
    ready: BTreeMap<Rank, String>,
    later: BTreeSet<(Instant, String)>,
    /// Parked pods by the filters that rejected them, so that a change looks at none it cannot help.
    parked: BTreeMap<Plugins, BTreeSet<String>>,
    /// Since when each is parked.
    parked_since: BTreeSet<(Instant, String)>,
    /// Pods that are being tried, by the number of the change they began at.
    taken: BTreeSet<(u64, String)>,
    missed: Missed,
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
            rejected_by: Plugins::default(),
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
        let since = self.missed.next();
        entry.place = Place::Taken(since);
        entry.attempts = entry.attempts.saturating_add(1);
        let pod = entry.pod.clone();
        self.taken.insert((since, uid));
        Some(pod)
    }

    /// Puts a pod back that did not fit. No filter named means that something else failed:
    /// it is tried again after its back-off.
    pub(super) fn reject(&mut self, uid: &str, filters: Plugins) {
        let helped = self.entries.get(uid).is_some_and(|entry| match entry.place {
            Place::Taken(since) => self
                .missed
                .since(since)
                .is_none_or(|mut missed| missed.any(|change| change.may_help(&entry.pod, filters))),
            _ => false,
        });
        self.leave(uid);
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.last = Instant::now();
        entry.rejected_by = filters;
        if helped || filters.is_empty() {
            return self.back_off(uid);
        }
        entry.place = Place::Parked;
        self.parked_since.insert((entry.last, uid.into()));
        self.parked.entry(filters).or_default().insert(uid.into());
    }

    /// Tells of a change; pods it may help are tried again.
    pub(super) fn wake(&mut self, change: &Change) {
        if !self.taken.is_empty() {
            self.missed.add(change);
        }
        let met = self.parked.iter().filter(|(filters, _)| change.filters.meets(**filters));
        let helped: Vec<String> = met
            .flat_map(|(filters, uids)| uids.iter().map(move |uid| (*filters, uid)))
            .filter(|(filters, uid)| {
                self.entries.get(*uid).is_some_and(|e| change.may_help(&e.pod, *filters))
            })
            .map(|(_, uid)| uid.clone())
            .collect();
        for uid in helped {
            self.leave(&uid);
            self.back_off(&uid);
        }
    }

    /// When the next pod becomes ready by itself.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let parked = self.parked_since.first().map(|(since, _)| *since + MAX_PARKED);
        let later = self.later.first().map(|(at, _)| *at);
        parked.into_iter().chain(later).min()
    }

    fn ripen(&mut self, now: Instant) {
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, uid)) = self.later.pop_first() else { break };
            self.make_ready(uid);
        }
        while let Some((_, uid)) =
            self.parked_since.first().filter(|(at, _)| *at + MAX_PARKED <= now).cloned()
        {
            self.leave(&uid);
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
        let Some(entry) = self.entries.get(uid) else { return };
        match &entry.place {
            Place::Ready(rank) => {
                self.ready.remove(rank);
            }
            Place::Later(at) => {
                self.later.remove(&(*at, uid.to_owned()));
            }
            Place::Parked => {
                self.parked_since.remove(&(entry.last, uid.to_owned()));
                if let Some(all) = self.parked.get_mut(&entry.rejected_by) {
                    all.remove(uid);
                    if all.is_empty() {
                        self.parked.remove(&entry.rejected_by);
                    }
                }
            }
            Place::Taken(since) => {
                self.taken.remove(&(*since, uid.to_owned()));
                let oldest = self.taken.first().map_or(self.missed.next(), |(since, _)| *since);
                self.missed.forget_before(oldest);
            }
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
        queue.reject("a", Plugins::of(&[Plugin::NodeResourcesFit]));
        queue.wake(&Change::VOLUME);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(take(&mut queue), "-");
        queue.wake(&Change::pod_gone(None));
        assert_eq!(take(&mut queue), "a", "its back-off is over");
    }

    #[tokio::test(start_paused = true)]
    async fn room_that_is_too_small_wakes_nobody() {
        let mut queue = Queue::default();
        let mut big = (*pod("a", 0)).clone();
        big.requests.cpu = 500;
        queue.put(Arc::new(big));
        take(&mut queue);
        queue.reject("a", Plugins::of(&[Plugin::NodeResourcesFit]));
        let room = |cpu| Some(Resources { cpu, pods: 1, ..Default::default() });
        tokio::time::advance(FIRST_BACKOFF).await;
        queue.wake(&Change::pod_gone(room(400)));
        assert_eq!(take(&mut queue), "-");
        queue.wake(&Change::pod_gone(room(500)));
        assert_eq!(take(&mut queue), "a");
        queue.reject("a", Plugins::of(&[Plugin::NodeResourcesFit, Plugin::TaintToleration]));
        tokio::time::advance(MAX_BACKOFF).await;
        queue.wake(&Change::pod_gone(room(400)));
        assert_eq!(take(&mut queue), "a", "resources are not all that stood in its way");
        assert_eq!(queue.next_due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_during_the_attempt_is_not_lost() {
        let mut queue = Queue::default();
        queue.put(pod("a", 0));
        take(&mut queue);
        queue.wake(&Change::NODE_CAME);
        queue.reject("a", Plugins::of(&[Plugin::NodeAffinity]));
        assert_eq!(take(&mut queue), "-");
        tokio::time::advance(FIRST_BACKOFF).await;
        assert_eq!(take(&mut queue), "a");
        queue.reject("a", Plugins::of(&[Plugin::NodeAffinity]));
        tokio::time::advance(MAX_PARKED).await;
        assert_eq!(take(&mut queue), "a", "tried again in the end");
        queue.remove("a");
        assert_eq!(queue.next_due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_remembered_once_for_all_that_are_being_tried() {
        let filters = Plugins::of(&[Plugin::NodeResourcesFit]);
        let mut queue = Queue::default();
        for name in ["a", "b", "c"] {
            queue.put(pod(name, 0));
        }
        take(&mut queue);
        queue.wake(&Change::pod_gone(None));
        take(&mut queue);
        queue.wake(&Change::VOLUME);
        assert_eq!(queue.missed.changes.len(), 2);
        queue.reject("a", filters);
        assert_eq!(queue.missed.changes.len(), 1, "nobody is left who has missed the first");
        queue.reject("b", filters);
        assert_eq!((queue.missed.changes.len(), queue.parked_since.len()), (0, 1), "b came after the room");
        tokio::time::advance(FIRST_BACKOFF).await;
        // Of more changes than are remembered any may have helped.
        assert_eq!([take(&mut queue), take(&mut queue)], ["c", "a"]);
        (0..=MAX_MISSED).for_each(|_| queue.wake(&Change::VOLUME));
        assert_eq!(queue.missed.changes.len(), MAX_MISSED);
        queue.reject("c", filters);
        assert_eq!((queue.later.len(), queue.parked_since.len()), (1, 1));
        queue.remove("a");
        assert!(queue.missed.changes.is_empty());
    }
}
