//! Worker processes: started by one thread that outlives them all, because the kernel ends a worker with the
//! thread that started it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::error::Error;
use crate::frames;
use crate::groups::{Group, Groups};
use crate::message::{MAX_TO_AGENT, Setup, Standing, frame, parse};

/// Longest time for a worker to put its walls up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Workers that wait to be started.
const QUEUE: usize = 64;
/// Most that a worker says on its standard error before nobody listens, in bytes.
const SAID: u64 = 64 << 10;

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Starts processes.
pub(super) struct Spawner(mpsc::SyncSender<Order>);

impl Spawner {
    fn begin() -> io::Result<Self> {
        let (sender, orders) = mpsc::sync_channel::<Order>(QUEUE);
        let serve = move || {
            for (mut command, answer) in orders {
                // Whoever asked may have left.
                let _ = answer.send(command.spawn());
            }
        };
        std::thread::Builder::new().name("wall-spawner".into()).spawn(serve)?;
        Ok(Self(sender))
    }

    /// The one in the cell, begun if there is none.
    fn of(cell: &OnceLock<Self>) -> io::Result<&Self> {
        if let Some(spawner) = cell.get() {
            return Ok(spawner);
        }
        // Of two that begin at the same time one ends at once.
        let spawner = Self::begin()?;
        Ok(cell.get_or_init(|| spawner))
    }

    /// Waits until the process is started.
    fn spawn(&self, command: Command) -> io::Result<Child> {
        let (sender, answer) = mpsc::sync_channel(1);
        let gone = || io::Error::other("nobody starts processes any more");
        self.0.send((command, sender)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

/// A process inside its walls.
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) control: UnixStream,
    pub(super) keys: UnixStream,
    pub(super) standing: Standing,
    /// Answers the worker's calls for sockets.
    pub(super) sockets: Option<OwnedFd>,
    /// Limits it as a whole.
    pub(super) group: Option<Group>,
}

/// Starts a worker and waits until its walls are up. Blocks.
pub(super) fn start(
    spawner: &OnceLock<Spawner>,
    program: &Path,
    arguments: &[String],
    setup: &Setup,
    groups: Option<&Groups>,
) -> Result<Started, Error> {
    let failed = |error: io::Error| Error::Spawn(error.to_string());
    let (control, its_control) = UnixStream::pair().map_err(failed)?;
    let (keys, its_keys) = UnixStream::pair().map_err(failed)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(OwnedFd::from(its_control))
        .stdout(OwnedFd::from(its_keys))
        .stderr(Stdio::piped());
    let mut child = Spawner::of(spawner).and_then(|spawner| spawner.spawn(command)).map_err(failed)?;
    // It does nothing yet, and has no second thread.
    let group = groups.and_then(|groups| {
        let made = groups.group(child.id());
        made.inspect_err(|why| tracing::warn!("a process for guests has no control group: {why}")).ok()
    });
    match shake_hands(&control, setup) {
        Ok((standing, sockets)) => Ok(Started { child, control, keys, standing, sockets, group }),
        Err(error) => Err(Error::Spawn(why(&mut child, &error))),
    }
}

fn shake_hands(control: &UnixStream, setup: &Setup) -> io::Result<(Standing, Option<OwnedFd>)> {
    control.set_read_timeout(Some(PATIENCE))?;
    frames::send_blocking(control, &frame(setup, 0), &[])?;
    let (body, mut files) = frames::receive_blocking(control, MAX_TO_AGENT)?;
    control.set_read_timeout(None)?;
    Ok((parse(&body)?, files.pop_front()))
}

/// Ends a worker that did not begin; what it said.
fn why(child: &mut Child, error: &io::Error) -> String {
    // One that has ended by itself stays as it is.
    let _ = child.kill();
    let _ = child.wait();
    let mut said = String::new();
    if let Some(pipe) = child.stderr.take() {
        let _ = io::Read::read_to_string(&mut io::Read::take(pipe, SAID), &mut said);
    }
    if said.trim().is_empty() { error.to_string() } else { said.trim().to_owned() }
}

/// Passes on what a worker says of itself: it is an error of this program.
pub(super) async fn hear(process: u32, pipe: ChildStderr) {
    let Ok(pipe) = tokio::process::ChildStderr::from_std(pipe) else {
        return;
    };
    let mut lines = BufReader::new(pipe.take(SAID)).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::warn!(worker = process, "{line}");
    }
}
