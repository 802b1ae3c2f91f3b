//! What a worker's guests want of the agent: where names and requests lead, keys and values, and objects.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream as Blocking;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::request::Parts;
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, oneshot};
use wasmk_runtime::{
    BlobTold, BlobWish, BlobsElsewhere, HttpTarget, KeyValueElsewhere, Network, NetworkError, Protocol, Told,
    Wish,
};

use crate::message::{
    Answer, HEAD, KeepTold, KeepWish, Kept, KeptTold, MAX_QUESTIONS, MAX_WISH, Question, ToAgent, frame,
    parse,
};

/// Longest wait for keys, values and objects.
const PATIENCE: Duration = Duration::from_secs(30);

/// Questions that wait for an answer.
pub(super) struct Questions {
    out: UnboundedSender<Vec<u8>>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    last: AtomicU64,
    turns: Semaphore,
}

impl Questions {
    pub(super) fn new(out: UnboundedSender<Vec<u8>>) -> Self {
        let turns = Semaphore::new(MAX_QUESTIONS);
        Self { out, waiting: Mutex::default(), last: AtomicU64::new(0), turns }
    }

    pub(super) fn answer(&self, question: u64, answer: Answer) {
        if let Some(waiting) = self.waiting.lock().remove(&question) {
            // Whoever asked may have left.
            let _ = waiting.send(answer);
        }
    }

    async fn ask(&self, guest: u64, what: Question) -> Option<Answer> {
        let _turn = self.turns.acquire().await.ok()?;
        let question = self.last.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().insert(question, sender);
        self.out.send(frame(&ToAgent::Ask { question, guest, what }, 0)).ok()?;
        // The agent answers every question, or ends.
        answer.await.ok()
    }
}

/// A guest's network: names and requests are asked about, and sockets the agent makes itself.
pub(super) struct Asking {
    pub(super) questions: Arc<Questions>,
    pub(super) guest: u64,
    pub(super) address: Option<IpAddr>,
}

#[async_trait::async_trait]
impl Network for Asking {
    fn address(&self) -> Option<IpAddr> {
        self.address
    }

    fn source(&self, remote: SocketAddr) -> Option<IpAddr> {
        // From loopback no other machine can be reached; the agent gives a socket that is not bound its address.
        self.address.filter(|own| !own.is_loopback() || remote.ip().is_loopback())
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, NetworkError> {
        match self.questions.ask(self.guest, Question::Resolve(name.to_owned())).await {
            Some(Answer::Resolved(found)) => found.map_err(Into::into),
            _ => Err(NetworkError::Unreachable(name.to_owned())),
        }
    }

    // The calls to the kernel that follow are the agent's to allow and to carry out.
    fn bind(&self, _: Protocol, _: SocketAddr) -> Result<(), NetworkError> {
        Ok(())
    }

    fn connect(&self, _: Protocol, remote: SocketAddr) -> Result<SocketAddr, NetworkError> {
        Ok(remote)
    }

    fn accept(&self, _: Protocol, _: SocketAddr) -> bool {
        true
    }

    async fn http(&self, request: &Parts) -> Result<HttpTarget, NetworkError> {
        let lacking = || NetworkError::NotFound(request.uri.to_string());
        let scheme = request.uri.scheme_str().unwrap_or("http");
        let place = format!("{scheme}://{}/", request.uri.authority().ok_or_else(lacking)?);
        match self.questions.ask(self.guest, Question::Http(place.clone())).await {
            Some(Answer::Http(found)) => found.map(HttpTarget::Connect).map_err(Into::into),
            _ => Err(NetworkError::Unreachable(place)),
        }
    }
}

/// The agent as the keeper of keys, values and objects. Guests ask in the middle of a call, so their threads wait; the
/// answers come by a socket of their own, which needs none of those threads.
pub(super) struct Keeper(Mutex<Blocking>);

impl Keeper {
    pub(super) fn new(socket: Blocking) -> io::Result<Self> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(Mutex::new(socket)))
    }

    fn ask(&self, guest: u64, wish: Kept) -> io::Result<KeepTold> {
        let mut socket = self.0.lock();
        socket.write_all(&frame(&KeepWish { guest, wish }, 0))?;
        let mut head = [0; HEAD];
        socket.read_exact(&mut head)?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if length > MAX_WISH {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; length];
        socket.read_exact(&mut body)?;
        parse(&body)
    }
}

/// A guest's stores, and its containers.
#[derive(Clone)]
pub(super) struct Stores {
    pub(super) keeper: Arc<Keeper>,
    pub(super) guest: u64,
}

impl KeyValueElsewhere for Stores {
    fn ask(&self, wish: &Wish) -> Result<Told, String> {
        match self.keep(Kept::Key(wish.clone()))? {
            KeptTold::Key(told) => Ok(told),
            KeptTold::Blob(_) => Err("the answer is to another question".into()),
        }
    }
}

impl BlobsElsewhere for Stores {
    fn ask(&self, wish: &BlobWish) -> Result<BlobTold, String> {
        match self.keep(Kept::Blob(wish.clone()))? {
            KeptTold::Blob(told) => Ok(told),
            KeptTold::Key(_) => Err("the answer is to another question".into()),
        }
    }
}

impl Stores {
    fn keep(&self, wish: Kept) -> KeepTold {
        let told = self.keeper.ask(self.guest, wish);
        told.unwrap_or_else(|error| Err(format!("what is kept cannot be used: {error}")))
    }
}
