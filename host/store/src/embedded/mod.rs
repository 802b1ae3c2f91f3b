//! The store in a data directory of this machine.
//!
//! A write is acknowledged when its record in an append-only log is durable; one sync serves all writers that
//! wait at that moment. The whole state is in memory. Checkpoints, written aside, keep the log short; they are
//! not what an acknowledgement rests on. See [`record`] for the bytes, [`recover`] for what happens after a
//! crash, [`checkpoint`] for what is kept where.

mod checkpoint;
mod dir;
mod disk;
mod engine;
mod inspect;
mod log;
mod record;
mod recover;
mod shelf;
#[cfg(test)]
mod sim;
mod writer;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use self::checkpoint::{Manifest, SLOTS, Shelf, SlotInfo};
use self::disk::{Disk, RealDisk};
use self::engine::Engine;
pub use self::inspect::{CheckpointInfo, Contents, Inspection, LogEntry, LoggedChange, Repair, SegmentInfo};
use self::log::Log;
pub use self::recover::Recovery;
use self::recover::{Closed, recover};
use self::shelf::SledShelf;
use self::writer::{Queue, Request, Writer};
use crate::mvcc::{History, State};
use crate::shared::Shared;
use crate::{
    Error, Health, KeyValue, Range, RangeResult, Revision, SnapshotInfo, Store, Txn, TxnOutcome, Watch,
    snapshot,
};

/// How an embedded store behaves.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How much of the past is kept.
    pub history: History,
    /// Longest time after which a relaxed write is made durable: what a power failure may cost of such writes. The
    /// default is about as long as Linux itself leaves written data in memory.
    pub relaxed_delay: Duration,
    /// Longest time after which a held write is made durable: what the death of the process may cost of such writes.
    /// By default an idle store writes a page or two a minute and no more.
    pub held_delay: Duration,
    /// A log segment is ended when it is larger, in bytes.
    pub segment_bytes: u64,
    /// A checkpoint is written after so many bytes of log. The log takes up to about twice that, and a start reads
    /// up to that much.
    pub checkpoint_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            history: History::default(),
            relaxed_delay: Duration::from_secs(30),
            held_delay: Duration::from_secs(60),
            segment_bytes: 16 << 20,
            checkpoint_bytes: 32 << 20,
        }
    }
}

/// How an embedded store is doing, for metrics and health checks. Each number has a bound: of history in
/// [`Settings::history`], of the log in [`Settings::checkpoint_bytes`], of requests [`Stats::MAX_WAITING`].
#[derive(Debug, Clone)]
pub struct Stats {
    /// The current revision.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub compacted: Revision,
    /// Number of keys.
    pub keys: u64,
    /// Memory that the past takes, in bytes.
    pub history_bytes: usize,
    /// Bytes of log since the last checkpoint was begun.
    pub log_bytes: u64,
    /// Requests waiting for the writer.
    pub waiting: usize,
    /// Watches open.
    pub watches: usize,
    /// Why the store is read-only, if it is.
    pub broken: Option<Error>,
    /// Writes and syncs of the log that failed since the store was opened.
    pub refused: u64,
    /// Why the last checkpoint failed, if it did. The log grows until one succeeds.
    pub checkpoint_error: Option<String>,
    /// Checkpoints that failed since the store was opened.
    pub checkpoints_failed: u64,
}

impl Stats {
    /// Most requests waiting; further writers wait for room.
    pub const MAX_WAITING: usize = writer::QUEUE;

    fn figures(&self) -> [(&'static str, &'static str, f64); 8] {
        [
            ("wasmk_store_keys", "Keys in the store.", self.keys as f64),
            ("wasmk_store_history_bytes", "Memory that past revisions take.", self.history_bytes as f64),
            ("wasmk_store_log_bytes", "Log written since the last checkpoint.", self.log_bytes as f64),
            ("wasmk_store_waiting_requests", "Writes waiting for the log.", self.waiting as f64),
            ("wasmk_store_watches", "Watches open on the store.", self.watches as f64),
            (
                "wasmk_store_read_only",
                "1 after a disk error that needs a restart.",
                f64::from(u8::from(self.broken.is_some())),
            ),
            (
                "wasmk_store_write_errors_total",
                "Writes and syncs of the log that failed.",
                self.refused as f64,
            ),
            (
                "wasmk_store_checkpoint_errors_total",
                "Checkpoints that failed.",
                self.checkpoints_failed as f64,
            ),
        ]
    }
}

