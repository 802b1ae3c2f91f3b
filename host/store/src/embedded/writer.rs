//! The thread that owns the [`Engine`], and the queue before it.
//!
//! The thread takes whatever waits and commits it as one group: a lone writer never waits for company, and while
//! one group is being synced the next gathers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, oneshot};

use super::checkpoint::{Manifest, Shelf};
use super::disk::Disk;
use super::engine::{Engine, Reply};
use super::recover::Closed;
use crate::{Error, Op, Revision, Txn};

/// Most transactions waiting; further writers wait for room.
pub(crate) const QUEUE: usize = 4096;
/// Most bytes of values in one group.
const GROUP_BYTES: usize = 8 << 20;

/// What the thread is asked to do.
pub(crate) enum Request {
    Txn(Txn, Reply),
    Compact(Revision, oneshot::Sender<Result<(), Error>>),
    Checkpointed(usize, Result<Manifest, Error>),
    Close,
}

/// The requests waiting.
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Condvar,
    room: Semaphore,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    closed: bool,
}

impl Queue {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), filled: Condvar::new(), room: Semaphore::new(QUEUE) })
    }

    /// Adds a request of a caller as soon as there is room.
    pub(crate) async fn push(&self, request: Request) -> Result<(), Error> {
        self.room.acquire().await.map_err(|_| Error::Closed)?.forget();
        self.add(request)
    }

    /// Adds a request without asking for room; there is at most one of its kind.
    fn add(&self, request: Request) -> Result<(), Error> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(Error::Closed);
        }
        waiting.closed = matches!(request, Request::Close);
        waiting.requests.push_back(request);
        drop(waiting);
        self.filled.notify_one();
        Ok(())
    }

    /// Number of requests waiting.
    pub(crate) fn len(&self) -> usize {
        self.waiting.lock().requests.len()
    }

    /// Lets no request in any more; those before are still served.
    pub(crate) fn close(&self) {
        // Closed already is as good.
        let _ = self.add(Request::Close);
        self.room.close();
    }

    /// Everything that waits; empty when `deadline` passes first.
    fn take(&self, deadline: Option<Instant>) -> VecDeque<Request> {
        let mut waiting = self.waiting.lock();
        while waiting.requests.is_empty() {
            match deadline {
                Some(deadline) if self.filled.wait_until(&mut waiting, deadline).timed_out() => break,
                Some(_) => {}
                None => self.filled.wait(&mut waiting),
            }
        }
        let requests = std::mem::take(&mut waiting.requests);
        drop(waiting);
        let callers =
            requests.iter().filter(|r| matches!(r, Request::Txn(..) | Request::Compact(..))).count();
        self.room.add_permits(callers);
        requests
    }
}

/// The thread's own things. Dropping them, even in a panic, leaves nobody waiting.
pub(crate) struct Writer {
    pub(crate) engine: Engine,
    pub(crate) queue: Arc<Queue>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) shelf: Arc<dyn Shelf>,
    checkpoint: Option<JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn new(engine: Engine, queue: Arc<Queue>, disk: Arc<dyn Disk>, shelf: Arc<dyn Shelf>) -> Self {
        Self { engine, queue, disk, shelf, checkpoint: None }
    }

    /// Serves requests until closed; answers where the log ends then.
    pub(crate) fn run(mut self) -> Result<Closed, Error> {
        loop {
            let requests = self.queue.take(self.engine.deadline());
            if self.serve(requests) {
                break;
            }
            self.engine.tick(Instant::now());
            self.start_checkpoint();
        }
        if let Some(running) = self.checkpoint.take() {
            // It reports through the queue, which nobody reads any more; its files are complete either way.
            let _ = running.join();
        }
        self.engine.finish()
    }

    /// Serves requests in order, neighbouring transactions as groups; true when asked to close.
    fn serve(&mut self, requests: VecDeque<Request>) -> bool {
        let (mut group, mut bytes) = (Vec::with_capacity(requests.len()), 0);
        let mut close = false;
        for request in requests {
            match request {
                Request::Txn(txn, reply) => {
                    bytes += txn.ops.iter().map(op_bytes).sum::<usize>();
                    group.push((txn, reply));
                    if bytes >= GROUP_BYTES {
                        self.engine.commit(std::mem::take(&mut group), Instant::now());
                        bytes = 0;
                    }
                }
                Request::Compact(revision, reply) => {
                    self.engine.commit(std::mem::take(&mut group), Instant::now());
                    let _ = reply.send(self.engine.compact(revision, Instant::now()));
                }
                Request::Checkpointed(slot, result) => self.engine.checkpointed(slot, result),
                Request::Close => close = true,
            }
        }
        self.engine.commit(group, Instant::now());
        close
    }

    fn start_checkpoint(&mut self) {
        let Some(job) = self.engine.checkpoint() else { return };
        let (disk, shelf, queue) = (self.disk.clone(), self.shelf.clone(), self.queue.clone());
        let slot = job.info.slot;
        let work = move || {
            let result = job.run(&disk, &*shelf);
            // A store that closes meanwhile finds the checkpoint when it is opened.
            let _ = queue.add(Request::Checkpointed(slot, result));
        };
        match std::thread::Builder::new().name("store-checkpoint".into()).spawn(work) {
            Ok(handle) => self.checkpoint = Some(handle),
            Err(error) => {
                let error = Error::io("start a thread for the checkpoint of", &self.disk.path(""), error);
                self.engine.checkpointed(slot, Err(error));
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.close();
        // Whoever still waits hears that the store is closed.
        self.queue.waiting.lock().requests.clear();
        self.engine.shared.close();
    }
}

fn op_bytes(op: &Op) -> usize {
    match op {
        Op::Put { key, value } => key.len() + value.len(),
        Op::Delete { key } => key.len(),
    }
}
