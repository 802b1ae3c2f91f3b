//! Turns at the machine: so many requests are answered in place at a time, and where more come, tenants
//! (namespaces) take turns, so that one with many requests does not keep the others out.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst},
    },
};

use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

/// Requests of one tenant that may wait for a turn.
const MAX_WAITING: usize = 2_000;

/// Why there is no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTurn {
    /// Too many of the tenant's requests wait already.
    QueueFull,
    /// None came before the deadline.
    TooLate,
}

/// All turns. Clones are the same.
#[derive(Clone)]
pub(super) struct Turns(Arc<Inner>);

struct Inner {
    free: AtomicI64,
    waiting: AtomicUsize,
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    tenants: BTreeMap<String, VecDeque<oneshot::Sender<Turn>>>,
    /// Tenants with waiting requests; the one in front is next.
    order: VecDeque<String>,
}

/// A turn, given back when dropped.
pub(super) struct Turn(Option<Arc<Inner>>);

impl Turns {
    pub(super) fn new(most: usize) -> Self {
        let free = AtomicI64::new(i64::try_from(most).unwrap_or(i64::MAX));
        Self(Arc::new(Inner { free, waiting: AtomicUsize::new(0), queues: Mutex::default() }))
    }

    /// A turn, if there is one at once.
    pub(super) fn try_take(&self) -> Option<Turn> {
        let free = self.0.waiting.load(SeqCst) == 0 && self.0.try_take();
        free.then(|| Turn(Some(self.0.clone())))
    }

    /// A turn for a tenant: at once where nobody waits, else when it is the tenant's time.
    pub(super) async fn take(&self, tenant: &str, deadline: Instant) -> Result<Turn, NoTurn> {
        if let Some(turn) = self.try_take() {
            return Ok(turn);
        }
        let turn = self.enqueue(tenant)?;
        match timeout_at(deadline, turn).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(NoTurn::TooLate),
        }
    }

    fn enqueue(&self, tenant: &str) -> Result<oneshot::Receiver<Turn>, NoTurn> {
        let mut queues = self.0.queues.lock();
        let queue = queues.tenants.entry(tenant.to_string()).or_default();
        if queue.len() >= MAX_WAITING {
            queue.retain(|waiting| !waiting.is_closed());
        }
        if queue.len() >= MAX_WAITING {
            return Err(NoTurn::QueueFull);
        }
        let (sender, receiver) = oneshot::channel();
        let first = queue.is_empty();
        queue.push_back(sender);
        if first {
            queues.order.push_back(tenant.to_string());
        }
        self.0.waiting.fetch_add(1, SeqCst);
        // A turn given back meanwhile did not see this request.
        let handed = Inner::hand_out(&self.0, &mut queues);
        drop(queues);
        drop(handed);
        Ok(receiver)
    }
}

impl Inner {
    fn try_take(&self) -> bool {
        if self.free.fetch_sub(1, SeqCst) > 0 {
            return true;
        }
        self.free.fetch_add(1, SeqCst);
        false
    }

    /// Gives free turns to those that wait; returns what nobody took, to be dropped without the lock.
    fn hand_out(this: &Arc<Self>, queues: &mut Queues) -> Vec<Turn> {
        let mut refused = Vec::new();
        while !queues.order.is_empty() && this.try_take() {
            let Some(sender) = queues.next(&this.waiting) else {
                this.free.fetch_add(1, SeqCst);
                break;
            };
            if let Err(turn) = sender.send(Turn(Some(this.clone()))) {
                // Who waited has gone; the turn is the next one's.
                let mut turn = turn;
                turn.0 = None;
                this.free.fetch_add(1, SeqCst);
                refused.push(turn);
            }
        }
        refused
    }
}

impl Queues {
    fn next(&mut self, waiting: &AtomicUsize) -> Option<oneshot::Sender<Turn>> {
        let tenant = self.order.pop_front()?;
        let queue = self.tenants.get_mut(&tenant)?;
        let sender = queue.pop_front();
        waiting.fetch_sub(1, SeqCst);
        if queue.is_empty() {
            self.tenants.remove(&tenant);
        } else {
            self.order.push_back(tenant);
        }
        sender
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(inner) = self.0.take() else { return };
        inner.free.fetch_add(1, SeqCst);
        if inner.waiting.load(SeqCst) > 0 {
            let mut queues = inner.queues.lock();
            let refused = Inner::hand_out(&inner, &mut queues);
            drop(queues);
            drop(refused);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn tenants_take_turns_however_many_requests_one_has() {
        let turns = Turns::new(1);
        let first = turns.take("busy", soon()).await.unwrap();
        let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let mut waiting = Vec::new();
        for tenant in ["busy", "busy", "busy", "calm"] {
            let (turns, said) = (turns.clone(), said.clone());
            let before = turns.0.waiting.load(SeqCst);
            let look = turns.clone();
            waiting.push(tokio::spawn(async move {
                let turn = turns.take(tenant, soon()).await.unwrap();
                said.send(tenant).unwrap();
                drop(turn);
            }));
            while look.0.waiting.load(SeqCst) == before {
                tokio::task::yield_now().await;
            }
        }
        drop(first);
        let mut order = Vec::new();
        for _ in 0..4 {
            order.push(heard.recv().await.unwrap());
        }
        assert_eq!(order, ["busy", "calm", "busy", "busy"]);
        for task in waiting {
            task.await.unwrap();
        }
        assert_eq!((turns.0.free.load(SeqCst), turns.0.waiting.load(SeqCst)), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_leaves_the_turn_to_others() {
        let turns = Turns::new(1);
        let first = turns.take("a", soon()).await.unwrap();
        assert_eq!(turns.take("b", Instant::now()).await.err(), Some(NoTurn::TooLate));
        drop(first);
        assert!(turns.take("c", soon()).await.is_ok());
        assert_eq!((turns.0.free.load(SeqCst), turns.0.waiting.load(SeqCst)), (1, 0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_turn_is_lost_between_threads() {
        let turns = Turns::new(2);
        let tasks: Vec<_> = (0..8)
            .map(|i| {
                let turns = turns.clone();
                tokio::spawn(async move {
                    for _ in 0..500 {
                        drop(turns.take(&format!("t{}", i % 3), soon()).await.unwrap());
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!((turns.0.free.load(SeqCst), turns.0.waiting.load(SeqCst)), (2, 0));
    }
}
