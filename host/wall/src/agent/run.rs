//! Runs commands in workers, each to its end.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Blocking;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;
use wasmk_runtime::{Exit, Program, Spec, Stdin, StopSignal};

use super::Wall;
use super::core::Worker;
use super::guest::Guest;
use crate::error::Error;
use crate::message::{Job, Start, ToWorker, WireSpec};

/// Longest wait for the last output of a guest that has ended to be taken.
const LAST_OUTPUT: Duration = Duration::from_secs(5);
/// A worker that does not end a guest in that time is ended itself.
const AFTER_KILL: Duration = Duration::from_secs(10);

impl Wall {
    /// Runs a program to its end, or until `stop` is given and its grace is over: in the worker of that group, or,
    /// with directories, in one of its own. Dropping the future ends the guest.
    ///
    /// # Errors
    /// If it cannot be started, or its worker is lost.
    pub async fn run(
        &self,
        group: &str,
        program: &Arc<Program>,
        spec: Spec,
        stop: StopSignal,
    ) -> Result<Exit, Error> {
        let worker = self.place(group, &spec).worker(self).await?;
        let guest = worker.enter(&spec)?;
        let run = Running { worker: &worker, guest: &guest, input: None };
        run.go(self, program, spec, stop).await
    }

    /// The message that starts a guest, with its files.
    pub(super) async fn starting(
        &self,
        guest: &Guest,
        job: Job,
        program: &Arc<Program>,
        spec: &Spec,
        stdin: Option<OwnedFd>,
    ) -> Result<(ToWorker, Vec<OwnedFd>), Error> {
        let (runtime, wanted) = (self.0.runtime.clone(), Arc::clone(program));
        let code = tokio::task::spawn_blocking(move || runtime.code(&wanted)).await;
        let code = code.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let code = code.map_err(|error| Error::Guest(format!("cannot hand its code over: {error}")))?;
        let start = Start {
            guest: guest.number,
            job,
            digest: program.digest().to_owned(),
            reuse: program.reuse(),
            stdin: stdin.is_some(),
            spec: WireSpec::from(spec),
        };
        let mut files = vec![OwnedFd::from(code)];
        files.extend(stdin);
        Ok((ToWorker::Start(Box::new(start)), files))
    }
}

/// A run; dropping it ends the guest.
struct Running<'a> {
    worker: &'a Worker,
    guest: &'a Arc<Guest>,
    input: Option<AbortHandle>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.worker.leave(self.guest);
        if let Some(input) = &self.input {
            input.abort();
        }
    }
}

impl Running<'_> {
    async fn go(
        mut self,
        wall: &Wall,
        program: &Arc<Program>,
        spec: Spec,
        stop: StopSignal,
    ) -> Result<Exit, Error> {
        let stdin = match &spec.stdin {
            Some(stdin) => {
                Some(self.feed(stdin).map_err(|error| Error::Guest(format!("its input: {error}")))?)
            }
            None => None,
        };
        let outcome = self.guest.outcome();
        let (start, files) = wall.starting(self.guest, Job::Run, program, &spec, stdin).await?;
        self.worker.send(&start, files).await?;
        let stopped = async {
            stop.requested().await;
            if let Some(stdin) = &spec.stdin {
                stdin.close();
            }
            stop.expired().await;
        };
        let ended = async {
            tokio::select! {
                biased;
                outcome = outcome => match outcome {
                    Ok(outcome) => outcome.map_err(Error::Guest),
                    Err(_) => Err(self.worker.end().await),
                },
                error = self.worker.end() => Err(error),
            }
        };
        tokio::pin!(ended);
        let outcome = tokio::select! {
            biased;
            outcome = &mut ended => outcome,
            () = stopped => {
                self.worker.core.post(&ToWorker::Kill { guest: self.guest.number });
                match tokio::time::timeout(AFTER_KILL, &mut ended).await {
                    Ok(outcome) => outcome,
                    Err(_) => {
                        self.worker.kill();
                        ended.await
                    }
                }
            }
        };
        // Whoever reads it may have stopped doing so.
        let _ = tokio::time::timeout(LAST_OUTPUT, self.guest.drained()).await;
        outcome
    }

    /// Passes the input on; the end of a socket for the guest to read from.
    fn feed(&mut self, stdin: &Stdin) -> std::io::Result<OwnedFd> {
        let (near, far) = Blocking::pair()?;
        near.set_nonblocking(true)?;
        let (mut near, mut stdin) = (UnixStream::from_std(near)?, stdin.clone());
        let pass = async move {
            // A guest that reads no more is no error.
            let _ = tokio::io::copy(&mut stdin, &mut near).await;
            let _ = near.shutdown().await;
        };
        self.input = Some(tokio::spawn(pass).abort_handle());
        Ok(far.into())
    }
}

impl Worker {
    /// Ends the process now.
    pub(super) fn kill(&self) {
        if self.ending().is_none() {
            let process = nix::unistd::Pid::from_raw(self.process.cast_signed());
            // It has ended by itself, then.
            let _ = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL);
        }
    }
}
