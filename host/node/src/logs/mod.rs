//! Container logs on disk, in the format of the container runtime interface:
//! `<RFC 3339 time> stdout F <line>`. Files are bounded and rotated.

mod file;
mod reader;
mod ring;
mod writer;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use parking_lot::Mutex;
use tokio::sync::watch;

pub use file::FileLog;
pub use reader::{LogOptions, LogStream};
pub use ring::{LogRing, RING_BYTES, RING_LINES};
pub use writer::{FILE_BYTES, FILES, LINE_BYTES, LogWriter};

/// Extension of the file beside a log that says where it is linked from.
const LINK: &str = "link";

/// Which output a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// As the log writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Takes a workload's output as it comes, not by lines.
pub trait LogSink: Send + Sync {
    /// Takes a piece of output. Does not wait for other tasks.
    fn write(&self, stream: Stream, bytes: &[u8]);

    /// Bytes that are taken now; pending while there is no room, and then the workload waits.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let _ = cx;
        Poll::Ready(wasmk_runtime::MAX_WRITE)
    }
}

/// All logs of this node.
pub struct Logs {
    root: PathBuf,
    links: PathBuf,
    /// The logs that are being written, by their pods' directories.
    live: Mutex<HashMap<PathBuf, Vec<Live>>>,
}

/// A log that is being written.
struct Live {
    path: PathBuf,
    version: Weak<watch::Sender<u64>>,
    /// None when somebody else writes it.
    writer: Weak<LogWriter>,
}

/// One run of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogName<'a> {
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Name of the pod.
    pub pod: &'a str,
    /// Uid of the pod.
    pub uid: &'a str,
    /// Container.
    pub container: &'a str,
    /// Which run; the first is 0.
    pub run: u32,
}

impl Logs {
    /// Logs under `root`, and links to them under `links`; both are made when they are first needed.
    pub fn new(root: PathBuf, links: PathBuf) -> Self {
        Self { root, links, live: Mutex::default() }
    }

    fn pod_dir(&self, namespace: &str, pod: &str, uid: &str) -> PathBuf {
        self.root.join(format!("{namespace}_{pod}_{uid}"))
    }

    fn path(&self, name: &LogName<'_>) -> PathBuf {
        let dir = self.pod_dir(name.namespace, name.pod, name.uid).join(name.container);
        dir.join(format!("{}.log", name.run))
    }

    /// Opens the log of a run for writing; the run before the previous one is forgotten. Its file is made when there
    /// is something in it, or somebody wants to read it.
    pub fn create(&self, name: &LogName<'_>) -> Arc<LogWriter> {
        self.trim(name);
        let path = self.path(name);
        let writer = Arc::new(LogWriter::new(path.clone()));
        let version = Arc::downgrade(writer.version());
        self.enter(name, Live { path, version, writer: Arc::downgrade(&writer) });
        writer
    }

