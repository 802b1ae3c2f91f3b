//! What one guest is given: its arguments, files, streams, network and limits.
//!
//! A guest can do only what its [`Spec`] says. The default gives nothing: no variable, no file, no
//! network, output thrown away.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, ReadBuf};

use crate::capabilities::blobstore::Blobs;
use crate::capabilities::keyvalue::KeyValue;
use crate::network::{Deny, Network};
use crate::usage::Usage;

/// Everything a guest may see and use.
#[derive(Clone)]
pub struct Spec {
    /// Arguments, the program's name first.
    pub args: Vec<String>,
    /// Environment variables in order; a later one of the same name wins.
    pub env: Vec<(String, String)>,
    /// Directories of the host that the guest sees.
    pub mounts: Vec<Mount>,
    /// Directory the guest starts in.
    pub working_dir: Option<String>,
    /// Linear memory of all instances of this guest together, in bytes.
    /// `None`: [`Settings::default_memory_limit`](crate::Settings::default_memory_limit).
    pub memory_limit: Option<u64>,
    /// CPU share of all instances together in thousandths of a core. `None`: unlimited.
    pub cpu_millis: Option<u32>,
    /// Standard input; `None` reads as empty. Used by runs, never by HTTP handlers.
    pub stdin: Option<Stdin>,
    /// Where standard output goes.
    pub stdout: Arc<dyn LogSink>,
    /// Where standard error goes.
    pub stderr: Arc<dyn LogSink>,
    /// What the guest may reach, and under which address.
    pub network: Arc<dyn Network>,
    /// Stores of keys and values it may open (see [`Runtime::keyvalue`](crate::Runtime::keyvalue)).
    pub keyvalue: Option<KeyValue>,
    /// Containers of objects it may use (see [`Runtime::blobs`](crate::Runtime::blobs)).
    pub blobs: Option<Blobs>,
    /// Longest run of a command, after which it ends with [`ExitReason::TimedOut`](crate::ExitReason::TimedOut).
    pub run_timeout: Option<Duration>,
    /// Limits of an HTTP handler.
    pub http: HttpLimits,
    /// Whether an HTTP instance may serve more than one request.
    pub reuse: Reuse,
    /// Counts what the guest uses; shared with whoever wants to read it.
    pub usage: Arc<Usage>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            args: Vec::new(),
            env: Vec::new(),
            mounts: Vec::new(),
            working_dir: None,
            memory_limit: None,
            cpu_millis: None,
            stdin: None,
            stdout: Arc::new(Discard),
            stderr: Arc::new(Discard),
            network: Arc::new(Deny),
            keyvalue: None,
            blobs: None,
            run_timeout: None,
            http: HttpLimits::default(),
            reuse: Reuse::Never,
            usage: Arc::new(Usage::default()),
        }
    }
}

/// A directory of the host seen by the guest under another name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Path on the host. A directory.
    pub host: PathBuf,
    /// Absolute path in the guest.
    pub guest: String,
    /// Refuse every change.
    pub read_only: bool,
}

/// Limits of one HTTP request and its response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpLimits {
    /// Longest time from the request to the end of the response.
    pub timeout: Duration,
    /// Most bytes of a request body handed to the guest.
    pub max_request_body: u64,
    /// Most bytes of a response body taken from the guest.
    pub max_response_body: u64,
    /// Most bytes of all headers of a message together, as held in memory.
    pub max_header_bytes: usize,
    /// Most requests in the guest at a time; more wait. 0: half of the runtime's instances.
    pub max_concurrency: u32,
    /// Most outgoing HTTP requests one guest instance has in flight.
    pub max_outgoing: u32,
    /// Most processor time of one request, told at the end of a turn of a few milliseconds. `None`: unlimited.
    pub max_cpu: Option<Duration>,
    /// Most linear memory of one instance, in bytes. `None`: only the guest's own limit counts.
    pub max_memory: Option<u64>,
    /// Most bytes that the outgoing HTTP requests of one request send, heads and bodies. A guest with such a
    /// limit has no sockets, whose bytes would not be counted. `None`: unlimited.
    pub max_egress: Option<u64>,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(300),
            max_request_body: 1 << 30,
            max_response_body: 1 << 30,
            max_header_bytes: 128 << 10,
            max_concurrency: 0,
            max_outgoing: 64,
            max_cpu: None,
            max_memory: None,
            max_egress: None,
        }
    }
}

