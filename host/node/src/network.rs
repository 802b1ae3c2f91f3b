//! The network as a guest sees it: its own address, names of the cluster, and everything
//! the host can reach and network policies allow.

mod ports;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use async_trait::async_trait;
use http::request::Parts;
use wasmk_net::{
    View,
    names::{self, Answer, MAX_ALIASES},
    plan::{Listener, Protocol as Transport},
    policy::{End, Member, Policies, Table},
};
use wasmk_runtime::{HttpTarget, Network, NetworkError, Protocol, host_and_port, lookup};

use crate::netns::Netns;
use ports::Ports;

/// What all pods of a node know of the others.
#[derive(Clone)]
pub(crate) struct Neighbours {
    /// Services and endpoints.
    pub view: View,
    /// Who may talk to whom.
    pub policies: Policies,
    /// The node's name.
    pub node: Arc<str>,
}

/// The network of one pod.
pub(crate) struct PodNetwork {
    around: Neighbours,
    namespace: String,
    address: Option<IpAddr>,
    /// Where the pod's containers are, if it has any beside its guests.
    netns: Option<Netns>,
    /// As what policies know a guest that has no address.
    member: Option<Arc<Member>>,
    ports: Ports,
}

/// What becomes of a connection.
enum Way {
    To(SocketAddr),
    Nowhere,
}

impl PodNetwork {
    /// For a pod of that namespace and address; without an address nothing can be listened on.
    pub(crate) fn of_pod(
        around: Neighbours,
        namespace: &str,
        address: Option<IpAddr>,
        netns: Option<Netns>,
    ) -> Arc<Self> {
        let namespace = namespace.into();
        Arc::new(Self { around, namespace, address, netns, member: None, ports: Ports::default() })
    }

    /// For a function that is answered without a pod: it has no address of its own and listens on nothing.
    pub(crate) fn of_function(around: Neighbours, member: Arc<Member>) -> Arc<Self> {
        let (namespace, member) = (member.namespace.clone(), Some(member));
        Arc::new(Self { around, namespace, address: None, netns: None, member, ports: Ports::default() })
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, NetworkError> {
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        let mut name = name.to_string();
        for _ in 0..MAX_ALIASES {
            match names::resolve(&self.around.view, &self.namespace, &name) {
                Some(Answer::Addresses(list)) if list.is_empty() => {
                    return Err(NetworkError::Unreachable(name));
                }
                Some(Answer::Addresses(list)) => return Ok(list),
                Some(Answer::Alias(other)) => name = other,
                // Not the cluster's: by the machine's own resolver.
                None => return Ok(lookup(&name, 0).await?.iter().map(SocketAddr::ip).collect()),
            }
        }
        Err(NetworkError::NotFound(name))
    }

    /// The address its sockets are bound to, by which a proxy or another pod knows it.
    fn own(&self) -> Option<IpAddr> {
        // In a namespace of its own the pod has all addresses, and the system chooses the right one.
        self.address.filter(|_| self.netns.is_none())
    }

    fn end<'a>(&'a self, table: &'a Table) -> Option<End<'a>> {
        match (self.address, &self.member) {
            (Some(address), _) => Some(table.end(address)),
            (None, Some(member)) => Some(End::nameless(member)),
            (None, None) => None,
        }
    }

    /// Where a connection goes when policies have been asked.
    fn way(&self, protocol: Protocol, remote: SocketAddr) -> Way {
        let policies = &self.around.policies;
        // What leaves a namespace is judged there.
        if !policies.is_active() || (self.netns.is_some() && !is_ours(remote)) {
            return Way::To(remote);
        }
        let (table, transport) = (policies.table(), transport(protocol));
        let Some(end) = self.end(&table) else { return Way::To(remote) };
        let listener = Listener { address: remote, protocol: transport };
        let services = self.around.view.table(&self.around.node);
        let Some(backends) = services.get(&listener) else {
            let allowed = table.allows_from(end, remote, transport);
            return if allowed { Way::To(remote) } else { Way::Nowhere };
        };
        // The service's proxy chooses an endpoint and judges, if it can tell who asks.
        if self.own().is_some() {
            return Way::To(remote);
        }
        let allowed = |endpoint: &SocketAddr| table.allows_from(end, *endpoint, transport);
        if protocol == Protocol::Udp {
            let all = backends.endpoints.iter().all(allowed);
            return if all { Way::To(remote) } else { Way::Nowhere };
        }
        match self.ports.turn(&backends.endpoints) {
            Some(endpoint) if allowed(&endpoint) => Way::To(endpoint),
            Some(_) => Way::Nowhere,
            None => Way::To(remote),
        }
    }

    /// Where a forbidden connection goes: it comes to nothing, as in a network that drops it.
    fn nowhere(&self, remote: SocketAddr) -> Result<SocketAddr, NetworkError> {
        self.around.policies.hole().ok_or_else(|| NetworkError::Denied(remote.to_string()))
    }
}

fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    }
}

