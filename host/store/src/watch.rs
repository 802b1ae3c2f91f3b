//! What a watcher sees.

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Error, KeyValue, Revision};

/// Most events in one batch, unless a single revision has more.
pub const MAX_BATCH_EVENTS: usize = 1024;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A key was set.
    Put {
        /// What it holds since `kv.mod_revision`.
        kv: KeyValue,
        /// What it held before; `None` when it was created.
        previous: Option<KeyValue>,
    },
    /// A key was removed.
    Delete {
        /// The key.
        key: Bytes,
        /// The revision that removed it.
        revision: Revision,
        /// What it held; always known to the backends of this process, and to a remote one unless it was
        /// compacted meanwhile.
        previous: Option<KeyValue>,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { kv, .. } => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision it changed in.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put { kv, .. } => kv.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// The next changes under a watch's prefix: whole revisions only, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    /// The changes; empty when the batch only reports progress.
    pub events: Vec<Event>,
    /// Every change under the prefix up to this revision has been delivered. Rises from batch to batch.
    pub revision: Revision,
}

/// Where the batches come from; one implementation per kind of backend.
#[async_trait]
pub trait WatchSource: Send {
    /// As [`Watch::next`].
    async fn next(&mut self) -> Option<Result<WatchBatch, Error>>;
}

/// A running watch; dropping it ends it.
pub struct Watch {
    source: Box<dyn WatchSource>,
    ended: bool,
}

impl Watch {
    /// A watch fed by `source`.
    pub fn new(source: impl WatchSource + 'static) -> Self {
        Self { source: Box::new(source), ended: false }
    }

    /// Waits for the next batch. An error is the last item: [`Error::Compacted`] when the watcher was too slow for
    /// the history kept. `None` after that, or when the store was closed. Safe to drop and call again.
    pub async fn next(&mut self) -> Option<Result<WatchBatch, Error>> {
        if self.ended {
            return None;
        }
        let item = self.source.next().await;
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }
}
