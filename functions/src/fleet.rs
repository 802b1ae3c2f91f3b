//! The revisions that can be called, and what is known of each: how, where, and how busy it is.
//!
//! The revision controller adds and removes members, the gateway calls them, the autoscaler
//! watches their activity. A member that no request comes to costs its row here and nothing else.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64,
            Ordering::{AcqRel, Relaxed},
        },
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, timeout},
};

use crate::{autoscaler::Bounds, executor::Prepared};

/// A revision by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// From its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a revision's spec and the settings say about its requests and pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Longest time for a whole answer.
    pub timeout: Duration,
    /// Longest time to an answer's first byte, if it is bounded apart.
    pub response_start: Option<Duration>,
    /// Longest pause within an answer, if it is bounded.
    pub idle: Option<Duration>,
    /// Most requests a pod answers at a time; 0 for no limit.
    pub concurrency: u32,
    /// Whether its pods speak HTTP/2 without negotiation (the port is named `h2c`).
    pub h2c: bool,
    /// Between which numbers of pods, and by what measure, it is scaled.
    pub bounds: Bounds,
}

impl Default for Limits {
    /// Those of a revision that says nothing, with Knative's settings.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(300),
            response_start: None,
            idle: None,
            concurrency: 0,
            h2c: false,
            bounds: Bounds::read(&Default::default(), 0, &Default::default()),
        }
    }
}

/// One revision.
pub struct Member {
    /// Which.
    pub key: Key,
    limits: ArcSwap<Limits>,
    in_place: ArcSwapOption<Prepared>,
    /// The pods that are ready; marked as changed also when it can be answered in place.
    pub(crate) backends: watch::Sender<Arc<[Arc<Backend>]>>,
    /// Told when a pod has room again.
    pub(crate) freed: Notify,
    /// Held by the first of the requests that wait for a pod; the others wait for it in their order.
    pub(crate) first: tokio::sync::Mutex<()>,
    /// How busy it is.
    pub activity: Activity,
    /// Pods asked for; below zero before anyone has looked.
    pub replicas: AtomicI32,
    /// Requests waiting for a pod.
    pub waiting: AtomicI64,
    /// How long fetching and compiling took when it was made ready, in microseconds.
    pub prepared_micros: AtomicU64,
    gone: AtomicBool,
    /// Whether it has had a pod that was ready.
    has_run: AtomicBool,
    /// Whether it is among those the autoscaler is to look at.
    noted: AtomicBool,
}

/// A pod that is ready, with the requests it has.
#[derive(Debug)]
pub struct Backend {
    /// Where it takes requests.
    pub address: SocketAddr,
    /// Requests it is answering.
    pub(crate) in_flight: AtomicU32,
}

impl Backend {
    /// A pod without requests.
    pub fn new(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self { address, in_flight: AtomicU32::new(0) })
    }
}

impl Member {
    fn new(key: Key, limits: Limits) -> Self {
        Self {
            key,
            limits: ArcSwap::from_pointee(limits),
            in_place: ArcSwapOption::empty(),
            backends: watch::Sender::new(Arc::from([])),
            freed: Notify::new(),
            first: tokio::sync::Mutex::default(),
            activity: Activity::default(),
            replicas: AtomicI32::new(-1),
            waiting: AtomicI64::new(0),
            prepared_micros: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            has_run: AtomicBool::new(false),
            noted: AtomicBool::new(false),
        }
    }

    /// Its limits now.
    pub fn limits(&self) -> arc_swap::Guard<Arc<Limits>> {
        self.limits.load()
    }

    /// Gives it other limits, when settings have changed; whether they are others.
    fn set_limits(&self, limits: Limits) -> bool {
        let others = **self.limits.load() != limits;
        if others {
            self.limits.store(Arc::new(limits));
        }
        others
    }

    /// How to answer in place; nothing while it needs pods.
    pub fn in_place(&self) -> arc_swap::Guard<Option<Arc<Prepared>>> {
        self.in_place.load()
    }

