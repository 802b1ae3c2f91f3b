//! Network policies: who may talk to which pod, held at hand on every node and asked for each connection.
//!
//! [`table`] decides; this module keeps the table as the API says and has what those need who ask: connections
//! that pods accept because the node makes them, and a place for those that are to come to nothing. Pods and
//! namespaces are only watched while there is a policy.

mod book;
pub mod cidr;
mod delta;
mod gate;
mod keep;
mod members;
mod memory;
pub mod openings;
mod places;
pub mod table;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket},
    sync::{Notify, Semaphore, watch},
};
use wasmk_api::{NODE_SOURCE, k8s_openapi::api::core::v1::Pod};

pub use gate::Gate;
pub use table::{Direction, End, Labels, Member, Table};

use self::{
    book::Book,
    delta::{Delta, History},
    memory::Memory,
    places::Places,
};
use crate::view::View;

/// Connections at a time that are left without an answer; one more is cut off at once.
const HELD: usize = 1024;
/// How long a connection that is not allowed is left without an answer. Clients give up before that.
const HOLD: Duration = Duration::from_secs(130);
/// Bytes taken at a time from such a connection, to see its end.
const SINK: usize = 4096;

/// The policies of the cluster as a node knows them. Clones are the same.
#[derive(Clone)]
pub struct Policies {
    inner: Arc<Inner>,
}

struct Inner {
    table: ArcSwap<Table>,
    /// Locked while the table is changed.
    history: Mutex<History>,
    version: watch::Sender<u64>,
    /// Pods of this node, before the API has heard of their addresses.
    places: Mutex<Places>,
    news: Notify,
    held: Arc<Semaphore>,
    hole: OnceLock<Option<Hole>>,
}

/// The rules of a moment, as somebody asks who has made something of former ones.
#[derive(Debug)]
pub struct News {
    /// Which rules these are.
    pub version: u64,
    /// The rules.
    pub table: Arc<Table>,
    /// They may say something else of the pod than the former ones.
    pub concerns: bool,
}

/// An address that takes no connection and refuses none: its queue is full for good.
struct Hole {
    address: SocketAddr,
    _listener: std::net::TcpListener,
    _filler: std::net::TcpStream,
}

impl Policies {
    /// The policies, and the task that keeps them. Until the API is heard they are what `file`, if one is named, was
    /// left with; without either there are none. May read from the disk.
    pub fn new(
        client: kube::Client,
        view: View,
        file: Option<PathBuf>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let policies = Self::none();
        let memory = file.map(Memory::new);
        let mut book = memory.as_ref().map(|memory| Book::open(memory.read())).unwrap_or_default();
        policies.renew(&mut book);
        let task = keep::keep(policies.clone(), book, memory, client, view);
        (policies, task)
    }

