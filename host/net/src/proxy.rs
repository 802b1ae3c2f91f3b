//! The userspace service proxy: listens on ClusterIPs and NodePorts and passes connections
//! and datagrams on to ready endpoints.

mod balance;
mod tcp;
mod udp;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    bind::Acceptor,
    plan::{Backends, Listener, Protocol, Table},
    policy::Gate,
    view::View,
};
use balance::Balancer;

/// Connections passed on at a time by one node, for all who share the [`permits`]; more are left in the
/// system's queue.
pub const CONNECTIONS: usize = 16_384;
/// Changes that come together are one pass.
const SETTLE: Duration = Duration::from_millis(10);
/// What could not be listened on or redirected is tried again after that.
const RETRY: Duration = Duration::from_secs(10);

/// The permits for the connections of one node's proxies.
pub fn permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(CONNECTIONS))
}

/// Where a proxy's sockets are made, when it is not here: another network namespace.
pub trait Place: Send + Sync + 'static {
    /// Does `work`, which makes a socket, in that place; not at all when it cannot be entered.
    fn enter(&self, work: &mut (dyn FnMut() + Send));

    /// Makes the system of that place send what is meant for each redirection's address to the proxy's own
    /// socket, and nothing else. Then the proxy takes no port that a program there may want to listen on.
    /// May block.
    ///
    /// # Errors
    /// When that place has no such means.
    fn redirect(&self, to: &[Redirection]) -> io::Result<()>;
}

/// An address of a Service and the socket that serves it in a [`Place`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Redirection {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// What clients use.
    pub service: SocketAddr,
    /// Where the proxy listens.
    pub socket: SocketAddr,
}

/// Keeps a proxy for what runs in another place, until told to stop: it has the addresses of Services
/// there, and passes connections on from here. The node's own ports are not among them.
pub async fn run_in(
    view: View,
    node: String,
    place: Arc<dyn Place>,
    (permits, gate): (Arc<Semaphore>, Gate),
    stop: CancellationToken,
) {
    let (there, redirections) = (place.clone(), Vec::new());
    let asked = tokio::task::spawn_blocking(move || there.redirect(&[])).await.map_err(io::Error::other);
    let redirected = match asked.and_then(|outcome| outcome) {
        Ok(()) => Some(redirections),
        Err(error) => {
            tracing::warn!(
                %error,
                "services are served in a pod's network namespace on their own ports, which its containers cannot \
                 listen on; install nftables to free them"
            );
            None
        }
    };
    let mut proxy = Proxy { place: Some(place), redirected, permits, gate, ..Proxy::default() };
    keep(view, node, &mut proxy, stop).await;
}

/// Keeps the proxy of `node` as Services and EndpointSlices say, until told to stop. The gate judges
/// clients by the endpoint that is chosen for them.
/// Connections under way go on while a Service changes.
pub async fn run(view: View, node: String, (permits, gate): (Arc<Semaphore>, Gate), stop: CancellationToken) {
    keep(view, node, &mut Proxy { permits, gate, ..Proxy::default() }, stop).await;
}

async fn keep(view: View, node: String, proxy: &mut Proxy, stop: CancellationToken) {
    let mut changes = view.changes();
    // What is known already is served at once.
    changes.mark_changed();
    let mut complete = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.changed() => if change.is_err() { return },
            () = tokio::time::sleep(RETRY), if !complete => {}
        }
        // What arrives while the dust settles belongs to this pass.
        tokio::time::sleep(SETTLE).await;
        changes.mark_unchanged();
        // Before both lists are here the table would be too small and cut listeners.
        complete = false;
        if view.is_ready() {
            let table = view.table(&node);
            let elsewhere = proxy.place.is_some();
            proxy.take(&table, |listener| !(elsewhere && is_nodes_own(listener.address.ip())));
            complete = proxy.redirect().await && proxy.refused.is_empty();
        }
    }
}

fn is_nodes_own(address: IpAddr) -> bool {
    address.is_unspecified() || address == IpAddr::V4(Ipv4Addr::LOCALHOST) || !address.is_loopback()
}

/// The listeners of a node.
pub struct Proxy {
    place: Option<Arc<dyn Place>>,
    /// What the place sends to this proxy's sockets; `None` where these have the Services' own ports.
    redirected: Option<Vec<Redirection>>,
    listeners: HashMap<Listener, Running>,
    /// Addresses that cannot be listened on, with the reason last said.
    refused: HashMap<Listener, io::ErrorKind>,
    permits: Arc<Semaphore>,
    gate: Gate,
}

