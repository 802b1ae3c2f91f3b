//! The guests of a worker.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Blocking;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::{Request, Response};
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use wasmk_runtime::{
    Blobs, Body, CallError, Cgi, Handler, Isolated, KeyValue, Program, Spec, Stdin, StopSignal, Tally, Usage,
};

use super::asking::{Asking, Keeper, Questions, Stores};
use super::output::{Output, Window};
use crate::message::{Answer, Channel, Job, MAX_REPORTED, Start, ToAgent, Used, WireSpec, frame};

/// Longest wait of a request for its guest, whose start may have come by the other socket a moment later.
const PATIENCE: Duration = Duration::from_secs(10);

/// All guests, by the number that the agent has given them.
pub(super) struct Guests {
    isolated: Isolated,
    out: UnboundedSender<Vec<u8>>,
    questions: Arc<Questions>,
    keeper: Arc<Keeper>,
    known: Mutex<HashMap<u64, Guest>>,
    count: watch::Sender<usize>,
    programs: Mutex<HashMap<String, Weak<Program>>>,
    told: Mutex<Tally>,
}

struct Guest {
    stop: StopSignal,
    window: Arc<Window>,
    usage: Arc<Usage>,
    told: Used,
    handler: watch::Sender<Option<Answering>>,
}

/// How a guest answers requests.
#[derive(Clone)]
pub(super) enum Answering {
    Http(Handler),
    /// It is a command, started for each.
    Cgi(Cgi),
}

impl Answering {
    pub(super) async fn call(&self, request: Request<Body>) -> Result<Response<Body>, CallError> {
        match self {
            Self::Http(handler) => handler.call(request).await,
            Self::Cgi(command) => command.call(request).await,
        }
    }
}

impl Guests {
    pub(super) fn new(isolated: Isolated, out: UnboundedSender<Vec<u8>>, keeper: Arc<Keeper>) -> Self {
        Self {
            isolated,
            questions: Arc::new(Questions::new(out.clone())),
            out,
            keeper,
            known: Mutex::default(),
            count: watch::Sender::new(0),
            programs: Mutex::default(),
            told: Mutex::default(),
        }
    }

