//! What a guest's sockets are bound to and with whom it exchanges datagrams: what policies ask for beside
//! addresses.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use wasmk_runtime::Protocol;

/// Ports of one pod that are remembered: more than it can have sockets.
const PORTS: usize = 1024;
/// Partners in exchanges of datagrams that are remembered.
const PARTNERS: usize = 1024;
/// How long an exchange of datagrams counts as one without a word.
const SILENCE: Duration = Duration::from_secs(120);
/// Where the system lists its TCP connections.
const CONNECTIONS: &str = "/proc/net/tcp";

#[derive(Default)]
pub(super) struct Ports {
    tcp: Mutex<BTreeSet<u16>>,
    udp: Mutex<BTreeSet<u16>>,
    partners: Mutex<HashMap<SocketAddr, Instant>>,
    turn: AtomicUsize,
}

impl Ports {
    /// Notes that a socket was bound.
    pub(super) fn bound(&self, protocol: Protocol, port: u16) {
        let mut ports = match protocol {
            Protocol::Tcp => self.tcp.lock(),
            Protocol::Udp => self.udp.lock(),
        };
        if ports.len() < PORTS {
            ports.insert(port);
        }
    }

    /// The port that a connection from `remote` came to; `None` when it has gone.
    pub(super) fn reached(&self, own: IpAddr, remote: SocketAddr) -> Option<u16> {
        let only = {
            let ports = self.tcp.lock();
            ports.first().copied().filter(|first| ports.len() == 1 && *first != 0)
        };
        only.or_else(|| find(&std::fs::read_to_string(CONNECTIONS).ok()?, own, remote))
    }

    /// Whether something holds of all ports that datagrams can come to.
    pub(super) fn all_udp(&self, holds: impl Fn(u16) -> bool) -> bool {
        self.udp.lock().iter().all(|port| holds(*port))
    }

    /// Whether an exchange of datagrams is under way.
    pub(super) fn talks_with(&self, remote: SocketAddr) -> bool {
        self.partners.lock().get(&remote).is_some_and(|last| last.elapsed() < SILENCE)
    }

    /// Notes a datagram that came from or went to a partner.
    pub(super) fn talked_with(&self, remote: SocketAddr) {
        let mut partners = self.partners.lock();
        if partners.len() >= PARTNERS && !partners.contains_key(&remote) {
            partners.retain(|_, last| last.elapsed() < SILENCE);
            if partners.len() >= PARTNERS
                && let Some(oldest) = partners.iter().min_by_key(|(_, last)| **last).map(|(a, _)| *a)
            {
                partners.remove(&oldest);
            }
        }
        partners.insert(remote, Instant::now());
    }

    /// One of a service's endpoints, another each time.
    pub(super) fn turn(&self, endpoints: &[SocketAddr]) -> Option<SocketAddr> {
        endpoints.get(self.turn.fetch_add(1, Relaxed) % endpoints.len().max(1)).copied()
    }
}

/// The local port of the connection between two addresses, in the system's list.
fn find(list: &str, own: IpAddr, remote: SocketAddr) -> Option<u16> {
    list.lines().skip(1).find_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let (local, other) = (address(columns.next()?)?, address(columns.next()?)?);
        (local.ip() == own && other == remote).then(|| local.port())
    })
}

/// `0100007F:1F90`: the address as this machine keeps it, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let ip = u32::from_str_radix(ip, 16).ok()?;
    Some((Ipv4Addr::from(ip.to_ne_bytes()), u16::from_str_radix(port, 16).ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        (Ipv4Addr::new(127, 42, 0, 9), port).into()
    }

    #[test]
    fn the_system_knows_which_port_was_reached() {
        let own = IpAddr::from([127, 0, 0, 1]);
        let ports = Ports::default();
        ports.bound(Protocol::Tcp, 80);
        assert_eq!(ports.reached(own, at(1)), Some(80), "there is only one");
        let listener = std::net::TcpListener::bind((own, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        ports.bound(Protocol::Tcp, port);
        let client = std::net::TcpStream::connect((own, port)).unwrap();
        assert_eq!(ports.reached(own, client.local_addr().unwrap()), Some(port));
        assert_eq!(ports.reached(own, at(1)), None, "there is no such connection");
    }

    #[test]
    fn partners_are_bounded_and_the_silent_are_forgotten_first() {
        let ports = Ports::default();
        for port in 0..=PARTNERS as u16 {
            ports.talked_with(at(port));
        }
        assert!(!ports.talks_with(at(0)) && ports.talks_with(at(1)) && ports.talks_with(at(PARTNERS as u16)));
        assert_eq!(ports.partners.lock().len(), PARTNERS);
    }

    #[test]
    fn all_ports_must_agree() {
        let ports = Ports::default();
        assert!(ports.all_udp(|_| false), "nothing can come to none");
        ports.bound(Protocol::Udp, 53);
        ports.bound(Protocol::Udp, 54);
        assert!(ports.all_udp(|port| port > 50) && !ports.all_udp(|port| port == 53));
    }
}
