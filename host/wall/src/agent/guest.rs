//! What the agent has of a guest that is in a worker.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use wasmk_runtime::{Blobs, Exit, KeyValue, LogSink, Network, Spec, Usage};

use crate::message::{Channel, WINDOW};

/// Most output that waits to be taken, in bytes; instances that print at the same time may pass the window. What is
/// beyond is lost: only a worker that does not keep to the rules sends it.
const MAX_PENDING: usize = 64 * WINDOW;
/// What a piece of output counts at least, in bytes: it takes room however short it is.
const PIECE: usize = 256;

/// How a run ended, or why it did not begin.
pub(super) type Outcome = Result<Exit, String>;

pub(super) struct Guest {
    pub(super) number: u64,
    pub(super) network: Arc<dyn Network>,
    pub(super) usage: Arc<Usage>,
    pub(super) keyvalue: Option<KeyValue>,
    pub(super) blobs: Option<Blobs>,
    /// Most bytes of its memory.
    pub(super) memory: Option<u64>,
    pub(super) cpu_millis: Option<u32>,
    stdout: Arc<dyn LogSink>,
    stderr: Arc<dyn LogSink>,
    ended: Mutex<Option<oneshot::Sender<Outcome>>>,
    started: Mutex<Option<oneshot::Sender<Option<String>>>>,
    pending: Mutex<Pending>,
    drained: Notify,
}

#[derive(Default)]
struct Pending {
    pieces: VecDeque<(Channel, Bytes)>,
    bytes: usize,
    draining: bool,
}

impl Guest {
    pub(super) fn new(number: u64, spec: &Spec) -> Self {
        Self {
            number,
            network: Arc::clone(&spec.network),
            usage: Arc::clone(&spec.usage),
            keyvalue: spec.keyvalue.clone(),
            blobs: spec.blobs.clone(),
            memory: spec.memory_limit,
            cpu_millis: spec.cpu_millis,
            stdout: Arc::clone(&spec.stdout),
            stderr: Arc::clone(&spec.stderr),
            ended: Mutex::default(),
            started: Mutex::default(),
            pending: Mutex::default(),
            drained: Notify::new(),
        }
    }

    /// Hears how the run ends.
    pub(super) fn outcome(&self) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        *self.ended.lock() = Some(sender);
        receiver
    }

    /// Hears that the handler takes requests, or why it does not.
    pub(super) fn beginning(&self) -> oneshot::Receiver<Option<String>> {
        let (sender, receiver) = oneshot::channel();
        *self.started.lock() = Some(sender);
        receiver
    }

    pub(super) fn end(&self, outcome: Outcome) {
        if let Some(waiting) = self.ended.lock().take() {
            let _ = waiting.send(outcome);
        }
    }

    pub(super) fn begin(&self, failed: Option<String>) {
        if let Some(waiting) = self.started.lock().take() {
            let _ = waiting.send(failed);
        }
    }

    /// Takes a piece of output; whether somebody is to [`drain`](Self::drain) it now.
    pub(super) fn print(&self, channel: Channel, bytes: Vec<u8>) -> bool {
        let mut pending = self.pending.lock();
        let room = bytes.len().max(PIECE);
        if pending.bytes + room > MAX_PENDING {
            return false;
        }
        pending.bytes += room;
        pending.pieces.push_back((channel, bytes.into()));
        !std::mem::replace(&mut pending.draining, true)
    }

    /// Hands output on as the guest's streams take it, and says how much was taken.
    pub(super) async fn drain<F: Future<Output = ()>>(&self, taken: impl Fn(usize) -> F) {
        while let Some((channel, mut bytes)) = self.next() {
            let sink = match channel {
                Channel::Stdout => &self.stdout,
                Channel::Stderr => &self.stderr,
            };
            let length = bytes.len();
            while !bytes.is_empty() {
                let room = poll_fn(|cx| sink.poll_room(cx)).await;
                sink.write(&bytes.split_to(room.clamp(1, bytes.len())));
            }
            self.pending.lock().bytes -= length.max(PIECE);
            taken(length).await;
        }
        self.drained.notify_waiters();
    }

    fn next(&self) -> Option<(Channel, Bytes)> {
        let mut pending = self.pending.lock();
        let piece = pending.pieces.pop_front();
        pending.draining = piece.is_some();
        piece
    }

    /// Waits until all output is where it belongs.
    pub(super) async fn drained(&self) {
        loop {
            let drained = self.drained.notified();
            if !self.pending.lock().draining {
                return;
            }
            drained.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmk_runtime::Tail;

    #[tokio::test]
    async fn output_is_taken_in_order_and_within_bounds() {
        let tail = Arc::new(Tail::new(100));
        let spec = Spec { stdout: tail.clone(), ..Spec::default() };
        let guest = Guest::new(1, &spec);
        assert!(guest.print(Channel::Stdout, b"one ".to_vec()));
        assert!(!guest.print(Channel::Stdout, b"two".to_vec()), "somebody drains already");
        assert!(!guest.print(Channel::Stdout, vec![b'x'; MAX_PENDING]));
        let short = Guest::new(2, &spec);
        for _ in 0..MAX_PENDING {
            short.print(Channel::Stdout, vec![b'x']);
        }
        assert_eq!(short.pending.lock().pieces.len(), MAX_PENDING / PIECE, "short pieces are bounded, too");
        let taken = Mutex::new(0);
        guest.drain(async |bytes| *taken.lock() += bytes).await;
        guest.drained().await;
        assert_eq!((tail.text().as_str(), *taken.lock()), ("one two", 7));
        assert!(guest.print(Channel::Stdout, b"three".to_vec()));
    }
}
