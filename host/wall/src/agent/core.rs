//! A worker as the agent sees it. What a worker says is believed about its own guests only, and only as far as
//! they are its own.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use http::Request;
use hyper::client::conn::http2::SendRequest;
use parking_lot::Mutex;
use tokio::io::AsyncRead;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use wasmk_runtime::{Body, HttpTarget, Network, NetworkError, Runtime, Spec, Tally};

use super::guest::Guest;
use crate::error::Error;
use crate::frames;
use crate::groups::Group;
use crate::message::{
    Answer, KeepTold, KeepWish, Kept, KeptTold, MAX_TO_AGENT, MAX_WISH, Question, Standing, ToAgent,
    ToWorker, frame, parse,
};
use crate::notify::Networks;

/// Most guests in one worker.
const MAX_GUESTS: usize = 65_536;
/// Longest name that is looked up, in bytes, and longest scheme and authority.
const MAX_NAME: usize = 1024;

/// A message to a worker, with its files.
pub(super) type Outgoing = (Vec<u8>, Vec<OwnedFd>);

/// A worker; dropping the last handle ends it.
pub(super) struct Worker {
    pub(super) core: Arc<Core>,
    pub(super) out: mpsc::Sender<Outgoing>,
    pub(super) links: Vec<SendRequest<Body>>,
    pub(super) turn: AtomicUsize,
    pub(super) began: Instant,
    pub(super) standing: Standing,
    pub(super) process: u32,
    pub(super) last: AtomicU64,
}

/// What the tasks of a worker share with it.
pub(super) struct Core {
    pub(super) guests: Mutex<HashMap<u64, Arc<Guest>>>,
    pub(super) ended: watch::Sender<Option<Error>>,
    pub(super) out: mpsc::WeakSender<Outgoing>,
    pub(super) runtime: Runtime,
    pub(super) tally: Mutex<Tally>,
    pub(super) questions: Arc<Semaphore>,
    pub(super) group: Option<Group>,
    /// Memory of a guest without a limit.
    pub(super) default_memory: u64,
}

impl Worker {
    /// Why it ended, if it has.
    pub(super) fn ending(&self) -> Option<Error> {
        self.core.ended.borrow().clone()
    }

    /// Waits for its end.
    pub(super) async fn end(&self) -> Error {
        let mut ended = self.core.ended.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let ended = ended.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        ended.unwrap_or_else(|| Error::Lost("nobody knows why".into()))
    }

    pub(super) fn is_unused(&self) -> bool {
        self.core.guests.lock().is_empty()
    }

    /// Lists a guest.
    pub(super) fn enter(&self, spec: &Spec) -> Result<Arc<Guest>, Error> {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let guest = Arc::new(Guest::new(number, spec));
        let mut guests = self.core.guests.lock();
        if guests.len() >= MAX_GUESTS {
            return Err(Error::Full(MAX_GUESTS));
        }
        guests.insert(number, Arc::clone(&guest));
        drop(guests);
        if let Some(group) = &self.core.group {
            group.enter(guest.memory.unwrap_or(self.core.default_memory), guest.cpu_millis);
        }
        Ok(guest)
    }

    /// Forgets a guest, and has the worker end it if it has not ended.
    pub(super) fn leave(&self, guest: &Guest) {
        let left = self.core.guests.lock().remove(&guest.number);
        if let (Some(_), Some(group)) = (left, &self.core.group) {
            group.leave(guest.memory.unwrap_or(self.core.default_memory), guest.cpu_millis);
        }
        let used = &guest.usage;
        used.report(used.cpu(), 0, 0, used.requests());
        self.core.post(&ToWorker::Kill { guest: guest.number });
    }

    pub(super) async fn send(&self, message: &ToWorker, files: Vec<OwnedFd>) -> Result<(), Error> {
        let outgoing = (frame(message, files.len()), files);
        match self.out.send(outgoing).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.end().await),
        }
    }

    /// One of the connections for requests.
    pub(super) fn link(&self) -> Option<SendRequest<Body>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let link = self.links.get(turn % self.links.len().max(1))?;
        if link.is_closed() {
            // A worker never closes one.
            self.kill();
        }
        Some(link.clone())
    }
}

impl Drop for Worker {
    /// Nobody is in it any more, and it need not agree.
    fn drop(&mut self) {
        self.kill();
    }
}

impl Core {
    /// Sends a message some time, if the worker is still there.
    pub(super) fn post(&self, message: &ToWorker) {
        let Some(out) = self.out.upgrade() else {
            return;
        };
        if let Err(mpsc::error::TrySendError::Full(outgoing)) = out.try_send((frame(message, 0), Vec::new()))
        {
            tokio::spawn(async move { out.send(outgoing).await });
        }
    }

    /// Sends a message when there is room for it, if the worker is still there.
    async fn send(&self, message: &ToWorker) {
        if let Some(out) = self.out.upgrade() {
            // Its end is seen by whoever hears it.
            let _ = out.send((frame(message, 0), Vec::new())).await;
        }
    }

