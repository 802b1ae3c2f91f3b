//! What a guest may reach. The runtime enforces the answers; the embedding program gives them.
//!
//! Every name lookup, bind, connect, datagram and outgoing HTTP request of a guest is put to its
//! [`Network`]. There is no other way to a socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use http::Uri;
use http::request::Parts;
use http::uri::Scheme;

use crate::body::Body;
use crate::error::CallError;

/// Transport of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A stream.
    Tcp,
    /// Datagrams.
    Udp,
}

/// Why the network refuses. The guest sees the nearest error code of WASI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Policy says no.
    #[error("{0} is not allowed")]
    Denied(String),
    /// The name does not exist.
    #[error("name {0} does not exist")]
    NotFound(String),
    /// It exists but cannot be reached now.
    #[error("{0} cannot be reached")]
    Unreachable(String),
}

/// Where an outgoing HTTP request goes.
#[derive(Clone)]
pub enum HttpTarget {
    /// To these addresses, the first that answers; with TLS if the request's scheme is https.
    Connect(Vec<SocketAddr>),
    /// To a function in this process, without a socket.
    Service(Arc<dyn HttpService>),
}

/// Something in this process that answers HTTP requests.
#[async_trait]
pub trait HttpService: Send + Sync {
    /// Answers one request. The response's body may still be streaming when this returns.
    async fn call(&self, request: http::Request<Body>) -> Result<http::Response<Body>, CallError>;
}

/// Decides about a guest's network.
///
/// Implementations answer quickly: the guest waits. Anything not overridden is refused, except that
/// a name that is an address resolves to itself.
#[async_trait]
pub trait Network: Send + Sync {
    /// Address the guest's sockets are bound to, and what `0.0.0.0` means to it.
    /// `None`: outgoing sockets are left to the host, and a bind to `0.0.0.0` stays one.
    fn address(&self) -> Option<IpAddr> {
        None
    }

    /// Whether the guest's sockets belong to another place than this process's own.
    fn is_apart(&self) -> bool {
        false
    }

    /// Address that a connection to `remote` starts from; `None` leaves that to the host. By default it is the
    /// guest's own.
    fn source(&self, remote: SocketAddr) -> Option<IpAddr> {
        let _ = remote;
        self.address()
    }

    /// Does `work`, which makes a socket, where the guest's sockets belong: another network namespace,
    /// perhaps. `remote` is what the socket is for, when that is known. By default it is done here.
    fn enter(&self, remote: Option<SocketAddr>, work: &mut (dyn FnMut() + Send)) {
        let _ = remote;
        work();
    }

    /// Addresses of `name`, best first.
    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, NetworkError> {
        name.parse().map(|address| vec![address]).map_err(|_| NetworkError::NotFound(name.to_owned()))
    }

    /// Whether the guest may listen on `local`; already rewritten to [`address`](Self::address).
    fn bind(&self, protocol: Protocol, local: SocketAddr) -> Result<(), NetworkError> {
        let _ = protocol;
        Err(NetworkError::Denied(local.to_string()))
    }

    /// Where a connection to `remote` really goes: the same address, or another of the same family to
    /// redirect it. A datagram cannot be redirected: it is sent if the answer is the same address.
    fn connect(&self, protocol: Protocol, remote: SocketAddr) -> Result<SocketAddr, NetworkError> {
        let _ = protocol;
        Err(NetworkError::Denied(remote.to_string()))
    }

    /// Whether a connection or datagram from `remote` may reach the guest.
    fn accept(&self, protocol: Protocol, remote: SocketAddr) -> bool {
        let _ = (protocol, remote);
        false
    }

    /// Where an outgoing HTTP request goes; its URI has scheme and authority.
    async fn http(&self, request: &Parts) -> Result<HttpTarget, NetworkError> {
        Err(NetworkError::Denied(request.uri.to_string()))
    }
}

/// Refuses everything: the default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deny;

#[async_trait]
impl Network for Deny {}

/// Allows everything the host can reach, for a program run by hand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Open {
    /// See [`Network::address`].
    pub address: Option<IpAddr>,
}