    /// No policies.
    pub fn none() -> Self {
        let inner = Inner {
            table: ArcSwap::default(),
            history: Mutex::default(),
            version: watch::Sender::new(0),
            places: Mutex::default(),
            news: Notify::new(),
            held: Arc::new(Semaphore::new(HELD)),
            hole: OnceLock::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The rules of this moment.
    pub fn table(&self) -> Arc<Table> {
        self.inner.table.load_full()
    }

    /// Whether there is any policy at all.
    pub fn is_active(&self) -> bool {
        self.inner.table.load().is_active()
    }

    /// Whether a connection may pass from one address to another.
    pub fn allows(&self, from: IpAddr, to: SocketAddr, protocol: crate::plan::Protocol) -> bool {
        self.inner.table.load().allows(from, to, protocol)
    }

    /// Changes with every table.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.version.subscribe()
    }

    /// The rules of this moment for somebody who has made something of those of a version (0 for nothing yet) that
    /// is about the pod of an address.
    pub fn news(&self, since: u64, address: IpAddr) -> News {
        let history = self.inner.history.lock();
        let (version, table) = (history.version(), self.table());
        let concerns = since == 0 || history.concerns(since, &table, address);
        News { version, table, concerns }
    }

    /// Takes those rules in place of the present ones.
    pub fn set(&self, table: Table) {
        self.change(table, Delta::All);
    }

    fn change(&self, table: Table, delta: Delta) {
        let mut history = self.inner.history.lock();
        self.inner.table.store(Arc::new(table));
        let version = history.push(delta);
        self.inner.version.send_replace(version);
    }

    /// Takes the rules of a book, if they have changed; whether they have.
    fn renew(&self, book: &mut Book) -> bool {
        let changed = book.commit(&mut self.inner.places.lock());
        let changed = changed.filter(|(table, _)| table.is_active() || self.is_active());
        let Some((table, delta)) = changed else { return false };
        self.change(table, delta);
        true
    }

    /// Says that a pod of this node has an address, so that its rules count from its first connection on.
    pub fn place(&self, pod: &Pod, address: IpAddr) {
        let Some(member) = Member::of(pod) else { return };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.inner.places.lock().put(key(pod), uid, address, Arc::new(member.at(address)));
        self.inner.news.notify_one();
    }

    /// Waits until the rules know that address as that of the pod placed there, but no longer than `limit`.
    pub async fn settled(&self, address: IpAddr, limit: Duration) {
        let mut changes = self.changes();
        let is_known = || {
            let table = self.table();
            let places = self.inner.places.lock();
            places.of(address).is_none_or(|(_, placed)| {
                table.member(address).is_some_and(|known| placed.labels == known.labels)
            })
        };
        let known = async { while self.is_active() && !is_known() && changes.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(limit, known).await;
    }

    /// Says that a pod has left its address.
    pub fn leave(&self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if self.inner.places.lock().leave(&key(pod), uid) {
            self.inner.news.notify_one();
        }
    }

    /// Where the node connects from to be known as itself, if that matters now. Addresses of other machines and
    /// namespaces cannot be reached from there, and need not be: the node's traffic is let through there.
    pub fn source(&self, to: IpAddr) -> Option<IpAddr> {
        (to.is_ipv4() && to.is_loopback() && self.is_active()).then_some(NODE_SOURCE.into())
    }

    /// Connects for the cluster's sake: no policy holds it up.
    ///
    /// # Errors
    /// What the system says.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        match self.source(to.ip()) {
            Some(own) => connect_from(own, to).await,
            None => TcpStream::connect(to).await,
        }
    }

    /// A socket for datagrams to `to`, sent for the cluster's sake.
    ///
    /// # Errors
    /// What the system says.
    pub async fn datagrams(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { [0_u16; 8].into() };
        let own = self.source(to.ip()).unwrap_or(any);
        let socket = UdpSocket::bind((own, 0)).await?;
        socket.connect(to).await?;
        Ok(socket)
    }

    /// Leaves a connection without an answer, as a network does that drops what it may not pass on: until its
    /// client gives up, or for two minutes. One beyond the bound is cut off.
    pub fn hold(&self, stream: TcpStream) {
        let Ok(permit) = self.inner.held.clone().try_acquire_owned() else {
            let _ = stream.set_zero_linger();
            return;
        };
        tokio::spawn(async move {
            let _ = tokio::time::timeout(HOLD, drain(&stream)).await;
            let _ = stream.set_zero_linger();
            drop(permit);
        });
    }

    /// An address on which connecting takes until whoever tries gives up; `None` when there can be none.
    pub fn hole(&self) -> Option<SocketAddr> {
        let made = self.inner.hole.get_or_init(|| {
            Hole::new()
                .inspect_err(
                    |error| tracing::warn!(%error, "connections that policies forbid are refused at once"),
                )
                .ok()
        });
        made.as_ref().map(|hole| hole.address)
    }
}

impl Hole {
    fn new() -> io::Result<Self> {
        use nix::sys::socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket,
        };
        use std::os::fd::AsRawFd;

        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
        // The queue has room for one more than that.
        listen(&socket, Backlog::new(0)?)?;
        let listener = std::net::TcpListener::from(socket);
        let address = listener.local_addr()?;
        let filler = std::net::TcpStream::connect(address)?;
        Ok(Self { address, _listener: listener, _filler: filler })
    }
}

fn key(pod: &Pod) -> (String, String) {
    let meta = &pod.metadata;
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

async fn connect_from(own: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};

    let socket = TcpSocket::new_v4()?;
    // One port can then serve connections to many places.
    let _ = setsockopt(&socket, IpBindAddressNoPort, &true);
    socket.bind((own, 0).into())?;
    socket.connect(to).await
}

async fn drain(stream: &TcpStream) {
    let mut sink = [0; SINK];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut sink) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