    fn guest(&self, number: u64) -> Option<Arc<Guest>> {
        self.guests.lock().get(&number).cloned()
    }

    /// Hears a worker until its end.
    pub(super) async fn hear(self: &Arc<Self>, mut control: impl AsyncRead + Unpin) -> std::io::Result<()> {
        while let Some(body) = frames::receive(&mut control, MAX_TO_AGENT).await? {
            self.heed(parse(&body)?).await;
        }
        Ok(())
    }

    async fn heed(self: &Arc<Self>, message: ToAgent) {
        match message {
            ToAgent::Started { guest, failed } => {
                if let Some(guest) = self.guest(guest) {
                    guest.begin(failed);
                }
            }
            ToAgent::Ended { guest, outcome } => {
                if let Some(guest) = self.guest(guest) {
                    guest.end(outcome);
                }
            }
            ToAgent::Output { guest, channel, bytes } => {
                let guest = self.guest(guest).filter(|_| !bytes.is_empty());
                if let Some(guest) = guest.filter(|guest| guest.print(channel, bytes)) {
                    let this = Arc::clone(self);
                    tokio::spawn(async move { guest.drain(|bytes| this.credit(guest.number, bytes)).await });
                }
            }
            ToAgent::Report { used, tally } => self.count(&used, tally),
            ToAgent::Ask { question, guest, what } => self.ask(question, guest, what).await,
        }
    }

    fn credit(self: &Arc<Self>, guest: u64, bytes: usize) -> impl Future<Output = ()> + Send + use<> {
        let this = Arc::clone(self);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        async move { this.send(&ToWorker::Credit { guest, bytes }).await }
    }

    fn count(&self, used: &[(u64, crate::message::Used)], tally: Tally) {
        for (number, used) in used {
            if let Some(guest) = self.guest(*number) {
                guest.usage.report(used.cpu, used.memory, used.instances, used.requests);
            }
        }
        let mut before = self.tally.lock();
        self.runtime.count(&tally.since(&before));
        *before = tally;
    }

    /// Works on a question. One more than may be worked on is refused, and the worker not heard until it takes that.
    async fn ask(self: &Arc<Self>, question: u64, guest: u64, what: Question) {
        let Ok(turn) = Arc::clone(&self.questions).try_acquire_owned() else {
            let answer = answer(None, what).await;
            return self.send(&ToWorker::Answer { question, answer }).await;
        };
        let network = self.guest(guest).map(|guest| Arc::clone(&guest.network));
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let answer = answer(network, what).await;
            this.send(&ToWorker::Answer { question, answer }).await;
            drop(turn);
        });
    }

    /// Has wishes for what is kept done, one after another, until the worker's end.
    pub(super) async fn keep(self: Arc<Self>, mut keys: UnixStream) -> std::io::Result<()> {
        while let Some(body) = frames::receive(&mut keys, MAX_WISH).await? {
            let KeepWish { guest, wish } = parse(&body)?;
            let guest = self.guest(guest);
            let told: KeepTold = match wish {
                Kept::Key(wish) => match guest.and_then(|guest| guest.keyvalue.clone()) {
                    Some(stores) => stores.fulfil(wish).await.map(KeptTold::Key),
                    None => Err("no such store".into()),
                },
                Kept::Blob(wish) => match guest.and_then(|guest| guest.blobs.clone()) {
                    Some(blobs) => blobs.fulfil(wish).await.map(KeptTold::Blob),
                    None => Err("this guest was given no containers".into()),
                },
            };
            frames::write(&mut keys, &frame(&told, 0)).await?;
        }
        Ok(())
    }
}

async fn answer(network: Option<Arc<dyn Network>>, what: Question) -> Answer {
    match what {
        Question::Resolve(name) => {
            let found = match network.filter(|_| name.len() <= MAX_NAME) {
                Some(network) => network.resolve(&name).await,
                None => Err(NetworkError::Unreachable("the name".into())),
            };
            Answer::Resolved(found.map_err(Into::into))
        }
        Question::Http(place) => {
            let found = match network.filter(|_| place.len() <= MAX_NAME) {
                Some(network) => target(&*network, &place).await,
                None => Err(NetworkError::Unreachable("the host".into())),
            };
            Answer::Http(found.map_err(Into::into))
        }
    }
}

async fn target(network: &dyn Network, place: &str) -> Result<Vec<std::net::SocketAddr>, NetworkError> {
    let request = Request::builder().uri(place).body(());
    let (parts, ()) = request.map_err(|_| NetworkError::NotFound(place.to_owned()))?.into_parts();
    match network.http(&parts).await? {
        HttpTarget::Connect(addresses) => Ok(addresses),
        // It is in this process, and workers reach sockets only.
        HttpTarget::Service(_) => Err(NetworkError::Unreachable(place.to_owned())),
    }
}

impl Networks for std::sync::Weak<Core> {
    fn now(&self) -> Vec<Arc<dyn Network>> {
        let guests = self.upgrade();
        guests.map_or_else(Vec::new, |core| {
            core.guests.lock().values().map(|g| Arc::clone(&g.network)).collect()
        })
    }
}