/// Addresses that the cluster gives out on this machine's own loopback: they are not in the loopback
/// of a pod's namespace.
fn is_ours(remote: SocketAddr) -> bool {
    matches!(remote.ip(), IpAddr::V4(ip) if ip.octets()[0] == 127 && ip != Ipv4Addr::LOCALHOST)
}

#[async_trait]
impl Network for PodNetwork {
    fn address(&self) -> Option<IpAddr> {
        self.own()
    }

    fn source(&self, remote: SocketAddr) -> Option<IpAddr> {
        match self.own() {
            // From loopback no other machine can be reached.
            Some(own) => Some(own).filter(|own| !own.is_loopback() || remote.ip().is_loopback()),
            None if is_ours(remote) => self.around.policies.source(remote.ip()),
            None => None,
        }
    }

    fn is_apart(&self) -> bool {
        self.netns.is_some()
    }

    fn enter(&self, remote: Option<SocketAddr>, work: &mut (dyn FnMut() + Send)) {
        match &self.netns {
            Some(netns) if !remote.is_some_and(is_ours) => netns.make(work),
            _ => work(),
        }
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, NetworkError> {
        self.addresses(name).await
    }

    fn bind(&self, protocol: Protocol, local: SocketAddr) -> Result<(), NetworkError> {
        // Another pod's address is not this pod's to listen on.
        if self.netns.is_some() || self.address == Some(local.ip()) {
            self.ports.bound(protocol, local.port());
            return Ok(());
        }
        Err(NetworkError::Denied(local.to_string()))
    }

    fn connect(&self, protocol: Protocol, remote: SocketAddr) -> Result<SocketAddr, NetworkError> {
        if protocol == Protocol::Udp && self.ports.talks_with(remote) {
            return Ok(remote);
        }
        match (self.way(protocol, remote), protocol) {
            (Way::To(remote), Protocol::Tcp) => Ok(remote),
            (Way::To(remote), Protocol::Udp) => {
                self.ports.talked_with(remote);
                Ok(remote)
            }
            (Way::Nowhere, Protocol::Tcp) => self.nowhere(remote),
            (Way::Nowhere, Protocol::Udp) => Err(NetworkError::Denied(remote.to_string())),
        }
    }

    fn accept(&self, protocol: Protocol, remote: SocketAddr) -> bool {
        let policies = &self.around.policies;
        let Some(own) = self.own().filter(|_| policies.is_active()) else { return true };
        let allows = |port| policies.allows(remote.ip(), (own, port).into(), transport(protocol));
        match protocol {
            Protocol::Tcp => self.ports.reached(own, remote).is_some_and(allows),
            Protocol::Udp => {
                let allowed = self.ports.talks_with(remote) || self.ports.all_udp(allows);
                if allowed {
                    self.ports.talked_with(remote);
                }
                allowed
            }
        }
    }

    async fn http(&self, request: &Parts) -> Result<HttpTarget, NetworkError> {
        let (host, port) = host_and_port(&request.uri)?;
        let addresses = self.addresses(host).await?;
        let mut all = Vec::with_capacity(addresses.len());
        for ip in addresses {
            if let Way::To(there) = self.way(Protocol::Tcp, (ip, port).into()) {
                all.push(there);
            }
        }
        if all.is_empty() {
            all.push(self.nowhere((Ipv4Addr::UNSPECIFIED, port).into())?);
        }
        Ok(HttpTarget::Connect(all))
    }
}

#[cfg(test)]
mod tests;
