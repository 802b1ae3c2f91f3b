//! The revisions that can be called, and what is known of each: how, where, and how busy it is.
//!
//! The revision controller adds and removes members, the gateway calls them, the autoscaler
//! watches their activity. A member that no request comes to costs its row here and nothing else.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use parking_lot::RwLock;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
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

/// What a revision's spec says about its requests and pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Longest time for a whole answer.
    pub timeout: Duration,
    /// Most requests a pod answers at a time; 0 for no limit.
    pub concurrency: u32,
    /// Between which numbers of pods, and by what measure, it is scaled.
    pub bounds: Bounds,
}

/// One revision.
pub struct Member {
    /// Which.
    pub key: Key,
    /// Its limits; a revision's never change.
    pub limits: Limits,
    /// How to answer in place; empty while it needs pods.
    pub in_place: ArcSwapOption<Prepared>,
    /// The pods that are ready, by address.
    pub backends: watch::Sender<Arc<[SocketAddr]>>,
    /// How busy it is.
    pub activity: Activity,
    /// Pods asked for; below zero before anyone has looked.
    pub replicas: AtomicI32,
    /// Requests waiting for a pod.
    pub waiting: AtomicI64,
}

impl Member {
    fn new(key: Key, limits: Limits) -> Self {
        Self {
            key,
            limits,
            in_place: ArcSwapOption::empty(),
            backends: watch::Sender::new(Arc::from([])),
            activity: Activity::default(),
            replicas: AtomicI32::new(-1),
            waiting: AtomicI64::new(0),
        }
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

/// All members.
#[derive(Default)]
pub struct Fleet {
    members: RwLock<HashMap<Key, Arc<Member>>>,
    /// Told when a member that was idle gets a request.
    pub woken: Notify,
    /// Marked when members come or go.
    pub changed: watch::Sender<()>,
}

impl Fleet {
    /// The member of that name.
    pub fn get(&self, key: &Key) -> Option<Arc<Member>> {
        self.members.read().get(key).cloned()
    }

    /// The member of that name, made if it is new.
    pub fn member(&self, key: &Key, limits: impl FnOnce() -> Limits) -> Arc<Member> {
        if let Some(member) = self.get(key) {
            return member;
        }
        let mut members = self.members.write();
        let member =
            members.entry(key.clone()).or_insert_with(|| Arc::new(Member::new(key.clone(), limits())));
        self.changed.send_replace(());
        member.clone()
    }

    /// All members, in no order.
    pub fn all(&self) -> Vec<Arc<Member>> {
        self.members.read().values().cloned().collect()
    }

    /// Forgets members that `keep` refuses, and returns them.
    pub fn retain(&self, keep: impl Fn(&Key) -> bool) -> Vec<Arc<Member>> {
        let mut members = self.members.write();
        let gone: Vec<_> = members.values().filter(|m| !keep(&m.key)).cloned().collect();
        for member in &gone {
            members.remove(&member.key);
        }
        if !gone.is_empty() {
            self.changed.send_replace(());
        }
        gone
    }

    /// Counts a request of a member until the returned value is dropped.
    pub fn begin(&self, member: &Arc<Member>) -> InFlight {
        let before = member.activity.in_flight.fetch_add(1, Relaxed);
        member.activity.started.fetch_add(1, Relaxed);
        if before == 0 && member.replicas.load(Relaxed) <= 0 {
            self.woken.notify_one();
        }
        InFlight { member: member.clone(), since: Instant::now() }
    }
}
