//! The last lines of something that has no pod at the moment: kept in memory, bounded, and
//! passed on to the pod's log once there is one.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;
use wasmk_api::Timestamp;

use super::{LogSink, LogWriter, Stream, writer::split_lines};

/// Most lines kept per revision.
pub const RING_LINES: usize = 1000;
/// Most bytes kept per revision.
pub const RING_BYTES: usize = 256 * 1024;

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it was written.
    pub time: Timestamp,
    /// Where to.
    pub stream: Stream,
    /// Without its end.
    pub text: Vec<u8>,
}

/// A bounded log in memory.
#[derive(Default)]
pub struct LogRing {
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Number of the first line in `lines`, counted from the very first.
    first: u64,
    /// Lines up to this number are in a pod's log already.
    passed: u64,
    partial: [Vec<u8>; 2],
    pod: Option<Arc<LogWriter>>,
}

impl LogRing {
    /// From now on lines go to a pod's log too, those not yet in any pod's log first.
    pub fn attach(&self, pod: Arc<LogWriter>) {
        let mut inner = self.inner.lock();
        let skip = inner.passed.saturating_sub(inner.first) as usize;
        for line in inner.lines.iter().skip(skip) {
            pod.line(line.time, line.stream, &line.text);
        }
        inner.passed = inner.first + inner.lines.len() as u64;
        inner.pod = Some(pod);
    }

    /// The pod's log is over; lines stay here again until the next one.
    pub fn detach(&self, pod: &Arc<LogWriter>) {
        let mut inner = self.inner.lock();
        if inner.pod.as_ref().is_some_and(|p| Arc::ptr_eq(p, pod)) {
            inner.pod = None;
        }
    }

    /// Lines from number `from` on, and the number after the last.
    pub fn since(&self, from: u64) -> (Vec<Line>, u64) {
        let inner = self.inner.lock();
        let skip = from.saturating_sub(inner.first) as usize;
        (inner.lines.iter().skip(skip).cloned().collect(), inner.first + inner.lines.len() as u64)
    }

    /// Changes with each write.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

impl LogSink for LogRing {
    fn write(&self, stream: Stream, bytes: &[u8]) {
        let time = Timestamp::now();
        let mut inner = self.inner.lock();
        let mut partial = std::mem::take(&mut inner.partial[stream as usize]);
        split_lines(&mut partial, bytes, |_, text| inner.push(Line { time, stream, text: text.to_vec() }));
        inner.partial[stream as usize] = partial;
        drop(inner);
        self.version.send_modify(|v| *v += 1);
    }
}

impl Inner {
    fn push(&mut self, line: Line) {
        if let Some(pod) = &self.pod {
            pod.line(line.time, line.stream, &line.text);
            self.passed = self.first + self.lines.len() as u64 + 1;
        }
        self.bytes += line.text.len();
        self.lines.push_back(line);
        while self.lines.len() > RING_LINES || self.bytes > RING_BYTES {
            let Some(old) = self.lines.pop_front() else { break };
            self.bytes -= old.text.len();
            self.first += 1;
        }
    }
}