impl Default for Proxy {
    fn default() -> Self {
        let (listeners, refused) = (HashMap::new(), HashMap::new());
        Self { place: None, redirected: None, listeners, refused, permits: permits(), gate: Gate::open() }
    }
}

struct Running {
    socket: SocketAddr,
    balancer: Arc<Balancer>,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Proxy {
    /// One that listens on nothing yet.
    pub fn new(gate: Gate) -> Self {
        Self { gate, ..Self::default() }
    }

    /// Makes the listeners be those of the table. One that stays keeps its connections.
    pub fn set(&mut self, table: &Table) {
        self.take(table, |_| true);
    }

    /// As [`set`](Self::set), with the listeners of the table that are wanted here.
    fn take(&mut self, table: &Table, wanted: impl Fn(&Listener) -> bool) {
        self.listeners.retain(|listener, _| table.contains_key(listener));
        self.refused.retain(|listener, _| table.contains_key(listener));
        for (listener, backends) in table.iter().filter(|(listener, _)| wanted(listener)) {
            if let Some(running) = self.listeners.get(listener) {
                running.balancer.set(backends);
                continue;
            }
            match self.open(*listener, backends.clone()) {
                Ok(running) => {
                    self.refused.remove(listener);
                    self.listeners.insert(*listener, running);
                }
                Err((service, error)) => self.refuse(*listener, &service, &error),
            }
        }
    }

    /// Addresses listened on.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.keys().map(|l| l.address).collect()
    }

    /// Brings the place's redirections up to date; whether they are. What fails is tried again with the
    /// next pass.
    async fn redirect(&mut self) -> bool {
        let (Some(known), Some(place)) = (&self.redirected, self.place.clone()) else { return true };
        let redirection = |(listener, running): (&Listener, &Running)| Redirection {
            protocol: listener.protocol,
            service: listener.address,
            socket: running.socket,
        };
        let mut wanted: Vec<Redirection> = self.listeners.iter().map(redirection).collect();
        wanted.sort_unstable();
        if *known == wanted {
            return true;
        }
        let asked = wanted.clone();
        let done = tokio::task::spawn_blocking(move || place.redirect(&asked)).await;
        match done.map_err(io::Error::other).and_then(|outcome| outcome) {
            Ok(()) => {
                self.redirected = Some(wanted);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "cannot redirect services in a network namespace");
                false
            }
        }
    }

    fn open(&self, listener: Listener, backends: Backends) -> Result<Running, (String, io::Error)> {
        let stop = CancellationToken::new();
        let service = backends.service.clone();
        let balancer = Arc::new(Balancer::new(ArcSwap::from_pointee(backends)));
        let failed = |error| (service.clone(), error);
        let free = self.redirected.is_some();
        let address = SocketAddr::new(listener.address.ip(), if free { 0 } else { listener.address.port() });
        let socket = match listener.protocol {
            Protocol::Tcp => {
                let socket = self.bind(|| crate::bind::tcp(address, !free)).map_err(failed)?;
                let local = socket.local_addr().map_err(failed)?;
                let acceptor = Acceptor::new(socket, self.permits.clone());
                tokio::spawn(tcp::serve(acceptor, balancer.clone(), self.gate.clone(), stop.clone()));
                local
            }
            Protocol::Udp => {
                let socket = self.bind(|| crate::bind::udp(address, !free)).map_err(failed)?;
                let local = socket.local_addr().map_err(failed)?;
                tokio::spawn(udp::serve(socket, balancer.clone(), self.gate.clone(), stop.clone()));
                local
            }
        };
        Ok(Running { socket, balancer, stop })
    }

    fn bind<S: Send>(&self, bind: impl Fn() -> io::Result<S> + Send + Sync) -> io::Result<S> {
        let Some(place) = &self.place else { return bind() };
        let mut bound = None;
        place.enter(&mut || bound = Some(bind()));
        bound.unwrap_or_else(|| Err(io::Error::other("the network namespace cannot be entered")))
    }

    /// Says why an address is not served, once for each reason.
    fn refuse(&mut self, listener: Listener, service: &str, error: &io::Error) {
        if self.refused.insert(listener, error.kind()) == Some(error.kind()) {
            return;
        }
        let address = listener.address;
        match error.kind() {
            io::ErrorKind::PermissionDenied => tracing::warn!(
                %address, service,
                "ports below 1024 are refused; give the program CAP_NET_BIND_SERVICE, lower \
                 net.ipv4.ip_unprivileged_port_start, or use a service port above"
            ),
            io::ErrorKind::AddrInUse => {
                tracing::info!(%address, service, "another program listens on this service address");
            }
            _ => tracing::warn!(%address, service, %error, "cannot listen on a service address"),
        }
    }
}

#[cfg(test)]
mod tests;
