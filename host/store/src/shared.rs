//! The state with its readers and watchers: what both backends of this process have in common.
//!
//! Locks: each of them is taken with no other held, and never held over an await.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::mvcc::{Committed, State};
use crate::{
    Error, Event, KeyValue, MAX_BATCH_EVENTS, Range, RangeResult, Revision, Watch, WatchBatch, WatchSource,
};

/// Most watches open at once on one store.
pub(crate) const MAX_WATCHES: usize = 65_536;

pub(crate) struct Shared {
    pub(crate) state: RwLock<State>,
    watchers: Mutex<Vec<Arc<Watcher>>>,
    closed: AtomicBool,
    /// Bytes of log behind the newest checkpoint; stays 0 without a log.
    pub(crate) log_bytes: AtomicU64,
    /// The disk error that made the store read-only.
    pub(crate) broken: Mutex<Option<Error>>,
    /// Times the log refused something.
    pub(crate) refused: AtomicU64,
    /// Why the last checkpoint failed, if it did, and how many have.
    pub(crate) checkpoint_error: Mutex<Option<String>>,
    pub(crate) checkpoints_failed: AtomicU64,
}

/// The bell of one watch. Nothing is queued for it: it reads the history at its own pace.
struct Watcher {
    prefix: Bytes,
    bell: Notify,
}

impl Shared {
    pub(crate) fn new(state: State) -> Arc<Self> {
        Arc::new(Self {
            state: RwLock::new(state),
            watchers: Mutex::default(),
            closed: AtomicBool::new(false),
            log_bytes: AtomicU64::new(0),
            broken: Mutex::default(),
            refused: AtomicU64::new(0),
            checkpoint_error: Mutex::default(),
            checkpoints_failed: AtomicU64::new(0),
        })
    }

    pub(crate) fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, Error> {
        self.open()?;
        self.state.read().get(key, at)
    }

    pub(crate) fn range(&self, range: Range<'_>) -> Result<RangeResult, Error> {
        self.open()?;
        self.state.read().range(range)
    }

    pub(crate) fn revision(&self) -> Result<Revision, Error> {
        self.open()?;
        Ok(self.state.read().revision())
    }

    pub(crate) fn compacted(&self) -> Result<Revision, Error> {
        self.open()?;
        Ok(self.state.read().compacted())
    }

    pub(crate) fn watch(self: &Arc<Self>, prefix: &[u8], from: Revision) -> Result<Watch, Error> {
        self.open()?;
        self.state.read().readable(Some(from))?;
        let watcher = Arc::new(Watcher { prefix: Bytes::copy_from_slice(prefix), bell: Notify::new() });
        let mut watchers = self.watchers.lock();
        if watchers.len() >= MAX_WATCHES {
            return Err(Error::TooLarge {
                what: "the store (watches)",
                size: watchers.len() + 1,
                limit: MAX_WATCHES,
            });
        }
        watchers.push(watcher.clone());
        drop(watchers);
        Ok(Watch::new(LocalWatch { shared: self.clone(), watcher, reached: from }))
    }

    /// Wakes the watches that these changes concern.
    pub(crate) fn ring(&self, committed: &[Arc<Committed>]) {
        let concerns = |watcher: &Watcher| {
            committed.iter().flat_map(|c| &c.events).any(|event| event.key().starts_with(&watcher.prefix))
        };
        for watcher in self.watchers.lock().iter().filter(|watcher| concerns(watcher)) {
            watcher.bell.notify_one();
        }
    }

    /// Wakes the watches on exactly `prefix`, or all, to report how far they are.
    pub(crate) fn ring_progress(&self, prefix: Option<&[u8]>) {
        for watcher in self.watchers.lock().iter().filter(|w| prefix.is_none_or(|prefix| w.prefix == prefix))
        {
            watcher.bell.notify_one();
        }
    }

    /// Ends every watch and refuses everything from now on.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.ring_progress(None);
    }

    pub(crate) fn open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Number of watches open.
    pub(crate) fn watches(&self) -> usize {
        self.watchers.lock().len()
    }

    fn forget(&self, watcher: &Arc<Watcher>) {
        let mut watchers = self.watchers.lock();
        if let Some(index) = watchers.iter().position(|known| Arc::ptr_eq(known, watcher)) {
            watchers.swap_remove(index);
        }
    }
}

/// A watch that reads the shared history.
struct LocalWatch {
    shared: Arc<Shared>,
    watcher: Arc<Watcher>,
    reached: Revision,
}

impl LocalWatch {
    /// The next batch, if the store is ahead of the watch.
    fn poll(&mut self) -> Result<Option<WatchBatch>, Error> {
        let state = self.shared.state.read();
        if state.revision() == self.reached {
            return Ok(None);
        }
        if self.reached < state.compacted() {
            return Err(Error::Compacted { requested: self.reached, compacted: state.compacted() });
        }
        let mut events: Vec<Event> = Vec::new();
        let mut reached = state.revision();
        for committed in state.since(self.reached) {
            if events.len() >= MAX_BATCH_EVENTS {
                reached = committed.revision - 1;
                break;
            }
            events.extend(
                committed.events.iter().filter(|e| e.key().starts_with(&self.watcher.prefix)).cloned(),
            );
        }
        self.reached = reached;
        Ok(Some(WatchBatch { events, revision: reached }))
    }
}

#[async_trait]
impl WatchSource for LocalWatch {
    async fn next(&mut self) -> Option<Result<WatchBatch, Error>> {
        loop {
            // Asked before looking, so that what was committed before the close is still delivered.
            let closed = self.shared.open().is_err();
            if let Some(item) = self.poll().transpose() {
                return Some(item);
            }
            if closed {
                return None;
            }
            self.watcher.bell.notified().await;
        }
    }
}

impl Drop for LocalWatch {
    fn drop(&mut self) {
        self.shared.forget(&self.watcher);
    }
}
