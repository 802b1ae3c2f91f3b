//! Starting a worker, and seeing it end.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Blocking;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use wasmk_runtime::Body;

use super::Wall;
use super::core::{Core, Outgoing, Worker};
use super::process::{self, Started};
use super::users::User;
use crate::error::Error;
use crate::frames;
use crate::kills::Kills;
use crate::message::{
    CONNECTION_WINDOW, MAX_HEADERS, MAX_QUESTIONS, MAX_STREAMS, STREAM_WINDOW, Setup, ToWorker, frame,
};
use crate::notify::Sockets;
use crate::walls::{Directory, Room};

/// Messages to a worker that wait to be sent.
const QUEUE: usize = 256;
/// Most connections to one worker for requests; each has a task on either side.
const LINKS: usize = 4;
/// A worker that was let go has so long to end by itself.
const LAST: Duration = Duration::from_secs(2);
/// One that talks nonsense has as long to be seen ending: it may have been killed in the middle of a word.
const CUT: Duration = Duration::from_millis(100);

/// A worker that sees these directories.
pub(super) async fn worker(wall: &Wall, directories: &[Directory]) -> Result<Worker, Error> {
    wall.directories_allowed(directories)?;
    let user = wall.user();
    let bounds = &wall.0.settings.bounds;
    let setup = Setup {
        room: Room {
            user: user.as_ref().map(|user| user.id),
            parent: Some(std::process::id()),
            directories: directories.to_vec(),
        },
        max_instances: bounds.max_instances,
        instance_wait: bounds.instance_wait,
        memory_budget: bounds.memory_budget,
        default_memory_limit: bounds.default_memory_limit,
    };
    let inner = Arc::clone(&wall.0);
    let start = move || {
        let settings = &inner.settings;
        process::start(&inner.spawner, &settings.program, &settings.arguments, &setup, inner.groups())
    };
    let started = tokio::task::spawn_blocking(start).await.map_err(|e| Error::Spawn(e.to_string()))??;
    let process = started.child.id();
    let limited = started.group.is_some();
    tracing::info!(worker = process, walls = %started.standing, limited, "started a process for guests");
    attach(wall, started, user).await.map_err(|error| Error::Spawn(error.to_string()))
}

async fn attach(wall: &Wall, started: Started, user: Option<User>) -> std::io::Result<Worker> {
    let Started { mut child, control, keys, standing, sockets, group } = started;
    let process = child.id();
    if let Some(pipe) = child.stderr.take() {
        tokio::spawn(process::hear(process, pipe));
    }
    let (out, messages) = mpsc::channel(QUEUE);
    let core = Arc::new(Core {
        guests: Mutex::default(),
        ended: watch::Sender::new(None),
        out: out.downgrade(),
        runtime: wall.0.runtime.clone(),
        tally: Mutex::default(),
        questions: Arc::new(Semaphore::new(MAX_QUESTIONS)),
        group,
        default_memory: wall.0.settings.bounds.default_memory_limit,
    });
    if let Some(listener) = sockets {
        answer_sockets(&core, listener, process)?;
    }
    let writing = nonblocking(control.try_clone()?)?;
    tokio::spawn(write(writing, messages));
    tokio::spawn(Arc::clone(&core).keep(nonblocking(keys)?));
    tokio::spawn(watch_over(Arc::clone(&core), nonblocking(control)?, child, user));
    let count = std::thread::available_parallelism().map_or(1, usize::from).min(LINKS);
    let mut links = Vec::with_capacity(count);
    for _ in 0..count {
        links.push(link(&out).await?);
    }
    Ok(Worker {
        core,
        out,
        links,
        turn: Default::default(),
        began: Instant::now(),
        standing,
        process,
        last: Default::default(),
    })
}

fn nonblocking(socket: Blocking) -> std::io::Result<UnixStream> {
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

fn answer_sockets(core: &Arc<Core>, listener: OwnedFd, process: u32) -> std::io::Result<()> {
    let sockets = Sockets::new(listener, process, Arc::downgrade(core))?;
    let runtime = tokio::runtime::Handle::current();
    let answer = move || {
        // Networks may need it to make sockets elsewhere.
        let _entered = runtime.enter();
        sockets.answer();
    };
    std::thread::Builder::new().name("wall-sockets".into()).spawn(answer)?;
    Ok(())
}

/// A connection that requests go by.
async fn link(out: &mpsc::Sender<Outgoing>) -> std::io::Result<SendRequest<Body>> {
    let (near, far) = Blocking::pair()?;
    let files = vec![OwnedFd::from(far)];
    let sent = out.send((frame(&ToWorker::Connection, files.len()), files)).await;
    sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
    let mut client = http2::Builder::new(TokioExecutor::new());
    client
        .initial_max_send_streams(MAX_STREAMS as usize)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADERS);
    let handshake = client.handshake(TokioIo::new(nonblocking(near)?)).await;
    let (sender, connection) = handshake.map_err(std::io::Error::other)?;
    // It ends with the worker.
    tokio::spawn(connection);
    Ok(sender)
}

/// Writes until the last handle is gone; then the worker hears that nothing comes any more, and ends.
async fn write(mut control: UnixStream, mut messages: mpsc::Receiver<Outgoing>) {
    while let Some((frame, files)) = messages.recv().await {
        if frames::send(&control, &frame, &files).await.is_err() {
            // The worker's end is seen by whoever reads.
            break;
        }
    }
    let _ = control.shutdown().await;
}

/// Hears the worker until it ends, and says why it has.
async fn watch_over(core: Arc<Core>, control: impl AsyncRead + Unpin, child: Child, user: Option<User>) {
    let kills = Kills::from_now();
    let heard = core.hear(control).await;
    let end = move || end(child, heard.is_err());
    let (killed, ended) = match tokio::task::spawn_blocking(end).await {
        Ok(Ok(End { status, by_agent })) => {
            (!by_agent && status.signal() == Some(libc::SIGKILL), describe(status))
        }
        Ok(Err(error)) => (false, error.to_string()),
        Err(error) => (false, error.to_string()),
    };
    // Nobody else is it any more.
    drop(user);
    let error = match &core.group {
        Some(group) if killed => group.ran_out(),
        // It may have been another worker, and this one killed by hand; without a group of its own nobody tells.
        None if killed && kills.more() => Some(Error::OutOfMemory),
        _ => None,
    };
    let error = error.unwrap_or(Error::Lost(ended));
    if core.out.upgrade().is_some() {
        tracing::warn!("{error}");
    }
    for guest in core.guests.lock().values() {
        guest.usage.report(guest.usage.cpu(), 0, 0, guest.usage.requests());
    }
    core.ended.send_replace(Some(error));
}

/// How a worker ended.
struct End {
    status: ExitStatus,
    /// The agent had no more patience with it.
    by_agent: bool,
}

/// Waits for a worker that has closed its socket, or that talks nonsense.
fn end(mut child: Child, nonsense: bool) -> std::io::Result<End> {
    let deadline = std::time::Instant::now() + if nonsense { CUT } else { LAST };
    while std::time::Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(End { status, by_agent: false });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    Ok(End { status: child.wait()?, by_agent: true })
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => format!("exit status {}", status.code().unwrap_or_default()),
    }
}
