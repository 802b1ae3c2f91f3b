//! The question that each listener of a node puts to the policies.

use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;

use super::Policies;
use crate::plan::Protocol;

/// The policies, as one listener asks them.
#[derive(Clone)]
pub struct Gate {
    policies: Policies,
    /// Whose connections these are, when their address does not tell.
    client: Option<IpAddr>,
}

impl Gate {
    /// For a listener whose clients are known by their addresses.
    pub fn new(policies: Policies) -> Self {
        Self { policies, client: None }
    }

    /// For a listener that only that pod can reach.
    pub fn of(policies: Policies, client: IpAddr) -> Self {
        Self { policies, client: Some(client) }
    }

    /// One that is open to all.
    pub fn open() -> Self {
        Self::new(Policies::none())
    }

    /// Whose connection it is that comes from an address.
    pub fn client(&self, address: IpAddr) -> IpAddr {
        self.client.unwrap_or(address)
    }

    /// Whether a client's connection or datagrams may go on to an endpoint.
    pub fn allows(&self, client: IpAddr, to: SocketAddr, protocol: Protocol) -> bool {
        self.policies.allows(self.client(client), to, protocol)
    }

    /// The connection, if it may be answered at `to`; otherwise it is left without an answer.
    pub fn pass(&self, stream: TcpStream, client: IpAddr, to: SocketAddr) -> Option<TcpStream> {
        if self.allows(client, to, Protocol::Tcp) {
            return Some(stream);
        }
        tracing::debug!(%client, %to, "a network policy does not allow a connection");
        self.policies.hold(stream);
        None
    }

    /// The policies asked.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }
}
