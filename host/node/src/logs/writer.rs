//! Writes one run's log, in bounded files.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::watch;
use wasmk_api::Timestamp;

use super::{LogSink, Stream};

/// A log file is rotated at this size.
pub const FILE_BYTES: u64 = 10 * 1024 * 1024;
/// Files kept per run, the current one included.
pub const FILES: u32 = 3;
/// Longer lines are written in parts.
pub const LINE_BYTES: usize = 16 * 1024;

/// The open log of a run.
pub struct LogWriter {
    path: PathBuf,
    inner: Mutex<Inner>,
    /// Counts writes; `u64::MAX` once the run is over.
    version: Arc<watch::Sender<u64>>,
}

struct Inner {
    /// Open while something is written.
    file: Option<File>,
    state: State,
    /// Where else the file is to be found, once there is one.
    link: Option<PathBuf>,
    size: u64,
    /// Begun lines of stdout and stderr.
    partial: [Vec<u8>; 2],
    broken: bool,
}

/// Whether the file is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is made when somebody writes or reads, or when the run is over: most of ten thousand idle pods say nothing,
    /// and directories and files are dear.
    Wanted,
    Made,
    /// It was removed with its pod, and what is written is nobody's.
    Gone,
}

impl LogWriter {
    /// Appends to the file at `path`, which is made with its directories when it is first needed.
    pub(super) fn new(path: PathBuf) -> Self {
        let (state, partial) = (State::Wanted, Default::default());
        let inner = Inner { file: None, state, link: None, size: 0, partial, broken: false };
        Self { path, inner: Mutex::new(inner), version: Arc::new(watch::Sender::new(0)) }
    }

    /// Makes sure that the file is there.
    pub(super) fn make(&self) -> io::Result<()> {
        self.make_for(&mut self.inner.lock())
    }

    fn make_for(&self, inner: &mut Inner) -> io::Result<()> {
        if inner.state != State::Wanted {
            return Ok(());
        }
        if let Some(dir) = self.path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        inner.size = append(&self.path)?.metadata()?.len();
        inner.state = State::Made;
        if let Some(link) = inner.link.take()
            && let Err(error) = super::link(&link, &self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot link to a container's log");
        }
        Ok(())
    }

    /// Lets the file be found there, too.
    pub(super) fn link(&self, link: PathBuf) -> io::Result<()> {
        let mut inner = self.inner.lock();
        if inner.state == State::Made {
            return super::link(&link, &self.path);
        }
        inner.link = Some(link);
        Ok(())
    }

    /// Says that the file has been removed, or is about to be.
    pub(super) fn forget(&self) {
        let mut inner = self.inner.lock();
        (inner.state, inner.file, inner.link) = (State::Gone, None, None);
    }

    /// Writes what is left of a begun line and tells followers that the run is over.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        let now = Timestamp::now();
        let mut out = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(&mut inner.partial[stream as usize]);
            if !rest.is_empty() {
                format_line(&mut out, now, stream, false, &rest);
            }
        }
        self.put(&mut inner, &out);
        // That it said nothing is to be read as well, but nobody collects it.
        inner.link = None;
        if let Err(error) = self.make_for(&mut inner) {
            tracing::warn!(path = %self.path.display(), %error, "cannot make a container's log");
        }
        inner.file = None;
        drop(inner);
        self.version.send_replace(u64::MAX);
    }

    /// Writes one whole line as of `time`.
    pub fn line(&self, time: Timestamp, stream: Stream, line: &[u8]) {
        let mut out = Vec::with_capacity(line.len() + 48);
        format_line(&mut out, time, stream, true, line);
        self.put(&mut self.inner.lock(), &out);
        self.tick();
    }

    /// Rises with each write; `u64::MAX` means over.
    pub(super) fn version(&self) -> &Arc<watch::Sender<u64>> {
        &self.version
    }

    fn tick(&self) {
        // Over stays over.
        self.version.send_modify(|v| *v = v.saturating_add(1));
    }

    fn put(&self, inner: &mut Inner, bytes: &[u8]) {
        if bytes.is_empty() || inner.state == State::Gone {
            return;
        }
        match self.append(inner, bytes) {
            Ok(()) => inner.broken = false,
            Err(error) if !inner.broken => {
                inner.broken = true;
                tracing::warn!(path = %self.path.display(), %error, "cannot write a container log");
            }
            Err(_) => {}
        }
    }

    fn append(&self, inner: &mut Inner, bytes: &[u8]) -> io::Result<()> {
        self.make_for(inner)?;
        let file = match &mut inner.file {
            Some(file) => file,
            none => none.insert(append(&self.path)?),
        };
        file.write_all(bytes)?;
        inner.size += bytes.len() as u64;
        if inner.size >= FILE_BYTES { self.rotate(inner) } else { Ok(()) }
    }

    fn rotate(&self, inner: &mut Inner) -> io::Result<()> {
        rotate(&self.path)?;
        inner.file = Some(append(&self.path)?);
        inner.size = 0;
        Ok(())
    }
}

impl LogSink for LogWriter {
    fn write(&self, stream: Stream, bytes: &[u8]) {
        let now = Timestamp::now();
        let mut inner = self.inner.lock();
        let mut out = Vec::with_capacity(bytes.len() + 64);
        split_lines(&mut inner.partial[stream as usize], bytes, |full, line| {
            format_line(&mut out, now, stream, full, line);
        });
        self.put(&mut inner, &out);
        drop(inner);
        self.tick();
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Calls `line` for each whole line (`true`) and each full part of a long one; the rest stays
/// in `partial`.
pub(super) fn split_lines(partial: &mut Vec<u8>, bytes: &[u8], mut line: impl FnMut(bool, &[u8])) {
    let mut pieces = bytes.split(|b| *b == b'\n').peekable();
    while let Some(piece) = pieces.next() {
        let mut rest = piece;
        while partial.len() + rest.len() > LINE_BYTES {
            let (head, tail) = rest.split_at(LINE_BYTES - partial.len());
            partial.extend_from_slice(head);
            line(false, partial);
            partial.clear();
            rest = tail;
        }
        partial.extend_from_slice(rest);
        if pieces.peek().is_some() {
            line(true, partial);
            partial.clear();
        }
    }
}

fn format_line(out: &mut Vec<u8>, time: Timestamp, stream: Stream, full: bool, line: &[u8]) {
    let tag = if full { "F" } else { "P" };
    // Writing to a vector cannot fail.
    let _ = write!(out, "{:.9} {} {tag} ", time.0, stream.name());
    out.extend_from_slice(line);
    out.push(b'\n');
}

/// Moves a full file away, and the ones before it one further; the oldest is forgotten.
pub(super) fn rotate(path: &Path) -> io::Result<()> {
    for n in (1..FILES - 1).rev() {
        let from = numbered(path, n);
        if from.exists() {
            std::fs::rename(from, numbered(path, n + 1))?;
        }
    }
    std::fs::rename(path, numbered(path, 1))
}

/// The `n`th rotated file; a higher number is older.
pub(super) fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// Removes a run's log with all rotated files; missing ones are fine.
pub(super) fn remove_all(path: &Path) {
    let _ = std::fs::remove_file(path);
    for n in 1..FILES {
        let _ = std::fs::remove_file(numbered(path, n));
    }
}
