//! The worker: a process inside the walls that runs guests for its agent.
//!
//! Its standard input is the socket to the agent, its standard output the one for keys and values. It has nothing
//! else, and ends when the agent does.

mod asking;
mod guests;
mod output;
mod serve;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as Blocking;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use wasmk_runtime::{Bare, Isolated, Settings};

use crate::frames::{self, Reader};
use crate::message::{MAX_TO_WORKER, Setup, ToWorker, frame, parse};
use crate::walls;
use asking::Keeper;
use guests::Guests;

/// How often figures are told that have changed.
const REPORT: Duration = Duration::from_millis(500);
/// First descriptor that is not given to the worker.
const FIRST_FOREIGN: libc::c_uint = 3;

/// The whole life of a worker process. To be called before the process has a second thread.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The agent reads it and says it where its user looks.
            let _ = io::Write::write_all(&mut io::stderr(), format!("{error}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    close_foreign()?;
    let control = Blocking::from(io::stdin().as_fd().try_clone_to_owned()?);
    let keys = Blocking::from(io::stdout().as_fd().try_clone_to_owned()?);
    let (body, _) = frames::receive_blocking(&control, MAX_TO_WORKER)?;
    let setup: Setup = parse(&body)?;
    let settings = Settings {
        max_instances: setup.max_instances,
        instance_wait: setup.instance_wait,
        memory_budget: setup.memory_budget,
        default_memory_limit: setup.default_memory_limit,
        ..Settings::new("")
    };
    // Looks at files that are out of reach afterwards.
    let bare = Bare::new(&settings).map_err(io::Error::other)?;
    let mut raised = walls::raise(&setup.room)?;
    let sockets = raised.sockets.take();
    let sent: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    frames::send_blocking(&control, &frame(&raised.standing, sent.len()), &sent)?;
    drop(sockets);
    raised.seal()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let isolated = Isolated::new(bare, &settings).map_err(io::Error::other)?;
    let done = runtime.block_on(work(control, keys, isolated));
    // Guests that compute are not waited for.
    runtime.shutdown_background();
    done
}

/// Closes what a careless parent might have left open.
#[allow(unsafe_code)]
fn close_foreign() -> io::Result<()> {
    // SAFETY: nothing in this process has opened a file yet, so none is closed under anybody's hands.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, FIRST_FOREIGN, libc::c_uint::MAX, 0) };
    match io::Error::last_os_error() {
        _ if closed == 0 => Ok(()),
        // Before Linux 5.9; the agent leaves nothing open itself.
        error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        error => Err(error),
    }
}

async fn work(control: Blocking, keys: Blocking, isolated: Isolated) -> io::Result<()> {
    control.set_nonblocking(true)?;
    let control = UnixStream::from_std(control)?;
    // Bounded by what guests may have under way: windows of output and questions.
    let (out, messages) = mpsc::unbounded_channel();
    let guests = Arc::new(Guests::new(isolated, out, Arc::new(Keeper::new(keys)?)));
    let mut written = control.as_fd().try_clone_to_owned().and_then(|copy| {
        let copy = Blocking::from(copy);
        UnixStream::from_std(copy)
    })?;
    let write = write(&mut written, messages);
    tokio::select! {
        done = listen(&control, &guests) => done,
        done = write => done,
        () = report(&guests) => Ok(()),
    }
}

async fn listen(control: &UnixStream, guests: &Arc<Guests>) -> io::Result<()> {
    let mut reader = Reader::new(control, MAX_TO_WORKER);
    while let Some((body, files)) = reader.next().await? {
        heed(guests, parse(&body)?, files)?;
    }
    Ok(())
}

fn heed(guests: &Arc<Guests>, message: ToWorker, files: Vec<OwnedFd>) -> io::Result<()> {
    let lacking = || io::Error::new(io::ErrorKind::InvalidData, "a message lacks its file");
    let mut files = files.into_iter();
    match message {
        ToWorker::Start(start) => {
            let code = files.next().ok_or_else(lacking)?;
            guests.start(*start, code.into(), files.next());
        }
        ToWorker::Kill { guest } => guests.kill(guest),
        ToWorker::Credit { guest, bytes } => guests.credit(guest, bytes),
        ToWorker::Answer { question, answer } => guests.answer(question, answer),
        ToWorker::Connection => {
            let socket = Blocking::from(files.next().ok_or_else(lacking)?);
            socket.set_nonblocking(true)?;
            tokio::spawn(serve::connection(UnixStream::from_std(socket)?, Arc::clone(guests)));
        }
    }
    Ok(())
}

async fn write(control: &mut UnixStream, mut messages: mpsc::UnboundedReceiver<Vec<u8>>) -> io::Result<()> {
    while let Some(frame) = messages.recv().await {
        control.write_all(&frame).await?;
    }
    Ok(())
}

async fn report(guests: &Guests) {
    loop {
        // Nothing is told, and nothing wakes, while there are no guests.
        guests.some().await;
        tokio::time::sleep(REPORT).await;
        guests.report();
    }
}
