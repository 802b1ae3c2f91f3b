//! A work queue: each key at most once, one worker per key, back-off per key.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    hash::Hash,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

/// Keys that may wait at once. When one does not fit, everything
/// is listed again ([`Queue::refill_from`]) once there is room.
const MAX_WAITING: usize = 200_000;
/// Wait after a key's first failure; doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(20);
/// Longest wait after a failure.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

type Refill<K> = Box<dyn Fn() -> Vec<K> + Send + Sync>;

/// A queue of keys. Shared between those who add and the one loop that takes.
pub struct Queue<K> {
    inner: Mutex<Inner<K>>,
    wake: Notify,
    refill: Mutex<Vec<Refill<K>>>,
}

struct Inner<K> {
    ready: VecDeque<K>,
    queued: HashSet<K>,
    busy: HashSet<K>,
    again: HashSet<K>,
    later: BTreeSet<(Instant, K)>,
    due: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
    overflow: bool,
}

impl<K: Clone + Eq + Hash + Ord> Default for Queue<K> {
    fn default() -> Self {
        let inner = Inner {
            ready: VecDeque::new(),
            queued: HashSet::new(),
            busy: HashSet::new(),
            again: HashSet::new(),
            later: BTreeSet::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            overflow: false,
        };
        Self { inner: Mutex::new(inner), wake: Notify::new(), refill: Mutex::default() }
    }
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    /// Adds a key; a no-op when it already waits. One being worked on runs once more after.
    pub fn add(&self, key: K) {
        if self.inner.lock().push(key) {
            self.wake.notify_one();
        }
    }

    /// Adds a key after a while; the earlier of two such times counts.
    pub fn add_after(&self, key: K, wait: Duration) {
        if wait.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + wait;
        let mut inner = self.inner.lock();
        match inner.due.get(&key).copied() {
            Some(old) if old <= at => return,
            Some(old) => {
                inner.later.remove(&(old, key.clone()));
            }
            None if inner.later.len() >= MAX_WAITING => {
                inner.overflow = true;
                return;
            }
            None => {}
        }
        inner.due.insert(key.clone(), at);
        inner.later.insert((at, key));
        drop(inner);
        self.wake.notify_one();
    }

    /// The next key; it counts as busy until [`Queue::done`], [`Queue::failed`].
    pub async fn next(&self) -> K {
        loop {
            let (wait, overflow) = {
                let mut inner = self.inner.lock();
                inner.ripen(Instant::now());
                if let Some(key) = inner.pop() {
                    return key;
                }
                (inner.later.first().map(|(at, _)| *at), std::mem::take(&mut inner.overflow))
            };
            if overflow {
                self.refill();
                continue;
            }
            match wait {
                Some(at) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    /// Ends work on a key and forgets its failures.
    pub fn done(&self, key: &K) {
        self.inner.lock().failures.remove(key);
        self.finish(key);
    }

    /// Ends work on a key that failed; it comes back after its back-off, which is returned.
    pub fn failed(&self, key: &K) -> Duration {
        let failures = {
            let mut inner = self.inner.lock();
            let count = inner.failures.entry(key.clone()).or_insert(0);
            *count = count.saturating_add(1);
            *count
        };
        let wait = backoff(failures);
        self.finish(key);
        self.add_after(key.clone(), wait);
        wait
    }

    /// Says how to list all keys, for when some had to be dropped.
    pub fn refill_from(&self, list: impl Fn() -> Vec<K> + Send + Sync + 'static) {
        self.refill.lock().push(Box::new(list));
    }

    fn refill(&self) {
        let keys: Vec<K> = self.refill.lock().iter().flat_map(|list| list()).collect();
        keys.into_iter().for_each(|key| self.add(key));
    }

    /// Keys that wait or will.
    pub fn len(&self) -> usize {
        let inner = self.inner.lock();
        inner.ready.len() + inner.later.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn finish(&self, key: &K) {
        let mut inner = self.inner.lock();
        inner.busy.remove(key);
        if inner.again.remove(key) && inner.push(key.clone()) {
            drop(inner);
            self.wake.notify_one();
        }
    }
}

impl<K: Clone + Eq + Hash + Ord> Inner<K> {
    fn push(&mut self, key: K) -> bool {
        if self.busy.contains(&key) {
            self.again.insert(key);
            return false;
        }
        if self.queued.contains(&key) {
            return false;
        }
        if self.ready.len() >= MAX_WAITING {
            self.overflow = true;
            return false;
        }
        self.queued.insert(key.clone());
        self.ready.push_back(key);
        true
    }

    fn pop(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        self.busy.insert(key.clone());
        Some(key)
    }

    fn ripen(&mut self, now: Instant) {
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.later.pop_first() else { return };
            self.due.remove(&key);
            self.push(key);
        }
    }
}

fn backoff(failures: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_runs_alone() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert_eq!(queue.next().await, "b");
        assert_eq!(queue.len(), 0, "a is busy, not waiting");
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_two_times_counts() {
        let queue = Queue::default();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(9));
        queue.add_after("a", Duration::from_secs(3));
        queue.add_after("a", Duration::from_secs(5));
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 3);
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time_up_to_a_bound() {
        let queue = Queue::default();
        queue.add("a");
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            let key = queue.next().await;
            let wait = queue.failed(&key);
            assert!(wait > last || wait == MAX_BACKOFF);
            last = wait;
        }
        assert_eq!(last, MAX_BACKOFF);
        let key = queue.next().await;
        queue.done(&key);
        queue.add("a");
        let key = queue.next().await;
        assert_eq!(queue.failed(&key), FIRST_BACKOFF);
    }
}