    /// Says how to answer in place, or that it needs pods, and wakes requests that wait.
    pub fn set_in_place(&self, prepared: Option<Prepared>) {
        self.in_place.store(prepared.map(Arc::new));
        self.backends.send_modify(|_| {});
    }

    /// Replaces the pods; those that stay keep count of their requests. Says whether anything changed.
    pub fn set_backends(&self, mut addresses: Vec<SocketAddr>) -> bool {
        addresses.sort_unstable();
        addresses.dedup();
        if !addresses.is_empty() {
            self.has_run.store(true, Relaxed);
        }
        self.backends.send_if_modified(|old| {
            if old.iter().map(|b| b.address).eq(addresses.iter().copied()) {
                return false;
            }
            let kept = |address: &SocketAddr| old.iter().find(|b| b.address == *address).cloned();
            *old = addresses.iter().map(|a| kept(a).unwrap_or_else(|| Backend::new(*a))).collect();
            true
        })
    }

    /// Whether it has had a pod that was ready, be it gone again.
    pub(crate) fn has_run(&self) -> bool {
        self.has_run.load(Relaxed)
    }

    /// Whether its revision has been deleted.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }
}

/// Requests of one revision: counted at their start and end, never locked.
#[derive(Debug, Default)]
pub struct Activity {
    in_flight: AtomicI64,
    started: AtomicU64,
    busy_micros: AtomicU64,
}

/// A moment's reading of an [`Activity`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Requests being answered.
    pub in_flight: i64,
    /// Requests ever started.
    pub started: u64,
    /// Time spent on requests that have ended, in microseconds.
    pub busy_micros: u64,
}

impl Activity {
    /// What it is now.
    pub fn read(&self) -> Reading {
        Reading {
            in_flight: self.in_flight.load(Relaxed),
            started: self.started.load(Relaxed),
            busy_micros: self.busy_micros.load(Relaxed),
        }
    }
}

/// A request being answered; ends when dropped, however that comes.
pub struct InFlight {
    member: Arc<Member>,
    since: Instant,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let spent = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.member.activity.busy_micros.fetch_add(spent, Relaxed);
        self.member.activity.in_flight.fetch_sub(1, Relaxed);
    }
}

/// Requests that wait for members nobody knows yet; more are told at once that there is none.
const MAX_UNKNOWN: usize = 10_000;

/// Room for those requests.
struct Unknown(Semaphore);

impl Default for Unknown {
    fn default() -> Self {
        Self(Semaphore::new(MAX_UNKNOWN))
    }
}

/// All members.
#[derive(Default)]
pub struct Fleet {
    members: RwLock<HashMap<Key, Arc<Member>>>,
    /// Members that the autoscaler is to look at, each once.
    noted: Mutex<Vec<Arc<Member>>>,
    /// Told when there is one.
    pub(crate) woken: Notify,
    /// Members whose pods nobody has told them yet.
    fresh: Mutex<Vec<Key>>,
    unknown: Unknown,
    /// Marked when members come or go.
    pub changed: watch::Sender<()>,
}

impl Fleet {
    /// The member of that name.
    pub fn get(&self, key: &Key) -> Option<Arc<Member>> {
        self.members.read().get(key).cloned()
    }

