//! The network as a guest sees it: its own address, names of the cluster, and everything
//! the host can reach.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use async_trait::async_trait;
use http::request::Parts;
use wasmk_net::{
    View,
    names::{self, Answer},
};
use wasmk_runtime::{HttpTarget, Network, NetworkError, Protocol, host_and_port, lookup};

use crate::netns::Netns;

/// Names that stand for other names are followed so often.
const MAX_ALIASES: usize = 4;

/// The network of one pod.
pub(crate) struct PodNetwork {
    view: View,
    namespace: String,
    address: Option<IpAddr>,
    /// Where the pod's containers are, if it has any beside its guests.
    netns: Option<Netns>,
}

impl PodNetwork {
    /// For a pod of that namespace and address; without an address nothing can be listened on.
    pub(crate) fn new(
        view: View,
        namespace: &str,
        address: Option<IpAddr>,
        netns: Option<Netns>,
    ) -> Arc<Self> {
        Arc::new(Self { view, namespace: namespace.into(), address, netns })
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, NetworkError> {
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        let mut name = name.to_string();
        for _ in 0..MAX_ALIASES {
            match names::resolve(&self.view, &self.namespace, &name) {
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
}

/// Addresses that the cluster gives out on this machine's own loopback: they are not in the loopback
/// of a pod's namespace.
fn is_ours(remote: SocketAddr) -> bool {
    matches!(remote.ip(), IpAddr::V4(ip) if ip.octets()[0] == 127 && ip != Ipv4Addr::LOCALHOST)
}

#[async_trait]
impl Network for PodNetwork {
    fn address(&self) -> Option<IpAddr> {
        // In a namespace of its own the pod has all addresses, and the system chooses the right one.
        self.address.filter(|_| self.netns.is_none())
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

    fn bind(&self, _: Protocol, local: SocketAddr) -> Result<(), NetworkError> {
        // Another pod's address is not this pod's to listen on.
        if self.netns.is_some() || self.address == Some(local.ip()) {
            return Ok(());
        }
        Err(NetworkError::Denied(local.to_string()))
    }

    fn connect(&self, _: Protocol, remote: SocketAddr) -> Result<SocketAddr, NetworkError> {
        Ok(remote)
    }

    fn accept(&self, _: Protocol, _: SocketAddr) -> bool {
        true
    }

    async fn http(&self, request: &Parts) -> Result<HttpTarget, NetworkError> {
        let (host, port) = host_and_port(&request.uri)?;
        let addresses = self.addresses(host).await?;
        Ok(HttpTarget::Connect(addresses.into_iter().map(|ip| (ip, port).into()).collect()))
    }
}