/// The embedded store. Clones share it; it closes with the last of them, or by [`close`](Self::close).
#[derive(Clone)]
pub struct Embedded {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    disk: Arc<dyn Disk>,
    path: PathBuf,
    running: Mutex<Option<Running>>,
}

/// What ends with the store.
struct Running {
    writer: JoinHandle<Result<Closed, Error>>,
    _lock: File,
}

impl Embedded {
    /// Opens the store in a directory, creating both if need be, and reports what was found. Blocks on the disk.
    ///
    /// An unfinished write at the end of the log was never acknowledged and is cut off. Any other damage, another
    /// format, or another process in the same directory is an error, and nothing is changed.
    pub fn open(path: impl AsRef<Path>, settings: Settings) -> Result<(Self, Recovery), Error> {
        let path = path.as_ref();
        let lock = dir::lock(path)?;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(path));
        let shelf: Arc<dyn Shelf> = Arc::new(SledShelf::new(path));
        let (engine, recovery) = start(&disk, &*shelf, settings)?;
        let (shared, queue) = (engine.shared.clone(), Queue::new());
        let writer = Writer::new(engine, queue.clone(), disk.clone(), shelf);
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(|error| Error::io("start a thread for", path, error))?;
        let running = Mutex::new(Some(Running { writer, _lock: lock }));
        let inner = Inner { shared, queue, disk, path: path.to_path_buf(), running };
        Ok((Self { inner: Arc::new(inner) }, recovery))
    }

    /// Makes everything durable and releases the directory. Watches end; operations fail with [`Error::Closed`].
    pub async fn close(&self) -> Result<(), Error> {
        let inner = self.inner.clone();
        let closed = tokio::task::spawn_blocking(move || inner.stop()).await;
        closed.unwrap_or_else(|error| Err(Error::Backend(format!("closing failed: {error}"))))
    }

    /// The data directory.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// How it is doing.
    pub fn stats(&self) -> Stats {
        let Inner { shared, queue, .. } = &*self.inner;
        let (broken, waiting, watches) = (shared.broken.lock().clone(), queue.len(), shared.watches());
        let log_bytes = shared.log_bytes.load(Ordering::Relaxed);
        let refused = shared.refused.load(Ordering::Relaxed);
        let checkpoints_failed = shared.checkpoints_failed.load(Ordering::Relaxed);
        let checkpoint_error = shared.checkpoint_error.lock().clone();
        let state = shared.state.read();
        Stats {
            revision: state.revision(),
            compacted: state.compacted(),
            keys: state.live(),
            history_bytes: state.history_bytes(),
            log_bytes,
            waiting,
            watches,
            broken,
            refused,
            checkpoint_error,
            checkpoints_failed,
        }
    }

    /// Writes everything that exists now, with a checksum. Blocks on the writer, but no other user of the store.
    pub fn snapshot(&self, writer: impl io::Write) -> Result<SnapshotInfo, Error> {
        self.inner.shared.open()?;
        snapshot::write(&self.inner.shared, writer)
    }

    /// Makes a store in an absent or empty directory from what [`snapshot`](Self::snapshot) wrote; open it
    /// afterwards. It starts at a revision far beyond the snapshot's, so that no revision handed out after the
    /// snapshot was taken can mean something else.
    pub fn restore(path: impl AsRef<Path>, reader: impl io::Read) -> Result<SnapshotInfo, Error> {
        let path = path.as_ref();
        let (info, state) = snapshot::read(reader)?;
        create(path, &state)?;
        Ok(info)
    }

    /// Reads a directory that no process has open and tells what is in it and what is wrong with it. An error says
    /// that it is no store of this program at all. Changes nothing.
    pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection, Error> {
        inspect::inspect(path.as_ref())
    }

    /// Everything that can be read in a directory that no process has open, up to the first damage.
    pub fn contents(path: impl AsRef<Path>) -> Result<Contents, Error> {
        inspect::contents(path.as_ref())
    }

    /// Hands every record of the log of a directory that no process has open to `each`, and every place that
    /// cannot be read.
    pub fn log(path: impl AsRef<Path>, each: &mut dyn FnMut(LogEntry)) -> Result<(), Error> {
        inspect::log(path.as_ref(), each)
    }

    /// Makes a damaged directory usable again by giving up what follows the damage. The directory as it was is
    /// kept beside it. `None` when there was nothing to repair.
    pub fn repair(path: impl AsRef<Path>) -> Result<Option<Repair>, Error> {
        inspect::repair(path.as_ref())
    }
}