#[async_trait]
impl Network for Open {
    fn address(&self) -> Option<IpAddr> {
        self.address
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, NetworkError> {
        lookup(name, 0).await.map(|found| found.iter().map(SocketAddr::ip).collect())
    }

    fn bind(&self, _protocol: Protocol, _local: SocketAddr) -> Result<(), NetworkError> {
        Ok(())
    }

    fn connect(&self, _protocol: Protocol, remote: SocketAddr) -> Result<SocketAddr, NetworkError> {
        Ok(remote)
    }

    fn accept(&self, _protocol: Protocol, _remote: SocketAddr) -> bool {
        true
    }

    async fn http(&self, request: &Parts) -> Result<HttpTarget, NetworkError> {
        let (host, port) = host_and_port(&request.uri)?;
        lookup(host, port).await.map(HttpTarget::Connect)
    }
}

/// Host and port of an outgoing request, the port by its scheme if it names none.
///
/// # Errors
/// If the URI has no authority.
pub fn host_and_port(uri: &Uri) -> Result<(&str, u16), NetworkError> {
    let Some(authority) = uri.authority() else {
        return Err(NetworkError::NotFound(uri.to_string()));
    };
    let secure = uri.scheme() == Some(&Scheme::HTTPS);
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    Ok((authority.host().trim_start_matches('[').trim_end_matches(']'), port))
}

/// The addresses of a name by the machine's own resolver, each with `port`.
///
/// # Errors
/// If there is no such name, or the machine may not look for it.
pub async fn lookup(host: &str, port: u16) -> Result<Vec<SocketAddr>, NetworkError> {
    match tokio::net::lookup_host((host, port)).await {
        Ok(found) => Ok(found.collect()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(NetworkError::Denied(host.to_owned()))
        }
        Err(_) => Err(NetworkError::NotFound(host.to_owned())),
    }
}

/// `address` with the wildcard replaced by the guest's own address.
pub(crate) fn rewrite(network: &dyn Network, address: SocketAddr) -> SocketAddr {
    match network.address() {
        Some(own) if address.ip().is_unspecified() && own.is_ipv4() == address.is_ipv4() => {
            SocketAddr::new(own, address.port())
        }
        // An IPv6 wildcard means every address; a guest with one IPv4 address has only that.
        Some(own @ IpAddr::V4(Ipv4Addr { .. })) if address.ip().is_unspecified() => {
            SocketAddr::new(own, address.port())
        }
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str) -> Parts {
        http::Request::builder().uri(uri).body(()).unwrap().into_parts().0
    }

    #[test]
    fn ports_follow_the_scheme() {
        let check =
            |uri: &str, expect: (&str, u16)| assert_eq!(host_and_port(&parts(uri).uri).unwrap(), expect);
        check("http://a.example/x", ("a.example", 80));
        check("https://a.example/x", ("a.example", 443));
        check("https://a.example:8443/", ("a.example", 8443));
        check("http://[::1]:81/", ("::1", 81));
        assert!(host_and_port(&parts("/only/a/path").uri).is_err());
    }

    #[test]
    fn wildcard_becomes_the_own_address() {
        let own = Open { address: Some([127, 42, 0, 5].into()) };
        let check = |from: &str, expect: &str| {
            assert_eq!(rewrite(&own, from.parse().unwrap()), expect.parse().unwrap(), "{from}");
        };
        check("0.0.0.0:80", "127.42.0.5:80");
        check("[::]:80", "127.42.0.5:80");
        check("127.0.0.1:80", "127.0.0.1:80");
        assert_eq!(rewrite(&Deny, "0.0.0.0:80".parse().unwrap()), "0.0.0.0:80".parse().unwrap());
    }

    #[tokio::test]
    async fn deny_refuses_everything_but_literal_names() {
        assert_eq!(Deny.resolve("10.0.0.1").await.unwrap(), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert!(Deny.resolve("a.example").await.is_err());
        assert!(Deny.connect(Protocol::Tcp, "10.0.0.1:80".parse().unwrap()).is_err());
        assert!(Deny.bind(Protocol::Udp, "10.0.0.1:80".parse().unwrap()).is_err());
        assert!(!Deny.accept(Protocol::Tcp, "10.0.0.1:80".parse().unwrap()));
        assert!(Deny.http(&parts("http://a.example/")).await.is_err());
    }
}