    /// The member of that name, waiting for it as long as `patience` while there is none.
    pub async fn wait(&self, key: &Key, patience: Duration) -> Option<Arc<Member>> {
        let _room = self.unknown.0.try_acquire().ok()?;
        let mut changes = self.changed.subscribe();
        let found = async {
            loop {
                if let Some(member) = self.get(key) {
                    return member;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        timeout(patience, found).await.ok()
    }

    /// The member of that name with these limits, made if it is new.
    pub fn member(&self, key: &Key, limits: Limits) -> Arc<Member> {
        if let Some(member) = self.get(key) {
            if member.set_limits(limits) {
                self.note(&member);
            }
            return member;
        }
        let mut members = self.members.write();
        let member = members.entry(key.clone()).or_insert_with(|| Arc::new(Member::new(key.clone(), limits)));
        let member = member.clone();
        drop(members);
        self.fresh.lock().push(key.clone());
        self.note(&member);
        self.changed.send_replace(());
        member
    }

    /// The members that have come since this was last asked.
    pub(crate) fn take_fresh(&self) -> Vec<Key> {
        std::mem::take(&mut *self.fresh.lock())
    }

    /// Takes in how many pods a member is to have by its deployment.
    pub fn set_replicas(&self, member: &Arc<Member>, replicas: i32) {
        if member.replicas.swap(replicas, Relaxed) != replicas {
            self.note(member);
        }
    }

    /// Lets the autoscaler look at a member.
    fn note(&self, member: &Arc<Member>) {
        // Seen together with what it is noted for by who takes it: see `take_noted`.
        if !member.noted.swap(true, AcqRel) {
            self.noted.lock().push(member.clone());
            self.woken.notify_one();
        }
    }

    /// The members that have come, gone or changed, or had none of their pods left when a request came,
    /// since this was last asked.
    pub(crate) fn take_noted(&self) -> Vec<Arc<Member>> {
        let noted = std::mem::take(&mut *self.noted.lock());
        for member in &noted {
            member.noted.swap(false, AcqRel);
        }
        noted
    }

    /// All members, in no order.
    pub fn all(&self) -> Vec<Arc<Member>> {
        self.members.read().values().cloned().collect()
    }

    /// Forgets members that `keep` refuses, and returns them.
    pub fn retain(&self, keep: impl Fn(&Key) -> bool) -> Vec<Arc<Member>> {
        let keys: Vec<Key> = self.members.read().keys().filter(|key| !keep(key)).cloned().collect();
        keys.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Forgets one member, and returns it.
    pub fn remove(&self, key: &Key) -> Option<Arc<Member>> {
        let member = self.members.write().remove(key)?;
        member.gone.store(true, Relaxed);
        self.note(&member);
        self.changed.send_replace(());
        Some(member)
    }

    /// Counts a request of a member, which came at `since`, until the returned value is dropped.
    pub fn begin(&self, member: &Arc<Member>, since: Instant) -> InFlight {
        let before = member.activity.in_flight.fetch_add(1, Relaxed);
        member.activity.started.fetch_add(1, Relaxed);
        if before == 0 && member.replicas.load(Relaxed) <= 0 {
            self.note(member);
        }
        InFlight { member: member.clone(), since }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_changed_or_woke_is_to_be_looked_at() {
        let fleet = Fleet::default();
        let noted = || fleet.take_noted().iter().map(|m| m.key.name.clone()).collect::<Vec<_>>();
        let make = |name: &str, limits: Limits| fleet.member(&Key::new("default", name), limits);
        let (a, b) = (make("a", Limits::default()), make("b", Limits::default()));
        assert_eq!(noted(), ["a", "b"]);
        fleet.set_replicas(&a, 0);
        fleet.set_replicas(&b, 2);
        assert_eq!(noted(), ["a", "b"]);
        fleet.set_replicas(&a, 0);
        make("b", Limits::default());
        assert!(noted().is_empty(), "nothing has changed");
        let requests = [&a, &a, &b].map(|member| fleet.begin(member, Instant::now()));
        assert_eq!(noted(), ["a"], "once, and not one that has pods");
        drop(requests);
        make("b", Limits { concurrency: 1, ..Limits::default() });
        assert_eq!(noted(), ["b"]);
        assert!(fleet.remove(&a.key).is_some_and(|a| a.is_gone()) && fleet.remove(&a.key).is_none());
        assert_eq!(noted(), ["a"]);
        assert_eq!(fleet.retain(|_| false).len(), 1);
        assert_eq!(noted(), ["b"]);
    }
}