    pub(super) fn start(self: &Arc<Self>, start: Start, code: File, stdin: Option<OwnedFd>) {
        let guest = Guest {
            stop: StopSignal::new(),
            window: Arc::default(),
            usage: Arc::default(),
            told: Used::default(),
            handler: watch::Sender::new(None),
        };
        let (stop, number) = (guest.stop.clone(), start.guest);
        let spec = self.spec(&guest, number, start.spec, stdin);
        let mut known = self.known.lock();
        known.insert(number, guest);
        self.count.send_replace(known.len());
        drop(known);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let program = this.load(code, start.digest, start.reuse).await;
            match start.job {
                Job::Run => this.run(number, program, spec, stop).await,
                job => this.serve(number, job, program, spec),
            }
        });
    }

    fn spec(&self, guest: &Guest, number: u64, given: WireSpec, stdin: Option<OwnedFd>) -> Spec {
        let (questions, address) = (Arc::clone(&self.questions), given.address);
        let output = |channel| {
            let (window, out) = (Arc::clone(&guest.window), self.out.clone());
            Arc::new(Output { guest: number, channel, window, out })
        };
        let kept = Arc::new(Stores { keeper: Arc::clone(&self.keeper), guest: number });
        Spec {
            args: given.args,
            env: given.env,
            mounts: given.mounts,
            working_dir: given.working_dir,
            memory_limit: given.memory_limit,
            cpu_millis: given.cpu_millis,
            stdin: stdin.and_then(|socket| input(socket).ok()),
            stdout: output(Channel::Stdout),
            stderr: output(Channel::Stderr),
            network: Arc::new(Asking { questions, guest: number, address }),
            keyvalue: given.stores.map(|names| KeyValue::elsewhere(kept.clone(), names)),
            blobs: given.containers.map(|names| Blobs::elsewhere(kept, names)),
            run_timeout: given.run_timeout,
            http: given.http,
            reuse: given.reuse,
            usage: Arc::clone(&guest.usage),
        }
    }

    async fn load(
        self: &Arc<Self>,
        code: File,
        digest: String,
        reuse: Option<u32>,
    ) -> Result<Arc<Program>, String> {
        let loaded = self.programs.lock().get(&digest).and_then(Weak::upgrade);
        if let Some(program) = loaded {
            return Ok(program);
        }
        let this = Arc::clone(self);
        let load = move || {
            let program = this.isolated.load(code, &digest, reuse).map_err(|error| error.to_string())?;
            let mut programs = this.programs.lock();
            programs.retain(|_, program| program.strong_count() > 0);
            programs.insert(digest, Arc::downgrade(&program));
            Ok(program)
        };
        tokio::task::spawn_blocking(load).await.unwrap_or_else(|error| Err(error.to_string()))
    }

    async fn run(&self, guest: u64, program: Result<Arc<Program>, String>, spec: Spec, stop: StopSignal) {
        let outcome = match program {
            Ok(program) => program.run(spec, stop).await.map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        self.report();
        self.tell(&ToAgent::Ended { guest, outcome });
        self.forget(guest);
    }

    fn serve(&self, guest: u64, job: Job, program: Result<Arc<Program>, String>, spec: Spec) {
        let made = program.and_then(|program| {
            let made = match job {
                Job::Cgi => program.cgi(spec).map(Answering::Cgi),
                Job::Run | Job::Serve => program.handler(spec).map(Answering::Http),
            };
            made.map_err(|error| error.to_string())
        });
        let failed = match made {
            Ok(handler) => {
                let stopped = self.known.lock().get(&guest).is_none_or(|known| {
                    known.handler.send_replace(Some(handler));
                    known.stop.is_stopped()
                });
                if stopped {
                    // It was not known to serve when that was said.
                    self.forget(guest);
                }
                None
            }
            Err(error) => {
                self.forget(guest);
                Some(error)
            }
        };
        self.tell(&ToAgent::Started { guest, failed });
    }

    /// The handler of that number.
    pub(super) async fn handler(&self, guest: u64) -> Option<Answering> {
        let mut ready = {
            let known = self.known.lock();
            let known = known.get(&guest)?;
            if let Some(handler) = &*known.handler.borrow() {
                return Some(handler.clone());
            }
            known.handler.subscribe()
        };
        let wait = ready.wait_for(Option::is_some);
        tokio::time::timeout(PATIENCE, wait).await.ok()?.ok()?.clone()
    }

    pub(super) fn kill(&self, guest: u64) {
        let serves = self.known.lock().get(&guest).map(|known| {
            known.stop.kill();
            known.handler.borrow().is_some()
        });
        // A run says itself that it has ended. Requests under way keep their handler.
        if serves == Some(true) {
            self.forget(guest);
        }
    }

    fn forget(&self, guest: u64) {
        let mut known = self.known.lock();
        let gone = known.remove(&guest);
        self.count.send_replace(known.len());
        drop(known);
        drop(gone);
    }

    pub(super) fn credit(&self, guest: u64, bytes: u32) {
        let window = self.known.lock().get(&guest).map(|known| Arc::clone(&known.window));
        if let Some(window) = window {
            window.credit(bytes);
        }
    }

    pub(super) fn answer(&self, question: u64, answer: Answer) {
        self.questions.answer(question, answer);
    }

    /// Waits until there is a guest.
    pub(super) async fn some(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.count.subscribe().wait_for(|count| *count > 0).await;
    }

    /// Tells the figures that have changed.
    pub(super) fn report(&self) {
        let mut used = Vec::new();
        for (number, guest) in &mut *self.known.lock() {
            let now = Used::from(&*guest.usage);
            if now != guest.told && used.len() < MAX_REPORTED {
                guest.told = now;
                used.push((*number, now));
            }
        }
        let tally = self.isolated.tally();
        let changed = std::mem::replace(&mut *self.told.lock(), tally) != tally;
        if changed || !used.is_empty() {
            self.tell(&ToAgent::Report { used, tally });
        }
    }

    fn tell(&self, message: &ToAgent) {
        // Without an agent the process ends.
        let _ = self.out.send(frame(message, 0));
    }
}

fn input(socket: OwnedFd) -> std::io::Result<Stdin> {
    let socket = Blocking::from(socket);
    socket.set_nonblocking(true)?;
    Ok(Stdin::new(UnixStream::from_std(socket)?))
}