    /// Makes room for the log of a run that somebody else writes, in the same format.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn attend(&self, name: &LogName<'_>) -> io::Result<FileLog> {
        let path = self.path(name);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        self.trim(name);
        let log = FileLog::new(path.clone());
        self.enter(name, Live { path, version: Arc::downgrade(log.version()), writer: Weak::new() });
        Ok(log)
    }

    /// Removes the log of the run before the previous one.
    fn trim(&self, name: &LogName<'_>) {
        if let Some(old) = name.run.checked_sub(2) {
            let old = self.path(&LogName { run: old, ..name.clone() });
            unlink(&old.with_extension(LINK));
            writer::remove_all(&old);
        }
    }

    /// Lets the log of a run be found under the name that collectors of logs know, with the container's ID.
    ///
    /// # Errors
    /// When the link cannot be made.
    pub fn link(&self, name: &LogName<'_>, id: &str) -> io::Result<()> {
        let (log, LogName { namespace, pod, container, .. }) = (self.path(name), name);
        let at = self.links.join(format!("{pod}_{namespace}_{container}-{id}.log"));
        match self.writer(name, &log) {
            Some(writer) => writer.link(at),
            None => link(&at, &log),
        }
    }

    fn enter(&self, name: &LogName<'_>, log: Live) {
        let mut live = self.live.lock();
        // Looked through only when it would grow: there may be many.
        if live.len() == live.capacity() {
            live.retain(|_, logs| logs.iter().any(|l| l.version.strong_count() > 0));
        }
        let logs = live.entry(self.pod_dir(name.namespace, name.pod, name.uid)).or_default();
        logs.retain(|l| l.version.strong_count() > 0 && l.path != log.path);
        logs.push(log);
    }

    /// Who writes a log now, if it is this agent.
    fn writer(&self, name: &LogName<'_>, path: &Path) -> Option<Arc<LogWriter>> {
        let live = self.live.lock();
        let logs = live.get(&self.pod_dir(name.namespace, name.pod, name.uid))?;
        logs.iter().find(|l| l.path == path)?.writer.upgrade()
    }

    /// Reads the log of a run.
    ///
    /// # Errors
    /// `NotFound` when that run has none.
    pub fn read(&self, name: &LogName<'_>, options: LogOptions) -> io::Result<LogStream> {
        let path = self.path(name);
        if let Some(writer) = self.writer(name, &path) {
            writer.make()?;
        }
        let dir = self.pod_dir(name.namespace, name.pod, name.uid);
        let of = |logs: &Vec<Live>| logs.iter().find(|l| l.path == path)?.version.upgrade();
        let live = self.live.lock().get(&dir).and_then(of);
        if !path.exists() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no log has been written"));
        }
        Ok(reader::stream(path, live, options))
    }

    /// Number of the container's last run that has a log.
    pub fn latest(&self, namespace: &str, pod: &str, uid: &str, container: &str) -> Option<u32> {
        let dir = self.pod_dir(namespace, pod, uid);
        let run = |file: &std::ffi::OsStr| file.to_str()?.strip_suffix(".log")?.parse().ok();
        let of = dir.join(container);
        let live = self.live.lock().get(&dir).and_then(|logs| {
            let written = logs.iter().filter(|l| l.version.strong_count() > 0);
            let of_it = written.filter(|l| l.path.parent() == Some(&of));
            of_it.filter_map(|l| run(l.path.file_name()?)).max()
        });
        let files = std::fs::read_dir(&of).into_iter().flatten().flatten();
        files.filter_map(|f| run(&f.file_name())).chain(live).max()
    }

    /// Forgets all logs of a pod.
    pub fn remove(&self, namespace: &str, pod: &str, uid: &str) {
        let dir = self.pod_dir(namespace, pod, uid);
        let live = self.live.lock().remove(&dir);
        live.into_iter().flatten().filter_map(|l| l.writer.upgrade()).for_each(|writer| writer.forget());
        let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
        for file in entries(&dir).flat_map(|container| entries(&container.path())) {
            if file.path().extension().is_some_and(|e| e == LINK) {
                unlink(&file.path());
            }
        }
        remove_dir(&dir);
    }
}

/// Links to a log. Beside the log stands where it is linked from, so that the link goes with it.
fn link(link: &Path, log: &Path) -> io::Result<()> {
    if let Some(dir) = link.parent() {
        std::fs::create_dir_all(dir)?;
    }
    for (at, to) in [(link, log), (&log.with_extension(LINK), link)] {
        let _ = std::fs::remove_file(at);
        std::os::unix::fs::symlink(to, at)?;
    }
    Ok(())
}

/// Removes a link to a log, and what says where it is.
fn unlink(mark: &Path) {
    if let Ok(link) = std::fs::read_link(mark) {
        // Somebody else may have removed it already.
        let _ = std::fs::remove_file(link);
        let _ = std::fs::remove_file(mark);
    }
}

fn remove_dir(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "cannot remove the logs of a pod");
    }
}

#[cfg(test)]
mod tests;
