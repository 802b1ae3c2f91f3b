//! A store that lives and dies with the process.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;

use crate::mvcc::{History, Overlay, SWEEP, State, Verdict};
use crate::shared::Shared;
use crate::{
    Error, KeyValue, Range, RangeResult, Revision, SnapshotInfo, Store, Txn, TxnOutcome, Watch, snapshot,
};

/// The store in memory. Clones share one state.
#[derive(Clone)]
pub struct Memory {
    shared: Arc<Shared>,
    history: History,
}

impl Memory {
    /// An empty store with the default bounds on history.
    pub fn new() -> Self {
        Self::with_history(History::default())
    }

    /// An empty store that keeps so much of the past.
    pub fn with_history(history: History) -> Self {
        Self { shared: Shared::new(State::new()), history }
    }

    /// Writes everything that exists now, with a checksum.
    pub fn snapshot(&self, writer: impl io::Write) -> Result<SnapshotInfo, Error> {
        snapshot::write(&self.shared, writer)
    }

    /// A store with what [`snapshot`](Self::snapshot) wrote, at a revision far beyond it, so that no revision
    /// handed out after the snapshot was taken can mean something else.
    pub fn restore(reader: impl io::Read) -> Result<Self, Error> {
        let (_, state) = snapshot::read(reader)?;
        Ok(Self { shared: Shared::new(state), history: History::default() })
    }

    /// Ends every watch; operations fail with [`Error::Closed`] from now on.
    pub fn close(&self) {
        self.shared.close();
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Store for Memory {
    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, Error> {
        self.shared.get(key, at)
    }

    async fn range(&self, range: Range<'_>) -> Result<RangeResult, Error> {
        self.shared.range(range)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error> {
        self.shared.open()?;
        txn.check()?;
        let mut state = self.shared.state.write();
        let changes = match state.decide(&Overlay::new(), &txn) {
            Verdict::Failed(current) => return Ok(TxnOutcome::Failed { current }),
            Verdict::Unchanged => return Ok(TxnOutcome::Committed { revision: state.revision() }),
            Verdict::Commit(changes) => changes,
        };
        let (revision, now) = (state.revision() + 1, Instant::now());
        state.apply(revision, changes, now);
        state.expire(&self.history, now);
        state.sweep(SWEEP.max(2 * txn.ops.len()));
        drop(state);
        self.shared.ring_progress(None);
        Ok(TxnOutcome::Committed { revision })
    }

    async fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, Error> {
        self.shared.watch(prefix, from)
    }

    async fn request_progress(&self, prefix: &[u8]) -> Result<(), Error> {
        self.shared.open()?;
        self.shared.ring_progress(Some(prefix));
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.shared.open()?;
        self.shared.state.write().compact(revision)?;
        // Others get the lock in between.
        while self.shared.state.write().sweep(SWEEP) {}
        Ok(())
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.shared.revision()
    }

    async fn compacted(&self) -> Result<Revision, Error> {
        self.shared.compacted()
    }
}
