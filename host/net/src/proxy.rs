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
    plan::{Backends, Listener, Protocol, Table, plan},
    view::View,
};
use balance::Balancer;

/// Connections passed on at a time by one node; more are left in the system's queue.
pub const CONNECTIONS: usize = 16_384;
/// Changes that come together are one pass.
const SETTLE: Duration = Duration::from_millis(10);
/// An address that could not be listened on is tried again after that.
const RETRY: Duration = Duration::from_secs(10);

/// Where a proxy's sockets are made, when it is not here: another network namespace.
pub trait Place: Send + Sync + 'static {
    /// Does `work`, which makes a socket, in that place; not at all when it cannot be entered.
    fn enter(&self, work: &mut (dyn FnMut() + Send));
}

/// Keeps a proxy for what runs in another place, until told to stop: it has the addresses of Services
/// there, and passes connections on from here. The node's own ports are not among them.
pub async fn run_in(view: View, node: String, place: Arc<dyn Place>, stop: CancellationToken) {
    let mut proxy = Proxy { place: Some(place), ..Proxy::default() };
    keep(view, node, &mut proxy, stop).await;
}

/// Keeps the proxy of `node` as Services and EndpointSlices say, until told to stop.
/// Connections under way go on while a Service changes.
pub async fn run(view: View, node: String, stop: CancellationToken) {
    keep(view, node, &mut Proxy::default(), stop).await;
}

async fn keep(view: View, node: String, proxy: &mut Proxy, stop: CancellationToken) {
    let mut changes = view.changes();
    // What is known already is served at once.
    changes.mark_changed();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.changed() => if change.is_err() { return },
            () = tokio::time::sleep(RETRY) => {}
        }
        // What arrives while the dust settles belongs to this pass.
        tokio::time::sleep(SETTLE).await;
        changes.mark_unchanged();
        // Before both lists are here the table would be too small and cut listeners.
        if view.is_ready() {
            let mut table = plan(&view.services(), &view.slices(), &node);
            if proxy.place.is_some() {
                table.retain(|listener, _| !is_nodes_own(listener.address.ip()));
            }
            proxy.set(table);
        }
    }
}

fn is_nodes_own(address: IpAddr) -> bool {
    address.is_unspecified() || address == IpAddr::V4(Ipv4Addr::LOCALHOST) || !address.is_loopback()
}

/// The listeners of a node.
pub struct Proxy {
    place: Option<Arc<dyn Place>>,
    listeners: HashMap<Listener, Running>,
    /// Addresses that cannot be listened on, with the reason last said.
    refused: HashMap<Listener, io::ErrorKind>,
    permits: Arc<Semaphore>,
}

impl Default for Proxy {
    fn default() -> Self {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        Self { place: None, listeners: HashMap::new(), refused: HashMap::new(), permits }
    }
}

struct Running {
    balancer: Arc<Balancer>,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Proxy {
    /// Makes the listeners be those of the table. One that stays keeps its connections.
    pub fn set(&mut self, table: Table) {
        self.listeners.retain(|listener, _| table.contains_key(listener));
        self.refused.retain(|listener, _| table.contains_key(listener));
        for (listener, backends) in table {
            if let Some(running) = self.listeners.get(&listener) {
                running.balancer.set(backends);
                continue;
            }
            match self.open(listener, backends) {
                Ok(running) => {
                    self.refused.remove(&listener);
                    self.listeners.insert(listener, running);
                }
                Err((service, error)) => self.refuse(listener, &service, &error),
            }
        }
    }

    /// Addresses listened on.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.keys().map(|l| l.address).collect()
    }

    fn open(&self, listener: Listener, backends: Backends) -> Result<Running, (String, io::Error)> {
        let stop = CancellationToken::new();
        let service = backends.service.clone();
        let balancer = Arc::new(Balancer::new(ArcSwap::from_pointee(backends)));
        let failed = |error| (service.clone(), error);
        match listener.protocol {
            Protocol::Tcp => {
                let socket = self.bind(|| crate::bind::tcp(listener.address, true)).map_err(failed)?;
                tokio::spawn(tcp::serve(socket, balancer.clone(), self.permits.clone(), stop.clone()));
            }
            Protocol::Udp => {
                let socket = self.bind(|| crate::bind::udp(listener.address, true)).map_err(failed)?;
                tokio::spawn(udp::serve(socket, balancer.clone(), stop.clone()));
            }
        }
        Ok(Running { balancer, stop })
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