/// How often an HTTP instance may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reuse {
    /// A fresh instance for every request: nothing survives from one to the next.
    Never,
    /// The guest is declared safe to serve several requests, one after another.
    Requests {
        /// Requests one instance serves before it is replaced.
        most: u32,
        /// How long an unused instance is kept.
        idle: Duration,
    },
}

/// Takes what a guest prints. Called from the guest's task and therefore never blocks.
///
/// A sink pushes back by having no room: then the guest that prints waits, and nobody else.
pub trait LogSink: Send + Sync + 'static {
    /// Bytes that [`write`](Self::write) will take now; pending while there is no room.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let _ = cx;
        Poll::Ready(MAX_WRITE)
    }

    /// Takes `bytes`, at most as many as the last `poll_room` allowed. Chunks are not lines.
    fn write(&self, bytes: &[u8]);
}

/// Most bytes a guest prints in one piece.
pub const MAX_WRITE: usize = 64 << 10;

/// Throws everything away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

impl LogSink for Discard {
    fn write(&self, _bytes: &[u8]) {}
}

/// Keeps the last bytes printed, up to a bound; for tests and for termination messages.
#[derive(Debug)]
pub struct Tail {
    most: usize,
    kept: Mutex<VecDeque<u8>>,
}

impl Tail {
    /// A sink that keeps the last `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { most, kept: Mutex::new(VecDeque::new()) }
    }

    /// What is kept, as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.kept.lock().make_contiguous()).into_owned()
    }
}

impl LogSink for Tail {
    fn write(&self, bytes: &[u8]) {
        let mut kept = self.kept.lock();
        let bytes = &bytes[bytes.len().saturating_sub(self.most)..];
        let excess = (kept.len() + bytes.len()).saturating_sub(self.most);
        kept.drain(..excess);
        kept.extend(bytes);
    }
}

/// Standard input from any reader. Clones share the reader; each byte is read once.
#[derive(Clone)]
pub struct Stdin(pub(crate) Arc<StdinShared>);

pub(crate) struct StdinShared {
    pub(crate) state: Mutex<StdinState>,
}

pub(crate) struct StdinState {
    pub(crate) reader: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub(crate) waker: Option<Waker>,
}

impl Stdin {
    /// Reads from `reader`.
    pub fn new(reader: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let state = StdinState { reader: Some(Box::new(reader)), waker: None };
        Self(Arc::new(StdinShared { state: Mutex::new(state) }))
    }

    /// Ends the input: the guest reads end-of-file from now on.
    pub fn close(&self) {
        let waker = {
            let mut state = self.0.state.lock();
            state.reader = None;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Reads what a guest would have read: for whoever hands the input on to a guest elsewhere.
impl AsyncRead for Stdin {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.state.lock();
        let Some(reader) = &mut state.reader else {
            return Poll::Ready(Ok(()));
        };
        let polled = Pin::new(reader).poll_read(cx, buffer);
        if polled.is_pending() {
            state.waker = Some(cx.waker().clone());
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_last_bytes() {
        let check = |writes: &[&str], expect: &str| {
            let tail = Tail::new(4);
            writes.iter().for_each(|text| tail.write(text.as_bytes()));
            assert_eq!(tail.text(), expect, "{writes:?}");
        };
        check(&[], "");
        check(&["ab"], "ab");
        check(&["ab", "cd"], "abcd");
        check(&["ab", "cde"], "bcde");
        check(&["abcdefgh"], "efgh");
        check(&["a", "bcdefgh", "i"], "fghi");
    }
}