/// Makes a store with this state, and no past, in an absent or empty directory.
fn create(path: &Path, state: &State) -> Result<(), Error> {
    if !dir::is_empty(path)? {
        return Err(Error::Invalid(format!("cannot restore into {}: it is not empty", path.display())));
    }
    let _lock = dir::lock(path)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(path));
    let shelf = SledShelf::new(path);
    let changes: Vec<_> = state.all().map(|kv| (kv.key.clone(), Some(kv))).collect();
    let revision = state.revision();
    for slot in 0..SLOTS {
        shelf.write(slot, true, &changes).map_err(|e| Error::io("write to", path, io::Error::other(e)))?;
    }
    let info_of = |slot| SlotInfo { slot, revision, keys: state.live(), digest: state.digest() };
    Manifest::of((0..SLOTS).map(info_of).collect()).write(&*disk)?;
    Log::create(disk.clone(), 1, revision, 0)?;
    dir::write_format(&*disk)
}

/// Recovers what the disk holds and makes it ready for writes.
fn start(disk: &Arc<dyn Disk>, shelf: &dyn Shelf, settings: Settings) -> Result<(Engine, Recovery), Error> {
    let found = dir::find(disk)?;
    let closed = dir::read_closed(&**disk)?;
    let fresh = found == dir::Found::Nothing;
    let recovered = recover(disk, shelf, fresh, closed, &settings)?;
    if found != dir::Found::Current {
        // Before anything is written that an older program would not understand.
        dir::write_format(&**disk)?;
        tracing::info!(format = dir::VERSION, from = ?found, "store format written");
    }
    if closed.is_some() {
        dir::remove_closed(&**disk)?;
    }
    let (engine, recovery) = Engine::new(recovered, settings)?;
    tracing::info!(
        revision = recovery.revision,
        keys = recovery.keys,
        checkpoint = recovery.checkpoint,
        replayed = recovery.replayed,
        cut_bytes = recovery.cut_bytes,
        skipped = recovery.skipped,
        clean = recovery.clean,
        elapsed = ?recovery.elapsed,
        "store opened"
    );
    Ok((engine, recovery))
}

impl Inner {
    fn stop(&self) -> Result<(), Error> {
        self.queue.close();
        // Held while the thread ends, so that a second caller returns only when the directory is free.
        let mut running = self.running.lock();
        let Some(Running { writer, _lock }) = running.take() else { return Ok(()) };
        let closed = writer.join().unwrap_or(Err(Error::Closed))?;
        dir::write_closed(&*self.disk, closed)
    }

    /// Has the writer do something and waits for its answer.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(request(reply)).await?;
        answer.await.unwrap_or(Err(Error::Closed))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(%error, "store closed with an error");
        }
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, Error> {
        self.inner.shared.get(key, at)
    }

    async fn range(&self, range: Range<'_>) -> Result<RangeResult, Error> {
        self.inner.shared.range(range)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error> {
        txn.check()?;
        self.inner.ask(|reply| Request::Txn(txn, reply)).await
    }

    async fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, Error> {
        self.inner.shared.watch(prefix, from)
    }

    async fn request_progress(&self, prefix: &[u8]) -> Result<(), Error> {
        self.inner.shared.open()?;
        self.inner.shared.ring_progress(Some(prefix));
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.inner.ask(|reply| Request::Compact(revision, reply)).await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.inner.shared.revision()
    }

    async fn compacted(&self) -> Result<Revision, Error> {
        self.inner.shared.compacted()
    }

    fn health(&self) -> Health {
        let stats = self.stats();
        let failed = |error: &String| format!("the last checkpoint failed, the log grows: {error}");
        Health {
            problem: stats.broken.as_ref().map(ToString::to_string),
            warnings: stats.checkpoint_error.iter().map(failed).collect(),
            figures: stats.figures().to_vec(),
        }
    }
}
