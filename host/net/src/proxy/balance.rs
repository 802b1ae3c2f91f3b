//! Chooses an endpoint for each connection.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::plan::Backends;

/// Clients remembered for affinity per service port; beyond it the oldest are forgotten.
const CLIENTS: usize = 4096;

/// Endpoints of one service port, chosen in turn or by client.
pub(super) struct Balancer {
    backends: ArcSwap<Backends>,
    turn: AtomicUsize,
    clients: Mutex<HashMap<IpAddr, (SocketAddr, Instant)>>,
}

impl Balancer {
    pub(super) fn new(backends: ArcSwap<Backends>) -> Self {
        Self { backends, turn: AtomicUsize::new(0), clients: Mutex::default() }
    }

    pub(super) fn set(&self, backends: &Backends) {
        if **self.backends.load() != *backends {
            self.backends.store(backends.clone().into());
        }
    }

    pub(super) fn service(&self) -> String {
        self.backends.load().service.clone()
    }

    pub(super) fn tells_client(&self) -> bool {
        self.backends.load().tells_client
    }

    /// Endpoints to try for a client, the best first.
    pub(super) fn choose(&self, client: IpAddr) -> Vec<SocketAddr> {
        let backends = self.backends.load();
        let count = backends.endpoints.len();
        if count == 0 {
            return Vec::new();
        }
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % count;
        let mut list = backends.endpoints.clone();
        list.rotate_left(start);
        let Some(hold) = backends.affinity else { return list };
        let now = Instant::now();
        let clients = self.clients.lock();
        let kept = clients.get(&client).filter(|(_, last)| now.duration_since(*last) < hold);
        if let Some(at) = kept.and_then(|(endpoint, _)| list.iter().position(|e| e == endpoint)) {
            list.swap(0, at);
        }
        list
    }

    /// Notes which endpoint a client was connected to.
    pub(super) fn connected(&self, client: IpAddr, endpoint: SocketAddr) {
        let Some(hold) = self.backends.load().affinity else { return };
        let now = Instant::now();
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENTS {
            clients.retain(|_, (_, last)| now.duration_since(*last) < hold);
        }
        if clients.len() >= CLIENTS
            && let Some(oldest) = clients.iter().min_by_key(|(_, (_, last))| *last).map(|(ip, _)| *ip)
        {
            clients.remove(&oldest);
        }
        clients.insert(client, (endpoint, now));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn balancer(affinity: Option<Duration>) -> Balancer {
        let endpoints = (1..=3).map(|n| format!("127.42.0.{n}:80").parse().unwrap()).collect();
        Balancer::new(ArcSwap::from_pointee(Backends {
            service: "s".into(),
            endpoints,
            affinity,
            tells_client: false,
        }))
    }

    #[test]
    fn takes_turns() {
        let balancer = balancer(None);
        let client = "127.0.0.1".parse().unwrap();
        let firsts: Vec<u8> = (0..4)
            .map(|_| match balancer.choose(client)[0] {
                SocketAddr::V4(a) => a.ip().octets()[3],
                SocketAddr::V6(_) => 0,
            })
            .collect();
        assert_eq!(firsts, [1, 2, 3, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_stays_until_its_time_is_over_or_its_endpoint_gone() {
        let balancer = balancer(Some(Duration::from_secs(60)));
        let client = "127.0.0.9".parse().unwrap();
        let first = balancer.choose(client)[0];
        balancer.connected(client, first);
        for _ in 0..5 {
            assert_eq!(balancer.choose(client)[0], first);
        }
        let mut rest = (**balancer.backends.load()).clone();
        rest.endpoints.retain(|e| *e != first);
        balancer.set(&rest);
        assert_ne!(balancer.choose(client)[0], first);
    }

    #[test]
    fn clients_are_bounded() {
        let balancer = balancer(Some(Duration::from_secs(60)));
        for n in 0..CLIENTS as u32 + 10 {
            let client = IpAddr::V4(std::net::Ipv4Addr::from(n));
            balancer.connected(client, "127.42.0.1:80".parse().unwrap());
        }
        assert_eq!(balancer.clients.lock().len(), CLIENTS);
    }
}
